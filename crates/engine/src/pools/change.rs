//! Adding, changing and removing pools, which edits `storage.conf`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sistemo_catalog::{Intent, KnownPool};
use sistemo_model::{Bytes, CatalogueId, Lifecycle, PoolName, Role, Volume};
use sistemo_pools::{ConfError, FirstUse, Found, Pool, PoolConfig, StorageConf, marker};

use super::driver_named;
use super::place::check_place;
use super::view::{PoolView, Survey};
use super::{cannot_use, misconfigured, not_found};
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::reporter::Notice;

/// What a pool that holds volumes refuses.
const REMOVE: &str = "be removed";
const CHANGE_DRIVER: &str = "change its driver";
/// The option that has the size of a pool's own filesystem.
const SIZE: &str = "size";

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

impl Engine {
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
        driver_named(registry, &new.driver)?;
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
    /// volumes, a machine that holds one of them is active, its directory cannot be used, or the
    /// file cannot be written; then nothing has changed.
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
        // Where volumes go with the directory, so do images; else they stay behind.
        let changes_driver = old.is_none_or(|old| old.driver != config.driver);
        if changes_driver || (moves && !holds_volumes) {
            let pool = old.and_then(|old| self.known_as(&survey, old));
            self.empty_of_image_copies(name, pool.as_deref())?;
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
        let needed = |reason: String| {
            let pool = name.clone();
            Error::PoolNeeded { pool, reason }
        };
        let refuse = |reason| Err(needed(reason));
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
        let mut opened = None;
        if let Some(config) = config {
            self.refuse_unrecorded_volumes(&survey, config, REMOVE)?;
            opened = self.known_as(&survey, config);
        }
        survey.conf.check_writable()?;
        self.empty_of_image_copies(name, opened.as_deref())?;
        let edited = survey.conf.without_pool(name, &self.pools.registry)?;
        survey.conf.replace_by(&edited)?;
        let forgotten = self.catalogue.write(|session| {
            // One may have been recorded by who had opened the pool before.
            let volumes = session.all_volumes()?;
            refuse_volumes(name, REMOVE, volumes.iter().filter(|v| v.pool == *name))?;
            let comes = |(_, intent): &(_, Intent)| matches!(intent, Intent::MoveVolume { to, .. } if to == name);
            if session.intents()?.iter().any(comes) {
                return Err(needed("a volume is being moved into it".to_owned()));
            }
            Ok::<_, Error>(session.forget_pool(name)?)
        });
        if let Err(error) = forgotten {
            self.undo_after(&error, edited.replace_by(&survey.conf).map_err(Error::from));
            return Err(error);
        }
        self.pools.opened().remove(name);
        if let Some(filesystem) = opened.as_deref().and_then(|pool| pool.own_filesystem())
            && let Err(error) = filesystem.unmount()
        {
            // It costs nothing but a mount point; the pool is gone all the same.
            let reason = crate::error::causes(&error).join(": ");
            let pool = name.clone();
            self.reporter.notice(&Notice::StaysMounted { pool, reason });
        }
        if let Some(config) = config {
            self.abandon(config);
        }
        drop(held);
        Ok(view)
    }

    /// Makes the filesystem of a pool that has its own larger, and writes that down. A crash in
    /// the middle leaves it larger than `storage.conf` says, which resizing it again mends.
    ///
    /// # Errors
    /// Where there is no such pool, it has no filesystem of its own, that would become smaller,
    /// or the file cannot be written; then nothing has changed.
    pub fn resize_pool(&self, name: &PoolName, to: Bytes) -> Result<PoolView> {
        let held = self.hold_pools()?;
        let conf = self.storage_conf()?;
        let pool = self.pool(name)?;
        let filesystem = pool.own_filesystem().ok_or_else(|| Error::PoolLacks {
            pool: name.clone(),
            what: "be resized: it has no filesystem of its own",
        })?;
        conf.check_writable()?;
        let size = vec![(SIZE.to_owned(), written_size(to))];
        let edited = understood(name, conf.with_options(name, &size, &self.pools.registry))?;
        let _ = filesystem.resize(to).map_err(|source| Error::Pool {
            pool: name.clone(),
            action: "be resized".to_owned(),
            source,
        })?;
        conf.replace_by(&edited)?;
        // What was opened with the old size is opened anew.
        self.pools.opened().remove(name);
        drop(held);
        self.pool_view(name)
    }

    /// A pool as it is configured, where it was used before and can be now.
    fn known_as(&self, survey: &Survey, config: &PoolConfig) -> Option<Arc<dyn Pool>> {
        survey.known_pool(&config.name)?;
        let pool = self.open_pool(config, FirstUse::Known).ok()?;
        pool.probe().ok()?;
        Some(pool)
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
            self.remember(config, pool.as_ref())?;
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
            Some(known) => {
                let driver = known.driver.as_deref();
                Ok(session.remember_pool(name, &known.directory, driver)?)
            }
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
        let copies: Vec<_> = survey.copies.iter().map(|copy| copy.id).collect();
        // Images can be put there again; drafts of them are on their way out.
        let of_no_account = |found: &&Found| match found {
            Found::Stray { .. } => true,
            Found::Volume { description, .. } => description.role == Role::Image,
            Found::Draft { id }
            | Found::Undescribed { id, .. }
            | Found::Orphan { id, .. }
            | Found::Damaged { id, .. } => copies.contains(id),
        };
        let left = found.len() - found.iter().filter(of_no_account).count();
        if left == 0 {
            return Ok(());
        }
        Err(Error::PoolNotEmpty {
            pool: config.name.clone(),
            action,
            what: format!("files of {left} volumes that the catalogue does not know"),
            only_trash: false,
        })
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
    fn take_back(&self, pool: &PoolName, catalogue: CatalogueId) {
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

fn refuse_volumes<'a>(
    pool: &PoolName,
    action: &'static str,
    volumes: impl Iterator<Item = &'a Volume>,
) -> Result<()> {
    let (trash, others): (Vec<_>, Vec<_>) =
        volumes.partition(|volume| volume.lifecycle == Lifecycle::Trashed);
    let counted = |volumes: &[&Volume]| match volumes {
        [] => None,
        [volume] => Some(format!("volume {}", volume.name)),
        several => Some(format!("{} volumes", several.len())),
    };
    let what = match (counted(&others), counted(&trash)) {
        (None, None) => return Ok(()),
        (Some(others), None) => others,
        (None, Some(trash)) => format!("{trash} in the trash"),
        (Some(others), Some(trash)) => format!("{others}, and {trash} in the trash"),
    };
    Err(Error::PoolNotEmpty {
        pool: pool.clone(),
        action,
        what,
        only_trash: others.is_empty(),
    })
}

/// A size as `storage.conf` has it, in the largest unit that says it exactly.
fn written_size(size: Bytes) -> String {
    let units = [(1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1, "B")];
    let whole = units
        .into_iter()
        .find(|(unit, _)| size.get().is_multiple_of(*unit));
    let (unit, letter) = whole.unwrap_or((1, "B"));
    format!("{}{letter}", size.get() / unit)
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

#[cfg(test)]
mod tests {
    use sistemo_model::Filesystem;
    use sistemo_pools::{Driver, DriverInfo, FilePool, PoolError, Registry};

    use super::*;
    use crate::engine::{Caller, MonitorCommand};
    use crate::reporter::Silent;
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
        let mut engine = Engine::open(settings, Arc::new(Silent), caller).unwrap();
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
        let error = engine.set_pool(&name, &changes[0]).unwrap_err().to_string();
        let expected = "pool foo cannot change its driver: it holds volume data in the trash";
        assert_eq!(error, expected);
        engine.destroy_trashed(&reference).unwrap();
        for change in &changes {
            let view = engine.set_pool(&name, change).unwrap();
            assert_eq!(view.driver.as_deref(), Some("other"));
        }
    }
}
