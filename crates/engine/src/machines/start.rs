//! Starting a machine, which its monitor does.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};
use sistemo_catalog::{LockSet, Lockable};
use sistemo_host::Changed;
use sistemo_host::directory::{Directory, FileError, Open};
use sistemo_host::lock::Lock;
use sistemo_host::program::{Program, ProgramError};
use sistemo_model::{Attachment, Machine, MachineId, MachineState, Reference};

use super::MachineView;
use super::after_stop::record_stop;
use super::ports::check_free;
use super::require_ready;
use super::templates::FreshRoot;
use crate::engine::Engine;
use crate::error::{Error, MonitorError, Result};
use crate::settings::STORAGE_CONF;

/// What the monitor writes to; the reason for a start that failed is in it too.
const MONITOR_LOG: &str = "monitor.log";

/// Whether an operation waits until the machine answers over SSH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Until it answers, or the configured time is over.
    UntilAnswering,
    /// Only until its VMM runs.
    No,
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
    /// Where it is paused, a volume of its is not usable, its VMM cannot be started (then it is stopped as
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

    /// Has a monitor start the machine's VMM, and waits until its processors run. Its volumes
    /// are locked meanwhile: a program that still writes to one, such as a resize2fs whose
    /// command was killed, is waited for.
    pub(crate) fn launch(&self, id: MachineId) -> Result<Changed> {
        self.settle_template(&self.catalogue.read(|session| session.machine(id))?)?;
        let held = self.hold(Some(id), &[])?;
        let machine = self.settle(id)?;
        require_ready(&machine)?;
        match machine.state {
            MachineState::Stopped(_) => {}
            MachineState::Stopping(_) => return Err(cannot_start(machine)),
            MachineState::Paused(_) => {
                let Machine { name, state, .. } = machine;
                return Err(Error::MachineInactive {
                    machine: name,
                    state,
                    action: "start it",
                });
            }
            MachineState::Starting | MachineState::Running => return Ok(Changed::No),
        }
        let mut held = self.hold_volumes_of(&machine, held)?;
        for exposure in &machine.exposed {
            check_free(exposure.host)?;
        }
        self.choose_ssh_port(&machine)?;
        let root = self.make_fresh_root(&machine)?;
        let alive = match self.begin_start(id, root.as_ref()) {
            Ok(alive) => alive,
            Err(error) => {
                if let Some(root) = root {
                    self.undo_after(&error, self.discard_root(root.volume.id, root.intent));
                }
                return Err(error);
            }
        };
        let started = self.start_monitor(&machine, &alive);
        drop(alive);
        if let Err(error) = started {
            // Where its monitor was killed, a VMM may be left that runs for nobody. While it
            // does, the machine stays on its way, for the next command to try again.
            let ended = self.end_unrecorded_vmm(&machine);
            let undone = ended.and_then(|()| self.record_never_ran(id));
            self.undo_after(&error, undone);
            self.finish_stop(id, &mut held);
            return Err(error);
        }
        Ok(Changed::Yes)
    }

    /// Takes a machine's run lock, and records that it is on its way, with the root that was made
    /// for this start.
    fn begin_start(&self, id: MachineId, root: Option<&FreshRoot>) -> Result<Lock> {
        let alive = self
            .locks
            .acquire(&Lockable::Run(id), self.purpose())
            .map_err(|error| self.named(error))?;
        let began = self.catalogue.write(|session| {
            if !session
                .machine(id)?
                .state
                .can_become(MachineState::Starting)
            {
                return Ok(false);
            }
            session.set_machine_state(id, MachineState::Starting)?;
            if let Some(root) = root {
                session.renew_volume(&root.volume)?;
                session.finish(root.intent)?;
            }
            Ok::<_, Error>(true)
        })?;
        if began {
            Ok(alive)
        } else {
            Err(cannot_start(self.settle(id)?))
        }
    }

    /// Takes back that a machine is on its way, whose VMM never ran.
    fn record_never_ran(&self, id: MachineId) -> Result<()> {
        self.catalogue.write(|session| {
            let machine = session.machine(id)?;
            if machine.state.can_become(MachineState::Stopped(None)) {
                record_stop(session, &machine, None)?;
            }
            Ok(())
        })
    }

    /// Adds the locks of a machine's volumes, and of what its root is made from, to its own, and
    /// refuses damaged ones.
    pub(super) fn hold_volumes_of(&self, machine: &Machine, mut held: LockSet) -> Result<LockSet> {
        let attached = self
            .catalogue
            .read(|session| session.attachments_of(machine.id))?;
        let volumes = attached.iter().map(|attachment| attachment.volume);
        held.add_volumes(volumes.chain(machine.template))
            .map_err(|error| self.named(error))?;
        // Whoever had them before may have been killed in the middle of a growth.
        self.recover_held(&held)?;
        let made_anew =
            |attachment: &&Attachment| attachment.position == 0 && machine.template.is_some();
        for attachment in attached.iter().filter(|attached| !made_anew(attached)) {
            self.refuse_damaged(attachment.volume)?;
        }
        Ok(held)
    }

    /// Starts the monitor, which inherits the run lock as its standard input and tells on its
    /// standard output how the start went.
    fn start_monitor(&self, machine: &Machine, alive: &Lock) -> Result<()> {
        let fail = |text: String| Error::Start {
            machine: machine.name.clone(),
            source: MonitorError::from_texts(vec![text]),
        };
        let (mut reader, writer) = std::io::pipe().map_err(|error| fail(error.to_string()))?;
        let alive = alive
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| fail(error.to_string()))?;
        let mut monitor = self
            .monitor_program(machine)?
            .spawn_connected(alive, writer.into(), self.monitor_log(machine)?)
            .map_err(no_monitor)?;
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

    /// Starts a monitor for a machine that runs without one.
    pub(super) fn adopt(&self, machine: &Machine) -> Result<()> {
        tracing::info!(machine = %machine.name, "its monitor is gone; starting another");
        self.monitor_program(machine)?
            .spawn_logged(self.monitor_log(machine)?)
            .map_err(no_monitor)?;
        Ok(())
    }

    fn monitor_program(&self, machine: &Machine) -> Result<Program> {
        let runtime = self.make_runtime(machine.id)?;
        let command = &self.caller.monitor;
        let mut monitor = Program::at(&command.program);
        if let Some(file) = &self.settings.storage_conf.value {
            // As an absolute path, which the user's own need not be.
            monitor = monitor.env(STORAGE_CONF, file);
        }
        Ok(monitor
            .args(&command.arguments)
            .arg(machine.id.to_string())
            .current_dir(&runtime))
    }

    /// The monitor's log, emptied: it tells of one monitor.
    fn monitor_log(&self, machine: &Machine) -> Result<File> {
        let keep = |source| Error::File {
            action: "keep the monitor's log".to_owned(),
            source,
        };
        let runtime = Directory::open(&self.runtime(machine.id)).map_err(keep)?;
        let log = runtime
            .file(MONITOR_LOG, Open::CreateOrOpen)
            .map_err(keep)?;
        log.set_len(0)
            .map_err(|error| keep(FileError::new("empty", runtime.path_of(MONITOR_LOG), error)))?;
        Ok(log)
    }
}

fn cannot_start(machine: Machine) -> Error {
    let Machine { name, state, .. } = machine;
    Error::MachineActive {
        machine: name,
        state,
        action: "start it".to_owned(),
    }
}

fn no_monitor(source: ProgramError) -> Error {
    Error::Program {
        action: "start the machine's monitor",
        source,
    }
}
