//! `sistemo volume snapshot …` and `sistemo volume revert`

use std::collections::HashSet;

use clap::{Args, Subcommand};
use serde::Serialize;
use sistemo::history::Pin;
use sistemo::model::{Bytes, Reference, SnapshotKind, SnapshotName};
use sistemo::snapshots::{Replaced, SnapshotView};
use sistemo::volumes::VolumeView;
use sistemo::{Changed, Engine, Kind};

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
    /// Pin a snapshot, so that it stays
    ///
    /// What is pinned is neither rotated away nor deleted, and its volume is not deleted either.
    #[command(after_help = "\
Example:
  sistemo volume snapshot pin pgdata before-upgrade")]
    Pin(Named),
    /// Take the pin out of a snapshot
    Unpin(Named),
    /// Delete snapshots of a volume
    ///
    /// The volume, its other snapshots and its clones stay as they are. Either all of them can be
    /// deleted, or none is; a pinned one cannot.
    #[command(
        visible_alias = "rm",
        after_help = "\
Example:
  sistemo volume snapshot delete pgdata before-upgrade"
    )]
    Delete(Delete),
}

/// What `volume snapshot pin` and `unpin` take.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// The volume's name, ID, or the first 8 or more characters of its ID
    #[arg(value_name = "VOLUME", value_parser = reference)]
    volume: Reference,
    /// The snapshot's name
    #[arg(value_name = "SNAPSHOT", value_parser = value::<SnapshotName>)]
    snapshot: SnapshotName,
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
    /// The snapshot; without one, the newest but for those that a revert has left
    #[arg(value_name = "SNAPSHOT", value_parser = value::<SnapshotName>)]
    snapshot: Option<SnapshotName>,
    /// Lose what the volume holds now, instead of keeping it as a snapshot
    #[arg(long)]
    discard: bool,
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
            Command::Pin(named) => named.pin(Pin::In, engine, session),
            Command::Unpin(named) => named.pin(Pin::Out, engine, session),
            Command::Delete(delete) => delete.run(engine, session),
        }
    }
}

impl Named {
    fn pin(self, pin: Pin, engine: &Engine, session: &Session) -> Result<(), Failure> {
        let (snapshot, changed) = engine.pin_snapshot(&self.volume, &self.snapshot, pin)?;
        let name = &snapshot.name;
        if changed == Changed::No {
            let state = if pin == Pin::In {
                "pinned already"
            } else {
                "not pinned"
            };
            session.output.note(&format!("snapshot {name} is {state}"));
        }
        session.output.one(&snapshot)
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
            let snapshot = engine.check_snapshot_deletable(&reference, name)?;
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
        let replaced = if self.discard {
            self.beforehand.confirm(
                &format!("Revert volume {name} to {to} ({taken:.0}) and lose what it holds now?"),
                &format!("what volume {name} holds now would be lost"),
            )?;
            Replaced::Discard
        } else {
            // Nothing is lost, so nobody is asked.
            Replaced::Keep
        };
        let reverted = engine.revert_volume(&reference, Some(&snapshot.name), replaced)?;
        let kept = reverted.kept.map(|kept| kept.name);
        let what_was = kept.as_ref().map_or_else(String::new, |kept| {
            format!("; what it held is kept as {kept}")
        });
        session.output.note(&format!(
            "reverted {name} to {to} ({}){what_was}",
            reverted.way
        ));
        session.output.one(&Back {
            volume: reverted.volume,
            kept_as: kept,
        })
    }
}

/// A volume that was taken back.
#[derive(Serialize)]
struct Back {
    #[serde(flatten)]
    volume: VolumeView,
    kept_as: Option<SnapshotName>,
}

impl Shown for Back {
    fn table(reverted: &[Back]) -> Table {
        let volumes: Vec<_> = reverted.iter().map(|it| it.volume.clone()).collect();
        VolumeView::table(&volumes)
    }
}

/// One snapshot among the details of its volume.
pub(super) fn line(snapshot: &SnapshotView) -> String {
    let mut about = vec![format!("{:.0}", snapshot.created)];
    if snapshot.kind != SnapshotKind::Requested {
        about.push(snapshot.kind.to_string());
    }
    if snapshot.pinned {
        about.push("pinned".to_owned());
    }
    if let Some(alone) = snapshot.alone_bytes {
        about.push(format!("{} alone", Bytes::new(alone)));
    }
    format!("{} ({})", snapshot.name, about.join(", "))
}

impl Shown for SnapshotView {
    fn table(snapshots: &[SnapshotView]) -> Table {
        let mut table = Table::new(vec![
            Column::at_least("NAME", 15),
            Column::at_least("CREATED", 20),
            Column::at_least("KIND", 9),
            Column::at_least("PINNED", 6),
            Column::at_least("SIZE", 5),
            Column::new("ALONE"),
        ]);
        for snapshot in snapshots {
            table.row(vec![
                Cell::new(&snapshot.name),
                Cell::new(format!("{:.0}", snapshot.created)),
                Cell::new(snapshot.kind),
                Cell::new(if snapshot.pinned { "yes" } else { "no" }),
                Cell::new(Bytes::new(snapshot.size_bytes)),
                Cell::maybe(snapshot.alone_bytes.map(Bytes::new)),
            ]);
        }
        table
    }
}
