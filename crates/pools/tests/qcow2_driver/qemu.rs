//! QEMU and this driver read and write the same files.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sistemo_host::Changed;
use sistemo_host::program::Program;
use sistemo_host::sparse::Extent;
use sistemo_model::{Access, Bytes, VolumeId};
use sistemo_pools::{Location, Pool};
use sistemo_testkit::{LoopFilesystem, LoopKind, Requirement, met};

use crate::scene::{MIB, Scene, description, name, run, scene, scene_in, text};

fn ready() -> bool {
    met(&["qemu-img", "qemu-io"].map(Requirement::Program))
}

impl Scene {
    /// What QEMU finds in the volume is what this driver finds, and QEMU finds nothing wrong.
    fn agrees(&self, id: VolumeId) {
        self.is_sound(id);
        let top = self.top(id);
        for file in self.chain(&top) {
            let said = run("qemu-img", &["check", "-f", "qcow2", &file]);
            assert!(said.contains("No errors were found"), "{said}");
        }
        let raw = self.directory.path_of("raw");
        run(
            "qemu-img",
            &[
                "convert",
                "-f",
                "qcow2",
                "-O",
                "raw",
                text(&top),
                text(&raw),
            ],
        );
        let theirs = std::fs::read(&raw).unwrap();
        std::fs::remove_file(&raw).unwrap();
        let size = usize::try_from(self.pool.facts(id).unwrap().size.get()).unwrap();
        assert_eq!(theirs.len(), size);
        assert!(theirs == self.read(id, 0, size), "the contents differ");
        // The extents alone give all of it, too.
        let content = self.pool.content(id, Access::ReadOnly).unwrap();
        let mut seen = vec![0; size];
        for extent in content.extents().unwrap() {
            let range =
                usize::try_from(extent.offset).unwrap()..usize::try_from(extent.end()).unwrap();
            content.read_at(&mut seen[range], extent.offset).unwrap();
        }
        assert!(theirs == seen, "the extents leave something out");
    }

    /// The files of a chain, as QEMU reads their headers.
    fn chain(&self, top: &Path) -> Vec<String> {
        let info = run("qemu-img", &["info", "--backing-chain", text(top)]);
        let images = info.lines().filter_map(|line| line.strip_prefix("image: "));
        images
            .map(|image| {
                self.directory
                    .path()
                    .join(image)
                    .to_str()
                    .unwrap()
                    .to_owned()
            })
            .collect()
    }

    fn qemu_io(&self, id: VolumeId, commands: &[&str]) {
        let top = self.pool.open(id, Access::ReadWrite).unwrap();
        assert!(matches!(top, Location::Qcow2File(_)));
        let mut arguments = vec!["-f", "qcow2", "-d", "unmap"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(text(top.path()));
        let said = run("qemu-io", &arguments);
        assert!(!said.contains("rror") && !said.contains("failed"), "{said}");
    }

    fn make_hole(&self, id: VolumeId, offset: u64, length: u64) {
        let mut content = self.pool.content(id, Access::ReadWrite).unwrap();
        content.make_hole(Extent { offset, length }).unwrap();
        content.flush().unwrap();
    }
}

#[test]
fn qemu_reads_of_a_snapshot_what_this_driver_does() {
    if !ready() {
        return;
    }
    let scene = scene();
    let made = scene.create(9 * MIB);
    for (seed, text) in [(1, "one"), (2, "two")] {
        scene.write(made.id, &vec![seed; 3 << 20], u64::from(seed) * MIB + 7);
        scene.make_hole(made.id, 2 * MIB + 11, 70_000);
        scene.snapshot(made.id, text);
    }
    scene.write(made.id, &vec![9; 9 << 20], 0);
    scene.revert(made.id, "one");
    let raw = scene.directory.path_of("raw");
    for snapshot in ["one", "two"] {
        let snapshots = scene.pool.snapshots().unwrap();
        let location = snapshots.open_snapshot(made.id, &name(snapshot)).unwrap();
        let Some(Location::Qcow2File(path)) = location else {
            panic!("{location:?}");
        };
        let (from, to) = (text(&path), text(&raw));
        run(
            "qemu-img",
            &["convert", "-f", "qcow2", "-O", "raw", from, to],
        );
        let theirs = std::fs::read(&raw).unwrap();
        let ours = scene.read_snapshot(made.id, snapshot, 0, 9 << 20);
        assert!(theirs == ours, "the contents of {snapshot} differ");
    }
    scene.is_sound(made.id);
}

#[test]
fn what_this_driver_writes_is_clean_and_reads_the_same_in_qemu() {
    if !ready() {
        return;
    }
    let scene = scene();
    for size in [512, 65536, MIB + 512, 9 * MIB] {
        let made = scene.create(size);
        scene.agrees(made.id);
        scene.write(made.id, &[1; 512], size - 512);
        scene.write(made.id, &[2; 100], 0);
        scene.agrees(made.id);
        scene.make_hole(made.id, size - 512, 512);
        scene.agrees(made.id);
    }
    let made = scene.create(9 * MIB);
    scene.write(made.id, &vec![3; 3 << 20], MIB / 2 + 7);
    scene.make_hole(made.id, MIB + 11, MIB + 200_000);
    scene.agrees(made.id);
    scene.write(made.id, &vec![4; 70_000], MIB + 100_000);
    scene.agrees(made.id);
}

#[test]
fn overlays_of_this_driver_are_overlays_to_qemu() {
    if !ready() {
        return;
    }
    let scene = scene();
    let made = scene.create(4 * MIB + 512);
    scene.write(made.id, &vec![5; 4 << 20], 512);
    scene.snapshot(made.id, "one");
    scene.write(made.id, &[6; 300], MIB - 100);
    scene.make_hole(made.id, 2 * MIB - 5, MIB);
    scene.agrees(made.id);
    assert_eq!(
        scene.pool.grow(made.id, Bytes::from_mib(7)).unwrap(),
        Changed::Yes
    );
    scene.agrees(made.id);
    let clone = scene.clone_of(made.id);
    scene.write(clone.id, &vec![7; 65536], 6 * MIB);
    scene.agrees(clone.id);
    scene.agrees(made.id);
    scene.revert(made.id, "one");
    scene.agrees(made.id);
}

#[test]
fn what_qemu_writes_is_read_and_written_on() {
    if !ready() {
        return;
    }
    let scene = scene();
    let made = scene.create(16 * MIB);
    scene.write(made.id, &vec![1; 2 << 20], 0);
    scene.qemu_io(
        made.id,
        &[
            "write -P 2 1M 3M",
            "write -P 3 9M 4k",
            "write -z 64k 128k",
            "discard 512k 512k",
        ],
    );
    scene.agrees(made.id);
    scene.write(made.id, &[4; 1000], 100_000);
    scene.write(made.id, &vec![5; 70_000], 600_000);
    scene.agrees(made.id);
    scene.snapshot(made.id, "one");
    // Zero clusters over data, with and without a cluster that is kept for them.
    scene.qemu_io(
        made.id,
        &[
            "write -P 6 2M 128k",
            "write -z 2M 64k",
            "write -zu 1M 256k",
            "discard 3M 64k",
            "write -P 7 15M 1M",
        ],
    );
    scene.agrees(made.id);
    scene.write(made.id, &[8; 512], 2 * MIB + 1024);
    scene.write(made.id, &[9; 512], MIB + 1024);
    scene.make_hole(made.id, 15 * MIB, 65536 + 100);
    scene.agrees(made.id);
    assert_eq!(scene.read_snapshot(made.id, "one", 2 * MIB, 512), [2; 512]);
}

#[test]
fn a_file_whose_tables_have_grown_is_read_and_written_by_both() {
    if !ready() || !met(&[Requirement::Root]) {
        return;
    }
    // In memory: a disk takes its time over so many single blocks.
    let memory = LoopFilesystem::new(LoopKind::Tmpfs, Bytes::from_mib(400));
    let scene = scene_in(memory.path());
    // 40000 clusters of the file need a second block of refcounts, which counts 2 GiB.
    let size = 3 << 30;
    let made = scene.create(MIB);
    scene.write(made.id, &[1; 512], 0);
    let to = Bytes::new(size);
    assert_eq!(scene.pool.grow(made.id, to).unwrap(), Changed::Yes);
    let mut content = scene.pool.content(made.id, Access::ReadWrite).unwrap();
    for cluster in 0..40_000_u64 {
        content
            .write_at(&cluster.to_be_bytes(), cluster * 65536 + 512)
            .unwrap();
    }
    content.flush().unwrap();
    drop(content);
    let top = scene.top(made.id);
    let check = |top: &Path| {
        let said = run("qemu-img", &["check", "-f", "qcow2", text(top)]);
        assert!(said.contains("No errors were found"), "{said}");
    };
    check(&top);
    scene.is_sound(made.id);
    scene.qemu_io(made.id, &["write -P 9 2900M 64M"]);
    check(&top);
    scene.is_sound(made.id);
    assert_eq!(scene.read(made.id, 2950 * MIB, 512), [9; 512]);
    for cluster in [0, 32_767, 32_768, 39_999_u64] {
        let there = scene.read(made.id, cluster * 65536 + 512, 8);
        assert_eq!(there, cluster.to_be_bytes());
    }
    scene.make_hole(made.id, 0, 50 * MIB);
    check(&top);
    scene.is_sound(made.id);
    let content = scene.pool.content(made.id, Access::ReadOnly).unwrap();
    assert_eq!(
        content.next_extent(0).unwrap().map(|extent| extent.offset),
        Some(50 * MIB)
    );
}

#[test]
fn growing_moves_a_table_that_is_too_small() {
    if !ready() {
        return;
    }
    let scene = scene();
    let made = scene.create(MIB);
    scene.write(made.id, b"data", 4096);
    // 8192 entries of the first table map 4 TiB; 8 TiB need a second cluster.
    for mib in [600, 4 << 20, 8 << 20] {
        let to = Bytes::from_mib(mib);
        assert_eq!(scene.pool.grow(made.id, to).unwrap(), Changed::Yes);
        let last = to.get() - 512;
        scene.write(made.id, &[7; 512], last);
        assert_eq!(scene.read(made.id, last, 512), [7; 512]);
        let said = run("qemu-img", &["check", text(&scene.top(made.id))]);
        assert!(said.contains("No errors were found"), "{said}");
        scene.is_sound(made.id);
    }
    assert_eq!(scene.read(made.id, 4096, 4), b"data");
    scene.qemu_io(
        made.id,
        &["read -P 7 8388607M 0", "write -P 3 5000000M 64k"],
    );
    assert_eq!(scene.read(made.id, 5_000_000 * MIB, 4), [3; 4]);
}

#[test]
fn a_volume_filled_from_a_file_reads_the_same_in_qemu() {
    if !ready() {
        return;
    }
    let scene = scene();
    let wanted = description(Bytes::from_mib(20));
    let source = tempfile::tempfile().unwrap();
    source.set_len(10 * MIB + 77).unwrap();
    source
        .write_all_at(&vec![1; 3 << 20], 5 * MIB - 12_345)
        .unwrap();
    source.write_all_at(&vec![0; 1 << 20], MIB).unwrap();
    source.write_all_at(b"end", 10 * MIB + 74).unwrap();
    let mut draft = scene.pool.draft(&wanted).unwrap();
    draft.fill_from(&source, &mut |_, _| {}).unwrap();
    draft.commit().unwrap();
    scene.agrees(wanted.id);
    assert_eq!(scene.read(wanted.id, 10 * MIB + 74, 4), b"end\0");
    // Clusters of zeros alone are left out.
    assert!(scene.pool.facts(wanted.id).unwrap().used < Bytes::from_mib(4));
}

#[test]
fn what_is_cut_short_or_marked_by_qemu_is_found() {
    if !ready() {
        return;
    }
    let scene = scene();
    let made = scene.create(16 * MIB);
    scene.write(made.id, &vec![1; 8 << 20], 0);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(scene.top(made.id))
        .unwrap();
    let whole = file.metadata().unwrap().len();
    let copy = std::fs::read(scene.top(made.id)).unwrap();
    for length in [0, 100, 4096, 65536, 3 * 65536, whole / 2, whole - 65536] {
        file.set_len(length).unwrap();
        let flaws = scene.pool.verify(made.id, made.size).unwrap();
        assert_eq!(flaws.len(), 1, "{length}: {flaws:?}");
        let grown = scene.pool.grow(made.id, Bytes::from_mib(20));
        assert!(grown.is_err(), "{length}");
        file.write_all_at(&copy, 0).unwrap();
        scene.is_sound(made.id);
    }
    for (bit, said) in [
        (0, "was not closed"),
        (1, "marked corrupt"),
        (2, "external data file"),
    ] {
        file.write_all_at(&(1_u64 << bit).to_be_bytes(), 72)
            .unwrap();
        let flaws = scene.pool.verify(made.id, made.size).unwrap();
        assert!(flaws[0].to_string().contains(said), "{flaws:?}");
        assert!(scene.pool.open(made.id, Access::ReadWrite).is_err());
        file.write_all_at(&[0; 8], 72).unwrap();
    }
    scene.is_sound(made.id);
}

#[test]
fn a_file_that_is_lost_is_replaced_by_hand() {
    if !ready() {
        return;
    }
    let scene = scene();
    let made = scene.create(MIB);
    let id = made.id;
    scene.write(id, b"layer", 0);
    scene.snapshot(id, "s");
    scene.write(id, b"above", 0);
    std::fs::remove_file(scene.top(id)).unwrap();
    assert!(scene.pool.open(id, Access::ReadWrite).is_err());
    // As the documentation has it.
    Program::find("qemu-img")
        .unwrap()
        .current_dir(scene.pool.directory())
        .args(["create", "-f", "qcow2", "-F", "qcow2", "-b"])
        .args([format!("{id}.1.qcow2"), format!("{id}.3.qcow2")])
        .run()
        .unwrap();
    scene.is_sound(id);
    scene.write(id, b"again", 100);
    assert_eq!(scene.read(id, 0, 5), b"layer");
    scene.agrees(id);
    scene.revert(id, "s");
    scene.agrees(id);
}
