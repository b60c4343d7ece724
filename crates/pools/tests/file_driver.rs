//! What is particular to the `file` driver: the states a kill leaves, real filesystems that are
//! full, read-only or gone, and several processes at once.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on fails, and one that lacks something says what"
)]

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use sistemo_host::Changed;
use sistemo_host::directory::{Directory, Open};
use sistemo_host::program::{Program, Running};
use sistemo_host::system;
use sistemo_model::{Access, Bytes, CatalogueId, Filesystem, PoolName, Role, Timestamp, VolumeId};
use sistemo_pools::{Description, FilePool, FirstUse, Flaw, Found, Pool, PoolError};

const MIB: u64 = 1 << 20;
const MARKER: &str = ".sistemo-pool";

fn default_pool() -> PoolName {
    "default".parse().unwrap()
}

fn open(path: &Path, catalogue: CatalogueId) -> FilePool {
    FilePool::open(default_pool(), path, catalogue, FirstUse::Allowed).unwrap()
}

fn description(mib: u64) -> Description {
    let id = VolumeId::random();
    Description {
        id,
        name: id.short().parse().unwrap(),
        size: Bytes::from_mib(mib),
        filesystem: Filesystem::Ext4,
        role: Role::Data,
        boot: None,
        created: Timestamp::now(),
        history: Box::default(),
        unfinished: false,
        moving_from: None,
    }
}

fn create(pool: &dyn Pool, mib: u64) -> Description {
    let description = description(mib);
    pool.draft(&description).unwrap().commit().unwrap();
    description
}

/// The names of all files in a pool but its marker.
fn files(pool: &dyn Pool) -> Vec<String> {
    let mut names = Directory::open(pool.directory()).unwrap().files().unwrap();
    names.retain(|name| name != MARKER);
    names
}

mod states {
    use super::*;

    /// A pool in whose directory a test puts what a kill or an accident would leave.
    struct Scene {
        _home: tempfile::TempDir,
        pool: FilePool,
        directory: Directory,
    }

    fn scene() -> Scene {
        let home = tempfile::tempdir().unwrap();
        let pool = open(&home.path().join("volumes"), CatalogueId::random());
        let directory = Directory::open(pool.directory()).unwrap();
        Scene {
            _home: home,
            pool,
            directory,
        }
    }

    impl Scene {
        fn touch(&self, name: &str) {
            self.directory.file(name, Open::CreateNew).unwrap();
        }

        fn recovers_by_removal(&self, id: VolumeId) {
            assert_eq!(self.pool.remove(id).unwrap(), Changed::Yes);
            assert_eq!(self.pool.remove(id).unwrap(), Changed::No);
            assert!(files(&self.pool).is_empty());
            assert_eq!(self.pool.list().unwrap(), []);
        }

        fn shows(&self, id: VolumeId, state: Found) {
            assert_eq!(self.pool.find(id).unwrap().as_ref(), Some(&state));
            assert_eq!(self.pool.list().unwrap(), [state]);
        }
    }

    #[test]
    fn a_volume_is_two_files_that_only_their_owner_reads() {
        let scene = scene();
        let id = create(&scene.pool, 1).id;
        let names = [format!("{id}.ext4"), format!("{id}.json")];
        assert_eq!(files(&scene.pool), names);
        for name in names {
            let meta = scene.directory.path_of(&name).metadata().unwrap();
            assert_eq!(meta.permissions().mode() & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn data_under_a_drafts_name_is_a_draft() {
        let scene = scene();
        let id = VolumeId::random();
        scene.touch(&format!("{id}.xfs.new"));
        scene.shows(id, Found::Draft { id });
        scene.recovers_by_removal(id);
    }

    #[test]
    fn a_commit_that_was_killed_before_the_rename_is_a_draft() {
        let scene = scene();
        let id = create(&scene.pool, 1).id;
        let (data, draft) = (format!("{id}.ext4"), format!("{id}.ext4.new"));
        scene.directory.rename(&data, &draft).unwrap();
        scene.touch(&format!("{id}.json.part"));
        scene.shows(id, Found::Draft { id });
        scene.recovers_by_removal(id);
    }

    #[test]
    fn the_rest_of_a_description_alone_is_a_draft() {
        let scene = scene();
        let id = VolumeId::random();
        scene.touch(&format!("{id}.json.part"));
        scene.shows(id, Found::Draft { id });
        scene.recovers_by_removal(id);
    }

    #[test]
    fn a_description_without_data_is_an_orphan() {
        let scene = scene();
        let made = create(&scene.pool, 1);
        let id = made.id;
        let _ = scene.directory.remove(&format!("{id}.ext4")).unwrap();
        let description = Some(made);
        scene.shows(id, Found::Orphan { id, description });
        scene.recovers_by_removal(id);
    }

    #[test]
    fn data_without_a_readable_description_is_undescribed_until_it_is_described() {
        let scene = scene();
        let made = create(&scene.pool, 1);
        let (id, json) = (made.id, format!("{}.json", made.id));
        let facts = scene.pool.facts(id).unwrap();
        let text = scene.directory.read(&json, 9999).unwrap();
        for (damage, flaw) in [
            (&b"{"[..], Flaw::BadDescription),
            (b"", Flaw::BadDescription),
            (&text[..text.len() / 2], Flaw::BadDescription),
        ] {
            scene.directory.replace(&json, damage).unwrap();
            let facts = facts.clone();
            scene.shows(id, Found::Undescribed { id, facts });
            assert_eq!(scene.pool.verify(id, made.size).unwrap(), [flaw]);
            let error = scene.pool.grow(id, Bytes::from_mib(2)).unwrap_err();
            assert!(matches!(error, PoolError::BadDescription { .. }), "{error}");
        }
        let _ = scene.directory.remove(&json).unwrap();
        let shown = facts.clone();
        scene.shows(id, Found::Undescribed { id, facts: shown });
        assert_eq!(
            scene.pool.verify(id, made.size).unwrap(),
            [Flaw::Undescribed]
        );
        assert_eq!(scene.pool.describe(&made).unwrap(), Changed::Yes);
        let description = made;
        scene.shows(id, Found::Volume { description, facts });
    }

    #[test]
    fn the_rest_of_a_killed_description_beside_a_volume_means_nothing() {
        let scene = scene();
        let mut made = create(&scene.pool, 1);
        let part = format!("{}.json.part", made.id);
        scene.directory.replace(&part, b"half of someth").unwrap();
        let found = scene.pool.list().unwrap();
        assert!(
            matches!(found.as_slice(), [Found::Volume { description, .. }] if *description == made)
        );
        made.name = "renamed".parse().unwrap();
        assert_eq!(scene.pool.describe(&made).unwrap(), Changed::Yes);
        assert_eq!(files(&scene.pool).len(), 2);
    }

    #[test]
    fn a_grow_that_was_killed_is_completed_by_growing_again() {
        let scene = scene();
        let made = create(&scene.pool, 1);
        let path = scene.pool.facts(made.id).unwrap().path;
        let data = OpenOptions::new().write(true).open(path).unwrap();
        data.set_len(2 * MIB).unwrap();
        let to = Bytes::from_mib(2);
        let half = Flaw::DescribedSize {
            recorded: to,
            described: made.size,
        };
        assert_eq!(scene.pool.verify(made.id, to).unwrap(), [half]);
        assert!(matches!(
            scene.pool.grow(made.id, made.size),
            Err(PoolError::Shrinks { .. })
        ));
        assert_eq!(scene.pool.grow(made.id, to).unwrap(), Changed::Yes);
        assert_eq!(scene.pool.verify(made.id, to).unwrap(), []);
    }

    #[test]
    fn a_draft_beside_its_volume_is_a_stray_so_that_nobody_removes_the_volume_for_it() {
        let scene = scene();
        let made = create(&scene.pool, 1);
        let name = format!("{}.ext4.new", made.id);
        scene.touch(&name);
        let found = scene.pool.list().unwrap();
        assert!(
            matches!(&found[..], [Found::Volume { .. }, Found::Stray { name: stray }] if *stray == name),
            "{found:?}"
        );
        assert!(matches!(
            scene.pool.find(made.id).unwrap(),
            Some(Found::Volume { .. })
        ));
    }

    #[test]
    fn two_data_files_are_damage_and_neither_is_used() {
        let scene = scene();
        let made = create(&scene.pool, 1);
        let id = made.id;
        scene.touch(&format!("{id}.raw"));
        let flaw = Flaw::Several {
            names: vec![format!("{id}.ext4"), format!("{id}.raw")],
        };
        assert_eq!(
            scene.pool.verify(id, made.size).unwrap(),
            std::slice::from_ref(&flaw)
        );
        scene.shows(id, Found::Damaged { id, flaw });
        assert!(matches!(
            scene.pool.content(id, Access::ReadWrite),
            Err(PoolError::Damaged { .. })
        ));
        assert!(matches!(
            scene.pool.draft(&made),
            Err(PoolError::Damaged { .. })
        ));
    }

    #[test]
    fn a_link_in_the_datas_place_is_damage_and_is_not_followed() {
        let scene = scene();
        let made = create(&scene.pool, 1);
        let id = made.id;
        let path = scene.pool.facts(id).unwrap().path;
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::fs::remove_file(&path).unwrap();
        symlink(outside.path(), &path).unwrap();
        let flaw = Flaw::NotAFile { path };
        scene.shows(id, Found::Damaged { id, flaw });
        assert!(scene.pool.open(id, Access::ReadOnly).is_err());
        assert!(scene.pool.grow(id, Bytes::from_mib(2)).is_err());
        scene.recovers_by_removal(id);
        assert!(outside.path().exists());
    }

    #[test]
    fn the_description_of_another_volume_is_not_taken() {
        let scene = scene();
        let (one, two) = (create(&scene.pool, 1), create(&scene.pool, 1));
        let text = scene.directory.read(&format!("{}.json", one.id), 9999);
        scene
            .directory
            .replace(&format!("{}.json", two.id), &text.unwrap())
            .unwrap();
        assert!(matches!(
            scene.pool.description(two.id),
            Err(PoolError::BadDescription { .. })
        ));
        assert_eq!(scene.pool.description(one.id).unwrap(), one);
    }

    #[test]
    fn files_of_others_are_strays_and_stay() {
        let scene = scene();
        scene.touch("notes.txt");
        scene.touch("disk.ext4");
        scene.touch(".sistemo-pool.0123.new");
        std::fs::create_dir(scene.directory.path_of("lost+found")).unwrap();
        let stray = |name: &str| Found::Stray {
            name: name.to_owned(),
        };
        assert_eq!(
            scene.pool.list().unwrap(),
            [stray("disk.ext4"), stray("notes.txt")]
        );
    }

    #[test]
    fn listing_a_thousand_volumes_is_quick() {
        let scene = scene();
        let pattern = create(&scene.pool, 1);
        let text = scene.directory.read(&format!("{}.json", pattern.id), 9999);
        let text = String::from_utf8(text.unwrap()).unwrap();
        for _ in 1..1000 {
            let id = VolumeId::random();
            scene.touch(&format!("{id}.ext4"));
            let json = scene.directory.file(&format!("{id}.json"), Open::CreateNew);
            let text = text.replace(&pattern.id.to_string(), &id.to_string());
            json.unwrap().write_all(text.as_bytes()).unwrap();
        }
        let started = Instant::now();
        let found = scene.pool.list().unwrap();
        let took = started.elapsed();
        assert_eq!(found.len(), 1000);
        assert!(found.iter().all(|f| matches!(f, Found::Volume { .. })));
        // It takes some 30 ms; a list that looks at every pair takes a million looks.
        assert!(took < Duration::from_millis(1500), "{took:?}");
    }

    #[test]
    fn a_replaced_or_unmarked_directory_fails_the_probe() {
        let scene = scene();
        scene.pool.probe().unwrap();
        let path = scene.pool.directory().to_owned();
        let _ = scene.directory.remove(MARKER).unwrap();
        assert!(matches!(
            scene.pool.probe(),
            Err(PoolError::NoMarker { .. })
        ));
        std::fs::remove_dir(&path).unwrap();
        assert!(matches!(
            scene.pool.probe(),
            Err(PoolError::Unavailable { .. })
        ));
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(
            scene.pool.probe(),
            Err(PoolError::Replaced { .. })
        ));
    }
}

mod real_filesystems {
    use super::*;

    /// A small ext4 of its own, unmounted when dropped.
    struct SmallDisk {
        home: tempfile::TempDir,
    }

    impl SmallDisk {
        fn mounted() -> Option<SmallDisk> {
            if !system::is_root() {
                eprintln!("skipped: mounting a filesystem needs root");
                return None;
            }
            let home = tempfile::tempdir().unwrap();
            let image = home.path().join("disk");
            let file = std::fs::File::create_new(&image).unwrap();
            file.set_len(16 * MIB).unwrap();
            let disk = SmallDisk { home };
            std::fs::create_dir(disk.path()).unwrap();
            run(
                "mkfs.ext4",
                &["-q", "-F", "-m0", "-b4096", "-N64", image.to_str().unwrap()],
            );
            disk.mount("loop");
            Some(disk)
        }

        fn path(&self) -> PathBuf {
            self.home.path().join("mnt")
        }

        fn mount(&self, options: &str) {
            let (image, path) = (self.home.path().join("disk"), self.path());
            let (image, path) = (image.to_str().unwrap(), path.to_str().unwrap());
            run("mount", &["-o", options, image, path]);
        }

        fn unmount(&self) {
            run("umount", &[self.path().to_str().unwrap()]);
        }

        /// Takes all of the space that is left. An ext4 that says it is full finds some more
        /// once what was written is on disk, so it is asked until it has said so repeatedly.
        fn fill(&self) {
            let mut refusals = 0;
            for number in 0.. {
                let path = self.path().join(format!("filler-{number}"));
                let Ok(mut filler) = std::fs::File::create(path) else {
                    break;
                };
                let mut took = false;
                for size in [1 << 20, 4096, 1] {
                    let block = vec![1; size];
                    while filler.write_all(&block).is_ok() {
                        took = true;
                    }
                }
                run("sync", &[]);
                refusals = if took { 0 } else { refusals + 1 };
                if refusals == 3 {
                    break;
                }
            }
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            let umount = Program::find("umount").unwrap();
            let _ = umount.arg(self.path()).run();
        }
    }

    fn run(program: &str, arguments: &[&str]) {
        let program = Program::find(program).unwrap();
        program.args(arguments).run().unwrap();
    }

    fn is_full(error: &PoolError, id: VolumeId) {
        assert!(matches!(error, PoolError::Full { .. }), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains(&id.to_string()) && text.contains("pool default is full"),
            "{text}"
        );
    }

    #[test]
    fn a_full_pool_says_so_and_a_failed_create_leaves_nothing() {
        let Some(disk) = SmallDisk::mounted() else {
            return;
        };
        let pool = open(&disk.path(), CatalogueId::random());
        let block = vec![1; 1 << 20];

        let wanted = description(64);
        let mut draft = pool.draft(&wanted).unwrap();
        let content = draft.content().unwrap();
        let error = (0..64)
            .find_map(|mib| content.write_at(&block, mib * MIB).err())
            .unwrap();
        is_full(&error, wanted.id);
        drop(draft);
        assert!(files(&pool).is_empty());

        let mut source = tempfile::tempfile().unwrap();
        for _ in 0..20 {
            source.write_all(&block).unwrap();
        }
        // As large as the volume, so that only the missing data tells it from a whole one.
        let wanted = description(20);
        let mut draft = pool.draft(&wanted).unwrap();
        let error = draft.fill_from(&source, &mut |_, _| {}).unwrap_err();
        is_full(&error, wanted.id);
        let error = draft.commit().unwrap_err();
        assert!(matches!(error, PoolError::Damaged { .. }), "{error:?}");
        assert!(files(&pool).is_empty());
        assert!(pool.usage().unwrap().free > 4 * MIB);
    }

    #[test]
    fn where_not_even_a_description_fits_nothing_is_made_or_changed() {
        let Some(disk) = SmallDisk::mounted() else {
            return;
        };
        let pool = open(&disk.path(), CatalogueId::random());
        let made = create(&pool, 1);
        disk.fill();
        let before = files(&pool);

        let wanted = description(1);
        let error = pool.draft(&wanted).unwrap().commit().unwrap_err();
        is_full(&error, wanted.id);
        assert_eq!(files(&pool), before);

        let error = pool.grow(made.id, Bytes::from_mib(2)).unwrap_err();
        is_full(&error, made.id);
        assert_eq!(pool.verify(made.id, made.size).unwrap(), []);
        assert_eq!(files(&pool), before);

        // What a user does about a full pool must work on a full pool.
        assert_eq!(pool.remove(made.id).unwrap(), Changed::Yes);
    }

    #[test]
    fn a_rename_that_fails_leaves_no_description() {
        let Some(disk) = SmallDisk::mounted() else {
            return;
        };
        let pool = open(&disk.path(), CatalogueId::random());
        let wanted = description(1);
        let draft = pool.draft(&wanted).unwrap();
        let path = draft.raw_path().unwrap().to_owned();
        let path = path.to_str().unwrap();
        // An immutable file is neither renamed nor removed, so here the draft itself stays.
        run("chattr", &["+i", path]);
        let error = draft.commit().unwrap_err();
        run("chattr", &["-i", path]);
        assert!(matches!(error, PoolError::Volume { .. }), "{error:?}");
        assert_eq!(files(&pool), [format!("{}.ext4.new", wanted.id)]);
        assert_eq!(pool.remove(wanted.id).unwrap(), Changed::Yes);
    }

    #[test]
    fn a_pool_without_inodes_is_full() {
        let Some(disk) = SmallDisk::mounted() else {
            return;
        };
        let pool = open(&disk.path(), CatalogueId::random());
        let directory = Directory::open(&disk.path()).unwrap();
        let mut count = 0;
        while directory.file(&format!("{count}"), Open::CreateNew).is_ok() {
            count += 1;
        }
        let wanted = description(1);
        is_full(&pool.draft(&wanted).unwrap_err(), wanted.id);
        // One is free: enough for the data, not for the description.
        let _ = directory.unlink("0").unwrap();
        let error = pool.draft(&wanted).unwrap().commit().unwrap_err();
        is_full(&error, wanted.id);
        assert_eq!(pool.find(wanted.id).unwrap(), None);
    }

    #[test]
    fn a_size_that_the_filesystem_cannot_hold_is_refused() {
        let Some(disk) = SmallDisk::mounted() else {
            return;
        };
        let pool = open(&disk.path(), CatalogueId::random());
        let made = create(&pool, 1);
        let wanted = description(1 << 42);
        for (error, id) in [
            (pool.draft(&wanted).unwrap_err(), wanted.id),
            (pool.grow(made.id, wanted.size).unwrap_err(), made.id),
        ] {
            assert!(matches!(error, PoolError::TooLarge { .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains(&id.to_string()) && text.contains("pool default"));
        }
        assert_eq!(pool.verify(made.id, made.size).unwrap(), []);
        assert_eq!(pool.list().unwrap().len(), 1);
    }

    #[test]
    fn a_read_only_pool_is_read_and_refuses_the_rest() {
        let Some(disk) = SmallDisk::mounted() else {
            return;
        };
        let catalogue = CatalogueId::random();
        let made = create(&open(&disk.path(), catalogue), 1);
        disk.mount("remount,ro");
        let pool = FilePool::open(default_pool(), &disk.path(), catalogue, FirstUse::Known);
        let pool = pool.unwrap();

        assert_eq!(pool.list().unwrap().len(), 1);
        assert_eq!(pool.verify(made.id, made.size).unwrap(), []);
        pool.content(made.id, Access::ReadOnly).unwrap();
        let mut renamed = made.clone();
        renamed.name = "renamed".parse().unwrap();
        for (operation, error) in [
            ("create", pool.draft(&description(1)).unwrap_err()),
            ("grow", pool.grow(made.id, Bytes::from_mib(2)).unwrap_err()),
            ("remove", pool.remove(made.id).unwrap_err()),
            ("describe", pool.describe(&renamed).unwrap_err()),
            ("open", pool.open(made.id, Access::ReadWrite).unwrap_err()),
        ] {
            assert!(
                matches!(error, PoolError::ReadOnly { .. }),
                "{operation}: {error:?}"
            );
            assert!(
                error.to_string().contains("pool default is read-only"),
                "{error}"
            );
        }
        assert!(matches!(pool.probe(), Err(PoolError::Unavailable { .. })));
        assert_eq!(pool.description(made.id).unwrap(), made);

        let empty = disk.path().join("pool");
        let error = FilePool::open(default_pool(), &empty, catalogue, FirstUse::Allowed);
        assert!(matches!(error, Err(PoolError::Unavailable { .. })));
    }

    #[test]
    fn a_known_pool_whose_disk_is_not_mounted_is_unavailable() {
        let Some(disk) = SmallDisk::mounted() else {
            return;
        };
        let catalogue = CatalogueId::random();
        let made = create(&open(&disk.path(), catalogue), 1);
        disk.unmount();
        let error = FilePool::open(default_pool(), &disk.path(), catalogue, FirstUse::Known);
        assert!(matches!(error, Err(PoolError::NoMarker { .. })));
        assert_eq!(std::fs::read_dir(disk.path()).unwrap().count(), 0);
        disk.mount("loop");
        let pool = FilePool::open(default_pool(), &disk.path(), catalogue, FirstUse::Known);
        assert_eq!(pool.unwrap().description(made.id).unwrap(), made);
    }

    #[test]
    fn a_first_use_that_finds_no_space_leaves_no_directory() {
        let Some(disk) = SmallDisk::mounted() else {
            return;
        };
        disk.fill();
        let path = disk.path().join("volumes");
        let error = FilePool::open(
            default_pool(),
            &path,
            CatalogueId::random(),
            FirstUse::Allowed,
        );
        assert!(matches!(error, Err(PoolError::Unavailable { .. })));
        assert!(!path.exists());
    }
}

/// Each test here starts this program again, as another process with one of these tasks.
mod processes {
    use super::*;

    const POOL: &str = "SISTEMO_TEST_POOL";
    const CATALOGUE: &str = "SISTEMO_TEST_CATALOGUE";
    const DIARY: &str = "SISTEMO_TEST_DIARY";

    fn task(name: &str, pool: &Path, catalogue: CatalogueId, diary: &Path) -> Running {
        let program = Program::at(&std::env::current_exe().unwrap());
        program
            .args(["--ignored", "--exact", &format!("processes::{name}")])
            .env(POOL, pool)
            .env(CATALOGUE, catalogue.to_string())
            .env(DIARY, diary)
            .spawn()
            .unwrap()
    }

    fn given() -> Option<(FilePool, PathBuf)> {
        let path = std::env::var_os(POOL)?;
        let catalogue = std::env::var(CATALOGUE).ok()?.parse().unwrap();
        let diary = PathBuf::from(std::env::var_os(DIARY)?);
        Some((open(Path::new(&path), catalogue), diary))
    }

    #[test]
    #[ignore = "a task of another test"]
    fn create_a_hundred() {
        if let Some((pool, _)) = given() {
            for _ in 0..100 {
                create(&pool, 1);
            }
        }
    }

    #[test]
    #[ignore = "a task of another test"]
    fn work_until_killed() {
        let Some((pool, diary)) = given() else {
            return;
        };
        let mut diary = OpenOptions::new().append(true).open(diary).unwrap();
        let mut note = |text: &str, id: VolumeId| {
            diary
                .write_all(format!("{text} {id}\n").as_bytes())
                .unwrap();
        };
        loop {
            let keep = create_with_content(&pool);
            note("made", keep.id);
            note("growing", keep.id);
            let _ = pool.grow(keep.id, Bytes::from_mib(3)).unwrap();
            note("grown", keep.id);
            let mut renamed = pool.description(keep.id).unwrap();
            renamed.name = "renamed".parse().unwrap();
            let _ = pool.describe(&renamed).unwrap();
            let drop = create_with_content(&pool);
            note("made", drop.id);
            note("removing", drop.id);
            let _ = pool.remove(drop.id).unwrap();
            note("removed", drop.id);
        }
    }

    fn create_with_content(pool: &dyn Pool) -> Description {
        let wanted = description(1);
        let mut draft = pool.draft(&wanted).unwrap();
        let content = draft.content().unwrap();
        content
            .write_at(wanted.id.to_string().as_bytes(), 4096)
            .unwrap();
        draft.commit().unwrap();
        wanted
    }

    #[test]
    fn two_processes_make_the_pool_and_its_volumes_at_once() {
        let home = tempfile::tempdir().unwrap();
        let (path, catalogue) = (home.path().join("volumes"), CatalogueId::random());
        let mut tasks: Vec<_> = (0..2)
            .map(|_| task("create_a_hundred", &path, catalogue, Path::new("")))
            .collect();
        for task in &mut tasks {
            assert!(task.wait().unwrap().success());
        }
        let pool = open(&path, catalogue);
        let found = pool.list().unwrap();
        assert_eq!(found.len(), 200);
        assert!(found.iter().all(|f| matches!(f, Found::Volume { .. })));
        assert_eq!(files(&pool).len(), 400);
    }

    #[test]
    fn of_two_owners_at_once_one_is_refused() {
        for _ in 0..5 {
            let home = tempfile::tempdir().unwrap();
            let path = home.path().join("volumes");
            let mut tasks: Vec<_> = (0..2)
                .map(|_| {
                    task(
                        "create_a_hundred",
                        &path,
                        CatalogueId::random(),
                        Path::new(""),
                    )
                })
                .collect();
            let won = tasks
                .iter_mut()
                .filter_map(|task| task.wait().unwrap().success().then_some(()))
                .count();
            assert_eq!(won, 1);
        }
    }

    #[test]
    fn whenever_it_is_killed_nothing_made_is_lost_and_nothing_half_made_stays() {
        let home = tempfile::tempdir().unwrap();
        let (path, catalogue) = (home.path().join("volumes"), CatalogueId::random());
        let diary = home.path().join("diary");
        std::fs::File::create(&diary).unwrap();
        let pool = open(&path, catalogue);
        let mut halves: BTreeMap<&str, u32> = BTreeMap::new();
        for _ in 0..40 {
            let mut worker = task("work_until_killed", &path, catalogue, &diary);
            let chance = u64::from_str_radix(&VolumeId::random().short(), 16).unwrap();
            thread::sleep(Duration::from_micros(10_000 + chance % 40_000));
            assert!(worker.try_wait().unwrap().is_none(), "the worker failed");
            worker.kill();
            recover(&pool, &mut halves);
            check_diary(&pool, &std::fs::read_to_string(&diary).unwrap());
        }
        let diary = std::fs::read_to_string(&diary).unwrap();
        assert!(diary.contains("removed"), "no worker came to do anything");
        assert!(
            halves.contains_key("draft"),
            "no kill came in time: {halves:?}"
        );
        eprintln!("killed in the middle of: {halves:?}");

        for found in pool.list().unwrap() {
            let Found::Volume { description, .. } = found else {
                panic!("{found:?}");
            };
            assert_eq!(pool.remove(description.id).unwrap(), Changed::Yes);
        }
        assert!(files(&pool).is_empty(), "{:?}", files(&pool));
    }

    /// What a caller does at its next start.
    fn recover(pool: &dyn Pool, halves: &mut BTreeMap<&str, u32>) {
        for found in pool.list().unwrap() {
            match found {
                Found::Volume { description, facts } => {
                    if description.size != facts.size {
                        *halves.entry("grow").or_default() += 1;
                        let grown = pool.grow(description.id, facts.size).unwrap();
                        assert_eq!(grown, Changed::Yes);
                    }
                    assert_eq!(pool.verify(description.id, facts.size).unwrap(), []);
                }
                Found::Draft { id } => {
                    *halves.entry("draft").or_default() += 1;
                    assert_eq!(pool.remove(id).unwrap(), Changed::Yes);
                }
                Found::Orphan { id, .. } => {
                    *halves.entry("remove").or_default() += 1;
                    assert_eq!(pool.remove(id).unwrap(), Changed::Yes);
                }
                other => panic!("a kill left {other:?}"),
            }
        }
        for found in pool.list().unwrap() {
            assert!(matches!(found, Found::Volume { .. }), "{found:?}");
        }
    }

    fn check_diary(pool: &dyn Pool, diary: &str) {
        let mut last = BTreeMap::new();
        for line in diary.lines() {
            let (word, id) = line.split_once(' ').unwrap();
            last.insert(id.parse::<VolumeId>().unwrap(), word);
        }
        for (id, word) in last {
            let found = pool.find(id).unwrap();
            match word {
                "removed" => assert_eq!(found, None, "{id}"),
                // It was killed on the way, and may be there or not.
                "removing" => {}
                _ => {
                    let content = pool.content(id, Access::ReadOnly).unwrap();
                    let mut text = [0; 36];
                    content.read_at(&mut text, 4096).unwrap();
                    assert_eq!(text, id.to_string().as_bytes());
                    let size = content.size();
                    assert!(word != "grown" || size == Bytes::from_mib(3), "{id} {size}");
                }
            }
        }
    }
}
