//! Checking a driver: what `sistemo driver check` does.
//!
//! All laws of [`sistemo_conformance`] are tried on pools that are made for it, in a directory
//! that is made for it, and belong to a catalogue that there is not. Neither the catalogue nor
//! any pool of the user is opened.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sistemo_conformance::small::SmallPlace;
use sistemo_conformance::{Bench, Counts, Outcome, Place, Task, laws, worker};
use sistemo_host::Changed;
use sistemo_host::directory::{Directory, FileError};
use sistemo_host::program::Program;
use sistemo_model::{Bytes, CatalogueId, PoolName};
use sistemo_pools::{
    ConfError, DriverInfo, FirstUse, Keeping, Pool, PoolConfig, PoolError, Registry, StorageConf,
    Surroundings,
};

pub use sistemo_conformance::{Failure, Outcome as LawOutcome, Remains, Report};

use crate::error::{Error, Kind, Result};
use crate::pools::found;
use crate::settings::Settings;

/// The option that names a pool's directory.
const DIRECTORY: &str = "dir_path";
/// The option that gives a pool a filesystem of its own.
const SIZE: &str = "size";
/// The option that names a driver by its class.
const CLASS: &str = "class";
/// The size of a filesystem of its own that is soon full; XFS needs 300 MiB.
const SMALL: Bytes = Bytes::from_mib(320);

/// What is to be checked.
#[derive(Clone, Debug)]
pub struct DriverCheck {
    /// The driver: its name, an alias, its class, or the path of an executable.
    pub driver: String,
    /// The options of its pools, each with its value.
    pub options: Vec<(String, String)>,
    /// What random work begins with, so that it comes again; without it, chance says.
    pub seed: Option<u64>,
    /// How to start a process that can be killed.
    pub worker: WorkerCommand,
}

/// A program that calls [`work`] with the task, which is appended to the arguments.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    /// The executable.
    pub program: PathBuf,
    /// What comes before the task.
    pub arguments: Vec<OsString>,
}

/// What a check tells while it runs.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// It begins.
    Begins {
        /// The directory that everything is in until the end. A crash leaves it.
        directory: &'a Path,
        /// How many laws there are to try.
        laws: usize,
    },
    /// A law was tried.
    Tried(&'a Report),
}

/// What came out of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckedDriver {
    /// The driver's own name.
    pub driver: String,
    /// The options that its pools had; their directories differed.
    pub options: BTreeMap<String, String>,
    /// What random work began with.
    pub seed: u64,
    /// Whether it was broken off.
    pub interrupted: bool,
    /// How many laws came out how.
    #[serde(flatten)]
    pub counts: Counts,
    /// Each law that was tried.
    pub laws: Vec<Report>,
    /// What could not be removed.
    pub remains: Vec<Remains>,
}

impl CheckedDriver {
    /// Whether all laws were tried and none is broken.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        !self.interrupted && self.counts.failed == 0
    }
}

/// Tries all laws on a driver, telling `told_of` of each, until that says to break.
///
/// Everything happens in a new directory within `dir_path`, or without that option within the
/// data directory, and is removed at the end. A crash leaves that directory, and perhaps a
/// filesystem that is mounted in it.
///
/// # Errors
/// Where there is no such driver, its options are not understood, or no directory can be made. A
/// law that is broken is no error.
pub fn check(
    settings: &Settings,
    asked: &DriverCheck,
    told_of: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<CheckedDriver> {
    let registry = registry(settings);
    let (info, config) = resolve(settings, &registry, asked)?;
    let data_dir = &settings.data_dir.value;
    let base = config.directory.as_deref().unwrap_or(data_dir);
    let room = Room::make(base, &info.name)?;

    let opener = Opener {
        registry: Arc::new(registry),
        config,
    };
    // What keeps any pool of it from working here is no law's fault.
    let place = Place {
        directory: room.path.join("pool"),
        catalogue: CatalogueId::random(),
    };
    let possible = opener.open(&place).and_then(|pool| {
        pool.probe()?;
        pool.own_filesystem().map_or(Ok(()), |own| own.unmount())
    });
    if let Err(source) = possible {
        let _ = room.remove();
        return Err(Error::Pool {
            pool: pool_name(),
            action: "be made".to_owned(),
            source,
        });
    }
    let _ = std::fs::remove_dir_all(&place.directory);
    let bench = bench(&room, &info, &opener, asked);
    let mut checked = CheckedDriver {
        driver: info.name,
        options: opener.config.options,
        seed: bench.seed(),
        interrupted: false,
        counts: Counts::default(),
        laws: Vec::new(),
        remains: Vec::new(),
    };
    let begins = Progress::Begins {
        directory: &room.path,
        laws: laws().len(),
    };
    if told_of(begins).is_continue() {
        let (counts, remains) = sistemo_conformance::check(&bench, laws(), &mut |report| {
            checked.laws.push(report.clone());
            told_of(Progress::Tried(report))
        });
        checked.counts = counts;
        checked.remains = remains;
    }
    checked.interrupted = checked.laws.len() < laws().len();
    checked.remains.extend(room.remove());
    Ok(checked)
}

/// Does the task of a process that a check has started.
///
/// # Errors
/// Where the task is none, or a step of it fails.
pub fn work(settings: &Settings, task: &str) -> Result<()> {
    let failed = |reason: String| Error::DriverWork { reason };
    let work: Work = serde_json::from_str(task).map_err(|error| failed(error.to_string()))?;
    let opener = Opener {
        registry: Arc::new(registry(settings)),
        config: PoolConfig {
            name: pool_name(),
            driver: work.driver,
            directory: None,
            keeping: Keeping::default(),
            options: work.options,
        },
    };
    let done = worker::work(&work.task, &move |place| opener.open(place));
    done.map_err(|outcome| match outcome {
        Outcome::Failed(failure) => failed(failure.to_string()),
        other => failed(format!("{other:?}")),
    })
}

/// A worker's task, with the driver that it is about.
#[derive(Debug, Serialize, Deserialize)]
struct Work {
    driver: String,
    options: BTreeMap<String, String>,
    task: Task,
}

/// The drivers there are for the commands of this data directory.
fn registry(settings: &Settings) -> Registry {
    Registry::for_data_directory(&settings.data_dir.value)
}

fn pool_name() -> PoolName {
    PoolName::default_pool()
}

/// Opens pools of a driver wherever they are to be.
#[derive(Clone)]
struct Opener {
    registry: Arc<Registry>,
    config: PoolConfig,
}

impl Opener {
    fn open(&self, place: &Place) -> Result<Arc<dyn Pool>, PoolError> {
        let mut config = self.config.clone();
        if let Some(path) = config.options.get_mut(DIRECTORY) {
            *path = place.directory.display().to_string();
            config.directory = Some(place.directory.clone());
        }
        self.registry
            .open(&config, place.catalogue, FirstUse::Allowed)
    }
}

fn bench(room: &Room, info: &DriverInfo, opener: &Opener, asked: &DriverCheck) -> Bench {
    let config = &opener.config;
    let own = opener.clone();
    let mut bench = Bench::new(&room.path, move |place| own.open(place))
        .with_powers(&info.powers)
        .with_small_place(small_place(room, opener));
    if let Some(seed) = asked.seed {
        bench = bench.with_seed(seed);
    }
    let command = asked.worker.clone();
    let (driver, options) = (config.driver.clone(), config.options.clone());
    bench.with_worker(move |task| {
        let work = Work {
            driver: driver.clone(),
            options: options.clone(),
            task: task.clone(),
        };
        Program::at(&command.program)
            .args(&command.arguments)
            .arg(serde_json::to_string(&work).unwrap_or_default())
    })
}

/// A pool with a filesystem of its own is soon full when that is small; any other where it is on
/// a small one.
fn small_place(room: &Room, opener: &Opener) -> SmallPlace {
    if opener.config.options.contains_key(SIZE) {
        let mut small = opener.clone();
        let size = SMALL.get().to_string();
        small.config.options.insert(SIZE.to_owned(), size);
        return SmallPlace::Opened(Arc::new(move |place: &Place| small.open(place)));
    }
    if opener.config.directory.is_none() {
        let why = "the driver has no directory that could be on a small filesystem";
        return SmallPlace::Unavailable(why.to_owned());
    }
    SmallPlace::like(&room.path)
}

/// The driver that is meant, and what a pool of it would be.
fn resolve(
    settings: &Settings,
    registry: &Registry,
    asked: &DriverCheck,
) -> Result<(DriverInfo, PoolConfig)> {
    let word = &asked.driver;
    let mut options = asked.options.clone();
    let info = if let Some(named) = registry.named(word) {
        found(word, Some(named))?
    } else {
        let class = if word.contains('/') {
            let path = std::path::absolute(word).map_err(|error| Error::File {
                action: format!("find driver {word}"),
                source: FileError::new("make absolute", word, error),
            })?;
            path.display().to_string()
        } else {
            word.clone()
        };
        let info = found(word, registry.classed(&class))?;
        options.push((CLASS.to_owned(), class));
        info
    };
    let has_directory = info.option(DIRECTORY).is_some();
    if has_directory && !options.iter().any(|(key, _)| key == DIRECTORY) {
        let usual = settings.data_dir.value.display().to_string();
        options.push((DIRECTORY.to_owned(), usual));
    }
    // A storage.conf that is nowhere: what is understood there is understood here.
    let nowhere = Surroundings {
        named: None,
        data_dir: PathBuf::from("/nonexistent"),
        system: PathBuf::from("/nonexistent"),
        ..settings.surroundings()
    };
    let name: PoolName = pool_name();
    let conf = StorageConf::load(&nowhere, registry)?;
    let conf = conf.with_pool(&name, &info.name, &options, registry);
    let conf = conf.map_err(|error| match error {
        ConfError::Fault(fault) => misconfigured(word, fault.unwritten()),
        other => other.into(),
    })?;
    let pool = conf.pool(&name).ok_or_else(|| Error::NotFound {
        kind: Kind::Driver,
        reference: word.clone(),
    })?;
    let config = pool.config.clone();
    let config = config.map_err(|fault| misconfigured(word, fault.unwritten()))?;
    Ok((info, config))
}

fn misconfigured(driver: &str, source: sistemo_pools::Fault) -> Error {
    Error::DriverOptions {
        driver: driver.to_owned(),
        source,
    }
}

/// The directory of a check, and the one that was made to hold it.
struct Room {
    path: PathBuf,
    around: Option<PathBuf>,
}

impl Room {
    fn make(base: &Path, driver: &str) -> Result<Room> {
        let fail = |source| Error::File {
            action: format!("check driver {driver}"),
            source,
        };
        let (_, made) = Directory::create(base).map_err(fail)?;
        let around = (made == Changed::Yes).then(|| base.to_owned());
        let name = format!(".sistemo-check-{}", CatalogueId::random().short());
        let path = base.join(name);
        match Directory::create(&path) {
            Ok(_) => Ok(Room { path, around }),
            Err(error) => {
                if let Some(around) = around {
                    // An empty directory harms nobody.
                    let _ = std::fs::remove_dir(around);
                }
                Err(fail(error))
            }
        }
    }

    fn remove(self) -> Vec<Remains> {
        let mut remains = Vec::new();
        let gone = std::fs::remove_dir_all(&self.path);
        let around = self.around.as_ref();
        for (path, gone) in [
            Some((&self.path, gone)),
            around.map(|path| (path, std::fs::remove_dir(path))),
        ]
        .into_iter()
        .flatten()
        {
            if let Err(error) = gone {
                remains.push(Remains {
                    path: path.clone(),
                    why: error.to_string(),
                });
            }
        }
        remains
    }
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opener")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
