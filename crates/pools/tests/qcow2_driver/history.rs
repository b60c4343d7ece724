//! Clones and snapshots, and what becomes of the layers under them.

use std::thread;

use sistemo_host::Changed;
use sistemo_host::sparse::Extent;
use sistemo_model::{Access, Bytes, Timestamp, VolumeId};
use sistemo_pools::{Found, Origin, Pool, PoolError};

use crate::scene::{MIB, description, name, open, run, scene, text};

#[test]
fn a_clone_and_its_source_never_see_each_others_writes() {
    let scene = scene();
    let source = scene.create(8 * MIB);
    scene.write(source.id, b"common", 0);
    let clone = scene.clone_of(source.id);
    scene.write(source.id, b"source", 100);
    scene.write(clone.id, b"clone ", 200);
    assert_eq!(scene.read(source.id, 0, 6), b"common");
    assert_eq!(scene.read(clone.id, 0, 6), b"common");
    assert_eq!(scene.read(clone.id, 100, 6), [0; 6]);
    assert_eq!(scene.read(source.id, 200, 6), [0; 6]);
    scene.is_sound(source.id);
    scene.is_sound(clone.id);
    assert_eq!(scene.pool.list().unwrap().len(), 2);
}

#[test]
fn a_clone_survives_its_source_and_takes_the_last_layer_with_it() {
    let scene = scene();
    let source = scene.create(8 * MIB);
    scene.write(source.id, b"data", 5 * MIB);
    let clone = scene.clone_of(source.id);
    let second = scene.clone_of(clone.id);
    assert_eq!(scene.pool.remove(source.id).unwrap(), Changed::Yes);
    assert_eq!(scene.pool.remove(source.id).unwrap(), Changed::No);
    assert_eq!(scene.pool.find(source.id).unwrap(), None);
    assert_eq!(scene.pool.list().unwrap().len(), 2);
    assert_eq!(scene.read(clone.id, 5 * MIB, 4), b"data");
    assert_eq!(scene.pool.remove(clone.id).unwrap(), Changed::Yes);
    assert_eq!(scene.read(second.id, 5 * MIB, 4), b"data");
    scene.is_sound(second.id);
    assert_eq!(scene.pool.remove(second.id).unwrap(), Changed::Yes);
    assert_eq!(scene.files(), [""; 0]);
}

#[test]
fn a_volume_comes_back_while_clones_of_its_first_life_live() {
    let scene = scene();
    let first = scene.create(MIB);
    scene.write(first.id, b"first", 0);
    let clone = scene.clone_of(first.id);
    let _ = scene.pool.remove(first.id).unwrap();
    scene.pool.draft(&first).unwrap().commit().unwrap();
    assert_eq!(scene.read(first.id, 0, 5), [0; 5]);
    scene.write(first.id, b"again", 0);
    assert_eq!(scene.read(clone.id, 0, 5), b"first");
    let _ = scene.pool.remove(first.id).unwrap();
    assert_eq!(scene.read(clone.id, 0, 5), b"first");
    let _ = scene.pool.remove(clone.id).unwrap();
    assert_eq!(scene.files(), [""; 0]);
}

#[test]
fn an_instant_clone_takes_no_space_and_cloning_again_freezes_nothing() {
    let scene = scene();
    let source = scene.create(64 * MIB);
    scene.write(source.id, &vec![7; 8 << 20], 0);
    let first = scene.clone_of(source.id);
    let layers = scene.layers();
    for _ in 0..20 {
        let clone = scene.clone_of(source.id);
        assert!(scene.pool.facts(clone.id).unwrap().used < Bytes::from_mib(1));
    }
    assert_eq!(scene.layers(), layers + 20);
    assert!(scene.pool.facts(first.id).unwrap().used < Bytes::from_mib(1));
    assert!(scene.pool.facts(source.id).unwrap().used >= Bytes::from_mib(8));
}

#[test]
fn a_clone_may_be_larger_and_reads_zeros_there() {
    let scene = scene();
    let source = scene.create(MIB + 512);
    scene.write(source.id, &[9; 512], MIB);
    let origin = Origin {
        volume: source.id,
        snapshot: None,
    };
    let clone = scene.clone(origin, 9 * MIB);
    assert_eq!(scene.read(clone.id, MIB, 512), [9; 512]);
    let behind = scene.read(clone.id, MIB + 512, (8 << 20) - 512);
    assert!(behind.iter().all(|byte| *byte == 0));
}

#[test]
fn a_smaller_clone_is_refused_and_nothing_is_left() {
    let scene = scene();
    let source = scene.create(2 * MIB);
    scene.write(source.id, b"x", 0);
    let files = scene.files();
    let new = description(Bytes::from_mib(1));
    let origin = Origin {
        volume: source.id,
        snapshot: None,
    };
    let clones = scene.pool.clones().unwrap();
    let error = clones
        .clone_volume(origin, &new, &mut |_, _| {})
        .unwrap_err();
    assert!(matches!(error, PoolError::SourceTooLarge { .. }), "{error}");
    let again = clones
        .clone_volume(origin, &source, &mut |_, _| {})
        .unwrap_err();
    assert!(matches!(again, PoolError::AlreadyThere { .. }), "{again}");
    assert_eq!(scene.files(), files);
}

#[test]
fn snapshots_keep_what_was_and_can_be_deleted_in_any_order() {
    let scene = scene();
    let made = scene.create(4 * MIB);
    for (number, snapshot) in (1_u8..).zip(["a", "b", "c", "d"]) {
        scene.write(made.id, &[number; 512], 0);
        scene.write(made.id, &[7; 512], u64::from(number) * 65536);
        scene.snapshot(made.id, snapshot);
    }
    scene.write(made.id, &[9; 512], 0);
    assert_eq!(scene.names_of_snapshots(made.id), ["a", "b", "c", "d"]);
    assert_eq!(scene.pool.list().unwrap().len(), 1);
    assert_eq!(scene.delete(made.id, "b"), Changed::Yes);
    assert_eq!(scene.delete(made.id, "b"), Changed::No);
    assert_eq!(scene.read_snapshot(made.id, "a", 0, 512), [1; 512]);
    assert_eq!(scene.read_snapshot(made.id, "c", 0, 512), [3; 512]);
    assert_eq!(scene.read_snapshot(made.id, "c", 2 * 65536, 512), [7; 512]);
    assert_eq!(scene.read_snapshot(made.id, "c", 4 * 65536, 512), [0; 512]);
    assert_eq!(scene.delete(made.id, "d"), Changed::Yes);
    assert_eq!(scene.delete(made.id, "a"), Changed::Yes);
    assert_eq!(scene.delete(made.id, "c"), Changed::Yes);
    assert_eq!(scene.read(made.id, 0, 512), [9; 512]);
    assert_eq!(scene.read(made.id, 4 * 65536, 512), [7; 512]);
    scene.is_sound(made.id);
    let _ = scene.pool.remove(made.id).unwrap();
    assert_eq!(scene.files(), [""; 0]);
}

#[test]
fn a_revert_brings_back_content_and_size_and_keeps_all_snapshots() {
    let scene = scene();
    let made = scene.create(2 * MIB);
    scene.write(made.id, b"one", 0);
    scene.snapshot(made.id, "small");
    let to = Bytes::from_mib(6);
    assert_eq!(scene.pool.grow(made.id, to).unwrap(), Changed::Yes);
    scene.write(made.id, b"two", 0);
    scene.snapshot(made.id, "large");
    for _ in 0..2 {
        scene.revert(made.id, "small");
        assert_eq!(scene.read(made.id, 0, 3), b"one");
        let facts = scene.pool.facts(made.id).unwrap();
        assert_eq!(facts.size, Bytes::from_mib(2));
        assert_eq!(scene.pool.verify(made.id, facts.size).unwrap(), []);
    }
    scene.write(made.id, b"gone", 0);
    scene.revert(made.id, "large");
    assert_eq!(scene.read(made.id, 0, 3), b"two");
    assert_eq!(scene.pool.verify(made.id, to).unwrap(), []);
    assert_eq!(scene.names_of_snapshots(made.id), ["small", "large"]);
    // Two layers under two snapshots, and what is written now.
    assert_eq!(scene.layers(), 3);
}

#[test]
fn the_errors_of_snapshots_say_what_is_missing_or_there() {
    let scene = scene();
    let made = scene.create(MIB);
    scene.snapshot(made.id, "a");
    let snapshots = scene.pool.snapshots().unwrap();
    let error = snapshots
        .take_snapshot(made.id, &name("a"), Timestamp::now(), None, &mut |_, _| {})
        .unwrap_err();
    assert!(matches!(error, PoolError::SnapshotThere { .. }), "{error}");
    let error = snapshots
        .revert(made.id, &name("b"), &mut |_, _| {})
        .unwrap_err();
    assert!(matches!(error, PoolError::NoSuchSnapshot { .. }), "{error}");
    let missing = VolumeId::random();
    for error in [
        snapshots.snapshots(missing).unwrap_err(),
        snapshots
            .take_snapshot(missing, &name("a"), Timestamp::now(), None, &mut |_, _| {})
            .unwrap_err(),
        snapshots
            .revert(missing, &name("a"), &mut |_, _| {})
            .unwrap_err(),
        snapshots.snapshot_content(missing, &name("a")).unwrap_err(),
    ] {
        assert!(matches!(error, PoolError::NoSuchVolume { .. }), "{error}");
    }
}

#[test]
fn names_of_snapshots_at_their_limits_are_files() {
    let scene = scene();
    let made = scene.create(MIB);
    let longest = "a".repeat(63);
    let names = ["a", "a.qcow2", "a.qcow2.new", "A-b_c.json", &longest];
    for snapshot in names {
        scene.snapshot(made.id, snapshot);
    }
    assert_eq!(scene.names_of_snapshots(made.id), names);
    assert_eq!(scene.pool.list().unwrap().len(), 1);
    let _ = scene.pool.remove(made.id).unwrap();
    assert_eq!(scene.files(), [""; 0]);
}

#[test]
fn a_layer_of_two_volumes_that_are_removed_at_once_goes_once_both_are_gone() {
    for _ in 0..20 {
        let scene = scene();
        let source = scene.create(MIB);
        scene.write(source.id, b"data", 0);
        let clones = [scene.clone_of(source.id), scene.clone_of(source.id)];
        let _ = scene.pool.remove(source.id).unwrap();
        thread::scope(|scope| {
            for clone in &clones {
                scope.spawn(|| {
                    let path = scene.pool.directory();
                    let pool = open(path, scene.catalogue);
                    assert_eq!(pool.remove(clone.id).unwrap(), Changed::Yes);
                });
            }
        });
        assert_eq!(scene.files(), [""; 0]);
    }
}

#[test]
fn two_volumes_with_common_layers_are_worked_on_at_once() {
    let scene = scene();
    let source = scene.create(4 * MIB);
    scene.write(source.id, &[1; 4096], 0);
    let volumes: Vec<_> = (0..4).map(|_| scene.clone_of(source.id)).collect();
    thread::scope(|scope| {
        for made in &volumes {
            scope.spawn(|| {
                let pool = open(scene.pool.directory(), scene.catalogue);
                let snapshots = pool.snapshots().unwrap();
                for round in 0..25_u8 {
                    let mut content = pool.content(made.id, Access::ReadWrite).unwrap();
                    content.write_at(&[round; 512], 4096).unwrap();
                    content.flush().unwrap();
                    drop(content);
                    let now = name(&format!("s{round}"));
                    snapshots
                        .take_snapshot(made.id, &now, Timestamp::now(), None, &mut |_, _| {})
                        .unwrap();
                    if round % 3 != 0 {
                        let _ = snapshots.delete_snapshot(made.id, &now).unwrap();
                    }
                    for found in pool.list().unwrap() {
                        assert!(matches!(found, Found::Volume { .. }), "{found:?}");
                    }
                }
            });
        }
    });
    for made in volumes {
        scene.is_sound(made.id);
        assert_eq!(scene.read(made.id, 0, 512), [1; 512]);
        assert_eq!(scene.read(made.id, 4096, 512), [24; 512]);
        assert_eq!(scene.names_of_snapshots(made.id).len(), 9);
        let _ = scene.pool.remove(made.id).unwrap();
    }
    let _ = scene.pool.remove(source.id).unwrap();
    assert_eq!(scene.files(), [""; 0]);
}

#[test]
fn layers_that_nobody_else_needs_are_merged() {
    let scene = scene();
    let made = scene.create(4 * MIB);
    scene.write(made.id, &vec![0xaa; 1 << 20], 0);
    scene.snapshot(made.id, "kept");
    for round in 0..60_u8 {
        scene.write(made.id, &[round + 1; 512], u64::from(round) * 512);
        let mut content = scene.pool.content(made.id, Access::ReadWrite).unwrap();
        let hole = Extent {
            offset: MIB - 65536 - u64::from(round % 8) * 65536,
            length: 65536,
        };
        content.make_hole(hole).unwrap();
        drop(content);
        scene.snapshot(made.id, "passing");
        let _ = scene.delete(made.id, "passing");
    }
    assert!(scene.layers() <= 18, "{:?}", scene.files());
    for round in 0..60_u8 {
        let at = u64::from(round) * 512;
        assert_eq!(scene.read(made.id, at, 512), [round + 1; 512], "{round}");
    }
    assert_eq!(
        scene.read(made.id, MIB - 8 * 65536, 8 * 65536),
        vec![0; 8 * 65536]
    );
    assert_eq!(
        scene.read_snapshot(made.id, "kept", 0, 1 << 20),
        vec![0xaa; 1 << 20]
    );
    scene.is_sound(made.id);
}

#[test]
fn a_chain_of_snapshots_that_stay_is_cut_by_a_copy() {
    let scene = scene();
    let made = scene.create(MIB);
    for round in 0..100_u8 {
        scene.write(made.id, &[round + 1; 512], u64::from(round) * 512);
        scene.snapshot(made.id, &format!("s{round}"));
    }
    scene.is_sound(made.id);
    for round in 0..100_u8 {
        let there = scene.read_snapshot(made.id, &format!("s{round}"), 0, 100 * 512);
        for (number, sector) in (1_u8..).zip(there.chunks(512)) {
            let byte = if number <= round + 1 { number } else { 0 };
            assert_eq!(sector, [byte; 512], "{round}");
        }
    }
    let info = run(
        "qemu-img",
        &["info", "--backing-chain", text(&scene.top(made.id))],
    );
    assert!(info.matches("image: ").count() <= 65, "{info}");
}

#[test]
fn forty_clones_of_clones_are_all_right() {
    let scene = scene();
    let mut line = vec![scene.create(MIB)];
    for round in 0..40_u8 {
        let last = line.last().unwrap().id;
        scene.write(last, &[round + 1; 512], u64::from(round) * 512);
        line.push(scene.clone_of(last));
    }
    for (generation, made) in (0_u8..).zip(&line) {
        let content = scene.read(made.id, 0, 40 * 512);
        for (number, sector) in (1_u8..).zip(content.chunks(512)) {
            let byte = if number <= generation + 1 { number } else { 0 };
            assert_eq!(sector, [byte; 512], "{generation} {number}");
        }
    }
    // Without those between, what is left is still whole.
    for made in &line[..40] {
        let _ = scene.pool.remove(made.id).unwrap();
    }
    let last = line.last().unwrap().id;
    assert_eq!(scene.read(last, 39 * 512, 512), [40; 512]);
    scene.is_sound(last);
    let _ = scene.pool.remove(last).unwrap();
    assert_eq!(scene.files(), [""; 0]);
}
