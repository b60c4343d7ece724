//! Volumes: create, list, resize, rename, delete.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use serde::Serialize;
use sistemo_catalog::{CatalogError, Disposable, Holding, Intent, IntentId, LockSet};
use sistemo_host::lock::Lock;
use sistemo_host::program::ProgramError;
use sistemo_model::{
    Access, Bytes, Filesystem, History, Lifecycle, MachineId, MachineName, PoolName, Reference,
    Role, Timestamp, Trashed, Volume, VolumeId, VolumeName,
};
use sistemo_pools::{Description, Flaw, Pool, PoolError};

use crate::copying::require_room;
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::holding::{IdleVolume, Unless};
use crate::machines::refuse_needed_template;
use crate::pools::expect_known;
use crate::reporter::Notice;
use crate::trash::Deleted;
use crate::{filesystems, formatting};

/// A volume to be made.
#[derive(Clone, Debug)]
pub struct NewVolume {
    /// Its virtual size.
    pub size: Bytes,
    /// Its name; without one, the first 8 digits of its ID, or more where those are taken.
    pub name: Option<VolumeName>,
    /// Its pool; without one, the default pool.
    pub pool: Option<PoolName>,
    /// What it is formatted with.
    pub filesystem: Filesystem,
}

/// How far a volume is grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grow {
    /// The block device only; the guest grows its filesystem.
    Device,
    /// The device and the clean ext4 on it.
    DeviceAndFilesystem,
}

/// What users see of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeView {
    /// Its identifier.
    pub id: VolumeId,
    /// Its name.
    pub name: VolumeName,
    /// Its virtual size in bytes.
    pub size_bytes: u64,
    /// Its virtual size in MiB, rounded down.
    pub size_mb: u64,
    /// What it takes on the host, in bytes; `None` where its file cannot be looked at.
    pub used_bytes: Option<u64>,
    /// Whether it is free, held, or broken.
    pub status: VolumeStatus,
    /// What is wrong with it, where something is.
    pub reason: Option<String>,
    /// Whether it was made to boot from.
    pub role: Role,
    /// Its pool.
    pub pool: PoolName,
    /// Its pool's driver; `None` where the pool cannot be used.
    pub driver: Option<String>,
    /// How its content is stored: `raw`.
    pub format: Option<String>,
    /// The filesystem it was made with.
    pub fs: Filesystem,
    /// Where it is on the host.
    pub path: Option<PathBuf>,
    /// The machine that holds it.
    pub machine_id: Option<MachineId>,
    /// The name of the machine that holds it.
    pub attached_to: Option<MachineName>,
    /// Its device name in that machine.
    pub device: Option<String>,
    /// The volume it is made from at each start of its machine, to be thrown away at each stop;
    /// while that does not run, there is nothing of it in its pool. `None` for one that lasts.
    pub template: Option<VolumeName>,
    /// When it was made.
    pub created: Timestamp,
    /// When its record last changed.
    pub modified: Timestamp,
}

/// Whether a volume is free, held, or broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeStatus {
    /// A running or stopped machine holds it.
    Attached,
    /// Any machine may have it.
    Available,
    /// Its file is missing or damaged, or its pool cannot be used.
    Error,
}

impl VolumeStatus {
    /// The word users see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            VolumeStatus::Attached => "attached",
            VolumeStatus::Available => "available",
            VolumeStatus::Error => "error",
        }
    }
}

/// What a new volume begins with.
pub(crate) enum Content<'a> {
    /// The filesystem its record names, empty.
    Formatted,
    /// The content of a raw file, which is not larger than the volume.
    CopyOf(&'a File),
}

impl Engine {
    /// Makes a volume. A crash in the middle leaves nothing once the next operation has begun.
    ///
    /// # Errors
    /// Where the name is taken, the size does not hold the filesystem, or the pool has no room.
    pub fn create_volume(&self, new: NewVolume) -> Result<VolumeView> {
        let minimum = new.filesystem.minimum_size();
        if new.size < minimum {
            return Err(Error::TooSmallForFilesystem {
                filesystem: new.filesystem,
                minimum,
                asked: new.size,
            });
        }
        let asked = new.pool;
        let pool = self.pool_for(asked.as_ref())?;
        let id = VolumeId::random();
        let now = Timestamp::now();
        let held = self.hold_volumes(&[id])?;
        let volume = Volume {
            id,
            // Where none was given, the first of those made up from the ID.
            name: new.name.clone().map_or_else(|| made_up_name(id, 8), Ok)?,
            size: new.size,
            role: Role::Data,
            pool,
            filesystem: new.filesystem,
            boot: None,
            history: History::default(),
            lifecycle: Lifecycle::Creating,
            created: now,
            modified: now,
        };
        let (volume, intent) = self.record_new(volume, new.name.is_none())?;
        let lock = held_lock(&held, id)?;
        let made = self.make_volume(&volume, &Content::Formatted, lock);
        self.finish_new(&volume, intent, made)?;
        self.volume(&Reference::from(id.to_string()))
    }

    /// Records a volume that is about to be made; one whose name was made up gets another where
    /// that is taken. Its lock is held.
    pub(crate) fn record_new(
        &self,
        mut volume: Volume,
        name_is_made_up: bool,
    ) -> Result<(Volume, IntentId)> {
        let id = volume.id;
        self.catalogue.write(|session| {
            expect_known(session, &volume.pool)?;
            loop {
                let digits = volume.name.as_str().len();
                match session.insert_volume(&volume) {
                    Err(CatalogError::NameTaken { .. }) if name_is_made_up => {
                        volume.name = made_up_name(id, digits + 1)?;
                    }
                    inserted => break inserted?,
                }
            }
            let intent = session.begin(&Intent::CreateVolume { volume: id })?;
            Ok((volume, intent))
        })
    }

    /// Records that a volume was made; where it was not, what there is of it goes.
    pub(crate) fn finish_new<T>(
        &self,
        volume: &Volume,
        intent: IntentId,
        made: Result<T>,
    ) -> Result<T> {
        let recorded = made.and_then(|made| {
            self.catalogue.write(|session| {
                session.set_volume_lifecycle(volume.id, Lifecycle::Ready)?;
                Ok::<_, Error>(session.finish(intent)?)
            })?;
            Ok(made)
        });
        if let Err(error) = &recorded {
            self.undo_after(error, self.forget_volume(volume, intent));
        }
        recorded
    }

    /// Makes a volume's file and its content. A failure leaves nothing in the pool.
    pub(crate) fn make_volume(
        &self,
        volume: &Volume,
        content: &Content<'_>,
        lock: &Lock,
    ) -> Result<()> {
        let pool = self.pool(&volume.pool)?;
        let fail = |source| pool_error(volume, "create", source);
        self.with_room(&volume.pool, || {
            let mut draft = pool.draft(&description(volume)).map_err(fail)?;
            match content {
                Content::Formatted => {
                    formatting::format(volume, pool.as_ref(), draft.as_mut(), lock)?;
                }
                Content::CopyOf(source) => {
                    draft
                        .fill_from(source, &mut |done, total| {
                            self.reporter.progress(done, total);
                        })
                        .map_err(fail)?;
                }
            }
            draft.commit().map_err(fail)
        })
    }

    /// Removes what there is of a volume whose making failed or was cut short, and its record.
    pub(crate) fn forget_volume(&self, volume: &Volume, intent: IntentId) -> Result<()> {
        let _ = self
            .pool(&volume.pool)?
            .remove(volume.id)
            .map_err(|source| pool_error(volume, "remove", source))?;
        self.catalogue.write(|session| {
            session.delete_volume(volume.id)?;
            Ok(session.finish(intent)?)
        })
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// Where the catalogue cannot be read. A volume that cannot be looked at is listed as broken.
    pub fn volumes(&self) -> Result<Vec<VolumeView>> {
        let (volumes, holdings, busy, disposables) = self.catalogue.read(|session| {
            let busy: HashSet<VolumeId> = session
                .intents()?
                .iter()
                .flat_map(|(_, intent)| intent.volumes())
                .collect();
            let disposables = session.disposables()?;
            Ok::<_, Error>((
                session.volumes()?,
                session.all_attachments()?,
                busy,
                disposables,
            ))
        })?;
        let holders: HashMap<_, _> = holdings
            .iter()
            .map(|holding| (holding.attachment.volume, holding))
            .collect();
        let mut views = Vec::with_capacity(volumes.len());
        for volume in &volumes {
            let holder = holders.get(&volume.id).copied();
            let busy = busy.contains(&volume.id);
            let view = self.view_volume(volume, holder, busy, disposables.get(&volume.id));
            if view.status != VolumeStatus::Error {
                views.push(view);
                continue;
            }
            // Another command may have changed it since the catalogue was read.
            match self.volume(&Reference::from(volume.id.to_string())) {
                Err(Error::NotFound { .. }) => {}
                again => views.push(again?),
            }
        }
        Ok(views)
    }

    /// One volume.
    ///
    /// # Errors
    /// Where there is none, or more than one, of that reference.
    pub fn volume(&self, reference: &Reference) -> Result<VolumeView> {
        let look = || {
            let (volume, holder, busy, disposable) = self.catalogue.read(|session| {
                let volume = session.find_volume(reference)?;
                let holder = session.holder_of(volume.id)?;
                let busy = session
                    .intents()?
                    .iter()
                    .any(|(_, i)| i.volumes().contains(&volume.id));
                let disposable = session.disposable(volume.id)?;
                Ok::<_, Error>((volume, holder, busy, disposable))
            })?;
            Ok(self.view_volume(&volume, holder.as_ref(), busy, disposable.as_ref()))
        };
        let view: VolumeView = look()?;
        // Its record and its file are not read at the same instant: what differs is looked at again.
        if view.status == VolumeStatus::Error {
            look()
        } else {
            Ok(view)
        }
    }

    fn view_volume(
        &self,
        volume: &Volume,
        holder: Option<&Holding>,
        busy: bool,
        disposable: Option<&Disposable>,
    ) -> VolumeView {
        let pool = self.pool(&volume.pool);
        let there = disposable.is_none_or(|disposable| disposable.active);
        let facts = pool.as_ref().map_err(shown_with_causes).and_then(|pool| {
            let facts = there.then(|| pool.facts(volume.id)).transpose();
            facts.map_err(|error| shown_with_causes(&error))
        });
        let reason = match &facts {
            Err(reason) => Some(reason.clone()),
            // While an operation on it is under way, its record and its file may differ.
            Ok(Some(facts)) if facts.size != volume.size && !busy => Some(format!(
                "its file has {} bytes, not the recorded {}",
                facts.size.get(),
                volume.size.get()
            )),
            Ok(_) => None,
        };
        let status = match (&reason, holder) {
            (Some(_), _) => VolumeStatus::Error,
            (None, Some(_)) => VolumeStatus::Attached,
            (None, None) => VolumeStatus::Available,
        };
        // What is made anew at each start takes nothing meanwhile.
        let nothing = (facts.is_ok() && !there).then_some(0);
        let facts = facts.ok().flatten();
        VolumeView {
            id: volume.id,
            name: volume.name.clone(),
            size_bytes: volume.size.get(),
            size_mb: volume.size.mib(),
            used_bytes: facts.as_ref().map(|facts| facts.used.get()).or(nothing),
            status,
            reason,
            role: volume.role,
            pool: volume.pool.clone(),
            driver: pool.ok().map(|pool| pool.driver().to_owned()),
            format: facts.as_ref().map(|facts| facts.format.to_string()),
            fs: volume.filesystem,
            path: facts.map(|facts| facts.path),
            machine_id: holder.map(|holder| holder.attachment.machine),
            attached_to: holder.map(|holder| holder.machine_name.clone()),
            device: holder.map(|holder| holder.attachment.device()),
            template: disposable.map(|disposable| disposable.template_name.clone()),
            created: volume.created,
            modified: volume.modified,
        }
    }

    /// Grows a volume; its machine, if it has one, must be stopped. With
    /// [`Grow::DeviceAndFilesystem`] a volume that has the size already gets only its filesystem
    /// grown. After a crash in the middle the next operation finishes growing the device.
    ///
    /// # Errors
    /// Where the volume would not become larger, its machine is active, or the filesystem is to
    /// be grown too and is not a clean ext4; then nothing has changed.
    pub fn resize_volume(
        &self,
        reference: &Reference,
        to: Bytes,
        what: Grow,
    ) -> Result<VolumeView> {
        let held = self.hold_idle_volume(reference, "resize")?;
        let volume = &held.volume;
        let grows = to > volume.size;
        let only_its_filesystem = to == volume.size && what == Grow::DeviceAndFilesystem;
        if !grows && !only_its_filesystem {
            let volume = volume.name.clone();
            return Err(Error::NotLarger {
                volume,
                size: held.volume.size,
                asked: to,
            });
        }
        let pool = self.pool(&volume.pool)?;
        let fail = |source| pool_error(volume, "grow", source);
        self.refuse_damaged(volume.id)?;
        if what == Grow::DeviceAndFilesystem {
            self.with_room(&volume.pool, || check_growable(volume, pool.as_ref(), to))?;
            self.with_ext4(&held, "check", filesystems::check)?;
        }
        if grows {
            let intent = Intent::GrowVolume {
                volume: volume.id,
                from: volume.size,
                to,
            };
            let intent = self.catalogue.write(|session| session.begin(&intent))?;
            let outcome = self.with_room(&volume.pool, || pool.grow(volume.id, to).map_err(fail));
            // Settled whichever way it went: the file tells whether it has grown.
            let settled = self.settle_growth(volume.id, volume.size, to, intent);
            if let Err(error) = outcome {
                self.undo_after(&error, settled);
                return Err(error);
            }
            settled?;
        }
        if what == Grow::DeviceAndFilesystem {
            self.with_ext4(&held, "grow", filesystems::grow)?;
            self.note_changed(volume.id)?;
        }
        self.volume(&Reference::from(volume.id.to_string()))
    }

    /// Opens a volume for a program that works on the ext4 on it.
    fn with_ext4(
        &self,
        held: &IdleVolume,
        action: &'static str,
        work: fn(&Path, &[BorrowedFd<'_>]) -> Result<(), ProgramError>,
    ) -> Result<()> {
        let (volume, lock) = (&held.volume, held.lock()?);
        let outcome = self.with_raw_access(volume, Access::ReadWrite, lock, |raw| {
            let inherited: Vec<_> = raw.held().into_iter().chain([lock.as_fd()]).collect();
            work(raw.path(), &inherited)
        })?;
        outcome.map_err(|source| Error::FilesystemProgram {
            action,
            filesystem: Filesystem::Ext4,
            volume: volume.name.clone(),
            source,
        })
    }

    /// Finishes a growth that was cut short, or takes note that it never happened.
    pub(crate) fn settle_growth(
        &self,
        id: VolumeId,
        from: Bytes,
        to: Bytes,
        intent: IntentId,
    ) -> Result<()> {
        let mut volume = self.catalogue.read(|session| session.volume(id))?;
        let pool = self.pool(&volume.pool)?;
        let fail = |source| pool_error(&volume, "grow", source);
        let real = pool.facts(id).map_err(fail)?.size;
        let size = if real > from {
            // Also where the file has grown already: its description may not say so yet.
            let size = real.max(to);
            let _ = pool.grow(id, size).map_err(fail)?;
            size
        } else {
            from
        };
        let grown = size != volume.size;
        volume.size = size;
        if grown {
            volume.history.changed = Some(Timestamp::now());
            let _ = pool
                .describe(&description(&volume))
                .map_err(|source| pool_error(&volume, "describe", source))?;
        }
        self.catalogue.write(|session| {
            session.set_volume_size(id, size)?;
            session.set_volume_history(id, &volume.history)?;
            Ok(session.finish(intent)?)
        })
    }

    /// Gives a volume another name; its machine, if it has one, must be stopped.
    ///
    /// # Errors
    /// Where the name is taken, the volume's machine is active, or its pool cannot be used.
    pub fn rename_volume(&self, reference: &Reference, name: VolumeName) -> Result<VolumeView> {
        let held = self.hold_idle_volume(reference, "rename")?;
        let id = held.volume.id;
        self.require_pool(&held.volume.pool)?;
        let intent = self.catalogue.write(|session| {
            session.rename_volume(id, &name)?;
            Ok::<_, Error>(session.begin(&Intent::DescribeVolume { volume: id })?)
        })?;
        if let Err(error) = self.settle_description(id, intent) {
            let undone = self.catalogue.write(|session| {
                session.rename_volume(id, &held.volume.name)?;
                Ok(session.finish(intent)?)
            });
            self.undo_after(&error, undone);
            return Err(error);
        }
        if let Some(machine) = &held.machine {
            let machine = machine.clone();
            self.reporter.notice(&Notice::DeviceNameChanged {
                volume: name,
                machine,
            });
        }
        self.volume(&Reference::from(id.to_string()))
    }

    /// Brings the description beside a volume in line with its record.
    pub(crate) fn settle_description(&self, id: VolumeId, intent: IntentId) -> Result<()> {
        let volume = self.catalogue.read(|session| session.volume(id))?;
        let _ = self
            .pool(&volume.pool)?
            .describe(&description(&volume))
            .map_err(|source| pool_error(&volume, "describe", source))?;
        Ok(self.catalogue.write(|session| session.finish(intent))?)
    }

    /// The volume, where a delete of it would be accepted.
    ///
    /// # Errors
    /// Where it does not exist or is attached, machines start from it, it is made anew at each
    /// start, a snapshot of it is pinned, or its pool cannot be used.
    pub fn check_volume_deletable(&self, reference: &Reference) -> Result<VolumeView> {
        let view = self.volume(reference)?;
        let found = Reference::from(view.id.to_string());
        let volume = self.catalogue.read(|session| session.find_volume(&found))?;
        // First what stays in the way however it is detached.
        self.refuse_disposable(&volume, Unless::Never)?;
        self.catalogue
            .read(|session| refuse_needed_template(session, &volume))?;
        if let Some(machine) = view.attached_to {
            return Err(Error::VolumeAttached {
                volume: view.name,
                machine,
            });
        }
        self.require_pool(&view.pool)?;
        self.require_no_pins(&volume)?;
        Ok(view)
    }

    /// Deletes a volume, with its snapshots as one unit: it goes to the trash, where its pool
    /// keeps one, and is destroyed elsewhere. After a crash in the middle it is there, or the next
    /// operation finishes deleting it.
    ///
    /// # Errors
    /// As [`Engine::check_volume_deletable`]; then nothing has changed.
    pub fn delete_volume(&self, reference: &Reference) -> Result<Deleted> {
        let view = self.check_volume_deletable(reference)?;
        let trashed = self.trashed_now(&view.pool)?;
        self.delete(&view, trashed)
    }

    /// Deletes a volume and all it holds for good; otherwise as [`Engine::delete_volume`].
    ///
    /// # Errors
    /// As [`Engine::check_volume_deletable`]; then nothing has changed.
    pub fn destroy_volume(&self, reference: &Reference) -> Result<Deleted> {
        let view = self.check_volume_deletable(reference)?;
        self.delete(&view, None)
    }

    fn delete(&self, view: &VolumeView, trashed: Option<Trashed>) -> Result<Deleted> {
        self.use_reserve_where_full();
        let held = self.hold_volumes(&[view.id])?;
        // A snapshot may have been pinned before we had its lock.
        let view = self.check_volume_deletable(&Reference::from(view.id.to_string()))?;
        let (volume, intent) = self.catalogue.write(|session| {
            // It may have gone, or been attached, before we had its lock.
            let volume = session.find_volume(&Reference::from(view.id.to_string()))?;
            if let Some(holder) = session.holder_of(volume.id)? {
                return Err(Error::VolumeAttached {
                    volume: volume.name,
                    machine: holder.machine_name,
                });
            }
            refuse_needed_template(session, &volume)?;
            let intent = if let Some(trashed) = trashed {
                session.trash_volume(volume.id, trashed)?;
                Intent::DescribeVolume { volume: volume.id }
            } else {
                session.set_volume_lifecycle(volume.id, Lifecycle::Deleting)?;
                Intent::DeleteVolume { volume: volume.id }
            };
            let intent = session.begin(&intent)?;
            Ok((volume, intent))
        })?;
        if trashed.is_none() {
            self.forget_volume(&volume, intent)?;
        } else {
            self.settle_trashed(volume.id, intent);
        }
        drop(held);
        let restorable_until = self.restorable_now(view.id, trashed)?;
        Ok(Deleted {
            volume: view,
            restorable_until,
        })
    }

    /// Refuses to work on a volume whose file is missing or damaged. The caller has its lock.
    pub(crate) fn refuse_damaged(&self, id: VolumeId) -> Result<()> {
        let volume = self.catalogue.read(|session| session.volume(id))?;
        self.refuse_disposable(&volume, Unless::Active)?;
        let flaws = self
            .pool(&volume.pool)?
            .verify(id, volume.size)
            .map_err(|source| pool_error(&volume, "verify", source))?;
        if flaws.is_empty() {
            return Ok(());
        }
        let reason = flaws
            .iter()
            .map(Flaw::to_string)
            .collect::<Vec<_>>()
            .join("; ");
        Err(Error::VolumeDamaged {
            volume: volume.name,
            reason,
        })
    }

    /// Makes sure that a pool can be worked with now. What is removed from a pool that cannot
    /// would be gone for the user, and destroyed only when the pool is back.
    pub(crate) fn require_pool(&self, name: &PoolName) -> Result<()> {
        self.pool(name)?.probe().map_err(|source| {
            let action = "be worked with".to_owned();
            Error::Pool {
                pool: name.clone(),
                action,
                source,
            }
        })
    }
}

/// Makes sure that the filesystem on a volume can be grown from outside.
fn check_growable(volume: &Volume, pool: &dyn Pool, to: Bytes) -> Result<()> {
    let growth = to.get().saturating_sub(volume.size.get());
    // Out of room in its midst, resize2fs would leave a filesystem that needs mending.
    let action = || format!("grow the filesystem of volume {}", volume.name);
    require_room(pool, filesystems::room_to_grow(growth), action)?;
    let fail = |source| pool_error(volume, "read", source);
    let content = pool.content(volume.id, Access::ReadOnly).map_err(fail)?;
    let mut superblock = [0; filesystems::SUPERBLOCK_LENGTH];
    content
        .read_at(&mut superblock, filesystems::SUPERBLOCK)
        .map_err(fail)?;
    match filesystems::obstacle_to_growing(&superblock) {
        None => Ok(()),
        Some(reason) => Err(Error::FilesystemNotGrowable {
            volume: volume.name.clone(),
            reason,
        }),
    }
}

/// What is written beside a volume in its pool.
pub(crate) fn description(volume: &Volume) -> Description {
    Description {
        id: volume.id,
        name: volume.name.clone(),
        size: volume.size,
        filesystem: volume.filesystem,
        role: volume.role,
        boot: volume.boot.clone(),
        created: volume.created,
        history: Box::new(volume.history.clone()),
        unfinished: false,
        moving_from: None,
    }
}

pub(crate) fn pool_error(volume: &Volume, action: &str, source: PoolError) -> Error {
    let action = format!("{action} volume {}", volume.name);
    Error::Pool {
        pool: volume.pool.clone(),
        action,
        source,
    }
}

/// The lock of a volume that was locked with the set.
pub(crate) fn held_lock(locks: &LockSet, id: VolumeId) -> Result<&Lock> {
    locks.volume(id).ok_or_else(|| Error::NotFound {
        kind: Kind::Volume,
        reference: id.to_string(),
    })
}

/// The first digits of an ID as a name; an error where it has no more of them.
fn made_up_name(id: VolumeId, digits: usize) -> Result<VolumeName> {
    let all = id.simple();
    let taken = || Error::NameTaken {
        kind: Kind::Volume,
        name: all.clone(),
    };
    all.get(..digits)
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(taken)
}

pub(crate) fn shown_with_causes(error: &(impl std::error::Error + 'static)) -> String {
    crate::error::causes(error).join(": ")
}
