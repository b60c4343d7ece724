//! What an image is, and what a volume made from it boots with.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Bytes, ImageId, ImageName, SnapshotName, Timestamp, VolumeName};

/// An operating system to start a root volume from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The identifier of this content; a rebuilt image has a new one.
    pub id: ImageId,
    /// Its name, unique among images.
    pub name: ImageName,
    /// Its virtual size: the smallest root volume it fits on.
    pub size: Bytes,
    /// The kernel it boots, its filesystem then being `/dev/vda` as a whole; without one the
    /// image holds a partition table and boots by firmware.
    pub boot: Option<Boot>,
    /// Where it came from.
    pub source: ImageSource,
    /// When it was made.
    pub created: Timestamp,
}

/// Where an image came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum ImageSource {
    /// Built by Sistemo.
    Built {
        /// The distribution's release, such as `bookworm`.
        suite: String,
        /// Packages included beyond the usual ones.
        include: Vec<String>,
    },
    /// Imported from a file.
    Imported {
        /// The file's name, without its directory.
        file: String,
    },
    /// Made of a volume.
    Volume {
        /// The volume's name at that time.
        volume: VolumeName,
        /// The snapshot of it, where it was one.
        snapshot: Option<SnapshotName>,
    },
}

/// What a machine boots with when not by firmware.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// The kernel, as kept under its digest.
    pub kernel: Digest,
    /// The initial RAM disk, as kept under its digest.
    pub initrd: Option<Digest>,
}

/// The SHA-256 digest of a file, 64 lowercase hex digits. It is read in either case: other systems
/// write it in capitals.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// A text is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a SHA-256 digest")]
pub struct DigestError(String);

impl Digest {
    /// Wraps the 32 bytes that a hash function returned.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Digest {
        let mut text = String::with_capacity(64);
        for byte in bytes {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
            }
        }
        Digest(text)
    }

    /// The digest as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        let hex = text.chars().all(|c| c.is_ascii_hexdigit());
        if text.len() == 64 && hex {
            Ok(Digest(text.to_ascii_lowercase()))
        } else {
            Err(DigestError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Digest, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_64_hex_digits() {
        let digest = Digest::from_bytes([0xa5; 32]);
        assert_eq!(digest.as_str(), "a5".repeat(32));
        assert_eq!(digest.as_str().parse(), Ok(digest));
        let capitals: Digest = "A5".repeat(32).parse().unwrap();
        assert_eq!(capitals.as_str(), "a5".repeat(32));
        assert!("../etc".parse::<Digest>().is_err());
    }
}
