//! Root volumes that are made anew at each start, and machines that are gone when they stop.

use std::sync::Arc;
use std::time::Duration;

use sistemo::care::OnDamage;
use sistemo::clones::NewClone;
use sistemo::exchange::Export;
use sistemo::history::Pin;
use sistemo::machines::{
    Deploy, DeploySource, MachineChanges, MachineView, NewMachineClone, StartMode, StopRequest,
    Storage, Wait,
};
use sistemo::model::{
    Access, Lifetime, MachineName, PoolName, SnapshotKind, SnapshotMark, SnapshotName,
};
use sistemo::moves::{Move, Unkept};
use sistemo::snapshots::Replaced;
use sistemo::volumes::{Grow, VolumeStatus, VolumeView};
use sistemo::{Caller, Changed, Engine, Error, MonitorCommand, Notice, Settings, Silent};
use sistemo_catalog::{Catalogue, Intent};
use sistemo_host::process::{Ending, ProcessIdentity};
use sistemo_testkit::{Action, Requirement, met};

use crate::fixture::{
    House, MIB, attaching, holds, plan, pool_on, reference, reflinks, start, volume, wait_for_text,
    wait_until, write_into,
};
use crate::running::monitors;

/// Where no test guest writes or reads.
const ELSEWHERE: u64 = 8 * MIB;
const GRACEFUL: StopRequest = StopRequest::Graceful {
    timeout: Duration::from_secs(30),
};

fn template(of: &str, name: &str) -> Deploy {
    Deploy {
        source: DeploySource::Template(reference(of)),
        storage: None,
        ..plan("unused", name)
    }
}

fn ephemeral(plan: Deploy) -> Deploy {
    Deploy {
        lifetime: Lifetime::Ephemeral,
        ..plan
    }
}

fn started(plan: Deploy) -> Deploy {
    Deploy {
        start: StartMode::Started,
        ..plan
    }
}

/// A machine `t`, made of an image that does not boot, and `d`, which starts from its root.
fn unbootable() -> (House, Engine) {
    let house = House::new();
    let engine = house.engine();
    house.import_disk(&engine, 16 * MIB);
    engine.deploy(&plan("disk", "t")).unwrap();
    volume(&engine, "data", "16M");
    engine
        .deploy(&attaching(template("t", "d"), &["data"]))
        .unwrap();
    (house, engine)
}

/// The same of the tests' guest, which writes over the beginning of its root; `None` where that
/// cannot run here.
fn bootable(actions: &[Action]) -> Option<(House, Engine)> {
    if !met(&[
        Requirement::TinyGuest,
        Requirement::Program("qemu-system-x86_64"),
    ]) {
        return None;
    }
    let house = House::new();
    let engine = house.engine();
    house.import_tiny(&engine, actions);
    engine.deploy(&plan("tiny", "t")).unwrap();
    volume(&engine, "data", "16M");
    engine
        .deploy(&attaching(template("t", "d"), &["data"]))
        .unwrap();
    Some((house, engine))
}

const WRITES_ITS_ROOT: &[Action] = &[Action::Write("vda"), Action::Write("vdb"), Action::Count];

fn look(engine: &Engine, name: &str) -> VolumeView {
    engine.volume(&reference(name)).unwrap()
}

fn force(engine: &Engine, name: &str) -> MachineView {
    let (machine, changed) = engine
        .stop_machine(&reference(name), StopRequest::Forced)
        .unwrap();
    assert_eq!(changed, Changed::Yes);
    machine
}

fn counts(engine: &Engine, name: &str) {
    let log = engine.console_log(&reference(name)).unwrap();
    wait_for_text(&log, "count 3");
    // Of this start: the next one begins with an empty log or an older text.
    std::fs::File::create(log).unwrap();
}

fn names(machines: &[MachineView]) -> Vec<&str> {
    machines
        .iter()
        .map(|machine| machine.name.as_str())
        .collect()
}

#[test]
fn a_machine_from_a_template_has_a_root_of_which_there_is_nothing() {
    let (house, engine) = unbootable();
    let files = house.volume_files();
    assert_eq!(files.len(), 2 * 2, "t-root and data: {files:?}");
    let machine = engine.machine(&reference("d")).unwrap();
    let shown = machine.template.unwrap();
    assert_eq!(shown.volume.as_str(), "t-root");
    assert_eq!(shown.machine.unwrap().as_str(), "t");
    assert_eq!(machine.image, Some("disk".parse().unwrap()));
    for root in [look(&engine, "d-root"), engine.volumes().unwrap().remove(0)] {
        if root.name.as_str() != "d-root" {
            continue;
        }
        assert_eq!((root.status, root.reason), (VolumeStatus::Attached, None));
        assert_eq!((root.used_bytes, root.path), (Some(0), None));
        assert_eq!(root.template.unwrap().as_str(), "t-root");
        assert_eq!(root.size_bytes, look(&engine, "t-root").size_bytes);
    }
    let report = sistemo::doctor::examine(engine.settings());
    let missing = report.iter().find(|check| check.found.contains("missing"));
    assert!(missing.is_none(), "{missing:?}");
}

#[test]
fn nothing_can_be_done_with_a_root_of_which_there_is_nothing() {
    let (house, engine) = unbootable();
    let root = || reference("d-root");
    let before = (engine.volumes().unwrap(), house.volume_files());
    let clone = |snapshot: Option<&str>| NewClone {
        source: root(),
        snapshot: snapshot.map(|name| name.parse().unwrap()),
        name: "copy".parse().unwrap(),
        pool: None,
    };
    let export = Export::of(root());
    let elsewhere = Move {
        volume: root(),
        to: PoolName::default_pool(),
        unkept: Unkept::Refuse,
    };
    let name = "new".parse().unwrap();
    for error in [
        engine.clone_volume(&clone(None)).unwrap_err(),
        engine.clone_volume(&clone(Some("one"))).unwrap_err(),
        engine.take_snapshot(&root(), None).unwrap_err(),
        engine
            .delete_snapshot(&root(), &"one".parse().unwrap())
            .unwrap_err(),
        engine
            .resize_volume(&root(), "64M".parse().unwrap(), Grow::Device)
            .unwrap_err(),
        engine
            .revert_volume(&root(), None, Replaced::Discard)
            .unwrap_err(),
        engine.rename_volume(&root(), name).unwrap_err(),
        engine.move_volume(&elsewhere).unwrap_err(),
        engine.trim_volume(&root()).unwrap_err(),
        engine.check_volume(&root(), OnDamage::Report).unwrap_err(),
        engine
            .export_volume(&export, &house.path("out.raw"))
            .unwrap_err(),
        engine.delete_volume(&root()).unwrap_err(),
        engine.detach_volume(&reference("d"), &root()).unwrap_err(),
    ] {
        assert_eq!(
            error.to_string(),
            "nothing can be done with volume d-root: it is made from t-root at each start of d, \
             and thrown away at each stop"
        );
    }
    let error = engine
        .attach_volume(&reference("t"), &root(), Access::ReadWrite)
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::VolumeAttached { .. } | Error::VolumeDisposable { .. }
        ),
        "{error}"
    );
    assert_eq!((engine.volumes().unwrap(), house.volume_files()), before);
}

#[test]
fn a_template_stays_as_long_as_machines_start_from_it() {
    let (_house, engine) = unbootable();
    engine.deploy(&template("t", "e")).unwrap();
    let error = engine
        .delete_machine(&reference("t"), Storage::RemoveRoot)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "volume t-root cannot be removed: machines d, e start from it"
    );
    // Without that machine it would not be otherwise, so nobody is sent to delete it.
    let error = engine.delete_volume(&reference("t-root")).unwrap_err();
    assert!(matches!(error, Error::TemplateNeeded { .. }), "{error}");
    // The machine alone may go, and its volume then may not.
    engine
        .delete_machine(&reference("t"), Storage::Preserve)
        .unwrap();
    let error = engine.delete_volume(&reference("t-root")).unwrap_err();
    assert!(matches!(error, Error::TemplateNeeded { .. }), "{error}");
    let shown = engine.machine(&reference("d")).unwrap().template.unwrap();
    assert_eq!((shown.volume.as_str(), shown.machine), ("t-root", None));
    // Whatever is asked for its root, a machine that has none takes nothing with it.
    for (machine, storage) in [("d", Storage::RemoveRoot), ("e", Storage::Preserve)] {
        let deletion = engine.delete_machine(&reference(machine), storage).unwrap();
        assert!(deletion.removes.is_none(), "{machine}");
    }
    assert_eq!(look(&engine, "data").status, VolumeStatus::Available);
    engine.delete_volume(&reference("t-root")).unwrap();
    assert_eq!(engine.volumes().unwrap().len(), 1);
}

#[test]
fn what_cannot_be_a_template_is_refused_and_leaves_nothing() {
    let (house, engine) = unbootable();
    engine.deploy(&ephemeral(plan("disk", "e"))).unwrap();
    let before = (engine.machines().unwrap(), house.volume_files());
    let elsewhere = Deploy {
        pool: Some("fast".parse().unwrap()),
        ..template("t", "n")
    };
    for (new, text) in [
        (template("none", "n"), "machine none does not exist"),
        (
            template("d", "n"),
            "machine d cannot be a template: its own root",
        ),
        (
            template("e", "n"),
            "machine e cannot be a template: it is gone",
        ),
        (template("t", "d"), "machine d already exists"),
        (elsewhere, "pool fast does not exist"),
        (
            attaching(template("t", "n"), &["data"]),
            "volume data is attached to d",
        ),
    ] {
        let error = engine.deploy(&new).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
    assert_eq!((engine.machines().unwrap(), house.volume_files()), before);
}

#[test]
fn a_clone_of_a_machine_from_a_template_starts_from_the_same() {
    let (house, engine) = unbootable();
    let cloned = engine
        .clone_machine(&NewMachineClone {
            source: reference("d"),
            name: "c".parse().unwrap(),
            snapshot: None,
            pool: None,
            expose: Vec::new(),
            start: StartMode::Created,
        })
        .unwrap();
    let names: Vec<_> = cloned.volumes.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["c-data"], "of the root there is nothing to clone");
    assert_eq!(cloned.machine.template.unwrap().volume.as_str(), "t-root");
    assert_eq!(look(&engine, "c-root").used_bytes, Some(0));
    assert_eq!(house.volume_files().len(), 3 * 2);
}

#[test]
fn a_root_that_is_made_at_each_start_takes_nothing_and_is_left_out_of_snapshots() {
    let (house, engine) = unbootable();
    let usage = engine.volume_usage(&reference("d-root")).unwrap();
    let told = (usage.used_bytes, usage.alone_bytes, usage.reason);
    assert_eq!(told, (Some(0), Some(0), None), "that is as it should be");
    let error = engine.snapshots(&reference("d-root")).unwrap_err();
    assert!(matches!(error, Error::VolumeDisposable { .. }), "{error}");
    engine.deploy(&template("t", "e")).unwrap();
    house.notices();
    let kept = engine.snapshot_machine(&reference("d"), None).unwrap();
    let names: Vec<_> = kept.volumes.iter().map(|kept| kept.name.as_str()).collect();
    assert_eq!(names, ["data"]);
    assert_eq!(
        house.notices(),
        [Notice::RootLeftOut {
            machine: "d".parse().unwrap(),
            template: "t-root".parse().unwrap(),
        }]
    );
    let error = engine.snapshot_machine(&reference("e"), None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "machine e has nothing to keep: its only volume is made from t-root at each start, and \
         thrown away at each stop"
    );
    assert_eq!(house.notices(), []);
}

#[test]
fn what_is_written_to_such_a_root_is_gone_with_the_stop_and_what_the_template_got_is_there() {
    let Some((house, engine)) = bootable(WRITES_ITS_ROOT) else {
        return;
    };
    house.notices();
    start(&engine, "d");
    let notices = house.notices();
    assert!(
        notices
            .iter()
            .all(|notice| matches!(notice, Notice::TemplateCopied { .. })),
        "{notices:?}"
    );
    counts(&engine, "d");
    assert!(holds(&look(&engine, "d-root"), 0, b"sistemo\n"));
    let files = house.volume_files().len();
    assert_eq!(files, 3 * 2);
    // What an earlier stop had still to do is not done to what a later start has made.
    let intent = Intent::DiscardRoot {
        volume: look(&engine, "d-root").id,
        machine: engine.machine(&reference("d")).unwrap().id,
    };
    let catalogue = Catalogue::open(&house.data_dir()).unwrap();
    catalogue.write(|session| session.begin(&intent)).unwrap();
    house.engine();
    assert_eq!(house.volume_files().len(), files, "it is in use");
    force(&engine, "d");
    assert_eq!(
        house.volume_files().len(),
        2 * 2,
        "nothing of d-root is left"
    );
    assert!(
        holds(&look(&engine, "data"), 0, b"sistemo\n"),
        "the data stays"
    );
    assert!(holds(&look(&engine, "t-root"), 0, b"guest: "));

    write_into(&look(&engine, "t-root"), ELSEWHERE, b"an update");
    // Pinned in the last run, whose keys are gone with it.
    let id = engine.machine(&reference("d")).unwrap().id.to_string();
    let pinned = house
        .data_dir()
        .join("machines")
        .join(id)
        .join("known_hosts");
    std::fs::File::create(&pinned).unwrap();
    start(&engine, "d");
    assert!(!pinned.exists());
    // It counts only where its root begins as the template's does.
    counts(&engine, "d");
    assert!(holds(&look(&engine, "d-root"), ELSEWHERE, b"an update"));
}

#[test]
fn several_machines_of_one_template_run_at_once_and_beside_it() {
    let Some((_house, engine)) = bootable(WRITES_ITS_ROOT) else {
        return;
    };
    engine.deploy(&started(template("t", "e"))).unwrap();
    start(&engine, "d");
    start(&engine, "t");
    let running = engine.machines().unwrap();
    assert!(running.iter().all(|machine| machine.status == "running"));
    assert_eq!(names(&running), ["d", "e", "t"]);
}

#[test]
fn while_a_template_is_in_use_its_newest_revision_is_started_from() {
    let Some((house, engine)) = bootable(WRITES_ITS_ROOT) else {
        return;
    };
    write_into(&look(&engine, "t-root"), ELSEWHERE, b"committed");
    let revision = engine.take_snapshot(&reference("t-root"), None).unwrap();
    let name = revision.snapshot.name;
    write_into(&look(&engine, "t-root"), ELSEWHERE, b"and after");
    start(&engine, "t");
    let error = engine.start_machine(&reference("d"), Wait::No).unwrap_err();
    assert_eq!(
        error.to_string(),
        "machine d starts from volume t-root, which t (running) writes to"
    );
    assert_eq!(engine.machine(&reference("d")).unwrap().status, "stopped");
    assert_eq!(look(&engine, "d-root").used_bytes, Some(0));

    // As a stop with revisions to keep marks it.
    let id = look(&engine, "t-root").id;
    let catalogue = Catalogue::open(&house.data_dir()).unwrap();
    catalogue
        .write(|session| {
            let mut history = session.volume(id)?.history;
            let mark = SnapshotMark {
                kind: SnapshotKind::Revision,
                pinned: false,
            };
            history.marks.insert(name.clone(), mark);
            session.set_volume_history(id, &history)
        })
        .unwrap();
    house.notices();
    start(&engine, "d");
    let told = house.notices();
    let told = |notice: fn(&Notice) -> bool| told.iter().any(notice);
    assert!(told(|notice| matches!(
        notice,
        Notice::StartsFromRevision { .. }
    )));
    assert!(holds(&look(&engine, "d-root"), ELSEWHERE, b"committed"));
}

#[test]
fn a_root_in_a_pool_that_shares_data_is_not_copied() {
    let Some(filesystem) = reflinks() else { return };
    let Some((house, engine)) = bootable(WRITES_ITS_ROOT) else {
        return;
    };
    let fast: PoolName = pool_on(&engine, "fast", &filesystem);
    let quick = Deploy {
        pool: Some(fast.clone()),
        ..plan("tiny", "quick")
    };
    engine.deploy(&quick).unwrap();
    engine.deploy(&template("quick", "q")).unwrap();
    house.notices();
    start(&engine, "q");
    assert_eq!(house.notices(), []);
    assert_eq!(
        look(&engine, "q-root").pool,
        fast,
        "it goes where its template is"
    );
}

#[test]
fn a_start_that_fails_leaves_nothing_of_the_root() {
    let (house, _) = unbootable();
    let files = house.volume_files();
    let caller = Caller {
        purpose: "a test".to_owned(),
        monitor: MonitorCommand {
            program: "/bin/false".into(),
            arguments: Vec::new(),
        },
    };
    let settings = Settings::defaults(&house.data_dir());
    let engine = Engine::open(settings, Arc::new(Silent), caller).unwrap();
    let error = engine.start_machine(&reference("d"), Wait::No).unwrap_err();
    assert!(matches!(error, Error::Start { .. }), "{error}");
    assert_eq!(house.volume_files(), files);
    for new in [template("t", "n"), ephemeral(template("t", "n"))] {
        engine.deploy(&started(new)).unwrap_err();
        assert_eq!(house.volume_files(), files);
        assert_eq!(names(&engine.machines().unwrap()), ["d", "t"]);
    }
}

#[test]
fn what_a_killed_start_has_made_of_a_root_is_gone_with_the_next_command() {
    let (house, engine) = unbootable();
    let files = house.volume_files();
    let root = look(&engine, "d-root");
    let machine = engine.machine(&reference("d")).unwrap().id;
    let catalogue = Catalogue::open(&house.data_dir()).unwrap();
    let intent = Intent::DiscardRoot {
        volume: root.id,
        machine,
    };
    catalogue.write(|session| session.begin(&intent)).unwrap();
    let place = house.data_dir().join("volumes");
    let source = look(&engine, "t-root").path.unwrap();
    std::fs::copy(source, place.join(format!("{}.ext4", root.id))).unwrap();
    house.notices();
    house.engine();
    assert!(matches!(
        house.notices().as_slice(),
        [Notice::Recovered { .. }]
    ));
    assert_eq!(house.volume_files(), files);
}

type End = fn(&House, &Engine, &MachineView);

/// What ends an ephemeral machine.
fn ends() -> [(&'static str, End); 4] {
    fn kill(pid: u32) {
        if let Some(process) = ProcessIdentity::of(pid).unwrap() {
            process.end(Ending::Kill).unwrap();
            assert!(process.wait_gone(Some(Duration::from_secs(10))).unwrap());
        }
    }
    [
        ("force", |house, engine, machine| {
            house.notices();
            let stopped = force(engine, machine.name.as_str());
            assert_eq!(stopped.status, "stopped");
            let notices = house.notices();
            let gone = notices.iter().any(|notice| {
                matches!(notice, Notice::EphemeralGone { kept, .. } if kept[0].as_str() == "data")
            });
            assert!(gone, "{notices:?}");
        }),
        ("power button", |_, engine, machine| {
            let reference = reference(machine.name.as_str());
            let (stopped, _) = engine.stop_machine(&reference, GRACEFUL).unwrap();
            assert_eq!(stopped.status, "stopped");
        }),
        ("death of its VMM", |_, _, machine| {
            kill(machine.pid.unwrap());
        }),
        ("end of the host", |_, _, machine| {
            for monitor in monitors(&machine.id.to_string()) {
                kill(monitor);
            }
            kill(machine.pid.unwrap());
        }),
    ]
}

#[test]
fn however_an_ephemeral_machine_stops_it_is_gone_and_its_data_stays() {
    let Some((house, engine)) = bootable(&[Action::WaitForButton, Action::PowerOff]) else {
        return;
    };
    engine
        .delete_machine(&reference("d"), Storage::RemoveRoot)
        .unwrap();
    let files = house.volume_files();
    let sources: [fn(&str) -> Deploy; 2] = [|name| plan("tiny", name), |name| template("t", name)];
    for (index, (how, end)) in ends().into_iter().enumerate() {
        // Of both kinds, in turns.
        let new = sources[index % 2]("e");
        let new = started(ephemeral(attaching(new, &["data"])));
        let machine = engine.deploy(&new).unwrap();
        assert!(machine.ephemeral && machine.status == "running", "{how}");
        let error = engine
            .restart_machine(&reference("e"), StopRequest::Forced, Wait::No)
            .unwrap_err();
        assert!(matches!(error, Error::MachineEphemeral { .. }), "{error}");
        end(&house, &engine, &machine);
        wait_until("its end", || {
            let next = house.engine();
            names(&next.machines().unwrap()) == ["t"]
        });
        wait_until("the end of its monitor", || {
            monitors(&machine.id.to_string()).is_empty()
        });
        wait_until("what is left of it to go", || {
            house.engine();
            house.volume_files() == files
        });
        let runtime = house
            .data_dir()
            .join("machines")
            .join(machine.id.to_string());
        assert!(!runtime.exists(), "{how}");
        assert_eq!(look(&engine, "data").status, VolumeStatus::Available);
    }
}

#[test]
fn a_given_root_outlives_an_ephemeral_machine_and_preserving_keeps_a_made_one() {
    let Some((_house, engine)) = bootable(&[Action::Write("vdb"), Action::Count]) else {
        return;
    };
    volume(&engine, "given", "16M");
    let on_given = Deploy {
        source: DeploySource::Volume(reference("given")),
        ..plan("unused", "e")
    };
    engine.deploy(&started(ephemeral(on_given))).unwrap();
    force(&engine, "e");
    assert_eq!(look(&engine, "given").status, VolumeStatus::Available);

    engine
        .deploy(&started(ephemeral(plan("tiny", "e"))))
        .unwrap();
    engine
        .delete_machine(&reference("e"), Storage::Preserve)
        .unwrap();
    assert_eq!(look(&engine, "e-root").status, VolumeStatus::Available);

    engine
        .deploy(&started(ephemeral(plan("tiny", "f"))))
        .unwrap();
    let deletion = engine
        .delete_machine(&reference("f"), Storage::RemoveRoot)
        .unwrap();
    assert_eq!(deletion.removes.unwrap().name.as_str(), "f-root");
    assert!(engine.volume(&reference("f-root")).is_err());
}

#[test]
fn what_goes_with_a_stop_is_not_pinned_for_later() {
    let (_house, engine) = unbootable();
    engine.deploy(&ephemeral(plan("disk", "e"))).unwrap();
    engine.deploy(&plan("disk", "m")).unwrap();
    let name: SnapshotName = "s".parse().unwrap();
    for root in ["e-root", "m-root"] {
        let taken = engine.take_snapshot(&reference(root), Some(name.clone()));
        taken.unwrap();
    }
    let pin = |root| engine.pin_snapshot(&reference(root), &name, Pin::In);
    let error = pin("e-root").unwrap_err();
    assert!(matches!(error, Error::MachineEphemeral { .. }), "{error}");
    assert_eq!(pin("m-root").unwrap().1, Changed::Yes);
}

#[test]
fn an_ephemeral_machine_does_not_start_with_the_host() {
    let (_house, engine) = unbootable();
    engine.deploy(&ephemeral(plan("disk", "e"))).unwrap();
    let changes = MachineChanges {
        autostart: Some(true),
        ..MachineChanges::default()
    };
    let error = engine.set_machine(&reference("e"), &changes).unwrap_err();
    assert!(matches!(error, Error::MachineEphemeral { .. }), "{error}");
    // One that has never run stays until it does.
    let name: MachineName = "f".parse().unwrap();
    let renamed = engine.rename_machine(&reference("e"), &name).unwrap();
    assert_eq!((renamed.name, renamed.ephemeral), (name, true));
}
