//! An engine on a data directory of its own.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sistemo::images::NewImport;
use sistemo::machines::{Deploy, DeploySource, MachineView, StartMode, StopRequest, Wait};
use sistemo::model::{Bytes, Filesystem, ImageName, Lifetime, PoolName, Reference};
use sistemo::pools::NewPool;
use sistemo::volumes::{NewVolume, VolumeView};
use sistemo::{Caller, Engine, MonitorCommand, Notice, Reporter, Settings};
use sistemo_host::directory::Directory;
use sistemo_testkit::filesystem::{LoopFilesystem, LoopKind};
use sistemo_testkit::{Action, Requirement, TinyGuest, met};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// A data directory and what the engines on it have told.
pub(crate) struct House {
    home: tempfile::TempDir,
    notices: Arc<Notices>,
}

#[derive(Default)]
pub(crate) struct Notices(Mutex<Vec<Notice>>);

impl Reporter for Notices {
    fn stage(&self, _text: &str) {}
    fn progress(&self, _done: u64, _total: u64) {}
    fn stage_over(&self) {}
    fn notice(&self, notice: &Notice) {
        self.0.lock().unwrap().push(notice.clone());
    }
}

impl House {
    pub(crate) fn new() -> House {
        House {
            home: tempfile::tempdir().unwrap(),
            notices: Arc::default(),
        }
    }

    /// One on a filesystem of its own.
    pub(crate) fn on(filesystem: &LoopFilesystem) -> House {
        House {
            home: tempfile::tempdir_in(filesystem.path()).unwrap(),
            notices: Arc::default(),
        }
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Writes the data directory's `storage.conf`.
    pub(crate) fn storage_conf(&self, text: &str) {
        let (directory, _) = Directory::create(&self.data_dir()).unwrap();
        directory.replace("storage.conf", text.as_bytes()).unwrap();
    }

    pub(crate) fn try_engine(&self) -> sistemo::Result<Engine> {
        self.try_engine_with(|_| {})
    }

    /// An engine with settings other than the usual ones.
    pub(crate) fn try_engine_with(
        &self,
        change: impl FnOnce(&mut Settings),
    ) -> sistemo::Result<Engine> {
        let data_dir = self.data_dir();
        let mut settings = Settings::defaults(&data_dir);
        settings.stop_timeout.value = Duration::from_secs(2);
        change(&mut settings);
        let monitor = MonitorCommand {
            program: example("monitor"),
            arguments: vec![data_dir.into()],
        };
        let caller = Caller {
            purpose: "a test".to_owned(),
            monitor,
        };
        Engine::open(settings, self.notices.clone(), caller)
    }

    pub(crate) fn engine(&self) -> Engine {
        self.try_engine().unwrap()
    }

    /// What was told since the last call.
    pub(crate) fn notices(&self) -> Vec<Notice> {
        std::mem::take(&mut *self.notices.0.lock().unwrap())
    }

    /// What is in the default pool, the pool's marker left out.
    pub(crate) fn volume_files(&self) -> Vec<String> {
        files_in(&self.data_dir().join("volumes"))
    }

    /// Makes an image named `tiny` of the tests' guest, which then does `actions` at each start.
    pub(crate) fn import_tiny(&self, engine: &Engine, actions: &[Action]) {
        self.import_scripted(engine, actions, "");
    }

    /// As [`House::import_tiny`], with what [`Action::Script`] runs.
    pub(crate) fn import_scripted(&self, engine: &Engine, actions: &[Action], script: &str) {
        let guest = TinyGuest::find().expect("the caller has asked for it");
        let file = self.path("tiny.raw");
        let disk = File::create(&file).unwrap();
        disk.set_len(4 * MIB).unwrap();
        disk.write_all_at(&guest.disk(actions), 0).unwrap();
        disk.write_all_at(script.as_bytes(), 4096).unwrap();
        let name: ImageName = "tiny".parse().unwrap();
        let (kernel, initrd) = (Some(guest.kernel), Some(guest.initrd));
        engine
            .import_image(NewImport {
                file,
                name,
                kernel,
                initrd,
                format: None,
                pool: None,
            })
            .unwrap();
    }

    /// Makes an image named `disk` without a kernel, for machines that are never started.
    pub(crate) fn import_disk(&self, engine: &Engine, size: u64) {
        let file = self.path("disk.img");
        File::create(&file).unwrap().set_len(size).unwrap();
        let name: ImageName = "disk".parse().unwrap();
        let import = NewImport {
            file,
            name,
            kernel: None,
            initrd: None,
            format: None,
            pool: None,
        };
        engine.import_image(import).unwrap();
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let Ok(engine) = self.try_engine() else {
            return;
        };
        let _ = engine.stop_all(StopRequest::Forced);
    }
}

/// Writes into a volume's file, as a guest would.
pub(crate) fn write_into(volume: &VolumeView, offset: u64, data: &[u8]) {
    let path = volume.path.as_ref().unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(data, offset).unwrap();
}

/// Whether a volume's file holds this.
pub(crate) fn holds(volume: &VolumeView, offset: u64, data: &[u8]) -> bool {
    let mut found = vec![0; data.len()];
    let file = File::open(volume.path.as_ref().unwrap()).unwrap();
    file.read_exact_at(&mut found, offset).is_ok() && found == data
}

/// A filesystem with reflinks, on which clones cost nothing; `None` where none can be mounted.
pub(crate) fn reflinks() -> Option<LoopFilesystem> {
    let needed = [Requirement::Root, Requirement::Program("mkfs.xfs")];
    met(&needed).then(|| LoopFilesystem::new(LoopKind::Xfs, Bytes::from_mib(400)))
}

/// A pool of that name on a filesystem.
pub(crate) fn pool_on(engine: &Engine, name: &str, filesystem: &LoopFilesystem) -> PoolName {
    let pool: PoolName = name.parse().unwrap();
    let directory = filesystem.path().join(name).display().to_string();
    engine
        .add_pool(&NewPool {
            name: pool.clone(),
            driver: "file".to_owned(),
            options: vec![("dir_path".to_owned(), directory)],
        })
        .unwrap();
    pool
}

/// A bare volume in a pool.
pub(crate) fn volume_in(engine: &Engine, pool: &PoolName, name: &str, mib: u64) -> VolumeView {
    engine
        .create_volume(NewVolume {
            size: Bytes::from_mib(mib),
            name: Some(name.parse().unwrap()),
            pool: Some(pool.clone()),
            filesystem: Filesystem::None,
        })
        .unwrap()
}

/// What is in a pool's directory, the pool's marker left out.
pub(crate) fn files_in(place: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(place) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != ".sistemo-pool")
        .collect();
    names.sort();
    names
}

/// An example of this crate, which cargo builds beside its tests.
pub(crate) fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().join("examples").join(name)
}

pub(crate) fn volume(engine: &Engine, name: &str, size: &str) -> VolumeView {
    let (size, name) = (size.parse().unwrap(), Some(name.parse().unwrap()));
    engine
        .create_volume(NewVolume {
            size,
            name,
            pool: None,
            filesystem: Filesystem::Ext4,
        })
        .unwrap()
}

pub(crate) fn reference(text: &str) -> Reference {
    Reference::from(text)
}

/// A machine made from an image and not started.
pub(crate) fn plan(image: &str, name: &str) -> Deploy {
    Deploy {
        source: DeploySource::Image(image.parse().unwrap()),
        name: Some(name.parse().unwrap()),
        vcpus: None,
        memory: Some(Bytes::from_mib(256)),
        storage: Some(Bytes::from_mib(16)),
        pool: None,
        attach: Vec::new(),
        expose: Vec::new(),
        vmm: None,
        lifetime: Lifetime::Persistent,
        start: StartMode::Created,
    }
}

pub(crate) fn attaching(plan: Deploy, volumes: &[&str]) -> Deploy {
    Deploy {
        attach: volumes.iter().map(|name| reference(name)).collect(),
        ..plan
    }
}

pub(crate) fn start(engine: &Engine, name: &str) -> MachineView {
    engine.start_machine(&reference(name), Wait::No).unwrap().0
}

/// Waits until a file holds a text, such as a console's log what the guest says.
pub(crate) fn wait_for_text(path: &Path, text: &str) {
    wait_until(text, || {
        let content = std::fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(&content).contains(text)
    });
}

pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "never came: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
