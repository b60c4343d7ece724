//! What a test needs of its host.
//!
//! A test that cannot run here says so and passes. Where `SISTEMO_TEST_STRICT=1` is set, as
//! continuous integration sets it, it fails instead: nothing is skipped unseen.

use std::env;

use sistemo_host::{program, system};

use crate::guest::TinyGuest;

/// The variable that turns a skipped test into a failed one.
pub const STRICT: &str = "SISTEMO_TEST_STRICT";

/// Something a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// The test runs as root.
    Root,
    /// A program is installed.
    Program(&'static str),
    /// `scripts/test-assets` has been run.
    TinyGuest,
}

impl Requirement {
    /// What is missing; `None` where nothing is.
    fn missing(self) -> Option<String> {
        match self {
            Requirement::Root => {
                (!system::is_root()).then(|| "only root can run this test".to_owned())
            }
            Requirement::Program(name) => program::locate(name)
                .is_none()
                .then(|| format!("{name} is not installed")),
            Requirement::TinyGuest => TinyGuest::find()
                .is_none()
                .then(|| "there is no tiny guest: run scripts/test-assets".to_owned()),
        }
    }
}

/// Whether a test can run; where it cannot, says why.
///
/// ```no_run
/// use sistemo_testkit::{Requirement, met};
/// if !met(&[Requirement::Root, Requirement::Program("mkfs.xfs")]) {
///     return;
/// }
/// ```
///
/// # Panics
/// Where a requirement is not met and `SISTEMO_TEST_STRICT=1` is set.
#[must_use]
#[expect(clippy::print_stderr, reason = "a skipped test says so to who runs it")]
pub fn met(requirements: &[Requirement]) -> bool {
    let strict = env::var_os(STRICT).is_some_and(|value| value == "1");
    for requirement in requirements {
        if let Some(reason) = requirement.missing() {
            assert!(!strict, "{STRICT}=1 and {reason}");
            eprintln!("skipped: {reason}");
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(Requirement::Program("sh").missing(), None);
        assert_eq!(
            Requirement::Program("no-such-program").missing(),
            Some("no-such-program is not installed".to_owned())
        );
        assert_eq!(Requirement::Root.missing().is_none(), system::is_root());
    }

    #[test]
    fn what_is_there_is_no_reason_to_skip() {
        assert!(met(&[]));
        assert!(met(&[Requirement::Program("sh")]));
    }
}
