//! Names that users give, parsed once into types that cannot hold a path or an option.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a name of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is empty.
    #[error("a {kind} name cannot be empty")]
    Empty {
        /// What was to be named: `volume`, `machine`, …
        kind: &'static str,
    },
    /// The name is longer than its kind allows.
    #[error("{kind} name `{name}` has {length} characters; at most {limit} are allowed")]
    TooLong {
        /// What was to be named.
        kind: &'static str,
        /// The name as given.
        name: String,
        /// Its length in characters.
        length: usize,
        /// The longest allowed length.
        limit: usize,
    },
    /// The name holds a character that its kind does not allow.
    #[error("{kind} name `{}` contains `{}`; {rule}", name.escape_debug(), character.escape_debug())]
    Character {
        /// What was to be named.
        kind: &'static str,
        /// The name as given.
        name: String,
        /// The first character that is not allowed.
        character: char,
        /// What is allowed.
        rule: &'static str,
    },
    /// The name begins or ends with a character that may only stand inside.
    #[error("{kind} name `{name}` cannot {edge} with `{character}`; {rule}")]
    Edge {
        /// What was to be named.
        kind: &'static str,
        /// The name as given.
        name: String,
        /// `start` or `end`.
        edge: &'static str,
        /// The character at that edge.
        character: char,
        /// What is allowed.
        rule: &'static str,
    },
}

struct Rule {
    kind: &'static str,
    limit: usize,
    inside: fn(char) -> bool,
    edge: fn(char) -> bool,
    both_edges: bool,
    text: &'static str,
}

const OBJECT: Rule = Rule {
    kind: "",
    limit: 63,
    inside: |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'),
    edge: |c| c.is_ascii_alphanumeric(),
    both_edges: false,
    text: "names are made of a-z A-Z 0-9 . _ - and start with a letter or digit",
};

const HOST: Rule = Rule {
    kind: "machine",
    limit: 58,
    inside: |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-',
    edge: |c| c.is_ascii_lowercase() || c.is_ascii_digit(),
    both_edges: true,
    text: "machine names are host names: a-z 0-9 -, starting and ending with a letter or digit",
};

impl Rule {
    fn check(&self, name: &str) -> Result<(), NameError> {
        let (kind, rule) = (self.kind, self.text);
        let (Some(first), Some(last)) = (name.chars().next(), name.chars().next_back()) else {
            return Err(NameError::Empty { kind });
        };
        if let Some(character) = name.chars().find(|c| !(self.inside)(*c)) {
            return Err(NameError::Character {
                kind,
                name: name.to_owned(),
                character,
                rule,
            });
        }
        let length = name.len();
        if length > self.limit {
            let name = name.to_owned();
            return Err(NameError::TooLong {
                kind,
                name,
                length,
                limit: self.limit,
            });
        }
        let edge_error = |edge, character| NameError::Edge {
            kind,
            name: name.to_owned(),
            edge,
            character,
            rule,
        };
        if !(self.edge)(first) {
            return Err(edge_error("start", first));
        }
        if self.both_edges && !(self.edge)(last) {
            return Err(edge_error("end", last));
        }
        Ok(())
    }
}

macro_rules! name_type {
    ($type:ident, $rule:expr, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<$type, NameError> {
                $rule.check(text)?;
                Ok($type(text.to_owned()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(text: String) -> Result<$type, NameError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name_type!(
    VolumeName,
    Rule {
        kind: "volume",
        ..OBJECT
    },
    "The name of a volume, 1–63 characters."
);
name_type!(
    PoolName,
    Rule {
        kind: "pool",
        ..OBJECT
    },
    "The name of a pool, 1–63 characters."
);
name_type!(
    ImageName,
    Rule {
        kind: "image",
        ..OBJECT
    },
    "The name of an image, 1–63 characters."
);
name_type!(
    SnapshotName,
    Rule {
        kind: "snapshot",
        ..OBJECT
    },
    "The name of a snapshot, 1–63 characters."
);
name_type!(
    MachineName,
    HOST,
    "The name of a machine, which is its host name too, 1–58 characters."
);

impl PoolName {
    /// The pool that always exists.
    #[must_use]
    pub fn default_pool() -> PoolName {
        PoolName("default".to_owned())
    }
}

impl MachineName {
    /// The name of the root volume that a deploy makes: `{machine}-root`.
    #[must_use]
    pub fn root_volume(&self) -> VolumeName {
        VolumeName(format!("{}-root", self.0))
    }

    /// Makes a machine name out of any text, such as an image's name: what a host name cannot
    /// hold becomes `-`, and what is left empty becomes `machine`.
    #[must_use]
    pub fn derived_from(text: &str) -> MachineName {
        let mut name: String = text
            .chars()
            .map(|c| c.to_ascii_lowercase())
            .map(|c| if (HOST.inside)(c) { c } else { '-' })
            .take(48)
            .collect();
        name.truncate(name.trim_end_matches('-').len());
        let name = name.trim_start_matches('-');
        MachineName(if name.is_empty() { "machine" } else { name }.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_names_parse() {
        let longest = "v".repeat(63);
        for name in ["pgdata", "redis-data", "A.b_c-d", "0", longest.as_str()] {
            assert_eq!(name.parse::<VolumeName>().unwrap().as_str(), name);
        }
        for name in ["db1", "a", "0-0"] {
            assert_eq!(name.parse::<MachineName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn bad_names_are_refused_by_name() {
        let long = "v".repeat(64);
        for name in [
            "",
            long.as_str(),
            "../x",
            "a/b",
            "-x",
            ".x",
            "_x",
            "a b",
            "🦀",
            "a\n",
            "ä",
        ] {
            let error = name.parse::<VolumeName>().unwrap_err();
            let shown = error.to_string();
            assert!(shown.contains("volume"), "{shown}");
            assert!(shown.contains(&name.escape_debug().to_string()), "{shown}");
        }
    }

    #[test]
    fn a_machine_name_must_be_a_host_name() {
        let long = "m".repeat(59);
        for name in ["my_db", "a.", "a-", "-a", "Db", "a.b", long.as_str()] {
            assert!(name.parse::<MachineName>().is_err(), "{name}");
        }
    }

    #[test]
    fn a_root_volume_name_always_fits() {
        let name: MachineName = "m".repeat(58).parse().unwrap();
        assert!(name.root_volume().as_str().parse::<VolumeName>().is_ok());
    }

    proptest! {
        #[test]
        fn a_derived_machine_name_is_a_machine_name(text in ".{0,80}") {
            let derived = MachineName::derived_from(&text);
            prop_assert!(derived.as_str().parse::<MachineName>().is_ok(), "{}", derived);
        }
    }
}
