//! Snapshots: keeping a volume as it is, and taking it back there.

use serde::Serialize;
use sistemo_catalog::{Intent, IntentId};
use sistemo_host::Changed;
use sistemo_model::{
    Access, MachineName, Reference, SnapshotKind, SnapshotMark, SnapshotName, Timestamp, Volume,
    VolumeId,
};
use sistemo_pools::{Cost, LiveDisk, Pool, PoolError, Snapshot, Snapshots, Way};

use crate::copying::data_bytes;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::history::{Past, keep_marks_of};
use crate::holding::{IdleVolume, Unless};
use crate::machines::ToCopy;
use crate::reporter::Notice;
use crate::revisions::{Planned, data_of};
use crate::volumes::{VolumeView, description, pool_error};

/// What users see of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotView {
    /// Its name, unique among those of its volume.
    pub name: SnapshotName,
    /// When it was taken.
    pub created: Timestamp,
    /// Why it was taken.
    pub kind: SnapshotKind,
    /// Whether it stays until somebody says otherwise.
    pub pinned: bool,
    /// The volume's virtual size then, in bytes.
    pub size_bytes: u64,
    /// The same in MiB, rounded down.
    pub size_mb: u64,
    /// What would be free without it, in bytes; `None` where that cannot be told, or only by a
    /// look at each extent and by a listing.
    pub alone_bytes: Option<u64>,
}

impl SnapshotView {
    pub(crate) fn new(snapshot: Snapshot, mark: SnapshotMark) -> SnapshotView {
        SnapshotView {
            name: snapshot.name,
            created: snapshot.created,
            kind: mark.kind,
            pinned: mark.pinned,
            size_bytes: snapshot.size.get(),
            size_mb: snapshot.size.mib(),
            alone_bytes: snapshot.alone.map(sistemo_model::Bytes::get),
        }
    }
}

/// All there is to see of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeDetails {
    /// The volume.
    #[serde(flatten)]
    pub volume: VolumeView,
    /// What is known of its past.
    #[serde(flatten)]
    pub past: Past,
    /// Its snapshots, oldest first; `None` where its pool keeps none, or cannot be asked.
    pub snapshots: Option<Vec<SnapshotView>>,
}

/// A snapshot that was taken.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The snapshot.
    pub snapshot: SnapshotView,
    /// The volume.
    pub volume: VolumeView,
    /// How the data was kept.
    pub way: Way,
    /// The machine that ran on meanwhile, or was held for it.
    pub machine: Option<MachineName>,
}

/// A volume that was taken back.
#[derive(Clone, Debug)]
pub struct Reverted {
    /// The volume as it is now.
    pub volume: VolumeView,
    /// The snapshot it was taken back to.
    pub snapshot: SnapshotName,
    /// How the data came back.
    pub way: Way,
    /// The snapshot that has what the volume held before, where that was kept.
    pub kept: Option<SnapshotView>,
}

/// What becomes of what a volume holds when it is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// It is kept as a snapshot.
    Keep,
    /// It is lost.
    Discard,
}

/// How far a revert came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The volume is as the snapshot was.
    Reverted,
    /// The volume is as it was before.
    AsBefore,
    /// Nobody knows which.
    Unknown,
}

impl Engine {
    /// Keeps a volume as it is now, also while its machine runs: it is then what a disk holds
    /// after a power cut. Where a snapshot costs a copy, the machine's VMM makes it while the
    /// machine runs on; where the driver cannot have that, the machine is held meanwhile.
    ///
    /// A crash in the middle leaves the snapshot or none; the next operation lets the machine go.
    ///
    /// # Errors
    /// Where the name is taken, the pool keeps no snapshots or has no room, or the machine is on
    /// its way to a start or stop.
    pub fn take_snapshot(
        &self,
        reference: &Reference,
        name: Option<SnapshotName>,
    ) -> Result<Taken> {
        let mut held = self.hold_with_holder(reference)?;
        let volume = &held.volume;
        let pool = self.pool(&volume.pool)?;
        let power = power_of(pool.as_ref())?;
        let there = self.snapshots_in(volume, power)?;
        let now = Timestamp::now();
        let name = match name {
            None => made_up_name(&there, now)?,
            Some(name) if there.iter().any(|snapshot| snapshot.name == name) => {
                let volume = volume.name.clone();
                return Err(Error::SnapshotTaken {
                    volume,
                    snapshot: name,
                });
            }
            Some(name) => name,
        };
        if volume.history.marks.contains_key(&name) {
            // Of one by that name that is gone.
            self.forget_stale_marks(volume)?;
        }
        let machine = held.holder.as_ref().map(|holder| holder.attachment.machine);
        let machine = machine.map(|id| self.settle(id)).transpose()?;
        let active = machine.filter(|machine| machine.state.is_active());
        self.refuse_damaged(volume.id)?;
        if power.snapshot_cost() == Cost::Copy {
            let fail = |source| pool_error(volume, "read", source);
            let content = pool.content(volume.id, Access::ReadOnly).map_err(fail)?;
            let needed = data_bytes(content.as_ref()).map_err(fail)?;
            let action = || format!("keep a snapshot of volume {}", volume.name);
            self.ensure_room(pool.as_ref(), needed, action)?;
        }
        let take = |disk: Option<&mut dyn LiveDisk>| {
            let mut progress = |done, total| self.reporter.progress(done, total);
            power
                .take_snapshot(volume.id, &name, now, disk, &mut progress)
                .map_err(|source| snapshot_error(volume, &name, "keep a snapshot of", source))
        };
        self.reporter
            .stage(&format!("keeping {} as {name}", volume.name));
        let taken = self.with_room(&volume.pool, || match (&active, held.holder.as_ref()) {
            (Some(machine), Some(holder)) => {
                let position = holder.attachment.position;
                match (power.snapshot_cost(), power.live_copies()) {
                    (Cost::Instant, _) => self.with_live_disk(machine, volume, position, take),
                    (Cost::Copy, None) => self.while_held(machine, volume, || take(None)),
                    (Cost::Copy, Some(power)) => {
                        let copy = ToCopy {
                            volume,
                            position,
                            power,
                        };
                        self.copy_live(machine, copy, &name, now, &mut held.locks)
                    }
                }
            }
            _ => take(None),
        });
        self.reporter.stage_over();
        let way = taken?;
        Ok(Taken {
            snapshot: SnapshotView::new(
                self.find_snapshot(volume, &name)?,
                SnapshotMark::default(),
            ),
            volume: self.volume(&Reference::from(volume.id.to_string()))?,
            way,
            machine: active.map(|machine| machine.name),
        })
    }

    /// One volume with its snapshots, and what each of them uses alone where its pool can tell.
    ///
    /// # Errors
    /// As [`Engine::volume`]; one whose pool cannot be used is shown as broken.
    pub fn volume_details(&self, reference: &Reference) -> Result<VolumeDetails> {
        let volume = self.volume(reference)?;
        let found = Reference::from(volume.id.to_string());
        let record = self.catalogue.read(|session| session.find_volume(&found))?;
        let mut snapshots = self.snapshots(&found).ok();
        let untold = snapshots.iter_mut().flatten();
        let untold: Vec<_> = untold.filter(|one| one.alone_bytes.is_none()).collect();
        if !untold.is_empty()
            && let Ok(pool) = self.pool(&volume.pool)
            && let Ok(Some(sharing)) = pool.sharing(volume.id)
        {
            for snapshot in untold {
                let alone = sharing.snapshots.get(&snapshot.name);
                snapshot.alone_bytes = alone.map(|alone| alone.get());
            }
        }
        Ok(VolumeDetails {
            past: self.past(&record)?,
            snapshots,
            volume,
        })
    }

    /// The snapshots of a volume, oldest first.
    ///
    /// # Errors
    /// Where there is no such volume, or its pool keeps no snapshots or cannot be read.
    pub fn snapshots(&self, reference: &Reference) -> Result<Vec<SnapshotView>> {
        let volume = self
            .catalogue
            .read(|session| session.find_volume(reference))?;
        self.refuse_disposable(&volume, Unless::Active)?;
        let pool = self.pool(&volume.pool)?;
        let there = self.snapshots_in(&volume, power_of(pool.as_ref())?)?;
        Ok(there
            .into_iter()
            .map(|snapshot| {
                let mark = volume.history.mark(&snapshot.name);
                SnapshotView::new(snapshot, mark)
            })
            .collect())
    }

    /// One snapshot of a volume; without a name, the newest, which is one that a revert or a repair
    /// left only where there are no others.
    ///
    /// # Errors
    /// As [`Engine::snapshots`], and where there is none of that name, or none at all.
    pub fn snapshot(
        &self,
        reference: &Reference,
        name: Option<&SnapshotName>,
    ) -> Result<SnapshotView> {
        let there = self.snapshots(reference)?;
        let found = if let Some(name) = name {
            there.into_iter().find(|snapshot| snapshot.name == *name)
        } else {
            let taken = |snapshot: &SnapshotView| snapshot.kind != SnapshotKind::Replaced;
            let newest = there.iter().rposition(taken);
            let newest = newest.or(there.len().checked_sub(1));
            newest.and_then(|newest| there.into_iter().nth(newest))
        };
        let Some(found) = found else {
            let volume = self
                .catalogue
                .read(|session| session.find_volume(reference))?
                .name;
            return Err(match name.cloned() {
                Some(snapshot) => Error::NoSuchSnapshot { volume, snapshot },
                None => Error::NoSnapshots { volume },
            });
        };
        Ok(found)
    }

    /// The snapshot, where a delete of it would be accepted.
    ///
    /// # Errors
    /// Where there is no such snapshot, or it is pinned.
    pub fn check_snapshot_deletable(
        &self,
        reference: &Reference,
        name: &SnapshotName,
    ) -> Result<SnapshotView> {
        let snapshot = self.snapshot(reference, Some(name))?;
        if snapshot.pinned {
            let volume = self
                .catalogue
                .read(|session| session.find_volume(reference))?;
            return Err(pinned(&volume, name));
        }
        Ok(snapshot)
    }

    /// Deletes a snapshot, also while the volume is in use; returns it as it was. A crash in the
    /// middle leaves it or not.
    ///
    /// # Errors
    /// Where there is no such snapshot, it is pinned, or the pool cannot be written.
    pub fn delete_snapshot(
        &self,
        reference: &Reference,
        name: &SnapshotName,
    ) -> Result<SnapshotView> {
        self.use_reserve_where_full();
        let (volume, _held) = self.hold_volume_alone(reference)?;
        let pool = self.pool(&volume.pool)?;
        let power = power_of(pool.as_ref())?;
        let snapshot = self.find_snapshot(&volume, name)?;
        let mark = volume.history.mark(name);
        if mark.pinned {
            return Err(pinned(&volume, name));
        }
        let _: Changed = power
            .delete_snapshot(volume.id, name)
            .map_err(|source| snapshot_error(&volume, name, "delete a snapshot of", source))?;
        self.forget_stale_marks(&volume)?;
        Ok(SnapshotView::new(snapshot, mark))
    }

    /// Takes a volume back to a snapshot, or to the newest, its size included; its machine, if it
    /// has one, must be stopped. All its snapshots stay. What it held is kept as one more, unless
    /// it is discarded. A crash in the middle leaves the volume as it was, perhaps with that
    /// snapshot, or as the snapshot is.
    ///
    /// # Errors
    /// Where there is no such snapshot, the machine is active, what the volume holds cannot be
    /// kept, or the pool has no room; then nothing has changed. Where the pool fails otherwise, the
    /// volume may be as the snapshot is, and what was kept stays.
    pub fn revert_volume(
        &self,
        reference: &Reference,
        name: Option<&SnapshotName>,
        replaced: Replaced,
    ) -> Result<Reverted> {
        let held = self.hold_idle_volume(reference, "revert")?;
        let volume = &held.volume;
        let pool = self.pool(&volume.pool)?;
        let power = power_of(pool.as_ref())?;
        let found = Reference::from(volume.id.to_string());
        let name = self.snapshot(&found, name)?.name;
        self.require_room_to_revert(volume, pool.as_ref(), &name, replaced)?;
        let mut history = volume.history.clone();
        let kept = match replaced {
            Replaced::Discard => None,
            Replaced::Keep => {
                let there = self.snapshots_in(volume, power)?;
                let (now, kind) = (Timestamp::now(), SnapshotKind::Replaced);
                Some(Planned::new(&mut history, &there, now, kind)?)
            }
        };
        let intent = Intent::RevertVolume { volume: volume.id };
        let intent = self.catalogue.write(|session| {
            session.set_volume_history(volume.id, &history)?;
            Ok::<_, Error>(session.begin(&intent)?)
        })?;
        let outcome = self.go_back(volume, power, &name, kept.as_ref());
        // Settled whichever way it went: the pool tells which size the volume has.
        let how = match &outcome {
            Ok(_) => Settled::Reverted,
            Err(error) if left_as_it_was(error) => Settled::AsBefore,
            Err(_) => Settled::Unknown,
        };
        let settled = self.settle_revert(volume.id, intent, how);
        let way = match outcome {
            Ok(way) => way,
            Err(error) => {
                self.undo_after(&error, settled);
                return Err(error);
            }
        };
        settled?;
        self.tell_what_stays(&held)?;
        let kept = kept.map(|kept| self.snapshot(&found, Some(&kept.name)));
        Ok(Reverted {
            volume: self.volume(&found)?,
            snapshot: name,
            way,
            kept: kept.transpose()?,
        })
    }

    /// Makes sure that there is room for what a revert copies.
    fn require_room_to_revert(
        &self,
        volume: &Volume,
        pool: &dyn Pool,
        name: &SnapshotName,
        replaced: Replaced,
    ) -> Result<()> {
        let power = power_of(pool)?;
        if power.snapshot_cost() == Cost::Instant {
            return Ok(());
        }
        let fail = |source| snapshot_error(volume, name, "revert", source);
        let content = power.snapshot_content(volume.id, name).map_err(fail)?;
        let needed = data_bytes(content.as_ref()).map_err(fail)?;
        let action = || format!("revert volume {}", volume.name);
        self.ensure_room(pool, needed, action)?;
        if replaced == Replaced::Discard {
            return Ok(());
        }
        let action = || format!("keep what volume {} holds and revert it", volume.name);
        data_of(volume, pool)
            .and_then(|data| self.ensure_room(pool, needed + data, action))
            .map_err(|source| not_kept(volume, name, source))
    }

    /// Keeps what a volume holds, where that is wanted, and takes it back to a snapshot.
    fn go_back(
        &self,
        volume: &Volume,
        power: &dyn Snapshots,
        name: &SnapshotName,
        kept: Option<&Planned>,
    ) -> Result<Way> {
        if let Some(kept) = kept {
            kept.take(self, volume, power)
                .map_err(|source| not_kept(volume, name, source))?;
        }
        self.reporter
            .stage(&format!("reverting {} to {name}", volume.name));
        let outcome = self.with_room(&volume.pool, || {
            let mut progress = |done, total| self.reporter.progress(done, total);
            power
                .revert(volume.id, name, &mut progress)
                .map_err(|source| snapshot_error(volume, name, "revert", source))
        });
        self.reporter.stage_over();
        if let (Err(error), Some(kept)) = (&outcome, kept)
            && left_as_it_was(error)
        {
            // The volume still holds it. Where it cannot be removed, it is one snapshot more.
            let removed = power.delete_snapshot(volume.id, &kept.name);
            tracing::debug!(?removed, "removed the snapshot of what was not replaced");
        }
        outcome
    }

    /// What a guest keeps on several volumes belongs together; one that goes back alone is worth
    /// a word.
    fn tell_what_stays(&self, held: &IdleVolume) -> Result<()> {
        let Some(machine) = &held.machine else {
            return Ok(());
        };
        let others = self.catalogue.read(|session| {
            let holder = session.holder_of(held.volume.id)?;
            let machine = holder.map(|holder| holder.attachment.machine);
            let attached = machine.map(|machine| session.attachments_of(machine));
            Ok::<_, Error>(attached.transpose()?.map_or(0, |attached| attached.len()))
        })?;
        if others > 1 {
            self.reporter.notice(&Notice::RevertedAlone {
                volume: held.volume.name.clone(),
                machine: machine.clone(),
            });
        }
        Ok(())
    }

    /// Brings the record of a volume that was being reverted, and its description, in line with
    /// the size that it has and with how that went.
    pub(crate) fn settle_revert(&self, id: VolumeId, intent: IntentId, how: Settled) -> Result<()> {
        let mut volume = self.catalogue.read(|session| session.volume(id))?;
        let pool = self.pool(&volume.pool)?;
        let facts = pool
            .facts(id)
            .map_err(|source| pool_error(&volume, "revert", source))?;
        volume.size = facts.size;
        let there = self.snapshots_of(&volume)?;
        let history = &mut volume.history;
        keep_marks_of(&there, history);
        if how != Settled::AsBefore {
            history.changed = Some(Timestamp::now());
        }
        if how == Settled::Reverted {
            // What its machine left half done is what was replaced.
            history.dirty = false;
        }
        let _: Changed = pool
            .describe(&description(&volume))
            .map_err(|source| pool_error(&volume, "describe", source))?;
        self.catalogue.write(|session| {
            session.set_volume_size(id, facts.size)?;
            session.set_volume_history(id, &volume.history)?;
            Ok(session.finish(intent)?)
        })
    }

    /// The snapshots of a volume, oldest first; none where its pool keeps none.
    pub(crate) fn snapshots_of(&self, volume: &Volume) -> Result<Vec<Snapshot>> {
        let pool = self.pool(&volume.pool)?;
        match pool.snapshots() {
            Some(power) => self.snapshots_in(volume, power),
            None => Ok(Vec::new()),
        }
    }

    /// A snapshot of a volume by its name.
    pub(crate) fn find_snapshot(&self, volume: &Volume, name: &SnapshotName) -> Result<Snapshot> {
        let pool = self.pool(&volume.pool)?;
        let there = self.snapshots_in(volume, power_of(pool.as_ref())?)?;
        there
            .into_iter()
            .find(|snapshot| snapshot.name == *name)
            .ok_or_else(|| Error::NoSuchSnapshot {
                volume: volume.name.clone(),
                snapshot: name.clone(),
            })
    }

    #[expect(clippy::unused_self, reason = "it reads better among its like")]
    pub(crate) fn snapshots_in(
        &self,
        volume: &Volume,
        power: &dyn Snapshots,
    ) -> Result<Vec<Snapshot>> {
        power
            .snapshots(volume.id)
            .map_err(|source| pool_error(volume, "list the snapshots of", source))
    }
}

/// Whether a revert that failed is sure to have changed nothing, as the contract of drivers has
/// it. After any other failure, such as a driver that was ended before it answered, what was kept
/// may be all that is left of the state that was to be replaced.
fn left_as_it_was(error: &Error) -> bool {
    matches!(
        error,
        Error::StateNotKept { .. }
            | Error::NoSuchSnapshot { .. }
            | Error::Pool {
                source: PoolError::Full { .. },
                ..
            }
    )
}

fn not_kept(volume: &Volume, snapshot: &SnapshotName, source: Error) -> Error {
    Error::StateNotKept {
        volume: volume.name.clone(),
        snapshot: snapshot.clone(),
        source: Box::new(source),
    }
}

fn pinned(volume: &Volume, name: &SnapshotName) -> Error {
    Error::SnapshotPinned {
        volume: volume.name.clone(),
        snapshot: name.clone(),
    }
}

/// The power of a pool to keep snapshots.
pub(crate) fn power_of(pool: &dyn Pool) -> Result<&dyn Snapshots> {
    pool.snapshots().ok_or_else(|| Error::PoolLacks {
        pool: pool.name().clone(),
        what: "keep snapshots",
    })
}

/// What the pool refuses in the words of a user is passed on in those words.
pub(crate) fn snapshot_error(
    volume: &Volume,
    name: &SnapshotName,
    action: &str,
    source: PoolError,
) -> Error {
    let (named, snapshot) = (volume.name.clone(), name.clone());
    match source {
        PoolError::NoSuchSnapshot { .. } => Error::NoSuchSnapshot {
            volume: named,
            snapshot,
        },
        PoolError::SnapshotThere { .. } => Error::SnapshotTaken {
            volume: named,
            snapshot,
        },
        source => pool_error(volume, action, source),
    }
}

/// A name from the time, in UTC as all times are, with a number behind it where it is taken.
pub(crate) fn made_up_name(there: &[Snapshot], now: Timestamp) -> Result<SnapshotName> {
    let base = now.strftime("%Y%m%d-%H%M%S").to_string();
    let numbered = (2_u32..).map(|number| format!("{base}-{number}"));
    let free = std::iter::once(base.clone())
        .chain(numbered)
        .find(|name| there.iter().all(|taken| taken.name.as_str() != name));
    let free = free.and_then(|name| name.parse().ok());
    free.ok_or(Error::NameTaken {
        kind: crate::error::Kind::Snapshot,
        name: base,
    })
}

#[cfg(test)]
mod tests {
    use sistemo_model::Bytes;

    use super::*;

    #[test]
    fn a_made_up_name_is_the_time_and_a_number_where_that_is_taken() {
        let now: Timestamp = "2026-11-24T20:15:00.5Z".parse().unwrap();
        let mut there = Vec::new();
        for expected in ["20261124-201500", "20261124-201500-2", "20261124-201500-3"] {
            let name = made_up_name(&there, now).unwrap();
            assert_eq!(name.as_str(), expected);
            there.push(Snapshot {
                name,
                created: now,
                size: Bytes::MINIMUM,
                alone: None,
            });
        }
    }
}
