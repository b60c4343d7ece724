//! Holding a guest while its volumes are kept: the moments before and after, and whatever happens
//! in between.
//!
//! The processors are held for as short as can be. So before, what has been written is brought to
//! the host's disks, which the snapshots would otherwise wait for; and where an agent in the guest
//! answers, it freezes the filesystems, which then are clean. It can do so only while the guest
//! runs, and thaw them only once it runs again.

use std::thread;
use std::time::{Duration, Instant};

use sistemo_catalog::{Intent, IntentId, Lockable};
use sistemo_model::{Machine, MachineId, MachineState, VolumeId};
use sistemo_vmm::{Control, GuestAgent, RunStatus, VmmError};

use crate::engine::Engine;
use crate::error::{Error, Result, causes};
use crate::reporter::Notice;

/// Bringing everything to disk is repeated while the guest writes, until it takes no longer than
/// this; what was written meanwhile is then soon there too.
const FLUSHED: Duration = Duration::from_millis(20);
const MOST_FLUSHES: usize = 8;
/// An agent that was killed is started anew by its guest.
const AGENT_TRIES: usize = 4;
const AGENT_PAUSE: Duration = Duration::from_millis(500);

/// What was done while a guest was held.
pub(super) struct Stillness<T> {
    pub(super) done: T,
    /// How long its processors were held; zero for those that were held already.
    pub(super) pause: Duration,
    /// Whether its filesystems were frozen.
    pub(super) frozen: bool,
}

impl Engine {
    /// Works on the disks of a machine, those in `positions` above all, while its processors are
    /// held and its filesystems frozen where that can be, and lets both go whatever comes of it. A
    /// machine that is paused already stays so. The machine's lock is held.
    ///
    /// A crash in the middle leaves the guest held; the machine's monitor or the next operation
    /// lets it go.
    pub(super) fn while_still<T>(
        &self,
        machine: &Machine,
        positions: &[u8],
        work: impl FnOnce(&mut dyn Control) -> Result<T>,
    ) -> Result<Stillness<T>> {
        if self.command(machine, "look at", |control| control.status())? != RunStatus::Running {
            let mut control = self.connect(machine, "look at")?;
            return Ok(Stillness {
                done: work(control.as_mut())?,
                pause: Duration::ZERO,
                frozen: false,
            });
        }
        self.flush_disks(machine, positions);
        let mut agent = self.agent_of(machine);
        let intent = Intent::HoldGuest {
            machine: machine.id,
            frozen: agent.is_some(),
        };
        let intent = self.catalogue.write(|session| session.begin(&intent))?;
        let frozen = agent
            .as_mut()
            .is_some_and(|agent| self.freeze(machine, agent.as_mut()));
        if frozen {
            self.flush_disks(machine, positions);
        }
        let outcome = self.while_paused(machine, work);
        let thawed = agent.as_mut().map(|agent| agent.thaw());
        drop(agent);
        let over = match (&outcome, thawed) {
            (Ok(_), None | Some(Ok(_))) => self.released(machine.id, intent),
            // Whatever is left to be done is done by the way that does all of it.
            (_, thawed) => self.release_guest(machine.id, thawed.is_some(), intent),
        };
        match outcome {
            Err(error) => {
                self.undo_after(&error, over);
                Err(error)
            }
            Ok((done, pause)) => {
                if let Err(error) = over {
                    let reason = causes(&error).join(": ");
                    self.reporter.notice(&Notice::LeftForLater { reason });
                }
                Ok(Stillness {
                    done,
                    pause,
                    frozen,
                })
            }
        }
    }

    fn while_paused<T>(
        &self,
        machine: &Machine,
        work: impl FnOnce(&mut dyn Control) -> Result<T>,
    ) -> Result<(T, Duration)> {
        let fail = |action| {
            move |source| Error::Vmm {
                action,
                machine: machine.name.clone(),
                source,
            }
        };
        // One turn for all of it: nobody else can come between, and nobody is waited for.
        let mut control = self.connect(machine, "pause")?;
        let started = Instant::now();
        let held = control.pause().map_err(fail("pause"));
        let holding = started.elapsed();
        let done = held.and_then(|()| work(control.as_mut()));
        let worked = started.elapsed();
        let resumed = control.resume().map_err(fail("resume"));
        let pause = started.elapsed();
        tracing::debug!(machine = %machine.name, ?holding, ?worked, ?pause, "held and let go");
        let done = done?;
        resumed?;
        Ok((done, pause))
    }

    /// Brings what the machine has written to the host's disks. Where that fails, only the pause
    /// takes longer.
    fn flush_disks(&self, machine: &Machine, positions: &[u8]) {
        for _ in 0..MOST_FLUSHES {
            let started = Instant::now();
            let flushed = self.command(machine, "flush the disks of", |control| {
                let mut disks = positions.iter();
                disks.try_for_each(|position| control.flush_disk(*position))
            });
            if let Err(error) = flushed {
                tracing::warn!(%error, "the pause may take longer");
                return;
            }
            if started.elapsed() <= FLUSHED {
                return;
            }
        }
    }

    fn agent_of(&self, machine: &Machine) -> Option<Box<dyn GuestAgent>> {
        let found = self.vmm(machine.vmm).guest_agent(&self.runtime(machine.id));
        found.unwrap_or_else(|error| {
            self.tell_not_frozen(machine, &error);
            None
        })
    }

    /// Freezes the guest's filesystems; returns whether they are.
    fn freeze(&self, machine: &Machine, agent: &mut dyn GuestAgent) -> bool {
        match agent.freeze() {
            Ok(count) => count > 0,
            Err(error) => {
                self.tell_not_frozen(machine, &error);
                // It may still do so, or have done half of it.
                if let Err(error) = agent.thaw() {
                    tracing::warn!(%error, "thawing is tried again later");
                }
                false
            }
        }
    }

    fn tell_not_frozen(&self, machine: &Machine, error: &VmmError) {
        self.reporter.notice(&Notice::NotFrozen {
            machine: machine.name.clone(),
            reason: error.to_string(),
        });
    }

    fn released(&self, id: MachineId, intent: IntentId) -> Result<()> {
        let _ = self.advance(id, MachineState::Running)?;
        Ok(self.catalogue.write(|session| session.finish(intent))?)
    }

    /// Lets a guest go that was held while its volumes were kept, where it still lives: its
    /// processors first, and then its filesystems. The machine's lock is held.
    pub(crate) fn release_guest(
        &self,
        id: MachineId,
        frozen: bool,
        intent: IntentId,
    ) -> Result<()> {
        if self.locks.is_held(&Lockable::Run(id))? {
            let machine = self.catalogue.read(|session| session.machine(id))?;
            let released = self
                .run_on(&machine)
                .and_then(|()| if frozen { self.thaw(&machine) } else { Ok(()) });
            match released {
                // It ended on its own, or was forced to, meanwhile.
                Err(_) if !self.locks.is_held(&Lockable::Run(id))? => {}
                other => {
                    other?;
                    return self.released(id, intent);
                }
            }
        }
        Ok(self.catalogue.write(|session| session.finish(intent))?)
    }

    /// Lets a guest go that is held, and ends copies of its disks, where whoever did that is gone.
    /// Returns whether there is nothing left to do of this kind.
    pub(super) fn release_abandoned(&self, id: MachineId) -> Result<bool> {
        let attached = |volume: &VolumeId| {
            let holder = self.catalogue.read(|session| session.holder_of(*volume));
            matches!(holder, Ok(Some(holder)) if holder.attachment.machine == id)
        };
        let holds = |intent: &Intent| match intent {
            Intent::HoldGuest { machine, .. } | Intent::SnapshotHeld { machine, .. } => {
                *machine == id
            }
            Intent::TakeSnapshots { volumes, .. } => volumes.iter().any(attached),
            _ => false,
        };
        self.recover_those(holds)?;
        let left = self.catalogue.read(|session| session.intents())?;
        Ok(!left.iter().any(|(_, intent)| holds(intent)))
    }

    pub(super) fn run_on(&self, machine: &Machine) -> Result<()> {
        self.command(machine, "resume", |control| match control.status()? {
            RunStatus::Paused(_) => control.resume(),
            _ => Ok(()),
        })
    }

    fn thaw(&self, machine: &Machine) -> Result<()> {
        let fail = |source| Error::Vmm {
            action: "thaw the filesystems of",
            machine: machine.name.clone(),
            source,
        };
        for attempt in 0..AGENT_TRIES {
            if attempt > 0 {
                thread::sleep(AGENT_PAUSE);
            }
            let agent = self
                .vmm(machine.vmm)
                .guest_agent(&self.runtime(machine.id))
                .map_err(fail)?;
            if let Some(mut agent) = agent {
                return agent.thaw().map(drop).map_err(fail);
            }
        }
        Err(fail(VmmError::NoAgent))
    }
}
