//! The driver contract, law by law. A law knows a [`Bench`], never a driver.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on fails, and one that lacks something says what"
)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use sistemo_host::Changed;
use sistemo_host::program::Program;
use sistemo_host::sparse::{CopyPath, Extent};
use sistemo_model::{
    Access, Boot, Bytes, CatalogueId, Digest, Filesystem, Role, Timestamp, VolumeId,
};
use sistemo_pools::{
    Content, Description, FilePool, FirstUse, Flaw, Found, Location, Pool, PoolError,
};

const MIB: u64 = 1 << 20;

/// A place with one pool of the driver under test, which can be opened any number of times.
struct Bench {
    home: tempfile::TempDir,
    catalogue: CatalogueId,
    open: fn(&Path, CatalogueId) -> Box<dyn Pool>,
}

impl Bench {
    fn new(open: fn(&Path, CatalogueId) -> Box<dyn Pool>) -> Bench {
        Bench {
            home: tempfile::tempdir().unwrap(),
            catalogue: CatalogueId::random(),
            open,
        }
    }

    fn pool(&self) -> Box<dyn Pool> {
        (self.open)(&self.home.path().join("pool"), self.catalogue)
    }
}

macro_rules! laws_hold_for {
    ($driver:ident, $open:expr, $($law:ident)*) => {
        mod $driver {
            use super::*;
            $(#[test] fn $law() { laws::$law(&Bench::new($open)); })*
        }
    };
}

laws_hold_for! {
    file,
    |path, catalogue| {
        let name = "default".parse().unwrap();
        Box::new(FilePool::open(name, path, catalogue, FirstUse::Allowed).unwrap())
    },
    an_empty_pool_is_usable_and_has_nothing
    a_committed_volume_is_as_described
    a_new_volume_is_all_zeros_and_takes_no_space
    a_draft_is_no_volume_and_dropped_leaves_nothing
    a_volume_cannot_be_made_twice
    a_draft_cannot_be_begun_twice
    a_removed_volume_is_gone_and_removing_again_changes_nothing
    remove_takes_an_abandoned_draft
    every_filesystem_can_be_recorded
    the_size_survives_at_both_limits
    impossible_sizes_are_refused
    growing_keeps_the_data_and_adds_zeros
    growing_never_shrinks
    growing_a_damaged_volume_is_refused
    content_keeps_its_holes
    content_gives_space_back
    content_ends_at_the_size
    content_opened_to_read_is_not_written
    content_is_what_was_written_whatever_the_order
    a_draft_is_filled_without_the_holes
    filling_refuses_a_larger_source_and_a_device
    a_failed_fill_is_not_committed
    a_program_can_format_a_draft
    a_program_that_resizes_a_draft_is_caught
    what_looks_like_qcow2_is_raw
    opening_says_how_and_closing_twice_is_no_error
    describe_replaces_once
    operations_on_a_missing_volume_name_it
    verify_finds_real_damage
    many_at_once_do_not_meet
    a_second_handle_sees_everything
}

fn description(size: Bytes) -> Description {
    let id = VolumeId::random();
    Description {
        id,
        name: id.short().parse().unwrap(),
        size,
        filesystem: Filesystem::Ext4,
        role: Role::Data,
        boot: None,
        created: Timestamp::now(),
        unfinished: false,
    }
}

fn create(pool: &dyn Pool, description: &Description) {
    pool.draft(description).unwrap().commit().unwrap();
}

fn volume(pool: &dyn Pool, mib: u64) -> Description {
    let description = description(Bytes::from_mib(mib));
    create(pool, &description);
    description
}

fn read(content: &dyn Content, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; length];
    content.read_at(&mut buffer, offset).unwrap();
    buffer
}

/// The data file, for what only damage does.
fn raw_file(pool: &dyn Pool, id: VolumeId) -> File {
    let location = pool.open(id, Access::ReadWrite).unwrap();
    let path = location.path();
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

/// A file on the pool's filesystem but outside it.
fn source(bench: &Bench, length: u64, data: &[(u64, &[u8])]) -> File {
    let file = tempfile::tempfile_in(bench.home.path()).unwrap();
    file.set_len(length).unwrap();
    for (offset, bytes) in data {
        file.write_all_at(bytes, *offset).unwrap();
    }
    file
}

mod laws {
    use super::*;

    pub(super) fn an_empty_pool_is_usable_and_has_nothing(bench: &Bench) {
        let pool = bench.pool();
        pool.probe().unwrap();
        assert_eq!(pool.list().unwrap(), []);
        assert_eq!(pool.name().as_str(), "default");
        assert!(pool.directory().is_absolute());
        let usage = pool.usage().unwrap();
        assert!(usage.size > 0);
        assert_eq!(usage.size, usage.used + usage.free);
    }

    pub(super) fn a_committed_volume_is_as_described(bench: &Bench) {
        let pool = bench.pool();
        let mut wanted = description(Bytes::from_mib(64));
        wanted.role = Role::Root;
        wanted.boot = Some(Boot {
            kernel: Digest::from_bytes([1; 32]),
            initrd: Some(Digest::from_bytes([2; 32])),
        });
        create(&*pool, &wanted);

        assert_eq!(pool.description(wanted.id).unwrap(), wanted);
        let facts = pool.facts(wanted.id).unwrap();
        assert_eq!(facts.size, wanted.size);
        let found = Found::Volume {
            description: wanted.clone(),
            facts,
        };
        assert_eq!(pool.list().unwrap(), std::slice::from_ref(&found));
        assert_eq!(pool.find(wanted.id).unwrap(), Some(found));
        assert_eq!(pool.verify(wanted.id, wanted.size).unwrap(), []);
    }

    pub(super) fn a_new_volume_is_all_zeros_and_takes_no_space(bench: &Bench) {
        let pool = bench.pool();
        let made = volume(&*pool, 5 << 10);
        assert!(pool.facts(made.id).unwrap().used < Bytes::from_mib(1));
        let content = pool.content(made.id, Access::ReadOnly).unwrap();
        assert_eq!(content.extents().unwrap(), []);
        assert_eq!(read(&*content, made.size.get() - 512, 512), [0; 512]);
    }

    pub(super) fn a_draft_is_no_volume_and_dropped_leaves_nothing(bench: &Bench) {
        let pool = bench.pool();
        let wanted = description(Bytes::from_mib(8));
        let mut draft = pool.draft(&wanted).unwrap();
        draft.content().unwrap().write_at(b"data", 0).unwrap();
        assert_eq!(pool.list().unwrap(), [Found::Draft { id: wanted.id }]);
        assert!(matches!(
            pool.facts(wanted.id),
            Err(PoolError::NoSuchVolume { .. })
        ));
        drop(draft);
        assert_eq!(pool.list().unwrap(), []);
        assert_eq!(pool.find(wanted.id).unwrap(), None);
    }

    pub(super) fn a_volume_cannot_be_made_twice(bench: &Bench) {
        let pool = bench.pool();
        let made = volume(&*pool, 8);
        let mut again = made.clone();
        again.size = Bytes::from_mib(16);
        // Under another filesystem it has another file, but it is the same volume.
        for filesystem in Filesystem::ALL {
            again.filesystem = filesystem;
            let error = pool.draft(&again).unwrap_err();
            assert!(matches!(error, PoolError::AlreadyThere { .. }), "{error}");
        }
        assert_eq!(pool.description(made.id).unwrap(), made);
        assert_eq!(pool.list().unwrap().len(), 1);
    }

    pub(super) fn a_draft_cannot_be_begun_twice(bench: &Bench) {
        let pool = bench.pool();
        let mut wanted = description(Bytes::from_mib(8));
        let draft = pool.draft(&wanted).unwrap();
        for filesystem in Filesystem::ALL {
            wanted.filesystem = filesystem;
            let error = pool.draft(&wanted).unwrap_err();
            assert!(matches!(error, PoolError::DraftThere { .. }), "{error}");
        }
        draft.commit().unwrap();
        assert_eq!(pool.list().unwrap().len(), 1);
    }

    pub(super) fn a_removed_volume_is_gone_and_removing_again_changes_nothing(bench: &Bench) {
        let pool = bench.pool();
        let (made, other) = (volume(&*pool, 8), volume(&*pool, 8));
        assert_eq!(pool.remove(made.id).unwrap(), Changed::Yes);
        assert_eq!(pool.remove(made.id).unwrap(), Changed::No);
        assert_eq!(pool.find(made.id).unwrap(), None);
        assert_eq!(pool.list().unwrap().len(), 1);
        assert_eq!(pool.verify(other.id, other.size).unwrap(), []);
        create(&*pool, &made);
        assert_eq!(pool.list().unwrap().len(), 2);
    }

    pub(super) fn remove_takes_an_abandoned_draft(bench: &Bench) {
        let pool = bench.pool();
        let wanted = description(Bytes::from_mib(8));
        // As a killed process leaves it: never dropped.
        std::mem::forget(pool.draft(&wanted).unwrap());
        assert_eq!(pool.remove(wanted.id).unwrap(), Changed::Yes);
        assert_eq!(pool.list().unwrap(), []);
        create(&*pool, &wanted);
    }

    pub(super) fn every_filesystem_can_be_recorded(bench: &Bench) {
        let pool = bench.pool();
        for filesystem in Filesystem::ALL {
            let mut wanted = description(Bytes::from_mib(300));
            wanted.filesystem = filesystem;
            create(&*pool, &wanted);
            assert_eq!(pool.description(wanted.id).unwrap(), wanted);
            assert_eq!(pool.verify(wanted.id, wanted.size).unwrap(), []);
            assert_eq!(pool.remove(wanted.id).unwrap(), Changed::Yes);
        }
        assert_eq!(pool.list().unwrap(), []);
    }

    pub(super) fn the_size_survives_at_both_limits(bench: &Bench) {
        let pool = bench.pool();
        for size in [Bytes::new(512), Bytes::MINIMUM, Bytes::from_mib(8 << 20)] {
            let wanted = description(size);
            create(&*pool, &wanted);
            assert_eq!(pool.facts(wanted.id).unwrap().size, size);
            let mut content = pool.content(wanted.id, Access::ReadWrite).unwrap();
            content.write_at(&[7; 512], size.get() - 512).unwrap();
            assert_eq!(read(&*content, size.get() - 512, 512), [7; 512]);
            assert_eq!(pool.verify(wanted.id, size).unwrap(), []);
        }
    }

    pub(super) fn impossible_sizes_are_refused(bench: &Bench) {
        let pool = bench.pool();
        let made = volume(&*pool, 1);
        for bytes in [0, 1, 513, (1 << 63) - 1, 1 << 63, u64::MAX - 511] {
            let refused = description(Bytes::new(bytes));
            let error = pool.draft(&refused).unwrap_err();
            assert!(matches!(error, PoolError::BadSize { .. }), "{error}");
            let error = pool.grow(made.id, Bytes::new(bytes)).unwrap_err();
            assert!(matches!(error, PoolError::BadSize { .. }), "{error}");
        }
        assert_eq!(pool.list().unwrap().len(), 1);
        assert_eq!(pool.verify(made.id, made.size).unwrap(), []);
    }

    pub(super) fn growing_keeps_the_data_and_adds_zeros(bench: &Bench) {
        let pool = bench.pool();
        let made = volume(&*pool, 8);
        let last = made.size.get() - 4;
        let mut content = pool.content(made.id, Access::ReadWrite).unwrap();
        content.write_at(b"last", last).unwrap();
        drop(content);

        let to = Bytes::from_mib(20);
        assert_eq!(pool.grow(made.id, to).unwrap(), Changed::Yes);
        assert_eq!(pool.grow(made.id, to).unwrap(), Changed::No);
        assert_eq!(pool.facts(made.id).unwrap().size, to);
        assert_eq!(pool.description(made.id).unwrap().size, to);
        assert_eq!(pool.verify(made.id, to).unwrap(), []);
        let content = pool.content(made.id, Access::ReadOnly).unwrap();
        assert_eq!(content.size(), to);
        assert_eq!(read(&*content, last, 8), b"last\0\0\0\0");
        assert_eq!(read(&*content, to.get() - 9, 9), [0; 9]);
    }

    pub(super) fn growing_never_shrinks(bench: &Bench) {
        let pool = bench.pool();
        let made = volume(&*pool, 8);
        let error = pool.grow(made.id, Bytes::from_mib(7)).unwrap_err();
        assert!(matches!(error, PoolError::Shrinks { .. }), "{error}");
        assert_eq!(pool.grow(made.id, made.size).unwrap(), Changed::No);
        assert_eq!(pool.verify(made.id, made.size).unwrap(), []);
    }

    pub(super) fn growing_a_damaged_volume_is_refused(bench: &Bench) {
        let pool = bench.pool();
        let made = volume(&*pool, 8);
        raw_file(&*pool, made.id).set_len(MIB).unwrap();
        let error = pool.grow(made.id, Bytes::from_mib(20)).unwrap_err();
        assert!(matches!(error, PoolError::Damaged { .. }), "{error}");
        assert_eq!(pool.facts(made.id).unwrap().size, Bytes::from_mib(1));
    }

    pub(super) fn content_keeps_its_holes(bench: &Bench) {
        let pool = bench.pool();
        let made = volume(&*pool, 64);
        let mut content = pool.content(made.id, Access::ReadWrite).unwrap();
        content.write_at(&vec![1; 1 << 20], 8 * MIB).unwrap();
        content.write_at(&vec![2; 1 << 20], 40 * MIB).unwrap();
        content.flush().unwrap();
        drop(content);

        let content = pool.content(made.id, Access::ReadOnly).unwrap();
        let extents = content.extents().unwrap();
        let covers = |at| extents.iter().any(|e| e.offset <= at && at < e.end());
        assert!(covers(8 * MIB) && covers(9 * MIB - 1) && covers(40 * MIB));
        assert!(!covers(0) && !covers(20 * MIB) && !covers(50 * MIB));
        assert!(extents.is_sorted_by(|a, b| a.end() <= b.offset));
        assert_eq!(read(&*content, 9 * MIB - 1, 2), [1, 0]);
        let used = pool.facts(made.id).unwrap().used;
        assert!(
            used >= Bytes::from_mib(2) && used < Bytes::from_mib(4),
            "{used}"
        );
    }

    pub(super) fn content_gives_space_back(bench: &Bench) {
        let pool = bench.pool();
        let made = volume(&*pool, 16);
        let mut content = pool.content(made.id, Access::ReadWrite).unwrap();
        content.write_at(&vec![5; 8 << 20], 0).unwrap();
        let hole = Extent {
            offset: MIB,
            length: 7 * MIB,
        };
        content.make_hole(hole).unwrap();
        content.flush().unwrap();
        assert_eq!(content.size(), made.size);
        assert_eq!(read(&*content, MIB - 1, 2), [5, 0]);
        assert_eq!(read(&*content, 7 * MIB, 1 << 20), vec![0; 1 << 20]);
        assert!(pool.facts(made.id).unwrap().used < Bytes::from_mib(2));
        assert_eq!(pool.verify(made.id, made.size).unwrap(), []);
    }

    pub(super) fn content_ends_at_the_size(bench: &Bench) {
        let pool = bench.pool();
        let made = volume(&*pool, 1);
        let end = made.size.get();
        let mut content = pool.content(made.id, Access::ReadWrite).unwrap();
        for offset in [end - 1, end, u64::MAX] {
            let hole = Extent { offset, length: 2 };
            let mut buffer = [0; 2];
            for refused in [
                content.write_at(b"xx", offset),
                content.read_at(&mut buffer, offset),
                content.make_hole(hole),
            ] {
                assert!(
                    matches!(refused, Err(PoolError::Outside { .. })),
                    "{refused:?}"
                );
            }
        }
        assert_eq!(content.next_extent(end).unwrap(), None);
        assert_eq!(content.extents().unwrap(), []);
        assert_eq!(pool.verify(made.id, made.size).unwrap(), []);
    }

    pub(super) fn content_opened_to_read_is_not_written(bench: &Bench) {
        let pool = bench.pool();
        let made = volume(&*pool, 1);
        let mut content = pool.content(made.id, Access::ReadOnly).unwrap();
        let all = Extent {
            offset: 0,
            length: MIB,
        };
        for refused in [content.write_at(b"x", 0), content.make_hole(all)] {
            assert!(
                matches!(refused, Err(PoolError::OpenedReadOnly { .. })),
                "{refused:?}"
            );
        }
        assert_eq!(read(&*content, 0, 1), [0]);
    }

    pub(super) fn content_is_what_was_written_whatever_the_order(bench: &Bench) {
        use proptest::prelude::*;

        const SIZE: u64 = 2 * MIB;
        let pool = bench.pool();
        let step = (any::<bool>(), 0..SIZE, 1..200_000_u64, 1..=255_u8);
        let config = ProptestConfig::with_cases(24);
        let steps = proptest::collection::vec(step, 0..12);
        proptest!(config, |(steps in steps)| {
            let made = volume(&*pool, SIZE / MIB);
            let mut model = vec![0; usize::try_from(SIZE).unwrap()];
            let mut content = pool.content(made.id, Access::ReadWrite).unwrap();
            for (write, offset, length, byte) in steps {
                let length = length.min(SIZE - offset);
                let range = usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap();
                if write {
                    content.write_at(&vec![byte; range.len()], offset).unwrap();
                    model[range].fill(byte);
                } else {
                    content.make_hole(Extent { offset, length }).unwrap();
                    model[range].fill(0);
                }
            }
            // Reading the extents alone gives all of it.
            let mut seen = vec![0; model.len()];
            for extent in content.extents().unwrap() {
                let (start, end) = (usize::try_from(extent.offset).unwrap(), usize::try_from(extent.end()).unwrap());
                content.read_at(&mut seen[start..end], extent.offset).unwrap();
            }
            prop_assert!(seen == model);
            prop_assert!(read(&*content, 0, model.len()) == model);
            let _ = pool.remove(made.id).unwrap();
        });
    }

    pub(super) fn a_draft_is_filled_without_the_holes(bench: &Bench) {
        let pool = bench.pool();
        let file = source(bench, 100 * MIB + 7, &[(0, b"first"), (80 * MIB, b"last")]);
        let wanted = description(Bytes::from_mib(200));
        let mut draft = pool.draft(&wanted).unwrap();
        draft
            .content()
            .unwrap()
            .write_at(b"old", 150 * MIB)
            .unwrap();
        let mut told = Vec::new();
        let way = draft
            .fill_from(&file, &mut |done, total| told.push((done, total)))
            .unwrap();
        draft.commit().unwrap();

        let content = pool.content(wanted.id, Access::ReadOnly).unwrap();
        assert_eq!(content.size(), wanted.size);
        assert_eq!(read(&*content, 0, 6), b"first\0");
        assert_eq!(read(&*content, 80 * MIB, 4), b"last");
        assert_eq!(read(&*content, 150 * MIB, 3), [0; 3]);
        assert!(pool.facts(wanted.id).unwrap().used < Bytes::from_mib(1));
        match way {
            CopyPath::Reflink => assert_eq!(told, []),
            CopyPath::Copied => {
                let (done, total) = told.last().copied().unwrap();
                assert!(done == total && total < MIB, "{told:?}");
            }
        }
    }

    pub(super) fn filling_refuses_a_larger_source_and_a_device(bench: &Bench) {
        let pool = bench.pool();
        let mut draft = pool.draft(&description(Bytes::from_mib(1))).unwrap();
        let file = source(bench, MIB + 1, &[]);
        let error = draft.fill_from(&file, &mut |_, _| {}).unwrap_err();
        assert!(matches!(error, PoolError::SourceTooLarge { .. }), "{error}");
        let device = File::open("/dev/zero").unwrap();
        assert!(draft.fill_from(&device, &mut |_, _| {}).is_err());
        // Neither has touched the draft.
        draft.commit().unwrap();
    }

    pub(super) fn a_failed_fill_is_not_committed(bench: &Bench) {
        let pool = bench.pool();
        let file = source(bench, MIB, &[(0, b"data")]);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let unreadable = OpenOptions::new().write(true).open(path).unwrap();
        let wanted = description(Bytes::from_mib(1));
        let mut draft = pool.draft(&wanted).unwrap();
        if draft.fill_from(&unreadable, &mut |_, _| {}).is_ok() {
            eprintln!("skipped: this pool fills itself without reading");
            return;
        }
        assert!(draft.commit().is_err());
        assert_eq!(pool.list().unwrap(), []);
    }

    pub(super) fn a_program_can_format_a_draft(bench: &Bench) {
        let pool = bench.pool();
        let wanted = description(Bytes::from_mib(5 << 10));
        let draft = pool.draft(&wanted).unwrap();
        let Some(path) = draft.raw_path() else {
            eprintln!("skipped: this pool's drafts have no path");
            return;
        };
        Program::find("mkfs.ext4")
            .unwrap()
            .args(["-q", "-F", "-E"])
            .arg("lazy_itable_init=1,lazy_journal_init=1,nodiscard,assume_storage_prezeroed=1")
            .arg(path)
            .run()
            .unwrap();
        draft.commit().unwrap();
        assert_eq!(pool.verify(wanted.id, wanted.size).unwrap(), []);
        assert!(pool.facts(wanted.id).unwrap().used < Bytes::from_mib(4));
        // The superblock's magic number, at its place.
        let content = pool.content(wanted.id, Access::ReadOnly).unwrap();
        assert_eq!(read(&*content, 1024 + 56, 2), [0x53, 0xef]);
    }

    pub(super) fn a_program_that_resizes_a_draft_is_caught(bench: &Bench) {
        let pool = bench.pool();
        let wanted = description(Bytes::from_mib(8));
        let draft = pool.draft(&wanted).unwrap();
        let Some(path) = draft.raw_path() else {
            eprintln!("skipped: this pool's drafts have no path");
            return;
        };
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(4 * MIB).unwrap();
        let error = draft.commit().unwrap_err();
        assert!(
            matches!(
                &error,
                PoolError::Damaged {
                    flaw: Flaw::WrongSize { .. },
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(pool.list().unwrap(), []);
    }

    pub(super) fn what_looks_like_qcow2_is_raw(bench: &Bench) {
        let pool = bench.pool();
        let made = volume(&*pool, 1);
        let header = b"QFI\xfb\0\0\0\x03\0\0\0\0\0\0\0\x68\0\0\0\x0b";
        let mut content = pool.content(made.id, Access::ReadWrite).unwrap();
        content.write_at(header, 0).unwrap();
        content.write_at(b"/etc/passwd", 0x68).unwrap();
        assert_eq!(pool.facts(made.id).unwrap().format.as_str(), "raw");
        let opened = pool.open(made.id, Access::ReadWrite).unwrap();
        assert!(matches!(opened, Location::RawFile(_)));
        assert_eq!(pool.verify(made.id, made.size).unwrap(), []);
        let content = pool.content(made.id, Access::ReadOnly).unwrap();
        assert_eq!(content.size(), made.size);
        assert_eq!(read(&*content, 0, header.len()), header);
    }

    pub(super) fn opening_says_how_and_closing_twice_is_no_error(bench: &Bench) {
        let pool = bench.pool();
        let made = volume(&*pool, 1);
        let opened = pool.open(made.id, Access::ReadWrite).unwrap();
        assert_eq!(pool.open(made.id, Access::ReadOnly).unwrap(), opened);
        let path = opened.path();
        assert!(path.is_absolute());
        assert_eq!(path.metadata().unwrap().len(), MIB);
        pool.close(made.id).unwrap();
        pool.close(made.id).unwrap();
        pool.close(VolumeId::random()).unwrap();
    }

    pub(super) fn describe_replaces_once(bench: &Bench) {
        let pool = bench.pool();
        let mut made = volume(&*pool, 1);
        assert_eq!(pool.describe(&made).unwrap(), Changed::No);
        made.name = "renamed".parse().unwrap();
        assert_eq!(pool.describe(&made).unwrap(), Changed::Yes);
        assert_eq!(pool.describe(&made).unwrap(), Changed::No);
        assert_eq!(pool.description(made.id).unwrap(), made);
        // What a guest made of it meanwhile does not make it another volume.
        made.filesystem = Filesystem::Xfs;
        assert_eq!(pool.describe(&made).unwrap(), Changed::Yes);
        assert_eq!(pool.verify(made.id, made.size).unwrap(), []);
        assert_eq!(pool.list().unwrap().len(), 1);
    }

    pub(super) fn operations_on_a_missing_volume_name_it(bench: &Bench) {
        let pool = bench.pool();
        let missing = description(Bytes::from_mib(1));
        let id = missing.id;
        for error in [
            pool.grow(id, missing.size).unwrap_err(),
            pool.open(id, Access::ReadOnly).unwrap_err(),
            pool.content(id, Access::ReadOnly).unwrap_err(),
            pool.describe(&missing).unwrap_err(),
            pool.description(id).unwrap_err(),
            pool.facts(id).unwrap_err(),
        ] {
            assert!(matches!(error, PoolError::NoSuchVolume { .. }), "{error}");
            assert_eq!(
                error.to_string(),
                format!("pool default has no volume {id}")
            );
        }
        assert_eq!(pool.remove(id).unwrap(), Changed::No);
        assert_eq!(pool.verify(id, missing.size).unwrap(), [Flaw::Missing]);
        assert_eq!(pool.list().unwrap(), []);
    }

    pub(super) fn verify_finds_real_damage(bench: &Bench) {
        let pool = bench.pool();
        let made = volume(&*pool, 8);
        let recorded = made.size;
        let file = raw_file(&*pool, made.id);
        for real in [Bytes::new(0), Bytes::from_mib(4), Bytes::new(8 * MIB - 1)] {
            file.set_len(real.get()).unwrap();
            let flaws = pool.verify(made.id, recorded).unwrap();
            assert_eq!(flaws, [Flaw::WrongSize { recorded, real }]);
        }
        file.set_len(recorded.get()).unwrap();
        assert_eq!(pool.verify(made.id, recorded).unwrap(), []);
        let described = recorded;
        let recorded = Bytes::from_mib(9);
        assert_eq!(
            pool.verify(made.id, recorded).unwrap(),
            [
                Flaw::WrongSize {
                    recorded,
                    real: described
                },
                Flaw::DescribedSize {
                    recorded,
                    described
                }
            ]
        );
        std::fs::remove_file(pool.facts(made.id).unwrap().path).unwrap();
        assert_eq!(pool.verify(made.id, described).unwrap(), [Flaw::Missing]);
    }

    pub(super) fn many_at_once_do_not_meet(bench: &Bench) {
        // The first of these makes the pool, and none knows which that is.
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let pool = bench.pool();
                    for round in 0..12 {
                        let made = volume(&*pool, 1);
                        let to = Bytes::from_mib(2);
                        assert_eq!(pool.grow(made.id, to).unwrap(), Changed::Yes);
                        if round % 3 == 0 {
                            assert_eq!(pool.remove(made.id).unwrap(), Changed::Yes);
                        }
                        for found in pool.list().unwrap() {
                            // What others work on is in flux, but never damaged or a stray.
                            assert!(
                                matches!(
                                    found,
                                    Found::Volume { .. }
                                        | Found::Draft { .. }
                                        | Found::Orphan { .. }
                                ),
                                "{found:?}"
                            );
                        }
                    }
                });
            }
        });
        let found = bench.pool().list().unwrap();
        assert_eq!(found.len(), 8 * 8);
        for found in found {
            let Found::Volume { description, facts } = found else {
                panic!("{found:?}");
            };
            assert_eq!(description.size, facts.size);
        }
    }

    pub(super) fn a_second_handle_sees_everything(bench: &Bench) {
        let (one, two) = (bench.pool(), bench.pool());
        let made = volume(&*one, 1);
        assert_eq!(two.description(made.id).unwrap(), made);
        assert_eq!(two.grow(made.id, Bytes::from_mib(3)).unwrap(), Changed::Yes);
        assert_eq!(one.facts(made.id).unwrap().size, Bytes::from_mib(3));
        assert_eq!(one.remove(made.id).unwrap(), Changed::Yes);
        assert_eq!(two.list().unwrap(), []);
    }
}
