//! The monitor: one small process for each running machine, as conmon is to podman.
//!
//! It starts the VMM, tells its parent how that went, follows the VMM's events, waits for its
//! end and records how it ended. Where it is killed, the VMM runs on, and the next command that
//! looks at the machine starts another monitor, or records the end itself.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use sistemo_catalog::{Lockable, RunningProcess};
use sistemo_host::directory::{Directory, Open};
use sistemo_host::lock::{Lock, PATIENCE};
use sistemo_images::{GuestIdentity, command_line};
use sistemo_model::{Access, Exposure, Machine, MachineId, MachineState, StopHow, Volume};
use sistemo_pools::Location;
use sistemo_vmm::{
    BootSource, Credential, Disk, DiskLocation, DiskSerial, MachineSpec, Network, Started, VmmEvent,
};

use super::LOOPBACK;
use super::run::{POLL_INTERVAL, Readiness};
use crate::engine::Engine;
use crate::error::{Error, MonitorError, Result};
use crate::volumes::pool_error;

/// The guest's SSH server listens here.
const GUEST_SSH_PORT: u16 = 22;
const EVENT_PATIENCE: Duration = Duration::from_secs(60);

impl Engine {
    /// Follows a machine until its end. This is the body of the monitor process.
    ///
    /// For a machine that is starting, standard input is its run lock, and one line of JSON on
    /// standard output tells how the start went. For one that runs already, both are empty.
    ///
    /// # Errors
    /// Where the machine could not be started or followed.
    pub fn monitor(&self, id: MachineId) -> Result<()> {
        // A session of its own: the terminal's signals are not for it. It fails only for a
        // process that leads one already.
        let _ = rustix::process::setsid();
        let monitor = Lockable::Monitor(id);
        let Some(_monitoring) = self.locks.try_acquire(&monitor, self.purpose())? else {
            return Ok(());
        };
        let machine = self.catalogue.read(|session| session.machine(id))?;
        if machine.state == MachineState::Starting {
            let started = self.start_vmm(&machine);
            let readiness = match &started {
                Ok(()) => Readiness::Running,
                Err(error) => Readiness::Failed(MonitorError::texts(error)),
            };
            if started.is_err() {
                let _ = self.advance(id, MachineState::Stopped(None))?;
            }
            answer(&readiness);
            started?;
        }
        self.follow(&machine);
        self.record_ending(id)
    }

    fn start_vmm(&self, machine: &Machine) -> Result<()> {
        let runtime = self.runtime(machine.id);
        let alive =
            inherited_lock(&self.locks.path(&Lockable::Run(machine.id))).map_err(|source| {
                Error::File {
                    action: "take over the machine's run lock".to_owned(),
                    source,
                }
            })?;
        let spec = self.specify(machine)?;
        let vmm = self.vmm(machine.vmm);
        let started = vmm
            .start(&spec, &runtime, &alive)
            .map_err(|source| Error::Vmm {
                action: "start",
                machine: machine.name.clone(),
                source,
            })?;
        self.catalogue.write(|session| {
            let Started {
                process,
                accelerator,
            } = started;
            session.set_process(
                machine.id,
                Some(&RunningProcess {
                    process,
                    accelerator,
                }),
            )?;
            Ok::<_, Error>(session.set_machine_state(machine.id, MachineState::Running)?)
        })?;
        // Only the VMM keeps it alive now: where that ends, the lock must be free at once.
        drop(alive);
        release_stdin();
        Ok(())
    }

    /// What the VMM is to run: disks in the order of their devices, and the guest's identity.
    fn specify(&self, machine: &Machine) -> Result<MachineSpec> {
        let volumes = self.catalogue.read(|session| {
            let attachments = session.attachments_of(machine.id)?;
            attachments
                .into_iter()
                .map(|attachment| Ok((session.volume(attachment.volume)?, attachment.access)))
                .collect::<Result<Vec<_>>>()
        })?;
        let disks = volumes
            .iter()
            .map(|(volume, access)| self.open_disk(volume, *access))
            .collect::<Result<Vec<_>>>()?;
        let key = self.ssh_key()?.public;
        let boot = match volumes.first().and_then(|(root, _)| root.boot.as_ref()) {
            // systemd.system-credentials(7): what an image with systemd makes of these.
            None => BootSource::Firmware {
                credentials: vec![
                    Credential {
                        name: "ssh.authorized_keys.root",
                        value: key,
                    },
                    Credential {
                        name: "system.hostname",
                        value: machine.name.to_string(),
                    },
                ],
            },
            Some(boot) => {
                let find = |digest| self.images.kernel(digest).map_err(Error::ImageStore);
                let identity = GuestIdentity {
                    machine: machine.id,
                    name: machine.name.clone(),
                    authorized_key: key,
                };
                BootSource::Kernel {
                    kernel: find(&boot.kernel)?,
                    initrd: boot.initrd.as_ref().map(find).transpose()?,
                    command_line: command_line(&identity).map_err(Error::ImageStore)?,
                }
            }
        };
        let ssh = Exposure {
            host: SocketAddr::new(LOOPBACK, machine.ssh_port),
            guest: GUEST_SSH_PORT,
        };
        Ok(MachineSpec {
            id: machine.id,
            name: machine.name.clone(),
            vcpus: machine.vcpus,
            memory: machine.memory,
            boot,
            disks,
            network: Network {
                mac: machine.mac,
                forwards: std::iter::once(ssh)
                    .chain(machine.exposed.iter().copied())
                    .collect(),
            },
        })
    }

    fn open_disk(&self, volume: &Volume, access: Access) -> Result<Disk> {
        let pool = self.pool(&volume.pool)?;
        let location = pool
            .open(volume.id, access)
            .map_err(|source| pool_error(volume, "open", source))?;
        let Location::RawFile(path) = location;
        let serial = DiskSerial::for_volume(&volume.name, volume.id);
        Ok(Disk {
            location: DiskLocation::RawFile(path),
            serial,
            access,
        })
    }

    /// Follows a VMM's events until it is gone. Nothing in here may fail for good: the end of
    /// the VMM is what counts, and it is waited for in any case.
    fn follow(&self, machine: &Machine) {
        let process = match self.catalogue.read(|session| session.process(machine.id)) {
            Ok(Some(process)) => process.process,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "cannot read the machine's process");
                return;
            }
        };
        match self.vmm(machine.vmm).follow(&self.runtime(machine.id)) {
            Err(error) => tracing::warn!(%error, "cannot follow the VMM's events"),
            Ok(mut control) => loop {
                match control.next_event(EVENT_PATIENCE) {
                    Ok(Some(event)) => self.take_note(machine.id, &event),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::debug!(%error, "the VMM's events have ended");
                        break;
                    }
                }
            },
        }
        if let Err(error) = process.wait_gone(None) {
            tracing::error!(%error, "cannot wait for the VMM");
        }
    }

    fn take_note(&self, id: MachineId, event: &VmmEvent) {
        tracing::info!(?event, "event");
        let next = match event {
            VmmEvent::Paused(cause) => MachineState::Paused(*cause),
            VmmEvent::Resumed => MachineState::Running,
            VmmEvent::Stuck
            | VmmEvent::Ending(_)
            | VmmEvent::Reset
            | VmmEvent::DiskError { .. } => return,
        };
        if let Err(error) = self.advance(id, next) {
            tracing::error!(%error, "cannot record the machine's state");
        }
    }

    /// Records how a machine ended whose VMM is gone, and does what belongs to a stop. Called
    /// by its monitor, or by whoever finds the machine without one; the second call does nothing.
    pub(super) fn record_ending(&self, id: MachineId) -> Result<()> {
        let ended = self.catalogue.write(|session| {
            let machine = session.machine(id)?;
            // Whoever starts a machine takes its run lock before it changes the record, so a
            // lock that is free in here means that the recorded run is over.
            let alive = self.locks.is_held(&Lockable::Run(id))?;
            if alive || !machine.state.is_active() {
                return Ok(None);
            }
            let how = self.how_it_ended(&machine);
            session.set_machine_state(id, MachineState::Stopped(Some(how)))?;
            session.set_process(id, None)?;
            let attachments = session.attachments_of(id)?;
            let volumes = attachments
                .iter()
                .map(|held| session.volume(held.volume))
                .collect::<Result<Vec<_>, _>>()?;
            Ok::<_, Error>(Some((how, volumes)))
        })?;
        if let Some((how, volumes)) = ended {
            tracing::info!(%how, "the machine has ended");
            for volume in volumes {
                self.pool(&volume.pool)?
                    .close(volume.id)
                    .map_err(|source| pool_error(&volume, "close", source))?;
            }
        }
        Ok(())
    }

    fn how_it_ended(&self, machine: &Machine) -> StopHow {
        let told = self
            .vmm(machine.vmm)
            .ending(&self.runtime(machine.id))
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot read how the VMM ended");
                None
            });
        match (machine.state, told) {
            // It never ran: what its log tells is of an earlier run.
            (MachineState::Starting, _) => StopHow::Crashed,
            (MachineState::Stopping(StopHow::Forced), None) => StopHow::Forced,
            (_, Some(how)) => how,
            (_, None) => StopHow::Crashed,
        }
    }

    /// Ends the start of a machine that was cut short before its VMM's process was recorded: the
    /// monitor was killed, and so was whoever had started that. While somebody has the machine's
    /// lock, a start may be under way, and nothing is done.
    pub(super) fn end_abandoned_start(&self, machine: &Machine) -> Result<()> {
        let Some(_held) = self.locks.try_machine(machine.id, self.purpose())? else {
            return Ok(());
        };
        self.end_unrecorded_vmm(machine)?;
        self.record_ending(machine.id)
    }

    /// Ends the VMM that a killed monitor may have left behind. Nobody knows its process; that
    /// it lives is known by the run lock, and it can be told to quit.
    pub(super) fn end_unrecorded_vmm(&self, machine: &Machine) -> Result<()> {
        let id = machine.id;
        let deadline = Instant::now() + PATIENCE;
        while self.locks.is_held(&Lockable::Run(id))? && Instant::now() < deadline {
            // A VMM that is just beginning does not listen yet.
            let told = self
                .vmm(machine.vmm)
                .connect(&self.runtime(id))
                .and_then(|mut control| control.quit());
            tracing::debug!(machine = %machine.name, ok = told.is_ok(), "ending an abandoned start");
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Takes a machine for running that was asked to stop by somebody who is gone, and did not.
    pub(super) fn end_abandoned_stop(&self, id: MachineId) -> Result<()> {
        let Some(_held) = self.locks.try_machine(id, self.purpose())? else {
            return Ok(());
        };
        self.catalogue.write(|session| {
            let stopping = matches!(session.machine(id)?.state, MachineState::Stopping(_));
            if stopping && self.locks.is_held(&Lockable::Run(id))? {
                session.set_machine_state(id, MachineState::Running)?;
            }
            Ok(())
        })
    }

    /// Starts a monitor for a machine that runs without one.
    pub(super) fn adopt(&self, machine: &Machine) -> Result<()> {
        tracing::info!(machine = %machine.name, "its monitor is gone; starting another");
        let runtime = self.make_runtime(machine.id)?;
        let log = Directory::open(&runtime)
            .and_then(|directory| directory.file(super::run::MONITOR_LOG, Open::CreateOrOpen))
            .map_err(|source| Error::File {
                action: "keep the monitor's log".to_owned(),
                source,
            })?;
        let command = &self.caller.monitor;
        sistemo_host::program::Program::at(&command.program)
            .args(&command.arguments)
            .arg(machine.id.to_string())
            .current_dir(&runtime)
            .spawn_logged(log)
            .map_err(|source| Error::Program {
                action: "start the machine's monitor",
                source,
            })?;
        Ok(())
    }
}

fn inherited_lock(path: &Path) -> Result<Lock, sistemo_host::directory::FileError> {
    // The VMM inherits from this handle; standard input itself is let go of once it runs.
    let file = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| sistemo_host::directory::FileError::new("take over", path, error))?;
    Ok(Lock::inherited(File::from(file), PathBuf::from(path)))
}

/// Lets go of standard input, which is the run lock.
fn release_stdin() {
    replace_with_nothing(rustix::stdio::dup2_stdin);
}

/// Tells the parent, and lets go of the pipe so that it knows there is no more to come.
fn answer(readiness: &Readiness) {
    // A parent that is gone does not listen; the machine's record tells the same.
    if let Ok(text) = serde_json::to_string(readiness) {
        let mut stdout = std::io::stdout();
        let _ = stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush());
    }
    replace_with_nothing(rustix::stdio::dup2_stdout);
}

fn replace_with_nothing(replace: impl FnOnce(File) -> rustix::io::Result<()>) {
    let replaced = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .and_then(|nothing| replace(nothing).map_err(Into::into));
    if let Err(error) = replaced {
        tracing::error!(%error, "cannot let go of a standard stream");
    }
}
