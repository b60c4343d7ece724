//! Pools: list, add, change, remove; and how every operation gets at one.
//!
//! Which pools there are is said by `storage.conf`, which is read at each first use of a pool in
//! a process. The catalogue remembers which of them were used: such a pool without its marker is
//! *unavailable*, and nothing is ever made in its place.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use sistemo_catalog::{KnownPool, Lockable, Session};
use sistemo_host::{lock::Lock, system};
use sistemo_model::{PoolName, Volume};
use sistemo_pools::{
    ConfError, ConfiguredPool, DriverInfo, Fault, FirstUse, Found, Pool, PoolConfig, PoolError,
    Registry, StorageConf, marker,
};

use crate::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::reporter::Notice;
use crate::volumes::shown_with_causes;

/// What no pool may be in: the rest of the data directory.
const RESERVED: [&str; 5] = ["images", "kernels", "machines", "locks", "ssh"];

/// What a pool that holds volumes refuses.
const REMOVE: &str = "be removed";
const CHANGE_DRIVER: &str = "change its driver";

/// The pools that this process has opened.
pub(crate) struct Pools {
    registry: Registry,
    opened: Mutex<BTreeMap<PoolName, Arc<dyn Pool>>>,
}

impl Default for Pools {
    fn default() -> Pools {
        Pools {
            registry: Registry::built_in(),
            opened: Mutex::default(),
        }
    }
}

impl Pools {
    fn opened(&self) -> MutexGuard<'_, BTreeMap<PoolName, Arc<dyn Pool>>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pool to be added.
#[derive(Clone, Debug)]
pub struct NewPool {
    /// Its name.
    pub name: PoolName,
    /// Its driver's name or alias.
    pub driver: String,
    /// Its options, each with its value.
    pub options: Vec<(String, String)>,
}

/// What users see of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PoolView {
    /// Its name; what the file has in its place where no pool can have that name.
    pub name: String,
    /// Its driver; `None` where its configuration is not understood.
    pub driver: Option<String>,
    /// Its directory.
    pub path: Option<PathBuf>,
    /// Whether it can be used now.
    pub available: bool,
    /// Why it cannot, where it cannot.
    pub reason: Option<String>,
    /// Whether volumes that name no pool are made in it.
    pub default: bool,
    /// The size of the place it is in, in bytes.
    pub size_bytes: Option<u64>,
    /// What is used there, by whatever, in bytes.
    pub used_bytes: Option<u64>,
    /// What may still be filled there, in bytes.
    pub free_bytes: Option<u64>,
    /// The virtual sizes of its volumes together, in bytes.
    pub provisioned_bytes: u64,
    /// How many volumes it holds.
    pub volumes: usize,
    /// Its driver's options.
    pub options: BTreeMap<String, String>,
    /// The file that describes it; `None` where none does.
    pub file: Option<PathBuf>,
    /// The line there that its section begins in.
    pub line: Option<usize>,
}

/// Why a directory cannot be a pool's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceConflict {
    /// It is another pool's too.
    #[error("pool {other} is there")]
    Same {
        /// The other pool.
        other: PoolName,
    },
    /// It lies in another pool's.
    #[error("that is inside pool {other}, which is in {}", directory.display())]
    Inside {
        /// The other pool.
        other: PoolName,
        /// The other pool's directory.
        directory: PathBuf,
    },
    /// Another pool's lies in it.
    #[error("pool {other} is inside it, in {}", directory.display())]
    Contains {
        /// The other pool.
        other: PoolName,
        /// The other pool's directory.
        directory: PathBuf,
    },
    /// Something else of the data directory is there.
    #[error("Sistemo keeps other things there")]
    Reserved,
}

/// What is known of all pools at one instant.
struct Survey {
    conf: StorageConf,
    known: Vec<KnownPool>,
    volumes: Vec<Volume>,
}

impl Engine {
    /// All pools, in the order of `storage.conf`, then those that it no longer has and that
    /// volumes are recorded in. Nothing is made.
    ///
    /// # Errors
    /// Where `storage.conf` as a whole is not usable. A pool that is not usable is listed so.
    pub fn pool_views(&self) -> Result<Vec<PoolView>> {
        let survey = self.survey()?;
        let described = survey.conf.pools().iter();
        let mut views: Vec<_> = described.map(|pool| self.view(&survey, pool)).collect();
        let lost = survey.volumes.iter().map(|volume| &volume.pool);
        for name in lost {
            if survey.conf.pool(name).is_none() && views.iter().all(|v| v.name != name.as_str()) {
                views.push(self.view_lost(&survey, name));
            }
        }
        Ok(views)
    }

    /// One pool. Nothing is made.
    ///
    /// # Errors
    /// Where there is none of that name, or `storage.conf` as a whole is not usable.
    pub fn pool_view(&self, name: &PoolName) -> Result<PoolView> {
        let survey = self.survey()?;
        if let Some(pool) = survey.conf.pool(name) {
            return Ok(self.view(&survey, pool));
        }
        if survey.volumes_in(name).next().is_some() {
            return Ok(self.view_lost(&survey, name));
        }
        Err(not_found(name))
    }

    /// The drivers that pools can have.
    #[must_use]
    pub fn drivers(&self) -> Vec<DriverInfo> {
        self.pools.registry.drivers()
    }

    /// Adds a pool to `storage.conf`, once it has been seen to work. Its directory's last
    /// component is made where it is missing. A crash in the middle leaves at most that, with the
    /// pool's marker in it, on which another attempt goes on.
    ///
    /// # Errors
    /// Where the name is taken, the driver or an option is not known, the directory cannot be
    /// used, or the file cannot be written; then nothing has changed.
    pub fn add_pool(&self, new: &NewPool) -> Result<PoolView> {
        let name = &new.name;
        let held = self.hold_pools()?;
        let conf = self.storage_conf()?;
        if conf.pool(name).is_some() {
            return Err(Error::NameTaken {
                kind: Kind::Pool,
                name: name.to_string(),
            });
        }
        let registry = &self.pools.registry;
        if registry.by_name(&new.driver).is_none() {
            return Err(Error::NotFound {
                kind: Kind::Driver,
                reference: new.driver.clone(),
            });
        }
        let edited = conf.with_pool(name, &new.driver, &new.options, registry);
        let edited = understood(name, edited)?;
        let config = unwritten(name, &edited)?;
        let first_use = if self.survey()?.volumes_in(name).next().is_some() {
            // Its section was lost: the volumes must be where it is put again.
            FirstUse::Known
        } else {
            FirstUse::Allowed
        };
        self.settle_pool(&conf, &edited, &config, first_use)?;
        drop(held);
        self.pool_view(name)
    }

    /// Changes options of a pool in `storage.conf`, once it has been seen to work with them. A
    /// pool that holds volumes can only go where they are already, and while no machine uses one.
    ///
    /// # Errors
    /// Where there is no such pool, an option is not known, it would have another driver and holds
    /// volumes, a machine that holds one of them is active, its directory cannot be used, or the file cannot be written; then
    /// nothing has changed.
    pub fn set_pool(&self, name: &PoolName, options: &[(String, String)]) -> Result<PoolView> {
        let held = self.hold_pools()?;
        let survey = self.survey()?;
        let conf = &survey.conf;
        let before = conf.pool(name).ok_or_else(|| not_found(name))?;
        let registry = &self.pools.registry;
        let edited = understood(name, conf.with_options(name, options, registry))?;
        let config = unwritten(name, &edited)?;
        let old = before.config.as_ref().ok();
        let moves = old.is_none_or(|old| old.directory != config.directory);
        let holds_volumes = survey.volumes_in(name).next().is_some();
        if let Some(old) = old.filter(|old| old.driver != config.driver) {
            // What one driver has made, another does not find.
            refuse_volumes(name, CHANGE_DRIVER, survey.volumes_in(name))?;
            self.refuse_unrecorded_volumes(&survey, old, CHANGE_DRIVER)?;
        }
        if moves {
            self.require_idle(&survey, name)?;
        }
        let stays_known = !moves && survey.known_pool(name).is_some();
        let first_use = if holds_volumes || stays_known {
            FirstUse::Known
        } else {
            FirstUse::Allowed
        };
        self.settle_pool(conf, &edited, &config, first_use)?;
        if moves
            && !holds_volumes
            && let Some(old) = old
        {
            self.abandon(old);
        }
        drop(held);
        self.pool_view(name)
    }

    /// Removes a pool from `storage.conf`, and its marker from its directory, which stays; returns
    /// it as it was.
    ///
    /// # Errors
    /// Where there is none of that name, it holds volumes, it is the default pool, or the file
    /// cannot be written; then nothing has changed.
    pub fn remove_pool(&self, name: &PoolName) -> Result<PoolView> {
        let refuse = |reason: String| {
            let pool = name.clone();
            Err(Error::PoolNeeded { pool, reason })
        };
        if *name == PoolName::default_pool() {
            return refuse("it always exists".to_owned());
        }
        let held = self.hold_pools()?;
        let survey = self.survey()?;
        let pool = survey.conf.pool(name).ok_or_else(|| not_found(name))?;
        let setting = &self.settings.default_pool;
        if setting.value == *name {
            let origin = &setting.origin;
            return refuse(format!("it is the `default_pool` from {origin}"));
        }
        let view = self.view(&survey, pool);
        refuse_volumes(name, REMOVE, survey.volumes_in(name))?;
        let config = pool.config.as_ref().ok();
        if let Some(config) = config {
            self.refuse_unrecorded_volumes(&survey, config, REMOVE)?;
        }
        let edited = survey.conf.without_pool(name, &self.pools.registry)?;
        survey.conf.replace_by(&edited)?;
        let forgotten = self.catalogue.write(|session| {
            // One may have been recorded by who had opened the pool before.
            let volumes = session.all_volumes()?;
            refuse_volumes(name, REMOVE, volumes.iter().filter(|v| v.pool == *name))?;
            Ok::<_, Error>(session.forget_pool(name)?)
        });
        if let Err(error) = forgotten {
            self.undo_after(&error, edited.replace_by(&survey.conf).map_err(Error::from));
            return Err(error);
        }
        self.pools.opened().remove(name);
        if let Some(config) = config {
            self.abandon(config);
        }
        drop(held);
        Ok(view)
    }

    /// The pool of that name, opened at its first use in this process.
    pub(crate) fn pool(&self, name: &PoolName) -> Result<Arc<dyn Pool>> {
        let mut opened = self.pools.opened();
        if let Some(pool) = opened.get(name) {
            return Ok(Arc::clone(pool));
        }
        let known = self.known_pools()?;
        let config = usable(&self.storage_conf()?, &known, name, self.data_dir())?;
        let pool = match known.iter().find(|known| known.name == *name) {
            None => self.use_first(name)?,
            Some(known) => {
                let pool = self.open_pool(&config, FirstUse::Known)?;
                if known.directory != pool.directory() {
                    self.remember(name, pool.as_ref())?;
                }
                pool
            }
        };
        opened.insert(name.clone(), Arc::clone(&pool));
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
        self.remember(name, pool.as_ref())?;
        self.warn_of_memory(pool.as_ref());
        Ok(pool)
    }

    fn open_pool(&self, config: &PoolConfig, first_use: FirstUse) -> Result<Arc<dyn Pool>> {
        let catalogue = self.catalogue.id();
        let opened = self.pools.registry.open(config, catalogue, first_use);
        opened.map_err(|source| cannot_use(&config.name, source))
    }

    fn remember(&self, name: &PoolName, pool: &dyn Pool) -> Result<()> {
        self.catalogue
            .write(|session| Ok(session.remember_pool(name, pool.directory())?))
    }

    /// Tries a pool as it is to be, and writes that down. A failure leaves all as it was.
    fn settle_pool(
        &self,
        conf: &StorageConf,
        edited: &StorageConf,
        config: &PoolConfig,
        first_use: FirstUse,
    ) -> Result<()> {
        let name = &config.name;
        let others = edited
            .pools()
            .iter()
            .filter(|pool| pool.title != name.as_str());
        let others = others.filter_map(|pool| pool.config.as_ref().ok());
        check_place(config, others, self.data_dir())?;
        conf.check_writable()?;
        let traces = Traces::before(config);
        let before = self.catalogue.read(|session| session.known_pool(name))?;
        let settled = self.open_pool(config, first_use).and_then(|pool| {
            pool.probe().map_err(|source| cannot_use(name, source))?;
            self.remember(name, pool.as_ref())?;
            conf.replace_by(edited)?;
            Ok(pool)
        });
        match settled {
            Ok(pool) => {
                self.warn_of_memory(pool.as_ref());
                self.pools.opened().insert(name.clone(), pool);
                Ok(())
            }
            Err(error) => {
                self.undo_after(&error, self.recall(name, before.as_ref()));
                traces.take_back(name, self.catalogue.id());
                Err(error)
            }
        }
    }

    /// Remembers of a pool what was remembered before.
    fn recall(&self, name: &PoolName, before: Option<&KnownPool>) -> Result<()> {
        self.catalogue.write(|session| match before {
            Some(known) => Ok(session.remember_pool(name, &known.directory)?),
            None => Ok(session.forget_pool(name)?),
        })
    }

    /// Takes the marker from a directory that is a pool's no longer. What stays where that fails
    /// is a marker, which only keeps other pools from going there.
    fn abandon(&self, config: &PoolConfig) {
        let Some(directory) = &config.directory else {
            return;
        };
        let removed = marker::remove(directory, &config.name, self.catalogue.id());
        if let Err(error) = removed {
            tracing::warn!(%error, "the marker of a pool that is no more stays");
        }
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

    /// Makes sure that no machine uses a volume of a pool.
    fn require_idle(&self, survey: &Survey, name: &PoolName) -> Result<()> {
        for volume in survey.volumes_in(name) {
            let holder = self
                .catalogue
                .read(|session| session.holder_of(volume.id))?;
            if let Some(holder) = holder {
                let machine = holder.attachment.machine;
                self.require_stopped(machine, || format!("change pool {name}"))?;
            }
        }
        Ok(())
    }

    /// Makes sure that a pool's directory, where there is one, holds no volume that the catalogue
    /// does not know: without its section nobody would find that again.
    fn refuse_unrecorded_volumes(
        &self,
        survey: &Survey,
        config: &PoolConfig,
        action: &'static str,
    ) -> Result<()> {
        if survey.known_pool(&config.name).is_none() {
            return Ok(());
        }
        let Ok(pool) = self.open_pool(config, FirstUse::Known) else {
            return Ok(());
        };
        let found = pool
            .list()
            .map_err(|source| cannot_use(&config.name, source))?;
        let strays = |found: &&Found| matches!(found, Found::Stray { .. });
        let left = found.len() - found.iter().filter(strays).count();
        if left == 0 {
            return Ok(());
        }
        Err(Error::PoolNotEmpty {
            pool: config.name.clone(),
            action,
            what: format!("files of {left} volumes that the catalogue does not know"),
        })
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

    fn survey(&self) -> Result<Survey> {
        let conf = self.storage_conf()?;
        self.catalogue.read(|session| {
            Ok(Survey {
                conf,
                known: session.known_pools()?,
                volumes: session.all_volumes()?,
            })
        })
    }

    fn view(&self, survey: &Survey, pool: &ConfiguredPool) -> PoolView {
        let config = pool.config.as_ref().ok();
        let state = match config {
            Some(config) => self.look(survey, config).map_err(|e| shown_with_causes(&e)),
            None => Err(shown_fault(pool)),
        };
        let (space, reason) = match state {
            Ok(space) => (space, None),
            Err(reason) => (None, Some(reason)),
        };
        let volumes = || {
            survey
                .volumes
                .iter()
                .filter(|v| v.pool.as_str() == pool.title)
        };
        PoolView {
            name: pool.title.clone(),
            driver: config.map(|config| config.driver.clone()),
            path: config.and_then(|config| config.directory.clone()),
            available: reason.is_none(),
            reason,
            default: self.settings.default_pool.value.as_str() == pool.title,
            size_bytes: space.map(|space| space.size),
            used_bytes: space.map(|space| space.size.saturating_sub(space.free)),
            free_bytes: space.map(|space| space.free),
            provisioned_bytes: volumes().map(|volume| volume.size.get()).sum(),
            volumes: volumes().count(),
            options: config
                .map(|config| config.options.clone())
                .unwrap_or_default(),
            file: pool.line.and(survey.conf.file()).map(Path::to_owned),
            line: pool.line,
        }
    }

    /// A pool that volumes are recorded in and that is not configured.
    fn view_lost(&self, survey: &Survey, name: &PoolName) -> PoolView {
        let known = survey.known_pool(name).map(|known| known.directory.clone());
        let lost = ConfiguredPool {
            title: name.to_string(),
            line: None,
            config: Ok(PoolConfig {
                name: name.clone(),
                driver: String::new(),
                directory: known,
                options: BTreeMap::new(),
            }),
        };
        PoolView {
            driver: None,
            available: false,
            reason: Some("no section of storage.conf describes it".to_owned()),
            size_bytes: None,
            used_bytes: None,
            free_bytes: None,
            ..self.view(survey, &lost)
        }
    }

    /// Looks whether a pool can be used, without making anything, and at its space.
    fn look(&self, survey: &Survey, config: &PoolConfig) -> Result<Option<system::Space>> {
        let name = &config.name;
        let failed = |source| cannot_use(name, source);
        let config = usable(&survey.conf, &survey.known, name, self.data_dir())?;
        let Some(directory) = config.directory.as_deref() else {
            return Ok(None);
        };
        if survey.known_pool(name).is_some() {
            let pool = self.pool(name)?;
            pool.probe().map_err(failed)?;
            let usage = pool.usage().map_err(failed)?;
            let (size, free) = (usage.size, usage.free);
            return Ok(Some(system::Space { size, free }));
        }
        marker::check_first_use(directory, name, self.catalogue.id()).map_err(failed)?;
        let parent = directory.parent().filter(|_| !directory.exists());
        Ok(system::space(parent.unwrap_or(directory)).ok())
    }
}

impl Survey {
    fn known_pool(&self, name: &PoolName) -> Option<&KnownPool> {
        self.known.iter().find(|known| known.name == *name)
    }

    fn volumes_in(&self, name: &PoolName) -> impl Iterator<Item = &Volume> {
        self.volumes
            .iter()
            .filter(move |volume| volume.pool == *name)
    }
}

/// What was in a pool's place before it was tried.
struct Traces {
    directory: Option<PathBuf>,
    had_directory: bool,
    had_marker: bool,
}

impl Traces {
    fn before(config: &PoolConfig) -> Traces {
        let there = |path: &Path| path.symlink_metadata().is_ok();
        let directory = config.directory.clone();
        let marker = directory.as_ref().map(|path| path.join(marker::MARKER));
        Traces {
            had_directory: directory.as_deref().is_some_and(there),
            had_marker: marker.as_deref().is_some_and(there),
            directory,
        }
    }

    /// Removes what was made since. What cannot be removed is on the way of nothing: another
    /// attempt finds it.
    fn take_back(&self, pool: &PoolName, catalogue: sistemo_model::CatalogueId) {
        let Some(directory) = &self.directory else {
            return;
        };
        if !self.had_marker {
            let _ = marker::remove(directory, pool, catalogue);
        }
        if !self.had_directory {
            let _ = fs::remove_dir(directory);
        }
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

/// What a pool is configured to be, where it is understood and in nobody's way.
///
/// Of two pools in each other's way one stays usable: the one that was used before, else the one
/// that comes first in the file.
pub(crate) fn usable(
    conf: &StorageConf,
    known: &[KnownPool],
    name: &PoolName,
    data_dir: &Path,
) -> Result<PoolConfig> {
    let pool = conf.pool(name).ok_or_else(|| not_found(name))?;
    let config = pool
        .config
        .clone()
        .map_err(|source| misconfigured(name, source))?;
    let was_used = |config: &PoolConfig| {
        let same = |known: &KnownPool| {
            known.name == config.name && Some(&known.directory) == config.directory.as_ref()
        };
        known.iter().any(same)
    };
    let used = was_used(&config);
    let mut behind = false;
    let others = conf.pools().iter().filter_map(|other| {
        behind |= other.title == pool.title;
        let other = other.config.as_ref().ok()?;
        let first = if was_used(other) == used {
            !behind
        } else {
            !used
        };
        (other.name != *name && first).then_some(other)
    });
    check_place(&config, others, data_dir)?;
    Ok(config)
}

/// Makes sure that a pool's directory is in nobody's way.
fn check_place<'a>(
    config: &PoolConfig,
    others: impl Iterator<Item = &'a PoolConfig>,
    data_dir: &Path,
) -> Result<()> {
    let Some(written) = &config.directory else {
        return Ok(());
    };
    let place = real(written);
    let data_dir = real(data_dir);
    let reserved = RESERVED
        .iter()
        .any(|name| place.starts_with(data_dir.join(name)));
    let reserved = reserved || data_dir.starts_with(&place);
    let mut conflict = None;
    for other in others {
        let Some(directory) = other.directory.clone() else {
            continue;
        };
        let (theirs, other) = (real(&directory), other.name.clone());
        let found = if theirs == place {
            PlaceConflict::Same { other }
        } else if place.starts_with(&theirs) {
            PlaceConflict::Inside { other, directory }
        } else if theirs.starts_with(&place) {
            PlaceConflict::Contains { other, directory }
        } else {
            continue;
        };
        conflict.get_or_insert(found);
    }
    match conflict.or(reserved.then_some(PlaceConflict::Reserved)) {
        None => Ok(()),
        Some(conflict) => Err(Error::PoolPlace {
            pool: config.name.clone(),
            directory: written.clone(),
            conflict,
        }),
    }
}

/// A path without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let resolved = path.ancestors().find_map(|ancestor| {
        let real = fs::canonicalize(ancestor).ok()?;
        let rest = path.strip_prefix(ancestor).ok()?;
        Some(real.components().chain(rest.components()).collect())
    });
    resolved.unwrap_or_else(|| path.to_owned())
}

fn refuse_volumes<'a>(
    pool: &PoolName,
    action: &'static str,
    volumes: impl Iterator<Item = &'a Volume>,
) -> Result<()> {
    let names: Vec<_> = volumes.map(|volume| volume.name.as_str()).collect();
    let what = match names.as_slice() {
        [] => return Ok(()),
        [name] => format!("volume {name}"),
        several => format!("{} volumes", several.len()),
    };
    let pool = pool.clone();
    Err(Error::PoolNotEmpty { pool, action, what })
}

/// An edit of `storage.conf`; what it says of the pool is the pool's own mistake.
fn understood(name: &PoolName, edited: Result<StorageConf, ConfError>) -> Result<StorageConf> {
    edited.map_err(|error| match error {
        ConfError::Fault(fault) => misconfigured(name, fault.unwritten()),
        other => other.into(),
    })
}

/// What a pool would be, which is not in the file yet.
fn unwritten(name: &PoolName, edited: &StorageConf) -> Result<PoolConfig> {
    let pool = edited.pool(name).ok_or_else(|| not_found(name))?;
    let config = pool.config.clone();
    config.map_err(|fault| misconfigured(name, fault.unwritten()))
}

fn misconfigured(name: &PoolName, source: Fault) -> Error {
    let pool = name.to_string();
    Error::PoolMisconfigured { pool, source }
}

fn shown_fault(pool: &ConfiguredPool) -> String {
    let fault = pool.config.as_ref().err();
    fault.map(shown_with_causes).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use sistemo_model::{Bytes, CatalogueId, Filesystem};
    use sistemo_pools::{Driver, FilePool};

    use super::*;
    use crate::engine::{Caller, MonitorCommand};
    use crate::reporter::Reporter;
    use crate::settings::Settings;
    use crate::volumes::NewVolume;

    /// A driver whose pools are not those of any other.
    #[derive(Debug)]
    struct Other;

    impl Driver for Other {
        fn info(&self) -> DriverInfo {
            let file = Registry::built_in().by_name("file").unwrap();
            DriverInfo {
                name: "other".to_owned(),
                aliases: vec!["another".to_owned()],
                classes: vec!["tests.Other".to_owned()],
                ..file
            }
        }

        fn open(
            &self,
            pool: &PoolConfig,
            catalogue: CatalogueId,
            first_use: FirstUse,
        ) -> Result<Arc<dyn Pool>, PoolError> {
            let directory = pool.directory.as_deref().unwrap();
            let opened = FilePool::open(pool.name.clone(), directory, catalogue, first_use)?;
            Ok(Arc::new(opened))
        }
    }

    struct Nobody;

    impl Reporter for Nobody {
        fn stage(&self, _text: &str) {}
        fn progress(&self, _done: u64, _total: u64) {}
        fn stage_over(&self) {}
        fn notice(&self, _notice: &Notice) {}
    }

    #[test]
    fn a_pool_keeps_its_driver_while_volumes_live_there() {
        let home = tempfile::tempdir().unwrap();
        let caller = Caller {
            purpose: "a test".to_owned(),
            monitor: MonitorCommand {
                program: PathBuf::new(),
                arguments: Vec::new(),
            },
        };
        let settings = Settings::defaults(&home.path().join("data"));
        let mut engine = Engine::open(settings, Arc::new(Nobody), caller).unwrap();
        engine.pools.registry = Registry::built_in().with(Box::new(Other));
        let name: PoolName = "foo".parse().unwrap();
        let option = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
        let place = home.path().join("foo");
        let added = engine.add_pool(&NewPool {
            name: name.clone(),
            driver: "file".to_owned(),
            options: option("dir_path", &place.display().to_string()),
        });
        let file = added.unwrap().file.unwrap();
        let volume = engine
            .create_volume(NewVolume {
                size: Bytes::from_mib(1),
                name: Some("data".parse().unwrap()),
                pool: Some(name.clone()),
                filesystem: Filesystem::None,
            })
            .unwrap();

        let before = fs::read(&file).unwrap();
        let changes = [
            option("driver", "other"),
            option("driver", "another"),
            option("class", "tests.Other"),
        ];
        for change in &changes {
            let error = engine.set_pool(&name, change).unwrap_err().to_string();
            let expected = "pool foo cannot change its driver: it holds volume data";
            assert_eq!(error, expected, "{change:?}");
            assert_eq!(fs::read(&file).unwrap(), before, "{change:?}");
        }
        // Another name of the same driver changes nothing.
        engine.set_pool(&name, &option("driver", "xen")).unwrap();

        let reference = volume.id.to_string().into();
        engine.delete_volume(&reference).unwrap();
        for change in &changes {
            let view = engine.set_pool(&name, change).unwrap();
            assert_eq!(view.driver.as_deref(), Some("other"));
        }
    }
}
