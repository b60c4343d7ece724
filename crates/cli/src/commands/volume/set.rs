//! `sistemo volume set`

use clap::Args;
use sistemo::Engine;
use sistemo::history::{RevisionsToKeep, VolumeChanges};
use sistemo::model::Reference;

use crate::arguments::reference;
use crate::failure::Failure;
use crate::session::Session;

/// What `volume set` takes.
#[derive(Debug, Args)]
pub(crate) struct Set {
    /// The volume's name, ID, or the first 8 or more characters of its ID
    #[arg(value_name = "VOLUME", value_parser = reference)]
    volume: Reference,
    /// What to change: `revisions_to_keep=NUMBER`, or `revisions_to_keep=default` for as many as
    /// the pool says
    #[arg(value_name = "KEY=VALUE", value_parser = Change::parse, required = true)]
    changes: Vec<Change>,
}

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    RevisionsToKeep(RevisionsToKeep),
}

impl Change {
    fn parse(text: &str) -> Result<Change, String> {
        let Some((key, value)) = text.split_once('=') else {
            return Err(format!("`{text}` is not KEY=VALUE"));
        };
        match (key, value) {
            ("revisions_to_keep", "" | "default") => {
                Ok(Change::RevisionsToKeep(RevisionsToKeep::AsPool))
            }
            ("revisions_to_keep", number) => number
                .parse()
                .ok()
                // Digits alone: no sign.
                .filter(|_| number.bytes().all(|byte| byte.is_ascii_digit()))
                .map(|number| Change::RevisionsToKeep(RevisionsToKeep::Number(number)))
                .ok_or_else(|| {
                    format!("revisions_to_keep is a whole number or `default`, not `{number}`")
                }),
            _ => Err(format!("unknown key `{key}`; the key is revisions_to_keep")),
        }
    }
}

impl Set {
    /// Makes all changes at once.
    pub(super) fn run(self, engine: &Engine, session: &Session) -> Result<(), Failure> {
        let mut all = VolumeChanges::default();
        for change in self.changes {
            let Change::RevisionsToKeep(revisions) = change;
            if all.revisions_to_keep.replace(revisions).is_some() {
                return Err(Failure::Usage {
                    message: "`revisions_to_keep` is set more than once".to_owned(),
                    hint: "sistemo volume set --help".to_owned(),
                });
            }
        }
        session.output.one(&engine.set_volume(&self.volume, &all)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_a_known_key_and_a_value_of_its_kind() {
        for (text, expected) in [
            ("revisions_to_keep=3", RevisionsToKeep::Number(3)),
            ("revisions_to_keep=0", RevisionsToKeep::Number(0)),
            ("revisions_to_keep=", RevisionsToKeep::AsPool),
            ("revisions_to_keep=default", RevisionsToKeep::AsPool),
        ] {
            assert_eq!(Change::parse(text), Ok(Change::RevisionsToKeep(expected)));
        }
        for (text, named) in [
            ("revisions_to_keep", "`revisions_to_keep` is not KEY=VALUE"),
            ("revisions_to_keep=-1", "not `-1`"),
            ("revisions_to_keep=+1", "not `+1`"),
            ("revisions_to_keep=many", "not `many`"),
            ("revisions_to_keep=4294967296", "not `4294967296`"),
            (
                "colour=red",
                "unknown key `colour`; the key is revisions_to_keep",
            ),
        ] {
            let error = Change::parse(text).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
