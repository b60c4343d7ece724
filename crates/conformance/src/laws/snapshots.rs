//! Volumes as they were.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sistemo_host::Changed;
use sistemo_model::{Access, Bytes, SnapshotName, Timestamp, VolumeId};
use sistemo_pools::{Cost, Description, Found, Location, Origin, Pool, PoolError, Snapshots};

use super::clones::{clone_of, way_is_right};
use super::reaching::is_there;
use crate::Bench;
use crate::expectation::{equal, holds, is_a, refused, same_bytes};
use crate::law::{Stop, Verdict};
use crate::material::{
    MIB, a_name, create, description, knows_holes, read, reads, reads_zeros, volume, write,
};
use crate::random::noise;

pub(super) fn snapshots(pool: &dyn Pool) -> Result<&dyn Snapshots, Stop> {
    pool.snapshots().ok_or(Stop::NotClaimed("snapshot"))
}

/// Takes a snapshot and expects that it took the way that the pool tells of.
#[track_caller]
pub(super) fn take(pool: &dyn Pool, volume: VolumeId, name: &SnapshotName) -> Verdict {
    let snapshots = snapshots(pool)?;
    let mut told = Vec::new();
    let progress = &mut |done, total| told.push((done, total));
    let way = snapshots.take_snapshot(volume, name, Timestamp::now(), None, progress)?;
    way_is_right("a snapshot", snapshots.snapshot_cost(), way, &told)
}

fn revert(pool: &dyn Pool, volume: VolumeId, name: &SnapshotName) -> Verdict {
    let _ = snapshots(pool)?.revert(volume, name, &mut |_, _| {})?;
    Ok(())
}

fn names(pool: &dyn Pool, volume: VolumeId) -> Result<Vec<String>, Stop> {
    let listed = snapshots(pool)?.snapshots(volume)?;
    Ok(listed
        .iter()
        .map(|snapshot| snapshot.name.to_string())
        .collect())
}

/// Expects bytes at a place of a snapshot.
#[track_caller]
fn snapshot_reads(
    pool: &dyn Pool,
    volume: VolumeId,
    name: &SnapshotName,
    at: u64,
    wanted: &[u8],
) -> Verdict {
    let content = snapshots(pool)?.snapshot_content(volume, name)?;
    let read = read(&*content, at, wanted.len())?;
    same_bytes(format!("snapshot {name}"), at, &read, wanted)
}

/// A volume with a snapshot of each of some texts, the last of which it holds still.
fn with_history(pool: &dyn Pool, texts: &[&str]) -> Result<(Description, Vec<SnapshotName>), Stop> {
    let made = volume(pool, 2)?;
    let mut taken = Vec::new();
    for text in texts {
        write(pool, made.id, text.as_bytes(), 100)?;
        let name = a_name(text);
        take(pool, made.id, &name)?;
        taken.push(name);
    }
    Ok((made, taken))
}

pub(super) fn a_snapshot_keeps_the_volume_as_it_was(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 4)?;
    let before = noise(1, 1 << 20);
    write(&*pool, made.id, &before, 0)?;
    let name: SnapshotName = a_name("before");
    let earliest = Timestamp::now();
    take(&*pool, made.id, &name)?;
    let latest = Timestamp::now();

    let listed = snapshots(&*pool)?.snapshots(made.id)?;
    equal("the snapshots", listed.len(), 1)?;
    for snapshot in &listed {
        equal("the name", &snapshot.name, &name)?;
        equal("the size", snapshot.size, made.size)?;
        // Whole seconds are exact enough.
        let created = snapshot.created.as_second();
        holds(
            (earliest.as_second()..=latest.as_second()).contains(&created),
            format!("a time from {earliest} to {latest}"),
            || format!("it is {}", snapshot.created),
        )?;
    }
    write(&*pool, made.id, b"after", 500)?;
    write(&*pool, made.id, b"after", 3 * MIB)?;
    equal(
        "growing",
        pool.grow(made.id, Bytes::from_mib(6))?,
        Changed::Yes,
    )?;
    snapshot_reads(&*pool, made.id, &name, 0, &before)?;
    let mut content = snapshots(&*pool)?.snapshot_content(made.id, &name)?;
    equal("the snapshot's size", content.size(), made.size)?;
    reads_zeros(&*content, MIB, made.size.get())?;
    refused!(
        "a write to a snapshot",
        content.write_at(b"x", 0),
        PoolError::OpenedReadOnly { .. }
    )?;
    reads(&*pool, made.id, 500, b"after")
}

pub(super) fn a_snapshot_has_the_time_it_was_given(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 1)?;
    let power = snapshots(&*pool)?;
    let mut wanted = Vec::new();
    // One that comes from elsewhere may be older than those that are there.
    for (text, seconds) in [
        ("later", 1_000_000_000),
        ("first", 86_400),
        ("last", 4_000_000_000),
    ] {
        let created = Timestamp::from_second(seconds).unwrap_or_default();
        let name = a_name(text);
        let _ = power.take_snapshot(made.id, &name, created, None, &mut |_, _| {})?;
        wanted.push((created.as_second(), text.to_owned()));
    }
    wanted.sort();
    let of = |pool: &dyn Pool| -> Result<Vec<(i64, String)>, Stop> {
        let listed = snapshots(pool)?.snapshots(made.id)?;
        let times = listed.iter();
        let times = times.map(|one| (one.created.as_second(), one.name.to_string()));
        Ok(times.collect())
    };
    equal("the snapshots", of(&*pool)?, wanted.clone())?;
    for name in ["first", "last"] {
        revert(&*pool, made.id, &a_name(name))?;
        write(&*pool, made.id, b"after", 100)?;
    }
    equal("the snapshots", of(&*bench.pool()?)?, wanted)
}

pub(super) fn what_a_program_reads_of_a_snapshot_is_the_snapshot(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 4)?;
    let before = noise(1, 1 << 20);
    write(&*pool, made.id, &before, MIB)?;
    let name = a_name("before");
    take(&*pool, made.id, &name)?;
    write(&*pool, made.id, &noise(2, 1 << 20), MIB)?;
    let to = Bytes::from_mib(6);
    equal("growing", pool.grow(made.id, to)?, Changed::Yes)?;

    let power = snapshots(&*pool)?;
    let Some(location) = power.open_snapshot(made.id, &name)? else {
        return Err(Stop::NotClaimed("snapshots that programs can read"));
    };
    is_there(&location, made.size)?;
    let again = power.open_snapshot(made.id, &name)?;
    equal(
        "the location the second time",
        again.as_ref(),
        Some(&location),
    )?;
    let holds_it = |location: &Location| -> Verdict {
        let path = location.path();
        let there = |error| Stop::failed(format!("{} to be readable", path.display()), error);
        let mut read = vec![0; before.len()];
        if !matches!(location, Location::Qcow2File(_)) {
            let file = File::open(path).map_err(there)?;
            file.read_exact_at(&mut read, MIB).map_err(there)?;
            same_bytes(path.display(), MIB, &read, &before)?;
        }
        Ok(())
    };
    holds_it(&location)?;
    // Reading leaves it there, and what became of the volume too.
    snapshot_reads(&*pool, made.id, &name, MIB, &before)?;
    equal("the size", pool.facts(made.id)?.size, to)?;
    holds_it(&location)?;
    pool.close(made.id)?;
    Ok(())
}

pub(super) fn a_snapshot_that_a_vmm_writes_exists_with_its_commit(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 512)?;
    let power = snapshots(&*pool)?;
    let Some(live) = power.live_copies() else {
        return Err(Stop::NotClaimed("snapshots that a VMM writes"));
    };
    equal("the cost of a snapshot", power.snapshot_cost(), Cost::Copy)?;
    write(&*pool, made.id, b"volume", 100)?;
    let data = noise(1, 1 << 20);
    let name = a_name("written");
    let created = Timestamp::from_second(1_000_000_000).unwrap_or_default();
    let begin = |name: &SnapshotName| live.draft_snapshot(made.id, name, created, made.size);
    let fill = |path: &Path| -> Verdict {
        let io = |error| Stop::failed(format!("{} to be writable", path.display()), error);
        let file = File::options().write(true).open(path).map_err(io)?;
        equal(
            "its length",
            file.metadata().map_err(io)?.len(),
            made.size.get(),
        )?;
        file.write_all_at(&data, 200 * MIB).map_err(io)
    };

    // What is dropped leaves nothing, and what is killed nothing that lasts.
    let draft = begin(&name)?;
    fill(draft.raw_path())?;
    equal("the snapshots", names(&*pool, made.id)?.len(), 0)?;
    let path = draft.raw_path().to_owned();
    drop(draft);
    holds(!path.exists(), "a draft that is gone", || {
        format!("{} stays", path.display())
    })?;
    let other = a_name("killed");
    let killed = begin(&other)?;
    fill(killed.raw_path())?;
    let left = killed.raw_path().to_owned();
    std::mem::forget(killed);
    equal("the snapshots", names(&*pool, made.id)?.len(), 0)?;
    equal("the list", pool.list()?.len(), 1)?;
    equal("the flaws", pool.verify(made.id, made.size)?, vec![])?;

    let draft = begin(&name)?;
    holds(!left.exists(), "what was killed to be gone", || {
        format!("{} stays", left.display())
    })?;
    fill(draft.raw_path())?;
    draft.commit()?;
    let listed = bench.pool()?;
    let listed = snapshots(&*listed)?.snapshots(made.id)?;
    equal("the snapshots", listed.len(), 1)?;
    for snapshot in &listed {
        equal("the name", &snapshot.name, &name)?;
        equal("the size", snapshot.size, made.size)?;
        equal(
            "the time",
            snapshot.created.as_second(),
            created.as_second(),
        )?;
    }
    snapshot_reads(&*pool, made.id, &name, 200 * MIB, &data)?;
    let content = power.snapshot_content(made.id, &name)?;
    let extents = content.extents()?;
    let length: u64 = extents.iter().map(|extent| extent.length).sum();
    holds(length < 2 * MIB, "extents of 1 to 2 MiB", || {
        format!("they are {extents:?}")
    })?;
    refused!(
        "the same name",
        begin(&name),
        PoolError::SnapshotThere { .. }
    )?;
    reads(&*pool, made.id, 100, b"volume")?;
    revert(&*pool, made.id, &name)?;
    reads(&*pool, made.id, 200 * MIB, &data)
}

pub(super) fn a_volume_with_snapshots_is_one_volume(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let (made, _) = with_history(&*pool, &["one", "two"])?;
    for pool in [pool, bench.pool()?] {
        equal("the list", pool.list()?.len(), 1)?;
        let found = pool.find(made.id)?;
        equal("what is listed", pool.list()?.pop(), found.clone())?;
        is_a!("what is found", found, Some(Found::Volume { .. }))?;
        equal("the description", pool.description(made.id)?, made.clone())?;
        equal("the size", pool.facts(made.id)?.size, made.size)?;
        equal("the flaws", pool.verify(made.id, made.size)?, vec![])?;
        equal("the snapshots", names(&*pool, made.id)?, vec!["one", "two"])?;
    }
    Ok(())
}

pub(super) fn reverting_takes_back_content_and_size(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 4)?;
    let before = noise(1, 1 << 20);
    write(&*pool, made.id, &before, 3 * MIB)?;
    let name = a_name("before");
    take(&*pool, made.id, &name)?;
    write(&*pool, made.id, &noise(2, 1 << 20), 3 * MIB - 100)?;
    let to = Bytes::from_mib(10);
    equal("growing", pool.grow(made.id, to)?, Changed::Yes)?;
    write(&*pool, made.id, b"beyond", 9 * MIB)?;

    // Twice, for it may have to be repeated.
    for _ in 0..2 {
        revert(&*pool, made.id, &name)?;
        equal("the description", pool.description(made.id)?, made.clone())?;
        equal("the size", pool.facts(made.id)?.size, made.size)?;
        equal("the flaws", pool.verify(made.id, made.size)?, vec![])?;
        reads(&*pool, made.id, 3 * MIB, &before)?;
        let content = pool.content(made.id, Access::ReadOnly)?;
        reads_zeros(&*content, 0, 3 * MIB)?;
    }
    // What was beyond does not come back.
    equal("growing", pool.grow(made.id, to)?, Changed::Yes)?;
    let content = pool.content(made.id, Access::ReadOnly)?;
    reads_zeros(&*content, made.size.get(), to.get())?;
    drop(content);
    snapshot_reads(&*pool, made.id, &name, 3 * MIB, &before)
}

pub(super) fn reverting_changes_the_size_alone_in_the_description(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let (made, taken) = with_history(&*pool, &["before"])?;
    let mut renamed = made.clone();
    renamed.name = a_name("renamed");
    equal("describing", pool.describe(&renamed)?, Changed::Yes)?;
    for name in &taken {
        revert(&*pool, made.id, name)?;
    }
    equal("the description", pool.description(made.id)?, renamed)
}

pub(super) fn all_snapshots_stay_after_a_revert(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let texts = ["1st", "2nd", "3rd", "4th"];
    let (made, taken) = with_history(&*pool, &texts)?;
    for index in [0, 2, 1, 3, 0] {
        revert(&*pool, made.id, &taken[index])?;
        reads(&*pool, made.id, 100, texts[index].as_bytes())?;
        equal("the snapshots", names(&*pool, made.id)?, texts.to_vec())?;
        write(&*pool, made.id, b"???", 100)?;
        for (name, text) in taken.iter().zip(texts) {
            snapshot_reads(&*pool, made.id, name, 100, text.as_bytes())?;
        }
    }
    // Such a past has a future of its own.
    let name = a_name("5th");
    take(&*pool, made.id, &name)?;
    snapshot_reads(&*pool, made.id, &name, 100, b"???")?;
    equal("the snapshots", names(&*pool, made.id)?.len(), 5)
}

pub(super) fn snapshot_names_reach_their_limits(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 1)?;
    let longest = format!("a{}z", "._-0AB".repeat(20))[..63].to_owned();
    let names_there_may_be = [
        "a", "A", "0", &longest, "1.2.3", "a-b_c.d", "a.json", "a.new", "a.part", "a.raw",
        "a.ext4", "a.qcow2", "data", "a..b", "a.", "a-", "none", "new",
    ];
    for (seed, text) in (1..).zip(names_there_may_be) {
        write(&*pool, made.id, &noise(seed, 100), 0)?;
        take(&*pool, made.id, &a_name(text))?;
    }
    equal(
        "the snapshots",
        names(&*pool, made.id)?,
        names_there_may_be.to_vec(),
    )?;
    equal("the list", pool.list()?.len(), 1)?;
    for (seed, text) in (1..).zip(names_there_may_be) {
        let name = a_name(text);
        snapshot_reads(&*pool, made.id, &name, 0, &noise(seed, 100))?;
        revert(&*pool, made.id, &name)?;
        reads(&*pool, made.id, 0, &noise(seed, 100))?;
    }
    for text in names_there_may_be {
        let deleted = snapshots(&*pool)?.delete_snapshot(made.id, &a_name(text))?;
        equal(format!("deleting {text}"), deleted, Changed::Yes)?;
    }
    equal("the snapshots", names(&*pool, made.id)?.len(), 0)
}

pub(super) fn a_snapshot_is_not_taken_twice(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let (made, taken) = with_history(&*pool, &["once"])?;
    write(&*pool, made.id, b"later", 100)?;
    for name in &taken {
        let now = Timestamp::now();
        let again = snapshots(&*pool)?.take_snapshot(made.id, name, now, None, &mut |_, _| {});
        refused!("taking it again", again, PoolError::SnapshotThere { .. })?;
        snapshot_reads(&*pool, made.id, name, 100, b"once")?;
    }
    reads(&*pool, made.id, 100, b"later")?;
    equal("the snapshots", names(&*pool, made.id)?, vec!["once"])?;
    // Another volume may have one of the same name.
    let other = volume(&*pool, 1)?;
    take(&*pool, other.id, &a_name("once"))?;
    snapshot_reads(&*pool, made.id, &a_name("once"), 100, b"once")
}

pub(super) fn deleting_a_snapshot_keeps_the_others(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let texts = ["1st", "2nd", "3rd", "4th", "5th"];
    let (made, taken) = with_history(&*pool, &texts)?;
    write(&*pool, made.id, b"now", 100)?;
    let mut left: Vec<usize> = (0..texts.len()).collect();
    // In the middle, the oldest, the newest.
    for goes in [2, 0, 4, 3, 1] {
        let delete = || snapshots(&*pool).map(|s| s.delete_snapshot(made.id, &taken[goes]));
        equal("deleting", delete()??, Changed::Yes)?;
        equal("deleting again", delete()??, Changed::No)?;
        left.retain(|index| *index != goes);
        let names_left: Vec<_> = left.iter().map(|index| texts[*index]).collect();
        equal("the snapshots", names(&*pool, made.id)?, names_left)?;
        for index in &left {
            let text = texts[*index].as_bytes();
            snapshot_reads(&*pool, made.id, &taken[*index], 100, text)?;
        }
        reads(&*pool, made.id, 100, b"now")?;
        equal("the flaws", pool.verify(made.id, made.size)?, vec![])?;
    }
    // The name is free again.
    take(&*pool, made.id, &taken[2])?;
    snapshot_reads(&*pool, made.id, &taken[2], 100, b"now")
}

pub(super) fn a_snapshot_keeps_the_holes(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 512)?;
    let data = noise(1, 1 << 20);
    write(&*pool, made.id, &data, 200 * MIB)?;
    let name = a_name("sparse");
    take(&*pool, made.id, &name)?;
    for back in [false, true] {
        if back {
            revert(&*pool, made.id, &name)?;
        }
        if !knows_holes(&*pool, made.id)? {
            return Ok(());
        }
        for content in [
            snapshots(&*pool)?.snapshot_content(made.id, &name)?,
            pool.content(made.id, Access::ReadOnly)?,
        ] {
            let extents = content.extents()?;
            let length: u64 = extents.iter().map(|extent| extent.length).sum();
            holds(
                (MIB..2 * MIB).contains(&length),
                "extents of 1 to 2 MiB",
                || format!("they are {extents:?}"),
            )?;
        }
    }
    let used = pool.facts(made.id)?.used;
    holds(used < Bytes::from_mib(4), "less than 4 MiB in use", || {
        format!("it takes {used}")
    })
}

pub(super) fn a_clone_can_be_made_from_a_snapshot(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let (made, taken) = with_history(&*pool, &["1st", "2nd"])?;
    write(&*pool, made.id, b"now", 100)?;
    let to = Bytes::from_mib(8);
    equal("growing", pool.grow(made.id, to)?, Changed::Yes)?;
    write(&*pool, made.id, b"beyond", 4 * MIB)?;
    let from = |index: usize| Origin {
        volume: made.id,
        snapshot: Some(&taken[index]),
    };
    // The size of the snapshot counts, not that which the volume has now.
    let one = clone_of(&*pool, from(0), made.size)?;
    let two = clone_of(&*pool, from(1), Bytes::from_mib(6))?;
    for (cloned, text) in [(&one, b"1st"), (&two, b"2nd")] {
        reads(&*pool, cloned.id, 100, text)?;
        equal("the size", pool.facts(cloned.id)?.size, cloned.size)?;
        equal("the snapshots", names(&*pool, cloned.id)?.len(), 0)?;
    }
    let content = pool.content(two.id, Access::ReadOnly)?;
    reads_zeros(&*content, made.size.get(), two.size.get())?;
    drop(content);

    // Writes, and the end of the snapshot and the volume, stay where they are.
    write(&*pool, one.id, b"own", 100)?;
    snapshot_reads(&*pool, made.id, &taken[0], 100, b"1st")?;
    let deleted = snapshots(&*pool)?.delete_snapshot(made.id, &taken[0])?;
    equal("deleting the snapshot", deleted, Changed::Yes)?;
    reads(&*pool, one.id, 100, b"own")?;
    equal("removing the volume", pool.remove(made.id)?, Changed::Yes)?;
    reads(&*pool, one.id, 100, b"own")?;
    reads(&*pool, two.id, 100, b"2nd")?;
    for cloned in [&one, &two] {
        equal("the flaws", pool.verify(cloned.id, cloned.size)?, vec![])?;
    }
    equal("the volumes", pool.list()?.len(), 2)
}

pub(super) fn removing_a_volume_takes_its_snapshots_along(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let (made, _) = with_history(&*pool, &["1st", "2nd"])?;
    let (other, _) = with_history(&*pool, &["1st"])?;
    equal("removing", pool.remove(made.id)?, Changed::Yes)?;
    equal("removing again", pool.remove(made.id)?, Changed::No)?;
    equal("what is found", pool.find(made.id)?, None)?;
    equal("the volumes", pool.list()?.len(), 1)?;
    equal("the other's", names(&*pool, other.id)?, vec!["1st"])?;
    create(&*pool, &made)?;
    equal(
        "the snapshots of a new one",
        names(&*pool, made.id)?.len(),
        0,
    )
}

pub(super) fn snapshots_of_what_is_missing_are_refused(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let power = snapshots(&*pool)?;
    let (made, taken) = with_history(&*pool, &["there"])?;
    let missing = a_name("missing");
    let (silent, now) = (&mut |_, _| {}, Timestamp::now());
    let draft = description(Bytes::from_mib(1));
    let begun = pool.draft(&draft)?;
    for id in [VolumeId::random(), draft.id] {
        for (what, error) in [
            ("listing", power.snapshots(id).err()),
            (
                "taking",
                power.take_snapshot(id, &missing, now, None, silent).err(),
            ),
            ("reverting to", power.revert(id, &taken[0], silent).err()),
            ("reading", power.snapshot_content(id, &taken[0]).err()),
            ("opening", power.open_snapshot(id, &taken[0]).err()),
        ] {
            let result = error.map_or(Ok(()), Err);
            refused!(
                format!("{what} snapshots of a volume that is not there"),
                result,
                PoolError::NoSuchVolume { .. }
            )?;
        }
    }
    drop(begun);
    for (what, error) in [
        (
            "reverting to",
            power.revert(made.id, &missing, silent).err(),
        ),
        ("reading", power.snapshot_content(made.id, &missing).err()),
        ("opening", power.open_snapshot(made.id, &missing).err()),
    ] {
        let result = error.map_or(Ok(()), Err);
        refused!(
            format!("{what} a snapshot that is not there"),
            result,
            PoolError::NoSuchSnapshot { .. }
        )?;
    }
    let deleted = power.delete_snapshot(made.id, &missing)?;
    equal("deleting one that is not there", deleted, Changed::No)?;
    match power.delete_snapshot(VolumeId::random(), &missing) {
        Ok(Changed::No) | Err(PoolError::NoSuchVolume { .. }) => {}
        other => {
            return Err(Stop::failed(
                "deleting a snapshot of a volume that is not there to change nothing",
                format!("it was {other:?}"),
            ));
        }
    }
    reads(&*pool, made.id, 100, b"there")?;
    equal("the snapshots", names(&*pool, made.id)?, vec!["there"])
}

pub(super) fn a_snapshot_can_be_taken_while_the_volume_is_read(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 2)?;
    write(&*pool, made.id, b"data", 100)?;
    let opened = pool.open(made.id, Access::ReadOnly)?;
    let reader = pool.content(made.id, Access::ReadOnly)?;
    let name = a_name("taken");
    take(&*pool, made.id, &name)?;
    equal(
        "what the reader reads",
        read(&*reader, 100, 4)?,
        b"data".to_vec(),
    )?;
    drop(reader);
    drop(opened);
    pool.close(made.id)?;
    snapshot_reads(&*pool, made.id, &name, 100, b"data")?;
    let deleted = snapshots(&*pool)?.delete_snapshot(made.id, &name)?;
    equal("deleting it", deleted, Changed::Yes)?;
    reads(&*pool, made.id, 100, b"data")
}
