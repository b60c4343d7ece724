//! What can go wrong with a catalogue or a lock.
//!
//! The variants fall into three groups. Some tell the state of the database file and name it.
//! Some refuse a change that would break a rule the records must always keep, and name the
//! objects; a transaction that returns one of these changes nothing. The last name who holds
//! a lock. A cause's own words are in `source`, never repeated here.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

use rusqlite::{ErrorCode, ffi};
use sistemo_host::directory::FileError;
use sistemo_host::lock::PATIENCE;
use sistemo_model::{Lifecycle, MachineName, MachineState, Reference, VolumeName};

use crate::locks::Lockable;

pub(crate) type Result<T> = std::result::Result<T, CatalogError>;

/// A kind of object that has a name and an ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A volume.
    Volume,
    /// A machine.
    Machine,
}

impl Kind {
    /// The table of such objects.
    pub(crate) fn table(self) -> &'static str {
        match self {
            Kind::Volume => "volumes",
            Kind::Machine => "machines",
        }
    }

    /// What holds of an object, in SQL, while it has its name for itself. For a volume it is the
    /// condition of the index over names, word by word.
    pub(crate) fn has_its_name(self) -> &'static str {
        match self {
            Kind::Volume => "lifecycle <> 'trashed' AND lifecycle <> 'deleting'",
            Kind::Machine => "TRUE",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Volume => "volume",
            Kind::Machine => "machine",
        })
    }
}

/// One of the objects that an ambiguous reference may mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its full ID.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// Why the catalogue did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// A file or directory of the catalogue cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is no database, or is damaged.
    #[error("catalogue {} is damaged or not a database", path.display())]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// What `SQLite` answered.
        #[source]
        source: rusqlite::Error,
    },
    /// The file is somebody else's database.
    #[error("{} is a database, but not a catalogue of Sistemo", path.display())]
    Foreign {
        /// The database file.
        path: PathBuf,
    },
    /// The catalogue was written by a newer version of Sistemo.
    #[error(
        "catalogue {} has schema version {found}; this Sistemo knows up to {known}",
        path.display()
    )]
    Newer {
        /// The database file.
        path: PathBuf,
        /// The schema version it has.
        found: u32,
        /// The newest schema version that this program knows.
        known: u32,
    },
    /// Another process was writing for all the time we waited.
    #[error("catalogue {} stayed busy for {} s", path.display(), PATIENCE.as_secs())]
    Busy {
        /// The database file.
        path: PathBuf,
        /// What `SQLite` answered.
        #[source]
        source: rusqlite::Error,
    },
    /// The filesystem that holds the catalogue is full.
    #[error("no space is left for catalogue {}", path.display())]
    Full {
        /// The database file.
        path: PathBuf,
        /// What `SQLite` answered.
        #[source]
        source: rusqlite::Error,
    },
    /// The catalogue, or the directory it is in, may not be written.
    #[error("catalogue {} cannot be written", path.display())]
    NotWritable {
        /// The database file.
        path: PathBuf,
        /// What `SQLite` answered.
        #[source]
        source: rusqlite::Error,
    },
    /// The catalogue is on a filesystem where processes cannot share memory, such as a network
    /// filesystem, which write-ahead logging needs.
    #[error("catalogue {} is on a filesystem that cannot hold it", path.display())]
    Unshareable {
        /// The database file.
        path: PathBuf,
    },
    /// `SQLite` refused something for another reason.
    #[error("cannot {action} in catalogue {}", path.display())]
    Database {
        /// What was tried, such as `read volumes`.
        action: String,
        /// The database file.
        path: PathBuf,
        /// What `SQLite` answered.
        #[source]
        source: rusqlite::Error,
    },
    /// A row holds what no version of this program writes.
    #[error("column {column} of row {row} in the catalogue's table {table} is damaged")]
    DamagedRow {
        /// The table.
        table: &'static str,
        /// The row's key.
        row: String,
        /// The column that cannot be understood.
        column: &'static str,
        /// What is wrong with it.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Nothing that is ready has that name, ID or beginning of an ID.
    #[error("there is no {kind} `{reference}`")]
    NotFound {
        /// What was looked for.
        kind: Kind,
        /// How it was referred to.
        reference: Reference,
    },
    /// The beginning of an ID fits more than one object.
    #[error("`{reference}` is the beginning of {} {kind} IDs", candidates.len())]
    Ambiguous {
        /// What was looked for.
        kind: Kind,
        /// How it was referred to.
        reference: Reference,
        /// What it may mean, ordered by name.
        candidates: Vec<Candidate>,
    },
    /// Another object of the kind has this name, or has it for an ID.
    #[error("the {kind} name `{name}` is taken")]
    NameTaken {
        /// What was to be named.
        kind: Kind,
        /// The name.
        name: String,
    },
    /// Another object of the kind has this ID, or has it for a name.
    #[error("the {kind} ID {id} is taken")]
    IdTaken {
        /// What was to be made.
        kind: Kind,
        /// The ID.
        id: String,
    },
    /// Another machine has this port.
    #[error("SSH port {port} belongs to machine {machine}")]
    SshPortTaken {
        /// The port.
        port: u16,
        /// The machine that has it.
        machine: MachineName,
    },
    /// An object cannot go from one stage of its life to that one.
    #[error("{kind} {name} is {from} and cannot become {to}")]
    IllegalLifecycle {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
        /// The stage it is in.
        from: Lifecycle,
        /// The stage it was to enter.
        to: Lifecycle,
    },
    /// A machine cannot go from one state to that one.
    #[error("machine {machine} is {from} and cannot become {to}")]
    IllegalTransition {
        /// The machine.
        machine: MachineName,
        /// The state it is in.
        from: MachineState,
        /// The state it was to enter.
        to: MachineState,
    },
    /// The machine is not stopped.
    #[error("machine {machine} is {state}")]
    MachineActive {
        /// The machine.
        machine: MachineName,
        /// The state it is in.
        state: MachineState,
    },
    /// The machine is stopped.
    #[error("machine {machine} is stopped and has no process")]
    MachineStopped {
        /// The machine.
        machine: MachineName,
    },
    /// A machine holds the volume.
    #[error("volume {volume} is attached to {machine}")]
    VolumeAttached {
        /// The volume.
        volume: VolumeName,
        /// The machine that holds it.
        machine: MachineName,
    },
    /// The machine does not hold the volume.
    #[error("volume {volume} is not attached to {machine}")]
    NotAttached {
        /// The volume.
        volume: VolumeName,
        /// The machine.
        machine: MachineName,
    },
    /// What was to be attached, or attached to, is being deleted or in the trash.
    #[error("{kind} {name} was deleted")]
    BeingDeleted {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// Another volume has that place.
    #[error("position {position} of machine {machine} holds volume {volume}")]
    PositionTaken {
        /// The machine.
        machine: MachineName,
        /// The place, 0 being the root's.
        position: u8,
        /// The volume that is there.
        volume: VolumeName,
    },
    /// The machine has no place left for another volume, or none of that number.
    #[error("machine {machine} has no free position for another volume")]
    NoPosition {
        /// The machine.
        machine: MachineName,
    },
    /// Somebody else works on the object.
    #[error("{object} is held by {holder}")]
    Locked {
        /// What was to be locked.
        object: Lockable,
        /// Who holds it, such as `process 123 (sistemo volume resize pgdata 10GB)`.
        holder: String,
    },
}

impl CatalogError {
    /// Turns what `SQLite` answered into what it means for the catalogue at `path`.
    pub(crate) fn database(
        action: impl Into<String>,
        path: &Path,
        source: rusqlite::Error,
    ) -> CatalogError {
        let path = path.to_owned();
        let extended = source.sqlite_error().map(|error| error.extended_code);
        match source.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                CatalogError::Damaged { path, source }
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                CatalogError::Busy { path, source }
            }
            Some(ErrorCode::DiskFull) => CatalogError::Full { path, source },
            // The index of the write-ahead log is grown before it is mapped; a full disk shows
            // here first.
            Some(ErrorCode::SystemIoFailure) if extended == Some(ffi::SQLITE_IOERR_SHMSIZE) => {
                CatalogError::Full { path, source }
            }
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                CatalogError::NotWritable { path, source }
            }
            _ => CatalogError::Database {
                action: action.into(),
                path,
                source,
            },
        }
    }

    /// Says that nothing of the kind has exactly this ID.
    pub(crate) fn no_such(kind: Kind, id: &impl fmt::Display) -> CatalogError {
        CatalogError::NotFound {
            kind,
            reference: Reference::from(id.to_string()),
        }
    }
}
