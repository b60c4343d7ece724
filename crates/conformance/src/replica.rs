//! What a pool should hold, in memory, and the steps that change both.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sistemo_host::Changed;
use sistemo_host::sparse::Extent;
use sistemo_model::{Access, Bytes, SnapshotName, Timestamp, VolumeId, VolumeName};
use sistemo_pools::{Description, Found, Origin, Pool};

use crate::expectation::{equal, is_a, same_bytes};
use crate::law::{Stop, Verdict};
use crate::material::{a_name, description, read, temporary_file};
use crate::random::{Random, noise};

/// Contents are told by blocks of this many bytes: no power of two, so that they begin and end
/// within the clusters and pages of whoever stores them.
pub const BLOCK: u64 = 25 * Bytes::SECTOR;

/// What stands in a block: noise of that seed, or zeros for 0.
pub type Stamp = u32;

/// So many blocks are compared at once.
const AT_ONCE: usize = 32;

/// How many of each a pool is given at most.
const MOST_VOLUMES: usize = 5;
const MOST_SNAPSHOTS: usize = 4;
const MOST_BLOCKS: u64 = 160;

/// Something that changes a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Makes a volume and writes into its draft.
    Create {
        /// Its description.
        new: Description,
        /// What its first blocks hold.
        stamps: Vec<Stamp>,
    },
    /// Makes a volume and fills it from a file, which is as long as the stamps.
    Fill {
        /// Its description.
        new: Description,
        /// What its first blocks hold.
        stamps: Vec<Stamp>,
    },
    /// Writes and flushes; where the stamps are zeros, makes a hole.
    Write {
        /// The volume.
        id: VolumeId,
        /// The block that is written first.
        first: u64,
        /// What it and those behind it hold then.
        stamps: Vec<Stamp>,
    },
    /// Grows a volume.
    Grow {
        /// The volume.
        id: VolumeId,
        /// Its new size.
        to: Bytes,
    },
    /// Gives a volume another name.
    Rename {
        /// The volume.
        id: VolumeId,
        /// Its new name.
        name: VolumeName,
    },
    /// Clones a volume or its snapshot.
    Clone {
        /// The volume.
        origin: VolumeId,
        /// Its snapshot.
        snapshot: Option<SnapshotName>,
        /// The clone's description.
        new: Description,
    },
    /// Takes a snapshot.
    Snapshot {
        /// The volume.
        id: VolumeId,
        /// The snapshot's name.
        name: SnapshotName,
    },
    /// Reverts to one.
    Revert {
        /// The volume.
        id: VolumeId,
        /// The snapshot's name.
        name: SnapshotName,
    },
    /// Deletes one.
    DeleteSnapshot {
        /// The volume.
        id: VolumeId,
        /// The snapshot's name.
        name: SnapshotName,
    },
    /// Removes a volume.
    Remove {
        /// The volume.
        id: VolumeId,
    },
}

/// What a volume should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its description, as its pool should have it.
    pub description: Description,
    /// What each of its blocks holds.
    pub blocks: Vec<Stamp>,
    /// Its snapshots, in the order in which they were taken, each with what it keeps.
    pub snapshots: Vec<(SnapshotName, Vec<Stamp>)>,
}

/// What a pool should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replica {
    /// Its volumes.
    pub volumes: BTreeMap<VolumeId, Held>,
}

/// What of the powers of a pool is used.
#[derive(Clone, Copy, Debug)]
pub struct Powers {
    /// Whether volumes are cloned.
    pub clones: bool,
    /// Whether snapshots are taken.
    pub snapshots: bool,
}

impl Powers {
    /// All that a pool has.
    pub fn of(pool: &dyn Pool) -> Powers {
        Powers {
            clones: pool.clones().is_some(),
            snapshots: pool.snapshots().is_some(),
        }
    }
}

impl Step {
    /// The volume that it changes or makes.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        match self {
            Step::Create { new, .. } | Step::Fill { new, .. } | Step::Clone { new, .. } => new.id,
            Step::Write { id, .. }
            | Step::Grow { id, .. }
            | Step::Rename { id, .. }
            | Step::Snapshot { id, .. }
            | Step::Revert { id, .. }
            | Step::DeleteSnapshot { id, .. }
            | Step::Remove { id } => *id,
        }
    }

    /// Does it, in a pool where it can be done. `scratch` is where a source may be made.
    ///
    /// # Errors
    /// What the pool says.
    pub fn perform(&self, pool: &dyn Pool, scratch: &Path) -> Verdict {
        let silent = &mut |_, _| {};
        match self {
            Step::Create { new, stamps } => {
                let mut draft = pool.draft(new)?;
                let content = draft.content()?;
                for (range, data) in data_of(stamps) {
                    content.write_at(&data, range.start)?;
                }
                draft.commit()?;
            }
            Step::Fill { new, stamps } => {
                let source = source_of(stamps, scratch)?;
                let mut draft = pool.draft(new)?;
                let _ = draft.fill_from(&source, silent)?;
                draft.commit()?;
            }
            Step::Write { id, first, stamps } => {
                let mut content = pool.content(*id, Access::ReadWrite)?;
                let offset = first * BLOCK;
                if stamps.iter().all(|stamp| *stamp == 0) {
                    let length = stamps.len() as u64 * BLOCK;
                    content.make_hole(Extent { offset, length })?;
                }
                for (range, data) in data_of(stamps) {
                    content.write_at(&data, offset + range.start)?;
                }
                content.flush()?;
            }
            Step::Grow { id, to } => {
                let _ = pool.grow(*id, *to)?;
            }
            Step::Rename { id, name } => {
                let mut renamed = pool.description(*id)?;
                renamed.name = name.clone();
                let _ = pool.describe(&renamed)?;
            }
            Step::Clone {
                origin,
                snapshot,
                new,
            } => {
                let clones = pool.clones().ok_or(Stop::NotClaimed("clone"))?;
                let origin = Origin {
                    volume: *origin,
                    snapshot: snapshot.as_ref(),
                };
                let _ = clones.clone_volume(origin, new, silent)?;
            }
            Step::Snapshot { id, name } => {
                let _ =
                    snapshots(pool)?.take_snapshot(*id, name, Timestamp::now(), None, silent)?;
            }
            Step::Revert { id, name } => {
                let _ = snapshots(pool)?.revert(*id, name, silent)?;
            }
            Step::DeleteSnapshot { id, name } => {
                let _ = snapshots(pool)?.delete_snapshot(*id, name)?;
            }
            Step::Remove { id } => {
                let there = pool.find(*id)?.is_some();
                let changed = if there { Changed::Yes } else { Changed::No };
                equal("removing", pool.remove(*id)?, changed)?;
            }
        }
        Ok(())
    }
}

fn snapshots(pool: &dyn Pool) -> Result<&dyn sistemo_pools::Snapshots, Stop> {
    pool.snapshots().ok_or(Stop::NotClaimed("snapshot"))
}

/// The runs of blocks that are not zeros, each with its data.
fn data_of(stamps: &[Stamp]) -> Vec<(Range<u64>, Vec<u8>)> {
    let mut runs: Vec<(Range<u64>, Vec<u8>)> = Vec::new();
    for (index, stamp) in stamps.iter().enumerate().filter(|(_, stamp)| **stamp != 0) {
        let at = index as u64 * BLOCK;
        let block = bytes_of(*stamp);
        match runs.last_mut() {
            Some((range, data)) if range.end == at => {
                range.end += BLOCK;
                data.extend_from_slice(&block);
            }
            _ => runs.push((at..at + BLOCK, block)),
        }
    }
    runs
}

fn bytes_of(stamp: Stamp) -> Vec<u8> {
    let length = usize::try_from(BLOCK).unwrap_or(0);
    match stamp {
        0 => vec![0; length],
        seed => noise(u64::from(seed), length),
    }
}

/// A file of so many blocks that hold this, which is gone when it is closed.
///
/// # Errors
/// Where it cannot be made.
pub fn source_of(stamps: &[Stamp], scratch: &Path) -> io::Result<File> {
    let file = temporary_file(scratch)?;
    file.set_len(stamps.len() as u64 * BLOCK)?;
    for (range, data) in data_of(stamps) {
        file.write_all_at(&data, range.start)?;
    }
    Ok(file)
}

fn size_of(blocks: &[Stamp]) -> Bytes {
    Bytes::new(blocks.len() as u64 * BLOCK)
}

fn count_of(size: Bytes) -> usize {
    usize::try_from(size.get() / BLOCK).unwrap_or(usize::MAX)
}

/// Expects that a content holds what it should.
pub(crate) fn holds_blocks(
    what: &str,
    content: &dyn sistemo_pools::Content,
    blocks: &[Stamp],
) -> Verdict {
    equal(
        format!("the size of {what}"),
        content.size(),
        size_of(blocks),
    )?;
    for (index, stamps) in blocks.chunks(AT_ONCE).enumerate() {
        let at = (index * AT_ONCE) as u64 * BLOCK;
        let wanted: Vec<_> = stamps.iter().map(|stamp| bytes_of(*stamp)).collect();
        let wanted = wanted.concat();
        same_bytes(what, at, &read(content, at, wanted.len())?, &wanted)?;
    }
    Ok(())
}

impl Replica {
    /// What a step makes of it.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Create { new, stamps } | Step::Fill { new, stamps } => {
                self.insert(new, stamps.clone());
            }
            Step::Clone {
                origin,
                snapshot,
                new,
            } => {
                let held = self.volumes.get(origin);
                let blocks = match snapshot {
                    None => held.map(|held| &held.blocks),
                    Some(name) => held.and_then(|held| held.snapshot(name)),
                };
                self.insert(new, blocks.cloned().unwrap_or_default());
            }
            Step::Remove { id } => {
                self.volumes.remove(id);
            }
            other => {
                if let Some(held) = self.volumes.get_mut(&other.volume()) {
                    held.apply(other);
                }
            }
        }
    }

    fn insert(&mut self, new: &Description, mut blocks: Vec<Stamp>) {
        blocks.resize(count_of(new.size), 0);
        let held = Held {
            description: new.clone(),
            blocks,
            snapshots: Vec::new(),
        };
        self.volumes.insert(new.id, held);
    }

    /// Something that can be done next.
    pub fn next_step(&self, random: &mut Random, powers: Powers) -> Step {
        let ids: Vec<VolumeId> = self.volumes.keys().copied().collect();
        let may_make = ids.len() < MOST_VOLUMES;
        loop {
            let chosen = random.pick(&ids).and_then(|id| self.volumes.get(id));
            let Some(held) = chosen else {
                return new_volume(random);
            };
            let id = held.description.id;
            let snapshot = random.pick(&held.snapshots);
            let step = match random.below(20) {
                0..3 if may_make => Some(new_volume(random)),
                3..7 => Some(held.write(random)),
                7 => held.growth(random),
                8 => Some(Step::Rename {
                    id,
                    name: a_name(&format!("renamed-{}", random.below(1000))),
                }),
                9..12 if may_make && powers.clones => {
                    Some(held.clone_step(random, snapshot.filter(|_| powers.snapshots)))
                }
                12..16 if powers.snapshots && held.snapshots.len() < MOST_SNAPSHOTS => {
                    Some(Step::Snapshot {
                        id,
                        name: a_name(&format!("s-{:x}", random.next())),
                    })
                }
                16 => snapshot.map(|(name, _)| Step::Revert {
                    id,
                    name: name.clone(),
                }),
                17..19 => snapshot.map(|(name, _)| Step::DeleteSnapshot {
                    id,
                    name: name.clone(),
                }),
                19 => Some(Step::Remove { id }),
                _ => None,
            };
            if let Some(step) = step {
                return step;
            }
        }
    }

    /// Expects that a volume is in the pool as it is here, or in neither.
    pub(crate) fn check_volume(&self, pool: &dyn Pool, id: VolumeId) -> Verdict {
        match self.volumes.get(&id) {
            Some(held) => held.check(pool),
            None => equal(
                format!("what is found of volume {id}"),
                pool.find(id)?,
                None,
            ),
        }
    }

    /// Expects that the pool holds all of this and nothing else.
    ///
    /// # Errors
    /// What differs.
    pub fn check(&self, pool: &dyn Pool) -> Verdict {
        let mut listed = Vec::new();
        for found in pool.list()? {
            is_a!("what is listed", found, Found::Volume { .. })?;
            if let Found::Volume { description, .. } = found {
                listed.push(description.id);
            }
        }
        let wanted: Vec<_> = self.volumes.keys().copied().collect();
        equal("the volumes listed", listed, wanted)?;
        for held in self.volumes.values() {
            held.check(pool)?;
        }
        Ok(())
    }
}

impl Held {
    /// Whether it has a snapshot of that name.
    #[must_use]
    pub fn has_snapshot(&self, name: &SnapshotName) -> bool {
        self.snapshot(name).is_some()
    }

    /// The size it has, or had when that snapshot was taken; 0 where there is none.
    #[must_use]
    pub fn size_of(&self, snapshot: Option<&SnapshotName>) -> Bytes {
        match snapshot {
            None => size_of(&self.blocks),
            Some(name) => self.snapshot(name).map_or(Bytes::new(0), |it| size_of(it)),
        }
    }

    fn snapshot(&self, name: &SnapshotName) -> Option<&Vec<Stamp>> {
        let mut snapshots = self.snapshots.iter();
        let found = snapshots.find(|(known, _)| known == name);
        found.map(|(_, blocks)| blocks)
    }

    /// What a step that neither makes nor removes a volume makes of it.
    fn apply(&mut self, step: &Step) {
        match step {
            Step::Write { first, stamps, .. } => {
                let first = usize::try_from(*first).unwrap_or(usize::MAX);
                self.blocks[first..first + stamps.len()].copy_from_slice(stamps);
            }
            Step::Grow { to, .. } => {
                self.blocks.resize(count_of(*to), 0);
                self.description.size = *to;
            }
            Step::Rename { name, .. } => self.description.name = name.clone(),
            Step::Snapshot { name, .. } => {
                self.snapshots.push((name.clone(), self.blocks.clone()));
            }
            Step::Revert { name, .. } => {
                if let Some(blocks) = self.snapshot(name).cloned() {
                    self.description.size = size_of(&blocks);
                    self.blocks = blocks;
                }
            }
            Step::DeleteSnapshot { name, .. } => self.snapshots.retain(|(known, _)| known != name),
            Step::Create { .. } | Step::Fill { .. } | Step::Clone { .. } | Step::Remove { .. } => {}
        }
    }

    fn write(&self, random: &mut Random) -> Step {
        let all = self.blocks.len() as u64;
        let first = random.below(all);
        let count = 1 + random.below((all - first).min(12));
        let stamps = if random.below(4) == 0 {
            vec![0; usize::try_from(count).unwrap_or(1)]
        } else {
            (0..count).map(|_| stamp(random)).collect()
        };
        Step::Write {
            id: self.description.id,
            first,
            stamps,
        }
    }

    fn growth(&self, random: &mut Random) -> Option<Step> {
        let all = self.blocks.len() as u64;
        let to = Bytes::new((all + 1 + random.below(20)) * BLOCK);
        (all < MOST_BLOCKS).then_some(Step::Grow {
            id: self.description.id,
            to,
        })
    }

    fn clone_step(
        &self,
        random: &mut Random,
        snapshot: Option<&(SnapshotName, Vec<Stamp>)>,
    ) -> Step {
        let snapshot = snapshot.filter(|_| random.below(2) == 0);
        let blocks = snapshot.map_or(&self.blocks, |(_, blocks)| blocks);
        let larger = random.below(2) * random.below(20);
        let size = Bytes::new((blocks.len() as u64 + larger) * BLOCK);
        Step::Clone {
            origin: self.description.id,
            snapshot: snapshot.map(|(name, _)| name.clone()),
            new: described(random, size),
        }
    }

    /// Expects that the pool has this volume, with all its snapshots.
    ///
    /// # Errors
    /// What differs.
    pub fn check(&self, pool: &dyn Pool) -> Verdict {
        let id = self.description.id;
        let size = self.description.size;
        equal(
            "the description",
            pool.description(id)?,
            self.description.clone(),
        )?;
        equal("the size", pool.facts(id)?.size, size)?;
        equal(
            format!("the flaws of volume {id}"),
            pool.verify(id, size)?,
            vec![],
        )?;
        let content = pool.content(id, Access::ReadOnly)?;
        holds_blocks(&format!("volume {id}"), &*content, &self.blocks)?;
        let Some(snapshots) = pool.snapshots() else {
            return Ok(());
        };
        let listed = snapshots.snapshots(id)?;
        let real: Vec<_> = listed.iter().map(|s| (s.name.clone(), s.size)).collect();
        let wanted = self.snapshots.iter();
        let wanted: Vec<_> = wanted.map(|(name, b)| (name.clone(), size_of(b))).collect();
        equal(format!("the snapshots of volume {id}"), real, wanted)?;
        for (name, blocks) in &self.snapshots {
            let content = snapshots.snapshot_content(id, name)?;
            let what = format!("snapshot {name} of volume {id}");
            holds_blocks(&what, &*content, blocks)?;
        }
        Ok(())
    }
}

/// The same seed gives the same ID, or volumes would come in another order each time.
fn described(random: &mut Random, size: Bytes) -> Description {
    let id = random.id();
    Description {
        id,
        name: a_name(&id.short()),
        ..description(size)
    }
}

fn new_volume(random: &mut Random) -> Step {
    let count = 8 + random.below(MOST_BLOCKS / 2);
    let new = described(random, Bytes::new(count * BLOCK));
    let mut stamps: Vec<Stamp> = (0..=random.below(count))
        .map(|_| {
            if random.below(3) == 0 {
                stamp(random)
            } else {
                0
            }
        })
        .collect();
    if random.below(2) == 0 {
        Step::Fill { new, stamps }
    } else {
        stamps.truncate(20);
        Step::Create { new, stamps }
    }
}

fn stamp(random: &mut Random) -> Stamp {
    // Never 0, which is a hole.
    u32::try_from(random.next() >> 33).unwrap_or(0) | 1
}
