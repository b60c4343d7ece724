//! Machines: deploy, start, stop, attach, delete.
//!
//! | file | what is in it |
//! |---|---|
//! | `deploy` | a new machine with its root volume |
//! | `clone` | a new machine with clones of another's volumes |
//! | `start` | starting, and starting a machine's monitor |
//! | `stop` | stopping and restarting |
//! | `after_stop` | what a stop says about the machine's volumes, and what is done about it |
//! | `templates` | root volumes that are made anew at each start |
//! | `pause` | pausing and resuming |
//! | `snapshot` | keeping all volumes of a machine at one point in time |
//! | `stillness` | holding a guest, its filesystems frozen, while its volumes are kept |
//! | `live_copies` | snapshots that a VMM copies while its machine runs on |
//! | `live` | the disk of a machine that runs, while its volume is kept as a snapshot |
//! | `ports` | the host's ports that lead to a machine |
//! | `remote` | SSH: shells, commands, and waiting until a machine answers |
//! | `console` | the serial console and its log |
//! | `monitor` | the process that follows a running machine |
//! | `attachments` | attaching and detaching volumes |
//! | `change` | resources, name, autostart |
//! | `delete` | deleting, with or without the root volume |

mod after_stop;
mod attachments;
mod change;
mod clone;
mod console;
mod delete;
mod deploy;
mod live;
mod live_copies;
mod monitor;
mod pause;
mod ports;
mod remote;
mod snapshot;
mod start;
mod stillness;
mod stop;
mod templates;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use sistemo_catalog::{CatalogError, LockSet, Lockable, Session};
use sistemo_host::directory::Directory;
use sistemo_model::{
    Accelerator, Access, Attachment, ImageName, Lifecycle, Lifetime, Machine, MachineId,
    MachineName, MachineState, PauseCause, Reference, StopHow, Timestamp, VmmKind, VolumeId,
    VolumeName,
};
use sistemo_vmm::{Control, VmmError};

pub use change::MachineChanges;
pub use clone::{ClonedMachine, ClonedVolume, NewMachineClone};
pub use delete::{Deletion, Storage};
pub use deploy::{Deploy, DeploySource, StartMode};
pub(crate) use live_copies::ToCopy;
pub use snapshot::{KeptVolume, MachineSnapshot};
pub use start::Wait;
pub use stop::StopRequest;
pub(crate) use templates::refuse_needed_template;

use crate::engine::Engine;
use crate::error::{Error, Kind, Result};

/// What users see of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MachineView {
    /// Its identifier.
    pub id: MachineId,
    /// Its name.
    pub name: MachineName,
    /// What it is doing: `starting`, `running`, `paused`, `stopping` or `stopped`.
    pub status: &'static str,
    /// How it came to a stop; `None` while it runs and where it never has.
    pub stopped_how: Option<StopHow>,
    /// Why it is paused.
    pub paused_why: Option<PauseCause>,
    /// The image its root volume was made from.
    pub image: Option<ImageName>,
    /// Its virtual processors.
    pub vcpus: u32,
    /// Its memory in MiB.
    pub memory_mb: u64,
    /// What runs it.
    pub vmm: VmmKind,
    /// What executes its instructions, while it runs.
    pub accel: Option<Accelerator>,
    /// Its VMM's process, while it runs.
    pub pid: Option<u32>,
    /// The volume it boots from.
    pub root_volume: Option<VolumeName>,
    /// All its volumes in the order of their devices, the root first.
    pub volumes: Vec<MachineVolume>,
    /// Where its SSH server answers on the host.
    pub ssh: SshAddress,
    /// Guest ports reachable from the host.
    pub exposed: Vec<ExposedPort>,
    /// How it reaches the network: `user`, through its VMM.
    pub network: &'static str,
    /// Whether it starts when the host does.
    pub autostart: bool,
    /// What its root volume is made from at each start; `None` for a root volume that lasts.
    pub template: Option<TemplateView>,
    /// Whether it is gone when it stops.
    pub ephemeral: bool,
    /// Its network card's address.
    pub mac: String,
    /// When it was made.
    pub created: Timestamp,
    /// When its record last changed.
    pub modified: Timestamp,
}

/// A volume of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MachineVolume {
    /// The volume.
    pub name: VolumeName,
    /// Its device in the guest.
    pub device: String,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

/// What the root volumes of machines are made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TemplateView {
    /// The volume.
    pub volume: VolumeName,
    /// The machine whose root it is, where it is one's.
    pub machine: Option<MachineName>,
}

/// Where a machine's SSH server answers on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SshAddress {
    /// Always 127.0.0.1.
    pub host: IpAddr,
    /// The port.
    pub port: u16,
}

/// A guest port reachable from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ExposedPort {
    /// Where the host listens.
    pub host: std::net::SocketAddr,
    /// The TCP port in the guest.
    pub guest: u16,
}

/// How often something is looked at that is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

pub(crate) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

impl Engine {
    /// All machines, by name.
    ///
    /// # Errors
    /// Where the catalogue cannot be read.
    pub fn machines(&self) -> Result<Vec<MachineView>> {
        let machines = self.catalogue.read(|session| session.machines())?;
        for machine in machines.iter().filter(|machine| machine.state.is_active()) {
            // One may be gone with its stop.
            let _active: bool = self.is_active(machine.id)?;
        }
        self.catalogue.read(|session| {
            session
                .machines()?
                .into_iter()
                .map(|machine| view(session, machine))
                .collect()
        })
    }

    /// One machine.
    ///
    /// # Errors
    /// Where there is none, or more than one, of that reference.
    pub fn machine(&self, reference: &Reference) -> Result<MachineView> {
        let machine = self.find_machine(reference)?;
        self.view_machine(machine.id)
    }

    pub(crate) fn view_machine(&self, id: MachineId) -> Result<MachineView> {
        self.catalogue
            .read(|session| view(session, session.machine(id)?))
    }

    /// Finds a machine and brings its record in line with what it really does.
    pub(crate) fn find_machine(&self, reference: &Reference) -> Result<Machine> {
        let machine = self
            .catalogue
            .read(|session| session.find_machine(reference))?;
        if !machine.state.is_active() {
            return Ok(machine);
        }
        let machine = self.settle(machine.id)?;
        // It may be gone with its stop.
        require_ready(&machine)?;
        Ok(machine)
    }

    /// Whether a machine, having been there, still is, and is not on its way out.
    fn is_there(&self, id: MachineId) -> Result<bool> {
        let machines = self.catalogue.read(|session| session.all_machines())?;
        let found = machines.into_iter().find(|machine| machine.id == id);
        Ok(found.is_some_and(|machine| machine.lifecycle == Lifecycle::Ready))
    }

    /// One machine, which was as `before` says; as it stopped, where it is gone with its stop.
    fn view_or_gone(&self, before: MachineView) -> Result<MachineView> {
        if self.is_there(before.id)? {
            return self.view_machine(before.id);
        }
        Ok(MachineView {
            status: MachineState::Stopped(None).as_str(),
            stopped_how: None,
            paused_why: None,
            accel: None,
            pid: None,
            ..before
        })
    }

    /// Brings a machine's record in line with what it really does.
    ///
    /// Whether it is alive is told by its run lock, which its VMM holds and nothing else can
    /// fake; a machine whose monitor is gone gets a new one.
    pub(crate) fn settle(&self, id: MachineId) -> Result<Machine> {
        let machine = self.catalogue.read(|session| session.machine(id))?;
        if !machine.state.is_active() {
            return Ok(machine);
        }
        if self.locks.is_held(&Lockable::Run(id))? {
            if let MachineState::Stopping(_) = machine.state {
                self.end_abandoned_stop(id)?;
            }
            let watched = self.locks.is_held(&Lockable::Monitor(id))?;
            match machine.state {
                _ if watched => {}
                // Its monitor may be about to take its lock, or may have died on the way.
                MachineState::Starting => self.end_abandoned_start(&machine)?,
                _ => self.adopt(&machine)?,
            }
            return Ok(self.catalogue.read(|session| session.machine(id))?);
        }
        self.end_unseen(id)?;
        Ok(self.catalogue.read(|session| session.machine(id))?)
    }

    /// Records the end of a machine whose VMM is gone, and does what belongs to it.
    pub(crate) fn end_unseen(&self, id: MachineId) -> Result<()> {
        if self.record_ending(id)? {
            self.finish_stop_where_free(id);
        }
        Ok(())
    }

    /// Whether a machine is active, its record being brought in line first. One that is gone,
    /// having been there, has ended.
    pub(crate) fn is_active(&self, id: MachineId) -> Result<bool> {
        match self.settle(id) {
            Ok(machine) => Ok(machine.state.is_active()),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The machine, which must be stopped; `action` says what for.
    pub(crate) fn require_stopped(
        &self,
        id: MachineId,
        action: impl FnOnce() -> String,
    ) -> Result<Machine> {
        let machine = self.settle(id)?;
        require_ready(&machine)?;
        // The record alone is not believed: what counts is that no VMM lives.
        if machine.state.is_active() || self.locks.is_held(&Lockable::Run(id))? {
            let Machine { name, state, .. } = machine;
            return Err(Error::MachineActive {
                machine: name,
                state,
                action: action(),
            });
        }
        Ok(machine)
    }

    /// Moves a machine to a state where that is a step it can take; returns whether it was. A
    /// stop under way is never taken back by this: an event that arrives late would do so.
    pub(crate) fn advance(&self, id: MachineId, next: MachineState) -> Result<bool> {
        self.catalogue.write(|session| {
            let state = session.machine(id)?.state;
            let takes_back = matches!(
                (state, next),
                (MachineState::Stopping(_), MachineState::Running)
            );
            let step = state != next && state.can_become(next) && !takes_back;
            if step {
                session.set_machine_state(id, next)?;
            }
            Ok(step)
        })
    }

    /// Takes a turn at a running machine's VMM, to give it commands one after the other.
    fn connect(&self, machine: &Machine, action: &'static str) -> Result<Box<dyn Control>> {
        self.vmm(machine.vmm)
            .connect(&self.runtime(machine.id))
            .map_err(|source| Error::Vmm {
                action,
                machine: machine.name.clone(),
                source,
            })
    }

    /// Gives a running machine's VMM a command.
    fn command<T>(
        &self,
        machine: &Machine,
        action: &'static str,
        order: impl FnOnce(&mut dyn Control) -> Result<T, VmmError>,
    ) -> Result<T> {
        self.vmm(machine.vmm)
            .connect(&self.runtime(machine.id))
            .and_then(|mut control| order(control.as_mut()))
            .map_err(|source| Error::Vmm {
                action,
                machine: machine.name.clone(),
                source,
            })
    }

    /// Where a machine keeps its sockets and logs.
    pub(crate) fn runtime(&self, id: MachineId) -> PathBuf {
        self.data_dir().join("machines").join(id.to_string())
    }

    pub(crate) fn make_runtime(&self, id: MachineId) -> Result<PathBuf> {
        let path = self.runtime(id);
        let make = || {
            let _ = Directory::create(&self.data_dir().join("machines"))?;
            let _ = Directory::create(&path)?;
            Ok(())
        };
        make().map_err(|source| Error::File {
            action: "keep a machine's files".to_owned(),
            source,
        })?;
        Ok(path)
    }

    /// Says by name, where the lock is known by ID, what somebody else works on.
    pub(crate) fn named(&self, error: CatalogError) -> Error {
        let CatalogError::Locked { object, holder } = error else {
            return error.into();
        };
        let name = self.catalogue.read(|session| {
            Ok::<_, CatalogError>(match object {
                Lockable::Volume(id) => format!("volume {}", session.volume(id)?.name),
                Lockable::Machine(id) | Lockable::Run(id) => {
                    format!("machine {}", session.machine(id)?.name)
                }
                _ => object.to_string(),
            })
        });
        Error::Busy {
            object: name.unwrap_or_else(|_| object.to_string()),
            holder,
        }
    }

    /// Takes the locks of machines and of volumes, in the order that cannot deadlock.
    pub(crate) fn hold(
        &self,
        machines: impl IntoIterator<Item = MachineId>,
        volumes: &[VolumeId],
    ) -> Result<LockSet> {
        let mut set = self.locks.set(self.purpose());
        set.add_machines(machines)
            .and_then(|()| set.add_volumes(volumes.iter().copied()))
            .map_err(|error| self.named(error))?;
        // Whoever had them before us may have been killed with something begun.
        self.recover_held(&set)?;
        Ok(set)
    }
}

/// Refuses a machine that was deleted, as far as that went, before its lock was ours.
fn require_ready(machine: &Machine) -> Result<()> {
    if machine.lifecycle == Lifecycle::Ready {
        return Ok(());
    }
    Err(Error::NotFound {
        kind: Kind::Machine,
        reference: machine.name.to_string(),
    })
}

fn view(session: &Session<'_>, machine: Machine) -> Result<MachineView> {
    let attachments = session.attachments_of(machine.id)?;
    let process = session.process(machine.id)?;
    let stopped_how = match machine.state {
        MachineState::Stopped(how) => how,
        _ => None,
    };
    let template = machine.template.map(|id| {
        let holder = session.holder_of(id)?;
        Ok::<_, CatalogError>(TemplateView {
            volume: session.volume(id)?.name,
            machine: holder
                .filter(|holder| holder.attachment.position == 0)
                .map(|holder| holder.machine_name),
        })
    });
    let paused_why = match machine.state {
        MachineState::Paused(cause) => Some(cause),
        _ => None,
    };
    Ok(MachineView {
        id: machine.id,
        status: machine.state.as_str(),
        stopped_how,
        paused_why,
        image: machine.image,
        vcpus: machine.vcpus.get(),
        memory_mb: machine.memory.mib(),
        vmm: machine.vmm,
        accel: process.as_ref().map(|process| process.accelerator),
        pid: process.map(|process| process.process.pid),
        root_volume: attachments.first().map(|root| root.volume_name.clone()),
        volumes: attachments.iter().map(view_volume).collect(),
        ssh: SshAddress {
            host: LOOPBACK,
            port: machine.ssh_port,
        },
        exposed: machine
            .exposed
            .iter()
            .map(|exposure| ExposedPort {
                host: exposure.host,
                guest: exposure.guest,
            })
            .collect(),
        network: "user",
        autostart: machine.autostart,
        template: template.transpose()?,
        ephemeral: machine.lifetime == Lifetime::Ephemeral,
        mac: machine.mac.to_string(),
        created: machine.created,
        modified: machine.modified,
        name: machine.name,
    })
}

fn view_volume(attachment: &Attachment) -> MachineVolume {
    MachineVolume {
        name: attachment.volume_name.clone(),
        device: attachment.device(),
        read_only: attachment.access == Access::ReadOnly,
    }
}
