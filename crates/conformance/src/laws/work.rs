//! Work of all kinds, compared with the same done in memory.

use crate::Bench;
use crate::law::Verdict;
use crate::random::Random;
use crate::replica::{Powers, Replica};

pub(super) fn whatever_is_done_every_volume_holds_what_it_should(bench: &Bench) -> Verdict {
    const STEPS: usize = 300;
    let pool = bench.pool()?;
    let powers = Powers::of(&*pool);
    let seed = bench.seed();
    let mut random = Random::new(seed);
    let mut replica = Replica::default();
    for number in 1..=STEPS {
        let step = replica.next_step(&mut random, powers);
        let done = step.perform(&*pool, bench.scratch()).and_then(|()| {
            replica.apply(&step);
            replica.check_volume(&*pool, step.volume())?;
            if number % 20 == 0 {
                replica.check(&*bench.pool()?)?;
            }
            Ok(())
        });
        done.map_err(|stop| {
            let step = serde_json::to_string(&step).unwrap_or_default();
            stop.in_circumstances(format!(
                "random work with seed {seed}, step {number}: {step}"
            ))
        })?;
    }
    Ok(())
}
