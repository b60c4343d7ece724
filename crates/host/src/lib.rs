//! The operating system, as Sistemo uses it.
//!
//! This crate is the only one that starts a program, makes a file durable or renames one into
//! place; a clippy list in `clippy.toml` keeps it so.
//!
//! | module | what it does |
//! |---|---|
//! | [`directory`] | files in one directory, opened without following links, published atomically |
//! | [`lifeline`] | programs that end when nobody holds on to them |
//! | [`lock`] | advisory file locks that die with their holders |
//! | [`mount`] | filesystems in files: making, mounting, growing them |
//! | [`process`] | processes known by more than a number |
//! | [`program`] | running other programs |
//! | [`socket`] | Unix sockets whose path is too long for `sun_path` |
//! | [`sparse`] | copying files without their holes |
//! | [`system`] | facts about this host |
//! | [`unpublished`] | files that appear when they are whole |

pub mod directory;
pub mod lifeline;
pub mod lock;
pub mod mount;
pub mod process;
pub mod program;
pub mod socket;
pub mod sparse;
pub mod system;
pub mod unpublished;

/// Whether an operation changed anything; a repeated one changes nothing and says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub enum Changed {
    /// Something is different now.
    Yes,
    /// It was so already.
    No,
}
