//! Where an operation on one volume works, and how what is no longer wanted goes away.

use std::io;
use std::path::PathBuf;

use rustix::fs::{Access, AtFlags};
use rustix::io::Errno;
use sistemo_host::Changed;
use sistemo_host::directory::{Directory, FileError};
use sistemo_host::lock::{self, Lock, LockError};
use sistemo_host::program::ProgramError;
use sistemo_model::VolumeId;

use super::names::Kind;
use super::{BtrfsPool, names, subvolume};
use crate::PoolError;

/// How many subvolumes one program is told to delete: their paths have to fit on its command
/// line.
const AT_ONCE: usize = 200;

/// A directory beside a volume that is there while an operation on the volume works, and is
/// removed when this is dropped.
///
/// Programs that change something inherit a lock on it. A process that was killed leaves it, and
/// the next operation waits there for a program that outlived the process.
#[derive(Debug)]
pub(super) struct Workplace<'a> {
    pool: &'a BtrfsPool,
    id: VolumeId,
    /// None where it is not a directory of its own.
    name: Option<String>,
    directory: Directory,
}

impl<'a> Workplace<'a> {
    /// Begins the making of a volume. While it is there, and the volume is not, there is a draft.
    ///
    /// # Errors
    /// [`PoolError::DraftThere`], and where the pool cannot be written.
    pub(super) fn nursery(pool: &'a BtrfsPool, id: VolumeId) -> Result<Workplace<'a>, PoolError> {
        let name = names::nursery(id);
        match pool.directory.make_subdirectory(&name) {
            Ok(()) => {}
            Err(error) if error.is_already_there() => {
                return Err(PoolError::DraftThere {
                    pool: pool.name.clone(),
                    volume: id,
                });
            }
            Err(error) => return Err(pool.subject(id).failed("create", error)),
        }
        Workplace::at(pool, id, name).map_err(|error| pool.subject(id).failed("create", error))
    }

    /// Begins an operation on a volume that is there, after those that were killed: waits for
    /// their programs, and removes what they left.
    ///
    /// # Errors
    /// Where the pool cannot be written.
    pub(super) fn enter(
        pool: &'a BtrfsPool,
        id: VolumeId,
        action: &'static str,
    ) -> Result<Workplace<'a>, PoolError> {
        let failed = |error| pool.subject(id).failed(action, error);
        let abandoned = |name: &str| -> Result<(), PoolError> {
            let left = Workplace::at(pool, id, name.to_owned()).map_err(failed)?;
            drop(left.lock().map_err(failed)?);
            left.discard_made(action)
        };
        let nursery = names::nursery(id);
        if pool.directory.contains(&nursery).map_err(failed)? {
            abandoned(&nursery)?;
        }
        let name = names::workplace(id);
        match pool.directory.make_subdirectory(&name) {
            Ok(()) => {}
            Err(error) if error.is_already_there() => {
                abandoned(&name)?;
                forget_untaken(pool, id, action)?;
                pool.directory.make_subdirectory(&name).map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
        let workplace = Workplace::at(pool, id, name).map_err(failed)?;
        workplace.clear(&pool.directory, &names::doomed(id), action)?;
        Ok(workplace)
    }

    /// Begins an operation that only removes. In a pool that is so full that no directory can
    /// be made it works all the same, in the pool's own directory.
    ///
    /// # Errors
    /// As [`Workplace::enter`].
    pub(super) fn enter_to_remove(
        pool: &'a BtrfsPool,
        id: VolumeId,
        action: &'static str,
    ) -> Result<Workplace<'a>, PoolError> {
        match Workplace::enter(pool, id, action) {
            Err(PoolError::Full { .. }) => Ok(Workplace {
                pool,
                id,
                name: None,
                directory: Directory::open(pool.directory.path())
                    .map_err(|error| pool.subject(id).failed(action, error))?,
            }),
            other => other,
        }
    }

    fn at(pool: &'a BtrfsPool, id: VolumeId, name: String) -> Result<Workplace<'a>, FileError> {
        let directory = pool.directory.subdirectory(&name)?;
        Ok(Workplace {
            pool,
            id,
            name: Some(name),
            directory,
        })
    }

    /// The directory.
    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Where the subvolume is that is being made.
    pub(super) fn made(&self) -> PathBuf {
        self.directory.path_of(names::MADE)
    }

    /// Runs a program that inherits a lock on this, which it holds as long as it lives.
    pub(super) fn run(
        &self,
        action: &'static str,
        program: impl FnOnce(&Lock) -> Result<(), ProgramError>,
    ) -> Result<(), PoolError> {
        let lock = self
            .lock()
            .map_err(|error| self.pool.subject(self.id).failed(action, error))?;
        program(&lock).map_err(|error| self.pool.program_failed(self.id, action, error))
    }

    /// Waits until no program works here.
    fn lock(&self) -> Result<Lock, FileError> {
        Lock::acquire_directory(&self.directory, lock::PATIENCE).map_err(|error| match error {
            LockError::File(source) => source,
            held @ LockError::Held { .. } => {
                let error = io::Error::other(held);
                FileError::new("lock", self.directory.path(), error)
            }
        })
    }

    /// Removes the subvolume that is being made, where there is one.
    pub(super) fn discard_made(&self, action: &'static str) -> Result<(), PoolError> {
        self.clear(&self.directory, names::MADE, action).map(drop)
    }

    /// Removes subvolumes from the pool, or whatever has these names; what is not there is no
    /// error. Durable once the pool's directory was flushed.
    ///
    /// Where there is room, they are deleted in one step each and their space comes back within
    /// a minute. Where there is not, whoever removes something wants the space now: they are
    /// emptied, which takes longer the more extents they have, and their space is there with the
    /// flush.
    ///
    /// Killed in between, the first ones are gone, the next one may be doomed, the last ones are
    /// as they were.
    pub(super) fn discard(
        &self,
        names: &[String],
        action: &'static str,
    ) -> Result<Changed, PoolError> {
        let directory = &self.pool.directory;
        let failed = |error| self.pool.subject(self.id).failed(action, error);
        let mut there = Vec::new();
        for name in names {
            if directory.contains(name).map_err(failed)? {
                there.push(name.as_str());
            }
        }
        if self.pool.has_room()? {
            for names in there.chunks(AT_ONCE) {
                self.delete(directory, names, action);
            }
        }
        let doomed = names::doomed(self.id);
        for name in &there {
            if directory.contains(name).map_err(failed)? {
                // Taken apart under its own name, it would be half of something on the way.
                let taken_apart = directory
                    .move_in(directory, name, &doomed)
                    .map_err(failed)
                    .and_then(|()| self.take_apart(directory, &doomed, action));
                if let Err(error) = taken_apart {
                    // Deleting takes less room than renaming and emptying.
                    self.delete(directory, &[name, &doomed], action);
                    if self.is_there(&[name, &doomed]).map_err(failed)? {
                        return Err(error);
                    }
                }
            }
        }
        Ok(if there.is_empty() {
            Changed::No
        } else {
            Changed::Yes
        })
    }

    fn is_there(&self, names: &[&str]) -> Result<bool, FileError> {
        for name in names {
            if self.pool.directory.contains(name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes one subvolume, or whatever has that name, that nobody takes for anything.
    fn clear(
        &self,
        directory: &Directory,
        name: &str,
        action: &'static str,
    ) -> Result<(), PoolError> {
        let failed = |error| self.pool.subject(self.id).failed(action, error);
        if directory.contains(name).map_err(failed)? {
            if self.pool.has_room()? {
                self.delete(directory, &[name], action);
            }
            self.take_apart(directory, name, action)?;
        }
        Ok(())
    }

    /// Deletes those that are subvolumes, in one step each, where this user may do so.
    fn delete(&self, directory: &Directory, names: &[&str], action: &'static str) {
        let is_subvolume = |name: &&&str| {
            let stat = rustix::fs::statat(directory, **name, AtFlags::SYMLINK_NOFOLLOW);
            stat.is_ok_and(|stat| stat.st_ino == subvolume::ROOT_INODE)
        };
        let subvolumes = names.iter().filter(is_subvolume);
        let paths: Vec<_> = subvolumes.map(|name| directory.path_of(name)).collect();
        if paths.is_empty() {
            return;
        }
        let deleted = self.run(action, |lock| {
            subvolume::delete(lock, paths.iter().map(PathBuf::as_path))
        });
        if let Err(error) = deleted {
            // What is still there is taken apart.
            tracing::debug!(?error, "subvolumes cannot be deleted in one step");
        }
    }

    /// Empties a subvolume, or a directory without directories, and removes it, as any user may
    /// since Linux 4.18.
    fn take_apart(
        &self,
        directory: &Directory,
        name: &str,
        action: &'static str,
    ) -> Result<(), PoolError> {
        let failed = |error| self.pool.subject(self.id).failed(action, error);
        match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if !super::is_directory(&stat) => {
                return directory.unlink(name).map(drop).map_err(failed);
            }
            Ok(_) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => {
                let source = FileError::new("look up", directory.path_of(name), error);
                return Err(failed(source));
            }
        }
        let writable = rustix::fs::accessat(directory, name, Access::WRITE_OK, AtFlags::EACCESS);
        if writable == Err(Errno::ROFS) {
            let path = directory.path_of(name);
            self.run(action, |lock| subvolume::make_writable(lock, &path))?;
        }
        let inside = directory.subdirectory(name).map_err(failed)?;
        for file in inside.names().map_err(failed)? {
            let _ = inside.unlink(&file).map_err(failed)?;
        }
        let _ = directory.remove_subdirectory(name).map_err(failed)?;
        Ok(())
    }
}

/// Removes the times of snapshots that were never taken.
fn forget_untaken(pool: &BtrfsPool, id: VolumeId, action: &'static str) -> Result<(), PoolError> {
    let failed = |error| pool.subject(id).failed(action, error);
    for (kind, name) in pool.parts(id)? {
        if let Kind::Taken(snapshot) = kind {
            let snapshot = names::snapshot(id, &snapshot);
            if !pool.directory.contains(&snapshot).map_err(failed)? {
                let _ = pool.directory.unlink(&name).map_err(failed)?;
            }
        }
    }
    Ok(())
}

impl Drop for Workplace<'_> {
    fn drop(&mut self) {
        let Some(name) = &self.name else { return };
        if let Err(error) = self.pool.directory.remove_subdirectory(name) {
            tracing::warn!(%error, "the workplace of an operation stays");
        }
    }
}
