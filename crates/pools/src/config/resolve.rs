//! What the options of a section mean.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sistemo_model::{Bytes, PoolName};

use super::document::{Entry, Mistake, Section};
use super::fault::Problem;
use super::keeping::{self, Keeping};
use super::{PoolConfig, Surroundings};
use crate::registry::{DIRECTORY, DriverInfo, Registry, ValueKind};

const DRIVER: &str = "driver";
const CLASS: &str = "class";
/// The driver of the `default` pool, which need not name one.
const USUAL_DRIVER: &str = "file";

/// The options that a pool has, its own and those it starts from.
pub(super) struct Options<'a> {
    own: &'a [Entry],
    inherited: &'a [Entry],
    /// The line of what is not there.
    title_line: usize,
}

impl<'a> Options<'a> {
    pub(super) fn new(section: Option<&'a Section>, defaults: Option<&'a Section>) -> Options<'a> {
        Options {
            own: section.map_or(&[], |section| section.entries.as_slice()),
            inherited: defaults.map_or(&[], |section| section.entries.as_slice()),
            title_line: section.or(defaults).map_or(0, |section| section.line),
        }
    }

    fn get(&self, key: &str) -> Option<&'a Entry> {
        let of_key = |entry: &&Entry| entry.key == key;
        let own = self.own.iter().find(of_key);
        own.or_else(|| self.inherited.iter().find(of_key))
    }

    /// The options but those that name the driver, each once.
    fn all(&self) -> impl Iterator<Item = &'a Entry> {
        let (own, inherited) = (self.own, self.inherited);
        let hidden = move |entry: &&Entry| own.iter().all(|own| own.key != entry.key);
        own.iter()
            .chain(inherited.iter().filter(hidden))
            .filter(|entry| ![DRIVER, CLASS].contains(&entry.key.as_str()))
    }

    fn is_inherited(&self, entry: &Entry) -> bool {
        !self.own.contains(entry)
    }
}

/// Makes a pool of a section's options.
pub(super) fn resolve(
    name: &PoolName,
    options: &Options<'_>,
    registry: &Registry,
    surroundings: &Surroundings,
) -> Result<PoolConfig, Mistake> {
    let driver = driver(name, options, registry)?;
    let mut values = BTreeMap::new();
    let mut kept = Keeping::default();
    for entry in options.all() {
        if Keeping::has(&entry.key) {
            kept.set(&entry.key, &entry.value)
                .map_err(|problem| mistake(entry, problem))?;
            continue;
        }
        let Some(option) = driver.option(&entry.key) else {
            if options.is_inherited(entry) && registry.knows_option(&entry.key) {
                // `[DEFAULT]` may hold options of several drivers.
                continue;
            }
            let problem = if options.is_inherited(entry) {
                Problem::UnknownDefault
            } else {
                Problem::UnknownOption {
                    driver: driver.name.clone(),
                    known: known_to(&driver),
                }
            };
            return Err(mistake(entry, problem));
        };
        let value = match option.kind {
            ValueKind::Path => path(&entry.value, surroundings.home.as_deref())
                .map_err(|problem| mistake(entry, problem))?,
            ValueKind::Word => entry.value.clone(),
            ValueKind::Flag => flag(&entry.value).map_err(|problem| mistake(entry, problem))?,
            ValueKind::Size => size(&entry.value).map_err(|problem| mistake(entry, problem))?,
            ValueKind::Number => keeping::number(&entry.value)
                .map_err(|problem| mistake(entry, problem))?
                .to_string(),
            ValueKind::Period => keeping::period(&entry.value)
                .map_err(|problem| mistake(entry, problem))?
                .seconds()
                .to_string(),
        };
        values.insert(entry.key.clone(), value);
    }
    if *name == PoolName::default_pool() && driver.option(DIRECTORY).is_some() {
        let usual = surroundings.data_dir.join("volumes");
        values
            .entry(DIRECTORY.to_owned())
            .or_insert_with(|| usual.display().to_string());
    }
    for option in &driver.options {
        if values.contains_key(&option.name) {
            continue;
        }
        if let Some(default) = &option.default {
            values.insert(option.name.clone(), default.clone());
        } else if option.required {
            return Err(Mistake {
                line: options.title_line,
                key: Some(option.name.clone()),
                problem: Problem::Missing {
                    driver: driver.name.clone(),
                },
            });
        }
    }
    let directory = values.get(DIRECTORY).map(PathBuf::from);
    Ok(PoolConfig {
        name: name.clone(),
        driver: driver.name,
        directory,
        options: values,
        keeping: kept,
    })
}

/// The names of all options of a driver's pools.
fn known_to(driver: &DriverInfo) -> Vec<String> {
    let common = Keeping::options().into_iter().map(|option| option.name);
    driver.option_names().into_iter().chain(common).collect()
}

/// The driver of a pool: `class` wins over `driver`, as in Qubes OS.
fn driver(
    name: &PoolName,
    options: &Options<'_>,
    registry: &Registry,
) -> Result<DriverInfo, Mistake> {
    let usable = |entry: &Entry, found: Option<Result<_, _>>, unknown: &dyn Fn() -> Problem| {
        let driver = entry.value.clone();
        let problem = match found {
            Some(Ok(info)) => return Ok(info),
            Some(Err(source)) => Problem::UnusableDriver { driver, source },
            None => unknown(),
        };
        Err(mistake(entry, problem))
    };
    if let Some(entry) = options.get(CLASS) {
        return usable(entry, registry.classed(&entry.value), &|| {
            let class = entry.value.clone();
            Problem::UnknownClass { class }
        });
    }
    let Some(entry) = options.get(DRIVER) else {
        let usual = registry.by_name(USUAL_DRIVER);
        return usual
            .filter(|_| *name == PoolName::default_pool())
            .ok_or(Mistake {
                line: options.title_line,
                key: Some(DRIVER.to_owned()),
                problem: Problem::NoDriver,
            });
    };
    usable(entry, registry.named(&entry.value), &|| {
        Problem::UnknownDriver {
            driver: entry.value.clone(),
            known: registry.names(),
        }
    })
}

/// A path as it is meant: absolute, with `~` for the home directory.
fn path(value: &str, home: Option<&Path>) -> Result<String, Problem> {
    let at_home = match value.strip_prefix('~') {
        Some("") => Some(""),
        Some(rest) => rest.strip_prefix('/'),
        None => None,
    };
    let value = value.to_owned();
    match (at_home, home) {
        (Some(rest), Some(home)) => Ok(home.join(rest).display().to_string()),
        (Some(_), None) => Err(Problem::NoHome { value }),
        (None, _) if Path::new(&value).is_absolute() => Ok(value),
        (None, _) => Err(Problem::NotAbsolute { value }),
    }
}

/// The words for yes and no that Python's `configparser` knows, and so the files of Qubes OS.
fn flag(value: &str) -> Result<String, Problem> {
    let is_one_of = |words: [&str; 4]| words.iter().any(|word| value.eq_ignore_ascii_case(word));
    if is_one_of(["true", "yes", "on", "1"]) {
        Ok(true.to_string())
    } else if is_one_of(["false", "no", "off", "0"]) {
        Ok(false.to_string())
    } else {
        let value = value.to_owned();
        Err(Problem::NotAFlag { value })
    }
}

fn size(value: &str) -> Result<String, Problem> {
    match value.parse::<Bytes>() {
        Ok(size) => Ok(size.get().to_string()),
        Err(source) => Err(Problem::NotASize { source }),
    }
}

fn mistake(entry: &Entry, problem: Problem) -> Mistake {
    Mistake {
        line: entry.line,
        key: Some(entry.key.clone()),
        problem,
    }
}
