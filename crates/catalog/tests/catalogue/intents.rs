use sistemo_catalog::{CatalogError, Intent};
use sistemo_model::{Bytes, MachineId, Timestamp, VolumeId};

use crate::fixture::Home;

fn one_of_each() -> Vec<Intent> {
    let (volume, machine) = (VolumeId::random(), MachineId::random());
    let root = Some(volume);
    vec![
        Intent::CreateVolume { volume },
        Intent::DeleteVolume { volume },
        Intent::GrowVolume {
            volume,
            from: Bytes::from_mib(1),
            to: Bytes::from_mib(2),
        },
        Intent::DescribeVolume { volume },
        Intent::AfterStop {
            volume,
            machine,
            stopped: Timestamp::now(),
            clean: true,
        },
        Intent::DiscardRoot { volume, machine },
        Intent::RevertVolume { volume },
        Intent::MoveVolume {
            volume,
            from: "slow".parse().unwrap(),
            to: "fast".parse().unwrap(),
        },
        Intent::RemoveMoved {
            volume,
            from: "slow".parse().unwrap(),
        },
        Intent::SnapshotHeld { machine, volume },
        Intent::HoldGuest {
            machine,
            frozen: true,
        },
        Intent::TakeSnapshots {
            volumes: vec![volume, VolumeId::random()],
            snapshot: "nightly".parse().unwrap(),
            created: Timestamp::now(),
        },
        Intent::CreateImageCopy { volume },
        Intent::DeleteImageCopy { volume },
        Intent::DeployMachine { machine, root },
        Intent::DeployMachine {
            machine,
            root: None,
        },
        Intent::CloneMachine {
            machine,
            volumes: vec![volume, VolumeId::random()],
        },
        Intent::DeleteMachine { machine, root },
        Intent::DeleteMachine {
            machine,
            root: None,
        },
    ]
}

#[test]
fn intents_are_found_in_the_order_they_were_begun_until_they_are_finished() {
    let home = Home::new();
    let intents = one_of_each();
    let ids: Vec<_> = intents
        .iter()
        .map(|intent| home.write(|tx| tx.begin(intent)))
        .collect();
    let expected: Vec<_> = ids.iter().copied().zip(intents.iter().cloned()).collect();
    assert_eq!(home.read(|s| s.intents()), expected);
    assert_eq!(home.read(|s| s.intent(ids[2])), Some(intents[2].clone()));

    home.write(|tx| tx.finish(ids[2]));
    home.write(|tx| tx.finish(ids[2]));
    assert_eq!(home.read(|s| s.intent(ids[2])), None);
    assert_eq!(home.read(|s| s.intents()).len(), expected.len() - 1);

    for id in &ids {
        home.write(|tx| tx.finish(*id));
    }
    let later = home.write(|tx| tx.begin(&intents[0]));
    assert!(ids.iter().all(|id| *id < later), "a number was used again");
}

#[test]
fn an_intent_names_the_objects_whose_locks_its_owner_holds() {
    for intent in one_of_each() {
        let locked = intent.volumes().len() + usize::from(intent.machine().is_some());
        let text = format!("{intent:?}");
        let mut named = text.matches("Id(").count();
        if matches!(
            intent,
            Intent::SnapshotHeld { .. } | Intent::AfterStop { .. } | Intent::DiscardRoot { .. }
        ) {
            // A machine is let go whoever has the volume; one that has stopped may start anew.
            named -= 1;
        }
        assert_eq!(locked, named, "{text}");
    }
}

#[test]
fn what_belongs_to_a_stop_is_told_from_other_work() {
    let (volume, machine) = (VolumeId::random(), MachineId::random());
    let follow = [
        Intent::AfterStop {
            volume,
            machine,
            stopped: Timestamp::now(),
            clean: false,
        },
        Intent::DiscardRoot { volume, machine },
        Intent::DeleteMachine {
            machine,
            root: None,
        },
    ];
    for intent in follow {
        assert!(intent.follows_stop_of(machine));
        assert!(!intent.follows_stop_of(MachineId::random()));
    }
    let mut others = one_of_each().into_iter();
    assert!(!others.any(|other| other.follows_stop_of(machine)));
    let deploy = Intent::DeployMachine {
        machine,
        root: None,
    };
    assert!(!deploy.follows_stop_of(machine));
}

#[test]
fn an_intent_of_an_older_version_is_understood() {
    let home = Home::new();
    let volume = VolumeId::random();
    let sql = format!(
        "INSERT INTO intents (intent, created)
         VALUES ('{{\"kind\":\"rename-volume\",\"volume\":\"{volume}\"}}', '')"
    );
    home.plain_sql().execute(&sql, ()).unwrap();
    let found = home.read(|s| s.intents()).pop().unwrap().1;
    assert_eq!(found, Intent::DescribeVolume { volume });
}

#[test]
fn an_intent_of_a_rolled_back_transaction_was_never_begun() {
    let home = Home::new();
    let intent = &one_of_each()[0];
    home.refused(|tx| {
        tx.begin(intent)?;
        tx.volume(VolumeId::random())
    });
    assert!(home.read(|s| s.intents()).is_empty());
}

#[test]
fn an_intent_that_cannot_be_read_is_named() {
    let home = Home::new();
    let sql = "INSERT INTO intents (id, intent, created) VALUES (7, '{\"kind\":\"fly\"}', '')";
    home.plain_sql().execute(sql, ()).unwrap();
    let error = home.catalogue.read(|s| s.intents()).unwrap_err();
    assert!(matches!(error, CatalogError::DamagedRow { .. }), "{error}");
    assert_eq!(
        error.to_string(),
        "column intent of row 7 in the catalogue's table intents is damaged"
    );
}
