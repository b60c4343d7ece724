//! Which of a volume's space others use too.

use std::thread;
use std::time::{Duration, Instant};

use sistemo_host::Changed;
use sistemo_host::sparse::Extent;
use sistemo_model::{Access, Bytes, VolumeId};
use sistemo_pools::{Cost, Pool, Sharing};

use super::clones::{clone_of, clones, now};
use super::snapshots::{snapshots, take};
use crate::Bench;
use crate::expectation::{equal, holds};
use crate::law::{Stop, Verdict};
use crate::material::{MIB, a_name, volume, write};
use crate::random::noise;

/// More than tables and descriptions of a small volume take.
const LITTLE: u64 = MIB / 2;
/// How long it may take until space that others have given up is no longer told as shared:
/// btrfs takes a deleted subvolume apart at its next commit but one.
const PATIENCE: Duration = Duration::from_secs(90);

fn sharing(pool: &dyn Pool, volume: VolumeId) -> Result<Sharing, Stop> {
    let sharing = pool.sharing(volume)?;
    sharing.ok_or(Stop::NotClaimed("telling what is shared"))
}

/// Expects that `bytes` is `mib` MiB and a little.
#[track_caller]
fn about(what: &str, bytes: Bytes, mib: u64) -> Verdict {
    let (least, most) = (mib * MIB, mib * MIB + LITTLE);
    holds(
        (least..=most).contains(&bytes.get()),
        format!("{what} to be {least} to {most} bytes"),
        || format!("it is {}", bytes.get()),
    )
}

pub(super) fn a_volume_of_its_own_shares_nothing(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 16)?;
    about(
        "what an empty volume uses alone",
        sharing(&*pool, made.id)?.alone,
        0,
    )?;
    for (mib, at) in [(1, 0), (3, 8 * MIB)] {
        let data = noise(mib, usize::try_from(mib * MIB).unwrap_or(0));
        write(&*pool, made.id, &data, at)?;
    }
    let told = sharing(&*pool, made.id)?;
    equal("what it shares", told.shared, Bytes::new(0))?;
    about("what it uses alone", told.alone, 4)?;
    equal("the snapshots", told.snapshots.len(), 0)?;
    let used = pool.facts(made.id)?.used;
    holds(
        told.alone <= used,
        format!("at most the {used} in use"),
        || format!("alone it uses {}", told.alone),
    )?;
    let mut content = pool.content(made.id, Access::ReadWrite)?;
    content.make_hole(Extent {
        offset: 8 * MIB,
        length: 3 * MIB,
    })?;
    content.flush()?;
    drop(content);
    about("what is left of that", sharing(&*pool, made.id)?.alone, 1)
}

pub(super) fn what_snapshots_share_with_their_volume_adds_up(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 16)?;
    let copies = snapshots(&*pool)?.snapshot_cost() == Cost::Copy;
    sharing(&*pool, made.id)?;
    write(&*pool, made.id, &noise(1, 1 << 20), 0)?;
    write(&*pool, made.id, &noise(2, 2 << 20), 4 * MIB)?;
    let old = a_name("old");
    take(&*pool, made.id, &old)?;
    let told = sharing(&*pool, made.id)?;
    equal(
        "the snapshots",
        told.snapshots.keys().collect::<Vec<_>>(),
        vec![&old],
    )?;
    let of_old = told.snapshots.get(&old).copied().unwrap_or_default();
    let (own, shared, kept) = if copies { (3, 0, 3) } else { (0, 3, 0) };
    about("what the volume uses alone", told.alone, own)?;
    about("what it shares", told.shared, shared)?;
    about("what the snapshot uses alone", of_old, kept)?;

    // What is written anew is the volume's, and what it was before somebody's still.
    write(&*pool, made.id, &noise(3, 1 << 20), 0)?;
    write(&*pool, made.id, &noise(4, 1 << 20), 8 * MIB)?;
    let told = sharing(&*pool, made.id)?;
    about(
        "what the volume uses alone",
        told.alone,
        if copies { 4 } else { 2 },
    )?;
    let of_old = told.snapshots.get(&old).copied().unwrap_or_default();
    let all = told.alone.get() + told.shared.get() + of_old.get();
    let wanted = if copies { 7 } else { 5 };
    about("all of it", Bytes::new(all), wanted)?;

    take(&*pool, made.id, &a_name("young"))?;
    let told = sharing(&*pool, made.id)?;
    equal("the snapshots", told.snapshots.len(), 2)
}

/// Expects of a volume of 4 MiB that nobody shares any of it, once others have given it up.
fn shares_nothing_in_the_end(pool: &dyn Pool, volume: VolumeId) -> Verdict {
    let begun = Instant::now();
    loop {
        let told = sharing(pool, volume)?;
        let outcome = equal("the snapshots", told.snapshots.len(), 0)
            .and_then(|()| about("what it shares", told.shared, 0))
            .and_then(|()| {
                holds(told.alone.get() >= 4 * MIB, "4 MiB of its own", || {
                    format!("they are {}", told.alone)
                })
            });
        if outcome.is_ok() || begun.elapsed() > PATIENCE {
            return outcome;
        }
        thread::sleep(Duration::from_millis(200));
    }
}

pub(super) fn what_clones_share_adds_up(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 16)?;
    let copies = clones(&*pool)?.clone_cost() == Cost::Copy;
    sharing(&*pool, made.id)?;
    write(&*pool, made.id, &noise(1, 4 << 20), 0)?;
    let one = clone_of(&*pool, now(made.id), made.size)?;
    let two = clone_of(&*pool, now(one.id), made.size)?;
    for id in [made.id, one.id, two.id] {
        let told = sharing(&*pool, id)?;
        about("what is shared", told.shared, if copies { 0 } else { 4 })?;
        about("what is used alone", told.alone, if copies { 4 } else { 0 })?;
        equal("the snapshots", told.snapshots.len(), 0)?;
    }
    Ok(())
}

pub(super) fn what_others_have_given_up_is_ones_own(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 16)?;
    sharing(&*pool, made.id)?;
    write(&*pool, made.id, &noise(1, 4 << 20), 0)?;
    let (old, young) = (a_name("old"), a_name("young"));
    take(&*pool, made.id, &old)?;
    // It is the last one's own, whoever wrote it.
    let one = clone_of(&*pool, now(made.id), made.size)?;
    let two = clone_of(&*pool, now(one.id), made.size)?;
    take(&*pool, one.id, &young)?;
    for id in [made.id, two.id] {
        equal("removing", pool.remove(id)?, Changed::Yes)?;
    }
    let deleted = snapshots(&*pool)?.delete_snapshot(one.id, &young)?;
    equal("deleting a snapshot", deleted, Changed::Yes)?;
    shares_nothing_in_the_end(&*pool, one.id)
}
