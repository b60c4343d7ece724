//! Clones and snapshots: a subvolume is shared as it is, at a cost that does not grow with it.

use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use sistemo_host::Changed;
use sistemo_host::directory::{Directory, FileError, Open};
use sistemo_model::{Access, Bytes, SnapshotName, Timestamp, VolumeId};

use super::draft::BtrfsDraft;
use super::names::Kind;
use super::subvolume::{self, Kept};
use super::workplace::Workplace;
use super::{BtrfsPool, Data, Stat, names};
use crate::content::RawContent;
use crate::contract::{
    Clones, Cost, LiveCopies, LiveDisk, LiveSwitches, Location, Origin, Progress, Snapshot,
    Snapshots, Way,
};
use crate::{Content, Description, Pool, PoolError, place};

impl BtrfsPool {
    fn no_such_snapshot(&self, volume: VolumeId, snapshot: &SnapshotName) -> PoolError {
        PoolError::NoSuchSnapshot {
            pool: self.name.clone(),
            volume,
            snapshot: snapshot.clone(),
        }
    }

    /// The data of a snapshot of a volume that exists.
    fn snapshot_data(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<(Directory, Stat), PoolError> {
        let _ = self.data(volume)?;
        match self.locate(volume, &names::snapshot(volume, snapshot))? {
            Data::File { directory, stat } => Ok((directory, stat)),
            Data::Missing => Err(self.no_such_snapshot(volume, snapshot)),
            Data::Flawed(flaw) => Err(self.subject(volume).damaged(flaw)),
        }
    }

    pub(super) fn open_kept(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<RawContent, PoolError> {
        let (directory, stat) = self.snapshot_data(volume, snapshot)?;
        let file = directory
            .file(names::DATA, Open::Read)
            .map_err(|source| self.subject(volume).failed("open a snapshot of", source))?;
        Ok(RawContent {
            file,
            path: directory.path_of(names::DATA),
            pool: self.name.clone(),
            volume,
            size: stat.size,
            access: Access::ReadOnly,
        })
    }

    /// The names of a volume's snapshots, in no order that says anything.
    pub(super) fn snapshot_names(&self, volume: VolumeId) -> Result<Vec<SnapshotName>, PoolError> {
        let names = self.directory.names();
        let names = names.map_err(|error| self.unavailable(error))?;
        let snapshots = names.iter().filter_map(|name| match names::parse(name)? {
            (id, Kind::Snapshot(snapshot)) if id == volume => Some(snapshot),
            _ => None,
        });
        Ok(snapshots.collect())
    }

    /// The subvolume that an origin is, and its data's size.
    fn origin(&self, origin: Origin<'_>) -> Result<(PathBuf, Bytes), PoolError> {
        let (directory, stat) = match origin.snapshot {
            Some(snapshot) => self.snapshot_data(origin.volume, snapshot)?,
            None => self.data(origin.volume)?,
        };
        Ok((directory.path().to_owned(), stat.size))
    }

    /// Makes the subvolume of a clone that has its origin's size, under its final name: the
    /// snapshot is the instant at which the volume exists, and what makes all of it durable.
    fn clone_in_place(
        &self,
        origin: &Path,
        new: &Description,
        nursery: &Workplace<'_>,
    ) -> Result<(), PoolError> {
        let name = names::volume(new.id);
        let target = self.directory.path_of(&name);
        let made = self.stage_description(new).and_then(|()| {
            nursery.run("clone", |lock| {
                subvolume::snapshot(lock, origin, &target, Kept::Writable)
            })
        });
        if made.is_err() {
            let discarded = nursery.discard(&[name], "remove");
            let unlinked = self.directory.unlink(&names::description(new.id));
            if let Err(error) = discarded {
                tracing::warn!(?error, "a clone that was not made stays");
            }
            if let Err(error) = unlinked {
                tracing::warn!(%error, "the description of a clone that was not made stays");
            }
        }
        made
    }

    /// Records when a snapshot is taken; durable together with the snapshot.
    fn stamp(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
        created: Timestamp,
    ) -> Result<(), FileError> {
        let name = names::taken(volume, snapshot);
        let file = self.directory.file(&name, Open::CreateOrOpen)?;
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
            last_modification: Timespec {
                tv_sec: created.as_second(),
                tv_nsec: created.subsec_nanosecond().into(),
            },
        };
        rustix::fs::futimens(&file, &times).map_err(|error| {
            FileError::new("set the time of", self.directory.path_of(&name), error)
        })
    }

    /// When a snapshot was taken, as far as that is still known.
    fn created(&self, volume: VolumeId, snapshot: &SnapshotName) -> Result<Timestamp, FileError> {
        let name = names::taken(volume, snapshot);
        match rustix::fs::statat(&self.directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let nanoseconds = i32::try_from(stat.st_mtime_nsec).unwrap_or(0);
                Ok(Timestamp::new(stat.st_mtime, nanoseconds).unwrap_or_default())
            }
            Err(Errno::NOENT) => Ok(Timestamp::default()),
            Err(error) => {
                let path = self.directory.path_of(&name);
                Err(FileError::new("look up", path, error))
            }
        }
    }
}

impl Clones for BtrfsPool {
    fn clone_cost(&self) -> Cost {
        Cost::Instant
    }

    fn clone_volume(
        &self,
        origin: Origin<'_>,
        new: &Description,
        _progress: Progress<'_>,
    ) -> Result<Way, PoolError> {
        place::check_size(new.id, new.size)?;
        let (source, size) = self.origin(origin)?;
        place::check_fits(self.subject(new.id), new.size, size.get())?;
        self.check_no_volume(new.id)?;
        let nursery = Workplace::nursery(self, new.id)?;
        if size == new.size {
            self.clone_in_place(&source, new, &nursery)?;
        } else {
            let made = nursery.made();
            nursery.run("clone", |lock| {
                subvolume::snapshot(lock, &source, &made, Kept::Writable)
            })?;
            let draft = BtrfsDraft::of_snapshot(self, new, nursery)?;
            crate::Draft::commit(Box::new(draft))?;
        }
        Ok(Way::Subvolume)
    }
}

impl Snapshots for BtrfsPool {
    fn snapshot_cost(&self) -> Cost {
        Cost::Instant
    }

    fn snapshots(&self, volume: VolumeId) -> Result<Vec<Snapshot>, PoolError> {
        let _ = self.data(volume)?;
        let mut snapshots = Vec::new();
        for name in self.snapshot_names(volume)? {
            // One that is damaged is what `verify` tells of; one may go away meanwhile.
            let subvolume = names::snapshot(volume, &name);
            if let Data::File { stat, .. } = self.locate(volume, &subvolume)? {
                let created = self
                    .created(volume, &name)
                    .map_err(|error| self.subject(volume).failed("look up", error))?;
                snapshots.push(Snapshot {
                    name,
                    created,
                    size: stat.size,
                    // Telling takes a look at each extent.
                    alone: None,
                });
            }
        }
        snapshots.sort_by(|one, other| {
            let key = |snapshot: &Snapshot| (snapshot.created, snapshot.name.clone());
            key(one).cmp(&key(other))
        });
        Ok(snapshots)
    }

    fn take_snapshot(
        &self,
        volume: VolumeId,
        name: &SnapshotName,
        created: Timestamp,
        _disk: Option<&mut dyn LiveDisk>,
        _progress: Progress<'_>,
    ) -> Result<Way, PoolError> {
        const ACTION: &str = "take a snapshot of";
        let failed = |error| self.subject(volume).failed(ACTION, error);
        let (directory, _) = self.data(volume)?;
        let snapshot = names::snapshot(volume, name);
        let workplace = Workplace::enter(self, volume, ACTION)?;
        if self.directory.contains(&snapshot).map_err(failed)? {
            return Err(PoolError::SnapshotThere {
                pool: self.name.clone(),
                volume,
                snapshot: name.clone(),
            });
        }
        let target = self.directory.path_of(&snapshot);
        let stamped = self.stamp(volume, name, created).map_err(failed);
        let taken = stamped.and_then(|()| {
            workplace.run(ACTION, |lock| {
                subvolume::snapshot(lock, directory.path(), &target, Kept::ReadOnly)
            })
        });
        if taken.is_err() {
            // Where this fails too, an empty file stays that nothing looks at.
            let _ = self.directory.unlink(&names::taken(volume, name));
        }
        taken.map(|()| Way::Subvolume)
    }

    fn revert(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
        _progress: Progress<'_>,
    ) -> Result<Way, PoolError> {
        const ACTION: &str = "revert";
        let failed = |error| self.subject(volume).failed(ACTION, error);
        let (source, stat) = self.snapshot_data(volume, snapshot)?;
        let old = self.description(volume)?;
        let new = Description {
            size: stat.size,
            ..old.clone()
        };
        let workplace = Workplace::enter(self, volume, ACTION)?;
        let made = workplace.made();
        workplace.run(ACTION, |lock| {
            subvolume::snapshot(lock, source.path(), &made, Kept::Writable)
        })?;
        let exchange = || {
            let name = names::volume(volume);
            let workplace = workplace.directory();
            let exchanged = self.directory.exchange(&name, workplace, names::MADE);
            exchanged.map_err(failed)
        };
        let mut exchanged = false;
        let mut take_back = || {
            // In this order the data is never shorter than its description says: what a kill
            // leaves looks like a growth that was cut short, not like damage.
            if new.size < old.size {
                self.stage_description(&new)?;
            }
            exchange()?;
            exchanged = true;
            if new.size > old.size {
                self.stage_description(&new)?;
            }
            self.directory.flush().map_err(failed)
        };
        let taken = take_back();
        if taken.is_err() {
            // Where these fail too, it is as after a crash.
            if exchanged {
                let _ = exchange();
            }
            if new.size != old.size {
                let _ = self.stage_description(&old);
            }
        }
        if let Err(error) = workplace.discard_made(ACTION) {
            // The volume is what it should be; the next operation on it tries again.
            tracing::warn!(?error, "what a volume is no more stays");
        }
        taken.map(|()| Way::Subvolume)
    }

    fn delete_snapshot(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Changed, PoolError> {
        const ACTION: &str = "delete a snapshot of";
        let failed = |error| self.subject(volume).failed(ACTION, error);
        let name = names::snapshot(volume, snapshot);
        if !self.directory.contains(&name).map_err(failed)? {
            return Ok(Changed::No);
        }
        let workplace = Workplace::enter_to_remove(self, volume, ACTION)?;
        let changed = workplace.discard(&[name], ACTION)?;
        let taken = names::taken(volume, snapshot);
        let _ = self.directory.unlink(&taken).map_err(failed)?;
        drop(workplace);
        self.directory.flush().map_err(failed)?;
        Ok(changed)
    }

    fn snapshot_content(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Box<dyn Content>, PoolError> {
        Ok(Box::new(self.open_kept(volume, snapshot)?))
    }

    fn open_snapshot(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Option<Location>, PoolError> {
        let (directory, _) = self.snapshot_data(volume, snapshot)?;
        let path = directory.path_of(names::DATA);
        Ok(Some(Location::RawFile(path)))
    }

    fn live_copies(&self) -> Option<&dyn LiveCopies> {
        None
    }

    fn live_switches(&self) -> Option<&dyn LiveSwitches> {
        None
    }
}
