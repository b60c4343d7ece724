//! What can be configured, and where each value came from.
//!
//! `config.toml` in the data directory, overridden by `SISTEMO_*` variables, overridden by
//! options. The caller hands the variables in: a library does not read the environment.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use sistemo_host::directory::{Directory, FileError};
use sistemo_model::{Bytes, PoolName, VcpuCount, VmmChoice};
use sistemo_pools::Surroundings;
use sistemo_pools::config::SYSTEM_FILE;

const FILE_NAME: &str = "config.toml";
const FILE_LIMIT: u64 = 1 << 20;
/// The variable that names the `storage.conf` to use.
pub(crate) const STORAGE_CONF: &str = "SISTEMO_STORAGE_CONF";
const MEMORY: Bytes = Bytes::from_mib(512);
const STORAGE: Bytes = Bytes::from_mib(2048);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
const STOP_TIMEOUT: Duration = Duration::from_secs(90);

/// Everything that can be configured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The directory that holds everything: `data_dir`.
    pub data_dir: Setting<PathBuf>,
    /// The `storage.conf` that the user named, as an absolute path; without one it is looked for.
    pub storage_conf: Setting<Option<PathBuf>>,
    /// The user's home directory, which `~` in `storage.conf` stands for.
    pub home: Option<PathBuf>,
    /// The pool of volumes that name none: `default_pool`.
    pub default_pool: Setting<PoolName>,
    /// What runs new machines: `vmm`.
    pub vmm: Setting<VmmChoice>,
    /// The virtual processors of a machine that asks for no number: `vcpus`.
    pub vcpus: Setting<VcpuCount>,
    /// The memory of a machine that asks for no size: `memory`.
    pub memory: Setting<Bytes>,
    /// The root volume's size where a deploy asks for none and the image is smaller: `storage`.
    pub storage: Setting<Bytes>,
    /// How long a started machine has to answer, in whole seconds: `answer_timeout`.
    pub answer_timeout: Setting<Duration>,
    /// How long a machine has to power itself off, in whole seconds: `stop_timeout`.
    pub stop_timeout: Setting<Duration>,
}

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    /// The value in effect.
    pub value: T,
    /// Where it came from.
    pub origin: Origin,
}

impl<T> Setting<T> {
    fn default_value(value: T) -> Setting<T> {
        Setting {
            value,
            origin: Origin::Default,
        }
    }
}

/// Where a setting came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// A configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// An option on the command line.
    Option(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Environment(name) => f.write_str(name),
            Origin::Option(option) => f.write_str(option),
        }
    }
}

/// One line of `sistemo config`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SettingLine {
    /// The setting's name, as `config.toml` has it.
    pub key: &'static str,
    /// Its value in effect.
    pub value: String,
    /// Where it came from.
    pub origin: String,
}

/// Why the settings are not usable.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The configuration file cannot be read.
    #[error("cannot use the configuration")]
    File(#[from] FileError),
    /// The configuration file is not TOML.
    #[error("{} is not valid TOML", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The configuration file has a key that means nothing.
    #[error("{}: unknown setting `{key}`", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The keys there are.
        known: Vec<&'static str>,
    },
    /// A value does not fit its setting.
    #[error("setting `{key}` from {origin}: `{value}` {expected}")]
    Value {
        /// The setting.
        key: &'static str,
        /// Where the value came from.
        origin: Origin,
        /// The value.
        value: String,
        /// What it should be: `is not a size`.
        expected: &'static str,
    },
}

/// `HOME` and the `SISTEMO_*` variables of the caller's environment: name and value, where set.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Settings {
    /// The settings that `config.toml` may hold, in the order `config` shows them.
    pub const KEYS: [&'static str; 7] = [
        "default_pool",
        "vmm",
        "vcpus",
        "memory",
        "storage",
        "answer_timeout",
        "stop_timeout",
    ];

    /// The settings of a data directory. A missing `config.toml` means defaults.
    ///
    /// # Errors
    /// Where the file is not readable or not understood, or a variable's value does not fit.
    pub fn load(
        data_dir: Setting<PathBuf>,
        variables: Variables<'_>,
    ) -> Result<Settings, SettingsError> {
        let path = data_dir.value.join(FILE_NAME);
        let source = Source {
            table: read(&data_dir.value, &path)?,
            path,
            variables,
        };
        source.refuse_unknown_keys()?;
        Ok(Settings {
            storage_conf: source.storage_conf()?,
            home: source.variable("HOME").map(PathBuf::from),
            default_pool: source.setting(
                "default_pool",
                PoolName::default_pool(),
                "is not the name of a pool",
                |text| text.parse().ok(),
            )?,
            vmm: source.setting("vmm", VmmChoice::Auto, "is not auto or qemu", |text| {
                text.parse().ok()
            })?,
            vcpus: source.setting(
                "vcpus",
                VcpuCount::DEFAULT,
                "is not a number between 1 and 255",
                |text| text.parse().ok(),
            )?,
            memory: source.setting("memory", MEMORY, "is not a size such as 512M", |text| {
                text.parse().ok()
            })?,
            storage: source.setting("storage", STORAGE, "is not a size such as 2G", |text| {
                text.parse().ok()
            })?,
            answer_timeout: source.seconds("answer_timeout", ANSWER_TIMEOUT)?,
            stop_timeout: source.seconds("stop_timeout", STOP_TIMEOUT)?,
            data_dir,
        })
    }

    /// The settings of a data directory where nothing is configured.
    #[must_use]
    pub fn defaults(data_dir: &Path) -> Settings {
        Settings {
            data_dir: Setting::default_value(data_dir.to_owned()),
            storage_conf: Setting::default_value(None),
            home: None,
            default_pool: Setting::default_value(PoolName::default_pool()),
            vmm: Setting::default_value(VmmChoice::Auto),
            vcpus: Setting::default_value(VcpuCount::DEFAULT),
            memory: Setting::default_value(MEMORY),
            storage: Setting::default_value(STORAGE),
            answer_timeout: Setting::default_value(ANSWER_TIMEOUT),
            stop_timeout: Setting::default_value(STOP_TIMEOUT),
        }
    }

    /// What a `storage.conf` depends on.
    #[must_use]
    pub fn surroundings(&self) -> Surroundings {
        Surroundings {
            named: self.storage_conf.value.clone(),
            data_dir: self.data_dir.value.clone(),
            system: SYSTEM_FILE.into(),
            home: self.home.clone(),
        }
    }

    /// Every setting with its value and where it came from.
    #[must_use]
    pub fn lines(&self) -> Vec<SettingLine> {
        fn line<T>(key: &'static str, setting: &Setting<T>, value: String) -> SettingLine {
            SettingLine {
                key,
                value,
                origin: setting.origin.to_string(),
            }
        }
        let seconds = |setting: &Setting<Duration>| setting.value.as_secs().to_string();
        vec![
            line(
                "data_dir",
                &self.data_dir,
                self.data_dir.value.display().to_string(),
            ),
            line(
                "storage_conf",
                &self.storage_conf,
                self.surroundings()
                    .file()
                    .map_or_else(|| "none".to_owned(), |file| file.display().to_string()),
            ),
            line(
                "default_pool",
                &self.default_pool,
                self.default_pool.value.to_string(),
            ),
            line("vmm", &self.vmm, self.vmm.value.to_string()),
            line("vcpus", &self.vcpus, self.vcpus.value.to_string()),
            line("memory", &self.memory, self.memory.value.to_string()),
            line("storage", &self.storage, self.storage.value.to_string()),
            line(
                "answer_timeout",
                &self.answer_timeout,
                seconds(&self.answer_timeout),
            ),
            line(
                "stop_timeout",
                &self.stop_timeout,
                seconds(&self.stop_timeout),
            ),
        ]
    }
}

fn read(data_dir: &Path, path: &Path) -> Result<toml::Table, SettingsError> {
    let directory = match Directory::open(data_dir) {
        Err(error) if error.is_not_found() => return Ok(toml::Table::new()),
        other => other?,
    };
    let content = match directory.read(FILE_NAME, FILE_LIMIT) {
        Err(error) if error.is_not_found() => return Ok(toml::Table::new()),
        other => other?,
    };
    let text = String::from_utf8_lossy(&content);
    text.parse()
        .map_err(|source: toml::de::Error| SettingsError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        })
}

struct Source<'a> {
    table: toml::Table,
    path: PathBuf,
    variables: Variables<'a>,
}

impl Source<'_> {
    fn refuse_unknown_keys(&self) -> Result<(), SettingsError> {
        match self
            .table
            .keys()
            .find(|key| !Settings::KEYS.contains(&key.as_str()))
        {
            None => Ok(()),
            Some(key) => Err(SettingsError::UnknownKey {
                path: self.path.clone(),
                key: key.clone(),
                known: Settings::KEYS.to_vec(),
            }),
        }
    }

    fn setting<T>(
        &self,
        key: &'static str,
        default: T,
        expected: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Setting<T>, SettingsError> {
        let variable = format!("SISTEMO_{}", key.to_ascii_uppercase());
        let (text, origin) = if let Some(text) = (self.variables)(&variable) {
            (text, Origin::Environment(variable))
        } else if let Some(value) = self.table.get(key) {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            (text, Origin::File(self.path.clone()))
        } else {
            return Ok(Setting::default_value(default));
        };
        match parse(&text) {
            Some(value) => Ok(Setting { value, origin }),
            None => Err(SettingsError::Value {
                key,
                origin,
                value: text,
                expected,
            }),
        }
    }

    /// A variable's value; one that is set to nothing is not set.
    fn variable(&self, name: &str) -> Option<String> {
        (self.variables)(name).filter(|value| !value.is_empty())
    }

    fn storage_conf(&self) -> Result<Setting<Option<PathBuf>>, SettingsError> {
        let Some(value) = self.variable(STORAGE_CONF) else {
            return Ok(Setting::default_value(None));
        };
        // A machine's monitor, which needs the same file, lives on in another directory.
        let path = std::path::absolute(&value)
            .map_err(|error| FileError::new("make absolute", &value, error))?;
        Ok(Setting {
            value: Some(path),
            origin: Origin::Environment(STORAGE_CONF.to_owned()),
        })
    }

    fn seconds(
        &self,
        key: &'static str,
        default: Duration,
    ) -> Result<Setting<Duration>, SettingsError> {
        let expected = "is not a number of seconds between 1 and 86400";
        self.setting(key, default, expected, |text| {
            let seconds = text
                .parse()
                .ok()
                .filter(|seconds| (1..=86400).contains(seconds))?;
            Some(Duration::from_secs(seconds))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, variables: Variables<'_>) -> Result<Settings, SettingsError> {
        let home = tempfile::tempdir().unwrap();
        Directory::open(home.path())
            .unwrap()
            .replace(FILE_NAME, file.as_bytes())
            .unwrap();
        let data_dir = Setting {
            value: home.path().to_owned(),
            origin: Origin::Option("--data-dir"),
        };
        Settings::load(data_dir, variables)
    }

    #[test]
    fn a_variable_overrides_the_file_and_the_file_the_default() {
        let variables = |name: &str| (name == "SISTEMO_VCPUS").then(|| "4".to_owned());
        let settings = load("vcpus = 3\nmemory = '1G'\n", &variables).unwrap();
        assert_eq!(settings.vcpus.value.get(), 4);
        assert_eq!(
            settings.vcpus.origin,
            Origin::Environment("SISTEMO_VCPUS".into())
        );
        assert_eq!(settings.memory.value, Bytes::from_mib(1024));
        assert!(matches!(settings.memory.origin, Origin::File(_)));
        assert_eq!(settings.storage.origin, Origin::Default);
    }

    #[test]
    fn mistakes_name_the_file_and_the_key() {
        for (file, named) in [
            ("colour = 'red'", "unknown setting `colour`"),
            ("vcpus = 0", "setting `vcpus`"),
            ("memory = 'lots'", "`lots` is not a size"),
            ("answer_timeout = -1", "`-1` is not a number of seconds"),
            ("vcpus = ", "not valid TOML"),
        ] {
            let error = load(file, &|_| None).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
            assert!(error.contains("config.toml"), "{error}");
        }
    }

    #[test]
    fn the_storage_conf_in_effect_is_told() {
        let variables = |name: &str| (name == STORAGE_CONF).then(|| "/srv/pools.conf".to_owned());
        let named = load("", &variables).unwrap().lines().swap_remove(1);
        assert_eq!(named.value, "/srv/pools.conf");
        assert_eq!(named.origin, STORAGE_CONF);
        let variables = |name: &str| (name == STORAGE_CONF).then(String::new);
        assert_eq!(load("", &variables).unwrap().storage_conf.value, None);
    }

    #[test]
    fn every_key_has_a_line() {
        let settings = Settings::defaults(Path::new("/data"));
        let keys: Vec<_> = settings.lines().iter().map(|line| line.key).collect();
        assert_eq!(keys[..2], ["data_dir", "storage_conf"]);
        assert_eq!(keys[2..], Settings::KEYS);
    }
}
