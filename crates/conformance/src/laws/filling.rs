//! Drafts that are filled from files or written by programs.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;

use sistemo_host::program::{self, Program};
use sistemo_host::sparse::CopyPath;
use sistemo_model::{Access, Bytes};
use sistemo_pools::{Draft, Flaw, PoolError};

use crate::Bench;
use crate::expectation::{equal, holds, refused};
use crate::law::{Stop, Verdict};
use crate::material::{MIB, description, knows_holes, reads, reads_zeros, source};
use crate::random::noise;

pub(super) fn a_draft_is_filled_without_the_holes(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let (first, last) = (noise(1, 5000), noise(2, 70_000));
    let data: &[(u64, &[u8])] = &[(0, &first), (80 * MIB, &last)];
    let file = source(bench, 100 * MIB + 7, data)?;
    let wanted = description(Bytes::from_mib(200));
    let mut draft = pool.draft(&wanted)?;
    draft.content()?.write_at(b"old", 150 * MIB)?;
    let mut told = Vec::new();
    let way = draft.fill_from(&file, &mut |done, total| told.push((done, total)))?;
    draft.commit()?;

    let id = wanted.id;
    reads(&*pool, id, 0, &first)?;
    reads(&*pool, id, 80 * MIB, &last)?;
    let content = pool.content(id, Access::ReadOnly)?;
    equal("the size", content.size(), wanted.size)?;
    reads_zeros(&*content, 5000, MIB)?;
    reads_zeros(&*content, 150 * MIB, 151 * MIB)?;
    let used = pool.facts(id)?.used;
    holds(
        used < Bytes::from_mib(1) || !knows_holes(&*pool, id)?,
        "less than 1 MiB in use",
        || format!("it takes {used}"),
    )?;
    match way {
        CopyPath::Reflink => equal("the progress of what shares extents", told, vec![]),
        CopyPath::Copied => {
            let end = told.last().copied();
            let whole = end.is_some_and(|(done, total)| done == total && total < MIB);
            holds(whole, "progress that ends at the total", || {
                format!("it was {told:?}")
            })
        }
    }
}

pub(super) fn filling_refuses_a_larger_source_and_a_device(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let wanted = description(Bytes::from_mib(1));
    let mut draft = pool.draft(&wanted)?;
    let file = source(bench, MIB + 1, &[])?;
    refused!(
        "a source that is one byte larger",
        draft.fill_from(&file, &mut |_, _| {}),
        PoolError::SourceTooLarge { .. }
    )?;
    let device = File::open("/dev/zero")?;
    refused!(
        "a device as the source",
        draft.fill_from(&device, &mut |_, _| {}),
        _
    )?;
    // The first has not touched the draft.
    let mut draft = match draft.commit() {
        Ok(()) => return equal("its flaws", pool.verify(wanted.id, wanted.size)?, vec![]),
        // After the second it may be good for nothing.
        Err(_) => pool.draft(&wanted)?,
    };
    refused!(
        "a source that is one byte larger",
        draft.fill_from(&file, &mut |_, _| {}),
        PoolError::SourceTooLarge { .. }
    )?;
    draft.commit()?;
    equal("its flaws", pool.verify(wanted.id, wanted.size)?, vec![])
}

pub(super) fn a_failed_fill_is_not_committed(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let file = source(bench, MIB, &[(0, b"data")])?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let unreadable = OpenOptions::new().write(true).open(path)?;
    let wanted = description(Bytes::from_mib(1));
    let mut draft = pool.draft(&wanted)?;
    if draft.fill_from(&unreadable, &mut |_, _| {}).is_ok() {
        // It came by the data some other way, as sharing extents is one.
        draft.commit()?;
        return reads(&*pool, wanted.id, 0, b"data");
    }
    refused!("committing it", draft.commit(), _)?;
    equal("the list", pool.list()?, vec![])
}

/// A draft that a program can write, and where.
fn has_path(draft: &dyn Draft) -> Result<&std::path::Path, Stop> {
    let none = Stop::NotClaimed("drafts that a program can write");
    draft.raw_path().ok_or(none)
}

pub(super) fn a_program_can_format_a_draft(bench: &Bench) -> Verdict {
    const MKFS: &str = "mkfs.ext4";
    let pool = bench.pool()?;
    let wanted = description(Bytes::from_mib(5 << 10));
    let draft = pool.draft(&wanted)?;
    let path = has_path(&*draft)?;
    if program::locate(MKFS).is_none() {
        return Err(Stop::Skipped(format!("{MKFS} is not installed")));
    }
    let formatted = Program::find(MKFS)?
        .args(["-q", "-F", "-E"])
        .arg("lazy_itable_init=1,lazy_journal_init=1,nodiscard,assume_storage_prezeroed=1")
        .arg(path)
        .run();
    if let Err(error) = formatted {
        let expected = format!("{MKFS} to be able to write {}", path.display());
        return Err(Stop::failed(expected, error));
    }
    draft.commit()?;
    equal("its flaws", pool.verify(wanted.id, wanted.size)?, vec![])?;
    let used = pool.facts(wanted.id)?.used;
    holds(
        used < Bytes::from_mib(4) || !knows_holes(&*pool, wanted.id)?,
        "less than 4 MiB in use",
        || format!("it takes {used}"),
    )?;
    // The superblock's magic number, at its place.
    reads(&*pool, wanted.id, 1024 + 56, &[0x53, 0xef])
}

pub(super) fn a_program_that_resizes_a_draft_is_caught(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let draft = pool.draft(&description(Bytes::from_mib(8)))?;
    let path = has_path(&*draft)?;
    if !path.is_file() {
        return Err(Stop::NotClaimed("drafts that are files"));
    }
    OpenOptions::new()
        .write(true)
        .open(path)?
        .set_len(4 * MIB)?;
    refused!(
        "committing it",
        draft.commit(),
        PoolError::Damaged {
            flaw: Flaw::WrongSize { .. },
            ..
        }
    )?;
    equal("the list", pool.list()?, vec![])
}
