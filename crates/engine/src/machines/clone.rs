//! Cloning a machine: another one with clones of all its volumes, and an identity of its own.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;
use sistemo_catalog::{Intent, IntentId, LockSet};
use sistemo_host::Changed;
use sistemo_model::{
    Access, Attachment, Bytes, Exposure, History, Lifecycle, Lifetime, MacAddress, Machine,
    MachineId, MachineName, MachineState, NameError, PoolName, Reference, SnapshotName, Timestamp,
    Volume, VolumeId, VolumeName,
};
use sistemo_pools::{Cost, Way};

use super::deploy::StartMode;
use super::ports::{check_distinct, check_free, free_port};
use super::templates::expect_template;
use super::{MachineView, require_ready};
use crate::clones::room_for_clone;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::pools::expect_known;
use crate::reporter::Notice;
use crate::sources::Source;

/// A machine to be made of another.
#[derive(Clone, Debug)]
pub struct NewMachineClone {
    /// The machine it is made of.
    pub source: Reference,
    /// Its name.
    pub name: MachineName,
    /// The snapshot of each of the volumes that it is made from; without one, the volumes as they
    /// are now.
    pub snapshot: Option<SnapshotName>,
    /// The pool of all its volumes; without one, each goes to the pool of the one it is made from.
    pub pool: Option<PoolName>,
    /// Its guest ports to reach from the host.
    pub expose: Vec<Exposure>,
    /// How far it is started.
    pub start: StartMode,
}

/// A machine that was made of another.
#[derive(Clone, Debug)]
pub struct ClonedMachine {
    /// The new machine.
    pub machine: MachineView,
    /// The machine it was made of.
    pub source: MachineName,
    /// Its volumes in the order of their devices.
    pub volumes: Vec<ClonedVolume>,
}

/// A volume of a machine that was made of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClonedVolume {
    /// The volume it was made from.
    pub source: VolumeName,
    /// Its name.
    pub name: VolumeName,
    /// How the data came there.
    pub way: Way,
    /// How much was copied, where something was.
    pub copied: Option<Bytes>,
}

/// A volume that is to be cloned, and its clone.
struct Part<'a> {
    /// `None` for a root volume that is made anew at each start: there is nothing to clone.
    source: Option<Source<'a>>,
    clone: Volume,
    position: u8,
    access: Access,
}

/// What is read of a volume.
enum Read<'a> {
    Source(Source<'a>),
    /// It is made anew at each start.
    Nothing(Volume),
}

impl Engine {
    /// Makes a machine with clones of all volumes of another one, in the same order and with the
    /// same access, and the same resources. Where that one's root is made from a template at each
    /// start, so is the new one's. Its ID, and so its guest's machine-id and MAC
    /// address, its name and its SSH port are its own; ports that the other exposes, autostart
    /// and an end with its stop are not passed on.
    ///
    /// A failure leaves nothing behind; neither does a crash, once the next operation has begun.
    /// Once it is whole it stays, also where it cannot be started.
    ///
    /// # Errors
    /// [`Error::MachineInUse`] where the machine is active and no snapshot is named;
    /// [`Error::SnapshotMissing`] where one of its volumes has no such snapshot; and where a name
    /// is taken, a pool has no room, or a port is in use.
    pub fn clone_machine(&self, new: &NewMachineClone) -> Result<ClonedMachine> {
        check_distinct(&new.expose)?;
        if new.start != StartMode::Created {
            new.expose
                .iter()
                .try_for_each(|exposure| check_free(exposure.host))?;
        }
        if new.pool.is_some() {
            self.pool_for(new.pool.as_ref())?;
        }
        let found = self.find_machine(&new.source)?;
        self.check_clone_name(&new.name)?;
        let id = MachineId::random();
        let (attached, made, held) = self.hold_to_clone(&found, id, new.snapshot.is_some())?;
        if new.snapshot.is_none() {
            self.require_idle_to_clone(&found)?;
        }
        let sources = self.sources_of(&found, &attached, new.snapshot.as_ref())?;
        let names = names_of_clones(&found.name, &new.name, &attached)?;
        let parts: Vec<Part<'_>> = sources
            .into_iter()
            .zip(&attached)
            .zip(names.into_iter().zip(made))
            .map(|((read, attachment), (name, id))| {
                let pool = |volume: &Volume| {
                    let asked = new.pool.clone();
                    asked.unwrap_or_else(|| volume.pool.clone())
                };
                let (source, clone) = match read {
                    Read::Source(source) => {
                        let clone = source.record_of_clone(id, name, pool(&source.volume));
                        (Some(source), clone)
                    }
                    Read::Nothing(root) => {
                        let now = Timestamp::now();
                        let clone = Volume {
                            id,
                            name,
                            pool: pool(&root),
                            history: History::default(),
                            lifecycle: Lifecycle::Creating,
                            created: now,
                            modified: now,
                            ..root
                        };
                        (None, clone)
                    }
                };
                Part {
                    source,
                    clone,
                    position: attachment.position,
                    access: attachment.access,
                }
            })
            .collect();
        self.require_room_for(&found, &parts)?;
        let intent = self.record_clone(new, &found, id, &parts)?;
        let volumes = match self.build_clone(id, &parts, intent) {
            Ok(volumes) => volumes,
            Err(error) => {
                let made: Vec<VolumeId> = parts.iter().map(|part| part.clone.id).collect();
                self.undo_after(&error, self.forget_machine(id, &made, intent));
                return Err(error);
            }
        };
        drop(held);
        self.tell_what_is_not_passed_on(new, &found, &parts)?;
        if new.start != StartMode::Created {
            let _: Changed = self.launch(id)?;
        }
        if new.start == StartMode::Answering {
            self.wait_until_answering(id)?;
        }
        Ok(ClonedMachine {
            machine: self.view_machine(id)?,
            source: found.name,
            volumes,
        })
    }

    /// Refuses a taken name before anything is looked at that takes time.
    fn check_clone_name(&self, name: &MachineName) -> Result<()> {
        self.catalogue
            .read(|session| match super::deploy::taken(session, name, true)? {
                None => Ok(()),
                Some((kind, name)) => Err(Error::NameTaken { kind, name }),
            })
    }

    /// Takes the locks of the new machine, of the volumes of the other and of as many to be made;
    /// and where these are read as they are now, of the other machine too. Returns what that has
    /// attached, and the IDs of what is to be made.
    fn hold_to_clone(
        &self,
        source: &Machine,
        id: MachineId,
        from_snapshots: bool,
    ) -> Result<(Vec<Attachment>, Vec<VolumeId>, LockSet)> {
        let machines: Vec<MachineId> = std::iter::once(id)
            .chain((!from_snapshots).then_some(source.id))
            .collect();
        loop {
            let attached = self.attached_to(source.id)?;
            let made: Vec<VolumeId> = attached.iter().map(|_| VolumeId::random()).collect();
            let volumes: Vec<VolumeId> = attached
                .iter()
                .map(|attachment| attachment.volume)
                .chain(made.iter().copied())
                .collect();
            let held = self.hold(machines.iter().copied(), &volumes)?;
            // They may have changed before we had the locks.
            if self.attached_to(source.id)? == attached {
                return Ok((attached, made, held));
            }
        }
    }

    fn attached_to(&self, id: MachineId) -> Result<Vec<Attachment>> {
        Ok(self.catalogue.read(|session| session.attachments_of(id))?)
    }

    fn require_idle_to_clone(&self, machine: &Machine) -> Result<()> {
        let idle = self.require_stopped(machine.id, || "clone it".to_owned());
        idle.map(drop).map_err(|error| match error {
            Error::MachineActive { machine, state, .. } => Error::MachineInUse {
                machine,
                state,
                action: "clone",
            },
            error => error,
        })
    }

    /// What is read of each of a machine's volumes.
    fn sources_of<'a>(
        &self,
        machine: &Machine,
        attached: &[Attachment],
        snapshot: Option<&'a SnapshotName>,
    ) -> Result<Vec<Read<'a>>> {
        let mut sources = Vec::new();
        let mut lacking = Vec::new();
        for attachment in attached {
            let id = attachment.volume;
            let volume = self.catalogue.read(|session| session.volume(id))?;
            if attachment.position == 0 && machine.template.is_some() {
                sources.push(Read::Nothing(volume));
                continue;
            }
            let name = volume.name.clone();
            // The caller holds the locks of all of them.
            match self.source_of(volume, snapshot, self.locks.set(self.purpose())) {
                Ok(source) => sources.push(Read::Source(source)),
                Err(Error::NoSuchSnapshot { .. } | Error::PoolLacks { .. }) => lacking.push(name),
                Err(error) => return Err(error),
            }
        }
        match snapshot {
            Some(snapshot) if !lacking.is_empty() => Err(Error::SnapshotMissing {
                machine: machine.name.clone(),
                snapshot: snapshot.clone(),
                volumes: lacking,
            }),
            _ => Ok(sources),
        }
    }

    /// Makes sure that each pool has room for all that is copied into it.
    fn require_room_for(&self, machine: &Machine, parts: &[Part<'_>]) -> Result<()> {
        let mut needed: BTreeMap<&PoolName, u64> = BTreeMap::new();
        for part in parts {
            let Some(source) = &part.source else { continue };
            let pool = self.pool(&part.clone.pool)?;
            if let Some(room) = room_for_clone(source, pool.as_ref())? {
                *needed.entry(&part.clone.pool).or_default() += room;
            }
        }
        needed.into_iter().try_for_each(|(pool, needed)| {
            let action = || format!("clone machine {}", machine.name);
            self.ensure_room(self.pool(pool)?.as_ref(), needed, action)
        })
    }

    /// Records the machine and its volumes; all names are free, or nothing is recorded.
    fn record_clone(
        &self,
        new: &NewMachineClone,
        source: &Machine,
        id: MachineId,
        parts: &[Part<'_>],
    ) -> Result<IntentId> {
        // From before the records are made until they are: then the volumes keep their kernels.
        let mut kernels = parts.iter().filter_map(|part| part.clone.boot.as_ref());
        let kernels = kernels
            .next()
            .map(|boot| self.hold_kernels(Some(boot)))
            .transpose()?;
        let now = Timestamp::now();
        let intent = self.catalogue.write(|session| {
            let source = session.machine(source.id)?;
            require_ready(&source)?;
            if let Some(template) = source.template {
                expect_template(session, &session.volume(template)?)?;
            }
            session.insert_machine(&Machine {
                id,
                name: new.name.clone(),
                mac: MacAddress::for_machine(id),
                ssh_port: free_port(&session.ssh_ports()?, &new.expose)?,
                exposed: new.expose.clone(),
                autostart: false,
                owns_root: true,
                lifetime: Lifetime::Persistent,
                state: MachineState::Stopped(None),
                lifecycle: Lifecycle::Creating,
                created: now,
                modified: now,
                ..source
            })?;
            for part in parts {
                expect_known(session, &part.clone.pool)?;
                session.insert_volume(&part.clone)?;
                session.attach(id, part.clone.id, part.position, part.access)?;
            }
            let intent = Intent::CloneMachine {
                machine: id,
                volumes: parts.iter().map(|part| part.clone.id).collect(),
            };
            Ok::<_, Error>(session.begin(&intent)?)
        })?;
        drop(kernels);
        Ok(intent)
    }

    fn build_clone(
        &self,
        id: MachineId,
        parts: &[Part<'_>],
        intent: IntentId,
    ) -> Result<Vec<ClonedVolume>> {
        let mut cloned = Vec::new();
        for Part { source, clone, .. } in parts {
            let Some(source) = source else { continue };
            self.reporter
                .stage(&format!("cloning {} to {}", source.volume.name, clone.name));
            let filled = self.fill_clone(source, clone);
            self.reporter.stage_over();
            let (way, copied) = filled?;
            cloned.push(ClonedVolume {
                source: source.volume.name.clone(),
                name: clone.name.clone(),
                way,
                copied: (way.cost() == Cost::Copy).then(|| Bytes::new(copied)),
            });
        }
        let _ = self.make_runtime(id)?;
        self.catalogue.write(|session| {
            for part in parts {
                session.set_volume_lifecycle(part.clone.id, Lifecycle::Ready)?;
            }
            session.set_machine_lifecycle(id, Lifecycle::Ready)?;
            session.finish(intent)
        })?;
        Ok(cloned)
    }

    /// Says what the clone does not have of the other, and what it has that should be its own.
    fn tell_what_is_not_passed_on(
        &self,
        new: &NewMachineClone,
        source: &Machine,
        parts: &[Part<'_>],
    ) -> Result<()> {
        let again = |exposure: &&Exposure| {
            let mut exposed = new.expose.iter();
            !exposed.any(|new| new.guest == exposure.guest)
        };
        let left_out: Vec<u16> = source
            .exposed
            .iter()
            .filter(again)
            .map(|exposure| exposure.guest)
            .collect();
        if !left_out.is_empty() {
            self.reporter.notice(&Notice::PortsNotPassedOn {
                machine: new.name.clone(),
                source: source.name.clone(),
                ports: left_out,
            });
        }
        let root = parts.iter().find(|part| part.position == 0);
        let by_firmware = root.is_some_and(|root| root.clone.boot.is_none());
        let imported = match &source.image {
            Some(name) => match self.image(name) {
                Ok(image) => image.source == "imported",
                Err(Error::NotFound { .. }) => false,
                Err(error) => return Err(error),
            },
            None => false,
        };
        if by_firmware || imported {
            self.reporter.notice(&Notice::IdentityNotTold {
                machine: new.name.clone(),
                source: source.name.clone(),
                by_firmware,
            });
        }
        Ok(())
    }
}

/// The names of the clones of a machine's volumes. The root is named after the machine, as deploy
/// does; of the others, what is named after the old machine is named after the new one, and
/// anything else gets the new one's name before its own.
fn names_of_clones(
    old: &MachineName,
    new: &MachineName,
    attached: &[Attachment],
) -> Result<Vec<VolumeName>> {
    let mut taken = HashSet::new();
    let mut names = Vec::new();
    for attachment in attached {
        let volume = attachment.volume_name.as_str();
        let name = if attachment.position == 0 {
            new.root_volume()
        } else {
            let renamed = volume
                .strip_prefix(old.as_str())
                .filter(|rest| rest.is_empty() || rest.starts_with(['-', '_', '.']))
                .map(|rest| format!("{new}{rest}"));
            let prefixed = format!("{new}-{volume}");
            let numbered = (2_u32..).map(|number| format!("{prefixed}-{number}"));
            renamed
                .into_iter()
                .chain([prefixed.clone()])
                .chain(numbered)
                .find(|name| !taken.contains(name))
                .unwrap_or(prefixed)
                .parse()
                .map_err(|source: NameError| Error::CloneName {
                    volume: attachment.volume_name.clone(),
                    machine: new.clone(),
                    source,
                })?
        };
        taken.insert(name.to_string());
        names.push(name);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(old: &str, new: &str, volumes: &[&str]) -> Result<Vec<String>> {
        let attached: Vec<Attachment> = (0..)
            .zip(volumes)
            .map(|(position, volume)| Attachment {
                machine: MachineId::random(),
                volume: VolumeId::random(),
                volume_name: volume.parse().unwrap(),
                position,
                access: Access::ReadWrite,
            })
            .collect();
        let names = names_of_clones(&old.parse().unwrap(), &new.parse().unwrap(), &attached)?;
        Ok(names.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_is_named_after_the_machine_is_named_after_its_clone() {
        let given = ["old-root", "pgdata", "db1-log", "db1", "db10", "db1_x"];
        let expected = [
            "db2-root",
            "db2-pgdata",
            "db2-log",
            "db2",
            "db2-db10",
            "db2_x",
        ];
        assert_eq!(names("db1", "db2", &given).unwrap(), expected);
    }

    #[test]
    fn no_two_clones_get_one_name() {
        let given = ["a-root", "a-x", "x", "root", "a-root2"];
        let expected = ["b-root", "b-x", "b-x-2", "b-root-2", "b-root2"];
        assert_eq!(names("a", "b", &given).unwrap(), expected);
    }

    #[test]
    fn a_name_that_would_be_too_long_is_refused() {
        let error = names("a", "b", &["a-root", &"v".repeat(62)]).unwrap_err();
        assert!(matches!(error, Error::CloneName { .. }), "{error}");
        assert!(error.to_string().contains(&"v".repeat(62)), "{error}");
    }
}
