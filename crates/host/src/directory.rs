//! Files in one directory, opened without following links and published atomically.
//!
//! Everything that must survive a power cut goes through here: a file is written under a
//! temporary name, flushed, renamed into place, and then its directory is flushed.
//! See rename(2) and fsync(2); `O_NOFOLLOW` is in open(2).

#![expect(
    clippy::disallowed_methods,
    reason = "this is the one place that renames and flushes files"
)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;

use crate::Changed;

/// A file operation that failed, with the path it was about.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    /// What was tried: `open`, `flush`, `rename`, …
    pub action: &'static str,
    /// What it was tried on.
    pub path: PathBuf,
    /// What the system answered.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// Pairs what the system answered with what was tried on which path.
    pub fn new(
        action: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> FileError {
        FileError {
            action,
            path: path.into(),
            source: source.into(),
        }
    }

    /// Whether the file was missing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// Whether the filesystem had no room for it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.source.raw_os_error() == Some(Errno::NOSPC.raw_os_error())
    }

    /// Whether the file was there already.
    #[must_use]
    pub fn is_already_there(&self) -> bool {
        self.source.kind() == io::ErrorKind::AlreadyExists
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// An existing file, to read.
    Read,
    /// An existing file, to read and write.
    ReadWrite,
    /// A file that does not exist yet, to read and write.
    CreateNew,
    /// A file that may or may not exist, to read and write; what it holds stays.
    CreateOrOpen,
}

/// An open directory. Operations name files in it, never paths.
#[derive(Debug)]
pub struct Directory {
    handle: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens an existing directory.
    ///
    /// # Errors
    /// Where it is missing, not a directory, or not accessible.
    pub fn open(path: &Path) -> Result<Directory, FileError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| FileError::new("open directory", path, error))?;
        Ok(Directory {
            handle,
            path: path.to_owned(),
        })
    }

    /// Creates the last component of `path` with mode 0700 if it is missing, and opens it.
    ///
    /// # Errors
    /// Where the parent is missing or not writable, or `path` is not a directory.
    pub fn create(path: &Path) -> Result<(Directory, Changed), FileError> {
        let changed = match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) => Changed::Yes,
            Err(Errno::EXIST) => Changed::No,
            Err(error) => return Err(FileError::new("create directory", path, error)),
        };
        let directory = Directory::open(path)?;
        if changed == Changed::Yes
            && let Some(parent) = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty())
        {
            Directory::open(parent)?.flush()?;
        }
        Ok((directory, changed))
    }

    /// Opens a directory in it; refuses a symbolic link.
    ///
    /// # Errors
    /// Where it is missing, not a directory, or not accessible.
    pub fn subdirectory(&self, name: &str) -> Result<Directory, FileError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = rustix::fs::openat(&self.handle, name, flags, Mode::empty())
            .map_err(|error| self.error("open directory", name, error))?;
        Ok(Directory {
            handle,
            path: self.path_of(name),
        })
    }

    /// Makes a directory in it with mode 0700, without waiting for the disk.
    ///
    /// # Errors
    /// What mkdir(2) says, a name that is taken included ([`FileError::is_already_there`]).
    pub fn make_subdirectory(&self, name: &str) -> Result<(), FileError> {
        rustix::fs::mkdirat(&self.handle, name, Mode::RWXU)
            .map_err(|error| self.error("create directory", name, error))
    }

    /// Removes an empty directory without waiting for the disk; one that is not there is no
    /// error.
    ///
    /// # Errors
    /// What rmdir(2) says.
    pub fn remove_subdirectory(&self, name: &str) -> Result<Changed, FileError> {
        match rustix::fs::unlinkat(&self.handle, name, AtFlags::REMOVEDIR) {
            Ok(()) => Ok(Changed::Yes),
            Err(Errno::NOENT) => Ok(Changed::No),
            Err(error) => Err(self.error("remove directory", name, error)),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it, for messages and for programs that take one.
    #[must_use]
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn error(&self, action: &'static str, name: &str, error: Errno) -> FileError {
        FileError::new(action, self.path_of(name), error)
    }

    /// Opens a file with mode 0600 where it is made; refuses a symbolic link.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn file(&self, name: &str, how: Open) -> Result<File, FileError> {
        let base = OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let (flags, action) = match how {
            Open::Read => (OFlags::RDONLY, "open"),
            Open::ReadWrite => (OFlags::RDWR, "open"),
            Open::CreateNew => (OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, "create"),
            Open::CreateOrOpen => (OFlags::RDWR | OFlags::CREATE, "open"),
        };
        rustix::fs::openat(&self.handle, name, base | flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(|error| self.error(action, name, error))
    }

    /// Makes a file that has no name and is gone when it is closed, to read and write. Where the
    /// filesystem knows no such files (open(2), `O_TMPFILE`), it has the name `scratch` for a
    /// moment, and a crash in that moment leaves it.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn nameless_file(&self, scratch: &str) -> Result<File, FileError> {
        if let Some(file) = self.unnamed_file()? {
            return Ok(file);
        }
        let file = self.file(scratch, Open::CreateNew)?;
        let _ = self.unlink(scratch)?;
        Ok(file)
    }

    /// Makes a file that has no name until [`Directory::link`] gives it one, to read and write,
    /// with mode 0600; `None` where the filesystem knows no such files.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub(crate) fn unnamed_file(&self) -> Result<Option<File>, FileError> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.handle, ".", flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(Some(File::from(file))),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => Ok(None),
            Err(error) => Err(FileError::new("create a file in", &self.path, error)),
        }
    }

    /// Gives a file without a name one that is free, durably.
    ///
    /// # Errors
    /// Where the file cannot be flushed, or the name is taken ([`FileError::is_already_there`]).
    pub(crate) fn link(&self, file: &File, name: &str) -> Result<(), FileError> {
        self.flush_file(name, file)?;
        // The way that needs no privilege, from open(2).
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::linkat(CWD, path, &self.handle, name, AtFlags::SYMLINK_FOLLOW)
            .map_err(|error| self.error("publish", name, error))?;
        self.flush()
    }

    /// Reads a whole file of at most `limit` bytes.
    ///
    /// # Errors
    /// Where it cannot be read or is longer.
    pub fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, FileError> {
        let mut content = Vec::new();
        let mut file = self.file(name, Open::Read)?.take(limit + 1);
        let fail = |error| FileError::new("read", self.path_of(name), error);
        file.read_to_end(&mut content).map_err(fail)?;
        if content.len() as u64 > limit {
            return Err(fail(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("the file is larger than {limit} bytes"),
            )));
        }
        Ok(content)
    }

    /// Replaces a file's content durably: afterwards, and after a crash in the middle, the file
    /// is whole, old or new.
    ///
    /// A crash can leave `name` with `.part` appended; the next replacement overwrites it.
    ///
    /// # Errors
    /// Where the new content cannot be written; the old content then stays.
    pub fn replace(&self, name: &str, content: &[u8]) -> Result<(), FileError> {
        self.replace_unflushed(name, content)?;
        self.flush()
    }

    /// Replaces a file's content as [`Directory::replace`] does, without waiting for the
    /// directory: after a crash the file is whole, old or new, and it is the new one once the
    /// directory has been flushed, by whatever operation.
    ///
    /// For a file that is of no use before another one is published beside it.
    ///
    /// # Errors
    /// As [`Directory::replace`].
    pub fn replace_unflushed(&self, name: &str, content: &[u8]) -> Result<(), FileError> {
        let part = self.prepare(name, content)?;
        self.rename_unflushed(&part, name)
            .inspect_err(|_| drop(self.unlink(&part)))
    }

    /// Writes, flushed, what is to replace a file, and says under which name:
    /// [`Directory::rename_unflushed`] from there to `name` then cannot fail for want of space.
    ///
    /// A crash leaves what a replacement leaves.
    ///
    /// # Errors
    /// Where the new content cannot be written.
    pub fn prepare(&self, name: &str, content: &[u8]) -> Result<String, FileError> {
        let part = format!("{name}.part");
        let mut file = self.file(&part, Open::CreateOrOpen)?;
        let written = file
            .set_len(0)
            .and_then(|()| file.write_all(content))
            .map_err(|error| FileError::new("write", self.path_of(&part), error))
            .and_then(|()| self.flush_file(&part, &file));
        if let Err(error) = written {
            // The error that matters is the one above; a part that stays is overwritten next time.
            let _ = self.unlink(&part);
            return Err(error);
        }
        Ok(part)
    }

    /// Replaces a file's content as [`Directory::replace`] does, for a file that is not ours
    /// alone: the new one has the old one's mode, and its owner and group where this process may
    /// give them. A file that was not there has mode 0600.
    ///
    /// # Errors
    /// As [`Directory::replace`].
    pub fn replace_keeping_access(&self, name: &str, content: &[u8]) -> Result<(), FileError> {
        let old = match rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return self.replace(name, content),
            Err(error) => return Err(self.error("look up", name, error)),
        };
        let part = format!("{name}.part");
        let file = self.file(&part, Open::CreateOrOpen)?;
        let (owner, group) = (Uid::from_raw(old.st_uid), Gid::from_raw(old.st_gid));
        // An ordinary user cannot give a file away; then it is theirs.
        let _ = rustix::fs::fchown(&file, Some(owner), Some(group));
        if let Err(error) = rustix::fs::fchmod(&file, Mode::from_raw_mode(old.st_mode)) {
            let _ = self.unlink(&part);
            return Err(self.error("set the mode of", &part, error));
        }
        drop(file);
        self.replace(name, content)
    }

    /// Gives a flushed temporary file its final name, durably, where that name is free.
    ///
    /// # Errors
    /// Where the file cannot be flushed, or the name is taken ([`FileError::is_already_there`]).
    pub fn publish(&self, temporary: &str, name: &str) -> Result<(), FileError> {
        let file = self.file(temporary, Open::Read)?;
        self.flush_file(temporary, &file)?;
        self.publish_unflushed(temporary, name)?;
        self.flush()
    }

    /// Gives a temporary file that the caller has flushed its final name where that is free,
    /// without waiting for the directory: it is durable once the directory has been flushed.
    ///
    /// # Errors
    /// Where the name is taken ([`FileError::is_already_there`]).
    pub fn publish_unflushed(&self, temporary: &str, name: &str) -> Result<(), FileError> {
        let renamed = rustix::fs::renameat_with(
            &self.handle,
            temporary,
            &self.handle,
            name,
            RenameFlags::NOREPLACE,
        );
        match renamed {
            Ok(()) => Ok(()),
            // NFS and a few others do not know the flag; our locks keep the name ours.
            Err(Errno::INVAL | Errno::NOSYS) if !self.contains(name)? => {
                self.rename_unflushed(temporary, name)
            }
            Err(Errno::INVAL | Errno::NOSYS) => Err(self.error("publish", name, Errno::EXIST)),
            Err(error) => Err(self.error("publish", name, error)),
        }
    }

    /// Renames a file, replacing what had the new name, without waiting for the directory: after
    /// a crash it has the old name or the new one, and the new one once the directory has been
    /// flushed.
    ///
    /// # Errors
    /// What rename(2) says.
    pub fn rename_unflushed(&self, from: &str, to: &str) -> Result<(), FileError> {
        rustix::fs::renameat(&self.handle, from, &self.handle, to)
            .map_err(|error| self.error("rename into place", to, error))
    }

    /// Moves a file or directory of `from` into this directory where the name is free there,
    /// without waiting for the disk and without flushing what is moved.
    ///
    /// # Errors
    /// What rename(2) says, a name that is taken included ([`FileError::is_already_there`]).
    pub fn move_in(&self, from: &Directory, old: &str, name: &str) -> Result<(), FileError> {
        let flags = RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(&from.handle, old, &self.handle, name, flags)
            .map_err(|error| self.error("move into place", name, error))
    }

    /// Gives what is in `other` the name of what is here and the other way round, in one step,
    /// without waiting for the disk.
    ///
    /// # Errors
    /// What rename(2) says; nothing has changed then.
    pub fn exchange(&self, name: &str, other: &Directory, theirs: &str) -> Result<(), FileError> {
        let flags = RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(&self.handle, name, &other.handle, theirs, flags)
            .map_err(|error| self.error("exchange", name, error))
    }

    /// Renames a file durably, replacing what had the new name.
    ///
    /// # Errors
    /// What rename(2) says.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), FileError> {
        self.rename_unflushed(from, to)?;
        self.flush()
    }

    /// Removes a file durably; one that is not there is no error.
    ///
    /// # Errors
    /// What unlink(2) says.
    pub fn remove(&self, name: &str) -> Result<Changed, FileError> {
        let changed = self.unlink(name)?;
        if changed == Changed::Yes {
            self.flush()?;
        }
        Ok(changed)
    }

    /// Removes a file without waiting for the disk; one that is not there is no error.
    ///
    /// # Errors
    /// What unlink(2) says.
    pub fn unlink(&self, name: &str) -> Result<Changed, FileError> {
        match rustix::fs::unlinkat(&self.handle, name, AtFlags::empty()) {
            Ok(()) => Ok(Changed::Yes),
            Err(Errno::NOENT) => Ok(Changed::No),
            Err(error) => Err(self.error("remove", name, error)),
        }
    }

    /// Whether a file of that name is there, of whatever kind.
    ///
    /// # Errors
    /// Where the directory cannot be searched.
    pub fn contains(&self, name: &str) -> Result<bool, FileError> {
        match rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(self.error("look up", name, error)),
        }
    }

    /// The names of the regular files in it, sorted. Names that are not UTF-8 are left out:
    /// nothing of ours has one.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn files(&self) -> Result<Vec<String>, FileError> {
        self.list(|name, kind| match kind {
            FileType::RegularFile => Ok(true),
            // Some filesystems do not say; then the file is asked.
            FileType::Unknown => self.is_regular(name),
            _ => Ok(false),
        })
    }

    /// The names of all that is in it, of whatever kind, sorted, but `.` and `..`. Names that
    /// are not UTF-8 are left out.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn names(&self) -> Result<Vec<String>, FileError> {
        self.list(|name, _| Ok(name != "." && name != ".."))
    }

    fn list(
        &self,
        wanted: impl Fn(&str, FileType) -> Result<bool, FileError>,
    ) -> Result<Vec<String>, FileError> {
        let fail = |error: Errno| FileError::new("list", &self.path, error);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.handle).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().to_bytes().to_vec();
            let Ok(name) = String::from_utf8(name) else {
                continue;
            };
            if wanted(&name, entry.file_type())? {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn is_regular(&self, name: &str) -> Result<bool, FileError> {
        let stat = rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| self.error("look up", name, error))?;
        Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
    }

    /// Waits until a file's content is on disk.
    ///
    /// # Errors
    /// What fsync(2) says; the content must then be taken for lost.
    pub fn flush_file(&self, name: &str, file: &File) -> Result<(), FileError> {
        rustix::fs::fsync(file).map_err(|error| self.error("flush", name, error))
    }

    /// Waits until the directory itself, that is which names it holds, is on disk.
    ///
    /// # Errors
    /// What fsync(2) says.
    pub fn flush(&self) -> Result<(), FileError> {
        rustix::fs::fsync(&self.handle)
            .map_err(|error| FileError::new("flush directory", &self.path, error))
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// Waits until a file's content is on disk.
///
/// # Errors
/// What fsync(2) says; the content must then be taken for lost.
pub fn flush(path: &Path, file: &File) -> Result<(), FileError> {
    rustix::fs::fsync(file).map_err(|error| FileError::new("flush", path, error))
}

/// Splits a path into its directory, opened, and its last component.
///
/// # Errors
/// Where the path has no last component in UTF-8, or its directory cannot be opened.
pub fn split(path: &Path) -> Result<(Directory, String), FileError> {
    let name = path
        .file_name()
        .map(OsString::from)
        .and_then(|name| name.into_string().ok());
    let Some(name) = name else {
        return Err(FileError::new(
            "use as a file",
            path,
            io::ErrorKind::InvalidFilename,
        ));
    };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Ok((Directory::open(parent)?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> (tempfile::TempDir, Directory) {
        let home = tempfile::tempdir().unwrap();
        let directory = Directory::open(home.path()).unwrap();
        (home, directory)
    }

    #[test]
    fn replace_leaves_only_the_new_content() {
        let (_home, directory) = directory();
        directory.replace("a", b"one, which is longer").unwrap();
        directory.replace("a", b"two").unwrap();
        assert_eq!(directory.read("a", 100).unwrap(), b"two");
        assert_eq!(directory.files().unwrap(), ["a"]);
    }

    #[test]
    fn a_replacement_can_keep_who_may_read_the_file() {
        use std::os::unix::fs::PermissionsExt;
        let (home, directory) = directory();
        let mode = || {
            let meta = std::fs::metadata(home.path().join("a")).unwrap();
            meta.permissions().mode() & 0o777
        };
        directory.replace_keeping_access("a", b"one").unwrap();
        assert_eq!(mode(), 0o600);
        let readable = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(home.path().join("a"), readable).unwrap();
        directory.replace_keeping_access("a", b"two").unwrap();
        assert_eq!(mode(), 0o644);
        assert_eq!(directory.read("a", 9).unwrap(), b"two");
        assert_eq!(directory.files().unwrap(), ["a"]);
    }

    #[test]
    fn an_unflushed_replacement_is_seen_at_once_and_leaves_no_part() {
        let (home, directory) = directory();
        directory.replace_unflushed("a", b"one").unwrap();
        directory.replace_unflushed("a", b"two").unwrap();
        assert_eq!(directory.read("a", 9).unwrap(), b"two");
        std::fs::create_dir(home.path().join("taken")).unwrap();
        assert!(directory.replace_unflushed("taken", b"x").is_err());
        assert_eq!(directory.files().unwrap(), ["a"]);
    }

    #[test]
    fn a_nameless_file_is_never_seen() {
        let (_home, directory) = directory();
        let mut file = directory.nameless_file("scratch").unwrap();
        file.write_all(b"content").unwrap();
        assert!(directory.files().unwrap().is_empty());
    }

    #[test]
    fn a_prepared_replacement_changes_nothing_until_it_is_renamed() {
        let (_home, directory) = directory();
        directory.replace("a", b"old").unwrap();
        let part = directory.prepare("a", b"new").unwrap();
        assert_eq!(directory.read("a", 9).unwrap(), b"old");
        directory.rename_unflushed(&part, "a").unwrap();
        assert_eq!(directory.read("a", 9).unwrap(), b"new");
        assert_eq!(directory.files().unwrap(), ["a"]);
    }

    #[test]
    fn publish_refuses_a_taken_name_and_keeps_both_files() {
        let (_home, directory) = directory();
        directory.replace("there", b"old").unwrap();
        directory.replace("new.tmp", b"new").unwrap();
        assert!(
            directory
                .publish("new.tmp", "there")
                .unwrap_err()
                .is_already_there()
        );
        assert_eq!(directory.read("there", 9).unwrap(), b"old");
        directory.publish("new.tmp", "free").unwrap();
        assert_eq!(directory.files().unwrap(), ["free", "there"]);
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let (home, directory) = directory();
        std::os::unix::fs::symlink("/etc/passwd", home.path().join("link")).unwrap();
        assert!(directory.file("link", Open::Read).is_err());
        assert!(directory.file("link", Open::ReadWrite).is_err());
        assert!(directory.files().unwrap().is_empty());
    }

    #[test]
    fn directories_are_made_moved_exchanged_and_removed() {
        let (home, directory) = directory();
        directory.make_subdirectory("work").unwrap();
        let again = directory.make_subdirectory("work").unwrap_err();
        assert!(again.is_already_there(), "{again}");
        let work = directory.subdirectory("work").unwrap();
        for (name, content) in [("one", b"1"), ("two", b"2")] {
            work.make_subdirectory(name).unwrap();
            let inner = work.subdirectory(name).unwrap();
            inner.replace("content", content).unwrap();
        }
        directory.move_in(&work, "one", "one").unwrap();
        let taken = directory.move_in(&work, "two", "one").unwrap_err();
        assert!(taken.is_already_there(), "{taken}");
        directory.exchange("one", &work, "two").unwrap();
        let content = |directory: &Directory, name| {
            let inner = directory.subdirectory(name).unwrap();
            inner.read("content", 9).unwrap()
        };
        assert_eq!(content(&directory, "one"), b"2");
        assert_eq!(content(&work, "two"), b"1");
        assert_eq!(directory.names().unwrap(), ["one", "work"]);
        assert!(directory.files().unwrap().is_empty());
        assert!(work.remove_subdirectory("two").is_err());
        let two = work.subdirectory("two").unwrap();
        assert_eq!(two.unlink("content").unwrap(), Changed::Yes);
        assert_eq!(work.remove_subdirectory("two").unwrap(), Changed::Yes);
        assert_eq!(work.remove_subdirectory("two").unwrap(), Changed::No);
        std::os::unix::fs::symlink(home.path(), home.path().join("link")).unwrap();
        assert!(directory.subdirectory("link").is_err());
    }

    #[test]
    fn removing_twice_changes_once() {
        let (_home, directory) = directory();
        directory.replace("a", b"").unwrap();
        assert_eq!(directory.remove("a").unwrap(), Changed::Yes);
        assert_eq!(directory.remove("a").unwrap(), Changed::No);
    }

    #[test]
    fn a_read_is_bounded() {
        let (_home, directory) = directory();
        directory.replace("a", &[0; 11]).unwrap();
        assert!(directory.read("a", 10).is_err());
        assert!(directory.read("a", 11).is_ok());
    }

    #[test]
    fn create_makes_only_the_last_component() {
        let (home, _) = directory();
        assert!(Directory::create(&home.path().join("x/y")).is_err());
        assert_eq!(
            Directory::create(&home.path().join("x")).unwrap().1,
            Changed::Yes
        );
        assert_eq!(
            Directory::create(&home.path().join("x")).unwrap().1,
            Changed::No
        );
    }
}
