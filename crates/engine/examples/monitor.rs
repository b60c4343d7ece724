//! What a program that embeds the engine gives it to follow running machines with: an executable
//! that calls [`Engine::monitor`]. The engine's own tests use this one.
//!
//! Usage: `monitor DATA-DIR MACHINE-ID`

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use sistemo::{Caller, Engine, MonitorCommand, Settings, Silent};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let data_dir = PathBuf::from(
        arguments
            .next()
            .ok_or("usage: monitor DATA-DIR MACHINE-ID")?,
    );
    let machine = arguments
        .next()
        .and_then(|id| id.into_string().ok())
        .unwrap_or_default();
    let monitor = MonitorCommand {
        program: std::env::current_exe()?,
        arguments: vec![data_dir.clone().into()],
    };
    let caller = Caller {
        purpose: format!("monitor {machine}"),
        monitor,
    };
    let engine = Engine::open(Settings::defaults(&data_dir), Arc::new(Silent), caller)?;
    engine.monitor(machine.parse()?)?;
    Ok(())
}
