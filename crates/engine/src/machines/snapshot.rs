//! Keeping all volumes of a machine as they are at one point in time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use sistemo_catalog::{Intent, IntentId, LockSet, Lockable};
use sistemo_host::Changed;
use sistemo_model::{
    Access, Machine, MachineName, MachineState, PoolName, Reference, SnapshotName, Timestamp,
    Volume, VolumeId, VolumeName,
};
use sistemo_pools::{Cost, LiveDisk, Pool, PoolError, PreparedSnapshot, Way};
use sistemo_vmm::Control;

use super::live::ControlledDisk;
use super::live_copies::{Copying, ToCopy};
use super::require_ready;
use crate::copying::data_bytes;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::reporter::Notice;
use crate::snapshots::{made_up_name, power_of, snapshot_error};
use crate::volumes::pool_error;

/// All volumes of a machine, kept at one point in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MachineSnapshot {
    /// The machine.
    pub machine: MachineName,
    /// The name of the snapshot that each of its volumes has now.
    pub name: SnapshotName,
    /// When it was taken.
    pub created: Timestamp,
    /// The volumes in the order of their devices, the root first.
    pub volumes: Vec<KeptVolume>,
    /// How long the machine's processors were held, in milliseconds, rounded up; 0 where they did
    /// not run.
    pub pause_ms: u64,
    /// Whether the guest's filesystems were frozen, and so are clean. Otherwise they are what a
    /// power cut leaves.
    pub frozen: bool,
}

/// A volume of a machine that was kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeptVolume {
    /// The volume.
    pub name: VolumeName,
    /// How its data was kept.
    pub way: Way,
}

/// A volume that is to be kept.
struct ToKeep {
    volume: Volume,
    position: u8,
    pool: Arc<dyn Pool>,
    how: How,
}

/// How a volume of a running machine is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// Within the pause.
    Instantly,
    /// By the VMM, which begins within the pause and copies while the machine runs on.
    Copied,
    /// By the driver, which copies while the machine is held.
    Held,
}

/// What each volume is to get.
struct Wanted<'a> {
    name: &'a SnapshotName,
    created: Timestamp,
}

impl ToKeep {
    fn take(
        &self,
        wanted: &Wanted<'_>,
        disk: Option<&mut dyn LiveDisk>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Way> {
        let (volume, name) = (&self.volume, wanted.name);
        power_of(self.pool.as_ref())?
            .take_snapshot(volume.id, name, wanted.created, disk, progress)
            .map_err(|source| snapshot_error(volume, name, "keep a snapshot of", source))
    }
}

impl Engine {
    /// Keeps all volumes of a machine as they are at one point in time, under one name; without a
    /// name, under one made from the time. A machine that runs is paused for that instant, with
    /// its filesystems frozen where an agent in its guest can; one that is paused stays so.
    ///
    /// Volumes whose pool has no instant snapshots are copied: by the VMM while the machine runs
    /// on, or, where their driver cannot have that, while it is held. That is told before.
    ///
    /// A root that is made anew at each start of the machine is left out, which is told: its snapshots
    /// would go with the stop. Where one volume cannot be kept, none is. A crash in the middle leaves none: the machine's
    /// monitor or the next operation lets the machine run on, and removes what there is.
    ///
    /// # Errors
    /// Where a volume has a snapshot of that name, its pool keeps none or has no room, or the
    /// machine is on its way to a start or stop; [`Error::NothingToKeep`] where all that it has is
    /// such a root.
    pub fn snapshot_machine(
        &self,
        reference: &Reference,
        name: Option<SnapshotName>,
    ) -> Result<MachineSnapshot> {
        let id = self.find_machine(reference)?.id;
        let held = self.hold(Some(id), &[])?;
        let machine = self.settle(id)?;
        require_ready(&machine)?;
        if let MachineState::Starting | MachineState::Stopping(_) = machine.state {
            let Machine { name, state, .. } = machine;
            let action = "keep its volumes".to_owned();
            return Err(Error::MachineActive {
                machine: name,
                state,
                action,
            });
        }
        let mut held = self.hold_volumes_of(&machine, held)?;
        let volumes = self.to_keep(&machine)?;
        if let Some(template) = machine.template {
            self.tell_what_is_left_out(&machine, template, &volumes)?;
        }
        let created = Timestamp::now();
        let name = self.common_name(&volumes, name, created)?;
        for kept in &volumes {
            if kept.volume.history.marks.contains_key(&name) {
                // Of one by that name that is gone.
                self.forget_stale_marks(&kept.volume)?;
            }
        }
        for (kept, bytes) in room_to_keep(&volumes)? {
            let action = || format!("keep the volumes of machine {}", machine.name);
            self.ensure_room(kept.pool.as_ref(), bytes, action)?;
        }
        if machine.state.is_active() {
            self.tell_what_takes_time(&volumes, &machine);
        }
        let wanted = Wanted {
            name: &name,
            created,
        };
        let ids: Vec<VolumeId> = volumes.iter().map(|kept| kept.volume.id).collect();
        let intent = Intent::TakeSnapshots {
            volumes: ids.clone(),
            snapshot: name.clone(),
            created,
        };
        let intent = self.catalogue.write(|session| session.begin(&intent))?;
        self.reporter.stage(&format!(
            "keeping the volumes of {} as {name}",
            machine.name
        ));
        let kept = if machine.state.is_active() {
            self.keep_live(&machine, &volumes, &wanted, &mut held)
        } else {
            self.keep_stopped(&volumes, &wanted)
        };
        self.reporter.stage_over();
        let (ways, pause, frozen) = match kept {
            Ok(kept) => kept,
            Err(error) => {
                let undone = self.withdraw_snapshots(&ids, &name, created, intent);
                self.undo_after(&error, undone);
                return Err(error);
            }
        };
        self.catalogue.write(|session| session.finish(intent))?;
        let volumes = volumes.into_iter().zip(ways);
        Ok(MachineSnapshot {
            machine: machine.name,
            created,
            volumes: volumes
                .map(|(kept, way)| KeptVolume {
                    name: kept.volume.name,
                    way,
                })
                .collect(),
            pause_ms: u64::try_from(pause.as_micros().div_ceil(1000)).unwrap_or(u64::MAX),
            frozen,
            name,
        })
    }

    fn to_keep(&self, machine: &Machine) -> Result<Vec<ToKeep>> {
        let attached = self
            .catalogue
            .read(|session| session.attachments_of(machine.id))?;
        let mut volumes = Vec::new();
        // A snapshot of a root that is made anew at each start would go with the stop.
        let anew = usize::from(machine.template.is_some());
        for attachment in attached.into_iter().skip(anew) {
            let volume = self
                .catalogue
                .read(|session| session.volume(attachment.volume))?;
            let pool = self.pool(&volume.pool)?;
            let power = power_of(pool.as_ref())?;
            let how = match (power.snapshot_cost(), power.live_copies()) {
                (Cost::Instant, _) => How::Instantly,
                (Cost::Copy, Some(_)) => How::Copied,
                (Cost::Copy, None) => How::Held,
            };
            volumes.push(ToKeep {
                volume,
                position: attachment.position,
                pool,
                how,
            });
        }
        Ok(volumes)
    }

    /// Says that a root which is made anew at each start is not kept; refuses where that is all.
    fn tell_what_is_left_out(
        &self,
        machine: &Machine,
        template: VolumeId,
        volumes: &[ToKeep],
    ) -> Result<()> {
        let template = self.catalogue.read(|session| session.volume(template))?;
        let (machine, template) = (machine.name.clone(), template.name);
        if volumes.is_empty() {
            return Err(Error::NothingToKeep { machine, template });
        }
        self.reporter
            .notice(&Notice::RootLeftOut { machine, template });
        Ok(())
    }

    /// The name that all snapshots get; it is free on every volume.
    fn common_name(
        &self,
        volumes: &[ToKeep],
        name: Option<SnapshotName>,
        now: Timestamp,
    ) -> Result<SnapshotName> {
        let mut there = Vec::new();
        for kept in volumes {
            let snapshots = self.snapshots_in(&kept.volume, power_of(kept.pool.as_ref())?)?;
            if let Some(name) = &name
                && snapshots.iter().any(|snapshot| snapshot.name == *name)
            {
                return Err(Error::SnapshotTaken {
                    volume: kept.volume.name.clone(),
                    snapshot: name.clone(),
                });
            }
            there.extend(snapshots);
        }
        name.map_or_else(|| made_up_name(&there, now), Ok)
    }

    fn tell_what_takes_time(&self, volumes: &[ToKeep], machine: &Machine) {
        for kept in volumes {
            let (volume, machine) = (kept.volume.name.clone(), machine.name.clone());
            match kept.how {
                How::Instantly => {}
                How::Copied => self.reporter.notice(&Notice::CopiedMeanwhile {
                    machine,
                    volume,
                    pool: kept.volume.pool.clone(),
                }),
                How::Held => self
                    .reporter
                    .notice(&Notice::HeldForCopy { machine, volume }),
            }
        }
    }

    fn keep_stopped(
        &self,
        volumes: &[ToKeep],
        wanted: &Wanted<'_>,
    ) -> Result<(Vec<Way>, Duration, bool)> {
        let mut progress = |done, total| self.reporter.progress(done, total);
        let ways = volumes
            .iter()
            .map(|kept| {
                let pool = &kept.volume.pool;
                self.with_room(pool, || kept.take(wanted, None, &mut progress))
            })
            .collect::<Result<_>>()?;
        Ok((ways, Duration::ZERO, false))
    }

    fn keep_live(
        &self,
        machine: &Machine,
        volumes: &[ToKeep],
        wanted: &Wanted<'_>,
        held: &mut LockSet,
    ) -> Result<(Vec<Way>, Duration, bool)> {
        let copied = volumes.iter().filter(|kept| kept.how == How::Copied);
        let copied: Vec<ToCopy<'_>> = copied.filter_map(to_copy).collect();
        let copying = self.prepare_copies(machine, &copied, wanted.name, wanted.created)?;
        let mut prepared = match self.prepare_switches(machine, volumes, wanted) {
            Ok(prepared) => prepared,
            Err(error) => {
                self.abandon_copies(machine, &copying);
                return Err(error);
            }
        };
        let positions: Vec<u8> = volumes.iter().map(|kept| kept.position).collect();
        let still = self.while_still(machine, &positions, |control| {
            let (prepared, copying) = (&mut prepared, &copying);
            self.keep_held(machine, volumes, wanted, prepared, copying, control)
        });
        let still = match still {
            Ok(still) => still,
            Err(error) => {
                self.abandon_copies(machine, &copying);
                return Err(error);
            }
        };
        // Nothing more is wanted of the machine: whoever wants to stop it may.
        held.release_machine(machine.id);
        for (kept, prepared) in volumes.iter().zip(prepared) {
            if let Some(prepared) = prepared
                && let Err(source) = prepared.commit()
            {
                self.abandon_copies(machine, &copying);
                let (volume, name) = (&kept.volume, wanted.name);
                return Err(snapshot_error(volume, name, "keep a snapshot of", source));
            }
        }
        self.complete_copies(machine, copying)?;
        Ok((still.done, still.pause, still.frozen))
    }

    /// Does beforehand what can be, for those volumes whose pool can have that.
    fn prepare_switches<'a>(
        &self,
        machine: &Machine,
        volumes: &'a [ToKeep],
        wanted: &Wanted<'_>,
    ) -> Result<Vec<Option<Box<dyn PreparedSnapshot + 'a>>>> {
        let mut control = self.connect(machine, "look at")?;
        let shared: Mutex<&mut dyn Control> = Mutex::new(control.as_mut());
        let mut progress = |done, total| self.reporter.progress(done, total);
        let prepare = |kept: &'a ToKeep| {
            let Some(power) = power_of(kept.pool.as_ref())?.live_switches() else {
                return Ok(None);
            };
            let (volume, name) = (&kept.volume, wanted.name);
            let mut disk = ControlledDisk::shared(&shared, kept.position);
            power
                .prepare_snapshot(volume.id, name, wanted.created, &mut disk, &mut progress)
                .map(Some)
                .map_err(|source| snapshot_error(volume, name, "keep a snapshot of", source))
        };
        volumes.iter().map(prepare).collect()
    }

    /// Keeps the volumes of a machine whose processors are held.
    fn keep_held(
        &self,
        machine: &Machine,
        volumes: &[ToKeep],
        wanted: &Wanted<'_>,
        prepared: &mut [Option<Box<dyn PreparedSnapshot + '_>>],
        copying: &Copying<'_>,
        control: &mut dyn Control,
    ) -> Result<Vec<Way>> {
        let shared = Mutex::new(control);
        for (kept, prepared) in volumes.iter().zip(prepared.iter_mut()) {
            let Some(prepared) = prepared else { continue };
            let mut disk = ControlledDisk::shared(&shared, kept.position);
            prepared.take(&mut disk).map_err(|source| {
                snapshot_error(&kept.volume, wanted.name, "keep a snapshot of", source)
            })?;
        }
        let at_once = |(kept, prepared): &(&ToKeep, &mut Option<_>)| {
            kept.how == How::Instantly && prepared.is_none()
        };
        let instant = volumes.iter().zip(prepared.iter_mut()).filter(at_once);
        // Side by side: each waits for the host's disk more than for anything else.
        let outcomes: Vec<Result<Way>> = std::thread::scope(|scope| {
            let begun: Vec<_> = instant
                .map(|(kept, _)| {
                    let mut disk = ControlledDisk::shared(&shared, kept.position);
                    scope.spawn(move || kept.take(wanted, Some(&mut disk), &mut |_, _| {}))
                })
                .collect();
            begun
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        });
        let mut instant = outcomes
            .into_iter()
            .collect::<Result<Vec<Way>>>()?
            .into_iter();
        let control = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        copying.start(control).map_err(|source| Error::Vmm {
            action: "copy the volumes of",
            machine: machine.name.clone(),
            source,
        })?;
        let mut progress = |done, total| self.reporter.progress(done, total);
        volumes
            .iter()
            .zip(prepared)
            .map(|(kept, prepared)| match kept.how {
                How::Instantly if prepared.is_some() => Ok(Way::Overlay),
                How::Instantly => Ok(instant.next().unwrap_or(Way::Native)),
                How::Copied => Ok(Way::Copied),
                How::Held => kept.take(wanted, None, &mut progress),
            })
            .collect()
    }

    /// Removes what there is of snapshots that were to be taken together, and ends their copies.
    /// The volumes' locks are held. A volume that is gone has none.
    pub(crate) fn withdraw_snapshots(
        &self,
        volumes: &[VolumeId],
        name: &SnapshotName,
        created: Timestamp,
        intent: IntentId,
    ) -> Result<()> {
        let mut outcome = Ok(());
        for id in volumes {
            if let Err(error) = self.withdraw_snapshot(*id, name, created) {
                outcome = Err(error);
            }
        }
        outcome?;
        Ok(self.catalogue.write(|session| session.finish(intent))?)
    }

    /// As [`Engine::withdraw_snapshots`], of an operation that was cut short; tells what was done.
    pub(crate) fn withdraw_unfinished(
        &self,
        volumes: &[VolumeId],
        name: &SnapshotName,
        created: Timestamp,
        intent: IntentId,
    ) -> Result<String> {
        self.withdraw_snapshots(volumes, name, created, intent)?;
        Ok(format!("removed snapshot {name}, which was never finished"))
    }

    fn withdraw_snapshot(
        &self,
        id: VolumeId,
        name: &SnapshotName,
        created: Timestamp,
    ) -> Result<()> {
        let found = self.catalogue.read(|session| {
            let Ok(volume) = session.find_volume(&Reference::from(id.to_string())) else {
                return Ok(None);
            };
            Ok::<_, Error>(Some((volume, session.holder_of(id)?)))
        })?;
        let Some((volume, holder)) = found else {
            return Ok(());
        };
        if let Some(holder) = holder
            && self
                .locks
                .is_held(&Lockable::Run(holder.attachment.machine))?
        {
            let id = holder.attachment.machine;
            let machine = self.catalogue.read(|session| session.machine(id))?;
            match self.end_copies(&machine, &[holder.attachment.position]) {
                // It ended meanwhile, and all copies with it.
                Err(_) if !self.locks.is_held(&Lockable::Run(id))? => {}
                other => other?,
            }
        }
        let pool = self.pool(&volume.pool)?;
        // It may have been moved to a pool that keeps none.
        let Some(power) = pool.snapshots() else {
            return Ok(());
        };
        let there = match power.snapshots(id) {
            Err(PoolError::NoSuchVolume { .. }) => return Ok(()),
            other => {
                other.map_err(|source| pool_error(&volume, "list the snapshots of", source))?
            }
        };
        // One that somebody else took later, once nobody owned this operation, is theirs.
        let ours = there.iter().any(|snapshot| {
            snapshot.name == *name && snapshot.created.as_second() == created.as_second()
        });
        if ours {
            let _: Changed = power
                .delete_snapshot(id, name)
                .map_err(|source| snapshot_error(&volume, name, "delete a snapshot of", source))?;
        }
        Ok(())
    }
}

fn to_copy(kept: &ToKeep) -> Option<ToCopy<'_>> {
    Some(ToCopy {
        volume: &kept.volume,
        position: kept.position,
        power: kept.pool.snapshots()?.live_copies()?,
    })
}

/// How much is to be copied into each pool, with one of the volumes there.
fn room_to_keep(volumes: &[ToKeep]) -> Result<Vec<(&ToKeep, u64)>> {
    let mut needed: BTreeMap<&PoolName, (&ToKeep, u64)> = BTreeMap::new();
    for kept in volumes.iter().filter(|kept| kept.how != How::Instantly) {
        let volume = &kept.volume;
        let fail = |source| pool_error(volume, "read", source);
        let content = kept.pool.content(volume.id, Access::ReadOnly);
        let bytes = data_bytes(content.map_err(fail)?.as_ref()).map_err(fail)?;
        needed.entry(&volume.pool).or_insert((kept, 0)).1 += bytes;
    }
    Ok(needed.into_values().collect())
}
