//! What pools that are a directory have in common.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use sistemo_host::Changed;
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

/// Refuses data that is longer than the volume it is for.
pub(crate) fn check_fits(
    subject: Subject<'_>,
    size: Bytes,
    source_size: u64,
) -> Result<(), PoolError> {
    if source_size <= size.get() {
        return Ok(());
    }
    Err(PoolError::SourceTooLarge {
        pool: subject.pool.clone(),
        volume: subject.volume,
        size,
        source_size,
    })
}

/// Refuses to fill a volume, whose data is at `target`, from what is no file or does not fit it.
pub(crate) fn check_source(
    subject: Subject<'_>,
    size: Bytes,
    target: &Path,
    source: &File,
) -> Result<(), PoolError> {
    let failed =
        |error: io::Error| subject.failed("fill", FileError::new("copy into", target, error));
    let meta = source.metadata().map_err(failed)?;
    if !meta.is_file() {
        // A device has length 0 here, and would pass for an empty file.
        let error = io::Error::new(io::ErrorKind::InvalidInput, "the source is not a file");
        return Err(failed(error));
    }
    check_fits(subject, size, meta.len())
}

/// Refuses to shrink a volume, or to grow one that lost a part of its data, and says whether
/// there is anything to do. Data that is longer than described is a growing that was killed.
pub(crate) fn check_growth(
    subject: Subject<'_>,
    real: Bytes,
    described: Bytes,
    to: Bytes,
) -> Result<Changed, PoolError> {
    if real < described {
        let recorded = described;
        return Err(subject.damaged(Flaw::WrongSize { recorded, real }));
    }
    if to < real {
        return Err(PoolError::Shrinks {
            pool: subject.pool.clone(),
            volume: subject.volume,
            size: real,
            to,
        });
    }
    Ok(if to == described {
        Changed::No
    } else {
        Changed::Yes
    })
}

/// What is wrong with the description that was read of a volume whose size is known.
pub(crate) fn description_flaw(
    read: Result<Description, PoolError>,
    recorded: Bytes,
) -> Result<Option<Flaw>, PoolError> {
    match read {
        Ok(description) if description.size == recorded => Ok(None),
        Ok(description) => Ok(Some(Flaw::DescribedSize {
            recorded,
            described: description.size,
        })),
        Err(PoolError::BadDescription { .. }) => Ok(Some(Flaw::BadDescription)),
        Err(PoolError::Damaged { flaw, .. }) => Ok(Some(flaw)),
        Err(error) => Err(error),
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
