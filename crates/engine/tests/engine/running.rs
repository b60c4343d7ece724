//! Machines that run, with the tests' tiny guest under a real QEMU.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use sistemo::Engine;
use sistemo::Error;
use sistemo::machines::{Deploy, MachineView, StartMode, StopRequest, Storage};
use sistemo::model::{Access, Bytes, PauseCause, StopHow};
use sistemo_catalog::{Catalogue, Intent};
use sistemo_host::directory::Directory;
use sistemo_host::process::{Ending, ProcessIdentity};
use sistemo_testkit::{Action, Requirement, met};

use crate::fixture::{
    House, MIB, attaching, example, plan, reference, start, volume, wait_for_text, wait_until,
};

const GRACEFUL: StopRequest = StopRequest::Graceful {
    timeout: Duration::from_secs(30),
};

/// An engine with a machine `m` made of the tiny guest; `None` where that cannot run here.
fn guest(actions: &[Action]) -> Option<(House, Engine)> {
    if !met(&[
        Requirement::TinyGuest,
        Requirement::Program("qemu-system-x86_64"),
    ]) {
        return None;
    }
    let house = House::new();
    let engine = house.engine();
    house.import_tiny(&engine, actions);
    volume(&engine, "data", "16M");
    engine
        .deploy(&attaching(plan("tiny", "m"), &["data"]))
        .unwrap();
    Some((house, engine))
}

fn machine(engine: &Engine) -> MachineView {
    engine.machine(&reference("m")).unwrap()
}

fn wait_for_end(engine: &Engine) -> Option<StopHow> {
    wait_until("the machine's end", || machine(engine).status == "stopped");
    machine(engine).stopped_how
}

fn console_shows(engine: &Engine, text: &str) {
    wait_for_text(&engine.console_log(&reference("m")).unwrap(), text);
}

fn kill(pid: u32) {
    let process = ProcessIdentity::of(pid).unwrap().expect("it runs");
    process.end(Ending::Kill).unwrap();
    assert!(process.wait_gone(Some(Duration::from_secs(10))).unwrap());
}

/// The processes whose command line holds both words, such as a machine's monitor.
pub(crate) fn processes(program: &str, word: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let Some(pid) = entry
            .unwrap()
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        if command.starts_with(program) && command.contains(word) {
            found.push(pid);
        }
    }
    found
}

pub(crate) fn monitors(id: &str) -> Vec<u32> {
    processes(example("monitor").to_str().unwrap(), id)
}

#[test]
fn a_guest_that_powers_itself_off_stopped_cleanly() {
    let Some((_house, engine)) = guest(&[Action::Disks, Action::PowerOff]) else {
        return;
    };
    start(&engine, "m");
    assert_eq!(wait_for_end(&engine), Some(StopHow::Clean));
    console_shows(&engine, "disk vda size=16777216 serial=m-root ro=0");
    console_shows(&engine, "disk vdb size=16777216 serial=data ro=0");
    let ended = machine(&engine);
    assert_eq!((ended.pid, ended.accel), (None, None));
    wait_until("the end of its monitor", || {
        monitors(&ended.id.to_string()).is_empty()
    });
}

#[test]
fn a_graceful_stop_presses_the_power_button() {
    let Some((_house, engine)) = guest(&[Action::WaitForButton, Action::PowerOff]) else {
        return;
    };
    start(&engine, "m");
    // Pressed while the guest still boots, the button is missed; it is pressed again.
    let (stopped, _) = engine.stop_machine(&reference("m"), GRACEFUL).unwrap();
    assert_eq!(stopped.stopped_how, Some(StopHow::Clean));
}

#[test]
fn a_paused_machine_is_let_go_to_power_itself_off() {
    let Some((_house, engine)) = guest(&[Action::WaitForButton, Action::PowerOff]) else {
        return;
    };
    start(&engine, "m");
    let (paused, _) = engine.pause_machine(&reference("m")).unwrap();
    assert_eq!(paused.status, "paused");
    let (stopped, _) = engine.stop_machine(&reference("m"), GRACEFUL).unwrap();
    assert_eq!(stopped.stopped_how, Some(StopHow::Clean));
}

#[test]
fn a_guest_that_does_not_listen_is_forced_after_the_timeout() {
    let Some((house, engine)) = guest(&[]) else {
        return;
    };
    start(&engine, "m");
    let timeout = Duration::from_secs(1);
    house.notices();
    let (stopped, _) = engine
        .stop_machine(&reference("m"), StopRequest::Graceful { timeout })
        .unwrap();
    assert_eq!(stopped.stopped_how, Some(StopHow::Forced));
    let notices = house.notices();
    assert!(
        matches!(
            notices.as_slice(),
            [sistemo::Notice::ForcedAfterTimeout { seconds: 1, .. }]
        ),
        "{notices:?}"
    );
    assert_eq!(
        engine.stop_machine(&reference("m"), GRACEFUL).unwrap().1,
        sistemo::Changed::No
    );
}

#[test]
fn a_killed_vmm_is_a_crash_and_the_machine_starts_again() {
    let Some((_house, engine)) = guest(&[]) else {
        return;
    };
    for _ in 0..2 {
        kill(start(&engine, "m").pid.unwrap());
        assert_eq!(wait_for_end(&engine), Some(StopHow::Crashed));
    }
}

#[test]
fn a_panicking_guest_has_crashed() {
    let Some((_house, engine)) = guest(&[Action::Panic]) else {
        return;
    };
    start(&engine, "m");
    assert_eq!(wait_for_end(&engine), Some(StopHow::Crashed));
}

#[test]
fn a_running_machine_is_not_changed() {
    let Some((_house, engine)) = guest(&[]) else {
        return;
    };
    volume(&engine, "other", "16M");
    start(&engine, "m");
    let (m, data) = (reference("m"), reference("data"));
    let size = "32M".parse().unwrap();
    for error in [
        engine
            .attach_volume(&m, &reference("other"), Access::ReadWrite)
            .unwrap_err(),
        engine.detach_volume(&m, &data).unwrap_err(),
        engine
            .resize_volume(&data, size, sistemo::volumes::Grow::Device)
            .unwrap_err(),
        engine
            .rename_volume(&data, "new".parse().unwrap())
            .unwrap_err(),
        engine
            .rename_machine(&m, &"n".parse().unwrap())
            .unwrap_err(),
    ] {
        assert!(matches!(error, Error::MachineActive { .. }), "{error}");
    }
    assert!(matches!(
        engine.delete_volume(&data),
        Err(Error::VolumeAttached { .. })
    ));
    assert_eq!(
        engine
            .start_machine(&m, sistemo::machines::Wait::No)
            .unwrap()
            .1,
        sistemo::Changed::No
    );
}

#[test]
fn a_paused_guest_stands_still() {
    let Some((_house, engine)) = guest(&[Action::Count]) else {
        return;
    };
    start(&engine, "m");
    console_shows(&engine, "count 3");
    let (paused, _) = engine.pause_machine(&reference("m")).unwrap();
    assert_eq!(
        (paused.status, paused.paused_why),
        ("paused", Some(PauseCause::Requested))
    );
    let log = engine.console_log(&reference("m")).unwrap();
    let length = || std::fs::metadata(&log).unwrap().len();
    // What it printed before the pause may still be on its way.
    std::thread::sleep(Duration::from_millis(200));
    let before = length();
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(length(), before);
    assert_eq!(
        engine.resume_machine(&reference("m")).unwrap().0.status,
        "running"
    );
    wait_until("more output", || length() > before);
}

#[test]
fn a_machine_that_lost_its_monitor_gets_another() {
    let Some((_house, engine)) = guest(&[Action::WaitForButton, Action::PowerOff]) else {
        return;
    };
    let started = start(&engine, "m");
    let id = started.id.to_string();
    let first = monitors(&id);
    assert_eq!(first.len(), 1);
    kill(first[0]);
    assert_eq!(machine(&engine).status, "running");
    wait_until("another monitor", || {
        monitors(&id).iter().any(|pid| !first.contains(pid))
    });
    let (stopped, _) = engine.stop_machine(&reference("m"), GRACEFUL).unwrap();
    assert_eq!(stopped.stopped_how, Some(StopHow::Clean));
}

#[test]
fn an_end_that_nobody_saw_is_recorded_by_the_next_command() {
    let Some((_house, engine)) = guest(&[Action::Sleep(2), Action::PowerOff]) else {
        return;
    };
    let started = start(&engine, "m");
    for monitor in monitors(&started.id.to_string()) {
        kill(monitor);
    }
    let vmm = ProcessIdentity::of(started.pid.unwrap()).unwrap().unwrap();
    assert!(vmm.wait_gone(Some(Duration::from_secs(60))).unwrap());
    let found = machine(&engine);
    assert_eq!(
        (found.status, found.stopped_how),
        ("stopped", Some(StopHow::Clean))
    );
}

#[test]
fn a_deleted_machine_is_stopped_first() {
    let Some((house, engine)) = guest(&[]) else {
        return;
    };
    let vmm = ProcessIdentity::of(start(&engine, "m").pid.unwrap())
        .unwrap()
        .unwrap();
    engine
        .delete_machine(&reference("m"), Storage::RemoveRoot)
        .unwrap();
    assert!(!vmm.is_alive().unwrap());
    assert_eq!(house.volume_files().len(), 2, "the data volume stays");
    let runtime = std::fs::read_dir(house.data_dir().join("machines")).unwrap();
    assert_eq!(runtime.count(), 0);
}

#[test]
fn a_machine_whose_root_cannot_go_with_it_is_not_even_stopped() {
    let Some((house, engine)) = guest(&[]) else {
        return;
    };
    start(&engine, "m");
    let home = Directory::open(&house.data_dir()).unwrap();
    home.rename("volumes", "elsewhere").unwrap();
    let error = house
        .engine()
        .delete_machine(&reference("m"), Storage::RemoveRoot)
        .unwrap_err();
    assert!(matches!(error, Error::Pool { .. }), "{error}");
    home.rename("elsewhere", "volumes").unwrap();
    assert_eq!(machine(&engine).status, "running");
    let _ = engine
        .stop_machine(&reference("m"), StopRequest::Forced)
        .unwrap();
}

#[test]
fn a_deploy_whose_guest_ends_early_keeps_what_the_guest_wrote() {
    let Some((_house, engine)) = guest(&[Action::Write("vda"), Action::PowerOff]) else {
        return;
    };
    let new = Deploy {
        start: StartMode::Answering,
        ..plan("tiny", "early")
    };
    let error = engine.deploy(&new).unwrap_err();
    assert!(matches!(error, Error::EndedEarly { .. }), "{error}");
    assert!(
        error.to_string().contains("guest: up"),
        "the console is quoted: {error}"
    );
    let machine = engine.machine(&reference("early")).unwrap();
    assert_eq!(machine.stopped_how, Some(StopHow::Clean));
    let root = engine.volume(&reference("early-root")).unwrap();
    let mut written = [0; 7];
    let file = std::fs::File::open(root.path.unwrap()).unwrap();
    file.read_exact_at(&mut written, 0).unwrap();
    assert_eq!(&written, b"sistemo");
}

#[test]
fn a_start_finishes_a_growth_that_was_cut_short_while_it_waited() {
    let Some((house, engine)) = guest(&[Action::Disks, Action::PowerOff]) else {
        return;
    };
    // As a killed resize leaves it, after this engine was opened and looked for such.
    let data = engine.volume(&reference("data")).unwrap();
    let (volume, from, to) = (data.id, Bytes::from_mib(16), Bytes::from_mib(32));
    let catalogue = Catalogue::open(&house.data_dir()).unwrap();
    let intent = Intent::GrowVolume { volume, from, to };
    catalogue.write(|session| session.begin(&intent)).unwrap();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(data.path.unwrap())
        .unwrap();
    file.set_len(to.get()).unwrap();
    start(&engine, "m");
    console_shows(&engine, "disk vdb size=33554432 serial=data ro=0");
    assert_eq!(
        engine.volume(&reference("data")).unwrap().size_bytes,
        32 * MIB
    );
}

#[test]
fn a_paused_state_that_nobody_recorded_is_asked_for() {
    let Some((house, engine)) = guest(&[Action::Count]) else {
        return;
    };
    let started = start(&engine, "m");
    for monitor in monitors(&started.id.to_string()) {
        kill(monitor);
    }
    // Behind the engine's back, while no monitor follows the machine.
    let runtime = house
        .data_dir()
        .join("machines")
        .join(started.id.to_string());
    let mut control = sistemo_vmm::Vmm::connect(&sistemo_vmm::Qemu::new(), &runtime).unwrap();
    control.pause().unwrap();
    drop(control);
    wait_until("the state it is really in", || {
        machine(&engine).status == "paused"
    });
    let (resumed, changed) = engine.resume_machine(&reference("m")).unwrap();
    assert_eq!(
        (resumed.status, changed),
        ("running", sistemo::Changed::Yes)
    );
}

#[test]
fn a_guest_that_does_not_answer_in_time_is_left_running() {
    let Some((house, _)) = guest(&[]) else { return };
    let mut engine_settings = sistemo::Settings::defaults(&house.data_dir());
    engine_settings.answer_timeout.value = Duration::from_secs(1);
    let monitor = sistemo::MonitorCommand {
        program: example("monitor"),
        arguments: vec![house.data_dir().into()],
    };
    let caller = sistemo::Caller {
        purpose: "a test".to_owned(),
        monitor,
    };
    let engine = Engine::open(
        engine_settings,
        std::sync::Arc::new(sistemo::Silent),
        caller,
    )
    .unwrap();
    let new = Deploy {
        start: StartMode::Answering,
        ..plan("tiny", "mute")
    };
    let error = engine.deploy(&new).unwrap_err();
    assert!(
        matches!(error, Error::NotAnswering { seconds: 1, .. }),
        "{error}"
    );
    assert_eq!(
        engine.machine(&reference("mute")).unwrap().status,
        "running"
    );
}

#[test]
fn a_taken_port_is_refused_and_leaves_nothing() {
    let Some((_house, engine)) = guest(&[]) else {
        return;
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let expose = vec![format!("{port}:80").parse().unwrap()];
    let new = Deploy {
        expose,
        start: StartMode::Started,
        ..plan("tiny", "web")
    };
    let error = engine.deploy(&new).unwrap_err();
    assert!(matches!(error, Error::PortUnavailable { .. }), "{error}");
    assert!(engine.machine(&reference("web")).is_err());
}

#[test]
fn a_machine_whose_ssh_port_is_taken_gets_another() {
    let Some((house, engine)) = guest(&[]) else {
        return;
    };
    let port = machine(&engine).ssh.port;
    let _listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    house.notices();
    assert_ne!(start(&engine, "m").ssh.port, port);
    let notices = house.notices();
    assert!(
        matches!(notices.as_slice(), [sistemo::Notice::SshPortChanged { .. }]),
        "{notices:?}"
    );
}

#[test]
fn a_volume_whose_content_looks_like_qcow2_is_still_raw() {
    let Some((_house, engine)) = guest(&[Action::Disks, Action::PowerOff]) else {
        return;
    };
    let path = engine.volume(&reference("data")).unwrap().path.unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    // A qcow2 header of version 3 for a disk of 1 TB, as a hostile guest would write it.
    let mut header = b"QFI\xfb\x00\x00\x00\x03".to_vec();
    header.resize(24, 0);
    header.extend((1_u64 << 40).to_be_bytes());
    file.write_all_at(&header, 0).unwrap();
    start(&engine, "m");
    console_shows(&engine, "disk vdb size=16777216 serial=data ro=0");
    assert_eq!(wait_for_end(&engine), Some(StopHow::Clean));
    assert_eq!(
        engine.volume(&reference("data")).unwrap().size_bytes,
        16 * MIB
    );
}
