//! The instant at which a volume does not exist any more.

use sistemo_host::Changed;
use sistemo_model::Bytes;

use crate::Bench;
use crate::expectation::equal;
use crate::law::Verdict;
use crate::material::{create, description, reads, volume, write};

pub(super) fn a_removed_volume_is_gone_and_removing_again_changes_nothing(
    bench: &Bench,
) -> Verdict {
    let pool = bench.pool()?;
    let (made, other) = (volume(&*pool, 8)?, volume(&*pool, 8)?);
    write(&*pool, made.id, b"gone", 0)?;
    write(&*pool, other.id, b"stays", 0)?;
    equal("removing it", pool.remove(made.id)?, Changed::Yes)?;
    equal("removing it again", pool.remove(made.id)?, Changed::No)?;
    equal("what is found", pool.find(made.id)?, None)?;
    equal("the volumes", pool.list()?.len(), 1)?;
    equal(
        "the other's flaws",
        pool.verify(other.id, other.size)?,
        vec![],
    )?;
    reads(&*pool, other.id, 0, b"stays")?;
    // Nothing of it stands in the way of, or comes back in, another of that name.
    create(&*pool, &made)?;
    reads(&*pool, made.id, 0, &[0; 4])?;
    equal("the volumes", pool.list()?.len(), 2)
}

pub(super) fn remove_takes_an_abandoned_draft(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let wanted = description(Bytes::from_mib(8));
    // As a killed process leaves it: never dropped.
    std::mem::forget(pool.draft(&wanted)?);
    equal("removing it", pool.remove(wanted.id)?, Changed::Yes)?;
    equal("the list", pool.list()?, vec![])?;
    create(&*pool, &wanted)?;
    equal("the volumes", pool.list()?.len(), 1)
}
