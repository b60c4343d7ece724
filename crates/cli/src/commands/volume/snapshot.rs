//! `sistemo volume snapshot …` and `sistemo volume revert`

use std::collections::HashSet;

use clap::{Args, Subcommand};
use sistemo::model::{Bytes, Reference, SnapshotName};
use sistemo::snapshots::SnapshotView;
use sistemo::{Engine, Kind};

use crate::arguments::{reference, value};
use crate::confirmation::{Beforehand, BeforehandOfLoss};
use crate::failure::Failure;
use crate::output::Shown;
use crate::output::table::{Cell, Column, Table};
use crate::session::Session;

/// A verb for snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Keep a volume as it is now
    ///
    /// The machine that holds the volume may run: the snapshot is then what a disk holds after a
    /// power cut. Where the pool has to copy, that goes on while the machine does; it is paused
    /// meanwhile only where the pool's driver is an external one.
    #[command(after_help = "\
Examples:
  sistemo volume snapshot create pgdata
  sistemo volume snapshot create pgdata --name before-upgrade")]
    Create {
        /// The volume's name, ID, or the first 8 or more characters of its ID
        #[arg(value_name = "VOLUME", value_parser = reference)]
        volume: Reference,
        /// The snapshot's name; without one, the time in UTC
        #[arg(long, value_parser = value::<SnapshotName>, allow_hyphen_values = true)]
        name: Option<SnapshotName>,
    },
    /// List a volume's snapshots, oldest first
    #[command(visible_alias = "ls")]
    List {
        /// The volume's name, ID, or the first 8 or more characters of its ID
        #[arg(value_name = "VOLUME", value_parser = reference)]
        volume: Reference,
    },
    /// Delete snapshots of a volume
    ///
    /// The volume, its other snapshots and its clones stay as they are.
    #[command(
        visible_alias = "rm",
        after_help = "\
Example:
  sistemo volume snapshot delete pgdata before-upgrade"
    )]
    Delete(Delete),
}

/// What `volume snapshot delete` takes.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The volume's name, ID, or the first 8 or more characters of its ID
    #[arg(value_name = "VOLUME", value_parser = reference)]
    volume: Reference,
    /// The snapshots' names
    #[arg(value_name = "SNAPSHOT", value_parser = value::<SnapshotName>, required = true)]
    snapshots: Vec<SnapshotName>,
    #[command(flatten)]
    beforehand: Beforehand,
}

/// What `volume revert` takes.
#[derive(Debug, Args)]
pub(crate) struct Revert {
    /// The volume's name, ID, or the first 8 or more characters of its ID
    #[arg(value_name = "VOLUME", value_parser = reference)]
    volume: Reference,
    /// The snapshot; without one, the newest
    #[arg(value_name = "SNAPSHOT", value_parser = value::<SnapshotName>)]
    snapshot: Option<SnapshotName>,
    #[command(flatten)]
    beforehand: BeforehandOfLoss,
}

impl Command {
    pub(super) fn run(self, engine: &Engine, session: &Session) -> Result<(), Failure> {
        let output = session.output;
        match self {
            Command::Create { volume, name } => {
                let taken = engine.take_snapshot(&volume, name)?;
                let (volume, snapshot) = (&taken.volume.name, &taken.snapshot.name);
                output.note(&format!("kept {volume} as {snapshot} ({})", taken.way));
                output.one(&taken.snapshot)
            }
            Command::List { volume } => output.list(
                &engine.snapshots(&volume)?,
                "no snapshots yet; make one with `sistemo volume snapshot create VOLUME`",
            ),
            Command::Delete(delete) => delete.run(engine, session),
        }
    }
}

impl Delete {
    fn run(self, engine: &Engine, session: &Session) -> Result<(), Failure> {
        let volume = engine.volume(&self.volume)?;
        // By ID from here on: a name may belong to something else when the answer comes.
        let reference = Reference::from(volume.id.to_string());
        let mut seen = HashSet::new();
        let mut lost = Vec::new();
        for name in &self.snapshots {
            let snapshot = engine.snapshot(&reference, Some(name))?;
            if !seen.insert(name) {
                return Err(Failure::Repeated {
                    kind: Kind::Snapshot,
                    name: name.to_string(),
                });
            }
            let taken = snapshot.created;
            lost.push(format!(
                "snapshot {name} of volume {} ({taken:.0})",
                volume.name
            ));
        }
        self.beforehand.confirm(&lost)?;
        let mut deleted = Vec::new();
        let outcome = self.snapshots.iter().try_for_each(|name| {
            deleted.push(engine.delete_snapshot(&reference, name)?);
            session.output.note(&format!(
                "deleted snapshot {name} of volume {}",
                volume.name
            ));
            Ok(())
        });
        // What is gone is told also where a later one could not be deleted.
        session.output.deleted(&deleted)?;
        outcome
    }
}

impl Revert {
    pub(super) fn run(self, engine: &Engine, session: &Session) -> Result<(), Failure> {
        let volume = engine.volume(&self.volume)?;
        let reference = Reference::from(volume.id.to_string());
        let snapshot = engine.snapshot(&reference, self.snapshot.as_ref())?;
        let (name, to, taken) = (&volume.name, &snapshot.name, snapshot.created);
        self.beforehand.confirm(
            &format!("Revert volume {name} to {to} ({taken:.0}) and lose what it holds now?"),
            &format!("what volume {name} holds now would be lost"),
        )?;
        let reverted = engine.revert_volume(&reference, Some(&snapshot.name))?;
        session
            .output
            .note(&format!("reverted {name} to {to} ({})", reverted.way));
        session.output.one(&reverted.volume)
    }
}

impl Shown for SnapshotView {
    fn table(snapshots: &[SnapshotView]) -> Table {
        let mut table = Table::new(vec![
            Column::at_least("NAME", 15),
            Column::at_least("CREATED", 20),
            Column::new("SIZE"),
        ]);
        for snapshot in snapshots {
            table.row(vec![
                Cell::new(&snapshot.name),
                Cell::new(format!("{:.0}", snapshot.created)),
                Cell::new(Bytes::new(snapshot.size_bytes)),
            ]);
        }
        table
    }
}
