//! How two files of a pool come to hold the same data.
//!
//! Where the filesystem can, they share it: `ioctl_ficlone(2)`, O(extents). A clone so made is
//! atomic with regard to concurrent writes, as that page says, also those of a VMM to the disk of
//! a running machine: the kernel holds the source's inode lock, against buffered and direct
//! writes, waits for direct writes that are under way, and writes back what is in the page cache
//! before it shares the extents (`generic_remap_file_range_prep`; `xfs_reflink_remap_prep`,
//! `btrfs_remap_file_range_prep`). It holds every write that had ended before and none that began
//! after, which is more than a disk holds after a power cut.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sistemo_host::directory::{Directory, FileError};
use sistemo_host::sparse::{self, Shares};
use sistemo_host::system;
use sistemo_model::PoolName;

use super::FilePool;
use crate::content::RawContent;
use crate::contract::{Cost, Progress, Way};
use crate::{PoolError, marker};

/// What is shared to find out whether the filesystem can: one block of most filesystems. Some
/// would say yes to sharing nothing.
const SAMPLE: [u8; 4096] = [1; 4096];

/// When data is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copying {
    /// Where the filesystem cannot share it; the holes are left out.
    WhereNotShared,
    /// The operation fails instead.
    Never,
}

impl FilePool {
    /// What clones and snapshots cost here. Found out once, by a try; where that fails for
    /// another reason, nothing is promised this time.
    pub(super) fn cost(&self) -> Cost {
        if self.copying == Copying::Never {
            return Cost::Instant;
        }
        if let Some(cost) = self.cost.get() {
            return *cost;
        }
        match can_share(&self.directory) {
            Ok(true) => *self.cost.get_or_init(|| Cost::Instant),
            Ok(false) => *self.cost.get_or_init(|| Cost::Copy),
            Err(error) => {
                tracing::debug!(%error, "whether data can be shared is not known");
                Cost::Copy
            }
        }
    }
}

impl FilePool {
    /// Whether all space of a file is its own, whoever made it.
    pub(super) fn never_shares(&self) -> bool {
        matches!(
            system::filesystem_name(self.directory.path()),
            Ok(Some("ext4" | "tmpfs"))
        )
    }

    /// How much of a file's space others use too; `None` where the filesystem does not tell.
    pub(super) fn shares(&self, content: &RawContent) -> Result<Option<Shares>, PoolError> {
        if !self.never_shares() {
            return content.shares();
        }
        let alone = sparse::used_bytes(&content.file).map_err(|error| {
            let source = FileError::new("look up", &content.path, error);
            self.subject(content.volume).failed("look up", source)
        })?;
        Ok(Some(Shares { shared: 0, alone }))
    }
}

/// Gives the empty file `target` all of `source`'s data, and its length.
///
/// An error leaves `target` with a part of the data.
pub(super) fn share(
    source: &File,
    target: &File,
    copying: Copying,
    progress: Progress<'_>,
) -> io::Result<Way> {
    if sparse::reflink(source, target)? {
        return Ok(Way::Reflink);
    }
    match copying {
        Copying::Never => Err(io::Error::other(
            "the filesystem cannot share the data of these files",
        )),
        Copying::WhereNotShared => {
            sparse::copy_data(source, target, progress)?;
            Ok(Way::Copied)
        }
    }
}

/// Tries whether a directory's filesystem can share data, with two small files without a name.
pub(super) fn can_share(directory: &Directory) -> Result<bool, FileError> {
    let file = || directory.nameless_file(&marker::scratch_name());
    let (source, target) = (file()?, file()?);
    source
        .write_all_at(&SAMPLE, 0)
        .and_then(|()| sparse::reflink(&source, &target))
        .map_err(|error| FileError::new("try reflinks in", directory.path(), error))
}

/// The error of a pool that has to share data and cannot.
pub(super) fn cannot_share(pool: &PoolName, path: &Path) -> PoolError {
    let filesystem = match system::filesystem_name(path) {
        Ok(Some("XFS")) => "this XFS, made with reflink=0,",
        Ok(Some(name)) => name,
        _ => "its filesystem",
    };
    PoolError::Unsuited {
        pool: pool.clone(),
        directory: path.to_owned(),
        reason: format!(
            "{filesystem} has no reflinks; XFS, btrfs and bcachefs have; with `size` the pool \
             gets such a filesystem of its own, and drivers file and qcow2 do without"
        ),
    }
}
