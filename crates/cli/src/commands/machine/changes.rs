//! `sistemo machine set`

use std::fmt::Display;
use std::str::FromStr;

use clap::Args;
use sistemo::machines::{MachineChanges, MachineView};
use sistemo::model::{Bytes, Exposure, Reference, VcpuCount};

use crate::arguments::reference;
use crate::failure::Failure;
use crate::session::Session;

/// What `machine set` takes.
#[derive(Debug, Args)]
pub(crate) struct Set {
    /// The machine's name, ID, or the first 8 or more characters of its ID
    #[arg(value_parser = reference)]
    machine: Reference,
    /// What to change: vcpus=NUMBER, memory=SIZE, expose=[HOST:]GUEST[,…], autostart=true|false
    #[arg(value_name = "KEY=VALUE", value_parser = Change::parse, required = true)]
    changes: Vec<Change>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Vcpus(VcpuCount),
    Memory(Bytes),
    Expose(Vec<Exposure>),
    Autostart(bool),
}

impl Change {
    fn parse(text: &str) -> Result<Change, String> {
        let Some((key, value)) = text.split_once('=') else {
            return Err(format!("`{text}` is not KEY=VALUE"));
        };
        match key {
            "vcpus" => parsed(value).map(Change::Vcpus),
            "memory" => parsed(value).map(Change::Memory),
            // Nothing behind the sign: nothing is exposed.
            "expose" => value
                .split(',')
                .filter(|port| !port.is_empty())
                .map(parsed)
                .collect::<Result<_, _>>()
                .map(Change::Expose),
            "autostart" => match value {
                "true" => Ok(Change::Autostart(true)),
                "false" => Ok(Change::Autostart(false)),
                _ => Err(format!("autostart is true or false, not `{value}`")),
            },
            _ => Err(format!(
                "unknown key `{key}`; the keys are vcpus, memory, expose, autostart"
            )),
        }
    }
}

fn parsed<T>(value: &str) -> Result<T, String>
where
    T: FromStr,
    T::Err: Display,
{
    value.parse().map_err(|error: T::Err| error.to_string())
}

impl Set {
    /// Makes all changes at once.
    pub(super) fn apply(self, session: &Session) -> Result<MachineView, Failure> {
        let mut all = MachineChanges::default();
        for change in self.changes {
            let (key, repeated) = match change {
                Change::Vcpus(vcpus) => ("vcpus", all.vcpus.replace(vcpus).is_some()),
                Change::Memory(memory) => ("memory", all.memory.replace(memory).is_some()),
                Change::Expose(ports) => ("expose", all.expose.replace(ports).is_some()),
                Change::Autostart(start) => ("autostart", all.autostart.replace(start).is_some()),
            };
            if repeated {
                return Err(Failure::Usage {
                    message: format!("`{key}` is set more than once"),
                    hint: "sistemo machine set --help".to_owned(),
                });
            }
        }
        Ok(session.engine()?.set_machine(&self.machine, &all)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_a_known_key_and_a_value_of_its_kind() {
        assert_eq!(
            Change::parse("memory=1G"),
            Ok(Change::Memory(Bytes::from_mib(1024)))
        );
        assert_eq!(
            Change::parse("autostart=false"),
            Ok(Change::Autostart(false))
        );
        assert_eq!(Change::parse("expose="), Ok(Change::Expose(Vec::new())));
        let two = ["8080:80", "22"].map(|port| port.parse().unwrap());
        assert_eq!(
            Change::parse("expose=8080:80,22"),
            Ok(Change::Expose(two.to_vec()))
        );
        for (text, named) in [
            ("expose=80:x", "`80:x`"),
            ("vcpus", "`vcpus` is not KEY=VALUE"),
            ("vcpus=0", "`0`"),
            ("memory=lots", "`lots`"),
            ("autostart=yes", "`yes`"),
            (
                "colour=red",
                "unknown key `colour`; the keys are vcpus, memory, expose, autostart",
            ),
        ] {
            let error = Change::parse(text).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
