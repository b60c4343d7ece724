//! Machines that are not started: what is made, what is refused, and that a refusal leaves
//! nothing behind.

use sistemo::machines::{Deploy, DeploySource, MachineChanges, Storage};
use sistemo::model::{Access, Attachment, Bytes, VolumeId};
use sistemo::volumes::VolumeStatus;
use sistemo::{Engine, Error};

use crate::fixture::{House, MIB, attaching, plan, reference, volume};

fn house_with_disk() -> (House, Engine) {
    let house = House::new();
    let engine = house.engine();
    house.import_disk(&engine, MIB);
    (house, engine)
}

fn volume_status(engine: &Engine, name: &str) -> VolumeStatus {
    engine.volume(&reference(name)).unwrap().status
}

#[test]
fn a_deploy_makes_a_root_volume_of_the_size_asked_for() {
    let (_house, engine) = house_with_disk();
    let machine = engine.deploy(&Deploy {
        storage: Some(Bytes::from_mib(64)),
        ..plan("disk", "web")
    });
    let machine = machine.unwrap();
    assert_eq!((machine.status, machine.stopped_how), ("stopped", None));
    let root = engine.volume(&reference("web-root")).unwrap();
    assert_eq!(
        (root.size_bytes, root.device.as_deref()),
        (64 * MIB, Some("/dev/vda"))
    );
}

#[test]
fn a_deploy_without_a_size_takes_the_larger_of_image_and_default() {
    let (house, engine) = house_with_disk();
    engine
        .deploy(&Deploy {
            storage: None,
            ..plan("disk", "small")
        })
        .unwrap();
    assert_eq!(
        engine.volume(&reference("small-root")).unwrap().size_bytes,
        2048 * MIB
    );
    engine.delete_image(&"disk".parse().unwrap()).unwrap();
    house.import_disk(&engine, 3072 * MIB);
    engine
        .deploy(&Deploy {
            storage: None,
            ..plan("disk", "large")
        })
        .unwrap();
    assert_eq!(
        engine.volume(&reference("large-root")).unwrap().size_bytes,
        3072 * MIB
    );
}

#[test]
fn a_machine_without_a_name_is_called_by_its_image() {
    let (_house, engine) = house_with_disk();
    let nameless = || Deploy {
        name: None,
        ..plan("disk", "unused")
    };
    volume(&engine, "disk-2-root", "16M");
    let names = [(); 2].map(|()| engine.deploy(&nameless()).unwrap().name.to_string());
    assert_eq!(
        names,
        ["disk", "disk-3"],
        "disk-2 would need a volume name that is taken"
    );
}

#[test]
fn volumes_are_attached_in_the_order_given() {
    let (_house, engine) = house_with_disk();
    for name in ["a", "b"] {
        volume(&engine, name, "16M");
    }
    let machine = engine
        .deploy(&attaching(plan("disk", "web"), &["b", "a"]))
        .unwrap();
    let devices: Vec<_> = machine
        .volumes
        .iter()
        .map(|v| format!("{}={}", v.device, v.name))
        .collect();
    assert_eq!(devices, ["/dev/vda=web-root", "/dev/vdb=b", "/dev/vdc=a"]);
    assert_eq!(volume_status(&engine, "a"), VolumeStatus::Attached);
}

#[test]
fn a_refused_deploy_leaves_nothing_behind() {
    let (house, engine) = house_with_disk();
    volume(&engine, "free", "16M");
    volume(&engine, "held", "16M");
    volume(&engine, "taken-root", "16M");
    engine
        .deploy(&attaching(plan("disk", "first"), &["held"]))
        .unwrap();
    let before = (
        engine.machines().unwrap(),
        engine.volumes().unwrap(),
        house.volume_files(),
    );

    let with = |change: &dyn Fn(&mut Deploy)| {
        let mut new = plan("disk", "second");
        change(&mut new);
        new
    };
    let exposing = ["127.0.0.1:1:1", "127.0.0.1:1:2"].map(|text| text.parse().unwrap());
    let refused: Vec<(Deploy, &str)> = vec![
        (plan("disk", "first"), "machine first already exists"),
        (plan("disk", "taken"), "volume taken-root already exists"),
        (plan("none", "second"), "image none does not exist"),
        (
            attaching(plan("disk", "second"), &["none"]),
            "volume none does not exist",
        ),
        (
            attaching(plan("disk", "second"), &["held"]),
            "volume held is attached to first",
        ),
        (
            attaching(plan("disk", "second"), &["free", "free"]),
            "volume free is named more than once",
        ),
        (
            with(&|new| new.memory = Some(Bytes::from_mib(127))),
            "127 MB of memory is outside",
        ),
        (
            with(&|new| new.memory = Some(Bytes::from_mib(1 << 30))),
            "of memory is outside",
        ),
        (
            with(&|new| new.storage = Some(Bytes::new(512))),
            "is too small",
        ),
        (
            with(&|new| new.pool = Some("fast".parse().unwrap())),
            "pool fast does not exist",
        ),
        (
            with(&|new| new.expose = exposing.to_vec()),
            "port 127.0.0.1:1 cannot be exposed",
        ),
        (
            with(&|new| new.source = DeploySource::Volume(reference("held"))),
            "volume held is attached to first",
        ),
        (
            with(&|new| {
                new.source = DeploySource::Volume(reference("free"));
                new.attach = vec![reference("free")];
            }),
            "volume free is named more than once",
        ),
        (
            with(&|new| new.source = DeploySource::File(house.path("none.raw"))),
            "cannot deploy from",
        ),
    ];
    for (new, reason) in refused {
        let error = engine.deploy(&new).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}, not {reason}");
    }
    let after = (
        engine.machines().unwrap(),
        engine.volumes().unwrap(),
        house.volume_files(),
    );
    assert_eq!(before, after);
}

#[test]
fn a_name_equal_to_another_machines_id_is_refused() {
    let (_house, engine) = house_with_disk();
    let first = engine.deploy(&plan("disk", "first")).unwrap();
    let error = engine
        .deploy(&plan("disk", &first.id.to_string()))
        .unwrap_err();
    assert!(matches!(error, Error::NameTaken { .. }), "{error}");
}

#[test]
fn a_machine_holds_at_most_26_volumes() {
    let (_house, engine) = house_with_disk();
    let names: Vec<String> = (1..=Attachment::LIMIT)
        .map(|number| format!("v{number}"))
        .collect();
    for name in &names {
        volume(&engine, name, "16M");
    }
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let error = engine
        .deploy(&attaching(plan("disk", "m"), &all))
        .unwrap_err();
    assert!(matches!(error, Error::TooManyVolumes { .. }), "{error}");
    engine
        .deploy(&attaching(plan("disk", "m"), &all[1..]))
        .unwrap();
    let error = engine.attach_volume(&reference("m"), &reference("v1"), Access::ReadWrite);
    assert!(matches!(error.unwrap_err(), Error::TooManyVolumes { .. }));
}

#[test]
fn a_volume_is_attached_to_one_machine_at_a_time() {
    let (_house, engine) = house_with_disk();
    volume(&engine, "data", "16M");
    for name in ["one", "two"] {
        engine.deploy(&plan("disk", name)).unwrap();
    }
    let attach = |machine: &str| {
        engine.attach_volume(&reference(machine), &reference("data"), Access::ReadOnly)
    };
    let machine = attach("one").unwrap();
    assert_eq!(machine.volumes[1].device, "/dev/vdb");
    assert!(machine.volumes[1].read_only);
    for machine in ["one", "two"] {
        assert_eq!(
            attach(machine).unwrap_err().to_string(),
            "volume data is attached to one"
        );
    }
    let detach =
        |machine: &str, volume: &str| engine.detach_volume(&reference(machine), &reference(volume));
    assert!(matches!(
        detach("two", "data"),
        Err(Error::VolumeNotAttached { .. })
    ));
    assert!(matches!(
        detach("one", "one-root"),
        Err(Error::RootVolume { .. })
    ));
    detach("one", "data").unwrap();
    assert_eq!(volume_status(&engine, "data"), VolumeStatus::Available);
    attach("two").unwrap();
}

#[test]
fn deleting_a_machine_takes_the_root_it_made_and_nothing_else() {
    let (_house, engine) = house_with_disk();
    volume(&engine, "data", "16M");
    engine
        .deploy(&attaching(plan("disk", "m"), &["data"]))
        .unwrap();
    let deletion = engine
        .delete_machine(&reference("m"), Storage::RemoveRoot)
        .unwrap();
    assert_eq!(deletion.removes.unwrap().name.as_str(), "m-root");
    assert!(engine.machines().unwrap().is_empty());
    assert!(engine.volume(&reference("m-root")).is_err());
    assert_eq!(volume_status(&engine, "data"), VolumeStatus::Available);
}

#[test]
fn preserving_storage_keeps_the_root_which_boots_another_machine_and_stays() {
    let (_house, engine) = house_with_disk();
    engine.deploy(&plan("disk", "old")).unwrap();
    let deletion = engine
        .delete_machine(&reference("old"), Storage::Preserve)
        .unwrap();
    assert!(deletion.removes.is_none());
    assert_eq!(volume_status(&engine, "old-root"), VolumeStatus::Available);

    let root = DeploySource::Volume(reference("old-root"));
    let machine = engine
        .deploy(&Deploy {
            source: root,
            ..plan("disk", "new")
        })
        .unwrap();
    assert_eq!(machine.root_volume.unwrap().as_str(), "old-root");
    let deletion = engine
        .delete_machine(&reference("new"), Storage::RemoveRoot)
        .unwrap();
    assert!(deletion.removes.is_none(), "a root that was given stays");
    assert_eq!(volume_status(&engine, "old-root"), VolumeStatus::Available);
}

#[test]
fn a_preserved_root_may_be_attached_as_data() {
    let (_house, engine) = house_with_disk();
    engine.deploy(&plan("disk", "old")).unwrap();
    engine
        .delete_machine(&reference("old"), Storage::Preserve)
        .unwrap();
    let machine = engine
        .deploy(&attaching(plan("disk", "new"), &["old-root"]))
        .unwrap();
    assert_eq!(machine.volumes[1].name.as_str(), "old-root");
}

#[test]
fn a_stopped_machine_can_be_changed_and_renamed() {
    let (_house, engine) = house_with_disk();
    engine.deploy(&plan("disk", "one")).unwrap();
    engine.deploy(&plan("disk", "two")).unwrap();
    let memory = Some(Bytes::from_mib(1024));
    let changes = MachineChanges {
        vcpus: Some(4.try_into().unwrap()),
        memory,
        expose: Some(vec!["8080:80".parse().unwrap()]),
        autostart: Some(true),
    };
    let machine = engine.set_machine(&reference("one"), &changes).unwrap();
    assert_eq!(
        (machine.vcpus, machine.memory_mb, machine.autostart),
        (4, 1024, true)
    );
    assert_eq!(machine.exposed[0].host.to_string(), "127.0.0.1:8080");
    let odd = MachineChanges {
        memory: Some("128.5M".parse().unwrap()),
        ..MachineChanges::default()
    };
    let rounded = engine.set_machine(&reference("two"), &odd).unwrap();
    assert_eq!(rounded.memory_mb, 129);
    let partly = MachineChanges {
        autostart: Some(false),
        ..MachineChanges::default()
    };
    let machine = engine.set_machine(&reference("one"), &partly).unwrap();
    assert_eq!(
        (machine.vcpus, machine.memory_mb, machine.autostart),
        (4, 1024, false)
    );

    let two = "two".parse().unwrap();
    assert!(matches!(
        engine.rename_machine(&reference("one"), &two),
        Err(Error::NameTaken { .. })
    ));
    engine
        .rename_machine(&reference("one"), &"uno".parse().unwrap())
        .unwrap();
    assert_eq!(engine.machine(&reference("uno")).unwrap().id, machine.id);
}

#[test]
fn a_machine_that_does_not_run_has_no_console_and_cannot_be_paused() {
    let (_house, engine) = house_with_disk();
    engine.deploy(&plan("disk", "m")).unwrap();
    let m = reference("m");
    for error in [
        engine.pause_machine(&m).unwrap_err(),
        engine.resume_machine(&m).unwrap_err(),
        engine.console(&m).unwrap_err(),
        engine.execute(&m, &["true".to_owned()]).unwrap_err(),
    ] {
        assert!(matches!(error, Error::MachineInactive { .. }), "{error}");
    }
    let stopped = engine
        .stop_machine(&m, sistemo::machines::StopRequest::Forced)
        .unwrap();
    assert_eq!(stopped.1, sistemo::Changed::No);
}

#[test]
fn a_machine_with_a_missing_volume_does_not_start_and_stays_stopped() {
    let (_house, engine) = house_with_disk();
    let data = volume(&engine, "data", "16M");
    engine
        .deploy(&attaching(plan("disk", "m"), &["data"]))
        .unwrap();
    std::fs::remove_file(data.path.unwrap()).unwrap();
    let error = engine
        .start_machine(&reference("m"), sistemo::machines::Wait::No)
        .unwrap_err();
    assert!(matches!(error, Error::VolumeDamaged { .. }), "{error}");
    assert_eq!(engine.machine(&reference("m")).unwrap().status, "stopped");
}

#[test]
fn a_volume_is_found_where_its_machine_was_deployed_by_id() {
    let (_house, engine) = house_with_disk();
    let id: VolumeId = volume(&engine, "data", "16M").id;
    let machine = engine
        .deploy(&attaching(plan("disk", "m"), &[&id.to_string()[..8]]))
        .unwrap();
    assert_eq!(machine.volumes[1].name.as_str(), "data");
}
