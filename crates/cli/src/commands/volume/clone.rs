//! `sistemo volume clone`

use clap::Args;
use sistemo::Engine;
use sistemo::clones::{Cloned, NewClone};
use sistemo::model::{PoolName, Reference, SnapshotName, VolumeName};

use crate::arguments::{reference, value};
use crate::failure::Failure;
use crate::session::Session;

/// What `volume clone` takes.
#[derive(Debug, Args)]
pub(crate) struct Clone {
    /// The volume's name, ID, or the first 8 or more characters of its ID
    #[arg(value_name = "VOLUME", value_parser = reference)]
    volume: Reference,
    /// The clone's name
    #[arg(value_name = "NEW", value_parser = value::<VolumeName>)]
    name: VolumeName,
    /// Clone this snapshot of the volume instead of the volume as it is now
    #[arg(long, value_parser = value::<SnapshotName>, allow_hyphen_values = true)]
    snapshot: Option<SnapshotName>,
    /// The pool to make it in; without one, the volume's own
    #[arg(short = 'P', long, value_parser = value::<PoolName>, allow_hyphen_values = true)]
    pool: Option<PoolName>,
}

impl Clone {
    pub(super) fn run(self, engine: &Engine, session: &Session) -> Result<(), Failure> {
        let cloned = engine.clone_volume(&NewClone {
            source: self.volume,
            snapshot: self.snapshot,
            name: self.name,
            pool: self.pool,
        })?;
        session.output.note(&told(&cloned));
        session.output.one(&cloned.volume)
    }
}

/// Which way the data took: a copy takes its time and its room.
fn told(cloned: &Cloned) -> String {
    let (source, clone) = (&cloned.source, &cloned.volume.name);
    let mut ways = Vec::new();
    let what = if let Some(bytes) = cloned.copied {
        format!("copied {source} to {clone}: {bytes}")
    } else {
        ways.push(cloned.way.to_string());
        format!("cloned {source} to {clone}")
    };
    if cloned.source_pool != cloned.volume.pool {
        let (from, to) = (&cloned.source_pool, &cloned.volume.pool);
        ways.push(format!("pool {from} to pool {to}"));
    }
    if ways.is_empty() {
        what
    } else {
        format!("{what} ({})", ways.join(", "))
    }
}
