//! Machines that run, with the tests' tiny guest under a real QEMU.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use sistemo::clones::NewClone;
use sistemo::exchange::Export;
use sistemo::machines::{Deploy, MachineView, StartMode, StopRequest, Storage};
use sistemo::model::{Access, Bytes, PauseCause, PoolName, SnapshotName, StopHow};
use sistemo::moves::{Move, Unkept};
use sistemo::pools::NewPool;
use sistemo::snapshots::Replaced;
use sistemo::{Engine, Error, Notice, Way};
use sistemo_catalog::{Catalogue, Intent};
use sistemo_host::directory::Directory;
use sistemo_host::process::{Ending, ProcessIdentity};
use sistemo_host::program::Program;
use sistemo_testkit::{Action, Requirement, met};

use crate::fixture::{
    House, MIB, attaching, example, holds, plan, pool_on, reference, reflinks, start, volume,
    volume_in, wait_for_text, wait_until,
};

pub(crate) const GRACEFUL: StopRequest = StopRequest::Graceful {
    timeout: Duration::from_secs(30),
};

/// An engine with a machine `m` made of the tiny guest; `None` where that cannot run here.
pub(crate) fn guest(actions: &[Action]) -> Option<(House, Engine)> {
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

pub(crate) fn wait_for_end(engine: &Engine) -> Option<StopHow> {
    wait_until("the machine's end", || machine(engine).status == "stopped");
    machine(engine).stopped_how
}

pub(crate) fn console_shows(engine: &Engine, text: &str) {
    wait_for_text(&engine.console_log(&reference("m")).unwrap(), text);
}

pub(crate) fn kill(pid: u32) {
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
            .move_volume(&Move {
                volume: data.clone(),
                to: PoolName::default_pool(),
                unkept: Unkept::Refuse,
            })
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
    assert_eq!(house.volume_files().len(), 4, "the root is in the trash");
    engine.destroy_trashed(&reference("m-root")).unwrap();
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

/// Writes to the data volume, which is then on disk, and goes on.
const WRITES: &[Action] = &[Action::Write("vdb"), Action::Count];

fn snapshot_is_whole(engine: &Engine, snapshot: &SnapshotName) {
    let clone = engine
        .clone_volume(&NewClone {
            source: reference("data"),
            snapshot: Some(snapshot.clone()),
            name: "clone".parse().unwrap(),
            pool: None,
        })
        .unwrap();
    assert!(holds(&clone.volume, 0, b"sistemo\n"));
}

#[test]
fn a_running_machine_goes_on_while_its_volume_is_copied() {
    let Some((house, engine)) = guest(WRITES) else {
        return;
    };
    start(&engine, "m");
    console_shows(&engine, "count 3");
    house.notices();
    let taken = engine.take_snapshot(&reference("data"), None).unwrap();
    assert_eq!(taken.way, Way::Copied);
    assert_eq!(house.notices(), [], "it was not held");
    let log = engine.console_log(&reference("m")).unwrap();
    let length = || std::fs::metadata(&log).unwrap().len();
    let before = length();
    wait_until("it counts on", || length() > before);
    wait_until("its record", || machine(&engine).status == "running");
    snapshot_is_whole(&engine, &taken.snapshot.name);
}

#[test]
fn a_running_machine_goes_on_where_a_snapshot_is_instant() {
    let Some(filesystem) = reflinks() else { return };
    let Some((house, engine)) = guest(WRITES) else {
        return;
    };
    let fast = pool_on(&engine, "fast", &filesystem);
    engine
        .detach_volume(&reference("m"), &reference("data"))
        .unwrap();
    engine.delete_volume(&reference("data")).unwrap();
    volume_in(&engine, &fast, "data", 16);
    engine
        .attach_volume(&reference("m"), &reference("data"), Access::ReadWrite)
        .unwrap();
    start(&engine, "m");
    console_shows(&engine, "count 3");
    house.notices();
    let taken = engine.take_snapshot(&reference("data"), None).unwrap();
    assert_eq!(taken.way, Way::Reflink);
    assert_eq!(taken.machine.unwrap().as_str(), "m");
    assert_eq!(house.notices(), [], "it was not held");
    assert_eq!(machine(&engine).status, "running");
    snapshot_is_whole(&engine, &taken.snapshot.name);
    engine
        .delete_snapshot(&reference("data"), &taken.snapshot.name)
        .unwrap();
}

#[test]
fn a_volume_in_use_is_read_from_its_snapshots_alone() {
    let Some((house, engine)) = guest(&[]) else {
        return;
    };
    start(&engine, "m");
    let new = NewClone {
        source: reference("data"),
        snapshot: None,
        name: "clone".parse().unwrap(),
        pool: None,
    };
    let export = Export::of(reference("data"));
    let file = house.path("data.raw");
    for (error, action) in [
        (engine.clone_volume(&new).unwrap_err(), "clone"),
        (engine.export_volume(&export, &file).unwrap_err(), "export"),
    ] {
        let text = format!("volume data is in use by m: cannot {action} it as it is now");
        assert_eq!(error.to_string(), text);
    }
    let taken = engine.take_snapshot(&reference("data"), None).unwrap();
    let error = engine
        .revert_volume(&reference("data"), None, Replaced::Discard)
        .unwrap_err();
    assert!(matches!(error, Error::MachineActive { .. }), "{error}");
    let export = Export {
        snapshot: Some(taken.snapshot.name),
        ..export
    };
    engine.export_volume(&export, &file).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 16 * MIB);
}

#[test]
fn a_machine_that_its_user_has_paused_stays_so() {
    let Some((house, engine)) = guest(&[Action::Count]) else {
        return;
    };
    start(&engine, "m");
    let _ = engine.pause_machine(&reference("m")).unwrap();
    house.notices();
    engine.take_snapshot(&reference("data"), None).unwrap();
    assert_eq!(house.notices(), []);
    assert_eq!(machine(&engine).status, "paused");
    assert_eq!(
        engine.resume_machine(&reference("m")).unwrap().1,
        sistemo::Changed::Yes
    );
}

#[test]
fn a_machine_that_a_killed_snapshot_has_held_runs_on_with_the_next_command() {
    let Some((house, engine)) = guest(&[Action::Count]) else {
        return;
    };
    let id = start(&engine, "m").id;
    let volume = engine.volume(&reference("data")).unwrap().id;
    let catalogue = Catalogue::open(&house.data_dir()).unwrap();
    let intent = Intent::SnapshotHeld {
        machine: id,
        volume,
    };
    // Killed before it has paused the machine, while it is paused, and after the machine's end.
    for (pauses, stops) in [(false, false), (true, false), (true, true)] {
        catalogue.write(|session| session.begin(&intent)).unwrap();
        let runtime = house.data_dir().join("machines").join(id.to_string());
        let mut control = sistemo_vmm::Vmm::connect(&sistemo_vmm::Qemu::new(), &runtime).unwrap();
        if pauses {
            control.pause().unwrap();
        }
        drop(control);
        if stops {
            let _ = engine
                .stop_machine(&reference("m"), StopRequest::Forced)
                .unwrap();
        }
        house.notices();
        let next = house.engine();
        // The machine's monitor looks for such too, and may have been first.
        let intents = || catalogue.read(|session| session.intents()).unwrap();
        wait_until("the end of its intent", || intents().is_empty());
        let is_recovery = |notice: &Notice| matches!(notice, Notice::Recovered { .. });
        assert!(house.notices().iter().all(is_recovery), "{pauses} {stops}");
        let expected = if stops { "stopped" } else { "running" };
        wait_until("its record", || machine(&next).status == expected);
    }
}

/// A pool of qcow2 files.
fn layers(house: &House, engine: &Engine) -> PoolName {
    let directory = house.path("layers").display().to_string();
    let added = engine.add_pool(&NewPool {
        name: "layers".parse().unwrap(),
        driver: "qcow2".to_owned(),
        options: vec![("dir_path".to_owned(), directory)],
    });
    added.unwrap().name.parse().unwrap()
}

#[test]
fn a_running_machine_goes_on_in_a_new_layer() {
    let Some((house, engine)) = guest(WRITES) else {
        return;
    };
    let pool = layers(&house, &engine);
    // Root and data in layers: the root's image is put there once and cloned.
    engine
        .clone_volume(&NewClone {
            source: reference("data"),
            snapshot: None,
            name: "layered".parse().unwrap(),
            pool: Some(pool.clone()),
        })
        .unwrap();
    let new = Deploy {
        pool: Some(pool.clone()),
        ..attaching(plan("tiny", "n"), &["layered"])
    };
    engine.deploy(&new).unwrap();
    assert_eq!(engine.pool_view(&pool).unwrap().images, 1);
    start(&engine, "n");
    let log = engine.console_log(&reference("n")).unwrap();
    wait_for_text(&log, "count 3");
    house.notices();
    for volume in ["layered", "n-root", "layered"] {
        let taken = engine.take_snapshot(&reference(volume), None).unwrap();
        assert_eq!(taken.way, Way::Overlay);
    }
    assert_eq!(house.notices(), [], "it was not held");
    let length = || std::fs::metadata(&log).unwrap().len();
    let before = length();
    wait_until("it counts on", || length() > before);
    let snapshots = engine.snapshots(&reference("layered")).unwrap();
    assert_eq!(snapshots.len(), 2);
    for snapshot in snapshots {
        let mut bytes = Vec::new();
        let export = Export {
            snapshot: Some(snapshot.name.clone()),
            ..Export::of(reference("layered"))
        };
        engine.export_volume_to(&export, &mut bytes).unwrap();
        assert!(bytes.starts_with(b"sistemo\n"));
        // The machine's VMM reads, and locks, the same files.
        let raw = house.path("layered.raw");
        std::fs::File::create(&raw)
            .and_then(|mut file| file.write_all(&bytes))
            .unwrap();
        let qcow2 = house.path(&format!("{}.qcow2", snapshot.name));
        engine.export_volume(&export, &qcow2).unwrap();
        let compare = ["compare", "-q", "-f", "raw", "-F", "qcow2"];
        let compare = Program::find("qemu-img").unwrap().args(compare);
        compare.args([&raw, &qcow2]).run().unwrap();
        engine
            .delete_snapshot(&reference("layered"), &snapshot.name)
            .unwrap();
    }
    let _ = engine
        .stop_machine(&reference("n"), StopRequest::Forced)
        .unwrap();
    start(&engine, "n");
    wait_until("it counts again", || length() > before);
}
