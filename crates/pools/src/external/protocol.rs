//! What is said between Sistemo and an external driver: one JSON object each way.
//!
//! `docs/reference/driver-protocol.md` explains it to the authors of drivers, and its messages
//! are checked against these types.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use sistemo_model::{Access, Bytes, CatalogueId, PoolName, SnapshotName, Timestamp, VolumeId};

use crate::contract::{Cost, Location, Sharing, Way};
use crate::registry::{self, ValueKind};

/// The version of the protocol that this program speaks, and the only one.
pub const PROTOCOL: u32 = 1;

/// How the names of the executables begin that are drivers by name.
pub const EXECUTABLE_PREFIX: &str = "sistemo-driver-";

/// The option that every external pool has: the directory with its marker, its locks and
/// whatever its driver keeps there.
pub const DIRECTORY: &str = registry::DIRECTORY;

/// What begins the names in that directory that are not the driver's.
pub const RESERVED: &str = ".sistemo";

const VARIABLE: &str = "SISTEMO_";

/// What a driver is asked, on its standard input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The version of the protocol.
    pub protocol: u32,
    /// What it is to do.
    #[serde(flatten)]
    pub operation: Operation,
    /// The pool; [`Operation::Capabilities`] has none.
    #[serde(flatten)]
    pub pool: Option<RequestPool>,
}

/// The pool that a request is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestPool {
    /// Its name.
    pub pool: PoolName,
    /// The catalogue that it belongs to.
    pub catalogue: CatalogueId,
    /// Its options, all of them, as they are meant.
    pub options: BTreeMap<String, String>,
}

/// An operation and what it is about.
///
/// A description is an object that the driver keeps and gives back as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "kebab-case")]
pub enum Operation {
    /// Says what the driver is and can: [`Capabilities`].
    Capabilities,
    /// Makes what the pool needs before its first volume: [`PoolAnswer`].
    Setup,
    /// Checks that the pool can be used now: [`PoolAnswer`].
    Probe,
    /// Says how much space there is: [`UsageAnswer`].
    Usage,
    /// Says what is there of all volumes: [`ListAnswer`].
    List,
    /// Says what is there of one volume: [`InspectAnswer`].
    Inspect {
        /// The volume.
        volume: VolumeId,
    },
    /// Makes a volume of zeros, open to be written: [`LocationAnswer`].
    Create {
        /// The volume.
        volume: VolumeId,
        /// Its size.
        size: Bytes,
        /// Its description.
        description: Value,
    },
    /// Removes a volume with its snapshots, or what is left of it: [`ChangedAnswer`].
    Remove {
        /// The volume.
        volume: VolumeId,
    },
    /// Makes a volume larger, and describes it anew: [`Done`].
    Grow {
        /// The volume.
        volume: VolumeId,
        /// The size it is to have.
        size: Bytes,
        /// Its description from then on.
        description: Value,
    },
    /// Makes a volume reachable: [`LocationAnswer`].
    Open {
        /// The volume.
        volume: VolumeId,
        /// What for.
        access: Access,
    },
    /// Takes back what opening the volume or its snapshots set up: [`Done`].
    Close {
        /// The volume.
        volume: VolumeId,
    },
    /// Replaces a volume's description: [`Done`].
    Describe {
        /// The volume.
        volume: VolumeId,
        /// Its description from then on.
        description: Value,
    },
    /// Makes a volume from another, or from its snapshot: [`WayAnswer`].
    Clone {
        /// The new volume.
        volume: VolumeId,
        /// Its size, at least its source's.
        size: Bytes,
        /// Its description.
        description: Value,
        /// The volume to clone.
        source: VolumeId,
        /// Its snapshot to clone; without one, the volume as it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source_snapshot: Option<SnapshotName>,
    },
    /// Says which snapshots a volume has: [`SnapshotsAnswer`].
    Snapshots {
        /// The volume.
        volume: VolumeId,
    },
    /// Keeps a volume as it is now: [`WayAnswer`].
    Snapshot {
        /// The volume.
        volume: VolumeId,
        /// The name to keep it under.
        snapshot: SnapshotName,
        /// The time to record.
        created: Timestamp,
    },
    /// Takes a volume back to a snapshot, its size included: [`WayAnswer`].
    Revert {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        snapshot: SnapshotName,
        /// The volume's description from then on.
        description: Value,
    },
    /// Removes a snapshot: [`ChangedAnswer`].
    DeleteSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        snapshot: SnapshotName,
    },
    /// Makes a snapshot reachable to read it: [`LocationAnswer`].
    OpenSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        snapshot: SnapshotName,
    },
    /// Says how much of a volume's space others use too: [`SharingAnswer`].
    Sharing {
        /// The volume.
        volume: VolumeId,
    },
}

impl Operation {
    /// Its word in the protocol.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Operation::Capabilities => "capabilities",
            Operation::Setup => "setup",
            Operation::Probe => "probe",
            Operation::Usage => "usage",
            Operation::List => "list",
            Operation::Inspect { .. } => "inspect",
            Operation::Create { .. } => "create",
            Operation::Remove { .. } => "remove",
            Operation::Grow { .. } => "grow",
            Operation::Open { .. } => "open",
            Operation::Close { .. } => "close",
            Operation::Describe { .. } => "describe",
            Operation::Clone { .. } => "clone",
            Operation::Snapshots { .. } => "snapshots",
            Operation::Snapshot { .. } => "snapshot",
            Operation::Revert { .. } => "revert",
            Operation::DeleteSnapshot { .. } => "delete-snapshot",
            Operation::OpenSnapshot { .. } => "open-snapshot",
            Operation::Sharing { .. } => "sharing",
        }
    }

    /// The volume that it is about.
    #[must_use]
    pub fn volume(&self) -> Option<VolumeId> {
        match self {
            Operation::Capabilities
            | Operation::Setup
            | Operation::Probe
            | Operation::Usage
            | Operation::List => None,
            Operation::Inspect { volume }
            | Operation::Create { volume, .. }
            | Operation::Remove { volume }
            | Operation::Grow { volume, .. }
            | Operation::Open { volume, .. }
            | Operation::Close { volume }
            | Operation::Describe { volume, .. }
            | Operation::Clone { volume, .. }
            | Operation::Snapshots { volume }
            | Operation::Snapshot { volume, .. }
            | Operation::Revert { volume, .. }
            | Operation::DeleteSnapshot { volume, .. }
            | Operation::OpenSnapshot { volume, .. }
            | Operation::Sharing { volume } => Some(*volume),
        }
    }

    /// The volume besides [`Operation::volume`] that it is about.
    #[must_use]
    pub fn source(&self) -> Option<VolumeId> {
        match self {
            Operation::Clone { source, .. } => Some(*source),
            _ => None,
        }
    }

    /// Its snapshot, or its source's.
    #[must_use]
    pub fn snapshot(&self) -> Option<&SnapshotName> {
        match self {
            Operation::Clone {
                source_snapshot, ..
            } => source_snapshot.as_ref(),
            Operation::Snapshot { snapshot, .. }
            | Operation::Revert { snapshot, .. }
            | Operation::DeleteSnapshot { snapshot, .. }
            | Operation::OpenSnapshot { snapshot, .. } => Some(snapshot),
            _ => None,
        }
    }

    /// The size that the volume is to have.
    #[must_use]
    pub fn size(&self) -> Option<Bytes> {
        match self {
            Operation::Create { size, .. }
            | Operation::Grow { size, .. }
            | Operation::Clone { size, .. } => Some(*size),
            _ => None,
        }
    }

    /// Whether it changes anything, so that no other may work on its volumes meanwhile.
    #[must_use]
    pub fn changes(&self) -> bool {
        match self {
            Operation::Capabilities
            | Operation::Probe
            | Operation::Usage
            | Operation::List
            | Operation::Inspect { .. }
            | Operation::Snapshots { .. }
            | Operation::Sharing { .. } => false,
            Operation::Setup
            | Operation::Create { .. }
            | Operation::Remove { .. }
            | Operation::Grow { .. }
            | Operation::Open { .. }
            | Operation::Close { .. }
            | Operation::Describe { .. }
            | Operation::Clone { .. }
            | Operation::Snapshot { .. }
            | Operation::Revert { .. }
            | Operation::DeleteSnapshot { .. }
            | Operation::OpenSnapshot { .. } => true,
        }
    }

    /// Whether it may take as long as copying or freeing all of a volume does.
    #[must_use]
    pub fn may_take_long(&self) -> bool {
        matches!(
            self,
            Operation::Remove { .. }
                | Operation::Clone { .. }
                | Operation::Snapshot { .. }
                | Operation::Revert { .. }
                | Operation::DeleteSnapshot { .. }
        )
    }
}

impl Request {
    /// The same as environment variables: `SISTEMO_OPERATION` and so on for each field, an
    /// option as `SISTEMO_OPTION_` with its name, the description as JSON in one line.
    ///
    /// # Errors
    /// None that a request could lead to.
    pub fn variables(&self) -> serde_json::Result<Vec<(String, String)>> {
        let mut variables = Vec::new();
        if let Value::Object(fields) = serde_json::to_value(self)? {
            for (name, value) in fields {
                let variable = format!("{VARIABLE}{}", name.to_uppercase());
                match value {
                    Value::Object(options) if name == "options" => {
                        variables.extend(options.into_iter().map(|(name, value)| {
                            (format!("{VARIABLE}OPTION_{name}"), plain(value))
                        }));
                    }
                    value => variables.push((variable, plain(value))),
                }
            }
        }
        Ok(variables)
    }
}

fn plain(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// What a driver is and can.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    /// The version of the protocol that it speaks.
    pub protocol: u32,
    /// What it is, in one line.
    pub summary: String,
    /// The options of its pools besides [`DIRECTORY`].
    #[serde(default)]
    pub options: Vec<CapabilityOption>,
    /// What its pools can do beyond what all can.
    #[serde(default)]
    pub powers: Vec<CapabilityPower>,
    /// Whether its volumes and snapshots can always be reached where it says they are, so that it
    /// is never asked to open or close one.
    #[serde(default)]
    pub always_open: bool,
}

/// An option of a driver's pools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapabilityOption {
    /// Its name: small letters, digits and `_`.
    pub name: String,
    /// Whether a pool must have it.
    #[serde(default)]
    pub required: bool,
    /// Its value where a pool does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// What it is, in one line.
    pub summary: String,
    /// How its value is read.
    pub kind: ValueKind,
}

/// What pools of external drivers may be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CapabilityPower {
    /// [`Operation::Clone`].
    Clone,
    /// [`Operation::Snapshots`], [`Operation::Snapshot`], [`Operation::Revert`],
    /// [`Operation::DeleteSnapshot`] and [`Operation::OpenSnapshot`].
    Snapshot,
    /// [`Operation::Sharing`].
    Sharing,
}

/// That a pool can be used, and what its powers cost in the place it is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolAnswer {
    /// What a clone costs, where the driver has that power.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_cost: Option<Cost>,
    /// What a snapshot costs, where the driver has that power.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_cost: Option<Cost>,
}

/// The space of the place that a pool is in, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageAnswer {
    /// All of it.
    pub size: u64,
    /// What cannot be filled any more.
    pub used: u64,
    /// What this user may still fill.
    pub free: u64,
}

/// What is there of all volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListAnswer {
    /// The volumes, each once, in any order.
    pub found: Vec<FoundAnswer>,
    /// The names of what is not the pool's.
    #[serde(default)]
    pub strays: Vec<String>,
}

/// What is there of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InspectAnswer {
    /// `None` where there is nothing; to say nothing is no answer.
    #[serde(deserialize_with = "said")]
    pub found: Option<FoundAnswer>,
}

/// What is there of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase", deny_unknown_fields)]
pub enum FoundAnswer {
    /// All of it.
    Volume {
        /// The volume.
        volume: VolumeId,
        /// What was given as its description; `None` where that was lost.
        #[serde(deserialize_with = "said")]
        description: Option<Value>,
        /// Its size, as the data really has it.
        size: Bytes,
        /// The space it takes, in bytes.
        used: Bytes,
        /// Where its data is.
        location: LocatedAt,
        /// What is wrong with it, a sentence each.
        #[serde(default)]
        flaws: Vec<String>,
    },
    /// What a killed operation left; [`Operation::Remove`] removes it.
    Remains {
        /// The volume.
        volume: VolumeId,
    },
    /// Something that no operation leaves. It wants a person.
    Damaged {
        /// The volume.
        volume: VolumeId,
        /// What is wrong, a sentence each.
        flaws: Vec<String>,
    },
}

impl FoundAnswer {
    /// The volume that it is about.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        match self {
            FoundAnswer::Volume { volume, .. }
            | FoundAnswer::Remains { volume }
            | FoundAnswer::Damaged { volume, .. } => *volume,
        }
    }
}

/// A [`Location`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocatedAt {
    /// What is there.
    pub kind: LocationKind,
    /// An absolute path.
    pub path: PathBuf,
}

/// What a volume can be reached as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LocationKind {
    /// [`Location::RawFile`].
    RawFile,
    /// [`Location::BlockDevice`].
    BlockDevice,
    /// [`Location::Qcow2File`].
    #[serde(rename = "qcow2-file")]
    Qcow2File,
}

impl From<LocatedAt> for Location {
    fn from(LocatedAt { kind, path }: LocatedAt) -> Location {
        match kind {
            LocationKind::RawFile => Location::RawFile(path),
            LocationKind::BlockDevice => Location::BlockDevice(path),
            LocationKind::Qcow2File => Location::Qcow2File(path),
        }
    }
}

impl From<Location> for LocatedAt {
    fn from(location: Location) -> LocatedAt {
        let (kind, path) = match location {
            Location::RawFile(path) => (LocationKind::RawFile, path),
            Location::BlockDevice(path) => (LocationKind::BlockDevice, path),
            Location::Qcow2File(path) => (LocationKind::Qcow2File, path),
        };
        LocatedAt { kind, path }
    }
}

/// Where a volume or snapshot can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocationAnswer {
    /// Where.
    pub location: LocatedAt,
}

/// Whether anything is different now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangedAnswer {
    /// `false` where it was so already.
    pub changed: bool,
}

/// How the data came to be where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WayAnswer {
    /// How.
    pub way: Way,
}

/// The snapshots of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotsAnswer {
    /// In any order.
    pub snapshots: Vec<SnapshotAnswer>,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotAnswer {
    /// Its name.
    pub name: SnapshotName,
    /// The time that was given when it was taken.
    pub created: Timestamp,
    /// The volume's size then.
    pub size: Bytes,
    /// The space that would be free without it, in bytes, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alone: Option<Bytes>,
}

/// The space that a volume lies in, by who uses it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharingAnswer {
    /// `None` where it cannot be told of this volume; to say nothing is no answer.
    #[serde(deserialize_with = "said")]
    pub sharing: Option<SharedSpace>,
}

/// A [`Sharing`], in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedSpace {
    /// What snapshots or other volumes use too.
    pub shared: Bytes,
    /// What nobody else uses.
    pub alone: Bytes,
    /// What each of its snapshots uses alone, by its name.
    #[serde(default)]
    pub snapshots: BTreeMap<SnapshotName, Bytes>,
}

impl From<SharedSpace> for Sharing {
    fn from(space: SharedSpace) -> Sharing {
        Sharing {
            shared: space.shared,
            alone: space.alone,
            snapshots: space.snapshots,
        }
    }
}

impl From<Sharing> for SharedSpace {
    fn from(sharing: Sharing) -> SharedSpace {
        SharedSpace {
            shared: sharing.shared,
            alone: sharing.alone,
            snapshots: sharing.snapshots,
        }
    }
}

/// That it was done: `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Done {}

/// That it was not done. The driver ends with status 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorAnswer {
    /// Why.
    pub error: ErrorBody,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorBody {
    /// What it means.
    pub code: ErrorCode,
    /// What happened to which object, for people.
    pub message: String,
}

/// What an error means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The volume to be made is there, or what is left of one.
    AlreadyThere,
    /// The volume, or the one to be cloned, is not there.
    NoSuchVolume,
    /// The snapshot is not there.
    NoSuchSnapshot,
    /// The snapshot to be taken is there.
    SnapshotThere,
    /// There is no space left.
    Full,
    /// The place can only be read.
    ReadOnly,
    /// No volume of this pool can have that size.
    BadSize,
    /// The size is more than the place can hold in one piece.
    TooLarge,
    /// The driver does not know the operation.
    Unsupported,
    /// The driver cannot work in such a place.
    Unsuited,
    /// The pool cannot be reached now.
    Unavailable,
    /// What is there is not what the operation can work on.
    Damaged,
    /// Anything else.
    Failed,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [ErrorCode; 13] = [
        ErrorCode::AlreadyThere,
        ErrorCode::NoSuchVolume,
        ErrorCode::NoSuchSnapshot,
        ErrorCode::SnapshotThere,
        ErrorCode::Full,
        ErrorCode::ReadOnly,
        ErrorCode::BadSize,
        ErrorCode::TooLarge,
        ErrorCode::Unsupported,
        ErrorCode::Unsuited,
        ErrorCode::Unavailable,
        ErrorCode::Damaged,
        ErrorCode::Failed,
    ];

    /// Its word in the protocol.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            ErrorCode::AlreadyThere => "already-there",
            ErrorCode::NoSuchVolume => "no-such-volume",
            ErrorCode::NoSuchSnapshot => "no-such-snapshot",
            ErrorCode::SnapshotThere => "snapshot-there",
            ErrorCode::Full => "full",
            ErrorCode::ReadOnly => "read-only",
            ErrorCode::BadSize => "bad-size",
            ErrorCode::TooLarge => "too-large",
            ErrorCode::Unsupported => "unsupported",
            ErrorCode::Unsuited => "unsuited",
            ErrorCode::Unavailable => "unavailable",
            ErrorCode::Damaged => "damaged",
            ErrorCode::Failed => "failed",
        }
    }
}

/// Reads a field that may be `null` but must be there.
fn said<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(from)
}
