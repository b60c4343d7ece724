//! Disks that are qcow2 files over one another, and block devices.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use sistemo_host::process::Ending;
use sistemo_host::program::Program;
use sistemo_model::{Access, Bytes, PauseCause};
use sistemo_testkit::{Action, LoopFilesystem, LoopKind, Requirement, met};
use sistemo_vmm::{BootSource, DiskLocation, RunStatus, VmmError, VmmEvent};

use crate::rig::{QEMU, Rig, boot_sector, next};

const SIZE: Bytes = Bytes::from_mib(16);
const BLOCK: usize = 4096;
/// Writes block 1, block 2, … of a disk, each with its own number, flushes it, and says so.
const WRITER: &str = "n=0; while [ $n -lt 3000 ]; do n=$((n+1)); \
     yes block$n | head -c 4096 | dd of=/dev/vda bs=4096 seek=$n conv=notrunc,fsync 2>/dev/null; \
     echo wrote $n.; done &";

/// Not [`Action::WaitUntilGrown`]: what it waits for may be there before it looks.
const WAIT_FOR_32_MIB: Action =
    Action::Shell("while [ $(cat /sys/block/vda/size) -lt 65536 ]; do sleep 0.1; done");

fn can_run() -> bool {
    met(&[
        Requirement::TinyGuest,
        QEMU,
        Requirement::Program("qemu-img"),
    ])
}

fn qemu_img(arguments: &[&str], files: &[&Path]) {
    let program = Program::find("qemu-img").unwrap().args(arguments);
    program.args(files).run().unwrap();
}

pub(crate) fn create(path: &Path, size: Bytes) {
    let size = size.get().to_string();
    let program = Program::find("qemu-img").unwrap();
    let program = program.args(["create", "-q", "-f", "qcow2"]);
    program.arg(path).arg(size).run().unwrap();
}

/// An empty file over another, made without a look at that one, which may be in use.
pub(crate) fn create_over(path: &Path, lower: &Path, size: Bytes) {
    let size = size.get().to_string();
    let program = Program::find("qemu-img").unwrap();
    let program = program.args(["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b"]);
    program.arg(lower).arg(path).arg(size).run().unwrap();
}

/// The bytes of a disk that is a qcow2 file, whole.
pub(crate) fn content(path: &Path) -> Vec<u8> {
    qemu_img(&["check", "-q"], &[path]);
    let raw = path.with_extension("raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw"], &[path, &raw]);
    fs::read(raw).unwrap()
}

fn holds_block(content: &[u8], number: usize) -> bool {
    let text = format!("block{number}\n");
    content[number * BLOCK..(number + 1) * BLOCK].starts_with(text.as_bytes())
}

/// The highest block that the guest has said to be written.
fn written(rig: &Rig) -> usize {
    let numbers = (1..).take_while(|number| rig.console().contains(&format!("wrote {number}.")));
    numbers.last().unwrap_or(0)
}

fn wait_for_more(rig: &Rig) -> usize {
    let more = written(rig) + 5;
    rig.wait_for(&format!("wrote {more}."));
    more
}

/// A machine whose first disk is `layer0`, which its guest writes to for ever.
fn writing_rig(actions: &[Action]) -> (Rig, PathBuf) {
    let mut all = vec![Action::Shell(WRITER)];
    all.extend_from_slice(actions);
    let mut rig = Rig::doing(&all);
    let home = rig.home.path().to_owned();
    // Beside every other character that options or JSON could trip over.
    let directory = home.join("a, \"b\" = json:{ä}");
    fs::create_dir(&directory).unwrap();
    let first = directory.join("layer0");
    create(&first, SIZE);
    let location = DiskLocation::Qcow2File(first);
    rig.attach(location, "data", Access::ReadWrite);
    (rig, directory)
}

#[test]
fn a_switch_leaves_all_that_was_flushed_in_the_old_file_and_nothing_later() {
    if !can_run() {
        return;
    }
    let (mut rig, directory) = writing_rig(&[]);
    let (lower, upper) = (directory.join("layer0"), directory.join("layer1"));
    create_over(&upper, &lower, SIZE);
    rig.start();
    let before = wait_for_more(&rig);
    rig.connect().switch_disk(0, &upper).unwrap();
    let _ = wait_for_more(&rig);
    let after = wait_for_more(&rig);
    rig.connect().quit().unwrap();
    rig.wait_gone();
    let (old, new) = (content(&lower), content(&upper));
    assert!((1..=before).all(|number| holds_block(&old, number)));
    assert!(!holds_block(&old, after));
    assert!((1..=after).all(|number| holds_block(&new, number)));
}

#[test]
fn a_disk_can_be_switched_many_times_and_still_grow() {
    if !can_run() {
        return;
    }
    let (mut rig, directory) = writing_rig(&[WAIT_FOR_32_MIB, Action::Disks]);
    rig.start();
    let mut control = rig.connect();
    for number in 1..=10 {
        let lower = directory.join(format!("layer{}", number - 1));
        let upper = directory.join(format!("layer{number}"));
        create_over(&upper, &lower, SIZE);
        control.switch_disk(0, &upper).unwrap();
        let _ = wait_for_more(&rig);
    }
    let larger = Bytes::from_mib(32);
    control.grow_disk(0, larger).unwrap();
    rig.wait_for(&format!("disk vda size={} ", larger.get()));
    let error = control.grow_disk(0, SIZE).unwrap_err();
    assert!(matches!(error, VmmError::Shrink { .. }), "{error}");
    let last = wait_for_more(&rig);
    control.quit().unwrap();
    rig.wait_gone();
    let all = content(&directory.join("layer10"));
    assert_eq!(all.len() as u64, larger.get());
    assert!((1..=last).all(|number| holds_block(&all, number)));
    for number in 0..10 {
        let layer = content(&directory.join(format!("layer{number}")));
        assert_eq!(layer.len() as u64, SIZE.get());
        assert!(!holds_block(&layer, last));
    }
}

#[test]
fn a_paused_machine_can_be_switched_and_stays_paused() {
    if !can_run() {
        return;
    }
    let (mut rig, directory) = writing_rig(&[]);
    let (lower, upper) = (directory.join("layer0"), directory.join("layer1"));
    create_over(&upper, &lower, SIZE);
    rig.start();
    let before = wait_for_more(&rig);
    let mut control = rig.connect();
    control.pause().unwrap();
    control.switch_disk(0, &upper).unwrap();
    let paused = RunStatus::Paused(PauseCause::Requested);
    assert_eq!(control.status().unwrap(), paused);
    control.resume().unwrap();
    let after = wait_for_more(&rig);
    control.quit().unwrap();
    rig.wait_gone();
    assert!(holds_block(&content(&lower), before));
    assert!((1..=after).all(|number| holds_block(&content(&upper), number)));
}

#[test]
fn a_file_that_cannot_take_a_disks_place_is_refused_and_the_guest_goes_on() {
    if !can_run() {
        return;
    }
    let (mut rig, directory) = writing_rig(&[]);
    let raw = rig.home.path().join("raw");
    rig.disk(&raw, SIZE, "raw", Access::ReadWrite);
    let (lower, upper) = (directory.join("layer0"), directory.join("layer1"));
    rig.start();
    let mut control = rig.connect();
    let mut refused = |position, reason: &str| {
        let error = control.switch_disk(position, &upper).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(reason), "{text}");
        let _ = wait_for_more(&rig);
    };
    refused(0, "No such file");
    assert!(!upper.exists());
    create_over(&upper, &lower, Bytes::from_mib(8));
    refused(0, "it has 8388608 bytes instead of 16777216");
    create_over(&upper, &raw, SIZE);
    refused(0, "raw instead of ");
    create(&upper, SIZE);
    refused(0, "it has no backing file");
    create_over(&upper, &lower, SIZE);
    refused(1, "the disk in place 1 is not a qcow2 file");
    refused(2, "there is no disk in place 2");
    let error = control.flatten_disk(1, &mut |_, _| {}).unwrap_err();
    assert!(
        matches!(error, VmmError::NotQcow2 { position: 1 }),
        "{error}"
    );
    // None of those was kept open.
    control.switch_disk(0, &upper).unwrap();
    let last = wait_for_more(&rig);
    control.quit().unwrap();
    rig.wait_gone();
    assert!((1..=last).all(|number| holds_block(&content(&upper), number)));
}

#[test]
fn a_switch_whose_client_was_killed_half_way_is_no_obstacle_to_the_next() {
    if !can_run() {
        return;
    }
    let (mut rig, directory) = writing_rig(&[]);
    let (lower, upper) = (directory.join("layer0"), directory.join("layer1"));
    create_over(&upper, &lower, SIZE);
    rig.start();
    // As far as a client came that was killed: QEMU has the file open, and the guest has not.
    let near = rig.home.path().join("near");
    std::os::unix::fs::symlink(&rig.runtime, &near).unwrap();
    let mut client = UnixStream::connect(near.join("control.sock")).unwrap();
    let mut answers = BufReader::new(client.try_clone().unwrap()).lines();
    let mut say = |text: String| {
        writeln!(client, "{text}").unwrap();
        let mut answers = answers.by_ref().map(Result::unwrap);
        let answer = answers.find(|line| line.contains("return") || line.contains("error"));
        assert!(answer.as_ref().unwrap().contains("return"), "{answer:?}");
    };
    say(r#"{"execute":"qmp_capabilities"}"#.to_owned());
    let node = serde_json::json!({
        "driver": "qcow2", "node-name": "disk0-1", "backing": null, "discard": "unmap",
        "file": {
            "driver": "file", "node-name": "disk0-1-file", "filename": upper, "discard": "unmap",
        },
    });
    say(serde_json::json!({ "execute": "blockdev-add", "arguments": node }).to_string());
    drop(answers);
    drop(client);
    let before = wait_for_more(&rig);
    let mut control = rig.connect();
    control.switch_disk(0, &upper).unwrap();
    assert_eq!(control.disk_file(0).unwrap(), upper);
    let after = wait_for_more(&rig);
    control.quit().unwrap();
    rig.wait_gone();
    assert!(holds_block(&content(&lower), before));
    assert!((1..=after).all(|number| holds_block(&content(&upper), number)));
}

#[test]
fn a_flattened_disk_needs_its_lower_files_no_more() {
    if !can_run() {
        return;
    }
    let (mut rig, directory) = writing_rig(&[]);
    let layer = |number| directory.join(format!("layer{number}"));
    // One file lies below what the machine starts with, and two come above.
    create_over(&layer(1), &layer(0), SIZE);
    rig.spec.disks[0].location = DiskLocation::Qcow2File(layer(1));
    rig.start();
    let mut control = rig.connect();
    for number in 2..=3 {
        create_over(&layer(number), &layer(number - 1), SIZE);
        control.switch_disk(0, &layer(number)).unwrap();
        let _ = wait_for_more(&rig);
    }
    let mut told = Vec::new();
    control
        .flatten_disk(0, &mut |done, total| told.push((done, total)))
        .unwrap();
    assert_eq!(told.last(), Some(&(SIZE.get(), SIZE.get())));
    // There is nothing left to do, and to do it again is no error.
    control.flatten_disk(0, &mut |_, _| {}).unwrap();
    for number in 0..=2 {
        // Nobody has the file open: its lock is free.
        qemu_img(&["info", "-f", "qcow2"], &[&layer(number)]);
        fs::remove_file(layer(number)).unwrap();
    }
    // The next number is taken also after the others are gone.
    create_over(&layer(4), &layer(3), SIZE);
    control.switch_disk(0, &layer(4)).unwrap();
    let _ = wait_for_more(&rig);
    control.flatten_disk(0, &mut |_, _| {}).unwrap();
    fs::remove_file(layer(3)).unwrap();
    let last = wait_for_more(&rig);
    control.quit().unwrap();
    rig.wait_gone();
    drop(control);
    let flat = content(&layer(4));
    assert!((1..=last).all(|number| holds_block(&flat, number)));

    rig.spec.disks[0].location = DiskLocation::Qcow2File(layer(4));
    rig.start();
    assert_eq!(rig.connect().status().unwrap(), RunStatus::Running);
}

#[test]
fn a_disk_is_whole_in_its_top_file_once_it_is_flattened_whatever_ends_the_vmm() {
    if !can_run() {
        return;
    }
    let (mut rig, directory) = writing_rig(&[]);
    let (lower, upper) = (directory.join("layer0"), directory.join("layer1"));
    let ones = directory.join("ones");
    let file = File::create(&ones).unwrap();
    file.write_all_at(&vec![1; 4 << 20], 12 << 20).unwrap();
    let convert = ["convert", "-f", "raw", "-O", "qcow2"];
    qemu_img(&convert, &[&ones, &lower]);
    create_over(&upper, &lower, SIZE);
    rig.spec.disks[0].location = DiskLocation::Qcow2File(upper.clone());
    let process = rig.start();
    let last = wait_for_more(&rig);
    let mut control = rig.connect();
    // A guest that runs would flush what the VMM itself should have.
    control.pause().unwrap();
    control.flatten_disk(0, &mut |_, _| {}).unwrap();
    process.end(Ending::Kill).unwrap();
    rig.wait_gone();
    fs::remove_file(&lower).unwrap();
    // Clusters that nothing refers to are the most that is wrong with it.
    let raw = directory.join("out");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw"], &[&upper, &raw]);
    let flat = fs::read(raw).unwrap();
    assert!((1..=last).all(|number| holds_block(&flat, number)));
    assert!(flat[12 << 20..].iter().all(|byte| *byte == 1));
}

#[test]
fn a_flattening_whose_client_is_gone_is_joined() {
    if !can_run() {
        return;
    }
    let (mut rig, directory) = writing_rig(&[]);
    let (lower, upper) = (directory.join("layer0"), directory.join("layer1"));
    create_over(&upper, &lower, SIZE);
    rig.start();
    let before = wait_for_more(&rig);
    rig.connect().switch_disk(0, &upper).unwrap();
    let died = catch_unwind(AssertUnwindSafe(|| {
        let mut control = rig.connect();
        control
            .flatten_disk(0, &mut |_, _| panic!("killed"))
            .unwrap();
    }));
    assert!(died.is_err());
    let mut control = rig.connect();
    let error = control.switch_disk(0, &upper).unwrap_err();
    assert!(
        matches!(error, VmmError::Flattening { position: 0 }),
        "{error}"
    );
    control.flatten_disk(0, &mut |_, _| {}).unwrap();
    control.quit().unwrap();
    rig.wait_gone();
    fs::remove_file(&lower).unwrap();
    assert!((1..=before).all(|number| holds_block(&content(&upper), number)));
}

#[test]
fn flattening_into_a_full_filesystem_fails_and_the_guest_goes_on() {
    if !can_run() || !met(&[Requirement::Root]) {
        return;
    }
    let small = LoopFilesystem::new(LoopKind::Tmpfs, Bytes::from_mib(4));
    let (mut rig, directory) = writing_rig(&[]);
    let (lower, upper) = (directory.join("layer0"), small.path().join("layer1"));
    let ones = directory.join("ones");
    File::create(&ones)
        .unwrap()
        .write_all_at(&vec![1; 12 << 20], 4 << 20)
        .unwrap();
    let convert = ["convert", "-f", "raw", "-O", "qcow2"];
    qemu_img(&convert, &[&ones, &lower]);
    create_over(&upper, &lower, SIZE);
    rig.start();
    let _ = wait_for_more(&rig);
    let mut control = rig.connect();
    control.switch_disk(0, &upper).unwrap();
    let error = control.flatten_disk(0, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("No space left"), "{error}");
    assert_eq!(control.status().unwrap(), RunStatus::Running);
    let error = control.flatten_disk(0, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("No space left"), "{error}");
    // What the guest wrote is there, and what lies beneath shines through.
    control.quit().unwrap();
    rig.wait_gone();
    let raw = directory.join("out");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw"], &[&upper, &raw]);
    let all = fs::read(raw).unwrap();
    assert!((1..=5).all(|number| holds_block(&all, number)));
    assert!(all[4 << 20..].iter().all(|byte| *byte == 1));
}

#[test]
fn firmware_boots_a_qcow2_disk_and_a_read_only_one_can_be_switched() {
    if !can_run() {
        return;
    }
    let mut rig = Rig::new(BootSource::Firmware {
        credentials: Vec::new(),
    });
    let home = rig.home.path().to_owned();
    let (raw, root) = (home.join("raw"), home.join("root"));
    let file = File::create(&raw).unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(&boot_sector(), 0).unwrap();
    let convert = ["convert", "-f", "raw", "-O", "qcow2"];
    qemu_img(&convert, &[&raw, &root]);
    let location = DiskLocation::Qcow2File(root.clone());
    rig.attach(location, "root", Access::ReadOnly);
    rig.start();
    rig.wait_for("it boots");
    let over = home.join("over");
    create_over(&over, &root, Bytes::from_mib(1));
    rig.connect().switch_disk(0, &over).unwrap();
}

#[test]
fn a_full_disk_of_many_files_is_told_by_its_place() {
    if !can_run() || !met(&[Requirement::Root]) {
        return;
    }
    let small = LoopFilesystem::new(LoopKind::Tmpfs, Bytes::from_mib(2));
    let up = Action::Shell("echo up");
    let mut rig = Rig::doing(&[up.clone(), WAIT_FOR_32_MIB, Action::Fill("vdb")]);
    let home = rig.home.path().to_owned();
    rig.disk(&home.join("root"), SIZE, "root", Access::ReadWrite);
    let layer = |number| home.join(format!("layer{number}"));
    create(&layer(0), SIZE);
    // Deeper than a reader of JSON need follow.
    for number in 1..150 {
        create_over(&layer(number), &layer(number - 1), SIZE);
    }
    let location = DiskLocation::Qcow2File(layer(149));
    rig.attach(location, "data", Access::ReadWrite);
    rig.start();
    let mut follower = rig.follow();
    rig.wait_for(&up.done());
    let top = small.path().join("top");
    create_over(&top, &layer(149), SIZE);
    let mut control = rig.connect();
    control.switch_disk(1, &top).unwrap();
    control.grow_disk(0, Bytes::from_mib(32)).unwrap();
    let VmmEvent::DiskError { position, full, .. } = next(&mut *follower) else {
        panic!("the first event is the error");
    };
    assert_eq!((position, full), (Some(1), true));
    let held = PauseCause::DiskFull;
    loop {
        match next(&mut *follower) {
            VmmEvent::DiskError { .. } => {}
            other => {
                assert_eq!(other, VmmEvent::Paused(held));
                break;
            }
        }
    }
    assert_eq!(control.status().unwrap(), RunStatus::Paused(held));
}

/// A loop device, taken back with this value.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn over(file: &Path) -> LoopDevice {
        let losetup = Program::find("losetup").unwrap();
        let made = losetup.args(["--find", "--show"]).arg(file).run().unwrap();
        LoopDevice(made.text().trim().into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let losetup = Program::find("losetup").unwrap();
        let _ = losetup.arg("--detach").arg(&self.0).run();
    }
}

#[test]
fn a_block_device_is_a_disk_that_grows_with_it() {
    if !met(&[Requirement::TinyGuest, QEMU, Requirement::Root]) {
        return;
    }
    let write = Action::Write("vda");
    let mut rig = Rig::doing(&[write.clone(), WAIT_FOR_32_MIB, Action::Disks]);
    let file = rig.home.path().join("file");
    File::create(&file).unwrap().set_len(4 << 20).unwrap();
    let device = LoopDevice::over(&file);
    let location = DiskLocation::BlockDevice(device.0.clone());
    rig.attach(location, "data", Access::ReadWrite);
    rig.start();
    rig.wait_for(&write.done());
    let mut control = rig.connect();
    let larger = Bytes::from_mib(32);
    // It is for whoever made the device to make it larger.
    let error = control.grow_disk(0, larger).unwrap_err();
    assert!(matches!(error, VmmError::Refused { .. }), "{error}");
    File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(larger.get())
        .unwrap();
    let losetup = Program::find("losetup").unwrap();
    losetup.arg("--set-capacity").arg(&device.0).run().unwrap();
    control.grow_disk(0, larger).unwrap();
    rig.wait_for(&format!("disk vda size={} ", larger.get()));
    control.quit().unwrap();
    rig.wait_gone();
    assert!(fs::read(&device.0).unwrap().starts_with(b"sistemo\n"));
}
