//! What a stop says about the machine's volumes, and what is done about it.
//!
//! The transaction that records a stop records what is still to be done because of it too, as
//! intents of which [`Intent::follows_stop_of`] is true. Whoever gets the locks first carries them
//! out: the command that stopped the machine, before it returns; else the machine's monitor; else
//! the next command. So a kill at any instant leaves nothing undone.

use std::collections::BTreeSet;

use sistemo_catalog::{Intent, IntentId, LockSet, Transaction};
use sistemo_model::{
    Access, History, Lifecycle, Lifetime, Machine, MachineId, MachineState, StopHow, Timestamp,
    Volume, VolumeId,
};

use crate::engine::Engine;
use crate::error::{Result, causes};
use crate::reporter::Notice;
use crate::volumes::pool_error;

/// Records that a machine has stopped, what that says about the volumes it could write to, and
/// what is to be done about them. One that never ran has left them as they were.
pub(super) fn record_stop(
    session: &Transaction<'_>,
    machine: &Machine,
    how: Option<StopHow>,
) -> Result<()> {
    session.set_machine_state(machine.id, MachineState::Stopped(how))?;
    let root = session.attachments_of(machine.id)?.into_iter().next();
    let root = root.map(|root| root.volume);
    let made_anew = root.filter(|_| machine.template.is_some());
    let ends = machine.lifetime == Lifetime::Ephemeral && how.is_some();
    // What goes with the machine is not looked after once more.
    let goes = root.filter(|_| ends && machine.owns_root);
    if let Some(volume) = made_anew.filter(|_| goes.is_none()) {
        session.begin(&Intent::DiscardRoot {
            volume,
            machine: machine.id,
        })?;
    }
    let Some(how) = how else { return Ok(()) };
    let (stopped, clean) = (Timestamp::now(), how == StopHow::Clean);
    let released = change_writable(session, machine.id, |history| {
        history.changed = Some(stopped);
        history.dirty = !clean;
    })?;
    if ends {
        record_end_of_ephemeral(session, machine.id, goes)?;
    }
    for volume in released {
        if Some(volume) == made_anew || Some(volume) == goes {
            continue;
        }
        session.begin(&Intent::AfterStop {
            volume,
            machine: machine.id,
            stopped,
            clean,
        })?;
    }
    Ok(())
}

/// Records that a machine is gone with its stop, and its root volume with it: nobody finds them
/// any more, and what is left of them is removed. Its other volumes are free.
fn record_end_of_ephemeral(
    session: &Transaction<'_>,
    machine: MachineId,
    root: Option<VolumeId>,
) -> Result<()> {
    for attachment in session.attachments_of(machine)? {
        session.detach(machine, attachment.volume)?;
    }
    session.set_machine_lifecycle(machine, Lifecycle::Deleting)?;
    if let Some(root) = root {
        session.set_volume_lifecycle(root, Lifecycle::Deleting)?;
    }
    session.begin(&Intent::DeleteMachine { machine, root })?;
    Ok(())
}

/// Changes what is known of the volumes that a machine may write to; returns which they are.
pub(super) fn change_writable(
    session: &Transaction<'_>,
    machine: MachineId,
    change: impl Fn(&mut History),
) -> Result<Vec<VolumeId>> {
    let mut changed = Vec::new();
    for attachment in session.attachments_of(machine)? {
        if attachment.access == Access::ReadWrite {
            let mut history = session.volume(attachment.volume)?.history;
            change(&mut history);
            session.set_volume_history(attachment.volume, &history)?;
            changed.push(attachment.volume);
        }
    }
    Ok(changed)
}

impl Engine {
    /// Does what belongs to a machine's stop, as far as nobody has. `held` has the machine's lock
    /// where that could be had, and gets those of the volumes. What cannot be done now is left
    /// for the next command: the machine has stopped all the same.
    pub(super) fn finish_stop(&self, machine: MachineId, held: &mut LockSet) {
        let owed = self.owed_after_stop(machine);
        let volumes: BTreeSet<VolumeId> = owed
            .iter()
            .flat_map(|(_, intent)| intent.volumes())
            .collect();
        let mut busy = Vec::new();
        for volume in volumes {
            if let Err(error) = held.add_volumes([volume]) {
                busy.push(self.named(error));
            }
        }
        for (id, intent) in owed {
            if held.has_all_of(&intent) {
                self.carry_out(id, &intent);
            } else if let Some(error) = busy.first() {
                self.leave_for_later(&intent, error);
            }
        }
    }

    /// Does what belongs to a machine's stop, where nobody else works on its volumes.
    pub(super) fn finish_stop_where_free(&self, machine: MachineId) {
        for (id, intent) in self.owed_after_stop(machine) {
            if let Ok(Some(_held)) = self.locks.try_intent(&intent, self.purpose()) {
                self.carry_out(id, &intent);
            }
        }
    }

    /// Does what belongs to a machine's stop and whoever stopped it has not done.
    pub(super) fn finish_stop_after_others(&self, machine: MachineId) {
        let mut held = self.locks.set(self.purpose());
        // Whoever waits for the stop has the machine's lock until it has done its part.
        match held.add_machines([machine]) {
            Ok(()) => self.finish_stop(machine, &mut held),
            Err(error) => tracing::info!(%error, "what belongs to the stop is left to others"),
        }
    }

    /// Does what belongs to a stop for one volume, whose lock is held: closes it in its pool,
    /// keeps a revision where the machine left it clean, and brings its description in line.
    /// Returns what was done.
    ///
    /// A revision that cannot be kept is told of and given up.
    pub(crate) fn after_stop(
        &self,
        id: VolumeId,
        stopped: Timestamp,
        clean: bool,
        intent: IntentId,
    ) -> Result<String> {
        let all = self.catalogue.read(|session| session.all_volumes())?;
        let ready = |volume: &Volume| volume.id == id && volume.lifecycle == Lifecycle::Ready;
        let Some(volume) = all.into_iter().find(ready) else {
            // It has gone with what it held.
            self.catalogue.write(|session| session.finish(intent))?;
            return Ok("forgot the stop of a machine whose volume is gone".to_owned());
        };
        // What has changed since is not what the machine left.
        if volume.history.changed == Some(stopped) && !self.is_in_use(id)? {
            let pool = self.pool(&volume.pool)?;
            pool.close(id)
                .map_err(|source| pool_error(&volume, "close", source))?;
            if clean && let Err(error) = self.leave_revision(&volume, stopped) {
                self.reporter.notice(&Notice::NoRevision {
                    volume: volume.name.clone(),
                    reason: causes(&error).join(": "),
                });
            }
        }
        self.settle_description(id, intent)?;
        Ok(format!(
            "finished what the stop of its machine left to do about volume {}",
            volume.name
        ))
    }

    fn owed_after_stop(&self, machine: MachineId) -> Vec<(IntentId, Intent)> {
        let intents = self.catalogue.read(|session| session.intents());
        let intents = intents.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read what belongs to the stop");
            Vec::new()
        });
        let owed = intents.into_iter();
        owed.filter(|(_, intent)| intent.follows_stop_of(machine))
            .collect()
    }

    fn carry_out(&self, id: IntentId, intent: &Intent) {
        // Somebody may have done it before the locks were ours.
        let there = self.catalogue.read(|session| session.intent(id));
        let outcome = match there {
            Ok(None) => return,
            Ok(Some(_)) => self.recover_one(id, intent).map(drop),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = outcome {
            self.leave_for_later(intent, &error);
        }
    }
}
