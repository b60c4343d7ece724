//! Files in between: without a name, so that nothing of them stays, whoever is killed.

use std::fs::File;
use std::path::Path;

use sistemo_host::directory::{Directory, FileError};
use sistemo_host::system;
use sistemo_model::{Bytes, VolumeId};
use sistemo_pools::Pool;

use crate::engine::Engine;
use crate::error::{Error, Result};

/// What the files made here are called where they need a name for a moment.
pub(super) fn part_name(operation: &str) -> String {
    // Nobody else's name: what has it was made here, and may be published or removed.
    format!(".sistemo-{operation}.{}.part", VolumeId::random().simple())
}

impl Engine {
    /// A file for what is on its way into a pool: beside its volumes or in the data directory,
    /// wherever there is more room.
    pub(super) fn scratch(&self, pool: Option<&dyn Pool>, action: &str) -> Result<File> {
        let fail = |source| Error::File {
            action: action.to_owned(),
            source,
        };
        let room = |path: &Path| system::space(path).map_or(0, |space| space.free);
        let own = self.data_dir();
        let place = pool.map(Pool::directory);
        let place = place.filter(|place| room(place) > room(own)).unwrap_or(own);
        Directory::open(place)
            .and_then(|directory| directory.nameless_file(&part_name("scratch")))
            .map_err(fail)
    }
}

/// Makes sure, before a long copy is begun, that a directory has room for it. It may still run
/// full meanwhile.
///
/// # Errors
/// [`Error::PlaceTooFull`], and where it cannot be asked.
pub(crate) fn require_space(
    directory: &Path,
    needed: u64,
    action: impl Fn() -> String,
) -> Result<()> {
    let space = system::space(directory).map_err(|error| Error::File {
        action: action(),
        source: FileError::new("look for room in", directory, error),
    })?;
    if space.free < needed {
        return Err(Error::PlaceTooFull {
            directory: directory.to_owned(),
            action: action(),
            needed: Bytes::new(needed),
            free: Bytes::new(space.free),
        });
    }
    Ok(())
}
