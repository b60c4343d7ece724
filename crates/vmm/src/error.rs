//! What can go wrong with a virtual machine monitor.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use sistemo_host::directory::FileError;
use sistemo_host::lock::LockError;
use sistemo_host::program::ProgramError;
use sistemo_model::{Bytes, MachineName};

/// Why a virtual machine monitor could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The VMM is not on this host.
    #[error("{program} is not installed")]
    NotInstalled {
        /// The program that is missing.
        program: String,
    },
    /// The VMM is on this host but cannot be run.
    #[error("cannot find out the version of {program}")]
    Probe {
        /// The program.
        program: String,
        /// What running it said.
        #[source]
        source: ProgramError,
    },
    /// The VMM is older than what we need of it.
    #[error("{program} is version {version}; at least {needed} is needed")]
    TooOld {
        /// The program.
        program: String,
        /// Its version, as it says.
        version: String,
        /// The oldest version that will do.
        needed: &'static str,
    },
    /// A text cannot be a disk's serial number.
    #[error(
        "`{}` is not a disk serial: 1 to 20 of a-z A-Z 0-9 . _ -",
        serial.escape_debug()
    )]
    Serial {
        /// The text.
        serial: String,
    },
    /// A machine has more disks than there are places for.
    #[error("machine {machine} has {disks} disks; at most {limit} are possible")]
    TooManyDisks {
        /// The machine.
        machine: MachineName,
        /// How many it has.
        disks: usize,
        /// How many it may have.
        limit: u8,
    },
    /// A path cannot be told to the VMM.
    #[error("the path {} is not UTF-8", path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// A host port that was to reach the guest cannot be listened on.
    #[error("machine {machine} cannot listen on {host}")]
    Forward {
        /// The machine.
        machine: MachineName,
        /// The address and port on the host.
        host: SocketAddr,
        /// What listening there says.
        #[source]
        source: io::Error,
    },
    /// The VMM's program could not be run at all.
    #[error("cannot start the VMM of machine {machine}")]
    Spawn {
        /// The machine.
        machine: MachineName,
        /// What running it said.
        #[source]
        source: ProgramError,
    },
    /// The VMM ended, or had to be ended, before the machine ran.
    #[error("machine {machine} did not start: {words}")]
    Start {
        /// The machine.
        machine: MachineName,
        /// The VMM's own last words.
        words: String,
    },
    /// A file of the machine cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A process cannot be looked at.
    #[error("cannot look at process {pid} of machine {machine}")]
    Process {
        /// The machine.
        machine: MachineName,
        /// The process.
        pid: u32,
        /// What /proc said.
        #[source]
        source: io::Error,
    },
    /// Nobody listens on the machine's control socket: its VMM does not run.
    #[error("no VMM listens on {}", socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// What connecting said.
        #[source]
        source: FileError,
    },
    /// Another client kept the control socket for all the time we waited.
    #[error("the control socket {} is in use", socket.display())]
    Busy {
        /// The socket.
        socket: PathBuf,
        /// Who uses it.
        #[source]
        source: LockError,
    },
    /// The control socket's turn cannot be taken.
    #[error("cannot take a turn at the control socket {}", socket.display())]
    Turn {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        #[source]
        source: LockError,
    },
    /// The VMM closed the connection: it ended, or is ending.
    #[error("the VMM closed its control socket {}", socket.display())]
    Closed {
        /// The socket.
        socket: PathBuf,
    },
    /// The VMM did not answer in time.
    #[error("the VMM did not answer `{command}` on {} within {} s", socket.display(), limit.as_secs())]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// What it was asked.
        command: &'static str,
        /// How long it was given.
        limit: Duration,
    },
    /// The connection broke, or what came over it was not the VMM's language.
    #[error("cannot talk to the VMM on {}", socket.display())]
    Talk {
        /// The socket.
        socket: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The VMM refused a command.
    #[error("the VMM refused `{command}`: {message}")]
    Refused {
        /// The command.
        command: &'static str,
        /// The VMM's reason.
        message: String,
    },
    /// There is no disk in that place.
    #[error("there is no disk in place {position}")]
    NoDisk {
        /// The place, counted from 0.
        position: u8,
    },
    /// A disk cannot be shown to programs as a raw file.
    #[error("cannot show {} as a raw file: {words}", disk.display())]
    Show {
        /// The disk's file.
        disk: PathBuf,
        /// What the program that shows it said, or what we saw of it.
        words: String,
    },
    /// A program that shows a disk as a raw file could not be run.
    #[error("cannot show {} as a raw file", disk.display())]
    ShowProgram {
        /// The disk's file.
        disk: PathBuf,
        /// What running it said.
        #[source]
        source: ProgramError,
    },
    /// A disk has no file below another.
    #[error("the disk in place {position} is not a qcow2 file")]
    NotQcow2 {
        /// The disk's place, counted from 0.
        position: u8,
    },
    /// What lies beneath a disk is being copied into it.
    #[error("the disk in place {position} is being flattened")]
    Flattening {
        /// The disk's place, counted from 0.
        position: u8,
    },
    /// A disk is being copied.
    #[error("the disk in place {position} is being copied")]
    Copying {
        /// The disk's place, counted from 0.
        position: u8,
    },
    /// A copy of a disk failed.
    #[error("cannot copy the disk in place {position}: {words}")]
    Copy {
        /// The disk's place, counted from 0.
        position: u8,
        /// What the VMM says of it.
        words: String,
    },
    /// Nobody in the guest listens to what its agent is asked.
    #[error("no guest agent listens")]
    NoAgent,
    /// The guest's agent did not answer in time.
    #[error("the guest agent did not answer `{command}` within {} s", limit.as_secs())]
    AgentSilent {
        /// What it was asked.
        command: &'static str,
        /// How long it was given.
        limit: Duration,
    },
    /// The guest's agent refused a command.
    #[error("the guest agent refused `{command}`: {message}")]
    AgentRefused {
        /// The command.
        command: &'static str,
        /// The agent's reason.
        message: String,
    },
    /// The connection to the guest's agent broke, or what came over it was not its language.
    #[error("cannot talk to the guest agent on {}", socket.display())]
    AgentTalk {
        /// The socket.
        socket: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// A file cannot take a disk's place.
    #[error("{} cannot take the place of disk {position}: {reason}", overlay.display())]
    Overlay {
        /// The disk's place, counted from 0.
        position: u8,
        /// The file.
        overlay: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A disk would have become smaller.
    #[error("the disk in place {position} has {size} and cannot shrink to {asked}")]
    Shrink {
        /// The disk's place, counted from 0.
        position: u8,
        /// What it has.
        size: Bytes,
        /// What was asked for.
        asked: Bytes,
    },
}

impl VmmError {
    /// Whether the error says that the VMM is gone or going, rather than that something failed.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, VmmError::Closed { .. } | VmmError::NotRunning { .. })
    }
}
