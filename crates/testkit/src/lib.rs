//! The test environment: prerequisites, tiny guests, loop-mounted filesystems.
//!
//! Only tests depend on this crate, so what goes wrong in it panics with the reason.
//!
//! | module | what it is for |
//! |---|---|
//! | [`requirement`] | what a test needs of its host, and never skipping it unseen |
//! | [`guest`] | a guest that boots in three seconds and does what it is told |
//! | [`filesystem`] | a filesystem of a chosen kind and size, gone with its value |

pub mod filesystem;
pub mod guest;
pub mod requirement;

pub use filesystem::{LoopFilesystem, LoopKind};
pub use guest::{Action, TinyGuest};
pub use requirement::{Requirement, met};
