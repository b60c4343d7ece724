//! Disks that nobody uses, shown to programs such as e2fsck(8) as raw files.
//!
//! A raw file and a block device are that already. A qcow2 file is shown by a
//! qemu-storage-daemon(1) through FUSE, which takes an ordinary user no more than fusermount3(1).
//! Its mount is taken out of the directory tree as soon as the file is open, so that none stays
//! behind: programs reach it through our descriptor. The daemon ends when all who hold on to it
//! are gone ([`RawAccess::held`]), and holds the volume's lock as long as it lives: nobody takes
//! the volume for free while it writes, nor does it keep one for good, whoever is killed.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use serde_json::json;
use sistemo_host::directory::{self, Directory, FileError, Open};
use sistemo_host::lifeline::Lifeline;
use sistemo_host::lock::Lock;
use sistemo_host::process::ProcessIdentity;
use sistemo_host::program::{self, Program, Running};
use sistemo_model::Access;

use super::nodes::{Aio, Caching, Opening};
use super::{RELEASE_LIMIT, RELEASE_PAUSE, STILL_LOCKED};
use crate::VmmError;
use crate::contract::DiskLocation;

/// The program that shows a qcow2 file as a raw file.
const DAEMON: &str = "qemu-storage-daemon";
/// The program that takes away what it mounted.
const UNMOUNT: &str = "fusermount3";

const NODE: &str = "volume";
/// How long the daemon may take; it takes 6 ms on an idle host.
const START_LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(1);
const UNMOUNT_LIMIT: Duration = Duration::from_secs(30);
/// How long the daemon may take to write what it has in memory, after it was flushed.
const END_LIMIT: Duration = Duration::from_secs(60);
const MOST_WORDS: u64 = 4096;

/// A disk that programs can read and write as a raw file, for as long as this lives.
#[derive(Debug)]
pub struct RawAccess {
    path: PathBuf,
    shown: Option<Shown>,
}

/// What a daemon shows.
#[derive(Debug)]
struct Shown {
    file: Option<File>,
    lifeline: Option<Lifeline>,
    daemon: Running,
}

impl RawAccess {
    /// Makes a disk that no machine uses a raw file. Where that takes a daemon, it inherits
    /// `lock`, the volume's, and for an instant there is a file `name` in `directory`, which is
    /// ours alone; what a killed process left there of that name is removed.
    ///
    /// # Errors
    /// [`VmmError::NotInstalled`], [`VmmError::ShowProgram`], [`VmmError::Show`] with the
    /// daemon's own words, and [`VmmError::File`]. Nothing is left running then.
    pub fn open(
        location: &DiskLocation,
        access: Access,
        directory: &Directory,
        name: &str,
        lock: &Lock,
    ) -> Result<RawAccess, VmmError> {
        let shown = match location {
            DiskLocation::RawFile(path) | DiskLocation::BlockDevice(path) => {
                return Ok(RawAccess {
                    path: path.clone(),
                    shown: None,
                });
            }
            DiskLocation::Qcow2File(_) => {
                show_when_released(location, access, directory, name, lock)?
            }
        };
        // Not /proc/self: it is others who open it.
        let number = shown.file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        Ok(RawAccess {
            path: format!("/proc/{}/fd/{number}", std::process::id()).into(),
            shown: Some(shown),
        })
    }

    /// The raw file. It has the disk's size, and must not be replaced.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a program must inherit that is to work on the file to its end also where this
    /// process is killed.
    #[must_use]
    pub fn held(&self) -> Option<BorrowedFd<'_>> {
        let lifeline = self.shown.as_ref()?.lifeline.as_ref()?;
        Some(lifeline.as_fd())
    }

    /// Ends the access and waits until all that was written is on disk and nobody has the
    /// disk's file open.
    ///
    /// # Errors
    /// Where not all could be written; what the disk holds is then not certain.
    pub fn close(mut self) -> Result<(), VmmError> {
        let Some(mut shown) = self.shown.take() else {
            return Ok(());
        };
        let flushed = match &shown.file {
            Some(file) => directory::flush(&self.path, file),
            None => Ok(()),
        };
        shown.end();
        Ok(flushed?)
    }
}

impl Shown {
    fn end(&mut self) {
        self.file = None;
        self.lifeline = None;
        let gone = ProcessIdentity::of(self.daemon.pid())
            .and_then(|process| process.map_or(Ok(true), |p| p.wait_gone(Some(END_LIMIT))));
        if !matches!(gone, Ok(true)) {
            tracing::warn!(pid = self.daemon.pid(), "{DAEMON} does not end, killing it");
        }
        self.daemon.kill();
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.end();
    }
}

/// Shows a disk, and tries again while the QEMU that used it last, which is gone, has not let go
/// of it.
fn show_when_released(
    location: &DiskLocation,
    access: Access,
    directory: &Directory,
    name: &str,
    lock: &Lock,
) -> Result<Shown, VmmError> {
    let deadline = Instant::now() + RELEASE_LIMIT;
    loop {
        match show(location, access, directory, name, lock) {
            Err(VmmError::Show { words, .. })
                if words.contains(STILL_LOCKED) && Instant::now() < deadline =>
            {
                tracing::info!(%words, "a disk is still locked, trying again");
                thread::sleep(RELEASE_PAUSE);
            }
            other => return other,
        }
    }
}

fn show(
    location: &DiskLocation,
    access: Access,
    directory: &Directory,
    name: &str,
    lock: &Lock,
) -> Result<Shown, VmmError> {
    let disk = location.path();
    // Looked for first: without it an ordinary user's mount would fail with other words.
    let unmount = find(UNMOUNT)?;
    remove_place(&unmount, directory, name, disk)?;
    let place = directory.file(name, Open::CreateNew)?;
    let place_path = std::path::absolute(directory.path_of(name));
    let place_path = place_path.unwrap_or_else(|_| directory.path_of(name));
    let shown = Attempt {
        disk,
        directory,
        name,
        place: &place,
        place_path: &place_path,
    }
    .run(location, access, lock);
    // Mounted or not: neither is wanted in the tree any more.
    let removed = remove_place(&unmount, directory, name, disk);
    let shown = shown?;
    removed?;
    Ok(shown)
}

struct Attempt<'a> {
    disk: &'a Path,
    directory: &'a Directory,
    name: &'a str,
    /// The empty file that is mounted over.
    place: &'a File,
    place_path: &'a Path,
}

impl Attempt<'_> {
    fn run(&self, location: &DiskLocation, access: Access, lock: &Lock) -> Result<Shown, VmmError> {
        let opening = Opening {
            aio: Aio::Threads,
            // Programs read and write little pieces. All is flushed at the end.
            caching: Caching::Cached,
            access,
        };
        let node = opening.node(NODE, location)?;
        let Some(place) = self.place_path.to_str() else {
            let path = self.place_path.to_owned();
            return Err(VmmError::Path { path });
        };
        let export = json!({
            "type": "fuse",
            "id": "raw",
            "node-name": NODE,
            "mountpoint": place,
            "writable": access == Access::ReadWrite,
            "allow-other": "off",
        });
        let program_failed = |source| VmmError::ShowProgram {
            disk: self.disk.to_owned(),
            source,
        };
        let mut said = rustix::fs::memfd_create(DAEMON, MemfdFlags::CLOEXEC)
            .map(File::from)
            .map_err(|error| FileError::new("make the log of", self.disk, error))?;
        let output = said
            .try_clone()
            .map_err(|error| FileError::new("make the log of", self.disk, error))?;
        let daemon = find(DAEMON)?
            .args(["--blockdev", &node.to_string()])
            .args(["--export", &export.to_string()])
            .inherit(lock)
            .map_err(program_failed)?;
        let (daemon, lifeline) = Lifeline::spawn(daemon, output).map_err(program_failed)?;
        let mut shown = Shown {
            file: None,
            lifeline: Some(lifeline),
            daemon,
        };
        match self.wait(&mut shown.daemon, access) {
            Ok(file) => {
                shown.file = Some(file);
                Ok(shown)
            }
            Err(seen) => {
                shown.end();
                let words = words_in(&mut said).unwrap_or_default();
                Err(VmmError::Show {
                    disk: self.disk.to_owned(),
                    words: if words.is_empty() { seen } else { words },
                })
            }
        }
    }

    /// Opens the file once it is another than the empty one; else says what was seen.
    fn wait(&self, daemon: &mut Running, access: Access) -> Result<File, String> {
        let how = match access {
            Access::ReadWrite => Open::ReadWrite,
            Access::ReadOnly => Open::Read,
        };
        let device = |file: &File| file.metadata().map(|meta| meta.dev());
        let empty = device(self.place).map_err(|error| error.to_string())?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let file = self.directory.file(self.name, how);
            let file = file.map_err(|error| format!("{error}: {}", error.source))?;
            if device(&file).map_err(|error| error.to_string())? != empty {
                return Ok(file);
            }
            match daemon.try_wait() {
                Ok(None) if Instant::now() < deadline => thread::sleep(PAUSE),
                Ok(None) => {
                    let limit = START_LIMIT.as_secs();
                    return Err(format!("{DAEMON} was not ready within {limit} s"));
                }
                Ok(Some(status)) => return Err(format!("{DAEMON} ended ({status})")),
                Err(error) => return Err(format!("{DAEMON} was lost: {error}")),
            }
        }
    }
}

/// Removes the file that is mounted over, and first what is mounted there, which stays for those
/// who have it open.
fn remove_place(
    unmount: &Program,
    directory: &Directory,
    name: &str,
    disk: &Path,
) -> Result<(), VmmError> {
    match directory.unlink(name) {
        // A mount point cannot be unlinked (rename(2), EBUSY).
        Err(error) if error.source.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
        other => return Ok(other.map(drop)?),
    }
    Program::at(unmount.path())
        .args(["-u", "-z", "-q"])
        .arg(directory.path_of(name))
        .time_limit(UNMOUNT_LIMIT)
        .run()
        .map_err(|source| VmmError::ShowProgram {
            disk: disk.to_owned(),
            source,
        })?;
    Ok(directory.unlink(name).map(drop)?)
}

fn find(name: &str) -> Result<Program, VmmError> {
    program::locate(name)
        .map(|path| Program::at(&path))
        .ok_or_else(|| VmmError::NotInstalled {
            program: name.to_owned(),
        })
}

/// What the daemon said, without its name in front.
fn words_in(said: &mut File) -> io::Result<String> {
    let mut text = String::new();
    said.rewind()?;
    said.take(MOST_WORDS).read_to_string(&mut text)?;
    let prefix = format!("{DAEMON}: ");
    let lines = text
        .lines()
        .map(|line| line.strip_prefix(&prefix).unwrap_or(line));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}
