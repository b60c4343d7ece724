//! Which directories a pool may have.

use std::fs;
use std::path::{Path, PathBuf};

use sistemo_catalog::KnownPool;
use sistemo_model::PoolName;
use sistemo_pools::{PoolConfig, StorageConf};

use super::{misconfigured, not_found};
use crate::error::{Error, Result};

/// What no pool may be in: the rest of the data directory.
const RESERVED: [&str; 7] = [
    "images", "kernels", "machines", "locks", "ssh", "drivers", "raw",
];

/// Why a directory cannot be a pool's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceConflict {
    /// It is another pool's too.
    #[error("pool {other} is there")]
    Same {
        /// The other pool.
        other: PoolName,
    },
    /// It lies in another pool's.
    #[error("that is inside pool {other}, which is in {}", directory.display())]
    Inside {
        /// The other pool.
        other: PoolName,
        /// The other pool's directory.
        directory: PathBuf,
    },
    /// Another pool's lies in it.
    #[error("pool {other} is inside it, in {}", directory.display())]
    Contains {
        /// The other pool.
        other: PoolName,
        /// The other pool's directory.
        directory: PathBuf,
    },
    /// Something else of the data directory is there.
    #[error("Sistemo keeps other things there")]
    Reserved,
}

/// What a pool is configured to be, where it is understood and in nobody's way.
///
/// Of two pools in each other's way one stays usable: the one that was used before, else the one
/// that comes first in the file.
pub(crate) fn usable(
    conf: &StorageConf,
    known: &[KnownPool],
    name: &PoolName,
    data_dir: &Path,
) -> Result<PoolConfig> {
    let pool = conf.pool(name).ok_or_else(|| not_found(name))?;
    let config = pool
        .config
        .clone()
        .map_err(|source| misconfigured(name, source))?;
    let was_used = |config: &PoolConfig| {
        let same = |known: &KnownPool| {
            known.name == config.name && Some(&known.directory) == config.directory.as_ref()
        };
        known.iter().any(same)
    };
    let used = was_used(&config);
    let mut behind = false;
    let others = conf.pools().iter().filter_map(|other| {
        behind |= other.title == pool.title;
        let other = other.config.as_ref().ok()?;
        let first = if was_used(other) == used {
            !behind
        } else {
            !used
        };
        (other.name != *name && first).then_some(other)
    });
    check_place(&config, others, data_dir)?;
    Ok(config)
}

/// Makes sure that a pool's directory is in nobody's way.
pub(super) fn check_place<'a>(
    config: &PoolConfig,
    others: impl Iterator<Item = &'a PoolConfig>,
    data_dir: &Path,
) -> Result<()> {
    let Some(written) = &config.directory else {
        return Ok(());
    };
    let place = real(written);
    let data_dir = real(data_dir);
    let reserved = RESERVED
        .iter()
        .any(|name| place.starts_with(data_dir.join(name)));
    let reserved = reserved || data_dir.starts_with(&place);
    let mut conflict = None;
    for other in others {
        let Some(directory) = other.directory.clone() else {
            continue;
        };
        let (theirs, other) = (real(&directory), other.name.clone());
        let found = if theirs == place {
            PlaceConflict::Same { other }
        } else if place.starts_with(&theirs) {
            PlaceConflict::Inside { other, directory }
        } else if theirs.starts_with(&place) {
            PlaceConflict::Contains { other, directory }
        } else {
            continue;
        };
        conflict.get_or_insert(found);
    }
    match conflict.or(reserved.then_some(PlaceConflict::Reserved)) {
        None => Ok(()),
        Some(conflict) => Err(Error::PoolPlace {
            pool: config.name.clone(),
            directory: written.clone(),
            conflict,
        }),
    }
}

/// A path without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let resolved = path.ancestors().find_map(|ancestor| {
        let real = fs::canonicalize(ancestor).ok()?;
        let rest = path.strip_prefix(ancestor).ok()?;
        Some(real.components().chain(rest.components()).collect())
    });
    resolved.unwrap_or_else(|| path.to_owned())
}
