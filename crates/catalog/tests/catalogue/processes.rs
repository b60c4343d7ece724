//! Several processes on one catalogue. A child is this very test program, told by a variable
//! what to be.

use std::collections::BTreeSet;
use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use sistemo_catalog::{CatalogError, Catalogue, Intent};
use sistemo_host::program::Program;

use crate::fixture::volume;

const PART: &str = "SISTEMO_CATALOG_TEST_PART";
const DATA_DIR: &str = "SISTEMO_CATALOG_TEST_DATA_DIR";
const OWN_VOLUMES: usize = 20;
const CONTESTED_VOLUMES: usize = 20;

fn child(part: &str, data_dir: &Path) -> Program {
    Program::at(&env::current_exe().unwrap())
        .args([
            "--exact",
            "processes::a_child_plays_its_part",
            "--nocapture",
        ])
        .env(PART, part)
        .env(DATA_DIR, data_dir)
}

/// Does nothing but in a child.
#[test]
fn a_child_plays_its_part() {
    let Some(data_dir) = env::var_os(DATA_DIR).map(PathBuf::from) else {
        return;
    };
    match env::var(PART).unwrap().as_str() {
        "hang in a transaction" => hang_in_a_transaction(&data_dir),
        "write pairs" => write_pairs(&data_dir),
        own_name => create_volumes(&data_dir, own_name),
    }
}

fn create_volumes(data_dir: &Path, own_name: &str) {
    for number in 0..OWN_VOLUMES.max(CONTESTED_VOLUMES) {
        // As a command does: open, write, close.
        let catalogue = Catalogue::open(data_dir).unwrap();
        let own = volume(&format!("{own_name}-{number}"));
        catalogue.write(|tx| tx.insert_volume(&own)).unwrap();
        let contested = volume(&format!("contested-{number}"));
        match catalogue.write(|tx| tx.insert_volume(&contested)) {
            Ok(()) | Err(CatalogError::NameTaken { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

fn hang_in_a_transaction(data_dir: &Path) {
    let catalogue = Catalogue::open(data_dir).unwrap();
    let half = volume("half");
    catalogue
        .write(|tx| -> Result<(), CatalogError> {
            tx.insert_volume(&half)?;
            tx.begin(&Intent::CreateVolume { volume: half.id })?;
            announce(data_dir);
            thread::sleep(Duration::from_secs(60));
            Ok(())
        })
        .unwrap();
}

fn write_pairs(data_dir: &Path) {
    let catalogue = Catalogue::open(data_dir).unwrap();
    announce(data_dir);
    loop {
        let made = volume(&format!("v{}", sistemo_model::VolumeId::random().simple()));
        catalogue
            .write(|tx| {
                tx.insert_volume(&made)?;
                tx.begin(&Intent::CreateVolume { volume: made.id })
            })
            .unwrap();
    }
}

fn announce(data_dir: &Path) {
    File::create(data_dir.join("ready")).unwrap();
}

fn await_announcement(data_dir: &Path) {
    let started = Instant::now();
    let ready = data_dir.join("ready");
    while !ready.exists() {
        assert!(started.elapsed() < Duration::from_secs(30), "no child");
        thread::sleep(Duration::from_millis(2));
    }
    std::fs::remove_file(ready).unwrap();
}

#[test]
fn processes_that_create_volumes_at_once_all_succeed_with_unique_names() {
    const CHILDREN: usize = 8;
    let home = tempfile::tempdir().unwrap();
    // The catalogue is not there yet: they make and migrate it at once, too.
    thread::scope(|scope| {
        for number in 0..CHILDREN {
            let program = child(&format!("child{number}"), home.path());
            scope.spawn(move || program.run().unwrap());
        }
    });
    let catalogue = Catalogue::open(home.path()).unwrap();
    let volumes = catalogue.read(|s| s.volumes()).unwrap();
    let names: BTreeSet<_> = volumes.iter().map(|volume| &volume.name).collect();
    assert_eq!(names.len(), volumes.len());
    assert_eq!(volumes.len(), CHILDREN * OWN_VOLUMES + CONTESTED_VOLUMES);
    assert!(catalogue.check().unwrap().is_empty());
}

#[test]
fn a_process_killed_in_a_transaction_leaves_nothing_of_it_and_holds_nobody_up() {
    let home = tempfile::tempdir().unwrap();
    let catalogue = Catalogue::open(home.path()).unwrap();
    let mut hanging = child("hang in a transaction", home.path()).spawn().unwrap();
    await_announcement(home.path());
    hanging.kill();

    let started = Instant::now();
    catalogue
        .write(|tx| tx.insert_volume(&volume("half")))
        .unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));
    let intents = catalogue.read(|s| s.intents()).unwrap();
    assert!(intents.is_empty());
    assert_eq!(catalogue.read(|s| s.all_volumes()).unwrap().len(), 1);
}

#[test]
fn killed_writers_never_leave_half_a_transaction() {
    let home = tempfile::tempdir().unwrap();
    let mut last = 0;
    for round in 0..10 {
        let mut writer = child("write pairs", home.path()).spawn().unwrap();
        await_announcement(home.path());
        thread::sleep(Duration::from_millis(15 + 3 * round));
        writer.kill();

        let catalogue = Catalogue::open(home.path()).unwrap();
        let (volumes, intents) = catalogue
            .read(|s| Ok::<_, CatalogError>((s.all_volumes()?, s.intents()?)))
            .unwrap();
        let made: BTreeSet<_> = volumes.iter().map(|volume| volume.id).collect();
        let intended: BTreeSet<_> = intents
            .iter()
            .flat_map(|(_, intent)| intent.volumes())
            .collect();
        assert_eq!(made, intended);
        assert!(made.len() >= last, "what was committed is gone");
        last = made.len();
        assert!(catalogue.check().unwrap().is_empty());
    }
    assert!(last > 0, "no writer got anywhere");
}
