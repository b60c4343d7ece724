//! Deploying: a new machine with its root volume.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use sistemo_catalog::{Intent, IntentId, Session};
use sistemo_host::lock::Lock;
use sistemo_images::{Error as ImageError, OpenImage};
use sistemo_model::{
    Accelerator, Access, Attachment, Boot, Bytes, Exposure, Filesystem, ImageName, Lifecycle,
    MacAddress, Machine, MachineId, MachineName, MachineState, PoolName, Reference, Role,
    Timestamp, VcpuCount, VmmChoice, VmmKind, Volume, VolumeId,
};

use super::change::check_memory;
use super::run::{Wait, check_free, free_port};
use super::{MachineView, StopRequest};
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::pools::expect_known;
use crate::reporter::Notice;
use crate::volumes::{Content, held_lock};

/// A machine to be made.
#[derive(Clone, Debug)]
pub struct Deploy {
    /// What it boots.
    pub source: DeploySource,
    /// Its name; without one, a free one derived from the source.
    pub name: Option<MachineName>,
    /// Its virtual processors; without a number, the configured one.
    pub vcpus: Option<VcpuCount>,
    /// Its memory; without a size, the configured one.
    pub memory: Option<Bytes>,
    /// The size of the root volume that is made for it; without one, the configured size or the
    /// image's, whichever is larger.
    pub storage: Option<Bytes>,
    /// The pool of that root volume.
    pub pool: Option<PoolName>,
    /// Its data volumes, in the order of their devices.
    pub attach: Vec<Reference>,
    /// Guest ports to reach from the host.
    pub expose: Vec<Exposure>,
    /// What runs it; without a choice, the configured one.
    pub vmm: Option<VmmChoice>,
    /// How far it is started.
    pub start: StartMode,
}

/// What a new machine boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeploySource {
    /// A new root volume made from an image; the image `debian` is built the first time.
    Image(ImageName),
    /// A new root volume made from a raw or qcow2 file.
    File(PathBuf),
    /// A volume that is there already, which becomes the root volume.
    Volume(Reference),
}

/// How far a new machine is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartMode {
    /// Not at all.
    Created,
    /// Until its VMM runs.
    Started,
    /// Until it answers over SSH.
    Answering,
}

/// What a root volume is made from, or which one it is.
enum Root {
    Made {
        content: File,
        size: Bytes,
        boot: Option<Boot>,
        image: Option<ImageName>,
    },
    Given(Volume),
}

impl Engine {
    /// Makes a machine and starts it as far as asked.
    ///
    /// A failure before the machine is left to boot leaves nothing behind; neither does a crash,
    /// once the next operation has begun, as long as its root volume was not whole yet.
    ///
    /// # Errors
    /// Where a name is taken, a volume is held, the image is missing or larger than the root
    /// volume asked for, the host cannot run it, or it ends before it answers. Where it does not
    /// answer in time ([`Error::NotAnswering`]), it runs on.
    pub fn deploy(&self, new: &Deploy) -> Result<MachineView> {
        let memory = new.memory.unwrap_or(self.settings.memory.value);
        check_memory(memory)?;
        let vmm = match new.vmm.unwrap_or(self.settings.vmm.value) {
            VmmChoice::Auto | VmmChoice::Qemu => VmmKind::Qemu,
        };
        check_exposures(&new.expose, new.start)?;
        if !matches!(new.source, DeploySource::Volume(_)) {
            self.pool_for(new.pool.as_ref())?;
        }
        let data = self.resolve_data_volumes(new)?;
        let mut slow = None;
        if new.start != StartMode::Created {
            slow = self.why_slow(vmm)?;
        }
        self.check_names(new)?;
        let root = self.find_root(new)?;
        if let Some(reason) = slow {
            self.reporter.notice(&Notice::SlowAccelerator { reason });
        }

        let (id, root_id) = match &root {
            Root::Made { .. } => (MachineId::random(), VolumeId::random()),
            Root::Given(volume) => (MachineId::random(), volume.id),
        };
        let mut volumes: Vec<VolumeId> = data.iter().map(|volume| volume.id).collect();
        volumes.push(root_id);
        let held = self.hold(Some(id), &volumes)?;
        let (machine, made, intent) = self.record(new, id, root_id, &root, &data, vmm, memory)?;
        let lock = held_lock(&held, root_id)?;
        let finished = self.build(&machine, made.as_ref(), &root, lock, intent);
        if let Err(error) = finished {
            let undone = self.forget_machine(id, made.map(|volume| volume.id), intent);
            self.undo_after(&error, undone);
            return Err(error);
        }
        drop(held);

        if new.start != StartMode::Created
            && let Err(error) = self.bring_up(&machine, new.start)
        {
            if !matches!(error, Error::NotAnswering { .. }) {
                self.undo_after(&error, self.undo_deploy(&machine, made.is_some()));
            }
            return Err(error);
        }
        self.view_machine(id)
    }

    /// Makes sure that the VMM is there; returns why guests will be slow, where they will.
    fn why_slow(&self, vmm: VmmKind) -> Result<Option<String>> {
        let probe = self.vmm(vmm).probe().map_err(Error::NoVmm)?;
        Ok((probe.accelerator == Accelerator::Tcg).then_some(probe.reason))
    }

    fn bring_up(&self, machine: &Machine, start: StartMode) -> Result<()> {
        let reference = Reference::from(machine.id.to_string());
        let wait = match start {
            StartMode::Answering => Wait::UntilAnswering,
            StartMode::Started | StartMode::Created => Wait::No,
        };
        self.start_machine(&reference, wait).map(drop)
    }

    fn undo_deploy(&self, machine: &Machine, made_root: bool) -> Result<()> {
        let reference = Reference::from(machine.id.to_string());
        let _ = self.stop_machine(&reference, StopRequest::Forced)?;
        let storage = if made_root {
            super::Storage::RemoveRoot
        } else {
            super::Storage::Preserve
        };
        self.delete_machine(&reference, storage).map(drop)
    }

    /// The pool of the root volume that is made.
    fn pool_of<'a>(&'a self, new: &'a Deploy) -> &'a PoolName {
        new.pool
            .as_ref()
            .unwrap_or(&self.settings.default_pool.value)
    }

    /// Finds the data volumes, each of them free and named once.
    fn resolve_data_volumes(&self, new: &Deploy) -> Result<Vec<Volume>> {
        let mut seen = HashSet::new();
        if let DeploySource::Volume(reference) = &new.source {
            let root = self
                .catalogue
                .read(|session| session.find_volume(reference))?;
            seen.insert(root.id);
        }
        let mut volumes = Vec::new();
        for reference in &new.attach {
            let (volume, holder) = self.catalogue.read(|session| {
                let volume = session.find_volume(reference)?;
                let holder = session.holder_of(volume.id)?;
                Ok::<_, Error>((volume, holder))
            })?;
            if !seen.insert(volume.id) {
                return Err(Error::VolumeRepeated {
                    volume: volume.name,
                });
            }
            if let Some(holder) = holder {
                let machine = holder.machine_name;
                return Err(Error::VolumeAttached {
                    volume: volume.name,
                    machine,
                });
            }
            self.refuse_damaged(&volume)?;
            volumes.push(volume);
        }
        if volumes.len() >= usize::from(Attachment::LIMIT) {
            let machine = new
                .name
                .clone()
                .unwrap_or_else(|| derived_name(&new.source));
            return Err(Error::TooManyVolumes {
                machine,
                limit: Attachment::LIMIT,
            });
        }
        Ok(volumes)
    }

    /// Refuses taken names before an image is built for them.
    fn check_names(&self, new: &Deploy) -> Result<()> {
        let Some(name) = &new.name else { return Ok(()) };
        let makes_root = !matches!(new.source, DeploySource::Volume(_));
        self.catalogue
            .read(|session| match taken(session, name, makes_root)? {
                None => Ok(()),
                Some((kind, name)) => Err(Error::NameTaken { kind, name }),
            })
    }

    fn find_root(&self, new: &Deploy) -> Result<Root> {
        match &new.source {
            DeploySource::Volume(reference) => {
                let (volume, holder) = self.catalogue.read(|session| {
                    let volume = session.find_volume(reference)?;
                    let holder = session.holder_of(volume.id)?;
                    Ok::<_, Error>((volume, holder))
                })?;
                if let Some(holder) = holder {
                    let machine = holder.machine_name;
                    return Err(Error::VolumeAttached {
                        volume: volume.name,
                        machine,
                    });
                }
                self.refuse_damaged(&volume)?;
                Ok(Root::Given(volume))
            }
            DeploySource::Image(name) => {
                let OpenImage { image, content } = self.open_or_build_image(name)?;
                let size = self.root_size(new, image.name.as_str(), image.size)?;
                Ok(Root::Made {
                    content,
                    size,
                    boot: image.boot,
                    image: Some(image.name),
                })
            }
            DeploySource::File(path) => {
                let fail = |source: ImageError| Error::ImageFile {
                    path: path.clone(),
                    source,
                };
                self.reporter.stage(&format!("reading {}", path.display()));
                let borrowed = self.images.borrow_file(path, None, &mut |done, total| {
                    self.reporter.progress(done, total);
                });
                self.reporter.stage_over();
                let borrowed = borrowed.map_err(fail)?;
                let size = self.root_size(new, &path.display().to_string(), borrowed.size)?;
                Ok(Root::Made {
                    content: borrowed.file,
                    size,
                    boot: None,
                    image: None,
                })
            }
        }
    }

    fn root_size(&self, new: &Deploy, image: &str, needed: Bytes) -> Result<Bytes> {
        match new.storage {
            Some(asked) if asked < needed => Err(Error::StorageTooSmall {
                image: image.to_owned(),
                needed,
                asked,
            }),
            Some(asked) => Ok(asked),
            None => Ok(self.settings.storage.value.max(needed)),
        }
    }

    /// Records the machine, its root volume where one is to be made, and who holds what.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is decided by another step of a deploy"
    )]
    fn record(
        &self,
        new: &Deploy,
        id: MachineId,
        root_id: VolumeId,
        root: &Root,
        data: &[Volume],
        vmm: VmmKind,
        memory: Bytes,
    ) -> Result<(Machine, Option<Volume>, IntentId)> {
        let now = Timestamp::now();
        // From before the record is made until it is: then the volume keeps its kernel.
        let kernels = match root {
            Root::Made {
                boot: Some(boot), ..
            } => Some(self.hold_kernels(Some(boot))?),
            Root::Made { .. } | Root::Given(_) => None,
        };
        let recorded = self.catalogue.write(|session| {
            let makes_root = matches!(root, Root::Made { .. });
            let name = match &new.name {
                Some(name) => name.clone(),
                None => free_machine_name(&derived_name(&new.source), |name| {
                    Ok(taken(session, name, makes_root)?.is_none())
                })?,
            };
            let image = match root {
                Root::Made { image, .. } => image.clone(),
                Root::Given(_) => None,
            };
            let machine = Machine {
                id,
                name,
                image,
                vcpus: new.vcpus.unwrap_or(self.settings.vcpus.value),
                memory,
                vmm,
                mac: MacAddress::for_machine(id),
                ssh_port: free_port(&session.ssh_ports()?, &new.expose)?,
                exposed: new.expose.clone(),
                autostart: false,
                owns_root: makes_root,
                state: MachineState::Stopped(None),
                lifecycle: Lifecycle::Creating,
                created: now,
                modified: now,
            };
            let made = match root {
                Root::Given(_) => None,
                Root::Made { size, boot, .. } => Some(Volume {
                    id: root_id,
                    name: machine.name.root_volume(),
                    size: *size,
                    role: Role::Root,
                    pool: self.pool_of(new).clone(),
                    // An image with a kernel is one ext4 filesystem; any other has partitions.
                    filesystem: if boot.is_some() {
                        Filesystem::Ext4
                    } else {
                        Filesystem::None
                    },
                    boot: boot.clone(),
                    lifecycle: Lifecycle::Creating,
                    created: now,
                    modified: now,
                }),
            };
            session.insert_machine(&machine)?;
            if let Some(volume) = &made {
                expect_known(session, &volume.pool)?;
                session.insert_volume(volume)?;
            }
            let ids = std::iter::once(root_id).chain(data.iter().map(|volume| volume.id));
            for (position, volume) in (0..).zip(ids) {
                session.attach(id, volume, position, Access::ReadWrite)?;
            }
            let root = made.as_ref().map(|volume| volume.id);
            let intent = session.begin(&Intent::DeployMachine { machine: id, root })?;
            Ok::<_, Error>((machine, made, intent))
        })?;
        drop(kernels);
        Ok(recorded)
    }

    fn build(
        &self,
        machine: &Machine,
        made: Option<&Volume>,
        root: &Root,
        lock: &Lock,
        intent: IntentId,
    ) -> Result<()> {
        if let (Some(volume), Root::Made { content, .. }) = (made, root) {
            self.reporter
                .stage(&format!("making root volume {}", volume.name));
            let copied = self.make_volume(volume, &Content::CopyOf(content), lock);
            self.reporter.stage_over();
            copied?;
        }
        let _ = self.make_runtime(machine.id)?;
        self.catalogue.write(|session| {
            if let Some(volume) = made {
                session.set_volume_lifecycle(volume.id, Lifecycle::Ready)?;
            }
            session.set_machine_lifecycle(machine.id, Lifecycle::Ready)?;
            Ok(session.finish(intent)?)
        })
    }
}

fn check_exposures(exposures: &[Exposure], start: StartMode) -> Result<()> {
    for (at, exposure) in exposures.iter().enumerate() {
        let repeated = exposures[..at]
            .iter()
            .any(|earlier| earlier.host == exposure.host);
        if repeated {
            let source = std::io::ErrorKind::AddrInUse.into();
            return Err(Error::PortUnavailable {
                address: exposure.host,
                source,
            });
        }
        if start != StartMode::Created {
            check_free(exposure.host)?;
        }
    }
    Ok(())
}

/// What a machine of that name would collide with.
fn taken(
    session: &Session<'_>,
    name: &MachineName,
    makes_root: bool,
) -> Result<Option<(Kind, String)>> {
    let text = name.as_str();
    let machine = |other: &Machine| other.name == *name || other.id.to_string() == text;
    if session.all_machines()?.iter().any(machine) {
        return Ok(Some((Kind::Machine, text.to_owned())));
    }
    let root = name.root_volume();
    let volume = |other: &Volume| other.name == root;
    if makes_root && session.all_volumes()?.iter().any(volume) {
        return Ok(Some((Kind::Volume, root.to_string())));
    }
    Ok(None)
}

fn derived_name(source: &DeploySource) -> MachineName {
    MachineName::derived_from(match source {
        DeploySource::Image(name) => name.as_str(),
        DeploySource::File(path) => file_stem(path),
        DeploySource::Volume(reference) => reference.as_str(),
    })
}

fn file_stem(path: &Path) -> &str {
    path.file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default()
}

/// The name itself, or with a number behind it where it is taken.
fn free_machine_name(
    base: &MachineName,
    mut is_free: impl FnMut(&MachineName) -> Result<bool>,
) -> Result<MachineName> {
    let numbered = (2_u32..).map(|number| format!("{base}-{number}"));
    for name in std::iter::once(base.to_string()).chain(numbered) {
        let Ok(name) = name.parse::<MachineName>() else {
            break;
        };
        if is_free(&name)? {
            return Ok(name);
        }
    }
    Err(Error::NameTaken {
        kind: Kind::Machine,
        name: base.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_derived_name_gets_a_number() {
        let base = derived_name(&DeploySource::File("/images/Fedora_42.qcow2".into()));
        assert_eq!(base.as_str(), "fedora-42");
        let taken = ["fedora-42", "fedora-42-2"];
        let name = free_machine_name(&base, |name| Ok(!taken.contains(&name.as_str()))).unwrap();
        assert_eq!(name.as_str(), "fedora-42-3");
    }
}
