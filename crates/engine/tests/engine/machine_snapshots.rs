//! All volumes of a machine, kept at one point in time while its guest writes.

use std::time::{Duration, Instant};

use sistemo::exchange::Export;
use sistemo::machines::{MachineView, StopRequest};
use sistemo::model::{Bytes, PoolName, SnapshotName, Timestamp};
use sistemo::pools::NewPool;
use sistemo::{Engine, Error, Notice, Way};
use sistemo_catalog::{Catalogue, Intent};
use sistemo_host::program::Program;
use sistemo_testkit::{Action, LoopFilesystem, LoopKind, Requirement, met};
use sistemo_vmm::{Qemu, Vmm};

use crate::fixture::{
    House, MIB, attaching, plan, pool_on, reference, start, volume_in, wait_for_text, wait_until,
};
use crate::running::monitors;

const BLOCK: usize = 4096;
/// The first block that the guest writes; before it, the root disk says what the guest does.
const FIRST: usize = 16;
/// Writes number n into block n of the first disk and then of the second, each flushed.
const WRITER: &str = "n=15; while :; do n=$((n+1)); for d in vda vdb; do \
     yes block$n. | head -c 4096 | dd of=/dev/$d bs=4096 seek=$n conv=notrunc,fsync 2>/dev/null; \
     done; echo wrote $n.; done &";

fn can_run() -> bool {
    met(&[
        Requirement::TinyGuest,
        Requirement::Program("qemu-system-x86_64"),
    ])
}

fn pool(house: &House, engine: &Engine, name: &str, driver: &str) -> PoolName {
    let directory = house.path(name).display().to_string();
    let added = engine.add_pool(&NewPool {
        name: name.parse().unwrap(),
        driver: driver.to_owned(),
        options: vec![("dir_path".to_owned(), directory)],
    });
    added.unwrap().name.parse().unwrap()
}

/// A machine `m` with its root in the default pool, where a snapshot is a copy, and `data` in a
/// pool of qcow2 files.
fn machine_of_two(house: &House, actions: &[Action], script: &str) -> Engine {
    let engine = house.engine();
    house.import_scripted(&engine, actions, script);
    let layers = pool(house, &engine, "layers", "qcow2");
    volume_in(&engine, &layers, "data", 16);
    engine
        .deploy(&attaching(plan("tiny", "m"), &["data"]))
        .unwrap();
    engine
}

fn machine(engine: &Engine) -> MachineView {
    engine.machine(&reference("m")).unwrap()
}

fn console(engine: &Engine, text: &str) {
    wait_for_text(&engine.console_log(&reference("m")).unwrap(), text);
}

fn snapshots(engine: &Engine, volume: &str) -> Vec<SnapshotName> {
    let there = engine.snapshots(&reference(volume)).unwrap();
    there.into_iter().map(|snapshot| snapshot.name).collect()
}

fn bytes_of(engine: &Engine, volume: &str, snapshot: &SnapshotName) -> Vec<u8> {
    let mut bytes = Vec::new();
    let export = Export {
        snapshot: Some(snapshot.clone()),
        ..Export::of(reference(volume))
    };
    engine.export_volume_to(&export, &mut bytes).unwrap();
    bytes
}

/// The last block that the guest has written, all before it being there too.
fn last_block(content: &[u8]) -> usize {
    let holds = |number: &usize| {
        let text = format!("block{number}.\n");
        content[number * BLOCK..(number + 1) * BLOCK].starts_with(text.as_bytes())
    };
    let end = content.len() / BLOCK;
    let last = (FIRST..end).take_while(holds).last().unwrap_or(FIRST - 1);
    assert_eq!((last + 1..end).find(holds), None, "after block {last}");
    last
}

fn goes_on(engine: &Engine) {
    let log = engine.console_log(&reference("m")).unwrap();
    let length = || std::fs::metadata(&log).unwrap().len();
    let before = length();
    wait_until("it goes on", || length() > before);
    wait_until("its record", || machine(engine).status == "running");
}

#[test]
fn all_volumes_of_a_running_machine_are_of_one_instant() {
    if !can_run() {
        return;
    }
    let house = House::new();
    let engine = machine_of_two(&house, &[Action::Script], WRITER);
    start(&engine, "m");
    console(&engine, "wrote 20.");
    house.notices();
    let taken = engine.snapshot_machine(&reference("m"), None).unwrap();
    let told = house.notices();
    assert!(
        matches!(told.as_slice(), [Notice::CopiedMeanwhile { volume, .. }] if volume.as_str() == "m-root"),
        "{told:?}"
    );
    let ways: Vec<_> = taken
        .volumes
        .iter()
        .map(|kept| (kept.name.as_str(), kept.way))
        .collect();
    assert_eq!(ways, [("m-root", Way::Copied), ("data", Way::Overlay)]);
    assert!(taken.pause_ms > 0 && !taken.frozen, "{taken:?}");
    goes_on(&engine);
    let root = last_block(&bytes_of(&engine, "m-root", &taken.name));
    let data = last_block(&bytes_of(&engine, "data", &taken.name));
    assert!(root >= 20, "what was written before is there: {root}");
    assert!(data == root || data + 1 == root, "{root} and {data}");
    // Paused by its user it stays so, and stopped it is not started.
    for stops in [false, true] {
        if stops {
            let _ = engine
                .stop_machine(&reference("m"), StopRequest::Forced)
                .unwrap();
        } else {
            let _ = engine.pause_machine(&reference("m")).unwrap();
        }
        let before = machine(&engine).status;
        let taken = engine.snapshot_machine(&reference("m"), None).unwrap();
        assert_eq!((taken.pause_ms, taken.frozen), (0, false));
        assert_eq!(machine(&engine).status, before);
        assert_eq!(snapshots(&engine, "m-root"), snapshots(&engine, "data"));
    }
    assert_eq!(snapshots(&engine, "data").len(), 3);
    let catalogue = Catalogue::open(&house.data_dir()).unwrap();
    assert_eq!(catalogue.read(|session| session.intents()).unwrap(), []);
}

#[test]
fn where_one_volume_cannot_be_kept_none_is() {
    if !can_run() || !met(&[Requirement::Root, Requirement::Program("chattr")]) {
        return;
    }
    let house = House::new();
    let engine = machine_of_two(&house, &[Action::Count], "");
    start(&engine, "m");
    console(&engine, "count 3");
    let mine: SnapshotName = "mine".parse().unwrap();
    engine
        .take_snapshot(&reference("data"), Some(mine.clone()))
        .unwrap();
    house.notices();
    // A name that one of them has: refused before anything is told or done.
    let error = engine
        .snapshot_machine(&reference("m"), Some(mine.clone()))
        .unwrap_err();
    assert_eq!(error.to_string(), "volume data has a snapshot mine already");
    assert_eq!(house.notices(), []);
    // A pool that cannot be written any more, which shows when it is its turn.
    let directory = house.path("layers");
    let chattr = |flag: &str| {
        let program = Program::find("chattr").unwrap().arg(flag);
        program.arg(&directory).run().unwrap();
    };
    chattr("+i");
    let error = engine.snapshot_machine(&reference("m"), None).unwrap_err();
    chattr("-i");
    assert!(matches!(error, Error::Pool { .. }), "{error}");
    assert_eq!(snapshots(&engine, "m-root"), []);
    assert_eq!(snapshots(&engine, "data"), [mine]);
    goes_on(&engine);
    let files = house.volume_files();
    assert!(
        !files.iter().any(|name| name.contains("draft")),
        "{files:?}"
    );
    engine.snapshot_machine(&reference("m"), None).unwrap();
}

#[test]
fn a_pool_without_room_for_a_copy_is_told_before_anything_is_done() {
    if !can_run() || !met(&[Requirement::Root]) {
        return;
    }
    let house = House::new();
    let engine = machine_of_two(&house, &[Action::Fill("vdb"), Action::Count], "");
    let small = LoopFilesystem::new(LoopKind::Ext4, Bytes::from_mib(24));
    let small = pool_on(&engine, "small", &small);
    engine
        .detach_volume(&reference("m"), &reference("data"))
        .unwrap();
    volume_in(&engine, &small, "full", 16);
    engine
        .attach_volume(
            &reference("m"),
            &reference("full"),
            sistemo::model::Access::ReadWrite,
        )
        .unwrap();
    start(&engine, "m");
    console(&engine, "count 1");
    house.notices();
    let error = engine.snapshot_machine(&reference("m"), None).unwrap_err();
    assert!(matches!(error, Error::PoolTooFull { .. }), "{error}");
    assert_eq!(house.notices(), []);
    assert_eq!(snapshots(&engine, "m-root"), []);
    let _ = engine
        .stop_machine(&reference("m"), StopRequest::Forced)
        .unwrap();
}

#[test]
fn whoever_wants_into_a_machine_that_is_held_for_an_instant_waits_for_that() {
    if !can_run() {
        return;
    }
    let house = House::new();
    let engine = machine_of_two(&house, &[Action::Count], "");
    let id = start(&engine, "m").id;
    console(&engine, "count 1");
    let runtime = house.data_dir().join("machines").join(id.to_string());
    // As a snapshot holds it: one turn at the VMM for all of it.
    let mut control = Qemu::new().connect(&runtime).unwrap();
    control.pause().unwrap();
    wait_until("its record", || machine(&engine).status == "paused");
    std::thread::scope(|scope| {
        let wanted = scope.spawn(|| engine.console(&reference("m")));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!wanted.is_finished(), "it waits");
        control.resume().unwrap();
        drop(control);
        wanted.join().unwrap().unwrap();
    });
    // Paused by its user it is not waited for.
    let _ = engine.pause_machine(&reference("m")).unwrap();
    let error = engine.console(&reference("m")).unwrap_err();
    assert!(matches!(error, Error::MachineInactive { .. }), "{error}");
    let _ = engine
        .stop_machine(&reference("m"), StopRequest::Forced)
        .unwrap();
}

#[test]
fn filesystems_are_frozen_where_an_agent_answers() {
    if !can_run() {
        return;
    }
    let house = House::new();
    let engine = machine_of_two(&house, &[Action::Agent, Action::Count], "");
    start(&engine, "m");
    console(&engine, "count 3");
    let taken = engine.snapshot_machine(&reference("m"), None).unwrap();
    assert!(taken.frozen);
    console(&engine, "agent: frozen");
    console(&engine, "agent: thawed");
    goes_on(&engine);
}

#[test]
fn a_guest_that_a_killed_snapshot_has_frozen_is_thawed_by_its_monitor() {
    if !can_run() {
        return;
    }
    let house = House::new();
    let engine = machine_of_two(&house, &[Action::Agent, Action::Count], "");
    let id = start(&engine, "m").id;
    console(&engine, "count 3");
    let runtime = house.data_dir().join("machines").join(id.to_string());
    let catalogue = Catalogue::open(&house.data_dir()).unwrap();
    let qemu = Qemu::new();
    let thawed = || {
        let log = std::fs::read(engine.console_log(&reference("m")).unwrap()).unwrap();
        let log = String::from_utf8_lossy(&log).into_owned();
        log.matches("agent: thawed").count()
    };
    let freeze = |pauses: bool| {
        let intent = Intent::HoldGuest {
            machine: id,
            frozen: true,
        };
        catalogue.write(|session| session.begin(&intent)).unwrap();
        let mut agent = qemu.guest_agent(&runtime).unwrap().unwrap();
        agent.freeze().unwrap();
        if pauses {
            qemu.connect(&runtime).unwrap().pause().unwrap();
        }
    };
    // Killed between freeze and pause, and within the pause: no command is needed.
    for (round, pauses) in [false, true].into_iter().enumerate() {
        freeze(pauses);
        wait_until("the guest thaws", || thawed() == round + 1);
        wait_until("the intent's end", || {
            catalogue
                .read(|session| session.intents())
                .unwrap()
                .is_empty()
        });
        goes_on(&engine);
    }
    // Nor is a monitor: the next command does it.
    for monitor in monitors(&id.to_string()) {
        crate::running::kill(monitor);
    }
    freeze(true);
    house.notices();
    let next = house.engine();
    assert!(matches!(
        house.notices().as_slice(),
        [Notice::Recovered { .. }]
    ));
    wait_until("the guest thaws", || thawed() == 3);
    goes_on(&next);
}

#[test]
fn what_a_killed_snapshot_has_left_of_the_volumes_is_removed() {
    if !can_run() {
        return;
    }
    let house = House::new();
    let engine = machine_of_two(&house, &[Action::Count], "");
    let id = start(&engine, "m").id;
    console(&engine, "count 3");
    let name: SnapshotName = "nightly".parse().unwrap();
    // As if it was killed after one volume was kept.
    let kept = engine
        .take_snapshot(&reference("data"), Some(name.clone()))
        .unwrap();
    let volumes = ["m-root", "data"].map(|name| engine.volume(&reference(name)).unwrap().id);
    let catalogue = Catalogue::open(&house.data_dir()).unwrap();
    let begin = |created: Timestamp| {
        let intent = Intent::TakeSnapshots {
            volumes: volumes.to_vec(),
            snapshot: name.clone(),
            created,
        };
        catalogue.write(|session| session.begin(&intent)).unwrap();
    };
    // One of that name that somebody took later is theirs.
    begin(kept.snapshot.created - Duration::from_secs(60));
    let next = house.engine();
    assert_eq!(snapshots(&next, "data"), std::slice::from_ref(&name));
    begin(kept.snapshot.created);
    // And while the VMM was copying the other.
    let runtime = house.data_dir().join("machines").join(id.to_string());
    let target = house.path("target");
    std::fs::File::create(&target)
        .unwrap()
        .set_len(16 * MIB)
        .unwrap();
    let mut control = Qemu::new().connect(&runtime).unwrap();
    let copy = sistemo_vmm::DiskCopy {
        position: 0,
        target,
    };
    control.prepare_copies(&[copy]).unwrap();
    control.start_copies(&[0]).unwrap();
    drop(control);
    let next = house.engine();
    assert_eq!(snapshots(&next, "data"), []);
    assert!(
        Qemu::new().connect(&runtime).unwrap().copies(&[0]).is_err(),
        "nothing is copied any more"
    );
    goes_on(&next);
    next.snapshot_machine(&reference("m"), Some(name)).unwrap();
}

#[test]
fn a_machine_can_be_stopped_while_its_volumes_are_copied() {
    if !can_run() {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    house.import_tiny(&engine, &[Action::Count]);
    // So large that looking for what there is to copy takes a while.
    volume_in(&engine, &"default".parse().unwrap(), "large", 2 << 20);
    let new = attaching(plan("tiny", "m"), &["large"]);
    engine.deploy(&new).unwrap();
    start(&engine, "m");
    console(&engine, "count 3");
    let other = house.engine();
    std::thread::scope(|scope| {
        let snapshot = scope.spawn(|| engine.snapshot_machine(&reference("m"), None));
        let copying = Instant::now();
        let catalogue = Catalogue::open(&house.data_dir()).unwrap();
        wait_until("the copy to begin", || {
            let files = std::fs::read_dir(house.data_dir().join("volumes")).unwrap();
            files.count() > 4 && catalogue.read(|session| session.intents()).unwrap().len() == 1
        });
        let (stopped, _) = other
            .stop_machine(&reference("m"), StopRequest::Forced)
            .unwrap();
        assert_eq!(stopped.status, "stopped");
        let error = snapshot.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Vmm { .. }), "{error}");
        assert!(copying.elapsed() < Duration::from_secs(30));
    });
    assert_eq!(snapshots(&engine, "large"), []);
    start(&engine, "m");
    goes_on(&engine);
}

#[test]
fn what_a_running_guest_discards_is_given_back_to_the_host() {
    let needed = [Requirement::Root, Requirement::Program("mkfs.btrfs")];
    if !can_run() || !met(&needed) {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    let script = "for d in vdb vdc vdd; do yes data | dd of=/dev/$d bs=1M count=8 \
                  iflag=fullblock conv=fsync 2>/dev/null; done; echo filled.; \
                  until [ $(head -c 4 /dev/vda) = gone ]; do sleep 0.2; \
                  echo 3 > /proc/sys/vm/drop_caches; done; \
                  for d in vdb vdc vdd; do blkdiscard /dev/$d; done; sync; echo discarded.";
    house.import_scripted(&engine, &[Action::Script], script);
    let btrfs = LoopFilesystem::new(LoopKind::Btrfs, Bytes::from_mib(256));
    let subvolumes = {
        let directory = btrfs.path().join("pool").display().to_string();
        let added = engine.add_pool(&NewPool {
            name: "subvolumes".parse().unwrap(),
            driver: "btrfs".to_owned(),
            options: vec![("dir_path".to_owned(), directory)],
        });
        added.unwrap().name.parse().unwrap()
    };
    let layers = pool(&house, &engine, "layers", "qcow2");
    let pools: [(&str, PoolName); 3] = [
        ("plain", "default".parse().unwrap()),
        ("subvolume", subvolumes),
        ("layer", layers),
    ];
    for (name, pool) in &pools {
        volume_in(&engine, pool, name, 16);
    }
    let new = attaching(plan("tiny", "m"), &["plain", "subvolume", "layer"]);
    engine.deploy(&new).unwrap();
    start(&engine, "m");
    console(&engine, "filled.");
    let used = |name: &str| engine.volume(&reference(name)).unwrap().used_bytes.unwrap();
    for (name, _) in &pools {
        assert!(used(name) >= 8 * MIB, "{name} holds {}", used(name));
    }
    // The guest waits for this word.
    let root = engine.volume(&reference("m-root")).unwrap();
    crate::fixture::write_into(&root, 0, b"gone");
    console(&engine, "discarded.");
    for (name, _) in &pools {
        wait_until(name, || used(name) < 2 * MIB);
    }
    let _ = engine
        .stop_machine(&reference("m"), StopRequest::Forced)
        .unwrap();
}
