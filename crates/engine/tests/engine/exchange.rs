//! Volumes to files and streams, and back.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use sistemo::exchange::{Checksum, Export, NewImported};
use sistemo::model::Filesystem;
use sistemo::{Engine, Error};
use sistemo_host::program::Program;

use crate::fixture::{
    House, MIB, holds, pool_on, reference, reflinks, volume, volume_in, write_into,
};

fn export(source: &str) -> Export {
    Export::of(reference(source))
}

fn imported(name: &str) -> NewImported {
    NewImported {
        name: name.parse().unwrap(),
        pool: None,
        filesystem: Filesystem::None,
        format: None,
        checksum: Checksum::Skip,
    }
}

fn unchanged(engine: &Engine, house: &House) {
    assert!(engine.volumes().unwrap().is_empty());
    assert_eq!(house.volume_files(), [""; 0]);
}

#[test]
fn a_volume_goes_to_a_file_and_comes_back_with_its_holes() {
    let Some(filesystem) = reflinks() else { return };
    let house = House::new();
    let engine = house.engine();
    let fast = pool_on(&engine, "fast", &filesystem);
    let data = volume(&engine, "data", "1G");
    write_into(&data, 512 * MIB, b"in the midst");
    for place in [house.path("data.raw"), filesystem.path().join("data.raw")] {
        let done = engine.export_volume(&export("data"), &place).unwrap();
        assert_eq!(done.size.get(), 1 << 30);
        let file = fs::metadata(&place).unwrap();
        assert_eq!(file.len(), 1 << 30);
        assert!(file.blocks() * 512 < 16 * MIB, "{}", file.blocks());
        assert_eq!(
            fs::read(data.path.as_ref().unwrap()).unwrap(),
            fs::read(&place).unwrap()
        );
    }
    for (pool, name) in [(None, "here"), (Some(fast), "there")] {
        let new = NewImported {
            pool,
            filesystem: Filesystem::Ext4,
            ..imported(name)
        };
        let back = engine.import_volume(&new, &house.path("data.raw"));
        let back = back.unwrap().volume;
        assert_eq!((back.size_bytes, back.fs), (1 << 30, Filesystem::Ext4));
        assert!(holds(&back, 512 * MIB, b"in the midst"));
        assert!(back.used_bytes.unwrap() < 16 * MIB);
    }
}

#[test]
fn a_snapshot_is_exported_as_it_was() {
    let house = House::new();
    let engine = house.engine();
    let data = volume_in(&engine, &"default".parse().unwrap(), "data", 16);
    write_into(&data, 3 * MIB, b"earlier");
    let taken = engine.take_snapshot(&reference("data"), None).unwrap();
    write_into(&data, 3 * MIB, b"changed");
    let path = house.path("earlier.raw");
    let export = Export {
        snapshot: Some(taken.snapshot.name),
        ..export("data")
    };
    engine.export_volume(&export, &path).unwrap();
    let mut found = [0; 7];
    let file = File::open(&path).unwrap();
    file.read_exact_at(&mut found, 3 * MIB).unwrap();
    assert_eq!(&found, b"earlier");
    assert!(file.metadata().unwrap().blocks() * 512 < MIB);
    let mut stream = Vec::new();
    engine.export_volume_to(&export, &mut stream).unwrap();
    assert_eq!(stream, fs::read(&path).unwrap());
}

#[test]
fn an_export_replaces_nothing() {
    let house = House::new();
    let engine = house.engine();
    volume(&engine, "data", "16M");
    let file = house.path("there");
    fs::create_dir(house.path("directory")).unwrap();
    File::create(&file).unwrap().write_all(b"mine").unwrap();
    std::os::unix::fs::symlink("nowhere", house.path("link")).unwrap();
    for (name, reason) in [
        ("there", "it exists already"),
        ("link", "it exists already"),
        ("directory", "it is a directory"),
    ] {
        let path = house.path(name);
        let error = engine.export_volume(&export("data"), &path).unwrap_err();
        let text = format!("cannot export to {}: {reason}", path.display());
        assert_eq!(error.to_string(), text);
    }
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    let nowhere = house.path("no/such/directory");
    let error = engine.export_volume(&export("data"), &nowhere).unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error}");
}

#[test]
fn what_is_beside_an_export_is_left_alone() {
    let house = House::new();
    let engine = house.engine();
    let data = volume(&engine, "data", "16M");
    let file = house.path("data.raw");
    let beside = File::create(house.path("data.raw.part")).unwrap();
    beside.set_len(64 * MIB).unwrap();
    engine.export_volume(&export("data"), &file).unwrap();
    assert_eq!(
        fs::read(&file).unwrap(),
        fs::read(data.path.unwrap()).unwrap()
    );
    assert_eq!(beside.metadata().unwrap().len(), 64 * MIB);
    assert!(house.path("data.raw.part").exists());
}

struct Broken;

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

#[test]
fn a_stream_that_breaks_is_an_error_and_leaves_nothing() {
    let house = House::new();
    let engine = house.engine();
    volume(&engine, "data", "16M");
    let error = engine
        .export_volume_to(&export("data"), &mut Broken)
        .unwrap_err();
    assert!(matches!(error, Error::Stream { .. }), "{error}");
    engine.destroy_volume(&reference("data")).unwrap();

    let mut begins_well = io::repeat(7).take(40 * MIB).chain(Broken);
    for stream in [&mut Broken as &mut dyn Read, &mut begins_well] {
        let error = engine
            .import_volume_from(&imported("copy"), stream)
            .unwrap_err();
        assert!(matches!(error, Error::Stream { .. }), "{error}");
        unchanged(&engine, &house);
    }
}

#[test]
fn a_stream_becomes_a_sparse_volume_of_its_length() {
    let house = House::new();
    let engine = house.engine();
    for (name, zeros, size) in [
        ("small", 0, MIB),
        ("padded", 3 * MIB - 1, 3 * MIB + 512),
        ("long", 100 * MIB, 100 * MIB + 512),
    ] {
        let tail = b"the end";
        let mut stream = io::repeat(0).take(zeros).chain(&tail[..]);
        let made = engine.import_volume_from(&imported(name), &mut stream);
        let made = made.unwrap().volume;
        assert_eq!(
            (made.size_bytes, made.reason.clone()),
            (size, None),
            "{name}"
        );
        assert!(holds(&made, zeros, tail), "{name}");
        assert!(made.used_bytes.unwrap() < MIB, "{name}");
    }
    let mut nothing = io::empty();
    let error = engine.import_volume_from(&imported("none"), &mut nothing);
    let error = error.unwrap_err();
    assert!(matches!(error, Error::EmptyInput { .. }), "{error}");
    assert_eq!(engine.volumes().unwrap().len(), 3);
}

#[test]
fn only_a_file_with_something_in_it_is_imported() {
    let house = House::new();
    let engine = house.engine();
    volume(&engine, "other", "16M");
    engine.destroy_volume(&reference("other")).unwrap();
    File::create(house.path("empty")).unwrap();
    let fifo = house.path("fifo");
    Program::find("mkfifo").unwrap().arg(&fifo).run().unwrap();
    for (path, reason) in [
        (house.path("empty"), "it is empty"),
        (house.path(""), "it is not a regular file"),
        (fifo, "it is not a regular file"),
        ("/dev/zero".into(), "it is not a regular file"),
    ] {
        let error = engine.import_volume(&imported("new"), &path).unwrap_err();
        let text = format!("cannot import {}: {reason}", path.display());
        assert_eq!(error.to_string(), text);
    }
    let missing = Path::new("/no/such/file");
    let error = engine.import_volume(&imported("new"), missing).unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error}");
    unchanged(&engine, &house);
}

#[test]
fn a_file_whose_length_is_no_size_gets_a_little_more() {
    let house = House::new();
    let engine = house.engine();
    let file = house.path("odd.raw");
    let content: Vec<u8> = (0..(2 << 20) + 100_u32).map(|n| (n % 251) as u8).collect();
    File::create(&file).unwrap().write_all(&content).unwrap();
    let made = engine.import_volume(&imported("odd"), &file);
    let made = made.unwrap().volume;
    assert_eq!(made.size_bytes, 2 * MIB + 512);
    assert!(holds(&made, 0, &content));
    assert!(holds(&made, content.len() as u64, &[0; 412]));
}

#[test]
fn what_looks_like_another_format_is_still_raw() {
    let house = House::new();
    let engine = house.engine();
    let file = house.path("guest.raw");
    let mut header = b"QFI\xfb\x00\x00\x00\x03".to_vec();
    header.resize(2 << 20, 0);
    File::create(&file).unwrap().write_all(&header).unwrap();
    let made = engine.import_volume(&imported("guest"), &file);
    let made = made.unwrap().volume;
    assert_eq!(made.size_bytes, 2 * MIB);
    assert!(holds(&made, 0, &header));
}
