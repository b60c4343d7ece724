//! What a law is, and what can come out of trying it.

use std::error::Error;
use std::fmt;
use std::io;
use std::panic::Location;

use serde::Serialize;
use sistemo_host::program::ProgramError;
use sistemo_pools::PoolError;

use crate::Bench;

/// A promise of the driver contract, and a way to find out whether a pool keeps it.
#[derive(Clone, Copy, Debug)]
pub struct Law {
    /// Its name, which reads as a sentence: `a_draft_is_no_volume_and_dropped_leaves_nothing`.
    pub name: &'static str,
    /// What is promised, in one sentence.
    pub promise: &'static str,
    /// What it cannot be tried without.
    pub needs: &'static [Need],
    /// Tries it on a pool that is empty.
    pub run: fn(&Bench) -> Verdict,
}

/// Something that a law cannot be tried without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The pool's power to clone.
    Clones,
    /// The pool's power to keep snapshots.
    Snapshots,
    /// A process that can be killed; see [`Bench::with_worker`].
    Worker,
    /// A place that is soon full; see [`Bench::with_small_place`].
    SmallPlace,
}

/// What came out of trying a law, for the law itself.
pub type Verdict = Result<(), Stop>;

/// Why trying a law ended before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It is broken.
    Failed(Failure),
    /// The driver does not say that it can do this: what it is that it cannot.
    NotClaimed(&'static str),
    /// This host cannot try it: why.
    Skipped(String),
}

/// How a law is broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What was expected, as in "expected …".
    pub expected: String,
    /// What happened instead.
    pub happened: String,
    /// Where in the suite that was noticed, as `FILE:LINE`.
    pub noticed_at: String,
}

/// What came out of trying a law.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// The pool kept it.
    Passed,
    /// The pool broke it.
    Failed(Failure),
    /// The driver does not say that it can do this.
    NotClaimed {
        /// What it is that it cannot.
        power: &'static str,
    },
    /// This host cannot try it.
    Skipped {
        /// Why.
        why: String,
    },
}

/// A law that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The law's name.
    pub law: &'static str,
    /// What it promises.
    pub promise: &'static str,
    /// What came out.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Stop {
    /// A law that is broken, noticed by the caller.
    #[track_caller]
    pub(crate) fn failed(expected: impl fmt::Display, happened: impl fmt::Display) -> Stop {
        let place = Location::caller();
        Stop::Failed(Failure {
            expected: expected.to_string(),
            happened: happened.to_string(),
            noticed_at: format!("{}:{}", place.file(), place.line()),
        })
    }

    /// The same, told with the circumstances, such as the seed of random work.
    pub(crate) fn in_circumstances(self, circumstances: impl fmt::Display) -> Stop {
        match self {
            Stop::Failed(failure) => Stop::Failed(Failure {
                happened: format!("{} ({circumstances})", failure.happened),
                ..failure
            }),
            other => other,
        }
    }
}

impl From<PoolError> for Stop {
    #[track_caller]
    fn from(error: PoolError) -> Stop {
        Stop::failed("no error", told(&error))
    }
}

// What the suite itself cannot do says nothing about the driver.
impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Skipped(format!("the check could not go on: {error}"))
    }
}

impl From<ProgramError> for Stop {
    fn from(error: ProgramError) -> Stop {
        Stop::Skipped(format!("the check could not go on: {}", told(&error)))
    }
}

/// An error with its causes.
pub(crate) fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Outcome {
        match verdict {
            Ok(()) => Outcome::Passed,
            Err(Stop::Failed(failure)) => Outcome::Failed(failure),
            Err(Stop::NotClaimed(power)) => Outcome::NotClaimed { power },
            Err(Stop::Skipped(why)) => Outcome::Skipped { why },
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure {
            expected,
            happened,
            noticed_at,
        } = self;
        write!(f, "expected {expected}, but {happened} ({noticed_at})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_where_a_question_mark_met_an_error() {
        fn fails() -> Verdict {
            Err(PoolError::NoPlace {
                pool: "p".parse().unwrap(),
            })?;
            Ok(())
        }
        let Err(Stop::Failed(failure)) = fails() else {
            panic!("it failed");
        };
        assert_eq!(failure.happened, "pool p has no directory");
        assert!(failure.noticed_at.contains("law.rs"), "{failure}");
    }

    #[test]
    fn a_report_is_one_flat_object() {
        let report = Report {
            law: "a_law",
            promise: "Something holds.",
            outcome: Outcome::Skipped {
                why: "not root".to_owned(),
            },
        };
        assert_eq!(
            serde_json::to_value(report).unwrap(),
            serde_json::json!({
                "law": "a_law", "promise": "Something holds.",
                "outcome": "skipped", "why": "not root"
            })
        );
    }
}
