//! `sistemo volume trash …`

use std::collections::{BTreeSet, HashSet};

use clap::{Args, Subcommand};
use sistemo::model::{Bytes, PoolName, Reference, VolumeName};
use sistemo::trash::TrashedVolume;
use sistemo::{Engine, Kind};

use crate::arguments::{reference, value};
use crate::confirmation::Beforehand;
use crate::failure::Failure;
use crate::output::Shown;
use crate::output::table::{Cell, Column, Table};
use crate::session::Session;

/// A verb for deleted volumes.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the deleted volumes that can be restored, first what was deleted first
    #[command(visible_alias = "ls")]
    List,
    /// Take a volume out of the trash, with its snapshots
    ///
    /// It is what it was when it was deleted, and attached to nothing.
    #[command(after_help = "\
Examples:
  sistemo volume trash restore pgdata
  sistemo volume trash restore pgdata --name pgdata-old")]
    Restore(Restore),
    /// Destroy deleted volumes now, and give their room back
    ///
    /// Without a volume, all that is in the trash. That cannot be undone.
    #[command(after_help = "\
Examples:
  sistemo volume trash empty
  sistemo volume trash empty -P fast
  sistemo volume trash empty pgdata -y")]
    Empty(Empty),
}

/// What `volume trash restore` takes.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The volume's name, ID, or the first 8 or more characters of its ID
    #[arg(value_name = "VOLUME", value_parser = reference)]
    volume: Reference,
    /// Its new name; without one, the name it had
    #[arg(long, value_parser = value::<VolumeName>, allow_hyphen_values = true)]
    name: Option<VolumeName>,
}

/// What `volume trash empty` takes.
#[derive(Debug, Args)]
pub(crate) struct Empty {
    /// The volumes' names or IDs; without any, all in the trash
    #[arg(value_name = "VOLUME", value_parser = reference)]
    volumes: Vec<Reference>,
    /// Only what is in the trash of this pool
    #[arg(
        short = 'P',
        long,
        value_parser = value::<PoolName>,
        allow_hyphen_values = true,
        conflicts_with = "volumes"
    )]
    pool: Option<PoolName>,
    #[command(flatten)]
    beforehand: Beforehand,
}

impl Command {
    pub(super) fn run(self, engine: &Engine, session: &Session) -> Result<(), Failure> {
        match self {
            Command::List => session
                .output
                .list(&engine.trash()?, "nothing is in the trash"),
            Command::Restore(Restore { volume, name }) => session
                .output
                .one(&engine.restore_volume(&volume, name.as_ref())?),
            Command::Empty(empty) => empty.run(engine, session),
        }
    }
}

impl Empty {
    fn run(self, engine: &Engine, session: &Session) -> Result<(), Failure> {
        let chosen = self.chosen(engine, session)?;
        if chosen.is_empty() {
            session.output.note("nothing is in the trash");
        }
        let lost: Vec<_> = chosen
            .iter()
            .map(|volume| {
                let (name, size) = (&volume.name, Bytes::new(volume.size_bytes));
                format!("volume {name} ({size})")
            })
            .collect();
        self.beforehand.confirm_for_good(&lost)?;
        let mut destroyed = Vec::new();
        let outcome = chosen.iter().try_for_each(|volume| {
            let gone = engine.destroy_trashed(&Reference::from(volume.id.to_string()))?;
            session
                .output
                .note(&format!("destroyed volume {}", gone.name));
            destroyed.push(gone);
            Ok(())
        });
        // What is gone is told also where a later one could not be destroyed.
        session.output.deleted(&destroyed)?;
        outcome
    }

    /// What is to go. What nobody named stays where its pool cannot be used.
    fn chosen(&self, engine: &Engine, session: &Session) -> Result<Vec<TrashedVolume>, Failure> {
        let mut seen = HashSet::new();
        let mut chosen = Vec::new();
        for reference in &self.volumes {
            let volume = engine.trashed_volume(reference)?;
            if !seen.insert(volume.id) {
                return Err(Failure::Repeated {
                    kind: Kind::Volume,
                    name: volume.name.to_string(),
                });
            }
            engine.check_trash(&volume.pool)?;
            chosen.push(volume);
        }
        if !self.volumes.is_empty() {
            return Ok(chosen);
        }
        if let Some(pool) = &self.pool {
            engine.check_trash(pool)?;
        }
        let wanted = |pool: &PoolName| self.pool.as_ref().is_none_or(|wanted| wanted == pool);
        chosen = engine.trash()?;
        chosen.retain(|volume| wanted(&volume.pool));
        let pools: BTreeSet<_> = chosen.iter().map(|volume| volume.pool.clone()).collect();
        for pool in pools {
            if engine.check_trash(&pool).is_err() {
                chosen.retain(|volume| volume.pool != pool);
                session
                    .output
                    .note(&format!("pool {pool} is not available and keeps its trash"));
            }
        }
        Ok(chosen)
    }
}

impl Shown for TrashedVolume {
    fn table(volumes: &[TrashedVolume]) -> Table {
        let mut table = Table::new(vec![
            Column::at_least("ID", 36),
            Column::at_least("NAME", 14),
            Column::at_least("SIZE", 5),
            Column::at_least("USED", 5),
            Column::new("POOL"),
            Column::at_least("DELETED", 20),
            Column::new("RESTORABLE UNTIL"),
        ]);
        for volume in volumes {
            table.row(vec![
                Cell::new(volume.id),
                Cell::new(&volume.name),
                Cell::new(Bytes::new(volume.size_bytes)),
                Cell::maybe(volume.used_bytes.map(Bytes::new)),
                Cell::new(&volume.pool),
                Cell::new(format!("{:.0}", volume.deleted)),
                Cell::new(format!("{:.0}", volume.restorable_until)),
            ]);
        }
        table
    }
}
