//! Filesystems in files: making them, mounting them over a loop device, and knowing them again.
//!
//! What is mounted where is in `/proc/self/mountinfo` (proc(5)), the file beneath a loop device in
//! `/sys/block/loopN/loop/backing_file`, which ordinary users can read too. mount(8) sets the loop
//! device up so that the kernel frees it with the last use of its filesystem, and takes the one
//! there is where the file has one already: two filesystems over one file would destroy it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;

use crate::directory::FileError;
use crate::program::{Program, ProgramError};

/// A kind of filesystem that can be made in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilesystemKind {
    /// XFS with reflinks.
    Xfs,
    /// btrfs.
    Btrfs,
}

impl FilesystemKind {
    /// What mount(8) calls it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            FilesystemKind::Xfs => "xfs",
            FilesystemKind::Btrfs => "btrfs",
        }
    }
}

/// Something that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// What it is mounted from, a device for most filesystems.
    pub source: PathBuf,
    /// The kind of filesystem, as proc(5) has it.
    pub kind: String,
}

impl Mounted {
    /// Whether it comes from a loop device over this file, whatever path leads to either.
    ///
    /// # Errors
    /// Where the file cannot be looked up.
    pub fn is_of_file(&self, file: &Path) -> io::Result<bool> {
        let Some(beneath) = file_beneath(&self.source)? else {
            return Ok(false);
        };
        let wanted = fs::metadata(file)?;
        // One that was deleted, or is in another mount namespace, is not ours.
        Ok(fs::metadata(beneath)
            .is_ok_and(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino())))
    }
}

/// What is mounted at exactly this path, the last where several are; `None` where the path is no
/// mount point.
///
/// # Errors
/// Where the path's directory or /proc cannot be read.
pub fn mounted_at(path: &Path) -> io::Result<Option<Mounted>> {
    let path = match (path.parent(), path.file_name()) {
        // Not the path itself: where its filesystem is broken, even looking at it fails.
        (Some(parent), Some(name)) => fs::canonicalize(parent)?.join(name),
        _ => path.to_owned(),
    };
    Ok(last_mount(&fs::read("/proc/self/mountinfo")?, &path))
}

fn last_mount(mountinfo: &[u8], path: &Path) -> Option<Mounted> {
    let mut lines = mountinfo.rsplit(|byte| *byte == b'\n');
    lines.find_map(|line| mount_of_line(line, path))
}

/// The mount in a line of mountinfo, where its mount point is the path.
fn mount_of_line(line: &[u8], path: &Path) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ');
    if unescape(fields.nth(4)?) != path.as_os_str().as_bytes() {
        return None;
    }
    // A number of optional fields that ends with a hyphen.
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = std::ffi::OsString::from_vec(unescape(fields.next()?)).into();
    Some(Mounted { source, kind })
}

/// A field of mountinfo as it is meant: white space and backslashes are written in octal there.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut meant = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        meant.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    meant
}

/// The file beneath a loop device; `None` where the device is no loop device, or has none.
fn file_beneath(device: &Path) -> io::Result<Option<PathBuf>> {
    let Some(name) = device.file_name().filter(|_| device.starts_with("/dev")) else {
        return Ok(None);
    };
    let attribute = Path::new("/sys/block").join(name).join("loop/backing_file");
    let mut text = match fs::read(attribute) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if text.last() == Some(&b'\n') {
        text.pop();
    }
    Ok(Some(std::ffi::OsString::from_vec(text).into()))
}

/// Makes a filesystem in a file, as large as the file is. What was in the file is lost.
///
/// The program that does it inherits `lock`, so that nobody else works on the file while it lives.
/// A crash leaves a file that holds no filesystem, or half of one.
///
/// # Errors
/// Where the program is not installed or fails.
pub fn make_filesystem(
    kind: FilesystemKind,
    file: &Path,
    lock: &impl AsFd,
) -> Result<(), ProgramError> {
    let program = match kind {
        // Without it the pools on it have no use for their own filesystem; said even though it is
        // the default, for the default of others (mkfs.xfs(8)).
        FilesystemKind::Xfs => Program::find("mkfs.xfs")?.args(["-q", "-f", "-m", "reflink=1"]),
        FilesystemKind::Btrfs => Program::find("mkfs.btrfs")?.args(["-q", "-f"]),
    };
    program.arg(file).inherit(lock)?.run_undisturbed().map(drop)
}

/// Mounts the filesystem in a file: with discards, so that what is freed in it is freed in the
/// file, and without the file's pages in memory twice where the host allows that. Needs root.
///
/// A crash leaves it mounted or not; nothing of the loop device stays without the mount.
///
/// # Errors
/// Where mount(8) fails.
pub fn mount_file(
    kind: FilesystemKind,
    file: &Path,
    mount_point: &Path,
    lock: &impl AsFd,
) -> Result<(), ProgramError> {
    Program::find("mount")?
        .args(["-t", kind.as_str(), "-o"])
        .arg("loop,discard,noatime,nodev,noexec,nosuid")
        .arg("--")
        .args([file, mount_point])
        .inherit(lock)?
        .run_undisturbed()?;
    // Only faster: a host whose disk has sectors of 4 KiB refuses it.
    if let (Ok(Some(mounted)), Ok(losetup)) = (mounted_at(mount_point), Program::find("losetup")) {
        let _ = losetup
            .arg("--direct-io=on")
            .arg(mounted.source)
            .run_undisturbed();
    }
    Ok(())
}

/// Makes a mounted filesystem as large as the file beneath it is now, which has grown. Needs root.
/// Where it has that size already, nothing happens.
///
/// # Errors
/// Where one of the programs that it takes is not installed or fails.
pub fn grow_filesystem(
    kind: FilesystemKind,
    mounted: &Mounted,
    mount_point: &Path,
    lock: &impl AsFd,
) -> Result<(), ProgramError> {
    Program::find("losetup")?
        .arg("--set-capacity")
        .arg(&mounted.source)
        .inherit(lock)?
        .run_undisturbed()?;
    let program = match kind {
        FilesystemKind::Xfs => Program::find("xfs_growfs")?.arg("-d"),
        FilesystemKind::Btrfs => {
            Program::find("btrfs")?.args(["filesystem", "resize", "--", "max"])
        }
    };
    let program = program.arg(mount_point).inherit(lock)?;
    program.run_undisturbed().map(drop)
}

/// Takes a filesystem away from its mount point when all that was written is on disk. What this
/// process itself has open in it stays usable, and until it is closed the filesystem lives on
/// unseen; mounted again meanwhile, it is the same. Needs root.
///
/// # Errors
/// Where it cannot be written or unmounted.
pub fn detach(mount_point: &Path) -> Result<(), FileError> {
    let root = File::open(mount_point).map_err(|e| FileError::new("open", mount_point, e))?;
    rustix::fs::syncfs(&root).map_err(|e| FileError::new("flush", mount_point, e))?;
    drop(root);
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    rustix::mount::unmount(mount_point, flags)
        .map_err(|error| FileError::new("unmount", mount_point, error))
}

/// Who has files or directories open below a mount point: other processes, as `process 123
/// (qemu-system-x86)`, and this one, as `this process`, where it has more open than the mount
/// point itself. Processes of other users are seen by root alone.
///
/// # Errors
/// Where /proc cannot be read.
pub fn users(mount_point: &Path) -> io::Result<Vec<String>> {
    let mount_point = fs::canonicalize(mount_point)?;
    let mut users = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let own = pid == std::process::id();
        let is_use =
            |path: &Path| path.starts_with(&mount_point) && !(own && *path == *mount_point);
        if opened_by(&entry.path()).iter().any(|path| is_use(path)) {
            users.push(if own {
                "this process".to_owned()
            } else {
                let command = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                format!("process {pid} ({})", command.trim())
            });
        }
    }
    Ok(users)
}

/// What a process has open, as far as we may see; nothing of one that ended meanwhile.
fn opened_by(process: &Path) -> Vec<PathBuf> {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten();
    let links = descriptors.flatten().map(|descriptor| descriptor.path());
    let links = links.chain(["cwd", "root"].map(|name| process.join(name)));
    links.filter_map(|link| fs::read_link(link).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_whole_path_and_the_last_one_counts() {
        let mountinfo = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            30 22 0:42 / /srv/vm rw shared:2 master:1 - btrfs /dev/loop3 rw,subvol=/\n\
            31 22 0:43 / /srv/vm rw - xfs /dev/loop4 rw\n\
            32 22 0:44 / /srv/two\\040words\\134 rw - xfs /dev/loop5 rw\n";
        let at = |path: &str| last_mount(mountinfo, Path::new(path));
        let mount = |kind: &str, source: &str| {
            Some(Mounted {
                kind: kind.to_owned(),
                source: source.into(),
            })
        };
        assert_eq!(at("/"), mount("ext4", "/dev/sda1"));
        assert_eq!(at("/srv/vm"), mount("xfs", "/dev/loop4"));
        assert_eq!(at("/srv/two words\\"), mount("xfs", "/dev/loop5"));
        assert_eq!(at("/srv"), None);
        assert_eq!(at("/srv/vm/deeper"), None);
    }

    #[test]
    fn what_is_no_mount_point_has_no_mount() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(mounted_at(home.path()).unwrap(), None);
        assert!(mounted_at(Path::new("/proc")).unwrap().is_some());
        let proc = mounted_at(Path::new("/proc")).unwrap().unwrap();
        assert!(!proc.is_of_file(home.path()).unwrap());
    }

    #[test]
    fn this_process_uses_what_it_has_open_but_not_a_mere_mount_point() {
        let home = tempfile::tempdir().unwrap();
        let _mount_point = File::open(home.path()).unwrap();
        assert_eq!(users(home.path()).unwrap(), Vec::<String>::new());
        let _file = File::create(home.path().join("file")).unwrap();
        assert_eq!(users(home.path()).unwrap(), ["this process"]);
    }

    #[test]
    fn another_process_that_uses_it_is_named() {
        let home = tempfile::tempdir().unwrap();
        let sleep = Program::find("sleep").unwrap().arg("60");
        let mut sleep = sleep.current_dir(home.path()).spawn().unwrap();
        let users = users(home.path()).unwrap();
        assert_eq!(users, [format!("process {} (sleep)", sleep.pid())]);
        sleep.kill();
    }
}
