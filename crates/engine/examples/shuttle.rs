//! Moves a volume to and fro between two pools until it is killed, as the engine's tests of moves
//! do to it.
//!
//! Usage: `shuttle DATA-DIR VOLUME POOL OTHER-POOL`; the volume is in either.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use sistemo::model::Reference;
use sistemo::moves::{Move, Unkept};
use sistemo::{Caller, Engine, MonitorCommand, Settings, Silent};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [data_dir, volume, one, other] = &arguments[..] else {
        return Err("usage: shuttle DATA-DIR VOLUME POOL OTHER-POOL".into());
    };
    let monitor = MonitorCommand {
        program: "/bin/false".into(),
        arguments: Vec::new(),
    };
    let caller = Caller {
        purpose: "shuttle".to_owned(),
        monitor,
    };
    let settings = Settings::defaults(&PathBuf::from(data_dir));
    let engine = Engine::open(settings, Arc::new(Silent), caller)?;
    let volume = Reference::from(volume.as_str());
    loop {
        let here = engine.volume(&volume)?.pool;
        let to = if here.as_str() == one { other } else { one };
        engine.move_volume(&Move {
            volume: volume.clone(),
            to: to.parse()?,
            unkept: Unkept::Refuse,
        })?;
    }
}
