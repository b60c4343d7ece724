//! The monitor: one small process for each running machine, as conmon is to podman.
//!
//! It starts the VMM, tells its parent how that went, follows the VMM's events, waits for its
//! end and records how it ended. Where it is killed, the VMM runs on, and the next command that
//! looks at the machine starts another monitor, or records the end itself.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use sistemo_catalog::{CatalogError, Intent, Lockable, RunningProcess};
use sistemo_host::directory::FileError;
use sistemo_host::lock::{Lock, PATIENCE};
use sistemo_host::process::Ending;
use sistemo_images::{GuestIdentity, command_line};
use sistemo_model::{
    Access, Attachment, Exposure, Machine, MachineId, MachineState, PauseCause, PoolName, StopHow,
    Timestamp, Volume,
};
use sistemo_vmm::{
    BootSource, Credential, Disk, DiskSerial, MachineSpec, Network, RunStatus, Started, VmmError,
    VmmEvent,
};

use super::after_stop::{change_writable, record_stop};
use super::console::CONSOLE_LOG;
use super::start::Readiness;
use super::{LOOPBACK, POLL_INTERVAL};
use crate::disks::disk_location;
use crate::engine::Engine;
use crate::error::{Error, Result, causes};
use crate::volumes::pool_error;

/// The guest's SSH server listens here.
const GUEST_SSH_PORT: u16 = 22;
/// How often the VMM is asked for its state where it tells nothing.
const STATUS_INTERVAL: Duration = Duration::from_secs(60);
/// How long a guest may stay held by somebody who is gone.
const HOLD_INTERVAL: Duration = Duration::from_secs(3);
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);
const MONITOR_PATIENCE: Duration = Duration::from_secs(2);
/// A guest that prints all the time fills this within hours, not within a minute.
const CONSOLE_LOG_LIMIT: u64 = 8 << 20;
const CONSOLE_LOG_KEPT: usize = 1 << 20;

impl Engine {
    /// Follows a machine until its end. This is the body of the monitor process.
    ///
    /// Where standard input is the machine's run lock, it starts the machine, and one line of
    /// JSON on standard output tells how that went. Otherwise it follows one that runs already.
    ///
    /// # Errors
    /// Where the machine could not be started or followed.
    pub fn monitor(&self, id: MachineId) -> Result<()> {
        // A session of its own: the terminal's signals are not for it. It fails only for a
        // process that leads one already.
        let _ = rustix::process::setsid();
        let lock = self.locks.path(&Lockable::Monitor(id));
        // Whoever asks whether it is held holds it for an instant.
        let monitoring = Lock::acquire(&lock, self.purpose(), MONITOR_PATIENCE);
        let machine = self.catalogue.read(|session| session.machine(id))?;
        let run_lock = self.locks.path(&Lockable::Run(id));
        let alive = inherited_lock(&run_lock).map_err(|source| Error::File {
            action: "take over the machine's run lock".to_owned(),
            source,
        })?;
        let Some(alive) = alive else {
            // Two commands may find a machine without a monitor at once, and one that has
            // ended meanwhile may be starting again: then the other monitor follows it.
            if let (Ok(monitoring), true) = (monitoring, machine.state != MachineState::Starting) {
                self.follow_to_the_end(&machine, monitoring)?;
            }
            return Ok(());
        };
        let started = monitoring
            .map_err(|source| Error::Busy {
                object: format!("the monitor of {}", machine.name),
                holder: source.to_string(),
            })
            .and_then(|monitoring| self.start_vmm(&machine, alive).map(|()| monitoring));
        if let Err(error) = &started {
            match self.catalogue.read(|session| session.attachments_of(id)) {
                Ok(volumes) => self.close_volumes(&volumes),
                Err(error) => tracing::warn!(%error, "cannot close the machine's volumes"),
            }
            answer(&Readiness::Failed(causes(error)));
        }
        let monitoring = started?;
        answer(&Readiness::Running);
        self.follow_to_the_end(&machine, monitoring)
    }

    fn follow_to_the_end(&self, machine: &Machine, monitoring: Lock) -> Result<()> {
        self.follow(machine);
        let _ended: bool = self.record_ending(machine.id)?;
        // The machine may be started again from here on, by another monitor.
        drop(monitoring);
        self.finish_stop_after_others(machine.id);
        Ok(())
    }

    fn start_vmm(&self, machine: &Machine, alive: Lock) -> Result<()> {
        let runtime = self.runtime(machine.id);
        let spec = self.specify(machine)?;
        let vmm = self.vmm(machine.vmm);
        let fail = |source| Error::Vmm {
            action: "start",
            machine: machine.name.clone(),
            source,
        };
        let started = vmm.start(&spec, &runtime, &alive).map_err(fail)?;
        let process = started.process.clone();
        if let Err(error) = self.record_start(machine.id, started) {
            // Nobody would know of it: it must not outlive this failure.
            let ended = process
                .end(Ending::Kill)
                .and_then(|()| process.wait_gone(None));
            tracing::warn!(%error, gone = ended.is_ok(), "the machine runs and cannot be recorded");
            return Err(error);
        }
        // Only the VMM keeps it alive now: where that ends, the lock must be free at once.
        drop(alive);
        release_stdin();
        Ok(())
    }

    /// Records that the machine runs, unless somebody has stopped it on its way.
    fn record_start(&self, id: MachineId, started: Started) -> Result<()> {
        let Started {
            process,
            accelerator,
        } = started;
        self.catalogue.write(|session| {
            let machine = session.machine(id)?;
            if machine.state != MachineState::Starting {
                let Machine { name, state, .. } = machine;
                let action = "let it run".to_owned();
                return Err(Error::MachineActive {
                    machine: name,
                    state,
                    action,
                });
            }
            session.set_process(
                id,
                Some(&RunningProcess {
                    process,
                    accelerator,
                }),
            )?;
            let now = Timestamp::now();
            change_writable(session, id, |history| history.changed = Some(now))?;
            Ok(session.set_machine_state(id, MachineState::Running)?)
        })
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
                let unfit = |source| Error::Boot {
                    machine: machine.name.clone(),
                    source,
                };
                let find = |digest| self.images.kernel(digest).map_err(unfit);
                let identity = GuestIdentity {
                    machine: machine.id,
                    name: machine.name.clone(),
                    authorized_key: key,
                };
                BootSource::Kernel {
                    kernel: find(&boot.kernel)?,
                    initrd: boot.initrd.as_ref().map(find).transpose()?,
                    command_line: command_line(&identity).map_err(unfit)?,
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
        let serial = DiskSerial::for_volume(&volume.name, volume.id);
        Ok(Disk {
            location: disk_location(location),
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
        while let Err(error) = self.follow_events(machine) {
            if error.is_gone() {
                break;
            }
            tracing::warn!(%error, "cannot follow the VMM's events; trying again");
            if process.wait_gone(Some(RECONNECT_INTERVAL)).unwrap_or(true) {
                break;
            }
        }
        if let Err(error) = process.wait_gone(None) {
            tracing::error!(%error, "cannot wait for the VMM");
        }
    }

    /// Follows a VMM's events until the connection breaks. What happened before is asked for.
    fn follow_events(&self, machine: &Machine) -> Result<(), VmmError> {
        let runtime = self.runtime(machine.id);
        let mut control = self.vmm(machine.vmm).follow(&runtime)?;
        self.take_status(machine.id, control.status()?);
        let (mut asked, mut next_release) = (Instant::now(), Instant::now());
        loop {
            match control.next_event(HOLD_INTERVAL)? {
                Some(event) => self.take_note(machine.id, &event),
                // What could not be recorded when it happened is made up for.
                None if asked.elapsed() >= STATUS_INTERVAL => {
                    self.take_status(machine.id, control.status()?);
                    asked = Instant::now();
                }
                None => {}
            }
            if Instant::now() >= next_release {
                let released = self.release_abandoned(machine.id).unwrap_or_else(|error| {
                    tracing::warn!(%error, "cannot look whether somebody holds the guest");
                    false
                });
                // What does not work now keeps nobody else from the machine all the time.
                let interval = if released {
                    HOLD_INTERVAL
                } else {
                    STATUS_INTERVAL
                };
                next_release = Instant::now() + interval;
            }
            bound_console_log(&runtime);
        }
    }

    fn take_status(&self, id: MachineId, status: RunStatus) {
        match status {
            RunStatus::Paused(cause) => self.take_note(id, &VmmEvent::Paused(cause)),
            RunStatus::Running => self.take_note(id, &VmmEvent::Resumed),
            RunStatus::Starting | RunStatus::Stuck | RunStatus::Ending => {}
        }
    }

    fn take_note(&self, id: MachineId, event: &VmmEvent) {
        tracing::debug!(?event, "event");
        let next = match event {
            VmmEvent::Paused(cause) => MachineState::Paused(*cause),
            VmmEvent::Resumed => MachineState::Running,
            VmmEvent::Stuck
            | VmmEvent::Ending(_)
            | VmmEvent::Reset
            | VmmEvent::DiskError { .. } => return,
        };
        // A machine pauses at a full disk, which may be the catalogue's too.
        self.use_reserve_where_full();
        if let Err(error) = self.advance(id, next) {
            tracing::error!(%error, "cannot record the machine's state");
        }
        if next == MachineState::Paused(PauseCause::DiskFull)
            && let Err(error) = self.make_room_and_resume(id)
        {
            tracing::warn!(error = %causes(&error).join(": "), "cannot let the machine run on");
        }
    }

    /// Whether a snapshot of one of a machine's volumes is being taken.
    fn is_being_copied(&self, id: MachineId) -> Result<bool> {
        self.catalogue.read(|session| {
            let attached = session.attachments_of(id)?;
            let its = |volume| attached.iter().any(|held| held.volume == volume);
            Ok(session.intents()?.iter().any(|(_, intent)| match intent {
                Intent::TakeSnapshots { volumes, .. } => volumes.iter().any(|it| its(*it)),
                _ => false,
            }))
        })
    }

    /// Gives a machine that is held at a full disk the room of what is in the trash there, and
    /// lets it run on. Where there is none it stays held, and is looked at again with the next
    /// status; so it is while somebody else works on it, or a snapshot of it is being copied.
    fn make_room_and_resume(&self, id: MachineId) -> Result<()> {
        let Some(_held) = self.locks.try_machine(id, self.purpose())? else {
            return Ok(());
        };
        // The copies of a snapshot may be what has filled it: then they end, and the trash stays.
        if self.is_being_copied(id)? {
            return Ok(());
        }
        let (machine, pools) = self.catalogue.read(|session| {
            let attachments = session.attachments_of(id)?;
            let pools = attachments.iter().map(|attachment| {
                let volume = session.volume(attachment.volume)?;
                Ok::<_, Error>(volume.pool)
            });
            let pools: BTreeSet<PoolName> = pools.collect::<Result<_>>()?;
            Ok::<_, Error>((session.machine(id)?, pools))
        })?;
        let full = RunStatus::Paused(PauseCause::DiskFull);
        // Somebody may have had another idea for it meanwhile.
        if self.command(&machine, "look at", |control| control.status())? == full
            && self.relieve_fullest(&pools)
        {
            self.command(&machine, "resume", |control| control.resume())?;
        }
        Ok(())
    }

    /// Records how a machine ended whose VMM is gone, and what is to be done about that; returns
    /// whether that was news. Called by its monitor, or by whoever finds the machine without one;
    /// the second call does nothing.
    pub(super) fn record_ending(&self, id: MachineId) -> Result<bool> {
        self.use_reserve_where_full();
        let machine = match self.catalogue.read(|session| session.machine(id)) {
            // One that is gone with its stop.
            Err(CatalogError::NotFound { .. }) => return Ok(false),
            found => found?,
        };
        let how = self.how_it_ended(&machine);
        let ended = self.catalogue.write(|session| {
            let machine = session.machine(id)?;
            // Whoever starts a machine takes its run lock before it changes the record, so a
            // lock that is free in here means that the recorded run is over.
            let alive = self.locks.is_held(&Lockable::Run(id))?;
            if alive || !machine.state.is_active() {
                return Ok(None);
            }
            let volumes = session.attachments_of(id)?;
            record_stop(session, &machine, Some(how))?;
            Ok::<_, Error>(Some(volumes))
        })?;
        if let Some(volumes) = &ended {
            tracing::info!(%how, "the machine has ended");
            self.close_volumes(volumes);
        }
        Ok(ended.is_some())
    }

    /// Closes a machine's volumes in their pools. A pool that cannot, having been unmounted for
    /// instance, has nothing of them open.
    fn close_volumes(&self, volumes: &[Attachment]) {
        let close = || {
            for attachment in volumes {
                let volume = self
                    .catalogue
                    .read(|session| session.volume(attachment.volume))?;
                self.pool(&volume.pool)?
                    .close(volume.id)
                    .map_err(|source| pool_error(&volume, "close", source))?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = close() {
            tracing::warn!(%error, "cannot close the machine's volumes");
        }
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
        self.record_ending(machine.id).map(drop)
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
        if self.locks.is_held(&Lockable::Run(id))? {
            let Machine { name, state, .. } = self.catalogue.read(|session| session.machine(id))?;
            let action = "end a VMM that was left behind".to_owned();
            return Err(Error::MachineActive {
                machine: name,
                state,
                action,
            });
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
}

/// Keeps what a guest prints from filling the host's disk: of a log that has grown too long only
/// the end stays. The VMM appends to it, so it may be cut while it is written to.
fn bound_console_log(runtime: &Path) {
    let bound = || -> std::io::Result<()> {
        let log = File::options()
            .read(true)
            .write(true)
            .open(runtime.join(CONSOLE_LOG))?;
        let length = log.metadata()?.len();
        if length > CONSOLE_LOG_LIMIT {
            let mut tail = vec![0; CONSOLE_LOG_KEPT];
            log.read_exact_at(&mut tail, length - CONSOLE_LOG_KEPT as u64)?;
            log.set_len(0)?;
            log.write_all_at(&tail, 0)?;
        }
        Ok(())
    };
    if let Err(error) = bound() {
        tracing::warn!(%error, "cannot shorten the console's log");
    }
}

/// The run lock, where standard input is it: that is what makes a monitor one that starts.
fn inherited_lock(path: &Path) -> Result<Option<Lock>, FileError> {
    let stdin = std::io::stdin();
    let fail = |error: Errno| FileError::new("take over", path, error);
    let given = rustix::fs::fstat(&stdin).map_err(fail)?;
    let Ok(lock) = rustix::fs::stat(path) else {
        return Ok(None);
    };
    if (given.st_dev, given.st_ino) != (lock.st_dev, lock.st_ino) {
        return Ok(None);
    }
    // The VMM inherits from this handle; standard input itself is let go of once it runs.
    let file = stdin
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| FileError::new("take over", path, error))?;
    Ok(Some(Lock::inherited(File::from(file), PathBuf::from(path))))
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
