//! Pools: how every operation gets at one.
//!
//! Which pools there are is said by `storage.conf`, which is read at each first use of a pool in
//! a process. The catalogue remembers which of them were used: such a pool without its marker is
//! *unavailable*, and nothing is ever made in its place.
//!
//! | file | what is in it |
//! |---|---|
//! | `view` | listing and showing |
//! | `change` | adding, setting, resizing, removing |
//! | `place` | which directories a pool may have |

mod change;
mod place;
mod view;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sistemo_catalog::{KnownPool, Lockable, Session};
use sistemo_host::{lock::Lock, system};
use sistemo_model::PoolName;
use sistemo_pools::external::UnusableDriver;
use sistemo_pools::{
    DriverInfo, Fault, FirstUse, Keeping, Pool, PoolConfig, PoolError, Registry, StorageConf,
};

pub use change::NewPool;
pub use place::PlaceConflict;
pub(crate) use place::usable;
pub use view::PoolView;

use crate::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::reporter::Notice;

/// The pools that this process has opened.
pub(crate) struct Pools {
    registry: Registry,
    opened: Mutex<BTreeMap<PoolName, Arc<dyn Pool>>>,
}

impl Pools {
    /// No pool is opened yet; external drivers are also looked for in the data directory.
    pub(crate) fn new(data_dir: &Path) -> Pools {
        Pools {
            registry: Registry::for_data_directory(data_dir),
            opened: Mutex::default(),
        }
    }

    fn opened(&self) -> MutexGuard<'_, BTreeMap<PoolName, Arc<dyn Pool>>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// The pool of that name, opened at its first use in this process.
    pub(crate) fn pool(&self, name: &PoolName) -> Result<Arc<dyn Pool>> {
        // Not kept locked while it is opened: that may wait for whoever edits storage.conf. Two
        // threads may open it then, and either one will do.
        let opened = self.pools.opened().get(name).map(Arc::clone);
        if let Some(pool) = opened {
            return Ok(pool);
        }
        let known = self.known_pools()?;
        let config = usable(&self.storage_conf()?, &known, name, self.data_dir())?;
        let pool = match known.iter().find(|known| known.name == *name) {
            None => self.use_first(name)?,
            Some(known) => {
                self.refuse_other_driver(&config, known)?;
                let pool = self.open_pool(&config, FirstUse::Known)?;
                let same = known.driver.as_ref() == Some(&config.driver);
                if known.directory != pool.directory() || !same {
                    self.remember(&config, pool.as_ref())?;
                }
                pool
            }
        };
        self.pools.opened().insert(name.clone(), Arc::clone(&pool));
        Ok(pool)
    }

    /// The pool of a new volume: the one asked for, or the default; it is open.
    pub(crate) fn pool_for(&self, asked: Option<&PoolName>) -> Result<PoolName> {
        let setting = &self.settings.default_pool;
        let name = asked.unwrap_or(&setting.value);
        match self.pool(name) {
            Ok(_) => Ok(name.clone()),
            Err(Error::NotFound { .. }) if asked.is_none() => Err(Error::NoDefaultPool {
                pool: name.clone(),
                origin: setting.origin.clone(),
            }),
            Err(error) => Err(error),
        }
    }

    /// What a pool keeps of its volumes' past, as `storage.conf` says now: for whoever opened the
    /// pool long ago, too.
    ///
    /// # Errors
    /// Where no section describes it, or that is not understood.
    pub fn pool_keeping(&self, name: &PoolName) -> Result<Keeping> {
        let conf = self.storage_conf()?;
        let pool = conf.pool(name).ok_or_else(|| not_found(name))?;
        let config = pool.config.as_ref();
        config
            .map(|config| config.keeping)
            .map_err(|fault| misconfigured(name, fault.clone()))
    }

    /// Opens a pool that was never used, and remembers it.
    fn use_first(&self, name: &PoolName) -> Result<Arc<dyn Pool>> {
        let _held = self.hold_pools()?;
        // It may have been used, or removed, before we had the lock.
        let known = self.known_pools()?;
        let config = usable(&self.storage_conf()?, &known, name, self.data_dir())?;
        if known.iter().any(|known| known.name == *name) {
            return self.open_pool(&config, FirstUse::Known);
        }
        let pool = self.open_pool(&config, FirstUse::Allowed)?;
        self.remember(&config, pool.as_ref())?;
        self.warn_of_memory(pool.as_ref());
        Ok(pool)
    }

    /// Refuses a pool that holds volumes of another driver: what one has made, another does not
    /// find, and might remove for what is left of something.
    fn refuse_other_driver(&self, config: &PoolConfig, known: &KnownPool) -> Result<()> {
        let Some(before) = known.driver.as_ref().filter(|d| **d != config.driver) else {
            return Ok(());
        };
        let volumes = self.catalogue.read(|session| session.all_volumes())?;
        if volumes.iter().all(|volume| volume.pool != config.name) {
            return Ok(());
        }
        Err(Error::PoolDriverChanged {
            pool: config.name.clone(),
            before: before.clone(),
            now: config.driver.clone(),
        })
    }

    fn open_pool(&self, config: &PoolConfig, first_use: FirstUse) -> Result<Arc<dyn Pool>> {
        let catalogue = self.catalogue.id();
        let opened = self.pools.registry.open(config, catalogue, first_use);
        opened.map_err(|source| cannot_use(&config.name, source))
    }

    fn remember(&self, config: &PoolConfig, pool: &dyn Pool) -> Result<()> {
        let (name, driver) = (&config.name, Some(config.driver.as_str()));
        self.catalogue
            .write(|session| Ok(session.remember_pool(name, pool.directory(), driver)?))
    }

    fn warn_of_memory(&self, pool: &dyn Pool) {
        let directory = pool.directory();
        // Where the data directory is in memory too, somebody wants it so.
        let apart = !directory.starts_with(self.data_dir());
        if apart && system::is_in_memory(directory).unwrap_or(false) {
            self.reporter.notice(&Notice::PoolInMemory {
                pool: pool.name().clone(),
                directory: directory.to_owned(),
            });
        }
    }

    fn hold_pools(&self) -> Result<Lock> {
        Ok(self.locks.acquire(&Lockable::Pools, self.purpose())?)
    }

    fn storage_conf(&self) -> Result<StorageConf> {
        let surroundings = self.settings.surroundings();
        Ok(StorageConf::load(&surroundings, &self.pools.registry)?)
    }

    fn known_pools(&self) -> Result<Vec<KnownPool>> {
        Ok(self.catalogue.read(|session| session.known_pools())?)
    }
}

/// Makes sure, in the transaction that records a volume in it, that a pool was not removed
/// meanwhile.
pub(crate) fn expect_known(session: &Session<'_>, pool: &PoolName) -> Result<()> {
    match session.known_pool(pool)? {
        Some(_) => Ok(()),
        None => Err(not_found(pool)),
    }
}

/// What is known of a driver by its name.
pub(crate) fn driver_named(registry: &Registry, name: &str) -> Result<DriverInfo> {
    found(name, registry.named(name))
}

/// What was found of a driver, or why there is none.
pub(crate) fn found(
    reference: &str,
    driver: Option<std::result::Result<DriverInfo, UnusableDriver>>,
) -> Result<DriverInfo> {
    match driver {
        Some(Ok(info)) => Ok(info),
        Some(Err(source)) => Err(Error::DriverUnusable {
            driver: reference.to_owned(),
            source,
        }),
        None => Err(Error::NotFound {
            kind: Kind::Driver,
            reference: reference.to_owned(),
        }),
    }
}

fn misconfigured(name: &PoolName, source: Fault) -> Error {
    let pool = name.to_string();
    Error::PoolMisconfigured { pool, source }
}

fn cannot_use(pool: &PoolName, source: PoolError) -> Error {
    Error::Pool {
        pool: pool.clone(),
        action: "be used".to_owned(),
        source,
    }
}

fn not_found(pool: &PoolName) -> Error {
    Error::NotFound {
        kind: Kind::Pool,
        reference: pool.to_string(),
    }
}
