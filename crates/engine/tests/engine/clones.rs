//! Clones: they hold what their source did, and go their own way.

use sistemo::clones::{Cloned, NewClone};
use sistemo::machines::{Deploy, DeploySource};
use sistemo::model::{Bytes, PoolName, Role};
use sistemo::{Engine, Error, Way};
use sistemo_testkit::filesystem::{LoopFilesystem, LoopKind};
use sistemo_testkit::{Action, Requirement, met};

use crate::fixture::{
    House, MIB, holds, plan, pool_on, reference, reflinks, volume, volume_in, write_into,
};

const END: u64 = 16 * MIB - 7;

fn new(source: &str, name: &str) -> NewClone {
    NewClone {
        source: reference(source),
        snapshot: None,
        name: name.parse().unwrap(),
        pool: None,
    }
}

fn clone(engine: &Engine, source: &str, name: &str) -> Cloned {
    engine.clone_volume(&new(source, name)).unwrap()
}

#[test]
fn a_clone_holds_what_its_source_did_and_goes_its_own_way() {
    let house = House::new();
    let engine = house.engine();
    let source = volume(&engine, "data", "16M");
    write_into(&source, END, b"sistemo");
    let made = clone(&engine, "data", "copy");
    assert!(holds(&made.volume, END, b"sistemo"));
    assert_eq!(made.volume.size_bytes, source.size_bytes);
    assert_eq!((made.volume.fs, made.volume.role), (source.fs, source.role));
    assert_ne!(made.volume.id, source.id);

    write_into(&source, END, b"changed");
    assert!(holds(&made.volume, END, b"sistemo"));
    engine.delete_volume(&reference("data")).unwrap();
    assert!(holds(&made.volume, END, b"sistemo"));
    assert_eq!(house.engine().volumes().unwrap().len(), 1);
}

#[test]
fn a_clone_on_a_filesystem_with_reflinks_copies_nothing() {
    let Some(filesystem) = reflinks() else { return };
    let house = House::new();
    let engine = house.engine();
    let fast = pool_on(&engine, "fast", &filesystem);
    let source = volume_in(&engine, &fast, "data", 64);
    write_into(&source, 0, &vec![7; 32 << 20]);
    let free = engine.pool_view(&fast).unwrap().free_bytes.unwrap();
    let made = clone(&engine, "data", "copy");
    assert_eq!((made.way, made.copied), (Way::Reflink, None));
    assert_eq!(made.volume.pool, fast);
    let left = engine.pool_view(&fast).unwrap().free_bytes.unwrap();
    // Flushing the source may have given back what XFS had set aside for it.
    let taken = free.saturating_sub(left);
    assert!(taken < MIB, "{taken} bytes");
}

#[test]
fn a_clone_in_another_pool_is_copied_without_its_holes() {
    let Some(filesystem) = reflinks() else { return };
    let house = House::new();
    let engine = house.engine();
    let fast = pool_on(&engine, "fast", &filesystem);
    let source = volume(&engine, "data", "1G");
    write_into(&source, 512 * MIB, &vec![7; 1 << 20]);
    let made = engine
        .clone_volume(&NewClone {
            pool: Some(fast.clone()),
            ..new("data", "copy")
        })
        .unwrap();
    assert_eq!(
        (&made.source_pool, &made.volume.pool),
        (&source.pool, &fast)
    );
    assert_eq!(made.way, Way::Copied);
    let copied = made.copied.unwrap();
    assert!((Bytes::from_mib(1)..Bytes::from_mib(64)).contains(&copied));
    assert!(holds(&made.volume, 512 * MIB, &vec![7; 1 << 20]));
    assert!(made.volume.used_bytes.unwrap() < 64 * MIB);
}

#[test]
fn a_snapshot_is_cloned_as_it_is_into_any_pool() {
    let Some(filesystem) = reflinks() else { return };
    let house = House::new();
    let engine = house.engine();
    let fast = pool_on(&engine, "fast", &filesystem);
    let data = volume(&engine, "data", "16M");
    write_into(&data, END, b"earlier");
    let name = engine
        .take_snapshot(&reference("data"), None)
        .unwrap()
        .snapshot
        .name;
    write_into(&data, END, b"changed");
    let grow = sistemo::volumes::Grow::Device;
    engine
        .resize_volume(&reference("data"), Bytes::from_mib(32), grow)
        .unwrap();
    for (pool, as_name) in [(None, "here"), (Some(fast), "there")] {
        let made = engine
            .clone_volume(&NewClone {
                snapshot: Some(name.clone()),
                pool,
                ..new("data", as_name)
            })
            .unwrap();
        assert!(holds(&made.volume, END, b"earlier"), "{as_name}");
        assert_eq!(made.volume.size_bytes, 16 * MIB, "{as_name}");
        assert!(engine.snapshots(&reference(as_name)).unwrap().is_empty());
    }
}

#[test]
fn a_cloned_root_boots_what_its_source_did() {
    if !met(&[Requirement::TinyGuest]) {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    house.import_tiny(&engine, &[Action::PowerOff]);
    engine.deploy(&plan("tiny", "m")).unwrap();
    let made = clone(&engine, "m-root", "again");
    assert_eq!(made.volume.role, Role::Root);
    // The kernel stays for the clone alone.
    engine
        .delete_machine(&reference("m"), sistemo::machines::Storage::RemoveRoot)
        .unwrap();
    engine.delete_image(&"tiny".parse().unwrap()).unwrap();
    let kernels = std::fs::read_dir(house.data_dir().join("kernels")).unwrap();
    assert_eq!(kernels.count(), 2, "the kernel and the initrd");
    let other = Deploy {
        source: DeploySource::Volume(reference("again")),
        storage: None,
        ..plan("tiny", "n")
    };
    let deployed = engine.deploy(&other).unwrap();
    assert_eq!(deployed.root_volume.unwrap().as_str(), "again");
}

#[test]
fn a_clone_that_is_refused_leaves_nothing() {
    let house = House::new();
    let engine = house.engine();
    volume(&engine, "data", "16M");
    volume(&engine, "other", "16M");
    let before = house.volume_files();
    let none: PoolName = "none".parse().unwrap();
    let snapshot = Some("none".parse().unwrap());
    let refusals = [
        (new("none", "copy"), "volume none does not exist"),
        (new("data", "other"), "volume other already exists"),
        (
            NewClone {
                pool: Some(none),
                ..new("data", "copy")
            },
            "pool none does not exist",
        ),
        (
            NewClone {
                snapshot,
                ..new("data", "copy")
            },
            "volume data has no snapshot none",
        ),
    ];
    for (clone, text) in refusals {
        let error = engine.clone_volume(&clone).unwrap_err();
        assert_eq!(error.to_string(), text);
    }
    assert_eq!(house.volume_files(), before);
    assert_eq!(engine.volumes().unwrap().len(), 2);
}

#[test]
fn a_copy_for_which_there_is_no_room_is_not_begun() {
    if !met(&[Requirement::Root, Requirement::Program("mkfs.ext4")]) {
        return;
    }
    let filesystem = LoopFilesystem::new(LoopKind::Ext4, Bytes::from_mib(64));
    let house = House::new();
    let engine = house.engine();
    let small = pool_on(&engine, "small", &filesystem);
    let data = volume_in(&engine, &small, "data", 48);
    write_into(&data, 0, &vec![7; 36 << 20]);
    let refused = [
        engine.clone_volume(&new("data", "copy")).unwrap_err(),
        engine.take_snapshot(&reference("data"), None).unwrap_err(),
    ];
    for error in refused {
        assert!(matches!(error, Error::PoolTooFull { .. }), "{error}");
    }
    assert_eq!(engine.volumes().unwrap().len(), 1);
    assert!(engine.snapshots(&reference("data")).unwrap().is_empty());
}
