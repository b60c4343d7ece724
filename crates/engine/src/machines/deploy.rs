//! Deploying: a new machine with its root volume.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use sistemo_catalog::{ImageCopy, Intent, IntentId, LockSet, Session};
use sistemo_images::{Error as ImageError, OpenImage};
use sistemo_model::{
    Accelerator, Access, Attachment, Boot, Bytes, Exposure, Filesystem, History, ImageName,
    Lifecycle, Lifetime, MacAddress, Machine, MachineId, MachineName, MachineState, PoolName,
    Reference, Role, Timestamp, VcpuCount, VmmChoice, VmmKind, Volume, VolumeId,
};

use super::change::check_memory;
use super::ports::{check_distinct, check_free, free_port};
use super::templates::expect_template;
use super::{MachineView, StopRequest, Storage};
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
    /// image's, whichever is larger. One that starts from a template has the template's.
    pub storage: Option<Bytes>,
    /// The pool of that root volume; without one, the configured one or the template's.
    pub pool: Option<PoolName>,
    /// Its data volumes, in the order of their devices.
    pub attach: Vec<Reference>,
    /// Guest ports to reach from the host.
    pub expose: Vec<Exposure>,
    /// What runs it; without a choice, the configured one.
    pub vmm: Option<VmmChoice>,
    /// How long it lasts.
    pub lifetime: Lifetime,
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
    /// A clone of this machine's root volume, which is made at each start and thrown away at each
    /// stop.
    Template(Reference),
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

/// Everything about a machine that is decided before anything is made.
struct Plan<'a> {
    new: &'a Deploy,
    id: MachineId,
    memory: Bytes,
    vmm: VmmKind,
    root: Root,
    data: Vec<Volume>,
}

/// What a root volume is made from, or which one it is.
enum Root {
    Made {
        id: VolumeId,
        content: File,
        size: Bytes,
        boot: Option<Boot>,
        image: Option<ImageName>,
        /// The image where it stands in the volume's pool, to be cloned.
        copy: Option<ImageCopy>,
    },
    Given(Volume),
    /// One that is made at each start.
    Anew {
        id: VolumeId,
        template: Volume,
        image: Option<ImageName>,
    },
}

impl Root {
    fn id(&self) -> VolumeId {
        match self {
            Root::Made { id, .. } | Root::Anew { id, .. } => *id,
            Root::Given(volume) => volume.id,
        }
    }

    /// What it boots with, where it is made.
    fn boot(&self) -> Option<&Boot> {
        match self {
            Root::Made { boot, .. } => boot.as_ref(),
            Root::Anew { template, .. } => template.boot.as_ref(),
            Root::Given(_) => None,
        }
    }

    /// The image that it is, or its template was, made from.
    fn image(&self) -> Option<ImageName> {
        match self {
            Root::Made { image, .. } | Root::Anew { image, .. } => image.clone(),
            Root::Given(_) => None,
        }
    }

    fn template(&self) -> Option<&Volume> {
        match self {
            Root::Anew { template, .. } => Some(template),
            Root::Made { .. } | Root::Given(_) => None,
        }
    }
}

impl Plan<'_> {
    fn makes_root(&self) -> bool {
        !matches!(self.root, Root::Given(_))
    }

    /// Its volumes in the order of their devices.
    fn volumes(&self) -> Vec<VolumeId> {
        std::iter::once(self.root.id())
            .chain(self.data.iter().map(|volume| volume.id))
            .collect()
    }

    /// What its making works on: its volumes, and what its root is cloned from.
    fn locked(&self) -> Vec<VolumeId> {
        let mut locked = self.volumes();
        if let Root::Made {
            copy: Some(copy), ..
        } = &self.root
        {
            locked.push(copy.id);
        }
        locked
    }
}

impl Engine {
    /// Makes a machine and starts it as far as asked.
    ///
    /// A failure before the guest runs leaves nothing behind; neither does a crash, once the next
    /// operation has begun, as long as its root volume was not whole yet. Once the guest has
    /// run, the machine and its volumes stay, whatever happens.
    ///
    /// # Errors
    /// Where a name is taken, a volume is held, the image is missing or larger than the root
    /// volume asked for, or the host cannot run it. Where it ends before it answers
    /// ([`Error::EndedEarly`]) it is left stopped, and where it does not answer in time
    /// ([`Error::NotAnswering`]) it runs on.
    pub fn deploy(&self, new: &Deploy) -> Result<MachineView> {
        // A VMM gives memory in whole MB.
        let memory = new
            .memory
            .unwrap_or(self.settings.memory.value)
            .round_up_to_mib();
        check_memory(memory)?;
        let vmm = match new.vmm.unwrap_or(self.settings.vmm.value) {
            VmmChoice::Auto | VmmChoice::Qemu => VmmKind::Qemu,
        };
        check_distinct(&new.expose)?;
        if new.start != StartMode::Created {
            new.expose
                .iter()
                .try_for_each(|exposure| check_free(exposure.host))?;
        }
        let has_pool = matches!(
            new.source,
            DeploySource::Volume(_) | DeploySource::Template(_)
        );
        if new.pool.is_some() || !has_pool {
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

        let id = MachineId::random();
        let plan = Plan {
            new,
            id,
            memory,
            vmm,
            root,
            data,
        };
        let held = self.hold(Some(id), &plan.locked())?;
        // Under their locks: what was read before may have grown since.
        let mut existing = plan.data.iter().chain(match &plan.root {
            Root::Given(volume) => Some(volume),
            Root::Made { .. } | Root::Anew { .. } => None,
        });
        existing.try_for_each(|volume| self.refuse_damaged(volume.id))?;
        let (machine, made, intent) = self.record(&plan)?;
        if let Err(error) = self.build(&plan, made.as_ref(), &held, intent) {
            let made = made.map(|volume| volume.id);
            let undone = self.forget_machine(id, made.as_slice(), intent);
            self.undo_after(&error, undone);
            return Err(error);
        }
        drop(held);

        let created = self.view_machine(id)?;
        if new.start == StartMode::Created {
            return Ok(created);
        }
        if let Err(error) = self.launch(id) {
            self.undo_after(&error, self.undo_deploy(&machine, made.is_some()));
            return Err(error);
        }
        // From here on the guest has run, and what it wrote is not ours to throw away.
        if new.start == StartMode::Answering {
            self.wait_until_answering(id)?;
        }
        self.view_or_gone(created)
    }

    /// Makes sure that the VMM is there; returns why guests will be slow, where they will.
    fn why_slow(&self, vmm: VmmKind) -> Result<Option<String>> {
        let probe = self.vmm(vmm).probe().map_err(Error::NoVmm)?;
        Ok((probe.accelerator == Accelerator::Tcg).then_some(probe.reason))
    }

    fn undo_deploy(&self, machine: &Machine, made_root: bool) -> Result<()> {
        let reference = Reference::from(machine.id.to_string());
        let _ = self.bring_to_stop(machine, StopRequest::Forced)?;
        if !self.is_there(machine.id)? {
            return Ok(());
        }
        let storage = if made_root {
            Storage::DestroyRoot
        } else {
            Storage::Preserve
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
            let volume = self
                .catalogue
                .read(|session| session.find_volume(reference))?;
            if !seen.insert(volume.id) {
                return Err(Error::VolumeRepeated {
                    volume: volume.name,
                });
            }
            volumes.push(self.find_free(reference)?);
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

    /// Finds a volume that no machine holds.
    fn find_free(&self, reference: &Reference) -> Result<Volume> {
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
        Ok(volume)
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
            DeploySource::Volume(reference) => Ok(Root::Given(self.find_free(reference)?)),
            DeploySource::Template(reference) => {
                let (machine, template) = self.find_template(reference)?;
                Ok(Root::Anew {
                    id: VolumeId::random(),
                    template,
                    image: machine.image,
                })
            }
            DeploySource::Image(name) => {
                let OpenImage { image, content } = self.open_or_build_image(name)?;
                let size = self.root_size(new, image.name.as_str(), image.size)?;
                let copy = self.ensure_image_copy(&image, &content, self.pool_of(new))?;
                Ok(Root::Made {
                    id: VolumeId::random(),
                    content,
                    size,
                    boot: image.boot,
                    image: Some(image.name),
                    copy,
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
                    id: VolumeId::random(),
                    content: borrowed.file,
                    size,
                    boot: None,
                    image: None,
                    copy: None,
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
    fn record(&self, plan: &Plan<'_>) -> Result<(Machine, Option<Volume>, IntentId)> {
        let Plan {
            new,
            id,
            memory,
            vmm,
            root,
            ..
        } = plan;
        let now = Timestamp::now();
        // From before the record is made until it is: then the volume keeps its kernel.
        let kernels = match root.boot() {
            Some(boot) => Some(self.hold_kernels(Some(boot))?),
            None => None,
        };
        let recorded = self.catalogue.write(|session| {
            let makes_root = plan.makes_root();
            let name = match &new.name {
                Some(name) => name.clone(),
                None => free_machine_name(&derived_name(&new.source), |name| {
                    Ok(taken(session, name, makes_root)?.is_none())
                })?,
            };
            let template = root.template();
            if let Some(template) = template {
                expect_template(session, template)?;
            }
            let machine = Machine {
                id: *id,
                name,
                image: root.image(),
                vcpus: new.vcpus.unwrap_or(self.settings.vcpus.value),
                memory: *memory,
                vmm: *vmm,
                mac: MacAddress::for_machine(*id),
                ssh_port: free_port(&session.ssh_ports()?, &new.expose)?,
                exposed: new.expose.clone(),
                autostart: false,
                owns_root: makes_root,
                template: template.map(|template| template.id),
                lifetime: new.lifetime,
                state: MachineState::Stopped(None),
                lifecycle: Lifecycle::Creating,
                created: now,
                modified: now,
            };
            let made = self.record_of_root(plan, &machine);
            session.insert_machine(&machine)?;
            if let Some(volume) = &made {
                expect_known(session, &volume.pool)?;
                session.insert_volume(volume)?;
            }
            for (position, volume) in (0..).zip(plan.volumes()) {
                session.attach(*id, volume, position, Access::ReadWrite)?;
            }
            let root = made.as_ref().map(|volume| volume.id);
            let intent = session.begin(&Intent::DeployMachine { machine: *id, root })?;
            Ok::<_, Error>((machine, made, intent))
        })?;
        drop(kernels);
        Ok(recorded)
    }

    /// The root volume of a new machine, where it does not have one that is there already.
    fn record_of_root(&self, plan: &Plan<'_>, machine: &Machine) -> Option<Volume> {
        let made = Volume {
            id: plan.root.id(),
            name: machine.name.root_volume(),
            size: Bytes::MINIMUM,
            role: Role::Root,
            pool: self.pool_of(plan.new).clone(),
            filesystem: Filesystem::None,
            boot: plan.root.boot().cloned(),
            history: History::default(),
            lifecycle: Lifecycle::Creating,
            created: machine.created,
            modified: machine.modified,
        };
        match &plan.root {
            Root::Given(_) => None,
            Root::Made { size, boot, .. } => Some(Volume {
                size: *size,
                // An image with a kernel is one ext4 filesystem; any other has partitions.
                filesystem: if boot.is_some() {
                    Filesystem::Ext4
                } else {
                    Filesystem::None
                },
                ..made
            }),
            Root::Anew { template, .. } => Some(Volume {
                size: template.size,
                pool: plan.new.pool.as_ref().unwrap_or(&template.pool).clone(),
                filesystem: template.filesystem,
                ..made
            }),
        }
    }

    fn build(
        &self,
        plan: &Plan<'_>,
        made: Option<&Volume>,
        held: &LockSet,
        intent: IntentId,
    ) -> Result<()> {
        if let (Some(volume), Root::Made { content, copy, .. }) = (made, &plan.root) {
            self.reporter
                .stage(&format!("making root volume {}", volume.name));
            let made = self.make_root(volume, content, copy.as_ref(), held);
            self.reporter.stage_over();
            made?;
        }
        let _ = self.make_runtime(plan.id)?;
        self.catalogue.write(|session| {
            if let Some(volume) = made {
                session.set_volume_lifecycle(volume.id, Lifecycle::Ready)?;
            }
            session.set_machine_lifecycle(plan.id, Lifecycle::Ready)?;
            Ok(session.finish(intent)?)
        })
    }

    /// Makes a root volume: a clone of the image where that stands in the pool, else its copy.
    fn make_root(
        &self,
        volume: &Volume,
        content: &File,
        copy: Option<&ImageCopy>,
        held: &LockSet,
    ) -> Result<()> {
        if let Some(copy) = copy
            && self.image_copy_is_whole(copy)?
        {
            return self.clone_image_copy(copy, volume);
        }
        let lock = held_lock(held, volume.id)?;
        self.make_volume(volume, &Content::CopyOf(content), lock)
    }
}

/// What a machine of that name would collide with.
pub(super) fn taken(
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
    let has_its_name =
        |other: &Volume| matches!(other.lifecycle, Lifecycle::Creating | Lifecycle::Ready);
    let volume = |other: &Volume| other.name == root && has_its_name(other);
    if makes_root && session.all_volumes()?.iter().any(volume) {
        return Ok(Some((Kind::Volume, root.to_string())));
    }
    Ok(None)
}

fn derived_name(source: &DeploySource) -> MachineName {
    MachineName::derived_from(match source {
        DeploySource::Image(name) => name.as_str(),
        DeploySource::File(path) => file_stem(path),
        DeploySource::Volume(reference) | DeploySource::Template(reference) => reference.as_str(),
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
