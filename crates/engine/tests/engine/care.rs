//! Care: what is wrong with a volume, and what of it nobody uses.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sistemo::care::{Checked, Obstacle, OnDamage, Part, Verdict};
use sistemo::exchange::{Checksum, Export, NewImported};
use sistemo::model::{Bytes, Filesystem, PoolName, SnapshotKind};
use sistemo::pools::NewPool;
use sistemo::snapshots::Replaced;
use sistemo::volumes::{NewVolume, VolumeView};
use sistemo::{Engine, Error, Notice};
use sistemo_host::program::Program;
use sistemo_testkit::filesystem::{LoopFilesystem, LoopKind};
use sistemo_testkit::{Action, Requirement, met};

use crate::fixture::{
    House, MIB, holds, pool_on, reference, reflinks, start, volume, volume_in, write_into,
};
use crate::running::{console_shows, guest};

const TOOLS: [Requirement; 9] = [
    Requirement::Root,
    Requirement::Program("mkfs.ext4"),
    Requirement::Program("e2fsck"),
    Requirement::Program("mkfs.xfs"),
    Requirement::Program("xfs_repair"),
    Requirement::Program("mkfs.btrfs"),
    Requirement::Program("btrfs"),
    Requirement::Program("qemu-storage-daemon"),
    Requirement::Program("fusermount3"),
];

/// A filesystem as a guest leaves it, in a raw file of its own.
struct Disk {
    filesystem: Filesystem,
    image: PathBuf,
    mount_point: PathBuf,
    mounted: bool,
}

fn run(program: &str, arguments: &[&str], path: &Path) {
    let program = Program::find(program).unwrap().args(arguments);
    program.arg(path).run().unwrap();
}

fn put(path: &Path, data: &[u8]) {
    File::create(path).unwrap().write_all_at(data, 0).unwrap();
}

impl Disk {
    fn made(house: &House, filesystem: Filesystem) -> Disk {
        let (name, mib) = (
            filesystem.as_str(),
            match filesystem {
                Filesystem::Ext4 => 96,
                _ => 320,
            },
        );
        let image = house.path(&format!("{name}.img"));
        File::create(&image).unwrap().set_len(mib * MIB).unwrap();
        let quick: &[&str] = if filesystem == Filesystem::Ext4 {
            &["-q", "-F", "-E", "nodiscard"]
        } else {
            &["-q", "-f", "-K"]
        };
        run(&format!("mkfs.{name}"), quick, &image);
        let mount_point = house.path(&format!("{name}.mounted"));
        fs::create_dir(&mount_point).unwrap();
        Disk {
            filesystem,
            image,
            mount_point,
            mounted: false,
        }
    }

    fn mount(&mut self, image: &Path, options: &str) {
        let options = if self.filesystem == Filesystem::Btrfs {
            // What is deleted would be given back at once.
            format!("{options},nodiscard")
        } else {
            options.to_owned()
        };
        let mount = Program::find("mount").unwrap().args(["-o", &options]);
        mount.arg(image).arg(&self.mount_point).run().unwrap();
        self.mounted = true;
    }

    fn unmount(&mut self) {
        run("umount", &[], &self.mount_point);
        self.mounted = false;
    }

    /// Files that stay, one of zeros among them, and as much that was deleted.
    fn fill(&mut self) {
        self.mount(&self.image.clone(), "loop");
        let mut word = 1_u64;
        let mut noise = |length: usize| -> Vec<u8> {
            let mut next = || {
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                word.to_le_bytes()
            };
            (0..length / 8).flat_map(|_| next()).collect()
        };
        for number in 0..24 {
            let kept = self.mount_point.join(format!("kept-{number}"));
            put(&kept, &noise((1 << 20) - 8 * number));
            let gone = self.mount_point.join(format!("gone-{number}"));
            put(&gone, &noise(1 << 20));
        }
        put(&self.mount_point.join("zeros"), &vec![0; 4 << 20]);
        run("sync", &["-f"], &self.mount_point);
        for number in 0..24 {
            fs::remove_file(self.mount_point.join(format!("gone-{number}"))).unwrap();
        }
        self.unmount();
    }

    /// What the files in a copy of it hold.
    fn files_in(&mut self, image: &Path) -> BTreeMap<String, u64> {
        self.mount(image, "loop,ro");
        let files = fs::read_dir(&self.mount_point).unwrap().map(Result::unwrap);
        let files = files.filter(|entry| entry.metadata().unwrap().is_file());
        let files = files.map(|entry| {
            let mut hasher = DefaultHasher::new();
            fs::read(entry.path()).unwrap().hash(&mut hasher);
            (entry.file_name().into_string().unwrap(), hasher.finish())
        });
        let files = files.collect();
        self.unmount();
        files
    }

    /// A copy of it as after a power cut: it was written to, and not unmounted.
    fn cut_off(&mut self, name: &str) -> PathBuf {
        self.mount(&self.image.clone(), "loop");
        put(&self.mount_point.join("written"), &vec![7; 2 << 20]);
        run("sync", &["-f"], &self.mount_point);
        // A file that is flushed alone is what btrfs keeps a log of.
        let late = File::create(self.mount_point.join("late")).unwrap();
        late.write_all_at(b"late", 0).unwrap();
        run("sync", &[], &self.mount_point.join("late"));
        let copy = self.image.with_file_name(name);
        let cp = Program::find("cp").unwrap().arg("--sparse=always");
        cp.arg(&self.image).arg(&copy).run().unwrap();
        drop(late);
        self.unmount();
        copy
    }

    fn import(&self, engine: &Engine, image: &Path, name: &str, pool: &PoolName) -> VolumeView {
        let new = NewImported {
            name: name.parse().unwrap(),
            pool: Some(pool.clone()),
            filesystem: self.filesystem,
            format: None,
            checksum: Checksum::Skip,
        };
        engine.import_volume(&new, image).unwrap().volume
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Program::find("umount")
                .unwrap()
                .arg("-l")
                .arg(&self.mount_point)
                .run();
        }
    }
}

fn pool(engine: &Engine, name: &str, driver: &str, directory: &Path) -> PoolName {
    let name: PoolName = name.parse().unwrap();
    engine
        .add_pool(&NewPool {
            name: name.clone(),
            driver: driver.to_owned(),
            options: vec![("dir_path".to_owned(), directory.display().to_string())],
        })
        .unwrap();
    name
}

/// Puts an example of an external driver where the engine finds it.
fn install_driver(house: &House, name: &str) {
    let name = format!("sistemo-driver-{name}");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/drivers");
    let drivers = house.data_dir().join("drivers");
    fs::create_dir_all(&drivers).unwrap();
    fs::copy(example.join(&name), drivers.join(&name)).unwrap();
}

fn check(engine: &Engine, name: &str) -> Checked {
    engine
        .check_volume(&reference(name), OnDamage::Report)
        .unwrap()
}

fn part<'a>(checked: &'a Checked, name: &str) -> &'a Part {
    let mut parts = checked.parts.iter();
    parts.find(|part| part.part == name).unwrap()
}

fn filesystem(checked: &Checked) -> (Verdict, String) {
    let part = part(checked, "filesystem");
    (part.verdict, part.found.join("\n"))
}

/// Breaks the first group descriptor of an ext4 with blocks of 1 KiB.
fn break_descriptor(volume: &VolumeView) {
    write_into(volume, 2048 + 4, &[0xa5; 12]);
}

#[test]
fn unused_blocks_are_given_back_and_files_stay_as_they_are() {
    if !met(&TOOLS) {
        return;
    }
    let place = LoopFilesystem::new(LoopKind::Btrfs, Bytes::from_mib(1024));
    let house = House::new();
    let engine = house.engine();
    install_driver(&house, "tiny");
    let pools = [
        "default".parse().unwrap(),
        pool(&engine, "layers", "qcow2", &house.path("layers")),
        pool(&engine, "subvolumes", "btrfs", &place.path().join("pool")),
        pool(&engine, "external", "tiny", &house.path("external")),
    ];
    for made in [Filesystem::Ext4, Filesystem::Xfs, Filesystem::Btrfs] {
        let mut disk = Disk::made(&house, made);
        disk.fill();
        let image = disk.image.clone();
        let files = disk.files_in(&image);
        assert_eq!(files.len(), 25);
        for pool in &pools {
            let name = format!("{made}-{pool}");
            disk.import(&engine, &image, &name, pool);
            let sound = check(&engine, &name);
            assert!(sound.is_sound(), "{name}: {sound:?}");
            assert_eq!(filesystem(&sound), (Verdict::Ok, String::new()), "{name}");
            assert_eq!(sound.holds, Some(made.as_str()));

            let trimmed = engine.trim_volume(&reference(&name)).unwrap();
            assert_eq!(trimmed.reason, None, "{name}");
            assert!(trimmed.unused_bytes >= 22 * MIB, "{name}: {trimmed:?}");
            assert!(trimmed.given_back_bytes >= 20 * MIB, "{name}: {trimmed:?}");

            let sound = check(&engine, &name);
            assert!(sound.is_sound(), "{name}: {sound:?}");
            let copy = house.path(&format!("{name}.raw"));
            let export = Export::of(reference(&name));
            engine.export_volume(&export, &copy).unwrap();
            assert!(disk.files_in(&copy) == files, "{name}: files differ");
            fs::remove_file(&copy).unwrap();

            let again = engine.trim_volume(&reference(&name)).unwrap();
            assert_eq!((again.unused_bytes, again.zero_bytes), (0, 0), "{name}");
            engine.delete_volume(&reference(&name)).unwrap();
        }
    }
    assert_eq!(house.notices(), []);
}

#[test]
fn what_holds_only_zeros_is_given_back_whatever_the_volume_holds() {
    let house = House::new();
    let engine = house.engine();
    let data = volume_in(&engine, &"default".parse().unwrap(), "data", 64);
    write_into(&data, 0, &vec![0; 8 << 20]);
    write_into(&data, 3 * MIB, b"something");
    write_into(&data, 64 * MIB - 9, b"something");
    let trimmed = engine.trim_volume(&reference("data")).unwrap();
    assert_eq!(trimmed.holds, "unknown");
    assert_eq!(trimmed.unused_bytes, 0);
    assert!(trimmed.zero_bytes >= 7 * MIB, "{trimmed:?}");
    assert!(trimmed.used_bytes < MIB, "{trimmed:?}");
    assert!(holds(&data, 3 * MIB, b"something"));
    assert!(holds(&data, 64 * MIB - 9, b"something"));
    assert_eq!(house.notices(), [], "there is no filesystem to be told of");
}

#[test]
fn a_snapshot_keeps_what_its_volume_gives_back() {
    let Some(place) = reflinks() else { return };
    if !met(&TOOLS) {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    let mut disk = Disk::made(&house, Filesystem::Ext4);
    disk.fill();
    for pool in [
        pool_on(&engine, "fast", &place),
        pool(&engine, "layers", "qcow2", &house.path("layers")),
    ] {
        disk.import(&engine, &disk.image, "data", &pool);
        let export = |name: &str, snapshot: Option<&str>| {
            let export = Export {
                source: reference("data"),
                snapshot: snapshot.map(|name| name.parse().unwrap()),
                format: None,
                checksum: Checksum::Skip,
            };
            let file = house.path(name);
            engine.export_volume(&export, &file).unwrap();
            let content = fs::read(&file).unwrap();
            fs::remove_file(&file).unwrap();
            content
        };
        let before = export("before", None);
        let name = "full".parse().unwrap();
        engine
            .take_snapshot(&reference("data"), Some(name))
            .unwrap();
        house.notices();
        let trimmed = engine.trim_volume(&reference("data")).unwrap();
        assert!(trimmed.unused_bytes >= 22 * MIB, "{trimmed:?}");
        let notices = house.notices();
        assert!(
            matches!(notices[..], [Notice::SnapshotsHold { .. }]),
            "{notices:?}"
        );
        assert!(export("after", None) != before);
        assert!(export("then", Some("full")) == before);
        assert!(check(&engine, "data").is_sound());
        engine.delete_volume(&reference("data")).unwrap();
    }
}

#[test]
fn what_a_running_guest_discards_or_zeroes_is_given_back_at_once() {
    let script = Action::Shell(
        "blkdiscard${IFS}-l${IFS}8388608${IFS}/dev/vdb;dd${IFS}if=/dev/zero${IFS}of=/dev/vdb${IFS}bs=1048576${IFS}seek=8${IFS}count=4${IFS}conv=fsync;echo${IFS}given-back",
    );
    let Some((_house, engine)) = guest(&[Action::Fill("vdb"), script, Action::WaitForButton])
    else {
        return;
    };
    start(&engine, "m");
    console_shows(&engine, "given-back");
    let data = engine.volume(&reference("data")).unwrap();
    assert!(data.used_bytes.unwrap() < 5 * MIB, "{data:?}");
    assert!(holds(&data, 12 * MIB, b"sistemo\n"), "the rest is there");
}

#[test]
fn damage_is_found_and_mended_and_the_damaged_volume_kept() {
    let Some(place) = reflinks() else { return };
    if !met(&TOOLS) {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    let mut disk = Disk::made(&house, Filesystem::Ext4);
    disk.fill();
    // The first group descriptor of an ext4 with blocks of 1 KiB.
    let image = File::options().write(true).open(&disk.image).unwrap();
    image.write_all_at(&[0xa5; 12], 2048 + 4).unwrap();
    for pool in [
        pool_on(&engine, "fast", &place),
        pool(&engine, "layers", "qcow2", &house.path("layers")),
    ] {
        disk.import(&engine, &disk.image, "data", &pool);
        let damaged = check(&engine, "data");
        let (verdict, words) = filesystem(&damaged);
        assert_eq!(verdict, Verdict::Damaged);
        assert!(!words.is_empty() && !words.contains("Pass 1"), "{words}");
        let with = part(&damaged, "filesystem").checked_with.as_deref();
        assert_eq!(with, Some("e2fsck"));
        assert_eq!(part(&damaged, "data").verdict, Verdict::Ok);
        assert!(engine.snapshots(&reference("data")).unwrap().is_empty());

        let mended = engine.check_volume(&reference("data"), OnDamage::Repair);
        let mended = mended.unwrap();
        assert!(mended.is_sound(), "{mended:?}");
        assert_eq!(mended.repaired, ["filesystem"]);
        let kept = mended.kept.unwrap();
        assert_eq!(kept.as_str(), "before-repair");
        let kind = engine
            .snapshot(&reference("data"), Some(&kept))
            .unwrap()
            .kind;
        assert_eq!(kind, SnapshotKind::Replaced, "no revert goes there unasked");
        assert!(check(&engine, "data").is_sound());

        engine
            .revert_volume(&reference("data"), Some(&kept), Replaced::Discard)
            .unwrap();
        let (verdict, _) = filesystem(&check(&engine, "data"));
        assert_eq!(verdict, Verdict::Damaged, "it is as it was");
        let again = engine.check_volume(&reference("data"), OnDamage::Repair);
        let again = again.unwrap();
        assert_eq!(again.kept.unwrap().as_str(), "before-repair-2");
        engine.delete_volume(&reference("data")).unwrap();
    }
}

/// Bytes as of another program, which are no sign of anything.
fn noise(length: usize) -> Vec<u8> {
    let word = |number: usize| (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (1..=length / 8)
        .flat_map(|number| word(number).to_le_bytes())
        .collect()
}

#[test]
fn damage_that_stops_the_program_in_its_midst_is_damage_and_is_mended() {
    let Some(place) = reflinks() else { return };
    if !met(&TOOLS) {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    let fast = pool_on(&engine, "fast", &place);
    let mut disk = Disk::made(&house, Filesystem::Ext4);
    disk.fill();
    let data = disk.import(&engine, &disk.image.clone(), "data", &fast);
    let sound = "sound".parse().unwrap();
    engine
        .take_snapshot(&reference("data"), Some(sound))
        .unwrap();
    // The first inodes, and the group descriptors before them.
    write_into(&data, 2048, &noise(600 << 10));
    let path = data.path.as_ref().unwrap();
    let asked = Program::find("e2fsck").unwrap().args(["-f", "-n"]);
    let status = asked.arg(path).transcribe().unwrap().status;
    assert_eq!(status.code(), Some(4 | 8), "it gives up after errors");

    let (verdict, words) = filesystem(&check(&engine, "data"));
    assert_eq!(verdict, Verdict::Damaged);
    assert!(!words.is_empty());
    let mended = engine.check_volume(&reference("data"), OnDamage::Repair);
    let mended = mended.unwrap();
    assert!(mended.is_sound(), "{mended:?}");
    assert_eq!(mended.kept.unwrap().as_str(), "before-repair");
    assert!(check(&engine, "data").is_sound());

    // What is kept with the damage is not where a revert goes by itself.
    let back = engine.revert_volume(&reference("data"), None, Replaced::Discard);
    assert_eq!(back.unwrap().snapshot.as_str(), "sound");
    assert!(check(&engine, "data").is_sound());
}

#[test]
fn a_filesystem_of_which_no_sign_is_left_is_damage() {
    if !met(&TOOLS) {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    let place = LoopFilesystem::new(LoopKind::Btrfs, Bytes::from_mib(2048));
    let subvolumes = pool(&engine, "subvolumes", "btrfs", &place.path().join("pool"));
    for made in [Filesystem::Ext4, Filesystem::Xfs, Filesystem::Btrfs] {
        let mut disk = Disk::made(&house, made);
        disk.fill();
        let name = made.as_str();
        let data = disk.import(&engine, &disk.image.clone(), name, &subvolumes);
        let superblock = match made {
            Filesystem::Ext4 => 1024,
            Filesystem::Xfs => 0,
            _ => 64 << 10,
        };
        write_into(&data, superblock, &noise(1024));
        let lost = check(&engine, name);
        let (verdict, words) = filesystem(&lost);
        assert_eq!((verdict, lost.holds), (Verdict::Damaged, Some("unknown")));
        let told = format!("it was made with {made}, of which there is no sign");
        assert_eq!(words.lines().next(), Some(&*told));

        let repaired = engine.check_volume(&reference(name), OnDamage::Repair);
        if made == Filesystem::Ext4 {
            let repaired = repaired.unwrap();
            assert!(repaired.is_sound(), "{repaired:?}");
            assert_eq!(repaired.holds, Some("ext4"));
            let out = house.path("out.raw");
            let export = Export::of(reference(name));
            engine.export_volume(&export, &out).unwrap();
            assert!(disk.files_in(&out) == disk.files_in(&disk.image.clone()));
        } else {
            let error = repaired.unwrap_err();
            let expected = format!(
                "the filesystem of volume {made} cannot be repaired: nothing is left to find it by"
            );
            assert_eq!(error.to_string(), expected);
        }
    }
}

#[test]
fn what_may_have_replaced_an_ext4_is_not_overwritten_where_nothing_brings_it_back() {
    if !met(&TOOLS) {
        return;
    }
    let place = LoopFilesystem::new(LoopKind::Ext4, Bytes::from_mib(1024));
    let house = House::new();
    let engine = house.engine();
    let plain = pool(&engine, "plain", "file", &place.path().join("pool"));
    let mut disk = Disk::made(&house, Filesystem::Ext4);
    disk.fill();
    let data = disk.import(&engine, &disk.image.clone(), "data", &plain);
    write_into(&data, 0, &noise(8192));
    let before = std::fs::read(data.path.as_ref().unwrap()).unwrap();
    let error = engine
        .check_volume(&reference("data"), OnDamage::Repair)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the filesystem of volume data cannot be repaired: something else may be in its place"
    );
    assert!(std::fs::read(data.path.unwrap()).unwrap() == before);
}

#[test]
fn an_ext4_without_any_superblock_is_refused_before_anything_is_done() {
    if !met(&[Requirement::Program("e2fsck")]) {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    let data = volume(&engine, "data", "16M");
    // Where the copy is, and then all but the sign of the first.
    write_into(&data, 8 * MIB, &noise(64 << 10));
    for (at, told) in [
        (
            1024 + 0x40,
            "there is neither a superblock nor a copy of one",
        ),
        (1024, "it was made with ext4, of which there is no sign"),
    ] {
        write_into(&data, at, &noise(512));
        let (verdict, words) = filesystem(&check(&engine, "data"));
        assert_eq!(verdict, Verdict::Damaged);
        assert!(words.starts_with(told), "{words}");
        let error = engine.check_volume(&reference("data"), OnDamage::Repair);
        let error = error.unwrap_err();
        assert!(
            matches!(
                error,
                Error::NotRepairable {
                    obstacle: Obstacle::Lost,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(house.notices(), [], "nothing was begun");
    }
}

#[test]
fn a_volume_that_was_wiped_or_given_to_something_else_is_no_problem() {
    if !met(&[Requirement::Program("mkfs.ext4")]) {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    let data = volume(&engine, "data", "16M");
    write_into(&data, 0, &vec![0; 1 << 20]);
    assert_eq!(filesystem(&check(&engine, "data")).0, Verdict::NotChecked);
    write_into(&data, 0, b"LUKS\xba\xbe");
    let checked = check(&engine, "data");
    assert!(checked.is_sound());
    assert_eq!(filesystem(&checked).0, Verdict::NotChecked);
}

#[test]
fn nothing_is_kept_where_that_takes_a_copy_and_nothing_done_where_nothing_is_wrong() {
    if !met(&[Requirement::Program("e2fsck")]) {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    let data = volume(&engine, "data", "32M");
    let sound = engine.check_volume(&reference("data"), OnDamage::Repair);
    let sound = sound.unwrap();
    assert!(sound.is_sound() && sound.repaired.is_empty() && sound.kept.is_none());
    assert_eq!(house.notices(), []);
    break_descriptor(&data);
    let mended = engine.check_volume(&reference("data"), OnDamage::Repair);
    let mended = mended.unwrap();
    assert!(mended.is_sound());
    assert_eq!(mended.kept, None);
    let notices = house.notices();
    assert!(
        matches!(notices[..], [Notice::NothingKept { .. }]),
        "{notices:?}"
    );
    // So much that e2fsck cannot go on without mending something.
    write_into(&data, 4096, &vec![0xa5; 300 << 10]);
    let (verdict, words) = filesystem(&check(&engine, "data"));
    assert_eq!(verdict, Verdict::Damaged, "{words}");
    let mended = engine.check_volume(&reference("data"), OnDamage::Repair);
    assert!(mended.unwrap().is_sound());
}

#[test]
fn a_filesystem_that_was_cut_off_is_not_taken_for_damaged() {
    if !met(&TOOLS) {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    let default: PoolName = "default".parse().unwrap();
    for made in [Filesystem::Ext4, Filesystem::Xfs, Filesystem::Btrfs] {
        let mut disk = Disk::made(&house, made);
        disk.fill();
        let copy = disk.cut_off("copy.img");
        let name = made.as_str();
        disk.import(&engine, &copy, name, &default);
        let (verdict, words) = filesystem(&check(&engine, name));
        // On disk, a btrfs is always as its last commit has left it.
        if made == Filesystem::Btrfs {
            assert_eq!(verdict, Verdict::Ok, "{words}");
        } else {
            assert_eq!(verdict, Verdict::Unclean, "{made}");
            assert!(words.contains("not unmounted cleanly"), "{words}");
        }

        let trimmed = engine.trim_volume(&reference(name)).unwrap();
        assert_eq!(trimmed.unused_bytes, 0, "{made}");
        let reason = trimmed.reason.unwrap();
        assert_eq!(reason, format!("its {made} was not unmounted cleanly"));
        let notices = house.notices();
        assert!(
            matches!(notices.last(), Some(Notice::OnlyZerosTrimmed { .. })),
            "{notices:?}"
        );

        let repaired = engine.check_volume(&reference(name), OnDamage::Repair);
        match made {
            Filesystem::Ext4 => {
                let repaired = repaired.unwrap();
                assert!(repaired.is_sound(), "{repaired:?}");
                let out = house.path("out.raw");
                let export = Export::of(reference(name));
                engine.export_volume(&export, &out).unwrap();
                assert!(disk.files_in(&out).contains_key("late"));
            }
            Filesystem::Xfs => {
                let error = repaired.unwrap_err();
                let expected = "the filesystem of volume xfs cannot be repaired: \
                                its log has to be replayed first, by mounting it";
                assert_eq!(error.to_string(), expected);
                assert!(matches!(
                    error,
                    Error::NotRepairable {
                        obstacle: Obstacle::DirtyLog,
                        ..
                    }
                ));
            }
            _ => assert!(repaired.unwrap().repaired.is_empty()),
        }
        fs::remove_file(copy).unwrap();
    }
}

#[test]
fn damage_to_xfs_is_mended_and_damage_to_btrfs_told() {
    if !met(&TOOLS) {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    let default: PoolName = "default".parse().unwrap();
    for made in [Filesystem::Xfs, Filesystem::Btrfs] {
        let mut disk = Disk::made(&house, made);
        disk.fill();
        let name = made.as_str();
        let data = disk.import(&engine, &disk.image.clone(), name, &default);
        // The inode counts of the first allocation group; both copies of btrfs' metadata.
        if made == Filesystem::Xfs {
            write_into(&data, 1024 + 16, &[0xff; 4]);
        } else {
            for at in (37 * MIB..39 * MIB)
                .chain(69 * MIB..71 * MIB)
                .step_by(16384)
            {
                write_into(&data, at, &[0x5a; 128]);
            }
        }
        let found = check(&engine, name);
        let (verdict, words) = filesystem(&found);
        assert_eq!(verdict, Verdict::Damaged, "{made}");
        assert!(!words.is_empty(), "{made}");
        let damaged = format!("its {made} is damaged");
        let trimmed = engine.trim_volume(&reference(name)).unwrap();
        assert_eq!(
            (trimmed.unused_bytes, trimmed.reason.as_deref()),
            (0, Some(damaged.as_str()))
        );
        let repaired = engine.check_volume(&reference(name), OnDamage::Repair);
        if made == Filesystem::Xfs {
            assert!(repaired.unwrap().is_sound());
        } else {
            let error = repaired.unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::NotRepairable {
                        obstacle: Obstacle::NoSafeRepair,
                        ..
                    }
                ),
                "{error}"
            );
        }
    }
}

#[test]
fn what_is_no_filesystem_is_said_and_is_no_error() {
    let house = House::new();
    let engine = house.engine();
    let default: PoolName = "default".parse().unwrap();
    let bare = volume_in(&engine, &default, "bare", 16);
    for (at, sign, told) in [
        (0, &b""[..], "it holds no filesystem that is known here"),
        (510, &[0x55, 0xaa], "it holds partitions"),
        (
            0x438,
            &[0x53, 0xef],
            "it holds signs of more than one thing",
        ),
    ] {
        write_into(&bare, at, sign);
        let checked = check(&engine, "bare");
        assert!(checked.is_sound());
        assert_eq!(filesystem(&checked), (Verdict::NotChecked, told.to_owned()));
        assert_eq!(part(&checked, "filesystem").checked_with, None);
    }
    // Of one that was wiped, what it was made with is said, and no more.
    let data = volume(&engine, "data", "16M");
    write_into(&data, 0, &vec![0; 1 << 20]);
    let checked = check(&engine, "data");
    assert!(checked.is_sound());
    let (_, told) = filesystem(&checked);
    assert_eq!(
        told,
        "it holds no filesystem that is known here; it was made with ext4"
    );
}

#[test]
fn what_a_guest_has_made_counts_and_not_what_the_volume_was_made_with() {
    if !met(&[
        Requirement::Program("mkfs.btrfs"),
        Requirement::Program("btrfs"),
    ]) {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    let data = volume(&engine, "data", "128M");
    run("mkfs.btrfs", &["-q", "-f"], data.path.as_ref().unwrap());
    let checked = check(&engine, "data");
    assert_eq!(checked.holds, Some("btrfs"));
    assert_eq!(filesystem(&checked), (Verdict::Ok, String::new()));
}

#[test]
fn a_description_that_is_lost_is_written_anew() {
    if !met(&[Requirement::Program("e2fsck")]) {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    let data = volume(&engine, "data", "16M");
    let file = data
        .path
        .unwrap()
        .with_file_name(format!("{}.json", data.id));
    let written = fs::read(&file).unwrap();
    put(&file, b"{");
    let checked = check(&engine, "data");
    assert_eq!(part(&checked, "data").verdict, Verdict::Damaged);
    assert_eq!(
        filesystem(&checked).0,
        Verdict::Ok,
        "it is looked at all the same"
    );
    let mended = engine.check_volume(&reference("data"), OnDamage::Repair);
    let mended = mended.unwrap();
    assert_eq!(
        (mended.is_sound(), &mended.repaired[..]),
        (true, &["description"][..])
    );
    assert_eq!(fs::read(&file).unwrap(), written);
}

#[test]
fn data_that_is_not_as_it_was_is_told_and_not_mended() {
    let house = House::new();
    let engine = house.engine();
    let data = volume(&engine, "data", "16M");
    let file = File::options()
        .write(true)
        .open(data.path.unwrap())
        .unwrap();
    file.set_len(8 * MIB).unwrap();
    let checked = check(&engine, "data");
    assert_eq!(part(&checked, "data").verdict, Verdict::Damaged);
    assert_eq!(
        filesystem(&checked),
        (Verdict::NotChecked, "its data is not usable".to_owned())
    );
    let error = engine.check_volume(&reference("data"), OnDamage::Repair);
    let error = error.unwrap_err();
    assert!(
        matches!(
            error,
            Error::NotRepairable {
                what: "data",
                obstacle: Obstacle::Data(_),
                ..
            }
        ),
        "{error}"
    );
    let error = engine.trim_volume(&reference("data")).unwrap_err();
    assert!(matches!(error, Error::VolumeDamaged { .. }), "{error}");
}

#[test]
fn in_a_pool_that_cannot_be_written_damage_is_told_and_nothing_tried() {
    let Some(place) = reflinks() else { return };
    if !met(&TOOLS) {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    let fast = pool_on(&engine, "fast", &place);
    let layers = pool(&engine, "layers", "qcow2", &place.path().join("layers"));
    for pool in [&fast, &layers] {
        let new = NewVolume {
            size: Bytes::from_mib(32),
            name: Some(pool.as_str().parse().unwrap()),
            pool: Some(pool.clone()),
            filesystem: Filesystem::Ext4,
        };
        engine.create_volume(new).unwrap();
    }
    break_descriptor(&engine.volume(&reference("fast")).unwrap());
    run("mount", &["-o", "remount,ro"], place.path());
    let engine = house.engine();
    assert_eq!(filesystem(&check(&engine, "fast")).0, Verdict::Damaged);
    assert_eq!(
        filesystem(&check(&engine, "layers")),
        (Verdict::Ok, String::new())
    );
    for name in ["fast", "layers"] {
        let error = engine.trim_volume(&reference(name)).unwrap_err();
        assert!(matches!(error, Error::Pool { .. }), "{error}");
    }
    let error = engine.check_volume(&reference("fast"), OnDamage::Repair);
    assert!(matches!(error, Err(Error::Pool { .. })), "{error:?}");
}

#[test]
fn a_pool_that_is_not_there_is_an_error_and_its_volumes_usage_unknown() {
    let house = House::new();
    let engine = house.engine();
    let gone = pool(&engine, "gone", "file", &house.path("gone"));
    volume_in(&engine, &gone, "data", 16);
    volume_in(&engine, &"default".parse().unwrap(), "other", 16);
    fs::remove_dir_all(house.path("gone")).unwrap();
    let engine = house.engine();
    for error in [
        engine
            .check_volume(&reference("data"), OnDamage::Report)
            .unwrap_err(),
        engine.trim_volume(&reference("data")).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Pool { .. }), "{error}");
    }
    let usage = engine.usage_of_volumes().unwrap();
    assert_eq!(usage[0].used_bytes, None);
    assert!(usage[0].reason.is_some() && usage[1].reason.is_none());
    assert_eq!(usage[1].size_bytes, 16 * MIB);
}

#[test]
fn usage_tells_what_is_shared_and_what_would_be_free() {
    let needed = [
        Requirement::Program("qemu-io"),
        Requirement::Program("mkfs.btrfs"),
    ];
    let Some(place) = reflinks().filter(|_| met(&needed)) else {
        return;
    };
    let subvolumes = LoopFilesystem::new(LoopKind::Btrfs, Bytes::from_mib(256));
    let house = House::new();
    let engine = house.engine();
    let place = place.path();
    for pool in [
        pool(&engine, "fast", "file", &place.join("fast")),
        pool(&engine, "layers", "qcow2", &house.path("layers")),
        pool(
            &engine,
            "subvolumes",
            "btrfs",
            &subvolumes.path().join("pool"),
        ),
    ] {
        let name = pool.as_str();
        let data = volume_in(&engine, &pool, name, 64);
        let format = data.format.unwrap();
        let path = data.path.unwrap();
        let write = |what: &str| {
            let io = Program::find("qemu-io")
                .unwrap()
                .args(["-f", &format, "-c", what]);
            io.args(["-c", "flush"])
                .arg(engine.volume(&reference(name)).unwrap().path.unwrap())
                .run()
                .unwrap();
        };
        // Apart: btrfs keeps an extent whole as long as any of it is needed.
        write("write -P 1 0 4M");
        write("write -P 1 4M 8M");
        let usage = || {
            run("sync", &["-f"], path.parent().unwrap());
            engine.volume_usage(&reference(name)).unwrap()
        };
        let near = |bytes: Option<u64>, mib: u64| {
            let bytes = bytes.unwrap();
            (mib * MIB..(mib + 1) * MIB).contains(&bytes)
        };
        let whole = usage();
        assert!(
            near(whole.alone_bytes, 12) && near(whole.shared_bytes, 0),
            "{whole:?}"
        );
        assert_eq!(whole.snapshots, Some(Vec::new()));

        engine
            .take_snapshot(&reference(name), Some("one".parse().unwrap()))
            .unwrap();
        write("write -P 2 0 4M");
        let shared = usage();
        assert!(near(shared.alone_bytes, 4), "{shared:?}");
        // Of a layer that both need, what the volume has written over since is still there.
        let (both, replaced) = if name == "layers" { (12, 0) } else { (8, 4) };
        assert!(near(shared.shared_bytes, both), "{shared:?}");
        let snapshots = shared.snapshots.as_ref().unwrap();
        assert_eq!(snapshots[0].name.as_str(), "one");
        assert!(near(Some(snapshots[0].alone_bytes), replaced), "{shared:?}");
        assert!(near(shared.snapshots_alone_bytes, replaced), "{shared:?}");
    }
    let all = engine.usage_of_volumes().unwrap();
    assert_eq!(all.len(), 3);
    assert!(all.iter().all(|usage| usage.reason.is_none()), "{all:?}");
}

#[test]
fn a_volume_that_its_machine_uses_is_left_alone() {
    let Some((_house, engine)) = guest(&[Action::WaitForButton]) else {
        return;
    };
    assert!(
        check(&engine, "data").is_sound(),
        "a stopped machine is no obstacle"
    );
    start(&engine, "m");
    for error in [
        engine
            .check_volume(&reference("data"), OnDamage::Report)
            .unwrap_err(),
        engine.trim_volume(&reference("data")).unwrap_err(),
    ] {
        let told = error.to_string();
        assert!(
            told.starts_with("machine m is ") && told.contains("volume data"),
            "{told}"
        );
        assert!(matches!(error, Error::MachineActive { .. }));
    }
}
