//! What is particular to the `qcow2` driver: its files as QEMU sees them, the layers that clones
//! and snapshots share, and the states a kill leaves.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails, and says so"
)]

mod history;
mod killed;
mod live;
mod model;
mod qemu;
mod scene;
mod states;
