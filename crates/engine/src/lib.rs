//! Persistent block storage for virtual machines: the operations.
//!
//! [`Engine`] is the whole of it: open one on a data directory and call its methods. This crate
//! is the only place where rules live; it never prints, never asks and never reads the home
//! directory or the environment. What takes long is told to a [`Reporter`].
//!
//! | room | what is in it |
//! |---|---|
//! | [`volumes`] | create, list, resize, rename, delete |
//! | [`pools`] | list, add, change, remove |
//! | [`machines`] | deploy, start, stop, attach, delete, and the monitor of a running machine |
//! | [`images`] | build, import, list, delete |
//! | [`ssh_key`] | the key that every guest lets in |
//! | [`settings`] | what can be configured, and where each value came from |
//! | [`drivers`] | whether a driver does what every driver must |
//! | [`doctor`] | whether a deploy would work on this host |
//! | `reserve` | room kept for giving room back |
//! | `recovery` | what every start does about operations that were cut short |

pub mod doctor;
pub mod drivers;
mod engine;
mod error;
mod filesystems;
pub mod images;
pub mod machines;
pub mod pools;
mod recovery;
mod reporter;
mod reserve;
pub mod settings;
pub mod ssh_key;
pub mod volumes;

pub use engine::Engine;
pub use engine::{Caller, MonitorCommand};
pub use error::{Error, Kind, MonitorError, Result, causes};
pub use reporter::{Notice, Reporter, Silent};
pub use settings::Settings;
pub use sistemo_host::Changed;
pub use sistemo_images::ImageFormat;
pub use sistemo_model as model;
pub use sistemo_pools::{ConfError, DriverInfo};
