//! The trash: what is deleted comes back whole, until its time is over or its pool needs the room.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use sistemo::clones::NewClone;
use sistemo::exchange::{Checksum, NewImported};
use sistemo::machines::{Deploy, DeploySource, StartMode, Storage};
use sistemo::model::{
    Bytes, Filesystem, History, PoolName, SnapshotMark, SnapshotName, Timestamp, Trashed, VolumeId,
    VolumeName,
};
use sistemo::pools::NewPool;
use sistemo::volumes::{Grow, NewVolume, VolumeView};
use sistemo::{Caller, Engine, Error, MonitorCommand, Notice, Settings, Silent};
use sistemo_catalog::{CatalogError, Catalogue, Intent, Transaction};
use sistemo_host::directory;
use sistemo_host::program::Program;
use sistemo_testkit::filesystem::{LoopFilesystem, LoopKind};
use sistemo_testkit::{Action, Requirement, met};

use crate::fixture::{
    House, MIB, attaching, files_in, holds, plan, pool_on, reference, start, volume, volume_in,
    wait_for_text, wait_until, write_into,
};

/// What the catalogue knows, behind the engine's back.
fn catalogue(house: &House) -> Catalogue {
    Catalogue::open(&house.data_dir()).unwrap()
}

/// Lets what is in the trash have been there for two days, `older` the longest.
fn age(house: &House, id: VolumeId, older: i64) {
    let ago = |hours: i64| Timestamp::from_second(Timestamp::now().as_second() - hours * 3600);
    let trashed = Trashed {
        at: ago(48 + older).unwrap(),
        until: ago(24 + older).unwrap(),
    };
    change_history(house, id, |history| history.trashed = Some(trashed));
}

fn change_history(house: &House, id: VolumeId, change: impl FnOnce(&mut History)) {
    let catalogue = catalogue(house);
    let mut history = catalogue.read(|s| s.volume(id)).unwrap().history;
    change(&mut history);
    catalogue
        .write(|tx| tx.set_volume_history(id, &history))
        .unwrap();
}

/// What is written beside a volume in the default pool.
fn description(house: &House, volume: &VolumeView) -> serde_json::Value {
    let path = house.data_dir().join(format!("volumes/{}.json", volume.id));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn in_trash(engine: &Engine) -> Vec<String> {
    let trash = engine.trash().unwrap();
    trash.iter().map(|volume| volume.name.to_string()).collect()
}

/// The names of the deleted volumes whose room was given back since the last look.
fn given_back(house: &House) -> Vec<String> {
    let notices = house.notices().into_iter();
    let given = notices.filter_map(|notice| match notice {
        Notice::TrashGivenBack { volume, .. } => Some(volume.to_string()),
        _ => None,
    });
    given.collect()
}

#[test]
fn what_is_deleted_comes_back_with_all_it_had() {
    let house = House::new();
    let engine = house.engine();
    let data = volume(&engine, "data", "16M");
    write_into(&data, 8 * MIB, b"precious");
    let monday = Some("monday".parse().unwrap());
    engine.take_snapshot(&reference("data"), monday).unwrap();

    let deleted = engine.delete_volume(&reference("data")).unwrap();
    let until = deleted.restorable_until.unwrap();
    let hours = (until.as_second() - Timestamp::now().as_second() + 1800) / 3600;
    assert_eq!(hours, 24);
    assert!(engine.volumes().unwrap().is_empty());
    let trash = engine.trash().unwrap();
    assert_eq!((trash[0].id, trash[0].restorable_until), (data.id, until));
    assert!(trash[0].used_bytes.unwrap() > 0);
    assert_eq!(
        description(&house, &data)["history"]["trashed"]["until"],
        until.to_string()
    );
    for outcome in [
        engine.volume(&reference("data")).map(drop),
        engine.delete_volume(&reference("data")).map(drop),
        engine
            .rename_volume(&reference(&data.id.to_string()), "new".parse().unwrap())
            .map(drop),
        engine.take_snapshot(&reference("data"), None).map(drop),
    ] {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }

    let restored = engine.restore_volume(&reference("data"), None).unwrap();
    assert_eq!((restored.id, restored.status), (data.id, data.status));
    assert!(holds(&restored, 8 * MIB, b"precious"));
    assert_eq!(engine.snapshots(&reference("data")).unwrap().len(), 1);
    assert_eq!(
        description(&house, &data)["history"]["trashed"],
        serde_json::Value::Null
    );
    assert!(engine.trash().unwrap().is_empty());
    assert_eq!(house.notices(), []);
}

#[test]
fn a_name_in_the_trash_is_anybodys() {
    let house = House::new();
    let engine = house.engine();
    let old = volume(&engine, "data", "16M");
    engine.delete_volume(&reference("data")).unwrap();
    let new = volume(&engine, "data", "16M");
    assert_eq!(engine.volume(&reference("data")).unwrap().id, new.id);

    let error = engine.restore_volume(&reference("data"), None).unwrap_err();
    let expected = "cannot restore volume data: another one has that name";
    assert_eq!(error.to_string(), expected);
    let taken: VolumeName = "data".parse().unwrap();
    let error = engine
        .restore_volume(&reference("data"), Some(&taken))
        .unwrap_err();
    assert_eq!(error.to_string(), "volume data already exists");
    assert_eq!(in_trash(&engine), ["data"]);

    // Two of one name are told apart by their IDs.
    engine.delete_volume(&reference("data")).unwrap();
    let error = engine.restore_volume(&reference("data"), None).unwrap_err();
    let told = error.to_string();
    for id in [old.id, new.id] {
        assert!(told.contains(&format!("data ({id})")), "{told}");
    }
    let other: VolumeName = "data-old".parse().unwrap();
    let prefix = reference(&old.id.to_string()[..8]);
    let restored = engine.restore_volume(&prefix, Some(&other)).unwrap();
    assert_eq!((restored.id, restored.name.as_str()), (old.id, "data-old"));
    let restored = engine.restore_volume(&reference("data"), None).unwrap();
    assert_eq!(restored.id, new.id);
    for missing in ["data", "nothing", &new.id.to_string()] {
        for outcome in [
            engine.restore_volume(&reference(missing), None).map(drop),
            engine.destroy_trashed(&reference(missing)).map(drop),
        ] {
            let error = outcome.unwrap_err().to_string();
            assert_eq!(error, format!("there is no volume {missing} in the trash"));
        }
    }
}

#[test]
fn what_is_destroyed_leaves_nothing() {
    let house = House::new();
    let engine = house.engine();
    for name in ["now", "later"] {
        volume(&engine, name, "16M");
    }
    let gone = engine.destroy_volume(&reference("now")).unwrap();
    assert_eq!(gone.restorable_until, None);
    engine.delete_volume(&reference("later")).unwrap();
    assert_eq!(house.volume_files().len(), 2);
    engine.destroy_trashed(&reference("later")).unwrap();
    assert_eq!(house.volume_files(), [""; 0]);
    assert!(engine.trash().unwrap().is_empty());
}

#[test]
fn a_pool_says_how_long_it_keeps_what_is_deleted() {
    let house = House::new();
    for (keep, hours) in [("0", None), ("36h", Some(36)), ("7d", Some(168))] {
        house.storage_conf(&format!(
            "[default]\ndriver = file\ndir_path = {}\ntrash_keep = {keep}\n",
            house.path("vm").display()
        ));
        let engine = house.engine();
        volume(&engine, "data", "16M");
        let deleted = engine.delete_volume(&reference("data")).unwrap();
        let kept = deleted.restorable_until.map(|until| {
            let seconds = until.as_second() - Timestamp::now().as_second();
            (seconds + 1800) / 3600
        });
        assert_eq!(kept, hours, "{keep}");
    }
    // Where a pool keeps none, it goes at once.
    assert_eq!(house.engine().trash().unwrap().len(), 2);
    assert_eq!(files_in(&house.path("vm")).len(), 4);
}

#[test]
fn the_next_command_removes_what_has_had_its_time() {
    let house = House::new();
    let engine = house.engine();
    let [old, older, young] = ["old", "older", "young"].map(|name| {
        let made = volume(&engine, name, "16M");
        engine.delete_volume(&reference(name)).unwrap();
        made
    });
    age(&house, old.id, 0);
    age(&house, older.id, 5);
    let again = house.engine();
    assert_eq!(in_trash(&again), ["young"]);
    assert_eq!(house.volume_files().len(), 2);
    assert!(house.volume_files()[0].starts_with(&young.id.to_string()));
    assert_eq!(house.notices(), []);
    // Somebody who restores it is not overtaken.
    age(&house, young.id, 0);
    again.restore_volume(&reference("young"), None).unwrap();
    assert_eq!(house.engine().volumes().unwrap().len(), 1);
}

#[test]
fn a_pool_that_is_away_keeps_its_trash_until_it_is_back() {
    let house = House::new();
    let engine = house.engine();
    let place = house.path("removable");
    let pool = removable(&engine, &place);
    let data = volume_in(&engine, &pool, "data", 1);
    engine.delete_volume(&reference("data")).unwrap();
    let away = house.path("away");
    move_to(&place, &away);

    age(&house, data.id, 0);
    let engine = house.engine();
    let trash = engine.trash().unwrap();
    assert_eq!((trash.len(), trash[0].used_bytes), (1, None));
    assert!(trash[0].reason.is_some());
    for outcome in [
        engine.restore_volume(&reference("data"), None).map(drop),
        engine.destroy_trashed(&reference("data")).map(drop),
        engine.check_trash(&pool),
    ] {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::Pool { .. }), "{error}");
    }
    assert_eq!(house.notices(), []);

    move_to(&away, &place);
    assert!(house.engine().trash().unwrap().is_empty());
    assert_eq!(files_in(&place), [""; 0]);
}

fn move_to(from: &Path, to: &Path) {
    Program::find("mv")
        .unwrap()
        .arg(from)
        .arg(to)
        .run()
        .unwrap();
}

fn removable(engine: &Engine, place: &Path) -> PoolName {
    let name: PoolName = "removable".parse().unwrap();
    engine
        .add_pool(&NewPool {
            name: name.clone(),
            driver: "file".to_owned(),
            options: vec![("dir_path".to_owned(), place.display().to_string())],
        })
        .unwrap();
    name
}

#[test]
fn a_pool_is_not_removed_over_what_is_in_its_trash() {
    let house = House::new();
    let engine = house.engine();
    let pool = removable(&engine, &house.path("removable"));
    volume_in(&engine, &pool, "data", 1);
    volume_in(&engine, &pool, "more", 1);
    let refusal = |engine: &Engine| engine.remove_pool(&pool).unwrap_err();
    engine.delete_volume(&reference("data")).unwrap();
    let told = refusal(&engine).to_string();
    let expected = "pool removable cannot be removed: \
                    it holds volume more, and volume data in the trash";
    assert_eq!(told, expected);
    engine.delete_volume(&reference("more")).unwrap();
    let error = refusal(&engine);
    let only = matches!(
        error,
        Error::PoolNotEmpty {
            only_trash: true,
            ..
        }
    );
    assert!(only, "{error}");
    let view = engine.pool_view(&pool).unwrap();
    assert_eq!(
        (view.volumes, view.trash, view.provisioned_bytes),
        (0, 2, 0)
    );
    let checks = sistemo::doctor::examine(engine.settings());
    let told = checks
        .iter()
        .find(|check| check.found.contains("removable"));
    let told = &told.unwrap().found;
    assert!(
        told.starts_with("removable: 0 volumes, 2 in the trash, "),
        "{told}"
    );
    for name in ["data", "more"] {
        engine.destroy_trashed(&reference(name)).unwrap();
    }
    engine.remove_pool(&pool).unwrap();
}

#[test]
fn a_pinned_snapshot_keeps_its_volume_and_a_clone_does_not() {
    let house = House::new();
    let engine = house.engine();
    house.import_disk(&engine, 16 * MIB);
    engine.deploy(&plan("disk", "m")).unwrap();
    let data = volume(&engine, "data", "16M");
    let monday: SnapshotName = "monday".parse().unwrap();
    let pin = |id, pinned| {
        let mark = SnapshotMark {
            pinned,
            ..SnapshotMark::default()
        };
        let name = monday.clone();
        change_history(&house, id, |history| {
            history.marks.insert(name, mark);
        });
    };
    // What is known of a snapshot that is not there means nothing.
    let root = engine.volume(&reference("m-root")).unwrap();
    for id in [data.id, root.id] {
        pin(id, true);
    }
    engine.check_volume_deletable(&reference("data")).unwrap();
    for name in ["data", "m-root"] {
        engine
            .take_snapshot(&reference(name), Some(monday.clone()))
            .unwrap();
    }
    let clone = NewClone {
        source: reference("data"),
        snapshot: None,
        name: "copy".parse().unwrap(),
        pool: None,
    };
    engine.clone_volume(&clone).unwrap();
    // Taking it may have changed what is known of it.
    for id in [data.id, root.id] {
        pin(id, true);
    }
    let machine = reference("m");
    for outcome in [
        engine.delete_volume(&reference("data")).map(drop),
        engine.destroy_volume(&reference("data")).map(drop),
        engine
            .delete_machine(&machine, Storage::RemoveRoot)
            .map(drop),
        engine
            .delete_machine(&machine, Storage::DestroyRoot)
            .map(drop),
    ] {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::VolumePinned { .. }), "{error}");
    }
    assert_eq!(engine.machines().unwrap().len(), 1);
    pin(data.id, false);
    engine.delete_volume(&reference("data")).unwrap();
    engine.delete_machine(&machine, Storage::Preserve).unwrap();
    assert_eq!(in_trash(&engine), ["data"]);
}

#[test]
fn a_root_volume_comes_back_after_its_machine_went() {
    let house = House::new();
    let engine = house.engine();
    house.import_disk(&engine, 16 * MIB);
    volume(&engine, "data", "16M");
    engine
        .deploy(&attaching(plan("disk", "m"), &["data"]))
        .unwrap();
    let root = engine.volume(&reference("m-root")).unwrap();
    write_into(&root, MIB, b"precious");
    let shown = engine
        .deletion(&reference("m"), Storage::RemoveRoot)
        .unwrap();
    assert!(shown.restorable_until.is_some());
    let gone = engine
        .delete_machine(&reference("m"), Storage::RemoveRoot)
        .unwrap();
    assert!(gone.restorable_until.is_some());
    assert_eq!(in_trash(&engine), ["m-root"]);
    assert_eq!(engine.volumes().unwrap().len(), 1, "data volumes stay");

    // Its name is free for another of that name.
    engine.deploy(&plan("disk", "m")).unwrap();
    let gone = engine
        .delete_machine(&reference("m"), Storage::DestroyRoot)
        .unwrap();
    assert_eq!(gone.restorable_until, None);

    engine.restore_volume(&reference("m-root"), None).unwrap();
    let again = Deploy {
        source: DeploySource::Volume(reference("m-root")),
        storage: None,
        ..plan("disk", "m2")
    };
    let machine = engine.deploy(&again).unwrap();
    assert_eq!(machine.root_volume.unwrap().as_str(), "m-root");
    let root = engine.volume(&reference("m-root")).unwrap();
    assert!(holds(&root, MIB, b"precious"));
}

#[test]
fn what_was_never_finished_is_not_kept() {
    let needed = [
        Requirement::Program("qemu-system-x86_64"),
        Requirement::Program("mkfs.ext4"),
    ];
    if !met(&needed) {
        return;
    }
    let house = House::new();
    house.import_disk(&house.engine(), 16 * MIB);
    let monitor = MonitorCommand {
        program: "/bin/false".into(),
        arguments: Vec::new(),
    };
    let purpose = "a test".to_owned();
    let settings = Settings::defaults(&house.data_dir());
    let engine = Engine::open(settings, Arc::new(Silent), Caller { purpose, monitor }).unwrap();
    let started = Deploy {
        start: StartMode::Started,
        ..plan("disk", "m")
    };
    let error = engine.deploy(&started).unwrap_err();
    assert!(matches!(error, Error::Start { .. }), "{error}");
    assert!(engine.trash().unwrap().is_empty());
    assert_eq!(house.volume_files(), [""; 0]);
}

#[test]
fn a_move_to_the_trash_or_out_of_it_that_was_cut_short_is_finished() {
    let house = House::new();
    let engine = house.engine();
    let data = volume(&engine, "data", "16M");
    let now = Timestamp::now();
    let trashed = Trashed {
        at: now,
        until: Timestamp::MAX,
    };
    // As a kill leaves it between the record and the description.
    let recovered = |change: &dyn Fn(&Transaction<'_>) -> Result<(), CatalogError>| {
        catalogue(&house)
            .write(|tx| {
                change(tx)?;
                tx.begin(&Intent::DescribeVolume { volume: data.id })
            })
            .unwrap();
        house.notices();
        house.engine();
        let notices = house.notices();
        assert!(
            matches!(notices.as_slice(), [Notice::Recovered { .. }]),
            "{notices:?}"
        );
        description(&house, &data)
    };
    let described = recovered(&|tx| tx.trash_volume(data.id, trashed));
    assert!(described["history"]["trashed"].is_object());
    let described = recovered(&|tx| tx.restore_volume(data.id, &"back".parse().unwrap()));
    assert!(described["history"]["trashed"].is_null());
    assert_eq!(described["name"], "back");
}

#[test]
fn what_was_still_to_be_done_about_a_volume_goes_with_it() {
    let house = House::new();
    let engine = house.engine();
    let data = volume(&engine, "data", "16M");
    engine.destroy_volume(&reference("data")).unwrap();
    let begun = [
        Intent::DescribeVolume { volume: data.id },
        Intent::RevertVolume { volume: data.id },
        Intent::MoveVolume {
            volume: data.id,
            from: data.pool.clone(),
            to: "removed-since".parse().unwrap(),
        },
        Intent::RemoveMoved {
            volume: data.id,
            from: "removed-since".parse().unwrap(),
        },
    ];
    for intent in &begun {
        catalogue(&house).write(|tx| tx.begin(intent)).unwrap();
    }
    house.notices();
    house.engine();
    let notices = house.notices();
    let recovered = |notice: &Notice| matches!(notice, Notice::Recovered { .. });
    assert!(notices.iter().all(recovered), "{notices:?}");
    assert_eq!(notices.len(), begun.len());
    house.engine();
    assert_eq!(house.notices(), []);
}

/// A small pool of its own with three deleted volumes of 8 MB each, `third` the last to go.
fn crowded(kind: LoopKind) -> Option<(House, LoopFilesystem, Engine)> {
    let program = match kind {
        LoopKind::Xfs => "mkfs.xfs",
        LoopKind::Btrfs => "mkfs.btrfs",
        LoopKind::Ext4 | LoopKind::Tmpfs => "mkfs.ext4",
    };
    if !met(&[Requirement::Root, Requirement::Program(program)]) {
        return None;
    }
    let size = match kind {
        LoopKind::Btrfs => 128,
        _ => 64,
    };
    let house = House::new();
    let filesystem = LoopFilesystem::new(kind, Bytes::from_mib(size));
    let engine = house.engine();
    let pool = pool_on(&engine, "small", &filesystem);
    for name in ["first", "second", "third"] {
        let made = volume_in(&engine, &pool, name, 8);
        write_into(&made, 0, &vec![1; 8 << 20]);
        flush(&made);
        engine.delete_volume(&reference(name)).unwrap();
    }
    Some((house, filesystem, engine))
}

fn flush(volume: &VolumeView) {
    let path = volume.path.as_ref().unwrap();
    directory::flush(path, &File::open(path).unwrap()).unwrap();
}

fn written(path: &Path, data: &[u8]) {
    File::create(path).unwrap().write_all(data).unwrap();
}

/// Fills a filesystem until so many bytes are left.
fn fill(engine: &Engine, filesystem: &LoopFilesystem, left: u64) {
    let free = engine.pool_view(&"small".parse().unwrap()).unwrap();
    let film = File::create(filesystem.path().join("film")).unwrap();
    let length = free.free_bytes.unwrap() - left;
    rustix::fs::fallocate(&film, rustix::fs::FallocateFlags::empty(), 0, length).unwrap();
    directory::flush(filesystem.path(), &film).unwrap();
}

#[test]
fn a_pool_that_is_short_gives_its_trash_back_oldest_first_and_no_more_than_is_needed() {
    for kind in [LoopKind::Ext4, LoopKind::Btrfs] {
        let Some((house, filesystem, engine)) = crowded(kind) else {
            continue;
        };
        let data = volume(&engine, "data", "16M");
        write_into(&data, 0, &vec![2; 10 << 20]);
        fill(&engine, &filesystem, 4 * MIB);
        house.notices();
        // It needs 10 MB and a little: one of 8 MB is enough beside the 4 that are left.
        let clone = NewClone {
            source: reference("data"),
            snapshot: None,
            name: "copy".parse().unwrap(),
            pool: Some("small".parse().unwrap()),
        };
        engine.clone_volume(&clone).unwrap();
        assert_eq!(given_back(&house), ["first"], "{kind:?}");
        // On btrfs it takes its time until what was written is no longer free.
        let settle = || sistemo_host::system::settle_space(filesystem.path()).unwrap();
        settle();
        assert_eq!(in_trash(&engine), ["second", "third"]);

        // What would not be enough in any case is not lost for nothing.
        let film = house.path("film.raw");
        written(&film, &vec![3; 60 << 20]);
        let import = |name: &str| NewImported {
            name: name.parse().unwrap(),
            pool: Some("small".parse().unwrap()),
            filesystem: Filesystem::None,
            format: None,
            checksum: Checksum::Skip,
        };
        let error = engine.import_volume(&import("film"), &film).unwrap_err();
        assert!(matches!(error, Error::PoolTooFull { .. }), "{error}");
        assert_eq!(given_back(&house), [""; 0]);

        let clip = house.path("clip.raw");
        written(&clip, &vec![3; 7 << 20]);
        engine.import_volume(&import("clip"), &clip).unwrap();
        settle();
        assert_eq!(given_back(&house), ["second"], "{kind:?}");
        // A stream shows its length at its end: then the pool runs full on the way.
        written(&clip, &vec![3; 9 << 20]);
        let mut stream = File::open(&clip).unwrap();
        engine
            .import_volume_from(&import("stream"), &mut stream)
            .unwrap();
        assert_eq!(given_back(&house), ["third"], "{kind:?}");
        let error = engine.import_volume(&import("film"), &film).unwrap_err();
        assert!(matches!(error, Error::PoolTooFull { .. }), "{error}");
    }
}

#[test]
fn making_and_growing_a_filesystem_take_the_room_of_the_trash() {
    let Some((house, filesystem, engine)) = crowded(LoopKind::Tmpfs) else {
        return;
    };
    let pool = "small".parse().unwrap();
    let small = NewVolume {
        size: Bytes::from_mib(16),
        name: Some("data".parse().unwrap()),
        pool: Some(pool),
        filesystem: Filesystem::Ext4,
    };
    // Enough for its description, and not for what mkfs writes.
    fill(&engine, &filesystem, MIB / 16);
    house.notices();
    engine.create_volume(small).unwrap();
    assert_eq!(given_back(&house)[..1], ["first"]);
    // Growing a filesystem asks for 16 MB to be sure.
    let (data, to) = (reference("data"), Bytes::from_mib(64));
    engine
        .resize_volume(&data, to, Grow::DeviceAndFilesystem)
        .unwrap();
    assert!(!given_back(&house).is_empty());
    let checked = engine.volume(&data).unwrap();
    assert_eq!(checked.size_bytes, 64 * MIB);
}

#[test]
fn a_full_disk_beside_the_catalogue_takes_the_room_of_the_trash() {
    if !met(&[Requirement::Root, Requirement::Program("mkfs.ext4")]) {
        return;
    }
    let disk = LoopFilesystem::new(LoopKind::Ext4, Bytes::from_mib(64));
    let house = House::on(&disk);
    let engine = house.engine();
    let made = volume(&engine, "old", "16M");
    write_into(&made, MIB, &vec![1; 12 << 20]);
    flush(&made);
    volume(&engine, "kept", "16M");
    engine.delete_volume(&reference("old")).unwrap();
    let film = File::create(disk.path().join("film")).unwrap();
    let free = sistemo_host::system::space(disk.path()).unwrap().free;
    let none = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(&film, none, 0, free - MIB / 2).unwrap();
    house.notices();
    let engine = house.engine();
    assert_eq!(given_back(&house), ["old"]);
    assert_eq!(engine.volumes().unwrap().len(), 1);
}

#[test]
fn a_guest_on_a_full_pool_runs_on_with_the_room_of_the_trash() {
    let needed = [
        Requirement::TinyGuest,
        Requirement::Root,
        Requirement::Program("qemu-system-x86_64"),
        Requirement::Program("mkfs.ext4"),
    ];
    if !met(&needed) {
        return;
    }
    let Some((house, filesystem, engine)) = crowded(LoopKind::Ext4) else {
        return;
    };
    let fills = Action::Fill("vdb");
    house.import_tiny(&engine, &[fills.clone(), Action::WaitForButton]);
    let pool = "small".parse().unwrap();
    volume_in(&engine, &pool, "data", 20);
    fill(&engine, &filesystem, 2 * MIB);
    let machine = engine
        .deploy(&attaching(plan("tiny", "m"), &["data"]))
        .unwrap();
    start(&engine, "m");
    let console = house
        .data_dir()
        .join(format!("machines/{}/console.log", machine.id));
    wait_for_text(&console, &fills.done());
    assert_eq!(in_trash(&engine).last().map(String::as_str), None);
    wait_until("a machine that runs", || {
        engine.machine(&reference("m")).unwrap().status == "running"
    });
}
