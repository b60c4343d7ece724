//! Attaching volumes to machines and detaching them.

use sistemo_model::{Access, Reference};

use super::MachineView;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::holding::Unless;

impl Engine {
    /// Attaches a volume as the next device of a stopped machine.
    ///
    /// # Errors
    /// Where the machine is active, the volume is held by any machine, or there is no place left.
    pub fn attach_volume(
        &self,
        machine: &Reference,
        volume: &Reference,
        access: Access,
    ) -> Result<MachineView> {
        let machine = self.find_machine(machine)?;
        let volume = self.catalogue.read(|session| session.find_volume(volume))?;
        let _held = self.hold(Some(machine.id), &[volume.id])?;
        self.require_stopped(machine.id, || format!("attach volume {}", volume.name))?;
        self.refuse_damaged(volume.id)?;
        self.catalogue.write(|session| {
            let position = session.next_position(machine.id)?;
            session.attach(machine.id, volume.id, position, access)
        })?;
        self.view_machine(machine.id)
    }

    /// Detaches a data volume from a stopped machine. The volume keeps all it holds.
    ///
    /// # Errors
    /// Where the machine is active, or the volume is its root or not attached to it.
    pub fn detach_volume(&self, machine: &Reference, volume: &Reference) -> Result<MachineView> {
        let machine = self.find_machine(machine)?;
        let volume = self.catalogue.read(|session| session.find_volume(volume))?;
        let _held = self.hold(Some(machine.id), &[volume.id])?;
        let attachments = self
            .catalogue
            .read(|session| session.attachments_of(machine.id))?;
        let position = attachments
            .iter()
            .find(|attachment| attachment.volume == volume.id)
            .map(|attachment| attachment.position);
        match position {
            None => {
                return Err(Error::VolumeNotAttached {
                    volume: volume.name,
                    machine: machine.name,
                });
            }
            Some(0) => {
                self.refuse_disposable(&volume, Unless::Never)?;
                return Err(Error::RootVolume {
                    volume: volume.name,
                    machine: machine.name,
                });
            }
            Some(_) => {}
        }
        self.require_stopped(machine.id, || format!("detach volume {}", volume.name))?;
        self.catalogue
            .write(|session| session.detach(machine.id, volume.id))?;
        self.view_machine(machine.id)
    }
}
