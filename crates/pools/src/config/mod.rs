//! `storage.conf`: which pools there are.
//!
//! The file is found, read and understood here, and edited so that its comments, its order and
//! its line ends stay. A mistake makes the pool of its section unusable and no other; only what
//! belongs to no section, or to `[DEFAULT]`, which every pool starts from, concerns them all.
//! Nothing here looks at a pool's directory.

mod document;
mod fault;
mod keeping;
mod resolve;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags};
use sistemo_host::directory::{Directory, FileError, split};
use sistemo_model::PoolName;

pub use self::fault::{ConfError, Fault, Problem};
pub use self::keeping::Keeping;

use self::document::{Document, Mistake, Section};
use self::resolve::{Options, resolve};
use crate::PoolError;
use crate::registry::Registry;

/// The file's name in the data directory.
pub const FILE_NAME: &str = "storage.conf";
/// Where the host's own file is.
pub const SYSTEM_FILE: &str = "/etc/sistemo/storage.conf";

/// No such file of people comes near this.
const LIMIT: u64 = 1 << 20;
const DEFAULTS: &str = "DEFAULT";

/// What a `storage.conf` depends on beyond its text. All paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// The file that the user named; it must then be there.
    pub named: Option<PathBuf>,
    /// The data directory, which may have a file of its own, and has the default pool.
    pub data_dir: PathBuf,
    /// The host's own file, the last that is looked for.
    pub system: PathBuf,
    /// What `~` stands for, where somebody knows.
    pub home: Option<PathBuf>,
}

impl Surroundings {
    /// The file in effect: the named one, else the data directory's, else the host's; `None`
    /// where there is none.
    #[must_use]
    pub fn file(&self) -> Option<PathBuf> {
        let own = self.data_dir.join(FILE_NAME);
        let found = || [own, self.system.clone()].into_iter().find(|p| is_there(p));
        self.named.clone().or_else(found)
    }
}

/// Whether something is there, were it unreadable: then that must be told.
fn is_there(path: &Path) -> bool {
    match path.symlink_metadata() {
        Ok(_) => true,
        Err(error) => !matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        ),
    }
}

/// A pool as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Its name.
    pub name: PoolName,
    /// Its driver, by the driver's own name.
    pub driver: String,
    /// Its directory, for drivers that have one.
    pub directory: Option<PathBuf>,
    /// The driver's options, all of them, as they are meant.
    pub options: BTreeMap<String, String>,
    /// What is kept in it of its volumes' past; nothing to its driver.
    pub keeping: Keeping,
}

impl PoolConfig {
    /// The directory of a pool whose driver needs one.
    ///
    /// # Errors
    /// [`PoolError::NoPlace`].
    pub fn place(&self) -> Result<&Path, PoolError> {
        let directory = self.directory.as_deref();
        directory.ok_or_else(|| PoolError::NoPlace {
            pool: self.name.clone(),
        })
    }
}

/// A section that is to be a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfiguredPool {
    /// The section's title, which need not be the name of a pool.
    pub title: String,
    /// The line it begins in, from 1; `None` for the default pool that no section describes.
    pub line: Option<usize>,
    /// What it is, or what is wrong with it.
    pub config: Result<PoolConfig, Fault>,
}

/// A `storage.conf` that was read, or the lack of one.
#[derive(Clone, Debug)]
pub struct StorageConf {
    file: Option<PathBuf>,
    surroundings: Surroundings,
    document: Document,
    pools: Vec<ConfiguredPool>,
}

impl StorageConf {
    /// Reads the file in effect. Where there is none, there is the default pool.
    ///
    /// # Errors
    /// [`ConfError::Unreadable`], also for one of more than 1 MiB, and [`ConfError::Fault`] for a
    /// mistake that belongs to no section.
    pub fn load(surroundings: &Surroundings, registry: &Registry) -> Result<Self, ConfError> {
        let file = surroundings.file();
        let text = file.as_deref().map_or(Ok(Vec::new()), read)?;
        StorageConf::understand(text, file, surroundings.clone(), registry)
    }

    fn understand(
        text: Vec<u8>,
        file: Option<PathBuf>,
        surroundings: Surroundings,
        registry: &Registry,
    ) -> Result<StorageConf, ConfError> {
        let document = Document::parse(text);
        let mut conf = StorageConf {
            file,
            surroundings,
            document,
            pools: Vec::new(),
        };
        if let Some(stray) = conf.document.stray.clone() {
            return Err(conf.fault(None, stray).into());
        }
        conf.pools = conf.understand_pools(registry);
        Ok(conf)
    }

    fn understand_pools(&self, registry: &Registry) -> Vec<ConfiguredPool> {
        let mut pools = Vec::new();
        let default = PoolName::default_pool();
        if self.section(default.as_str()).is_none() {
            pools.push(ConfiguredPool {
                title: default.to_string(),
                line: None,
                config: self.config_of(&default, None, registry),
            });
        }
        for section in &self.document.sections {
            if section.title != DEFAULTS {
                pools.push(ConfiguredPool {
                    title: section.title.clone(),
                    line: Some(section.line),
                    config: self.config_of_section(section, registry),
                });
            }
        }
        pools
    }

    fn config_of_section(
        &self,
        section: &Section,
        registry: &Registry,
    ) -> Result<PoolConfig, Fault> {
        let wrong = |mistake| self.fault(Some(&section.title), mistake);
        if let Some(mistake) = self.mistake_in(section) {
            return Err(wrong(mistake));
        }
        let name: PoolName = section.title.parse().map_err(|error| {
            wrong(Mistake {
                line: section.line,
                key: None,
                problem: Problem::BadName(error),
            })
        })?;
        self.config_of(&name, Some(section), registry)
    }

    fn config_of(
        &self,
        name: &PoolName,
        section: Option<&Section>,
        registry: &Registry,
    ) -> Result<PoolConfig, Fault> {
        let defaults = self.section(DEFAULTS);
        if let Some(mistake) = defaults.and_then(|section| self.mistake_in(section)) {
            return Err(self.fault(Some(DEFAULTS), mistake));
        }
        let options = Options::new(section, defaults);
        resolve(name, &options, registry, &self.surroundings).map_err(|mistake| {
            let holds = |section: &&Section| section.holds(&mistake);
            let place = defaults.filter(holds).map(|section| section.title.as_str());
            self.fault(Some(place.unwrap_or(name.as_str())), mistake)
        })
    }

    /// The first mistake within a section, and whether it is there twice.
    fn mistake_in(&self, section: &Section) -> Option<Mistake> {
        let same = |other: &&Section| other.title == section.title && other.line != section.line;
        let twice = self
            .document
            .sections
            .iter()
            .find(same)
            .map(|other| Mistake {
                line: section.line,
                key: None,
                problem: Problem::SectionTwice { other: other.line },
            });
        section.mistakes.first().cloned().or(twice)
    }

    fn fault(&self, section: Option<&str>, mistake: Mistake) -> Fault {
        let place = self.file.clone().map(|file| (file, mistake.line));
        Fault {
            place,
            section: section.map(str::to_owned),
            key: mistake.key,
            problem: mistake.problem,
        }
    }

    fn section(&self, title: &str) -> Option<&Section> {
        let mut sections = self.document.sections.iter();
        sections.find(|section| section.title == title)
    }

    /// The file that was read; `None` where there is none.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The file that a change is written to: the one in effect, else the data directory's.
    #[must_use]
    pub fn file_to_change(&self) -> PathBuf {
        let own = || self.surroundings.data_dir.join(FILE_NAME);
        self.file.clone().unwrap_or_else(own)
    }

    /// All pools, as the file has them; the default pool first where it has no section.
    #[must_use]
    pub fn pools(&self) -> &[ConfiguredPool] {
        &self.pools
    }

    /// The pool of that name.
    #[must_use]
    pub fn pool(&self, name: &PoolName) -> Option<&ConfiguredPool> {
        self.pools.iter().find(|pool| pool.title == name.as_str())
    }

    /// The same with another pool, behind all others.
    ///
    /// # Errors
    /// Where something of it would be read back as something else. Whether the pool makes sense
    /// is for [`StorageConf::pool`] to say.
    pub fn with_pool(
        &self,
        name: &PoolName,
        driver: &str,
        options: &[(String, String)],
        registry: &Registry,
    ) -> Result<StorageConf, ConfError> {
        let mut all = vec![("driver".to_owned(), driver.to_owned())];
        all.extend_from_slice(options);
        let text = self.document.with_section(name.as_str(), &all);
        let added = self.changed(text, registry)?;
        added.check_read_back(name, &all, self.document.sections.len() + 1)?;
        Ok(added)
    }

    /// The same with options of a pool changed or added.
    ///
    /// # Errors
    /// As [`StorageConf::with_pool`].
    pub fn with_options(
        &self,
        name: &PoolName,
        options: &[(String, String)],
        registry: &Registry,
    ) -> Result<StorageConf, ConfError> {
        let mut changed = if self.section(name.as_str()).is_some() {
            self.clone()
        } else {
            self.changed(self.document.with_section(name.as_str(), &[]), registry)?
        };
        let sections = changed.document.sections.len();
        for (key, value) in options {
            if let Some(section) = changed.section(name.as_str()) {
                let text = changed.document.with_option(section, key, value);
                changed = changed.changed(text, registry)?;
            }
        }
        changed.check_read_back(name, options, sections)?;
        Ok(changed)
    }

    /// The same without a pool.
    ///
    /// # Errors
    /// None that this file could lead to; a mistake that belongs to no section.
    pub fn without_pool(
        &self,
        name: &PoolName,
        registry: &Registry,
    ) -> Result<StorageConf, ConfError> {
        let mut changed = self.clone();
        while let Some(section) = changed.section(name.as_str()) {
            let text = changed.document.without_section(section);
            changed = changed.changed(text, registry)?;
        }
        Ok(changed)
    }

    fn changed(&self, text: Vec<u8>, registry: &Registry) -> Result<StorageConf, ConfError> {
        let (file, surroundings) = (self.file.clone(), self.surroundings.clone());
        StorageConf::understand(text, file, surroundings, registry)
    }

    /// Makes sure that what was written is what will be read.
    fn check_read_back(
        &self,
        name: &PoolName,
        options: &[(String, String)],
        sections: usize,
    ) -> Result<(), ConfError> {
        let section = self.section(name.as_str());
        for (key, value) in options {
            let read = section.and_then(|section| section.value(key));
            if read != Some(value) || self.document.sections.len() != sections {
                let problem = Problem::Unwritable {
                    value: value.clone(),
                };
                return Err(ConfError::Fault(Fault {
                    place: None,
                    section: Some(name.to_string()),
                    key: Some(key.clone()),
                    problem,
                }));
            }
        }
        Ok(())
    }

    /// Makes sure, as far as that can be told before, that a change can be written.
    ///
    /// # Errors
    /// [`ConfError::NotWritable`].
    pub fn check_writable(&self) -> Result<(), ConfError> {
        let file = self.file_to_change();
        let (directory, name) = enter(&file).map_err(|source| not_writable(&file, source))?;
        let wanted = Access::WRITE_OK | Access::EXEC_OK;
        rustix::fs::accessat(&directory, ".", wanted, AtFlags::EACCESS).map_err(|error| {
            let source = FileError::new("write to", directory.path_of(&name), error);
            not_writable(&file, source)
        })
    }

    /// Writes a changed configuration in this one's place, durably. A crash leaves the one or
    /// the other, and perhaps a file whose name ends in `.part`.
    ///
    /// # Errors
    /// [`ConfError::NotWritable`]; [`ConfError::Changed`] where the file is no longer what was
    /// read. Then nothing has changed.
    pub fn replace_by(&self, changed: &StorageConf) -> Result<(), ConfError> {
        let file = self.file_to_change();
        let failed = |source| not_writable(&file, source);
        if self.surroundings.file() != self.file
            || self
                .file
                .as_deref()
                .map(read)
                .transpose()?
                .unwrap_or_default()
                != self.document.text
        {
            return Err(ConfError::Changed { file });
        }
        let (directory, name) = enter(&file).map_err(failed)?;
        directory
            .replace_keeping_access(&name, &changed.document.text)
            .map_err(failed)
    }
}

impl Section {
    fn value(&self, key: &str) -> Option<&String> {
        let entry = self.entries.iter().find(|entry| entry.key == key);
        entry.map(|entry| &entry.value)
    }

    /// Whether a mistake is about one of its options.
    fn holds(&self, mistake: &Mistake) -> bool {
        let mut entries = self.entries.iter();
        entries.any(|entry| entry.line == mistake.line)
    }
}

fn read(file: &Path) -> Result<Vec<u8>, ConfError> {
    let unreadable = |source| ConfError::Unreadable {
        file: file.to_owned(),
        source,
    };
    let (directory, name) = enter(file).map_err(unreadable)?;
    let kind = fs::metadata(directory.path_of(&name)).map(|meta| meta.is_file());
    if matches!(kind, Ok(false)) {
        // Reading a pipe, for one, would not end.
        let error = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
        return Err(unreadable(FileError::new("read", file, error)));
    }
    directory.read(&name, LIMIT).map_err(unreadable)
}

/// The directory of the file that a path leads to. The file itself may be a link, which belongs
/// to the user; it is what the link leads to that is read and replaced.
fn enter(file: &Path) -> Result<(Directory, String), FileError> {
    match fs::canonicalize(file) {
        Ok(real) => split(&real),
        Err(error) if error.kind() == io::ErrorKind::NotFound => split(file),
        Err(error) => Err(FileError::new("find", file, error)),
    }
}

fn not_writable(file: &Path, source: FileError) -> ConfError {
    ConfError::NotWritable {
        file: file.to_owned(),
        source,
    }
}
