//! Clones of machines: all volumes, another identity, all or nothing.

use sistemo::machines::{ClonedMachine, Deploy, MachineChanges, NewMachineClone, StartMode};
use sistemo::model::{Access, Bytes, PoolName, SnapshotName, VolumeId};
use sistemo::{Engine, Error, Notice, Way};
use sistemo_catalog::{Catalogue, Intent};
use sistemo_testkit::filesystem::{LoopFilesystem, LoopKind};
use sistemo_testkit::{Action, Requirement, met};

use crate::fixture::{
    House, MIB, attaching, holds, plan, pool_on, reference, reflinks, start, volume, volume_in,
    wait_for_text, wait_until, write_into,
};

fn new(source: &str, name: &str) -> NewMachineClone {
    NewMachineClone {
        source: reference(source),
        name: name.parse().unwrap(),
        snapshot: None,
        pool: None,
        expose: Vec::new(),
        start: StartMode::Created,
    }
}

fn clone(engine: &Engine, source: &str, name: &str) -> ClonedMachine {
    engine.clone_machine(&new(source, name)).unwrap()
}

fn named(name: &str) -> SnapshotName {
    name.parse().unwrap()
}

/// A machine `m` with volumes `data` and, read-only, `m-log`, each of which holds its own name.
fn scene() -> (House, Engine) {
    let house = House::new();
    let engine = house.engine();
    house.import_disk(&engine, MIB);
    engine.deploy(&plan("disk", "m")).unwrap();
    for (name, access) in [("data", Access::ReadWrite), ("m-log", Access::ReadOnly)] {
        volume(&engine, name, "16M");
        engine
            .attach_volume(&reference("m"), &reference(name), access)
            .unwrap();
    }
    for name in ["m-root", "data", "m-log"] {
        let volume = engine.volume(&reference(name)).unwrap();
        write_into(&volume, 0, name.as_bytes());
    }
    (house, engine)
}

#[test]
fn a_clone_has_clones_of_all_volumes_and_an_identity_of_its_own() {
    let (house, engine) = scene();
    let changes = MachineChanges {
        vcpus: Some(3.try_into().unwrap()),
        memory: Some(Bytes::from_mib(192)),
        expose: Some(vec!["127.0.0.1:1:80".parse().unwrap()]),
        autostart: Some(true),
    };
    let source = engine.set_machine(&reference("m"), &changes).unwrap();
    house.notices();
    let ClonedMachine {
        machine, volumes, ..
    } = clone(&engine, "m", "n");
    let devices: Vec<_> = machine
        .volumes
        .iter()
        .map(|v| {
            format!(
                "{}={}{}",
                v.device,
                v.name,
                if v.read_only { "!" } else { "" }
            )
        })
        .collect();
    let expected = ["/dev/vda=n-root", "/dev/vdb=n-data", "/dev/vdc=n-log!"];
    assert_eq!(devices, expected);
    for cloned in volumes {
        let made = engine.volume(&reference(cloned.name.as_str())).unwrap();
        assert!(holds(&made, 0, cloned.source.as_str().as_bytes()));
        let from = engine.volume(&reference(cloned.source.as_str())).unwrap();
        assert_eq!((made.size_bytes, made.role), (from.size_bytes, from.role));
    }
    assert_eq!((machine.vcpus, machine.memory_mb), (3, 192));
    assert_eq!((machine.status, machine.image), ("stopped", source.image));
    assert!(!machine.autostart && machine.exposed.is_empty());
    assert_ne!(machine.id, source.id);
    assert_ne!(machine.mac, source.mac);
    assert_ne!(machine.ssh.port, source.ssh.port);
    let notices = house.notices();
    assert!(
        matches!(
            notices.as_slice(),
            [
                Notice::PortsNotPassedOn { ports, .. },
                Notice::IdentityNotTold { by_firmware: true, .. }
            ] if *ports == [80]
        ),
        "{notices:?}"
    );

    // Its root goes with it, as that of a deploy does, and the other's does not.
    engine
        .delete_machine(&reference("n"), sistemo::machines::Storage::RemoveRoot)
        .unwrap();
    assert!(engine.volume(&reference("n-root")).is_err());
    assert!(engine.volume(&reference("n-data")).is_ok());
    assert!(engine.volume(&reference("m-root")).is_ok());
}

#[test]
fn each_volume_stays_in_its_pool_unless_one_is_named() {
    let Some(filesystem) = reflinks() else { return };
    let (_house, engine) = scene();
    let fast = pool_on(&engine, "fast", &filesystem);
    volume_in(&engine, &fast, "quick", 16);
    engine
        .attach_volume(&reference("m"), &reference("quick"), Access::ReadWrite)
        .unwrap();
    let pools = |machine: &ClonedMachine| -> Vec<PoolName> {
        let names = machine.machine.volumes.iter();
        names
            .map(|v| engine.volume(&reference(v.name.as_str())).unwrap().pool)
            .collect()
    };
    let default = PoolName::default_pool();
    let cloned = clone(&engine, "m", "n");
    let expected = [&default, &default, &default, &fast];
    assert_eq!(pools(&cloned).iter().collect::<Vec<_>>(), expected);
    assert_eq!(cloned.volumes[3].way, Way::Reflink);
    let moved = engine
        .clone_machine(&NewMachineClone {
            pool: Some(fast.clone()),
            ..new("m", "o")
        })
        .unwrap();
    assert_eq!(pools(&moved), [(); 4].map(|()| fast.clone()));
    assert_eq!(moved.volumes[0].way, Way::Copied);
}

#[test]
fn a_refused_clone_leaves_nothing_behind() {
    let (house, engine) = scene();
    engine.deploy(&plan("disk", "first")).unwrap();
    for taken in ["t-root", "u-data"] {
        volume(&engine, taken, "16M");
    }
    engine
        .take_snapshot(&reference("data"), Some(named("one")))
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let before = (
        engine.machines().unwrap(),
        engine.volumes().unwrap(),
        house.volume_files(),
    );
    let with = |change: &dyn Fn(&mut NewMachineClone)| {
        let mut new = new("m", "n");
        change(&mut new);
        new
    };
    for (new, named) in [
        (new("none", "n"), "machine none does not exist"),
        (new("m", "m"), "machine m already exists"),
        (new("m", "first"), "machine first already exists"),
        (new("m", "t"), "volume t-root already exists"),
        (new("m", "u"), "volume u-data already exists"),
        (
            with(&|new| new.pool = Some("fast".parse().unwrap())),
            "pool fast does not exist",
        ),
        (
            with(&|new| new.snapshot = Some(named("none"))),
            "machine m has no snapshot none: volumes m-root, data, m-log have no such snapshot",
        ),
        (
            with(&|new| new.snapshot = Some(named("one"))),
            "machine m has no snapshot one: volumes m-root, m-log have no such snapshot",
        ),
        (
            with(&|new| {
                new.expose = ["1:1", "1:2"].map(|text| text.parse().unwrap()).to_vec();
            }),
            "port 127.0.0.1:1 cannot be exposed",
        ),
        (
            with(&|new| {
                new.expose = vec![format!("{port}:80").parse().unwrap()];
                new.start = StartMode::Started;
            }),
            "cannot be exposed",
        ),
    ] {
        let error = engine.clone_machine(&new).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
    let after = (
        engine.machines().unwrap(),
        engine.volumes().unwrap(),
        house.volume_files(),
    );
    assert_eq!(after, before);
}

#[test]
fn a_clone_for_which_a_pool_has_no_room_is_not_begun() {
    if !met(&[Requirement::Root, Requirement::Program("mkfs.ext4")]) {
        return;
    }
    let filesystem = LoopFilesystem::new(LoopKind::Ext4, Bytes::from_mib(64));
    let (_house, engine) = scene();
    let small = pool_on(&engine, "small", &filesystem);
    for name in ["a", "b"] {
        let made = volume_in(&engine, &small, name, 24);
        write_into(&made, 0, &vec![7; 20 << 20]);
        engine
            .attach_volume(&reference("m"), &reference(name), Access::ReadWrite)
            .unwrap();
    }
    // There is room for either of the two, and not for both.
    let error = engine.clone_machine(&new("m", "n")).unwrap_err();
    assert!(matches!(error, Error::PoolTooFull { .. }), "{error}");
    assert!(error.to_string().contains("clone machine m"), "{error}");
    assert_eq!(engine.machines().unwrap().len(), 1);
}

#[test]
fn a_clone_that_was_cut_short_is_gone_with_the_next_command() {
    let (house, engine) = scene();
    let before = house.volume_files();
    let ClonedMachine { machine, .. } = clone(&engine, "m", "n");
    let volumes: Vec<VolumeId> = ["n-root", "n-data", "n-log"]
        .map(|name| engine.volume(&reference(name)).unwrap().id)
        .to_vec();
    // As a kill leaves it before the last transaction, with the second volume half-made.
    let catalogue = Catalogue::open(&house.data_dir()).unwrap();
    let id = machine.id;
    let intent = Intent::CloneMachine {
        machine: id,
        volumes: volumes.clone(),
    };
    catalogue.write(|session| session.begin(&intent)).unwrap();
    let file = format!("{}.json", volumes[1]);
    std::fs::remove_file(house.data_dir().join("volumes").join(file)).unwrap();
    house.notices();
    let next = house.engine();
    assert!(
        matches!(house.notices().as_slice(), [Notice::Recovered { what }] if what.contains("machine n")),
    );
    assert_eq!(next.machines().unwrap().len(), 1);
    assert_eq!(next.volumes().unwrap().len(), 3);
    assert_eq!(house.volume_files(), before);
}

#[test]
fn a_running_machine_is_cloned_from_its_snapshots_and_the_clone_boots() {
    if !met(&[
        Requirement::TinyGuest,
        Requirement::Program("qemu-system-x86_64"),
    ]) {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    house.import_tiny(
        &engine,
        &[Action::Disks, Action::Write("vdb"), Action::Count],
    );
    volume(&engine, "data", "16M");
    let deploy = Deploy {
        start: StartMode::Started,
        ..attaching(plan("tiny", "m"), &["data"])
    };
    engine.deploy(&deploy).unwrap();
    wait_for_text(&engine.console_log(&reference("m")).unwrap(), "count 3");
    let error = engine.clone_machine(&new("m", "n")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "machine m is running: cannot clone it as it is now"
    );
    for name in ["m-root", "data"] {
        engine
            .take_snapshot(&reference(name), Some(named("s")))
            .unwrap();
    }
    let cloned = engine
        .clone_machine(&NewMachineClone {
            snapshot: Some(named("s")),
            start: StartMode::Started,
            ..new("m", "n")
        })
        .unwrap();
    assert_eq!(cloned.machine.status, "running");
    let data = engine.volume(&reference("n-data")).unwrap();
    assert!(holds(&data, 0, b"sistemo\n"));
    let log = engine.console_log(&reference("n")).unwrap();
    wait_for_text(&log, "disk vda size=16777216 serial=n-root ro=0");
    wait_for_text(&log, "disk vdb size=16777216 serial=n-data ro=0");
    wait_until("the source runs on", || {
        engine.machine(&reference("m")).unwrap().status == "running"
    });
    start(&engine, "n");
}
