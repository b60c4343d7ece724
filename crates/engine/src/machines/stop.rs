//! Stopping a machine: by its power button, or by force.

use std::thread;
use std::time::{Duration, Instant};

use sistemo_host::Changed;
use sistemo_host::process::Ending;
use sistemo_model::{Lifetime, Machine, MachineId, MachineState, Reference, StopHow};
use sistemo_vmm::VmmError;

use super::templates::refuse_ephemeral;
use super::{MachineView, POLL_INTERVAL, Wait};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::reporter::Notice;

/// How often a guest that was asked to power off is asked again: a guest that is still booting
/// misses the button.
const BUTTON_INTERVAL: Duration = Duration::from_secs(3);
/// How long a VMM has to end after it was told to, before it is killed.
const QUIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the record of a machine may lag behind the end of its VMM.
const RECORD_TIMEOUT: Duration = Duration::from_secs(10);

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

impl Engine {
    /// Stops a machine; one that is stopped already is left alone. One that is gone when it stops
    /// is shown as it was.
    ///
    /// # Errors
    /// Where its VMM cannot be reached or ended.
    pub fn stop_machine(
        &self,
        reference: &Reference,
        how: StopRequest,
    ) -> Result<(MachineView, Changed)> {
        let machine = self.find_machine(reference)?;
        let before = self.view_machine(machine.id)?;
        let changed = self.bring_to_stop(&machine, how)?;
        if machine.lifetime == Lifetime::Ephemeral && !self.is_there(machine.id)? {
            let volumes = before.volumes.iter().skip(usize::from(machine.owns_root));
            self.reporter.notice(&Notice::EphemeralGone {
                machine: machine.name,
                kept: volumes.map(|volume| volume.name.clone()).collect(),
            });
        }
        Ok((self.view_or_gone(before)?, changed))
    }

    pub(super) fn bring_to_stop(&self, machine: &Machine, how: StopRequest) -> Result<Changed> {
        if !machine.state.is_active() {
            return Ok(Changed::No);
        }
        self.use_reserve_where_full();
        // Held until it has stopped: who finds a machine on its way to a stop, and this lock
        // free, knows that nobody waits for it any more. Force does not wait for politeness.
        let mut held = match how {
            StopRequest::Graceful { .. } => self.hold(Some(machine.id), &[])?,
            StopRequest::Forced => {
                let mut held = self.locks.set(self.purpose());
                let _free: bool = held.add_machine_if_free(machine.id)?;
                held
            }
        };
        let stopped = self.stop_held(machine.id, how);
        self.finish_stop(machine.id, &mut held);
        match stopped {
            // Its monitor was faster.
            Err(Error::NotFound { .. }) if machine.lifetime == Lifetime::Ephemeral => {
                Ok(Changed::Yes)
            }
            stopped => stopped,
        }
    }

    /// Stops a machine whose lock is held, or wanted by nobody who waits for it.
    fn stop_held(&self, id: MachineId, how: StopRequest) -> Result<Changed> {
        let machine = self.settle(id)?;
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
            self.command(machine, "resume", |control| control.resume())?;
        }
        let _ = self.advance(id, MachineState::Stopping(StopHow::Clean))?;
        let mut next_press = Instant::now();
        while Instant::now() < deadline {
            if Instant::now() >= next_press {
                // The VMM may be ending at this very instant: the record below tells.
                let pressed = self.command(machine, "power off", |control| control.power_button());
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
        let told = self.command(machine, "stop", |control| control.quit());
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
        let action = "end it".to_owned();
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
    /// As for stopping and starting, and for a machine that is gone when it stops.
    pub fn restart_machine(
        &self,
        reference: &Reference,
        how: StopRequest,
        wait: Wait,
    ) -> Result<MachineView> {
        refuse_ephemeral(&self.find_machine(reference)?, "restart it")?;
        let (machine, _) = self.stop_machine(reference, how)?;
        let (machine, _) = self.start_machine(&Reference::from(machine.id.to_string()), wait)?;
        Ok(machine)
    }
}
