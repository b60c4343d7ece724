//! Sizes, as users write them and as tables show them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const PIB: u64 = 1 << 50;

/// A number of bytes.
///
/// Units are binary throughout: `5G`, `5GB` and `5GiB` are all 5 GiB, shown as `5 GB`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(u64);

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The text is not a number with an optional unit.
    #[error("`{0}` is not a size")]
    NotASize(String),
    /// The size is zero.
    #[error("size `{0}` is zero")]
    Zero(String),
    /// The size has a minus sign.
    #[error("size `{0}` is negative")]
    Negative(String),
    /// The size is larger than a file can be (2^63 − 1 bytes, the limit of `off_t`).
    #[error("size `{0}` is larger than any file can be")]
    Overflow(String),
    /// The size is not a whole number of 512-byte sectors.
    #[error("size `{0}` is not a multiple of 512 bytes")]
    NotSectors(String),
    /// The size is below one MB.
    #[error("size `{0}` is below 1 MB")]
    TooSmall(String),
}

impl Bytes {
    /// The smallest size a user may ask for: 1 MB.
    pub const MINIMUM: Bytes = Bytes(MIB);
    /// The unit every size is a multiple of.
    pub const SECTOR: u64 = 512;

    /// Wraps a number of bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Bytes {
        Bytes(bytes)
    }

    /// Wraps a number of MiB.
    #[must_use]
    pub const fn from_mib(mib: u64) -> Bytes {
        Bytes(mib * MIB)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number of whole MiB, rounded down.
    #[must_use]
    pub const fn mib(self) -> u64 {
        self.0 / MIB
    }

    /// The size rounded up to a whole number of MiB.
    #[must_use]
    pub const fn round_up_to_mib(self) -> Bytes {
        Bytes(self.0.div_ceil(MIB) * MIB)
    }
}

impl FromStr for Bytes {
    type Err = SizeError;

    /// Parses `512M`, `1G`, `10GB`, `1.5G`, `2T`, `512MiB` in any case; a bare number is MB.
    fn from_str(text: &str) -> Result<Bytes, SizeError> {
        let shown = || text.to_owned();
        let trimmed = text.trim();
        let (digits, negative) = match trimmed.strip_prefix('-') {
            Some(rest) => (rest, true),
            None => (trimmed, false),
        };
        let unit_at = digits
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(digits.len());
        let (number, unit) = digits.split_at(unit_at);
        let unit = unit_bytes(unit.trim_start()).ok_or_else(|| SizeError::NotASize(shown()))?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let dangling_point = number.contains('.') && fraction.is_empty();
        if whole.is_empty() || dangling_point || fraction.contains('.') {
            return Err(SizeError::NotASize(shown()));
        }
        if negative {
            return Err(SizeError::Negative(shown()));
        }
        let bytes =
            exact_product(whole, fraction, unit).ok_or_else(|| SizeError::Overflow(shown()))?;
        let Exact::Whole(bytes) = bytes else {
            return Err(SizeError::NotSectors(shown()));
        };
        if bytes == 0 {
            return Err(SizeError::Zero(shown()));
        }
        if i64::try_from(bytes).is_err() {
            return Err(SizeError::Overflow(shown()));
        }
        if bytes % Bytes::SECTOR != 0 {
            return Err(SizeError::NotSectors(shown()));
        }
        if bytes < MIB {
            return Err(SizeError::TooSmall(shown()));
        }
        Ok(Bytes(bytes))
    }
}

fn unit_bytes(unit: &str) -> Option<u64> {
    Some(match unit.to_ascii_lowercase().as_str() {
        "b" => 1,
        "k" | "kb" | "kib" => KIB,
        "" | "m" | "mb" | "mib" => MIB,
        "g" | "gb" | "gib" => GIB,
        "t" | "tb" | "tib" => TIB,
        "p" | "pb" | "pib" => PIB,
        _ => return None,
    })
}

enum Exact {
    Whole(u64),
    Fractional,
}

/// `whole.fraction × unit` without rounding; `None` where it does not fit.
fn exact_product(whole: &str, fraction: &str, unit: u64) -> Option<Exact> {
    let fraction = fraction.trim_end_matches('0');
    // More decimals than this never come to a whole number of bytes for any unit we have.
    if fraction.len() > 18 {
        return Some(Exact::Fractional);
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let whole: u64 = whole.parse().ok()?;
    let fraction: u128 = if fraction.is_empty() {
        0
    } else {
        fraction.parse().ok()?
    };
    let scaled = u128::from(whole)
        .checked_mul(scale)?
        .checked_add(fraction)?;
    let product = scaled.checked_mul(u128::from(unit))?;
    if product % scale == 0 {
        u64::try_from(product / scale).ok().map(Exact::Whole)
    } else {
        Some(Exact::Fractional)
    }
}

impl fmt::Display for Bytes {
    /// Shows the size in the largest fitting unit, to at most two decimals: `5 GB`, `1.46 GB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [
            (PIB, "PB"),
            (TIB, "TB"),
            (GIB, "GB"),
            (MIB, "MB"),
            (KIB, "KB"),
        ];
        let Some((unit, name)) = units.into_iter().find(|(unit, _)| self.0 >= *unit) else {
            return f.pad(&format!("{} B", self.0));
        };
        let hundredths = u128::from(self.0) * 100 / u128::from(unit);
        let (whole, rest) = (hundredths / 100, hundredths % 100);
        let number = match (rest / 10, rest % 10) {
            (0, 0) => whole.to_string(),
            (tenth, 0) => format!("{whole}.{tenth}"),
            _ => format!("{whole}.{rest:02}"),
        };
        f.pad(&format!("{number} {name}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(text: &str) -> Result<u64, SizeError> {
        text.parse::<Bytes>().map(Bytes::get)
    }

    #[test]
    fn sizes_of_the_documents_parse() {
        for (text, bytes) in [
            ("512M", 512 * MIB),
            ("1G", GIB),
            ("5G", 5 * GIB),
            ("10GB", 10 * GIB),
            ("1.5G", GIB + GIB / 2),
            ("2T", 2 * TIB),
            ("512MiB", 512 * MIB),
            ("512mib", 512 * MIB),
            ("100", 100 * MIB),
            ("1048576b", MIB),
            ("5 GB", 5 * GIB),
            ("2048k", 2 * MIB),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn bad_sizes_name_themselves_and_their_fault() {
        for (text, error) in [
            ("0", SizeError::Zero("0".into())),
            ("0.0G", SizeError::Zero("0.0G".into())),
            ("-1", SizeError::Negative("-1".into())),
            ("5X", SizeError::NotASize("5X".into())),
            ("", SizeError::NotASize(String::new())),
            ("G", SizeError::NotASize("G".into())),
            ("1.G", SizeError::NotASize("1.G".into())),
            (".5G", SizeError::NotASize(".5G".into())),
            ("1.2.3G", SizeError::NotASize("1.2.3G".into())),
            ("1e9", SizeError::NotASize("1e9".into())),
            ("٥G", SizeError::NotASize("٥G".into())),
            ("99999999T", SizeError::Overflow("99999999T".into())),
            (
                "99999999999999999999999",
                SizeError::Overflow("99999999999999999999999".into()),
            ),
            ("1.3333M", SizeError::NotSectors("1.3333M".into())),
            ("1048577b", SizeError::NotSectors("1048577b".into())),
            ("512K", SizeError::TooSmall("512K".into())),
        ] {
            assert_eq!(size(text), Err(error), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_as_the_documents_show_them() {
        for (bytes, shown) in [
            (5 * GIB, "5 GB"),
            (GIB + GIB / 2, "1.5 GB"),
            (512 * MIB, "512 MB"),
            (1234 * MIB, "1.2 GB"),
            (1500 * MIB, "1.46 GB"),
            (4096, "4 KB"),
            (17, "17 B"),
            (0, "0 B"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), shown);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_size_or_an_error_that_names_it(text in ".{0,24}") {
            match text.parse::<Bytes>() {
                Ok(bytes) => prop_assert!(bytes >= Bytes::MINIMUM && bytes.get() % 512 == 0),
                Err(error) => prop_assert!(error.to_string().contains(&text)),
            }
        }

        #[test]
        fn a_whole_number_of_mib_survives_being_written_down(mib in 1_u64..1 << 42) {
            prop_assert_eq!(size(&format!("{mib}M")), Ok(mib * MIB));
        }
    }
}
