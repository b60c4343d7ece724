use std::io::Write;
use std::os::unix::fs::FileExt;

use sistemo_host::program::Program;

use super::*;

const MIB: u64 = 1 << 20;
const STRUCTURED: [ImageFormat; 4] = [
    ImageFormat::Qcow2,
    ImageFormat::Vmdk,
    ImageFormat::Vhdx,
    ImageFormat::Vdi,
];

struct Scene(tempfile::TempDir);

impl Scene {
    fn new() -> Scene {
        Scene(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().write_all(content).unwrap();
        path
    }

    /// 64 MB less half a MB, of which the first and the last words are no zeros.
    fn raw(&self) -> PathBuf {
        let path = self.file("source.raw", b"first");
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(64 * MIB - (MIB >> 1)).unwrap();
        file.write_all_at(b"last", 63 * MIB + 4096).unwrap();
        path
    }

    /// A disk in a format, and with options of that format, as qemu-img writes it.
    fn made(&self, name: &str, format: ImageFormat, options: &[&str]) -> PathBuf {
        let path = self.path(name);
        let program = Program::find("qemu-img").unwrap();
        let program = program.args(["convert", "-f", "raw", "-O", format.as_str()]);
        let program = program.args(options).arg(self.raw()).arg(&path);
        program.run().unwrap();
        path
    }
}

fn change(path: &Path, offset: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

fn refused(path: &Path, format: ImageFormat) -> Error {
    let error = DiskFile::open(path, format).unwrap_err();
    let named = error.to_string().contains(&*path.to_string_lossy());
    assert!(named, "{error}");
    error
}

fn reads_another(path: &Path, format: ImageFormat, name: &str) {
    match refused(path, format) {
        Error::ReadsAnotherFile { other, .. } => assert!(other.contains(name), "{other}"),
        error => panic!("{error:?}"),
    }
}

#[test]
fn a_name_tells_a_format_in_any_case() {
    for (name, format) in [
        ("a.raw", Some(ImageFormat::Raw)),
        ("a.IMG", Some(ImageFormat::Raw)),
        ("a.ext4", Some(ImageFormat::Raw)),
        ("a.b.QCOW2", Some(ImageFormat::Qcow2)),
        ("a.vmdk", Some(ImageFormat::Vmdk)),
        ("a.vhdx", Some(ImageFormat::Vhdx)),
        ("a.vdi", Some(ImageFormat::Vdi)),
        ("a.iso", None),
        ("qcow2", None),
    ] {
        assert_eq!(ImageFormat::of_name(Path::new(name)), format, "{name}");
    }
}

#[test]
fn a_disk_goes_through_every_format_and_stays_sparse() {
    let scene = Scene::new();
    let raw = scene.raw();
    let size = raw.metadata().unwrap().len();
    for format in STRUCTURED {
        let path = scene.path(&format!("disk.{format}"));
        let target = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        let written = Written {
            name: "a disk",
            place: Place::Path(&raw, ImageFormat::Raw),
            size,
            file_name: "disk \"1\".vmdk",
        };
        let mut last = (0, 0);
        written
            .write(&target, format, &[], &mut |done, total| {
                last = (done, total);
            })
            .unwrap();
        assert_eq!(last, (size, size), "{format}");
        assert!(sparse::used_bytes(&target).unwrap() < 4 * MIB, "{format}");
        let disk = DiskFile::open(&path, format).unwrap();
        assert_eq!((disk.size(), disk.format()), (size, format));
        let back = tempfile::tempfile_in(scene.0.path()).unwrap();
        back.set_len(size).unwrap();
        disk.convert_into(&back, &[], &mut |_, _| {}).unwrap();
        let used = |file: &File| sparse::used_bytes(file).unwrap();
        let source = File::open(&raw).unwrap();
        assert!(used(&back) <= used(&source), "{format}: {}", used(&back));
        let mut read = vec![0; usize::try_from(size).unwrap()];
        back.read_exact_at(&mut read, 0).unwrap();
        assert!(read == fs::read(&raw).unwrap(), "{format}");
    }
    let vmdk = fs::read(scene.path("disk.vmdk")).unwrap();
    let description = String::from_utf8_lossy(&vmdk[512..1024]).into_owned();
    assert!(
        description.contains("RW 130048 SPARSE \"disk _1_.vmdk\"\n"),
        "{description}"
    );
}

#[test]
fn what_is_of_another_format_is_refused_by_name() {
    let scene = Scene::new();
    let text = scene.file("text", b"text");
    let zeros = scene.file("zeros", &vec![0; 1 << 20]);
    let qcow2 = scene.made("x", ImageFormat::Qcow2, &[]);
    for format in STRUCTURED {
        for path in [&text, &zeros, &qcow2] {
            if path == &qcow2 && format == ImageFormat::Qcow2 {
                continue;
            }
            let error = refused(path, format);
            assert!(matches!(error, Error::NotOfFormat { .. }), "{error}");
        }
    }
    // What is raw is never looked at.
    for path in [text, zeros, qcow2] {
        let raw = DiskFile::open(&path, ImageFormat::Raw).unwrap();
        assert_eq!(raw.size(), path.metadata().unwrap().len());
    }
}

#[test]
fn a_qcow2_that_needs_more_than_itself_is_refused() {
    let scene = Scene::new();
    let secret = scene.file("secret", b"secret");
    let qcow2 = |options: &[&str]| {
        let path = scene.path("x.qcow2");
        let program = Program::find("qemu-img").unwrap();
        let program = program.args(["create", "-q", "-f", "qcow2"]).args(options);
        program.arg(&path).arg("1M").run().unwrap();
        path
    };
    let path = qcow2(&["-F", "raw", "-b", secret.to_str().unwrap()]);
    reads_another(&path, ImageFormat::Qcow2, "secret");
    let option = format!("data_file={}", scene.path("data").display());
    reads_another(&qcow2(&["-o", &option]), ImageFormat::Qcow2, "/data");

    let plain = || scene.made("x.qcow2", ImageFormat::Qcow2, &[]);
    // A name of a backing file that is not even in the file.
    change(&plain(), 8, &(1_u64 << 40).to_be_bytes());
    reads_another(&path, ImageFormat::Qcow2, "without a name");
    // Encryption, a version and a feature to come.
    change(&plain(), 32, &2_u32.to_be_bytes());
    let error = refused(&path, ImageFormat::Qcow2);
    assert!(matches!(error, Error::Encrypted { .. }), "{error}");
    for (offset, byte) in [(7, 4), (72, 0x80)] {
        change(&plain(), offset, &[byte]);
        let error = refused(&path, ImageFormat::Qcow2);
        assert!(matches!(error, Error::UnsupportedDisk { .. }), "{error}");
    }
    // Marked as corrupt, clusters that nobody has, and a size that nothing has.
    for (offset, bytes) in [
        (79, &[2][..]),
        (23, &[63][..]),
        (24, &[0xff; 8][..]),
        (24, &[0x7f; 8][..]),
    ] {
        change(&plain(), offset, bytes);
        let error = refused(&path, ImageFormat::Qcow2);
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    }
}

#[test]
fn a_vmdk_of_several_files_is_refused() {
    let scene = Scene::new();
    for kind in [
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
    ] {
        let option = format!("subformat={kind}");
        let path = scene.made(&format!("{kind}.vmdk"), ImageFormat::Vmdk, &["-o", &option]);
        reads_another(&path, ImageFormat::Vmdk, "split into");
        let part = scene.path(&format!("{kind}-s001.vmdk"));
        if part.exists() {
            reads_another(&part, ImageFormat::Vmdk, "");
        }
    }
    reads_another(&scene.file("x", b"COWD"), ImageFormat::Vmdk, "split into");
    let plain = || scene.made("x.vmdk", ImageFormat::Vmdk, &[]);
    // Without a capacity, QEMU opens what the description inside names.
    let path = plain();
    change(&path, 12, &[0; 8]);
    let named = b"version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
        RW 1 FLAT \"/etc/shadow\" 0\n\0";
    change(&path, 512, named);
    reads_another(&path, ImageFormat::Vmdk, "its description names");
    // A parent, wherever its name is.
    let path = plain();
    change(&path, 512 + 9000, b"parentFileNameHint=\"/etc/shadow\"\n");
    reads_another(&path, ImageFormat::Vmdk, "/etc/shadow");
    let text = fs::read(plain()).unwrap();
    let at = text.windows(10).position(|word| word == b"parentCID=");
    change(&path, 0, &text);
    change(&path, at.unwrap() as u64 + 10, b"12345678");
    reads_another(&path, ImageFormat::Vmdk, "its parent");
    let path = plain();
    change(&path, 28, &[2]);
    let error = refused(&path, ImageFormat::Vmdk);
    assert!(matches!(error, Error::UnsupportedDisk { .. }), "{error}");
    // Sizes that would take forever, or overflow.
    for (offset, bytes) in [
        (12, &[0x7f; 8][..]),
        (12, &[0xff; 8][..]),
        (20, &[1, 0][..]),
        (20, &[0, 0][..]),
        (44, &[0, 0][..]),
    ] {
        let path = plain();
        change(&path, offset, bytes);
        let error = refused(&path, ImageFormat::Vmdk);
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    }
}

#[test]
fn a_compressed_vmdk_is_read() {
    let scene = Scene::new();
    let options = ["-o", "subformat=streamOptimized"];
    let path = scene.made("x.vmdk", ImageFormat::Vmdk, &options);
    let disk = DiskFile::open(&path, ImageFormat::Vmdk).unwrap();
    assert_eq!(disk.size(), 64 * MIB - (MIB >> 1));
    let file = File::options().write(true).open(&path).unwrap();
    // Each grain takes a sector.
    file.set_len((64 << 10) + 512).unwrap();
    let error = refused(&path, ImageFormat::Vmdk);
    assert!(matches!(error, Error::CutOff { .. }), "{error}");
}

#[test]
fn a_disk_that_differs_from_a_parent_is_refused() {
    let scene = Scene::new();
    let vdi = || scene.made("x.vdi", ImageFormat::Vdi, &[]);
    for (offset, bytes) in [(0x1a8, &[1][..]), (0x1b8, &[1][..]), (0x4c, &[4][..])] {
        let path = vdi();
        change(&path, offset, bytes);
        reads_another(&path, ImageFormat::Vdi, "its parent");
    }
    let path = vdi();
    change(&path, 0x170, &[0x7f; 8]);
    let error = refused(&path, ImageFormat::Vdi);
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");

    let vhdx = || scene.made("x.vhdx", ImageFormat::Vhdx, &[]);
    let path = vhdx();
    let content = fs::read(&path).unwrap();
    let parameters = [0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa];
    let entry = content.windows(6).position(|word| word == parameters);
    let entry = entry.unwrap();
    let table = content.windows(8).position(|word| word == b"metadata");
    let offset = u32::from_le_bytes(content[entry + 16..entry + 20].try_into().unwrap());
    let flags = table.unwrap() as u64 + u64::from(offset) + 4;
    change(&path, flags, &[2]);
    reads_another(&path, ImageFormat::Vhdx, "its parent");
    // A parent's locator in the place of something else.
    let path = vhdx();
    change(&path, entry as u64 + 32, &super::vhdx::PARENT);
    reads_another(&path, ImageFormat::Vhdx, "its parent");
    // A log that was not replayed.
    let path = vhdx();
    for header in [64 << 10, 128 << 10] {
        change(&path, header + 48, &[1]);
    }
    let error = refused(&path, ImageFormat::Vhdx);
    assert!(matches!(error, Error::UnsupportedDisk { .. }), "{error}");
    for at in [192 << 10, table.unwrap() as u64] {
        let path = vhdx();
        change(&path, at, b"nothing ");
        let error = refused(&path, ImageFormat::Vhdx);
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    }
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_refused_instead_of_read_as_zeros() {
    let scene = Scene::new();
    for format in STRUCTURED {
        let whole = fs::read(scene.made("whole", format, &[])).unwrap();
        let most = whole.len();
        // The last cluster of a qcow2 may be written in part, and what lies behind the disk's end
        // in the last block of a VHDX is nobody's.
        let least = match format {
            ImageFormat::Vhdx => 1 << 20,
            _ => 64 << 10,
        };
        for length in [most - least, most / 2, 70 << 10, 600, 70, 4] {
            let name = format!("{length}.{format}");
            let path = scene.file(&name, &whole[..length.min(most - 1)]);
            let error = refused(&path, format);
            let expected = matches!(
                error,
                Error::CutOff { .. } | Error::Corrupt { .. } | Error::NotOfFormat { .. }
            );
            assert!(expected, "{name}: {error:?}");
        }
    }
}
