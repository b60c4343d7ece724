//! Volumes to files of other formats than raw, and back: qemu-img is the judge.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sistemo::exchange::{Checksum, Export, Imported, NewImported};
use sistemo::images::{ImageView, NewImport, NewOfVolume};
use sistemo::machines::Storage;
use sistemo::model::{Bytes, Digest, Filesystem, ImageName, PoolName};
use sistemo::pools::NewPool;
use sistemo::{Engine, Error, ImageError, ImageFormat};
use sistemo_host::program::Program;
use sistemo_testkit::filesystem::{LoopFilesystem, LoopKind};
use sistemo_testkit::{Requirement, met};

use crate::fixture::{
    House, MIB, files_in, holds, plan, pool_on, reference, volume_in, write_into,
};

const FORMATS: [ImageFormat; 4] = [
    ImageFormat::Qcow2,
    ImageFormat::Vmdk,
    ImageFormat::Vhdx,
    ImageFormat::Vdi,
];

/// Of the disk that goes to and fro: no power of anything.
const SIZE: u64 = 24 * MIB + 512;

fn imported(name: &str) -> NewImported {
    NewImported {
        name: name.parse().unwrap(),
        pool: None,
        filesystem: Filesystem::None,
        format: None,
        checksum: Checksum::Skip,
    }
}

fn import(engine: &Engine, name: &str, pool: Option<&PoolName>, from: &Path) -> Imported {
    let new = NewImported {
        pool: pool.cloned(),
        checksum: Checksum::Tell,
        ..imported(name)
    };
    engine.import_volume(&new, from).unwrap()
}

fn qemu_img(words: &[&str], paths: &[&Path]) -> String {
    let program = Program::find("qemu-img").unwrap();
    program.args(words).args(paths).run().unwrap().text()
}

/// Says that a file is whole and holds exactly what a raw file does.
fn judge(file: &Path, format: ImageFormat, raw: &Path) {
    let format_word = format.as_str();
    if format != ImageFormat::Raw {
        qemu_img(&["check", "-q", "-f", format_word], &[file]);
    }
    qemu_img(&["compare", "-f", "raw", "-F", format_word], &[raw, file]);
    let told = qemu_img(&["info", "--output=json", "-f", format_word], &[file]);
    let size = format!("\"virtual-size\": {},", raw.metadata().unwrap().len());
    assert!(told.contains(&size), "{told}");
}

/// A disk with data here and there, and holes between.
fn disk(house: &House) -> PathBuf {
    let path = house.path("source.raw");
    let file = File::create(&path).unwrap();
    file.set_len(SIZE).unwrap();
    for place in [0, 3 * MIB + 4096, 12 * MIB, 20 * MIB + 8192] {
        let data: Vec<u8> = (0..300_000_u32).map(|n| (n / 7 % 250) as u8 + 1).collect();
        file.write_all_at(&data, place).unwrap();
    }
    file.write_all_at(b"the end", SIZE - 12).unwrap();
    path
}

fn sha256(path: &Path) -> Digest {
    let told = Program::find("sha256sum").unwrap().arg(path).run().unwrap();
    told.text().split(' ').next().unwrap().parse().unwrap()
}

fn pool_of(engine: &Engine, driver: &str, place: &Path) -> PoolName {
    let pool = NewPool {
        name: driver.parse().unwrap(),
        driver: driver.to_owned(),
        options: vec![("dir_path".to_owned(), place.display().to_string())],
    };
    engine.add_pool(&pool).unwrap();
    pool.name
}

/// Puts a disk into a pool, takes it out in every format as it is and as it was, and puts each
/// of those into the pool again.
fn goes_and_comes_back(house: &House, engine: &Engine, pool: &PoolName) {
    let raw = disk(house);
    let sum = sha256(&raw);
    let first = import(engine, "first", Some(pool), &raw);
    assert_eq!(first.sha256, Some(sum.clone()));
    let before = first.volume.used_bytes.unwrap();
    let snapshot = engine.take_snapshot(&reference("first"), None).unwrap();
    let snapshot = snapshot.snapshot.name;
    for format in FORMATS {
        for (file, snapshot) in [("out", None), ("then", Some(&snapshot))] {
            let file = house.path(&format!("{file}.{format}"));
            let export = Export {
                snapshot: snapshot.cloned(),
                checksum: Checksum::Tell,
                ..Export::of(reference("first"))
            };
            let done = engine.export_volume(&export, &file).unwrap();
            assert_eq!((done.format, done.size.get()), (format, SIZE));
            assert_eq!(done.sha256, Some(sum.clone()));
            judge(&file, format, &raw);
        }
        let file = house.path(&format!("out.{format}"));
        let name = format!("back-{format}");
        let back = import(engine, &name, Some(pool), &file);
        assert_eq!(back.format, format);
        assert_eq!(back.sha256, Some(sum.clone()));
        assert_eq!(back.volume.size_bytes, SIZE);
        let after = back.volume.used_bytes.unwrap();
        assert!(after <= before, "{format}: {after} after {before}");
        let again = house.path(&format!("{format}.raw"));
        engine
            .export_volume(&Export::of(reference(&name)), &again)
            .unwrap();
        assert_eq!(sha256(&again), sum, "{format}");
        engine.delete_volume(&reference(&name)).unwrap();
    }
}

#[test]
fn a_volume_of_a_raw_file_goes_and_comes_back_in_every_format() {
    let house = House::new();
    goes_and_comes_back(&house, &house.engine(), &"default".parse().unwrap());
}

#[test]
fn a_volume_of_a_qcow2_file_goes_and_comes_back_in_every_format() {
    let house = House::new();
    let engine = house.engine();
    let pool = pool_of(&engine, "qcow2", &house.path("layers"));
    goes_and_comes_back(&house, &engine, &pool);
}

#[test]
fn a_volume_on_btrfs_goes_and_comes_back_in_every_format() {
    if !met(&[Requirement::Root, Requirement::Program("mkfs.btrfs")]) {
        return;
    }
    let filesystem = LoopFilesystem::new(LoopKind::Btrfs, Bytes::from_mib(300));
    let house = House::new();
    let engine = house.engine();
    let pool = pool_of(&engine, "btrfs", &filesystem.path().join("pool"));
    goes_and_comes_back(&house, &engine, &pool);
}

#[test]
fn a_format_is_named_or_told_by_the_files_name() {
    let house = House::new();
    let engine = house.engine();
    let raw = disk(&house);
    import(&engine, "data", None, &raw);
    let export = |format, name: &str| {
        let export = Export {
            format,
            ..Export::of(reference("data"))
        };
        let path = house.path(name);
        (engine.export_volume(&export, &path).unwrap().format, path)
    };
    for (told, name, format) in [
        (None, "a", ImageFormat::Raw),
        (None, "a.bin", ImageFormat::Raw),
        (None, "a.IMG", ImageFormat::Raw),
        (None, "a.QCOW2", ImageFormat::Qcow2),
        (Some(ImageFormat::Vdi), "b.qcow2", ImageFormat::Vdi),
    ] {
        let (found, path) = export(told, name);
        assert_eq!(found, format, "{name}");
        judge(&path, format, &raw);
    }
    // A name that lies is caught by what is in the file, a format that is told as well.
    let path = house.path("b.qcow2");
    let error = engine.import_volume(&imported("x"), &path).unwrap_err();
    assert_eq!(error.to_string(), "cannot import volume x");
    assert!(not_of_format(&error, ImageFormat::Qcow2), "{error:?}");
    let told = |format, name: &str| NewImported {
        format: Some(format),
        ..imported(name)
    };
    let new = told(ImageFormat::Vdi, "vdi");
    let made = engine.import_volume(&new, &path).unwrap().volume;
    assert!(holds(&made, SIZE - 12, b"the end"));
    // Raw it is where the user says so.
    let new = told(ImageFormat::Raw, "raw");
    let made = engine.import_volume(&new, &path).unwrap().volume;
    let content = fs::read(&path).unwrap();
    assert!(holds(&made, 0, &content));
}

fn not_of_format(error: &Error, expected: ImageFormat) -> bool {
    let Error::DiskFile { source, .. } = error else {
        return false;
    };
    matches!(source, ImageError::NotOfFormat { format, .. } if *format == expected)
}

type Expected = fn(&ImageError) -> bool;

#[test]
fn a_file_that_is_not_whole_in_itself_makes_no_volume() {
    let house = House::new();
    let engine = house.engine();
    let secret = house.path("secret");
    File::create(&secret).unwrap().write_all(b"secret").unwrap();
    let raw = disk(&house);
    let make = |name: &str, words: &[&str]| {
        let path = house.path(name);
        qemu_img(words, &[&raw, &path]);
        path
    };
    let overlay = house.path("overlay.qcow2");
    let words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"];
    qemu_img(&words, &[&secret, &overlay]);
    let flat = ["-O", "vmdk", "-o", "subformat=monolithicFlat"];
    let flat = make(
        "flat.vmdk",
        &[&["convert", "-f", "raw"], &flat[..]].concat(),
    );
    let cut = make("cut.qcow2", &["convert", "-f", "raw", "-O", "qcow2"]);
    let length = fs::metadata(&cut).unwrap().len();
    let file = File::options().write(true).open(&cut).unwrap();
    file.set_len(length / 2).unwrap();
    let empty = house.path("empty.vdi");
    File::create(&empty).unwrap();
    let fifo = house.path("fifo.vhdx");
    Program::find("mkfifo").unwrap().arg(&fifo).run().unwrap();
    let cases: [(&Path, Expected); 6] = [
        (
            &overlay,
            |e| matches!(e, ImageError::ReadsAnotherFile { other, .. } if other.ends_with("secret")),
        ),
        (&flat, |e| matches!(e, ImageError::ReadsAnotherFile { .. })),
        (&cut, |e| matches!(e, ImageError::Corrupt { .. })),
        (&empty, |e| matches!(e, ImageError::Empty { .. })),
        (&fifo, |e| matches!(e, ImageError::NotAFile { .. })),
        (&house.path("none.qcow2"), |e| {
            matches!(e, ImageError::File(_))
        }),
    ];
    for (path, expected) in cases {
        let error = engine.import_volume(&imported("new"), path).unwrap_err();
        let Error::DiskFile { source, .. } = &error else {
            panic!("{error:?}");
        };
        assert!(expected(source), "{source:?}");
        assert!(
            source.to_string().contains(path.to_str().unwrap()),
            "{source}"
        );
        assert_eq!(house.volume_files(), [""; 0]);
        assert!(engine.volumes().unwrap().is_empty());
    }
}

#[test]
fn a_disk_that_is_larger_than_its_pool_is_refused_and_leaves_nothing() {
    if !met(&[Requirement::Root, Requirement::Program("mkfs.ext4")]) {
        return;
    }
    let filesystem = LoopFilesystem::new(LoopKind::Ext4, Bytes::from_mib(32));
    let house = House::new();
    let engine = house.engine();
    let small = pool_on(&engine, "small", &filesystem);
    let raw = house.path("full.raw");
    File::create(&raw)
        .unwrap()
        .write_all(&vec![7; 48 << 20])
        .unwrap();
    let qcow2 = house.path("full.qcow2");
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2"], &[&raw, &qcow2]);
    // Compressed, a disk does not show how much room it takes.
    let tight = house.path("tight.qcow2");
    qemu_img(
        &["convert", "-c", "-f", "raw", "-O", "qcow2"],
        &[&raw, &tight],
    );
    // Of a size that no file on ext4 has.
    let endless = house.path("endless.qcow2");
    qemu_img(
        &["create", "-q", "-f", "qcow2", "-o", "cluster_size=2M"],
        &[&endless, Path::new("100T")],
    );
    let new = NewImported {
        pool: Some(small),
        ..imported("new")
    };
    for path in [&raw, &qcow2] {
        let error = engine.import_volume(&new, path).unwrap_err();
        assert!(matches!(error, Error::PoolTooFull { .. }), "{error:?}");
    }
    let error = engine.import_volume(&new, &tight).unwrap_err();
    let told = sistemo::causes(&error).join(": ");
    assert!(told.contains("No space left on device"), "{told}");
    let error = engine.import_volume(&new, &endless).unwrap_err();
    assert!(matches!(error, Error::Pool { .. }), "{error:?}");
    assert!(engine.volumes().unwrap().is_empty());
    assert_eq!(files_in(&filesystem.path().join("small")), [""; 0]);
}

#[test]
fn an_export_that_finds_no_room_leaves_nothing() {
    if !met(&[Requirement::Root, Requirement::Program("mkfs.ext4")]) {
        return;
    }
    let filesystem = LoopFilesystem::new(LoopKind::Ext4, Bytes::from_mib(16));
    let house = House::new();
    let engine = house.engine();
    let data = volume_in(&engine, &"default".parse().unwrap(), "data", 64);
    write_into(&data, 0, &vec![7; 32 << 20]);
    for name in ["data.raw", "data.qcow2", "data.vdi"] {
        let path = filesystem.path().join(name);
        let export = Export::of(reference("data"));
        let error = engine.export_volume(&export, &path).unwrap_err();
        let told = sistemo::causes(&error).join(": ");
        let expected = matches!(error, Error::PlaceTooFull { .. });
        assert!(expected || told.contains("No space left"), "{told}");
        assert_eq!(files_in(filesystem.path()), ["lost+found"]);
    }
    // qemu-img itself runs full where there seemed to be room: vdi takes a megabyte a block.
    let scattered = volume_in(&engine, &"default".parse().unwrap(), "scattered", 64);
    for block in 0..64 {
        write_into(&scattered, block * MIB, &vec![7; 1 << 16]);
    }
    let path = filesystem.path().join("scattered.vdi");
    let export = Export::of(reference("scattered"));
    let error = engine.export_volume(&export, &path).unwrap_err();
    assert!(matches!(error, Error::DiskFile { .. }), "{error:?}");
    assert_eq!(files_in(filesystem.path()), ["lost+found"]);
}

#[test]
fn streams_carry_every_format() {
    let house = House::new();
    let engine = house.engine();
    let raw = disk(&house);
    import(&engine, "data", None, &raw);
    for format in FORMATS {
        let export = Export {
            format: Some(format),
            ..Export::of(reference("data"))
        };
        let mut stream = Vec::new();
        engine.export_volume_to(&export, &mut stream).unwrap();
        let file = house.path(&format!("stream.{format}"));
        File::create(&file).unwrap().write_all(&stream).unwrap();
        judge(&file, format, &raw);
        let new = NewImported {
            format: Some(format),
            checksum: Checksum::Expect(sha256(&raw)),
            ..imported(format.as_str())
        };
        let made = engine.import_volume_from(&new, &mut stream.as_slice());
        let made = made.unwrap().volume;
        assert!(holds(&made, SIZE - 12, b"the end"), "{format}");
        let half = &stream[..stream.len() / 2];
        let new = NewImported {
            format: Some(format),
            ..imported("half")
        };
        let error = engine.import_volume_from(&new, &mut &*half).unwrap_err();
        assert!(
            matches!(error, Error::DiskFile { .. }),
            "{format}: {error:?}"
        );
    }
    assert_eq!(engine.volumes().unwrap().len(), 5);
    // A name that is taken is refused before the stream is read.
    let new = NewImported {
        format: Some(ImageFormat::Qcow2),
        ..imported("data")
    };
    let mut endless = std::io::repeat(7);
    let error = engine.import_volume_from(&new, &mut endless).unwrap_err();
    assert_eq!(error.to_string(), "volume data already exists");
    let left: Vec<_> = files_in(&house.data_dir())
        .into_iter()
        .filter(|name| name.contains("scratch"))
        .collect();
    assert_eq!(left, [""; 0]);
}

#[test]
fn a_volume_with_other_bytes_than_were_expected_is_not_made() {
    let house = House::new();
    let engine = house.engine();
    let raw = disk(&house);
    let qcow2 = house.path("disk.qcow2");
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2"], &[&raw, &qcow2]);
    let other = Digest::from_bytes([7; 32]);
    let expecting = |digest: &Digest| NewImported {
        checksum: Checksum::Expect(digest.clone()),
        ..imported("new")
    };
    let new = expecting(&other);
    let mut stream = File::open(&raw).unwrap();
    for error in [
        engine.import_volume(&new, &raw).unwrap_err(),
        engine.import_volume(&new, &qcow2).unwrap_err(),
        engine.import_volume_from(&new, &mut stream).unwrap_err(),
    ] {
        let text = format!(
            "the content of volume new has the SHA-256 {} instead of {other}",
            sha256(&raw)
        );
        assert_eq!(error.to_string(), text);
    }
    assert!(engine.volumes().unwrap().is_empty());
    assert_eq!(house.volume_files(), [""; 0]);
    let made = engine.import_volume(&expecting(&sha256(&raw)), &qcow2);
    assert_eq!(made.unwrap().sha256, Some(sha256(&raw)));
}

#[test]
fn an_image_of_a_volume_holds_what_it_did() {
    let house = House::new();
    let engine = house.engine();
    let data = volume_in(&engine, &"default".parse().unwrap(), "data", 16);
    write_into(&data, 3 * MIB, b"earlier");
    let taken = engine.take_snapshot(&reference("data"), None).unwrap();
    write_into(&data, 3 * MIB, b"changed");
    let new = |name: &str, snapshot| NewOfVolume {
        volume: reference("data"),
        snapshot,
        name: name.parse().unwrap(),
        pool: None,
    };
    let word = |image: &ImageView| {
        let mut word = [0; 7];
        let file = File::open(&image.path).unwrap();
        file.read_exact_at(&mut word, 3 * MIB).unwrap();
        word
    };
    let now = engine.create_image(&new("now", None)).unwrap();
    assert_eq!((now.size_bytes, now.source), (16 * MIB, "volume"));
    assert_eq!(now.volume, Some("data".parse().unwrap()));
    assert_eq!(&word(&now), b"changed");
    assert!(now.used_bytes.unwrap() < MIB);
    let then = engine
        .create_image(&new("then", Some(taken.snapshot.name.clone())))
        .unwrap();
    assert_eq!(then.snapshot, Some(taken.snapshot.name));
    assert_eq!(&word(&then), b"earlier");
    let error = engine.create_image(&new("now", None)).unwrap_err();
    assert_eq!(error.to_string(), "image now already exists");
    // It is an image like any other, and outlives the volume.
    engine.delete_volume(&reference("data")).unwrap();
    let name: ImageName = "now".parse().unwrap();
    assert_eq!(engine.image(&name).unwrap(), now);
    assert_eq!(engine.images().unwrap().len(), 2);
}

#[test]
fn an_image_of_a_root_volume_keeps_its_kernel() {
    let house = House::new();
    let engine = house.engine();
    let (root, kernel) = (house.path("root.raw"), house.path("vmlinuz"));
    File::create(&root).unwrap().set_len(16 * MIB).unwrap();
    File::create(&kernel).unwrap().write_all(b"kernel").unwrap();
    let import = NewImport {
        file: root,
        name: "first".parse().unwrap(),
        kernel: Some(kernel),
        initrd: None,
        format: None,
        pool: None,
    };
    let first = engine.import_image(import).unwrap();
    engine.deploy(&plan("first", "m")).unwrap();
    let new = NewOfVolume {
        volume: reference("m-root"),
        snapshot: None,
        name: "golden".parse().unwrap(),
        pool: None,
    };
    let golden = engine.create_image(&new).unwrap();
    assert_eq!(golden.kernel, first.kernel);
    // It is the only one now that boots the kernel.
    engine
        .delete_machine(&reference("m"), Storage::RemoveRoot)
        .unwrap();
    engine.delete_image(&first.name).unwrap();
    let kept = house.data_dir().join("kernels");
    let kept = kept.join(golden.kernel.unwrap().as_str());
    assert_eq!(fs::read(kept).unwrap(), b"kernel");
}
