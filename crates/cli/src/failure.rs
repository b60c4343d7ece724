//! What can go wrong, what a program is told about it, and the exit status it leads to.

use std::io;
use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;
use sistemo::{Error, Kind};

/// The exit status of a refused or failed operation.
pub(crate) const FAILED: u8 = 1;
/// The exit status of a command line that is not understood.
pub(crate) const USAGE: u8 = 2;
/// The exit status of `machine exec` where the command could not be run at all, as with
/// env(1), nice(1) and podman-exec(1).
const NOT_EXECUTED: u8 = 125;

/// Why a command did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(Box<Error>),
    /// A command for a machine could not be run there.
    #[error(transparent)]
    Execute(Box<Error>),
    /// Words that can only be told wrong after they were parsed.
    #[error("{message}")]
    Usage {
        /// What is wrong with them.
        message: String,
        /// What to type instead.
        hint: String,
    },
    /// There is nowhere to keep anything.
    #[error("there is no data directory: HOME is not set")]
    NoHome,
    /// Something would be lost, and there is nobody to ask.
    #[error("{loss}, and there is no terminal to ask on")]
    ConfirmationNeeded {
        /// What would come of it: `volume pgdata would be deleted`.
        loss: String,
        /// What it then does: `deletes`.
        does: &'static str,
    },
    /// The user said no.
    #[error("not confirmed; nothing was changed")]
    Declined,
    /// One object was named twice.
    #[error("{kind} {name} is named more than once")]
    Repeated {
        /// What kind of object.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// Some machines of several did not do as they were told; the others did.
    #[error("cannot {action} {}", failed.join("; cannot {action} "))]
    Several {
        /// `start` or `stop`.
        action: &'static str,
        /// The machines' names, each with its causes.
        failed: Vec<String>,
    },
    /// Standard output cannot be written to.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// The terminal does not do as it is told.
    #[error("cannot {action} the terminal")]
    Terminal {
        /// What was tried.
        action: &'static str,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The connection to a machine's console broke.
    #[error("the connection to the console of machine {machine} broke")]
    Console {
        /// The machine.
        machine: String,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// A file operation of the command itself failed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Engine(Box::new(error))
    }
}

/// The word by which a program tells failures apart. The words are stable: one may be added,
/// none is changed or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Code {
    Usage,
    NotFound,
    Ambiguous,
    NameTaken,
    Repeated,
    VolumeAttached,
    VolumeNotAttached,
    RootVolume,
    TooManyVolumes,
    MachineActive,
    MachineInactive,
    VolumeInUse,
    MachineInUse,
    VolumeDisposable,
    NotATemplate,
    TemplateActive,
    TemplateNeeded,
    MachineEphemeral,
    CloneName,
    NoSuchSnapshot,
    SnapshotExists,
    SnapshotPinned,
    SamePool,
    SnapshotsUnkept,
    MoveFailed,
    StateNotKept,
    PoolLacksPower,
    PoolTooFull,
    ExchangeRefused,
    DiskFileUnusable,
    PlaceTooFull,
    ChecksumDiffers,
    StreamFailed,
    EmptyInput,
    NotLarger,
    TooSmallForFilesystem,
    FilesystemNotGrowable,
    NotRepairable,
    StorageTooSmall,
    MemoryOutOfRange,
    PortUnavailable,
    NotAnswering,
    EndedEarly,
    StartFailed,
    SshFailed,
    VolumeDamaged,
    PoolFailed,
    PoolMisconfigured,
    DriverOptionsUnusable,
    DriverWorkFailed,
    PoolPlace,
    /// A driver that is there cannot be used.
    DriverUnusable,
    PoolNeeded,
    PoolNotEmpty,
    NoDefaultPool,
    StorageConfFailed,
    ImageFailed,
    ImageFileUnusable,
    ImageStoreFailed,
    VmmFailed,
    NoVmm,
    FilesystemProgramFailed,
    ProgramFailed,
    DataDirectoryUnusable,
    NewerVersion,
    CatalogueFailed,
    NoSpace,
    Overtaken,
    BootFailed,
    Busy,
    FileFailed,
    SettingsInvalid,
    NoHome,
    ConfirmationNeeded,
    Declined,
    SeveralFailed,
    OutputFailed,
    TerminalFailed,
    ConsoleFailed,
}

impl Failure {
    /// The exit status it leads to.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Failure::Usage { .. } => USAGE,
            Failure::Execute(_) => NOT_EXECUTED,
            Failure::Engine(_)
            | Failure::NoHome
            | Failure::ConfirmationNeeded { .. }
            | Failure::Declined
            | Failure::Repeated { .. }
            | Failure::Several { .. }
            | Failure::Output(_)
            | Failure::Terminal { .. }
            | Failure::Console { .. }
            | Failure::File { .. } => FAILED,
        }
    }

    /// The word for programs.
    pub(crate) fn code(&self) -> Code {
        match self {
            Failure::Engine(error) | Failure::Execute(error) => code(error),
            Failure::Usage { .. } => Code::Usage,
            Failure::NoHome => Code::NoHome,
            Failure::ConfirmationNeeded { .. } => Code::ConfirmationNeeded,
            Failure::Declined => Code::Declined,
            Failure::Repeated { .. } => Code::Repeated,
            Failure::Several { .. } => Code::SeveralFailed,
            Failure::Output(_) => Code::OutputFailed,
            Failure::Terminal { .. } => Code::TerminalFailed,
            Failure::Console { .. } => Code::ConsoleFailed,
            Failure::File { .. } => Code::FileFailed,
        }
    }

    /// Whether the reader of our output went away.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

fn code(error: &Error) -> Code {
    match error {
        Error::NotFound { .. } | Error::NotInTrash { .. } => Code::NotFound,
        Error::Ambiguous { .. } => Code::Ambiguous,
        Error::NameTaken { .. } | Error::NameGone { .. } => Code::NameTaken,
        Error::VolumeAttached { .. } => Code::VolumeAttached,
        Error::VolumeNotAttached { .. } => Code::VolumeNotAttached,
        Error::RootVolume { .. } => Code::RootVolume,
        Error::VolumeRepeated { .. } => Code::Repeated,
        Error::TooManyVolumes { .. } => Code::TooManyVolumes,
        Error::MachineActive { .. } => Code::MachineActive,
        Error::MachineInactive { .. } => Code::MachineInactive,
        Error::VolumeInUse { .. } => Code::VolumeInUse,
        Error::MachineInUse { .. } => Code::MachineInUse,
        Error::VolumeDisposable { .. } | Error::NothingToKeep { .. } => Code::VolumeDisposable,
        Error::NotATemplate { .. } => Code::NotATemplate,
        Error::TemplateActive { .. } => Code::TemplateActive,
        Error::TemplateNeeded { .. } => Code::TemplateNeeded,
        Error::MachineEphemeral { .. } => Code::MachineEphemeral,
        Error::CloneName { .. } => Code::CloneName,
        Error::NoSuchSnapshot { .. }
        | Error::NoSnapshots { .. }
        | Error::SnapshotMissing { .. } => Code::NoSuchSnapshot,
        Error::SnapshotTaken { .. } => Code::SnapshotExists,
        Error::StateNotKept { .. } => Code::StateNotKept,
        Error::SnapshotPinned { .. } | Error::VolumePinned { .. } => Code::SnapshotPinned,
        Error::InThatPool { .. } => Code::SamePool,
        Error::SnapshotsUnkept { .. } | Error::PinnedUnkept { .. } => Code::SnapshotsUnkept,
        Error::MovedWrongly { .. } => Code::MoveFailed,
        Error::PoolLacks { .. } => Code::PoolLacksPower,
        Error::PoolTooFull { .. } => Code::PoolTooFull,
        Error::Exchange { .. } => Code::ExchangeRefused,
        Error::DiskFile { .. } => Code::DiskFileUnusable,
        Error::PlaceTooFull { .. } => Code::PlaceTooFull,
        Error::ChecksumDiffers { .. } => Code::ChecksumDiffers,
        Error::Stream { .. } => Code::StreamFailed,
        Error::EmptyInput { .. } => Code::EmptyInput,
        Error::NotLarger { .. } => Code::NotLarger,
        Error::TooSmallForFilesystem { .. } => Code::TooSmallForFilesystem,
        Error::FilesystemNotGrowable { .. } => Code::FilesystemNotGrowable,
        Error::NotRepairable { .. } => Code::NotRepairable,
        Error::StorageTooSmall { .. } => Code::StorageTooSmall,
        Error::MemoryOutOfRange { .. } => Code::MemoryOutOfRange,
        Error::PortUnavailable { .. } => Code::PortUnavailable,
        Error::NotAnswering { .. } => Code::NotAnswering,
        Error::EndedEarly { .. } => Code::EndedEarly,
        Error::Start { .. } => Code::StartFailed,
        Error::Ssh { .. } => Code::SshFailed,
        Error::VolumeDamaged { .. } => Code::VolumeDamaged,
        Error::Pool { .. } => Code::PoolFailed,
        Error::PoolMisconfigured { .. } | Error::PoolDriverChanged { .. } => {
            Code::PoolMisconfigured
        }
        Error::DriverUnusable { .. } => Code::DriverUnusable,
        Error::DriverOptions { .. } => Code::DriverOptionsUnusable,
        Error::DriverWork { .. } => Code::DriverWorkFailed,
        Error::PoolPlace { .. } => Code::PoolPlace,
        Error::PoolNeeded { .. } => Code::PoolNeeded,
        Error::PoolNotEmpty { .. } => Code::PoolNotEmpty,
        Error::NoDefaultPool { .. } => Code::NoDefaultPool,
        Error::StorageConf(_) => Code::StorageConfFailed,
        Error::Image { .. } => Code::ImageFailed,
        Error::ImageFile { .. } => Code::ImageFileUnusable,
        Error::ImageStore(_) => Code::ImageStoreFailed,
        Error::Vmm { .. } | Error::VolumeAccess { .. } => Code::VmmFailed,
        Error::NoVmm(_) => Code::NoVmm,
        Error::FilesystemProgram { .. } => Code::FilesystemProgramFailed,
        Error::Program { .. } => Code::ProgramFailed,
        Error::DataDirectory { .. } | Error::DataFile(_) => Code::DataDirectoryUnusable,
        Error::NewerVersion { .. } => Code::NewerVersion,
        Error::Catalogue(_) => Code::CatalogueFailed,
        Error::NoSpace(_) => Code::NoSpace,
        Error::Overtaken(_) => Code::Overtaken,
        Error::Boot { .. } => Code::BootFailed,
        Error::Busy { .. } => Code::Busy,
        Error::File { .. } => Code::FileFailed,
        Error::Settings(_) => Code::SettingsInvalid,
    }
}
