//! What is wrong with a storage.conf.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use sistemo_host::directory::FileError;
use sistemo_model::{NameError, PeriodError, SizeError};

use crate::external::UnusableDriver;

/// Why the configuration of the pools as a whole is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// The file cannot be read, or is too large for what it should be.
    #[error("the pools' configuration {} cannot be read", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system answered.
        #[source]
        source: FileError,
    },
    /// A mistake that belongs to no section.
    #[error("the pools' configuration is not understood")]
    Fault(#[from] Fault),
    /// The file cannot be written.
    #[error("the pools' configuration {} cannot be changed", file.display())]
    NotWritable {
        /// The file.
        file: PathBuf,
        /// What the system answered.
        #[source]
        source: FileError,
    },
    /// Somebody else wrote the file between our reading and our writing.
    #[error("the pools' configuration {} changed meanwhile", file.display())]
    Changed {
        /// The file.
        file: PathBuf,
    },
}

/// A mistake, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file and the line in it, from 1; `None` for what is not in a file yet.
    pub place: Option<(PathBuf, usize)>,
    /// The title of its section, `None` before the first.
    pub section: Option<String>,
    /// The option that it is about.
    pub key: Option<String>,
    /// What is wrong.
    pub problem: Problem,
}

impl Fault {
    /// The same mistake in what was never written to the file.
    #[must_use]
    pub fn unwritten(self) -> Fault {
        Fault {
            place: None,
            ..self
        }
    }
}

impl fmt::Display for Fault {
    /// Writes `FILE:LINE: [SECTION] KEY: what is wrong`, as far as there is each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((file, line)) = &self.place {
            write!(f, "{}:{line}: ", file.display())?;
        }
        if let Some(section) = &self.section {
            write!(f, "[{}] ", section.escape_debug())?;
        }
        if let Some(key) = &self.key {
            write!(f, "{}: ", key.escape_debug())?;
        }
        self.problem.fmt(f)
    }
}

impl Error for Fault {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.problem.source()
    }
}

/// A kind of mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A line is not text.
    #[error("the line is not UTF-8")]
    NotUtf8,
    /// An option before the first section.
    #[error("the line stands before the first section")]
    OutsideSection,
    /// A section without its closing bracket.
    #[error("the section's name does not end with `]`")]
    UnclosedSection,
    /// Something other than a comment behind a section's name.
    #[error("only a comment may stand behind the section's name")]
    BehindSection,
    /// A section that cannot be a pool.
    #[error("no pool can have this name")]
    BadName(#[source] NameError),
    /// A pool that is described twice.
    #[error("the section is there twice, also in line {other}")]
    SectionTwice {
        /// The line of another.
        other: usize,
    },
    /// A line that is neither a section, nor an option, nor a comment.
    #[error("the line is not `key = value`")]
    NotAnOption,
    /// An option that is given twice.
    #[error("the option is there twice")]
    KeyTwice,
    /// A pool without a driver.
    #[error("it names no driver")]
    NoDriver,
    /// A driver that does not exist.
    #[error("there is no driver `{}`; the drivers are {}", driver.escape_debug(), known.join(", "))]
    UnknownDriver {
        /// What was named.
        driver: String,
        /// What there is.
        known: Vec<String>,
    },
    /// A class that no driver has.
    #[error("there is no driver of class `{}`", class.escape_debug())]
    UnknownClass {
        /// What was named.
        class: String,
    },
    /// A driver that is there and cannot be used.
    #[error("driver `{}` cannot be used", driver.escape_debug())]
    UnusableDriver {
        /// What was named.
        driver: String,
        /// Why not.
        #[source]
        source: UnusableDriver,
    },
    /// An option that the driver does not have.
    #[error("driver {driver} has no such option; its options are {}", known.join(", "))]
    UnknownOption {
        /// The driver.
        driver: String,
        /// What it has.
        known: Vec<String>,
    },
    /// An option of `[DEFAULT]` that no driver has.
    #[error("no driver has such an option")]
    UnknownDefault,
    /// An option that the driver cannot do without.
    #[error("driver {driver} needs the option")]
    Missing {
        /// The driver.
        driver: String,
    },
    /// A path that depends on where a command is run.
    #[error("`{}` is not an absolute path", value.escape_debug())]
    NotAbsolute {
        /// The value.
        value: String,
    },
    /// Neither yes nor no.
    #[error("`{}` is neither `true` nor `false`", value.escape_debug())]
    NotAFlag {
        /// The value.
        value: String,
    },
    /// Not a size.
    #[error("it is not a size")]
    NotASize {
        /// What is wrong with it.
        #[source]
        source: SizeError,
    },
    /// Not a whole number, or too large a one.
    #[error("`{}` is not a whole number from 0 to {}", value.escape_debug(), u32::MAX)]
    NotANumber {
        /// The value.
        value: String,
    },
    /// Not a length of time.
    #[error("it is not a length of time")]
    NotAPeriod {
        /// What is wrong with it.
        #[source]
        source: PeriodError,
    },
    /// `~` where nobody knows what it stands for.
    #[error("`{}` needs a home directory, and HOME is not set", value.escape_debug())]
    NoHome {
        /// The value.
        value: String,
    },
    /// A value that would be read back as another.
    #[error("`{}` cannot be written in a storage.conf", value.escape_debug())]
    Unwritable {
        /// The value.
        value: String,
    },
}
