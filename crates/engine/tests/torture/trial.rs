//! Doing one thing after the other until something is wrong, and then as few as show it.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use sistemo_conformance::random::Random;

use crate::ground::{Ground, Spot};
use crate::world::{Act, Fault, World};

/// How many operations there are where nobody says.
const OPERATIONS: usize = 500;
/// After so many, all of every volume is looked at, and not only what was touched.
const BETWEEN_LOOKS_AT_ALL: usize = 50;
/// For how long a shorter history is looked for.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was wrong, and how one gets there.
#[derive(Debug)]
pub(crate) struct Failure {
    seed: u64,
    number: usize,
    pub(crate) wrong: String,
    pub(crate) shortest: Vec<Act>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "operation {} of seed {}: {}\nthe shortest history that was found:",
            self.number, self.seed, self.wrong
        )?;
        for act in &self.shortest {
            writeln!(f, "  {act}")?;
        }
        Ok(())
    }
}

/// Tries the driver of the first spot with as many operations as the environment says; volumes go
/// to the pools at the others, and back.
#[expect(
    clippy::print_stderr,
    reason = "a test says what it takes to have it again"
)]
pub(crate) fn torture(spots: &[Spot]) {
    let Some(ground) = Ground::new(spots) else {
        return;
    };
    let count = number_in("SISTEMO_TORTURE_OPERATIONS")
        .map_or(OPERATIONS, |number| usize::try_from(number).unwrap());
    let seed = number_in("SISTEMO_TORTURE_SEED").unwrap_or_else(|| {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        u64::from(now.subsec_nanos())
    });
    let driver = spots[0].driver;
    let begun = Instant::now();
    eprintln!("{driver}: {count} operations, SISTEMO_TORTURE_SEED={seed}");
    if let Err(failure) = trial(&ground, Fault::None, seed, count) {
        panic!("{driver}: {failure}");
    }
    let took = begun.elapsed().as_secs_f64();
    eprintln!("{driver}: {count} operations made no difference, in {took:.1} s");
}

fn number_in(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}

/// Does so many operations of a seed.
pub(crate) fn trial(
    ground: &Ground,
    fault: Fault,
    seed: u64,
    count: usize,
) -> Result<(), Box<Failure>> {
    let mut random = Random::new(seed);
    let mut world = World::new(&ground.plot(), fault);
    let (mut acts, mut touched) = (Vec::new(), BTreeSet::new());
    for number in 1..=count {
        let act = world.next_act(&mut random, number);
        touched.extend(act.volumes());
        let is_last = number == count;
        let mut done = world.perform(&act);
        acts.push(act);
        if number % ground.between_looks() == 0 || is_last {
            let mut volumes = std::mem::take(&mut touched).into_iter();
            done = done.and_then(|()| volumes.try_for_each(|id| world.check_volume(id)));
        }
        if number % BETWEEN_LOOKS_AT_ALL == 0 || is_last {
            done = done.and_then(|()| world.check());
        }
        if let Err(wrong) = done {
            drop(world);
            return Err(Box::new(Failure {
                seed,
                number,
                wrong,
                shortest: shortest(ground, fault, acts),
            }));
        }
    }
    Ok(())
}

/// Leaves out of a history that fails what it fails without, as far as time allows.
fn shortest(ground: &Ground, fault: Fault, acts: Vec<Act>) -> Vec<Act> {
    let until = Instant::now() + PATIENCE;
    let mut left = acts;
    if let Some(shorter) = fails(ground, fault, &related(&left)) {
        left = shorter;
    }
    let mut piece = left.len().div_ceil(2);
    while piece > 0 {
        let mut at = 0;
        while at < left.len() {
            if Instant::now() > until {
                return left;
            }
            let end = (at + piece).min(left.len());
            let without: Vec<_> = left[..at].iter().chain(&left[end..]).cloned().collect();
            match fails(ground, fault, &without) {
                Some(shorter) => left = shorter,
                None => at = end,
            }
        }
        piece /= 2;
    }
    left
}

/// The acts that have to do with the volumes of the last one, or with what those were cloned from.
fn related(acts: &[Act]) -> Vec<Act> {
    let mut volumes = BTreeSet::new();
    let mut related: Vec<_> = acts
        .iter()
        .rev()
        .enumerate()
        .filter(|(back, act)| {
            let of_them = act.volumes().iter().any(|id| volumes.contains(id));
            if *back == 0 || of_them {
                volumes.extend(act.volumes());
            }
            *back == 0 || of_them
        })
        .map(|(_, act)| act.clone())
        .collect();
    related.reverse();
    related
}

/// Whether a history fails, and up to where it has to be told. All that an act touches is looked at
/// after it.
fn fails(ground: &Ground, fault: Fault, acts: &[Act]) -> Option<Vec<Act>> {
    let mut world = World::new(&ground.plot(), fault);
    for (index, act) in acts.iter().enumerate() {
        let mut done = world.perform(act);
        for id in act.volumes() {
            done = done.and_then(|()| world.check_volume(id));
        }
        if done.is_err() {
            return Some(acts[..=index].to_vec());
        }
    }
    world.check().is_err().then(|| acts.to_vec())
}
