//! Volumes that are made from volumes.

use sistemo_host::Changed;
use sistemo_model::{Access, Boot, Bytes, Digest, Role, VolumeId};
use sistemo_pools::{Clones, Cost, Description, Found, Origin, Pool, PoolError, Way};

use crate::Bench;
use crate::expectation::{equal, holds, refused};
use crate::law::{Stop, Verdict};
use crate::material::{
    MIB, a_name, description, knows_holes, read, reads, reads_zeros, volume, write,
};
use crate::random::noise;

pub(super) fn clones(pool: &dyn Pool) -> Result<&dyn Clones, Stop> {
    pool.clones().ok_or(Stop::NotClaimed("clone"))
}

/// A volume as it is now, to be cloned.
pub(super) fn now(volume: VolumeId) -> Origin<'static> {
    Origin {
        volume,
        snapshot: None,
    }
}

/// Clones a volume and expects that it took the way that the pool tells of.
#[track_caller]
pub(super) fn clone_of(
    pool: &dyn Pool,
    origin: Origin<'_>,
    size: Bytes,
) -> Result<Description, Stop> {
    let new = description(size);
    clone_as(pool, origin, &new)?;
    Ok(new)
}

#[track_caller]
fn clone_as(pool: &dyn Pool, origin: Origin<'_>, new: &Description) -> Verdict {
    let clones = clones(pool)?;
    let mut told = Vec::new();
    let way = clones.clone_volume(origin, new, &mut |done, total| told.push((done, total)))?;
    way_is_right("a clone", clones.clone_cost(), way, &told)
}

/// Expects that what was to be instant was, and that progress ends at its total. An instant way
/// has progress too where it shortens what has grown long.
#[track_caller]
pub(super) fn way_is_right(what: &str, cost: Cost, way: Way, told: &[(u64, u64)]) -> Verdict {
    if cost == Cost::Instant {
        equal(format!("the cost of {what} by {way}"), way.cost(), cost)?;
    }
    holds(
        told.last().is_none_or(|(done, total)| done == total),
        format!("the progress of {what} to end at the total"),
        || format!("by {way} it was {told:?}"),
    )
}

pub(super) fn a_clone_holds_what_its_origin_does(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 8)?;
    let data = noise(1, 300_000);
    write(&*pool, made.id, &data, MIB)?;

    let mut new = description(made.size);
    new.role = Role::Root;
    new.boot = Some(Boot {
        kernel: Digest::from_bytes([3; 32]),
        initrd: None,
    });
    clone_as(&*pool, now(made.id), &new)?;
    let mut wanted = vec![made.clone(), new.clone()];
    wanted.sort_by_key(|description| description.id);
    let mut listed = Vec::new();
    for found in pool.list()? {
        match found {
            Found::Volume { description, .. } => listed.push(description),
            other => return Err(Stop::failed("nothing but volumes", format!("{other:?}"))),
        }
    }
    equal("the descriptions", listed, wanted)?;
    for id in [made.id, new.id] {
        equal("the flaws", pool.verify(id, made.size)?, vec![])?;
        equal("the size", pool.facts(id)?.size, made.size)?;
        reads(&*pool, id, MIB, &data)?;
        let content = pool.content(id, Access::ReadOnly)?;
        reads_zeros(&*content, 0, MIB)?;
        reads_zeros(&*content, 2 * MIB, made.size.get())?;
    }
    let opened = |id| pool.open(id, Access::ReadOnly);
    let (one, two) = (opened(made.id)?, opened(new.id)?);
    holds(one.path() != two.path(), "a location of its own", || {
        format!("both are at {}", one.path().display())
    })
}

pub(super) fn a_clone_and_its_origin_never_see_each_others_writes(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 4)?;
    let before = noise(1, 1 << 20);
    write(&*pool, made.id, &before, 0)?;
    let cloned = clone_of(&*pool, now(made.id), made.size)?;

    write(&*pool, made.id, b"the origin's", 100)?;
    reads(&*pool, cloned.id, 0, &before)?;
    write(&*pool, cloned.id, b"the clone's", 2000)?;
    let mut origin = before.clone();
    origin[100..112].copy_from_slice(b"the origin's");
    let mut clone = before;
    clone[2000..2011].copy_from_slice(b"the clone's");
    reads(&*pool, made.id, 0, &origin)?;
    reads(&*pool, cloned.id, 0, &clone)?;

    // Where the one had a hole too, and where it is longer.
    write(&*pool, made.id, b"here", 3 * MIB)?;
    let to = Bytes::from_mib(6);
    equal("growing", pool.grow(made.id, to)?, Changed::Yes)?;
    write(&*pool, made.id, b"there", 5 * MIB)?;
    equal("the clone's size", pool.facts(cloned.id)?.size, made.size)?;
    reads(&*pool, cloned.id, 3 * MIB, &[0; 4])?;
    equal("growing", pool.grow(cloned.id, to)?, Changed::Yes)?;
    reads(&*pool, cloned.id, 5 * MIB, &[0; 5])?;
    reads(&*pool, cloned.id, 0, &clone)?;
    reads(&*pool, made.id, 0, &origin)?;
    reads(&*pool, made.id, 5 * MIB, b"there")
}

pub(super) fn a_clone_keeps_the_holes(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 512)?;
    let data = noise(1, 1 << 20);
    write(&*pool, made.id, &data, 200 * MIB)?;
    let cloned = clone_of(&*pool, now(made.id), made.size)?;
    reads(&*pool, cloned.id, 200 * MIB, &data)?;
    if !knows_holes(&*pool, cloned.id)? {
        return Ok(());
    }
    let extents = pool.content(cloned.id, Access::ReadOnly)?.extents()?;
    let length: u64 = extents.iter().map(|extent| extent.length).sum();
    holds(
        (MIB..2 * MIB).contains(&length),
        "extents of 1 to 2 MiB",
        || format!("they are {extents:?}"),
    )?;
    let used = pool.facts(cloned.id)?.used;
    holds(used < Bytes::from_mib(3), "less than 3 MiB in use", || {
        format!("it takes {used}")
    })
}

pub(super) fn a_clone_may_be_larger_but_not_smaller(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 4)?;
    let data = noise(1, 1 << 20);
    write(&*pool, made.id, &data, 3 * MIB)?;
    let size = Bytes::new(9 * MIB + 512);
    let larger = clone_of(&*pool, now(made.id), size)?;
    equal("the size", pool.facts(larger.id)?.size, size)?;
    equal("the flaws", pool.verify(larger.id, size)?, vec![])?;
    reads(&*pool, larger.id, 3 * MIB, &data)?;
    let content = pool.content(larger.id, Access::ReadOnly)?;
    equal("the content's size", content.size(), size)?;
    reads_zeros(&*content, 4 * MIB, size.get())?;
    drop(content);
    write(&*pool, larger.id, b"end", size.get() - 3)?;
    reads(&*pool, larger.id, size.get() - 3, b"end")?;

    let smaller = description(Bytes::from_mib(3));
    refused!(
        "a clone that is smaller",
        clones(&*pool)?.clone_volume(now(made.id), &smaller, &mut |_, _| {}),
        PoolError::SourceTooLarge { .. }
    )?;
    equal("what is found of it", pool.find(smaller.id)?, None)?;
    equal("the volumes", pool.list()?.len(), 2)
}

pub(super) fn a_chain_of_forty_clones_holds(bench: &Bench) -> Verdict {
    const LINKS: u64 = 40;
    const PLACE: u64 = 20_000;
    let pool = bench.pool()?;
    let first = volume(&*pool, 1)?;
    let mut chain = vec![first.id];
    let mut written = vec![0; 1 << 20];
    let mut wanted = Vec::new();
    for link in 0..LINKS {
        let id = *chain.last().unwrap_or(&first.id);
        let data = noise(link + 1, 3000);
        write(&*pool, id, &data, link * PLACE)?;
        let at = usize::try_from(link * PLACE).unwrap_or(0);
        written[at..at + data.len()].copy_from_slice(&data);
        wanted.push((id, written.clone()));
        if link + 1 < LINKS {
            chain.push(clone_of(&*pool, now(id), first.size)?.id);
        }
    }
    let all_hold = |wanted: &[(VolumeId, Vec<u8>)]| {
        for (id, bytes) in wanted {
            reads(&*pool, *id, 0, bytes)?;
            equal("the flaws", pool.verify(*id, first.size)?, vec![])?;
        }
        Ok::<_, Stop>(())
    };
    all_hold(&wanted)?;
    // Every third one goes, the first among them, and those that stay can still be written.
    let mut stay = Vec::new();
    for (link, (id, mut bytes)) in wanted.into_iter().enumerate() {
        if link % 3 == 0 {
            equal("removing", pool.remove(id)?, Changed::Yes)?;
        } else {
            write(&*pool, id, b"still", 15_000)?;
            bytes[15_000..15_005].copy_from_slice(b"still");
            stay.push((id, bytes));
        }
    }
    equal("the volumes", pool.list()?.len(), stay.len())?;
    all_hold(&stay)
}

pub(super) fn a_clone_and_its_origin_survive_each_other(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let data = noise(1, 1 << 20);
    for origin_goes in [true, false] {
        let made = volume(&*pool, 2)?;
        write(&*pool, made.id, &data, 0)?;
        let cloned = clone_of(&*pool, now(made.id), made.size)?;
        let (goes, stays) = if origin_goes {
            (made.id, cloned.id)
        } else {
            (cloned.id, made.id)
        };
        equal("removing one", pool.remove(goes)?, Changed::Yes)?;
        equal("removing it again", pool.remove(goes)?, Changed::No)?;
        reads(&*pool, stays, 0, &data)?;
        equal("the flaws", pool.verify(stays, made.size)?, vec![])?;
        write(&*pool, stays, b"on", 70_000)?;
        reads(&*pool, stays, 70_000, b"on")?;
        // And it can be cloned, from another handle too.
        let again = clone_of(&*bench.pool()?, now(stays), made.size)?;
        reads(&*pool, again.id, 0, &data[..70_000])?;
        equal("the volumes", pool.list()?.len(), 2)?;
        for id in [stays, again.id] {
            equal("removing", pool.remove(id)?, Changed::Yes)?;
        }
        equal("the list", pool.list()?, vec![])?;
    }
    Ok(())
}

pub(super) fn a_clone_is_not_made_over_what_is_there(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let (made, other) = (volume(&*pool, 1)?, volume(&*pool, 1)?);
    write(&*pool, other.id, b"stays", 0)?;
    let again = |new: &Description| {
        clones(&*pool).map(|c| c.clone_volume(now(made.id), new, &mut |_, _| {}))
    };
    refused!(
        "a clone under the ID of a volume",
        again(&other)?,
        PoolError::AlreadyThere { .. }
    )?;
    refused!(
        "a clone under the ID of its origin",
        again(&made)?,
        PoolError::AlreadyThere { .. }
    )?;
    reads(&*pool, other.id, 0, b"stays")?;
    let begun = description(made.size);
    let draft = pool.draft(&begun)?;
    refused!(
        "a clone under the ID of a draft",
        again(&begun)?,
        PoolError::DraftThere { .. }
    )?;
    draft.commit()?;
    equal("the volumes", pool.list()?.len(), 3)
}

pub(super) fn a_clone_of_what_is_missing_is_refused(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 1)?;
    let new = description(Bytes::from_mib(1));
    let tried = |origin: Origin<'_>| {
        clones(&*pool).map(|clones| clones.clone_volume(origin, &new, &mut |_, _| {}))
    };
    refused!(
        "a clone of a volume that is not there",
        tried(now(VolumeId::random()))?,
        PoolError::NoSuchVolume { .. }
    )?;
    let begun = description(Bytes::from_mib(1));
    let draft = pool.draft(&begun)?;
    refused!(
        "a clone of a draft",
        tried(now(begun.id))?,
        PoolError::NoSuchVolume { .. }
    )?;
    drop(draft);
    let missing = a_name("missing");
    let origin = Origin {
        volume: made.id,
        snapshot: Some(&missing),
    };
    refused!(
        "a clone of a snapshot that is not there",
        tried(origin)?,
        PoolError::NoSuchSnapshot { .. }
    )?;
    equal("what is found of it", pool.find(new.id)?, None)?;
    equal("the volumes", pool.list()?.len(), 1)?;
    let content = pool.content(made.id, Access::ReadOnly)?;
    equal("what the volume holds", read(&*content, 0, 1)?, vec![0])
}
