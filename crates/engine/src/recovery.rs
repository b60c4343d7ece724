//! What every start does about operations that were cut short.
//!
//! An operation of several steps records what it is about to do, holds the locks of what it
//! works on, and removes the record when it is done. A record whose locks are free belongs to
//! nobody any more: whoever finds it finishes the operation or undoes it. The programs an
//! operation starts inherit its locks, so a writer that outlived its parent is waited for.

use sistemo_catalog::{ImageCopy, Intent, IntentId, LockSet, Lockable};
use sistemo_model::{Timestamp, VolumeId};

use crate::engine::Engine;
use crate::error::{Error, Result, causes};
use crate::reporter::Notice;
use crate::snapshots::Settled;

impl Engine {
    /// Finishes or undoes what was cut short, and removes what has been in the trash for long
    /// enough. What cannot be recovered now, because its pool is not mounted for instance, is
    /// left for another time and keeps nobody from working.
    pub(crate) fn recover(&self) -> Result<()> {
        self.recover_those(|_| true)?;
        let expired = self
            .catalogue
            .read(|session| session.expired_trash(Timestamp::now()))?;
        self.discard_expired(&expired);
        Ok(())
    }

    /// Finishes or undoes some of what was cut short.
    pub(crate) fn recover_those(&self, which: impl Fn(&Intent) -> bool) -> Result<()> {
        let intents = self.catalogue.read(|session| session.intents())?;
        for (id, intent) in intents.into_iter().filter(|(_, intent)| which(intent)) {
            let Some(_held) = self.locks.try_intent(&intent, self.purpose())? else {
                continue;
            };
            // Its owner may have finished between our reading and our locking.
            if self.catalogue.read(|session| session.intent(id))?.is_some() {
                self.recover_and_tell(id, &intent);
            }
        }
        Ok(())
    }

    /// Lets the machines go that are gone when they stop, and whose stop nobody saw: the host went
    /// down with them, for instance. Their names and volumes are free then.
    pub(crate) fn end_lost_ephemerals(&self) -> Result<()> {
        for id in self.catalogue.read(|session| session.active_ephemeral())? {
            // One that is alive has its monitor, or gets one when somebody looks at it.
            if !self.locks.is_held(&Lockable::Run(id))? {
                self.end_unseen(id)?;
            }
        }
        Ok(())
    }

    /// Finishes or undoes what was begun with objects whose locks are all in `held`: it had an
    /// owner when this process looked first, and that is gone.
    pub(crate) fn recover_held(&self, held: &LockSet) -> Result<()> {
        let intents = self.catalogue.read(|session| session.intents())?;
        for (id, intent) in intents {
            if held.has_all_of(&intent) {
                self.recover_and_tell(id, &intent);
            }
        }
        Ok(())
    }

    fn recover_and_tell(&self, id: IntentId, intent: &Intent) {
        match self.recover_one(id, intent) {
            Ok(what) => self.reporter.notice(&Notice::Recovered { what }),
            Err(error) => self.leave_for_later(intent, &error),
        }
    }

    /// Tells that an intent stays, for the next command to try.
    pub(crate) fn leave_for_later(&self, intent: &Intent, error: &Error) {
        tracing::debug!(?intent, "cannot carry this out yet");
        let reason = causes(error).join(": ");
        self.reporter.notice(&Notice::LeftForLater { reason });
    }

    /// Finishes or undoes what an intent says, whose locks are held; returns what was done.
    #[expect(
        clippy::too_many_lines,
        reason = "one arm an intent, of a few lines each"
    )]
    pub(crate) fn recover_one(&self, id: IntentId, intent: &Intent) -> Result<String> {
        let volume = |id| self.catalogue.read(|session| session.volume(id));
        let machine = |id| self.catalogue.read(|session| session.machine(id));
        let named = |copy: Option<ImageCopy>| match copy {
            Some(copy) => format!("image {}", copy.name),
            None => "an image".to_owned(),
        };
        if let Some(gone) = self.changed_volume_that_is_gone(intent)? {
            self.catalogue.write(|session| session.finish(id))?;
            return Ok(format!(
                "forgot what was begun with volume {gone}, which is gone"
            ));
        }
        match intent {
            Intent::CreateVolume { volume: made } => {
                let volume = volume(*made)?;
                self.forget_volume(&volume, id)?;
                Ok(format!(
                    "removed volume {}, which was never finished",
                    volume.name
                ))
            }
            Intent::DeleteVolume { volume: deleted } => {
                let volume = volume(*deleted)?;
                self.forget_volume(&volume, id)?;
                Ok(format!("finished deleting volume {}", volume.name))
            }
            Intent::GrowVolume {
                volume: grown,
                from,
                to,
            } => {
                self.settle_growth(*grown, *from, *to, id)?;
                let volume = volume(*grown)?;
                Ok(format!("volume {} has {}", volume.name, volume.size))
            }
            Intent::DescribeVolume { volume: changed } => {
                self.settle_description(*changed, id)?;
                Ok(format!(
                    "finished changing volume {}",
                    volume(*changed)?.name
                ))
            }
            Intent::AfterStop {
                volume,
                stopped,
                clean,
                ..
            } => self.after_stop(*volume, *stopped, *clean, id),
            Intent::DiscardRoot { volume: root, .. } => {
                self.discard_root(*root, id)?;
                Ok("discarded a root volume that is made anew at each start".to_owned())
            }
            Intent::RevertVolume { volume: reverted } => {
                self.settle_revert(*reverted, id, Settled::Unknown)?;
                let volume = volume(*reverted)?;
                Ok(format!(
                    "volume {} was being reverted; it has {}",
                    volume.name, volume.size
                ))
            }
            Intent::MoveVolume { volume, from, to } => self.stay(*volume, from, to, id),
            Intent::RemoveMoved { volume, from } => self.leave(*volume, from, id),
            Intent::SnapshotHeld {
                machine: held,
                volume: copied,
            } => {
                self.let_go(*held, id)?;
                let (machine, volume) = (machine(*held)?.name, volume(*copied)?.name);
                Ok(format!(
                    "let machine {machine} run on, which was paused to copy volume {volume}"
                ))
            }
            Intent::HoldGuest {
                machine: held,
                frozen,
            } => {
                self.release_guest(*held, *frozen, id)?;
                Ok(format!("let machine {} run on", machine(*held)?.name))
            }
            Intent::TakeSnapshots {
                volumes,
                snapshot,
                created,
            } => self.withdraw_unfinished(volumes, snapshot, *created, id),
            Intent::CreateImageCopy { volume: copy } => {
                let image = named(self.forget_image_copy(*copy, id)?);
                Ok(format!(
                    "removed a copy of {image}, which was never finished"
                ))
            }
            Intent::DeleteImageCopy { volume: copy } => {
                let image = named(self.forget_image_copy(*copy, id)?);
                Ok(format!("finished deleting a copy of {image}"))
            }
            Intent::DeployMachine {
                machine: made,
                root,
            } => {
                let name = machine(*made)?.name;
                self.forget_machine(*made, root.as_slice(), id)?;
                Ok(format!("removed machine {name}, which was never finished"))
            }
            Intent::CloneMachine {
                machine: made,
                volumes,
            } => {
                let name = machine(*made)?.name;
                self.forget_machine(*made, volumes, id)?;
                Ok(format!(
                    "removed machine {name} and its volumes, a clone that was never finished"
                ))
            }
            Intent::DeleteMachine {
                machine: deleted,
                root,
            } => {
                let name = machine(*deleted)?.name;
                self.forget_machine(*deleted, root.as_slice(), id)?;
                Ok(format!("finished deleting machine {name}"))
            }
        }
    }

    /// The volume that an intent is to change, where it was destroyed with that still to be done:
    /// in a full pool what makes room can be done, and what takes some cannot.
    fn changed_volume_that_is_gone(&self, intent: &Intent) -> Result<Option<VolumeId>> {
        let (Intent::DescribeVolume { volume }
        | Intent::GrowVolume { volume, .. }
        | Intent::RevertVolume { volume }) = intent
        else {
            return Ok(None);
        };
        let found = self.catalogue.read(|session| session.any_volume(*volume))?;
        Ok(found.is_none().then_some(*volume))
    }

    /// Notes that undoing a failed operation failed too. The error of the operation itself is
    /// what the user reads; what is left is found by its intent at the next start.
    pub(crate) fn undo_after(&self, failure: &Error, undone: Result<()>) {
        if let Err(error) = undone {
            tracing::debug!(%failure, "what it began is undone at the next start");
            let reason = causes(&error).join(": ");
            self.reporter.notice(&Notice::LeftForLater { reason });
        }
    }
}
