//! A catalogue in a temporary directory, and records to put into it.

use std::path::{Path, PathBuf};

use sistemo_catalog::{CatalogError, Catalogue, Session, Transaction};
use sistemo_host::process::ProcessIdentity;
use sistemo_model::{
    Bytes, Filesystem, History, Lifecycle, Lifetime, MacAddress, Machine, MachineId, MachineState,
    PoolName, Role, Timestamp, VcpuCount, VmmKind, Volume, VolumeId,
};

pub(crate) type Result<T> = std::result::Result<T, CatalogError>;

pub(crate) struct Home {
    directory: tempfile::TempDir,
    pub(crate) catalogue: Catalogue,
}

impl Home {
    pub(crate) fn new() -> Home {
        let directory = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(directory.path()).unwrap();
        Home {
            directory,
            catalogue,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn read<T>(&self, work: impl FnOnce(&Session<'_>) -> Result<T>) -> T {
        self.catalogue.read(work).unwrap()
    }

    pub(crate) fn write<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> T {
        self.catalogue.write(work).unwrap()
    }

    pub(crate) fn refused<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> CatalogError {
        match self.catalogue.write(work) {
            Ok(_) => panic!("this should have been refused"),
            Err(error) => error,
        }
    }

    pub(crate) fn add_volume(&self, name: &str) -> VolumeId {
        let volume = volume(name);
        self.write(|tx| tx.insert_volume(&volume));
        volume.id
    }

    pub(crate) fn add_machine(&self, name: &str, ssh_port: u16) -> MachineId {
        let machine = machine(name, ssh_port);
        self.write(|tx| tx.insert_machine(&machine));
        machine.id
    }

    /// A connection that knows none of our rules but those in the schema.
    pub(crate) fn plain_sql(&self) -> rusqlite::Connection {
        let connection = rusqlite::Connection::open(self.database()).unwrap();
        connection
            .pragma_update(None, "foreign_keys", true)
            .unwrap();
        connection
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.path().join("sistemo.db")
    }
}

/// Long ago, so that a change of `modified` shows.
pub(crate) fn long_ago() -> Timestamp {
    "2020-02-29T12:34:56.123456789Z".parse().unwrap()
}

pub(crate) fn volume(name: &str) -> Volume {
    Volume {
        id: VolumeId::random(),
        name: name.parse().unwrap(),
        size: Bytes::from_mib(64),
        role: Role::Data,
        pool: PoolName::default_pool(),
        filesystem: Filesystem::Ext4,
        boot: None,
        history: History::default(),
        lifecycle: Lifecycle::Ready,
        created: long_ago(),
        modified: long_ago(),
    }
}

pub(crate) fn machine(name: &str, ssh_port: u16) -> Machine {
    let id = MachineId::random();
    Machine {
        id,
        name: name.parse().unwrap(),
        image: Some("debian".parse().unwrap()),
        vcpus: VcpuCount::try_from(2).unwrap(),
        memory: Bytes::from_mib(512),
        vmm: VmmKind::Qemu,
        mac: MacAddress::for_machine(id),
        ssh_port,
        exposed: Vec::new(),
        autostart: false,
        owns_root: true,
        template: None,
        lifetime: Lifetime::Persistent,
        state: MachineState::Stopped(None),
        lifecycle: Lifecycle::Ready,
        created: long_ago(),
        modified: long_ago(),
    }
}

pub(crate) fn some_process() -> ProcessIdentity {
    ProcessIdentity {
        pid: 4242,
        started: 123_456,
        boot: "5a1f0c1e-0000-4000-8000-000000000000".to_owned(),
    }
}
