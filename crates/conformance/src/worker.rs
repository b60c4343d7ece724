//! The process that is killed half-way.
//!
//! A worker changes a pool step by step and notes in its *diary* what it begins and what it has
//! done. Killed, it leaves a diary from which whoever killed it knows what the pool must hold.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::parent_id;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sistemo_host::Changed;
use sistemo_host::program::Running;
use sistemo_model::{Access, Bytes, VolumeId};
use sistemo_pools::{Found, Pool, PoolError};

use crate::bench::{Bench, Open, Place};
use crate::expectation::{equal, holds, is_a};
use crate::law::{Outcome, Stop, Verdict};
use crate::random::Random;
use crate::replica::{Powers, Replica, Step, holds_blocks};

/// How long a worker may take until it has done its first step, or all of them.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a worker is to do, as JSON that fits into an argument or a variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The pool it works in.
    pub place: Place,
    /// A directory for what it needs besides.
    pub scratch: PathBuf,
    /// The file that it notes in.
    pub diary: PathBuf,
    /// What it does is random work that begins with this.
    pub seed: u64,
    /// How many steps it does; without a number, until it is killed.
    pub steps: Option<u32>,
}

impl Task {
    /// The task as text.
    #[must_use]
    pub fn to_text(&self) -> String {
        // Plain data with string keys cannot fail to be JSON, paths that are no text aside.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads a task.
    ///
    /// # Errors
    /// For what is no task.
    pub fn from_text(text: &str) -> serde_json::Result<Task> {
        serde_json::from_str(text)
    }
}

/// A line of a diary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    /// The step begins.
    Begin(Step),
    /// The step that began is done.
    Done,
    /// The step that began was found not to be done.
    Undone,
    /// The worker cannot go on.
    Failed(String),
}

/// Does a task, as the program does that [`Bench::with_worker`] names. It ends early where the
/// process that started it is gone.
///
/// # Errors
/// Where a step fails; the diary then says why.
pub fn work(task: &Task, open: &Open) -> Result<(), Outcome> {
    let diary = Diary::at(task.diary.clone());
    work_noting(task, &diary, open).map_err(|stop| {
        let outcome = Outcome::from(Err(stop));
        let text = match &outcome {
            Outcome::Failed(failure) => failure.to_string(),
            other => format!("{other:?}"),
        };
        // Where this fails too, the status says enough.
        let _ = diary.note(&Line::Failed(text));
        outcome
    })
}

fn work_noting(task: &Task, diary: &Diary, open: &Open) -> Verdict {
    let parent = parent_id();
    let pool = open(&task.place)?;
    let powers = Powers::of(&*pool);
    let mut random = Random::new(task.seed);
    let (mut replica, _) = diary.read()?;
    let mut left = task.steps;
    while left != Some(0) && parent_id() == parent {
        let step = replica.next_step(&mut random, powers);
        diary.note(&Line::Begin(step.clone()))?;
        step.perform(&*pool, &task.scratch)
            .map_err(|stop| stop.in_circumstances(format!("a worker at {step:?}")))?;
        diary.note(&Line::Done)?;
        replica.apply(&step);
        left = left.map(|left| left - 1);
    }
    Ok(())
}

/// What a worker notes. Lines are appended with one call, so that only the last can be cut short.
#[derive(Clone, Debug)]
pub(crate) struct Diary {
    path: PathBuf,
}

impl Diary {
    pub(crate) fn at(path: PathBuf) -> Diary {
        Diary { path }
    }

    fn note(&self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.path)?;
        file.write_all(&text)
    }

    fn length(&self) -> u64 {
        self.path.metadata().map_or(0, |meta| meta.len())
    }

    /// What the pool must hold by it, and the step that began and did not end.
    pub(crate) fn read(&self) -> Result<(Replica, Option<Step>), Stop> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error.into()),
        };
        let mut replica = Replica::default();
        let mut begun = None;
        for line in text.lines() {
            let line = serde_json::from_str(line).map_err(io::Error::from)?;
            match (line, begun.take()) {
                (Line::Begin(step), _) => begun = Some(step),
                (Line::Done, Some(step)) => replica.apply(&step),
                (Line::Done | Line::Undone, _) => {}
                (Line::Failed(text), _) => {
                    return Err(Stop::failed("a worker to do its work", text));
                }
            }
        }
        Ok((replica, begun))
    }

    /// Takes away what a kill cut short of the last line.
    fn mend(&self) -> io::Result<()> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        let text = std::fs::read(&self.path)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n');
        file.set_len(whole.map_or(0, |end| end as u64 + 1))
    }

    /// Notes whether the step that began came to be done; `None` where none began.
    pub(crate) fn resolve(&self, done: Option<bool>) -> Verdict {
        match done {
            Some(true) => self.note(&Line::Done)?,
            Some(false) => self.note(&Line::Undone)?,
            None => {}
        }
        Ok(())
    }
}

/// A worker that runs; dropped, it is killed with all that it started.
#[derive(Debug)]
pub(crate) struct Worker {
    process: Running,
    diary: Diary,
    noted_before: u64,
}

impl Worker {
    pub(crate) fn start(
        bench: &Bench,
        diary: &Diary,
        seed: u64,
        steps: Option<u32>,
    ) -> Result<Worker, Stop> {
        let task = Task {
            place: bench.place().clone(),
            scratch: bench.scratch().to_owned(),
            diary: diary.path.clone(),
            seed,
            steps,
        };
        let noted_before = diary.length();
        let output = File::create(bench.scratch().join("worker.output"))?;
        Ok(Worker {
            process: bench.worker(&task)?.own_group().spawn_logged(output)?,
            diary: diary.clone(),
            noted_before,
        })
    }

    /// Waits until it has begun something.
    pub(crate) fn wait_for_work(&mut self) -> Verdict {
        let deadline = Instant::now() + PATIENCE;
        while self.diary.length() <= self.noted_before {
            if self.has_ended()? || Instant::now() > deadline {
                return Err(self.did_not("begin to work"));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    pub(crate) fn has_ended(&mut self) -> Result<bool, Stop> {
        Ok(self.process.try_wait()?.is_some())
    }

    /// Waits until it has done all.
    pub(crate) fn wait_for_end(&mut self) -> Verdict {
        let status = self.process.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(self.did_not("do its work"))
        }
    }

    /// Kills it in the middle of its work.
    pub(crate) fn kill(&mut self) -> Verdict {
        let ended = self.has_ended()?;
        self.process.kill_group();
        self.diary.mend()?;
        if ended {
            return Err(self.did_not("go on until it is killed"));
        }
        Ok(())
    }

    fn did_not(&self, what: &str) -> Stop {
        // A step that failed says more.
        match self.diary.read() {
            Err(stop) => stop,
            Ok(_) => Stop::failed(
                format!("a process of the driver to {what}"),
                "it ended before",
            ),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.process.kill_group();
    }
}

/// Expects that what a kill left is what the contract allows, and recovers as a caller does: by
/// repeating the step, or removing what is left of it, in any case with an operation that waits
/// for a program of the driver that outlived the worker. Says whether the step is done then, and
/// has it in `replica`.
pub(crate) fn recover(
    pool: &dyn Pool,
    bench: &Bench,
    random: &mut Random,
    replica: &mut Replica,
    step: Option<&Step>,
) -> Result<bool, Stop> {
    only_one_was_touched(pool, replica, step.map(Step::volume))?;
    let Some(step) = step else {
        return Ok(true);
    };
    let id = step.volume();
    let found = pool.find(id)?;
    let done = match step {
        Step::Create { .. } | Step::Fill { .. } | Step::Clone { .. } => is_made(pool, step, found)?,
        Step::Snapshot { name, .. } => {
            is_a!("what is left", found, Some(Found::Volume { .. }))?;
            let listed = match pool.snapshots() {
                Some(snapshots) => snapshots.snapshots(id)?,
                None => Vec::new(),
            };
            let taken = listed.iter().any(|snapshot| snapshot.name == *name);
            if let (false, Some(snapshots)) = (taken, pool.snapshots()) {
                let _ = snapshots.delete_snapshot(id, name)?;
            }
            taken
        }
        Step::Grow { to, .. } => {
            let before = replica.volumes.get(&id).map(|held| held.description.size);
            has_a_size_of(found, &[before, Some(*to)])?;
            false
        }
        Step::Write { .. }
        | Step::Rename { .. }
        | Step::DeleteSnapshot { .. }
        | Step::Revert { .. } => {
            is_a!("what is left", found, Some(Found::Volume { .. }))?;
            if let Step::Revert { .. } = step {
                is_before_or_after(pool, replica, step)?;
            }
            false
        }
        Step::Remove { .. } => {
            if let (Some(Found::Volume { .. }), Some(held)) = (found, replica.volumes.get(&id)) {
                let content = match pool.content(id, Access::ReadOnly) {
                    Ok(content) => Some(content),
                    Err(PoolError::NoSuchVolume { .. }) => None,
                    Err(error) => return Err(error.into()),
                };
                if let Some(content) = content {
                    holds_blocks("a volume that was not removed", &*content, &held.blocks)?;
                }
            }
            let _ = pool.remove(id)?;
            true
        }
    };
    // What adds something and was undone can be done again, or left; all else is repeated to be
    // completed.
    let adds = matches!(
        step,
        Step::Create { .. } | Step::Fill { .. } | Step::Clone { .. } | Step::Snapshot { .. }
    );
    let done = if done || (adds && random.below(2) == 0) {
        done
    } else {
        step.perform(pool, bench.scratch())?;
        true
    };
    if done {
        replica.apply(step);
    }
    replica.check_volume(pool, id)?;
    Ok(done)
}

/// Expects that a kill left nothing but volumes, and what is left of the one that was changed.
fn only_one_was_touched(pool: &dyn Pool, replica: &Replica, touched: Option<VolumeId>) -> Verdict {
    for found in pool.list()? {
        let ours = match &found {
            Found::Volume { description, .. } => {
                let id = description.id;
                Some(id) == touched || replica.volumes.contains_key(&id)
            }
            Found::Draft { id } | Found::Orphan { id, .. } => Some(*id) == touched,
            Found::Undescribed { .. } | Found::Damaged { .. } | Found::Stray { .. } => false,
        };
        holds(
            ours,
            "nothing but volumes, and a draft or an orphan of the one that was changed",
            || format!("the kill left {found:?}"),
        )?;
    }
    Ok(())
}

/// Whether a volume came to be made; where it did not, nothing of it is left then.
fn is_made(pool: &dyn Pool, step: &Step, found: Option<Found>) -> Result<bool, Stop> {
    let id = step.volume();
    match found {
        Some(Found::Volume { .. }) => Ok(true),
        None => {
            let _ = pool.remove(id)?;
            equal("what is found then", pool.find(id)?, None)?;
            Ok(false)
        }
        Some(left) => {
            is_a!("what is left", left, Found::Draft { .. })?;
            equal("removing a draft", pool.remove(id)?, Changed::Yes)?;
            equal("what is found then", pool.find(id)?, None)?;
            Ok(false)
        }
    }
}

/// Expects a volume whose data and description both have one of these sizes.
fn has_a_size_of(found: Option<Found>, sizes: &[Option<Bytes>]) -> Verdict {
    let Some(Found::Volume { description, facts }) = found else {
        return Err(Stop::failed("the volume", format!("there is {found:?}")));
    };
    let fits = |size| sizes.contains(&Some(size));
    holds(
        fits(description.size) && fits(facts.size) && facts.size >= description.size,
        format!("the size before or after, of {sizes:?}"),
        || {
            format!(
                "it is {:?}, described as {:?}",
                facts.size, description.size
            )
        },
    )
}

/// Expects that a volume holds what it did before a step or what it should after it, whole.
fn is_before_or_after(pool: &dyn Pool, replica: &Replica, step: &Step) -> Verdict {
    let id = step.volume();
    let mut after = replica.clone();
    after.apply(step);
    let content = pool.content(id, Access::ReadOnly)?;
    let holds = |replica: &Replica| match replica.volumes.get(&id) {
        Some(held) => holds_blocks(&format!("volume {id}"), &*content, &held.blocks),
        None => Ok(()),
    };
    holds(replica).or_else(|_| holds(&after))
}

#[cfg(test)]
mod tests {
    use sistemo_model::CatalogueId;

    use super::*;

    #[test]
    fn a_task_is_read_as_it_was_written() {
        let task = Task {
            place: Place {
                directory: "/srv/pool".into(),
                catalogue: CatalogueId::random(),
            },
            scratch: "/srv".into(),
            diary: "/srv/diary".into(),
            seed: 7,
            steps: None,
        };
        assert_eq!(Task::from_text(&task.to_text()).unwrap(), task);
        assert!(Task::from_text("").is_err());
    }

    #[test]
    fn a_diary_that_was_cut_short_tells_what_was_whole() {
        let home = tempfile::tempdir().unwrap();
        let diary = Diary::at(home.path().join("diary"));
        let id = sistemo_model::VolumeId::random();
        diary.note(&Line::Begin(Step::Remove { id })).unwrap();
        diary.note(&Line::Done).unwrap();
        diary.note(&Line::Begin(Step::Remove { id })).unwrap();
        let whole = diary.length();
        diary.note(&Line::Done).unwrap();
        let file = OpenOptions::new().write(true).open(&diary.path).unwrap();
        file.set_len(diary.length() - 3).unwrap();
        diary.mend().unwrap();
        assert_eq!(diary.length(), whole);
        let (_, step) = diary.read().unwrap();
        assert_eq!(step, Some(Step::Remove { id }));
    }
}
