//! The laws as tests of a driver.
//!
//! ```text
//! fn open(place: &Place) -> Result<Arc<dyn Pool>, PoolError> { … }
//!
//! fn bench() -> Bench {
//!     let home = tempfile::tempdir().unwrap();
//!     Bench::new(home.path(), open).keeping(home)
//! }
//!
//! sistemo_conformance::laws_hold_for!(file_on_ext4, open, bench());
//! ```
//!
//! Each law is a test of its own, `file_on_ext4::a_draft_cannot_be_begun_twice`. The tests about
//! killed processes start the test program once more, with `file_on_ext4::worker` alone.

use std::env;

use sistemo_host::program::Program;

use crate::bench::{Bench, Open};
use crate::check::attempt;
use crate::law::Outcome;
use crate::laws::laws;
use crate::worker::{self, Task};

/// The variable that turns a skipped test into a failed one.
const STRICT: &str = "SISTEMO_TEST_STRICT";
/// The variable that has a worker's task.
const TASK: &str = "SISTEMO_CONFORMANCE_TASK";

/// Tries one law by name, as [`laws_hold_for!`](crate::laws_hold_for) does. `None` for a bench is
/// a test that lacks a prerequisite and has said so. What the driver does not claim is no failure.
///
/// # Panics
/// Where the law is broken; where `SISTEMO_TEST_STRICT=1` is set, also where this host cannot try
/// it.
#[expect(clippy::print_stderr, reason = "a skipped test says so to who runs it")]
pub fn hold(law: &str, module: &'static str, bench: impl Into<Option<Bench>>) {
    let Some(bench) = bench.into() else {
        return;
    };
    let law = laws()
        .iter()
        .find(|known| known.name == law)
        .unwrap_or_else(|| panic!("there is no law {law}"));
    let (outcome, remains) = attempt(&bench.with_worker(this_test(module)), law);
    match outcome {
        Outcome::Passed => {}
        Outcome::Failed(failure) => panic!("{}\n{failure}", law.promise),
        Outcome::NotClaimed { power } => eprintln!("not claimed: {power}"),
        Outcome::Skipped { why } => {
            let strict = env::var_os(STRICT).is_some_and(|value| value == "1");
            assert!(!strict, "{STRICT}=1 and {why}");
            eprintln!("skipped: {why}");
        }
    }
    assert_eq!(remains, None, "something of the test stays");
}

/// This test program, running the worker of a module of tests alone.
fn this_test(module: &'static str) -> impl Fn(&Task) -> Program + Send + Sync {
    // The first part is the crate's name, which the names of its tests leave out.
    let module = module.split_once("::").map_or(module, |(_, inner)| inner);
    let worker = format!("{module}::worker");
    let executable = env::current_exe().unwrap_or_default();
    move |task| {
        Program::at(&executable)
            .args(["--ignored", "--exact", &worker])
            .env(TASK, task.to_text())
    }
}

/// Does the task that this process was started with; none, where it was started by hand.
///
/// # Panics
/// Where a step fails.
pub fn work(open: &Open) {
    let Ok(text) = env::var(TASK) else {
        return;
    };
    let task = Task::from_text(&text).unwrap_or_else(|error| panic!("{TASK}: {error}"));
    if let Err(outcome) = worker::work(&task, open) {
        panic!("{outcome:?}");
    }
}
