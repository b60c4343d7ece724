//! The binary, driven as users drive it: what it prints, where, and how it ends.
//!
//! Snapshots hold standard output, standard error and the exit status together. Machines are
//! made from a file of zeros: most are never started, and those that are find nothing to boot.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on panics, in its helpers too"
)]

mod care;
mod concurrency;
mod drivers;
mod environment;
mod exchange;
mod host;
mod images;
mod machines;
mod manners;
mod pools;
mod running;
mod snapshots;
mod trash;
mod volumes;
