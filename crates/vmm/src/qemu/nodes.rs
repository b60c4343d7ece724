//! QEMU's block nodes for a disk: what they are called and how they are opened.
//!
//! A disk begins as the node `disk0` over the node `disk0-file`. Each file that takes its place
//! while the machine runs gets the next number: `disk0-1` over `disk0-1-file`, and so on. So the
//! name of any of them tells the disk's place, which is all that an event gives.
//!
//! The files below the first qcow2 file are opened by QEMU, by the name and format that the file
//! above gives: read-only, with the same caching, and read by threads, as that is QEMU's default.

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde_json::{Value, json};
use sistemo_host::directory::FileError;
use sistemo_model::Access;

use crate::VmmError;
use crate::contract::DiskLocation;

/// How QEMU reads and writes a disk's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aio {
    /// `io_uring(7)`, the faster.
    IoUring,
    /// QEMU's own threads, which work everywhere.
    Threads,
}

impl Aio {
    fn word(self) -> &'static str {
        match self {
            Aio::IoUring => "io_uring",
            Aio::Threads => "threads",
        }
    }
}

/// Whether a disk's file is read and written past the host's page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caching {
    /// `O_DIRECT`: what the guest caches is not cached a second time.
    Direct,
    /// Through the page cache, on filesystems that know no `O_DIRECT`.
    Cached,
}

impl Caching {
    /// Tries a disk's file or device, which is the only way to know.
    pub(super) fn of(location: &DiskLocation, access: Access) -> Result<Caching, VmmError> {
        let path = location.path();
        let access = match access {
            Access::ReadWrite => OFlags::RDWR,
            Access::ReadOnly => OFlags::RDONLY,
        };
        let open = |flags| rustix::fs::open(path, access | OFlags::CLOEXEC | flags, Mode::empty());
        match open(OFlags::DIRECT) {
            Ok(_) => Ok(Caching::Direct),
            Err(Errno::INVAL) => open(OFlags::empty())
                .map(|_| Caching::Cached)
                .map_err(|error| FileError::new("open disk", path, error).into()),
            Err(error) => Err(FileError::new("open disk", path, error).into()),
        }
    }
}

/// How the nodes of a disk are opened, whichever file they are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    pub(super) aio: Aio,
    pub(super) caching: Caching,
    pub(super) access: Access,
}

impl Opening {
    fn cache(self) -> Value {
        json!({ "direct": self.caching == Caching::Direct, "no-flush": false })
    }

    /// The options of the node `name`, its file's node within it.
    pub(super) fn node(self, name: &str, location: &DiskLocation) -> Result<Value, VmmError> {
        let path = absolute(location.path());
        let Some(path) = path.to_str() else {
            return Err(VmmError::Path { path });
        };
        let (file_driver, format_driver) = match location {
            DiskLocation::RawFile(_) => ("file", "raw"),
            DiskLocation::BlockDevice(_) => ("host_device", "raw"),
            DiskLocation::Qcow2File(_) => ("file", "qcow2"),
        };
        let mut file = json!({
            "driver": file_driver,
            "node-name": file_node_name(name),
            "filename": path,
            "aio": self.aio.word(),
            "cache": self.cache(),
            "read-only": self.access == Access::ReadOnly,
        });
        if self.access == Access::ReadWrite {
            file["discard"] = "unmap".into();
        }
        Ok(self.format(format_driver, name, &file))
    }

    /// The options of a qcow2 node whose nodes below exist already.
    pub(super) fn qcow2_over(self, name: &str, backing: &str) -> Value {
        let mut node = self.format("qcow2", name, &file_node_name(name).into());
        node["backing"] = backing.into();
        node
    }

    /// What the guest discards or fills with zeros takes no space: in a raw file it becomes a
    /// hole, in a qcow2 file an entry of its tables.
    fn format(self, driver: &str, name: &str, file: &Value) -> Value {
        let mut node = json!({
            "driver": driver,
            "node-name": name,
            "file": file,
            "cache": self.cache(),
            "read-only": self.access == Access::ReadOnly,
        });
        if self.access == Access::ReadWrite {
            node["discard"] = "unmap".into();
            node["detect-zeroes"] = "unmap".into();
        }
        node
    }
}

/// The node of the disk in a place, as it begins.
pub(super) fn node_name(position: u8) -> String {
    format!("disk{position}")
}

/// The node of the file that is the `number`th to take the disk's place.
pub(super) fn layer_name(position: u8, number: u32) -> String {
    format!("disk{position}-{number}")
}

/// The node that stands before a disk while it is flattened.
pub(super) fn flattening_name(position: u8) -> String {
    format!("disk{position}-flatten")
}

/// The node that stands before a disk while it is copied.
pub(super) fn copy_name(position: u8) -> String {
    format!("disk{position}-copy")
}

/// The node of a disk node's file.
pub(super) fn file_node_name(node: &str) -> String {
    format!("{node}-file")
}

/// The device that shows a disk to the guest.
pub(super) fn device_name(position: u8) -> String {
    format!("disk{position}-device")
}

/// The place of the disk that a node belongs to.
pub(super) fn position_of(node: &str) -> Option<u8> {
    let rest = node.strip_prefix("disk")?;
    rest.split_once('-')
        .map_or(rest, |(number, _)| number)
        .parse()
        .ok()
}

/// Which file of its disk a disk node is: 0 for the one it began with. `None` for the nodes that
/// serve those.
pub(super) fn layer_number(node: &str) -> Option<u32> {
    let rest = node.strip_prefix("disk")?;
    match rest.split_once('-') {
        None => Some(0),
        Some((_, number)) => number.parse().ok(),
    }
}

/// QEMU runs in another directory than we do.
pub(super) fn absolute(path: &Path) -> PathBuf {
    // It fails for an empty path only, and QEMU says that better.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_knows_no_direct_io_is_cached() {
        let file = |path: &str| DiskLocation::RawFile(path.into());
        // procfs has no O_DIRECT, whatever it is mounted on.
        assert_eq!(
            Caching::of(&file("/proc/version"), Access::ReadOnly).unwrap(),
            Caching::Cached
        );
        let error = Caching::of(&file("/no/such.ext4"), Access::ReadOnly).unwrap_err();
        assert_eq!(error.to_string(), "cannot open disk /no/such.ext4");
    }

    #[test]
    fn node_names_lead_back_to_their_places() {
        for position in [0, 9, 25] {
            let first = node_name(position);
            let tenth = layer_name(position, 10);
            for name in [
                &first,
                &tenth,
                &flattening_name(position),
                &copy_name(position),
            ] {
                assert_eq!(position_of(name), Some(position), "{name}");
                assert_eq!(position_of(&file_node_name(name)), Some(position), "{name}");
                assert_eq!(layer_number(&file_node_name(name)), None, "{name}");
            }
            assert_eq!(layer_number(&first), Some(0));
            assert_eq!(layer_number(&tenth), Some(10));
            assert_eq!(layer_number(&flattening_name(position)), None);
            assert_eq!(layer_number(&copy_name(position)), None);
        }
        for name in ["", "disk", "#block123"] {
            assert_eq!(position_of(name), None, "{name}");
        }
    }
}
