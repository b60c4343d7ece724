//! A pool that a test works on.

use std::path::{Path, PathBuf};

use sistemo_host::Changed;
use sistemo_host::directory::Directory;
use sistemo_host::program::Program;
use sistemo_model::{
    Access, Bytes, CatalogueId, Filesystem, PoolName, Role, SnapshotName, Timestamp, VolumeId,
};
use sistemo_pools::{Content, Description, FirstUse, Found, Origin, Pool, Qcow2Pool, Way};

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) struct Scene {
    _home: tempfile::TempDir,
    pub(crate) catalogue: CatalogueId,
    pub(crate) pool: Qcow2Pool,
    pub(crate) directory: Directory,
}

pub(crate) fn open(path: &Path, catalogue: CatalogueId) -> Qcow2Pool {
    let name: PoolName = "default".parse().unwrap();
    Qcow2Pool::open(name, path, catalogue, FirstUse::Allowed).unwrap()
}

pub(crate) fn scene() -> Scene {
    scene_in(&std::env::temp_dir())
}

pub(crate) fn scene_in(place: &Path) -> Scene {
    let home = tempfile::tempdir_in(place).unwrap();
    let catalogue = CatalogueId::random();
    let pool = open(&home.path().join("pool"), catalogue);
    let directory = Directory::open(pool.directory()).unwrap();
    Scene {
        _home: home,
        catalogue,
        pool,
        directory,
    }
}

pub(crate) fn description(size: Bytes) -> Description {
    let id = VolumeId::random();
    Description {
        id,
        name: id.short().parse().unwrap(),
        size,
        filesystem: Filesystem::Ext4,
        role: Role::Data,
        boot: None,
        created: Timestamp::now(),
        history: Box::default(),
        unfinished: false,
        moving_from: None,
    }
}

pub(crate) fn name(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

impl Scene {
    pub(crate) fn create(&self, size: u64) -> Description {
        let description = description(Bytes::new(size));
        self.pool.draft(&description).unwrap().commit().unwrap();
        description
    }

    pub(crate) fn write(&self, id: VolumeId, data: &[u8], at: u64) {
        let mut content = self.pool.content(id, Access::ReadWrite).unwrap();
        content.write_at(data, at).unwrap();
        content.flush().unwrap();
    }

    pub(crate) fn read(&self, id: VolumeId, at: u64, length: usize) -> Vec<u8> {
        read(
            &*self.pool.content(id, Access::ReadOnly).unwrap(),
            at,
            length,
        )
    }

    pub(crate) fn snapshot(&self, id: VolumeId, snapshot: &str) {
        let snapshots = self.pool.snapshots().unwrap();
        let way = snapshots
            .take_snapshot(id, &name(snapshot), Timestamp::now(), None, &mut |_, _| {})
            .unwrap();
        assert_eq!(way, Way::Overlay);
    }

    pub(crate) fn delete(&self, id: VolumeId, snapshot: &str) -> Changed {
        let snapshots = self.pool.snapshots().unwrap();
        snapshots.delete_snapshot(id, &name(snapshot)).unwrap()
    }

    pub(crate) fn revert(&self, id: VolumeId, snapshot: &str) {
        let snapshots = self.pool.snapshots().unwrap();
        let way = snapshots
            .revert(id, &name(snapshot), &mut |_, _| {})
            .unwrap();
        assert_eq!(way, Way::Overlay);
    }

    pub(crate) fn read_snapshot(
        &self,
        id: VolumeId,
        snapshot: &str,
        at: u64,
        length: usize,
    ) -> Vec<u8> {
        let snapshots = self.pool.snapshots().unwrap();
        let content = snapshots.snapshot_content(id, &name(snapshot)).unwrap();
        read(&*content, at, length)
    }

    pub(crate) fn names_of_snapshots(&self, id: VolumeId) -> Vec<String> {
        let snapshots = self.pool.snapshots().unwrap().snapshots(id).unwrap();
        snapshots.into_iter().map(|s| s.name.to_string()).collect()
    }

    pub(crate) fn clone(&self, origin: Origin<'_>, size: u64) -> Description {
        let new = description(Bytes::new(size));
        let clones = self.pool.clones().unwrap();
        let way = clones.clone_volume(origin, &new, &mut |_, _| {}).unwrap();
        assert_eq!(way, Way::Overlay);
        new
    }

    pub(crate) fn clone_of(&self, id: VolumeId) -> Description {
        let size = self.pool.facts(id).unwrap().size.get();
        let origin = Origin {
            volume: id,
            snapshot: None,
        };
        self.clone(origin, size)
    }

    pub(crate) fn top(&self, id: VolumeId) -> PathBuf {
        self.pool.facts(id).unwrap().path
    }

    /// The names of all files but the pool's own.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut names = self.directory.files().unwrap();
        names.retain(|name| !name.starts_with(".sistemo-pool"));
        names
    }

    /// How many files hold data.
    pub(crate) fn layers(&self) -> usize {
        let mut names = self.files();
        names.retain(|name| name.contains(".qcow2") && !name.contains('@'));
        names.len()
    }

    pub(crate) fn is_sound(&self, id: VolumeId) {
        let size = self.pool.facts(id).unwrap().size;
        assert_eq!(self.pool.verify(id, size).unwrap(), []);
    }

    pub(crate) fn shows(&self, id: VolumeId, state: &Found) {
        assert_eq!(self.pool.find(id).unwrap().as_ref(), Some(state));
        let list = self.pool.list().unwrap();
        assert!(list.contains(state), "{list:?}");
    }
}

pub(crate) fn read(content: &dyn Content, at: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; length];
    content.read_at(&mut buffer, at).unwrap();
    buffer
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Program::find(program)
        .unwrap()
        .args(arguments)
        .run()
        .unwrap_or_else(|error| panic!("{program} {arguments:?}: {error:?}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
