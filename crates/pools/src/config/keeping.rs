//! What a pool keeps of its volumes' past: options that every pool has, whatever its driver, and
//! that no driver is told of.

use std::collections::BTreeMap;

use sistemo_model::{Period, PeriodError};

use super::fault::Problem;
use crate::registry::{DriverOption, ValueKind};

const REVISIONS: &str = "revisions_to_keep";
const TRASH: &str = "trash_keep";

/// What a pool keeps of its volumes' past, where a volume says nothing of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keeping {
    /// How many revisions of a volume: each clean stop of its machine leaves one.
    pub revisions: u32,
    /// How long what was deleted can be restored; zero where it is gone at once.
    pub trash: Period,
}

impl Default for Keeping {
    fn default() -> Keeping {
        Keeping {
            revisions: 0,
            trash: Period::from_hours(24),
        }
    }
}

impl Keeping {
    /// The options that have it.
    #[must_use]
    pub fn options() -> Vec<DriverOption> {
        let usual = Keeping::default().values();
        let option = |name: &str, summary: &str, kind| DriverOption {
            name: name.to_owned(),
            required: false,
            default: usual.get(name).cloned(),
            summary: summary.to_owned(),
            kind,
        };
        vec![
            option(
                REVISIONS,
                "how many revisions of a volume are kept: each clean stop of its machine leaves one",
                ValueKind::Number,
            ),
            option(
                TRASH,
                "how long a deleted volume can be restored; 0: it is gone at once",
                ValueKind::Period,
            ),
        ]
    }

    /// The values of these options, as a `storage.conf` has them.
    #[must_use]
    pub fn values(&self) -> BTreeMap<String, String> {
        let values = [
            (REVISIONS, self.revisions.to_string()),
            (TRASH, self.trash.to_string()),
        ];
        values
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    /// Whether an option is one of these.
    pub(crate) fn has(name: &str) -> bool {
        [REVISIONS, TRASH].contains(&name)
    }

    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), Problem> {
        match name {
            REVISIONS => self.revisions = number(value)?,
            TRASH => self.trash = period(value)?,
            _ => {}
        }
        Ok(())
    }
}

/// A whole number, as it is meant.
pub(super) fn number(value: &str) -> Result<u32, Problem> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    let number = value.parse().ok().filter(|_| digits);
    number.ok_or_else(|| Problem::NotANumber {
        value: value.to_owned(),
    })
}

/// A length of time, as it is meant.
pub(super) fn period(value: &str) -> Result<Period, Problem> {
    value
        .parse()
        .map_err(|source: PeriodError| Problem::NotAPeriod { source })
}
