//! Deleting machines. Data volumes always stay; so does a root volume that deploy did not make.
//! One that it made goes to the trash.

use std::io;

use sistemo_catalog::{Intent, IntentId, Lockable};
use sistemo_host::directory::FileError;
use sistemo_model::{
    Lifecycle, Lifetime, Machine, MachineId, Reference, Timestamp, VolumeId, VolumeName,
};

use super::{MachineView, StopRequest, refuse_needed_template};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::volumes::{VolumeView, pool_error};

/// What becomes of the root volume that deploy made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// It stays, available, and can be booted again.
    Preserve,
    /// It goes with its machine: to the trash, where its pool keeps one.
    RemoveRoot,
    /// It goes with its machine, for good.
    DestroyRoot,
}

/// What deleting a machine does, or did.
#[derive(Clone, Debug)]
pub struct Deletion {
    /// The machine.
    pub machine: MachineView,
    /// The root volume that goes with it.
    pub removes: Option<VolumeView>,
    /// Until when that can be restored, unless its pool needs the room; `None` where it cannot.
    pub restorable_until: Option<Timestamp>,
    /// The volumes that stay.
    pub keeps: Vec<VolumeName>,
}

impl Engine {
    /// What deleting a machine would do.
    ///
    /// # Errors
    /// Where there is no such machine.
    pub fn deletion(&self, reference: &Reference, storage: Storage) -> Result<Deletion> {
        let machine = self.find_machine(reference)?;
        let root = self.root_that_goes(&machine, storage)?;
        // Of one that is made anew at each start there is nothing to lose.
        let removes = root
            .filter(|_| machine.template.is_none())
            .map(|root| self.volume(&Reference::from(root.to_string())))
            .transpose()?;
        let stay = usize::from(root.is_some());
        let restorable_until = match &removes {
            // What goes with the stop of an ephemeral machine goes for good.
            Some(_) if machine.lifetime == Lifetime::Ephemeral && machine.state.is_active() => None,
            Some(root) if storage == Storage::RemoveRoot => self.restorable_until(&root.pool)?,
            _ => None,
        };
        let machine = self.view_machine(machine.id)?;
        let keeps = machine.volumes.iter().skip(stay);
        let keeps = keeps.map(|volume| volume.name.clone()).collect();
        Ok(Deletion {
            machine,
            removes,
            restorable_until,
            keeps,
        })
    }

    /// The root volume that goes when a machine is deleted.
    fn root_that_goes(&self, machine: &Machine, storage: Storage) -> Result<Option<VolumeId>> {
        let goes = match storage {
            Storage::RemoveRoot | Storage::DestroyRoot => machine.owns_root,
            Storage::Preserve => machine.template.is_some(),
        };
        self.catalogue.read(|session| {
            let attached = session.attachments_of(machine.id)?;
            let Some(root) = attached.first().filter(|_| goes) else {
                return Ok(None);
            };
            refuse_needed_template(session, &session.volume(root.volume)?)?;
            Ok(Some(root.volume))
        })
    }

    /// Deletes a machine, which is stopped first: gracefully, then forced. A crash in the middle
    /// leaves it stopped and whole, or the next operation finishes it.
    ///
    /// # Errors
    /// Where it cannot be stopped, a snapshot of the root volume that goes with it is pinned, that
    /// volume's pool cannot be used, or other machines start from it; then nothing else has
    /// changed.
    pub fn delete_machine(&self, reference: &Reference, storage: Storage) -> Result<Deletion> {
        let machine = self.find_machine(reference)?;
        let found = Reference::from(machine.id.to_string());
        let deletion = self.deletion(&found, storage)?;
        if let Some(root) = &deletion.removes {
            self.require_removable(root)?;
        }
        self.use_reserve_where_full();
        if storage == Storage::Preserve && machine.lifetime == Lifetime::Ephemeral {
            // Else it would be gone with its stop.
            let lifetime = Lifetime::Persistent;
            self.catalogue
                .write(|session| session.set_lifetime(machine.id, lifetime))?;
        }
        let timeout = self.settings.stop_timeout.value;
        let _ = self.bring_to_stop(&machine, StopRequest::Graceful { timeout })?;
        if !self.is_there(machine.id)? {
            // It was gone with its stop.
            return Ok(deletion);
        }
        let volumes: Vec<VolumeId> = self
            .catalogue
            .read(|session| session.attachments_of(machine.id))?
            .iter()
            .map(|attachment| attachment.volume)
            .collect();
        let held = self.hold(Some(machine.id), &volumes)?;
        self.require_stopped(machine.id, || "delete it".to_owned())?;
        let mut deletion = self.deletion(&found, storage)?;
        let mut trashed = None;
        if let Some(root) = &deletion.removes {
            self.require_removable(root)?;
            if storage == Storage::RemoveRoot {
                trashed = self.trashed_now(&root.pool)?;
            }
        }
        let root = self.root_that_goes(&machine, storage)?;
        // What goes to the trash is not the machine's to remove any more.
        let lost = root.filter(|_| trashed.is_none());
        let (intent, to_trash) = self.catalogue.write(|session| {
            if let Some(root) = root {
                refuse_needed_template(session, &session.volume(root)?)?;
            }
            for attachment in session.attachments_of(machine.id)? {
                session.detach(machine.id, attachment.volume)?;
            }
            session.set_machine_lifecycle(machine.id, Lifecycle::Deleting)?;
            if let Some(root) = lost {
                session.set_volume_lifecycle(root, Lifecycle::Deleting)?;
            }
            let mut to_trash = None;
            if let (Some(root), Some(trashed)) = (root, trashed) {
                session.trash_volume(root, trashed)?;
                to_trash = Some((
                    root,
                    session.begin(&Intent::DescribeVolume { volume: root })?,
                ));
            }
            let intent = Intent::DeleteMachine {
                machine: machine.id,
                root: lost,
            };
            Ok::<_, Error>((session.begin(&intent)?, to_trash))
        })?;
        if let Some((root, intent)) = to_trash {
            self.settle_trashed(root, intent);
        }
        self.forget_machine(machine.id, lost.as_slice(), intent)?;
        drop(held);
        deletion.restorable_until = match root {
            Some(root) => self.restorable_now(root, trashed)?,
            None => None,
        };
        Ok(deletion)
    }

    /// Makes sure that a root volume may go with its machine.
    fn require_removable(&self, root: &VolumeView) -> Result<()> {
        self.require_pool(&root.pool)?;
        let root = self.catalogue.read(|session| session.volume(root.id))?;
        self.require_no_pins(&root)
    }

    /// Removes what there is of a machine, and of the volumes that go with it. Each step may have
    /// been done before.
    pub(crate) fn forget_machine(
        &self,
        id: MachineId,
        volumes: &[VolumeId],
        intent: IntentId,
    ) -> Result<()> {
        let machine = self.catalogue.read(|session| session.machine(id))?;
        if self.locks.is_held(&Lockable::Run(id))? {
            let (machine, state) = (machine.name, machine.state);
            let action = "remove it".to_owned();
            return Err(Error::MachineActive {
                machine,
                state,
                action,
            });
        }
        for volume in volumes {
            let volume = self.catalogue.read(|session| session.volume(*volume))?;
            let _ = self
                .pool(&volume.pool)?
                .remove(volume.id)
                .map_err(|source| pool_error(&volume, "remove", source))?;
        }
        let runtime = self.runtime(id);
        match std::fs::remove_dir_all(&runtime) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let source = FileError::new("remove", runtime, error);
                return Err(Error::File {
                    action: "remove the machine's files".to_owned(),
                    source,
                });
            }
            _ => {}
        }
        self.catalogue.write(|session| {
            session.delete_machine(id)?;
            for volume in volumes {
                session.delete_volume(*volume)?;
            }
            Ok(session.finish(intent)?)
        })
    }
}
