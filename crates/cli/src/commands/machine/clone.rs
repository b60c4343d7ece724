//! `sistemo machine clone`

use clap::Args;
use sistemo::Engine;
use sistemo::machines::{ClonedMachine, ClonedVolume, NewMachineClone, StartMode};
use sistemo::model::{Exposure, MachineName, PoolName, Reference, SnapshotName};

use crate::arguments::{reference, value};
use crate::failure::Failure;
use crate::session::Session;

/// What `machine clone` takes.
#[derive(Debug, Args)]
pub(crate) struct Clone {
    /// The machine's name, ID, or the first 8 or more characters of its ID
    #[arg(value_name = "MACHINE", value_parser = reference)]
    machine: Reference,
    /// The clone's name, which is its host name too
    #[arg(value_name = "NEW", value_parser = value::<MachineName>)]
    name: MachineName,
    /// Clone this snapshot of each of its volumes instead of the volumes as they are now
    #[arg(long, value_parser = value::<SnapshotName>, allow_hyphen_values = true)]
    snapshot: Option<SnapshotName>,
    /// The pool to make all volumes in; without one, each goes where the one it is made from is
    #[arg(short = 'P', long, value_parser = value::<PoolName>, allow_hyphen_values = true)]
    pool: Option<PoolName>,
    /// Make a guest port of the clone reachable on the host, on 127.0.0.1 unless an address is given
    #[arg(
        long,
        value_name = "[HOST:]GUEST",
        value_parser = value::<Exposure>,
        allow_hyphen_values = true
    )]
    expose: Vec<Exposure>,
    /// Start the clone, and wait until it answers
    #[arg(long)]
    start: bool,
    /// With --start: return as soon as it runs, without waiting until it answers
    #[arg(long, requires = "start")]
    no_wait: bool,
}

impl Clone {
    pub(super) fn run(self, engine: &Engine, session: &Session) -> Result<(), Failure> {
        let start = match (self.start, self.no_wait) {
            (false, _) => StartMode::Created,
            (true, true) => StartMode::Started,
            (true, false) => StartMode::Answering,
        };
        let cloned = engine.clone_machine(&NewMachineClone {
            source: self.machine,
            name: self.name,
            snapshot: self.snapshot,
            pool: self.pool,
            expose: self.expose,
            start,
        })?;
        session.output.note(&told(&cloned));
        super::deploy::say_what_comes_next(session, start, &cloned.machine);
        session.output.one(&cloned.machine)
    }
}

/// Which way the data of each volume took: a copy takes its time and its room. Of a root that is
/// made anew at each start there is none.
fn told(cloned: &ClonedMachine) -> String {
    let mut volumes: Vec<String> = cloned.volumes.iter().map(told_of_volume).collect();
    if let Some(template) = &cloned.machine.template {
        let made = format!("its root is made from {} at each start", template.volume);
        volumes.insert(0, made);
    }
    format!(
        "cloned {} to {}: {}",
        cloned.source,
        cloned.machine.name,
        volumes.join(", ")
    )
}

fn told_of_volume(volume: &ClonedVolume) -> String {
    let how = match volume.copied {
        Some(bytes) => format!("copied, {bytes}"),
        None => volume.way.to_string(),
    };
    format!("{} ({how})", volume.name)
}
