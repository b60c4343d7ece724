//! An engine with pools of several drivers, and in memory what they should hold.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use sistemo::clones::NewClone;
use sistemo::exchange::{Checksum, NewImported};
use sistemo::model::{Access, Bytes, Filesystem, PoolName, Reference, SnapshotName, VolumeId};
use sistemo::moves::{Move, Unkept};
use sistemo::pools::NewPool;
use sistemo::snapshots::Replaced;
use sistemo::volumes::{Grow, NewVolume};
use sistemo::{Caller, Engine, MonitorCommand, Settings, Silent, causes};
use sistemo_catalog::{Catalogue, Lockable, Locks};
use sistemo_conformance::Stop;
use sistemo_conformance::random::Random;
use sistemo_conformance::replica::{BLOCK, Held, Powers, Replica, Step, source_of};
use sistemo_pools::{Description, FirstUse, Keeping, Location, Pool, PoolConfig, Registry};

use crate::ground::Plot;

/// A volume of fewer blocks is too small for the engine.
const FEWEST_BLOCKS: u64 = 1 + Bytes::MINIMUM.get() / BLOCK;
/// How many volumes a pool is given by moves at most.
const MOST_VOLUMES: usize = 6;
/// How many volumes are in the trash at most.
const MOST_IN_TRASH: usize = 3;

/// Something that is done. Volumes have IDs of the model's own here, so that the same seed gives the
/// same history.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// A step, in that pool where it makes a volume, else wherever the volume is.
    Step { pool: usize, step: Step },
    /// A move to that pool.
    Move { id: VolumeId, to: usize },
    /// Out of the trash.
    Restore { id: VolumeId },
    /// Out of the trash, and gone.
    Destroy { id: VolumeId },
}

/// What is wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// What is written to a volume shows in its newest snapshot too.
    SnapshotSharesWrites,
    /// A move loses a byte.
    MoveLosesAByte,
}

struct Place {
    name: PoolName,
    /// What is deleted there can be restored.
    keeps_trash: bool,
    pool: Arc<dyn Pool>,
    powers: Powers,
    replica: Replica,
}

pub(crate) struct World {
    engine: Engine,
    locks: Locks,
    places: Vec<Place>,
    /// What was deleted and can be restored, each in its pool.
    trash: Vec<(VolumeId, usize, Held)>,
    /// The IDs that the engine gave.
    real: BTreeMap<VolumeId, VolumeId>,
    scratch: PathBuf,
    fault: Fault,
}

impl Act {
    /// The volumes that it looks at, changes or makes.
    pub(crate) fn volumes(&self) -> Vec<VolumeId> {
        match self {
            Act::Move { id, .. } | Act::Restore { id } | Act::Destroy { id } => vec![*id],
            Act::Step { step, .. } => match step {
                Step::Clone { origin, new, .. } => vec![*origin, new.id],
                step => vec![step.volume()],
            },
        }
    }

    pub(crate) fn is_write(&self) -> bool {
        matches!(
            self,
            Act::Step {
                step: Step::Write { .. },
                ..
            }
        )
    }

    pub(crate) fn is_move(&self) -> bool {
        matches!(self, Act::Move { .. })
    }
}

impl std::fmt::Display for Act {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Act::Move { id, to } => write!(f, "move {} to pool {to}", id.short()),
            Act::Restore { id } => write!(f, "restore {}", id.short()),
            Act::Destroy { id } => write!(f, "destroy {} in the trash", id.short()),
            Act::Step { pool, step } => match step {
                Step::Create { new, stamps } => {
                    let blocks = stamps.len();
                    let (id, size) = (new.id.short(), new.size.get());
                    write!(
                        f,
                        "create {id} in pool {pool}: {size} bytes, {blocks} blocks"
                    )
                }
                Step::Fill { new, stamps } => {
                    let blocks = stamps.len();
                    let (id, size) = (new.id.short(), new.size.get());
                    write!(
                        f,
                        "import {id} in pool {pool}: {size} bytes, {blocks} blocks"
                    )
                }
                Step::Write { id, first, stamps } => {
                    let what = if stamps.iter().all(|stamp| *stamp == 0) {
                        "clear"
                    } else {
                        "write"
                    };
                    let end = first + stamps.len() as u64;
                    write!(f, "{what} blocks {first} to {end} of {}", id.short())
                }
                Step::Grow { id, to } => write!(f, "grow {} to {} bytes", id.short(), to.get()),
                Step::Rename { id, name } => write!(f, "rename {} to {name}", id.short()),
                Step::Clone {
                    origin,
                    snapshot,
                    new,
                } => {
                    let of = snapshot.as_ref().map_or("", |name| name.as_str());
                    write!(f, "clone {} {of} to {}", origin.short(), new.id.short())
                }
                Step::Snapshot { id, name } => write!(f, "snapshot {} as {name}", id.short()),
                Step::Revert { id, name } => write!(f, "revert {} to {name}", id.short()),
                Step::DeleteSnapshot { id, name } => {
                    write!(f, "delete snapshot {name} of {}", id.short())
                }
                Step::Remove { id } => write!(f, "delete {}", id.short()),
            },
        }
    }
}

fn told(error: &(impl std::error::Error + 'static)) -> String {
    causes(error).join(": ")
}

fn broken(stop: &Stop) -> String {
    match stop {
        Stop::Failed(failure) => failure.to_string(),
        other => format!("{other:?}"),
    }
}

impl World {
    pub(crate) fn new(plot: &Plot, fault: Fault) -> World {
        let monitor = MonitorCommand {
            program: "/bin/false".into(),
            arguments: Vec::new(),
        };
        let caller = Caller {
            purpose: "torture".to_owned(),
            monitor,
        };
        let settings = Settings::defaults(&plot.data_dir);
        let engine = Engine::open(settings, Arc::new(Silent), caller).unwrap();
        let catalogue = Catalogue::open(&plot.data_dir).unwrap().id();
        let registry = Registry::for_data_directory(&plot.data_dir);
        let mut places = Vec::new();
        for (index, (driver, directory)) in plot.pools.iter().enumerate() {
            let name: PoolName = format!("pool-{index}").parse().unwrap();
            let path = directory.display().to_string();
            // In the others what is deleted is gone.
            let keeps_trash = index == 0;
            let trash_keep = if keeps_trash { "24h" } else { "0" };
            let options = vec![
                ("dir_path".to_owned(), path.clone()),
                ("trash_keep".to_owned(), trash_keep.to_owned()),
            ];
            let driver = (*driver).to_owned();
            let new = NewPool {
                name: name.clone(),
                driver: driver.clone(),
                options,
            };
            engine.add_pool(&new).unwrap();
            let info = registry.by_name(&driver).unwrap();
            let defaults = info.options.iter();
            let defaults =
                defaults.filter_map(|option| Some((option.name.clone(), option.default.clone()?)));
            let config = PoolConfig {
                name: name.clone(),
                driver: info.name.clone(),
                directory: Some(directory.clone()),
                options: defaults.chain([("dir_path".to_owned(), path)]).collect(),
                keeping: Keeping::default(),
            };
            let pool = registry.open(&config, catalogue, FirstUse::Known).unwrap();
            places.push(Place {
                name,
                keeps_trash,
                powers: Powers::of(pool.as_ref()),
                pool,
                replica: Replica::default(),
            });
        }
        World {
            engine,
            locks: Locks::open(&plot.data_dir.join("locks")).unwrap(),
            places,
            trash: Vec::new(),
            real: BTreeMap::new(),
            scratch: plot.scratch.clone(),
            fault,
        }
    }

    /// Something that can be done next. `number` makes names that were not there before.
    pub(crate) fn next_act(&self, random: &mut Random, number: usize) -> Act {
        if let Some((id, place, _)) = random.pick(&self.trash)
            && (self.trash.len() > MOST_IN_TRASH || random.below(15) == 0)
        {
            let has_room = self.places[*place].replica.volumes.len() < MOST_VOLUMES;
            return if has_room && random.below(2) == 0 {
                Act::Restore { id: *id }
            } else {
                Act::Destroy { id: *id }
            };
        }
        loop {
            let several = u64::try_from(self.places.len()).unwrap();
            if random.below(12) == 0 {
                let places = self.places.iter();
                let ids: Vec<_> = places.flat_map(|p| p.replica.volumes.keys()).collect();
                let id = random.pick(&ids).copied().copied();
                let to = usize::try_from(random.below(several)).unwrap();
                let Some(id) = id.filter(|id| self.place_of(*id) != Some(to)) else {
                    continue;
                };
                if self.places[to].replica.volumes.len() < MOST_VOLUMES {
                    return Act::Move { id, to };
                }
                continue;
            }
            // The first pool is of the driver that is tried.
            let pool = if random.below(3) == 0 {
                usize::try_from(random.below(several)).unwrap()
            } else {
                0
            };
            let place = &self.places[pool];
            let mut step = place.replica.next_step(random, place.powers);
            match &mut step {
                Step::Create { new, .. } | Step::Fill { new, .. } => {
                    new.size = Bytes::new(new.size.get() + FEWEST_BLOCKS * BLOCK);
                }
                Step::Rename { name, .. } => *name = format!("renamed-{number}").parse().unwrap(),
                _ => {}
            }
            return Act::Step { pool, step };
        }
    }

    fn place_of(&self, id: VolumeId) -> Option<usize> {
        let mut places = self.places.iter();
        places.position(|place| place.replica.volumes.contains_key(&id))
    }

    fn reference(&self, id: VolumeId) -> Reference {
        Reference::from(self.real[&id].to_string())
    }

    /// Whether an act can be done: of a history from which some were left out, not all can.
    fn is_possible(&self, act: &Act) -> bool {
        let held = |id: &VolumeId| {
            let place = &self.places[self.place_of(*id)?];
            Some((place, place.replica.volumes.get(id)?))
        };
        match act {
            Act::Move { id, to } => self.place_of(*id).is_some_and(|place| place != *to),
            Act::Restore { id } | Act::Destroy { id } => self.in_trash(*id).is_some(),
            Act::Step { step, .. } => match step {
                Step::Create { .. } | Step::Fill { .. } => true,
                Step::Write { id, first, stamps } => held(id).is_some_and(|(_, held)| {
                    *first + stamps.len() as u64 <= held.blocks.len() as u64
                }),
                Step::Grow { id, to } => {
                    held(id).is_some_and(|(_, held)| *to > held.description.size)
                }
                Step::Rename { id, .. } | Step::Remove { id } => held(id).is_some(),
                Step::Snapshot { id, .. } => held(id).is_some_and(|(p, _)| p.powers.snapshots),
                Step::Clone {
                    origin, snapshot, ..
                } => held(origin).is_some_and(|(place, held)| {
                    let there = snapshot.as_ref().is_none_or(|name| held.has_snapshot(name));
                    place.powers.clones && there
                }),
                Step::Revert { id, name } | Step::DeleteSnapshot { id, name } => {
                    held(id).is_some_and(|(_, held)| held.has_snapshot(name))
                }
            },
        }
    }

    /// Does something, and the same in memory. The error says what went wrong.
    pub(crate) fn perform(&mut self, act: &Act) -> Result<(), String> {
        if !self.is_possible(act) {
            return Ok(());
        }
        match act {
            Act::Move { id, to } => self.shift(*id, *to),
            Act::Restore { id } => {
                let restored = self.engine.restore_volume(&self.reference(*id), None);
                let _ = restored.map_err(|error| told(&error))?;
                let (id, place, held) = self.out_of_trash(*id);
                self.places[place].replica.volumes.insert(id, held);
                Ok(())
            }
            Act::Destroy { id } => {
                let destroyed = self.engine.destroy_trashed(&self.reference(*id));
                let _ = destroyed.map_err(|error| told(&error))?;
                let (_, _, _) = self.out_of_trash(*id);
                Ok(())
            }
            Act::Step { pool, step } => self.step(*pool, step),
        }
    }

    fn in_trash(&self, id: VolumeId) -> Option<usize> {
        self.trash.iter().position(|(trashed, ..)| *trashed == id)
    }

    fn out_of_trash(&mut self, id: VolumeId) -> (VolumeId, usize, Held) {
        let index = self.in_trash(id).unwrap();
        self.trash.remove(index)
    }

    fn shift(&mut self, id: VolumeId, to: usize) -> Result<(), String> {
        let from = self.place_of(id).unwrap();
        let moved = self.engine.move_volume(&Move {
            volume: self.reference(id),
            to: self.places[to].name.clone(),
            unkept: Unkept::Lose,
        });
        moved.map_err(|error| told(&error))?;
        let mut held = self.places[from].replica.volumes.remove(&id).unwrap();
        if !self.places[to].powers.snapshots {
            held.snapshots.clear();
        }
        self.places[to].replica.volumes.insert(id, held);
        if self.fault == Fault::MoveLosesAByte {
            let pool = &self.places[to].pool;
            let mut content = pool.content(self.real[&id], Access::ReadWrite).unwrap();
            let mut byte = [0];
            content.read_at(&mut byte, 777).unwrap();
            content.write_at(&[!byte[0]], 777).unwrap();
        }
        Ok(())
    }

    fn step(&mut self, pool: usize, step: &Step) -> Result<(), String> {
        let engine = &self.engine;
        let fail = |error: sistemo::Error| told(&error);
        let mut step = step.clone();
        let here = self.place_of(step.volume());
        match &mut step {
            Step::Create { new, stamps } => {
                let made = engine
                    .create_volume(NewVolume {
                        size: new.size,
                        name: Some(new.name.clone()),
                        pool: Some(self.places[pool].name.clone()),
                        filesystem: Filesystem::None,
                    })
                    .map_err(fail)?;
                self.real.insert(new.id, made.id);
                self.write(pool, new.id, 0, stamps)?;
            }
            Step::Fill { new, stamps } => {
                let mut file = source_of(stamps, &self.scratch).map_err(|error| told(&error))?;
                file.set_len(new.size.get()).map_err(|error| told(&error))?;
                let imported = NewImported {
                    name: new.name.clone(),
                    pool: Some(self.places[pool].name.clone()),
                    filesystem: Filesystem::None,
                    format: None,
                    checksum: Checksum::Skip,
                };
                let made = engine
                    .import_volume_from(&imported, &mut file)
                    .map_err(fail)?;
                self.real.insert(new.id, made.volume.id);
            }
            Step::Write { id, first, stamps } => {
                self.write(here.unwrap(), *id, *first, stamps)?;
            }
            Step::Grow { id, to } => {
                let grown = engine.resize_volume(&self.reference(*id), *to, Grow::Device);
                let _ = grown.map_err(fail)?;
            }
            Step::Rename { id, name } => {
                let renamed = engine.rename_volume(&self.reference(*id), name.clone());
                let _ = renamed.map_err(fail)?;
            }
            Step::Clone {
                origin,
                snapshot,
                new,
            } => {
                let place = &self.places[self.place_of(*origin).unwrap()];
                // A clone has the size of what it was made from.
                new.size = place.replica.volumes[origin].size_of(snapshot.as_ref());
                let clone = NewClone {
                    source: self.reference(*origin),
                    snapshot: snapshot.clone(),
                    name: new.name.clone(),
                    pool: None,
                };
                let made = engine.clone_volume(&clone).map_err(fail)?;
                self.real.insert(new.id, made.volume.id);
            }
            Step::Snapshot { id, name } => {
                let taken = engine.take_snapshot(&self.reference(*id), Some(name.clone()));
                let _ = taken.map_err(fail)?;
            }
            Step::Revert { id, name } => {
                let reference = self.reference(*id);
                let reverted = engine.revert_volume(&reference, Some(name), replaced_by(name));
                if let Some(kept) = reverted.map_err(fail)?.kept {
                    let place = &mut self.places[here.unwrap()];
                    let held = place.replica.volumes.get_mut(id).unwrap();
                    held.snapshots.push((kept.name, held.blocks.clone()));
                }
            }
            Step::DeleteSnapshot { id, name } => {
                let deleted = engine.delete_snapshot(&self.reference(*id), name);
                let _ = deleted.map_err(fail)?;
            }
            Step::Remove { id } => {
                let _ = engine.delete_volume(&self.reference(*id)).map_err(fail)?;
                let place = here.unwrap();
                if self.places[place].keeps_trash {
                    let held = self.places[place].replica.volumes[id].clone();
                    self.trash.push((*id, place, held));
                }
            }
        }
        let place = match &step {
            Step::Create { .. } | Step::Fill { .. } => pool,
            Step::Clone { origin, .. } => self.place_of(*origin).unwrap(),
            _ => here.unwrap(),
        };
        self.places[place].replica.apply(&step);
        Ok(())
    }

    /// Writes as a machine would that has the volume: under its lock, and through its pool.
    fn write(&self, pool: usize, id: VolumeId, first: u64, stamps: &[u32]) -> Result<(), String> {
        let (pool, id) = (&self.places[pool].pool, self.real[&id]);
        let lock = self.locks.acquire(&Lockable::Volume(id), "torture");
        let lock = lock.map_err(|error| told(&error))?;
        let write = Step::Write {
            id,
            first,
            stamps: stamps.to_vec(),
        };
        let written = write.perform(pool.as_ref(), &self.scratch);
        written.map_err(|stop| broken(&stop))?;
        pool.close(id).map_err(|error| told(&error))?;
        if self.fault == Fault::SnapshotSharesWrites {
            write_to_newest_snapshot(pool.as_ref(), id, first * BLOCK);
        }
        drop(lock);
        Ok(())
    }

    /// Expects that a volume and all its snapshots hold what they should.
    pub(crate) fn check_volume(&self, id: VolumeId) -> Result<(), String> {
        if let Some(index) = self.in_trash(id) {
            let (_, place, held) = &self.trash[index];
            let place = &self.places[*place];
            let really = self.as_it_is_called(place, id, held)?;
            let checked = really.check(place.pool.as_ref());
            return checked.map_err(|stop| format!("in the trash: {}", broken(&stop)));
        }
        let Some(place) = self.place_of(id).map(|place| &self.places[place]) else {
            return match self.real.get(&id) {
                Some(real) => self.check_gone(*real),
                None => Ok(()),
            };
        };
        let held = &place.replica.volumes[&id];
        let really = self.as_it_is_called(place, id, held)?;
        let view = self.engine.volume(&self.reference(id));
        let view = view.map_err(|error| told(&error))?;
        if (&view.pool, &view.reason) != (&place.name, &None) {
            return Err(format!("the engine says {view:?}"));
        }
        really
            .check(place.pool.as_ref())
            .map_err(|stop| broken(&stop))
    }

    fn check_gone(&self, id: VolumeId) -> Result<(), String> {
        for place in &self.places {
            let found = place.pool.find(id).map_err(|error| told(&error))?;
            if let Some(found) = found {
                return Err(format!("{found:?} is in {} still", place.name));
            }
        }
        Ok(())
    }

    /// Expects that each pool holds all that it should, and nothing else.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut count = 0;
        for (index, place) in self.places.iter().enumerate() {
            let mut replica = Replica::default();
            for (id, _, held) in self.trash.iter().filter(|(_, place, _)| *place == index) {
                let held = self.as_it_is_called(place, *id, held)?;
                replica.volumes.insert(held.description.id, held);
            }
            for (id, held) in &place.replica.volumes {
                let held = self.as_it_is_called(place, *id, held)?;
                replica.volumes.insert(held.description.id, held);
                count += 1;
            }
            let checked = replica.check(place.pool.as_ref());
            checked.map_err(|stop| format!("in {}: {}", place.name, broken(&stop)))?;
        }
        let volumes = self.engine.volumes().map_err(|error| told(&error))?;
        if volumes.len() != count {
            return Err(format!(
                "the engine has {} volumes, not {count}",
                volumes.len()
            ));
        }
        let trash = self.engine.trash().map_err(|error| told(&error))?;
        if trash.len() != self.trash.len() {
            return Err(format!("the trash is {trash:?}"));
        }
        Ok(())
    }

    /// What a volume should hold, under the ID that the engine gave it, and with the part of its
    /// description that is the engine's own.
    fn as_it_is_called(&self, place: &Place, id: VolumeId, held: &Held) -> Result<Held, String> {
        let described = place.pool.description(self.real[&id]);
        let described = described.map_err(|error| told(&error))?;
        Ok(Held {
            description: Description {
                name: held.description.name.clone(),
                size: held.description.size,
                unfinished: false,
                moving_from: None,
                ..described
            },
            ..held.clone()
        })
    }
}

/// What becomes of what a volume holds when it is taken back: as good as by chance, and the same
/// each time.
fn replaced_by(snapshot: &SnapshotName) -> Replaced {
    let last = snapshot.as_str().bytes().last();
    if last.is_some_and(|byte| byte % 2 == 0) {
        Replaced::Keep
    } else {
        Replaced::Discard
    }
}

fn write_to_newest_snapshot(pool: &dyn Pool, id: VolumeId, at: u64) {
    let Some(power) = pool.snapshots() else {
        return;
    };
    let there = power.snapshots(id).unwrap();
    let Some(newest) = there.last().filter(|snapshot| snapshot.size.get() > at + 7) else {
        return;
    };
    if let Some(Location::RawFile(path)) = power.open_snapshot(id, &newest.name).unwrap() {
        let meta = fs::metadata(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"changed", at).unwrap();
        file.set_modified(meta.modified().unwrap()).unwrap();
    }
}
