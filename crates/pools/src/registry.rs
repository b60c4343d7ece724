//! The drivers there are, and how a pool's configuration becomes a pool.
//!
//! A driver is one file: it implements [`Driver`] and has its line in [`Registry::built_in`].
//! Nobody else asks for a driver by name.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sistemo_model::CatalogueId;

use crate::config::PoolConfig;
use crate::file::FileDriver;
use crate::qcow2::Qcow2Driver;
use crate::{FirstUse, Pool, PoolError};

/// A way of keeping volumes.
pub trait Driver: Send + Sync + fmt::Debug {
    /// What is known of it without any pool.
    fn info(&self) -> DriverInfo;

    /// Opens a pool whose options this driver has. On first use what the pool needs is made
    /// where it is missing: of its directory, the last component.
    ///
    /// # Errors
    /// What is in the way; what was made on the way to it is gone again.
    fn open(
        &self,
        pool: &PoolConfig,
        catalogue: CatalogueId,
        first_use: FirstUse,
    ) -> Result<Arc<dyn Pool>, PoolError>;
}

/// What is known of a driver without any pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverInfo {
    /// Its name, which `driver=` has.
    pub name: String,
    /// Other names for `driver=`.
    pub aliases: Vec<String>,
    /// What `class=` calls it.
    pub classes: Vec<String>,
    /// What it is, in one line.
    pub summary: String,
    /// The options of its pools.
    pub options: Vec<DriverOption>,
    /// What its pools can do beyond the contract that all keep.
    pub powers: Vec<Power>,
}

impl DriverInfo {
    /// The option of that name.
    #[must_use]
    pub fn option(&self, name: &str) -> Option<&DriverOption> {
        self.options.iter().find(|option| option.name == name)
    }

    /// The names of its options.
    #[must_use]
    pub fn option_names(&self) -> Vec<String> {
        let names = self.options.iter().map(|option| option.name.clone());
        names.collect()
    }
}

/// An option of a driver's pools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverOption {
    /// Its name.
    pub name: String,
    /// Whether a pool must have it.
    pub required: bool,
    /// Its value where a pool does not have it.
    pub default: Option<String>,
    /// What it is, in one line.
    pub summary: String,
    /// How its value is read.
    pub kind: ValueKind,
}

/// How an option's value is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValueKind {
    /// An absolute path; `~` is the home directory.
    Path,
    /// As it is written.
    Word,
    /// `true`, `yes`, `on` or `1`, or `false`, `no`, `off` or `0`, in any case; the driver is
    /// given `true` or `false`.
    Flag,
    /// A size as the command line has it; the driver is given bytes.
    Size,
}

/// Something that some pools can do and others cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Power {
    /// Make a volume from another.
    Clone,
    /// Keep a volume as it is now, and go back to that.
    Snapshot,
    /// Have a filesystem of its own, and grow it.
    Resize,
}

impl Power {
    /// The word users see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Power::Clone => "clone",
            Power::Snapshot => "snapshot",
            Power::Resize => "resize",
        }
    }
}

/// The drivers there are.
#[derive(Debug)]
pub struct Registry {
    drivers: Vec<Box<dyn Driver>>,
}

impl Registry {
    /// The drivers of this program.
    #[must_use]
    pub fn built_in() -> Registry {
        Registry {
            drivers: vec![Box::new(FileDriver), Box::new(Qcow2Driver)],
        }
    }

    /// The same with another driver, whose names are nobody else's.
    #[must_use]
    pub fn with(mut self, driver: Box<dyn Driver>) -> Registry {
        self.drivers.push(driver);
        self
    }

    /// All drivers, the usual one first.
    #[must_use]
    pub fn drivers(&self) -> Vec<DriverInfo> {
        self.drivers.iter().map(|driver| driver.info()).collect()
    }

    /// The driver of that name or alias.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<DriverInfo> {
        self.drivers()
            .into_iter()
            .find(|info| info.name == name || info.aliases.iter().any(|alias| alias == name))
    }

    /// The driver of that class.
    #[must_use]
    pub fn by_class(&self, class: &str) -> Option<DriverInfo> {
        self.drivers()
            .into_iter()
            .find(|info| info.classes.iter().any(|known| known == class))
    }

    /// Whether any driver has an option of that name.
    #[must_use]
    pub fn knows_option(&self, name: &str) -> bool {
        let drivers = self.drivers();
        drivers.iter().any(|info| info.option(name).is_some())
    }

    /// Opens a pool; see [`Driver::open`].
    ///
    /// # Errors
    /// What is in the way, [`PoolError::NoDriver`] among it.
    pub fn open(
        &self,
        pool: &PoolConfig,
        catalogue: CatalogueId,
        first_use: FirstUse,
    ) -> Result<Arc<dyn Pool>, PoolError> {
        let driver = self
            .drivers
            .iter()
            .find(|driver| driver.info().name == pool.driver)
            .ok_or_else(|| PoolError::NoDriver {
                pool: pool.name.clone(),
                driver: pool.driver.clone(),
            })?;
        driver.open(pool, catalogue, first_use)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_word_means_one_driver() {
        let mut seen = HashSet::new();
        for info in Registry::built_in().drivers() {
            for word in [info.name]
                .into_iter()
                .chain(info.aliases)
                .chain(info.classes)
            {
                assert!(seen.insert(word.clone()), "{word}");
            }
        }
    }

    #[test]
    fn the_file_driver_has_the_names_of_qubes() {
        let registry = Registry::built_in();
        for name in ["file", "xen", "dir"] {
            assert_eq!(registry.by_name(name).unwrap().name, "file", "{name}");
        }
        let class = registry.by_class("qubes.storage.xen.XenStorage");
        assert_eq!(class.unwrap().name, "file");
        assert_eq!(registry.by_name("XEN"), None);
        assert_eq!(registry.by_class("file"), None);
    }

    #[test]
    fn a_required_option_has_no_default() {
        for info in Registry::built_in().drivers() {
            for option in info.options {
                assert!(
                    !option.required || option.default.is_none(),
                    "{}",
                    option.name
                );
            }
        }
    }
}
