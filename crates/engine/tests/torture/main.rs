//! Random sequences of all that changes a volume, through the engine, on every driver, compared with
//! the same done in memory.
//!
//! `make torture` runs 20,000 operations a driver. `SISTEMO_TORTURE_OPERATIONS` is how many there are,
//! `SISTEMO_TORTURE_SEED` which; a failure tells both, and the shortest history that it could find.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod ground;
mod trial;
mod world;

use ground::{Ground, Spot};
use sistemo_testkit::LoopKind::{Btrfs, Ext4, Xfs};
use trial::{torture, trial};
use world::{Act, Fault};

/// How many operations find a fault for certain.
const SOON: usize = 400;

#[test]
fn file_on_ext4() {
    torture(&[Spot::new("file", Ext4), Spot::new("qcow2", Ext4)]);
}

#[test]
fn file_on_xfs() {
    torture(&[Spot::new("file", Xfs), Spot::new("btrfs", Btrfs)]);
}

#[test]
fn file_reflink_on_xfs() {
    torture(&[Spot::new("file-reflink", Xfs), Spot::new("file", Ext4)]);
}

#[test]
fn btrfs_on_btrfs() {
    torture(&[Spot::new("btrfs", Btrfs), Spot::new("qcow2", Ext4)]);
}

#[test]
fn qcow2_on_ext4() {
    torture(&[Spot::new("qcow2", Ext4), Spot::new("file-reflink", Xfs)]);
}

#[test]
fn an_external_driver_in_rust() {
    torture(&[Spot::new("wrapped-file", Ext4), Spot::new("qcow2", Ext4)]);
}

#[test]
fn an_external_driver_in_python() {
    torture(&[Spot::new("pybtrfs", Btrfs), Spot::new("file", Xfs)]);
}

/// Expects that a fault is found, and with few acts.
fn finds(fault: Fault, words: &str, belongs_to_it: fn(&Act) -> bool) {
    let spots = [Spot::new("file", Ext4), Spot::new("qcow2", Ext4)];
    let Some(ground) = Ground::new(&spots) else {
        return;
    };
    let failure = trial(&ground, fault, 1, SOON).unwrap_err();
    assert!(failure.wrong.contains(words), "{failure}");
    assert!(failure.shortest.len() < 12, "{failure}");
    assert!(failure.shortest.iter().any(belongs_to_it), "{failure}");
    assert!(trial(&ground, Fault::None, 1, 40).is_ok());
}

#[test]
fn a_snapshot_that_shares_later_writes_is_found() {
    finds(Fault::SnapshotSharesWrites, "of snapshot", Act::is_write);
}

#[test]
fn a_move_that_loses_a_byte_is_found() {
    finds(Fault::MoveLosesAByte, "byte ", Act::is_move);
}
