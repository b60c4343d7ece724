//! Drafts, sizes, and the instant at which a volume exists.

use sistemo_host::Changed;
use sistemo_model::{Access, Boot, Bytes, Digest, Filesystem, Role};
use sistemo_pools::{Found, PoolError};

use crate::Bench;
use crate::expectation::{equal, holds, refused, same_bytes};
use crate::law::Verdict;
use crate::material::{create, description, knows_holes, read, reads_zeros, volume};

pub(super) fn a_committed_volume_is_as_described(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let mut wanted = description(Bytes::from_mib(64));
    wanted.role = Role::Root;
    wanted.boot = Some(Boot {
        kernel: Digest::from_bytes([1; 32]),
        initrd: Some(Digest::from_bytes([2; 32])),
    });
    create(&*pool, &wanted)?;

    equal(
        "the description",
        pool.description(wanted.id)?,
        wanted.clone(),
    )?;
    let facts = pool.facts(wanted.id)?;
    equal("the size", facts.size, wanted.size)?;
    let found = Found::Volume {
        description: wanted.clone(),
        facts,
    };
    equal("the list", pool.list()?, vec![found.clone()])?;
    equal("what is found", pool.find(wanted.id)?, Some(found))?;
    equal("its flaws", pool.verify(wanted.id, wanted.size)?, vec![])
}

pub(super) fn a_new_volume_is_all_zeros_and_takes_no_space(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 5 << 10)?;
    let used = pool.facts(made.id)?.used;
    holds(used < Bytes::from_mib(1), "less than 1 MiB in use", || {
        format!("it takes {used}")
    })?;
    let content = pool.content(made.id, Access::ReadOnly)?;
    if knows_holes(&*pool, made.id)? {
        equal("its extents", content.extents()?, vec![])?;
    }
    let end = made.size.get();
    reads_zeros(&*content, 0, 1 << 20)?;
    reads_zeros(&*content, end - 512, end)
}

pub(super) fn a_draft_is_no_volume_and_dropped_leaves_nothing(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let wanted = description(Bytes::from_mib(8));
    let id = wanted.id;
    let mut draft = pool.draft(&wanted)?;
    draft.content()?.write_at(b"data", 0)?;
    equal("the list", pool.list()?, vec![Found::Draft { id }])?;
    equal("what is found", pool.find(id)?, Some(Found::Draft { id }))?;
    for (what, error) in [
        ("facts", pool.facts(id).err()),
        ("a description", pool.description(id).err()),
        ("a content", pool.content(id, Access::ReadOnly).err()),
        ("a location", pool.open(id, Access::ReadOnly).err()),
    ] {
        let result = error.map_or(Ok(()), Err);
        refused!(
            format!("{what} of a draft"),
            result,
            PoolError::NoSuchVolume { .. }
        )?;
    }
    drop(draft);
    equal("the list", pool.list()?, vec![])?;
    equal("what is found", pool.find(id)?, None)
}

pub(super) fn a_volume_cannot_be_made_twice(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 8)?;
    let mut again = made.clone();
    again.size = Bytes::from_mib(16);
    // Under another filesystem it may have another file, but it is the same volume.
    for filesystem in Filesystem::ALL {
        again.filesystem = filesystem;
        refused!(
            "making it again",
            pool.draft(&again),
            PoolError::AlreadyThere { .. }
        )?;
    }
    equal("the description", pool.description(made.id)?, made)?;
    equal("the volumes", pool.list()?.len(), 1)
}

pub(super) fn a_draft_cannot_be_begun_twice(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let mut wanted = description(Bytes::from_mib(8));
    let draft = pool.draft(&wanted)?;
    for filesystem in Filesystem::ALL {
        wanted.filesystem = filesystem;
        refused!(
            "beginning it again",
            pool.draft(&wanted),
            PoolError::DraftThere { .. }
        )?;
    }
    draft.commit()?;
    equal("the volumes", pool.list()?.len(), 1)
}

pub(super) fn every_filesystem_can_be_recorded(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    for filesystem in Filesystem::ALL {
        let mut wanted = description(Bytes::from_mib(300));
        wanted.filesystem = filesystem;
        let (id, size) = (wanted.id, wanted.size);
        create(&*pool, &wanted)?;
        equal("the description", pool.description(id)?, wanted)?;
        equal("its flaws", pool.verify(id, size)?, vec![])?;
        equal("removing it", pool.remove(id)?, Changed::Yes)?;
    }
    equal("the list", pool.list()?, vec![])
}

pub(super) fn the_size_survives_at_both_limits(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    for size in [Bytes::new(512), Bytes::MINIMUM, Bytes::from_mib(8 << 20)] {
        let wanted = description(size);
        create(&*pool, &wanted)?;
        equal("the size", pool.facts(wanted.id)?.size, size)?;
        let mut content = pool.content(wanted.id, Access::ReadWrite)?;
        let last = size.get() - 512;
        content.write_at(&[7; 512], last)?;
        same_bytes("the end", last, &read(&*content, last, 512)?, &[7; 512])?;
        equal("its flaws", pool.verify(wanted.id, size)?, vec![])?;
    }
    Ok(())
}

pub(super) fn impossible_sizes_are_refused(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 1)?;
    for bytes in [0, 1, 513, (1 << 63) - 1, 1 << 63, u64::MAX - 511] {
        let refused = description(Bytes::new(bytes));
        refused!(
            format!("a volume of {bytes} bytes"),
            pool.draft(&refused),
            PoolError::BadSize { .. }
        )?;
        refused!(
            format!("growing to {bytes} bytes"),
            pool.grow(made.id, Bytes::new(bytes)),
            PoolError::BadSize { .. }
        )?;
    }
    equal("the volumes", pool.list()?.len(), 1)?;
    equal("its flaws", pool.verify(made.id, made.size)?, vec![])
}
