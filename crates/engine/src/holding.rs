//! Holding a volume for an operation: its lock, and that of the machine that has it.

use sistemo_catalog::{Holding, LockSet};
use sistemo_host::lock::Lock;
use sistemo_model::{MachineName, Reference, Volume, VolumeId};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::volumes::held_lock;

/// A volume that nobody else works on.
pub(crate) struct HeldVolume {
    pub(crate) volume: Volume,
    /// The machine that has it, whose lock is held too.
    pub(crate) holder: Option<Holding>,
    pub(crate) locks: LockSet,
}

/// A volume that no machine uses and nobody else works on.
pub(crate) struct IdleVolume {
    pub(crate) volume: Volume,
    pub(crate) machine: Option<MachineName>,
    pub(crate) locks: LockSet,
}

impl IdleVolume {
    pub(crate) fn lock(&self) -> Result<&Lock> {
        held_lock(&self.locks, self.volume.id)
    }
}

/// When something can be done with a volume that is made anew at each start of its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unless {
    /// While the machine is active, and the volume so is there.
    Active,
    /// Never.
    Never,
}

impl Engine {
    /// Refuses to work on a volume that is made anew at each start of its machine, and of which
    /// there is nothing, or nothing for long.
    pub(crate) fn refuse_disposable(&self, volume: &Volume, unless: Unless) -> Result<()> {
        let disposable = self
            .catalogue
            .read(|session| session.disposable(volume.id))?;
        match disposable {
            Some(disposable) if unless == Unless::Never || !disposable.active => {
                Err(Error::VolumeDisposable {
                    volume: volume.name.clone(),
                    machine: disposable.machine_name,
                    template: disposable.template_name,
                })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn hold_volumes(&self, volumes: &[VolumeId]) -> Result<LockSet> {
        self.hold(None, volumes)
    }

    /// Finds a volume and takes its lock alone: what its machine does with it meanwhile is of no
    /// concern.
    pub(crate) fn hold_volume_alone(&self, reference: &Reference) -> Result<(Volume, LockSet)> {
        let found = self
            .catalogue
            .read(|session| session.find_volume(reference))?;
        let locks = self.hold_volumes(&[found.id])?;
        // It may have changed, or gone, before we had its lock.
        let again = Reference::from(found.id.to_string());
        let volume = self.catalogue.read(|session| session.find_volume(&again))?;
        self.refuse_disposable(&volume, Unless::Active)?;
        Ok((volume, locks))
    }

    /// Finds a volume, and takes its lock and its machine's.
    pub(crate) fn hold_with_holder(&self, reference: &Reference) -> Result<HeldVolume> {
        loop {
            let (volume, holder) = self.catalogue.read(|session| {
                let volume = session.find_volume(reference)?;
                let holder = session.holder_of(volume.id)?;
                Ok::<_, Error>((volume, holder.map(|holder| holder.attachment.machine)))
            })?;
            if let Some(holder) = holder {
                // A start of it that was cut short is ended by whoever does not have its lock.
                self.settle(holder)?;
            }
            let locks = self.hold(holder, &[volume.id])?;
            let (volume, holder_now) = self.catalogue.read(|session| {
                let volume = session.find_volume(&Reference::from(volume.id.to_string()))?;
                let holder = session.holder_of(volume.id)?;
                Ok::<_, Error>((volume, holder))
            })?;
            if holder_now.as_ref().map(|holder| holder.attachment.machine) != holder {
                // It changed hands before we had the locks: take the new holder's.
                continue;
            }
            self.refuse_disposable(&volume, Unless::Active)?;
            return Ok(HeldVolume {
                volume,
                holder: holder_now,
                locks,
            });
        }
    }

    /// Finds a volume, takes its lock and its machine's, and makes sure that no machine uses it.
    pub(crate) fn hold_idle_volume(
        &self,
        reference: &Reference,
        action: &str,
    ) -> Result<IdleVolume> {
        let HeldVolume {
            volume,
            holder,
            locks,
        } = self.hold_with_holder(reference)?;
        self.refuse_disposable(&volume, Unless::Never)?;
        if let Some(holder) = &holder {
            let machine = holder.attachment.machine;
            self.require_stopped(machine, || format!("{action} volume {}", volume.name))?;
        }
        Ok(IdleVolume {
            volume,
            machine: holder.map(|holder| holder.machine_name),
            locks,
        })
    }

    /// Holds a volume to read all of it, which no machine may write to meanwhile.
    pub(crate) fn hold_to_read(
        &self,
        reference: &Reference,
        action: &'static str,
    ) -> Result<IdleVolume> {
        self.hold_idle_volume(reference, action).or_else(|error| {
            let Error::MachineActive { machine, .. } = error else {
                return Err(error);
            };
            let found = self
                .catalogue
                .read(|session| session.find_volume(reference))?;
            Err(Error::VolumeInUse {
                volume: found.name,
                machine,
                action,
            })
        })
    }
}
