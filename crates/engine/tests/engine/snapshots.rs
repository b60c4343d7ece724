//! Snapshots: a volume as it was, and the way back.

use sistemo::clones::NewClone;
use sistemo::model::{Bytes, SnapshotName};
use sistemo::snapshots::Replaced;
use sistemo::volumes::Grow;
use sistemo::{Engine, Error, Notice};
use sistemo_catalog::{Catalogue, Intent};

use crate::fixture::{
    House, MIB, attaching, holds, plan, pool_on, reference, reflinks, volume, volume_in, write_into,
};

fn name(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

fn take(engine: &Engine, volume: &str, snapshot: &str) {
    let taken = engine.take_snapshot(&reference(volume), Some(name(snapshot)));
    assert_eq!(taken.unwrap().snapshot.name, name(snapshot));
}

fn names(engine: &Engine, volume: &str) -> Vec<String> {
    let there = engine.snapshots(&reference(volume)).unwrap();
    there.iter().map(|it| it.name.to_string()).collect()
}

fn grow(engine: &Engine, volume: &str, mib: u64) {
    let to = Bytes::from_mib(mib);
    engine
        .resize_volume(&reference(volume), to, Grow::Device)
        .unwrap();
}

#[test]
fn a_volume_goes_back_to_its_snapshot_with_its_size() {
    let Some(filesystem) = reflinks() else { return };
    let house = House::new();
    let engine = house.engine();
    let fast = pool_on(&engine, "fast", &filesystem);
    let default = "default".parse().unwrap();
    for (pool, data) in [(&default, "copied"), (&fast, "reflinked")] {
        let made = volume_in(&engine, pool, data, 16);
        write_into(&made, 5 * MIB, b"earlier");
        take(&engine, data, "one");
        write_into(&made, 5 * MIB, b"changed");
        grow(&engine, data, 32);
        let reverted =
            engine.revert_volume(&reference(data), Some(&name("one")), Replaced::Discard);
        let reverted = reverted.unwrap();
        assert_eq!(reverted.volume.size_bytes, 16 * MIB);
        assert_eq!(reverted.volume.reason, None);
        assert!(holds(&reverted.volume, 5 * MIB, b"earlier"));
        assert_eq!(names(&engine, data), ["one"], "snapshots stay");
        // And it is a volume like any other.
        grow(&engine, data, 64);
        let again = house.engine().volume(&reference(data)).unwrap();
        assert_eq!((again.size_bytes, again.reason), (64 * MIB, None));
    }
}

#[test]
fn what_a_snapshot_alone_takes_is_told_of_one_volume_however_its_pool_knows() {
    let Some(filesystem) = reflinks() else { return };
    let house = House::new();
    let engine = house.engine();
    let fast = pool_on(&engine, "fast", &filesystem);
    let default = "default".parse().unwrap();
    // A copy takes its own space at once, a reflink once the volume holds something else.
    for (pool, data, at_once) in [(&default, "copied", true), (&fast, "reflinked", false)] {
        let made = volume_in(&engine, pool, data, 64);
        let piece = vec![7; 1 << 20];
        write_into(&made, 48 * MIB, &piece);
        take(&engine, data, "one");
        let alone = || {
            let details = engine.volume_details(&reference(data)).unwrap();
            let snapshots = details.snapshots.unwrap();
            assert_eq!(snapshots.len(), 1);
            snapshots[0].alone_bytes.unwrap()
        };
        assert_eq!(alone() >= MIB, at_once, "{data}");
        write_into(&made, 48 * MIB, &vec![8; 1 << 20]);
        assert!(alone() >= MIB, "{data}");
    }
}

#[test]
fn without_a_name_it_is_the_newest() {
    let house = House::new();
    let engine = house.engine();
    let data = volume(&engine, "data", "16M");
    for word in [b"first", b"later"] {
        write_into(&data, MIB, word);
        take(&engine, "data", std::str::from_utf8(word).unwrap());
    }
    write_into(&data, MIB, b"wrong");
    let reverted = engine
        .revert_volume(&reference("data"), None, Replaced::Discard)
        .unwrap();
    assert_eq!(reverted.snapshot, name("later"));
    assert!(holds(&reverted.volume, MIB, b"later"));
}

#[test]
fn names_are_made_up_and_never_taken_twice() {
    let house = House::new();
    let engine = house.engine();
    volume(&engine, "data", "16M");
    for _ in 0..3 {
        engine.take_snapshot(&reference("data"), None).unwrap();
    }
    take(&engine, "data", "named");
    let there = names(&engine, "data");
    assert_eq!(there.len(), 4, "{there:?}");
    let error = engine
        .take_snapshot(&reference("data"), Some(name("named")))
        .unwrap_err();
    assert!(matches!(error, Error::SnapshotTaken { .. }), "{error}");
    let details = engine.volume_details(&reference("data")).unwrap();
    assert_eq!(details.snapshots.unwrap().len(), 4);
}

#[test]
fn what_is_not_there_is_named() {
    let house = House::new();
    let engine = house.engine();
    volume(&engine, "data", "16M");
    let data = reference("data");
    let none = name("none");
    for (error, text) in [
        (
            engine
                .revert_volume(&data, Some(&none), Replaced::Discard)
                .unwrap_err(),
            "volume data has no snapshot none",
        ),
        (
            engine.delete_snapshot(&data, &none).unwrap_err(),
            "volume data has no snapshot none",
        ),
        (
            engine
                .revert_volume(&data, None, Replaced::Discard)
                .unwrap_err(),
            "volume data has no snapshots",
        ),
    ] {
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn a_snapshot_goes_and_the_others_stay() {
    let house = House::new();
    let engine = house.engine();
    let data = volume(&engine, "data", "16M");
    write_into(&data, MIB, b"data");
    for snapshot in ["one", "two", "three"] {
        take(&engine, "data", snapshot);
    }
    engine
        .delete_snapshot(&reference("data"), &name("two"))
        .unwrap();
    assert_eq!(names(&engine, "data"), ["one", "three"]);
    assert!(holds(&data, MIB, b"data"));
    engine
        .revert_volume(&reference("data"), Some(&name("one")), Replaced::Discard)
        .unwrap();
}

#[test]
fn snapshots_block_nothing_and_go_with_their_volume() {
    let house = House::new();
    let engine = house.engine();
    volume(&engine, "data", "16M");
    take(&engine, "data", "one");
    grow(&engine, "data", 32);
    let new = "renamed".parse().unwrap();
    engine.rename_volume(&reference("data"), new).unwrap();
    assert_eq!(names(&engine, "renamed"), ["one"]);
    engine.destroy_volume(&reference("renamed")).unwrap();
    assert_eq!(house.volume_files(), [""; 0]);
}

#[test]
fn a_volume_that_goes_back_alone_is_worth_a_word() {
    let house = House::new();
    let engine = house.engine();
    house.import_disk(&engine, MIB);
    volume(&engine, "data", "16M");
    engine
        .deploy(&attaching(plan("disk", "m"), &["data"]))
        .unwrap();
    take(&engine, "data", "one");
    house.notices();
    engine
        .revert_volume(&reference("data"), None, Replaced::Discard)
        .unwrap();
    let notices = house.notices();
    assert!(
        matches!(notices.as_slice(), [Notice::RevertedAlone { .. }]),
        "{notices:?}"
    );
}

#[test]
fn a_revert_that_was_killed_leaves_the_size_that_the_volume_has() {
    for reverted in [true, false] {
        let house = House::new();
        let engine = house.engine();
        let data = volume(&engine, "data", "16M");
        take(&engine, "data", "one");
        grow(&engine, "data", 32);
        // As the kill leaves it: the data is in place or not, and the description is the old one.
        let path = data.path.as_ref().unwrap();
        let description = path.with_extension("json");
        let larger = std::fs::read(&description).unwrap();
        if reverted {
            engine
                .revert_volume(&reference("data"), None, Replaced::Discard)
                .unwrap();
            sistemo_host::directory::split(&description)
                .and_then(|(directory, name)| directory.replace(&name, &larger))
                .unwrap();
        }
        let catalogue = Catalogue::open(&house.data_dir()).unwrap();
        let intent = Intent::RevertVolume { volume: data.id };
        catalogue
            .write(|session| {
                session.set_volume_size(data.id, Bytes::from_mib(32))?;
                session.begin(&intent)
            })
            .unwrap();
        house.notices();
        let engine = house.engine();
        let notices = house.notices();
        assert!(
            matches!(notices.as_slice(), [Notice::Recovered { .. }]),
            "{notices:?}"
        );
        let found = engine.volume(&reference("data")).unwrap();
        let mib = if reverted { 16 } else { 32 };
        assert_eq!((found.size_bytes, found.reason), (mib * MIB, None));
        // Nothing is left to settle, and the volume can be worked with.
        grow(&engine, "data", 64);
        engine
            .clone_volume(&NewClone {
                source: reference("data"),
                snapshot: None,
                name: "copy".parse().unwrap(),
                pool: None,
            })
            .unwrap();
    }
}
