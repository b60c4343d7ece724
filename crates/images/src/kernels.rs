//! Kernels and initial RAM disks, each kept once under the SHA-256 digest of its content.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use sistemo_host::Changed;
use sistemo_host::directory::{Directory, FileError, Open};
use sistemo_host::lock::{Lock, PATIENCE};
use sistemo_model::{Boot, Digest, ImageId};

use crate::error::{Error, Result};
use crate::store::{DamagedImage, Images, Listing};

/// What an unfinished copy ends with.
const PART: &str = ".part";

/// While this is held, no kernel is discarded and no other is added.
///
/// Whoever records that something boots a kernel (a volume made from an image) holds it from
/// before reading the image until after the record is made; then the kernel is still there.
#[derive(Debug)]
#[must_use]
pub struct KernelGuard {
    _lock: Lock,
}

/// What became of the kernels that nothing boots.
#[derive(Debug)]
#[must_use]
pub enum Discarded {
    /// So many went.
    Unused(usize),
    /// All stay for now: a description that cannot be read might name any of them.
    Nothing {
        /// The images that stand in the way; at least one.
        damaged: Vec<DamagedImage>,
    },
}

impl Images {
    /// Keeps kernels from being discarded until the guard is dropped. Hold it for milliseconds.
    ///
    /// # Errors
    /// [`Error::Lock`] where another process holds it for 10 s.
    pub fn hold_kernels(&self, purpose: &str) -> Result<KernelGuard> {
        let path = self.lock_path("kernels.lock");
        let lock = Lock::acquire(&path, purpose, PATIENCE)?;
        Ok(KernelGuard { _lock: lock })
    }

    /// The file of a kernel or initial RAM disk.
    ///
    /// # Errors
    /// [`Error::KernelMissing`].
    pub fn kernel(&self, digest: &Digest) -> Result<PathBuf> {
        if self.kernels.contains(digest.as_str())? {
            Ok(self.kernels.path_of(digest.as_str()))
        } else {
            Err(Error::KernelMissing {
                digest: digest.clone(),
            })
        }
    }

    /// Removes the kernels that no image boots and that are not `in_use` by a volume; none where
    /// an image's description cannot be read. A killed removal has removed some of them.
    ///
    /// `in_use` must have been gathered while `guard` was held.
    ///
    /// # Errors
    /// Where the images cannot be listed or a kernel cannot be removed.
    pub fn discard_unused_kernels(
        &self,
        guard: &KernelGuard,
        in_use: &[Digest],
    ) -> Result<Discarded> {
        let _ = guard;
        let Listing { images, damaged } = self.list()?;
        if !damaged.is_empty() {
            return Ok(Discarded::Nothing { damaged });
        }
        let booted = images.iter().filter_map(|image| image.boot.as_ref());
        let needed: Vec<&str> = booted
            .flat_map(|boot| std::iter::once(&boot.kernel).chain(&boot.initrd))
            .chain(in_use)
            .map(Digest::as_str)
            .collect();
        let mut discarded = 0;
        for name in self.kernels.files()? {
            if name.ends_with(PART) {
                // Only the holder of the guard writes parts, so this one's writer is dead.
                let _ = self.kernels.unlink(&name)?;
            } else if name.parse::<Digest>().is_ok()
                && !needed.contains(&name.as_str())
                && self.kernels.unlink(&name)? == Changed::Yes
            {
                discarded += 1;
            }
        }
        self.kernels.flush()?;
        Ok(Discarded::Unused(discarded))
    }

    /// Keeps a kernel and the initial RAM disk that belongs to it.
    pub(crate) fn add_boot(
        &self,
        guard: &KernelGuard,
        kernel: &Path,
        initrd: Option<&Path>,
    ) -> Result<Boot> {
        Ok(Boot {
            kernel: self.add_kernel(guard, kernel)?,
            initrd: initrd
                .map(|initrd| self.add_kernel(guard, initrd))
                .transpose()?,
        })
    }

    /// Copies a file to where its digest says, durably; one that is there already stays.
    ///
    /// A crash leaves a part, which the next discarding removes, or a kernel that nothing boots,
    /// likewise.
    fn add_kernel(&self, _guard: &KernelGuard, path: &Path) -> Result<Digest> {
        let source = crate::disk_file::open_regular(path)?;
        let part = format!("{}{PART}", ImageId::random());
        let copied = self.copy_kernel(path, source, &part);
        if copied.is_err() {
            // The error that matters is the one above; the next discarding removes the part.
            let _ = self.kernels.unlink(&part);
        }
        copied
    }

    fn copy_kernel(&self, path: &Path, source: File, part: &str) -> Result<Digest> {
        let mut target = self.kernels.file(part, Open::CreateNew)?;
        let digest = digest_while_copying(source, &mut target)
            .map_err(|error| FileError::new("copy", path, error))?;
        match self.kernels.publish(part, digest.as_str()) {
            Ok(()) => {}
            Err(error) if error.is_already_there() => {
                let _ = self.kernels.unlink(part)?;
            }
            Err(error) => return Err(error.into()),
        }
        verify(&self.kernels, &digest)?;
        Ok(digest)
    }
}

/// Reads back what is kept, so that a kernel that never boots is noticed where it came from.
fn verify(kernels: &Directory, digest: &Digest) -> Result<()> {
    let path = kernels.path_of(digest.as_str());
    let file = kernels.file(digest.as_str(), Open::Read)?;
    let found = digest_while_copying(file, &mut io::sink())
        .map_err(|error| FileError::new("read", &path, error))?;
    if found == *digest {
        Ok(())
    } else {
        Err(Error::KernelDamaged { path })
    }
}

fn digest_while_copying(mut source: impl Read, target: &mut impl Write) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = source.read(&mut buffer)?;
        if read == 0 {
            return Ok(Digest::from_bytes(hasher.finalize().into()));
        }
        hasher.update(&buffer[..read]);
        target.write_all(&buffer[..read])?;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use super::*;

    fn images() -> (tempfile::TempDir, Images) {
        let home = tempfile::tempdir().unwrap();
        let images = Images::open(home.path()).unwrap();
        (home, images)
    }

    fn file(home: &tempfile::TempDir, name: &str, content: &[u8]) -> PathBuf {
        let path = home.path().join(name);
        File::create(&path).unwrap().write_all(content).unwrap();
        path
    }

    #[test]
    fn a_kernel_is_kept_once_under_its_digest() {
        let (home, images) = images();
        let guard = images.hold_kernels("test").unwrap();
        let one = file(&home, "one", b"abc");
        let two = file(&home, "two", b"abc");
        let digest = images.add_kernel(&guard, &one).unwrap();
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            digest.as_str(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(images.add_kernel(&guard, &two).unwrap(), digest);
        assert_eq!(images.kernels.files().unwrap(), [digest.as_str()]);
        assert_eq!(fs::read(images.kernel(&digest).unwrap()).unwrap(), b"abc");
    }

    #[test]
    fn a_damaged_kernel_is_neither_used_nor_overwritten() {
        let (home, images) = images();
        let guard = images.hold_kernels("test").unwrap();
        let source = file(&home, "kernel", b"abc");
        let digest = images.add_kernel(&guard, &source).unwrap();
        let kept = images.kernel(&digest).unwrap();
        File::create(&kept).unwrap().write_all(b"abd").unwrap();
        let error = images.add_kernel(&guard, &source).unwrap_err();
        assert!(matches!(error, Error::KernelDamaged { .. }), "{error}");
        assert_eq!(fs::read(&kept).unwrap(), b"abd");
    }

    #[test]
    fn a_missing_kernel_is_named() {
        let (_home, images) = images();
        let digest = Digest::from_bytes([7; 32]);
        let error = images.kernel(&digest).unwrap_err();
        assert!(error.to_string().contains(digest.as_str()), "{error}");
    }

    #[test]
    fn kernels_that_nothing_boots_are_discarded_with_abandoned_parts() {
        let (home, images) = images();
        let guard = images.hold_kernels("test").unwrap();
        let used = images
            .add_kernel(&guard, &file(&home, "used", b"used"))
            .unwrap();
        let unused = images
            .add_kernel(&guard, &file(&home, "unused", b"unused"))
            .unwrap();
        images.kernels.replace("dead.part", b"half").unwrap();
        let discarded = images
            .discard_unused_kernels(&guard, std::slice::from_ref(&used))
            .unwrap();
        assert!(matches!(discarded, Discarded::Unused(1)), "{discarded:?}");
        assert!(images.kernel(&unused).is_err());
        assert_eq!(images.kernels.files().unwrap(), [used.as_str()]);
    }
}
