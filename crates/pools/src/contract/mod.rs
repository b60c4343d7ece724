//! What every driver promises, and what it does not.
//!
//! # Guaranteed
//!
//! - **A volume exists or it does not.** [`Draft::commit`] is the single instant at which it
//!   begins to, [`Pool::remove`] has one at which it ceases to; there is no half of one.
//! - **Any operation may be killed at any instant**, the machine's power included. What it leaves
//!   is one of the states of [`Found`], and repeating the operation, or [`Pool::remove`],
//!   recovers.
//! - **Operations are idempotent** and say whether they [`Changed`] anything.
//! - **What returned is durable**: create, remove, grow and describe survive a power cut that
//!   comes after them. Of a volume's content only what was flushed does.
//! - **A failed operation changes nothing** that it does not say: a pool that is full, read-only
//!   or too small for a size is as it was.
//! - **Formats are never probed.** A volume's content is a guest's, and a guest may write
//!   anything.
//!
//! # Not guaranteed
//!
//! - **Order between callers.** A pool may be used by many threads and processes at once, but
//!   operations on *one* volume must not overlap: the caller holds that volume's lock. Reads
//!   ([`Pool::list`], [`Pool::find`], [`Pool::facts`], …) need no lock; what they say of a volume
//!   that another is working on may be past.
//! - **Space.** Volumes are thin: a pool may hold more virtual bytes than it has room for, and a
//!   write may find it full.
//! - **Reading the data.** [`Pool::verify`] looks at what a volume is made of, not at every block;
//!   [`Pool::examine`] looks at those.
//!
//! What not every pool can do is a power of its own: see [`Clones`], [`Snapshots`],
//! [`OwnFilesystem`].

mod powers;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sistemo_host::Changed;
use sistemo_host::sparse::CopyPath;
use sistemo_model::{Access, Bytes, PoolName, SnapshotName, VolumeId};

pub use self::powers::{
    Clones, Cost, LiveCopies, LiveDisk, LiveDiskError, LiveSwitches, Origin, OwnFilesystem,
    PreparedSnapshot, Progress, Snapshot, SnapshotDraft, Snapshots, Way,
};

use crate::{Content, Description, PoolError};

/// A named place that holds volumes.
///
/// Every operation fails with [`PoolError::NoSuchVolume`] for a volume that is not there, unless
/// it says otherwise, and with [`PoolError::Damaged`] where what is there is no volume.
pub trait Pool: Send + Sync + fmt::Debug {
    /// Its name.
    fn name(&self) -> &PoolName;

    /// The name of its driver, for people; nothing may be decided by it.
    fn driver(&self) -> &str;

    /// Where it is.
    fn directory(&self) -> &Path;

    /// Checks that it can be used now: it is there, it is ours, and it can be written.
    ///
    /// # Errors
    /// What is in the way.
    fn probe(&self) -> Result<(), PoolError>;

    /// The space of the place it is in.
    ///
    /// # Errors
    /// Where the pool cannot be read.
    fn usage(&self) -> Result<Usage, PoolError>;

    /// What is really on disk, volumes by ID first, then what is not the pool's.
    ///
    /// # Errors
    /// Where the pool cannot be read. One damaged volume is reported, it does not fail the rest.
    fn list(&self) -> Result<Vec<Found>, PoolError>;

    /// What is really on disk of one volume; `None` where there is nothing. Never
    /// [`Found::Stray`].
    ///
    /// # Errors
    /// Where the pool cannot be read.
    fn find(&self, id: VolumeId) -> Result<Option<Found>, PoolError>;

    /// Begins a volume: all of its size reads as zeros, and no space is taken yet. It comes to
    /// exist with [`Draft::commit`].
    ///
    /// A crash leaves [`Found::Draft`].
    ///
    /// # Errors
    /// [`PoolError::AlreadyThere`]; [`PoolError::DraftThere`], after which a caller who holds the
    /// lock may remove it; [`PoolError::BadSize`], [`PoolError::TooLarge`], [`PoolError::Full`],
    /// [`PoolError::ReadOnly`].
    fn draft(&self, description: &Description) -> Result<Box<dyn Draft + '_>, PoolError>;

    /// Removes a volume with its snapshots, or what is left of one in whatever state,
    /// [`Found::Damaged`] included. What is not there is no error. Clones of it stay.
    ///
    /// A crash leaves the volume, or [`Found::Orphan`], or nothing.
    ///
    /// # Errors
    /// Where the pool cannot be written; a part may then be gone, as after a crash.
    fn remove(&self, id: VolumeId) -> Result<Changed, PoolError>;

    /// Grows a volume to a size, in its description too; the new part reads as zeros. One that
    /// has that size already stays as it is.
    ///
    /// A crash may leave data that is larger than its description says ([`Flaw::DescribedSize`]);
    /// growing again to that size completes it.
    ///
    /// # Errors
    /// [`PoolError::Shrinks`]; [`PoolError::Damaged`] where the data is shorter than described or
    /// not described, for growing would hide that; [`PoolError::BadSize`],
    /// [`PoolError::TooLarge`], [`PoolError::Full`], [`PoolError::ReadOnly`].
    fn grow(&self, id: VolumeId, to: Bytes) -> Result<Changed, PoolError>;

    /// Makes a volume reachable and says how. Opening twice is no error, nor does it count: one
    /// [`Pool::close`] closes.
    ///
    /// # Errors
    /// Where it cannot be opened with that access.
    fn open(&self, id: VolumeId, access: Access) -> Result<Location, PoolError>;

    /// Takes back what [`Pool::open`] set up. A volume that is not open, or not there, is no
    /// error.
    ///
    /// # Errors
    /// Where somebody still uses it, for drivers that can tell.
    fn close(&self, id: VolumeId) -> Result<(), PoolError>;

    /// Opens a volume's bytes for this process.
    ///
    /// # Errors
    /// Where it cannot be opened with that access.
    fn content(&self, id: VolumeId, access: Access) -> Result<Box<dyn Content>, PoolError>;

    /// Replaces a volume's description, atomically. It is taken as it is: the size in it must be
    /// the volume's.
    ///
    /// # Errors
    /// Where the pool cannot be written; the old description then stays.
    fn describe(&self, description: &Description) -> Result<Changed, PoolError>;

    /// Reads a volume's description.
    ///
    /// # Errors
    /// [`PoolError::Damaged`] with [`Flaw::Undescribed`] where it has none, and
    /// [`PoolError::BadDescription`].
    fn description(&self, id: VolumeId) -> Result<Description, PoolError>;

    /// What one volume is made of.
    ///
    /// # Errors
    /// Where the pool cannot be read.
    fn facts(&self, id: VolumeId) -> Result<Facts, PoolError>;

    /// Looks for damage to a volume that should have `recorded` bytes. Nothing found is an empty
    /// list; a volume that is not there is [`Flaw::Missing`], not an error.
    ///
    /// # Errors
    /// Where the pool cannot be read.
    fn verify(&self, id: VolumeId, recorded: Bytes) -> Result<Vec<Flaw>, PoolError>;

    /// Looks for damage as [`Pool::verify`] does, in the volume's snapshots too, and besides reads
    /// all their data, which takes as long as that does. Changes nothing. The volume is in
    /// nobody's use.
    ///
    /// # Errors
    /// Where the pool cannot be read; data that cannot be is a flaw.
    fn examine(
        &self,
        id: VolumeId,
        recorded: Bytes,
        progress: Progress<'_>,
    ) -> Result<Vec<Flaw>, PoolError>;

    /// How much of the space that a volume lies in others use too; `None` where the pool cannot
    /// tell. Takes a look at each of the volume's extents: too long for a list of volumes.
    ///
    /// # Errors
    /// Where the pool cannot be read.
    fn sharing(&self, id: VolumeId) -> Result<Option<Sharing>, PoolError>;

    /// Its power to make volumes from volumes, where it has it.
    fn clones(&self) -> Option<&dyn Clones>;

    /// Its power to keep volumes as they were, where it has it.
    fn snapshots(&self) -> Option<&dyn Snapshots>;

    /// Its own filesystem, where it has one.
    fn own_filesystem(&self) -> Option<&dyn OwnFilesystem>;
}

/// A volume that does not exist yet.
///
/// Dropped, it leaves nothing. Killed, it leaves a [`Found::Draft`].
pub trait Draft: Send + fmt::Debug {
    /// A path at which a program such as mkfs can write the volume directly, as a raw file of
    /// the volume's size that it must not replace; `None` where there is no such thing.
    fn raw_path(&self) -> Option<&Path>;

    /// Its bytes.
    ///
    /// # Errors
    /// Where they cannot be opened.
    fn content(&mut self) -> Result<&mut dyn Content, PoolError>;

    /// Fills it with a raw file's data, without its holes; what was written before is lost. The
    /// volume keeps its size, the rest reads as zeros. Says which way the data took.
    ///
    /// `progress` is told the bytes done and the bytes there are to do; never, where the extents
    /// are shared.
    ///
    /// # Errors
    /// [`PoolError::SourceTooLarge`], [`PoolError::Full`], and where either cannot be read or
    /// written. After these but the first the draft is good for nothing but dropping: commit
    /// refuses it.
    fn fill_from(
        &mut self,
        source: &File,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<CopyPath, PoolError>;

    /// Makes the volume exist, durably, with all that was written.
    ///
    /// A crash leaves the draft or the volume.
    ///
    /// # Errors
    /// [`PoolError::AlreadyThere`]; [`PoolError::Damaged`] with [`Flaw::WrongSize`] where a
    /// program has changed the size; and where the pool cannot be written. Nothing is left then.
    fn commit(self: Box<Self>) -> Result<(), PoolError>;
}

/// How an open volume can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file that holds the volume's bytes as they are.
    RawFile(PathBuf),
    /// A block device of the host that is the volume.
    BlockDevice(PathBuf),
    /// A qcow2 file, which may have a chain of backing files, each named with its format in the
    /// one above.
    Qcow2File(PathBuf),
}

impl Location {
    /// The file or device.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Location::RawFile(path) | Location::BlockDevice(path) | Location::Qcow2File(path) => {
                path
            }
        }
    }
}

/// The space of the place that a pool is in, in bytes. Other things may live there too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// All of it.
    pub size: u64,
    /// What cannot be filled any more, what is kept for the system included.
    pub used: u64,
    /// What this user may still fill.
    pub free: u64,
}

/// What one volume is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Where its data is.
    pub path: PathBuf,
    /// Its virtual size, as the data has it.
    pub size: Bytes,
    /// The space it takes.
    pub used: Bytes,
    /// How its data is laid out.
    pub format: Format,
}

/// The space that a volume lies in, by who uses it.
///
/// Who took it first makes no difference, so it may be more than [`Facts::used`]. What others have
/// just removed may not be told of yet. What a storage can give back only together counts together:
/// of a piece of which one part is used by another, all is shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    /// What snapshots or other volumes use too, its own snapshots and theirs.
    pub shared: Bytes,
    /// What nobody else uses: it would be free if the volume were gone and its snapshots stayed.
    pub alone: Bytes,
    /// What each of its snapshots uses alone: it would be free without that snapshot.
    pub snapshots: BTreeMap<SnapshotName, Bytes>,
}

/// How a volume's data is laid out on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// As the bytes are.
    Raw,
    /// QEMU's format, in which a file may lie over others.
    Qcow2,
}

impl Format {
    /// The word users and tools know it by.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What is really on disk, as reconciliation sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A volume.
    Volume {
        /// Its description. The size in it may differ from the data's: see [`Pool::verify`].
        description: Description,
        /// What it is made of.
        facts: Facts,
    },
    /// A volume that never came to exist: its creation is at work, or was killed.
    Draft {
        /// The volume that it was to be.
        id: VolumeId,
    },
    /// A volume without a description that can be read: it was lost or damaged.
    Undescribed {
        /// The volume.
        id: VolumeId,
        /// What it is made of.
        facts: Facts,
    },
    /// A description without data: its removal was killed, or its data was lost.
    Orphan {
        /// The volume that was described.
        id: VolumeId,
        /// The description, where it can be read.
        description: Option<Description>,
    },
    /// Something in a volume's place that no operation leaves, killed or not. It wants a person.
    Damaged {
        /// The volume whose place it is.
        id: VolumeId,
        /// What is wrong.
        flaw: Flaw,
    },
    /// A file that is none of the pool's.
    Stray {
        /// Its name.
        name: String,
    },
}

/// Something that is wrong with a volume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Its data is not there.
    #[error("its data is missing")]
    Missing,
    /// Something else than a file stands where its data should be.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What stands there.
        path: PathBuf,
    },
    /// More than one file claims to be its data.
    #[error("it has several data files: {}", names.join(", "))]
    Several {
        /// The files.
        names: Vec<String>,
    },
    /// Its data has another size than was recorded.
    #[error("its data has {} bytes instead of {}", real.get(), recorded.get())]
    WrongSize {
        /// The size that was recorded.
        recorded: Bytes,
        /// The size of the data.
        real: Bytes,
    },
    /// It has no description.
    #[error("it has no description")]
    Undescribed,
    /// Its description cannot be understood.
    #[error("its description is not readable")]
    BadDescription,
    /// Something of it cannot be read as what it should be.
    #[error("{reason}")]
    Unreadable {
        /// What is wrong, in the driver's words.
        reason: String,
    },
    /// Its description gives another size than was recorded.
    #[error("its description gives {} bytes instead of {}", described.get(), recorded.get())]
    DescribedSize {
        /// The size that was recorded.
        recorded: Bytes,
        /// The size in its description.
        described: Bytes,
    },
}
