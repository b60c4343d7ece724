//! A pool as a whole.

use std::thread;

use sistemo_host::Changed;
use sistemo_model::{Access, Bytes};
use sistemo_pools::{Flaw, Found, PoolError, Power};

use crate::Bench;
use crate::expectation::{equal, holds, is_a, refused};
use crate::law::{Stop, Verdict};
use crate::material::{description, volume};

pub(super) fn an_empty_pool_is_usable_and_has_nothing(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    pool.probe()?;
    equal("the list", pool.list()?, vec![])?;
    let directory = pool.directory();
    holds(directory.is_absolute(), "an absolute directory", || {
        format!("it is {}", directory.display())
    })?;
    let usage = pool.usage()?;
    holds(
        usage.size > 0 && usage.size == usage.used + usage.free,
        "a size that is what is used and what is free",
        || format!("it is {usage:?}"),
    )
}

pub(super) fn the_powers_are_as_the_driver_says(bench: &Bench) -> Verdict {
    let Some(powers) = bench.powers() else {
        return Err(Stop::NotClaimed("a list of its powers"));
    };
    let pool = bench.pool()?;
    equal(
        "the power to clone",
        pool.clones().is_some(),
        powers.contains(&Power::Clone),
    )?;
    equal(
        "the power to keep snapshots",
        pool.snapshots().is_some(),
        powers.contains(&Power::Snapshot),
    )?;
    // A driver with this power need not use it in every pool.
    holds(
        pool.own_filesystem().is_none() || powers.contains(&Power::Resize),
        "no filesystem of its own in a pool whose driver does not tell of one",
        || "it has one".to_owned(),
    )
}

pub(super) fn operations_on_a_missing_volume_name_it(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let missing = description(Bytes::from_mib(1));
    let id = missing.id;
    for (what, error) in [
        ("growing", pool.grow(id, missing.size).err()),
        ("opening", pool.open(id, Access::ReadOnly).err()),
        ("its content", pool.content(id, Access::ReadOnly).err()),
        ("describing", pool.describe(&missing).err()),
        ("its description", pool.description(id).err()),
        ("its facts", pool.facts(id).err()),
        ("its sharing", pool.sharing(id).err()),
    ] {
        let result = error.map_or(Ok(()), Err);
        refused!(
            format!("{what} of a volume that is not there"),
            &result,
            PoolError::NoSuchVolume { .. }
        )?;
        let said = result.err().map(|error| error.to_string());
        let wanted = format!("pool {} has no volume {id}", pool.name());
        equal("what it says", said, Some(wanted))?;
    }
    equal("removing it", pool.remove(id)?, Changed::No)?;
    pool.close(id)?;
    equal("finding it", pool.find(id)?, None)?;
    equal(
        "verifying it",
        pool.verify(id, missing.size)?,
        vec![Flaw::Missing],
    )?;
    equal("the list", pool.list()?, vec![])
}

pub(super) fn a_second_handle_sees_everything(bench: &Bench) -> Verdict {
    let (one, two) = (bench.pool()?, bench.pool()?);
    let made = volume(&*one, 1)?;
    equal(
        "the other's description",
        two.description(made.id)?,
        made.clone(),
    )?;
    let to = Bytes::from_mib(3);
    equal("growing by the other", two.grow(made.id, to)?, Changed::Yes)?;
    equal("the size", one.facts(made.id)?.size, to)?;
    equal("removing", one.remove(made.id)?, Changed::Yes)?;
    equal("the other's list", two.list()?, vec![])
}

pub(super) fn many_at_once_do_not_meet(bench: &Bench) -> Verdict {
    const THREADS: usize = 8;
    const ROUNDS: usize = 12;
    // The first of these makes the pool, and none knows which that is.
    let verdicts: Vec<Verdict> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| work_beside_others(bench, ROUNDS)))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    for verdict in verdicts {
        verdict?;
    }
    let found = bench.pool()?.list()?;
    equal(
        "the volumes that stay",
        found.len(),
        THREADS * ROUNDS * 2 / 3,
    )?;
    for found in found {
        is_a!("what stays", found, Found::Volume { .. })?;
        if let Found::Volume { description, facts } = found {
            equal("the described size", description.size, facts.size)?;
        }
    }
    Ok(())
}

fn work_beside_others(bench: &Bench, rounds: usize) -> Verdict {
    let pool = bench.pool()?;
    for round in 0..rounds {
        let made = volume(&*pool, 1)?;
        let to = Bytes::from_mib(2);
        equal("growing", pool.grow(made.id, to)?, Changed::Yes)?;
        if round % 3 == 0 {
            equal("removing", pool.remove(made.id)?, Changed::Yes)?;
        }
        for found in pool.list()? {
            // What others work on is in flux, but never damaged or a stray.
            is_a!(
                "what others work on",
                found,
                Found::Volume { .. } | Found::Draft { .. } | Found::Orphan { .. }
            )?;
        }
    }
    Ok(())
}
