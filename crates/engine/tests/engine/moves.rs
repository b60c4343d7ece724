//! Moves: the volume is the same in another pool, and what fails leaves it where it was.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sistemo::clones::NewClone;
use sistemo::history::Pin;
use sistemo::model::{Access, Bytes, PoolName, SnapshotName, VolumeId};
use sistemo::moves::{Move, Moved, Unkept};
use sistemo::pools::NewPool;
use sistemo::volumes::{Grow, VolumeView};
use sistemo::{Engine, Error, Notice};
use sistemo_catalog::Catalogue;
use sistemo_host::directory::Directory;
use sistemo_host::program::Program;
use sistemo_host::sparse::Extent;
use sistemo_pools::{Content, FirstUse, Found, Keeping, Pool, PoolConfig, Registry};
use sistemo_testkit::filesystem::{LoopFilesystem, LoopKind};
use sistemo_testkit::{Requirement, met};

use crate::fixture::{
    House, MIB, attaching, example, files_in, plan, reference, volume_in, wait_until,
};

/// Pools of each driver, each on the kind of filesystem it is made for.
struct Pools {
    names: Vec<PoolName>,
    _filesystems: Vec<LoopFilesystem>,
}

fn add(engine: &Engine, name: &str, driver: &str, place: &Path) -> PoolName {
    let pool: PoolName = name.parse().unwrap();
    engine
        .add_pool(&NewPool {
            name: pool.clone(),
            driver: driver.to_owned(),
            options: vec![("dir_path".to_owned(), place.display().to_string())],
        })
        .unwrap();
    pool
}

/// Puts the external driver `tiny`, which keeps no snapshots, where it is found.
fn install_tiny(house: &House) {
    let driver = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../examples/drivers/sistemo-driver-tiny"
    );
    let (drivers, _) = Directory::create(&house.data_dir().join("drivers")).unwrap();
    symlink(driver, drivers.path().join("sistemo-driver-tiny")).unwrap();
}

impl Pools {
    /// Pools that keep snapshots: by copying, by reflink, by subvolume and by overlay.
    fn new(house: &House, engine: &Engine) -> Option<Pools> {
        let programs = ["mkfs.xfs", "mkfs.btrfs"].map(Requirement::Program);
        if !met(&[Requirement::Root]) || !met(&programs) {
            return None;
        }
        let xfs = LoopFilesystem::new(LoopKind::Xfs, Bytes::from_mib(400));
        let btrfs = LoopFilesystem::new(LoopKind::Btrfs, Bytes::from_mib(400));
        let names = vec![
            add(engine, "plain", "file", &house.path("plain")),
            add(engine, "shared", "file-reflink", &xfs.path().join("shared")),
            add(engine, "tree", "btrfs", &btrfs.path().join("tree")),
            add(engine, "layers", "qcow2", &house.path("layers")),
        ];
        Some(Pools {
            names,
            _filesystems: vec![xfs, btrfs],
        })
    }
}

/// A pool of its own, to read and write volumes with, whatever their driver.
fn pool_of(house: &House, engine: &Engine, name: &PoolName) -> Arc<dyn Pool> {
    let view = engine.pool_view(name).unwrap();
    let registry = Registry::for_data_directory(&house.data_dir());
    let catalogue = Catalogue::open(&house.data_dir()).unwrap().id();
    let info = registry.by_name(&view.driver.unwrap()).unwrap();
    let directory = view.path.unwrap();
    let defaults = info.options.iter();
    let options =
        defaults.filter_map(|option| Some((option.name.clone(), option.default.clone()?)));
    let place = ("dir_path".to_owned(), directory.display().to_string());
    let config = PoolConfig {
        name: name.clone(),
        driver: info.name.clone(),
        directory: Some(directory),
        options: options.chain([place]).collect(),
        keeping: Keeping::default(),
    };
    registry.open(&config, catalogue, FirstUse::Known).unwrap()
}

fn name(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

fn move_to(engine: &Engine, volume: &str, to: &PoolName) -> sistemo::Result<Moved> {
    engine.move_volume(&Move {
        volume: reference(volume),
        to: to.clone(),
        unkept: Unkept::Refuse,
    })
}

fn all_of(content: &dyn Content) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(content.size().get()).unwrap()];
    content.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// All that a volume and its snapshots hold, with the snapshots' names and times.
fn states(house: &House, engine: &Engine, volume: &str) -> Vec<(String, Vec<u8>)> {
    let view = engine.volume(&reference(volume)).unwrap();
    let pool = pool_of(house, engine, &view.pool);
    let now = pool.content(view.id, Access::ReadOnly).unwrap();
    let mut states = vec![("now".to_owned(), all_of(now.as_ref()))];
    let Some(power) = pool.snapshots() else {
        return states;
    };
    for snapshot in power.snapshots(view.id).unwrap() {
        let content = power.snapshot_content(view.id, &snapshot.name).unwrap();
        let title = format!("{} of {}", snapshot.name, snapshot.created);
        states.push((title, all_of(content.as_ref())));
    }
    pool.close(view.id).unwrap();
    states
}

fn write(house: &House, engine: &Engine, volume: &str, offset: u64, data: &[u8]) {
    let view = engine.volume(&reference(volume)).unwrap();
    let pool = pool_of(house, engine, &view.pool);
    let mut content = pool.content(view.id, Access::ReadWrite).unwrap();
    content.write_at(data, offset).unwrap();
    content.flush().unwrap();
    drop(content);
    pool.close(view.id).unwrap();
}

fn clear(house: &House, engine: &Engine, volume: &str, offset: u64, length: u64) {
    let view = engine.volume(&reference(volume)).unwrap();
    let pool = pool_of(house, engine, &view.pool);
    let mut content = pool.content(view.id, Access::ReadWrite).unwrap();
    content.make_hole(Extent { offset, length }).unwrap();
    content.flush().unwrap();
}

fn keep(engine: &Engine, volume: &str, as_name: &str) {
    engine
        .take_snapshot(&reference(volume), Some(name(as_name)))
        .unwrap();
}

/// A volume with three snapshots: one of its first size, one of a larger, and one of the first
/// again, to which it was taken back.
fn with_a_past(house: &House, engine: &Engine, pool: &PoolName, volume: &str) -> VolumeView {
    volume_in(engine, pool, volume, 2);
    write(house, engine, volume, 5000, &vec![1; 300_000]);
    keep(engine, volume, "first");
    let grown = Bytes::from_mib(3);
    engine
        .resize_volume(&reference(volume), grown, Grow::Device)
        .unwrap();
    write(house, engine, volume, 2 * MIB + 100, &vec![2; 70_000]);
    clear(house, engine, volume, 100_000, 100_000);
    keep(engine, volume, "large");
    engine
        .revert_volume(
            &reference(volume),
            Some(&name("first")),
            sistemo::snapshots::Replaced::Discard,
        )
        .unwrap();
    write(house, engine, volume, MIB, &[3; 4096]);
    keep(engine, volume, "back");
    write(house, engine, volume, MIB + 777, b"now");
    engine.volume(&reference(volume)).unwrap()
}

#[test]
fn a_volume_goes_from_any_driver_to_any_other_with_its_whole_past() {
    let house = House::new();
    let engine = house.engine();
    let Some(pools) = Pools::new(&house, &engine) else {
        return;
    };
    for from in &pools.names {
        for to in pools.names.iter().filter(|to| *to != from) {
            let volume = format!("{from}-{to}");
            let before = with_a_past(&house, &engine, from, &volume);
            let held = states(&house, &engine, &volume);
            assert_eq!(held.len(), 4, "{volume}");
            let moved = move_to(&engine, &volume, to).unwrap();
            assert_eq!((&moved.from, &moved.volume.pool), (from, to));
            assert_eq!(moved.snapshots, 3, "{volume}");
            let expected = VolumeView {
                modified: moved.volume.modified,
                pool: to.clone(),
                driver: moved.volume.driver.clone(),
                path: moved.volume.path.clone(),
                used_bytes: moved.volume.used_bytes,
                format: moved.volume.format.clone(),
                ..before
            };
            assert_eq!(moved.volume, expected);
            assert!(states(&house, &engine, &volume) == held, "{volume}");
            let source = pool_of(&house, &engine, from);
            assert_eq!(source.find(expected.id).unwrap(), None, "{volume}");
            let target = pool_of(&house, &engine, to);
            let described = target.description(expected.id).unwrap();
            assert_eq!(described.moving_from, None);
            assert_eq!(target.verify(expected.id, described.size).unwrap(), []);
        }
    }
    // Nothing of a move is left beside the volumes.
    for pool in &pools.names {
        let found = pool_of(&house, &engine, pool).list().unwrap();
        assert_eq!(found.len(), 3, "{found:?}");
        let volume = |found: &Found| matches!(found, Found::Volume { .. });
        assert!(found.iter().all(volume), "{found:?}");
    }
}

#[test]
fn what_is_the_same_in_two_snapshots_is_not_written_twice() {
    let house = House::new();
    let engine = house.engine();
    let Some(pools) = Pools::new(&house, &engine) else {
        return;
    };
    let (plain, tree) = (&pools.names[0], &pools.names[2]);
    volume_in(&engine, plain, "data", 16);
    write(&house, &engine, "data", 0, &vec![7; 12 << 20]);
    for kept in ["one", "two", "three"] {
        write(&house, &engine, "data", MIB, kept.as_bytes());
        keep(&engine, "data", kept);
    }
    let moved = move_to(&engine, "data", tree).unwrap();
    assert!(moved.copied < Bytes::from_mib(13), "{}", moved.copied);
    let used = moved.volume.used_bytes.unwrap();
    assert!(used < 14 * MIB, "{used}");
}

#[test]
fn clones_of_a_volume_that_was_moved_stay_as_they_are() {
    let house = House::new();
    let engine = house.engine();
    let Some(pools) = Pools::new(&house, &engine) else {
        return;
    };
    for (index, from) in pools.names.iter().enumerate() {
        let to = &pools.names[(index + 1) % pools.names.len()];
        let volume = format!("data-{from}");
        with_a_past(&house, &engine, from, &volume);
        for (snapshot, clone) in [(None, "now"), (Some(name("large")), "then")] {
            engine
                .clone_volume(&NewClone {
                    source: reference(&volume),
                    snapshot,
                    name: format!("{volume}-{clone}").parse().unwrap(),
                    pool: None,
                })
                .unwrap();
        }
        let clones = ["now", "then"].map(|clone| format!("{volume}-{clone}"));
        let held = clones
            .each_ref()
            .map(|clone| states(&house, &engine, clone));
        move_to(&engine, &volume, to).unwrap();
        let after = clones
            .each_ref()
            .map(|clone| states(&house, &engine, clone));
        assert!(after == held, "{from}");
    }
}

#[test]
fn a_volume_stays_attached_to_its_stopped_machine() {
    let house = House::new();
    let engine = house.engine();
    house.import_disk(&engine, 4 * MIB);
    let layers = add(&engine, "layers", "qcow2", &house.path("layers"));
    crate::fixture::volume(&engine, "data", "16M");
    engine
        .deploy(&attaching(plan("disk", "m"), &["data"]))
        .unwrap();
    for volume in ["data", "m-root"] {
        let moved = move_to(&engine, volume, &layers).unwrap();
        assert_eq!(moved.volume.attached_to.unwrap().as_str(), "m");
    }
    let machine = engine.machine(&reference("m")).unwrap();
    assert_eq!(machine.root_volume.unwrap().as_str(), "m-root");
}

#[test]
fn a_pool_without_snapshots_takes_a_volume_without_its_own() {
    let house = House::new();
    house.storage_conf("");
    install_tiny(&house);
    let engine = house.engine();
    let bare = add(&engine, "bare", "tiny", &house.path("bare"));
    let default = PoolName::default_pool();
    volume_in(&engine, &default, "data", 2);
    write(&house, &engine, "data", MIB, b"data");
    keep(&engine, "data", "kept");
    let refused = move_to(&engine, "data", &bare).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "volume data has a snapshot that pool bare cannot keep"
    );
    let without = Move {
        volume: reference("data"),
        to: bare.clone(),
        unkept: Unkept::Lose,
    };
    let pin = |pin| engine.pin_snapshot(&reference("data"), &name("kept"), pin);
    let (_, _) = pin(Pin::In).unwrap();
    let refused = engine.move_volume(&without).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "snapshot kept of volume data is pinned, and pool bare cannot keep it"
    );
    let (_, _) = pin(Pin::Out).unwrap();
    let held = states(&house, &engine, "data").remove(0);
    let moved = engine.move_volume(&without).unwrap();
    assert_eq!(moved.snapshots, 0);
    assert!(states(&house, &engine, "data") == [held.clone()]);
    // And back, from a pool that has none.
    move_to(&engine, "data", &default).unwrap();
    assert!(states(&house, &engine, "data") == [held]);
}

#[test]
fn a_move_that_is_refused_changes_nothing() {
    let house = House::new();
    let engine = house.engine();
    let default = PoolName::default_pool();
    let layers = add(&engine, "layers", "qcow2", &house.path("layers"));
    let gone = add(&engine, "gone", "file", &house.path("gone"));
    std::fs::remove_dir_all(house.path("gone")).unwrap();
    let data = volume_in(&engine, &default, "data", 2);
    let none: PoolName = "none".parse().unwrap();
    for (volume, pool, text) in [
        ("data", &default, "volume data is in pool default already"),
        ("none", &layers, "volume none does not exist"),
        ("data", &none, "pool none does not exist"),
        ("data", &gone, "pool gone cannot be worked with"),
    ] {
        let refused = move_to(&engine, volume, pool).unwrap_err();
        assert_eq!(refused.to_string(), text);
    }
    assert_eq!(engine.volume(&reference("data")).unwrap(), data);
    // Something has that ID there, and is nobody's to remove.
    let target = pool_of(&house, &engine, &layers);
    let described = pool_of(&house, &engine, &default).description(data.id);
    let draft = target.draft(&described.unwrap()).unwrap();
    draft.commit().unwrap();
    let refused = move_to(&engine, "data", &layers).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "pool layers cannot take in volume data"
    );
    assert!(target.find(data.id).unwrap().is_some());
    assert_eq!(engine.volume(&reference("data")).unwrap(), data);
}

#[test]
fn a_full_pool_is_told_before_anything_is_copied() {
    if !met(&[Requirement::Root, Requirement::Program("mkfs.ext4")]) {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    let small = LoopFilesystem::new(LoopKind::Ext4, Bytes::from_mib(16));
    let place = small.path().join("layers");
    let layers = add(&engine, "layers", "qcow2", &place);
    let default = PoolName::default_pool();
    let data = volume_in(&engine, &default, "data", 32);
    write(&house, &engine, "data", 0, &vec![7; 8 << 20]);
    keep(&engine, "data", "one");
    write(&house, &engine, "data", 0, &vec![8; 1 << 20]);
    // What it shares with its snapshot is there once.
    move_to(&engine, "data", &layers).unwrap();
    move_to(&engine, "data", &default).unwrap();
    let before = files_in(&place);
    write(&house, &engine, "data", 0, &vec![9; 8 << 20]);
    let refused = move_to(&engine, "data", &layers).unwrap_err();
    assert!(matches!(refused, Error::PoolTooFull { .. }), "{refused}");
    assert_eq!(files_in(&place), before);
    let after = engine.volume(&reference("data")).unwrap();
    assert_eq!((after.id, after.pool), (data.id, default));
}

#[test]
fn a_pool_that_runs_full_half_way_gives_everything_back() {
    if !met(&[Requirement::Root, Requirement::Program("mkfs.ext4")]) {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    let small = LoopFilesystem::new(LoopKind::Ext4, Bytes::from_mib(16));
    let place = small.path().join("plain");
    let plain = add(&engine, "plain", "file", &place);
    // On the same filesystem a move may take no room, so it is begun.
    let other = add(&engine, "other", "qcow2", &small.path().join("other"));
    let data = volume_in(&engine, &plain, "data", 16);
    write(&house, &engine, "data", 0, &vec![7; 9 << 20]);
    let held = states(&house, &engine, "data");
    let before = files_in(&small.path().join("other"));
    move_to(&engine, "data", &other).unwrap_err();
    assert_eq!(files_in(&small.path().join("other")), before);
    let after = engine.volume(&reference("data")).unwrap();
    assert_eq!((after.id, after.pool), (data.id, plain));
    assert!(states(&house, &engine, "data") == held);
}

fn recovery(notice: Notice) -> Option<String> {
    match notice {
        Notice::Recovered { what } => Some(what),
        _ => None,
    }
}

/// The volume that was found whole; `None` for what is left of one.
fn volume_found(found: &Found) -> Option<VolumeId> {
    match found {
        Found::Volume { description, .. } => Some(description.id),
        _ => None,
    }
}

#[test]
fn a_move_that_is_killed_anywhere_leaves_the_whole_volume_in_one_pool() {
    let house = House::new();
    let engine = house.engine();
    let Some(pools) = Pools::new(&house, &engine) else {
        return;
    };
    let mut told = Vec::new();
    for pair in pools.names.chunks(2) {
        let volume = format!("shuttle-{}", pair[0]);
        let id = with_a_past(&house, &engine, &pair[0], &volume).id;
        let held = states(&house, &engine, &volume);
        for round in 0..25_u64 {
            let log = File::create(house.path("log")).unwrap();
            let mut shuttle = Program::at(&example("shuttle"))
                .arg(house.data_dir())
                .arg(&volume)
                .args(pair.iter().map(PoolName::as_str))
                .spawn_logged(log)
                .unwrap();
            // Instants spread over a move or two, the same in every run of the test.
            std::thread::sleep(Duration::from_millis(10 + (round * 37) % 151));
            shuttle.kill();
            house.notices();
            // A program of a driver may outlive its parent for a while; then the next look recovers.
            wait_until(&format!("recovery in round {round}"), || {
                let engine = house.engine();
                told.extend(house.notices().into_iter().filter_map(recovery));
                let here = engine.volume(&reference(&volume)).unwrap().pool;
                pair.iter().all(|pool| {
                    let found = pool_of(&house, &engine, pool).list().unwrap();
                    let found: Vec<_> = found.iter().map(volume_found).collect();
                    let expected = if *pool == here { vec![id] } else { vec![] };
                    assert!(found.len() <= 1, "{round}: {found:?} in {pool}");
                    found == expected.into_iter().map(Some).collect::<Vec<_>>()
                })
            });
            let engine = house.engine();
            assert!(states(&house, &engine, &volume) == held, "{round}");
            let said = std::fs::read_to_string(house.path("log")).unwrap();
            assert_eq!(said, "", "{round}");
        }
    }
    let some = |part: &str| told.iter().any(|what| what.contains(part));
    assert!(some("was never finished"), "no kill hit a copy: {told:?}");
}
