//! `sistemo volume move`

use clap::Args;
use sistemo::Engine;
use sistemo::model::{PoolName, Reference};
use sistemo::moves::{self, Moved, Unkept};

use crate::arguments::{reference, value};
use crate::failure::Failure;
use crate::session::Session;

/// What `volume move` takes.
#[derive(Debug, Args)]
pub(crate) struct Move {
    /// The volume's name, ID, or the first 8 or more characters of its ID
    #[arg(value_name = "VOLUME", value_parser = reference)]
    volume: Reference,
    /// The pool it is to be in
    #[arg(
        short = 'P',
        long,
        required = true,
        value_parser = value::<PoolName>,
        allow_hyphen_values = true
    )]
    pool: PoolName,
    /// Leave the volume's snapshots behind, to be lost, where that pool keeps none
    #[arg(long)]
    without_snapshots: bool,
}

impl Move {
    pub(super) fn run(self, engine: &Engine, session: &Session) -> Result<(), Failure> {
        let moved = engine.move_volume(&moves::Move {
            volume: self.volume,
            to: self.pool,
            unkept: if self.without_snapshots {
                Unkept::Lose
            } else {
                Unkept::Refuse
            },
        })?;
        session.output.note(&told(&moved));
        session.output.one(&moved.volume)
    }
}

/// What came along, and how much of it had to be written.
fn told(moved: &Moved) -> String {
    let Moved {
        volume,
        from,
        snapshots,
        copied,
    } = moved;
    let what = match snapshots {
        0 => volume.name.to_string(),
        1 => format!("{} with its snapshot", volume.name),
        several => format!("{} with its {several} snapshots", volume.name),
    };
    let to = &volume.pool;
    format!("moved {what} from pool {from} to pool {to}: {copied} copied and compared")
}
