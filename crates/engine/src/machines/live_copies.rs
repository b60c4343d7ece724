//! Snapshots of a running machine's volumes where a snapshot is a copy: the VMM writes them, while
//! the machine runs on, as the volumes are at the instant at which that begins.

use std::thread;
use std::time::Duration;

use sistemo_catalog::{Intent, LockSet};
use sistemo_model::{Machine, PauseCause, SnapshotName, Timestamp, Volume};
use sistemo_pools::{LiveCopies, SnapshotDraft, Way};
use sistemo_vmm::{Control, DiskCopy, RunStatus, VmmError};

use super::live::require_live;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::snapshots::snapshot_error;

/// How often the VMM is asked how far it is; whoever else wants something of it gets a turn in
/// between.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const COPY: &str = "copy the volumes of";

/// A volume of a running machine whose VMM is to copy it.
pub(crate) struct ToCopy<'a> {
    pub(crate) volume: &'a Volume,
    pub(crate) position: u8,
    pub(crate) power: &'a dyn LiveCopies,
}

/// Copies that a VMM is to make, or is making. Where they are dropped before they are complete,
/// [`Engine::abandon_copies`] is to be called first.
pub(crate) struct Copying<'a> {
    copies: Vec<(&'a Volume, Box<dyn SnapshotDraft + 'a>)>,
    positions: Vec<u8>,
    snapshot: &'a SnapshotName,
}

impl Copying<'_> {
    /// Begins with all of them at one instant.
    pub(crate) fn start(&self, control: &mut dyn Control) -> Result<(), VmmError> {
        if self.positions.is_empty() {
            return Ok(());
        }
        control.start_copies(&self.positions)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }
}

impl Engine {
    /// Keeps one volume of a running machine, whose lock is let go once the copy has begun.
    ///
    /// A crash leaves no snapshot, and the VMM copying; the next operation ends that.
    pub(crate) fn copy_live(
        &self,
        machine: &Machine,
        copy: ToCopy<'_>,
        snapshot: &SnapshotName,
        created: Timestamp,
        held: &mut LockSet,
    ) -> Result<Way> {
        require_live(machine, copy.volume)?;
        let volumes = vec![copy.volume.id];
        let intent = Intent::TakeSnapshots {
            volumes: volumes.clone(),
            snapshot: snapshot.clone(),
            created,
        };
        let intent = self.catalogue.write(|session| session.begin(&intent))?;
        let copied = self
            .prepare_copies(machine, &[copy], snapshot, created)
            .and_then(|copying| {
                self.command(machine, COPY, |control| copying.start(control))?;
                held.release_machine(machine.id);
                self.complete_copies(machine, copying)
            });
        if let Err(error) = copied {
            let undone = self.withdraw_snapshots(&volumes, snapshot, created, intent);
            self.undo_after(&error, undone);
            return Err(error);
        }
        self.catalogue.write(|session| session.finish(intent))?;
        Ok(Way::Copied)
    }

    /// Makes everything ready for copies of a running machine's volumes.
    ///
    /// A crash leaves targets that the next operation on the volumes removes, and files that the
    /// VMM has open until the next copies are made or it ends.
    pub(crate) fn prepare_copies<'a>(
        &self,
        machine: &Machine,
        volumes: &[ToCopy<'a>],
        snapshot: &'a SnapshotName,
        created: Timestamp,
    ) -> Result<Copying<'a>> {
        let mut copying = Copying {
            copies: Vec::new(),
            positions: Vec::new(),
            snapshot,
        };
        let mut targets = Vec::new();
        for ToCopy {
            volume,
            position,
            power,
        } in volumes
        {
            let draft = power
                .draft_snapshot(volume.id, snapshot, created, volume.size)
                .map_err(|source| snapshot_error(volume, snapshot, "copy", source))?;
            targets.push(DiskCopy {
                position: *position,
                target: draft.raw_path().to_owned(),
            });
            copying.copies.push((volume, draft));
            copying.positions.push(*position);
        }
        if !targets.is_empty() {
            self.command(machine, COPY, |control| control.prepare_copies(&targets))?;
        }
        Ok(copying)
    }

    /// Waits until copies that were started are complete, and makes snapshots of them. The
    /// machine's lock need not be held: it may be stopped meanwhile, which fails.
    ///
    /// # Errors
    /// Where one could not be made; then none that is still a draft is left, and the machine runs
    /// on.
    pub(crate) fn complete_copies(&self, machine: &Machine, copying: Copying<'_>) -> Result<()> {
        if copying.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.follow_copies(machine, &copying) {
            self.abandon_copies(machine, &copying);
            return Err(error);
        }
        for (volume, draft) in copying.copies {
            draft
                .commit()
                .map_err(|source| snapshot_error(volume, copying.snapshot, "copy", source))?;
        }
        Ok(())
    }

    fn follow_copies(&self, machine: &Machine, copying: &Copying<'_>) -> Result<()> {
        let positions = &copying.positions;
        loop {
            match self.command(machine, COPY, |control| control.copies(positions)) {
                Ok(progress) => {
                    self.reporter.progress(progress.done, progress.total);
                    if progress.complete {
                        return self.command(machine, COPY, |c| c.end_copies(positions));
                    }
                }
                // Somebody else's turn takes longer.
                Err(Error::Vmm {
                    source: VmmError::Busy { .. },
                    ..
                }) => {}
                Err(error) => return Err(error),
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Ends copies that are of no use any more.
    pub(crate) fn abandon_copies(&self, machine: &Machine, copying: &Copying<'_>) {
        if copying.is_empty() {
            return;
        }
        if let Err(error) = self.end_copies(machine, &copying.positions) {
            // Where the VMM has ended, so have they.
            tracing::warn!(%error, "the VMM may still be copying");
        }
    }

    /// Ends the copies of disks of a machine that runs, and lets it run on where it was held
    /// because a copy had no room: a guest's write waits until what it overwrites is copied.
    pub(super) fn end_copies(&self, machine: &Machine, positions: &[u8]) -> Result<()> {
        const HELD: RunStatus = RunStatus::Paused(PauseCause::DiskFull);
        self.command(machine, "end the copying of", |control| {
            control.end_copies(positions)?;
            if control.status()? == HELD {
                control.resume()?;
            }
            Ok(())
        })
    }
}
