//! Changing a machine: resources, name, autostart.

use sistemo_host::system;
use sistemo_model::{Bytes, Exposure, MachineName, Reference, VcpuCount};

use super::ports::check_distinct;
use super::templates::refuse_ephemeral;
use super::{MachineView, StopRequest, Wait};
use crate::engine::Engine;
use crate::error::{Error, Result};

/// The least memory that a machine can have.
pub(super) const MINIMUM_MEMORY: Bytes = Bytes::from_mib(128);

/// What is to be different about a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineChanges {
    /// Its virtual processors.
    pub vcpus: Option<VcpuCount>,
    /// Its memory.
    pub memory: Option<Bytes>,
    /// The guest ports to reach from the host, in place of those there are.
    pub expose: Option<Vec<Exposure>>,
    /// Whether it starts when the host does; may be changed while it runs.
    pub autostart: Option<bool>,
}

impl Engine {
    /// Changes a machine; its resources and ports only while it is stopped.
    ///
    /// # Errors
    /// Where it is active, or the host does not have so much memory.
    pub fn set_machine(
        &self,
        reference: &Reference,
        changes: &MachineChanges,
    ) -> Result<MachineView> {
        let machine = self.find_machine(reference)?;
        let memory = changes.memory.map(Bytes::round_up_to_mib);
        if let Some(memory) = memory {
            check_memory(memory)?;
        }
        check_distinct(changes.expose.as_deref().unwrap_or_default())?;
        let _held = self.hold(Some(machine.id), &[])?;
        if changes.autostart == Some(true) {
            refuse_ephemeral(&machine, "start it with the host")?;
        }
        if changes.vcpus.is_some() || memory.is_some() || changes.expose.is_some() {
            self.require_stopped(machine.id, || "change its resources or ports".to_owned())?;
        }
        self.catalogue.write(|session| {
            let machine = session.machine(machine.id)?;
            session.set_resources(
                machine.id,
                changes.vcpus.unwrap_or(machine.vcpus),
                memory.unwrap_or(machine.memory),
            )?;
            if let Some(exposed) = &changes.expose {
                session.set_exposed(machine.id, exposed)?;
            }
            session.set_autostart(machine.id, changes.autostart.unwrap_or(machine.autostart))
        })?;
        self.view_machine(machine.id)
    }

    /// Gives a stopped machine another name; its guest has it as its host name at the next start.
    ///
    /// # Errors
    /// Where it is active or the name is taken.
    pub fn rename_machine(&self, reference: &Reference, name: &MachineName) -> Result<MachineView> {
        let machine = self.find_machine(reference)?;
        let _held = self.hold(Some(machine.id), &[])?;
        self.require_stopped(machine.id, || "rename it".to_owned())?;
        self.catalogue
            .write(|session| session.rename_machine(machine.id, name))?;
        self.view_machine(machine.id)
    }

    /// Starts the machines that are to start when the host does. One that cannot be started
    /// does not keep the others from starting.
    ///
    /// # Errors
    /// Where the catalogue cannot be read.
    pub fn autostart(&self) -> Result<Vec<(MachineName, Result<MachineView>)>> {
        let machines = self.catalogue.read(|session| session.machines())?;
        Ok(machines
            .into_iter()
            .filter(|machine| machine.autostart)
            .map(|machine| {
                let reference = Reference::from(machine.id.to_string());
                let started = self
                    .start_machine(&reference, Wait::No)
                    .map(|(view, _)| view);
                (machine.name, started)
            })
            .collect())
    }

    /// Stops every machine, as the host's shutdown does.
    ///
    /// # Errors
    /// Where the catalogue cannot be read.
    pub fn stop_all(&self, how: StopRequest) -> Result<Vec<(MachineName, Result<MachineView>)>> {
        let machines = self.catalogue.read(|session| session.machines())?;
        // Guests take their time to power off, so all of them are asked at once.
        Ok(std::thread::scope(|scope| {
            let stopping: Vec<_> = machines
                .into_iter()
                .filter(|machine| machine.state.is_active())
                .map(|machine| {
                    let reference = Reference::from(machine.id.to_string());
                    let stop = move || self.stop_machine(&reference, how).map(|(view, _)| view);
                    (machine.name, scope.spawn(stop))
                })
                .collect();
            stopping
                .into_iter()
                .filter_map(|(name, stop)| Some((name, stop.join().ok()?)))
                .collect()
        }))
    }
}

/// Refuses memory that no guest boots with, or that the host does not have.
pub(super) fn check_memory(asked: Bytes) -> Result<()> {
    // Where the host does not tell, the VMM will.
    let maximum = system::memory_bytes().map_or(asked, Bytes::new);
    if asked < MINIMUM_MEMORY || asked > maximum {
        return Err(Error::MemoryOutOfRange {
            asked,
            minimum: MINIMUM_MEMORY,
            maximum,
        });
    }
    Ok(())
}
