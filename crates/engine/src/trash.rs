//! The trash: deleted volumes that can still be restored, and the room that they give back.
//!
//! A volume that is deleted stays where it is in its pool, with its snapshots as one unit; its
//! record says since when and until when, and its name is anybody's. It goes for good when its
//! time is over, with the first command after that, or as soon as its pool is short of room: what
//! was deleted first goes first, and no more than is needed.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use sistemo_catalog::{CatalogError, Intent, IntentId};
use sistemo_host::system;
use sistemo_model::{
    Bytes, Lifecycle, PoolName, Reference, Role, Timestamp, Trashed, Volume, VolumeId, VolumeName,
};
use sistemo_pools::{Pool, PoolError};

use crate::copying::{on_one_filesystem, require_room};
use crate::engine::Engine;
use crate::error::{Error, Result, causes};
use crate::reporter::Notice;
use crate::volumes::{VolumeView, shown_with_causes};

/// What a pool that is full is given at the least before something is tried again in it.
const ROOM: u64 = 16 << 20;
/// How long a filesystem is given to count what was removed among what is free, which btrfs does
/// in the background. What was shared never counts.
const SETTLING: Duration = Duration::from_millis(500);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// How long a command may be kept by trash whose time is over; the next one goes on with it.
const TIDYING: Duration = Duration::from_secs(1);

/// A volume that was deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Deleted {
    /// The volume as it was.
    #[serde(flatten)]
    pub volume: VolumeView,
    /// Until when it can be restored, unless its pool needs the room; `None` where it cannot.
    pub restorable_until: Option<Timestamp>,
}

/// What users see of a volume in the trash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrashedVolume {
    /// Its identifier.
    pub id: VolumeId,
    /// The name it had, which another may have now.
    pub name: VolumeName,
    /// Its virtual size in bytes.
    pub size_bytes: u64,
    /// Its virtual size in MiB, rounded down.
    pub size_mb: u64,
    /// What it takes on the host, in bytes; `None` where its file cannot be looked at.
    pub used_bytes: Option<u64>,
    /// What is wrong with it, where something is.
    pub reason: Option<String>,
    /// Whether it was made to boot from.
    pub role: Role,
    /// Its pool.
    pub pool: PoolName,
    /// When it was made.
    pub created: Timestamp,
    /// When it was deleted.
    pub deleted: Timestamp,
    /// Until when it can be restored, unless its pool needs the room.
    pub restorable_until: Timestamp,
}

/// What an operation has found its pool short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shortage {
    /// So many bytes are to be free before it begins.
    Of(u64),
    /// The pool ran full on the way.
    RanFull,
}

impl Engine {
    /// What is in the trash, what was deleted first at the beginning.
    ///
    /// # Errors
    /// Where the catalogue cannot be read. What cannot be looked at is listed with the reason.
    pub fn trash(&self) -> Result<Vec<TrashedVolume>> {
        let volumes = self.catalogue.read(|session| session.trash())?;
        Ok(volumes
            .iter()
            .map(|volume| self.view_trashed(volume))
            .collect())
    }

    /// One volume in the trash.
    ///
    /// # Errors
    /// Where there is none there, or more than one, of that reference.
    pub fn trashed_volume(&self, reference: &Reference) -> Result<TrashedVolume> {
        Ok(self.view_trashed(&self.find_trashed(reference)?))
    }

    /// Until when a volume of a pool could be restored that was deleted now; `None` where the
    /// pool keeps no trash.
    ///
    /// # Errors
    /// Where there is no such pool, or its configuration is not usable.
    pub fn restorable_until(&self, pool: &PoolName) -> Result<Option<Timestamp>> {
        Ok(self.trashed_now(pool)?.map(|trashed| trashed.until))
    }

    /// Takes a volume out of the trash, with its snapshots, under its own name or another one. A
    /// crash in the middle leaves it in the trash or restored.
    ///
    /// # Errors
    /// Where it is not there, the name is taken, or its pool cannot be used; then nothing has
    /// changed.
    pub fn restore_volume(
        &self,
        reference: &Reference,
        name: Option<&VolumeName>,
    ) -> Result<VolumeView> {
        let found = self.find_trashed(reference)?;
        let id = found.id;
        let _held = self.hold_volumes(&[id])?;
        self.require_pool(&found.pool)?;
        // It may have gone, or been restored, before we had its lock.
        let volume = self.still_trashed(id)?;
        self.refuse_damaged(id)?;
        let intent = self.catalogue.write(|session| {
            let restored = session.restore_volume(id, name.unwrap_or(&volume.name));
            restored.map_err(|error| match error {
                CatalogError::NameTaken { .. } if name.is_none() => Error::NameGone {
                    volume: volume.name.clone(),
                    reference: reference.clone(),
                },
                error => error.into(),
            })?;
            Ok::<_, Error>(session.begin(&Intent::DescribeVolume { volume: id })?)
        })?;
        let described = self.with_room(&volume.pool, || self.settle_description(id, intent));
        if let Err(error) = described {
            let undone = self.catalogue.write(|session| {
                if let Some(trashed) = volume.history.trashed {
                    session.trash_volume(id, trashed)?;
                    session.rename_volume(id, &volume.name)?;
                }
                Ok(session.finish(intent)?)
            });
            self.undo_after(&error, undone);
            return Err(error);
        }
        self.volume(&Reference::from(id.to_string()))
    }

    /// Destroys a volume that is in the trash; returns it as it was. After a crash in the middle
    /// the next operation finishes it.
    ///
    /// # Errors
    /// Where it is not there, or its pool cannot be used; then nothing has changed.
    pub fn destroy_trashed(&self, reference: &Reference) -> Result<TrashedVolume> {
        let found = self.find_trashed(reference)?;
        self.use_reserve_where_full();
        let _held = self.hold_volumes(&[found.id])?;
        self.require_pool(&found.pool)?;
        let volume = self.still_trashed(found.id)?;
        let view = self.view_trashed(&volume);
        self.destroy_held(&volume)?;
        Ok(view)
    }

    /// Makes sure that the trash of a pool can be emptied.
    ///
    /// # Errors
    /// Where there is no such pool, or it cannot be used.
    pub fn check_trash(&self, pool: &PoolName) -> Result<()> {
        self.require_pool(pool)
    }

    /// What is recorded of a volume of a pool that is deleted now; `None` where the pool keeps no
    /// trash. It stays for whole seconds.
    pub(crate) fn trashed_now(&self, pool: &PoolName) -> Result<Option<Trashed>> {
        let keep = self.pool_keeping(pool)?.trash;
        if keep.is_zero() {
            return Ok(None);
        }
        let at = Timestamp::now();
        let until = at
            .checked_add(Duration::from(keep))
            .and_then(|until| Timestamp::from_second(until.as_second()))
            .unwrap_or(Timestamp::MAX);
        Ok(Some(Trashed { at, until }))
    }

    /// Lets the description beside a volume say that it is in the trash. A pool without room for
    /// that is left with the old one, which is enough: found without a catalogue, the volume is
    /// there again, and never lost.
    pub(crate) fn settle_trashed(&self, id: VolumeId, intent: IntentId) {
        let settled = match self.settle_description(id, intent) {
            Err(error) if shortage(&error).is_some() => {
                tracing::debug!(%error, "the description of what is in the trash stays as it was");
                let finished = self.catalogue.write(|session| session.finish(intent));
                finished.map_err(Error::from)
            }
            settled => settled,
        };
        if let Err(error) = settled {
            self.leave_for_later(&Intent::DescribeVolume { volume: id }, &error);
        }
    }

    /// Until when a volume that was just moved to the trash can be restored. Where the filesystem
    /// of the catalogue is full it may be gone already.
    pub(crate) fn restorable_now(
        &self,
        id: VolumeId,
        trashed: Option<Trashed>,
    ) -> Result<Option<Timestamp>> {
        let Some(trashed) = trashed else {
            return Ok(None);
        };
        self.relieve_data_dir();
        match self.still_trashed(id) {
            Err(Error::NotInTrash { .. }) => Ok(None),
            found => found.map(|_| Some(trashed.until)),
        }
    }

    /// Destroys what has been in the trash for as long as it was to be. What cannot go now,
    /// because its pool is not there or somebody works on it, goes another time; nobody who
    /// wants something else is told.
    pub(crate) fn discard_expired(&self, expired: &[Volume]) {
        let mut unusable = BTreeSet::new();
        let deadline = Instant::now() + TIDYING;
        for volume in expired {
            if unusable.contains(&volume.pool) || Instant::now() > deadline {
                continue;
            }
            if let Err(error) = self.require_pool(&volume.pool) {
                tracing::debug!(%error, "a pool that is not there keeps its trash");
                unusable.insert(&volume.pool);
                continue;
            }
            let over = |trashed: Trashed| trashed.until <= Timestamp::now();
            if let Err(error) = self.destroy_where_free(volume.id, over) {
                let reason = causes(&error).join(": ");
                tracing::warn!(volume = %volume.name, reason, "cannot empty the trash of this");
            }
        }
    }

    /// Does something that takes room in a pool. Where that is short, its trash is given back, as
    /// far as needed, and it is done again. So `attempt`, where it fails, leaves nothing.
    ///
    /// # Errors
    /// What the last attempt has failed with.
    pub(crate) fn with_room<T>(
        &self,
        pool: &PoolName,
        mut attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        loop {
            let error = match attempt() {
                Err(error) => error,
                done => return done,
            };
            let given = shortage(&error).is_some_and(|shortage| self.relieve(pool, shortage));
            if !given {
                return Err(error);
            }
        }
    }

    /// Makes sure, before a long copy is begun, that a pool has room for it, be it that of its
    /// trash. It may still run full meanwhile.
    ///
    /// # Errors
    /// Where it has not, or cannot be asked.
    pub(crate) fn ensure_room(
        &self,
        pool: &dyn Pool,
        needed: u64,
        action: impl Fn() -> String,
    ) -> Result<()> {
        self.with_room(pool.name(), || require_room(pool, needed, &action))
    }

    /// Gives trash back to a pool that is short of room; whether there was any.
    fn relieve(&self, name: &PoolName, shortage: Shortage) -> bool {
        let Ok(pool) = self.pool(name) else {
            return false;
        };
        let trash = self.trash_beside(pool.directory(), Some(name));
        if trash.is_empty() {
            return false;
        }
        // What was just written may not count yet either.
        let settled = system::settle_space(pool.directory());
        tracing::debug!(?settled, "a pool is short of room");
        let Some(free) = free_in(pool.as_ref()) else {
            return false;
        };
        let enough = match shortage {
            Shortage::Of(needed) => {
                let most = trash.iter().filter_map(|volume| self.used_by(volume));
                if most.fold(free, u64::saturating_add) < needed {
                    // It would be lost for nothing.
                    return false;
                }
                needed
            }
            // It has needed more than there was: so there are never many attempts.
            Shortage::RanFull => free.saturating_mul(2).max(free.saturating_add(ROOM)),
        };
        let now = || free_in(pool.as_ref());
        self.give_trash_back(&trash, pool.directory(), &now, enough)
    }

    /// Gives trash back to the pool that has the least room of some; whether there was any.
    pub(crate) fn relieve_fullest(&self, pools: &BTreeSet<PoolName>) -> bool {
        let free = |name: &&PoolName| self.pool(name).ok().and_then(|pool| free_in(pool.as_ref()));
        let fullest = pools
            .iter()
            .min_by_key(|name| free(name).unwrap_or(u64::MAX));
        fullest.is_some_and(|name| self.relieve(name, Shortage::RanFull))
    }

    /// Gives trash back until the place of a directory has so much free; at least one volume.
    /// Whether there was any.
    pub(crate) fn give_trash_back(
        &self,
        trash: &[Volume],
        directory: &Path,
        free: &dyn Fn() -> Option<u64>,
        enough: u64,
    ) -> bool {
        let mut given = false;
        for volume in trash {
            let before = free().unwrap_or(0);
            if given && before >= enough {
                break;
            }
            let used = self.used_by(volume).unwrap_or(0);
            match self.destroy_where_free(volume.id, |_| true) {
                Ok(false) => continue,
                Ok(true) => given = true,
                Err(error) => {
                    let reason = causes(&error).join(": ");
                    tracing::warn!(volume = %volume.name, reason, "cannot give this back");
                    continue;
                }
            }
            let settled = enough.min(before.saturating_add(used));
            wait_until_counted(directory, || free().is_none_or(|free| free >= settled));
            self.reporter.notice(&Notice::TrashGivenBack {
                volume: volume.name.clone(),
                pool: volume.pool.clone(),
                used: Bytes::new(used),
            });
        }
        given
    }

    /// What is in the trash of the pools that share their room with a directory, a pool of that
    /// name among them; what was deleted first at the beginning.
    pub(crate) fn trash_beside(&self, directory: &Path, name: Option<&PoolName>) -> Vec<Volume> {
        let mut trash = match self.catalogue.read(|session| session.trash()) {
            Ok(trash) => trash,
            Err(error) => {
                tracing::warn!(%error, "cannot see what is in the trash");
                return Vec::new();
            }
        };
        let shares = |other: &PoolName| {
            let pool = self.pool(other);
            pool.is_ok_and(|pool| on_one_filesystem(pool.directory(), directory))
        };
        let others: BTreeSet<PoolName> = trash.iter().map(|volume| volume.pool.clone()).collect();
        let near: BTreeSet<PoolName> = others
            .into_iter()
            .filter(|other| Some(other) == name || shares(other))
            .collect();
        trash.retain(|volume| near.contains(&volume.pool));
        trash
    }

    /// Destroys a volume that is in the trash, where nobody works on it, its pool can be used and
    /// it is to go; whether it went.
    fn destroy_where_free(
        &self,
        id: VolumeId,
        to_go: impl FnOnce(Trashed) -> bool,
    ) -> Result<bool> {
        let Some(_held) = self.locks.try_volume(id, self.purpose())? else {
            return Ok(false);
        };
        let volume = match self.still_trashed(id) {
            Err(Error::NotInTrash { .. }) => return Ok(false),
            volume => volume?,
        };
        if !volume.history.trashed.is_some_and(to_go) {
            return Ok(false);
        }
        self.require_pool(&volume.pool)?;
        self.destroy_held(&volume)?;
        Ok(true)
    }

    /// Destroys a volume that is in the trash and whose lock is held.
    fn destroy_held(&self, volume: &Volume) -> Result<()> {
        let intent = self.catalogue.write(|session| {
            session.set_volume_lifecycle(volume.id, Lifecycle::Deleting)?;
            Ok::<_, Error>(session.begin(&Intent::DeleteVolume { volume: volume.id })?)
        })?;
        self.forget_volume(volume, intent)
    }

    fn find_trashed(&self, reference: &Reference) -> Result<Volume> {
        let found = self
            .catalogue
            .read(|session| session.find_trashed_volume(reference));
        found.map_err(|error| match Error::from(error) {
            Error::NotFound { reference, .. } => Error::NotInTrash { reference },
            other => other,
        })
    }

    /// The volume of that ID, which must be in the trash.
    fn still_trashed(&self, id: VolumeId) -> Result<Volume> {
        self.find_trashed(&Reference::from(id.to_string()))
    }

    fn used_by(&self, volume: &Volume) -> Option<u64> {
        let pool = self.pool(&volume.pool).ok()?;
        Some(pool.facts(volume.id).ok()?.used.get())
    }

    fn view_trashed(&self, volume: &Volume) -> TrashedVolume {
        let pool = self.pool(&volume.pool);
        let facts = pool.as_ref().map_err(shown_with_causes).and_then(|pool| {
            pool.facts(volume.id)
                .map_err(|error| shown_with_causes(&error))
        });
        // What is in the trash has its times; else it is due as soon as it is looked at.
        let trashed = volume.history.trashed.unwrap_or(Trashed {
            at: volume.modified,
            until: volume.modified,
        });
        TrashedVolume {
            id: volume.id,
            name: volume.name.clone(),
            size_bytes: volume.size.get(),
            size_mb: volume.size.mib(),
            used_bytes: facts.as_ref().ok().map(|facts| facts.used.get()),
            reason: facts.err(),
            role: volume.role,
            pool: volume.pool.clone(),
            created: volume.created,
            deleted: trashed.at,
            restorable_until: trashed.until,
        }
    }
}

/// Whether an operation failed because its pool is short of room.
fn shortage(error: &Error) -> Option<Shortage> {
    /// What a program says whose write found no room; ours are run with `LC_ALL=C`.
    const NO_SPACE: &str = "No space left on device";
    match error {
        Error::PoolTooFull { needed, .. } => Some(Shortage::Of(needed.get())),
        Error::Pool {
            source: PoolError::Full { .. },
            ..
        } => Some(Shortage::RanFull),
        Error::FilesystemProgram { .. } | Error::DiskFile { .. } => {
            let told = causes(error);
            let ran_full = told.iter().any(|text| text.contains(NO_SPACE));
            ran_full.then_some(Shortage::RanFull)
        }
        _ => None,
    }
}

/// Waits, not for long, until what was removed counts as free.
fn wait_until_counted(directory: &Path, counted: impl Fn() -> bool) {
    let deadline = Instant::now() + SETTLING;
    while !counted() && Instant::now() < deadline {
        let settled = system::settle_space(directory);
        tracing::debug!(?settled, "waiting until what was removed counts as free");
        if !counted() {
            thread::sleep(POLL_INTERVAL);
        }
    }
}

fn free_in(pool: &dyn Pool) -> Option<u64> {
    pool.usage().ok().map(|usage| usage.free)
}
