//! Identifiers, and the ways a user may refer to an object.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A text is not an identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an ID")]
pub struct IdError(String);

macro_rules! id_type {
    ($type:ident, $doc:literal) => {
        #[doc = $doc]
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $type(Uuid);

        impl $type {
            /// Makes a new random identifier (UUID version 4).
            #[must_use]
            pub fn random() -> $type {
                $type(Uuid::new_v4())
            }

            /// The identifier as 32 hex digits without dashes.
            #[must_use]
            pub fn simple(&self) -> String {
                self.0.simple().to_string()
            }

            /// The first 8 hex digits, from which names are made up.
            #[must_use]
            pub fn short(&self) -> String {
                self.simple()[..8].to_owned()
            }
        }

        impl FromStr for $type {
            type Err = IdError;

            /// Parses the hyphenated form only, the one that is shown.
            fn from_str(text: &str) -> Result<$type, IdError> {
                let id = Uuid::try_parse(text).map_err(|_| IdError(text.to_owned()))?;
                if id.to_string() == text {
                    Ok($type(id))
                } else {
                    Err(IdError(text.to_owned()))
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0.to_string())
            }
        }
    };
}

id_type!(
    VolumeId,
    "The identifier of a volume; it never changes and is never used again."
);
id_type!(
    MachineId,
    "The identifier of a machine, which is also the guest's machine-id."
);
id_type!(ImageId, "The identifier of an image's content.");
id_type!(
    CatalogueId,
    "The identifier of a catalogue, written into each pool that belongs to it."
);

/// How a user refers to an object: by name, full ID, or an ID prefix of 8 or more characters,
/// tried in that order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference(String);

impl Reference {
    /// The shortest ID prefix that refers to an object.
    pub const SHORTEST_PREFIX: usize = 8;

    /// The text as the user gave it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text, where it may be an ID or the beginning of one.
    #[must_use]
    pub fn as_id_prefix(&self) -> Option<&str> {
        let long_enough = self.0.len() >= Reference::SHORTEST_PREFIX && self.0.len() <= 36;
        let like_an_id = self
            .0
            .chars()
            .all(|c| matches!(c, '0'..='9' | 'a'..='f' | '-'));
        (long_enough && like_an_id).then_some(self.0.as_str())
    }
}

impl From<&str> for Reference {
    fn from(text: &str) -> Reference {
        Reference(text.to_owned())
    }
}

impl From<String> for Reference {
    fn from(text: String) -> Reference {
        Reference(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_its_hyphenated_text() {
        let id = VolumeId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.simple().parse::<VolumeId>().is_err());
    }

    #[test]
    fn only_8_or_more_id_characters_are_a_prefix() {
        assert!(Reference::from("a1b2c3d").as_id_prefix().is_none());
        assert!(Reference::from("a1b2c3d4").as_id_prefix().is_some());
        assert!(Reference::from("a1b2c3d4-5678").as_id_prefix().is_some());
        assert!(Reference::from("pgdata-1").as_id_prefix().is_none());
    }
}
