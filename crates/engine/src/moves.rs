//! Moving a volume to another pool, of whatever driver.
//!
//! It stays the volume that it is: its ID, its name, what is known of its past, and its snapshots
//! where both pools keep some. All of it is copied and compared before the source goes.

use std::collections::BTreeMap;
use std::fs::File;

use sistemo_catalog::{Intent, IntentId};
use sistemo_host::sparse::{self, CopyPath};
use sistemo_model::{
    Access, Bytes, History, PoolName, Reference, SnapshotName, Timestamp, Volume, VolumeId,
};
use sistemo_pools::{Content, Cost, Description, Found, Pool, PoolError, Snapshot, Snapshots};

use crate::copying::{
    bring, data_bytes, differing_bytes, first_difference, on_one_filesystem, require_room,
};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::pools::expect_known;
use crate::sources::{content_of, raw_file};
use crate::volumes::{VolumeView, description, pool_error};

/// A volume to be moved.
#[derive(Clone, Debug)]
pub struct Move {
    /// The volume.
    pub volume: Reference,
    /// The pool it is to be in.
    pub to: PoolName,
    /// What becomes of snapshots that this pool cannot keep.
    pub unkept: Unkept,
}

/// What becomes of a volume's snapshots where the pool that it is to be in keeps none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unkept {
    /// They keep the volume where it is.
    Refuse,
    /// They are lost, unless one of them is pinned: that keeps the volume where it is.
    Lose,
}

/// A volume that was moved.
#[derive(Clone, Debug)]
pub struct Moved {
    /// The volume as it is now.
    pub volume: VolumeView,
    /// The pool it was in.
    pub from: PoolName,
    /// How many snapshots came along.
    pub snapshots: usize,
    /// How much was written: all that its states hold, each without what it has in common with
    /// the one that was written before it.
    pub copied: Bytes,
}

/// What a volume holds now, or held when a snapshot was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    /// The snapshot's name and time; `None` for what the volume holds now.
    snapshot: Option<(SnapshotName, Timestamp)>,
    size: Bytes,
}

/// A volume between two pools.
struct Passage<'a> {
    volume: &'a Volume,
    from: &'a dyn Pool,
    to: &'a dyn Pool,
    states: Vec<State>,
}

impl Engine {
    /// Moves a volume with its snapshots to another pool; its machine, if it has one, must be
    /// stopped. The source goes when all of it was read again where it is now, and compared. A
    /// crash in the middle leaves the volume where it was, or where it is to be, once the next
    /// operation has begun.
    ///
    /// # Errors
    /// Where it is in that pool already, its machine is active, the pool keeps no snapshots and
    /// the volume has some, or the pool has no room; then nothing has changed.
    pub fn move_volume(&self, asked: &Move) -> Result<Moved> {
        let to = self.pool_for(Some(&asked.to))?;
        let held = self.hold_idle_volume(&asked.volume, "move")?;
        let volume = &held.volume;
        if to == volume.pool {
            return Err(Error::InThatPool {
                volume: volume.name.clone(),
                pool: to,
            });
        }
        self.require_pool(&volume.pool)?;
        self.require_pool(&to)?;
        self.refuse_damaged(volume.id)?;
        let (source, target) = (self.pool(&volume.pool)?, self.pool(&to)?);
        let snapshots = snapshots_to_move(volume, source.as_ref(), target.as_ref(), asked.unkept)?;
        let passage = Passage {
            volume,
            from: source.as_ref(),
            to: target.as_ref(),
            states: in_order(snapshots, volume.size),
        };
        passage.clear_the_place()?;
        self.reporter.stage(&format!("looking at {}", volume.name));
        let room = self.with_room(&to, || passage.require_room());
        self.reporter.stage_over();
        room?;
        let intent = self.catalogue.write(|session| {
            expect_known(session, &to)?;
            Ok::<_, Error>(session.begin(&Intent::MoveVolume {
                volume: volume.id,
                from: volume.pool.clone(),
                to: to.clone(),
            })?)
        })?;
        let left = Intent::RemoveMoved {
            volume: volume.id,
            from: volume.pool.clone(),
        };
        let carried = self.with_room(&to, || {
            let carried = self.carry(&passage);
            // What there is of it then would be in the way of another attempt.
            carried.inspect_err(|_| {
                let removed = remove_from(passage.to, volume.id, volume.name.as_str());
                tracing::debug!(?removed, "removed what there was of a move that failed");
            })
        });
        let moved = carried.and_then(|copied| {
            let left = self.record_move(&passage, intent, &left)?;
            Ok((copied, left))
        });
        let (copied, to_finish) = match moved {
            Ok(moved) => moved,
            Err(error) => {
                self.undo_after(&error, self.undo_move(volume.id, &to, intent));
                return Err(error);
            }
        };
        // It is moved, whatever becomes of what it was copied from.
        if let Err(error) = self.finish_move(volume.id, &volume.pool, to_finish) {
            self.leave_for_later(&left, &error);
        }
        Ok(Moved {
            volume: self.volume(&Reference::from(volume.id.to_string()))?,
            from: volume.pool.clone(),
            snapshots: passage.states.len() - 1,
            copied: Bytes::new(copied),
        })
    }

    /// Makes the whole volume in the pool it goes to, and compares it there. Returns how many bytes
    /// were written.
    fn carry(&self, passage: &Passage<'_>) -> Result<u64> {
        let name = &passage.volume.name;
        self.reporter
            .stage(&format!("moving {name} to {}", passage.to.name()));
        let copied = passage.replay(&|done, total| self.reporter.progress(done, total));
        self.reporter.stage_over();
        let copied = copied?;
        self.reporter.stage(&format!("comparing {name}"));
        let compared = passage.compare(&|done, total| self.reporter.progress(done, total));
        self.reporter.stage_over();
        compared.map(|()| copied)
    }

    /// Records that a volume is in the pool it was copied to, and what is left to be done.
    fn record_move(
        &self,
        passage: &Passage<'_>,
        intent: IntentId,
        left: &Intent,
    ) -> Result<IntentId> {
        let (id, to) = (passage.volume.id, passage.to.name());
        self.catalogue.write(|session| {
            expect_known(session, to)?;
            session.set_volume_pool(id, to)?;
            if passage.to.snapshots().is_none() {
                let history = History {
                    marks: BTreeMap::new(),
                    ..passage.volume.history.clone()
                };
                session.set_volume_history(id, &history)?;
            }
            session.finish(intent)?;
            Ok(session.begin(left)?)
        })
    }

    /// Undoes a move that was cut short; says so.
    pub(crate) fn stay(
        &self,
        id: VolumeId,
        from: &PoolName,
        to: &PoolName,
        intent: IntentId,
    ) -> Result<String> {
        self.undo_move(id, to, intent)?;
        let name = self.name_or_id(id);
        Ok(format!(
            "volume {name} stays in pool {from}: its move to pool {to} was never finished"
        ))
    }

    /// Finishes a move that was cut short; says so.
    pub(crate) fn leave(&self, id: VolumeId, from: &PoolName, intent: IntentId) -> Result<String> {
        self.finish_move(id, from, intent)?;
        let name = self.name_or_id(id);
        Ok(format!("finished moving volume {name} out of pool {from}"))
    }

    fn name_or_id(&self, id: VolumeId) -> String {
        let volume = self.catalogue.read(|session| session.volume(id));
        volume.map_or_else(|_| id.to_string(), |volume| volume.name.to_string())
    }

    /// Removes what there is of a volume in a pool that it did not come to be in.
    fn undo_move(&self, id: VolumeId, to: &PoolName, intent: IntentId) -> Result<()> {
        match self.catalogue.read(|session| session.any_volume(id))? {
            // What a commit was told to have failed for may have been done all the same.
            Some(volume) if volume.pool == *to => {}
            // One that was destroyed meanwhile is in neither.
            _ => self.take_out(id, to)?,
        }
        Ok(self.catalogue.write(|session| session.finish(intent))?)
    }

    /// Removes what there is of a volume in a pool that is not its own. Where the pool itself was
    /// removed, there is nothing to be done.
    fn take_out(&self, id: VolumeId, from: &PoolName) -> Result<()> {
        let pool = match self.pool(from) {
            Err(Error::NotFound { .. })
                if self
                    .catalogue
                    .read(|session| session.known_pool(from))?
                    .is_none() =>
            {
                return Ok(());
            }
            pool => pool?,
        };
        remove_from(pool.as_ref(), id, &self.name_or_id(id))
    }

    /// Removes what a volume that was moved was copied from.
    ///
    /// What it was copied to is described as the volume before that: until then whoever has lost
    /// the catalogue finds the volume where it was.
    fn finish_move(&self, id: VolumeId, from: &PoolName, intent: IntentId) -> Result<()> {
        match self.catalogue.read(|session| session.any_volume(id))? {
            Some(volume) if volume.pool == *from => {}
            Some(volume) => {
                let _ = self
                    .pool(&volume.pool)?
                    .describe(&description(&volume))
                    .map_err(|source| pool_error(&volume, "describe", source))?;
                self.take_out(id, from)?;
            }
            // It was deleted before anybody could get at what it was copied from.
            None => self.take_out(id, from)?,
        }
        Ok(self.catalogue.write(|session| session.finish(intent))?)
    }
}

fn remove_from(pool: &dyn Pool, id: VolumeId, name: &str) -> Result<()> {
    let removed = pool.remove(id).map_err(|source| Error::Pool {
        pool: pool.name().clone(),
        action: format!("remove what was of volume {name}"),
        source,
    });
    removed.map(|_| ())
}

/// The snapshots that go with a volume, oldest first.
fn snapshots_to_move(
    volume: &Volume,
    from: &dyn Pool,
    to: &dyn Pool,
    unkept: Unkept,
) -> Result<Vec<Snapshot>> {
    let Some(power) = from.snapshots() else {
        return Ok(Vec::new());
    };
    let there = power
        .snapshots(volume.id)
        .map_err(|source| pool_error(volume, "list the snapshots of", source))?;
    if to.snapshots().is_some() || there.is_empty() {
        return Ok(there);
    }
    let mut names = there.iter().map(|snapshot| &snapshot.name);
    if let Some(pinned) = names.find(|name| volume.history.mark(name).pinned) {
        return Err(Error::PinnedUnkept {
            volume: volume.name.clone(),
            snapshot: pinned.clone(),
            pool: to.name().clone(),
        });
    }
    match unkept {
        Unkept::Lose => Ok(Vec::new()),
        Unkept::Refuse => Err(Error::SnapshotsUnkept {
            volume: volume.name.clone(),
            count: there.len(),
            pool: to.name().clone(),
        }),
    }
}

/// What a volume holds and held, in the order in which a volume can be taken through it: one grows
/// and never shrinks, so the smaller first, and of one size the older.
fn in_order(snapshots: Vec<Snapshot>, size: Bytes) -> Vec<State> {
    let kept = snapshots.into_iter().map(|snapshot| State {
        snapshot: Some((snapshot.name, snapshot.created)),
        size: snapshot.size,
    });
    let now = State {
        snapshot: None,
        size,
    };
    let mut states: Vec<State> = kept.chain([now]).collect();
    states.sort_by_key(|state| state.size);
    states
}

impl Passage<'_> {
    /// Makes sure that nothing of the volume is in the pool it goes to: what the move leaves there
    /// is then its own, and may be removed.
    fn clear_the_place(&self) -> Result<()> {
        let id = self.volume.id;
        match self
            .to
            .find(id)
            .map_err(|source| self.cannot_make(source))?
        {
            None => Ok(()),
            // Whose it is we would know by its lock, which we hold.
            Some(Found::Draft { .. }) => remove_from(self.to, id, self.volume.name.as_str()),
            Some(_) => Err(self.cannot_make(PoolError::AlreadyThere {
                pool: self.to.name().clone(),
                volume: id,
            })),
        }
    }

    /// Makes sure that there is room for all that has to be written.
    fn require_room(&self) -> Result<()> {
        let shares = self
            .to
            .clones()
            .is_some_and(|power| power.clone_cost() == Cost::Instant);
        if self.states.len() == 1
            && shares
            && on_one_filesystem(self.from.directory(), self.to.directory())
        {
            // It may take none.
            return Ok(());
        }
        let usage = self.to.usage().map_err(|source| self.cannot_make(source))?;
        let needed = self.room_needed(usage.free)?;
        let action = || format!("move volume {} there", self.volume.name);
        require_room(self.to, needed, action)
    }

    /// What the volume takes in the pool it goes to; where all of its states have room for what
    /// each holds, not less than that and not more.
    fn room_needed(&self, free: u64) -> Result<u64> {
        let unreadable = |source| pool_error(self.volume, "read", source);
        let mut held = Vec::with_capacity(self.states.len());
        for state in &self.states {
            let content = self.source_content(state)?;
            held.push(data_bytes(content.as_ref()).map_err(unreadable)?);
        }
        let all: u64 = held.iter().sum();
        let copies = self
            .to
            .snapshots()
            .is_some_and(|power| power.snapshot_cost() == Cost::Copy);
        if copies {
            // Put aside and then brought back, what is not written last is there twice more.
            let now = self
                .states
                .iter()
                .position(|state| state.snapshot.is_none());
            let aside = now.filter(|now| now + 1 < held.len());
            return Ok(all + aside.map_or(0, |now| held[now] * 2));
        }
        if all <= free {
            return Ok(all);
        }
        // They share what they have in common, which takes a look at all of it to tell.
        let mut needed = held[0];
        for pair in self.states.windows(2) {
            let (before, after) = (
                self.source_content(&pair[0])?,
                self.source_content(&pair[1])?,
            );
            needed += differing_bytes(before.as_ref(), after.as_ref()).map_err(unreadable)?;
        }
        Ok(needed)
    }

    /// Writes one state after the other, and keeps each that is a snapshot as one of that name
    /// and time. Returns how many bytes were written.
    fn replay(&self, progress: &dyn Fn(u64, u64)) -> Result<u64> {
        let (first, later) = (&self.states[0], &self.states[1..]);
        let mut written = self.begin(first, progress)?;
        let mut aside = None;
        self.keep(first, later.is_empty(), &mut aside)?;
        for (index, state) in later.iter().enumerate() {
            written += self.go_on(state, progress)?;
            self.keep(state, index + 1 == later.len(), &mut aside)?;
        }
        if let Some(aside) = aside {
            let id = self.volume.id;
            let power = self.snapshots()?;
            let back = power
                .revert(id, &aside, &mut |_, _| {})
                .and_then(|_| power.delete_snapshot(id, &aside));
            let _ = back.map_err(|source| self.cannot_make(source))?;
        }
        Ok(written)
    }

    /// Makes the volume as it was in its first state.
    fn begin(&self, first: &State, progress: &dyn Fn(u64, u64)) -> Result<u64> {
        let fail = |source| self.cannot_make(source);
        let described = Description {
            size: first.size,
            moving_from: Some(self.volume.pool.clone()),
            ..description(self.volume)
        };
        let content = self.source_content(first)?;
        let raw = match first.snapshot {
            None => raw_file(self.from, self.volume)?,
            Some(_) => None,
        };
        let mut draft = self.to.draft(&described).map_err(fail)?;
        let mut written = 0;
        if let Some(file) = raw {
            let mut progress = |done, total| {
                written = done;
                progress(done, total);
            };
            let _: CopyPath = draft.fill_from(&file, &mut progress).map_err(fail)?;
        } else {
            let total = data_bytes(content.as_ref()).map_err(fail)?;
            let target = draft.content().map_err(fail)?;
            let mut progress = counted(progress, total);
            written = bring(target, content.as_ref(), &mut progress).map_err(fail)?;
        }
        draft.commit().map_err(fail)?;
        self.let_go_of(self.to)?;
        Ok(written)
    }

    /// Takes the volume to its next state.
    fn go_on(&self, state: &State, progress: &dyn Fn(u64, u64)) -> Result<u64> {
        let (id, fail) = (self.volume.id, |source| self.cannot_make(source));
        let _ = self.to.grow(id, state.size).map_err(fail)?;
        let wanted = self.source_content(state)?;
        let mut content = self.to.content(id, Access::ReadWrite).map_err(fail)?;
        let total = data_bytes(wanted.as_ref()).map_err(fail)?;
        let mut progress = counted(progress, total);
        let written = bring(content.as_mut(), wanted.as_ref(), &mut progress).map_err(fail)?;
        content.flush().map_err(fail)?;
        drop(content);
        self.let_go_of(self.to)?;
        Ok(written)
    }

    /// Keeps the state that the volume has been taken to, under its own name, or aside where it is
    /// to come back.
    fn keep(&self, state: &State, is_last: bool, aside: &mut Option<SnapshotName>) -> Result<()> {
        let (name, created) = match &state.snapshot {
            Some((name, created)) => (name.clone(), *created),
            None if is_last => return Ok(()),
            None => {
                let name = self.name_for_aside()?;
                *aside = Some(name.clone());
                (name, Timestamp::now())
            }
        };
        let _ = self
            .snapshots()?
            .take_snapshot(self.volume.id, &name, created, None, &mut |_, _| {})
            .map_err(|source| self.cannot_make(source))?;
        Ok(())
    }

    /// Reads all states again where they are now, and compares them with what they were copied
    /// from.
    fn compare(&self, progress: &dyn Fn(u64, u64)) -> Result<()> {
        let fail = |source| self.cannot_make(source);
        let id = self.volume.id;
        let facts = self.to.facts(id).map_err(fail)?;
        if facts.size != self.volume.size {
            return Err(self.differs("its size".to_owned()));
        }
        if let Some(power) = self.to.snapshots() {
            let there = power.snapshots(id).map_err(fail)?;
            let there = there.into_iter();
            let there = there.map(|it| (it.name, (it.created.as_second(), it.size)));
            let wanted = self.states.iter().filter_map(|state| {
                let (name, created) = state.snapshot.clone()?;
                Some((name, (created.as_second(), state.size)))
            });
            if there.collect::<BTreeMap<_, _>>() != wanted.collect() {
                return Err(self.differs("its snapshots".to_owned()));
            }
        }
        for state in &self.states {
            let source = self.source_content(state)?;
            let name = state.snapshot.as_ref().map(|(name, _)| name);
            let target = content_of(self.to, id, name).map_err(fail)?;
            let total = data_bytes(source.as_ref()).map_err(fail)?;
            let mut progress = counted(progress, total);
            let difference =
                first_difference(source.as_ref(), target.as_ref(), &mut progress).map_err(fail)?;
            if let Some(at) = difference {
                let of = name.map_or(String::new(), |name| format!(" of snapshot {name}"));
                return Err(self.differs(format!("byte {at}{of}")));
            }
        }
        self.let_go_of(self.to)?;
        self.let_go_of(self.from)
    }

    /// Has the disk asked for what is compared, as far as the kernel takes the advice, rather than
    /// its memory of what was written.
    fn let_go_of(&self, pool: &dyn Pool) -> Result<()> {
        let id = self.volume.id;
        let fail = |source| self.cannot_make(source);
        let location = pool.open(id, Access::ReadOnly).map_err(fail)?;
        if let Ok(file) = File::open(location.path()) {
            sparse::forget(&file);
        }
        pool.close(id).map_err(fail)
    }

    fn source_content(&self, state: &State) -> Result<Box<dyn Content>> {
        let name = state.snapshot.as_ref().map(|(name, _)| name);
        content_of(self.from, self.volume.id, name)
            .map_err(|source| pool_error(self.volume, "read", source))
    }

    fn snapshots(&self) -> Result<&dyn Snapshots> {
        self.to.snapshots().ok_or_else(|| Error::PoolLacks {
            pool: self.to.name().clone(),
            what: "keep snapshots",
        })
    }

    /// A name that no snapshot of the volume has.
    fn name_for_aside(&self) -> Result<SnapshotName> {
        let taken = |name: &str| {
            let mut names = self
                .states
                .iter()
                .filter_map(|state| state.snapshot.as_ref());
            names.any(|(taken, _)| taken.as_str() == name)
        };
        let numbered = (2_u32..).map(|number| format!("moving-{number}"));
        let free = std::iter::once("moving".to_owned())
            .chain(numbered)
            .find(|name| !taken(name));
        free.and_then(|name| name.parse().ok())
            .ok_or_else(|| Error::NameTaken {
                kind: crate::error::Kind::Snapshot,
                name: "moving".to_owned(),
            })
    }

    fn cannot_make(&self, source: PoolError) -> Error {
        Error::Pool {
            pool: self.to.name().clone(),
            action: format!("take in volume {}", self.volume.name),
            source,
        }
    }

    fn differs(&self, what: String) -> Error {
        Error::MovedWrongly {
            volume: self.volume.name.clone(),
            pool: self.to.name().clone(),
            what,
        }
    }
}

/// Progress that is told how much more was done.
fn counted(progress: &dyn Fn(u64, u64), total: u64) -> impl FnMut(u64) {
    let mut done = 0;
    move |more| {
        done += more;
        // What has to be cleared comes on top of what there is to copy.
        progress(done.min(total), total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_taken_through_its_states_from_the_smallest_to_the_largest() {
        let snapshot = |name: &str, minute: i64, mib| Snapshot {
            name: name.parse().unwrap(),
            created: Timestamp::from_second(minute * 60).unwrap(),
            size: Bytes::from_mib(mib),
            alone: None,
        };
        let snapshots = vec![
            snapshot("first", 1, 2),
            snapshot("large", 2, 4),
            snapshot("back", 3, 2),
        ];
        let names: Vec<_> = in_order(snapshots, Bytes::from_mib(2))
            .into_iter()
            .map(|state| {
                state
                    .snapshot
                    .map_or("now".to_owned(), |(name, _)| name.to_string())
            })
            .collect();
        assert_eq!(names, ["first", "back", "now", "large"]);
    }
}
