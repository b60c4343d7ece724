//! Disks that are copied as they were at one instant, while their guest goes on writing.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use sistemo_model::{Access, Bytes, PauseCause};
use sistemo_testkit::{Action, LoopFilesystem, LoopKind, Requirement, met};
use sistemo_vmm::{CopyProgress, DiskCopy, Qemu, RunStatus, Vmm, VmmError};

use crate::rig::{LIMIT, QEMU, Rig};

const SIZE: Bytes = Bytes::from_mib(64);
/// A copy of so much takes a while, even if there is nothing to copy.
const LARGE: Bytes = Bytes::from_mib(200 << 10);
const BLOCK: usize = 4096;
/// Writes number n into block n of the first disk and then of the second, each flushed, and tells.
const WRITER: &str = "n=0; while [ $n -lt 3000 ]; do n=$((n+1)); for d in vda vdb; do \
     yes block$n. | head -c 4096 | dd of=/dev/$d bs=4096 seek=$n conv=notrunc,fsync 2>/dev/null; \
     done; echo wrote $n.; done &";
/// Overwrites the first 16 MiB of the first disk, again and again.
const OVERWRITER: &str = "n=0; while :; do n=$((n+1)); yes over$n. | head -c 16777216 | \
     dd of=/dev/vda bs=65536 conv=notrunc,fsync 2>/dev/null; echo over $n.; done &";

fn can_run() -> bool {
    met(&[Requirement::TinyGuest, QEMU])
}

/// A machine of two disks, and files that are to get copies of them.
fn rig_of_two(size: Bytes, actions: &[Action]) -> (Rig, Vec<DiskCopy>) {
    let mut rig = Rig::doing(actions);
    let home = rig.home.path().to_owned();
    let mut copies = Vec::new();
    for (position, name) in [(0, "one"), (1, "two")] {
        rig.disk(&home.join(name), size, name, Access::ReadWrite);
        copies.push(copy(position, size, home.join(format!("{name}, copy"))));
    }
    (rig, copies)
}

fn copy(position: u8, size: Bytes, target: PathBuf) -> DiskCopy {
    File::create(&target).unwrap().set_len(size.get()).unwrap();
    DiskCopy { position, target }
}

/// Looks at copies as somebody who is not connected all the time, until they are complete.
fn follow(rig: &Rig, positions: &[u8]) -> Result<CopyProgress, VmmError> {
    let started = Instant::now();
    loop {
        let progress = Qemu::new().connect(&rig.runtime)?.copies(positions)?;
        if progress.complete {
            return Ok(progress);
        }
        assert!(started.elapsed() < LIMIT, "{progress:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The highest block that a disk holds, all before it being there too.
fn last_block(path: &Path) -> usize {
    let content = fs::read(path).unwrap();
    let holds = |number: &usize| {
        let text = format!("block{number}.\n");
        content[number * BLOCK..(number + 1) * BLOCK].starts_with(text.as_bytes())
    };
    let last = (1..3000).take_while(holds).last().unwrap_or(0);
    let stray = (last + 1..3000).find(holds);
    assert_eq!(stray, None, "block {last} is the last in sequence");
    last
}

fn written(rig: &Rig) -> usize {
    let console = rig.console();
    let numbers = (1..).take_while(|number| console.contains(&format!("wrote {number}.")));
    numbers.last().unwrap_or(0)
}

fn allocated(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

#[test]
fn copies_are_of_one_instant_whatever_the_guest_writes() {
    if !can_run() {
        return;
    }
    let (mut rig, copies) = rig_of_two(SIZE, &[Action::Shell(WRITER)]);
    // Much to copy behind what is written, so that the copy lasts.
    let noise: Vec<u8> = (0..8 << 20).map(|at: u32| (at % 251) as u8 + 1).collect();
    for name in ["one", "two"] {
        let disk = File::options()
            .write(true)
            .open(rig.home.path().join(name))
            .unwrap();
        disk.write_all_at(&noise, 32 << 20).unwrap();
    }
    rig.start();
    rig.wait_for("wrote 5.");
    rig.connect().prepare_copies(&copies).unwrap();
    let before = written(&rig);
    rig.connect().start_copies(&[0, 1]).unwrap();
    let after = written(&rig) + 1;
    let complete = follow(&rig, &[0, 1]).unwrap();
    assert_eq!(complete.done, 2 * SIZE.get());
    // What is kept of jobs that have ended is in nobody's way.
    let now = rig.connect().disk_file(0).unwrap();
    assert_eq!(now, rig.home.path().join("one"));
    rig.wait_for(&format!("wrote {}.", after + 5));
    rig.connect().end_copies(&[0, 1]).unwrap();
    let [one, two] = [&copies[0].target, &copies[1].target].map(|path| last_block(path));
    assert!(
        before <= one && one <= after,
        "{before} <= {one} <= {after}"
    );
    // Each block comes to the first disk first.
    assert!(two == one || two + 1 == one, "{one} and {two}");
    for copy in &copies {
        let content = fs::read(&copy.target).unwrap();
        assert_eq!(content.len() as u64, SIZE.get());
        assert!(content[32 << 20..40 << 20] == noise[..]);
        let allocated = allocated(&copy.target);
        assert!(
            allocated < 12 << 20,
            "holes stay: {allocated} bytes are used"
        );
    }
    let left = fs::read_dir(&rig.runtime).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        !left
            .iter()
            .any(|name| name.to_string_lossy().contains("copy")),
        "{left:?}"
    );
    // Once more, as nothing is left of it.
    let target = copy(0, SIZE, rig.home.path().join("again"));
    rig.connect()
        .prepare_copies(std::slice::from_ref(&target))
        .unwrap();
    rig.connect().start_copies(&[0]).unwrap();
    follow(&rig, &[0]).unwrap();
    rig.connect().end_copies(&[0]).unwrap();
    assert!(last_block(&target.target) > one);
}

#[test]
fn copies_of_a_client_that_was_killed_go_on_until_they_are_ended() {
    if !can_run() {
        return;
    }
    let (mut rig, copies) = rig_of_two(LARGE, &[Action::Shell(WRITER)]);
    rig.start();
    rig.wait_for("wrote 2.");
    // Killed after it has prepared, and after it has started.
    rig.connect().prepare_copies(&copies).unwrap();
    rig.connect().prepare_copies(&copies[..1]).unwrap();
    let mut control = rig.connect();
    control.start_copies(&[0, 1]).unwrap();
    let error = control.disk_file(0).unwrap_err();
    assert_eq!(error.to_string(), "the disk in place 0 is being copied");
    drop(control);
    let mut control = rig.connect();
    control.pause().unwrap();
    control.end_copies(&[0, 1]).unwrap();
    control.end_copies(&[0, 1]).unwrap();
    let error = control.copies(&[0]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot copy the disk in place 0: it is not under way"
    );
    assert_eq!(control.disk_file(0).unwrap(), rig.home.path().join("one"));
    control.resume().unwrap();
    let more = written(&rig) + 5;
    rig.wait_for(&format!("wrote {more}."));
    for copy in copies {
        fs::remove_file(copy.target).unwrap();
    }
    control.quit().unwrap();
    rig.wait_gone();
}

#[test]
fn a_machine_can_be_ended_while_its_disks_are_copied() {
    if !can_run() {
        return;
    }
    let (mut rig, copies) = rig_of_two(LARGE, &[Action::Shell(WRITER)]);
    rig.start();
    rig.wait_for("wrote 2.");
    let mut control = rig.connect();
    control.prepare_copies(&copies).unwrap();
    control.start_copies(&[0, 1]).unwrap();
    drop(control);
    rig.connect().quit().unwrap();
    rig.wait_gone();
    let error = follow(&rig, &[0, 1]).unwrap_err();
    assert!(error.is_gone(), "{error}");
}

#[test]
fn a_target_without_room_fails_the_copy_and_not_the_guest() {
    let needed = [Requirement::Root, Requirement::Program("mkfs.ext4")];
    if !can_run() || !met(&needed) {
        return;
    }
    let small = LoopFilesystem::new(LoopKind::Ext4, Bytes::from_mib(16));
    let mut rig = Rig::doing(&[Action::Shell(OVERWRITER)]);
    let disk = rig.home.path().join("one");
    rig.disk(&disk, SIZE, "one", Access::ReadWrite);
    let data: Vec<u8> = (0..48 << 20).map(|at: u32| (at % 251) as u8 + 1).collect();
    let file = File::options().write(true).open(&disk).unwrap();
    file.write_all_at(&data, 0).unwrap();
    rig.start();
    rig.wait_for("over 1.");
    let copies = [copy(0, SIZE, small.path().join("copy"))];
    let mut control = rig.connect();
    control.prepare_copies(&copies).unwrap();
    control.start_copies(&[0]).unwrap();
    drop(control);
    let error = follow(&rig, &[0]).unwrap_err();
    let text = "cannot copy the disk in place 0: No space left on device";
    assert_eq!(error.to_string(), text);
    let mut control = rig.connect();
    control.end_copies(&[0]).unwrap();
    // The guest was about to overwrite what could not be copied.
    match control.status().unwrap() {
        RunStatus::Running => {}
        RunStatus::Paused(PauseCause::DiskFull) => control.resume().unwrap(),
        other => panic!("{other:?}"),
    }
    let console = rig.console();
    let rounds = (1..).take_while(|n| console.contains(&format!("over {n}.")));
    let more = rounds.last().unwrap() + 2;
    rig.wait_for(&format!("over {more}."));
    assert!(!rig.console().contains("error"), "{}", rig.console());
}

#[test]
fn what_cannot_be_a_target_is_refused_and_leaves_nothing_open() {
    if !can_run() {
        return;
    }
    let (mut rig, mut copies) = rig_of_two(LARGE, &[Action::Shell(WRITER)]);
    rig.start();
    rig.wait_for("wrote 1.");
    let mut control = rig.connect();
    copies[1].target = "/no/such/file".into();
    let error = control.prepare_copies(&copies).unwrap_err();
    assert!(error.to_string().contains("/no/such/file"), "{error}");
    copies[1] = DiskCopy {
        position: 7,
        target: copies[0].target.clone(),
    };
    let error = control.prepare_copies(&copies).unwrap_err();
    assert_eq!(error.to_string(), "there is no disk in place 7");
    let error = control.start_copies(&[0]).unwrap_err();
    assert!(matches!(error, VmmError::Refused { .. }), "{error}");
    // Whatever was opened is free again.
    control.prepare_copies(&copies[..1]).unwrap();
    control.end_copies(&[0]).unwrap();
}
