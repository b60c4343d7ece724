//! A filesystem that is soon full.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sistemo_host::program::{Program, ProgramError};
use sistemo_host::system;
use sistemo_model::Bytes;

use crate::bench::Open;

/// Where a pool is soon full.
#[derive(Clone)]
pub enum SmallPlace {
    /// Nowhere on this host: why.
    Unavailable(String),
    /// On a filesystem that is made and mounted for as long as it is needed. Needs root.
    Mounted(Kind),
    /// Where this opens it; at most 1 GiB fits in.
    Opened(Arc<Open>),
}

impl SmallPlace {
    /// A small filesystem of the same kind as the one that `path` is on, or why there can be
    /// none.
    #[must_use]
    pub fn like(path: &Path) -> SmallPlace {
        if !system::is_root() {
            return SmallPlace::Unavailable("only root can mount a small filesystem".to_owned());
        }
        match Kind::of(path) {
            Some(kind) => SmallPlace::Mounted(kind),
            None => SmallPlace::Unavailable(format!(
                "a small filesystem of the kind that {} is on cannot be made",
                path.display()
            )),
        }
    }
}

impl fmt::Debug for SmallPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SmallPlace::Unavailable(why) => f.debug_tuple("Unavailable").field(why).finish(),
            SmallPlace::Mounted(kind) => f.debug_tuple("Mounted").field(kind).finish(),
            SmallPlace::Opened(_) => f.write_str("Opened"),
        }
    }
}

/// A kind of filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// Memory.
    Tmpfs,
}

impl Kind {
    /// The kind of filesystem that `path` is on; `None` for others, and where it cannot be told.
    #[must_use]
    pub fn of(path: &Path) -> Option<Kind> {
        // As linux/magic.h has them; ext2 and ext3 have ext4's.
        match system::filesystem_magic(path).ok()? {
            0xef53 => Some(Kind::Ext4),
            0x5846_5342 => Some(Kind::Xfs),
            0x9123_683e => Some(Kind::Btrfs),
            0x0102_1994 => Some(Kind::Tmpfs),
            _ => None,
        }
    }

    /// A small size for it that leaves at least 40 MB to fill.
    fn size(self) -> Bytes {
        Bytes::from_mib(match self {
            Kind::Ext4 | Kind::Tmpfs => 96,
            Kind::Xfs => 320,
            Kind::Btrfs => 256,
        })
    }

    fn make(self, image: &Path) -> Result<(), ProgramError> {
        let (program, options): (_, &[&str]) = match self {
            Kind::Ext4 => ("mkfs.ext4", &["-q", "-F", "-m", "0"]),
            Kind::Xfs => ("mkfs.xfs", &["-q", "-f", "-m", "reflink=1"]),
            Kind::Btrfs => ("mkfs.btrfs", &["-q", "-f"]),
            Kind::Tmpfs => return Ok(()),
        };
        Program::find(program)?
            .args(options)
            .arg(image)
            .run_undisturbed()?;
        Ok(())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "XFS",
            Kind::Btrfs => "btrfs",
            Kind::Tmpfs => "tmpfs",
        })
    }
}

/// A mounted filesystem that is soon full. A key on the terminal interrupts none of the programs
/// that it takes. Dropped, it is unmounted, and its loop device freed;
/// a crash leaves it mounted.
#[derive(Debug)]
pub struct SmallFilesystem {
    mount_point: PathBuf,
}

impl SmallFilesystem {
    /// Makes a filesystem in a file beside `mount_point` and mounts it there, which is made.
    ///
    /// # Errors
    /// Where a program that it takes is missing or fails, for other users than root among it.
    pub fn mount(kind: Kind, mount_point: &Path) -> Result<SmallFilesystem, ProgramError> {
        let size = kind.size();
        let image = mount_point.with_extension("image");
        let fail = |source| ProgramError::Start {
            path: image.clone(),
            source,
        };
        std::fs::create_dir(mount_point).map_err(fail)?;
        File::create_new(&image)
            .and_then(|file| file.set_len(size.get()))
            .map_err(fail)?;
        kind.make(&image)?;
        let mount = Program::find("mount")?;
        let mount = if kind == Kind::Tmpfs {
            let size = format!("size={}", size.get());
            mount.args(["-t", "tmpfs", "-o", &size, "none"])
        } else {
            // The kernel frees a loop device that mount(8) set up when it is unmounted.
            mount.args(["-o", "loop"]).arg(&image)
        };
        mount.arg(mount_point).run_undisturbed()?;
        Ok(SmallFilesystem {
            mount_point: mount_point.to_owned(),
        })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount_point
    }
}

impl Drop for SmallFilesystem {
    fn drop(&mut self) {
        let unmount = |lazily: bool| {
            let unmount = Program::find("umount")?;
            let unmount = if lazily { unmount.arg("-l") } else { unmount };
            unmount.arg(&self.mount_point).run_undisturbed()
        };
        // Where something in it is still open, it goes when that is closed. Where this fails too,
        // removing the room around it does, and says so.
        let _ = unmount(false).or_else(|_| unmount(true));
    }
}
