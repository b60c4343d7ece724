//! Pools with a filesystem of their own in one sparse file, made and mounted for real.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use sistemo_host::Changed;
use sistemo_host::directory::Directory;
use sistemo_host::mount;
use sistemo_host::program::Program;
use sistemo_host::system;
use sistemo_model::{Access, Bytes, CatalogueId, Filesystem, PoolName, Role, Timestamp, VolumeId};
use sistemo_pools::{
    Cost, Description, FirstUse, Keeping, Origin, OwnFilesystem, Pool, PoolConfig, PoolError,
    Registry, Way,
};
use sistemo_testkit::filesystem::{LoopFilesystem, LoopKind};
use sistemo_testkit::{Requirement, met};

const MIB: u64 = 1 << 20;
const MARKER: &str = ".sistemo-pool";
const IMAGE: &str = "filesystem.img";

/// A place for one pool, whose filesystem is unmounted when the value is dropped.
struct Scene {
    home: tempfile::TempDir,
    catalogue: CatalogueId,
}

impl Scene {
    fn new() -> Option<Scene> {
        let programs = ["mkfs.xfs", "xfs_growfs", "mount", "losetup"];
        let met = met(&[Requirement::Root]) && met(&programs.map(Requirement::Program));
        met.then(|| Scene {
            home: tempfile::tempdir().unwrap(),
            catalogue: CatalogueId::random(),
        })
    }

    fn path(&self) -> PathBuf {
        self.home.path().join("pool")
    }

    fn image(&self) -> PathBuf {
        self.path().join(IMAGE)
    }

    fn mount_point(&self) -> PathBuf {
        self.path().join("mounted")
    }

    fn open_with(
        &self,
        size: Option<u64>,
        first_use: FirstUse,
    ) -> Result<Arc<dyn Pool>, PoolError> {
        open(&self.path(), self.catalogue, size, first_use)
    }

    /// Opens it as a host does that has never seen it, with the smallest size there is.
    fn first(&self) -> Arc<dyn Pool> {
        self.open_with(Some(300), FirstUse::Allowed).unwrap()
    }

    fn again(&self) -> Result<Arc<dyn Pool>, PoolError> {
        self.open_with(Some(300), FirstUse::Known)
    }

    fn is_mounted(&self) -> bool {
        mount::mounted_at(&self.mount_point()).unwrap().is_some()
    }

    /// What a shutdown of the host does.
    fn umount(&self) {
        eventually("nobody uses it", || {
            let umount = Program::find("umount").unwrap();
            umount.arg(self.mount_point()).run().is_ok()
        });
    }

    fn umount_after(&self, pool: Arc<dyn Pool>) {
        drop(pool);
        self.umount();
    }

    /// The names in the pool's directory.
    fn names(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path()) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        while mount::mounted_at(&self.mount_point()).is_ok_and(|mounted| mounted.is_some()) {
            let umount = Program::find("umount").unwrap().arg("-l");
            if umount.arg(self.mount_point()).run().is_err() {
                break;
            }
        }
    }
}

fn open(
    path: &Path,
    catalogue: CatalogueId,
    mib: Option<u64>,
    first_use: FirstUse,
) -> Result<Arc<dyn Pool>, PoolError> {
    let size = mib.map(|mib| ("size".to_owned(), (mib * MIB).to_string()));
    let config = PoolConfig {
        name: name(),
        driver: "file-reflink".to_owned(),
        directory: Some(path.to_owned()),
        keeping: Keeping::default(),
        options: size.into_iter().collect(),
    };
    Registry::built_in().open(&config, catalogue, first_use)
}

fn name() -> PoolName {
    "fast".parse().unwrap()
}

fn own(pool: &dyn Pool) -> &dyn OwnFilesystem {
    pool.own_filesystem().unwrap()
}

fn create(pool: &dyn Pool, mib: u64, data: &[u8]) -> Description {
    let id = VolumeId::random();
    let description = Description {
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
    };
    let mut draft = pool.draft(&description).unwrap();
    draft.content().unwrap().write_at(data, 0).unwrap();
    draft.commit().unwrap();
    description
}

fn word(pool: &dyn Pool, id: VolumeId) -> String {
    let mut bytes = [0; 4];
    let content = pool.content(id, Access::ReadOnly).unwrap();
    content.read_at(&mut bytes, 0).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for what the kernel, or a program that another test starts just now and that still has
/// our files open, does in its own time.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < patience, "never came: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn has_no_loop_device(file: &Path) {
    eventually("its loop device is free", || loop_devices(file).is_empty());
}

/// The loop devices over a file.
fn loop_devices(file: &Path) -> Vec<String> {
    let losetup = Program::find("losetup").unwrap();
    let list = losetup.args(["-n", "-O", "NAME", "-j"]).arg(file);
    let text = list.run().unwrap().text();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_host_without_reflinks_gets_them() {
    let Some(scene) = Scene::new() else {
        return;
    };
    let pool = scene.first();
    assert_eq!(scene.names(), [MARKER, IMAGE, "mounted"]);
    assert_eq!(pool.directory(), scene.path());
    assert_eq!((pool.name(), pool.driver()), (&name(), "file-reflink"));
    pool.probe().unwrap();
    // Nothing of its size is taken from the host but what mkfs wrote.
    let image = scene.image().metadata().unwrap();
    assert_eq!(image.len(), 300 * MIB);
    assert!(image.blocks() * 512 < 100 * MIB);
    assert_eq!(image.permissions().mode() & 0o777, 0o600);

    assert_eq!(pool.clones().unwrap().clone_cost(), Cost::Instant);
    let made = create(&*pool, 8, b"data");
    let origin = Origin {
        volume: made.id,
        snapshot: None,
    };
    let mut copy = made.clone();
    copy.id = VolumeId::random();
    let way = pool
        .clones()
        .unwrap()
        .clone_volume(origin, &copy, &mut |_, _| {});
    assert_eq!(way.unwrap(), Way::Reflink);
    let snapshots = pool.snapshots().unwrap();
    let snapshot = "one".parse().unwrap();
    snapshots
        .take_snapshot(made.id, &snapshot, Timestamp::now(), None, &mut |_, _| {})
        .unwrap();
    assert_eq!(word(&*pool, copy.id), "data");
    assert_eq!(pool.list().unwrap().len(), 2);
    let path = pool.facts(made.id).unwrap().path;
    assert!(path.starts_with(scene.mount_point()));
}

#[test]
fn who_may_enter_the_pools_directory_may_enter_its_filesystem_and_nobody_else() {
    let Some(scene) = Scene::new() else {
        return;
    };
    std::fs::create_dir(scene.path()).unwrap();
    std::fs::set_permissions(scene.path(), PermissionsExt::from_mode(0o750)).unwrap();
    std::os::unix::fs::chown(scene.path(), Some(1234), Some(4321)).unwrap();
    scene.first();
    let meta = scene.mount_point().metadata().unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o750);
    assert_eq!((meta.uid(), meta.gid()), (1234, 4321));
}

#[test]
fn after_a_restart_of_the_host_it_is_mounted_by_who_comes_first() {
    let Some(scene) = Scene::new() else {
        return;
    };
    let made = create(&*scene.first(), 8, b"kept");
    scene.umount();
    has_no_loop_device(&scene.image());
    let pool = scene.again().unwrap();
    assert_eq!(pool.description(made.id).unwrap(), made);
    assert_eq!(word(&*pool, made.id), "kept");
    // Who comes next finds it mounted.
    let other = scene.again().unwrap();
    assert_eq!(word(&*other, made.id), "kept");
    assert_eq!(loop_devices(&scene.image()).len(), 1);
}

#[test]
fn many_at_once_make_and_mount_it_once() {
    let Some(scene) = Scene::new() else {
        return;
    };
    let all_at_once = |first_use| {
        thread::scope(|scope| {
            let open = || {
                scene
                    .open_with(Some(300), first_use)
                    .map(|pool| pool.list())
            };
            let threads: Vec<_> = (0..6).map(|_| scope.spawn(open)).collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap().unwrap().unwrap(), []);
            }
        });
        assert_eq!(loop_devices(&scene.image()).len(), 1);
        scene.umount();
        assert!(!scene.is_mounted(), "it was mounted more than once");
    };
    all_at_once(FirstUse::Allowed);
    all_at_once(FirstUse::Known);
    assert_eq!(scene.names(), [MARKER, IMAGE, "mounted"]);
}

#[test]
fn an_unmounted_filesystem_is_never_written_into() {
    let Some(scene) = Scene::new() else {
        return;
    };
    drop(scene.first());
    scene.umount();
    // Another filesystem in its place has no marker, and is none of the pool's.
    let mkfs = Program::find("mkfs.xfs").unwrap().args(["-q", "-f"]);
    mkfs.arg(scene.image()).run().unwrap();
    let error = scene.again().unwrap_err();
    assert!(
        matches!(&error, PoolError::NoMarker { directory, .. } if *directory == scene.mount_point()),
        "{error:?}"
    );
    assert_eq!(std::fs::read_dir(scene.mount_point()).unwrap().count(), 0);
    scene.umount();

    // Without its file nothing is mounted, and nothing is made.
    std::fs::remove_file(scene.image()).unwrap();
    let error = scene.again().unwrap_err();
    assert!(
        matches!(error, PoolError::OwnFilesystem { .. }),
        "{error:?}"
    );
    assert_eq!(scene.names(), [MARKER, "mounted"]);
    assert_eq!(std::fs::read_dir(scene.mount_point()).unwrap().count(), 0);
}

#[test]
fn another_filesystem_in_its_mount_point_is_refused() {
    let Some(scene) = Scene::new() else {
        return;
    };
    drop(scene.first());
    scene.umount();
    let mount = Program::find("mount").unwrap();
    let mount = mount.args(["-t", "tmpfs", "none"]).arg(scene.mount_point());
    mount.run().unwrap();
    let error = scene.again().unwrap_err();
    assert!(matches!(error, PoolError::Unsuited { .. }), "{error:?}");
    assert!(error.to_string().contains("tmpfs from none"), "{error}");

    // The same kind of filesystem from another file is another filesystem.
    scene.umount();
    let other = Scene::new().unwrap();
    drop(other.first());
    let bind = Program::find("mount").unwrap().arg("--bind");
    let bind = bind.arg(other.mount_point()).arg(scene.mount_point());
    bind.run().unwrap();
    let error = scene.again().unwrap_err();
    assert!(matches!(error, PoolError::Unsuited { .. }), "{error:?}");
}

#[test]
fn whatever_a_killed_first_use_left_the_next_one_goes_on() {
    let Some(scene) = Scene::new() else {
        return;
    };
    let mkfs = |file: &Path| {
        File::create(file).unwrap().set_len(300 * MIB).unwrap();
        let mkfs = Program::find("mkfs.xfs").unwrap().args(["-q", "-f"]);
        mkfs.arg(file).run().unwrap();
    };
    let leftovers: [&dyn Fn(); 4] = [
        // Killed while the file was formatted …
        &|| {
            File::create(scene.path().join("filesystem.img.new"))
                .unwrap()
                .set_len(5 * MIB)
                .unwrap();
        },
        // … before it was renamed, …
        &|| mkfs(&scene.path().join("filesystem.img.new")),
        // … before it was mounted, …
        &|| mkfs(&scene.image()),
        // … and before anything in it was marked.
        &|| {
            mkfs(&scene.image());
            std::fs::create_dir(scene.mount_point()).unwrap();
            let mount = Program::find("mount").unwrap().args(["-o", "loop"]);
            mount
                .args([scene.image(), scene.mount_point()])
                .run()
                .unwrap();
        },
    ];
    for leave in leftovers {
        std::fs::create_dir(scene.path()).unwrap();
        leave();
        let pool = scene.first();
        create(&*pool, 8, b"data");
        assert_eq!(scene.names(), [MARKER, IMAGE, "mounted"]);
        drop(pool);
        scene.umount();
        std::fs::remove_dir_all(scene.path()).unwrap();
    }
}

#[test]
fn a_size_that_the_filesystem_cannot_have_is_refused_before_anything_is_made() {
    let Some(scene) = Scene::new() else {
        return;
    };
    let error = scene.open_with(Some(299), FirstUse::Allowed).unwrap_err();
    assert!(matches!(error, PoolError::BadOption { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "pool fast cannot have size = 299 MB: XFS needs at least 300 MB"
    );
    assert!(!scene.path().exists());
}

#[test]
fn a_first_use_that_fails_leaves_nothing() {
    let Some(scene) = Scene::new() else {
        return;
    };
    let small = LoopFilesystem::new(LoopKind::Ext4, Bytes::from_mib(16));
    let path = small.path().join("pool");
    // Larger than a file can be there, and larger than what mkfs has to write.
    for mib in [32 << 20, 1 << 10] {
        let error = open(&path, scene.catalogue, Some(mib), FirstUse::Allowed).unwrap_err();
        let program = matches!(error, PoolError::Program { .. });
        assert!(
            program || matches!(error, PoolError::OwnFilesystem { .. }),
            "{error:?}"
        );
        assert!(!path.exists(), "{mib}");
    }

    // A filesystem that is another pool's is not taken, and what was there stays.
    drop(scene.first());
    let stranger = open(
        &scene.path(),
        CatalogueId::random(),
        Some(300),
        FirstUse::Allowed,
    );
    assert!(matches!(stranger, Err(PoolError::OtherCatalogue { .. })));
    std::fs::remove_file(scene.path().join(MARKER)).unwrap();
    let stranger = open(
        &scene.path(),
        CatalogueId::random(),
        Some(300),
        FirstUse::Allowed,
    );
    assert!(matches!(stranger, Err(PoolError::OtherCatalogue { .. })));
    assert!(scene.is_mounted());
    assert_eq!(scene.names(), [IMAGE, "mounted"]);
}

#[test]
fn a_size_taken_out_of_the_configuration_hides_nothing() {
    let Some(scene) = Scene::new() else {
        return;
    };
    let made = create(&*scene.first(), 8, b"kept");
    scene.umount();
    let pool = scene.open_with(None, FirstUse::Known).unwrap();
    assert_eq!(word(&*pool, made.id), "kept");
    assert!(pool.own_filesystem().is_some());
}

#[test]
fn it_grows_while_it_is_used_and_never_shrinks() {
    let Some(scene) = Scene::new() else {
        return;
    };
    let pool = scene.first();
    let made = create(&*pool, 8, b"kept");
    let before = pool.usage().unwrap().size;
    let to = Bytes::from_mib(500);
    assert_eq!(own(&*pool).resize(to).unwrap(), Changed::Yes);
    assert_eq!(own(&*pool).resize(to).unwrap(), Changed::No);
    assert_eq!(scene.image().metadata().unwrap().len(), to.get());
    let grown = pool.usage().unwrap().size;
    assert!(grown >= before + 190 * MIB, "{before} {grown}");
    let error = own(&*pool).resize(Bytes::from_mib(400)).unwrap_err();
    assert!(
        matches!(error, PoolError::PoolShrinks { size, .. } if size == to),
        "{error:?}"
    );
    assert_eq!(pool.usage().unwrap().size, grown);
    assert_eq!(word(&*pool, made.id), "kept");
    // The configuration may go on naming the old size.
    scene.umount_after(pool);
    assert_eq!(scene.again().unwrap().usage().unwrap().size, grown);
}

#[test]
fn a_growth_that_was_killed_is_completed_by_growing_again() {
    let Some(scene) = Scene::new() else {
        return;
    };
    let pool = scene.first();
    let before = pool.usage().unwrap().size;
    let file = OpenOptions::new().write(true).open(scene.image()).unwrap();
    let to = Bytes::from_mib(400);
    file.set_len(to.get()).unwrap();
    assert_eq!(own(&*pool).resize(to).unwrap(), Changed::Yes);
    assert!(pool.usage().unwrap().size >= before + 90 * MIB);
    assert_eq!(own(&*pool).resize(to).unwrap(), Changed::No);
    // By one sector, of which no filesystem makes a block.
    let odd = Bytes::new(to.get() + 512);
    assert_eq!(own(&*pool).resize(odd).unwrap(), Changed::Yes);
    assert_eq!(own(&*pool).resize(odd).unwrap(), Changed::No);
}

#[test]
fn it_is_unmounted_unless_somebody_uses_it() {
    let Some(scene) = Scene::new() else {
        return;
    };
    let pool = scene.first();
    let made = create(&*pool, 8, b"kept");
    let in_use = |who: &str| {
        let error = own(&*pool).unmount().unwrap_err();
        let cause = std::error::Error::source(&error).unwrap();
        let cause = cause.source().unwrap().to_string();
        assert!(cause.contains(who), "{cause}");
        assert!(scene.is_mounted());
    };
    let content = pool.content(made.id, Access::ReadOnly).unwrap();
    in_use("this process");
    drop(content);
    let sleep = Program::find("sleep").unwrap().arg("60");
    let mut sleep = sleep.current_dir(&scene.mount_point()).spawn().unwrap();
    in_use(&format!("process {} (sleep)", sleep.pid()));
    sleep.kill();
    own(&*pool).unmount().unwrap();
    assert!(!scene.is_mounted());
    own(&*pool).unmount().unwrap();

    // A pool whose filesystem went is not used by mistake.
    assert!(matches!(pool.probe(), Err(PoolError::Replaced { .. })));
    // Still open here, it lives on; mounted again, it is the same filesystem.
    let again = scene.again().unwrap();
    assert_eq!(word(&*again, made.id), "kept");
    assert_eq!(loop_devices(&scene.image()).len(), 1);
    drop((pool, again));
    scene.umount();
    has_no_loop_device(&scene.image());
}

#[test]
fn its_free_space_is_never_more_than_the_host_has() {
    let Some(scene) = Scene::new() else {
        return;
    };
    let host = LoopFilesystem::new(LoopKind::Ext4, Bytes::from_mib(200));
    let path = host.path().join("pool");
    let pool = open(&path, scene.catalogue, Some(1 << 10), FirstUse::Allowed).unwrap();
    let usage = pool.usage().unwrap();
    assert!(usage.size > 800 * MIB);
    assert!(usage.free <= system::space(host.path()).unwrap().free);
    assert_eq!(usage.size, usage.used + usage.free);
    own(&*pool).unmount().unwrap();
}

#[test]
fn what_is_deleted_in_it_is_free_on_the_host_again() {
    let Some(scene) = Scene::new() else {
        return;
    };
    let pool = scene.first();
    let used = || scene.image().metadata().unwrap().blocks() * 512;
    let sync = || {
        let sync = Program::find("sync").unwrap().arg("-f");
        sync.arg(scene.mount_point()).run().unwrap();
    };
    let made = create(&*pool, 64, &vec![7; 64 << 20]);
    sync();
    let full = used();
    assert_eq!(pool.remove(made.id).unwrap(), Changed::Yes);
    // XFS discards when its log is written, some time after the removal.
    eventually("the host has the space back", || {
        sync();
        used() <= full - 60 * MIB
    });
}

/// The test here starts this program again, as an ordinary user.
mod ordinary_users {
    use super::*;

    const POOL: &str = "SISTEMO_TEST_POOL";
    const CATALOGUE: &str = "SISTEMO_TEST_CATALOGUE";
    const NOBODY: u32 = 65534;

    #[test]
    #[ignore = "a task of another test"]
    fn open_it() {
        let Some(path) = std::env::var_os(POOL) else {
            return;
        };
        let catalogue = std::env::var(CATALOGUE).unwrap().parse().unwrap();
        let pool = open(Path::new(&path), catalogue, Some(300), FirstUse::Known);
        match pool {
            Ok(pool) => {
                create(&*pool, 8, b"mine");
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn use_what_is_mounted_and_are_told_that_mounting_needs_root() {
        let Some(scene) = Scene::new() else {
            return;
        };
        if !met(&[Requirement::Program("setpriv")]) {
            return;
        }
        // The program may lie where nobody may look.
        let program = scene.home.path().join("program");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        for path in [scene.home.path(), &program] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let open_it = || {
            Program::find("setpriv")
                .unwrap()
                .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
                .arg(&program)
                .args(["--ignored", "--exact", "ordinary_users::open_it"])
                .args(["--nocapture"])
                .env("RUST_BACKTRACE", "0")
                .env(POOL, scene.path())
                .env(CATALOGUE, scene.catalogue.to_string())
                .current_dir(Path::new("/"))
                .run()
        };
        std::fs::create_dir(scene.path()).unwrap();
        std::os::unix::fs::chown(scene.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        drop(scene.first());
        let files = [scene.path().join(MARKER), scene.mount_point().join(MARKER)];
        for file in files {
            std::os::unix::fs::chown(file, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        open_it().unwrap();
        let pool = scene.again().unwrap();
        assert_eq!(pool.list().unwrap().len(), 1);
        scene.umount_after(pool);
        let error = open_it().unwrap_err().to_string();
        assert!(
            error.contains("mounting its filesystem needs root"),
            "{error}"
        );
        let directory = Directory::open(&scene.mount_point()).unwrap();
        assert!(directory.files().unwrap().is_empty());
    }
}
