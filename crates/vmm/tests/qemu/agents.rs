//! Guests whose agent freezes their filesystems.

use std::time::{Duration, Instant};

use sistemo_model::{Access, Bytes};
use sistemo_testkit::{Action, Requirement, met};
use sistemo_vmm::{Qemu, Vmm, VmmError};

use crate::rig::{QEMU, Rig};

fn can_run() -> bool {
    met(&[Requirement::TinyGuest, QEMU])
}

#[test]
fn a_guest_without_an_agent_costs_no_time() {
    if !can_run() {
        return;
    }
    let mut rig = Rig::doing(&[Action::Count]);
    rig.start();
    rig.wait_for("count 1");
    let started = Instant::now();
    let agent = Qemu::new().guest_agent(&rig.runtime).unwrap();
    assert!(agent.is_none());
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_guest_that_is_frozen_writes_nothing_until_it_is_thawed() {
    if !can_run() {
        return;
    }
    let mount =
        Action::Shell("mkdir /mnt; mke2fs /dev/vda >/dev/null; mount -t ext4 /dev/vda /mnt");
    let write = Action::Shell(
        "n=0; while :; do n=$((n+1)); echo $n > /mnt/n; echo wrote $n; sleep 0.05; done &",
    );
    let mut rig = Rig::doing(&[mount, Action::Agent, write]);
    let disk = rig.home.path().join("disk");
    rig.disk(&disk, Bytes::from_mib(16), "disk", Access::ReadWrite);
    rig.start();
    rig.wait_for("wrote 3");
    let qemu = Qemu::new();
    // A client that was killed once it had asked to freeze, and one that thaws after it.
    let mut agent = qemu.guest_agent(&rig.runtime).unwrap().expect("it has one");
    assert_eq!(agent.freeze().unwrap(), 1);
    rig.wait_for("agent: frozen");
    std::thread::sleep(Duration::from_millis(200));
    let before = rig.console();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(rig.console(), before, "it writes nothing");
    let error = qemu
        .patience(Duration::from_millis(50))
        .guest_agent(&rig.runtime)
        .unwrap_err();
    assert!(matches!(error, VmmError::Busy { .. }), "{error}");
    drop(agent);
    let mut agent = Qemu::new().guest_agent(&rig.runtime).unwrap().unwrap();
    assert_eq!(agent.thaw().unwrap(), 1);
    let count = rig.console().matches("wrote").count();
    let started = Instant::now();
    while rig.console().matches("wrote").count() < count + 3 {
        assert!(started.elapsed() < crate::rig::LIMIT);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_held_guest_does_not_answer_and_is_asked_again_later() {
    if !can_run() {
        return;
    }
    let mut rig = Rig::doing(&[Action::Agent, Action::Count]);
    rig.start();
    rig.wait_for("count 3");
    rig.connect().pause().unwrap();
    let error = Qemu::new().guest_agent(&rig.runtime).unwrap_err();
    assert!(matches!(error, VmmError::AgentSilent { .. }), "{error}");
    rig.connect().resume().unwrap();
    let mut agent = Qemu::new().guest_agent(&rig.runtime).unwrap().unwrap();
    assert_eq!(agent.thaw().unwrap(), 1);
}
