//! Facts about this host.

use std::io;
use std::path::Path;

use rustix::fs::StatVfs;

/// The identifier of this boot.
///
/// # Errors
/// Where /proc is not mounted.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// The host's memory in bytes.
///
/// # Errors
/// Where /proc is not mounted or its text is not as proc(5) says.
pub fn memory_bytes() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    text.lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo has no MemTotal"))
}

/// The number of the host's processors that this process may use.
#[must_use]
pub fn processors() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1))
}

/// Whether this process runs as root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The name of this process's user, from passwd(5); its number where it has no name there.
#[must_use]
pub fn user_name() -> String {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&uid.as_str()))
        .and_then(|fields| fields.first().map(|name| (*name).to_owned()))
        .unwrap_or(uid)
}

/// The space of the filesystem that holds a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Its size in bytes.
    pub size: u64,
    /// The bytes that this user may still fill.
    pub free: u64,
}

/// The space of the filesystem that holds `path`.
///
/// # Errors
/// What statvfs(3) says.
pub fn space(path: &Path) -> io::Result<Space> {
    let StatVfs {
        f_frsize,
        f_blocks,
        f_bavail,
        ..
    } = rustix::fs::statvfs(path)?;
    Ok(Space {
        size: f_blocks * f_frsize,
        free: f_bavail * f_frsize,
    })
}

/// Lets the filesystem that holds `path` write down what it has put off, so that what was removed
/// from it counts among its free space: on btrfs it does not before that.
///
/// # Errors
/// Where the path cannot be opened, and what syncfs(2) says.
pub fn settle_space(path: &Path) -> io::Result<()> {
    let file = std::fs::File::open(path)?;
    Ok(rustix::fs::syncfs(&file)?)
}

/// Whether what is written to `path` is gone with the next boot: it is on a tmpfs or ramfs.
///
/// # Errors
/// What statfs(2) says.
pub fn is_in_memory(path: &Path) -> io::Result<bool> {
    // As linux/magic.h has them.
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    let kind = u64::try_from(rustix::fs::statfs(path)?.f_type).unwrap_or(0);
    Ok(kind == TMPFS || kind == RAMFS)
}

/// What people call the kind of filesystem that holds `path`; `None` for rare ones. The ext
/// family is one to the kernel, and `ext4` here.
///
/// # Errors
/// What statfs(2) says.
pub fn filesystem_name(path: &Path) -> io::Result<Option<&'static str>> {
    // As linux/magic.h has them; those of filesystems from elsewhere, as they say themselves.
    const NAMES: [(u64, &str); 12] = [
        (0xef53, "ext4"),
        (0x5846_5342, "XFS"),
        (0x9123_683e, "btrfs"),
        (0x0102_1994, "tmpfs"),
        (0x794c_7630, "overlayfs"),
        (0x6969, "NFS"),
        (0xff53_4d42, "CIFS"),
        (0x6573_5546, "FUSE"),
        (0xf2f5_2010, "F2FS"),
        (0x4d44, "FAT"),
        (0xca45_1a4e, "bcachefs"),
        (0x2fc1_2fc1, "ZFS"),
    ];
    let kind = u64::try_from(rustix::fs::statfs(path)?.f_type).unwrap_or(0);
    let known = NAMES.iter().find(|(magic, _)| *magic == kind);
    Ok(known.map(|(_, name)| *name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_memory_processors_and_a_boot() {
        assert!(memory_bytes().unwrap() > 1 << 20);
        assert!(processors() > 0);
        assert_eq!(boot_id().unwrap().len(), 36);
        assert!(space(Path::new("/")).unwrap().size > 0);
        assert!(!user_name().is_empty());
        assert!(!is_in_memory(Path::new("/proc")).unwrap());
        assert_eq!(filesystem_name(Path::new("/proc")).unwrap(), None);
    }
}
