use sistemo_catalog::{CatalogError, Kind, Transaction};
use sistemo_model::{
    Boot, Bytes, CloneOrigin, Digest, Filesystem, History, Lifecycle, Reference, Role,
    SnapshotMark, Trashed, VolumeId,
};

use crate::fixture::{Home, Result, long_ago, volume};

#[test]
fn a_volume_reads_back_as_it_was_recorded() {
    let home = Home::new();
    let plain = volume("pgdata");
    let mut bootable = volume("db1-root");
    bootable.role = Role::Root;
    bootable.filesystem = Filesystem::None;
    bootable.size = Bytes::new(i64::MAX as u64 - 511);
    bootable.boot = Some(Boot {
        kernel: Digest::from_bytes([1; 32]),
        initrd: Some(Digest::from_bytes([2; 32])),
    });
    home.write(|tx| {
        tx.insert_volume(&plain)?;
        tx.insert_volume(&bootable)
    });
    assert_eq!(home.read(|s| s.volume(plain.id)), plain);
    assert_eq!(home.read(|s| s.volume(bootable.id)), bootable);
    assert_eq!(home.read(|s| s.volumes()), [bootable, plain]);
}

#[test]
fn a_volume_is_listed_only_while_it_is_ready() {
    let home = Home::new();
    let mut creating = volume("new");
    creating.lifecycle = Lifecycle::Creating;
    home.write(|tx| tx.insert_volume(&creating));
    let listed = || home.read(|s| s.volumes()).len();
    let by_name = Reference::from("new");
    assert_eq!(listed(), 0);
    assert!(home.catalogue.read(|s| s.find_volume(&by_name)).is_err());

    home.write(|tx| tx.set_volume_lifecycle(creating.id, Lifecycle::Ready));
    assert_eq!(listed(), 1);
    assert_eq!(home.read(|s| s.find_volume(&by_name)).id, creating.id);

    home.write(|tx| tx.set_volume_lifecycle(creating.id, Lifecycle::Deleting));
    assert_eq!(listed(), 0);
    assert_eq!(home.read(|s| s.all_volumes()).len(), 1);

    let error = home.refused(|tx| tx.set_volume_lifecycle(creating.id, Lifecycle::Ready));
    assert_eq!(
        error.to_string(),
        "volume new is deleting and cannot become ready"
    );
    home.write(|tx| tx.delete_volume(creating.id));
    assert!(home.read(|s| s.all_volumes()).is_empty());
}

#[test]
fn a_taken_name_is_refused_whatever_the_stage_of_its_owner() {
    let home = Home::new();
    let mut creating = volume("pgdata");
    creating.lifecycle = Lifecycle::Creating;
    home.write(|tx| tx.insert_volume(&creating));
    let other = home.add_volume("other");

    for error in [
        home.refused(|tx| tx.insert_volume(&volume("pgdata"))),
        home.refused(|tx| tx.rename_volume(other, &creating.name)),
    ] {
        assert_eq!(error.to_string(), "the volume name `pgdata` is taken");
    }
    home.write(|tx| tx.rename_volume(other, &"other".parse().unwrap()));
}

#[test]
fn what_is_known_of_a_past_reads_back_as_it_was_recorded() {
    let home = Home::new();
    let id = home.add_volume("pgdata");
    assert!(home.read(|s| s.volume(id)).history.is_empty());
    let mut history = History {
        revisions_to_keep: Some(3),
        origin: Some(CloneOrigin {
            volume: VolumeId::random(),
            as_of: long_ago(),
        }),
        changed: Some(long_ago()),
        dirty: true,
        trashed: Some(Trashed {
            at: long_ago(),
            until: long_ago(),
        }),
        ..History::default()
    };
    let mark = SnapshotMark::default();
    history.marks.insert("monday".parse().unwrap(), mark);
    home.write(|tx| tx.set_volume_history(id, &history));
    let volume = home.read(|s| s.volume(id));
    assert_eq!(volume.history, history);
    assert!(volume.modified > long_ago());
    let gone = home.refused(|tx| tx.set_volume_history(VolumeId::random(), &history));
    assert!(matches!(gone, CatalogError::NotFound { .. }), "{gone}");
}

#[test]
fn what_is_in_the_trash_gives_its_name_away_and_gets_it_back_while_it_is_free() {
    let home = Home::new();
    let (old, other) = (home.add_volume("pgdata"), volume("pgdata"));
    home.write(|tx| tx.set_volume_lifecycle(old, Lifecycle::Trashed));
    home.write(|tx| tx.set_volume_lifecycle(old, Lifecycle::Ready));
    home.write(|tx| tx.set_volume_lifecycle(old, Lifecycle::Trashed));
    assert!(home.read(|s| s.volumes()).is_empty());

    home.write(|tx| tx.insert_volume(&other));
    let found = home.read(|s| s.find_volume(&Reference::from("pgdata")));
    assert_eq!(found.id, other.id);
    let error = home.refused(|tx| tx.set_volume_lifecycle(old, Lifecycle::Ready));
    assert_eq!(error.to_string(), "the volume name `pgdata` is taken");
    // Its ID stays its own.
    let error = home.refused(|tx| tx.rename_volume(other.id, &old.to_string().parse().unwrap()));
    assert!(matches!(error, CatalogError::NameTaken { .. }), "{error}");
    home.write(|tx| tx.rename_volume(other.id, &"other".parse().unwrap()));
    home.write(|tx| tx.set_volume_lifecycle(old, Lifecycle::Ready));
}

#[test]
fn what_is_in_the_trash_is_found_there_as_others_are_among_their_like() {
    let home = Home::new();
    let id = home.add_volume("pgdata");
    let find = |text: &str| {
        let reference = Reference::from(text);
        let found = home.catalogue.read(|s| s.find_trashed_volume(&reference));
        found.map(|volume| volume.id)
    };
    let gone = find("pgdata").unwrap_err();
    assert!(matches!(gone, CatalogError::NotFound { .. }), "{gone}");

    home.write(|tx| tx.trash_volume(id, until("2026-01-02T00:00:00Z")));
    for text in ["pgdata", &id.to_string(), &id.to_string()[..8]] {
        assert_eq!(find(text).unwrap(), id, "{text}");
    }
    // Two of one name can only be told apart by their IDs.
    let other = home.add_volume("pgdata");
    home.write(|tx| tx.trash_volume(other, until("2026-01-03T00:00:00Z")));
    let error = find("pgdata").unwrap_err();
    let CatalogError::Ambiguous { candidates, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(candidates.len(), 2);
    assert_eq!(find(&other.to_string()).unwrap(), other);

    home.write(|tx| tx.restore_volume(other, &"pgdata-2".parse().unwrap()));
    let restored = home.read(|s| s.find_volume(&Reference::from("pgdata-2")));
    assert_eq!((restored.id, restored.history.trashed), (other, None));
    let left: Vec<_> = home.read(|s| s.trash()).iter().map(|v| v.id).collect();
    assert_eq!(left, [id]);

    // A restore that is taken back gives it the name it had, though another has that now.
    let third = home.add_volume("pgdata");
    home.write(|tx| {
        tx.trash_volume(other, until("2026-01-03T00:00:00Z"))?;
        tx.rename_volume(other, &"pgdata".parse().unwrap())
    });
    let taken = home.refused(|tx| tx.restore_volume(other, &"pgdata".parse().unwrap()));
    assert!(matches!(taken, CatalogError::NameTaken { .. }), "{taken}");
    let found = home.read(|s| s.find_volume(&Reference::from("pgdata")));
    assert_eq!(found.id, third);
}

#[test]
fn what_is_in_the_trash_goes_though_another_has_its_name() {
    let home = Home::new();
    let id = home.add_volume("pgdata");
    home.write(|tx| tx.trash_volume(id, until("2026-01-02T00:00:00Z")));
    let other = home.add_volume("pgdata");
    home.write(|tx| tx.set_volume_lifecycle(id, Lifecycle::Deleting));
    home.write(|tx| tx.delete_volume(id));
    assert_eq!(home.read(|s| s.all_volumes()).len(), 1);
    let error = home.refused(|tx| tx.trash_volume(id, until("2026-01-02T00:00:00Z")));
    assert!(matches!(error, CatalogError::NotFound { .. }), "{error}");
    home.read(|s| s.volume(other));
}

#[test]
fn trash_is_due_when_its_time_is_over() {
    let home = Home::new();
    let (first, second) = (home.add_volume("first"), home.add_volume("second"));
    home.add_volume("third");
    home.write(|tx| tx.trash_volume(second, until("2026-01-03T00:00:00Z")));
    home.write(|tx| tx.trash_volume(first, until("2026-01-02T00:00:00Z")));
    let due = |now: &str| {
        let due = home.read(|s| s.expired_trash(now.parse().unwrap()));
        due.iter().map(|volume| volume.id).collect::<Vec<_>>()
    };
    assert_eq!(due("2026-01-01T23:59:59.9Z"), []);
    assert_eq!(due("2026-01-02T00:00:00Z"), [first]);
    assert_eq!(due("2026-01-03T00:00:01Z"), [first, second]);
}

fn until(time: &str) -> Trashed {
    Trashed {
        at: long_ago(),
        until: time.parse().unwrap(),
    }
}

#[test]
fn a_name_equal_to_the_id_of_another_is_refused_and_the_other_way_round() {
    let home = Home::new();
    let id = home.add_volume("pgdata");
    let id_as_name = id.to_string();
    let named = home.refused(|tx| tx.insert_volume(&volume(&id_as_name)));
    assert!(matches!(named, CatalogError::NameTaken { .. }), "{named}");
    let other = home.add_volume("other");
    let renamed = home.refused(|tx| tx.rename_volume(other, &id_as_name.parse().unwrap()));
    assert!(
        matches!(renamed, CatalogError::NameTaken { .. }),
        "{renamed}"
    );

    let future = VolumeId::random();
    home.write(|tx| tx.rename_volume(other, &future.to_string().parse().unwrap()));
    let mut late = volume("late");
    late.id = future;
    let error = home.refused(|tx| tx.insert_volume(&late));
    assert!(matches!(error, CatalogError::IdTaken { .. }), "{error}");
}

#[test]
fn a_volume_is_found_by_name_then_id_then_the_beginning_of_an_id() {
    let home = Home::new();
    let mut first = volume("first");
    first.id = "a1b2c3d4-5678-4abc-9ef0-123456789abc".parse().unwrap();
    let mut second = volume("second");
    second.id = "a1b2c3d4-9999-4abc-9ef0-123456789abc".parse().unwrap();
    home.write(|tx| {
        tx.insert_volume(&first)?;
        tx.insert_volume(&second)
    });
    let find = |text: &str| {
        home.catalogue
            .read(|s| s.find_volume(&Reference::from(text)))
    };

    assert_eq!(find("second").unwrap(), second);
    assert_eq!(find("a1b2c3d4-5678-4abc-9ef0-123456789abc").unwrap(), first);
    assert_eq!(find("a1b2c3d4-9").unwrap(), second);
    match find("a1b2c3d4").unwrap_err() {
        CatalogError::Ambiguous {
            kind, candidates, ..
        } => {
            let names: Vec<_> = candidates.iter().map(|c| c.name.as_str()).collect();
            assert_eq!((kind, names), (Kind::Volume, vec!["first", "second"]));
        }
        error => panic!("{error}"),
    }
    for missing in ["a1b2c3d", "a1b2c3d5", "sec", "", "%", "a1b2c3d4%"] {
        let error = find(missing).unwrap_err();
        let expected = format!("there is no volume `{missing}`");
        assert_eq!(error.to_string(), expected);
    }

    // A name goes before an ID that begins like it.
    let third = home.add_volume("a1b2c3d4");
    assert_eq!(find("a1b2c3d4").unwrap().id, third);
}

type Change = fn(&Transaction<'_>, VolumeId) -> Result<()>;

#[test]
fn every_change_of_a_volume_is_dated() {
    let home = Home::new();
    let changes: [Change; 4] = [
        |tx, id| tx.rename_volume(id, &"renamed".parse().unwrap()),
        |tx, id| tx.set_volume_size(id, Bytes::from_mib(128)),
        |tx, id| tx.set_volume_pool(id, &"fast".parse().unwrap()),
        |tx, id| tx.set_volume_lifecycle(id, Lifecycle::Deleting),
    ];
    for change in changes {
        let id = home.add_volume(&VolumeId::random().short());
        home.write(|tx| change(tx, id));
        let after = home.read(|s| s.volume(id));
        assert!(after.modified > long_ago());
        assert_eq!(after.created, long_ago());
        home.write(|tx| tx.delete_volume(id));
    }
}

#[test]
fn a_volume_that_is_not_there_cannot_be_changed() {
    let home = Home::new();
    let id = VolumeId::random();
    for error in [
        home.refused(|tx| tx.volume(id)),
        home.refused(|tx| tx.rename_volume(id, &"new".parse().unwrap())),
        home.refused(|tx| tx.set_volume_size(id, Bytes::from_mib(1))),
        home.refused(|tx| tx.set_volume_pool(id, &"fast".parse().unwrap())),
        home.refused(|tx| tx.set_volume_lifecycle(id, Lifecycle::Deleting)),
        home.refused(|tx| tx.delete_volume(id)),
    ] {
        assert!(matches!(error, CatalogError::NotFound { .. }), "{error}");
    }
}

#[test]
fn a_size_beyond_what_a_file_can_have_is_refused() {
    let home = Home::new();
    let mut huge = volume("huge");
    huge.size = Bytes::new(u64::MAX);
    assert!(home.catalogue.write(|tx| tx.insert_volume(&huge)).is_err());
    huge.size = Bytes::new(0);
    assert!(home.catalogue.write(|tx| tx.insert_volume(&huge)).is_err());
    assert!(home.read(|s| s.all_volumes()).is_empty());
}

#[test]
fn an_attached_volume_is_not_deleted() {
    let home = Home::new();
    let (pgdata, db1) = (home.add_volume("pgdata"), home.add_machine("db1", 2201));
    home.write(|tx| tx.attach(db1, pgdata, 1, sistemo_model::Access::ReadWrite));
    for error in [
        home.refused(|tx| tx.set_volume_lifecycle(pgdata, Lifecycle::Deleting)),
        home.refused(|tx| tx.delete_volume(pgdata)),
    ] {
        assert_eq!(error.to_string(), "volume pgdata is attached to db1");
    }
}
