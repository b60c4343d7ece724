//! Trying all laws.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use serde::Serialize;
use sistemo_pools::{Found, Pool};

use crate::bench::{Bench, close};
use crate::law::{Failure, Law, Need, Outcome, Report, Stop, Verdict, told};

/// How many laws came out how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Kept.
    pub passed: usize,
    /// Broken.
    pub failed: usize,
    /// Of powers that the driver has not.
    pub not_claimed: usize,
    /// Not tried, for this host cannot.
    pub skipped: usize,
}

impl Counts {
    fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed(_) => self.failed += 1,
            Outcome::NotClaimed { .. } => self.not_claimed += 1,
            Outcome::Skipped { .. } => self.skipped += 1,
        }
    }
}

/// Something of a check that could not be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remains {
    /// Where it is.
    pub path: PathBuf,
    /// Why it is still there.
    pub why: String,
}

/// Tries laws one after the other, each on an empty pool of its own, and tells of each what came
/// out, until that says to break.
///
/// What a law made is gone when it is told of, save what is returned. A crash leaves what is in
/// the bench's home.
pub fn check(
    bench: &Bench,
    laws: &[Law],
    told_of: &mut dyn FnMut(&Report) -> ControlFlow<()>,
) -> (Counts, Vec<Remains>) {
    let mut counts = Counts::default();
    let mut remains = Vec::new();
    for law in laws {
        let (outcome, left) = attempt(bench, law);
        remains.extend(left);
        counts.count(&outcome);
        let report = Report {
            law: law.name,
            promise: law.promise,
            outcome,
        };
        if told_of(&report).is_break() {
            break;
        }
    }
    (counts, remains)
}

/// Tries one law in a room of its own.
pub(crate) fn attempt(bench: &Bench, law: &Law) -> (Outcome, Option<Remains>) {
    let room = match bench.room(law.name) {
        Ok(room) => room,
        Err(error) => {
            let why = format!("no directory can be made for it: {error}");
            return (Outcome::Skipped { why }, None);
        }
    };
    let ours = match is_ready(&room, law) {
        Ok(()) => Ok(()),
        Err(stop) => {
            let remains = clear(&room, false);
            return (Err(stop).into(), remains);
        }
    };
    let tried = ours.and_then(|()| caught(|| (law.run)(&room)));
    (tried.into(), clear(&room, true))
}

/// Makes sure that a law can be tried, on a pool that holds nothing of anybody else.
fn is_ready(bench: &Bench, law: &Law) -> Verdict {
    caught(|| {
        let pool = bench.pool().map_err(|error| {
            Stop::failed(
                format!("a pool at {}", bench.place().directory.display()),
                told(&error),
            )
        })?;
        if law.needs.contains(&Need::Clones) && pool.clones().is_none() {
            return Err(Stop::NotClaimed("clone"));
        }
        if law.needs.contains(&Need::Snapshots) && pool.snapshots().is_none() {
            return Err(Stop::NotClaimed("snapshot"));
        }
        let found = pool.list()?;
        if found.is_empty() {
            Ok(())
        } else {
            Err(Stop::Skipped(format!(
                "the pool is not empty, and the check touches nothing of others: {found:?}"
            )))
        }
    })
}

fn caught(run: impl FnOnce() -> Verdict) -> Verdict {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("without a word");
        Err(Stop::Failed(Failure {
            expected: "no panic".to_owned(),
            happened: format!("it panicked: {text}"),
            noticed_at: "the driver or the suite".to_owned(),
        }))
    })
}

/// Removes a room with all that is in it; where the pool is ours, through the driver first.
fn clear(room: &Bench, ours: bool) -> Option<Remains> {
    // A driver may have made what only it can remove. Where it cannot, removing the room tells.
    let _ = caught(|| {
        if ours {
            empty(&*room.pool()?)?;
        }
        Ok(close(room)?)
    });
    let path = room.scratch().to_owned();
    match std::fs::remove_dir_all(&path) {
        Ok(()) => None,
        Err(error) => Some(Remains {
            path,
            why: error.to_string(),
        }),
    }
}

/// Removes all volumes of a pool, and what is left of such.
fn empty(pool: &dyn Pool) -> Verdict {
    for found in pool.list()? {
        let id = match found {
            Found::Volume { description, .. } => description.id,
            Found::Draft { id }
            | Found::Undescribed { id, .. }
            | Found::Orphan { id, .. }
            | Found::Damaged { id, .. } => id,
            Found::Stray { .. } => continue,
        };
        let _ = pool.remove(id)?;
    }
    Ok(())
}
