//! What volumes take: their size, what they use, what they share, and what is theirs alone.

use std::collections::BTreeMap;

use serde::Serialize;
use sistemo_model::{
    Bytes, Lifecycle, PoolName, Reference, SnapshotName, Volume, VolumeId, VolumeName,
};
use sistemo_pools::{PoolError, Sharing};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::holding::Unless;
use crate::volumes::shown_with_causes;

/// What a volume takes; `None` where it cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeUsage {
    /// The volume.
    pub id: VolumeId,
    /// Its name.
    pub name: VolumeName,
    /// Its pool.
    pub pool: PoolName,
    /// Its virtual size, in bytes.
    pub size_bytes: u64,
    /// What it takes on the host, in bytes.
    pub used_bytes: Option<u64>,
    /// What of the space it lies in snapshots or other volumes use too, in bytes. It may be more
    /// than it takes, where others took it first.
    pub shared_bytes: Option<u64>,
    /// What nobody else uses, in bytes: it would be free without the volume.
    pub alone_bytes: Option<u64>,
    /// What its snapshots use alone, all together, in bytes.
    pub snapshots_alone_bytes: Option<u64>,
    /// What each of its snapshots uses alone.
    pub snapshots: Option<Vec<SnapshotUsage>>,
    /// Why it cannot be told, where something is in the way.
    pub reason: Option<String>,
}

/// What a snapshot takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotUsage {
    /// The snapshot.
    pub name: SnapshotName,
    /// What nobody else uses, in bytes: it would be free without the snapshot.
    pub alone_bytes: u64,
}

impl Engine {
    /// What all volumes take, by name; each costs a look at every extent of it.
    ///
    /// # Errors
    /// Where the catalogue cannot be read. A volume that cannot be looked at is told with the
    /// reason.
    pub fn usage_of_volumes(&self) -> Result<Vec<VolumeUsage>> {
        let volumes = self.catalogue.read(|session| session.volumes())?;
        let ready = volumes.iter();
        let ready = ready.filter(|volume| volume.lifecycle == Lifecycle::Ready);
        Ok(ready.map(|volume| self.usage_of(volume)).collect())
    }

    /// What one volume takes.
    ///
    /// # Errors
    /// Where there is none, or more than one, of that reference.
    pub fn volume_usage(&self, reference: &Reference) -> Result<VolumeUsage> {
        let find = |session: &sistemo_catalog::Session<'_>| session.find_volume(reference);
        let volume = self.catalogue.read(find)?;
        Ok(self.usage_of(&volume))
    }

    fn usage_of(&self, volume: &Volume) -> VolumeUsage {
        let looked = self.look_at_usage(volume);
        let reason = looked.as_ref().err().cloned();
        let (used, sharing) = looked.map_or((None, None), |(used, sharing)| (Some(used), sharing));
        let snapshots = sharing.as_ref().map(|sharing| {
            let each = sharing.snapshots.iter().map(|(name, alone)| SnapshotUsage {
                name: name.clone(),
                alone_bytes: alone.get(),
            });
            each.collect::<Vec<_>>()
        });
        let alone = |all: &Vec<SnapshotUsage>| {
            let each = all.iter().map(|one| one.alone_bytes);
            // What an external driver says may be any number.
            each.fold(0, u64::saturating_add)
        };
        VolumeUsage {
            id: volume.id,
            name: volume.name.clone(),
            pool: volume.pool.clone(),
            size_bytes: volume.size.get(),
            used_bytes: used.map(Bytes::get),
            shared_bytes: sharing.as_ref().map(|sharing| sharing.shared.get()),
            alone_bytes: sharing.as_ref().map(|sharing| sharing.alone.get()),
            snapshots_alone_bytes: snapshots.as_ref().map(alone),
            snapshots,
            reason,
        }
    }

    fn look_at_usage(
        &self,
        volume: &Volume,
    ) -> std::result::Result<(Bytes, Option<Sharing>), String> {
        match self.refuse_disposable(volume, Unless::Active) {
            // Nothing is there until its machine starts.
            Err(Error::VolumeDisposable { .. }) => {
                let nothing = Sharing {
                    shared: Bytes::new(0),
                    alone: Bytes::new(0),
                    snapshots: BTreeMap::new(),
                };
                return Ok((Bytes::new(0), Some(nothing)));
            }
            looked => looked.map_err(|e| shown_with_causes(&e))?,
        }
        let pool = self.pool(&volume.pool).map_err(|e| shown_with_causes(&e))?;
        let look = || Ok((pool.facts(volume.id)?.used, pool.sharing(volume.id)?));
        look().map_err(|error: PoolError| shown_with_causes(&error))
    }
}
