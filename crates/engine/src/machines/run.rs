//! Starting and stopping: start, stop, restart, pause, resume.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sistemo_catalog::Lockable;
use sistemo_host::Changed;
use sistemo_host::directory::{Directory, Open};
use sistemo_host::lock::Lock;
use sistemo_host::process::Ending;
use sistemo_host::program::Program;
use sistemo_model::{Machine, MachineId, MachineState, PauseCause, Reference, StopHow};
use sistemo_vmm::{Control, VmmError};

use super::{LOOPBACK, MachineView};
use crate::engine::Engine;
use crate::error::{Error, MonitorError, Result};
use crate::reporter::Notice;
use crate::settings::STORAGE_CONF;

/// What the monitor writes to; the reason for a start that failed is in it too.
pub(super) const MONITOR_LOG: &str = "monitor.log";

/// How often a guest that was asked to power off is asked again: a guest that is still booting
/// misses the button.
const BUTTON_INTERVAL: Duration = Duration::from_secs(3);
/// How long a VMM has to end after it was told to, before it is killed.
const QUIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the record of a machine may lag behind the end of its VMM.
const RECORD_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Whether an operation waits until the machine answers over SSH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Until it answers, or the configured time is over.
    UntilAnswering,
    /// Only until its VMM runs.
    No,
}

/// How a machine is to be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopRequest {
    /// The guest is asked to power off, and forced after this time.
    Graceful {
        /// How long it has.
        timeout: Duration,
    },
    /// At once, as if the power failed.
    Forced,
}

/// What a monitor tells the process that started it, as one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Readiness {
    /// The machine runs.
    Running,
    /// It could not be started: the texts of the error and its causes.
    Failed(Vec<String>),
}

impl Engine {
    /// Starts a machine; one that runs already is left alone.
    ///
    /// # Errors
    /// Where a volume of its is not usable, its VMM cannot be started (then it is stopped as
    /// before), or it does not answer in time (then it runs on).
    pub fn start_machine(
        &self,
        reference: &Reference,
        wait: Wait,
    ) -> Result<(MachineView, Changed)> {
        let machine = self.find_machine(reference)?;
        let changed = self.launch(machine.id)?;
        if wait == Wait::UntilAnswering {
            self.wait_until_answering(machine.id)?;
        }
        Ok((self.view_machine(machine.id)?, changed))
    }

    /// Has a monitor start the machine's VMM, and waits until its processors run.
    pub(crate) fn launch(&self, id: MachineId) -> Result<Changed> {
        let _held = self.hold(Some(id), &[])?;
        let machine = self.settle(id)?;
        match machine.state {
            MachineState::Stopped(_) => {}
            MachineState::Stopping(_) => {
                let Machine { name, state, .. } = machine;
                let action = "start it".to_owned();
                return Err(Error::MachineActive {
                    machine: name,
                    state,
                    action,
                });
            }
            MachineState::Starting | MachineState::Running | MachineState::Paused(_) => {
                return Ok(Changed::No);
            }
        }
        let volumes = self.catalogue.read(|session| {
            let attachments = session.attachments_of(id)?;
            attachments
                .iter()
                .map(|held| session.volume(held.volume))
                .collect::<Result<Vec<_>, _>>()
        })?;
        for volume in &volumes {
            self.refuse_damaged(volume)?;
        }
        self.choose_ssh_port(&machine)?;
        for exposure in &machine.exposed {
            check_free(exposure.host)?;
        }
        let alive = self.locks.acquire(&Lockable::Run(id), self.purpose())?;
        if !self.advance(id, MachineState::Starting)? {
            let state = self.settle(id)?.state;
            let action = "start it".to_owned();
            return Err(Error::MachineActive {
                machine: machine.name,
                state,
                action,
            });
        }
        let started = self.spawn_monitor(&machine, &alive);
        drop(alive);
        if let Err(error) = started {
            self.undo_after(
                &error,
                self.advance(id, MachineState::Stopped(None)).map(drop),
            );
            return Err(error);
        }
        Ok(Changed::Yes)
    }

    /// Starts the monitor, which inherits the run lock as its standard input and tells on its
    /// standard output how the start went.
    pub(super) fn spawn_monitor(&self, machine: &Machine, alive: &Lock) -> Result<()> {
        let fail = |text: String| Error::Start {
            machine: machine.name.clone(),
            source: MonitorError::from_texts(vec![text]),
        };
        let runtime = self.make_runtime(machine.id)?;
        let log = Directory::open(&runtime)
            .and_then(|directory| directory.file(MONITOR_LOG, Open::CreateOrOpen))
            .map_err(|source| Error::File {
                action: "keep the monitor's log".to_owned(),
                source,
            })?;
        log.set_len(0).map_err(|error| fail(error.to_string()))?;
        let (mut reader, writer) = std::io::pipe().map_err(|error| fail(error.to_string()))?;
        let alive = alive
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| fail(error.to_string()))?;
        let command = &self.caller.monitor;
        let mut monitor = Program::at(&command.program);
        if let Some(file) = &self.settings.storage_conf.value {
            // As an absolute path, which the user's own need not be.
            monitor = monitor.env(STORAGE_CONF, file);
        }
        let mut monitor = monitor
            .args(&command.arguments)
            .arg(machine.id.to_string())
            .current_dir(&runtime)
            .spawn_connected(alive, writer.into(), log)
            .map_err(|source| Error::Program {
                action: "start the machine's monitor",
                source,
            })?;
        let mut answer = String::new();
        reader
            .read_to_string(&mut answer)
            .map_err(|error| fail(error.to_string()))?;
        match serde_json::from_str(&answer) {
            Ok(Readiness::Running) => Ok(()),
            Ok(Readiness::Failed(texts)) => {
                // It has said its last word; wait so that it leaves no zombie behind.
                let _ = monitor.wait();
                let machine = machine.name.clone();
                Err(Error::Start {
                    machine,
                    source: MonitorError::from_texts(texts),
                })
            }
            Err(_) => {
                monitor.kill();
                Err(fail("its monitor ended without a word".to_owned()))
            }
        }
    }

    /// Gives the machine another SSH port where its own is in use by somebody else.
    fn choose_ssh_port(&self, machine: &Machine) -> Result<()> {
        let taken = TcpListener::bind(SocketAddr::new(LOOPBACK, machine.ssh_port)).is_err();
        if taken {
            let port = self.catalogue.write(|session| {
                let port = free_port(&session.ssh_ports()?, &machine.exposed)?;
                session.set_ssh_port(machine.id, port)?;
                Ok::<_, Error>(port)
            })?;
            let machine = machine.name.clone();
            self.reporter
                .notice(&Notice::SshPortChanged { machine, port });
        }
        Ok(())
    }

    /// Stops a machine; one that is stopped already is left alone.
    ///
    /// # Errors
    /// Where its VMM cannot be reached or ended.
    pub fn stop_machine(
        &self,
        reference: &Reference,
        how: StopRequest,
    ) -> Result<(MachineView, Changed)> {
        let machine = self.find_machine(reference)?;
        let changed = self.bring_to_stop(&machine, how)?;
        Ok((self.view_machine(machine.id)?, changed))
    }

    pub(super) fn bring_to_stop(&self, machine: &Machine, how: StopRequest) -> Result<Changed> {
        if !machine.state.is_active() {
            return Ok(Changed::No);
        }
        // Held until it has stopped: who finds a machine on its way to a stop, and this lock
        // free, knows that nobody waits for it any more. Force does not wait for politeness.
        let (_held, _held_if_free);
        match how {
            StopRequest::Graceful { .. } => _held = self.hold(Some(machine.id), &[])?,
            StopRequest::Forced => {
                _held_if_free = self.locks.try_machine(machine.id, self.purpose())?;
            }
        }
        let machine = self.settle(machine.id)?;
        if !machine.state.is_active() {
            return Ok(Changed::No);
        }
        if let StopRequest::Graceful { timeout } = how {
            self.reporter.stage(&format!("stopping {}", machine.name));
            let stopped = self.ask_to_power_off(&machine, timeout);
            self.reporter.stage_over();
            if stopped? {
                return Ok(Changed::Yes);
            }
            let (name, seconds) = (machine.name.clone(), timeout.as_secs());
            self.reporter.notice(&Notice::ForcedAfterTimeout {
                machine: name,
                seconds,
            });
        }
        self.force_to_stop(&machine)?;
        Ok(Changed::Yes)
    }

    /// Presses the power button until the guest is off; returns whether it is.
    fn ask_to_power_off(&self, machine: &Machine, timeout: Duration) -> Result<bool> {
        let id = machine.id;
        let deadline = Instant::now() + timeout;
        if let MachineState::Paused(_) = machine.state {
            // A guest whose processors are held cannot power itself off.
            self.with_control(machine, "resume", |control| control.resume())?;
        }
        let _ = self.advance(id, MachineState::Stopping(StopHow::Clean))?;
        let mut next_press = Instant::now();
        while Instant::now() < deadline {
            if Instant::now() >= next_press {
                // The VMM may be ending at this very instant: the record below tells.
                let pressed =
                    self.with_control(machine, "power off", |control| control.power_button());
                tracing::debug!(machine = %machine.name, ok = pressed.is_ok(), "power button");
                next_press = Instant::now() + BUTTON_INTERVAL;
            }
            if !self.settle(id)?.state.is_active() {
                return Ok(true);
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(false)
    }

    fn force_to_stop(&self, machine: &Machine) -> Result<()> {
        let id = machine.id;
        let _ = self.advance(id, MachineState::Stopping(StopHow::Forced))?;
        // A VMM that is stuck does not answer; then it is killed below.
        let told = self.with_control(machine, "stop", |control| control.quit());
        if told.is_ok() && self.wait_until_recorded(id, QUIT_TIMEOUT)? {
            return Ok(());
        }
        if let Some(process) = self.catalogue.read(|session| session.process(id))? {
            let pid = process.process.pid;
            let name = || machine.name.clone();
            process
                .process
                .end(Ending::Kill)
                .map_err(|source| Error::Vmm {
                    action: "kill",
                    machine: name(),
                    source: VmmError::Process {
                        machine: name(),
                        pid,
                        source,
                    },
                })?;
        }
        if self.wait_until_recorded(id, RECORD_TIMEOUT)? {
            return Ok(());
        }
        let machine = self.settle(id)?;
        let action = "see its end recorded".to_owned();
        Err(Error::MachineActive {
            machine: machine.name,
            state: machine.state,
            action,
        })
    }

    fn wait_until_recorded(&self, id: MachineId, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            if !self.settle(id)?.state.is_active() {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Stops a machine and starts it again; one that is stopped is only started.
    ///
    /// # Errors
    /// As for stopping and starting.
    pub fn restart_machine(
        &self,
        reference: &Reference,
        how: StopRequest,
        wait: Wait,
    ) -> Result<MachineView> {
        let (machine, _) = self.stop_machine(reference, how)?;
        let (machine, _) = self.start_machine(&Reference::from(machine.id.to_string()), wait)?;
        Ok(machine)
    }

    /// Holds a machine's processors; its memory stays.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn pause_machine(&self, reference: &Reference) -> Result<(MachineView, Changed)> {
        let machine = self.find_machine(reference)?;
        let _held = self.hold(Some(machine.id), &[])?;
        let machine = self.settle(machine.id)?;
        let changed = match machine.state {
            MachineState::Paused(_) => Changed::No,
            MachineState::Running => {
                self.with_control(&machine, "pause", |control| control.pause())?;
                let _ = self.advance(machine.id, MachineState::Paused(PauseCause::Requested))?;
                Changed::Yes
            }
            state => return Err(inactive(machine, state, "pause it")),
        };
        Ok((self.view_machine(machine.id)?, changed))
    }

    /// Lets a paused machine run on.
    ///
    /// # Errors
    /// Where it is not paused and does not run.
    pub fn resume_machine(&self, reference: &Reference) -> Result<(MachineView, Changed)> {
        let machine = self.find_machine(reference)?;
        let _held = self.hold(Some(machine.id), &[])?;
        let machine = self.settle(machine.id)?;
        let changed = match machine.state {
            MachineState::Running => Changed::No,
            MachineState::Paused(_) => {
                self.with_control(&machine, "resume", |control| control.resume())?;
                let _ = self.advance(machine.id, MachineState::Running)?;
                Changed::Yes
            }
            state => return Err(inactive(machine, state, "resume it")),
        };
        Ok((self.view_machine(machine.id)?, changed))
    }

    fn with_control(
        &self,
        machine: &Machine,
        action: &'static str,
        order: impl FnOnce(&mut dyn Control) -> Result<(), VmmError>,
    ) -> Result<()> {
        self.vmm(machine.vmm)
            .connect(&self.runtime(machine.id))
            .and_then(|mut control| order(control.as_mut()))
            .map_err(|source| Error::Vmm {
                action,
                machine: machine.name.clone(),
                source,
            })
    }
}

fn inactive(machine: Machine, state: MachineState, action: &'static str) -> Error {
    Error::MachineInactive {
        machine: machine.name,
        state,
        action,
    }
}

/// Refuses an address on which the host already listens.
pub(super) fn check_free(address: SocketAddr) -> Result<()> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(source) => Err(Error::PortUnavailable { address, source }),
    }
}

/// A port of loopback that is free now, that no machine has for its SSH server, and that none
/// of `exposed` asks for.
pub(super) fn free_port(taken: &BTreeSet<u16>, exposed: &[sistemo_model::Exposure]) -> Result<u16> {
    let any = SocketAddr::new(LOOPBACK, 0);
    // Kept open until one is chosen, so that the system offers another one each time.
    let mut offered = Vec::new();
    loop {
        let listener = TcpListener::bind(any).map_err(|source| Error::PortUnavailable {
            address: any,
            source,
        })?;
        let address = listener
            .local_addr()
            .map_err(|source| Error::PortUnavailable {
                address: any,
                source,
            })?;
        let port = address.port();
        let wanted = exposed.iter().any(|exposure| exposure.host.port() == port);
        if !wanted && !taken.contains(&port) {
            return Ok(port);
        }
        offered.push(listener);
    }
}
