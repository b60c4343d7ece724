//! What goes wrong in a pool.
//!
//! Each variant names the operation and the object. The caller matches on the variant: what a
//! user can do about it differs between a full pool, a missing disk and a damaged file.

use std::path::PathBuf;

use rustix::io::Errno;
use sistemo_host::directory::FileError;
use sistemo_host::program::ProgramError;
use sistemo_model::{Bytes, CatalogueId, PoolName, SnapshotName, VolumeId};

use crate::external::{DriverFault, UnusableDriver};
use crate::qcow2::ImageError;
use crate::{Flaw, LiveDiskError};

/// A pool operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The pool's directory cannot be entered, created, read or written.
    #[error("pool {pool} is not available at {}", directory.display())]
    Unavailable {
        /// The pool.
        pool: PoolName,
        /// Where it should be.
        directory: PathBuf,
        /// What the system answered.
        #[source]
        source: FileError,
    },
    /// A known pool's directory has no marker: most likely its disk is not mounted.
    #[error(
        "pool {pool} is not available: {} has no pool marker; is its disk not mounted?",
        directory.display()
    )]
    NoMarker {
        /// The pool.
        pool: PoolName,
        /// Where it should be.
        directory: PathBuf,
    },
    /// The marker in the pool's directory cannot be understood.
    #[error("the marker of pool {pool} at {} is not readable", directory.display())]
    BadMarker {
        /// The pool.
        pool: PoolName,
        /// Where it is.
        directory: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The directory is a pool of another catalogue.
    #[error(
        "{} belongs to another Sistemo (catalogue {found}), not to pool {pool}",
        directory.display()
    )]
    OtherCatalogue {
        /// The pool that was to be there.
        pool: PoolName,
        /// The directory.
        directory: PathBuf,
        /// Whose it is.
        found: CatalogueId,
    },
    /// The directory is another pool of the same catalogue.
    #[error("{} is pool {found}, not pool {pool}", directory.display())]
    OtherPool {
        /// The pool that was to be there.
        pool: PoolName,
        /// The directory.
        directory: PathBuf,
        /// The pool that it is.
        found: PoolName,
    },
    /// The pool's directory is not where it was when the pool was opened.
    #[error("pool {pool} is not available: another directory took the place of {}", directory.display())]
    Replaced {
        /// The pool.
        pool: PoolName,
        /// Where it was.
        directory: PathBuf,
    },
    /// The pool's driver does not exist.
    #[error("pool {pool} needs driver {driver}, which does not exist")]
    NoDriver {
        /// The pool.
        pool: PoolName,
        /// Its driver.
        driver: String,
    },
    /// The pool's driver is there and cannot be used.
    #[error("pool {pool} needs driver {driver}, which cannot be used")]
    UnusableDriver {
        /// The pool.
        pool: PoolName,
        /// Its driver.
        driver: String,
        /// Why not.
        #[source]
        source: UnusableDriver,
    },
    /// The pool has no directory, and its driver keeps volumes in one.
    #[error("pool {pool} has no directory")]
    NoPlace {
        /// The pool.
        pool: PoolName,
    },
    /// The pool has no such volume.
    #[error("pool {pool} has no volume {volume}")]
    NoSuchVolume {
        /// The pool.
        pool: PoolName,
        /// The volume.
        volume: VolumeId,
    },
    /// The volume is there already.
    #[error("pool {pool} has a volume {volume} already")]
    AlreadyThere {
        /// The pool.
        pool: PoolName,
        /// The volume.
        volume: VolumeId,
    },
    /// An earlier creation of the same volume left its draft, or is still at work.
    #[error("pool {pool} has an unfinished volume {volume}")]
    DraftThere {
        /// The pool.
        pool: PoolName,
        /// The volume.
        volume: VolumeId,
    },
    /// What is on disk is not what the operation can work on.
    #[error("volume {volume} in pool {pool} is damaged: {flaw}")]
    Damaged {
        /// The pool.
        pool: PoolName,
        /// The volume.
        volume: VolumeId,
        /// What is wrong.
        flaw: Flaw,
    },
    /// The volume's description cannot be understood.
    #[error("the description of volume {volume} in pool {pool} is not readable")]
    BadDescription {
        /// The pool.
        pool: PoolName,
        /// The volume.
        volume: VolumeId,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// No volume can have that size.
    #[error("volume {volume} cannot have {} bytes; a size is a positive multiple of 512", size.get())]
    BadSize {
        /// The volume.
        volume: VolumeId,
        /// The size asked for.
        size: Bytes,
    },
    /// Growing was asked for, but the volume is larger.
    #[error("volume {volume} in pool {pool} has {} bytes and cannot shrink to {}", size.get(), to.get())]
    Shrinks {
        /// The pool.
        pool: PoolName,
        /// The volume.
        volume: VolumeId,
        /// Its size.
        size: Bytes,
        /// The size asked for.
        to: Bytes,
    },
    /// What a volume was to be filled from does not fit into it.
    #[error(
        "volume {volume} in pool {pool} has {} bytes, what is to fill it has {source_size}",
        size.get()
    )]
    SourceTooLarge {
        /// The pool.
        pool: PoolName,
        /// The volume.
        volume: VolumeId,
        /// Its size.
        size: Bytes,
        /// The length of the source in bytes.
        source_size: u64,
    },
    /// A read or write goes beyond the volume's end.
    #[error("bytes {offset} to {} are not all within volume {volume}, which has {}", offset.saturating_add(*length), size.get())]
    Outside {
        /// The volume.
        volume: VolumeId,
        /// Its size.
        size: Bytes,
        /// The first byte asked for.
        offset: u64,
        /// How many bytes were asked for.
        length: u64,
    },
    /// A write to a content that was opened to read.
    #[error("volume {volume} in pool {pool} was opened to read only")]
    OpenedReadOnly {
        /// The pool.
        pool: PoolName,
        /// The volume.
        volume: VolumeId,
    },
    /// The pool's filesystem, or the user's quota on it, has no space left.
    #[error("cannot {action} volume {volume}: pool {pool} is full")]
    Full {
        /// What was tried.
        action: &'static str,
        /// The pool.
        pool: PoolName,
        /// The volume.
        volume: VolumeId,
        /// What the system answered.
        #[source]
        source: FileError,
    },
    /// The pool's filesystem cannot hold a file of that size.
    #[error("cannot {action} volume {volume}: it is larger than any file in pool {pool} can be")]
    TooLarge {
        /// What was tried.
        action: &'static str,
        /// The pool.
        pool: PoolName,
        /// The volume.
        volume: VolumeId,
        /// What the system answered.
        #[source]
        source: FileError,
    },
    /// The pool's filesystem is mounted to read only.
    #[error("cannot {action} volume {volume}: pool {pool} is read-only")]
    ReadOnly {
        /// What was tried.
        action: &'static str,
        /// The pool.
        pool: PoolName,
        /// The volume.
        volume: VolumeId,
        /// What the system answered.
        #[source]
        source: FileError,
    },
    /// The volume has a snapshot of that name already.
    #[error("volume {volume} in pool {pool} has a snapshot {snapshot} already")]
    SnapshotThere {
        /// The pool.
        pool: PoolName,
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        snapshot: SnapshotName,
    },
    /// The volume has no such snapshot.
    #[error("volume {volume} in pool {pool} has no snapshot {snapshot}")]
    NoSuchSnapshot {
        /// The pool.
        pool: PoolName,
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        snapshot: SnapshotName,
    },
    /// The VMM of the machine that uses a volume refused its part of an operation.
    #[error("cannot {action} volume {volume} in pool {pool} while its machine runs")]
    LiveDisk {
        /// What was tried.
        action: &'static str,
        /// The pool.
        pool: PoolName,
        /// The volume.
        volume: VolumeId,
        /// What the VMM answered.
        #[source]
        source: LiveDiskError,
    },
    /// A program that the driver needs failed, for one volume or for the pool.
    #[error("cannot {action} in pool {pool}")]
    Program {
        /// What was tried, such as `make a subvolume for 1234…`.
        action: String,
        /// The pool.
        pool: PoolName,
        /// What the program said.
        #[source]
        source: ProgramError,
    },
    /// The pool's directory is on a filesystem that its driver cannot work on.
    #[error("pool {pool} cannot be in {}: {reason}", directory.display())]
    Unsuited {
        /// The pool.
        pool: PoolName,
        /// Where it should be.
        directory: PathBuf,
        /// What is missing there.
        reason: String,
    },
    /// An option of the pool has a value that its driver cannot use.
    #[error("pool {pool} cannot have {option} = {value}: {reason}")]
    BadOption {
        /// The pool.
        pool: PoolName,
        /// The option.
        option: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The pool's own filesystem cannot be worked on.
    #[error("cannot {action} the filesystem of pool {pool}")]
    OwnFilesystem {
        /// What was tried.
        action: &'static str,
        /// The pool.
        pool: PoolName,
        /// What the system answered.
        #[source]
        source: FileError,
    },
    /// Growing was asked for, but the pool's own filesystem is larger.
    #[error("the filesystem of pool {pool} has {} bytes and cannot shrink to {}", size.get(), to.get())]
    PoolShrinks {
        /// The pool.
        pool: PoolName,
        /// Its size.
        size: Bytes,
        /// The size asked for.
        to: Bytes,
    },
    /// The pool's external driver did not do what it was asked.
    #[error("driver {driver} failed at `{operation}` in pool {pool}")]
    Driver {
        /// The driver.
        driver: String,
        /// What it was asked, in the word of the protocol.
        operation: &'static str,
        /// The pool.
        pool: PoolName,
        /// What it did instead.
        #[source]
        source: DriverFault,
    },
    /// Anything else that the system refused.
    #[error("cannot {action} volume {volume} in pool {pool}")]
    Volume {
        /// What was tried.
        action: &'static str,
        /// The pool.
        pool: PoolName,
        /// The volume.
        volume: VolumeId,
        /// What the system answered.
        #[source]
        source: FileError,
    },
}

/// The volume that an operation is about, from which its errors are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) pool: &'a PoolName,
    pub(crate) volume: VolumeId,
}

impl Subject<'_> {
    /// Makes the error of an operation that the system refused.
    pub(crate) fn failed(self, action: &'static str, source: FileError) -> PoolError {
        let pool = self.pool.clone();
        let volume = self.volume;
        match Errno::from_io_error(&source.source) {
            Some(Errno::NOSPC | Errno::DQUOT) => PoolError::Full {
                action,
                pool,
                volume,
                source,
            },
            Some(Errno::FBIG) => PoolError::TooLarge {
                action,
                pool,
                volume,
                source,
            },
            Some(Errno::ROFS) => PoolError::ReadOnly {
                action,
                pool,
                volume,
                source,
            },
            _ => PoolError::Volume {
                action,
                pool,
                volume,
                source,
            },
        }
    }

    /// Makes the error of an operation that a qcow2 file is in the way of.
    pub(crate) fn image(self, action: &'static str, error: ImageError) -> PoolError {
        match error {
            ImageError::File(source) => self.failed(action, source),
            fault @ ImageError::Fault { .. } => self.damaged(Flaw::Unreadable {
                reason: fault.to_string(),
            }),
        }
    }

    pub(crate) fn missing(self) -> PoolError {
        PoolError::NoSuchVolume {
            pool: self.pool.clone(),
            volume: self.volume,
        }
    }

    pub(crate) fn damaged(self, flaw: Flaw) -> PoolError {
        PoolError::Damaged {
            pool: self.pool.clone(),
            volume: self.volume,
            flaw,
        }
    }
}
