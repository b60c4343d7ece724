//! Larger volumes.

use sistemo_host::Changed;
use sistemo_model::{Access, Bytes};
use sistemo_pools::{Location, PoolError};

use crate::Bench;
use crate::expectation::{equal, refused};
use crate::law::{Stop, Verdict};
use crate::material::{MIB, data_file, reads, reads_zeros, volume, write};

pub(super) fn growing_keeps_the_data_and_adds_zeros(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 8)?;
    let last = made.size.get() - 4;
    write(&*pool, made.id, b"last", last)?;

    let to = Bytes::new(20 * MIB + 512);
    equal("growing", pool.grow(made.id, to)?, Changed::Yes)?;
    equal("growing again", pool.grow(made.id, to)?, Changed::No)?;
    equal("the size", pool.facts(made.id)?.size, to)?;
    equal("the described size", pool.description(made.id)?.size, to)?;
    equal("its flaws", pool.verify(made.id, to)?, vec![])?;
    reads(&*pool, made.id, last, b"last\0\0\0\0")?;
    let content = pool.content(made.id, Access::ReadOnly)?;
    equal("the content's size", content.size(), to)?;
    reads_zeros(&*content, made.size.get(), to.get())
}

pub(super) fn growing_never_shrinks(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 8)?;
    refused!(
        "shrinking",
        pool.grow(made.id, Bytes::from_mib(7)),
        PoolError::Shrinks { .. }
    )?;
    equal("growing", pool.grow(made.id, made.size)?, Changed::No)?;
    equal("its flaws", pool.verify(made.id, made.size)?, vec![])
}

pub(super) fn growing_a_damaged_volume_is_refused(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 8)?;
    let file = data_file(&*pool, made.id)?;
    let raw = matches!(pool.open(made.id, Access::ReadOnly)?, Location::RawFile(_));
    let left = if raw { MIB } else { 0 };
    file.set_len(left)
        .map_err(|error| Stop::failed("the volume's file to be cut short", error))?;
    refused!(
        "growing a volume whose data is cut short",
        pool.grow(made.id, Bytes::from_mib(20)),
        PoolError::Damaged { .. }
    )?;
    let length = file.metadata()?.len();
    equal("the length of its file", length, left)
}
