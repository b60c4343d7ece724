//! A filesystem of a chosen kind and size, for tests about full disks and reflinks.

use std::fs::File;
use std::path::{Path, PathBuf};

use sistemo_host::program::Program;
use sistemo_model::Bytes;

/// A kind of filesystem to test on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoopKind {
    /// ext4: no reflink. From about 2 MiB.
    Ext4,
    /// XFS: reflink. From 300 MiB.
    Xfs,
    /// btrfs: reflink and subvolumes. From 109 MiB.
    Btrfs,
    /// Memory: no loop device, and no reflink.
    Tmpfs,
}

/// A mounted filesystem that is unmounted, its loop device freed and its content gone, when
/// the value is dropped. A test killed in the middle leaves it mounted under the temporary
/// directory.
#[derive(Debug)]
pub struct LoopFilesystem {
    mount_point: PathBuf,
    // Dropped, and so removed, after the filesystem is unmounted.
    _home: tempfile::TempDir,
}

impl LoopFilesystem {
    /// Makes and mounts a filesystem. Needs root.
    ///
    /// # Panics
    /// Where that fails; a test asks for its
    /// [`Requirement`](crate::requirement::Requirement)s first.
    #[must_use]
    pub fn new(kind: LoopKind, size: Bytes) -> LoopFilesystem {
        let home = tempfile::tempdir().expect("a temporary directory");
        let mount_point = home.path().join("mounted");
        std::fs::create_dir(&mount_point).expect("a mount point");
        let mount = Program::find("mount").expect("mount");
        let mount = if kind == LoopKind::Tmpfs {
            mount
                .args(["-t", "tmpfs", "-o"])
                .arg(format!("size={}", size.get()))
                .arg("none")
        } else {
            let image = home.path().join("image");
            make(kind, &image, size);
            // The kernel frees a loop device that mount(8) set up when it is unmounted.
            mount.args(["-o", "loop"]).arg(image)
        };
        mount
            .arg(&mount_point)
            .run()
            .unwrap_or_else(|error| panic!("cannot mount {kind:?} of {size}: {error}"));
        LoopFilesystem {
            mount_point,
            _home: home,
        }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount_point
    }
}

fn make(kind: LoopKind, image: &Path, size: Bytes) {
    File::create(image)
        .and_then(|file| file.set_len(size.get()))
        .expect("a sparse file");
    let (program, options): (_, &[&str]) = match kind {
        LoopKind::Ext4 => ("mkfs.ext4", &["-q", "-F"]),
        LoopKind::Xfs => ("mkfs.xfs", &["-q", "-f"]),
        LoopKind::Btrfs => ("mkfs.btrfs", &["-q", "-f"]),
        LoopKind::Tmpfs => return,
    };
    Program::find(program)
        .and_then(|mkfs| mkfs.args(options).arg(image).run())
        .unwrap_or_else(|error| panic!("cannot make {kind:?} of {size}: {error}"));
}

impl Drop for LoopFilesystem {
    #[expect(clippy::print_stderr, reason = "what stays mounted must be seen")]
    fn drop(&mut self) {
        let unmount = |lazily: bool| {
            let unmount = Program::find("umount")?;
            let unmount = if lazily { unmount.arg("-l") } else { unmount };
            unmount.arg(&self.mount_point).run()
        };
        // A failed test may still hold a file open; then it goes when that is closed.
        if let Err(error) = unmount(false).or_else(|_| unmount(true)) {
            eprintln!("cannot unmount {}: {error}", self.mount_point.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use sistemo_host::system;

    use super::*;
    use crate::{Requirement, met};

    fn is_mounted(path: &Path) -> bool {
        std::fs::read_to_string("/proc/self/mounts")
            .unwrap()
            .contains(path.to_str().unwrap())
    }

    #[test]
    fn each_kind_is_there_and_then_gone() {
        let programs = ["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "mount"];
        if !met(&[Requirement::Root]) || !met(&programs.map(Requirement::Program)) {
            return;
        }
        for (kind, mib) in [
            (LoopKind::Ext4, 16),
            (LoopKind::Xfs, 300),
            (LoopKind::Btrfs, 110),
            (LoopKind::Tmpfs, 16),
        ] {
            let filesystem = LoopFilesystem::new(kind, Bytes::from_mib(mib));
            let path = filesystem.path().to_owned();
            assert!(is_mounted(&path), "{kind:?}");
            let space = system::space(&path).unwrap();
            assert!(
                space.size <= Bytes::from_mib(mib).get(),
                "{kind:?}: {space:?}"
            );
            drop(filesystem);
            assert!(!is_mounted(&path) && !path.exists(), "{kind:?}");
        }
    }
}
