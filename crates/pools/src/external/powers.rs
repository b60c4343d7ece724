//! The powers of a pool of an external driver.

use sistemo_host::Changed;
use sistemo_model::{Access, Bytes, SnapshotName, Timestamp, VolumeId};

use super::content;
use super::fault::DriverFault;
use super::pool::ExternalPool;
use super::protocol::{ChangedAnswer, LocationAnswer, Operation, SnapshotsAnswer, WayAnswer};
use crate::contract::{
    Clones, Cost, LiveCopies, LiveDisk, LiveSwitches, Location, Origin, Pool, Progress, Snapshot,
    Snapshots, Way,
};
use crate::{Content, Description, PoolError, place};

/// The word of the protocol for making a snapshot reachable.
const OPEN: &str = "open-snapshot";

impl ExternalPool {
    /// The snapshot of that name.
    fn snapshot(&self, volume: VolumeId, name: &SnapshotName) -> Result<Snapshot, PoolError> {
        let mut snapshots = self.snapshots_of(volume)?.into_iter();
        if let Some(snapshot) = snapshots.find(|snapshot| snapshot.name == *name) {
            return Ok(snapshot);
        }
        self.volume(volume)?;
        Err(self.no_snapshot(volume, name))
    }

    fn snapshots_of(&self, volume: VolumeId) -> Result<Vec<Snapshot>, PoolError> {
        let operation = Operation::Snapshots { volume };
        let word = operation.word();
        let SnapshotsAnswer { snapshots } = self.ask(operation)?;
        let mut known: Vec<Snapshot> = Vec::with_capacity(snapshots.len());
        for told in snapshots {
            let bytes = told.size.get();
            if bytes == 0 || !bytes.is_multiple_of(Bytes::SECTOR) {
                let what = "the size of a snapshot";
                return Err(self.failed(word, DriverFault::Impossible { what, bytes }));
            }
            if known.iter().any(|snapshot| snapshot.name == told.name) {
                let what = format!("snapshot {}", told.name);
                return Err(self.failed(word, DriverFault::Twice { what }));
            }
            known.push(Snapshot {
                name: told.name,
                created: told.created,
                size: told.size,
                alone: told.alone,
            });
        }
        known.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        Ok(known)
    }

    /// Asks where a snapshot can be read.
    fn reach_snapshot(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Location, PoolError> {
        let operation = Operation::OpenSnapshot {
            volume,
            snapshot: snapshot.clone(),
        };
        let LocationAnswer { location } = match self.ask(operation) {
            Err(error @ PoolError::NoSuchSnapshot { .. }) => {
                self.volume(volume)?;
                return Err(error);
            }
            other => other?,
        };
        self.check_path(OPEN, &location.path)?;
        Ok(location.into())
    }

    fn size_of(&self, origin: Origin<'_>) -> Result<Bytes, PoolError> {
        match origin.snapshot {
            None => self.volume(origin.volume).map(|volume| volume.size),
            Some(name) if Pool::snapshots(self).is_none() => {
                self.volume(origin.volume)?;
                Err(self.no_snapshot(origin.volume, name))
            }
            Some(name) => self.snapshot(origin.volume, name).map(|found| found.size),
        }
    }

    /// Makes sure that a clone is what it was to be.
    fn check_clone(&self, new: &Description) -> Result<(), PoolError> {
        let failed = |truth: String| self.failed("clone", DriverFault::Untrue { truth });
        let seen = match self.volume(new.id) {
            Err(PoolError::NoSuchVolume { .. }) => {
                return Err(failed("there is no new volume".to_owned()));
            }
            other => other?,
        };
        if seen.size != new.size {
            return Err(self.failed("clone", DriverFault::size(seen.size, new.size)));
        }
        if self.described(seen)? != *new {
            return Err(failed("the new volume has another description".to_owned()));
        }
        Ok(())
    }
}

impl Clones for ExternalPool {
    fn clone_cost(&self) -> Cost {
        self.costs().clone_cost.unwrap_or(Cost::Copy)
    }

    fn clone_volume(
        &self,
        origin: Origin<'_>,
        new: &Description,
        _progress: Progress<'_>,
    ) -> Result<Way, PoolError> {
        place::check_size(new.id, new.size)?;
        let source_size = self.size_of(origin)?;
        if source_size > new.size {
            return Err(PoolError::SourceTooLarge {
                pool: self.name.clone(),
                volume: new.id,
                size: new.size,
                source_size: source_size.get(),
            });
        }
        let WayAnswer { way } = self.ask_new(Operation::Clone {
            volume: new.id,
            size: new.size,
            description: self.written(new)?,
            source: origin.volume,
            source_snapshot: origin.snapshot.cloned(),
        })?;
        if let Err(error) = self.check_clone(new) {
            if let Err(error) = self.remove(new.id) {
                tracing::warn!(%error, "what is left of a clone that was not made stays");
            }
            return Err(error);
        }
        Ok(way)
    }
}

impl Snapshots for ExternalPool {
    fn snapshot_cost(&self) -> Cost {
        self.costs().snapshot_cost.unwrap_or(Cost::Copy)
    }

    fn snapshots(&self, volume: VolumeId) -> Result<Vec<Snapshot>, PoolError> {
        let snapshots = self.snapshots_of(volume)?;
        if snapshots.is_empty() {
            // There is none of a draft either, and that is no volume.
            self.volume(volume)?;
        }
        Ok(snapshots)
    }

    fn take_snapshot(
        &self,
        volume: VolumeId,
        name: &SnapshotName,
        created: Timestamp,
        disk: Option<&mut dyn LiveDisk>,
        _progress: Progress<'_>,
    ) -> Result<Way, PoolError> {
        let seen = self.volume(volume)?;
        let operation = Operation::Snapshot {
            volume,
            snapshot: name.clone(),
            created,
        };
        // The protocol has no words for a VMM that must write elsewhere from now on.
        if disk.is_some() && matches!(seen.location(), Location::Qcow2File(_)) {
            return Err(self.failed(operation.word(), DriverFault::InUse));
        }
        let WayAnswer { way } = self.ask(operation)?;
        Ok(way)
    }

    fn revert(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
        _progress: Progress<'_>,
    ) -> Result<Way, PoolError> {
        let seen = self.volume(volume)?;
        let location = seen.location().clone();
        let mut description = self.described(seen)?;
        description.size = self.snapshot(volume, snapshot)?.size;
        let operation = Operation::Revert {
            volume,
            snapshot: snapshot.clone(),
            description: self.written(&description)?,
        };
        let word = operation.word();
        let WayAnswer { way } = self.ask(operation)?;
        self.check_size(word, volume, &location, description.size)?;
        Ok(way)
    }

    fn delete_snapshot(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Changed, PoolError> {
        let snapshot = snapshot.clone();
        match self.ask(Operation::DeleteSnapshot { volume, snapshot }) {
            Ok(ChangedAnswer { changed: true }) => Ok(Changed::Yes),
            Ok(ChangedAnswer { changed: false }) | Err(PoolError::NoSuchSnapshot { .. }) => {
                self.volume(volume).map(|_| Changed::No)
            }
            Err(error) => Err(error),
        }
    }

    fn snapshot_content(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Box<dyn Content>, PoolError> {
        let location = self.reach_snapshot(volume, snapshot)?;
        let wanted = self.wanted(volume, Access::ReadOnly);
        content::content_of(&location, &wanted).map_err(|fault| self.failed(OPEN, fault))
    }

    fn open_snapshot(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Option<Location>, PoolError> {
        let location = self.reach_snapshot(volume, snapshot)?;
        // What is there is what it is said to be.
        content::size_of(&location, &self.wanted(volume, Access::ReadOnly))
            .map_err(|fault| self.failed(OPEN, fault))?;
        Ok(Some(location))
    }

    fn live_copies(&self) -> Option<&dyn LiveCopies> {
        None
    }

    fn live_switches(&self) -> Option<&dyn LiveSwitches> {
        None
    }
}
