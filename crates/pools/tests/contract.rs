//! The built-in drivers keep the driver contract, law by law, on the filesystems that they are
//! made for.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use sistemo_conformance::small::SmallPlace;
use sistemo_conformance::{Bench, Place, laws_hold_for};
use sistemo_model::{Bytes, CatalogueId, Filesystem, Role, Timestamp, VolumeId};
use sistemo_pools::{Description, FirstUse, Keeping, Pool, PoolConfig, PoolError, Registry};
use sistemo_testkit::{LoopFilesystem, LoopKind, Requirement, met};

/// Opens a pool as a `storage.conf` with these options would have it.
fn open(driver: &str, options: &[(&str, &str)], place: &Place) -> Result<Arc<dyn Pool>, PoolError> {
    let registry = Registry::built_in();
    let info = registry.by_name(driver).unwrap();
    let defaults = info.options.iter();
    let defaults =
        defaults.filter_map(|option| Some((option.name.as_str(), option.default.as_deref()?)));
    let path = place.directory.display().to_string();
    let given = options.iter().copied().chain([("dir_path", path.as_str())]);
    let config = PoolConfig {
        name: "default".parse().unwrap(),
        driver: info.name.clone(),
        directory: Some(place.directory.clone()),
        keeping: Keeping::default(),
        options: defaults
            .chain(given)
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
    };
    registry.open(&config, place.catalogue, FirstUse::Allowed)
}

/// A bench on a filesystem of its own, where this host can mount one.
fn bench(
    driver: &str,
    open: fn(&Place) -> Result<Arc<dyn Pool>, PoolError>,
    kind: LoopKind,
) -> Option<Bench> {
    let mkfs = match kind {
        LoopKind::Ext4 => "mkfs.ext4",
        LoopKind::Xfs => "mkfs.xfs",
        LoopKind::Btrfs => "mkfs.btrfs",
        LoopKind::Tmpfs => "mount",
    };
    if !met(&[Requirement::Root, Requirement::Program(mkfs)]) {
        return None;
    }
    let filesystem = LoopFilesystem::new(kind, Bytes::from_mib(2 << 10));
    let home = filesystem.path().join("home");
    std::fs::create_dir(&home).unwrap();
    let powers = Registry::built_in().by_name(driver).unwrap().powers;
    let bench = Bench::new(&home, open)
        .with_powers(&powers)
        .with_small_place(SmallPlace::like(&home));
    Some(bench.keeping(filesystem))
}

macro_rules! driver_keeps_the_laws {
    ($name:ident: $driver:literal $options:expr, on $kind:ident) => {
        mod $name {
            use super::*;

            fn open_it(place: &Place) -> Result<Arc<dyn Pool>, PoolError> {
                open($driver, &$options, place)
            }

            laws_hold_for!(laws, open_it, bench($driver, open_it, LoopKind::$kind));
        }
    };
}

/// The laws of a power that a driver does not claim are not tried, so what each claims is said
/// here once more.
#[test]
fn the_built_in_drivers_claim_what_they_are_made_for() {
    for (driver, kind, copied_live, switched_live) in [
        ("file", LoopKind::Ext4, true, false),
        ("file", LoopKind::Xfs, false, false),
        ("file-reflink", LoopKind::Xfs, false, false),
        ("btrfs", LoopKind::Btrfs, false, false),
        ("qcow2", LoopKind::Ext4, false, true),
    ] {
        if !met(&[Requirement::Root]) {
            return;
        }
        let filesystem = LoopFilesystem::new(kind, Bytes::from_mib(2 << 10));
        let place = Place {
            directory: filesystem.path().join("pool"),
            catalogue: CatalogueId::random(),
        };
        let pool = open(driver, &[], &place).unwrap();
        let id = VolumeId::random();
        let description = Description {
            id,
            name: "v".parse().unwrap(),
            size: Bytes::from_mib(1),
            filesystem: Filesystem::None,
            role: Role::Data,
            boot: None,
            created: Timestamp::now(),
            history: Box::default(),
            unfinished: false,
            moving_from: None,
        };
        pool.draft(&description).unwrap().commit().unwrap();
        assert!(pool.clones().is_some(), "{driver}");
        assert!(pool.sharing(id).unwrap().is_some(), "{driver}");
        let power = pool.snapshots().unwrap();
        let name = "s".parse().unwrap();
        power
            .take_snapshot(id, &name, Timestamp::now(), None, &mut |_, _| {})
            .unwrap();
        let location = power.open_snapshot(id, &name).unwrap();
        assert!(location.is_some(), "{driver}");
        assert_eq!(power.live_copies().is_some(), copied_live, "{driver}");
        assert_eq!(power.live_switches().is_some(), switched_live, "{driver}");
    }
}

driver_keeps_the_laws!(file_on_ext4: "file" [], on Ext4);
driver_keeps_the_laws!(file_on_xfs: "file" [], on Xfs);
driver_keeps_the_laws!(file_on_btrfs: "file" [], on Btrfs);
driver_keeps_the_laws!(file_reflink_on_xfs: "file-reflink" [], on Xfs);
driver_keeps_the_laws!(file_reflink_on_btrfs: "file-reflink" [], on Btrfs);
driver_keeps_the_laws!(btrfs_on_btrfs: "btrfs" [], on Btrfs);
driver_keeps_the_laws!(qcow2_on_ext4: "qcow2" [], on Ext4);
driver_keeps_the_laws!(qcow2_on_xfs: "qcow2" [], on Xfs);
driver_keeps_the_laws!(qcow2_on_btrfs: "qcow2" [], on Btrfs);
