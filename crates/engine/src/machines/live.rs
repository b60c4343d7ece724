//! The disk of a machine that runs, while its volume is kept as a snapshot.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sistemo_catalog::{Intent, IntentId, Lockable};
use sistemo_model::{Machine, MachineId, MachineState, Volume};
use sistemo_pools::{LiveDisk, LiveDiskError, Progress};
use sistemo_vmm::{Control, RunStatus};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::reporter::Notice;

/// A disk of a running machine, at the other end of its VMM's control connection.
pub(super) struct ControlledDisk<'a, 'c> {
    control: &'a Mutex<&'c mut dyn Control>,
    position: u8,
}

impl<'a, 'c> ControlledDisk<'a, 'c> {
    /// One of the disks that share a connection.
    pub(super) fn shared(
        control: &'a Mutex<&'c mut dyn Control>,
        position: u8,
    ) -> ControlledDisk<'a, 'c> {
        ControlledDisk { control, position }
    }

    fn control(&self) -> MutexGuard<'a, &'c mut dyn Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LiveDisk for ControlledDisk<'_, '_> {
    fn file(&mut self) -> Result<PathBuf, LiveDiskError> {
        Ok(self.control().disk_file(self.position)?)
    }

    fn switch_to(&mut self, overlay: &Path) -> Result<(), LiveDiskError> {
        Ok(self.control().switch_disk(self.position, overlay)?)
    }

    fn flatten(&mut self, progress: Progress<'_>) -> Result<(), LiveDiskError> {
        Ok(self.control().flatten_disk(self.position, progress)?)
    }
}

impl Engine {
    /// Works on a volume that a machine uses, with its disk at hand. The machine's lock is held.
    pub(crate) fn with_live_disk<T>(
        &self,
        machine: &Machine,
        volume: &Volume,
        position: u8,
        work: impl FnOnce(Option<&mut dyn LiveDisk>) -> Result<T>,
    ) -> Result<T> {
        require_live(machine, volume)?;
        let mut control = self.connect(machine, "look at")?;
        let shared: Mutex<&mut dyn Control> = Mutex::new(control.as_mut());
        let mut disk = ControlledDisk::shared(&shared, position);
        work(Some(&mut disk))
    }

    /// Works on a volume while the processors of the machine that uses it are held, and lets them
    /// go whatever comes of it. A machine that is paused already stays so. The machine's lock is
    /// held.
    ///
    /// A crash in the middle leaves the machine held; the next operation lets it go.
    pub(crate) fn while_held<T>(
        &self,
        machine: &Machine,
        volume: &Volume,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        require_live(machine, volume)?;
        let status = self.command(machine, "look at", |control| control.status())?;
        if status != RunStatus::Running {
            return work();
        }
        let intent = Intent::SnapshotHeld {
            machine: machine.id,
            volume: volume.id,
        };
        let intent = self.catalogue.write(|session| session.begin(&intent))?;
        self.reporter.notice(&Notice::HeldForCopy {
            machine: machine.name.clone(),
            volume: volume.name.clone(),
        });
        let outcome = self
            .command(machine, "pause", |control| control.pause())
            .and_then(|()| work());
        let let_go = self.let_go(machine.id, intent);
        match outcome {
            Err(error) => {
                self.undo_after(&error, let_go);
                Err(error)
            }
            Ok(done) => {
                let_go?;
                Ok(done)
            }
        }
    }

    /// Lets a machine run on that was held for a copy, where it still lives.
    pub(crate) fn let_go(&self, id: MachineId, intent: IntentId) -> Result<()> {
        if self.locks.is_held(&Lockable::Run(id))? {
            let machine = self.catalogue.read(|session| session.machine(id))?;
            match self.run_on(&machine) {
                // It ended on its own, or was forced to, meanwhile.
                Err(_) if !self.locks.is_held(&Lockable::Run(id))? => {}
                other => {
                    other?;
                    let _ = self.advance(id, MachineState::Running)?;
                }
            }
        }
        Ok(self.catalogue.write(|session| session.finish(intent))?)
    }
}

/// Refuses a machine that is on its way: its disks are not in anybody's hands.
pub(super) fn require_live(machine: &Machine, volume: &Volume) -> Result<()> {
    match machine.state {
        MachineState::Running | MachineState::Paused(_) => Ok(()),
        state => Err(Error::MachineActive {
            machine: machine.name.clone(),
            state,
            action: format!("keep a snapshot of volume {}", volume.name),
        }),
    }
}
