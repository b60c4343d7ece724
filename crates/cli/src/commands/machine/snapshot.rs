//! `sistemo machine snapshot`

use clap::Args;
use sistemo::machines::MachineSnapshot;
use sistemo::model::{Reference, SnapshotName};

use crate::arguments::{reference, value};
use crate::failure::Failure;
use crate::output::Shown;
use crate::output::table::{Cell, Column, Table};
use crate::session::Session;

pub(super) const EXAMPLES: &str = "\
Examples:
  sistemo machine snapshot db1
  sistemo machine snapshot db1 --name before-upgrade";

/// What `machine snapshot` takes.
#[derive(Debug, Args)]
pub(crate) struct Snapshot {
    /// The machine's name, ID, or the first 8 or more characters of its ID
    #[arg(value_parser = reference)]
    machine: Reference,
    /// The name of the snapshot that each volume gets; without one, the time in UTC
    #[arg(long, value_parser = value::<SnapshotName>, allow_hyphen_values = true)]
    name: Option<SnapshotName>,
}

impl Snapshot {
    pub(super) fn run(self, session: &Session) -> Result<(), Failure> {
        let taken = session
            .engine()?
            .snapshot_machine(&self.machine, self.name)?;
        let MachineSnapshot {
            machine,
            name,
            pause_ms,
            ..
        } = &taken;
        let how = match (taken.frozen, pause_ms) {
            (true, _) => format!("paused for {pause_ms} ms, filesystems frozen"),
            (false, 0) => "not paused".to_owned(),
            (false, _) => format!("paused for {pause_ms} ms"),
        };
        let note = format!("kept the volumes of {machine} as {name} ({how})");
        session.output.note(&note);
        session.output.one(&taken)
    }
}

impl Shown for MachineSnapshot {
    fn table(taken: &[MachineSnapshot]) -> Table {
        let mut table = Table::new(vec![
            Column::at_least("VOLUME", 15),
            Column::at_least("SNAPSHOT", 15),
            Column::new("WAY"),
        ]);
        for snapshot in taken {
            for volume in &snapshot.volumes {
                table.row(vec![
                    Cell::new(&volume.name),
                    Cell::new(&snapshot.name),
                    Cell::new(volume.way),
                ]);
            }
        }
        table
    }
}
