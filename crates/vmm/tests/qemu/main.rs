//! The contract, kept by a real QEMU with a guest that boots in three seconds.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "the whole file is a test, the functions beside the tests too"
)]

mod agents;
mod copies;
mod layers;
mod machines;
mod raw_access;
mod rig;
