//! `sistemo volume check`, `sistemo volume trim` and `sistemo volume usage`

use std::process::ExitCode;

use clap::Args;
use sistemo::Engine;
use sistemo::care::{Checked, Obstacle, OnDamage, Trimmed, Verdict, VolumeUsage};
use sistemo::model::{Bytes, Reference};

use crate::arguments::reference;
use crate::failure::{FAILED, Failure};
use crate::output::details::Details;
use crate::output::table::{Cell, Column, Table};
use crate::output::{BAD, Described, GOOD, NOTABLE, PLAIN, Shown};
use crate::session::Session;

/// What `volume check` takes.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The volume's name, ID, or the first 8 or more characters of its ID
    #[arg(value_name = "VOLUME", value_parser = reference)]
    volume: Reference,
    /// Mend what can be mended
    #[arg(long)]
    repair: bool,
}

/// What `volume trim` takes.
#[derive(Debug, Args)]
pub(crate) struct Trim {
    /// The volume's name, ID, or the first 8 or more characters of its ID
    #[arg(value_name = "VOLUME", value_parser = reference)]
    volume: Reference,
}

/// What `volume usage` takes.
#[derive(Debug, Args)]
pub(crate) struct Usage {
    /// The volume's name, ID, or the first 8 or more characters of its ID; all without it
    #[arg(value_name = "VOLUME", value_parser = reference)]
    volume: Option<Reference>,
}

impl Check {
    pub(super) fn run(self, engine: &Engine, session: &Session) -> Result<ExitCode, Failure> {
        let on_damage = if self.repair {
            OnDamage::Repair
        } else {
            OnDamage::Report
        };
        let checked = engine.check_volume(&self.volume, on_damage)?;
        let output = session.output;
        let name = &checked.name;
        if let Some(snapshot) = &checked.kept {
            output.note(&format!(
                "{name} as it was before the repair is kept as snapshot {snapshot}"
            ));
        }
        for what in &checked.repaired {
            output.note(&format!("repaired the {what} of {name}"));
        }
        if self.repair && checked.repaired.is_empty() {
            output.note(&format!("nothing of {name} had to be repaired"));
        }
        output.one(&checked)?;
        Ok(if checked.is_sound() {
            ExitCode::SUCCESS
        } else {
            if !self.repair {
                output.note(&advice(&checked));
            }
            ExitCode::from(FAILED)
        })
    }
}

/// What to do about problems.
fn advice(checked: &Checked) -> String {
    let name = &checked.name;
    let damaged = |part: &str| {
        let parts = &mut checked.parts.iter();
        parts.any(|it| it.part == part && it.verdict == Verdict::Damaged)
    };
    let unmendable = [Some(Obstacle::NoSafeRepair), Some(Obstacle::Lost)];
    if damaged("filesystem") && unmendable.contains(&checked.obstacle) {
        return format!(
            "`sistemo volume revert {name} SNAPSHOT` takes it back to one from before the damage"
        );
    }
    if damaged("data") || damaged("filesystem") {
        return format!("`sistemo volume check {name} --repair` mends what can be mended");
    }
    match checked.holds {
        Some("ext4") => format!(
            "start the machine that mounts {name}, or `sistemo volume check {name} --repair`"
        ),
        _ => format!("start the machine that mounts {name}, stop it, and check again"),
    }
}

impl Trim {
    pub(super) fn run(self, engine: &Engine, session: &Session) -> Result<(), Failure> {
        let trimmed = engine.trim_volume(&self.volume)?;
        session.output.details(&trimmed)
    }
}

impl Usage {
    pub(super) fn run(self, engine: &Engine, session: &Session) -> Result<(), Failure> {
        let output = session.output;
        let Some(volume) = self.volume else {
            let all = engine.usage_of_volumes()?;
            tell_reasons(session, &all);
            return output.list(
                &all,
                "no volumes yet; make one with `sistemo volume create 5G --name NAME`",
            );
        };
        let usage = engine.volume_usage(&volume)?;
        tell_reasons(session, std::slice::from_ref(&usage));
        output.one(&usage)
    }
}

/// Says of which volumes nothing can be told.
fn tell_reasons(session: &Session, usages: &[VolumeUsage]) {
    for usage in usages {
        if let Some(reason) = &usage.reason {
            session.output.note(&format!("{}: {reason}", usage.name));
        }
    }
}

impl Shown for VolumeUsage {
    fn table(usages: &[VolumeUsage]) -> Table {
        let headings = [
            "NAME",
            "POOL",
            "SIZE",
            "USED",
            "SHARED",
            "ALONE",
            "SNAPSHOTS",
        ];
        let mut table = Table::new(headings.map(Column::new).to_vec());
        for usage in usages {
            let bytes = |bytes: Option<u64>| Cell::maybe(bytes.map(Bytes::new));
            table.row(vec![
                Cell::new(&usage.name),
                Cell::new(&usage.pool),
                Cell::new(Bytes::new(usage.size_bytes)),
                bytes(usage.used_bytes),
                bytes(usage.shared_bytes),
                bytes(usage.alone_bytes),
                bytes(usage.snapshots_alone_bytes),
            ]);
        }
        table
    }
}

impl Shown for Checked {
    fn table(volumes: &[Checked]) -> Table {
        let columns = ["PART", "VERDICT", "CHECKED WITH", "FOUND"];
        let mut table = Table::new(columns.map(Column::new).to_vec());
        for part in volumes.iter().flat_map(|checked| &checked.parts) {
            let style = match part.verdict {
                Verdict::Ok => GOOD,
                Verdict::Unclean => NOTABLE,
                Verdict::Damaged => BAD,
                Verdict::NotChecked => PLAIN,
            };
            let mut found = part.found.iter();
            table.row(vec![
                Cell::new(part.part),
                Cell::styled(part.verdict, style),
                Cell::maybe(part.checked_with.as_ref()),
                Cell::maybe(found.next()),
            ]);
            for more in found {
                let empty = || Cell::new("");
                table.row(vec![empty(), empty(), empty(), Cell::new(more)]);
            }
        }
        table
    }
}

impl Described for Trimmed {
    fn details(&self) -> Details {
        let mut details = Details::default();
        details.line("Name", &self.name);
        details.line("Holds", self.holds);
        details.line("Unused blocks", Bytes::new(self.unused_bytes));
        details.line("Blocks of zeros", Bytes::new(self.zero_bytes));
        details.line("Used before", Bytes::new(self.used_before_bytes));
        details.line("Used now", Bytes::new(self.used_bytes));
        details.line("Given back", Bytes::new(self.given_back_bytes));
        details
    }
}

#[cfg(test)]
mod tests {
    use sistemo::care::Part;
    use sistemo::model::VolumeId;

    use super::*;

    #[test]
    fn what_was_found_stands_below_each_other() {
        let part = |part, verdict, with: Option<&str>, found: &[&str]| Part {
            part,
            verdict,
            checked_with: with.map(str::to_owned),
            found: found.iter().map(|word| (*word).to_owned()).collect(),
        };
        let checked = Checked {
            id: VolumeId::random(),
            name: "pgdata".parse().unwrap(),
            pool: "default".parse().unwrap(),
            holds: Some("ext4"),
            parts: vec![
                part("data", Verdict::Ok, Some("file"), &[]),
                part(
                    "filesystem",
                    Verdict::Damaged,
                    Some("e2fsck"),
                    &["one", "two"],
                ),
            ],
            repaired: Vec::new(),
            kept: None,
            obstacle: None,
        };
        let table = Checked::table(&[checked]).to_string();
        let expected = "\
PART        VERDICT  CHECKED WITH  FOUND
data        ok       file          —
filesystem  damaged  e2fsck        one
                                   two
";
        let plain = anstream::adapter::strip_str(&table).to_string();
        assert_eq!(plain, expected);
    }
}
