//! Killed at any instant: this program is started again as another process, which works until it
//! is killed, and what it leaves is looked at.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use sistemo_host::Changed;
use sistemo_host::program::{Program, Running};
use sistemo_model::{Access, Bytes, CatalogueId, Timestamp, VolumeId};
use sistemo_pools::{Found, Origin, Pool, PoolError, Qcow2Pool};

use crate::scene::{description, name, open, read, scene};

const POOL: &str = "SISTEMO_TEST_POOL";
const CATALOGUE: &str = "SISTEMO_TEST_CATALOGUE";
const DIARY: &str = "SISTEMO_TEST_DIARY";

fn worker(pool: &Path, catalogue: CatalogueId, diary: &Path) -> Running {
    Program::at(&std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "killed::work_until_killed"])
        .env(POOL, pool)
        .env(CATALOGUE, catalogue.to_string())
        .env(DIARY, diary)
        .spawn()
        .unwrap()
}

/// Each volume holds its ID, and its snapshots hold what it was before.
fn mark(pool: &Qcow2Pool, id: VolumeId, round: u8) {
    let mut content = pool.content(id, Access::ReadWrite).unwrap();
    content.write_at(&[round; 4096], 0).unwrap();
    content.write_at(id.to_string().as_bytes(), 70_000).unwrap();
    content.flush().unwrap();
}

#[test]
#[ignore = "a task of another test"]
fn work_until_killed() {
    let Some(path) = std::env::var_os(POOL) else {
        return;
    };
    let catalogue = std::env::var(CATALOGUE).unwrap().parse().unwrap();
    let pool = open(Path::new(&path), catalogue);
    let diary = PathBuf::from(std::env::var_os(DIARY).unwrap());
    let mut diary = OpenOptions::new().append(true).open(diary).unwrap();
    let mut note = |text: &str, id: VolumeId| {
        let line = format!("{text} {id}\n");
        diary.write_all(line.as_bytes()).unwrap();
    };
    let snapshots = pool.snapshots().unwrap();
    loop {
        let made = description(Bytes::from_mib(1));
        pool.draft(&made).unwrap().commit().unwrap();
        mark(&pool, made.id, 1);
        note("made", made.id);
        let first = name("first");
        snapshots
            .take_snapshot(made.id, &first, Timestamp::now(), None, &mut |_, _| {})
            .unwrap();
        note("snapshot", made.id);
        mark(&pool, made.id, 2);
        let clone = description(Bytes::from_mib(2));
        let origin = Origin {
            volume: made.id,
            snapshot: None,
        };
        let clones = pool.clones().unwrap();
        clones.clone_volume(origin, &clone, &mut |_, _| {}).unwrap();
        mark(&pool, clone.id, 3);
        note("cloned", clone.id);
        mark(&pool, made.id, 4);
        snapshots.revert(made.id, &first, &mut |_, _| {}).unwrap();
        note("reverted", made.id);
        note("removing", clone.id);
        let _ = pool.remove(clone.id).unwrap();
        note("removed", clone.id);
        note("deleting", made.id);
        let _ = snapshots.delete_snapshot(made.id, &first).unwrap();
        note("deleted", made.id);
    }
}

#[test]
fn whenever_it_is_killed_nothing_made_is_lost_and_no_layer_stays() {
    let scene = scene();
    let home = tempfile::tempdir().unwrap();
    let diary = home.path().join("diary");
    File::create(&diary).unwrap();
    for _ in 0..40 {
        let mut worker = worker(scene.pool.directory(), scene.catalogue, &diary);
        let chance = u64::from_str_radix(&VolumeId::random().short(), 16).unwrap();
        thread::sleep(Duration::from_micros(10_000 + chance % 100_000));
        assert!(worker.try_wait().unwrap().is_none(), "the worker failed");
        worker.kill();
        recover(&scene.pool);
        check(&scene.pool, &std::fs::read_to_string(&diary).unwrap());
    }
    // One at least comes round, however slow this host is.
    let mut worker = worker(scene.pool.directory(), scene.catalogue, &diary);
    while !std::fs::read_to_string(&diary).unwrap().contains("deleted") {
        assert!(worker.try_wait().unwrap().is_none(), "the worker failed");
        thread::sleep(Duration::from_millis(5));
    }
    worker.kill();
    recover(&scene.pool);
    check(&scene.pool, &std::fs::read_to_string(&diary).unwrap());
    for found in scene.pool.list().unwrap() {
        let Found::Volume { description, .. } = found else {
            panic!("{found:?}");
        };
        assert_eq!(scene.pool.remove(description.id).unwrap(), Changed::Yes);
    }
    assert_eq!(scene.files(), [""; 0]);
}

/// What a caller does at its next start.
fn recover(pool: &Qcow2Pool) {
    for found in pool.list().unwrap() {
        match found {
            Found::Volume { description, facts } => {
                assert_eq!(description.size, facts.size);
                assert_eq!(pool.verify(description.id, facts.size).unwrap(), []);
            }
            Found::Draft { id } | Found::Orphan { id, .. } => {
                assert_eq!(pool.remove(id).unwrap(), Changed::Yes);
            }
            other => panic!("a kill left {other:?}"),
        }
    }
    for found in pool.list().unwrap() {
        assert!(matches!(found, Found::Volume { .. }), "{found:?}");
    }
}

fn check(pool: &Qcow2Pool, diary: &str) {
    let mut last = BTreeMap::new();
    for line in diary.lines() {
        let (word, id) = line.split_once(' ').unwrap();
        last.insert(id.parse::<VolumeId>().unwrap(), word);
    }
    let snapshots = pool.snapshots().unwrap();
    for (id, word) in last {
        if word == "removed" {
            assert_eq!(pool.find(id).unwrap(), None);
            continue;
        }
        if word == "removing" {
            // It was killed on the way, and may be there or not.
            continue;
        }
        let content = pool.content(id, Access::ReadOnly).unwrap();
        assert_eq!(read(&*content, 70_000, 36), id.to_string().as_bytes());
        let first = snapshots.snapshot_content(id, &name("first"));
        match (word, first) {
            ("snapshot" | "reverted", first) => {
                let first = first.unwrap();
                assert_eq!(read(&*first, 0, 4096), [1; 4096]);
            }
            ("deleted", Err(PoolError::NoSuchSnapshot { .. })) => {}
            ("deleted", other) => panic!("{other:?}"),
            _ => {}
        }
        if matches!(word, "reverted" | "deleting" | "deleted") {
            assert_eq!(read(&*content, 0, 4096), [1; 4096]);
        }
    }
}
