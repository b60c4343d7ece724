use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use sistemo_catalog::{CatalogError, Intent, Lockable, Locks};
use sistemo_host::program::Program;
use sistemo_model::{MachineId, VolumeId};

struct LockRoom {
    home: tempfile::TempDir,
    locks: Locks,
}

impl LockRoom {
    fn new() -> LockRoom {
        let home = tempfile::tempdir().unwrap();
        let locks = Locks::open(&home.path().join("locks")).unwrap();
        let locks = locks.with_patience(Duration::ZERO);
        LockRoom { home, locks }
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.home.path().join("locks")).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

/// Volume IDs in ascending order.
fn volumes<const N: usize>() -> [VolumeId; N] {
    let mut ids = [(); N].map(|()| VolumeId::random());
    ids.sort();
    ids
}

#[test]
fn a_held_object_is_named_with_its_holder() {
    let room = LockRoom::new();
    let id = VolumeId::random();
    let _held = room
        .locks
        .volume(id, "sistemo volume resize pgdata")
        .unwrap();
    let error = room.locks.volume(id, "other").unwrap_err();
    let pid = std::process::id();
    assert_eq!(
        error.to_string(),
        format!("volume {id} is held by process {pid} (sistemo volume resize pgdata)")
    );
    assert!(room.locks.try_volume(id, "other").unwrap().is_none());
}

#[test]
fn every_kind_of_lock_has_a_file_of_its_own_that_stays() {
    let room = LockRoom::new();
    let (machine, volume) = (MachineId::random(), VolumeId::random());
    let all = [
        Lockable::Machine(machine),
        Lockable::Volume(volume),
        Lockable::Run(machine),
        Lockable::Monitor(machine),
        Lockable::Image("debian".parse().unwrap()),
        Lockable::Pools,
    ];
    let held: Vec<_> = all
        .iter()
        .map(|object| room.locks.acquire(object, "test").unwrap())
        .collect();
    assert!(all.iter().all(|object| room.locks.is_held(object).unwrap()));
    drop(held);
    assert!(!all.iter().any(|object| room.locks.is_held(object).unwrap()));
    let mut files = room.files();
    files.sort();
    assert_eq!(
        files,
        [
            "image-debian.lock".to_owned(),
            format!("machine-{machine}.lock"),
            format!("machine-{machine}.monitor"),
            format!("machine-{machine}.run"),
            "pools.lock".to_owned(),
            format!("volume-{volume}.lock"),
        ]
    );
}

#[test]
fn the_directory_of_locks_is_private() {
    let room = LockRoom::new();
    let mode = std::fs::metadata(room.home.path().join("locks"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    assert!(Locks::open(&room.home.path().join("missing/locks")).is_err());
}

#[test]
fn a_set_takes_everything_once_and_frees_it_together() {
    let room = LockRoom::new();
    let (machine, [a, b]) = (MachineId::random(), volumes());
    let mut set = room.locks.set("test");
    set.add_machines([machine, machine]).unwrap();
    set.add_volumes([b, a, b]).unwrap();
    set.add_volumes([a]).unwrap();
    assert!(set.machine(machine).is_some() && set.volume(a).is_some());
    assert!(room.locks.is_held(&Lockable::Volume(b)).unwrap());
    drop(set);
    assert!(!room.locks.is_held(&Lockable::Machine(machine)).unwrap());
    assert!(!room.locks.is_held(&Lockable::Volume(a)).unwrap());
}

#[test]
fn a_set_that_cannot_have_one_keeps_only_what_it_had() {
    let room = LockRoom::new();
    let [a, b, c] = volumes();
    let _held = room.locks.volume(c, "other").unwrap();
    let mut set = room.locks.set("test");
    set.add_volumes([a]).unwrap();
    assert!(set.add_volumes([b, c]).is_err());
    assert!(set.volume(a).is_some());
    assert!(!room.locks.is_held(&Lockable::Volume(b)).unwrap());
}

#[test]
fn a_lock_out_of_order_is_never_waited_for() {
    let room = LockRoom::new();
    let patient = room.locks.clone().with_patience(Duration::from_secs(2));
    let (machine, [a, b]) = (MachineId::random(), volumes());
    let _a = room.locks.volume(a, "other").unwrap();
    let _machine = room.locks.machine(machine, "other").unwrap();

    let mut set = patient.set("test");
    set.add_volumes([b]).unwrap();
    let started = Instant::now();
    for refused in [set.add_volumes([a]), set.add_machines([machine])] {
        let error = refused.unwrap_err();
        assert!(matches!(error, CatalogError::Locked { .. }), "{error}");
    }
    assert!(started.elapsed() < Duration::from_secs(1));

    // In order, it waits.
    let started = Instant::now();
    assert!(patient.set("test").add_volumes([a, b]).is_err());
    assert!(started.elapsed() >= Duration::from_secs(2));
}

#[test]
fn two_sets_that_want_each_others_locks_both_get_them() {
    let room = LockRoom::new();
    let locks = room.locks.clone().with_patience(Duration::from_secs(10));
    let ids = volumes::<4>();
    let mut reversed = ids;
    reversed.reverse();
    std::thread::scope(|scope| {
        for order in [ids, reversed] {
            let locks = &locks;
            scope.spawn(move || {
                for _ in 0..50 {
                    let mut set = locks.set("test");
                    set.add_volumes(order).unwrap();
                }
            });
        }
    });
}

#[test]
fn an_intent_is_taken_over_only_when_its_owner_and_its_programs_are_gone() {
    let room = LockRoom::new();
    let (machine, volume) = (MachineId::random(), VolumeId::random());
    let intent = Intent::DeployMachine {
        machine,
        root: Some(volume),
    };
    let mut owner = room.locks.set("deploy");
    owner.add_machines(intent.machine()).unwrap();
    owner.add_volumes(intent.volumes()).unwrap();
    let mut mkfs = Program::find("sleep")
        .unwrap()
        .arg("60")
        .inherit(owner.volume(volume).unwrap())
        .unwrap()
        .spawn()
        .unwrap();
    drop(owner);

    assert!(
        room.locks
            .try_intent(&intent, "recovery")
            .unwrap()
            .is_none()
    );
    let machine_is_held = room.locks.is_held(&Lockable::Machine(machine)).unwrap();
    assert!(!machine_is_held, "a refused take-over keeps no lock");
    mkfs.kill();
    let taken = room.locks.try_intent(&intent, "recovery").unwrap().unwrap();
    assert!(taken.machine(machine).is_some() && taken.volume(volume).is_some());
}
