//! Taking in a disk or filesystem from a file.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use sistemo_host::directory::FileError;
use sistemo_host::sparse;
use sistemo_model::{Bytes, Image, ImageName, ImageSource};

use crate::disk_file::{DiskFile, ImageFormat, open_regular};
use crate::error::{Error, Result};
use crate::store::Images;

/// What to import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportRequest {
    /// The file that holds the disk or filesystem; it is only read.
    pub file: PathBuf,
    /// The image's name, which must be free.
    pub name: ImageName,
    /// The kernel it boots, its filesystem then being `/dev/vda` as a whole; without one it
    /// boots by firmware.
    pub kernel: Option<PathBuf>,
    /// The kernel's initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The file's format, where its name does not tell.
    pub format: Option<ImageFormat>,
}

/// The content of a file that is deployed from without becoming an image.
#[derive(Debug)]
pub struct BorrowedContent {
    /// The disk's bytes: the file itself where it is raw, else a copy that nobody else sees and
    /// that is gone when this is dropped.
    pub file: File,
    /// The smallest volume that it fits on, a multiple of 512 bytes and at least the length of
    /// the file.
    pub size: Bytes,
}

impl Images {
    /// Makes an image of a file. `progress` is told the bytes done and the bytes there are to do.
    ///
    /// A crash leaves content that no description names; the next import or build removes it.
    ///
    /// # Errors
    /// [`Error::NameTaken`]; what [`DiskFile::open`] refuses, and a file of unknown format; where
    /// it or the kernel cannot be read. Nothing is left.
    pub fn import(
        &self,
        request: &ImportRequest,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Image> {
        let ImportRequest { file, name, .. } = request;
        if request.initrd.is_some() && request.kernel.is_none() {
            return Err(Error::InitrdWithoutKernel { name: name.clone() });
        }
        let disk = DiskFile::open(file, format_of(file, request.format)?)?;
        for boots in request.kernel.iter().chain(&request.initrd) {
            open_regular(boots)?;
        }
        let draft = self.draft(name)?;
        match disk.raw() {
            Some(raw) => {
                let _ = sparse::copy(raw, draft.content(), progress)
                    .map_err(|error| FileError::new("copy", file, error))?;
            }
            None => disk.convert_into_new(draft.content(), &[draft.lock().as_fd()], progress)?,
        }
        let guard = self.hold_kernels("image import")?;
        let boot = request
            .kernel
            .as_ref()
            .map(|kernel| self.add_boot(&guard, kernel, request.initrd.as_deref()))
            .transpose()?;
        let source = ImageSource::Imported {
            file: file_name(file),
        };
        draft.publish(boot, source)
    }

    /// Opens a file to deploy from without making an image of it. One that is not raw is
    /// converted into an unnamed file beside the images, which a crash does not leave behind.
    ///
    /// # Errors
    /// As [`Images::import`], but for the name.
    pub fn borrow_file(
        &self,
        path: &Path,
        format: Option<ImageFormat>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<BorrowedContent> {
        let disk = DiskFile::open(path, format_of(path, format)?)?;
        let size = disk.whole_sectors();
        let file = if disk.raw().is_some() {
            disk.into_file()
        } else {
            let directory = self.store.path();
            let content = tempfile::tempfile_in(directory)
                .map_err(|error| FileError::new("create a file in", directory, error))?;
            disk.convert_into_new(&content, &[], progress)?;
            content
        };
        Ok(BorrowedContent { file, size })
    }
}

fn format_of(path: &Path, told: Option<ImageFormat>) -> Result<ImageFormat> {
    told.or_else(|| ImageFormat::of_name(path))
        .ok_or_else(|| Error::UnknownFormat {
            path: path.to_owned(),
        })
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use sistemo_host::program::Program;

    use super::*;
    use crate::kernels::Discarded;

    const MIB: u64 = 1 << 20;
    const QCOW2_MAGIC: &[u8] = b"QFI\xfb\0\0\0\x03";

    struct Home {
        home: tempfile::TempDir,
        images: Images,
    }

    impl Home {
        fn new() -> Home {
            let home = tempfile::tempdir().unwrap();
            let images = Images::open(home.path()).unwrap();
            Home { home, images }
        }

        fn file(&self, name: &str, content: &[u8]) -> PathBuf {
            let path = self.home.path().join(name);
            File::create(&path).unwrap().write_all(content).unwrap();
            path
        }

        /// A qcow2 of 64 MB whose last MB holds data.
        fn qcow2(&self, name: &str) -> PathBuf {
            let raw = self.file("source.raw", b"first");
            let file = File::options().write(true).open(&raw).unwrap();
            file.set_len(64 * MIB).unwrap();
            file.write_all_at(b"last", 63 * MIB).unwrap();
            let path = self.home.path().join(name);
            let convert = ["convert", "-f", "raw", "-O", "qcow2"];
            qemu_img(&convert, &[&raw, &path]);
            path
        }

        fn request(file: &Path) -> ImportRequest {
            ImportRequest {
                file: file.to_owned(),
                name: "disk".parse().unwrap(),
                kernel: None,
                initrd: None,
                format: None,
            }
        }

        fn import(&self, file: &Path) -> Result<Image> {
            self.images.import(&Home::request(file), &mut |_, _| {})
        }

        fn nothing_is_left(&self) {
            let left: Vec<_> = fs::read_dir(self.images.store.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }

    fn qemu_img(words: &[&str], paths: &[&Path]) {
        let program = Program::find("qemu-img").unwrap();
        program.args(words).args(paths).run().unwrap();
    }

    fn word_at(file: &File, offset: u64) -> String {
        let mut word = [0; 5];
        file.read_exact_at(&mut word, offset).unwrap();
        String::from_utf8_lossy(&word)
            .trim_end_matches('\0')
            .to_owned()
    }

    #[test]
    fn a_raw_file_is_copied_without_its_holes_and_rounded_up_to_sectors() {
        let home = Home::new();
        let path = home.file("disk.img", b"first");
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(64 * MIB + 1).unwrap();
        let image = home.import(&path).unwrap();
        assert_eq!(image.size.get(), 64 * MIB + 512);
        assert_eq!(
            image.source,
            ImageSource::Imported {
                file: "disk.img".to_owned()
            }
        );
        assert!(home.images.used_bytes(&image).unwrap().get() < MIB);
        let opened = home.images.open_image(&image.name).unwrap();
        assert_eq!(word_at(&opened.content, 0), "first");
        assert_eq!(opened.content.metadata().unwrap().len(), image.size.get());
    }

    #[test]
    fn a_raw_file_that_looks_like_qcow2_is_still_raw() {
        let home = Home::new();
        let mut content = QCOW2_MAGIC.to_vec();
        content.resize(1024, 0);
        let image = home.import(&home.file("disk.raw", &content)).unwrap();
        assert_eq!(fs::read(home.images.content(&image)).unwrap(), content);
    }

    #[test]
    fn a_qcow2_file_is_converted_sparse_and_says_how_far_it_is() {
        let home = Home::new();
        let path = home.qcow2("disk.QCOW2");
        let mut last = (0, 0);
        let image = home
            .images
            .import(&Home::request(&path), &mut |done, total| {
                last = (done, total);
            })
            .unwrap();
        assert_eq!(image.size.get(), 64 * MIB);
        assert_eq!(last, (64 * MIB, 64 * MIB));
        assert!(home.images.used_bytes(&image).unwrap().get() < 4 * MIB);
        let content = home.images.open_image(&image.name).unwrap().content;
        assert_eq!(word_at(&content, 0), "first");
        assert_eq!(word_at(&content, 63 * MIB), "last");
    }

    #[test]
    fn a_borrowed_file_becomes_no_image_and_leaves_nothing() {
        let home = Home::new();
        let qcow2 = home.qcow2("disk.qcow2");
        let raw = home.file("odd.raw", &[7; 700]);
        let borrowed = home
            .images
            .borrow_file(&qcow2, None, &mut |_, _| {})
            .unwrap();
        assert_eq!(borrowed.size.get(), 64 * MIB);
        assert_eq!(word_at(&borrowed.file, 63 * MIB), "last");
        assert!(sparse::used_bytes(&borrowed.file).unwrap() < 4 * MIB);
        let borrowed = home.images.borrow_file(&raw, None, &mut |_, _| {}).unwrap();
        assert_eq!(borrowed.size.get(), 1024);
        assert!(home.images.list().unwrap().images.is_empty());
        home.nothing_is_left();
    }

    #[test]
    fn a_qcow2_that_reads_another_file_is_refused() {
        let home = Home::new();
        let secret = home.file("secret", b"secret");
        let path = home.home.path().join("overlay.qcow2");
        let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"];
        qemu_img(&create, &[&secret, &path]);
        let error = home.import(&path).unwrap_err();
        assert!(
            matches!(error, Error::ReadsAnotherFile { ref other, .. } if other.ends_with("secret")),
            "{error}"
        );

        let path = home.home.path().join("data.qcow2");
        let option = format!("data_file={}", secret.display());
        qemu_img(
            &["create", "-q", "-f", "qcow2", "-o", &option],
            &[&path, Path::new("1M")],
        );
        let error = home.import(&path).unwrap_err();
        assert!(matches!(error, Error::ReadsAnotherFile { .. }), "{error}");
        home.nothing_is_left();
    }

    #[test]
    fn a_corrupt_or_false_qcow2_is_refused_and_leaves_nothing() {
        let home = Home::new();
        let path = home.qcow2("disk.qcow2");
        let file = File::options().write(true).open(&path).unwrap();
        // Bit 1 of the incompatible features: corrupt (docs/interop/qcow2.txt).
        file.write_all_at(&[2], 79).unwrap();
        let error = home.import(&path).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");

        let error = home.import(&home.file("text.qcow2", b"text")).unwrap_err();
        assert!(matches!(error, Error::NotOfFormat { .. }), "{error}");

        home.nothing_is_left();
    }

    #[test]
    fn a_qcow2_that_is_cut_off_is_refused_instead_of_read_as_zeros() {
        let home = Home::new();
        let path = home.qcow2("disk.qcow2");
        let file = File::options().write(true).open(&path).unwrap();
        let whole = file.metadata().unwrap().len();
        file.set_len(whole - (64 << 10)).unwrap();
        let error = home.import(&path).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Corrupt {
                    source: Some(_),
                    ..
                }
            ),
            "{error:?}"
        );
        home.nothing_is_left();
    }

    type Expected = fn(&Error) -> bool;

    #[test]
    fn what_is_no_file_or_of_unknown_format_is_refused_by_name() {
        let home = Home::new();
        let directory = home.home.path().join("directory.raw");
        fs::create_dir(&directory).unwrap();
        let iso = home.file("disk.iso", b"content");
        let cases: [(PathBuf, Expected); 5] = [
            (directory, |e| matches!(e, Error::NotAFile { .. })),
            (iso.clone(), |e| matches!(e, Error::UnknownFormat { .. })),
            (home.file("empty.raw", b""), |e| {
                matches!(e, Error::Empty { .. })
            }),
            (
                home.home.path().join("missing.raw"),
                |e| matches!(e, Error::File(error) if error.is_not_found()),
            ),
            (PathBuf::from("/dev/null"), |e| {
                matches!(e, Error::UnknownFormat { .. })
            }),
        ];
        for (path, expected) in cases {
            let error = home.import(&path).unwrap_err();
            assert!(expected(&error), "{error:?}");
            assert!(
                error.to_string().contains(&*path.to_string_lossy()),
                "{error}"
            );
        }
        home.nothing_is_left();
        let told = ImportRequest {
            format: Some(ImageFormat::Raw),
            ..Home::request(&iso)
        };
        assert!(home.images.import(&told, &mut |_, _| {}).is_ok());
    }

    #[test]
    fn a_taken_name_is_refused_and_its_image_stays() {
        let home = Home::new();
        let image = home.import(&home.file("one.raw", b"one")).unwrap();
        let error = home.import(&home.file("two.raw", b"two")).unwrap_err();
        assert!(matches!(error, Error::NameTaken { .. }), "{error}");
        assert_eq!(home.images.find(&image.name).unwrap(), image);
    }

    #[test]
    fn an_image_with_a_kernel_keeps_it_by_digest() {
        let home = Home::new();
        let kernel = home.file("vmlinuz", b"kernel");
        let initrd = home.file("initrd", b"initrd");
        let file = home.file("root.ext4", b"root");
        let lonely = ImportRequest {
            initrd: Some(initrd.clone()),
            ..Home::request(&file)
        };
        let error = home.images.import(&lonely, &mut |_, _| {}).unwrap_err();
        assert!(matches!(error, Error::InitrdWithoutKernel { .. }));
        let both = ImportRequest {
            kernel: Some(kernel),
            ..lonely
        };
        let boot = home.images.import(&both, &mut |_, _| {}).unwrap().boot;
        let boot = boot.unwrap();
        let kept = |digest| fs::read(home.images.kernel(digest).unwrap()).unwrap();
        assert_eq!(kept(&boot.kernel), b"kernel");
        assert_eq!(kept(boot.initrd.as_ref().unwrap()), b"initrd");
        // Neither the image's own kernel nor its initrd is unused.
        let guard = home.images.hold_kernels("test").unwrap();
        let discarded = home.images.discard_unused_kernels(&guard, &[]).unwrap();
        assert!(matches!(discarded, Discarded::Unused(0)), "{discarded:?}");
    }
}
