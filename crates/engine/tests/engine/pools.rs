//! Pools: where they may be, what a missing disk does, and that a refusal changes nothing.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use sistemo::doctor::{Verdict, examine};
use sistemo::machines::Deploy;
use sistemo::model::{Bytes, Filesystem, PoolName};
use sistemo::pools::{NewPool, PoolView};
use sistemo::settings::{Origin, Setting};
use sistemo::volumes::{NewVolume, VolumeStatus, VolumeView};
use sistemo::{Engine, Error, Notice, Settings};
use sistemo_host::program::Program;
use sistemo_testkit::filesystem::{LoopFilesystem, LoopKind};
use sistemo_testkit::{Requirement, met};

use crate::fixture::{House, MIB, plan, reference, volume};

const MARKER: &str = ".sistemo-pool";

/// As Qubes OS R3.2 installed it.
const QUBES: &str = "\
[default] ; poolname
driver=xen ; the default xen storage
; class = qubes.storage.xen.XenStorage ; class always overwrites the driver
; 
; To use our own storage adapter, you need just to specify the module path and
; class name
; [pool-b]
; class = foo.bar.MyStorage
;
; [test-dummy]
; driver=dummy

";

fn name(text: &str) -> PoolName {
    text.parse().unwrap()
}

fn new(pool: &str, directory: &Path) -> NewPool {
    NewPool {
        name: name(pool),
        driver: "file".to_owned(),
        options: vec![("dir_path".to_owned(), directory.display().to_string())],
    }
}

fn moved_to(directory: &Path) -> [(String, String); 1] {
    [("dir_path".to_owned(), directory.display().to_string())]
}

fn try_volume_in(engine: &Engine, pool: &str, volume: &str) -> sistemo::Result<VolumeView> {
    engine.create_volume(NewVolume {
        size: Bytes::from_mib(16),
        name: Some(volume.parse().unwrap()),
        pool: Some(name(pool)),
        filesystem: Filesystem::Ext4,
    })
}

fn volume_in(engine: &Engine, pool: &str, volume: &str) -> VolumeView {
    try_volume_in(engine, pool, volume).unwrap()
}

fn pool(engine: &Engine, pool: &str) -> PoolView {
    engine.pool_view(&name(pool)).unwrap()
}

/// What the doctor finds of each pool.
fn pool_checks(settings: &Settings) -> Vec<(Verdict, String)> {
    let checks = examine(settings).into_iter();
    let pools = checks.filter(|check| check.name == "pool");
    pools.map(|check| (check.verdict, check.found)).collect()
}

/// Why a pool is unavailable.
fn reason(engine: &Engine, of: &str) -> String {
    let view = pool(engine, of);
    assert!(!view.available);
    view.reason.unwrap()
}

fn status(engine: &Engine, volume: &str) -> VolumeStatus {
    engine.volume(&reference(volume)).unwrap().status
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn texts(error: &Error) -> String {
    let first: &dyn std::error::Error = error;
    let chain = std::iter::successors(Some(first), |error| error.source());
    chain
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

impl House {
    fn conf(&self) -> Option<String> {
        fs::read_to_string(self.data_dir().join("storage.conf")).ok()
    }
}

#[test]
fn without_configuration_there_is_the_default_pool_and_looking_makes_nothing() {
    let house = House::new();
    let engine = house.engine();
    let views = engine.pool_views().unwrap();
    assert_eq!(views.len(), 1);
    assert_eq!(pool(&engine, "default").name, views[0].name);
    let volumes = house.data_dir().join("volumes");
    assert_eq!(views[0].path.as_deref(), Some(volumes.as_path()));
    assert!(views[0].available && views[0].default && views[0].free_bytes.unwrap() > 0);
    assert_eq!((&views[0].file, views[0].line), (&None, None));
    assert!(!volumes.exists());
    let error = engine.pool_view(&name("nope")).unwrap_err();
    assert_eq!(error.to_string(), "pool nope does not exist");
}

#[test]
fn a_pool_is_added_used_and_removed_and_the_rest_of_the_file_stays() {
    let house = House::new();
    house.storage_conf(QUBES);
    let directory = house.path("qubes-vm");
    let engine = house.engine();
    let added = engine.add_pool(&new("foo", &directory)).unwrap();
    assert!(added.available);
    assert_eq!(added.line, Some(14));
    assert_eq!(added.file, Some(house.data_dir().join("storage.conf")));
    let section = format!(
        "\n[foo]\ndriver = file\ndir_path = {}\n",
        directory.display()
    );
    assert_eq!(house.conf().unwrap(), format!("{QUBES}{section}"));
    assert_eq!(entries(&directory), [MARKER]);

    let made = volume_in(&engine, "foo", "data");
    assert_eq!(made.path.unwrap().parent(), Some(directory.as_path()));
    let view = pool(&engine, "foo");
    assert_eq!((view.volumes, view.provisioned_bytes), (1, 16 * MIB));
    let error = engine.remove_pool(&name("foo")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "pool foo cannot be removed: it holds volume data"
    );

    engine.destroy_volume(&reference("data")).unwrap();
    assert_eq!(engine.remove_pool(&name("foo")).unwrap().volumes, 0);
    assert_eq!(house.conf().unwrap(), QUBES);
    assert!(
        entries(&directory).is_empty(),
        "the directory stays, without a marker"
    );
    assert!(try_volume_in(&engine, "foo", "data").is_err());
    engine.add_pool(&new("bar", &directory)).unwrap();
}

#[test]
fn a_pool_that_was_written_by_hand_is_made_at_its_first_use() {
    let house = House::new();
    let directory = house.path("qubes-vm");
    let section = format!("[foo]\ndriver=xen\ndir_path={}\n", directory.display());
    house.storage_conf(&format!("{QUBES}{section}"));
    let engine = house.engine();
    assert!(pool(&engine, "foo").available);
    assert!(!directory.exists(), "looking makes nothing");
    house.import_disk(&engine, MIB);
    let deploy = Deploy {
        pool: Some(name("foo")),
        ..plan("disk", "d")
    };
    let machine = engine.deploy(&deploy).unwrap();
    let root = engine.volume(&reference("d-root")).unwrap();
    assert_eq!(machine.root_volume.unwrap().as_str(), "d-root");
    assert_eq!(root.path.unwrap().parent(), Some(directory.as_path()));
    assert_eq!(root.driver.as_deref(), Some("file"));

    let deeper = house.path("not/there");
    house.storage_conf(&format!(
        "[deep]\ndriver=file\ndir_path={}\n",
        deeper.display()
    ));
    let error = try_volume_in(&house.engine(), "deep", "x").unwrap_err();
    assert!(
        texts(&error).contains("cannot create directory"),
        "{}",
        texts(&error)
    );
    assert!(!house.path("not").exists());
    assert!(!pool(&house.engine(), "deep").available);
}

#[test]
fn a_pool_that_would_not_work_is_not_added() {
    let house = House::new();
    let engine = house.engine();
    volume(&engine, "there", "16M");
    let inside = house.data_dir().join("volumes/inside");
    let occupied = house.path("occupied");
    engine.add_pool(&new("occupied", &occupied)).unwrap();
    let conf = house.conf();
    File::create(house.path("file")).unwrap();
    symlink(&occupied, house.path("link")).unwrap();
    let stranger = House::new();
    let strange = stranger.path("strange");
    stranger
        .engine()
        .add_pool(&new("strange", &strange))
        .unwrap();

    let file = |path: PathBuf| new("bad", &path);
    let option = |key: &str, value: &str| NewPool {
        options: vec![(key.to_owned(), value.to_owned())],
        ..new("bad", Path::new("/"))
    };
    for (bad, why) in [
        (file(house.path("file")), "Not a directory"),
        (file(house.path("not/there")), "No such file or directory"),
        (
            file(PathBuf::from("vm")),
            "[bad] dir_path: `vm` is not an absolute path",
        ),
        (file(PathBuf::from("~/vm")), "HOME is not set"),
        (file(occupied.clone()), "pool occupied is there"),
        (file(house.path("link")), "pool occupied is there"),
        (file(inside.clone()), "that is inside pool default"),
        (
            file(house.path("link/deeper")),
            "that is inside pool occupied",
        ),
        (file(house.path("")), "pool default is inside it"),
        (file(house.data_dir()), "pool default is inside it"),
        (
            file(house.data_dir().join("images")),
            "Sistemo keeps other things there",
        ),
        (
            file(house.data_dir().join("machines/x")),
            "Sistemo keeps other things there",
        ),
        (file(strange.clone()), "belongs to another Sistemo"),
        (file("/x #y".into()), "cannot be written in a storage.conf"),
        (
            option("size", "5G"),
            "[bad] size: driver file has no such option; its options are dir_path, \
             revisions_to_keep, trash_keep",
        ),
        (
            NewPool {
                options: Vec::new(),
                ..file("/x".into())
            },
            "[bad] dir_path: driver file needs the option",
        ),
        (
            NewPool {
                driver: "zfs".to_owned(),
                ..file("/x".into())
            },
            "driver zfs does not exist",
        ),
        (
            NewPool {
                name: name("default"),
                ..file("/x".into())
            },
            "pool default already exists",
        ),
        (
            NewPool {
                name: name("occupied"),
                ..file("/x".into())
            },
            "pool occupied already exists",
        ),
    ] {
        let error = engine.add_pool(&bad).unwrap_err();
        assert!(texts(&error).contains(why), "{bad:?}: {}", texts(&error));
        assert_eq!(house.conf(), conf, "{bad:?}");
    }
    assert_eq!(entries(&strange), [MARKER]);
    assert!(!inside.exists() && !house.path("not").exists());
    assert_eq!(engine.pool_views().unwrap().len(), 2);
    assert_eq!(entries(&occupied), [MARKER]);
}

#[test]
fn two_pools_in_one_place_leave_the_one_that_was_used_before() {
    let house = House::new();
    let place = house.path("place");
    let section = |title: &str, path: &Path| {
        format!("[{title}]\ndriver = file\ndir_path = {}\n", path.display())
    };
    let (first, second) = (section("first", &place), section("second", &place));
    house.storage_conf(&format!("{first}{second}"));
    let engine = house.engine();
    assert!(pool(&engine, "first").available);
    assert!(reason(&engine, "second").contains("pool first is there"));
    assert!(try_volume_in(&engine, "second", "x").is_err());

    volume_in(&engine, "first", "data");
    house.storage_conf(&format!("{second}{first}"));
    let engine = house.engine();
    assert!(reason(&engine, "second").contains("pool first is there"));
    assert_eq!(status(&engine, "data"), VolumeStatus::Available);

    let inner = section("inner", &place.join("inner"));
    let outer = section("outer", house.path("").as_path());
    house.storage_conf(&format!("{inner}{outer}{first}"));
    let engine = house.engine();
    assert!(reason(&engine, "inner").contains("that is inside pool first"));
    assert!(reason(&engine, "outer").contains("is inside it"));
    assert_eq!(status(&engine, "data"), VolumeStatus::Available);
    assert_eq!(entries(&house.path("")), ["data", "place"]);
}

#[test]
fn a_mistake_in_one_section_harms_no_other_pool() {
    let house = House::new();
    let good = house.path("good");
    let engine = house.engine();
    engine.add_pool(&new("good", &good)).unwrap();
    volume_in(&engine, "good", "data");
    volume(&engine, "usual", "16M");
    let conf = house.conf().unwrap();
    house.storage_conf(&format!(
        "[a/b]\ndriver = file\n[bad]\ndriver = zfs\n{conf}"
    ));
    let engine = house.engine();
    let views = engine.pool_views().unwrap();
    let usable: Vec<_> = views
        .iter()
        .map(|v| (v.name.as_str(), v.available))
        .collect();
    assert_eq!(
        usable,
        [
            ("default", true),
            ("a/b", false),
            ("bad", false),
            ("good", true)
        ]
    );
    let file = house.data_dir().join("storage.conf");
    let expected = format!(
        "{}:4: [bad] driver: there is no driver `zfs`; the drivers are file,",
        file.display()
    );
    let found = reason(&engine, "bad");
    assert!(found.starts_with(&expected), "{found}");
    let error = try_volume_in(&engine, "bad", "x").unwrap_err();
    assert!(matches!(error, Error::PoolMisconfigured { .. }), "{error}");
    for name in ["data", "usual"] {
        assert_eq!(status(&engine, name), VolumeStatus::Available);
    }
    engine.remove_pool(&name("bad")).unwrap();
    assert_eq!(
        house.conf().unwrap(),
        format!("[a/b]\ndriver = file\n{conf}")
    );
}

#[test]
fn a_file_that_makes_no_sense_as_a_whole_stops_no_listing() {
    let house = House::new();
    volume(&house.engine(), "data", "16M");
    house.storage_conf("dir_path = /x\n");
    let engine = house.engine();
    let listed = &engine.volumes().unwrap()[0];
    assert_eq!(listed.status, VolumeStatus::Error);
    let told = listed.reason.as_ref().unwrap();
    assert!(
        told.contains("storage.conf:1: the line stands before"),
        "{told}"
    );
    assert!(matches!(engine.pool_views(), Err(Error::StorageConf(_))));
    assert!(engine.add_pool(&new("foo", &house.path("foo"))).is_err());
    assert_eq!(house.conf().as_deref(), Some("dir_path = /x\n"));
    assert!(!house.path("foo").exists());
    fs::remove_file(house.data_dir().join("storage.conf")).unwrap();
    assert_eq!(status(&house.engine(), "data"), VolumeStatus::Available);
}

/// A directory on which a filesystem can be mounted and unmounted again.
struct Mount {
    filesystem: LoopFilesystem,
    point: PathBuf,
}

impl Mount {
    fn new(kind: LoopKind, point: PathBuf) -> Mount {
        fs::create_dir(&point).unwrap();
        let filesystem = LoopFilesystem::new(kind, Bytes::from_mib(64));
        let mount = Mount { filesystem, point };
        mount.mount();
        mount
    }

    fn mount(&self) {
        let mount = Program::find("mount").unwrap().arg("--bind");
        mount
            .arg(self.filesystem.path())
            .arg(&self.point)
            .run()
            .unwrap();
    }

    fn unmount(&self) {
        let unmount = Program::find("umount").unwrap();
        unmount.arg(&self.point).run().unwrap();
    }

    fn make_read_only(&self) {
        let mount = Program::find("mount").unwrap();
        let mount = mount.args(["-o", "remount,bind,ro"]);
        mount.arg(&self.point).run().unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmount = Program::find("umount").unwrap();
        // It may be unmounted already.
        let _ = unmount.arg("-l").arg(&self.point).run();
    }
}

fn can_mount() -> bool {
    met(&[Requirement::Root, Requirement::Program("mkfs.ext4")])
}

#[test]
fn a_missing_disk_makes_its_own_pool_unavailable_and_nothing_is_made_in_its_place() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    let mount = Mount::new(LoopKind::Ext4, house.path("disk"));
    house.engine().add_pool(&new("disk", &mount.point)).unwrap();
    volume_in(&house.engine(), "disk", "data");
    volume(&house.engine(), "usual", "16M");
    mount.unmount();

    let engine = house.engine();
    let why = reason(&engine, "disk");
    assert!(
        why.contains("has no pool marker; is its disk not mounted?"),
        "{why}"
    );
    let listed = engine.volumes().unwrap();
    assert_eq!(listed[0].status, VolumeStatus::Error);
    assert!(
        listed[0]
            .reason
            .as_ref()
            .unwrap()
            .contains("is its disk not mounted?")
    );
    assert_eq!(listed[1].status, VolumeStatus::Available);
    for refused in [
        try_volume_in(&engine, "disk", "new").map(drop),
        engine.delete_volume(&reference("data")).map(drop),
        engine
            .rename_volume(&reference("data"), "other".parse().unwrap())
            .map(drop),
        engine
            .set_pool(&name("disk"), &moved_to(&mount.point))
            .map(drop),
        engine.remove_pool(&name("disk")).map(drop),
    ] {
        refused.unwrap_err();
    }
    volume(&engine, "more", "16M");
    assert!(
        entries(&mount.point).is_empty(),
        "the mount point stays empty"
    );
    let checks = pool_checks(engine.settings());
    let [usual, disk] = checks.as_slice() else {
        panic!("{checks:?}")
    };
    assert_eq!(usual.0, Verdict::Ok);
    assert!(usual.1.starts_with("default: 2 volumes"), "{usual:?}");
    assert_eq!(disk.0, Verdict::Warning);
    assert!(disk.1.starts_with("disk: "), "{disk:?}");

    mount.mount();
    let engine = house.engine();
    assert!(pool(&engine, "disk").available);
    assert_eq!(status(&engine, "data"), VolumeStatus::Available);
    volume_in(&engine, "disk", "new");
}

#[test]
fn a_pool_without_volumes_is_known_too_and_not_made_again() {
    let house = House::new();
    let place = house.path("place");
    house.engine().add_pool(&new("foo", &place)).unwrap();
    fs::remove_dir_all(&place).unwrap();
    let engine = house.engine();
    assert!(reason(&engine, "foo").contains("is not available"));
    try_volume_in(&engine, "foo", "data").unwrap_err();
    assert!(!place.exists());
    engine
        .set_pool(&name("foo"), &moved_to(&place))
        .unwrap_err();
    assert!(!place.exists());
    engine.remove_pool(&name("foo")).unwrap();
    engine.add_pool(&new("foo", &place)).unwrap();
}

#[test]
fn what_a_pool_keeps_is_set_as_its_other_options_are_and_seen_by_who_has_it_open() {
    let house = House::new();
    let place = house.path("place");
    let engine = house.engine();
    let option = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let mut foo = new("foo", &place);
    foo.options.push(option("revisions_to_keep", "3"));
    let view = engine.add_pool(&foo).unwrap();
    assert_eq!(view.options["revisions_to_keep"], "3");
    assert_eq!(view.options["trash_keep"], "24h");
    volume_in(&engine, "foo", "data");

    let elsewhere = house.engine();
    let keeping = || {
        let keeping = engine.pool_keeping(&name("foo")).unwrap();
        (keeping.revisions, keeping.trash.to_string())
    };
    assert_eq!(keeping(), (3, "24h".to_owned()));
    // Nothing of it concerns the volumes there are.
    let set = [
        option("trash_keep", "14d"),
        option("revisions_to_keep", "0"),
    ];
    elsewhere.set_pool(&name("foo"), &set).unwrap();
    assert_eq!(keeping(), (0, "14d".to_owned()));
    assert_eq!(status(&engine, "data"), VolumeStatus::Available);

    let conf = house.conf();
    let error = engine
        .set_pool(&name("foo"), &[option("trash_keep", "soon")])
        .unwrap_err();
    assert!(
        texts(&error).contains("[foo] trash_keep: it is not a length of time: `soon`"),
        "{}",
        texts(&error)
    );
    assert_eq!(house.conf(), conf);
    assert_eq!(keeping(), (0, "14d".to_owned()));
}

#[test]
fn a_pool_that_was_moved_is_found_again_where_it_is_said_to_be() {
    let house = House::new();
    let (old, moved) = (house.path("old"), house.path("moved"));
    let engine = house.engine();
    engine.add_pool(&new("foo", &old)).unwrap();
    volume_in(&engine, "foo", "data");
    let conf = house.conf();
    let error = engine
        .set_pool(&name("foo"), &moved_to(&moved))
        .unwrap_err();
    assert!(texts(&error).contains("No such file"), "{}", texts(&error));
    assert!(!moved.exists());
    fs::create_dir(&moved).unwrap();
    let error = engine
        .set_pool(&name("foo"), &moved_to(&moved))
        .unwrap_err();
    assert!(
        texts(&error).contains("no pool marker"),
        "{}",
        texts(&error)
    );
    assert!(entries(&moved).is_empty());
    assert_eq!(house.conf(), conf);
    assert_eq!(status(&engine, "data"), VolumeStatus::Available);
    fs::remove_dir(&moved).unwrap();

    let away = Program::find("mv").unwrap();
    away.arg(&old).arg(&moved).run().unwrap();
    assert_eq!(status(&house.engine(), "data"), VolumeStatus::Error);
    let view = engine.set_pool(&name("foo"), &moved_to(&moved)).unwrap();
    assert_eq!(view.path.as_deref(), Some(moved.as_path()));
    for engine in [engine, house.engine()] {
        assert_eq!(status(&engine, "data"), VolumeStatus::Available);
    }
    assert!(!old.exists());
}

#[test]
fn an_empty_pool_goes_where_it_is_told_and_leaves_no_marker_behind() {
    let house = House::new();
    let (old, next) = (house.path("old"), house.path("next"));
    let engine = house.engine();
    engine.add_pool(&new("foo", &old)).unwrap();
    engine.set_pool(&name("foo"), &moved_to(&next)).unwrap();
    assert!(entries(&old).is_empty());
    let made = volume_in(&engine, "foo", "data").path.unwrap();
    assert_eq!(made.parent(), Some(next.as_path()));
    engine
        .set_pool(&name("default"), &moved_to(&house.path("usual")))
        .unwrap();
    let made = volume(&engine, "usual", "16M").path.unwrap();
    assert_eq!(made.parent(), Some(house.path("usual").as_path()));
}

#[test]
fn what_still_needs_a_pool_keeps_it() {
    let house = House::new();
    house
        .engine()
        .add_pool(&new("foo", &house.path("foo")))
        .unwrap();
    let conf = house.conf();
    let engine = house
        .try_engine_with(|settings| {
            settings.default_pool = Setting {
                value: name("foo"),
                origin: Origin::Option("--test"),
            };
        })
        .unwrap();
    for (pool, why) in [
        ("default", "it always exists"),
        ("foo", "it is the `default_pool` from --test"),
    ] {
        let error = engine.remove_pool(&name(pool)).unwrap_err().to_string();
        assert_eq!(error, format!("pool {pool} cannot be removed: {why}"));
    }
    let made = volume(&engine, "data", "16M");
    assert_eq!(made.pool, name("foo"), "the setting is honoured");
    engine.destroy_volume(&reference("data")).unwrap();

    let engine = house.engine();
    let lost = format!("{}.ext4", made.id);
    File::create(house.path("foo").join(lost)).unwrap();
    let error = engine.remove_pool(&name("foo")).unwrap_err().to_string();
    assert!(
        error.contains("volumes that the catalogue does not know"),
        "{error}"
    );
    assert_eq!(house.conf(), conf);
}

#[test]
fn a_default_pool_that_does_not_exist_is_told_with_where_it_came_from() {
    let house = House::new();
    let engine = house
        .try_engine_with(|settings| {
            settings.default_pool = Setting {
                value: name("nope"),
                origin: Origin::Environment("SISTEMO_DEFAULT_POOL".to_owned()),
            };
        })
        .unwrap();
    let new = NewVolume {
        size: Bytes::from_mib(16),
        name: None,
        pool: None,
        filesystem: Filesystem::Ext4,
    };
    let error = engine.create_volume(new).unwrap_err().to_string();
    let expected = "pool nope, the `default_pool` from SISTEMO_DEFAULT_POOL, does not exist";
    assert_eq!(error, expected);
    let checks = pool_checks(engine.settings());
    let told = "nope, the `default_pool` from SISTEMO_DEFAULT_POOL, does not exist";
    assert_eq!(checks[0], (Verdict::Failed, told.to_owned()));
    volume_in(&engine, "default", "data");
}

#[test]
fn a_section_that_is_gone_leaves_its_pool_to_be_put_back() {
    let house = House::new();
    let place = house.path("place");
    house.engine().add_pool(&new("foo", &place)).unwrap();
    volume_in(&house.engine(), "foo", "data");
    house.storage_conf("");
    let engine = house.engine();
    assert_eq!(
        reason(&engine, "foo"),
        "no section of storage.conf describes it"
    );
    assert_eq!(pool(&engine, "foo").path.as_deref(), Some(place.as_path()));
    assert_eq!(engine.pool_views().unwrap().len(), 2);
    assert_eq!(status(&engine, "data"), VolumeStatus::Error);
    let checks = pool_checks(engine.settings());
    assert_eq!(checks[0], (Verdict::Ok, "default: not used yet".to_owned()));
    assert_eq!(checks[1].0, Verdict::Warning);
    assert!(
        checks[1].1.starts_with("foo: it holds volumes"),
        "{checks:?}"
    );
    let elsewhere = house.path("elsewhere");
    engine.add_pool(&new("foo", &elsewhere)).unwrap_err();
    assert!(!elsewhere.exists(), "its volumes are not there");
    engine.add_pool(&new("foo", &place)).unwrap();
    assert_eq!(status(&engine, "data"), VolumeStatus::Available);
}

#[test]
fn a_pool_in_memory_is_allowed_with_a_warning() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    let memory = LoopFilesystem::new(LoopKind::Tmpfs, Bytes::from_mib(64));
    house.notices();
    house.engine().add_pool(&new("ram", memory.path())).unwrap();
    let warning = Notice::PoolInMemory {
        pool: name("ram"),
        directory: memory.path().to_owned(),
    };
    assert_eq!(house.notices(), [warning]);
    volume_in(&house.engine(), "ram", "scratch");
    assert!(house.notices().is_empty(), "it is said once");

    let by_hand = memory.path().join("by-hand");
    house.storage_conf(&format!(
        "[hand]\ndriver=file\ndir_path={}\n",
        by_hand.display()
    ));
    fs::remove_file(memory.path().join(MARKER)).unwrap();
    volume_in(&house.engine(), "hand", "scratch2");
    assert_eq!(house.notices().len(), 1);
}

#[test]
fn a_place_or_a_file_that_cannot_be_written_changes_nothing() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    let mount = Mount::new(LoopKind::Ext4, house.path("disk"));
    let there = mount.point.join("there");
    fs::create_dir(&there).unwrap();
    File::create(mount.point.join("pools.conf")).unwrap();
    mount.make_read_only();
    let engine = house.engine();
    for place in [there.clone(), mount.point.join("new")] {
        let error = engine.add_pool(&new("foo", &place)).unwrap_err();
        assert!(
            texts(&error).contains("Read-only file system"),
            "{}",
            texts(&error)
        );
    }
    assert_eq!(house.conf(), None);

    let engine = house
        .try_engine_with(|settings| {
            settings.storage_conf.value = Some(mount.point.join("pools.conf"));
        })
        .unwrap();
    let place = house.path("place");
    let error = engine.add_pool(&new("foo", &place)).unwrap_err();
    assert!(
        error.to_string().contains("pools.conf cannot be changed"),
        "{error}"
    );
    assert!(!place.exists());
    assert_eq!(house.conf(), None, "no other file takes its place");
}

#[test]
fn pools_added_at_once_are_all_there() {
    let house = House::new();
    drop(house.engine());
    std::thread::scope(|scope| {
        for number in 0..6 {
            let house = &house;
            scope.spawn(move || {
                let title = format!("pool{number}");
                let engine = house.engine();
                engine.add_pool(&new(&title, &house.path(&title))).unwrap();
                volume_in(&engine, &title, &title);
            });
        }
    });
    let views = house.engine().pool_views().unwrap();
    assert_eq!(views.len(), 7);
    assert!(views.iter().all(|view| view.available), "{views:?}");
    assert_eq!(views.iter().map(|view| view.volumes).sum::<usize>(), 6);
}

#[test]
fn a_pool_is_removed_or_gets_the_volume_never_both() {
    let house = House::new();
    let engine = house.engine();
    for round in 0..10 {
        engine.add_pool(&new("foo", &house.path("foo"))).unwrap();
        let title = format!("v{round}");
        let (made, removed) = std::thread::scope(|scope| {
            let made = scope.spawn(|| try_volume_in(&house.engine(), "foo", &title));
            let removed = scope.spawn(|| house.engine().remove_pool(&name("foo")));
            (made.join().unwrap(), removed.join().unwrap())
        });
        assert_ne!(made.is_ok(), removed.is_ok(), "{made:?} {removed:?}");
        if made.is_ok() {
            let engine = house.engine();
            engine.destroy_volume(&reference(&title)).unwrap();
            engine.remove_pool(&name("foo")).unwrap();
        }
    }
}

/// A pool with a filesystem of its own in `place`.
fn own_filesystem(engine: &Engine, place: &Path) -> Option<PoolView> {
    let programs = ["mkfs.xfs", "xfs_growfs", "mount"].map(Requirement::Program);
    if !met(&[Requirement::Root]) || !met(&programs) {
        return None;
    }
    let option = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let added = engine.add_pool(&NewPool {
        name: name("own"),
        driver: "file-reflink".to_owned(),
        options: vec![
            option("dir_path", place.to_str().unwrap()),
            option("size", "400M"),
        ],
    });
    Some(added.unwrap())
}

fn is_mounted(place: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.contains(place.to_str().unwrap())
}

#[test]
fn a_pool_with_a_filesystem_of_its_own_grows_and_is_unmounted_when_it_is_removed() {
    let house = House::new();
    let engine = house.engine();
    let place = house.path("own");
    let Some(added) = own_filesystem(&engine, &place) else {
        return;
    };
    assert!(added.resizable && is_mounted(&place));
    volume_in(&engine, "own", "data");
    let before = added.size_bytes.unwrap();
    let grown = engine
        .resize_pool(&name("own"), Bytes::from_mib(600))
        .unwrap();
    assert!(grown.size_bytes.unwrap() > before + 150 * MIB);
    let conf = fs::read_to_string(grown.file.unwrap()).unwrap();
    assert!(conf.contains("size = 600M"), "{conf}");
    let shrunk = engine.resize_pool(&name("own"), Bytes::from_mib(500));
    assert!(matches!(shrunk, Err(Error::Pool { .. })), "{shrunk:?}");
    assert_eq!(
        fs::read_to_string(house.data_dir().join("storage.conf")).unwrap(),
        conf
    );
    let again = house.engine();
    assert_eq!(pool(&again, "own").size_bytes, grown.size_bytes);

    again.destroy_volume(&reference("data")).unwrap();
    drop((engine, again));
    house.engine().remove_pool(&name("own")).unwrap();
    assert!(!is_mounted(&place));
}

#[test]
fn a_pool_on_another_filesystem_is_not_resized() {
    let house = House::new();
    let engine = house.engine();
    volume(&engine, "data", "16M");
    let refused = engine.resize_pool(&name("default"), Bytes::from_mib(600));
    let error = refused.unwrap_err();
    assert_eq!(
        error.to_string(),
        "pool default cannot be resized: it has no filesystem of its own"
    );
    assert!(!house.data_dir().join("storage.conf").exists());
}

#[test]
fn a_pool_that_holds_volumes_keeps_its_driver() {
    let house = House::new();
    let directory = house.path("vm");
    let conf = |driver: &str| {
        house.storage_conf(&format!(
            "[h]\ndriver = {driver}\ndir_path = {}\n",
            directory.display()
        ));
    };
    conf("file");
    let made = try_volume_in(&house.engine(), "h", "kept").unwrap();
    conf("qcow2");
    let engine = house.engine();
    let told = reason(&engine, "h");
    assert_eq!(
        told,
        "pool h holds volumes of driver file and cannot be used with driver qcow2"
    );
    let error = engine.delete_volume(&reference("kept")).unwrap_err();
    assert!(matches!(error, Error::PoolDriverChanged { .. }), "{error}");
    conf("file");
    let engine = house.engine();
    let kept = engine.volume(&reference("kept")).unwrap();
    assert_eq!((kept.status, kept.path), (made.status, made.path));
    // Without volumes it may become another's.
    engine.destroy_volume(&reference("kept")).unwrap();
    conf("qcow2");
    try_volume_in(&house.engine(), "h", "layered").unwrap();
}
