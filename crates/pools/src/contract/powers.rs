//! What some pools can do beyond what all can: a power that a pool has not is not there to call.
//!
//! The guarantees of the contract hold here too, and these besides:
//!
//! - **Independence.** A clone, a snapshot and what they were made from never see each other's
//!   writes, nor does growing, reverting or removing one touch another.
//! - **Crash consistency.** A snapshot holds what a disk would hold after a power cut at one
//!   instant: everything that was flushed before, and of two writes with a flush between them
//!   never the second without the first.
//!
//! The caller holds the lock of every volume that an operation names.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sistemo_host::Changed;
use sistemo_model::{Bytes, SnapshotName, Timestamp, VolumeId};

use crate::{Content, Description, Location, PoolError};

/// What a power costs in a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cost {
    /// Milliseconds, and no space to speak of, however much data there is.
    Instant,
    /// All data is read and written, and takes its space once more.
    Copy,
}

/// How the data of a volume or snapshot came to be where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// The filesystem shares the extents of two files.
    Reflink,
    /// A new layer lies over what both sides share.
    Overlay,
    /// The filesystem shares a subvolume.
    Subvolume,
    /// The storage shares the data in a way of its own.
    Native,
    /// The data was copied, the holes were left out.
    Copied,
}

impl Way {
    /// What it cost.
    #[must_use]
    pub fn cost(self) -> Cost {
        match self {
            Way::Reflink | Way::Overlay | Way::Subvolume | Way::Native => Cost::Instant,
            Way::Copied => Cost::Copy,
        }
    }

    /// The word users see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Way::Reflink => "reflink",
            Way::Overlay => "overlay",
            Way::Subvolume => "subvolume",
            Way::Native => "native",
            Way::Copied => "copied",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a clone is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The volume.
    pub volume: VolumeId,
    /// Its snapshot; without one, the volume as it is now.
    pub snapshot: Option<&'a SnapshotName>,
}

/// A volume as it was at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name, unique among the snapshots of its volume.
    pub name: SnapshotName,
    /// When it was taken.
    pub created: Timestamp,
    /// The volume's virtual size then.
    pub size: Bytes,
    /// The space that would be free without it, where the pool can tell cheaply.
    pub alone: Option<Bytes>,
}

/// Told the bytes done and the bytes there are to do; never called where nothing is copied.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Makes volumes from volumes of the same pool.
pub trait Clones {
    /// What a clone costs here.
    fn clone_cost(&self) -> Cost;

    /// Makes a volume that holds what its origin does, of at least the origin's size; what lies
    /// beyond reads as zeros. The clone has no snapshots. An origin without a snapshot is in
    /// nobody's use.
    ///
    /// A crash leaves the new volume, or [`Found::Draft`](crate::Found::Draft) of it, or nothing.
    ///
    /// # Errors
    /// As [`Pool::draft`](crate::Pool::draft), [`PoolError::NoSuchVolume`],
    /// [`PoolError::NoSuchSnapshot`], and [`PoolError::SourceTooLarge`] where the origin is larger
    /// than the new volume. Nothing is left then.
    fn clone_volume(
        &self,
        origin: Origin<'_>,
        new: &Description,
        progress: Progress<'_>,
    ) -> Result<Way, PoolError>;
}

/// Keeps volumes as they were, and takes them back there.
pub trait Snapshots {
    /// What taking a snapshot costs here. Where it is a copy, nobody writes to the volume
    /// meanwhile.
    fn snapshot_cost(&self) -> Cost;

    /// The snapshots of a volume, oldest first.
    ///
    /// # Errors
    /// Where the pool cannot be read.
    fn snapshots(&self, volume: VolumeId) -> Result<Vec<Snapshot>, PoolError>;

    /// Keeps a volume as it is now. `created` is recorded as the time of the snapshot, to the
    /// second at least; `disk` is where a machine uses it meanwhile.
    ///
    /// A crash leaves the snapshot or none; something that takes space may stay, which the next
    /// operation that changes the volume removes.
    ///
    /// # Errors
    /// [`PoolError::SnapshotThere`], [`PoolError::Full`], and [`PoolError::LiveDisk`] where the
    /// machine's VMM refused its part. No snapshot is left then.
    fn take_snapshot(
        &self,
        volume: VolumeId,
        name: &SnapshotName,
        created: Timestamp,
        disk: Option<&mut dyn LiveDisk>,
        progress: Progress<'_>,
    ) -> Result<Way, PoolError>;

    /// Takes a volume back to a snapshot, its size included, in its description too; the state it
    /// had is lost, all snapshots stay. The volume is in nobody's use.
    ///
    /// A crash leaves the volume as it was or as the snapshot is, perhaps with a description of
    /// the other size ([`Flaw::DescribedSize`](crate::Flaw::DescribedSize)); reverting again
    /// completes it.
    ///
    /// # Errors
    /// [`PoolError::NoSuchSnapshot`], [`PoolError::Full`]; the volume is as it was then.
    fn revert(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
        progress: Progress<'_>,
    ) -> Result<Way, PoolError>;

    /// Removes a snapshot. What is not there is no error. The volume may be in use.
    ///
    /// A crash leaves the snapshot or none, as [`Snapshots::take_snapshot`] says.
    ///
    /// # Errors
    /// Where the pool cannot be written.
    fn delete_snapshot(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Changed, PoolError>;

    /// Opens the bytes of a snapshot to read them.
    ///
    /// # Errors
    /// [`PoolError::NoSuchSnapshot`], and where it cannot be read.
    fn snapshot_content(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Box<dyn Content>, PoolError>;

    /// Where a program can read a snapshot, of which it must write nothing; `None` where only
    /// [`Snapshots::snapshot_content`] can.
    ///
    /// It is there for as long as the caller holds the volume's lock and changes neither the
    /// volume nor its snapshots: any such change may take away what lies beneath.
    ///
    /// # Errors
    /// As [`Snapshots::snapshot_content`].
    fn open_snapshot(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Option<Location>, PoolError>;

    /// Its power to have snapshots of running machines' volumes written by their VMMs, where it
    /// has it: where a snapshot is a copy.
    fn live_copies(&self) -> Option<&dyn LiveCopies>;

    /// Its power to do most of what a snapshot of a running machine's volume takes before and
    /// after the instant that it is of, where it has it.
    fn live_switches(&self) -> Option<&dyn LiveSwitches>;
}

/// Keeps a running machine's volume by having the machine write to another file from an instant
/// on, of which all else that this takes is kept away.
pub trait LiveSwitches {
    /// Makes everything ready for a snapshot that is to be taken at `created`, about. The machine
    /// goes on as it was; several volumes of a pool can be ready at once.
    ///
    /// A crash leaves nothing that matters, as [`Snapshots::take_snapshot`] says.
    ///
    /// # Errors
    /// As [`Snapshots::take_snapshot`].
    fn prepare_snapshot(
        &self,
        volume: VolumeId,
        name: &SnapshotName,
        created: Timestamp,
        disk: &mut dyn LiveDisk,
        progress: Progress<'_>,
    ) -> Result<Box<dyn PreparedSnapshot + '_>, PoolError>;
}

/// A snapshot that can be taken within milliseconds. Dropped, it leaves nothing, except that a
/// machine which was switched writes on to where it was switched to.
pub trait PreparedSnapshot: Send {
    /// Takes it: it holds what the volume holds now. It does not exist yet.
    ///
    /// # Errors
    /// [`PoolError::LiveDisk`] where the machine's VMM refused its part.
    fn take(&mut self, disk: &mut dyn LiveDisk) -> Result<(), PoolError>;

    /// Makes a snapshot that was taken exist, durably.
    ///
    /// # Errors
    /// Where the pool cannot be written; no snapshot is left then.
    fn commit(self: Box<Self>) -> Result<(), PoolError>;
}

/// Has the VMM of a running machine write the copy that a snapshot is, so that the machine need
/// not be held meanwhile.
pub trait LiveCopies {
    /// Begins a snapshot of a volume that has `size` bytes, taken at `created`: all of its size
    /// reads as zeros, and no space is taken yet. It comes to exist with
    /// [`SnapshotDraft::commit`].
    ///
    /// A crash leaves something that takes space, which the next operation that changes the
    /// volume removes, also where the VMM still writes to it.
    ///
    /// # Errors
    /// [`PoolError::SnapshotThere`], [`PoolError::BadSize`], [`PoolError::TooLarge`],
    /// [`PoolError::Full`].
    fn draft_snapshot(
        &self,
        volume: VolumeId,
        name: &SnapshotName,
        created: Timestamp,
        size: Bytes,
    ) -> Result<Box<dyn SnapshotDraft + '_>, PoolError>;
}

/// A snapshot that does not exist yet. Dropped, it leaves nothing.
pub trait SnapshotDraft: Send + fmt::Debug {
    /// A raw file of the snapshot's size, into which the VMM writes what the volume holds and
    /// which it must not replace. What is not written stays a hole.
    fn raw_path(&self) -> &Path;

    /// Makes the snapshot exist, durably, with all that was written. The VMM is done with it.
    ///
    /// A crash leaves the snapshot or none, as [`Snapshots::take_snapshot`] says.
    ///
    /// # Errors
    /// [`PoolError::SnapshotThere`]; [`PoolError::Damaged`] where the file is not what it was to
    /// be; and where the pool cannot be written. Nothing is left then.
    fn commit(self: Box<Self>) -> Result<(), PoolError>;
}

/// The disk of a running machine, as a driver may ask its VMM to treat it.
pub trait LiveDisk {
    /// The file that the VMM writes to now.
    ///
    /// # Errors
    /// What the VMM answers.
    fn file(&mut self) -> Result<PathBuf, LiveDiskError>;

    /// Lets the VMM write to `overlay` from now on, an empty qcow2 file whose backing file is the
    /// one it wrote to until now. What it writes before is in the old file, flushed; all that
    /// comes after is in the new one.
    ///
    /// # Errors
    /// What the VMM answers; it then goes on with the old file.
    fn switch_to(&mut self, overlay: &Path) -> Result<(), LiveDiskError>;

    /// Brings all that lies beneath into the file that the VMM writes to, until that has no
    /// backing file.
    ///
    /// # Errors
    /// What the VMM answers; the file then still has its backing file.
    fn flatten(&mut self, progress: Progress<'_>) -> Result<(), LiveDiskError>;
}

/// What a VMM answered.
pub type LiveDiskError = Box<dyn std::error::Error + Send + Sync>;

/// Pools whose filesystem is their own, in one file.
pub trait OwnFilesystem {
    /// Makes the filesystem larger. One that has that size already stays as it is.
    ///
    /// A crash may leave the file larger than the filesystem; growing again completes it.
    ///
    /// # Errors
    /// [`PoolError::PoolShrinks`], and where a program that it takes fails.
    fn resize(&self, to: Bytes) -> Result<Changed, PoolError>;

    /// Unmounts the filesystem; the file with all that is in it stays.
    ///
    /// # Errors
    /// Where somebody still uses it.
    fn unmount(&self) -> Result<(), PoolError>;
}
