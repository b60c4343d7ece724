//! The words of Sistemo: names, sizes, identifiers, volumes, machines and images.
//!
//! Everything here is plain data without I/O. A value of one of these types is valid: names and
//! sizes are parsed once, at the edge, and cannot hold what a later layer would have to refuse.

mod history;
mod id;
mod image;
mod machine;
mod name;
mod period;
mod size;
mod volume;

pub use history::{CloneOrigin, History, SnapshotKind, SnapshotMark, Trashed};
pub use id::{CatalogueId, IdError, ImageId, MachineId, Reference, VolumeId};
pub use image::{Boot, Digest, DigestError, Image, ImageSource};
pub use machine::{
    Accelerator, Attachment, Exposure, ExposureError, Lifetime, MacAddress, Machine, MachineState,
    PauseCause, StopHow, VcpuCount, VcpuError, VmmChoice, VmmKind,
};
pub use name::{ImageName, MachineName, NameError, PoolName, SnapshotName, VolumeName};
pub use period::{Period, PeriodError};
pub use size::{Bytes, SizeError};
pub use volume::{Access, Filesystem, Lifecycle, Role, UnknownWord, Volume};

/// A point in time, in UTC; written as RFC 3339.
pub type Timestamp = jiff::Timestamp;
