//! What only btrfs-progs can do without `unsafe`: make, snapshot and delete subvolumes.
//!
//! Every program inherits a lock, so that whoever comes after a process that was killed can wait
//! for the program that outlived it.

use std::path::Path;

use sistemo_host::lock::Lock;
use sistemo_host::program::{Program, ProgramError};

/// The inode number of the root of every subvolume, and of nothing else
/// (`BTRFS_FIRST_FREE_OBJECTID`).
pub(super) const ROOT_INODE: u64 = 256;

/// The program, which is in the package btrfs-progs.
pub(super) const PROGRAM: &str = "btrfs";

/// What may be done with a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// All that could be done with what it was made from.
    Writable,
    /// Nobody writes to it, root included.
    ReadOnly,
}

fn btrfs(lock: &Lock, words: [&str; 2]) -> Result<Program, ProgramError> {
    Ok(Program::find(PROGRAM)?.inherit(lock)?.args(words))
}

/// Makes an empty subvolume; it is durable once the directory it is in was flushed.
pub(super) fn create(lock: &Lock, path: &Path) -> Result<(), ProgramError> {
    let program = btrfs(lock, ["subvolume", "create"])?.arg(path);
    program.run().map(drop)
}

/// Makes a subvolume that shares all of another's data, durably: the kernel commits what was
/// done on the filesystem until now together with it.
pub(super) fn snapshot(
    lock: &Lock,
    source: &Path,
    target: &Path,
    kept: Kept,
) -> Result<(), ProgramError> {
    let mut program = btrfs(lock, ["subvolume", "snapshot"])?;
    if kept == Kept::ReadOnly {
        program = program.arg("-r");
    }
    program.arg(source).arg(target).run().map(drop)
}

/// Deletes subvolumes with all that is in them, each in one step; their space comes back later.
/// Durable once the directory they were in was flushed.
///
/// An ordinary user may do so only where the filesystem is mounted with
/// `user_subvol_rm_allowed`: btrfs(5).
pub(super) fn delete<'a>(
    lock: &Lock,
    paths: impl IntoIterator<Item = &'a Path>,
) -> Result<(), ProgramError> {
    let program = btrfs(lock, ["subvolume", "delete"])?.args(paths);
    program.run().map(drop)
}

/// Lets a read-only snapshot be written.
pub(super) fn make_writable(lock: &Lock, path: &Path) -> Result<(), ProgramError> {
    let program = btrfs(lock, ["property", "set"])?
        .args(["-t", "subvol"])
        .arg(path)
        .args(["ro", "false"]);
    program.run().map(drop)
}
