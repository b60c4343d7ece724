//! A place with pools of the driver under test.

use std::any::Any;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sistemo_host::program::Program;
use sistemo_model::CatalogueId;
use sistemo_pools::{Pool, PoolError, Power};

use crate::law::Stop;
use crate::small::{SmallFilesystem, SmallPlace};
use crate::worker::Task;

/// Where a pool is to be, and whose.
///
/// A driver that has a directory takes this one, making its last component where it is missing;
/// another leaves it aside, and all its pools are the same one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its directory.
    pub directory: PathBuf,
    /// The catalogue that it is to belong to.
    pub catalogue: CatalogueId,
}

/// Opens the pool of a place, making it where it is missing. Any number of times, at once too.
pub type Open = dyn Fn(&Place) -> Result<Arc<dyn Pool>, PoolError> + Send + Sync;

/// Makes the program that runs [`worker::work`](crate::worker::work) on a task.
pub type StartWorker = dyn Fn(&Task) -> Program + Send + Sync;

/// A place with pools of the driver under test, and what the host gives to try them.
#[derive(Clone)]
pub struct Bench {
    open: Arc<Open>,
    home: PathBuf,
    place: Place,
    powers: Option<Vec<Power>>,
    worker: Option<Arc<StartWorker>>,
    small: SmallPlace,
    seed: u64,
    // What is gone when nobody needs it any more, such as a temporary directory.
    kept: Vec<Arc<dyn Any + Send + Sync>>,
}

impl Bench {
    /// Puts a driver on a bench. Everything happens in `home`, a directory that is there and
    /// empty; pools are made in it, and beside them is what the laws need.
    pub fn new(
        home: &Path,
        open: impl Fn(&Place) -> Result<Arc<dyn Pool>, PoolError> + Send + Sync + 'static,
    ) -> Bench {
        let catalogue = CatalogueId::random();
        Bench {
            open: Arc::new(open),
            home: home.to_owned(),
            place: Place {
                directory: home.join("pool"),
                catalogue,
            },
            powers: None,
            worker: None,
            small: SmallPlace::Unavailable("there is no place that is soon full".to_owned()),
            seed: u64::from_str_radix(&catalogue.short(), 16).unwrap_or(0),
            kept: Vec::new(),
        }
    }

    /// Says which powers the driver tells of; a pool must then have these and no others.
    #[must_use]
    pub fn with_powers(mut self, powers: &[Power]) -> Bench {
        self.powers = Some(powers.to_vec());
        self
    }

    /// Says how to start a process that can be killed: a program that opens the pool of the
    /// task's place and calls [`worker::work`](crate::worker::work).
    #[must_use]
    pub fn with_worker(
        mut self,
        start: impl Fn(&Task) -> Program + Send + Sync + 'static,
    ) -> Bench {
        self.worker = Some(Arc::new(start));
        self
    }

    /// Says where a pool is soon full.
    #[must_use]
    pub fn with_small_place(mut self, small: SmallPlace) -> Bench {
        self.small = small;
        self
    }

    /// Sets what random work begins with, so that it comes again.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Bench {
        self.seed = seed;
        self
    }

    /// Keeps something as long as the bench, such as a temporary directory that it is in.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any + Send + Sync) -> Bench {
        self.kept.push(Arc::new(kept));
        self
    }

    /// Opens the pool, once more where it is open.
    ///
    /// # Errors
    /// What the driver says.
    pub fn pool(&self) -> Result<Arc<dyn Pool>, PoolError> {
        (self.open)(&self.place)
    }

    /// Where the pool is.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// A directory beside the pool, on its filesystem where the driver has a directory.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.home
    }

    /// What random work begins with.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The powers that the driver tells of, where that is known.
    #[must_use]
    pub fn powers(&self) -> Option<&[Power]> {
        self.powers.as_deref()
    }

    /// The program that works on a task, where there is one.
    pub(crate) fn worker(&self, task: &Task) -> Result<Program, Stop> {
        match &self.worker {
            Some(start) => Ok(start(task)),
            None => Err(Stop::Skipped("there is no process to kill".to_owned())),
        }
    }

    /// The same with a room of its own, which is there and empty.
    pub(crate) fn room(&self, name: &str) -> std::io::Result<Bench> {
        let home = self.home.join(name);
        std::fs::create_dir(&home)?;
        Ok(self.moved_to(home))
    }

    fn moved_to(&self, home: PathBuf) -> Bench {
        let mut moved = self.clone();
        moved.place.directory = home.join("pool");
        moved.home = home;
        moved
    }

    /// The same where a pool is soon full, as long as the second is kept.
    pub(crate) fn in_small_place(&self) -> Result<(Bench, InSmallPlace), Stop> {
        match &self.small {
            SmallPlace::Unavailable(why) => Err(Stop::Skipped(why.clone())),
            SmallPlace::Mounted(kind) => {
                let filesystem =
                    SmallFilesystem::mount(*kind, &self.home.join("small")).map_err(|error| {
                        Stop::Skipped(format!(
                            "no small {kind} can be mounted: {}",
                            crate::law::told(&error)
                        ))
                    })?;
                let bench = self.moved_to(filesystem.path().to_owned());
                Ok((bench, InSmallPlace::Mounted(filesystem)))
            }
            SmallPlace::Opened(open) => {
                let home = self.home.join("small");
                std::fs::create_dir(&home)?;
                let mut bench = self.moved_to(home);
                bench.open = Arc::clone(open);
                Ok((bench.clone(), InSmallPlace::Opened(bench)))
            }
        }
    }
}

/// What makes a place small, as long as it is kept.
pub(crate) enum InSmallPlace {
    /// A filesystem, unmounted when this is dropped.
    Mounted(#[expect(dead_code, reason = "it is kept to be dropped")] SmallFilesystem),
    /// A pool that is small itself; a filesystem of its own is unmounted when this is dropped.
    Opened(Bench),
}

impl Drop for InSmallPlace {
    fn drop(&mut self) {
        if let InSmallPlace::Opened(bench) = self {
            // What stays mounted keeps the room from being removed, which is told.
            let _ = close(bench);
        }
    }
}

/// Unmounts the filesystem of a pool that has one of its own.
pub(crate) fn close(bench: &Bench) -> Result<(), PoolError> {
    match bench.pool()?.own_filesystem() {
        Some(filesystem) => filesystem.unmount(),
        None => Ok(()),
    }
}

impl fmt::Debug for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bench")
            .field("place", &self.place)
            .field("powers", &self.powers)
            .field("small", &self.small)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}
