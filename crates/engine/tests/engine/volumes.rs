//! Volumes: what is made, what is refused, and that a refusal changes nothing.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use sistemo::doctor::Verdict;
use sistemo::machines::Storage;
use sistemo::model::{Bytes, Filesystem};
use sistemo::volumes::{Grow, NewVolume, VolumeStatus};
use sistemo::{Error, Notice};
use sistemo_host::directory::Directory;
use sistemo_host::program::Program;

use crate::fixture::{GIB, House, MIB, attaching, plan, reference, volume};

fn new(name: &str, size: u64, filesystem: Filesystem) -> NewVolume {
    NewVolume {
        size: Bytes::new(size),
        name: Some(name.parse().unwrap()),
        pool: None,
        filesystem,
    }
}

#[test]
fn an_empty_5_gb_volume_takes_less_than_4_mb() {
    let house = House::new();
    let pgdata = volume(&house.engine(), "pgdata", "5G");
    assert_eq!(pgdata.size_bytes, 5 * GIB);
    assert!(
        pgdata.used_bytes.unwrap() < 4 * MIB,
        "{:?}",
        pgdata.used_bytes
    );
    assert_eq!(pgdata.status, VolumeStatus::Available);
    let path = house
        .data_dir()
        .join("volumes")
        .join(format!("{}.ext4", pgdata.id));
    assert_eq!(pgdata.path.as_deref(), Some(path.as_path()));
}

#[test]
fn a_volume_holds_the_filesystem_that_was_asked_for() {
    let house = House::new();
    let engine = house.engine();
    // Where each filesystem keeps its magic number, from its on-disk format's description.
    for (filesystem, offset, magic) in [
        (Filesystem::Ext4, 0x438, &[0x53, 0xef][..]),
        (Filesystem::Xfs, 0, b"XFSB"),
        (Filesystem::Btrfs, 0x1_0040, b"_BHRfS_M"),
    ] {
        let size = filesystem.minimum_size().get();
        let made = engine
            .create_volume(new(filesystem.as_str(), size, filesystem))
            .unwrap();
        let mut found = vec![0; magic.len()];
        File::open(made.path.unwrap())
            .unwrap()
            .read_exact_at(&mut found, offset)
            .unwrap();
        assert_eq!(found, magic, "{filesystem}");
    }
    let bare = engine
        .create_volume(new("bare", MIB, Filesystem::None))
        .unwrap();
    assert_eq!(bare.used_bytes, Some(0));
}

#[test]
fn a_size_too_small_for_its_filesystem_is_refused() {
    let house = House::new();
    let engine = house.engine();
    for filesystem in [Filesystem::Ext4, Filesystem::Xfs, Filesystem::Btrfs] {
        let size = filesystem.minimum_size().get() - 512;
        let error = engine
            .create_volume(new("small", size, filesystem))
            .unwrap_err();
        assert!(
            matches!(error, Error::TooSmallForFilesystem { .. }),
            "{error}"
        );
    }
    assert!(engine.volumes().unwrap().is_empty());
    assert!(house.volume_files().is_empty());
}

#[test]
fn a_size_no_filesystem_can_hold_leaves_nothing() {
    let house = House::new();
    let engine = house.engine();
    let error = engine
        .create_volume(new("huge", 1 << 62, Filesystem::None))
        .unwrap_err();
    assert!(error.to_string().contains("create volume huge"), "{error}");
    assert!(engine.volumes().unwrap().is_empty());
    assert!(house.volume_files().is_empty());
    engine
        .create_volume(new("huge", MIB, Filesystem::None))
        .unwrap();
}

#[test]
fn a_volume_without_a_name_is_called_by_its_id() {
    let house = House::new();
    let engine = house.engine();
    let size = Bytes::from_mib(16);
    let nameless = NewVolume {
        size,
        name: None,
        pool: None,
        filesystem: Filesystem::Ext4,
    };
    let made = engine.create_volume(nameless).unwrap();
    assert_eq!(made.name.as_str(), &made.id.simple()[..8]);
}

#[test]
fn a_name_is_taken_by_a_volume_of_that_name_or_id() {
    let house = House::new();
    let engine = house.engine();
    let first = volume(&engine, "pgdata", "16M");
    for name in ["pgdata", first.id.to_string().as_str()] {
        let error = engine
            .create_volume(new(name, 16 * MIB, Filesystem::Ext4))
            .unwrap_err();
        assert!(
            matches!(&error, Error::NameTaken { name: taken, .. } if taken == name),
            "{error}"
        );
    }
    assert_eq!(engine.volumes().unwrap().len(), 1);
    assert_eq!(house.volume_files().len(), 2);
}

#[test]
fn a_volume_is_found_by_name_id_and_beginning_of_the_id() {
    let house = House::new();
    let engine = house.engine();
    let made = volume(&engine, "pgdata", "16M");
    let id = made.id.to_string();
    for text in ["pgdata", id.as_str(), &id[..8], &id[..13]] {
        assert_eq!(
            engine.volume(&reference(text)).unwrap().id,
            made.id,
            "{text}"
        );
    }
    for text in ["pgdat", &id[..7], "none"] {
        let error = engine.volume(&reference(text)).unwrap_err();
        assert_eq!(error.to_string(), format!("volume {text} does not exist"));
    }
}

#[test]
fn a_pool_that_does_not_exist_is_refused_by_name() {
    let house = House::new();
    let engine = house.engine();
    let mut wanted = new("v", 16 * MIB, Filesystem::Ext4);
    wanted.pool = Some("fast".parse().unwrap());
    let error = engine.create_volume(wanted).unwrap_err();
    assert_eq!(error.to_string(), "pool fast does not exist");
    assert!(engine.volumes().unwrap().is_empty());
}

#[test]
fn a_missing_or_damaged_file_shows_as_an_error_with_its_reason() {
    let house = House::new();
    let engine = house.engine();
    let gone = volume(&engine, "gone", "16M").path.unwrap();
    let cut = volume(&engine, "cut", "16M").path.unwrap();
    volume(&engine, "whole", "16M");
    std::fs::remove_file(gone).unwrap();
    OpenOptions::new()
        .write(true)
        .open(cut)
        .unwrap()
        .set_len(8 * MIB)
        .unwrap();
    let listed = engine.volumes().unwrap();
    let status: Vec<_> = listed.iter().map(|v| (v.name.as_str(), v.status)).collect();
    let (broken, fine) = (VolumeStatus::Error, VolumeStatus::Available);
    assert_eq!(status, [("cut", broken), ("gone", broken), ("whole", fine)]);
    assert!(
        listed[0].reason.as_ref().unwrap().contains("8388608"),
        "{:?}",
        listed[0].reason
    );
    for name in ["cut", "gone"] {
        let to = Bytes::from_mib(32);
        let error = engine
            .resize_volume(&reference(name), to, Grow::Device)
            .unwrap_err();
        assert!(
            matches!(error, Error::VolumeDamaged { .. } | Error::Pool { .. }),
            "{error}"
        );
        engine.delete_volume(&reference(name)).unwrap();
    }
}

#[test]
fn a_volume_only_grows() {
    let house = House::new();
    let engine = house.engine();
    volume(&engine, "v", "32M");
    for size in ["16M", "32M"] {
        let to = size.parse().unwrap();
        let error = engine
            .resize_volume(&reference("v"), to, Grow::Device)
            .unwrap_err();
        assert!(matches!(error, Error::NotLarger { .. }), "{error}");
    }
    let grown = engine
        .resize_volume(&reference("v"), "64M".parse().unwrap(), Grow::Device)
        .unwrap();
    assert_eq!(grown.size_bytes, 64 * MIB);
    assert_eq!(
        std::fs::metadata(grown.path.unwrap()).unwrap().len(),
        64 * MIB
    );
}

/// The number of blocks an ext4 says it has, times their size.
fn ext4_bytes(path: &std::path::Path) -> u64 {
    let mut superblock = [0; 1024];
    File::open(path)
        .unwrap()
        .read_exact_at(&mut superblock, 1024)
        .unwrap();
    let word = |at: usize| {
        u64::from(u32::from_le_bytes(
            superblock[at..at + 4].try_into().unwrap(),
        ))
    };
    word(4) << (10 + word(24))
}

#[test]
fn the_filesystem_grows_with_its_volume_when_asked() {
    let house = House::new();
    let engine = house.engine();
    let path = volume(&engine, "v", "32M").path.unwrap();
    let grow =
        |size: &str, what| engine.resize_volume(&reference("v"), size.parse().unwrap(), what);
    grow("64M", Grow::Device).unwrap();
    assert_eq!(ext4_bytes(&path), 32 * MIB);
    // The device has the size already: only the filesystem is left to grow.
    grow("64M", Grow::DeviceAndFilesystem).unwrap();
    assert_eq!(ext4_bytes(&path), 64 * MIB);
    grow("128M", Grow::DeviceAndFilesystem).unwrap();
    assert_eq!(ext4_bytes(&path), 128 * MIB);
}

#[test]
fn a_filesystem_that_cannot_be_grown_is_refused_before_anything_changes() {
    let house = House::new();
    let engine = house.engine();
    let bare = engine
        .create_volume(new("bare", 32 * MIB, Filesystem::None))
        .unwrap();
    let dirty = volume(&engine, "dirty", "32M");
    let file = OpenOptions::new()
        .write(true)
        .open(dirty.path.as_ref().unwrap())
        .unwrap();
    // As a mounted ext4 has it: the journal needs recovery (INCOMPAT_RECOVER).
    file.write_all_at(&[0xc6], 1024 + 0x60).unwrap();
    for (name, path, reason) in [
        ("bare", bare.path, "no ext4"),
        ("dirty", dirty.path, "not unmounted cleanly"),
    ] {
        let to = Bytes::from_mib(64);
        let error = engine
            .resize_volume(&reference(name), to, Grow::DeviceAndFilesystem)
            .unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(std::fs::metadata(path.unwrap()).unwrap().len(), 32 * MIB);
    }
}

#[test]
fn a_filesystem_with_errors_that_can_be_corrected_is_corrected_and_grown() {
    let house = House::new();
    let engine = house.engine();
    let path = volume(&engine, "v", "32M").path.unwrap();
    // As the kernel leaves a filesystem in which it found errors, and a count that is wrong.
    for change in ["state 3", "free_inodes_count 1"] {
        let debugfs = Program::find("debugfs").unwrap().args(["-w", "-R"]);
        debugfs
            .arg(format!("set_super_value {change}"))
            .arg(&path)
            .run()
            .unwrap();
    }
    let to = Bytes::from_mib(64);
    engine
        .resize_volume(&reference("v"), to, Grow::DeviceAndFilesystem)
        .unwrap();
    assert_eq!(ext4_bytes(&path), 64 * MIB);
}

#[test]
fn a_renamed_volume_keeps_its_id_and_its_description_follows() {
    let house = House::new();
    let engine = house.engine();
    let old = volume(&engine, "old", "16M");
    volume(&engine, "other", "16M");
    let error = engine
        .rename_volume(&reference("old"), "other".parse().unwrap())
        .unwrap_err();
    assert!(matches!(error, Error::NameTaken { .. }), "{error}");
    let renamed = engine
        .rename_volume(&reference("old"), "new".parse().unwrap())
        .unwrap();
    assert_eq!((renamed.id, renamed.name.as_str()), (old.id, "new"));
    let description = house
        .data_dir()
        .join("volumes")
        .join(format!("{}.json", old.id));
    assert!(
        std::fs::read_to_string(description)
            .unwrap()
            .contains("\"new\"")
    );
}

#[test]
fn renaming_an_attached_volume_warns_about_its_device_name() {
    let house = House::new();
    let engine = house.engine();
    house.import_disk(&engine, MIB);
    volume(&engine, "data", "16M");
    engine
        .deploy(&attaching(plan("disk", "db1"), &["data"]))
        .unwrap();
    house.notices();
    engine
        .rename_volume(&reference("data"), "pgdata".parse().unwrap())
        .unwrap();
    let notices = house.notices();
    assert!(
        matches!(notices.as_slice(), [Notice::DeviceNameChanged { .. }]),
        "{notices:?}"
    );
}

#[test]
fn a_deleted_volume_is_gone_and_its_name_is_free() {
    let house = House::new();
    let engine = house.engine();
    let first = volume(&engine, "v", "16M");
    engine.destroy_volume(&reference("v")).unwrap();
    assert!(house.volume_files().is_empty());
    assert!(engine.volume(&reference("v")).is_err());
    assert_ne!(volume(&engine, "v", "16M").id, first.id);
}

#[test]
fn an_attached_volume_is_not_deleted() {
    let house = House::new();
    let engine = house.engine();
    house.import_disk(&engine, MIB);
    volume(&engine, "data", "16M");
    engine
        .deploy(&attaching(plan("disk", "db1"), &["data"]))
        .unwrap();
    for name in ["data", "db1-root"] {
        let error = engine.delete_volume(&reference(name)).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("volume {name} is attached to db1")
        );
    }
    assert_eq!(engine.volumes().unwrap().len(), 2);
}

#[test]
fn a_volume_whose_pool_is_away_is_not_deleted() {
    let house = House::new();
    let engine = house.engine();
    house.import_disk(&engine, MIB);
    volume(&engine, "v", "16M");
    engine.deploy(&plan("disk", "m")).unwrap();
    let home = Directory::open(&house.data_dir()).unwrap();
    home.rename("volumes", "elsewhere").unwrap();
    let away = house.engine();
    for error in [
        away.delete_volume(&reference("v")).unwrap_err(),
        away.delete_machine(&reference("m"), Storage::RemoveRoot)
            .unwrap_err(),
    ] {
        assert!(matches!(error, Error::Pool { .. }), "{error}");
    }
    home.rename("elsewhere", "volumes").unwrap();
    let back = house.engine();
    assert_eq!(back.volumes().unwrap().len(), 2);
    assert_eq!(
        back.volume(&reference("v")).unwrap().status,
        VolumeStatus::Available
    );
    assert_eq!(back.machine(&reference("m")).unwrap().volumes.len(), 1);
}

#[test]
fn a_data_directory_is_made_but_never_its_parent() {
    let house = House::new();
    let engine = house.engine();
    drop(engine);
    std::fs::remove_dir_all(house.data_dir()).unwrap();
    std::fs::remove_dir_all(house.data_dir().parent().unwrap()).unwrap();
    let error = house.try_engine().unwrap_err();
    assert!(matches!(error, Error::DataDirectory { .. }), "{error}");
    assert!(!house.data_dir().exists());
}

#[test]
fn a_pool_directory_that_was_emptied_is_not_written_to() {
    let house = House::new();
    volume(&house.engine(), "v", "16M");
    // As it looks where the disk that should be mounted there is not.
    let pool = house.data_dir().join("volumes");
    let home = Directory::open(&house.data_dir()).unwrap();
    home.rename("volumes", "elsewhere").unwrap();
    std::fs::create_dir(&pool).unwrap();
    let engine = house.engine();
    let error = engine
        .create_volume(new("w", 16 * MIB, Filesystem::Ext4))
        .unwrap_err();
    assert!(matches!(error, Error::Pool { .. }), "{error}");
    assert_eq!(
        engine.volume(&reference("v")).unwrap().status,
        VolumeStatus::Error
    );
    assert_eq!(std::fs::read_dir(&pool).unwrap().count(), 0);
    std::fs::remove_dir(&pool).unwrap();
    home.rename("elsewhere", "volumes").unwrap();
    assert_eq!(
        house.engine().volume(&reference("v")).unwrap().status,
        VolumeStatus::Available
    );
}

#[test]
fn the_doctor_sees_what_does_not_belong_in_a_pool_and_what_is_missing() {
    let house = House::new();
    let engine = house.engine();
    let look = || {
        let checks = sistemo::doctor::examine(engine.settings());
        let pool = checks
            .into_iter()
            .find(|check| check.name == "pool")
            .unwrap();
        (pool.verdict, pool.found)
    };
    let kept = volume(&engine, "kept", "16M");
    let gone = volume(&engine, "gone", "16M");
    let (verdict, found) = look();
    assert_eq!(verdict, Verdict::Ok);
    assert!(found.starts_with("default: 2 volumes"), "{found}");

    let pool = house.data_dir().join("volumes");
    File::create(pool.join("notes.txt")).unwrap();
    std::fs::remove_file(gone.path.unwrap()).unwrap();
    let (verdict, found) = look();
    assert_eq!(verdict, Verdict::Warning);
    assert!(found.contains("notes.txt is nothing of ours"), "{found}");
    assert!(
        found.contains(&format!("gone ({}) is missing", gone.id)),
        "{found}"
    );
    assert!(!found.contains(&kept.id.to_string()), "{found}");

    std::fs::remove_file(pool.join(".sistemo-pool")).unwrap();
    assert_eq!(look().0, Verdict::Failed);
}

#[test]
fn engines_at_work_at_once_do_not_disturb_each_other() {
    let house = House::new();
    let names = |thread: usize| (0..10).map(move |number| format!("v-{thread}-{number}"));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let house = &house;
            scope.spawn(move || {
                let engine = house.engine();
                for name in names(thread) {
                    volume(&engine, &name, "16M");
                }
                for name in names(thread).step_by(2) {
                    engine.destroy_volume(&reference(&name)).unwrap();
                }
            });
        }
    });
    assert_eq!(house.engine().volumes().unwrap().len(), 20);
    assert_eq!(house.volume_files().len(), 40);
}
