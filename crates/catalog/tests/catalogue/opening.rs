use std::collections::BTreeSet;
use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use sistemo_catalog::{CatalogError, Catalogue};
use sistemo_host::program::Program;
use sistemo_host::system;
use sistemo_model::{Lifetime, MachineId, PoolName, VolumeId};

use crate::fixture::{Home, volume};

fn error_of(data_dir: &Path) -> CatalogError {
    Catalogue::open(data_dir).expect_err("this should not open")
}

fn assert_names_path(error: &CatalogError, path: &Path) {
    let shown = error.to_string();
    assert!(shown.contains(path.to_str().unwrap()), "{shown}");
    if let Some(source) = error.source() {
        assert!(!shown.contains(&source.to_string()), "{shown}");
    }
}

#[test]
fn a_catalogue_keeps_its_id_and_is_private() {
    let home = Home::new();
    home.add_volume("pgdata");
    let again = Catalogue::open(home.path()).unwrap();
    assert_eq!(again.id(), home.catalogue.id());
    assert_ne!(Home::new().catalogue.id(), again.id());
    for file in ["sistemo.db", "sistemo.db-wal"] {
        let mode = home.path().join(file).metadata().unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600, "{file}");
    }
    assert!(home.catalogue.check().unwrap().is_empty());
}

#[test]
fn opening_a_catalogue_that_is_up_to_date_writes_nothing() {
    let home = Home::new();
    // A connection that stays keeps the log from being tidied away.
    let watcher = home.plain_sql();
    let seen = || {
        let version: i64 = watcher
            .pragma_query_value(None, "data_version", |row| row.get(0))
            .unwrap();
        let log = home.path().join("sistemo.db-wal").metadata().unwrap();
        let database = home.database().metadata().unwrap();
        (
            version,
            log.len(),
            log.modified().unwrap(),
            database.modified().unwrap(),
        )
    };
    let before = seen();
    drop(Catalogue::open(home.path()).unwrap());
    assert_eq!(seen(), before);
    home.add_volume("pgdata");
    assert_ne!(seen(), before);
}

#[test]
fn every_connection_has_the_settings() {
    let home = Home::new();
    let settings = |catalogue: &Catalogue| {
        // Reads inside a read each need a connection of their own.
        catalogue.read(|_| catalogue.read(|_| catalogue.write(|tx| tx.insert_volume(&volume("a")))))
    };
    settings(&home.catalogue).unwrap();
    let id = home.read(|s| s.volumes())[0].id;
    let db1 = home.add_machine("db1", 2201);
    home.write(|tx| tx.attach(db1, id, 1, sistemo_model::Access::ReadWrite));
    // Foreign keys are what makes this detach the volume, on whichever connection it runs.
    thread::scope(|scope| {
        let catalogue = &home.catalogue;
        for _ in 0..4 {
            scope.spawn(move || catalogue.read(|s| s.volumes()).unwrap());
        }
        scope.spawn(move || catalogue.write(|tx| tx.delete_machine(db1)).unwrap());
    });
    assert!(home.read(|s| s.all_attachments()).is_empty());
    let mode: String = home
        .plain_sql()
        .pragma_query_value(None, "journal_mode", |row| row.get(0))
        .unwrap();
    assert_eq!(mode, "wal");
}

#[test]
fn a_read_sees_one_moment() {
    let home = Home::new();
    home.add_volume("before");
    let counts = home.read(|s| {
        let first = s.volumes()?.len();
        home.add_volume("meanwhile");
        Ok((first, s.volumes()?.len()))
    });
    assert_eq!(counts, (1, 1));
    assert_eq!(home.read(|s| s.volumes()).len(), 2);
}

#[test]
fn a_refused_write_and_a_panic_change_nothing() {
    let home = Home::new();
    home.refused(|tx| {
        tx.insert_volume(&volume("a"))?;
        tx.insert_volume(&volume("a"))
    });
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        home.write(|tx| -> crate::fixture::Result<()> {
            tx.insert_volume(&volume("a"))?;
            panic!("as a test");
        });
    }));
    assert!(panicked.is_err());
    assert!(home.read(|s| s.all_volumes()).is_empty());
    home.add_volume("a");
}

#[test]
fn a_missing_catalogue_is_made_once_however_many_open_it() {
    for _ in 0..10 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let start = Barrier::new(16);
        let ids: BTreeSet<_> = thread::scope(|scope| {
            let open = || {
                start.wait();
                Catalogue::open(path).unwrap().id()
            };
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(ids.len(), 1);
    }
}

#[test]
fn many_threads_may_open_and_write_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                let catalogue = Catalogue::open(path).unwrap();
                for number in 0..10 {
                    let name = format!("t{thread}-{number}");
                    catalogue
                        .write(|tx| tx.insert_volume(&volume(&name)))
                        .unwrap();
                }
            });
        }
    });
    let catalogue = Catalogue::open(path).unwrap();
    thread::scope(|scope| {
        for thread in 0..8 {
            let catalogue = &catalogue;
            scope.spawn(move || {
                for number in 0..10 {
                    let name = format!("s{thread}-{number}");
                    catalogue
                        .write(|tx| tx.insert_volume(&volume(&name)))
                        .unwrap();
                }
            });
        }
    });
    assert_eq!(catalogue.read(|s| s.volumes()).unwrap().len(), 160);
}

#[test]
fn a_newer_catalogue_is_left_alone() {
    let home = Home::new();
    home.plain_sql()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    match error_of(home.path()) {
        CatalogError::Newer { path, found, known } => {
            assert_eq!((path, found), (home.database(), 99));
            assert!(known < 99);
        }
        error => panic!("{error}"),
    }
}

#[test]
fn a_file_that_is_no_database_is_refused_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sistemo.db");
    let content = vec![b'x'; 8192];
    File::create(&path).unwrap().write_all(&content).unwrap();
    let error = error_of(directory.path());
    assert!(matches!(error, CatalogError::Damaged { .. }), "{error}");
    assert_names_path(&error, &path);
    assert_eq!(std::fs::read(&path).unwrap(), content);
}

#[test]
fn somebody_elses_database_is_refused_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sistemo.db");
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute("CREATE TABLE volumes (x)", ()).unwrap();
    other.pragma_update(None, "application_id", -1).unwrap();
    let error = error_of(directory.path());
    assert!(matches!(error, CatalogError::Foreign { .. }), "{error}");
    assert_names_path(&error, &path);
    let mode: String = other
        .pragma_query_value(None, "journal_mode", |row| row.get(0))
        .unwrap();
    assert_eq!(mode, "delete");
}

#[test]
fn an_empty_file_becomes_a_catalogue() {
    let directory = tempfile::tempdir().unwrap();
    File::create(directory.path().join("sistemo.db")).unwrap();
    assert!(Catalogue::open(directory.path()).is_ok());
}

#[test]
fn damage_inside_the_file_is_found_by_a_check() {
    let home = Home::new();
    for number in 0..200 {
        home.add_volume(&format!("v{number}"));
    }
    let path = home.database();
    let directory = tempfile::tempdir().unwrap();
    home.plain_sql()
        .execute(
            "VACUUM INTO ?1",
            [directory.path().join("sistemo.db").to_str()],
        )
        .unwrap();
    assert!(path.exists());
    let copy = directory.path().join("sistemo.db");
    let mut content = std::fs::read(&copy).unwrap();
    // Past the first pages, which hold the schema.
    let middle = content.len() / 2 / 4096 * 4096;
    content[middle..middle + 4096].fill(0xa5);
    File::create(&copy).unwrap().write_all(&content).unwrap();
    let checked = Catalogue::open(directory.path()).and_then(|catalogue| catalogue.check());
    match checked {
        Ok(findings) => assert!(!findings.is_empty()),
        Err(error) => assert!(matches!(error, CatalogError::Damaged { .. }), "{error}"),
    }
}

#[test]
fn a_missing_directory_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let error = error_of(&missing);
    assert!(matches!(error, CatalogError::File(_)), "{error}");
    assert_names_path(&error, &missing);
}

/// A small filesystem in memory, mounted as long as this lives.
struct Tmpfs {
    directory: tempfile::TempDir,
}

impl Tmpfs {
    fn new() -> Option<Tmpfs> {
        if !system::is_root() {
            eprintln!("skipped: only root may mount a filesystem");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"];
        Program::find("mount")
            .unwrap()
            .args(options)
            .arg(directory.path())
            .run()
            .unwrap();
        Some(Tmpfs { directory })
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn fill(&self) {
        let mut file = File::create(self.path().join("filler")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        while file.write_all(&[0]).is_ok() {}
    }

    fn empty(&self) {
        std::fs::remove_file(self.path().join("filler")).unwrap();
    }

    fn remount(&self, option: &str) {
        let option = format!("remount,{option}");
        let mount = Program::find("mount").unwrap().args(["-o", &option]);
        mount.arg(self.path()).run().unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let umount = Program::find("umount").unwrap().arg(self.path()).run();
        if let Err(error) = umount {
            eprintln!("{error}");
        }
    }
}

#[test]
fn a_full_filesystem_refuses_a_write_whole_and_is_named() {
    let Some(full) = Tmpfs::new() else { return };
    full.fill();
    let error = error_of(full.path());
    assert!(
        matches!(error, CatalogError::Full { .. } | CatalogError::File(_)),
        "{error:?}"
    );
    assert_names_path(&error, full.path());

    full.empty();
    let catalogue = Catalogue::open(full.path()).unwrap();
    full.fill();
    let mut written = 0;
    let error = loop {
        let name = format!("v{written}");
        match catalogue.write(|tx| tx.insert_volume(&volume(&name))) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, CatalogError::Full { .. }), "{error:?}");
    assert_names_path(&error, &full.path().join("sistemo.db"));

    full.empty();
    assert_eq!(catalogue.read(|s| s.all_volumes()).unwrap().len(), written);
    catalogue
        .write(|tx| tx.insert_volume(&volume("after")))
        .unwrap();
    assert!(catalogue.check().unwrap().is_empty());
}

#[test]
fn a_read_only_filesystem_is_named() {
    let Some(frozen) = Tmpfs::new() else { return };
    frozen.remount("ro");
    let error = error_of(frozen.path());
    assert!(matches!(error, CatalogError::File(_)), "{error:?}");
    assert_names_path(&error, frozen.path());

    frozen.remount("rw");
    drop(Catalogue::open(frozen.path()).unwrap());
    frozen.remount("ro");
    // Whether it can still be read depends on what its last user left; a write says why not.
    let written = Catalogue::open(frozen.path())
        .and_then(|catalogue| catalogue.write(|tx| tx.insert_volume(&volume("a"))));
    let error = written.unwrap_err();
    assert!(
        matches!(error, CatalogError::NotWritable { .. }),
        "{error:?}"
    );
    assert_names_path(&error, frozen.path());
}

#[test]
fn a_pool_that_was_used_before_is_remembered() {
    let home = Home::new();
    let name: PoolName = "fast".parse().unwrap();
    assert_eq!(home.read(|s| s.known_pool(&name)), None);
    home.write(|tx| tx.remember_pool(&name, Path::new("/srv/vm"), Some("file")));
    let first = home.read(|s| s.known_pool(&name)).unwrap();
    home.write(|tx| tx.remember_pool(&name, Path::new("/srv/fast"), Some("file")));
    let moved = home.read(|s| s.known_pool(&name)).unwrap();
    assert_eq!(first.directory, Path::new("/srv/vm"));
    assert_eq!(moved.directory, Path::new("/srv/fast"));
    assert_eq!(moved.first_seen, first.first_seen);
    assert_eq!(home.read(|s| s.known_pools()), [moved]);
    home.write(|tx| tx.forget_pool(&name));
    home.write(|tx| tx.forget_pool(&name));
    assert!(home.read(|s| s.known_pools()).is_empty());
}

#[test]
fn an_older_catalogue_is_brought_up_to_date_and_keeps_what_it_holds() {
    let directory = tempfile::tempdir().unwrap();
    let old = rusqlite::Connection::open(directory.path().join("sistemo.db")).unwrap();
    old.execute_batch(include_str!("../../src/schema/0001_foundation.sql"))
        .unwrap();
    let id = sistemo_model::CatalogueId::random();
    let insert = "INSERT INTO meta (key, value) VALUES ('id', ?1), ('created', '')";
    old.execute(insert, [id.to_string()]).unwrap();
    old.execute(
        "INSERT INTO pools (name, directory, first_seen)
         VALUES ('fast', x'2f', '2026-01-01T00:00:00Z')",
        (),
    )
    .unwrap();
    let (volume, machine) = (VolumeId::random(), MachineId::random());
    old.execute(
        "INSERT INTO volumes VALUES (?1, 'pgdata', 1048576, 'data', 'fast', 'ext4', NULL, NULL,
                                     'ready', '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z')",
        [volume.to_string()],
    )
    .unwrap();
    old.execute(
        "INSERT INTO machines (id, name, vcpus, memory, vmm, mac, ssh_port, autostart, owns_root,
                               state, lifecycle, created, modified)
         VALUES (?1, 'db1', 1, 1048576, 'qemu', '52:54:00:00:00:00', 2201, 0, 0, 'stopped',
                 'ready', '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z')",
        [machine.to_string()],
    )
    .unwrap();
    let attach = "INSERT INTO attachments VALUES (?1, ?2, 0, 0)";
    let ids = (volume.to_string(), machine.to_string());
    old.execute(attach, ids).unwrap();
    old.pragma_update(None, "application_id", 0x5369_7374)
        .unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    drop(old);
    let catalogue = Catalogue::open(directory.path()).unwrap();
    assert_eq!(catalogue.id(), id);
    assert_eq!(catalogue.read(|s| s.known_pools()).unwrap().len(), 1);
    assert!(catalogue.read(|s| s.image_copies()).unwrap().is_empty());
    let kept = catalogue.read(|s| s.volume(volume)).unwrap();
    assert_eq!(kept.name.as_str(), "pgdata");
    assert!(kept.history.is_empty());
    assert_eq!(
        catalogue.read(|s| s.machine(machine)).unwrap().lifetime,
        Lifetime::Persistent
    );
    let held = catalogue.read(|s| s.attachments_of(machine)).unwrap();
    assert_eq!(held[0].volume, volume);
    let error = catalogue.write(|tx| tx.delete_volume(volume)).unwrap_err();
    assert!(matches!(error, CatalogError::VolumeAttached { .. }));
    assert!(catalogue.check().unwrap().is_empty());
}
