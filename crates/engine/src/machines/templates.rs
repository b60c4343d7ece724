//! Root volumes that start as a clone of a template's root at each start, and are thrown away at
//! each stop.
//!
//! Such a volume has a record, attached to its machine, for as long as the machine is there; its
//! pool has something of it only while the machine is active. What could stay behind is covered by
//! [`Intent::DiscardRoot`]: it is recorded before the volume is made, removed by the transaction
//! that records the machine as starting, and recorded again by the one that records its stop.

use sistemo_catalog::{Intent, IntentId, Session};
use sistemo_host::Changed;
use sistemo_model::{
    Bytes, Lifetime, Machine, Reference, SnapshotKind, SnapshotName, Volume, VolumeId,
};
use sistemo_pools::Cost;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::reporter::Notice;
use crate::volumes::pool_error;

/// A root volume that was made for one start, as it is to be recorded.
pub(super) struct FreshRoot {
    pub(super) volume: Volume,
    pub(super) intent: IntentId,
}

impl Engine {
    /// Finds a machine whose root others are to start from, and that root.
    pub(super) fn find_template(&self, reference: &Reference) -> Result<(Machine, Volume)> {
        let machine = self.find_machine(reference)?;
        let unfit = |reason| {
            Err(Error::NotATemplate {
                machine: machine.name.clone(),
                reason,
            })
        };
        if machine.template.is_some() {
            return unfit("its own root volume is made anew at each start");
        }
        if machine.lifetime == Lifetime::Ephemeral {
            return unfit("it is gone when it stops");
        }
        let root = self.catalogue.read(|session| {
            let attached = session.attachments_of(machine.id)?;
            let root = attached.first().map(|root| session.volume(root.volume));
            Ok::<_, Error>(root.transpose()?)
        })?;
        match root {
            Some(root) => Ok((machine, root)),
            None => unfit("it has no root volume"),
        }
    }

    /// Brings the record of the machine that has a template's root in line with what that does.
    /// Afterwards, with the volume's lock held, it is not recorded as active for no reason.
    pub(super) fn settle_template(&self, machine: &Machine) -> Result<()> {
        let Some(template) = machine.template else {
            return Ok(());
        };
        let holder = self
            .catalogue
            .read(|session| session.holder_of(template))?
            .map(|holder| holder.attachment.machine);
        match holder.map(|holder| self.settle(holder)) {
            Some(Err(error)) if !matches!(error, Error::NotFound { .. }) => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes the root volume of a machine that starts from a template; `None` for any other. The
    /// locks of the machine, of its volumes and of the template are held.
    ///
    /// # Errors
    /// [`Error::TemplateActive`], and where the clone cannot be made. Nothing is left then.
    pub(super) fn make_fresh_root(&self, machine: &Machine) -> Result<Option<FreshRoot>> {
        let Some(template) = machine.template else {
            return Ok(None);
        };
        let (root, template) = self.catalogue.read(|session| {
            let attached = session.attachments_of(machine.id)?;
            let root = attached.first().map(|root| session.volume(root.volume));
            Ok::<_, Error>((root.transpose()?, session.volume(template)?))
        })?;
        let Some(root) = root else { return Ok(None) };
        let snapshot = self.state_to_start_from(machine, &template)?;
        let id = root.id;
        let intent = self.catalogue.write(|session| {
            session.begin(&Intent::DiscardRoot {
                volume: id,
                machine: machine.id,
            })
        })?;
        let made = self
            .forget_host_key(machine.id)
            .and_then(|()| self.clone_template(machine, template, snapshot.as_ref(), root));
        match made {
            Ok(volume) => Ok(Some(FreshRoot { volume, intent })),
            Err(error) => {
                self.undo_after(&error, self.discard_root(id, intent));
                Err(error)
            }
        }
    }

    fn clone_template(
        &self,
        machine: &Machine,
        template: Volume,
        snapshot: Option<&SnapshotName>,
        root: Volume,
    ) -> Result<Volume> {
        // Its caller holds the lock.
        let source = self.source_of(template, snapshot, self.locks.set(self.purpose()))?;
        let kernels = match &source.volume.boot {
            Some(boot) => Some(self.hold_kernels(Some(boot))?),
            None => None,
        };
        let fresh = Volume {
            role: root.role,
            lifecycle: root.lifecycle,
            created: root.created,
            ..source.record_of_clone(root.id, root.name, root.pool)
        };
        // What a start that was killed has left is nobody's.
        let _ = self
            .pool(&fresh.pool)?
            .remove(fresh.id)
            .map_err(|error| pool_error(&fresh, "remove", error))?;
        self.reporter
            .stage(&format!("cloning {} to {}", source.volume.name, fresh.name));
        let filled = self.fill_clone(&source, &fresh);
        self.reporter.stage_over();
        drop(kernels);
        let (way, copied) = filled?;
        if way.cost() == Cost::Copy {
            self.reporter.notice(&Notice::TemplateCopied {
                machine: machine.name.clone(),
                volume: source.volume.name.clone(),
                copied: Bytes::new(copied),
            });
        }
        Ok(fresh)
    }

    /// Which state of a template's root a machine starts from: what it holds now while nobody uses
    /// it (`None`), else its newest revision, which a stop has left.
    fn state_to_start_from(
        &self,
        machine: &Machine,
        template: &Volume,
    ) -> Result<Option<SnapshotName>> {
        let user = self.catalogue.read(|session| {
            let holder = session.holder_of(template.id)?;
            let user = holder.map(|holder| session.machine(holder.attachment.machine));
            Ok::<_, Error>(user.transpose()?)
        })?;
        // Whoever starts it takes the volume's lock first, which we have.
        let Some(user) = user.filter(|user| user.state.is_active()) else {
            return Ok(None);
        };
        let pool = self.pool(&template.pool)?;
        let snapshots = pool.snapshots().map(|power| power.snapshots(template.id));
        let snapshots = snapshots
            .transpose()
            .map_err(|error| pool_error(template, "list the snapshots of", error))?;
        let newest = snapshots
            .into_iter()
            .flatten()
            .rfind(|snapshot| template.history.mark(&snapshot.name).kind == SnapshotKind::Revision);
        let Some(newest) = newest else {
            return Err(Error::TemplateActive {
                machine: machine.name.clone(),
                template: user.name,
                state: user.state,
                volume: template.name.clone(),
            });
        };
        self.reporter.notice(&Notice::StartsFromRevision {
            machine: machine.name.clone(),
            template: user.name,
            created: newest.created,
        });
        Ok(Some(newest.name))
    }

    /// Removes what there is of a root volume that is made anew at each start, of which its
    /// machine, whose lock is not needed, has no use any more. The volume's lock is held.
    pub(crate) fn discard_root(&self, id: VolumeId, intent: IntentId) -> Result<()> {
        let volume = self.catalogue.read(|session| session.any_volume(id))?;
        // One that is in use was made by a later start, whose stop is to discard it.
        if let Some(volume) = volume
            && !self.is_in_use(id)?
        {
            let pool = self.pool(&volume.pool)?;
            let _: Changed = pool
                .close(id)
                .and_then(|()| pool.remove(id))
                .map_err(|error| pool_error(&volume, "remove", error))?;
        }
        Ok(self.catalogue.write(|session| session.finish(intent))?)
    }
}

/// Refuses to remove a volume that the roots of machines are cloned from.
pub(crate) fn refuse_needed_template(session: &Session<'_>, volume: &Volume) -> Result<()> {
    let machines = session.based_on(volume.id)?;
    if machines.is_empty() {
        return Ok(());
    }
    Err(Error::TemplateNeeded {
        volume: volume.name.clone(),
        machines,
    })
}

/// Makes sure that what a new machine is to start from is still there.
pub(super) fn expect_template(session: &Session<'_>, template: &Volume) -> Result<()> {
    session.find_volume(&Reference::from(template.id.to_string()))?;
    Ok(())
}

/// Refuses a machine that is gone when it stops.
pub(super) fn refuse_ephemeral(machine: &Machine, action: &'static str) -> Result<()> {
    match machine.lifetime {
        Lifetime::Persistent => Ok(()),
        Lifetime::Ephemeral => Err(Error::MachineEphemeral {
            machine: machine.name.clone(),
            action,
        }),
    }
}
