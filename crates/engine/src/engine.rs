//! The engine itself: what an operation has at hand.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sistemo_catalog::{CatalogError, Catalogue, Locks};
use sistemo_host::directory::Directory;
use sistemo_images::Images;
use sistemo_model::VmmKind;
use sistemo_vmm::Vmm;
use sistemo_vmm::qemu::Qemu;

use crate::error::{Error, Result};
use crate::pools::Pools;
use crate::reporter::Reporter;
use crate::settings::Settings;

/// The operations on one data directory. Any number of engines, in any number of processes, may
/// work on the same one at once.
pub struct Engine {
    pub(crate) settings: Settings,
    pub(crate) reporter: Arc<dyn Reporter>,
    pub(crate) caller: Caller,
    pub(crate) catalogue: Catalogue,
    pub(crate) locks: Locks,
    pub(crate) images: Images,
    pub(crate) pools: Pools,
}

/// On whose behalf an engine works.
#[derive(Clone, Debug)]
pub struct Caller {
    /// What others read who wait for a lock we hold: `sistemo volume resize pgdata 10G`.
    pub purpose: String,
    /// How to start the process that follows a running machine.
    pub monitor: MonitorCommand,
}

/// A program that calls [`Engine::monitor`] on the same data directory with the machine's ID,
/// which is appended to the arguments.
#[derive(Clone, Debug)]
pub struct MonitorCommand {
    /// The executable.
    pub program: PathBuf,
    /// What comes before the machine's ID.
    pub arguments: Vec<OsString>,
}

impl Engine {
    /// Opens a data directory, making its last component where it is missing, and finishes or
    /// undoes operations that were cut short.
    ///
    /// # Errors
    /// Where the directory or the catalogue in it cannot be used, or belongs to a newer version.
    pub fn open(settings: Settings, reporter: Arc<dyn Reporter>, caller: Caller) -> Result<Engine> {
        let path = settings.data_dir.value.as_path();
        let (directory, _) = Directory::create(path).map_err(|source| unusable(path, source))?;
        let catalogue = Catalogue::open(path).map_err(|error| match error {
            CatalogError::Newer { .. } => Error::NewerVersion {
                path: path.to_owned(),
                source: error,
            },
            CatalogError::Full { .. } => Error::NoSpace(error),
            other => unusable(path, other),
        })?;
        let locks = Locks::open(&path.join("locks")).map_err(|source| unusable(path, source))?;
        let images = Images::open(path).map_err(Error::ImageStore)?;
        let engine = Engine {
            pools: Pools::new(path),
            settings,
            reporter,
            caller,
            catalogue,
            locks,
            images,
        };
        engine.keep_reserve(&directory);
        engine.recover()?;
        engine.relieve_data_dir();
        engine.end_lost_ephemerals()?;
        Ok(engine)
    }

    /// The settings in effect.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.settings.data_dir.value
    }

    pub(crate) fn purpose(&self) -> &str {
        &self.caller.purpose
    }

    /// What runs machines of that kind.
    #[expect(
        clippy::unused_self,
        reason = "which VMMs there are is the engine's to say"
    )]
    pub(crate) fn vmm(&self, kind: VmmKind) -> Box<dyn Vmm> {
        match kind {
            VmmKind::Qemu => Box::new(Qemu::new()),
        }
    }
}

fn unusable(path: &Path, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::DataDirectory {
        path: path.to_owned(),
        source: Box::new(source),
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("data_dir", &self.data_dir())
            .finish_non_exhaustive()
    }
}
