//! What is particular to the `btrfs` driver: what a kill leaves, what is shared and what is not,
//! how data is written, ordinary users, full filesystems, and filesystems of one's own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sistemo_host::Changed;
use sistemo_host::directory::{self, Directory, Open};
use sistemo_host::program::Program;
use sistemo_host::sparse::CopyPath;
use sistemo_model::{
    Access, Bytes, CatalogueId, Filesystem, PoolName, Role, SnapshotName, Timestamp, VolumeId,
};
use sistemo_pools::btrfs::{BtrfsDriver, BtrfsPool, Compression, Writing};
use sistemo_pools::{
    Clones, Content, Cost, Description, Driver, FirstUse, Flaw, Found, Keeping, Origin, Pool,
    PoolConfig, PoolError, Snapshot, Snapshots, Way,
};
use sistemo_testkit::{LoopFilesystem, LoopKind, Requirement, met};

const MIB: u64 = 1 << 20;
const MARKER: &str = ".sistemo-pool";

fn default_pool() -> PoolName {
    "default".parse().unwrap()
}

fn snapshot(name: &str) -> SnapshotName {
    name.parse().unwrap()
}

/// A btrfs, where this host can mount one.
fn filesystem(mib: u64) -> Option<LoopFilesystem> {
    let programs = ["btrfs", "mkfs.btrfs", "mount"].map(Requirement::Program);
    let can = met(&[Requirement::Root]) && met(&programs);
    can.then(|| LoopFilesystem::new(LoopKind::Btrfs, Bytes::from_mib(mib)))
}

fn open_as(path: &Path, writing: Writing, catalogue: CatalogueId) -> BtrfsPool {
    BtrfsPool::open(default_pool(), path, writing, catalogue, FirstUse::Allowed).unwrap()
}

/// A pool on a btrfs of its own.
struct Scene {
    pool: BtrfsPool,
    directory: Directory,
    // Last: it is unmounted when nothing of it is open. None where it is another process's.
    _filesystem: Option<LoopFilesystem>,
}

fn scene() -> Option<Scene> {
    scene_as(Writing::AsMounted, 512)
}

fn scene_as(writing: Writing, mib: u64) -> Option<Scene> {
    let filesystem = filesystem(mib)?;
    let catalogue = CatalogueId::random();
    let pool = open_as(&filesystem.path().join("pool"), writing, catalogue);
    let directory = Directory::open(pool.directory()).unwrap();
    Some(Scene {
        pool,
        directory,
        _filesystem: Some(filesystem),
    })
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

fn write(content: &mut dyn Content, text: &[u8], offset: u64) {
    content.write_at(text, offset).unwrap();
    content.flush().unwrap();
}

fn read(content: &dyn Content, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; length];
    content.read_at(&mut buffer, offset).unwrap();
    buffer
}

fn run(program: &str, arguments: &[&str]) -> String {
    let program = Program::find(program).unwrap().args(arguments);
    program.run().unwrap().text()
}

impl Scene {
    /// A volume that begins with a text.
    fn volume(&self, mib: u64, text: &[u8]) -> Description {
        let made = description(mib);
        let mut draft = self.pool.draft(&made).unwrap();
        write(draft.content().unwrap(), text, 0);
        draft.commit().unwrap();
        made
    }

    fn write(&self, id: VolumeId, text: &[u8]) {
        let mut content = self.pool.content(id, Access::ReadWrite).unwrap();
        write(&mut *content, text, 0);
    }

    fn text(&self, id: VolumeId, length: usize) -> Vec<u8> {
        let content = self.pool.content(id, Access::ReadOnly).unwrap();
        read(&*content, 0, length)
    }

    fn snapshot_text(&self, id: VolumeId, name: &str, length: usize) -> Vec<u8> {
        let content = self.pool.snapshot_content(id, &snapshot(name)).unwrap();
        read(&*content, 0, length)
    }

    fn take(&self, id: VolumeId, name: &str) {
        let way =
            self.pool
                .take_snapshot(id, &snapshot(name), Timestamp::now(), None, &mut |_, _| {});
        assert_eq!(way.unwrap(), Way::Subvolume);
    }

    fn revert(&self, id: VolumeId, name: &str) -> Result<Way, PoolError> {
        self.pool.revert(id, &snapshot(name), &mut |_, _| {})
    }

    fn clone_of(&self, volume: VolumeId, at: Option<&str>, mib: u64) -> Description {
        let new = description(mib);
        let at = at.map(snapshot);
        let origin = Origin {
            volume,
            snapshot: at.as_ref(),
        };
        let way = self.pool.clone_volume(origin, &new, &mut |_, _| {});
        assert_eq!(way.unwrap(), Way::Subvolume);
        new
    }

    fn listed(&self, id: VolumeId) -> Vec<Snapshot> {
        Snapshots::snapshots(&self.pool, id).unwrap()
    }

    fn snapshots(&self, id: VolumeId) -> Vec<String> {
        let listed = self.listed(id);
        listed.iter().map(|one| one.name.to_string()).collect()
    }

    /// The root of its filesystem.
    fn root(&self) -> &Path {
        self.directory.path().parent().unwrap()
    }

    /// All that is in the pool but its marker.
    fn names(&self) -> Vec<String> {
        let mut names = self.directory.names().unwrap();
        names.retain(|name| name != MARKER);
        names
    }

    fn path(&self, name: &str) -> String {
        self.directory.path_of(name).display().to_string()
    }

    fn shows(&self, id: VolumeId, state: &Found) {
        assert_eq!(self.pool.find(id).unwrap().as_ref(), Some(state));
        assert_eq!(self.pool.list().unwrap(), std::slice::from_ref(state));
    }

    fn recovers_by_removal(&self, id: VolumeId) {
        assert_eq!(self.pool.remove(id).unwrap(), Changed::Yes);
        assert_eq!(self.pool.remove(id).unwrap(), Changed::No);
        assert!(self.names().is_empty(), "{:?}", self.names());
        assert_eq!(self.pool.list().unwrap(), []);
    }

    /// A directory as a killed operation leaves it, with a subvolume that it was making.
    fn abandoned(&self, name: &str) {
        self.directory.make_subdirectory(name).unwrap();
        let made = self.path(&format!("{name}/volume"));
        run("btrfs", &["subvolume", "create", &made]);
        Directory::open(Path::new(&made))
            .unwrap()
            .file("data.raw", Open::CreateNew)
            .unwrap();
    }
}

mod layout {
    use super::*;

    #[test]
    fn a_volume_is_a_subvolume_and_a_file_that_only_their_owner_reads() {
        let Some(scene) = scene() else { return };
        let id = scene.volume(8, b"data").id;
        assert_eq!(scene.names(), [format!("{id}"), format!("{id}.json")]);
        for (name, mode) in [
            (format!("{id}"), 0o700),
            (format!("{id}/data.raw"), 0o600),
            (format!("{id}.json"), 0o600),
        ] {
            let meta = std::fs::metadata(scene.path(&name)).unwrap();
            assert_eq!(meta.permissions().mode() & 0o777, mode, "{name}");
        }
        run(
            "btrfs",
            &["subvolume", "show", &scene.path(&id.to_string())],
        );
    }

    #[test]
    fn a_directory_that_is_not_on_a_btrfs_is_refused_and_stays_untouched() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("pool");
        let open = || {
            let (name, id) = (default_pool(), CatalogueId::random());
            BtrfsPool::open(name, &path, Writing::AsMounted, id, FirstUse::Allowed).unwrap_err()
        };
        let error = open();
        assert!(matches!(error, PoolError::Unsuited { .. }), "{error}");
        assert!(error.to_string().contains("qcow2"), "{error}");
        assert!(!path.exists());
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(open(), PoolError::Unsuited { .. }));
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    }

    #[test]
    fn files_and_directories_of_others_are_strays() {
        let Some(scene) = scene() else { return };
        let made = scene.volume(1, b"");
        scene.directory.make_subdirectory("snapper").unwrap();
        scene.directory.file("notes", Open::CreateNew).unwrap();
        let found = scene.pool.list().unwrap();
        let [Found::Volume { description, .. }, strays @ ..] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(*description, made);
        let stray = |name: &str| Found::Stray {
            name: name.to_owned(),
        };
        assert_eq!(strays, [stray("notes"), stray("snapper")]);
    }
}

mod states {
    use super::*;

    #[test]
    fn an_abandoned_draft_is_a_draft_with_and_without_its_subvolume_and_description() {
        let Some(scene) = scene() else { return };
        let id = VolumeId::random();
        let nursery = format!("{id}.new");
        for description in [
            None,
            Some(format!("{id}.json.part")),
            Some(format!("{id}.json")),
        ] {
            for whole in [false, true] {
                if whole {
                    scene.abandoned(&nursery);
                } else {
                    scene.directory.make_subdirectory(&nursery).unwrap();
                }
                if let Some(name) = &description {
                    scene.directory.file(name, Open::CreateNew).unwrap();
                }
                scene.shows(id, &Found::Draft { id });
                let wanted = Description {
                    id,
                    ..self::description(1)
                };
                let error = scene.pool.draft(&wanted).unwrap_err();
                assert!(matches!(error, PoolError::DraftThere { .. }), "{error}");
                scene.recovers_by_removal(id);
            }
        }
    }

    #[test]
    fn half_a_description_alone_is_a_draft() {
        let Some(scene) = scene() else { return };
        let id = VolumeId::random();
        let part = format!("{id}.json.part");
        scene.directory.file(&part, Open::CreateNew).unwrap();
        scene.shows(id, &Found::Draft { id });
        scene.recovers_by_removal(id);
    }

    #[test]
    fn what_a_killed_removal_leaves_is_an_orphan() {
        let Some(scene) = scene() else { return };
        for left in ["description", "snapshots", "workplace", "doomed"] {
            let made = scene.volume(1, b"");
            let id = made.id;
            scene.take(id, "one");
            let (volume, kept) = (
                scene.path(&id.to_string()),
                scene.path(&format!("{id}@one")),
            );
            let description = match left {
                "description" => {
                    run("btrfs", &["subvolume", "delete", &volume, &kept]);
                    Some(made)
                }
                "snapshots" => {
                    run("btrfs", &["subvolume", "delete", &volume]);
                    Some(made)
                }
                "workplace" => {
                    run("btrfs", &["subvolume", "delete", &volume]);
                    scene.abandoned(&format!("{id}.work"));
                    Some(made)
                }
                _ => {
                    std::fs::remove_file(scene.path(&format!("{id}.json"))).unwrap();
                    run("mv", &[&volume, &scene.path(&format!("{id}.gone"))]);
                    None
                }
            };
            scene.shows(id, &Found::Orphan { id, description });
            scene.recovers_by_removal(id);
        }
    }

    #[test]
    fn what_killed_operations_leave_beside_a_volume_goes_with_the_next_one() {
        let Some(scene) = scene() else { return };
        let made = scene.volume(8, b"data");
        let id = made.id;
        let operations: [&dyn Fn(); 3] = [
            &|| scene.take(id, "kept"),
            &|| assert_eq!(scene.revert(id, "kept").unwrap(), Way::Subvolume),
            &|| {
                assert_eq!(
                    scene.pool.delete_snapshot(id, &snapshot("kept")).unwrap(),
                    Changed::Yes
                );
            },
        ];
        for operation in operations {
            scene.abandoned(&format!("{id}.new"));
            scene.abandoned(&format!("{id}.work"));
            let untaken = format!("{id}.taken@never");
            scene.directory.file(&untaken, Open::CreateNew).unwrap();
            let doomed = scene.path(&format!("{id}.gone"));
            let volume = scene.path(&id.to_string());
            run("btrfs", &["subvolume", "snapshot", "-r", &volume, &doomed]);
            let found = scene.pool.list().unwrap();
            assert!(matches!(&found[..], [Found::Volume { .. }]), "{found:?}");
            operation();
            let mut names = scene.names();
            names.retain(|name| !name.ends_with("@kept"));
            assert_eq!(names, [format!("{id}"), format!("{id}.json")]);
            assert_eq!(scene.text(id, 4), b"data");
        }
    }

    #[test]
    fn a_lost_description_is_reported_and_can_be_written_anew() {
        let Some(scene) = scene() else { return };
        let made = scene.volume(1, b"");
        let id = made.id;
        std::fs::remove_file(scene.path(&format!("{id}.json"))).unwrap();
        let facts = scene.pool.facts(id).unwrap();
        scene.shows(id, &Found::Undescribed { id, facts });
        assert_eq!(
            scene.pool.verify(id, made.size).unwrap(),
            [Flaw::Undescribed]
        );
        assert_eq!(scene.pool.describe(&made).unwrap(), Changed::Yes);
        assert_eq!(scene.pool.verify(id, made.size).unwrap(), []);
    }

    #[test]
    fn what_is_no_subvolume_or_has_no_data_is_damaged() {
        let Some(scene) = scene() else { return };
        let made = scene.volume(1, b"");
        let id = made.id;
        std::fs::remove_file(scene.path(&format!("{id}/data.raw"))).unwrap();
        let flaw = Flaw::Missing;
        scene.shows(id, &Found::Damaged { id, flaw });
        assert_eq!(scene.pool.verify(id, made.size).unwrap(), [Flaw::Missing]);
        scene.recovers_by_removal(id);
        // As a backup that was copied back looks.
        let volume = scene.path(&id.to_string());
        std::fs::create_dir(&volume).unwrap();
        std::fs::File::create(format!("{volume}/data.raw")).unwrap();
        let flaws = scene.pool.verify(id, made.size).unwrap();
        assert_eq!(flaws.len(), 1);
        assert!(
            flaws[0].to_string().contains("is not a subvolume"),
            "{}",
            flaws[0]
        );
        assert!(matches!(
            scene.pool.draft(&made),
            Err(PoolError::Damaged { .. })
        ));
        scene.recovers_by_removal(id);
    }

    #[test]
    fn a_snapshot_without_data_is_told_of_and_can_be_deleted() {
        let Some(scene) = scene() else { return };
        let made = scene.volume(1, b"");
        let empty = scene.path(&format!("{}@empty", made.id));
        run("btrfs", &["subvolume", "create", &empty]);
        assert_eq!(scene.snapshots(made.id), [] as [&str; 0]);
        let flaws = scene.pool.verify(made.id, made.size).unwrap();
        assert_eq!(flaws.len(), 1);
        assert!(
            flaws[0].to_string().contains("snapshot empty"),
            "{}",
            flaws[0]
        );
        let deleted = scene.pool.delete_snapshot(made.id, &snapshot("empty"));
        assert_eq!(deleted.unwrap(), Changed::Yes);
        assert_eq!(scene.pool.verify(made.id, made.size).unwrap(), []);
    }

    #[test]
    fn a_revert_that_was_cut_short_before_its_description_is_completed_by_another() {
        let Some(scene) = scene() else { return };
        let made = scene.volume(8, b"small");
        let id = made.id;
        scene.take(id, "small");
        let large = Bytes::from_mib(16);
        assert_eq!(scene.pool.grow(id, large).unwrap(), Changed::Yes);
        // The description comes first where the snapshot is smaller.
        assert_eq!(scene.pool.describe(&made).unwrap(), Changed::Yes);
        let flaws = scene.pool.verify(id, large).unwrap();
        let described = made.size;
        let recorded = large;
        assert_eq!(
            flaws,
            [Flaw::DescribedSize {
                recorded,
                described
            }]
        );
        scene.revert(id, "small").unwrap();
        assert_eq!(scene.pool.verify(id, made.size).unwrap(), []);
    }

    #[test]
    fn removing_waits_for_a_program_that_outlived_its_process() {
        let Some(scene) = scene() else { return };
        let id = VolumeId::random();
        scene.abandoned(&format!("{id}.new"));
        let nursery = scene.directory.subdirectory(&format!("{id}.new")).unwrap();
        let lock = sistemo_host::lock::Lock::acquire_directory(&nursery, Duration::ZERO).unwrap();
        // It makes the volume after its process is gone, and after the removal has begun.
        let made = scene.path(&format!("{id}.new/volume"));
        let late = format!("sleep 0.3; mv -T {made} {}", scene.path(&id.to_string()));
        let program = Program::find("sh").unwrap().args(["-c", &late]);
        let mut running = program.inherit(&lock).unwrap().spawn().unwrap();
        drop(lock);
        assert_eq!(scene.pool.remove(id).unwrap(), Changed::Yes);
        running.wait().unwrap();
        assert!(scene.names().is_empty(), "{:?}", scene.names());
    }
}

mod clones {
    use super::*;

    #[test]
    fn a_clone_and_its_source_do_not_see_each_others_writes() {
        let Some(scene) = scene() else { return };
        assert_eq!(scene.pool.clone_cost(), Cost::Instant);
        let source = scene.volume(8, b"source");
        let clone = scene.clone_of(source.id, None, 8);
        assert_eq!(scene.text(clone.id, 6), b"source");
        scene.write(clone.id, b"cloned");
        scene.write(source.id, b"SOURCE");
        assert_eq!(scene.text(clone.id, 6), b"cloned");
        assert_eq!(scene.text(source.id, 6), b"SOURCE");
        assert_eq!(scene.pool.description(clone.id).unwrap(), clone);
        assert_eq!(scene.pool.description(source.id).unwrap(), source);
        assert_eq!(scene.names().len(), 4);
    }

    #[test]
    fn a_clone_survives_its_source_and_a_source_its_clone() {
        let Some(scene) = scene() else { return };
        let first = scene.volume(8, b"data");
        let second = scene.clone_of(first.id, None, 8);
        let third = scene.clone_of(second.id, None, 8);
        let _ = scene.pool.remove(second.id).unwrap();
        let _ = scene.pool.grow(first.id, Bytes::from_mib(16)).unwrap();
        for (volume, mib) in [(&first, 16), (&third, 8)] {
            assert_eq!(scene.text(volume.id, 4), b"data");
            let size = Bytes::from_mib(mib);
            assert_eq!(scene.pool.verify(volume.id, size).unwrap(), []);
        }
    }

    #[test]
    fn a_clone_may_be_larger_and_ends_with_zeros() {
        let Some(scene) = scene() else { return };
        // No multiple of a page, so that the last one is there in part.
        let mut source = description(1);
        source.size = Bytes::new(MIB + 512);
        let mut draft = scene.pool.draft(&source).unwrap();
        write(draft.content().unwrap(), &[7; 512], MIB);
        draft.commit().unwrap();
        let clone = scene.clone_of(source.id, None, 9);
        assert_eq!(scene.pool.verify(clone.id, clone.size).unwrap(), []);
        let content = scene.pool.content(clone.id, Access::ReadOnly).unwrap();
        assert_eq!(read(&*content, MIB, 512), [7; 512]);
        assert_eq!(read(&*content, MIB + 512, 1 << 20), vec![0; 1 << 20]);
        assert_eq!(scene.names().len(), 4);
    }

    #[test]
    fn a_clone_of_a_snapshot_holds_what_the_snapshot_does_and_can_be_written() {
        let Some(scene) = scene() else { return };
        let source = scene.volume(8, b"before");
        scene.take(source.id, "then");
        scene.write(source.id, b"after!");
        let clone = scene.clone_of(source.id, Some("then"), 8);
        let larger = scene.clone_of(source.id, Some("then"), 10);
        let _ = scene.pool.remove(source.id).unwrap();
        for id in [clone.id, larger.id] {
            assert_eq!(scene.text(id, 6), b"before");
            scene.write(id, b"anew");
            assert_eq!(scene.text(id, 6), b"anewre");
            assert_eq!(scene.snapshots(id), [] as [&str; 0]);
        }
    }

    #[test]
    fn what_cannot_be_cloned_leaves_nothing() {
        let Some(scene) = scene() else { return };
        let source = scene.volume(8, b"");
        let there = scene.volume(8, b"");
        let before = scene.names();
        let clone = |volume, at: Option<&SnapshotName>, new: &Description| {
            let origin = Origin {
                volume,
                snapshot: at,
            };
            let cloned = scene.pool.clone_volume(origin, new, &mut |_, _| {});
            cloned.unwrap_err()
        };
        let error = clone(source.id, None, &description(7));
        assert!(matches!(error, PoolError::SourceTooLarge { .. }), "{error}");
        let error = clone(source.id, None, &there);
        assert!(matches!(error, PoolError::AlreadyThere { .. }), "{error}");
        let error = clone(VolumeId::random(), None, &description(8));
        assert!(matches!(error, PoolError::NoSuchVolume { .. }), "{error}");
        let none = snapshot("none");
        let error = clone(source.id, Some(&none), &description(8));
        assert!(matches!(error, PoolError::NoSuchSnapshot { .. }), "{error}");
        let mut odd = description(8);
        odd.size = Bytes::new(8 * MIB + 1);
        let error = clone(source.id, None, &odd);
        assert!(matches!(error, PoolError::BadSize { .. }), "{error}");
        assert_eq!(scene.names(), before);
        let half = description(8);
        scene.abandoned(&format!("{}.new", half.id));
        let error = clone(source.id, None, &half);
        assert!(matches!(error, PoolError::DraftThere { .. }), "{error}");
    }
}

mod snapshots {
    use super::*;

    #[test]
    fn a_snapshot_keeps_what_was_there_and_nobody_writes_to_it() {
        let Some(scene) = scene() else { return };
        assert_eq!(scene.pool.snapshot_cost(), Cost::Instant);
        let made = scene.volume(8, b"before");
        scene.take(made.id, "then");
        scene.write(made.id, b"after!");
        assert_eq!(scene.snapshot_text(made.id, "then", 6), b"before");
        assert_eq!(scene.text(made.id, 6), b"after!");
        let data = scene.path(&format!("{}@then/data.raw", made.id));
        let error = std::fs::OpenOptions::new()
            .write(true)
            .open(&data)
            .unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        let mut content = scene
            .pool
            .snapshot_content(made.id, &snapshot("then"))
            .unwrap();
        let error = content.write_at(b"x", 0).unwrap_err();
        assert!(matches!(error, PoolError::OpenedReadOnly { .. }), "{error}");
    }

    #[test]
    fn what_was_written_and_not_flushed_is_in_a_snapshot_too() {
        let Some(scene) = scene() else { return };
        let made = scene.volume(8, b"");
        let mut content = scene.pool.content(made.id, Access::ReadWrite).unwrap();
        content.write_at(&vec![9; 3 << 20], MIB).unwrap();
        scene.take(made.id, "now");
        let kept = scene
            .pool
            .snapshot_content(made.id, &snapshot("now"))
            .unwrap();
        assert_eq!(read(&*kept, MIB, 3 << 20), vec![9; 3 << 20]);
    }

    #[test]
    fn snapshots_are_listed_by_age_with_their_time_and_size() {
        let Some(scene) = scene() else { return };
        let made = scene.volume(8, b"");
        let other = scene.volume(8, b"");
        let started = Timestamp::now();
        for (name, mib) in [("zebra", 8), ("apple", 9), ("mango", 10)] {
            let _ = scene.pool.grow(made.id, Bytes::from_mib(mib)).unwrap();
            scene.take(made.id, name);
        }
        scene.take(other.id, "apple");
        let ended = Timestamp::now();
        let listed = scene.listed(made.id);
        let seen = listed
            .iter()
            .map(|one| (one.name.as_str(), one.size.get() / MIB));
        let seen = seen.collect::<Vec<_>>();
        assert_eq!(seen, [("zebra", 8), ("apple", 9), ("mango", 10)]);
        let times: Vec<_> = listed.iter().map(|one| one.created).collect();
        assert!(times.is_sorted(), "{times:?}");
        assert!(started <= times[0] && times[2] <= ended, "{times:?}");
        // It is the snapshot's for good, whatever happens to the volume.
        scene.write(made.id, b"later");
        scene.revert(made.id, "apple").unwrap();
        assert_eq!(scene.listed(made.id), listed);
    }

    #[test]
    fn a_name_is_given_once() {
        let Some(scene) = scene() else { return };
        let made = scene.volume(8, b"first");
        scene.take(made.id, "then");
        scene.write(made.id, b"other");
        let again = scene.pool.take_snapshot(
            made.id,
            &snapshot("then"),
            Timestamp::now(),
            None,
            &mut |_, _| {},
        );
        assert!(
            matches!(again, Err(PoolError::SnapshotThere { .. })),
            "{again:?}"
        );
        assert_eq!(scene.snapshot_text(made.id, "then", 5), b"first");
        assert_eq!(scene.names().len(), 4);
    }

    #[test]
    fn names_at_their_limits_are_kept_apart() {
        let Some(scene) = scene() else { return };
        let made = scene.volume(1, b"");
        let longest = "n".repeat(63);
        let names = [
            "0",
            "a.new",
            "a.gone",
            "a.work",
            "x.json",
            "A",
            "a",
            longest.as_str(),
        ];
        for name in names {
            scene.take(made.id, name);
        }
        assert_eq!(scene.snapshots(made.id), names);
        for (index, name) in names.iter().enumerate() {
            let deleted = scene
                .pool
                .delete_snapshot(made.id, &snapshot(name))
                .unwrap();
            assert_eq!(deleted, Changed::Yes);
            assert_eq!(scene.snapshots(made.id), names[index + 1..]);
        }
        assert_eq!(scene.pool.verify(made.id, made.size).unwrap(), []);
    }

    #[test]
    fn a_volume_goes_back_and_forth_between_its_snapshots() {
        let Some(scene) = scene() else { return };
        let made = scene.volume(8, b"small");
        let id = made.id;
        scene.take(id, "small");
        let large = Bytes::from_mib(16);
        assert_eq!(scene.pool.grow(id, large).unwrap(), Changed::Yes);
        scene.write(id, b"large");
        scene.take(id, "large");
        let mut renamed = scene.pool.description(id).unwrap();
        renamed.name = "renamed".parse().unwrap();
        assert_eq!(scene.pool.describe(&renamed).unwrap(), Changed::Yes);
        scene.write(id, b"lost!");
        for (name, size) in [("small", made.size), ("small", made.size), ("large", large)] {
            assert_eq!(scene.revert(id, name).unwrap(), Way::Subvolume);
            assert_eq!(scene.text(id, 5), name.as_bytes());
            assert_eq!(scene.pool.verify(id, size).unwrap(), []);
            assert_eq!(scene.snapshots(id), ["small", "large"]);
            // Only the size is the snapshot's.
            assert_eq!(scene.pool.description(id).unwrap().name, renamed.name);
            scene.write(id, b"and on");
        }
        assert_eq!(scene.snapshot_text(id, "small", 5), b"small");
        assert_eq!(scene.snapshot_text(id, "large", 5), b"large");
        assert_eq!(scene.names().len(), 6);
    }

    #[test]
    fn a_snapshot_that_is_not_there_is_named_and_deleting_it_changes_nothing() {
        let Some(scene) = scene() else { return };
        let made = scene.volume(8, b"data");
        scene.take(made.id, "one");
        let none = snapshot("none");
        let error = scene.revert(made.id, "none").unwrap_err();
        assert!(matches!(error, PoolError::NoSuchSnapshot { .. }), "{error}");
        let error = scene.pool.snapshot_content(made.id, &none).unwrap_err();
        assert!(matches!(error, PoolError::NoSuchSnapshot { .. }), "{error}");
        assert_eq!(
            scene.pool.delete_snapshot(made.id, &none).unwrap(),
            Changed::No
        );
        let one = snapshot("one");
        assert_eq!(
            scene.pool.delete_snapshot(made.id, &one).unwrap(),
            Changed::Yes
        );
        assert_eq!(
            scene.pool.delete_snapshot(made.id, &one).unwrap(),
            Changed::No
        );
        assert_eq!(scene.text(made.id, 4), b"data");
        let missing = VolumeId::random();
        let error = Snapshots::snapshots(&scene.pool, missing).unwrap_err();
        assert!(matches!(error, PoolError::NoSuchVolume { .. }), "{error}");
    }

    #[test]
    fn a_volume_with_many_snapshots_goes_with_all_of_them_and_with_no_others() {
        let Some(scene) = scene() else { return };
        let (made, other) = (scene.volume(1, b"data"), scene.volume(1, b"other"));
        scene.take(other.id, "0");
        // More than one program is told to delete.
        for number in 0..210 {
            scene.take(made.id, &number.to_string());
        }
        assert_eq!(scene.listed(made.id).len(), 210);
        assert_eq!(scene.pool.remove(made.id).unwrap(), Changed::Yes);
        assert_eq!(scene.names().len(), 4);
        assert_eq!(scene.snapshot_text(other.id, "0", 5), b"other");
    }
}

mod writing {
    use super::*;

    const TEXT: &[u8] = b"All of this can be said in fewer bytes. ";

    /// How much a pool takes for 64 MiB of text.
    fn taken(scene: &Scene) -> u64 {
        let sync = || run("btrfs", &["filesystem", "sync", &scene.path("")]);
        sync();
        let before = scene.pool.usage().unwrap().used;
        let made = description(64);
        let mut draft = scene.pool.draft(&made).unwrap();
        let content = draft.content().unwrap();
        let text = TEXT.repeat((1 << 20) / TEXT.len() + 1);
        for mib in 0..64 {
            content.write_at(&text[..1 << 20], mib * MIB).unwrap();
        }
        draft.commit().unwrap();
        sync();
        scene.pool.usage().unwrap().used - before
    }

    fn property(scene: &Scene, id: VolumeId) -> String {
        let path = scene.path(&format!("{id}/data.raw"));
        run("btrfs", &["property", "get", &path, "compression"])
    }

    fn attributes(scene: &Scene, id: VolumeId) -> String {
        let listed = run("lsattr", &[&scene.path(&format!("{id}/data.raw"))]);
        listed.split(' ').next().unwrap().to_owned()
    }

    #[test]
    fn a_compressed_pool_takes_less_space_than_its_data() {
        for compression in [Compression::Zstd, Compression::Lzo, Compression::Zlib] {
            let Some(scene) = scene_as(Writing::Compressed(compression), 512) else {
                return;
            };
            let taken = taken(&scene);
            assert!(taken < 16 * MIB, "{compression:?}: {taken}");
        }
    }

    #[test]
    fn without_compression_data_takes_its_space() {
        for writing in [Writing::AsMounted, Writing::Uncompressed, Writing::InPlace] {
            let Some(scene) = scene_as(writing, 512) else {
                return;
            };
            let taken = taken(&scene);
            assert!(taken >= 64 * MIB, "{writing:?}: {taken}");
        }
    }

    #[test]
    fn compression_is_a_property_that_clones_keep() {
        for (writing, wanted) in [
            (Writing::Compressed(Compression::Zstd), "compression=zstd\n"),
            (Writing::Compressed(Compression::Lzo), "compression=lzo\n"),
            (Writing::Compressed(Compression::Zlib), "compression=zlib\n"),
            (Writing::Uncompressed, "compression=no\n"),
            (Writing::AsMounted, ""),
            (Writing::InPlace, ""),
        ] {
            let Some(scene) = scene_as(writing, 256) else {
                return;
            };
            let made = scene.volume(8, b"data");
            scene.take(made.id, "then");
            for id in [
                made.id,
                scene.clone_of(made.id, None, 8).id,
                scene.clone_of(made.id, Some("then"), 9).id,
            ] {
                assert_eq!(property(&scene, id), wanted, "{writing:?}");
                let in_place = attributes(&scene, id).contains('C');
                assert_eq!(in_place, writing == Writing::InPlace, "{writing:?}");
            }
        }
    }

    #[test]
    fn volumes_written_in_place_have_clones_and_snapshots_like_others() {
        let Some(scene) = scene_as(Writing::InPlace, 512) else {
            return;
        };
        let made = scene.volume(8, b"before");
        scene.take(made.id, "then");
        let clone = scene.clone_of(made.id, None, 8);
        scene.write(made.id, b"after!");
        scene.write(clone.id, b"cloned");
        assert_eq!(scene.snapshot_text(made.id, "then", 6), b"before");
        scene.revert(made.id, "then").unwrap();
        assert_eq!(scene.text(made.id, 6), b"before");
        assert_eq!(scene.text(clone.id, 6), b"cloned");
    }

    #[test]
    fn a_fill_shares_extents_but_with_data_written_in_place() {
        for (writing, wanted) in [
            (Writing::AsMounted, CopyPath::Reflink),
            (Writing::InPlace, CopyPath::Copied),
        ] {
            let Some(scene) = scene_as(writing, 512) else {
                return;
            };
            let source = tempfile::tempfile_in(scene.root()).unwrap();
            source.write_all_at(&vec![5; 2 << 20], 3 * MIB).unwrap();
            let made = description(16);
            let mut draft = scene.pool.draft(&made).unwrap();
            let way = draft.fill_from(&source, &mut |_, _| {}).unwrap();
            assert_eq!(way, wanted, "{writing:?}");
            draft.commit().unwrap();
            let content = scene.pool.content(made.id, Access::ReadOnly).unwrap();
            assert_eq!(read(&*content, 3 * MIB, 2 << 20), vec![5; 2 << 20]);
            assert_eq!(scene.pool.verify(made.id, made.size).unwrap(), []);
        }
    }
}

mod options {
    use super::*;

    fn config(directory: &Path, options: &[(&str, &str)]) -> PoolConfig {
        let options = options
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        PoolConfig {
            name: default_pool(),
            driver: "btrfs".to_owned(),
            directory: Some(directory.to_owned()),
            keeping: Keeping::default(),
            options: options.collect::<BTreeMap<_, _>>(),
        }
    }

    fn open(config: &PoolConfig, catalogue: CatalogueId) -> Result<Arc<dyn Pool>, PoolError> {
        BtrfsDriver.open(config, catalogue, FirstUse::Allowed)
    }

    #[test]
    fn what_an_option_cannot_be_is_said_with_the_option_and_the_value() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("pool");
        for (options, wanted) in [
            (&[("compress", "gzip")][..], "compress = gzip"),
            (&[("compress", "")], "compress = "),
            (&[("compress", "ZSTD")], "compress = ZSTD"),
            (
                &[("compress", "zstd"), ("nodatacow", "true")],
                "nodatacow = true",
            ),
            (&[("size", "1048576")], "size = 1"),
        ] {
            let error = open(&config(&path, options), CatalogueId::random()).unwrap_err();
            assert!(matches!(error, PoolError::BadOption { .. }), "{error}");
            assert!(error.to_string().contains(wanted), "{error}");
            assert!(!path.exists());
        }
    }

    #[test]
    fn options_reach_the_volumes() {
        let Some(filesystem) = filesystem(256) else {
            return;
        };
        for (name, options, compression, in_place) in [
            ("plain", &[][..], "", false),
            (
                "zstd",
                &[("compress", "zstd"), ("nodatacow", "false")],
                "compression=zstd\n",
                false,
            ),
            ("cow", &[("nodatacow", "true")], "", true),
            ("no", &[("nodatacow", "true"), ("compress", "no")], "", true),
        ] {
            let path = filesystem.path().join(name);
            let pool = open(&config(&path, options), CatalogueId::random()).unwrap();
            let made = description(1);
            pool.draft(&made).unwrap().commit().unwrap();
            let data = pool.facts(made.id).unwrap().path.display().to_string();
            let property = run("btrfs", &["property", "get", &data, "compression"]);
            assert_eq!(property, compression, "{name}");
            let attributes = run("lsattr", &[&data]);
            assert_eq!(
                attributes.split(' ').next().unwrap().contains('C'),
                in_place,
                "{name}"
            );
        }
    }

    #[test]
    fn a_pool_with_a_size_has_a_btrfs_of_its_own() {
        let programs = ["btrfs", "mkfs.btrfs", "mount"].map(Requirement::Program);
        if !met(&[Requirement::Root]) || !met(&programs) {
            return;
        }
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("pool");
        let size = (300 * MIB).to_string();
        let config = config(&path, &[("size", &size), ("compress", "zstd")]);
        let catalogue = CatalogueId::random();
        let pool = open(&config, catalogue).unwrap();
        let unmounted = Unmounted(path.clone());
        let made = description(8);
        let mut draft = pool.draft(&made).unwrap();
        write(draft.content().unwrap(), b"data", 0);
        draft.commit().unwrap();
        let name = snapshot("then");
        let snapshots = pool.snapshots().unwrap();
        snapshots
            .take_snapshot(made.id, &name, Timestamp::now(), None, &mut |_, _| {})
            .unwrap();
        let own = pool.own_filesystem().unwrap();
        assert_eq!(own.resize(Bytes::from_mib(400)).unwrap(), Changed::Yes);
        assert_eq!(own.resize(Bytes::from_mib(400)).unwrap(), Changed::No);
        assert!(pool.usage().unwrap().size > 350 * MIB);
        own.unmount().unwrap();
        drop(pool);
        // As after a start of the host: whoever opens it first mounts it.
        let pool = BtrfsDriver
            .open(&config, catalogue, FirstUse::Known)
            .unwrap();
        assert_eq!(pool.verify(made.id, made.size).unwrap(), []);
        let kept = pool
            .snapshots()
            .unwrap()
            .snapshot_content(made.id, &name)
            .unwrap();
        assert_eq!(read(&*kept, 0, 4), b"data");
        assert_eq!(pool.remove(made.id).unwrap(), Changed::Yes);
        assert_eq!(pool.list().unwrap(), []);
        drop((kept, pool));
        drop(unmounted);
    }

    /// Unmounts a pool's own filesystem also where a test fails.
    struct Unmounted(PathBuf);

    impl Drop for Unmounted {
        fn drop(&mut self) {
            let mounted = self.0.join("mounted");
            let unmount =
                Program::find("umount").and_then(|umount| umount.arg("-l").arg(mounted).run());
            assert!(unmount.is_ok() || std::thread::panicking(), "{unmount:?}");
        }
    }
}

mod full {
    use super::*;

    /// Writes to a file beside the pool until the filesystem takes no more.
    fn fill(scene: &Scene) -> std::fs::File {
        let path = scene.root().join("ballast");
        let file = std::fs::File::create(&path).unwrap();
        let mut at = 0;
        for block in [1 << 20, 64 << 10, 4096] {
            while file.write_all_at(&vec![0x55; block], at).is_ok() {
                at += block as u64;
            }
        }
        // What is full may have room again when all is on disk.
        while directory::flush(&path, &file).is_ok() && file.write_all_at(&[0x55; 4096], at).is_ok()
        {
            at += 4096;
        }
        file
    }

    #[test]
    fn a_full_filesystem_is_said_so_and_what_is_there_can_be_removed() {
        let Some(scene) = scene_as(Writing::AsMounted, 256) else {
            return;
        };
        let made = scene.volume(64, b"data");
        scene.take(made.id, "then");
        let _ballast = fill(&scene);
        let mut content = scene.pool.content(made.id, Access::ReadWrite).unwrap();
        let written = (0..60).try_for_each(|mib| content.write_at(&vec![7; 1 << 20], mib * MIB));
        let error = written.unwrap_err();
        assert!(matches!(error, PoolError::Full { .. }), "{error}");
        drop(content);
        assert_eq!(scene.snapshot_text(made.id, "then", 4), b"data");
        let deleted = scene.pool.delete_snapshot(made.id, &snapshot("then"));
        assert_eq!(deleted.unwrap(), Changed::Yes);
        scene.recovers_by_removal(made.id);
    }

    #[test]
    fn where_there_is_not_even_room_for_names_a_volume_can_be_removed() {
        let Some(scene) = scene_as(Writing::AsMounted, 256) else {
            return;
        };
        let made = scene.volume(64, b"data");
        scene.take(made.id, "then");
        let other = scene.volume(8, b"other");
        let _ballast = fill(&scene);
        let crowd = scene.root().join("crowd");
        std::fs::create_dir(&crowd).unwrap();
        let crowd = Directory::open(&crowd).unwrap();
        // Small files are kept among the names.
        let small = (0..1_000_000).find_map(|number| {
            let file = crowd.file(&format!("{number:0200}"), Open::CreateNew);
            let written = file.map_err(|error| error.source);
            let written = written.and_then(|file| file.write_all_at(&[0x55; 1500], 0));
            written.err()
        });
        assert_eq!(small.unwrap().kind(), std::io::ErrorKind::StorageFull);
        while crowd
            .make_subdirectory(&VolumeId::random().to_string())
            .is_ok()
        {}
        let deleted = scene.pool.delete_snapshot(made.id, &snapshot("then"));
        assert_eq!(deleted.unwrap(), Changed::Yes);
        assert_eq!(scene.pool.remove(made.id).unwrap(), Changed::Yes);
        assert_eq!(scene.text(other.id, 5), b"other");
        scene.recovers_by_removal(other.id);
    }

    #[test]
    fn a_filesystem_that_became_read_only_is_said_so_and_nothing_changes() {
        let Some(scene) = scene() else { return };
        let made = scene.volume(8, b"data");
        scene.take(made.id, "then");
        let before = scene.names();
        let path = scene.root().display().to_string();
        // What was removed before may still be on its way.
        let remount = || {
            Program::find("mount")
                .unwrap()
                .args(["-o", "remount,ro", &path])
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = remount().run() {
            assert!(Instant::now() < deadline, "{error}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let new = description(8);
        let origin = Origin {
            volume: made.id,
            snapshot: None,
        };
        let name = snapshot("again");
        let mut ignore = |_, _| {};
        for error in [
            scene.pool.draft(&new).unwrap_err(),
            scene
                .pool
                .clone_volume(origin, &new, &mut ignore)
                .unwrap_err(),
            scene
                .pool
                .take_snapshot(made.id, &name, Timestamp::now(), None, &mut ignore)
                .unwrap_err(),
            scene.revert(made.id, "then").unwrap_err(),
            scene
                .pool
                .delete_snapshot(made.id, &snapshot("then"))
                .unwrap_err(),
            scene.pool.remove(made.id).unwrap_err(),
        ] {
            assert!(matches!(error, PoolError::ReadOnly { .. }), "{error:?}");
        }
        assert_eq!(scene.names(), before);
        assert_eq!(scene.text(made.id, 4), b"data");
        assert_eq!(scene.snapshot_text(made.id, "then", 4), b"data");
        run("mount", &["-o", "remount,rw", &path]);
        scene.recovers_by_removal(made.id);
    }
}

/// This program again, as another user or to be killed.
mod processes {
    use super::*;

    const POOL: &str = "SISTEMO_TEST_POOL";
    const CATALOGUE: &str = "SISTEMO_TEST_CATALOGUE";
    const NOBODY: u32 = 65534;

    fn given() -> Option<Scene> {
        let path = PathBuf::from(std::env::var_os(POOL)?);
        let catalogue = std::env::var(CATALOGUE).ok()?.parse().unwrap();
        Some(Scene {
            pool: open_as(&path, Writing::AsMounted, catalogue),
            directory: Directory::open(&path).unwrap(),
            _filesystem: None,
        })
    }

    #[test]
    #[ignore = "a task of another test"]
    fn do_everything() {
        let Some(scene) = given() else { return };
        let made = scene.volume(8, b"first");
        scene.take(made.id, "one");
        scene.take(made.id, "two");
        scene.write(made.id, b"other");
        let clone = scene.clone_of(made.id, None, 8);
        let larger = scene.clone_of(made.id, Some("one"), 16);
        scene.revert(made.id, "one").unwrap();
        let deleted = scene.pool.delete_snapshot(made.id, &snapshot("two"));
        assert_eq!(deleted.unwrap(), Changed::Yes);
        assert_eq!(scene.text(made.id, 5), b"first");
        assert_eq!(scene.text(clone.id, 5), b"other");
        assert_eq!(scene.text(larger.id, 5), b"first");
        assert_eq!(scene.snapshots(made.id), ["one"]);
        drop(scene.pool.draft(&description(8)).unwrap());
        for id in [made.id, larger.id] {
            assert_eq!(scene.pool.remove(id).unwrap(), Changed::Yes);
        }
        assert_eq!(scene.names().len(), 2);
        scene.recovers_by_removal(clone.id);
    }

    /// On a filesystem mounted like this, all that a user does who owns the pool works.
    fn an_ordinary_user_does_everything(options: &str) {
        let Some(filesystem) = filesystem(512) else {
            return;
        };
        if !met(&[Requirement::Program("setpriv")]) {
            return;
        }
        let root = filesystem.path();
        let mounted = root.display().to_string();
        run("mount", &["-o", &format!("remount,{options}"), &mounted]);
        let path = root.join("pool");
        std::fs::create_dir(&path).unwrap();
        let id = Some(NOBODY);
        std::os::unix::fs::chown(&path, id, id).unwrap();
        // What everybody may enter and start.
        std::fs::set_permissions(root.parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
        let this = root.join("this");
        std::fs::copy(std::env::current_exe().unwrap(), &this).unwrap();
        let catalogue = CatalogueId::random();
        let user = NOBODY.to_string();
        let ended = Program::find("setpriv")
            .unwrap()
            .args([format!("--reuid={user}"), format!("--regid={user}")])
            .args([Path::new("--clear-groups"), &this])
            .args(["--ignored", "--exact", "processes::do_everything"])
            .env(POOL, &path)
            .env(CATALOGUE, catalogue.to_string())
            .run();
        ended.unwrap();
        let pool = Directory::open(&path).unwrap();
        assert_eq!(pool.names().unwrap(), [MARKER]);
        let marker = std::fs::metadata(path.join(MARKER)).unwrap();
        assert_eq!(marker.uid(), NOBODY);
    }

    #[test]
    fn an_ordinary_user_who_may_not_delete_subvolumes_does_everything() {
        an_ordinary_user_does_everything("rw");
    }

    #[test]
    fn an_ordinary_user_who_may_delete_subvolumes_does_everything() {
        an_ordinary_user_does_everything("user_subvol_rm_allowed");
    }
}
