//! A pool that is full, and what takes no space.

use std::thread;
use std::time::{Duration, Instant};

use sistemo_host::Changed;
use sistemo_model::{Access, Bytes, Timestamp, VolumeId};
use sistemo_pools::{Cost, Description, Found, Pool, PoolError};

use super::clones::{clone_of, clones, now};
use super::snapshots::{snapshots, take};
use crate::Bench;
use crate::expectation::{equal, holds, is_a, refused, same_bytes};
use crate::law::{Stop, Verdict, told};
use crate::material::{MIB, a_name, create, description, read, source};
use crate::random::noise;

/// A volume that takes space from a pool, in pieces that can be told from each other.
struct Ballast {
    description: Description,
    piece: Vec<u8>,
    pieces: u64,
}

impl Ballast {
    fn new(pool: &dyn Pool) -> Result<Ballast, Stop> {
        let description = description(Bytes::from_mib(1 << 10));
        create(pool, &description)?;
        Ok(Ballast {
            description,
            piece: noise(1, 1 << 20),
            pieces: 0,
        })
    }

    fn id(&self) -> VolumeId {
        self.description.id
    }

    /// Writes pieces and flushes each, until `enough` says so or the pool is full, which is then
    /// returned.
    fn fill(
        &mut self,
        pool: &dyn Pool,
        enough: impl Fn(u64) -> Result<bool, Stop>,
    ) -> Result<Option<PoolError>, Stop> {
        let mut content = pool.content(self.id(), Access::ReadWrite)?;
        while !enough(self.pieces)? {
            let at = self.pieces * MIB;
            if at >= self.description.size.get() {
                return Err(Stop::Skipped(
                    "the place is too large to be filled".to_owned(),
                ));
            }
            self.piece[..8].copy_from_slice(&self.pieces.to_le_bytes());
            if let Err(error) = content
                .write_at(&self.piece, at)
                .and_then(|()| content.flush())
            {
                return Ok(Some(error));
            }
            self.pieces += 1;
        }
        Ok(None)
    }

    /// Writes until the pool is full.
    fn fill_up(&mut self, pool: &dyn Pool) -> Verdict {
        let error = self.fill(pool, |_| Ok(false))?;
        is_a!(
            "the error of a write to a full pool",
            error,
            Some(PoolError::Full { .. })
        )?;
        holds(self.pieces >= 8, "at least 8 MiB of room", || {
            format!("after {} MiB it was full", self.pieces)
        })
    }

    /// Expects that it is there, with all that was flushed.
    fn is_whole(&self, pool: &dyn Pool) -> Verdict {
        self.holds_in(pool, self.id())
    }

    /// Expects that a volume holds what this does.
    fn holds_in(&self, pool: &dyn Pool, id: VolumeId) -> Verdict {
        let size = self.description.size;
        equal("the flaws", pool.verify(id, size)?, vec![])?;
        let content = pool.content(id, Access::ReadOnly)?;
        let mut wanted = self.piece.clone();
        for piece in 0..self.pieces {
            wanted[..8].copy_from_slice(&piece.to_le_bytes());
            let at = piece * MIB;
            let length = wanted.len();
            same_bytes(
                "what was flushed",
                at,
                &read(&*content, at, length)?,
                &wanted,
            )?;
        }
        Ok(())
    }
}

fn is_alone(pool: &dyn Pool, ballast: &Ballast) -> Verdict {
    for found in pool.list()? {
        is_a!("what is listed", found, Found::Volume { .. })?;
    }
    equal("the volumes", pool.list()?.len(), 1)?;
    equal(
        "the description",
        pool.description(ballast.id())?,
        ballast.description.clone(),
    )
}

pub(super) fn a_write_that_finds_the_pool_full_says_so(bench: &Bench) -> Verdict {
    let (small, _filesystem) = bench.in_small_place()?;
    let pool = small.pool()?;
    let mut ballast = Ballast::new(&*pool)?;
    ballast.fill_up(&*pool)?;
    ballast.is_whole(&*pool)?;
    is_alone(&*pool, &ballast)?;

    // Volumes can be removed from a full pool, which gives their room back.
    let room = ballast.pieces;
    equal("removing", pool.remove(ballast.id())?, Changed::Yes)?;
    equal("the list", pool.list()?, vec![])?;
    has_room_for(&*pool, room / 2)
}

/// Expects that a pool comes to have room for so many MiB; the room of what was removed may take
/// a while to be there, as on a filesystem that frees it with its next transaction.
fn has_room_for(pool: &dyn Pool, mib: u64) -> Verdict {
    const PATIENCE: Duration = Duration::from_secs(30);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = pool.list()?;
        let filled = Ballast::new(pool).and_then(|mut ballast| {
            match ballast.fill(pool, |pieces| Ok(pieces >= mib))? {
                None => ballast.is_whole(pool),
                Some(error) => Err(error.into()),
            }
        });
        let Err(stop) = filled else {
            return Ok(());
        };
        if Instant::now() > deadline {
            return Err(stop.in_circumstances(format!("there should be room for {mib} MiB")));
        }
        for found in pool.list()? {
            match &found {
                Found::Volume { description, .. } if !before.contains(&found) => {
                    let _ = pool.remove(description.id)?;
                }
                _ => {}
            }
        }
        thread::sleep(Duration::from_millis(200));
    }
}

pub(super) fn filling_that_finds_the_pool_full_leaves_nothing(bench: &Bench) -> Verdict {
    const MISSING: u64 = 16 * MIB;
    let (small, _filesystem) = bench.in_small_place()?;
    let pool = small.pool()?;
    let mut ballast = Ballast::new(&*pool)?;
    let size = 2 * MISSING;
    let error = ballast.fill(&*pool, |_| Ok(pool.usage()?.free < MISSING))?;
    if let Some(error) = error {
        is_a!("the error of a write", error, PoolError::Full { .. })?;
    }
    let data = noise(2, usize::try_from(size).unwrap_or(0));
    // From elsewhere, so that it cannot share the extents.
    let file = source(bench, size, &[(0, &data)])?;
    let wanted = description(Bytes::new(size));
    let mut draft = match pool.draft(&wanted) {
        // There may be no room for another name.
        Err(PoolError::Full { .. }) => {
            is_alone(&*pool, &ballast)?;
            return ballast.is_whole(&*pool);
        }
        other => other?,
    };
    let filled = draft.fill_from(&file, &mut |_, _| {});
    match filled {
        Ok(_) => refused!("committing it", draft.commit(), PoolError::Full { .. })?,
        filled => {
            refused!("filling it", filled, PoolError::Full { .. })?;
            drop(draft);
        }
    }
    equal("what is found of it", pool.find(wanted.id)?, None)?;
    is_alone(&*pool, &ballast)?;
    ballast.is_whole(&*pool)
}

pub(super) fn a_full_pool_does_what_is_asked_or_stays_as_it_is(bench: &Bench) -> Verdict {
    let (small, _filesystem) = bench.in_small_place()?;
    let pool = small.pool()?;
    let mut ballast = Ballast::new(&*pool)?;
    ballast.fill_up(&*pool)?;
    // The last corner.
    let mut corner = pool.content(ballast.id(), Access::ReadWrite)?;
    let mut at = (ballast.pieces + 1) * MIB;
    while corner
        .write_at(&ballast.piece[..4096], at)
        .and_then(|()| corner.flush())
        .is_ok()
    {
        at += 4096;
    }
    drop(corner);

    let id = ballast.id();
    let name = a_name("when-it-was-full");
    let silent = &mut |_: u64, _: u64| {};
    for _ in 0..3 {
        let new = description(Bytes::from_mib(4));
        match done_or_full("creating", create(&*pool, &new))? {
            Changed::Yes => equal("removing", pool.remove(new.id)?, Changed::Yes)?,
            Changed::No => equal("what is found of it", pool.find(new.id)?, None)?,
        }
        is_alone(&*pool, &ballast)?;

        let to = Bytes::new(ballast.description.size.get() + 4 * MIB);
        if done_or_full("growing", pool.grow(id, to))? == Changed::Yes {
            ballast.description.size = to;
        }
        equal("the size", pool.facts(id)?.size, ballast.description.size)?;
        is_alone(&*pool, &ballast)?;

        if let Some(clones) = pool.clones() {
            let new = description(ballast.description.size);
            let cloned = clones.clone_volume(now(id), &new, silent);
            match done_or_full("cloning", cloned)? {
                Changed::Yes => {
                    ballast.holds_in(&*pool, new.id)?;
                    equal("removing", pool.remove(new.id)?, Changed::Yes)?;
                }
                Changed::No => equal("what is found of it", pool.find(new.id)?, None)?,
            }
            is_alone(&*pool, &ballast)?;
        }

        if let Some(snapshots) = pool.snapshots() {
            let taken = snapshots.take_snapshot(id, &name, Timestamp::now(), None, silent);
            let taken = done_or_full("taking a snapshot", taken)?;
            let listed = snapshots.snapshots(id)?.len();
            equal("the snapshots", listed, usize::from(taken == Changed::Yes))?;
            if taken == Changed::Yes {
                let reverted = snapshots.revert(id, &name, silent);
                let _ = done_or_full("reverting", reverted)?;
                let deleted = snapshots.delete_snapshot(id, &name)?;
                equal("deleting it", deleted, Changed::Yes)?;
            }
            is_alone(&*pool, &ballast)?;
        }
        ballast.is_whole(&*pool)?;
    }
    Ok(())
}

/// Expects that something was done, or was refused as the pool is full.
#[track_caller]
fn done_or_full<T>(what: &str, result: Result<T, PoolError>) -> Result<Changed, Stop> {
    match result {
        Ok(_) => Ok(Changed::Yes),
        Err(PoolError::Full { .. }) => Ok(Changed::No),
        Err(error) => Err(Stop::failed(
            format!("{what} in a full pool to succeed or be refused with PoolError::Full"),
            told(&error),
        )),
    }
}

/// A volume that takes more than half of the space there is, so that it cannot be copied.
fn more_than_half(pool: &dyn Pool) -> Result<Ballast, Stop> {
    let mut ballast = Ballast::new(pool)?;
    let before = pool.usage()?.free;
    let error = ballast.fill(pool, |pieces| Ok(pieces * MIB > before / 10 * 6))?;
    match error {
        None => Ok(ballast),
        Some(error) => Err(Stop::failed(
            "room for six tenths of what is free",
            told(&error),
        )),
    }
}

pub(super) fn an_instant_clone_takes_no_space(bench: &Bench) -> Verdict {
    let (small, _filesystem) = bench.in_small_place()?;
    let pool = small.pool()?;
    if clones(&*pool)?.clone_cost() != Cost::Instant {
        return Err(Stop::NotClaimed("instant clones"));
    }
    let ballast = more_than_half(&*pool)?;
    for _ in 0..8 {
        let cloned = clone_of(&*pool, now(ballast.id()), ballast.description.size)?;
        ballast.holds_in(&*pool, cloned.id)?;
    }
    ballast.is_whole(&*pool)
}

pub(super) fn an_instant_snapshot_takes_no_space(bench: &Bench) -> Verdict {
    let (small, _filesystem) = bench.in_small_place()?;
    let pool = small.pool()?;
    if snapshots(&*pool)?.snapshot_cost() != Cost::Instant {
        return Err(Stop::NotClaimed("instant snapshots"));
    }
    let ballast = more_than_half(&*pool)?;
    for number in 0..8 {
        let name = a_name(&format!("s{number}"));
        take(&*pool, ballast.id(), &name)?;
        let _ = snapshots(&*pool)?.revert(ballast.id(), &name, &mut |_, _| {})?;
    }
    ballast.is_whole(&*pool)
}

pub(super) fn a_copy_that_finds_no_space_leaves_nothing(bench: &Bench) -> Verdict {
    let (small, _filesystem) = bench.in_small_place()?;
    let pool = small.pool()?;
    let copies = clones(&*pool)?.clone_cost() == Cost::Copy;
    if !copies {
        return Err(Stop::NotClaimed("clones that are copies"));
    }
    let ballast = more_than_half(&*pool)?;
    let silent = &mut |_: u64, _: u64| {};
    for _ in 0..2 {
        let new = description(ballast.description.size);
        let cloned = clones(&*pool)?.clone_volume(now(ballast.id()), &new, silent);
        refused!("cloning", cloned, PoolError::Full { .. })?;
        equal("what is found of it", pool.find(new.id)?, None)?;
        is_alone(&*pool, &ballast)?;
        if let Some(snapshots) = pool.snapshots() {
            let taken = snapshots.take_snapshot(
                ballast.id(),
                &a_name("copy"),
                Timestamp::now(),
                None,
                silent,
            );
            refused!("taking a snapshot", taken, PoolError::Full { .. })?;
            let listed = snapshots.snapshots(ballast.id())?;
            equal("the snapshots", listed, vec![])?;
        }
    }
    ballast.is_whole(&*pool)?;
    has_room_for(&*pool, ballast.pieces / 3)
}
