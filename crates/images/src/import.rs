//! Taking in a disk or filesystem from a file.
//!
//! What a file is, its name or the user says. A raw file's content is never looked at to find
//! out: a guest could have written the beginning of a qcow2 there that names any file of the host.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use sistemo_host::directory::FileError;
use sistemo_host::lock::{Lock, PATIENCE};
use sistemo_host::program::{Program, ProgramError, Running};
use sistemo_host::sparse;
use sistemo_model::{Bytes, Image, ImageId, ImageName, ImageSource, Timestamp, UnknownWord};

use crate::error::{Error, Result};
use crate::store::Images;

/// Examining a file takes milliseconds; one made to be endless is not waited for.
const EXAMINATION_LIMIT: Duration = Duration::from_secs(30);
/// How often the progress of a conversion is read.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// How a file holds a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's format.
    Qcow2,
}

impl ImageFormat {
    /// The word users and tools know it by.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
        }
    }

    /// The format that a file's name tells: `.raw`, `.img` and `.ext4` are raw, `.qcow2` is
    /// qcow2, in any case.
    #[must_use]
    pub fn of_name(path: &Path) -> Option<ImageFormat> {
        let extension = path.extension().and_then(OsStr::to_str)?;
        match extension.to_ascii_lowercase().as_str() {
            "raw" | "img" | "ext4" => Some(ImageFormat::Raw),
            "qcow2" => Some(ImageFormat::Qcow2),
            _ => None,
        }
    }
}

impl FromStr for ImageFormat {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<ImageFormat, UnknownWord> {
        [ImageFormat::Raw, ImageFormat::Qcow2]
            .into_iter()
            .find(|format| format.as_str() == word)
            .ok_or_else(|| UnknownWord::new("format of an image file", word))
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

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

/// What `qemu-img info --output=json` says (docs/interop/qcow2.txt, qapi/block-core.json).
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Examination {
    virtual_size: u64,
    backing_filename: Option<String>,
    full_backing_filename: Option<String>,
    format_specific: Option<FormatSpecific>,
}

#[derive(Deserialize)]
struct FormatSpecific {
    data: Qcow2Facts,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Qcow2Facts {
    #[serde(default)]
    corrupt: bool,
    data_file: Option<String>,
}

impl Images {
    /// Makes an image of a file. `progress` is told the bytes done and the bytes there are to do.
    ///
    /// A crash leaves content that no description names; the next import or build removes it.
    ///
    /// # Errors
    /// [`Error::NameTaken`]; where the file is empty, not a file, of unknown format, corrupt, or
    /// a qcow2 that reads another file; where it or the kernel cannot be read. Nothing is left.
    pub fn import(
        &self,
        request: &ImportRequest,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Image> {
        let name = &request.name;
        if request.initrd.is_some() && request.kernel.is_none() {
            return Err(Error::InitrdWithoutKernel { name: name.clone() });
        }
        let format = format_of(&request.file, request.format)?;
        let source = open_regular(&request.file)?;
        for boots in request.kernel.iter().chain(&request.initrd) {
            open_regular(boots)?;
        }
        let lock = self.lock(name, PATIENCE)?;
        match self.find(name) {
            Err(Error::NotFound { .. }) => {}
            Ok(_) | Err(Error::Damaged { .. } | Error::Newer { .. }) => {
                return Err(Error::NameTaken { name: name.clone() });
            }
            Err(error) => return Err(error),
        }
        self.remove_leftovers(&lock, name)?;
        let imported = self.import_locked(&lock, request, &source, format, progress);
        if imported.is_err() {
            // The error that matters is the one above; what stays is removed at the next import.
            let _ = self.remove_leftovers(&lock, name);
        }
        imported
    }

    fn import_locked(
        &self,
        lock: &Lock,
        request: &ImportRequest,
        source: &File,
        format: ImageFormat,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Image> {
        let ImportRequest { file, name, .. } = request;
        let id = ImageId::random();
        let content = self.create_content(name, id)?;
        match format {
            ImageFormat::Raw => {
                let _ = sparse::copy(source, &content, progress)
                    .map_err(|error| FileError::new("copy", file, error))?;
            }
            ImageFormat::Qcow2 => convert(file, source, &content, Some(lock), progress)?,
        }
        let length = content
            .metadata()
            .map_err(|error| FileError::new("examine", self.content_path(name, id), error))?
            .len();
        let size = whole_sectors(length);
        content
            .set_len(size.get())
            .map_err(|error| FileError::new("grow", self.content_path(name, id), error))?;

        let guard = self.hold_kernels("image import")?;
        let boot = request
            .kernel
            .as_ref()
            .map(|kernel| self.add_boot(&guard, kernel, request.initrd.as_deref()))
            .transpose()?;
        let image = Image {
            id,
            name: name.clone(),
            size,
            boot,
            source: ImageSource::Imported {
                file: file_name(file),
            },
            created: Timestamp::now(),
        };
        self.publish(lock, &image)?;
        Ok(image)
    }

    /// Opens a file to deploy from without making an image of it. A qcow2 file is converted into
    /// an unnamed file beside the images, which a crash does not leave behind.
    ///
    /// # Errors
    /// As [`Images::import`], but for the name.
    pub fn borrow_file(
        &self,
        path: &Path,
        format: Option<ImageFormat>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<BorrowedContent> {
        let format = format_of(path, format)?;
        let source = open_regular(path)?;
        let file = match format {
            ImageFormat::Raw => source,
            ImageFormat::Qcow2 => {
                let directory = self.store.path();
                let content = tempfile::tempfile_in(directory)
                    .map_err(|error| FileError::new("create a file in", directory, error))?;
                convert(path, &source, &content, None, progress)?;
                content
            }
        };
        let length = file
            .metadata()
            .map_err(|error| FileError::new("examine", path, error))?
            .len();
        Ok(BorrowedContent {
            file,
            size: whole_sectors(length),
        })
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

fn whole_sectors(length: u64) -> Bytes {
    Bytes::new(length.div_ceil(Bytes::SECTOR) * Bytes::SECTOR)
}

/// Opens a file that holds something. It is examined before it is opened, for opening a FIFO
/// waits, and opening a device may act.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    let examine = |error| FileError::new("open", path, error);
    let not_a_file = || Error::NotAFile {
        path: path.to_owned(),
    };
    if !fs::metadata(path).map_err(examine)?.is_file() {
        return Err(not_a_file());
    }
    let file = File::open(path).map_err(examine)?;
    let facts = file.metadata().map_err(examine)?;
    if !facts.is_file() {
        return Err(not_a_file());
    }
    if facts.len() == 0 {
        return Err(Error::Empty {
            path: path.to_owned(),
        });
    }
    Ok(file)
}

/// What the first file that a program inherits is to it, and the second: the files that we
/// opened and examined, whatever their paths have become since.
const SOURCE: &str = "/dev/fd/3";
const TARGET: &str = "/dev/fd/4";

/// Writes what a qcow2 file holds into `target`, leaving its holes out.
fn convert(
    path: &Path,
    source: &File,
    target: &File,
    lock: Option<&Lock>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let examination = examine(path, source)?;
    let failed = |source| Error::program("convert", path.display())(source);
    let log = tempfile::tempfile()
        .map_err(|error| FileError::new("create a file in", std::env::temp_dir(), error))?;
    let output = log
        .try_clone()
        .map_err(|error| FileError::new("open", path, error))?;
    let start = || {
        let mut program = Program::find("qemu-img")?
            .inherit(source)?
            .inherit(target)?;
        if let Some(lock) = lock {
            program = program.inherit(lock)?;
        }
        program
            .args(["convert", "-p", "-f", "qcow2", "-O", "raw", "--"])
            .args([SOURCE, TARGET])
            .spawn_logged(output)
    };
    let running = start().map_err(failed)?;
    wait(running, &log, examination.virtual_size, progress).map_err(failed)
}

fn wait(
    mut running: Running,
    log: &File,
    size: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), ProgramError> {
    let status = loop {
        let ended = running.try_wait().map_err(|source| ProgramError::Start {
            path: "qemu-img".into(),
            source,
        })?;
        let text = read_log(log);
        if let Some(hundredths) = percent_done(&text) {
            let done = u128::from(size) * u128::from(hundredths) / 10_000;
            progress(u64::try_from(done).unwrap_or(size), size);
        }
        match ended {
            Some(status) if status.success() => return Ok(()),
            Some(status) => break status,
            None => thread::sleep(PROGRESS_INTERVAL),
        }
    };
    let text = read_log(log);
    let words: Vec<&str> = text
        .split(['\r', '\n'])
        .filter(|line| !line.contains("/100%)") && !line.trim().is_empty())
        .collect();
    Err(ProgramError::Failed {
        name: "qemu-img".to_owned(),
        status,
        message: words.join("\n"),
    })
}

/// What qemu-img has written so far. It shares the offset of our descriptor, so it is read at
/// positions.
fn read_log(log: &File) -> String {
    use std::os::unix::fs::FileExt;
    let mut content = vec![0; 64 << 10];
    let length = log.metadata().map_or(0, |facts| facts.len());
    let from = length.saturating_sub(content.len() as u64);
    let read = log.read_at(&mut content, from).unwrap_or(0);
    String::from_utf8_lossy(&content[..read]).into_owned()
}

/// The last `(12.34/100%)` of qemu-img's progress, in hundredths of a percent.
fn percent_done(text: &str) -> Option<u64> {
    let (before, _) = text.rsplit_once("/100%)")?;
    let (_, number) = before.rsplit_once('(')?;
    let (whole, hundredths) = number.trim().split_once('.')?;
    let whole: u64 = whole.parse().ok()?;
    let hundredths: u64 = hundredths.parse().ok().filter(|part| *part < 100)?;
    Some((whole * 100 + hundredths).min(10_000))
}

/// Refuses a qcow2 file that cannot be read by itself.
fn examine(path: &Path, source: &File) -> Result<Examination> {
    let run = || {
        Program::find("qemu-img")?
            .inherit(source)?
            .time_limit(EXAMINATION_LIMIT)
            .args(["info", "--output=json", "-f", "qcow2", "--", SOURCE])
            .run()
    };
    let answer = run().map_err(Error::program("examine", path.display()))?;
    let found: Examination =
        serde_json::from_slice(&answer.stdout).map_err(|source| Error::QemuImgAnswer {
            path: path.to_owned(),
            source,
        })?;
    let facts = found.format_specific.as_ref().map(|facts| &facts.data);
    let other = found
        .backing_filename
        .as_ref()
        .or(found.full_backing_filename.as_ref())
        .or_else(|| facts.and_then(|facts| facts.data_file.as_ref()));
    if let Some(other) = other {
        return Err(Error::ReadsAnotherFile {
            path: path.to_owned(),
            other: other.clone(),
        });
    }
    if facts.is_some_and(|facts| facts.corrupt) {
        return Err(Error::Corrupt {
            path: path.to_owned(),
            source: None,
        });
    }
    if found.virtual_size == 0 {
        return Err(Error::Empty {
            path: path.to_owned(),
        });
    }
    check(path, source)?;
    Ok(found)
}

/// Looks whether the tables of a qcow2 file are whole and all that they name is in it.
fn check(path: &Path, source: &File) -> Result<()> {
    /// Exit statuses of qemu-img check, from qemu-img(1).
    const CORRUPTED: i32 = 2;
    const LEAKED: i32 = 3;
    let run = || {
        Program::find("qemu-img")?
            .inherit(source)?
            .args(["check", "-q", "-f", "qcow2", "--", SOURCE])
            .run()
    };
    match run() {
        Ok(_) => Ok(()),
        // Clusters that nothing uses harm nobody who only reads.
        Err(ProgramError::Failed { status, .. }) if status.code() == Some(LEAKED) => Ok(()),
        Err(ProgramError::Failed {
            name,
            status,
            message,
        }) if status.code() == Some(CORRUPTED) => Err(Error::Corrupt {
            path: path.to_owned(),
            source: Some(ProgramError::Failed {
                name,
                status,
                message,
            }),
        }),
        Err(error) => Err(Error::program("examine", path.display())(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

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
        assert!(matches!(error, Error::Program { .. }), "{error}");

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

    #[test]
    fn the_progress_of_qemu_img_is_read() {
        assert_eq!(
            percent_done("    (0.00/100%)\r    (12.34/100%)\r"),
            Some(1234)
        );
        assert_eq!(percent_done("    (100.00/100%)\r\n"), Some(10_000));
        assert_eq!(percent_done("qemu-img: error"), None);
    }
}
