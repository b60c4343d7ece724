//! A machine's life: it starts, is talked to, and ends.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use sistemo_host::lock::Lock;
use sistemo_host::process::Ending;
use sistemo_model::{Access, Bytes, Exposure, PauseCause, StopHow, VmmKind};
use sistemo_testkit::{Action, LoopFilesystem, LoopKind, Requirement, TinyGuest, met};
use sistemo_vmm::{BootSource, DiskOperation, Qemu, RunStatus, Vmm, VmmError, VmmEvent};

use crate::rig::{LIMIT, QEMU, Rig, boot_sector, next};

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn a_guest_that_powers_itself_off_ends_clean() {
    if !met(&[Requirement::TinyGuest, QEMU]) {
        return;
    }
    let mut rig = Rig::doing(&[Action::Sleep(1), Action::PowerOff]);
    assert_eq!(rig.ending(), None);
    rig.start();
    assert!(rig.is_alive());
    for socket in ["console.sock", "agent.sock", "control.sock", "events.sock"] {
        let mode = fs::metadata(rig.runtime.join(socket))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600, "{socket}");
    }
    let mut follower = rig.follow();
    assert_eq!(follower.status().unwrap(), RunStatus::Running);
    assert_eq!(next(&mut *follower), VmmEvent::Ending(StopHow::Clean));
    assert!(follower.next_event(LIMIT).unwrap_err().is_gone());
    rig.wait_gone();
    assert!(!rig.is_alive());
    assert_eq!(rig.ending(), Some(StopHow::Clean));
    assert!(rig.console().contains(TinyGuest::UP));
    let error = Qemu::new().connect(&rig.runtime).unwrap_err();
    assert!(matches!(error, VmmError::NotRunning { .. }), "{error}");
}

#[test]
fn a_guest_that_panics_ends_crashed() {
    if !met(&[Requirement::TinyGuest, QEMU]) {
        return;
    }
    let mut rig = Rig::doing(&[Action::Sleep(1), Action::Panic]);
    rig.start();
    let mut follower = rig.follow();
    assert_eq!(next(&mut *follower), VmmEvent::Ending(StopHow::Crashed));
    rig.wait_gone();
    assert_eq!(rig.ending(), Some(StopHow::Crashed));
}

#[test]
fn a_guest_hears_its_power_button() {
    if !met(&[Requirement::TinyGuest, QEMU]) {
        return;
    }
    let mut rig = Rig::doing(&[
        Action::Shell("echo waiting"),
        Action::WaitForButton,
        Action::PowerOff,
    ]);
    rig.start();
    rig.wait_for("guest: done shell");
    thread::sleep(Duration::from_millis(500));
    assert!(rig.is_alive());
    rig.connect().power_button().unwrap();
    rig.wait_gone();
    assert!(rig.console().contains(&Action::WaitForButton.done()));
    assert_eq!(rig.ending(), Some(StopHow::Clean));
}

#[test]
fn a_guest_that_starts_anew_is_still_the_same_machine() {
    if !met(&[Requirement::TinyGuest, QEMU]) {
        return;
    }
    let mut rig = Rig::doing(&[Action::Reboot]);
    rig.start();
    let mut follower = rig.follow();
    assert_eq!(next(&mut *follower), VmmEvent::Reset);
    assert_eq!(follower.status().unwrap(), RunStatus::Running);
    assert!(rig.is_alive());
}

#[test]
fn a_paused_guest_stands_still_and_a_resumed_one_goes_on() {
    if !met(&[Requirement::TinyGuest, QEMU]) {
        return;
    }
    let mut rig = Rig::doing(&[Action::Count]);
    rig.start();
    let mut follower = rig.follow();
    rig.wait_for("count 3");
    let mut control = rig.connect();
    control.pause().unwrap();
    let paused = PauseCause::Requested;
    assert_eq!(control.status().unwrap(), RunStatus::Paused(paused));
    assert_eq!(next(&mut *follower), VmmEvent::Paused(paused));
    let printed = rig.console();
    thread::sleep(Duration::from_millis(500));
    assert_eq!(rig.console(), printed);
    control.pause().unwrap();
    control.resume().unwrap();
    assert_eq!(control.status().unwrap(), RunStatus::Running);
    assert_eq!(next(&mut *follower), VmmEvent::Resumed);
    let started = Instant::now();
    while rig.console() == printed {
        assert!(started.elapsed() < LIMIT);
        thread::sleep(Duration::from_millis(20));
    }
    control.quit().unwrap();
    assert_eq!(next(&mut *follower), VmmEvent::Ending(StopHow::Forced));
    rig.wait_gone();
    control.quit().unwrap();
    assert_eq!(rig.ending(), Some(StopHow::Forced));
}

#[test]
fn one_client_has_its_turn_at_a_time() {
    if !met(&[Requirement::TinyGuest, QEMU]) {
        return;
    }
    let mut rig = Rig::doing(&[]);
    rig.start();
    let mut first = rig.connect();
    let impatient = Qemu::new().patience(Duration::from_millis(50));
    let error = impatient.connect(&rig.runtime).unwrap_err();
    assert!(matches!(error, VmmError::Busy { .. }), "{error}");
    let holder = std::error::Error::source(&error).unwrap().to_string();
    let own = format!("process {}", std::process::id());
    assert!(holder.contains(&own), "{holder}");
    // The follower has a socket of its own.
    assert_eq!(rig.follow().status().unwrap(), RunStatus::Running);
    let second = thread::scope(|scope| {
        let second = scope.spawn(|| rig.connect().status().unwrap());
        thread::sleep(Duration::from_millis(50));
        assert_eq!(first.status().unwrap(), RunStatus::Running);
        drop(first);
        second.join().unwrap()
    });
    assert_eq!(second, RunStatus::Running);
}

#[test]
fn each_run_leaves_its_own_word_and_a_killed_one_none() {
    if !met(&[Requirement::TinyGuest, QEMU]) {
        return;
    }
    let mut rig = Rig::doing(&[]);
    let process = rig.start();
    process.end(Ending::Terminate).unwrap();
    rig.wait_gone();
    assert_eq!(rig.ending(), Some(StopHow::Forced));
    let process = rig.start();
    assert_eq!(rig.ending(), None);
    assert!(rig.is_alive());
    process.end(Ending::Kill).unwrap();
    rig.wait_gone();
    assert!(!rig.is_alive());
    assert_eq!(rig.ending(), None);
    let error = Qemu::new().connect(&rig.runtime).unwrap_err();
    assert!(error.is_gone(), "{error}");
}

#[test]
fn a_guest_sees_its_disks_in_order_by_serial_and_size() {
    if !met(&[Requirement::TinyGuest, QEMU]) {
        return;
    }
    let mut rig = Rig::doing(&[
        Action::Disks,
        Action::Write("vda"),
        Action::Write("vdb"),
        // Not `WaitUntilGrown`: what it waits for may be there before it looks.
        Action::Shell("while [ $(cat /sys/block/vdc/size) = 8192 ]; do sleep 0.1; done"),
        Action::Disks,
    ]);
    let home = rig.home.path().to_owned();
    let (root, data) = (home.join("root.ext4"), home.join("a, \"b\" = ä.ext4"));
    rig.disk(&root, Bytes::from_mib(2), "db1-root", Access::ReadWrite);
    rig.disk(&data, Bytes::from_mib(3), "pgdata", Access::ReadOnly);
    let third = home.join("third");
    let name = "twenty-characters-00";
    rig.disk(&third, Bytes::from_mib(4), name, Access::ReadWrite);
    // Content that looks like another format stays content.
    let header = b"QFI\xfb\x00\x00\x00\x03";
    File::options()
        .write(true)
        .open(&third)
        .unwrap()
        .write_all_at(header, 0)
        .unwrap();
    rig.start();
    rig.wait_for(&Action::Write("vdb").done());
    let console = rig.console();
    for line in [
        "disk vda size=2097152 serial=db1-root ro=0",
        "disk vdb size=3145728 serial=pgdata ro=1",
        "disk vdc size=4194304 serial=twenty-characters-00 ro=0",
        "cannot write /dev/vdb",
    ] {
        assert!(console.contains(line), "{line}");
    }
    assert!(!console.contains("cannot write /dev/vda"));
    assert!(fs::read(&root).unwrap().starts_with(b"sistemo\n"));
    assert!(fs::read(&data).unwrap().iter().all(|byte| *byte == 0));

    let mut control = rig.connect();
    control.grow_disk(2, Bytes::from_mib(8)).unwrap();
    rig.wait_for("disk vdc size=8388608");
    assert_eq!(fs::metadata(&third).unwrap().len(), 8 << 20);
    let error = control.grow_disk(2, Bytes::from_mib(4)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the disk in place 2 has 8 MB and cannot shrink to 4 MB"
    );
    let error = control.grow_disk(3, Bytes::from_mib(4)).unwrap_err();
    assert!(matches!(error, VmmError::NoDisk { position: 3 }), "{error}");
}

#[test]
fn a_full_disk_pauses_the_machine_until_there_is_room() {
    if !met(&[Requirement::TinyGuest, QEMU, Requirement::Root]) {
        return;
    }
    let filesystem = LoopFilesystem::new(LoopKind::Tmpfs, Bytes::from_mib(6));
    let ballast = filesystem.path().join("ballast");
    let fill = Action::Fill("vda");
    let mut rig = Rig::doing(&[fill.clone(), Action::PowerOff]);
    let disk = filesystem.path().join("disk");
    rig.disk(&disk, Bytes::from_mib(4), "data", Access::ReadWrite);
    File::create(&ballast)
        .unwrap()
        .write_all_at(&vec![1; 4 << 20], 0)
        .unwrap();
    rig.start();
    let mut follower = rig.follow();
    let held = RunStatus::Paused(PauseCause::DiskFull);
    loop {
        match next(&mut *follower) {
            VmmEvent::DiskError {
                position,
                operation,
                full,
                ..
            } => {
                assert_eq!((position, operation), (Some(0), DiskOperation::Write));
                assert!(full);
            }
            other => {
                assert_eq!(other, VmmEvent::Paused(PauseCause::DiskFull));
                break;
            }
        }
    }
    let mut control = rig.connect();
    assert_eq!(control.status().unwrap(), held);
    // Without room it is held again.
    control.resume().unwrap();
    let started = Instant::now();
    while control.status().unwrap() != held {
        assert!(started.elapsed() < LIMIT);
        thread::sleep(Duration::from_millis(20));
    }
    fs::remove_file(&ballast).unwrap();
    control.resume().unwrap();
    rig.wait_gone();
    assert!(rig.console().contains(&fill.done()));
    assert_eq!(rig.ending(), Some(StopHow::Clean));
    let content = fs::read(&disk).unwrap();
    assert!(content.chunks(8).all(|chunk| chunk == b"sistemo\n"));
}

#[test]
fn a_forwarded_port_is_open_and_a_taken_one_is_named() {
    if !met(&[Requirement::TinyGuest, QEMU]) {
        return;
    }
    let mut rig = Rig::doing(&[]);
    let port = free_port();
    let forward: Exposure = format!("{port}:22").parse().unwrap();
    rig.spec.network.forwards.push(forward);
    rig.start();
    TcpStream::connect(forward.host).unwrap();

    let mut second = Rig::doing(&[]);
    second.spec.network.forwards = vec![format!("{}:23", free_port()).parse().unwrap(), forward];
    let error = second.start_with(&Qemu::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("machine db1 cannot listen on 127.0.0.1:{port}")
    );
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("Address already in use"), "{source}");
    second.assert_nobody_is_left();

    second.spec.network.forwards = vec!["[::1]:8080:80".parse().unwrap()];
    let error = second.start_with(&Qemu::new()).unwrap_err();
    assert!(matches!(error, VmmError::Forward { .. }), "{error}");
    second.assert_nobody_is_left();
}

#[test]
fn a_machine_that_cannot_start_leaves_its_last_words_and_nothing_running() {
    if !met(&[Requirement::TinyGuest, QEMU]) {
        return;
    }
    let mut rig = Rig::doing(&[]);
    if let BootSource::Kernel { kernel, .. } = &mut rig.spec.boot {
        *kernel = "/no/such/kernel".into();
    }
    let error = rig.start_with(&Qemu::new()).unwrap_err();
    let words = error.to_string();
    assert!(words.starts_with("machine db1 did not start: "), "{words}");
    assert!(words.contains("/no/such/kernel"), "{words}");
    rig.assert_nobody_is_left();
    assert!(Qemu::new().connect(&rig.runtime).unwrap_err().is_gone());

    let mut rig = Rig::doing(&[]);
    let missing = rig.home.path().join("missing");
    rig.disk(&missing, Bytes::from_mib(1), "x", Access::ReadWrite);
    fs::remove_file(&missing).unwrap();
    let error = rig.start_with(&Qemu::new()).unwrap_err();
    assert!(matches!(error, VmmError::File(_)), "{error}");
    rig.assert_nobody_is_left();
    assert!(!missing.exists());

    let mut rig = Rig::doing(&[]);
    let missing = Qemu::at(Path::new("/no/qemu-system-x86_64"));
    for error in [
        rig.start_with(&missing).unwrap_err(),
        missing.probe().unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "qemu-system-x86_64 is not installed");
    }
}

#[test]
fn a_host_without_io_uring_uses_threads() {
    if !met(&[Requirement::TinyGuest, QEMU]) {
        return;
    }
    let mut rig = Rig::doing(&[]);
    let disk = rig.home.path().join("disk");
    rig.disk(&disk, Bytes::from_mib(1), "x", Access::ReadWrite);
    // What QEMU says where the system call is refused.
    let script = "#!/bin/sh\n\
        case \"$*\" in *io_uring*)\n\
            echo 'qemu-system-x86_64: Unable to use io_uring: failed to init linux io_uring ring: Operation not permitted' >&2\n\
            exit 1 ;;\n\
        esac\n\
        exec qemu-system-x86_64 \"$@\"\n";
    let wrapper = rig.home.path().join("qemu");
    let mut file = File::create(&wrapper).unwrap();
    std::io::Write::write_all(&mut file, script.as_bytes()).unwrap();
    drop(file);
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    rig.start_with(&Qemu::at(&wrapper)).unwrap();
    assert_eq!(rig.connect().status().unwrap(), RunStatus::Running);
}

#[test]
fn every_place_for_a_disk_can_be_filled_and_no_more() {
    if !met(&[Requirement::TinyGuest, QEMU]) {
        return;
    }
    let mut rig = Rig::doing(&[]);
    for number in 0..26 {
        let path = rig.home.path().join(format!("disk{number}"));
        let serial = format!("s{number}");
        rig.disk(&path, Bytes::from_mib(1), &serial, Access::ReadWrite);
    }
    rig.start();
    rig.connect().grow_disk(25, Bytes::from_mib(2)).unwrap();
    let last = fs::metadata(rig.home.path().join("disk25")).unwrap();
    assert_eq!(last.size(), 2 << 20);

    let path = rig.home.path().join("one-too-many");
    rig.disk(&path, Bytes::from_mib(1), "x", Access::ReadWrite);
    let error = Qemu::new()
        .start(
            &rig.spec,
            &rig.runtime,
            &Lock::acquire(&rig.home.path().join("other.lock"), "x", LIMIT).unwrap(),
        )
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "machine db1 has 27 disks; at most 26 are possible"
    );
    assert!(rig.is_alive());
}

#[test]
fn firmware_boots_the_first_disk() {
    if !met(&[QEMU]) {
        return;
    }
    let mut rig = Rig::new(BootSource::Firmware {
        credentials: Vec::new(),
    });
    let home = rig.home.path().to_owned();
    let disk = home.join("disk");
    rig.disk(&disk, Bytes::from_mib(1), "root", Access::ReadWrite);
    rig.disk(
        &home.join("data"),
        Bytes::from_mib(1),
        "data",
        Access::ReadWrite,
    );
    File::options()
        .write(true)
        .open(&disk)
        .unwrap()
        .write_all_at(&boot_sector(), 0)
        .unwrap();
    rig.start();
    rig.wait_for("it boots");
}

#[test]
fn the_installed_qemu_is_new_enough_and_says_how_it_would_run() {
    if !met(&[QEMU]) {
        return;
    }
    let qemu = Qemu::new();
    assert_eq!(qemu.kind(), VmmKind::Qemu);
    let probe = qemu.probe().unwrap();
    assert!(probe.version.contains('.'), "{probe:?}");
    assert!(!probe.reason.is_empty());
}
