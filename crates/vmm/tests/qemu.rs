//! The contract, kept by a real QEMU with a guest that boots in three seconds.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "the whole file is a test, the functions beside the tests too"
)]

use std::fs::{self, File};
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use sistemo_host::lock::Lock;
use sistemo_host::process::{Ending, ProcessIdentity};
use sistemo_model::{
    Access, Bytes, Exposure, MacAddress, MachineId, PauseCause, StopHow, VcpuCount, VmmKind,
};
use sistemo_testkit::{Action, LoopFilesystem, LoopKind, Requirement, TinyGuest, met};
use sistemo_vmm::{
    BootSource, Control, Disk, DiskLocation, DiskOperation, MachineSpec, Network, Qemu, RunStatus,
    Started, Vmm, VmmError, VmmEvent,
};

/// Longer than anything here takes on a busy host.
const LIMIT: Duration = Duration::from_secs(60);
const QEMU: Requirement = Requirement::Program("qemu-system-x86_64");

/// A runtime directory, and the machine in it.
struct Rig {
    home: tempfile::TempDir,
    runtime: PathBuf,
    lock: PathBuf,
    spec: MachineSpec,
    started: Option<Started>,
}

impl Rig {
    fn new(boot: BootSource) -> Rig {
        let home = tempfile::tempdir().unwrap();
        // Too long for the address of a Unix socket.
        let runtime = home.path().join("r".repeat(120));
        fs::create_dir(&runtime).unwrap();
        let id = MachineId::random();
        let spec = MachineSpec {
            id,
            name: "db1".parse().unwrap(),
            vcpus: VcpuCount::try_from(1).unwrap(),
            memory: Bytes::from_mib(128),
            boot,
            disks: Vec::new(),
            network: Network {
                mac: MacAddress::for_machine(id),
                forwards: Vec::new(),
            },
        };
        let lock = home.path().join("machine.lock");
        Rig {
            home,
            runtime,
            lock,
            spec,
            started: None,
        }
    }

    /// A tiny guest that does `actions`.
    fn doing(actions: &[Action]) -> Rig {
        let TinyGuest { kernel, initrd } = TinyGuest::find().unwrap();
        let command_line = TinyGuest::find().unwrap().command_line(actions);
        Rig::new(BootSource::Kernel {
            kernel,
            initrd: Some(initrd),
            command_line,
        })
    }

    fn disk(&mut self, path: &Path, size: Bytes, serial: &str, access: Access) {
        File::create(path).unwrap().set_len(size.get()).unwrap();
        self.spec.disks.push(Disk {
            location: DiskLocation::RawFile(path.to_owned()),
            serial: serial.parse().unwrap(),
            access,
        });
    }

    fn start_with(&mut self, qemu: &Qemu) -> Result<Started, VmmError> {
        let alive = Lock::acquire(&self.lock, "machine start db1", LIMIT).unwrap();
        let started = qemu.start(&self.spec, &self.runtime, &alive)?;
        self.started = Some(started.clone());
        Ok(started)
    }

    fn start(&mut self) -> ProcessIdentity {
        self.start_with(&Qemu::new()).unwrap().process
    }

    fn connect(&self) -> Box<dyn Control> {
        Qemu::new().connect(&self.runtime).unwrap()
    }

    fn follow(&self) -> Box<dyn Control> {
        Qemu::new().follow(&self.runtime).unwrap()
    }

    fn is_alive(&self) -> bool {
        Lock::is_held(&self.lock).unwrap()
    }

    /// Nobody was left behind. Tests run beside each other in one process: a program that
    /// another of them is just starting holds our lock until its exec(2), so this may wait.
    fn assert_nobody_is_left(&self) {
        let lock = Lock::acquire(&self.lock, "test", LIMIT);
        assert!(lock.is_ok(), "{lock:?}");
    }

    fn console(&self) -> String {
        let mut text = Vec::new();
        File::open(self.runtime.join("console.log"))
            .unwrap()
            .read_to_end(&mut text)
            .unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }

    fn wait_for(&self, text: &str) {
        let started = Instant::now();
        while !self.console().contains(text) {
            assert!(
                started.elapsed() < LIMIT,
                "`{text}` did not come in:\n{}",
                self.console()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_gone(&self) {
        let process = &self.started.as_ref().unwrap().process;
        assert!(process.wait_gone(Some(LIMIT)).unwrap());
    }

    fn ending(&self) -> Option<StopHow> {
        Qemu::new().ending(&self.runtime).unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(started) = &self.started {
            let _ = started.process.end(Ending::Kill);
        }
        if thread::panicking() && self.runtime.join("console.log").exists() {
            eprintln!("the console of the failed test:\n{}", self.console());
        }
    }
}

fn next(control: &mut dyn Control) -> VmmEvent {
    control.next_event(LIMIT).unwrap().expect("an event")
}

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
        Action::WaitUntilGrown("vdc"),
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
    // mov si, text; l: lodsb; test al, al; jz end; mov ah, 0x0e; int 0x10; jmp l; end: hlt; jmp end
    let mut sector = vec![
        0xbe, 0x12, 0x7c, 0xac, 0x84, 0xc0, 0x74, 0x06, 0xb4, 0x0e, 0xcd, 0x10, 0xeb, 0xf5, 0xf4,
        0xeb, 0xfd, 0x90,
    ];
    sector.extend_from_slice(b"it boots\r\n\0");
    sector.resize(510, 0);
    sector.extend_from_slice(&[0x55, 0xaa]);
    File::options()
        .write(true)
        .open(&disk)
        .unwrap()
        .write_all_at(&sector, 0)
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
