//! Makes, grows, renames, attaches and deletes volumes and machines until it is killed, as the
//! engine's recovery test does to it. Prints a line for each thing that was done: what has been
//! printed must be so after any kill.
//!
//! Usage: `churn DATA-DIR SEED`; the data directory has an image named `disk`.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use sistemo::machines::{Deploy, DeploySource, StartMode, Storage};
use sistemo::model::{Bytes, Filesystem, Reference};
use sistemo::volumes::{Grow, NewVolume};
use sistemo::{Caller, Engine, MonitorCommand, Settings, Silent};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let data_dir = PathBuf::from(arguments.next().ok_or("usage: churn DATA-DIR SEED")?);
    let seed = arguments.next().ok_or("usage: churn DATA-DIR SEED")?;
    let monitor = MonitorCommand {
        program: "/bin/false".into(),
        arguments: Vec::new(),
    };
    let caller = Caller {
        purpose: "churn".to_owned(),
        monitor,
    };
    let engine = Engine::open(Settings::defaults(&data_dir), Arc::new(Silent), caller)?;
    for round in 0_u64.. {
        let volume = format!("v{seed}-{round}");
        let renamed = format!("{volume}-renamed");
        engine.create_volume(NewVolume {
            size: Bytes::from_mib(16),
            name: Some(volume.parse()?),
            pool: None,
            filesystem: Filesystem::Ext4,
        })?;
        done(&format!("made {volume} 16"))?;
        let reference = Reference::from(volume.as_str());
        engine.resize_volume(&reference, Bytes::from_mib(32), Grow::Device)?;
        done(&format!("made {volume} 32"))?;
        engine.rename_volume(&reference, renamed.parse()?)?;
        done(&format!("gone {volume}"))?;
        done(&format!("made {renamed} 32"))?;
        let machine = format!("m{seed}-{round}");
        engine.deploy(&Deploy {
            source: DeploySource::Image("disk".parse()?),
            name: Some(machine.parse()?),
            vcpus: None,
            memory: None,
            storage: Some(Bytes::from_mib(16)),
            pool: None,
            attach: vec![Reference::from(renamed.as_str())],
            expose: Vec::new(),
            vmm: None,
            start: StartMode::Created,
        })?;
        done(&format!("made {machine}-root 16"))?;
        engine.delete_machine(&Reference::from(machine.as_str()), Storage::RemoveRoot)?;
        done(&format!("gone {machine}-root"))?;
        if round % 2 == 0 {
            engine.delete_volume(&Reference::from(renamed.as_str()))?;
            done(&format!("gone {renamed}"))?;
        }
    }
    Ok(())
}

fn done(what: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{what}")?;
    stdout.flush()
}
