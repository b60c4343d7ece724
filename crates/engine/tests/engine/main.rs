//! The engine's operations on a real data directory, with real files, filesystems and guests.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "all of this is a test, also what is not marked as one"
)]

mod care;
mod clones;
mod exchange;
mod exchange_formats;
mod fixture;
mod history;
mod image_copies;
mod images;
mod machine_clones;
mod machine_snapshots;
mod machines;
mod moves;
mod pools;
mod recovery;
mod running;
mod snapshots;
mod stops;
mod templates;
mod trash;
mod volumes;
