//! Clones and snapshots of the `file` and `file-reflink` drivers, on real filesystems with
//! reflinks and without.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use sistemo_host::Changed;
use sistemo_host::directory::{Directory, Open};
use sistemo_host::program::{Program, Running};
use sistemo_host::sparse::Extent;
use sistemo_model::{
    Access, Bytes, CatalogueId, Filesystem, PoolName, Role, SnapshotName, Timestamp, VolumeId,
};
use sistemo_pools::{
    Clones, Content, Cost, Description, FilePool, FirstUse, Flaw, Found, Keeping, LiveDisk,
    LiveDiskError, Origin, Pool, PoolConfig, PoolError, Progress, Registry, SetupCheck, Snapshots,
    Way,
};
use sistemo_testkit::filesystem::{LoopFilesystem, LoopKind};
use sistemo_testkit::{Requirement, met};

const MIB: u64 = 1 << 20;
const MARKER: &str = ".sistemo-pool";

/// A filesystem with a pool on it.
struct Scene {
    pool: Box<dyn Pool>,
    directory: Directory,
    _disk: LoopFilesystem,
}

fn disk(kind: LoopKind, mib: u64) -> Option<LoopFilesystem> {
    let mkfs = match kind {
        LoopKind::Ext4 => "mkfs.ext4",
        LoopKind::Xfs => "mkfs.xfs",
        LoopKind::Btrfs => "mkfs.btrfs",
        LoopKind::Tmpfs => "mount",
    };
    met(&[Requirement::Root, Requirement::Program(mkfs)])
        .then(|| LoopFilesystem::new(kind, Bytes::from_mib(mib)))
}

fn default_pool() -> PoolName {
    "default".parse().unwrap()
}

fn open(path: &Path, catalogue: CatalogueId) -> Box<dyn Pool> {
    Box::new(FilePool::open(default_pool(), path, catalogue, FirstUse::Allowed).unwrap())
}

fn scene(kind: LoopKind, mib: u64) -> Option<Scene> {
    let disk = disk(kind, mib)?;
    let pool = open(&disk.path().join("volumes"), CatalogueId::random());
    let directory = Directory::open(pool.directory()).unwrap();
    Some(Scene {
        pool,
        directory,
        _disk: disk,
    })
}

/// A pool on each kind of filesystem, large enough for any of them.
fn scenes() -> Vec<Scene> {
    let kinds = [LoopKind::Ext4, LoopKind::Xfs, LoopKind::Btrfs];
    let scenes = kinds.into_iter().filter_map(|kind| scene(kind, 320));
    scenes.collect()
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

fn create(pool: &dyn Pool, mib: u64, data: &[(u64, &[u8])]) -> Description {
    let description = description(mib);
    let mut draft = pool.draft(&description).unwrap();
    for (offset, bytes) in data {
        draft.content().unwrap().write_at(bytes, *offset).unwrap();
    }
    draft.commit().unwrap();
    description
}

fn word(content: &dyn Content, offset: u64) -> String {
    let mut bytes = [0; 4];
    content.read_at(&mut bytes, offset).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn name(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

impl Scene {
    fn clones(&self) -> &dyn Clones {
        self.pool.clones().unwrap()
    }

    fn snapshots(&self) -> &dyn Snapshots {
        self.pool.snapshots().unwrap()
    }

    fn clone_of(&self, volume: VolumeId, new: &Description) -> Result<Way, PoolError> {
        let origin = Origin {
            volume,
            snapshot: None,
        };
        self.clones().clone_volume(origin, new, &mut |_, _| {})
    }

    fn keep(&self, volume: VolumeId, snapshot: &str) -> Result<Way, PoolError> {
        self.snapshots().take_snapshot(
            volume,
            &name(snapshot),
            Timestamp::now(),
            None,
            &mut |_, _| {},
        )
    }

    fn revert(&self, volume: VolumeId, snapshot: &str) -> Result<Way, PoolError> {
        self.snapshots()
            .revert(volume, &name(snapshot), &mut |_, _| {})
    }

    fn kept(&self, volume: VolumeId) -> Vec<String> {
        let kept = self.snapshots().snapshots(volume).unwrap();
        kept.into_iter().map(|s| s.name.to_string()).collect()
    }

    fn word(&self, volume: VolumeId, offset: u64) -> String {
        word(
            &*self.pool.content(volume, Access::ReadOnly).unwrap(),
            offset,
        )
    }

    fn write(&self, volume: VolumeId, offset: u64, bytes: &[u8]) {
        let mut content = self.pool.content(volume, Access::ReadWrite).unwrap();
        content.write_at(bytes, offset).unwrap();
        content.flush().unwrap();
    }

    /// The names of all files in the pool but its marker.
    fn files(&self) -> Vec<String> {
        let mut names = self.directory.files().unwrap();
        names.retain(|name| name != MARKER);
        names
    }

    fn touch(&self, name: &str) {
        self.directory.file(name, Open::CreateNew).unwrap();
    }
}

#[test]
fn what_it_costs_is_told_by_a_try_that_leaves_nothing() {
    for (kind, cost) in [
        (LoopKind::Ext4, Cost::Copy),
        (LoopKind::Xfs, Cost::Instant),
        (LoopKind::Btrfs, Cost::Instant),
    ] {
        let Some(scene) = scene(kind, 320) else {
            return;
        };
        assert_eq!(scene.clones().clone_cost(), cost, "{kind:?}");
        assert_eq!(scene.snapshots().snapshot_cost(), cost, "{kind:?}");
        assert_eq!(scene.directory.files().unwrap(), [MARKER]);
        let made = create(&*scene.pool, 1, &[(0, b"data")]);
        let way = scene.clone_of(made.id, &description(1)).unwrap();
        assert_eq!(way.cost(), cost);
        assert_eq!(scene.keep(made.id, "one").unwrap(), way);
        assert_eq!(scene.revert(made.id, "one").unwrap(), way);
    }
}

#[test]
fn a_clone_and_its_origin_do_not_see_each_others_writes() {
    for scene in scenes() {
        let origin = create(&*scene.pool, 8, &[(0, b"both"), (5 * MIB, b"deep")]);
        let copy = description(8);
        scene.clone_of(origin.id, &copy).unwrap();
        scene.write(origin.id, 0, b"left");
        scene.write(copy.id, 5 * MIB, b"side");
        assert_eq!(scene.word(origin.id, 0), "left");
        assert_eq!(scene.word(origin.id, 5 * MIB), "deep");
        assert_eq!(scene.word(copy.id, 0), "both");
        assert_eq!(scene.word(copy.id, 5 * MIB), "side");
        assert_eq!(scene.pool.remove(origin.id).unwrap(), Changed::Yes);
        assert_eq!(scene.word(copy.id, 0), "both");
        assert_eq!(scene.pool.verify(copy.id, copy.size).unwrap(), []);
        assert_eq!(scene.pool.description(copy.id).unwrap(), copy);
    }
}

#[test]
fn clones_and_snapshots_keep_the_holes() {
    for scene in scenes() {
        let origin = create(&*scene.pool, 1024, &[(0, b"data"), (700 * MIB, b"more")]);
        let copy = description(1024);
        scene.clone_of(origin.id, &copy).unwrap();
        assert!(scene.pool.facts(copy.id).unwrap().used < Bytes::from_mib(1));
        scene.keep(origin.id, "one").unwrap();
        let kept = scene.snapshots().snapshot_content(origin.id, &name("one"));
        let length: u64 = kept
            .unwrap()
            .extents()
            .unwrap()
            .iter()
            .map(|e| e.length)
            .sum();
        assert!(length < MIB, "{length}");
        scene.revert(origin.id, "one").unwrap();
        assert!(scene.pool.facts(origin.id).unwrap().used < Bytes::from_mib(1));
        assert_eq!(scene.word(origin.id, 700 * MIB), "more");
    }
}

#[test]
fn reflinks_take_no_space_to_speak_of() {
    for kind in [LoopKind::Xfs, LoopKind::Btrfs] {
        let Some(scene) = scene(kind, 400) else {
            return;
        };
        let block = vec![7; 64 << 20];
        let origin = create(&*scene.pool, 128, &[(0, &block)]);
        let free = || {
            let sync = Program::find("sync").unwrap().arg("-f");
            sync.arg(scene.pool.directory()).run().unwrap();
            scene.pool.usage().unwrap().free
        };
        let before = free();
        scene.clone_of(origin.id, &description(128)).unwrap();
        scene.keep(origin.id, "one").unwrap();
        scene.revert(origin.id, "one").unwrap();
        let taken = before.saturating_sub(free());
        assert!(taken < MIB, "{kind:?}: {taken}");
    }
}

#[test]
fn a_clone_may_be_larger_and_never_smaller() {
    for scene in scenes() {
        // Not a whole number of any filesystem's blocks.
        let mut origin = description(4);
        origin.size = Bytes::new(4 * MIB + 512);
        let mut draft = scene.pool.draft(&origin).unwrap();
        let content = draft.content().unwrap();
        content.write_at(b"tail", 4 * MIB + 508).unwrap();
        draft.commit().unwrap();

        let large = description(16);
        scene.clone_of(origin.id, &large).unwrap();
        assert_eq!(scene.pool.facts(large.id).unwrap().size, large.size);
        assert_eq!(scene.word(large.id, 4 * MIB + 508), "tail");
        assert_eq!(scene.word(large.id, 4 * MIB + 512), "\0\0\0\0");
        assert_eq!(scene.pool.verify(large.id, large.size).unwrap(), []);

        let before = scene.files();
        let error = scene.clone_of(origin.id, &description(4)).unwrap_err();
        assert!(matches!(error, PoolError::SourceTooLarge { .. }), "{error}");
        assert_eq!(scene.files(), before);
    }
}

#[test]
fn a_clone_of_a_snapshot_is_the_volume_as_it_was() {
    for scene in scenes() {
        let origin = create(&*scene.pool, 4, &[(0, b"then")]);
        scene.keep(origin.id, "then").unwrap();
        scene.write(origin.id, 0, b"now!");
        let copy = description(4);
        let snapshot = name("then");
        let from = Origin {
            volume: origin.id,
            snapshot: Some(&snapshot),
        };
        scene
            .clones()
            .clone_volume(from, &copy, &mut |_, _| {})
            .unwrap();
        assert_eq!(scene.word(copy.id, 0), "then");
        assert_eq!(scene.snapshots().snapshots(copy.id).unwrap(), []);
        // What it was made from was read-only; it is not.
        scene.write(copy.id, 0, b"mine");
        assert_eq!(scene.word(origin.id, 0), "now!");
    }
}

#[test]
fn a_snapshot_is_one_file_that_nobody_writes_to() {
    for scene in scenes() {
        let made = create(&*scene.pool, 4, &[(0, b"kept")]);
        let before = Timestamp::now();
        scene.keep(made.id, "before-upgrade").unwrap();
        let after = Timestamp::now();
        let (id, file) = (made.id, format!("{}@before-upgrade.ext4", made.id));
        assert_eq!(
            scene.files(),
            [format!("{id}.ext4"), format!("{id}.json"), file.clone()]
        );
        let meta = scene.directory.path_of(&file).metadata().unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o400);
        let kept = scene.snapshots().snapshots(id).unwrap();
        let [snapshot] = &kept[..] else {
            panic!("{kept:?}")
        };
        assert_eq!(snapshot.name, name("before-upgrade"));
        assert_eq!(snapshot.size, made.size);
        assert!(before <= snapshot.created && snapshot.created <= after);

        let mut content = scene
            .snapshots()
            .snapshot_content(id, &snapshot.name)
            .unwrap();
        assert_eq!(word(&*content, 0), "kept");
        let error = content.write_at(b"lost", 0).unwrap_err();
        assert!(matches!(error, PoolError::OpenedReadOnly { .. }), "{error}");
        let all = Extent {
            offset: 0,
            length: 512,
        };
        assert!(content.make_hole(all).is_err());
        // A volume with snapshots is a volume like any other.
        let found = scene.pool.list().unwrap();
        assert!(matches!(&found[..], [Found::Volume { .. }]), "{found:?}");
    }
}

#[test]
fn snapshots_may_have_any_name_and_are_listed_by_age() {
    let Some(scene) = scene(LoopKind::Xfs, 320) else {
        return;
    };
    let made = create(&*scene.pool, 1, &[]);
    let longest = "z".repeat(63);
    let names = [&longest, "1.new", "1", "x.ext4", "a.json", "X"];
    for word in names {
        scene.keep(made.id, word).unwrap();
    }
    assert_eq!(scene.kept(made.id), names);
    let before = scene.files();
    for word in names {
        let error = scene.keep(made.id, word).unwrap_err();
        assert!(matches!(error, PoolError::SnapshotThere { .. }), "{error}");
    }
    assert_eq!(scene.files(), before);
    let delete = |word: &str| scene.snapshots().delete_snapshot(made.id, &name(word));
    for word in names {
        assert_eq!(delete(word).unwrap(), Changed::Yes);
        assert_eq!(delete(word).unwrap(), Changed::No);
    }
    assert_eq!(scene.kept(made.id), Vec::<String>::new());
    assert_eq!(scene.files().len(), 2);
}

#[test]
fn a_revert_brings_back_the_data_and_the_size_and_keeps_the_snapshots() {
    for scene in scenes() {
        let made = create(&*scene.pool, 4, &[(0, b"old!")]);
        scene.keep(made.id, "small").unwrap();
        let _ = scene.pool.grow(made.id, Bytes::from_mib(8)).unwrap();
        scene.write(made.id, 0, b"new!");
        scene.keep(made.id, "large").unwrap();

        for (snapshot, size, word) in [("small", 4, "old!"), ("large", 8, "new!")] {
            // Reverting twice is reverting once.
            for _ in 0..2 {
                scene.revert(made.id, snapshot).unwrap();
                let size = Bytes::from_mib(size);
                assert_eq!(scene.word(made.id, 0), word);
                assert_eq!(scene.pool.verify(made.id, size).unwrap(), []);
                assert_eq!(scene.pool.description(made.id).unwrap().size, size);
                assert_eq!(scene.kept(made.id), ["small", "large"]);
            }
        }
        scene.write(made.id, 0, b"next");
        scene.revert(made.id, "large").unwrap();
        assert_eq!(scene.word(made.id, 0), "new!");
        let path = scene.pool.facts(made.id).unwrap().path;
        let permissions = path.metadata().unwrap().permissions();
        assert_eq!(permissions.mode() & 0o777, 0o600);
        assert_eq!(scene.files().len(), 4);
    }
}

#[test]
fn removing_a_volume_takes_its_snapshots_and_leaves_its_clones() {
    for scene in scenes() {
        let made = create(&*scene.pool, 4, &[(0, b"data")]);
        let copy = description(4);
        scene.clone_of(made.id, &copy).unwrap();
        scene.keep(made.id, "one").unwrap();
        scene.keep(copy.id, "two").unwrap();
        scene.touch(&format!("{}@half.ext4.new", made.id));
        scene.touch(&format!("{}.ext4.revert", made.id));
        assert_eq!(scene.pool.remove(made.id).unwrap(), Changed::Yes);
        assert_eq!(scene.pool.remove(made.id).unwrap(), Changed::No);
        let id = copy.id;
        assert_eq!(
            scene.files(),
            [
                format!("{id}.ext4"),
                format!("{id}.json"),
                format!("{id}@two.ext4")
            ]
        );
    }
}

#[test]
fn what_is_not_there_is_named() {
    let Some(scene) = scene(LoopKind::Xfs, 320) else {
        return;
    };
    let (gone, made) = (VolumeId::random(), create(&*scene.pool, 1, &[]));
    let snapshot = name("none");
    let of = |volume, snapshot| {
        let origin = Origin { volume, snapshot };
        scene
            .clones()
            .clone_volume(origin, &description(1), &mut |_, _| {})
    };
    let content = |volume| scene.snapshots().snapshot_content(volume, &snapshot);
    for error in [
        of(gone, None).unwrap_err(),
        of(gone, Some(&snapshot)).unwrap_err(),
        scene.keep(gone, "none").unwrap_err(),
        scene.revert(gone, "none").unwrap_err(),
        content(gone).unwrap_err(),
        scene.snapshots().snapshots(gone).unwrap_err(),
    ] {
        assert!(
            matches!(error, PoolError::NoSuchVolume { volume, .. } if volume == gone),
            "{error}"
        );
    }
    for error in [
        of(made.id, Some(&snapshot)).unwrap_err(),
        scene.revert(made.id, "none").unwrap_err(),
        content(made.id).unwrap_err(),
    ] {
        assert!(matches!(error, PoolError::NoSuchSnapshot { .. }), "{error}");
    }
    let deleted = scene.snapshots().delete_snapshot(gone, &snapshot);
    assert_eq!(deleted.unwrap(), Changed::No);
    let error = scene.clone_of(made.id, &made).unwrap_err();
    assert!(matches!(error, PoolError::AlreadyThere { .. }), "{error}");
    assert_eq!(scene.files().len(), 2);
}

#[test]
fn progress_is_told_of_a_copy_and_never_of_a_reflink() {
    for scene in scenes() {
        let block = vec![1; 3 << 20];
        let made = create(&*scene.pool, 64, &[(0, &block), (32 * MIB, &block)]);
        let mut last = None;
        let origin = Origin {
            volume: made.id,
            snapshot: None,
        };
        let mut note = |done, total| last = Some((done, total));
        let new = description(64);
        let way = scene.clones().clone_volume(origin, &new, &mut note);
        match way.unwrap() {
            Way::Copied => assert_eq!(last, Some((6 * MIB, 6 * MIB))),
            _ => assert_eq!(last, None),
        }
    }
}

/// What no driver of whole files asks a VMM for.
#[derive(Debug)]
struct Untouched;

impl LiveDisk for Untouched {
    fn file(&mut self) -> Result<PathBuf, LiveDiskError> {
        panic!("the VMM was asked for its file")
    }

    fn switch_to(&mut self, _overlay: &Path) -> Result<(), LiveDiskError> {
        panic!("the VMM was asked to switch")
    }

    fn flatten(&mut self, _progress: Progress<'_>) -> Result<(), LiveDiskError> {
        panic!("the VMM was asked to flatten")
    }
}

#[test]
fn a_snapshot_of_a_disk_in_use_is_of_one_instant() {
    const FAR: u64 = 40 * MIB;
    for kind in [LoopKind::Xfs, LoopKind::Btrfs] {
        let Some(scene) = scene(kind, 320) else {
            return;
        };
        let block = vec![7; 1 << 20];
        let data: Vec<_> = (1..20).map(|i| (2 * i * MIB, &block[..])).collect();
        let made = create(&*scene.pool, 64, &data);
        let path = scene.pool.facts(made.id).unwrap().path;
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let disk = OpenOptions::new().write(true).open(&path).unwrap();
                for number in 1_u64.. {
                    disk.write_all_at(&number.to_le_bytes(), 0).unwrap();
                    disk.write_all_at(&number.to_le_bytes(), FAR).unwrap();
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            for round in 0..40 {
                let snapshot = name(&format!("live-{round}"));
                let mut disk = Untouched;
                let taken = scene.snapshots().take_snapshot(
                    made.id,
                    &snapshot,
                    Timestamp::now(),
                    Some(&mut disk),
                    &mut |_, _| {},
                );
                assert_eq!(taken.unwrap(), Way::Reflink);
                let content = scene.snapshots().snapshot_content(made.id, &snapshot);
                let content = content.unwrap();
                let number = |offset| {
                    let mut bytes = [0; 8];
                    content.read_at(&mut bytes, offset).unwrap();
                    u64::from_le_bytes(bytes)
                };
                let (first, second) = (number(0), number(FAR));
                assert!(
                    second == first || second + 1 == first || round == 0,
                    "{kind:?}: the second write was {second}, the first {first}"
                );
            }
            over.store(true, Ordering::Relaxed);
        });
    }
}

mod a_kill {
    use super::*;

    #[test]
    fn while_taking_a_snapshot_leaves_a_file_that_the_next_operation_removes() {
        let Some(scene) = scene(LoopKind::Ext4, 32) else {
            return;
        };
        let made = create(&*scene.pool, 1, &[(0, b"data")]);
        let half = format!("{}@half.ext4.new", made.id);
        let acts: [fn(&Scene, VolumeId); 5] = [
            |scene, id| assert_eq!(scene.keep(id, "half").unwrap(), Way::Copied),
            |scene, id| assert_eq!(scene.keep(id, "other").unwrap(), Way::Copied),
            |scene, id| assert_eq!(scene.revert(id, "half").unwrap(), Way::Copied),
            |scene, id| {
                let gone = scene.snapshots().delete_snapshot(id, &name("none"));
                assert_eq!(gone.unwrap(), Changed::No);
            },
            |scene, id| {
                let grown = scene.pool.grow(id, Bytes::from_mib(2));
                assert_eq!(grown.unwrap(), Changed::Yes);
            },
        ];
        for act in acts {
            scene.touch(&half);
            let found = scene.pool.list().unwrap();
            assert!(matches!(&found[..], [Found::Volume { .. }]), "{found:?}");
            act(&scene, made.id);
            assert!(!scene.files().contains(&half));
        }
        assert_eq!(scene.kept(made.id), ["half", "other"]);
    }

    #[test]
    fn before_a_reverts_rename_leaves_the_volume_as_it_was() {
        let Some(scene) = scene(LoopKind::Ext4, 32) else {
            return;
        };
        let made = create(&*scene.pool, 1, &[(0, b"then")]);
        scene.keep(made.id, "one").unwrap();
        scene.write(made.id, 0, b"now!");
        let half = format!("{}.ext4.revert", made.id);
        scene.directory.replace(&half, b"half").unwrap();
        let part = format!("{}.json.part", made.id);
        scene.directory.replace(&part, b"half").unwrap();
        let found = scene.pool.list().unwrap();
        assert!(matches!(&found[..], [Found::Volume { .. }]), "{found:?}");
        assert_eq!(scene.word(made.id, 0), "now!");
        scene.revert(made.id, "one").unwrap();
        assert_eq!(scene.word(made.id, 0), "then");
        assert_eq!(
            scene.files().iter().filter(|name| **name == half).count(),
            0
        );
        assert_eq!(scene.pool.verify(made.id, made.size).unwrap(), []);
    }

    #[test]
    fn between_a_reverts_renames_is_completed_by_reverting_again() {
        let Some(scene) = scene(LoopKind::Ext4, 32) else {
            return;
        };
        let made = create(&*scene.pool, 1, &[(0, b"then")]);
        scene.keep(made.id, "one").unwrap();
        let _ = scene.pool.grow(made.id, Bytes::from_mib(2)).unwrap();
        let path = scene.pool.facts(made.id).unwrap().path;
        let data = OpenOptions::new().write(true).open(path).unwrap();
        data.set_len(MIB).unwrap();
        let flaw = Flaw::DescribedSize {
            recorded: made.size,
            described: Bytes::from_mib(2),
        };
        assert_eq!(scene.pool.verify(made.id, made.size).unwrap(), [flaw]);
        scene.revert(made.id, "one").unwrap();
        assert_eq!(scene.pool.verify(made.id, made.size).unwrap(), []);
    }

    #[test]
    fn while_removing_leaves_an_orphan_until_the_last_file_is_gone() {
        let Some(scene) = scene(LoopKind::Ext4, 32) else {
            return;
        };
        let made = create(&*scene.pool, 1, &[(0, b"kept")]);
        scene.keep(made.id, "one").unwrap();
        let id = made.id;
        let _ = scene.directory.remove(&format!("{id}.ext4")).unwrap();
        let orphan = Found::Orphan {
            id,
            description: Some(made),
        };
        assert_eq!(scene.pool.find(id).unwrap().as_ref(), Some(&orphan));
        assert_eq!(scene.pool.list().unwrap(), [orphan]);
        assert_eq!(scene.pool.remove(id).unwrap(), Changed::Yes);
        assert_eq!(scene.files(), Vec::<String>::new());
    }

    #[test]
    fn that_left_only_a_leftover_is_a_draft_and_goes() {
        let Some(scene) = scene(LoopKind::Ext4, 32) else {
            return;
        };
        for rest in ["@half.raw.new", ".raw.revert"] {
            let id = VolumeId::random();
            scene.touch(&format!("{id}{rest}"));
            assert_eq!(scene.pool.find(id).unwrap(), Some(Found::Draft { id }));
            assert_eq!(scene.pool.list().unwrap(), [Found::Draft { id }]);
            assert_eq!(scene.pool.remove(id).unwrap(), Changed::Yes);
            assert_eq!(scene.files(), Vec::<String>::new());
        }
    }
}

#[test]
fn a_snapshot_that_a_vmm_has_spoilt_does_not_come_to_exist() {
    let Some(scene) = scene(LoopKind::Ext4, 64) else {
        return;
    };
    let made = create(&*scene.pool, 1, &[(0, b"data")]);
    let before = scene.files();
    let spoil: [fn(&Path); 3] = [
        |path| {
            File::options()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(512)
                .unwrap();
        },
        |path| fs::remove_file(path).unwrap(),
        |path| {
            fs::remove_file(path).unwrap();
            std::os::unix::fs::symlink("/dev/null", path).unwrap();
        },
    ];
    for spoil in spoil {
        let live = scene.snapshots().live_copies().unwrap();
        let draft = live
            .draft_snapshot(made.id, &name("one"), Timestamp::now(), made.size)
            .unwrap();
        spoil(draft.raw_path());
        let error = draft.commit().unwrap_err();
        assert!(matches!(error, PoolError::Damaged { .. }), "{error:?}");
        assert_eq!(scene.files(), before);
    }
    let live = scene.snapshots().live_copies().unwrap();
    let odd = live.draft_snapshot(made.id, &name("one"), Timestamp::now(), Bytes::new(513));
    let error = odd.unwrap_err();
    assert!(matches!(error, PoolError::BadSize { .. }), "{error:?}");
    let missing = VolumeId::random();
    let none = live.draft_snapshot(missing, &name("one"), Timestamp::now(), made.size);
    let error = none.unwrap_err();
    assert!(matches!(error, PoolError::NoSuchVolume { .. }), "{error:?}");
}

#[test]
fn where_files_share_their_data_no_vmm_writes_a_snapshot() {
    for scene in scenes() {
        let shares = scene.snapshots().snapshot_cost() == Cost::Instant;
        assert_eq!(scene.snapshots().live_copies().is_none(), shares);
    }
}

#[test]
fn a_snapshot_outlives_the_data_of_its_volume_and_brings_it_back() {
    let Some(scene) = scene(LoopKind::Ext4, 32) else {
        return;
    };
    let made = create(&*scene.pool, 1, &[(0, b"kept")]);
    let id = made.id;
    scene.keep(id, "one").unwrap();
    // With a draft's name beside it, nobody takes it for a volume that never was.
    scene.touch(&format!("{id}.ext4.new"));
    let _ = scene.directory.remove(&format!("{id}.ext4")).unwrap();
    assert!(matches!(
        scene.pool.find(id).unwrap(),
        Some(Found::Orphan { .. })
    ));
    assert_eq!(scene.kept(id), ["one"]);
    scene.revert(id, "one").unwrap();
    assert_eq!(scene.word(id, 0), "kept");
    assert_eq!(scene.pool.verify(id, made.size).unwrap(), []);
}

#[test]
fn a_copy_that_finds_no_space_leaves_nothing() {
    let Some(scene) = scene(LoopKind::Ext4, 64) else {
        return;
    };
    let block = vec![7; 20 << 20];
    let made = create(&*scene.pool, 32, &[(0, &block)]);
    scene.keep(made.id, "one").unwrap();
    scene.write(made.id, 0, b"now!");
    let before = scene.files();
    for (operation, error) in [
        (
            "clone",
            scene.clone_of(made.id, &description(32)).unwrap_err(),
        ),
        ("snapshot", scene.keep(made.id, "two").unwrap_err()),
        ("revert", scene.revert(made.id, "one").unwrap_err()),
    ] {
        assert!(
            matches!(error, PoolError::Full { .. }),
            "{operation}: {error}"
        );
        assert_eq!(scene.files(), before, "{operation}");
    }
    assert_eq!(scene.word(made.id, 0), "now!");
    assert_eq!(scene.kept(made.id), ["one"]);
    assert_eq!(scene.pool.verify(made.id, made.size).unwrap(), []);
    // What a user does about a full pool works on a full pool.
    let deleted = scene.snapshots().delete_snapshot(made.id, &name("one"));
    assert_eq!(deleted.unwrap(), Changed::Yes);
    scene.keep(made.id, "two").unwrap();
}

#[test]
fn where_all_of_a_files_space_is_its_own_a_snapshot_says_how_much() {
    for (kind, told) in [(LoopKind::Ext4, true), (LoopKind::Xfs, false)] {
        let Some(scene) = scene(kind, 320) else {
            return;
        };
        let made = create(&*scene.pool, 8, &[(0, &vec![7; 4 << 20])]);
        scene.keep(made.id, "one").unwrap();
        let alone = scene.snapshots().snapshots(made.id).unwrap()[0].alone;
        assert_eq!(alone.is_some(), told, "{kind:?}");
        assert!(alone.is_none_or(|alone| alone.get() >= 4 * MIB));
    }
}

mod file_reflink {
    use super::*;

    fn open(
        path: &Path,
        catalogue: CatalogueId,
        first_use: FirstUse,
        check: SetupCheck,
    ) -> Result<FilePool, PoolError> {
        FilePool::open_reflink(default_pool(), path, catalogue, first_use, check)
    }

    #[test]
    fn refuses_a_filesystem_without_reflinks_by_name_and_leaves_nothing() {
        let Some(disk) = disk(LoopKind::Ext4, 32) else {
            return;
        };
        let (path, catalogue) = (disk.path().join("volumes"), CatalogueId::random());
        let error = open(&path, catalogue, FirstUse::Allowed, SetupCheck::Do).unwrap_err();
        assert!(matches!(error, PoolError::Unsuited { .. }), "{error:?}");
        let text = error.to_string();
        for word in ["ext4 has no reflinks", "XFS", "btrfs", "`size`", "qcow2"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(!path.exists());
        std::fs::create_dir(&path).unwrap();
        open(&path, catalogue, FirstUse::Allowed, SetupCheck::Do).unwrap_err();
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    }

    #[test]
    fn without_its_check_keeps_volumes_there_but_never_copies_one() {
        let Some(disk) = disk(LoopKind::Ext4, 32) else {
            return;
        };
        let (path, catalogue) = (disk.path().join("volumes"), CatalogueId::random());
        let config = |check: &str| PoolConfig {
            name: default_pool(),
            driver: "file-reflink".to_owned(),
            directory: Some(path.clone()),
            keeping: Keeping::default(),
            options: [("setup_check", check)]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        };
        let registry = Registry::built_in();
        let pool = registry
            .open(&config("false"), catalogue, FirstUse::Allowed)
            .unwrap();
        pool.probe().unwrap();
        assert_eq!(pool.driver(), "file-reflink");
        let directory = Directory::open(&path).unwrap();
        let made = create(&*pool, 1, &[(0, b"data")]);
        let before = directory.files().unwrap();
        let origin = Origin {
            volume: made.id,
            snapshot: None,
        };
        let clones = pool.clones().unwrap();
        let snapshots = pool.snapshots().unwrap();
        clones
            .clone_volume(origin, &description(1), &mut |_, _| {})
            .unwrap_err();
        snapshots
            .take_snapshot(
                made.id,
                &name("one"),
                Timestamp::now(),
                None,
                &mut |_, _| {},
            )
            .unwrap_err();
        assert_eq!(directory.files().unwrap(), before);

        // With the check, its volumes are reached all the same, and a look says what is wrong.
        let pool = registry
            .open(&config("true"), catalogue, FirstUse::Known)
            .unwrap();
        assert_eq!(pool.description(made.id).unwrap(), made);
        let error = pool.probe().unwrap_err();
        assert!(matches!(error, PoolError::Unsuited { .. }), "{error:?}");
    }

    #[test]
    fn works_where_there_are_reflinks() {
        for kind in [LoopKind::Xfs, LoopKind::Btrfs] {
            let Some(disk) = disk(kind, 320) else {
                return;
            };
            let (path, catalogue) = (disk.path().join("volumes"), CatalogueId::random());
            let pool: Box<dyn Pool> =
                Box::new(open(&path, catalogue, FirstUse::Allowed, SetupCheck::Do).unwrap());
            pool.probe().unwrap();
            assert_eq!(pool.clones().unwrap().clone_cost(), Cost::Instant);
            let made = create(&*pool, 1, &[(0, b"data")]);
            let kept = pool.snapshots().unwrap().take_snapshot(
                made.id,
                &name("one"),
                Timestamp::now(),
                None,
                &mut |_, _| {},
            );
            assert_eq!(kept.unwrap(), Way::Reflink);
        }
    }
}

/// The test here starts this program again, as another process with the task.
mod processes {
    use super::*;

    const POOL: &str = "SISTEMO_TEST_POOL";
    const CATALOGUE: &str = "SISTEMO_TEST_CATALOGUE";
    const DIARY: &str = "SISTEMO_TEST_DIARY";
    /// Large enough for a kill to come in the middle of a copy.
    const DATA: usize = 2 << 20;

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

    #[test]
    #[ignore = "a task of another test"]
    fn keep_clone_and_revert_until_killed() {
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
        let one = name("one");
        loop {
            let made = create(&*pool, 4, &[(0, b"then"), (MIB, &vec![7; DATA])]);
            let id = made.id;
            note("then", id);
            snapshots
                .take_snapshot(id, &one, Timestamp::now(), None, &mut |_, _| {})
                .unwrap();
            note("kept", id);
            note("moving", id);
            let mut content = pool.content(id, Access::ReadWrite).unwrap();
            content.write_at(b"now!", 0).unwrap();
            content.flush().unwrap();
            let _ = pool.grow(id, Bytes::from_mib(8)).unwrap();
            note("now!", id);
            let copy = description(8);
            let origin = Origin {
                volume: id,
                snapshot: None,
            };
            let clones = pool.clones().unwrap();
            clones.clone_volume(origin, &copy, &mut |_, _| {}).unwrap();
            note("now!", copy.id);
            note("moving", id);
            snapshots.revert(id, &one, &mut |_, _| {}).unwrap();
            note("kept", id);
            note("removing", copy.id);
            let _ = pool.remove(copy.id).unwrap();
            note("removing", id);
            let _ = pool.remove(id).unwrap();
        }
    }

    #[test]
    fn whenever_it_is_killed_no_state_is_lost_and_no_leftover_stays() {
        for kind in [LoopKind::Ext4, LoopKind::Xfs] {
            let Some(disk) = disk(kind, 600) else {
                return;
            };
            let (path, catalogue) = (disk.path().join("volumes"), CatalogueId::random());
            let diary = disk.path().join("diary");
            std::fs::File::create(&diary).unwrap();
            let pool = open(&path, catalogue);
            let mut halves = BTreeMap::new();
            for round in 0..20 {
                let mut worker = task(
                    "keep_clone_and_revert_until_killed",
                    &path,
                    catalogue,
                    &diary,
                );
                // One gets to the end of its work, the others somewhere.
                while round == 0 && !read(&diary).contains("removing") {
                    thread::sleep(Duration::from_millis(5));
                    assert!(worker.try_wait().unwrap().is_none(), "the worker failed");
                }
                let chance = u64::from_str_radix(&VolumeId::random().short(), 16).unwrap();
                thread::sleep(Duration::from_micros(10_000 + chance % 150_000));
                assert!(worker.try_wait().unwrap().is_none(), "the worker failed");
                worker.kill();
                recover(&*pool, &mut halves);
                check_diary(&*pool, &read(&diary));
            }
            assert!(!halves.is_empty(), "no kill came in time");
        }
    }

    fn read(diary: &Path) -> String {
        std::fs::read_to_string(diary).unwrap()
    }

    /// What a caller does at its next start.
    fn recover(pool: &dyn Pool, halves: &mut BTreeMap<&str, u32>) {
        let snapshots = pool.snapshots().unwrap();
        for found in pool.list().unwrap() {
            match found {
                Found::Volume { description, facts } => {
                    let id = description.id;
                    if description.size > facts.size {
                        *halves.entry("revert").or_default() += 1;
                        snapshots.revert(id, &name("one"), &mut |_, _| {}).unwrap();
                    } else if description.size < facts.size {
                        *halves.entry("grow").or_default() += 1;
                        let _ = pool.grow(id, facts.size).unwrap();
                    }
                    // An operation on the volume: it takes what a kill left beside it.
                    let _ = snapshots.delete_snapshot(id, &name("none")).unwrap();
                    assert_eq!(pool.verify(id, facts.size).unwrap(), []);
                }
                Found::Draft { id } | Found::Orphan { id, .. } => {
                    *halves.entry("draft or orphan").or_default() += 1;
                    assert_eq!(pool.remove(id).unwrap(), Changed::Yes);
                }
                other => panic!("a kill left {other:?}"),
            }
        }
        for file in Directory::open(pool.directory()).unwrap().files().unwrap() {
            let known = [".ext4", ".json", ".json.part"]
                .iter()
                .any(|end| file.ends_with(end));
            assert!(known || file == MARKER, "{file} stays");
        }
    }

    fn check_diary(pool: &dyn Pool, diary: &str) {
        let mut last = BTreeMap::new();
        for line in diary.lines() {
            let (word, id) = line.split_once(' ').unwrap();
            last.insert(id.parse::<VolumeId>().unwrap(), word);
        }
        for (id, word) in last {
            if word == "removing" {
                continue;
            }
            let content = pool.content(id, Access::ReadOnly).unwrap();
            let found = super::word(&*content, 0);
            let mut data = vec![0; DATA];
            content.read_at(&mut data, MIB).unwrap();
            assert!(data.iter().all(|byte| *byte == 7), "{id}");
            let size = content.size().mib();
            match word {
                "then" | "kept" => assert_eq!((found.as_str(), size), ("then", 4), "{id}"),
                "now!" => assert_eq!((found.as_str(), size), ("now!", 8), "{id}"),
                _ => assert!(["then", "now!"].contains(&found.as_str()), "{id} {found}"),
            }
            if word != "then" && word != "now!" {
                let kept = pool.snapshots().unwrap();
                let kept = kept.snapshot_content(id, &name("one")).unwrap();
                assert_eq!(super::word(&*kept, 0), "then");
            }
        }
    }
}
