//! Makes, fills, grows, renames, clones, pins, reverts, moves, imports, attaches, deletes and
//! restores volumes, snapshots and machines until it is killed, as the engine's recovery test does
//! to it. Prints a line before each operation and `done` after it: after any kill, every operation
//! that is done must be so, and only that of the last line, where no `done` follows it, may be
//! either done or not.
//!
//! Usage: `churn DATA-DIR SEED`; the data directory has an image named `disk` and a pool named
//! `other`.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sistemo::clones::NewClone;
use sistemo::exchange::{Checksum, NewImported};
use sistemo::history::Pin;
use sistemo::machines::{Deploy, DeploySource, NewMachineClone, StartMode, Storage};
use sistemo::model::{Bytes, Filesystem, Lifetime, Reference, SnapshotName};
use sistemo::moves::{Move, Unkept};
use sistemo::snapshots::Replaced;
use sistemo::volumes::{Grow, NewVolume};
use sistemo::{Caller, Engine, MonitorCommand, Settings, Silent};
use sistemo_host::directory::{self, FileError};

/// What is written into a volume, and where: the last MiB of those it is made with.
const WRITTEN: u64 = 1 << 20;
const WRITTEN_FROM: u64 = 15 << 20;

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
        let machine = format!("m{seed}-{round}");
        let new = NewVolume {
            size: Bytes::from_mib(16),
            name: Some(volume.parse()?),
            pool: None,
            filesystem: Filesystem::Ext4,
        };
        let made = step(&format!("create {volume} 16"), || engine.create_volume(new))?;
        let path = made.path.ok_or("a volume has a file")?;
        step(&format!("write {volume} {volume}"), || {
            write(&path, &volume)
        })?;
        let reference = Reference::from(volume.as_str());
        let kept: SnapshotName = "kept".parse()?;
        step(&format!("snapshot {volume} kept"), || {
            engine.take_snapshot(&reference, Some(kept.clone()))
        })?;
        pin(&engine, &volume, &kept, Pin::In)?;
        step(&format!("grow {volume} 32"), || {
            engine.resize_volume(&reference, Bytes::from_mib(32), Grow::Device)
        })?;
        // What it holds is nobody's business until it is written.
        step(&format!("forget {volume}"), || Ok::<_, FileError>(()))?;
        let other = format!("{volume}-other");
        step(&format!("write {volume} {other}"), || write(&path, &other))?;
        for (snapshot, clone) in [(None, "now"), (Some(kept.clone()), "kept")] {
            let new = NewClone {
                source: reference.clone(),
                snapshot,
                name: format!("{volume}-{clone}").parse()?,
                pool: None,
            };
            step(&format!("clone-{clone} {volume}"), || {
                engine.clone_volume(&new)
            })?;
        }
        revert(&engine, &volume, &kept, round + seed.parse::<u64>()?)?;
        shift(&engine, &volume, "other")?;
        if round % 2 == 0 {
            shift(&engine, &volume, "default")?;
            step(&format!("unsnapshot {volume} kept"), || {
                engine.delete_snapshot(&reference, &kept)
            })?;
        }
        import(&engine, &volume)?;
        for clone in ["now", "kept", "imported"] {
            let clone = format!("{volume}-{clone}");
            discard(&engine, &clone, round)?;
        }
        let name = renamed.parse()?;
        step(&format!("rename {volume} {renamed}"), || {
            engine.rename_volume(&reference, name)
        })?;
        let deploy = Deploy {
            source: DeploySource::Image("disk".parse()?),
            name: Some(machine.parse()?),
            vcpus: None,
            memory: None,
            storage: Some(Bytes::from_mib(16)),
            pool: None,
            attach: vec![Reference::from(renamed.as_str())],
            expose: Vec::new(),
            vmm: None,
            lifetime: Lifetime::Persistent,
            start: StartMode::Created,
        };
        step(&format!("deploy {machine} {renamed}"), || {
            engine.deploy(&deploy)
        })?;
        clone_machine(&engine, &machine, &renamed)?;
        if round % 3 != 2 {
            step(&format!("undeploy {machine}"), || {
                engine.delete_machine(&Reference::from(machine.as_str()), Storage::RemoveRoot)
            })?;
            let root = Reference::from(format!("{machine}-root"));
            step(&format!("empty {machine}-root"), || {
                engine.destroy_trashed(&root)
            })?;
        }
        if round % 3 == 0 {
            discard(&engine, &renamed, round)?;
        }
    }
    Ok(())
}

/// Clones a machine, and deletes the clone and that of its data volume.
fn clone_machine(engine: &Engine, machine: &str, volume: &str) -> Result<(), Box<dyn Error>> {
    let twin = format!("{machine}-twin");
    let copied = format!("{twin}-{volume}");
    let clone = NewMachineClone {
        source: Reference::from(machine),
        name: twin.parse()?,
        snapshot: None,
        pool: None,
        expose: Vec::new(),
        start: StartMode::Created,
    };
    step(&format!("clone-machine {machine} {volume}"), || {
        engine.clone_machine(&clone)
    })?;
    step(&format!("undeploy {twin}"), || {
        engine.delete_machine(&Reference::from(twin.as_str()), Storage::RemoveRoot)
    })?;
    step(&format!("delete {copied}"), || {
        engine.delete_volume(&Reference::from(copied.as_str()))
    })?;
    Ok(())
}

fn shift(engine: &Engine, volume: &str, to: &str) -> Result<(), Box<dyn Error>> {
    let asked = Move {
        volume: Reference::from(volume),
        to: to.parse()?,
        unkept: Unkept::Refuse,
    };
    step(&format!("move {volume} {to}"), || {
        engine.move_volume(&asked)
    })?;
    Ok(())
}

/// Deletes a volume, for good or after it was restored from the trash, and leaves some there.
fn discard(engine: &Engine, volume: &str, round: u64) -> Result<(), Box<dyn Error>> {
    let reference = Reference::from(volume);
    step(&format!("delete {volume}"), || {
        engine.delete_volume(&reference)
    })?;
    step(&format!("restore {volume}"), || {
        engine.restore_volume(&reference, None)
    })?;
    if round.is_multiple_of(2) {
        return step(&format!("destroy {volume}"), || {
            engine.destroy_volume(&reference).map(drop)
        });
    }
    step(&format!("delete {volume}"), || {
        engine.delete_volume(&reference)
    })?;
    if volume.ends_with("imported") {
        return Ok(());
    }
    step(&format!("empty {volume}"), || {
        engine.destroy_trashed(&reference).map(drop)
    })
}

fn pin(engine: &Engine, volume: &str, kept: &SnapshotName, pin: Pin) -> Result<(), Box<dyn Error>> {
    let how = if pin == Pin::In { "pin" } else { "unpin" };
    step(&format!("{how} {volume} kept"), || {
        engine.pin_snapshot(&Reference::from(volume), kept, pin)
    })
    .map(drop)
}

/// Takes a volume back; what it held is kept every other time.
fn revert(
    engine: &Engine,
    volume: &str,
    kept: &SnapshotName,
    round: u64,
) -> Result<(), Box<dyn Error>> {
    pin(engine, volume, kept, Pin::Out)?;
    let (how, replaced) = match round % 2 {
        0 => ("revert", Replaced::Discard),
        _ => ("revert-keeping", Replaced::Keep),
    };
    step(&format!("{how} {volume} kept"), || {
        engine.revert_volume(&Reference::from(volume), Some(kept), replaced)
    })?;
    Ok(())
}

fn import(engine: &Engine, volume: &str) -> Result<(), Box<dyn Error>> {
    let imported = format!("{volume}-imported");
    let new = NewImported {
        name: imported.parse()?,
        pool: None,
        filesystem: Filesystem::None,
        format: None,
        checksum: Checksum::Skip,
    };
    let content = content(volume);
    step(&format!("import {imported} {volume}"), || {
        let zeros = io::repeat(0).take(WRITTEN_FROM);
        engine.import_volume_from(&new, &mut zeros.chain(&content[..]))
    })?;
    Ok(())
}

fn step<T, E: Error + 'static>(
    what: &str,
    operation: impl FnOnce() -> Result<T, E>,
) -> Result<T, Box<dyn Error>> {
    say(what)?;
    let outcome = operation()?;
    say("done")?;
    Ok(outcome)
}

/// Writes a word over and over.
fn write(path: &Path, word: &str) -> Result<(), FileError> {
    let fail = |error| FileError::new("write", path, error);
    let file = File::options().write(true).open(path).map_err(fail)?;
    file.write_all_at(&content(word), WRITTEN_FROM)
        .map_err(fail)?;
    directory::flush(path, &file)
}

fn say(what: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "{what}")?;
    stdout.flush()
}

fn content(word: &str) -> Vec<u8> {
    let bytes = word.bytes().cycle().zip(0..WRITTEN);
    bytes.map(|(byte, _)| byte).collect()
}
