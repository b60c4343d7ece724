//! What pools that are a directory have in common.

use std::path::Path;

use rustix::io::Errno;
use sistemo_host::directory::{Directory, FileError};
use sistemo_host::system;
use sistemo_model::{Bytes, CatalogueId, PoolName, VolumeId};

use crate::error::Subject;
use crate::{Description, Flaw, PoolError, Usage, marker, record};

/// Checks that the directory is still where it was, is marked as the pool's, and can be written.
pub(crate) fn probe(
    directory: &Directory,
    pool: &PoolName,
    catalogue: CatalogueId,
) -> Result<(), PoolError> {
    let path = directory.path();
    let failed =
        |action, error: Errno| marker::unavailable(pool, path, FileError::new(action, path, error));
    let opened = rustix::fs::fstat(directory).map_err(|e| failed("look up", e))?;
    // Programs are given paths, so the path must still lead to what we have open.
    let there = rustix::fs::stat(path).map_err(|e| failed("look up", e))?;
    if (opened.st_dev, opened.st_ino) != (there.st_dev, there.st_ino) {
        return Err(PoolError::Replaced {
            pool: pool.clone(),
            directory: path.to_owned(),
        });
    }
    marker::check(directory, pool, catalogue)?;
    marker::check_writable(directory, pool, path)
}

/// The space of the filesystem that a directory is on.
pub(crate) fn usage(directory: &Path, pool: &PoolName) -> Result<Usage, PoolError> {
    let space = system::space(directory).map_err(|error| {
        let source = FileError::new("measure", directory, error);
        marker::unavailable(pool, directory, source)
    })?;
    Ok(Usage {
        size: space.size,
        used: space.size.saturating_sub(space.free),
        free: space.free,
    })
}

/// Refuses a size that no volume can have.
pub(crate) fn check_size(volume: VolumeId, size: Bytes) -> Result<(), PoolError> {
    let bytes = size.get();
    // No file is longer than `off_t` can say.
    let possible = i64::try_from(bytes).is_ok();
    if bytes > 0 && bytes.is_multiple_of(Bytes::SECTOR) && possible {
        Ok(())
    } else {
        Err(PoolError::BadSize { volume, size })
    }
}

/// Reads the description of a volume from the file of that name.
pub(crate) fn read_description(
    directory: &Directory,
    name: &str,
    subject: Subject<'_>,
) -> Result<Description, PoolError> {
    let text = match directory.read(name, record::LIMIT) {
        Ok(text) => text,
        Err(error) if error.is_not_found() => return Err(subject.damaged(Flaw::Undescribed)),
        Err(error) => return Err(subject.failed("read the description of", error)),
    };
    Description::from_json(&text, subject.volume).map_err(|source| PoolError::BadDescription {
        pool: subject.pool.clone(),
        volume: subject.volume,
        source,
    })
}

/// Writes a description, which is durable when the directory is flushed the next time.
pub(crate) fn stage_description(
    directory: &Directory,
    name: &str,
    subject: Subject<'_>,
    description: &Description,
) -> Result<(), PoolError> {
    let failed = |source| subject.failed("write the description of", source);
    let text = description
        .to_json()
        .map_err(|error| failed(FileError::new("encode", directory.path_of(name), error)))?;
    directory.replace_unflushed(name, &text).map_err(failed)
}
