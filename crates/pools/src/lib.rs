//! Where volumes live: the driver contract and the built-in drivers.
//!
//! A *pool* is a named place that holds volumes, run by a *driver*. This crate knows volumes and
//! the files they are made of; it knows no machine, no catalogue and no rule about who may do
//! what. The caller has the lock of a volume before it changes that volume.
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | which pools there are: `storage.conf` |
//! | [`registry`] | which drivers there are |
//! | [`contract`] | what every driver promises, and what it does not |
//! | [`content`] | a volume's bytes, however they are reached |
//! | [`description`] | what stands beside every volume, so that a lost catalogue can be rebuilt |
//! | `examination` | reading all that a volume and its snapshots hold |
//! | `record` | JSON documents with a version, as pools keep them on disk |
//! | `place` | what pools that are a directory have in common |
//! | `loop_backed` | pools that have a filesystem of their own, in one sparse file |
//! | [`marker`] | how a pool is recognised |
//! | [`external`] | drivers that are programs of their own, and their protocol |
//! | [`btrfs`] | the `btrfs` driver: a subvolume a volume |
//! | [`mod@file`] | the `file` and `file-reflink` drivers: a directory of sparse files |
//! | [`qcow2`] | the `qcow2` driver: overlays that freeze what they lie over |

pub mod btrfs;
pub mod config;
pub mod content;
pub mod contract;
pub mod description;
mod error;
mod examination;
pub mod external;
pub mod file;
mod loop_backed;
pub mod marker;
mod place;
pub mod qcow2;
mod record;
pub mod registry;

pub use btrfs::BtrfsPool;
pub use config::{
    ConfError, ConfiguredPool, Fault, Keeping, PoolConfig, Problem, StorageConf, Surroundings,
};
pub use content::Content;
pub use contract::{
    Clones, Cost, Draft, Facts, Flaw, Format, Found, LiveCopies, LiveDisk, LiveDiskError,
    LiveSwitches, Location, Origin, OwnFilesystem, Pool, PreparedSnapshot, Progress, Sharing,
    Snapshot, SnapshotDraft, Snapshots, Usage, Way,
};
pub use description::Description;
pub use error::PoolError;
pub use external::{DriverFault, ExternalDriver, ExternalPool};
pub use file::{FilePool, SetupCheck};
pub use marker::FirstUse;
pub use qcow2::Qcow2Pool;
pub use registry::{Driver, DriverInfo, DriverOption, Power, Registry};
