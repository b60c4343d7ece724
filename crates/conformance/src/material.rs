//! What laws are tried with: volumes, sources, and looking into them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sistemo_model::{Access, Bytes, Filesystem, Role, Timestamp, VolumeId};
use sistemo_pools::{Content, Description, Location, Pool, PoolError};

use crate::Bench;
use crate::expectation::same_bytes;
use crate::law::{Stop, Verdict};

pub(crate) const MIB: u64 = 1 << 20;
/// How much is looked at in one go.
const PIECE: usize = 1 << 20;

/// A description of a new volume.
pub(crate) fn description(size: Bytes) -> Description {
    let id = VolumeId::random();
    Description {
        id,
        name: a_name(&id.short()),
        size,
        filesystem: Filesystem::Ext4,
        role: Role::Data,
        boot: None,
        created: Timestamp::now(),
        history: Box::default(),
        unfinished: false,
        moving_from: None,
    }
}

/// A name that the suite knows to be one.
pub(crate) fn a_name<T>(text: &str) -> T
where
    T: std::str::FromStr,
    T::Err: std::fmt::Debug,
{
    text.parse()
        .unwrap_or_else(|error| panic!("{text} is no name: {error:?}"))
}

pub(crate) fn create(pool: &dyn Pool, description: &Description) -> Result<(), PoolError> {
    pool.draft(description)?.commit()
}

/// Makes an empty volume.
pub(crate) fn volume(pool: &dyn Pool, mib: u64) -> Result<Description, PoolError> {
    let description = description(Bytes::from_mib(mib));
    create(pool, &description)?;
    Ok(description)
}

/// Writes and flushes.
pub(crate) fn write(pool: &dyn Pool, id: VolumeId, data: &[u8], at: u64) -> Result<(), PoolError> {
    let mut content = pool.content(id, Access::ReadWrite)?;
    content.write_at(data, at)?;
    content.flush()
}

pub(crate) fn read(content: &dyn Content, at: u64, length: usize) -> Result<Vec<u8>, PoolError> {
    let mut buffer = vec![0xee; length];
    content.read_at(&mut buffer, at)?;
    Ok(buffer)
}

/// Expects bytes at a place of a volume.
#[track_caller]
pub(crate) fn reads(pool: &dyn Pool, id: VolumeId, at: u64, wanted: &[u8]) -> Verdict {
    let content = pool.content(id, Access::ReadOnly)?;
    same_bytes(
        format!("volume {id}"),
        at,
        &read(&*content, at, wanted.len())?,
        wanted,
    )
}

/// Expects nothing but zeros.
#[track_caller]
pub(crate) fn reads_zeros(content: &dyn Content, from: u64, to: u64) -> Verdict {
    let mut at = from;
    while at < to {
        let length = usize::try_from(to - at).map_or(PIECE, |left| left.min(PIECE));
        let read = read(content, at, length)?;
        same_bytes("what was never written", at, &read, &vec![0; length])?;
        at += length as u64;
    }
    Ok(())
}

/// The file that a volume is in, for what only damage does to it.
pub(crate) fn data_file(pool: &dyn Pool, id: VolumeId) -> Result<File, Stop> {
    let location = pool.open(id, Access::ReadWrite)?;
    if matches!(location, Location::BlockDevice(_)) {
        return Err(Stop::NotClaimed("volumes that are files"));
    }
    let path = location.path();
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|error| {
        let expected = format!("{} to be a file that can be opened", path.display());
        Stop::failed(expected, error)
    })
}

/// Whether a pool can tell where the holes of a volume are; a block device cannot.
pub(crate) fn knows_holes(pool: &dyn Pool, id: VolumeId) -> Result<bool, PoolError> {
    let location = pool.open(id, Access::ReadOnly)?;
    pool.close(id)?;
    Ok(!matches!(location, Location::BlockDevice(_)))
}

/// A file on the pool's filesystem but outside it, which is gone when it is closed.
pub(crate) fn source(bench: &Bench, length: u64, data: &[(u64, &[u8])]) -> io::Result<File> {
    let file = temporary_file(bench.scratch())?;
    file.set_len(length)?;
    for (at, bytes) in data {
        file.write_all_at(bytes, *at)?;
    }
    Ok(file)
}

/// An empty file in a directory, which is gone when it is closed.
pub(crate) fn temporary_file(directory: &Path) -> io::Result<File> {
    let path = directory.join(VolumeId::random().to_string());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
