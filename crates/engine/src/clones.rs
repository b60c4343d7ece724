//! Cloning: a new volume that holds what another does.

use std::fs::File;

use sistemo_host::sparse::CopyPath;
use sistemo_model::{
    Bytes, CloneOrigin, History, Lifecycle, PoolName, Reference, SnapshotName, Timestamp, Volume,
    VolumeId, VolumeName,
};
use sistemo_pools::{Content, Cost, Draft, Origin, Pool, PoolError, Way};

use crate::copying::{self, data_bytes, on_one_filesystem, require_room};
use crate::engine::Engine;
use crate::error::Result;
use crate::sources::Source;
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

impl Engine {
    /// Makes a volume that holds what another does, in its pool or in another one. Each then goes
    /// its own way. A crash in the middle leaves nothing once the next operation has begun.
    ///
    /// # Errors
    /// Where the name is taken, the volume's machine is active and no snapshot is named, there is
    /// no such snapshot, or the pool has no room.
    pub fn clone_volume(&self, new: &NewClone) -> Result<Cloned> {
        let mut held = self.hold_source(&new.source, new.snapshot.as_ref(), "clone")?;
        let source = held.volume.clone();
        let pool_name = match &new.pool {
            Some(asked) => self.pool_for(Some(asked))?,
            None => source.pool.clone(),
        };
        let id = VolumeId::random();
        held.locks
            .add_volumes([id])
            .map_err(|error| self.named(error))?;
        let kernels = match &source.boot {
            Some(boot) => Some(self.hold_kernels(Some(boot))?),
            None => None,
        };
        let clone = held.record_of_clone(id, new.name.clone(), pool_name);
        let (clone, intent) = self.record_new(clone, false)?;
        drop(kernels);
        self.reporter
            .stage(&format!("cloning {} to {}", source.name, clone.name));
        let made = self.fill_clone(&held, &clone);
        self.reporter.stage_over();
        let (way, copied) = self.finish_new(&clone, intent, made)?;
        drop(held);
        Ok(Cloned {
            volume: self.volume(&Reference::from(id.to_string()))?,
            source: source.name,
            source_pool: source.pool,
            way,
            copied: (way.cost() == Cost::Copy).then(|| Bytes::new(copied)),
        })
    }

    /// Makes the volume of a clone; returns how, and how many bytes were copied.
    pub(crate) fn fill_clone(&self, source: &Source<'_>, clone: &Volume) -> Result<(Way, u64)> {
        self.with_room(&clone.pool, || self.try_to_fill_clone(source, clone))
    }

    fn try_to_fill_clone(&self, source: &Source<'_>, clone: &Volume) -> Result<(Way, u64)> {
        let volume = &source.volume;
        let pool = self.pool(&clone.pool)?;
        let mut copied = 0;
        let mut progress = |done, total| {
            copied = done;
            self.reporter.progress(done, total);
        };
        if let Some(needed) = room_for_clone(source, pool.as_ref())? {
            let action = || format!("clone volume {}", volume.name);
            require_room(pool.as_ref(), needed, action)?;
        }
        let fail = |error| pool_error(clone, "create", error);
        if let Some(power) = pool.clones().filter(|_| volume.pool == clone.pool) {
            let origin = Origin {
                volume: volume.id,
                snapshot: source.snapshot,
            };
            let way = power
                .clone_volume(origin, &description(clone), &mut progress)
                .map_err(fail)?;
            return Ok((way, copied));
        }
        let (raw, content) = (source.raw_file()?, source.content()?);
        let mut draft = pool.draft(&description(clone)).map_err(fail)?;
        let filled = fill(
            draft.as_mut(),
            raw.as_ref(),
            content.as_ref(),
            &mut progress,
        );
        let way = filled.map_err(fail)?;
        draft.commit().map_err(fail)?;
        Ok((way, copied))
    }
}

impl Source<'_> {
    /// The record of a clone that is about to be made of it.
    pub(crate) fn record_of_clone(&self, id: VolumeId, name: VolumeName, pool: PoolName) -> Volume {
        let now = Timestamp::now();
        let origin = CloneOrigin {
            volume: self.volume.id,
            as_of: self.as_of,
        };
        Volume {
            id,
            name,
            size: self.size,
            pool,
            history: History {
                origin: Some(origin),
                // How a snapshot found the volume is not known.
                dirty: self.snapshot.is_none() && self.volume.history.dirty,
                ..History::default()
            },
            lifecycle: Lifecycle::Creating,
            created: now,
            modified: now,
            ..self.volume.clone()
        }
    }
}

/// How many bytes a clone takes in a pool where it is sure to be a copy; `None` where nothing is
/// copied, or only the copying tells.
pub(crate) fn room_for_clone(source: &Source<'_>, pool: &dyn Pool) -> Result<Option<u64>> {
    let copies = match pool.clones().filter(|_| source.volume.pool == *pool.name()) {
        Some(power) => power.clone_cost() == Cost::Copy,
        None => {
            source.raw_file()?.is_none()
                || !on_one_filesystem(source.pool.directory(), pool.directory())
        }
    };
    if !copies {
        return Ok(None);
    }
    let needed = data_bytes(source.content()?.as_ref())
        .map_err(|error| pool_error(&source.volume, "read", error))?;
    Ok(Some(needed))
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
