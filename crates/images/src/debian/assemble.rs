//! From an installed tree to an image: one ext4 filesystem, and the kernel beside it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sistemo_host::directory::FileError;
use sistemo_host::lock::Lock;
use sistemo_model::{Bytes, ImageName};

use super::namespace::Namespace;
use crate::error::{Error, Result};

/// Room for a system and what its user installs; it is sparse and grows with its volume.
const SMALLEST: Bytes = Bytes::from_mib(2048);
/// What a filesystem that holds a given tree needs beyond 1.3 times that.
const SPARE: u64 = 256 << 20;

/// Writes an inode table and a journal only where they are used: a fresh sparse file reads as
/// zeros anyway (measured: 316 MB on disk and under 1 s for a Debian of 290 MB).
const MKFS_FEATURES: &str =
    "lazy_itable_init=1,lazy_journal_init=1,nodiscard,assume_storage_prezeroed=1,root_owner=0:0";

/// The kernel of an installed tree and its initial RAM disk.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
}

/// Makes the empty `content`, which is at `path`, a filesystem that holds `tree`; returns its
/// size.
pub(super) fn make_filesystem(
    tree: &Path,
    path: &Path,
    content: &File,
    lock: &Lock,
) -> Result<Bytes> {
    let size = size_for(tree_bytes(tree)?);
    content
        .set_len(size.get())
        .map_err(|error| FileError::new("grow", path, error))?;
    Namespace::here()
        .program("mkfs.ext4")
        .and_then(|mkfs| mkfs.inherit(lock))
        .and_then(|mkfs| {
            mkfs.args(["-q", "-F", "-L", "root", "-m", "1", "-E", MKFS_FEATURES])
                .arg("-d")
                .arg(tree)
                .arg(path)
                .run()
        })
        .map_err(Error::program("make a filesystem in", path.display()))?;
    Ok(size)
}

fn size_for(tree: u64) -> Bytes {
    let needed = tree.saturating_add(tree / 10 * 3).saturating_add(SPARE);
    Bytes::new(needed).round_up_to_mib().max(SMALLEST)
}

/// du runs in the namespace, as some directories are closed to the user outside it.
fn tree_bytes(tree: &Path) -> Result<u64> {
    let answer = Namespace::here()
        .program("du")
        .and_then(|du| {
            du.args(["--summarize", "--one-file-system", "--block-size=1", "--"])
                .arg(tree)
                .run()
        })
        .map_err(Error::program("measure", tree.display()))?;
    let text = answer.text();
    let number = text.split_whitespace().next().map(str::parse);
    match number {
        Some(Ok(bytes)) => Ok(bytes),
        _ => Err(FileError::new("measure", tree, io::ErrorKind::InvalidData).into()),
    }
}

/// Makes sure that a tree is a system without an identity, and finds its kernel.
pub(super) fn inspect(name: &ImageName, tree: &Path) -> Result<Kernel> {
    let unfit = |fault: String| Error::Unfit {
        name: name.clone(),
        fault,
    };
    let examine =
        |path: &Path| fs::metadata(path).map_err(|error| FileError::new("examine", path, error));
    // Root of the namespace is this user, seen from here.
    if examine(tree)?.uid() != rustix::process::geteuid().as_raw() {
        return Err(unfit("is not owned by root".to_owned()));
    }
    if names_in(&tree.join("etc/ssh"))?
        .iter()
        .any(|file| file.starts_with("ssh_host_"))
    {
        return Err(unfit("has SSH host keys".to_owned()));
    }
    if examine(&tree.join("etc/machine-id"))?.len() > 0 {
        return Err(unfit("has a machine-id".to_owned()));
    }
    if fs::symlink_metadata(tree.join("etc/hostname")).is_ok() {
        return Err(unfit("has a host name".to_owned()));
    }
    let boot = tree.join("boot");
    let mut versions: Vec<String> = names_in(&boot)?
        .iter()
        .filter_map(|file| file.strip_prefix("vmlinuz-").map(str::to_owned))
        .collect();
    // Further kernels come from included packages; the one for virtual machines is ours.
    versions.sort_by_key(|version| (version.contains("-cloud-"), version.clone()));
    let Some(version) = versions.pop() else {
        return Err(unfit("has no kernel".to_owned()));
    };
    let found = Kernel {
        kernel: boot.join(format!("vmlinuz-{version}")),
        initrd: boot.join(format!("initrd.img-{version}")),
    };
    if !found.initrd.is_file() {
        return Err(unfit(format!("has no initrd for kernel {version}")));
    }
    Ok(found)
}

fn names_in(directory: &Path) -> Result<Vec<String>, FileError> {
    let fail = |error| FileError::new("list", directory, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(fail)? {
        names.extend(entry.map_err(fail)?.file_name().into_string().ok());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs::create_dir_all;

    use super::*;

    /// What is right with a tree that `inspect` accepts.
    fn tree() -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        create_dir_all(home.path().join("etc/ssh")).unwrap();
        create_dir_all(home.path().join("boot")).unwrap();
        for file in [
            "etc/machine-id",
            "boot/vmlinuz-6.1.0-1-cloud-amd64",
            "boot/initrd.img-6.1.0-1-cloud-amd64",
        ] {
            File::create(home.path().join(file)).unwrap();
        }
        home
    }

    fn inspect_tree(tree: &tempfile::TempDir) -> Result<Kernel> {
        inspect(&"debian".parse().unwrap(), tree.path())
    }

    #[test]
    fn the_kernel_for_virtual_machines_is_found() {
        let tree = tree();
        File::create(tree.path().join("boot/vmlinuz-9.9.9-1-amd64")).unwrap();
        let kernel = inspect_tree(&tree).unwrap();
        assert!(kernel.kernel.ends_with("boot/vmlinuz-6.1.0-1-cloud-amd64"));
        assert!(kernel.initrd.ends_with("initrd.img-6.1.0-1-cloud-amd64"));
    }

    #[test]
    fn a_system_with_an_identity_or_without_a_kernel_is_refused() {
        type Spoil = fn(&Path);
        let faults: [(&str, Spoil); 5] = [
            ("has SSH host keys", |tree| {
                File::create(tree.join("etc/ssh/ssh_host_rsa_key")).unwrap();
            }),
            ("has a machine-id", |tree| {
                File::create(tree.join("etc/machine-id"))
                    .unwrap()
                    .set_len(33)
                    .unwrap();
            }),
            ("has a host name", |tree| {
                File::create(tree.join("etc/hostname")).unwrap();
            }),
            ("has no kernel", |tree| {
                fs::remove_file(tree.join("boot/vmlinuz-6.1.0-1-cloud-amd64")).unwrap();
            }),
            ("has no initrd", |tree| {
                fs::remove_file(tree.join("boot/initrd.img-6.1.0-1-cloud-amd64")).unwrap();
            }),
        ];
        for (fault, spoil) in faults {
            let tree = tree();
            spoil(tree.path());
            let error = inspect_tree(&tree).unwrap_err().to_string();
            assert!(error.contains(fault), "{error}");
        }
    }

    #[test]
    fn an_image_grows_with_what_is_in_it() {
        assert_eq!(size_for(300 << 20), SMALLEST);
        assert_eq!(size_for(4 << 30).mib(), 5581);
    }
}
