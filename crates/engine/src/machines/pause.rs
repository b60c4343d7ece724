//! Holding a machine's processors and letting them go.

use sistemo_host::Changed;
use sistemo_model::{Machine, MachineState, PauseCause, Reference};
use sistemo_vmm::RunStatus;

use super::MachineView;
use crate::engine::Engine;
use crate::error::{Error, Result};

impl Engine {
    /// Holds a machine's processors; its memory stays.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn pause_machine(&self, reference: &Reference) -> Result<(MachineView, Changed)> {
        self.hold_or_let_go(reference, "pause it", |engine, machine, status| {
            if let RunStatus::Paused(cause) = status {
                return Ok((Changed::No, MachineState::Paused(cause)));
            }
            engine.command(machine, "pause", |control| control.pause())?;
            Ok((Changed::Yes, MachineState::Paused(PauseCause::Requested)))
        })
    }

    /// Lets a paused machine run on.
    ///
    /// # Errors
    /// Where it is not paused and does not run.
    pub fn resume_machine(&self, reference: &Reference) -> Result<(MachineView, Changed)> {
        self.hold_or_let_go(reference, "resume it", |engine, machine, status| {
            if status == RunStatus::Running {
                return Ok((Changed::No, MachineState::Running));
            }
            engine.command(machine, "resume", |control| control.resume())?;
            Ok((Changed::Yes, MachineState::Running))
        })
    }

    /// Asks the VMM what its processors do, which it knows better than the record, and then acts.
    fn hold_or_let_go(
        &self,
        reference: &Reference,
        action: &'static str,
        act: impl FnOnce(&Engine, &Machine, RunStatus) -> Result<(Changed, MachineState)>,
    ) -> Result<(MachineView, Changed)> {
        let machine = self.find_machine(reference)?;
        let _held = self.hold(Some(machine.id), &[])?;
        let machine = self.settle(machine.id)?;
        let (MachineState::Running | MachineState::Paused(_)) = machine.state else {
            let Machine { name, state, .. } = machine;
            return Err(Error::MachineInactive {
                machine: name,
                state,
                action,
            });
        };
        let status = self.command(&machine, "look at", |control| control.status())?;
        let (changed, next) = act(self, &machine, status)?;
        let _ = self.advance(machine.id, next)?;
        Ok((self.view_machine(machine.id)?, changed))
    }
}
