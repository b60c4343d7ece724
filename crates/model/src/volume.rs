//! What a volume is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Boot, Bytes, History, PoolName, Timestamp, VolumeId, VolumeName};

/// A named block device of a fixed virtual size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its identifier.
    pub id: VolumeId,
    /// Its name, unique among volumes.
    pub name: VolumeName,
    /// Its virtual size.
    pub size: Bytes,
    /// Whether it was made to boot from.
    pub role: Role,
    /// The pool that holds it.
    pub pool: PoolName,
    /// The filesystem it was given when it was made; a guest may have put another there since.
    pub filesystem: Filesystem,
    /// What it boots with, for a volume that was made from an image with a kernel of its own.
    pub boot: Option<Boot>,
    /// What is known of its past, and what is to be kept of it.
    pub history: History,
    /// Where it stands between being made and being removed.
    pub lifecycle: Lifecycle,
    /// When it was made.
    pub created: Timestamp,
    /// When its record last changed.
    pub modified: Timestamp,
}

/// What a volume was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Made by a deploy to boot from.
    Root,
    /// Made to hold data.
    Data,
    /// Holds an image in a pool, for the root volumes that are cloned from it; no user's.
    Image,
}

/// The filesystem that a volume is given when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    /// The default.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// A bare block device.
    None,
}

impl Filesystem {
    /// Every choice, in the order the help shows them.
    pub const ALL: [Filesystem; 4] = [
        Filesystem::Ext4,
        Filesystem::Xfs,
        Filesystem::Btrfs,
        Filesystem::None,
    ];

    /// The smallest volume that this filesystem fits on (measured with e2fsprogs 1.47.0,
    /// xfsprogs 6.1 and btrfs-progs 6.2).
    #[must_use]
    pub fn minimum_size(self) -> Bytes {
        match self {
            Filesystem::Ext4 => Bytes::from_mib(16),
            Filesystem::Xfs => Bytes::from_mib(300),
            Filesystem::Btrfs => Bytes::from_mib(110),
            Filesystem::None => Bytes::MINIMUM,
        }
    }

    /// The word users and tools know it by.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Filesystem::Ext4 => "ext4",
            Filesystem::Xfs => "xfs",
            Filesystem::Btrfs => "btrfs",
            Filesystem::None => "none",
        }
    }
}

/// Where a volume or machine stands between being made and being removed.
///
/// Only `Ready` objects are shown among the others; what is `Trashed` is shown as such, and the
/// other two are seen by recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lifecycle {
    /// Its name is taken, it is not whole yet.
    Creating,
    /// It exists.
    Ready,
    /// It was deleted and can be restored; its name is anybody's.
    Trashed,
    /// It is going; what is left of it is removed at the next start.
    Deleting,
}

impl Lifecycle {
    /// Whether an object may go from this stage to `next`; the only rule there is about it.
    #[must_use]
    pub fn can_become(self, next: Lifecycle) -> bool {
        use Lifecycle::{Creating, Deleting, Ready, Trashed};
        matches!(
            (self, next),
            (Creating | Trashed, Ready | Deleting) | (Ready, Trashed | Deleting)
        )
    }

    /// The word the catalogue stores.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Lifecycle::Creating => "creating",
            Lifecycle::Ready => "ready",
            Lifecycle::Trashed => "trashed",
            Lifecycle::Deleting => "deleting",
        }
    }
}

impl Role {
    /// The word the catalogue stores.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Root => "root",
            Role::Data => "data",
            Role::Image => "image",
        }
    }
}

/// Whether the holder of a volume may write to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Reads and writes.
    ReadWrite,
    /// Reads only.
    ReadOnly,
}

/// A word that names no member of a closed set, as read from a catalogue or a command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` is not a {what}")]
pub struct UnknownWord {
    what: &'static str,
    word: String,
}

impl UnknownWord {
    /// Says that `word` is not a `what`.
    #[must_use]
    pub fn new(what: &'static str, word: &str) -> UnknownWord {
        UnknownWord {
            what,
            word: word.to_owned(),
        }
    }
}

macro_rules! from_word {
    ($type:ty, $what:literal, $all:expr) => {
        impl FromStr for $type {
            type Err = UnknownWord;

            fn from_str(word: &str) -> Result<$type, UnknownWord> {
                $all.into_iter()
                    .find(|candidate| candidate.as_str() == word)
                    .ok_or_else(|| UnknownWord::new($what, word))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}
pub(crate) use from_word;

from_word!(Filesystem, "filesystem", Filesystem::ALL);
from_word!(Role, "role", [Role::Root, Role::Data, Role::Image]);
from_word!(
    Lifecycle,
    "lifecycle stage",
    [
        Lifecycle::Creating,
        Lifecycle::Ready,
        Lifecycle::Trashed,
        Lifecycle::Deleting
    ]
);
