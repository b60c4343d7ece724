use sistemo_catalog::CatalogError;
use sistemo_model::{Access, Attachment, Lifecycle, MachineId, VolumeId};

use crate::fixture::{Home, long_ago};

#[test]
fn a_volume_is_attached_to_one_machine_at_a_time() {
    let home = Home::new();
    let pgdata = home.add_volume("pgdata");
    let (db1, db2) = (home.add_machine("db1", 2201), home.add_machine("db2", 2202));
    home.write(|tx| tx.attach(db1, pgdata, 1, Access::ReadWrite));
    for machine in [db1, db2] {
        let error = home.refused(|tx| tx.attach(machine, pgdata, 2, Access::ReadOnly));
        assert_eq!(error.to_string(), "volume pgdata is attached to db1");
    }
    let error = home.refused(|tx| tx.detach(db2, pgdata));
    assert_eq!(error.to_string(), "volume pgdata is not attached to db2");

    home.write(|tx| tx.detach(db1, pgdata));
    home.write(|tx| tx.attach(db2, pgdata, 1, Access::ReadOnly));
    let holding = home.read(|s| s.holder_of(pgdata)).unwrap();
    assert_eq!(holding.machine_name.as_str(), "db2");
    assert_eq!(holding.attachment.access, Access::ReadOnly);
    assert!(home.read(|s| s.machine(db1)).modified > long_ago());
}

#[test]
fn a_position_holds_one_volume() {
    let home = Home::new();
    let db1 = home.add_machine("db1", 2201);
    let (a, b) = (home.add_volume("a"), home.add_volume("b"));
    home.write(|tx| tx.attach(db1, a, 1, Access::ReadWrite));
    let error = home.refused(|tx| tx.attach(db1, b, 1, Access::ReadWrite));
    assert_eq!(
        error.to_string(),
        "position 1 of machine db1 holds volume a"
    );
}

#[test]
fn volumes_are_listed_by_position_and_gaps_are_filled_first() {
    let home = Home::new();
    let db1 = home.add_machine("db1", 2201);
    let volumes: Vec<VolumeId> = ["c", "b", "a"].map(|name| home.add_volume(name)).into();
    for (volume, position) in volumes.iter().zip([2, 0, 1]) {
        home.write(|tx| tx.attach(db1, *volume, position, Access::ReadWrite));
    }
    let names = || -> Vec<String> {
        let held = home.read(|s| s.attachments_of(db1));
        held.iter()
            .map(|held| held.volume_name.to_string())
            .collect()
    };
    assert_eq!(names(), ["b", "a", "c"]);
    assert_eq!(home.read(|s| s.next_position(db1)), 3);
    home.write(|tx| tx.detach(db1, volumes[2]));
    assert_eq!(home.read(|s| s.next_position(db1)), 1);
    // The root's place is not for data volumes.
    home.write(|tx| tx.detach(db1, volumes[1]));
    assert_eq!(home.read(|s| s.next_position(db1)), 1);
}

#[test]
fn a_machine_holds_26_volumes_and_no_more() {
    let home = Home::new();
    let db1 = home.add_machine("db1", 2201);
    for position in 0..Attachment::LIMIT {
        let volume = home.add_volume(&format!("v{position}"));
        home.write(|tx| tx.attach(db1, volume, position, Access::ReadWrite));
    }
    let one_more = home.add_volume("one-more");
    for error in [
        home.refused(|tx| tx.next_position(db1)),
        home.refused(|tx| tx.attach(db1, one_more, Attachment::LIMIT, Access::ReadWrite)),
    ] {
        assert!(matches!(error, CatalogError::NoPosition { .. }), "{error}");
    }
}

#[test]
fn what_was_deleted_is_not_attached() {
    let home = Home::new();
    let (going, staying) = (home.add_volume("going"), home.add_volume("staying"));
    let trashed = home.add_volume("trashed");
    let (db1, gone) = (
        home.add_machine("db1", 2201),
        home.add_machine("gone", 2202),
    );
    home.write(|tx| {
        tx.set_volume_lifecycle(going, Lifecycle::Deleting)?;
        tx.set_volume_lifecycle(trashed, Lifecycle::Trashed)?;
        tx.set_machine_lifecycle(gone, Lifecycle::Deleting)
    });
    for (machine, volume) in [(db1, going), (db1, trashed), (gone, staying)] {
        let error = home.refused(|tx| tx.attach(machine, volume, 1, Access::ReadWrite));
        assert!(
            matches!(error, CatalogError::BeingDeleted { .. }),
            "{error}"
        );
    }
}

#[test]
fn every_attachment_comes_in_one_query() {
    let home = Home::new();
    let (b, a) = (home.add_machine("b", 2201), home.add_machine("a", 2202));
    for (machine, name, position) in [(b, "x", 1), (b, "y", 0), (a, "z", 3)] {
        let volume = home.add_volume(name);
        home.write(|tx| tx.attach(machine, volume, position, Access::ReadWrite));
    }
    let all = home.read(|s| s.all_attachments());
    let seen: Vec<_> = all
        .iter()
        .map(|h| (h.machine_name.as_str(), h.attachment.volume_name.as_str()))
        .collect();
    assert_eq!(seen, [("a", "z"), ("b", "y"), ("b", "x")]);
}

#[test]
fn what_is_not_there_is_neither_attached_nor_detached() {
    let home = Home::new();
    let (pgdata, db1) = (home.add_volume("pgdata"), home.add_machine("db1", 2201));
    let (no_volume, no_machine) = (VolumeId::random(), MachineId::random());
    for error in [
        home.refused(|tx| tx.attach(no_machine, pgdata, 1, Access::ReadWrite)),
        home.refused(|tx| tx.attach(db1, no_volume, 1, Access::ReadWrite)),
        home.refused(|tx| tx.detach(no_machine, pgdata)),
        home.refused(|tx| tx.detach(db1, no_volume)),
        home.refused(|tx| tx.next_position(no_machine)),
    ] {
        assert!(matches!(error, CatalogError::NotFound { .. }), "{error}");
    }
}
