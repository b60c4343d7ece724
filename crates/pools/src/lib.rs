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
//! | [`marker`] | how a pool is recognised |
//! | [`mod@file`] | the `file` driver: a directory of sparse files |
//! | [`qcow2`] | the `qcow2` driver: overlays that freeze what they lie over |

pub mod config;
pub mod content;
pub mod contract;
pub mod description;
mod error;
pub mod file;
pub mod marker;
mod place;
pub mod qcow2;
mod record;
pub mod registry;

pub use config::{
    ConfError, ConfiguredPool, Fault, PoolConfig, Problem, StorageConf, Surroundings,
};
pub use content::Content;
pub use contract::{
    Clones, Cost, Draft, Facts, Flaw, Format, Found, LiveDisk, LiveDiskError, Location, Origin,
    OwnFilesystem, Pool, Progress, Snapshot, Snapshots, Usage, Way,
};
pub use description::Description;
pub use error::PoolError;
pub use file::FilePool;
pub use marker::FirstUse;
pub use qcow2::Qcow2Pool;
pub use registry::{Driver, DriverInfo, DriverOption, Power, Registry};
