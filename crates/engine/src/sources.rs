//! What is read of a volume: all that it holds now, or held when a snapshot was taken.

use std::fs::File;
use std::sync::Arc;

use sistemo_catalog::LockSet;
use sistemo_model::{Access, Bytes, Reference, SnapshotName, Timestamp, Volume, VolumeId};
use sistemo_pools::{Content, Location, Pool, PoolError};

use crate::engine::Engine;
use crate::error::Result;
use crate::volumes::pool_error;

/// A volume, or a snapshot of it, that nobody writes to.
pub(crate) struct Source<'a> {
    pub(crate) volume: Volume,
    pub(crate) snapshot: Option<&'a SnapshotName>,
    pub(crate) pool: Arc<dyn Pool>,
    /// Its virtual size.
    pub(crate) size: Bytes,
    /// When the volume held this.
    pub(crate) as_of: Timestamp,
    /// The locks that are held for it alone; none where its caller holds them.
    pub(crate) locks: LockSet,
    /// Whether a machine uses the volume meanwhile.
    in_use: bool,
}

impl Engine {
    /// Holds a volume to read all of it. Of a snapshot only the volume's own lock is needed: what
    /// its machine does with the volume meanwhile is of no concern.
    ///
    /// # Errors
    /// [`Error::VolumeInUse`](crate::Error::VolumeInUse), and where there is no such volume or
    /// snapshot.
    pub(crate) fn hold_source<'a>(
        &self,
        reference: &Reference,
        snapshot: Option<&'a SnapshotName>,
        action: &'static str,
    ) -> Result<Source<'a>> {
        let (volume, locks);
        if snapshot.is_some() {
            (volume, locks) = self.hold_volume_alone(reference)?;
        } else {
            let held = self.hold_to_read(reference, action)?;
            (volume, locks) = (held.volume, held.locks);
        }
        self.source_of(volume, snapshot, locks)
    }

    /// A volume, or a snapshot of it, whose locks are held.
    ///
    /// # Errors
    /// Where there is no such snapshot, or the volume is damaged.
    pub(crate) fn source_of<'a>(
        &self,
        volume: Volume,
        snapshot: Option<&'a SnapshotName>,
        locks: LockSet,
    ) -> Result<Source<'a>> {
        let (size, as_of, in_use) = if let Some(name) = snapshot {
            let found = self.find_snapshot(&volume, name)?;
            (found.size, found.created, self.is_in_use(volume.id)?)
        } else {
            self.refuse_damaged(volume.id)?;
            (volume.size, Timestamp::now(), false)
        };
        Ok(Source {
            pool: self.pool(&volume.pool)?,
            volume,
            snapshot,
            size,
            as_of,
            locks,
            in_use,
        })
    }

    /// Whether a machine uses a volume whose lock is held, so that this does not change.
    pub(crate) fn is_in_use(&self, id: VolumeId) -> Result<bool> {
        let machine = self.catalogue.read(|session| {
            let holder = session.holder_of(id)?;
            holder
                .map(|holder| session.machine(holder.attachment.machine))
                .transpose()
        })?;
        Ok(machine.is_some_and(|machine| machine.state.is_active()))
    }
}

impl Source<'_> {
    pub(crate) fn content(&self) -> Result<Box<dyn Content>> {
        content_of(self.pool.as_ref(), self.volume.id, self.snapshot)
            .map_err(|source| pool_error(&self.volume, "read", source))
    }

    /// Lets programs read it where it is, if anywhere; they must write nothing.
    pub(crate) fn with_location<T>(
        &self,
        work: impl FnOnce(Option<&Location>) -> Result<T>,
    ) -> Result<T> {
        let fail = |source| pool_error(&self.volume, "read", source);
        let id = self.volume.id;
        let location = match (self.snapshot, self.pool.snapshots()) {
            (Some(name), Some(power)) => power.open_snapshot(id, name),
            (Some(_), None) => Ok(None),
            (None, _) => self.pool.open(id, Access::ReadOnly).map(Some),
        };
        let worked = work(location.map_err(fail)?.as_ref());
        if !self.in_use {
            self.pool.close(id).map_err(fail)?;
        }
        worked
    }

    /// Its bytes as a file, where they are one.
    pub(crate) fn raw_file(&self) -> Result<Option<File>> {
        self.with_location(|location| Ok(location.and_then(open_raw)))
    }
}

/// The bytes of a volume as they are now, or as a snapshot keeps them.
pub(crate) fn content_of(
    pool: &dyn Pool,
    volume: VolumeId,
    snapshot: Option<&SnapshotName>,
) -> Result<Box<dyn Content>, PoolError> {
    match (snapshot, pool.snapshots()) {
        (Some(name), Some(power)) => power.snapshot_content(volume, name),
        (Some(name), None) => Err(PoolError::NoSuchSnapshot {
            pool: pool.name().clone(),
            volume,
            snapshot: name.clone(),
        }),
        (None, _) => pool.content(volume, Access::ReadOnly),
    }
}

/// The bytes of a volume as a file, where they are one.
pub(crate) fn raw_file(pool: &dyn Pool, volume: &Volume) -> Result<Option<File>> {
    let fail = |source| pool_error(volume, "read", source);
    let location = pool.open(volume.id, Access::ReadOnly).map_err(fail)?;
    let opened = open_raw(&location);
    pool.close(volume.id).map_err(fail)?;
    Ok(opened)
}

fn open_raw(location: &Location) -> Option<File> {
    match location {
        // What cannot be opened so is read as the driver reads it.
        Location::RawFile(path) => File::open(path).ok(),
        Location::BlockDevice(_) | Location::Qcow2File(_) => None,
    }
}
