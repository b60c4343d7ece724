//! What an external driver does wrong.

use std::path::PathBuf;
use std::process::ExitStatus;

use sistemo_host::directory::FileError;
use sistemo_host::lock::LockError;
use sistemo_host::program::ProgramError;
use sistemo_model::{Bytes, VolumeId};

use super::executable::Untrusted;
use super::protocol::PROTOCOL;

/// Why a call of an external driver was of no use.
#[derive(Debug, thiserror::Error)]
pub enum DriverFault {
    /// Its executable is not run.
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    /// It could not be started, took too long, or printed too much.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The request could not be written.
    #[error("the request cannot be written as JSON")]
    Request(#[source] serde_json::Error),
    /// An earlier call for the same volume still works, were it only in what it left running.
    #[error("an earlier call for the same volume is still at work")]
    Busy(#[source] LockError),
    /// It ended in another way than the protocol knows.
    #[error("it ended with {status}{}", told(message))]
    Crashed {
        /// How it ended.
        status: ExitStatus,
        /// The last lines of what it wrote to stderr.
        message: String,
    },
    /// It printed something else than its answer.
    #[error("it answered `{shown}`{}", told(message))]
    NoAnswer {
        /// The beginning of it.
        shown: String,
        /// The last lines of what it wrote to stderr.
        message: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It speaks another version of the protocol.
    #[error("it speaks version {protocol} of the protocol, not {PROTOCOL}")]
    Protocol {
        /// Its version.
        protocol: u32,
    },
    /// What it says of itself makes no sense.
    #[error("its capabilities make no sense: {reason}")]
    Capabilities {
        /// What is wrong.
        reason: String,
    },
    /// It answered for another volume.
    #[error("it answered for volume {answered} instead of {asked}")]
    OtherVolume {
        /// The volume that it was asked about.
        asked: VolumeId,
        /// The one it answered for.
        answered: VolumeId,
    },
    /// It listed a volume or snapshot twice.
    #[error("it listed {what} twice")]
    Twice {
        /// Which.
        what: String,
    },
    /// It gave a path that depends on where a command is run.
    #[error("it gave the path `{}`, which is not absolute", path.display())]
    NotAbsolute {
        /// The path.
        path: PathBuf,
    },
    /// It gave a number that cannot be.
    #[error("it gave {bytes} bytes as {what}, which cannot be")]
    Impossible {
        /// What of.
        what: &'static str,
        /// The number.
        bytes: u64,
    },
    /// It said that something was done, and it was not.
    #[error("it said that it was done, but {truth}")]
    Untrue {
        /// What is so.
        truth: String,
    },
    /// What it gave as a volume's place is something else.
    #[error("it gave `{}` as {what}", path.display())]
    NotThere {
        /// What it should be.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: FileError,
    },
    /// It claims a power and does not know its operation.
    #[error("it claims to {power} but answered that it cannot: {message}")]
    Unclaimed {
        /// The power.
        power: &'static str,
        /// Its words.
        message: String,
    },
    /// It answered with an error that has no other form here.
    #[error("it answered {code}: {message}")]
    Said {
        /// Its code.
        code: &'static str,
        /// Its words.
        message: String,
    },
    /// A machine writes to a file that the driver would have to take from it.
    #[error("a volume in a qcow2 file cannot be kept as it is while its machine runs")]
    InUse,
    /// The volume is in a format that this program cannot read itself.
    #[error(
        "a volume of an external driver in the format {format} is not read or written, only used by machines"
    )]
    Format {
        /// The format.
        format: &'static str,
    },
}

impl DriverFault {
    pub(super) fn size(real: Bytes, wanted: Bytes) -> DriverFault {
        let (real, wanted) = (real.get(), wanted.get());
        DriverFault::Untrue {
            truth: format!("the volume has {real} bytes instead of {wanted}"),
        }
    }
}

fn told(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

/// A driver that is there and cannot be used, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnusableDriver(pub(crate) String);

impl From<&DriverFault> for UnusableDriver {
    fn from(fault: &DriverFault) -> UnusableDriver {
        UnusableDriver(in_words(fault))
    }
}

/// An error and what caused it, in one line.
#[must_use]
pub fn in_words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
