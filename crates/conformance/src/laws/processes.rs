//! Processes that are killed half-way, and several at once.

use std::thread;
use std::time::Duration;

use sistemo_pools::{Found, Pool};

use crate::Bench;
use crate::expectation::{equal, is_a};
use crate::law::{Stop, Verdict};
use crate::random::Random;
use crate::worker::{Diary, Worker};

pub(super) fn whenever_it_is_killed_what_returned_is_there_and_the_rest_recovers(
    bench: &Bench,
) -> Verdict {
    const KILLS: u64 = 16;
    const LONGEST: u64 = 60_000;
    let pool = bench.pool()?;
    let diary = Diary::at(bench.scratch().join("diary"));
    let seed = bench.seed();
    let mut random = Random::new(seed);
    let mut interrupted = 0;
    for kill in 1..=KILLS {
        let mut worker = Worker::start(bench, &diary, seed.wrapping_add(kill), None)?;
        worker.wait_for_work()?;
        thread::sleep(Duration::from_micros(random.below(LONGEST)));
        worker.kill()?;
        let (mut replica, step) = diary.read()?;
        interrupted += usize::from(step.is_some());
        let told = serde_json::to_string(&step).unwrap_or_default();
        crate::worker::recover(&*pool, bench, &mut random, &mut replica, step.as_ref())
            .and_then(|done| {
                replica.check(&*pool)?;
                diary.resolve(step.as_ref().map(|_| done))
            })
            .map_err(|stop| {
                stop.in_circumstances(format!("kill {kill} with seed {seed}, within {told}"))
            })?;
    }
    if interrupted == 0 {
        let why = "no kill came in the middle of anything";
        return Err(Stop::Skipped(why.to_owned()));
    }
    Ok(())
}

pub(super) fn two_processes_work_in_one_pool(bench: &Bench) -> Verdict {
    const STEPS: u32 = 60;
    let seed = bench.seed();
    let diaries = ["one", "two"].map(|name| Diary::at(bench.scratch().join(name)));
    let mut workers = Vec::new();
    for (diary, seed) in diaries.iter().zip(seed..) {
        workers.push(Worker::start(bench, diary, seed, Some(STEPS))?);
    }
    let pool = bench.pool()?;
    while !(workers.iter_mut().map(Worker::has_ended))
        .try_fold(true, |all, one| Ok::<_, Stop>(one? && all))?
    {
        nothing_is_damaged(&*pool)?;
        // Both processors are for the two.
        thread::sleep(Duration::from_millis(5));
    }
    let mut wanted = 0;
    for (worker, diary) in workers.iter_mut().zip(&diaries) {
        worker.wait_for_end()?;
        let (replica, step) = diary.read()?;
        equal("a step that did not end", step, None)?;
        for held in replica.volumes.values() {
            held.check(&*pool)
                .map_err(|stop| stop.in_circumstances(format!("two workers, seed {seed}")))?;
        }
        wanted += replica.volumes.len();
    }
    nothing_is_damaged(&*pool)?;
    equal("the volumes", pool.list()?.len(), wanted)
}

fn nothing_is_damaged(pool: &dyn Pool) -> Verdict {
    for found in pool.list()? {
        // What others work on is in flux, but never damaged or a stray.
        is_a!(
            "what others work on",
            found,
            Found::Volume { .. } | Found::Draft { .. } | Found::Orphan { .. }
        )?;
    }
    Ok(())
}
