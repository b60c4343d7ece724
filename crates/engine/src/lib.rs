//! Persistent block storage for virtual machines: the operations.
//!
//! [`Engine`] is the whole of it: open one on a data directory and call its methods. This crate
//! is the only place where rules live; it never prints, never asks and never reads the home
//! directory or the environment. What takes long is told to a [`Reporter`].
//!
//! | room | what is in it |
//! |---|---|
//! | [`volumes`] | create, list, resize, rename, delete |
//! | [`clones`] | a new volume that holds what another does |
//! | [`snapshots`] | keeping a volume as it is, and taking it back there |
//! | [`history`] | what is known of a volume's past, and what is kept of it |
//! | [`care`] | checking, mending and trimming a volume, and what it takes |
//! | [`moves`] | a volume goes to another pool |
//! | [`trash`] | deleted volumes that can be restored, and the room that they give back |
//! | [`exchange`] | a volume as a file of some format, and such a file as a volume |
//! | [`pools`] | list, add, change, resize, remove |
//! | [`machines`] | deploy, start, stop, attach, delete, and the monitor of a running machine |
//! | [`images`] | build, import, list, delete |
//! | [`ssh_key`] | the key that every guest lets in |
//! | [`settings`] | what can be configured, and where each value came from |
//! | [`drivers`] | whether a driver does what every driver must |
//! | [`doctor`] | whether a deploy would work on this host |
//! | `image_copies` | images that stand in pools, for root volumes to be cloned from |
//! | `holding` | the locks of a volume and of the machine that has it |
//! | `formatting` | the filesystem of a new volume |
//! | `filesystems` | making and growing filesystems, with the host's own tools |
//! | `disks` | volumes as disks: for a VMM, and as raw files for programs |
//! | `sources` | what is read of a volume: as it is now, or as it was |
//! | `copying` | bytes from one volume to another, without what holds only zeros |
//! | `revisions` | snapshots that nobody asked for, and which of them go |
//! | `reserve` | room kept for giving room back |
//! | `recovery` | what every start does about operations that were cut short |

pub mod care;
pub mod clones;
mod copying;
mod disks;
pub mod doctor;
pub mod drivers;
mod engine;
mod error;
pub mod exchange;
mod filesystems;
mod formatting;
pub mod history;
mod holding;
mod image_copies;
pub mod images;
pub mod machines;
pub mod moves;
pub mod pools;
mod recovery;
mod reporter;
mod reserve;
mod revisions;
pub mod settings;
pub mod snapshots;
mod sources;
pub mod ssh_key;
pub mod trash;
pub mod volumes;

pub use engine::Engine;
pub use engine::{Caller, MonitorCommand};
pub use error::{Error, Kind, MonitorError, Result, causes};
pub use reporter::{Notice, Reporter, Silent};
pub use settings::Settings;
pub use sistemo_host::Changed;
pub use sistemo_images::{Error as ImageError, ImageFormat};
pub use sistemo_model as model;
pub use sistemo_pools::{ConfError, Cost, DriverInfo, PoolError, Way};
