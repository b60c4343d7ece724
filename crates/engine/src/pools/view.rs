//! Listing and showing pools. Nothing is made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sistemo_catalog::{ImageCopy, KnownPool};
use sistemo_host::system;
use sistemo_model::{Lifecycle, PoolName, Volume};
use sistemo_pools::{
    Clones, ConfiguredPool, Cost, DriverInfo, Keeping, PoolConfig, Snapshots, StorageConf, marker,
};

use super::{cannot_use, not_found, usable};
use crate::engine::Engine;
use crate::error::Result;
use crate::volumes::shown_with_causes;

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
    /// How many volumes it holds, those in the trash not among them.
    pub volumes: usize,
    /// How many deleted volumes it holds that can still be restored; they are in no other count.
    pub trash: usize,
    /// How many images stand in it, for root volumes to be cloned from.
    pub images: usize,
    /// What a clone costs in it; `None` where it makes none, or cannot be used now.
    pub clones: Option<Cost>,
    /// What a snapshot costs in it; `None` where it keeps none, or cannot be used now.
    pub snapshots: Option<Cost>,
    /// Whether it has a filesystem of its own, which can be grown.
    pub resizable: bool,
    /// Its options, its driver's and those that all pools have.
    pub options: BTreeMap<String, String>,
    /// The file that describes it; `None` where none does.
    pub file: Option<PathBuf>,
    /// The line there that its section begins in.
    pub line: Option<usize>,
}

/// What is known of all pools at one instant.
pub(super) struct Survey {
    pub(super) conf: StorageConf,
    pub(super) known: Vec<KnownPool>,
    pub(super) volumes: Vec<Volume>,
    pub(super) copies: Vec<ImageCopy>,
}

/// What a look at a pool that can be used has shown.
#[derive(Default)]
struct Look {
    space: Option<system::Space>,
    clones: Option<Cost>,
    snapshots: Option<Cost>,
    resizable: bool,
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

    /// The drivers that pools can have, each with all options of its pools.
    #[must_use]
    pub fn drivers(&self) -> Vec<DriverInfo> {
        let mut drivers = self.pools.registry.drivers();
        for driver in &mut drivers {
            driver.options.extend(Keeping::options());
        }
        drivers
    }

    pub(super) fn survey(&self) -> Result<Survey> {
        let conf = self.storage_conf()?;
        self.catalogue.read(|session| {
            Ok(Survey {
                conf,
                known: session.known_pools()?,
                volumes: session.all_volumes()?,
                copies: session.image_copies()?,
            })
        })
    }

    pub(super) fn view(&self, survey: &Survey, pool: &ConfiguredPool) -> PoolView {
        let config = pool.config.as_ref().ok();
        let state = match config {
            Some(config) => self.look(survey, config).map_err(|e| shown_with_causes(&e)),
            None => Err(shown_fault(pool)),
        };
        let (look, reason) = match state {
            Ok(look) => (look, None),
            Err(reason) => (Look::default(), Some(reason)),
        };
        let space = look.space;
        let (trash, volumes): (Vec<_>, Vec<_>) = survey
            .volumes
            .iter()
            .filter(|volume| volume.pool.as_str() == pool.title)
            .partition(|volume| volume.lifecycle == Lifecycle::Trashed);
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
            provisioned_bytes: volumes.iter().map(|volume| volume.size.get()).sum(),
            volumes: volumes.len(),
            trash: trash.len(),
            images: survey
                .copies
                .iter()
                .filter(|copy| copy.pool.as_str() == pool.title)
                .count(),
            clones: look.clones,
            snapshots: look.snapshots,
            resizable: look.resizable,
            options: config.map(options_of).unwrap_or_default(),
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
                keeping: Keeping::default(),
            }),
        };
        PoolView {
            driver: None,
            available: false,
            reason: Some("no section of storage.conf describes it".to_owned()),
            options: BTreeMap::new(),
            size_bytes: None,
            used_bytes: None,
            free_bytes: None,
            ..self.view(survey, &lost)
        }
    }

    /// Looks whether a pool can be used, without making anything, and at its space and powers.
    fn look(&self, survey: &Survey, config: &PoolConfig) -> Result<Look> {
        let name = &config.name;
        let failed = |source| cannot_use(name, source);
        let config = usable(&survey.conf, &survey.known, name, self.data_dir())?;
        let Some(directory) = config.directory.as_deref() else {
            return Ok(Look::default());
        };
        if survey.known_pool(name).is_some() {
            let pool = self.pool(name)?;
            pool.probe().map_err(failed)?;
            let usage = pool.usage().map_err(failed)?;
            let (size, free) = (usage.size, usage.free);
            return Ok(Look {
                space: Some(system::Space { size, free }),
                clones: pool.clones().map(Clones::clone_cost),
                snapshots: pool.snapshots().map(Snapshots::snapshot_cost),
                resizable: pool.own_filesystem().is_some(),
            });
        }
        marker::check_first_use(directory, name, self.catalogue.id()).map_err(failed)?;
        let parent = directory.parent().filter(|_| !directory.exists());
        Ok(Look {
            space: system::space(parent.unwrap_or(directory)).ok(),
            ..Look::default()
        })
    }
}

impl Survey {
    pub(super) fn known_pool(&self, name: &PoolName) -> Option<&KnownPool> {
        self.known.iter().find(|known| known.name == *name)
    }

    pub(super) fn volumes_in(&self, name: &PoolName) -> impl Iterator<Item = &Volume> {
        self.volumes
            .iter()
            .filter(move |volume| volume.pool == *name)
    }
}

fn options_of(config: &PoolConfig) -> BTreeMap<String, String> {
    let mut options = config.options.clone();
    options.extend(config.keeping.values());
    options
}

fn shown_fault(pool: &ConfiguredPool) -> String {
    let fault = pool.config.as_ref().err();
    fault.map(shown_with_causes).unwrap_or_default()
}
