//! A driver's pool in a filesystem of its own.

use std::path::Path;
use std::sync::Arc;

use sistemo_host::directory::{Directory, FileError};
use sistemo_host::mount::FilesystemKind;
use sistemo_host::{Changed, system};
use sistemo_model::{Access, Bytes, CatalogueId, PoolName, VolumeId};

use super::Room;
use crate::contract::{
    Clones, Draft, Facts, Flaw, Found, Location, OwnFilesystem, Pool, Progress, Sharing, Snapshots,
    Usage,
};
use crate::{Content, Description, PoolError, marker};

/// A pool that is what its driver makes of it, in a place that it mounts itself.
#[derive(Debug)]
pub(super) struct LoopBackedPool {
    pub(super) outer: Directory,
    pub(super) catalogue: CatalogueId,
    pub(super) kind: FilesystemKind,
    pub(super) inner: Arc<dyn Pool>,
}

impl LoopBackedPool {
    fn room(&self) -> Room<'_> {
        Room {
            outer: &self.outer,
            pool: self.inner.name(),
            kind: self.kind,
        }
    }

    fn unavailable(&self, source: FileError) -> PoolError {
        marker::unavailable(self.inner.name(), self.outer.path(), source)
    }
}

impl Pool for LoopBackedPool {
    fn name(&self) -> &PoolName {
        self.inner.name()
    }

    fn driver(&self) -> &str {
        self.inner.driver()
    }

    fn directory(&self) -> &Path {
        self.outer.path()
    }

    fn probe(&self) -> Result<(), PoolError> {
        marker::check(&self.outer, self.name(), self.catalogue)?;
        self.inner.probe()
    }

    fn usage(&self) -> Result<Usage, PoolError> {
        let inner = self.inner.usage()?;
        let path = self.outer.path();
        let below = system::space(path)
            .map_err(|error| self.unavailable(FileError::new("measure", path, error)))?;
        let free = inner.free.min(below.free);
        Ok(Usage {
            size: inner.size,
            used: inner.size.saturating_sub(free),
            free,
        })
    }

    fn list(&self) -> Result<Vec<Found>, PoolError> {
        self.inner.list()
    }

    fn find(&self, id: VolumeId) -> Result<Option<Found>, PoolError> {
        self.inner.find(id)
    }

    fn draft(&self, description: &Description) -> Result<Box<dyn Draft + '_>, PoolError> {
        self.inner.draft(description)
    }

    fn remove(&self, id: VolumeId) -> Result<Changed, PoolError> {
        self.inner.remove(id)
    }

    fn grow(&self, id: VolumeId, to: Bytes) -> Result<Changed, PoolError> {
        self.inner.grow(id, to)
    }

    fn open(&self, id: VolumeId, access: Access) -> Result<Location, PoolError> {
        self.inner.open(id, access)
    }

    fn close(&self, id: VolumeId) -> Result<(), PoolError> {
        self.inner.close(id)
    }

    fn content(&self, id: VolumeId, access: Access) -> Result<Box<dyn Content>, PoolError> {
        self.inner.content(id, access)
    }

    fn describe(&self, description: &Description) -> Result<Changed, PoolError> {
        self.inner.describe(description)
    }

    fn description(&self, id: VolumeId) -> Result<Description, PoolError> {
        self.inner.description(id)
    }

    fn facts(&self, id: VolumeId) -> Result<Facts, PoolError> {
        self.inner.facts(id)
    }

    fn verify(&self, id: VolumeId, recorded: Bytes) -> Result<Vec<Flaw>, PoolError> {
        self.inner.verify(id, recorded)
    }

    fn examine(
        &self,
        id: VolumeId,
        recorded: Bytes,
        progress: Progress<'_>,
    ) -> Result<Vec<Flaw>, PoolError> {
        self.inner.examine(id, recorded, progress)
    }

    fn sharing(&self, id: VolumeId) -> Result<Option<Sharing>, PoolError> {
        self.inner.sharing(id)
    }

    fn clones(&self) -> Option<&dyn Clones> {
        self.inner.clones()
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        self.inner.snapshots()
    }

    fn own_filesystem(&self) -> Option<&dyn OwnFilesystem> {
        Some(self)
    }
}

impl OwnFilesystem for LoopBackedPool {
    fn resize(&self, to: Bytes) -> Result<Changed, PoolError> {
        let before = (self.room().size("grow")?, self.inner.usage()?.size);
        self.room().grow(to)?;
        let after = (self.room().size("grow")?, self.inner.usage()?.size);
        Ok(if before == after {
            Changed::No
        } else {
            Changed::Yes
        })
    }

    fn unmount(&self) -> Result<(), PoolError> {
        self.room().unmount()
    }
}
