//! Advisory file locks that die with their holders.
//!
//! A lock is an flock(2) on a file that is never unlinked. It belongs to the open file
//! description, so a program that inherits the descriptor holds the lock for as long as it
//! lives, also when the process that took it is gone: a stale lock cannot exist.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::directory::{Directory, FileError, Open, split};
use crate::process::ProcessIdentity;

/// How long a command waits for another that holds what it needs.
pub const PATIENCE: Duration = Duration::from_secs(10);

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
const HOLDER_LIMIT: u64 = 512;
const UNKNOWN: &str = "another process";
/// What comes before the number of the process in what it writes into a lock's file.
const TAKER: &str = "process ";

/// Why a lock could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process held it for all the time we waited.
    #[error("{} is held by {holder}", path.display())]
    Held {
        /// The lock's file.
        path: PathBuf,
        /// Who holds it: `process 123 (sistemo volume resize …)`, or `another process`.
        holder: String,
    },
    /// The lock's file cannot be opened or locked.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A lock that is held until this value, and every descriptor inherited from it, is gone.
#[derive(Debug)]
#[must_use]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock, waiting up to `patience` for whoever holds it.
    ///
    /// `purpose` is what an impatient waiter reads in its error, such as the command line.
    ///
    /// # Errors
    /// [`LockError::Held`] with the holder's purpose where it is still held after that time.
    pub fn acquire(path: &Path, purpose: &str, patience: Duration) -> Result<Lock, LockError> {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(lock) = Lock::try_acquire(path, purpose)? {
                return Ok(lock);
            }
            if started.elapsed() >= patience {
                return Err(LockError::Held {
                    path: path.to_owned(),
                    holder: holder(path),
                });
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Takes the lock where it is free; `None` where it is held.
    ///
    /// # Errors
    /// Where its file cannot be opened.
    pub fn try_acquire(path: &Path, purpose: &str) -> Result<Option<Lock>, LockError> {
        let (directory, name) = split(path)?;
        let file = directory.file(&name, Open::CreateOrOpen)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(FileError::new("lock", path, error).into()),
        }
        let lock = Lock {
            file,
            path: path.to_owned(),
        };
        lock.sign(purpose);
        Ok(Some(lock))
    }

    /// Takes the lock of a directory itself, waiting up to `patience`; its holder cannot sign it.
    /// For what has no lasting place for a lock's file.
    ///
    /// # Errors
    /// [`LockError::Held`] where it is still held after that time.
    pub fn acquire_directory(directory: &Directory, patience: Duration) -> Result<Lock, LockError> {
        let path = directory.path();
        // Opened again: a lock belongs to the open file, and the caller's lives longer.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, ".", flags, Mode::empty())
            .map(File::from)
            .map_err(|error| FileError::new("open directory", path, error))?;
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let path = path.to_owned();
                    return Ok(Lock { file, path });
                }
                Err(Errno::WOULDBLOCK) if started.elapsed() < patience => thread::sleep(pause),
                Err(Errno::WOULDBLOCK) => {
                    return Err(LockError::Held {
                        path: path.to_owned(),
                        holder: UNKNOWN.to_owned(),
                    });
                }
                Err(error) => return Err(FileError::new("lock", path, error).into()),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Whether somebody holds the lock at this instant. A missing file is held by nobody.
    ///
    /// # Errors
    /// Where its file cannot be opened.
    pub fn is_held(path: &Path) -> Result<bool, LockError> {
        let (directory, name) = match split(path) {
            Err(error) if error.is_not_found() => return Ok(false),
            other => other?,
        };
        let file = match directory.file(&name, Open::ReadWrite) {
            Err(error) if error.is_not_found() => return Ok(false),
            other => other?,
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(FileError::new("lock", path, error).into()),
        }
    }

    /// Waits up to `patience` while the lock is held by a program that inherited it from a process
    /// that is gone. One whose taker lives is not waited for, nor is a missing file.
    ///
    /// # Errors
    /// [`LockError::Held`] where it is still so after that time.
    pub fn await_orphans(path: &Path, patience: Duration) -> Result<(), LockError> {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        // In this order: whoever takes it signs it after.
        while Lock::is_held(path)? && !taker_lives(path) {
            if started.elapsed() >= patience {
                let holder = holder(path);
                let path = path.to_owned();
                return Err(LockError::Held { path, holder });
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Ok(())
    }

    /// The lock's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes over a lock whose descriptor this process inherited.
    pub fn inherited(file: File, path: PathBuf) -> Lock {
        Lock { file, path }
    }

    /// Writes who holds it into its file, where that is possible.
    fn sign(&self, purpose: &str) {
        let mut file = &self.file;
        let text = format!("{TAKER}{} ({purpose})", std::process::id());
        // Only waiters read it, and they do without; the lock is held whatever is written. On a
        // full filesystem deleting a volume has to work, which takes locks.
        let _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(text.as_bytes()));
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Takes the record lock on all of a file, which is held until the file is closed; `false` where
/// another process has one on any part of it.
///
/// QEMU holds such locks on every image that it has open, see `fcntl_locking(2)` and its
/// `file.locking`. They are of no use between two parts of one process.
///
/// # Errors
/// What fcntl(2) says otherwise, such as on a filesystem without locks.
pub fn take_record_lock(file: &File) -> std::io::Result<bool> {
    match rustix::fs::fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn holder(path: &Path) -> String {
    let read = || -> Option<String> {
        let (directory, name) = split(path).ok()?;
        let mut text = String::new();
        Directory::file(&directory, &name, Open::Read)
            .ok()?
            .take(HOLDER_LIMIT)
            .read_to_string(&mut text)
            .ok()?;
        (!text.is_empty()).then_some(text)
    };
    read().unwrap_or_else(|| UNKNOWN.to_owned())
}

/// Whether there is a process of the number that the lock's file has. Its number may have come
/// to another since; then that counts.
fn taker_lives(path: &Path) -> bool {
    let holder = holder(path);
    let number = holder
        .strip_prefix(TAKER)
        .and_then(|rest| rest.split(' ').next())
        .and_then(|number| number.parse().ok());
    number.is_some_and(|number| !matches!(ProcessIdentity::of(number), Ok(None)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Program;

    const NO_PATIENCE: Duration = Duration::ZERO;

    fn lock_file() -> (tempfile::TempDir, PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("volume.lock");
        (home, path)
    }

    #[test]
    fn a_second_taker_is_told_who_holds_it() {
        let (_home, path) = lock_file();
        let _held = Lock::acquire(&path, "volume resize pgdata", NO_PATIENCE).unwrap();
        let error = Lock::acquire(&path, "other", NO_PATIENCE).unwrap_err();
        assert!(
            error.to_string().contains("(volume resize pgdata)"),
            "{error}"
        );
    }

    #[test]
    fn a_dropped_lock_is_free_and_its_file_stays() {
        let (_home, path) = lock_file();
        drop(Lock::acquire(&path, "one", NO_PATIENCE).unwrap());
        assert!(!Lock::is_held(&path).unwrap());
        assert!(path.exists());
    }

    #[test]
    fn a_directory_is_a_lock_of_its_own() {
        let home = tempfile::tempdir().unwrap();
        let directory = Directory::open(home.path()).unwrap();
        let held = Lock::acquire_directory(&directory, NO_PATIENCE).unwrap();
        let second = Lock::acquire_directory(&directory, NO_PATIENCE).unwrap_err();
        assert!(matches!(second, LockError::Held { .. }), "{second}");
        drop(held);
        drop(Lock::acquire_directory(&directory, NO_PATIENCE).unwrap());
        assert!(directory.files().unwrap().is_empty());
    }

    #[test]
    fn a_lock_whose_file_takes_no_text_is_held_all_the_same() {
        // Writing to it fails as on a full filesystem (full(4)).
        let path = Path::new("/dev/full");
        let held = Lock::acquire(path, "volume delete pgdata", NO_PATIENCE).unwrap();
        assert!(Lock::is_held(path).unwrap());
        drop(held);
        assert!(!Lock::is_held(path).unwrap());
    }

    #[test]
    fn a_program_that_inherits_a_lock_holds_it_while_it_lives() {
        let (_home, path) = lock_file();
        let lock = Lock::acquire(&path, "mkfs", NO_PATIENCE).unwrap();
        let mut child = Program::find("sleep")
            .unwrap()
            .arg("60")
            .inherit(&lock)
            .unwrap()
            .spawn()
            .unwrap();
        drop(lock);
        assert!(Lock::is_held(&path).unwrap());
        child.kill();
        assert!(!Lock::is_held(&path).unwrap());
    }

    #[test]
    fn only_a_holder_whose_taker_is_gone_is_waited_for() {
        let (_home, path) = lock_file();
        Lock::await_orphans(&path, NO_PATIENCE).unwrap();
        let lock = Lock::acquire(&path, "mkfs", NO_PATIENCE).unwrap();
        Lock::await_orphans(&path, NO_PATIENCE).unwrap();
        // As if another process had taken it, which has ended since.
        let mut gone = Program::find("true").unwrap().spawn().unwrap();
        gone.wait().unwrap();
        let text = format!("{TAKER}{} (mkfs)", gone.pid());
        let mut file = &lock.file;
        file.set_len(0).unwrap();
        file.rewind().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let error = Lock::await_orphans(&path, NO_PATIENCE).unwrap_err();
        assert!(error.to_string().ends_with("(mkfs)"), "{error}");
        let waiting = thread::spawn({
            let path = path.clone();
            move || Lock::await_orphans(&path, PATIENCE)
        });
        drop(lock);
        waiting.join().unwrap().unwrap();
    }
}
