//! Lengths of time, as users write them and as tables show them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;

/// A length of time in whole seconds, at most 100 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(u64);

/// Why a text is not a length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeriodError {
    /// The text is not a whole number with a unit.
    #[error("`{}` is no length of time such as `90m`, `24h`, `7d` or `0`", .0.escape_debug())]
    NotAPeriod(String),
    /// The number has no unit.
    #[error("`{0}` has no unit: s, m, h, d or w")]
    NoUnit(String),
    /// It is longer than anything is kept.
    #[error("`{0}` is more than 100 years")]
    TooLong(String),
}

impl Period {
    /// No time at all.
    pub const ZERO: Period = Period(0);
    /// The longest there is.
    pub const LONGEST: Period = Period(36_500 * DAY);

    /// So many hours, or the longest there is.
    #[must_use]
    pub const fn from_hours(hours: u64) -> Period {
        let seconds = hours.saturating_mul(HOUR);
        if seconds > Period::LONGEST.0 {
            Period::LONGEST
        } else {
            Period(seconds)
        }
    }

    /// The number of seconds.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        self.0
    }

    /// Whether it is no time at all.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl From<Period> for Duration {
    fn from(period: Period) -> Duration {
        Duration::from_secs(period.0)
    }
}

impl FromStr for Period {
    type Err = PeriodError;

    /// Parses `90m`, `24h`, `7d`, `2w`, `30s` in any case; `0` needs no unit.
    fn from_str(text: &str) -> Result<Period, PeriodError> {
        let shown = || text.to_owned();
        let trimmed = text.trim();
        let unit_at = trimmed
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(trimmed.len());
        let (digits, unit) = trimmed.split_at(unit_at);
        if digits.is_empty() {
            return Err(PeriodError::NotAPeriod(shown()));
        }
        // Only one of too many digits is no number.
        let number = digits.parse::<u64>().ok();
        let unit = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" if number == Some(0) => 1,
            "" => return Err(PeriodError::NoUnit(shown())),
            "s" => 1,
            "m" => MINUTE,
            "h" => HOUR,
            "d" => DAY,
            "w" => WEEK,
            _ => return Err(PeriodError::NotAPeriod(shown())),
        };
        let seconds = number.and_then(|number| number.checked_mul(unit));
        seconds
            .filter(|seconds| *seconds <= Period::LONGEST.0)
            .map(Period)
            .ok_or_else(|| PeriodError::TooLong(shown()))
    }
}

impl fmt::Display for Period {
    /// Shows it in the largest unit of which it is a whole number; a single day in hours: `24h`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |unit: u64| self.0.is_multiple_of(unit);
        match self.0 {
            0 => f.pad("0"),
            seconds if seconds > DAY && fits(DAY) => f.pad(&format!("{}d", seconds / DAY)),
            seconds if fits(HOUR) => f.pad(&format!("{}h", seconds / HOUR)),
            seconds if fits(MINUTE) => f.pad(&format!("{}m", seconds / MINUTE)),
            seconds => f.pad(&format!("{seconds}s")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn periods_parse_and_are_shown_in_the_unit_that_fits() {
        for (text, seconds, shown) in [
            ("0", 0, "0"),
            ("0h", 0, "0"),
            ("30s", 30, "30s"),
            ("90m", 5400, "90m"),
            ("60 m", 3600, "1h"),
            ("24h", 86_400, "24h"),
            ("1D", 86_400, "24h"),
            ("48h", 172_800, "2d"),
            ("7d", 604_800, "7d"),
            ("2w", 1_209_600, "14d"),
            ("36500d", 3_153_600_000, "36500d"),
        ] {
            let period: Period = text.parse().unwrap();
            assert_eq!((period.seconds(), &*period.to_string()), (seconds, shown));
        }
    }

    #[test]
    fn bad_periods_name_themselves_and_their_fault() {
        let not = |text: &str| PeriodError::NotAPeriod(text.to_owned());
        for (text, error) in [
            ("", not("")),
            ("h", not("h")),
            ("-1h", not("-1h")),
            ("1.5h", not("1.5h")),
            ("a day", not("a day")),
            ("1month", not("1month")),
            ("٣h", not("٣h")),
            ("24", PeriodError::NoUnit("24".into())),
            ("36501d", PeriodError::TooLong("36501d".into())),
            (
                "99999999999999999999s",
                PeriodError::TooLong("99999999999999999999s".into()),
            ),
            (
                "18446744073709551615w",
                PeriodError::TooLong("18446744073709551615w".into()),
            ),
        ] {
            assert_eq!(text.parse::<Period>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_period_survives_being_written_down(seconds in 0..=Period::LONGEST.0) {
            prop_assert_eq!(Period(seconds).to_string().parse(), Ok(Period(seconds)));
        }
    }
}
