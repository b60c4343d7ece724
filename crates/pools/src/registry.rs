//! The drivers there are, and how a pool's configuration becomes a pool.
//!
//! A driver of this program is a file or a folder: it implements [`Driver`] and has its line in
//! [`Registry::built_in`]. Any other is an executable: see [`external`]. Nobody else asks for a
//! driver by name.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sistemo_host::mount::FilesystemKind;
use sistemo_model::CatalogueId;

use crate::btrfs::BtrfsDriver;
use crate::config::PoolConfig;
use crate::external::{self, ExternalDriver, Limits, UnusableDriver};
use crate::file::{FileDriver, FileReflinkDriver};
use crate::qcow2::Qcow2Driver;
use crate::{FirstUse, Pool, PoolError, loop_backed};

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

/// The option of pools that have a directory.
pub const DIRECTORY: &str = "dir_path";

/// The option of pools that can have a filesystem of their own.
pub(crate) const SIZE: &str = "size";

impl DriverOption {
    /// The directory that a pool must have.
    #[must_use]
    pub fn directory() -> DriverOption {
        DriverOption {
            name: DIRECTORY.to_owned(),
            required: true,
            default: None,
            summary: "the directory; its last component is made at the first use".to_owned(),
            kind: ValueKind::Path,
        }
    }

    /// The size of the filesystem that a pool with it gets for itself.
    pub(crate) fn size(filesystem: FilesystemKind) -> DriverOption {
        DriverOption {
            name: SIZE.to_owned(),
            required: false,
            default: None,
            summary: format!(
                "makes the pool a filesystem of its own ({kind}), of this size, in one sparse file; needs root",
                kind = loop_backed::name_of(filesystem)
            ),
            kind: ValueKind::Size,
        }
    }
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
    /// A whole number, at most 2^32 - 1.
    Number,
    /// A length of time, such as `90m`, `24h` or `7d`; the driver is given seconds.
    Period,
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
    /// `None` where executables are not looked for.
    external: Option<External>,
}

/// The directory of a data directory in which executables that are drivers are looked for first.
const OWN_DIRECTORY: &str = "drivers";

/// The drivers that are executables.
#[derive(Debug)]
struct External {
    directories: Vec<PathBuf>,
    /// What each that was asked for said of itself, by its name: none is run twice for that.
    introduced: Mutex<BTreeMap<String, Introduced>>,
}

type Introduced = Result<Arc<ExternalDriver>, UnusableDriver>;

impl External {
    /// The driver called so: by its name, or its absolute path.
    fn driver(&self, name: &str) -> Option<Introduced> {
        let mut introduced = self
            .introduced
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = introduced.get(name) {
            return Some(known.clone());
        }
        let path = if Path::new(name).is_absolute() {
            PathBuf::from(name)
        } else {
            external::find(name, &self.directories)?
        };
        let asked = ExternalDriver::introduce(name, &path, Limits::default());
        let asked = match asked {
            Ok(driver) => Ok(Arc::new(driver)),
            Err(fault) => Err(UnusableDriver::from(&fault)),
        };
        introduced.insert(name.to_owned(), asked.clone());
        Some(asked)
    }

    fn names(&self) -> Vec<String> {
        external::names(&self.directories)
    }

    fn info(&self, name: &str) -> Option<Result<DriverInfo, UnusableDriver>> {
        self.driver(name)
            .map(|introduced| introduced.map(|driver| driver.info()))
    }
}

impl Registry {
    /// The drivers of this program.
    #[must_use]
    pub fn built_in() -> Registry {
        Registry {
            drivers: vec![
                Box::new(FileDriver),
                Box::new(FileReflinkDriver),
                Box::new(BtrfsDriver),
                Box::new(Qcow2Driver),
            ],
            external: None,
        }
    }

    /// The drivers of this program, and the executables in `drivers/` of a data directory and on
    /// PATH.
    #[must_use]
    pub fn for_data_directory(data_dir: &Path) -> Registry {
        let own = data_dir.join(OWN_DIRECTORY);
        let found = sistemo_host::program::search_path();
        Registry::built_in().searching(std::iter::once(own).chain(found).collect())
    }

    /// The same with the executables that are drivers in these directories, the first of a name,
    /// and those that a pool's class names by their absolute path.
    #[must_use]
    pub fn searching(mut self, directories: Vec<PathBuf>) -> Registry {
        self.external = Some(External {
            directories,
            introduced: Mutex::default(),
        });
        self
    }

    /// The same with another driver, whose names are nobody else's.
    #[must_use]
    pub fn with(mut self, driver: Box<dyn Driver>) -> Registry {
        self.drivers.push(driver);
        self
    }

    /// All drivers, the usual one first, those of this program before the executables. One that
    /// cannot be used says so in its summary.
    #[must_use]
    pub fn drivers(&self) -> Vec<DriverInfo> {
        let mut all: Vec<_> = self.own().collect();
        for name in self.external_names() {
            let info = self.external.as_ref().and_then(|known| known.info(&name));
            match info {
                Some(Ok(info)) => all.push(info),
                Some(Err(unusable)) => all.push(DriverInfo {
                    name,
                    aliases: Vec::new(),
                    classes: Vec::new(),
                    summary: format!("cannot be used: {unusable}"),
                    options: Vec::new(),
                    powers: Vec::new(),
                }),
                None => {}
            }
        }
        all
    }

    /// The names of all drivers; none is run for it.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let own = self.own().map(|info| info.name);
        own.chain(self.external_names()).collect()
    }

    fn own(&self) -> impl Iterator<Item = DriverInfo> {
        self.drivers.iter().map(|driver| driver.info())
    }

    /// The names of the executables that no driver of this program has.
    fn external_names(&self) -> Vec<String> {
        let mut names = self.external.as_ref().map(External::names);
        if let Some(names) = &mut names {
            names.retain(|name| self.own_by_name(name).is_none());
        }
        names.unwrap_or_default()
    }

    fn own_by_name(&self, name: &str) -> Option<DriverInfo> {
        self.own()
            .find(|info| info.name == name || info.aliases.iter().any(|alias| alias == name))
    }

    /// The driver of that name or alias, or the executable at that absolute path; `None` where there is none, or it cannot be used.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<DriverInfo> {
        self.named(name).and_then(Result::ok)
    }

    /// The driver of that class, which may be the absolute path of an executable; `None` where
    /// there is none, or it cannot be used.
    #[must_use]
    pub fn by_class(&self, class: &str) -> Option<DriverInfo> {
        self.classed(class).and_then(Result::ok)
    }

    /// As [`Registry::by_name`], and why one that is there cannot be used.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Result<DriverInfo, UnusableDriver>> {
        if let Some(info) = self.own_by_name(name) {
            return Some(Ok(info));
        }
        let external = self.external.as_ref();
        external.and_then(|external| external.info(name))
    }

    /// As [`Registry::by_class`], and why one that is there cannot be used.
    #[must_use]
    pub fn classed(&self, class: &str) -> Option<Result<DriverInfo, UnusableDriver>> {
        let mut own = self.own();
        if let Some(info) = own.find(|info| info.classes.iter().any(|known| known == class)) {
            return Some(Ok(info));
        }
        let by_path = Path::new(class).is_absolute();
        self.external
            .as_ref()
            .filter(|_| by_path)
            .and_then(|external| external.info(class))
    }

    /// Whether any driver has an option of that name.
    #[must_use]
    pub fn knows_option(&self, name: &str) -> bool {
        let own = self.own().any(|info| info.option(name).is_some());
        // Executables are only run where no other driver has it.
        own || self
            .drivers()
            .iter()
            .any(|info| info.option(name).is_some())
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
        let mut own = self.drivers.iter();
        if let Some(driver) = own.find(|driver| driver.info().name == pool.driver) {
            return driver.open(pool, catalogue, first_use);
        }
        let external = self.external.as_ref();
        match external.and_then(|external| external.driver(&pool.driver)) {
            Some(Ok(driver)) => driver.open(pool, catalogue, first_use),
            Some(Err(source)) => Err(PoolError::UnusableDriver {
                pool: pool.name.clone(),
                driver: pool.driver.clone(),
                source,
            }),
            None => Err(PoolError::NoDriver {
                pool: pool.name.clone(),
                driver: pool.driver.clone(),
            }),
        }
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
