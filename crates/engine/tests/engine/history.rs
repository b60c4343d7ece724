//! What is known of a volume's past: pins, revisions, what was replaced, and what a clone is of.

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use sistemo::clones::NewClone;
use sistemo::history::{Past, Pin, RevisionsToKeep, VolumeChanges};
use sistemo::machines::StopRequest;
use sistemo::model::{Bytes, MachineId, SnapshotKind, SnapshotName, Timestamp};
use sistemo::pools::NewPool;
use sistemo::snapshots::{Replaced, SnapshotView};
use sistemo::volumes::Grow;
use sistemo::{Changed, Engine, Notice};
use sistemo_catalog::{Catalogue, Intent};
use sistemo_testkit::filesystem::{LoopFilesystem, LoopKind};
use sistemo_testkit::{Action, Requirement, met};

use crate::fixture::{
    House, MIB, attaching, holds, plan, pool_on, reference, reflinks, start, volume, volume_in,
    write_into,
};
use crate::running::{GRACEFUL, console_shows, guest};
use crate::stops::{described, history, settled, stop};

fn name(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

fn take(engine: &Engine, volume: &str, snapshot: &str) {
    engine
        .take_snapshot(&reference(volume), Some(name(snapshot)))
        .unwrap();
}

fn pin(engine: &Engine, snapshot: &str, pin: Pin) -> (SnapshotView, Changed) {
    let data = reference("data");
    engine.pin_snapshot(&data, &name(snapshot), pin).unwrap()
}

fn snapshots(engine: &Engine) -> Vec<SnapshotView> {
    engine.snapshots(&reference("data")).unwrap()
}

fn of_kind(engine: &Engine, kind: SnapshotKind) -> Vec<String> {
    let there = snapshots(engine).into_iter();
    there
        .filter(|snapshot| snapshot.kind == kind)
        .map(|snapshot| snapshot.name.to_string())
        .collect()
}

fn keep(engine: &Engine, revisions: RevisionsToKeep) {
    let changes = VolumeChanges {
        revisions_to_keep: Some(revisions),
    };
    engine.set_volume(&reference("data"), &changes).unwrap();
}

fn past(engine: &Engine, volume: &str) -> Past {
    engine.volume_details(&reference(volume)).unwrap().past
}

fn clone(engine: &Engine, snapshot: Option<&str>, as_name: &str) {
    engine
        .clone_volume(&NewClone {
            source: reference("data"),
            snapshot: snapshot.map(name),
            name: as_name.parse().unwrap(),
            pool: None,
        })
        .unwrap();
}

#[test]
fn a_pinned_snapshot_stays_and_so_does_its_volume() {
    let house = House::new();
    let engine = house.engine();
    volume(&engine, "data", "16M");
    take(&engine, "data", "one");
    let (pinned, changed) = pin(&engine, "one", Pin::In);
    assert_eq!((pinned.pinned, changed), (true, Changed::Yes));
    assert_eq!(pin(&engine, "one", Pin::In).1, Changed::No);
    assert!(described(&house, "data"), "the pool knows of the pin too");

    let data = reference("data");
    let error = engine.delete_snapshot(&data, &name("one")).unwrap_err();
    assert_eq!(error.to_string(), "snapshot one of volume data is pinned");
    for error in [
        engine.check_volume_deletable(&data).unwrap_err(),
        engine.delete_volume(&data).unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "volume data has pinned snapshots: one");
    }
    // It is no obstacle to going back to it.
    let _back = engine
        .revert_volume(&data, Some(&name("one")), Replaced::Discard)
        .unwrap();

    let (unpinned, changed) = pin(&engine, "one", Pin::Out);
    assert_eq!((unpinned.pinned, changed), (false, Changed::Yes));
    assert_eq!(pin(&engine, "one", Pin::Out).1, Changed::No);
    engine.delete_snapshot(&data, &name("one")).unwrap();
    assert!(history(&house, "data").marks.is_empty());
    engine.delete_volume(&data).unwrap();
}

#[test]
fn a_snapshot_gets_no_mark_of_one_that_is_gone() {
    let house = House::new();
    let engine = house.engine();
    volume(&engine, "data", "16M");
    take(&engine, "data", "one");
    let (_, _) = pin(&engine, "one", Pin::In);
    // As somebody does who goes about it behind our back.
    let data = engine.volume(&reference("data")).unwrap();
    let place = data.path.unwrap();
    for entry in std::fs::read_dir(place.parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().contains('@') {
            std::fs::remove_file(path).unwrap();
        }
    }
    assert!(snapshots(&engine).is_empty());
    take(&engine, "data", "one");
    assert!(!snapshots(&engine)[0].pinned);
    engine.delete_volume(&reference("data")).unwrap();
}

#[test]
fn a_revert_keeps_what_it_replaces_unless_told_not_to() {
    let Some(filesystem) = reflinks() else { return };
    let house = House::new();
    let engine = house.engine();
    let fast = pool_on(&engine, "fast", &filesystem);
    let data = volume_in(&engine, &fast, "data", 16);
    write_into(&data, MIB, b"first");
    take(&engine, "data", "one");
    write_into(&data, MIB, b"later");
    let _grown = engine
        .resize_volume(&reference("data"), Bytes::from_mib(32), Grow::Device)
        .unwrap();
    let revert = |snapshot, replaced| {
        let reverted = engine.revert_volume(&reference("data"), snapshot, replaced);
        reverted.unwrap()
    };
    let back = revert(None, Replaced::Keep);
    assert!(holds(&back.volume, MIB, b"first"));
    let kept = back.kept.unwrap();
    assert_eq!(kept.kind, SnapshotKind::Replaced);
    assert_eq!(kept.size_bytes, 32 * MIB, "its size is kept too");

    // The newest is still the one that was asked for.
    write_into(&back.volume, MIB, b"other");
    let again = revert(None, Replaced::Discard);
    assert_eq!((again.snapshot, again.kept), (name("one"), None));
    assert_eq!(of_kind(&engine, SnapshotKind::Replaced).len(), 1);

    // And there is a way back from going back.
    let forth = revert(Some(&kept.name), Replaced::Discard);
    assert!(holds(&forth.volume, MIB, b"later"));
    assert_eq!(forth.volume.size_bytes, 32 * MIB);
    engine
        .delete_snapshot(&reference("data"), &name("one"))
        .unwrap();
    assert_eq!(revert(None, Replaced::Discard).snapshot, kept.name);
}

/// The external driver `pybtrfs` as `odd`: it says that a revert has failed when that is done.
fn install_odd(house: &House) {
    let driver = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../examples/drivers/sistemo-driver-pybtrfs"
    );
    let (head, revert) = {
        let text = std::fs::read_to_string(driver).unwrap();
        let at = text.find("def revert(request):").unwrap();
        (text[..at].to_owned(), text[at..].to_owned())
    };
    let done = "    return {\"way\": \"subvolume\"}\n";
    let odd = revert.replacen(done, "    raise Refused(\"failed\", \"an odd end\")\n", 1);
    assert_ne!(odd, revert);
    let drivers = house.data_dir().join("drivers");
    std::fs::create_dir_all(&drivers).unwrap();
    std::fs::set_permissions(&drivers, Permissions::from_mode(0o700)).unwrap();
    let place = drivers.join("sistemo-driver-odd");
    let mut file = File::create(&place).unwrap();
    file.write_all((head + &odd).as_bytes()).unwrap();
    drop(file);
    std::fs::set_permissions(&place, Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn what_a_revert_was_to_replace_stays_where_nobody_knows_whether_it_did() {
    let needed = ["mkfs.btrfs", "python3"].map(Requirement::Program);
    if !met(&[Requirement::Root]) || !met(&needed) {
        return;
    }
    let filesystem = LoopFilesystem::new(LoopKind::Btrfs, Bytes::from_mib(256));
    let house = House::new();
    install_odd(&house);
    let engine = house.engine();
    let place = filesystem.path().join("odd").display().to_string();
    engine
        .add_pool(&NewPool {
            name: "odd".parse().unwrap(),
            driver: "odd".to_owned(),
            options: vec![("dir_path".to_owned(), place)],
        })
        .unwrap();
    let data = volume_in(&engine, &"odd".parse().unwrap(), "data", 16);
    write_into(&data, MIB, b"first");
    take(&engine, "data", "one");
    write_into(&data, MIB, b"later");
    let failed = engine.revert_volume(&reference("data"), None, Replaced::Keep);
    assert!(failed.is_err());

    let [kept] = of_kind(&engine, SnapshotKind::Replaced).try_into().unwrap();
    let back = engine.revert_volume(&reference("data"), Some(&name(&kept)), Replaced::Discard);
    assert!(back.is_err(), "it is as odd as before");
    assert!(holds(
        &engine.volume(&reference("data")).unwrap(),
        MIB,
        b"later"
    ));
    assert!(settled(&house));
}

#[test]
fn what_cannot_be_kept_is_not_replaced() {
    if !met(&[Requirement::Root]) {
        return;
    }
    let filesystem = LoopFilesystem::new(LoopKind::Tmpfs, Bytes::from_mib(40));
    let house = House::new();
    let engine = house.engine();
    let small = pool_on(&engine, "small", &filesystem);
    let data = volume_in(&engine, &small, "data", 16);
    write_into(&data, 0, &vec![1; 9 << 20]);
    take(&engine, "data", "one");
    write_into(&data, 0, &vec![2; 9 << 20]);
    // 18 of 40 MiB are taken; to go back takes 9 more, and to keep what there is another 9.
    write_into(
        &volume_in(&engine, &small, "filler", 16),
        0,
        &vec![3; 8 << 20],
    );
    let go_back = |replaced| engine.revert_volume(&reference("data"), None, replaced);
    let error = go_back(Replaced::Keep).unwrap_err();
    let text = error.to_string();
    assert_eq!(text, "cannot keep what volume data holds now");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        cause.contains("keep what volume data holds and revert it"),
        "{cause}"
    );
    assert!(holds(&data, 0, &[2; 4096]));
    assert_eq!(snapshots(&engine).len(), 1);
    assert!(settled(&house));

    let back = go_back(Replaced::Discard).unwrap();
    assert!(holds(&back.volume, 0, &[1; 4096]));
}

#[test]
fn a_volume_says_how_many_revisions_are_kept() {
    let house = House::new();
    let engine = house.engine();
    volume(&engine, "data", "16M");
    let at_first = past(&engine, "data");
    assert_eq!(at_first.revisions_to_keep, Some(0));
    assert_eq!(at_first.revisions_set_by, "pool");
    keep(&engine, RevisionsToKeep::Number(3));
    let set = past(&engine, "data");
    assert_eq!(
        (set.revisions_to_keep, set.revisions_set_by),
        (Some(3), "volume")
    );
    assert!(described(&house, "data"));
    keep(&engine, RevisionsToKeep::AsPool);
    assert_eq!(past(&engine, "data"), at_first);
}

#[test]
fn a_volume_without_a_number_of_its_own_follows_its_pool() {
    let house = House::new();
    house.storage_conf("[default]\nrevisions_to_keep = 2\n");
    let engine = house.engine();
    volume(&engine, "data", "16M");
    assert_eq!(past(&engine, "data").revisions_to_keep, Some(2));
    for _ in 0..3 {
        stopped_and_killed(&house, true);
        drop(house.engine());
    }
    assert_eq!(of_kind(&engine, SnapshotKind::Revision).len(), 2);
    // Turned off for this one: what there is of revisions goes, what is pinned stays.
    let revisions = of_kind(&engine, SnapshotKind::Revision);
    let (_, _) = pin(&engine, &revisions[0], Pin::In);
    keep(&engine, RevisionsToKeep::Number(0));
    stopped_and_killed(&house, true);
    drop(house.engine());
    assert_eq!(of_kind(&engine, SnapshotKind::Revision), revisions[..1]);
}

/// Records that a machine has stopped with volume `data`, as a kill right after leaves it.
fn stopped_and_killed(house: &House, clean: bool) -> Timestamp {
    let volume = crate::stops::record(house, "data");
    let stopped = Timestamp::now();
    let mut history = volume.history;
    history.changed = Some(stopped);
    let intent = Intent::AfterStop {
        volume: volume.id,
        machine: MachineId::random(),
        stopped,
        clean,
    };
    let catalogue = Catalogue::open(&house.data_dir()).unwrap();
    catalogue
        .write(|session| {
            session.set_volume_history(volume.id, &history)?;
            session.begin(&intent)
        })
        .unwrap();
    stopped
}

#[test]
fn what_a_killed_stop_left_to_do_is_done_once() {
    let house = House::new();
    let engine = house.engine();
    volume(&engine, "data", "16M");
    take(&engine, "data", "asked");
    keep(&engine, RevisionsToKeep::Number(2));
    // Killed before anything was done.
    let stopped = stopped_and_killed(&house, true);
    let engine = house.engine();
    let revisions = of_kind(&engine, SnapshotKind::Revision);
    assert_eq!(revisions.len(), 1);
    assert!(settled(&house) && described(&house, "data"));
    // Killed when all was done, and only that was not recorded: as if it came twice.
    let catalogue = Catalogue::open(&house.data_dir()).unwrap();
    let volume = crate::stops::record(&house, "data").id;
    let machine = MachineId::random();
    let clean = true;
    let again = Intent::AfterStop {
        volume,
        machine,
        stopped,
        clean,
    };
    catalogue.write(|session| session.begin(&again)).unwrap();
    let engine = house.engine();
    assert_eq!(of_kind(&engine, SnapshotKind::Revision), revisions);

    for _ in 0..2 {
        stopped_and_killed(&house, true);
        drop(house.engine());
    }
    let newer = of_kind(&engine, SnapshotKind::Revision);
    assert_eq!(newer.len(), 2);
    assert!(!newer.contains(&revisions[0]), "the oldest went");
    assert_eq!(of_kind(&engine, SnapshotKind::Requested), ["asked"]);
}

#[test]
fn what_was_not_left_clean_or_has_changed_since_is_no_revision() {
    let house = House::new();
    let engine = house.engine();
    volume(&engine, "data", "16M");
    keep(&engine, RevisionsToKeep::Number(2));
    stopped_and_killed(&house, false);
    drop(house.engine());
    let stopped = stopped_and_killed(&house, true);
    let catalogue = Catalogue::open(&house.data_dir()).unwrap();
    let record = crate::stops::record(&house, "data");
    let mut later = record.history;
    later.changed = Some(stopped + std::time::Duration::from_secs(1));
    catalogue
        .write(|session| session.set_volume_history(record.id, &later))
        .unwrap();
    let engine = house.engine();
    assert!(snapshots(&engine).is_empty());
    assert!(settled(&house));
}

#[test]
fn each_clean_stop_leaves_a_revision_and_the_oldest_go() {
    let Some((house, engine)) = guest(&[
        Action::Write("vdb"),
        Action::WaitForButton,
        Action::PowerOff,
    ]) else {
        return;
    };
    keep(&engine, RevisionsToKeep::Number(1));
    let run = |how| {
        start(&engine, "m");
        console_shows(&engine, &Action::Write("vdb").done());
        stop(&engine, how);
        of_kind(&engine, SnapshotKind::Revision)
    };
    let first = run(GRACEFUL);
    assert_eq!(first.len(), 1, "it is there when the stop returns");
    assert!(settled(&house) && described(&house, "data"));
    let (_, _) = pin(&engine, &first[0], Pin::In);
    take(&engine, "data", "asked");
    let second = run(GRACEFUL);
    assert_eq!(second.len(), 2, "what is pinned does not count");
    assert_eq!(
        run(StopRequest::Forced),
        second,
        "a forced stop leaves none"
    );
    assert!(past(&engine, "data").dirty);
    let third = run(GRACEFUL);
    assert_eq!((third.len(), &third[0]), (2, &first[0]));
    assert!(!third.contains(&second[1]), "the oldest that may went");
    assert!(!past(&engine, "data").dirty);
    assert_eq!(of_kind(&engine, SnapshotKind::Requested), ["asked"]);
    // The root volume keeps none: its pool says so.
    assert!(engine.snapshots(&reference("m-root")).unwrap().is_empty());
}

#[test]
fn a_stop_does_not_fail_where_there_is_no_room_for_a_revision() {
    if !met(&[
        Requirement::Root,
        Requirement::TinyGuest,
        Requirement::Program("qemu-system-x86_64"),
    ]) {
        return;
    }
    let filesystem = LoopFilesystem::new(LoopKind::Tmpfs, Bytes::from_mib(24));
    let house = House::new();
    let engine = house.engine();
    house.import_tiny(&engine, &[Action::WaitForButton, Action::PowerOff]);
    let small = pool_on(&engine, "small", &filesystem);
    let data = volume_in(&engine, &small, "data", 16);
    write_into(&data, 0, &vec![1; 15 << 20]);
    keep(&engine, RevisionsToKeep::Number(1));
    engine
        .deploy(&attaching(plan("tiny", "m"), &["data"]))
        .unwrap();
    start(&engine, "m");
    house.notices();
    stop(&engine, GRACEFUL);
    let notices = house.notices();
    let told = |notice: &Notice| matches!(notice, Notice::NoRevision { .. });
    assert!(notices.iter().any(told), "{notices:?}");
    assert!(snapshots(&engine).is_empty() && settled(&house));
    assert!(!past(&engine, "data").dirty);
    // And it starts again.
    start(&engine, "m");
}

#[test]
fn a_clone_is_outdated_when_its_source_has_changed_since() {
    let house = House::new();
    let engine = house.engine();
    volume(&engine, "data", "16M");
    take(&engine, "data", "one");
    clone(&engine, None, "now");
    clone(&engine, Some("one"), "then");
    assert_eq!(past(&engine, "data").outdated, None, "it is no clone");
    for copy in ["now", "then"] {
        let past = past(&engine, copy);
        assert_eq!(past.outdated, Some(false), "{copy}");
        let origin = past.origin.unwrap();
        assert_eq!(origin.volume.unwrap().as_str(), "data");
        assert!(described(&house, copy), "{copy}");
    }
    let _grown = engine
        .resize_volume(&reference("data"), Bytes::from_mib(32), Grow::Device)
        .unwrap();
    assert!(described(&house, "data"));
    clone(&engine, None, "newer");
    for (copy, outdated) in [("now", true), ("then", true), ("newer", false)] {
        assert_eq!(past(&engine, copy).outdated, Some(outdated), "{copy}");
    }
    let _back = engine
        .revert_volume(&reference("data"), Some(&name("one")), Replaced::Discard)
        .unwrap();
    assert_eq!(past(&engine, "newer").outdated, Some(true));
    engine.delete_volume(&reference("data")).unwrap();
    let orphan = past(&engine, "newer");
    assert_eq!(
        (orphan.outdated, orphan.origin.unwrap().volume),
        (None, None)
    );
}

#[test]
fn a_clone_of_what_a_machine_writes_to_is_outdated_already() {
    let Some((_house, engine)) = guest(&[Action::Count]) else {
        return;
    };
    start(&engine, "m");
    take(&engine, "data", "one");
    clone(&engine, Some("one"), "copy");
    assert_eq!(past(&engine, "copy").outdated, Some(true));
    stop(&engine, StopRequest::Forced);
    assert_eq!(past(&engine, "copy").outdated, Some(true));
    clone(&engine, None, "torn");
    let torn = past(&engine, "torn");
    assert_eq!((torn.outdated, torn.dirty), (Some(false), true));
    let _back = engine
        .revert_volume(&reference("data"), None, Replaced::Keep)
        .unwrap();
    assert!(!past(&engine, "data").dirty, "what was torn was replaced");
}
