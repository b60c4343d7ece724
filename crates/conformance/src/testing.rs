//! The laws as tests of a driver.
//!
//! ```ignore
//! fn bench() -> Bench {
//!     let home = tempfile::tempdir().unwrap();
//!     Bench::new(home.path(), |place| …).keeping(home)
//! }
//! sistemo_conformance::laws_hold_for!(file_on_ext4, bench());
//! ```

use crate::bench::Bench;
use crate::check::attempt;
use crate::law::Outcome;
use crate::laws::laws;

/// Tries one law by name, as [`laws_hold_for!`](crate::laws_hold_for) does. `None` for a bench is
/// a test that lacks a prerequisite and has said so.
///
/// # Panics
/// Where the law is broken, and with `strict` where this host cannot try it; with what the driver
/// does not claim it passes.
#[expect(clippy::print_stderr, reason = "a skipped test says so to who runs it")]
pub fn hold(law: &str, bench: impl Into<Option<Bench>>, strict: bool) {
    let Some(bench) = bench.into() else {
        return;
    };
    let law = laws()
        .iter()
        .find(|known| known.name == law)
        .unwrap_or_else(|| panic!("there is no law {law}"));
    let (outcome, remains) = attempt(&bench, law);
    match outcome {
        Outcome::Passed => {}
        Outcome::Failed(failure) => panic!("{}\n{failure}", law.promise),
        Outcome::NotClaimed { power } => eprintln!("not claimed: {power}"),
        Outcome::Skipped { why } => {
            assert!(!strict, "SISTEMO_TEST_STRICT=1 and {why}");
            eprintln!("skipped: {why}");
        }
    }
    assert_eq!(remains, None, "something of the test stays");
}
