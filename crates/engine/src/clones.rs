//! Cloning: a new volume that holds what another does.

use std::fs::File;

use sistemo_host::sparse::CopyPath;
use sistemo_model::{
    Access, Bytes, Lifecycle, PoolName, Reference, SnapshotName, Timestamp, Volume, VolumeId,
    VolumeName,
};
use sistemo_pools::{Content, Cost, Draft, Origin, Pool, PoolError, Way};

use crate::copying::{self, data_bytes, require_room};
use crate::engine::Engine;
use crate::error::Result;
use crate::exchange::raw_file;
use crate::volumes::{VolumeView, description, pool_error};

/// A clone to be made.
#[derive(Clone, Debug)]
pub struct NewClone {
    /// The volume it is made from.
    pub source: Reference,
    /// The snapshot of that volume it is made from; without one, the volume as it is now.
    pub snapshot: Option<SnapshotName>,
    /// Its name.
    pub name: VolumeName,
    /// Its pool; without one, that of the source.
    pub pool: Option<PoolName>,
}

/// A clone that was made.
#[derive(Clone, Debug)]
pub struct Cloned {
    /// The clone.
    pub volume: VolumeView,
    /// The volume it was made from.
    pub source: VolumeName,
    /// The pool of that.
    pub source_pool: PoolName,
    /// How the data came there.
    pub way: Way,
    /// How much was copied, where something was.
    pub copied: Option<Bytes>,
}

/// What a clone is made from, held by its lock.
struct Source<'a> {
    volume: &'a Volume,
    snapshot: Option<&'a SnapshotName>,
    pool: &'a dyn Pool,
}

impl Source<'_> {
    fn content(&self) -> Result<Box<dyn Content>, PoolError> {
        let id = self.volume.id;
        match (self.snapshot, self.pool.snapshots()) {
            (Some(name), Some(power)) => power.snapshot_content(id, name),
            (Some(name), None) => Err(PoolError::NoSuchSnapshot {
                pool: self.volume.pool.clone(),
                volume: id,
                snapshot: name.clone(),
            }),
            (None, _) => self.pool.content(id, Access::ReadOnly),
        }
    }

    /// Its bytes as a file, where they are one.
    fn raw_file(&self) -> Result<Option<File>, PoolError> {
        match self.snapshot {
            Some(_) => Ok(None),
            None => raw_file(self.pool, self.volume.id),
        }
    }
}

impl Engine {
    /// Makes a volume that holds what another does, in its pool or in another one. Each then goes
    /// its own way. A crash in the middle leaves nothing once the next operation has begun.
    ///
    /// # Errors
    /// Where the name is taken, the volume's machine is active and no snapshot is named, there is
    /// no such snapshot, or the pool has no room.
    pub fn clone_volume(&self, new: &NewClone) -> Result<Cloned> {
        let (source, mut locks) = match new.snapshot {
            Some(_) => self.hold_volume_alone(&new.source)?,
            None => {
                let held = self.hold_to_read(&new.source, "clone")?;
                self.refuse_damaged(held.volume.id)?;
                (held.volume, held.locks)
            }
        };
        let pool_name = match &new.pool {
            Some(asked) => self.pool_for(Some(asked))?,
            None => source.pool.clone(),
        };
        let size = match &new.snapshot {
            Some(name) => self.find_snapshot(&source, name)?.size,
            None => source.size,
        };
        let id = VolumeId::random();
        locks.add_volumes([id]).map_err(|error| self.named(error))?;
        let now = Timestamp::now();
        let kernels = match &source.boot {
            Some(boot) => Some(self.hold_kernels(Some(boot))?),
            None => None,
        };
        let clone = Volume {
            id,
            name: new.name.clone(),
            size,
            pool: pool_name,
            lifecycle: Lifecycle::Creating,
            created: now,
            modified: now,
            ..source.clone()
        };
        let (clone, intent) = self.record_new(clone, false)?;
        drop(kernels);
        self.reporter
            .stage(&format!("cloning {} to {}", source.name, clone.name));
        let made = self.fill_clone(&source, new.snapshot.as_ref(), &clone);
        self.reporter.stage_over();
        let (way, copied) = self.finish_new(&clone, intent, made)?;
        drop(locks);
        Ok(Cloned {
            volume: self.volume(&Reference::from(id.to_string()))?,
            source: source.name,
            source_pool: source.pool,
            way,
            copied: (way.cost() == Cost::Copy).then(|| Bytes::new(copied)),
        })
    }

    /// Makes the volume of a clone; returns how, and how many bytes were copied.
    fn fill_clone(
        &self,
        volume: &Volume,
        snapshot: Option<&SnapshotName>,
        clone: &Volume,
    ) -> Result<(Way, u64)> {
        let (pool, from) = (self.pool(&clone.pool)?, self.pool(&volume.pool)?);
        let source = Source {
            volume,
            snapshot,
            pool: from.as_ref(),
        };
        let mut copied = 0;
        let mut progress = |done, total| {
            copied = done;
            self.reporter.progress(done, total);
        };
        let action = || format!("clone volume {}", volume.name);
        let unreadable = |error| pool_error(volume, "read", error);
        let fail = |error| pool_error(clone, "create", error);
        if let Some(power) = pool.clones().filter(|_| volume.pool == clone.pool) {
            if power.clone_cost() == Cost::Copy {
                let content = source.content().map_err(unreadable)?;
                let needed = data_bytes(content.as_ref()).map_err(unreadable)?;
                require_room(pool.as_ref(), needed, action)?;
            }
            let origin = Origin {
                volume: volume.id,
                snapshot,
            };
            let way = power
                .clone_volume(origin, &description(clone), &mut progress)
                .map_err(fail)?;
            return Ok((way, copied));
        }
        let raw = source.raw_file().map_err(unreadable)?;
        let content = source.content().map_err(unreadable)?;
        if raw.is_none() || !on_one_filesystem(from.as_ref(), pool.as_ref()) {
            let needed = data_bytes(content.as_ref()).map_err(unreadable)?;
            require_room(pool.as_ref(), needed, action)?;
        }
        let mut draft = pool.draft(&description(clone)).map_err(fail)?;
        let way = fill(
            draft.as_mut(),
            raw.as_ref(),
            content.as_ref(),
            &mut progress,
        )
        .map_err(fail)?;
        draft.commit().map_err(fail)?;
        Ok((way, copied))
    }
}

fn fill(
    draft: &mut dyn Draft,
    raw: Option<&File>,
    content: &dyn Content,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Way, PoolError> {
    if let Some(file) = raw {
        return Ok(match draft.fill_from(file, progress)? {
            CopyPath::Reflink => Way::Reflink,
            CopyPath::Copied => Way::Copied,
        });
    }
    copying::copy(content, draft.content()?, progress)?;
    Ok(Way::Copied)
}

/// Whether two pools may share extents: then a copy may take no room.
fn on_one_filesystem(one: &dyn Pool, other: &dyn Pool) -> bool {
    let device = |pool: &dyn Pool| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(pool.directory()).map(|meta| meta.dev())
    };
    matches!((device(one), device(other)), (Ok(one), Ok(other)) if one == other)
}
