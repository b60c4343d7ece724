//! Snapshots that nobody asked for: what a machine left when it stopped cleanly, and what a volume
//! held before it was taken back.

use sistemo_host::Changed;
use sistemo_model::{Access, History, SnapshotKind, SnapshotMark, SnapshotName, Timestamp, Volume};
use sistemo_pools::{Cost, Pool, Snapshot, Snapshots, Way};

use crate::copying::data_bytes;
use crate::engine::Engine;
use crate::error::Result;
use crate::history::keep_marks_of;
use crate::snapshots::{made_up_name, power_of, snapshot_error};
use crate::volumes::pool_error;

/// A snapshot that is to be taken of a volume in nobody's use, under a name made up for it.
pub(crate) struct Planned {
    pub(crate) name: SnapshotName,
    created: Timestamp,
}

impl Planned {
    /// Makes up a name, and marks it in what is known of the volume: a snapshot without a mark
    /// would be one that was asked for. To be recorded before the snapshot is taken.
    pub(crate) fn new(
        history: &mut History,
        there: &[Snapshot],
        created: Timestamp,
        kind: SnapshotKind,
    ) -> Result<Planned> {
        let name = made_up_name(there, created)?;
        let pinned = false;
        let mark = SnapshotMark { kind, pinned };
        history.marks.insert(name.clone(), mark);
        Ok(Planned { name, created })
    }

    /// Takes it.
    pub(crate) fn take(
        &self,
        engine: &Engine,
        volume: &Volume,
        power: &dyn Snapshots,
    ) -> Result<Way> {
        let (name, reporter) = (&self.name, &engine.reporter);
        reporter.stage(&format!("keeping {} as {name}", volume.name));
        let taken = engine.with_room(&volume.pool, || {
            let mut progress = |done, total| reporter.progress(done, total);
            power
                .take_snapshot(volume.id, name, self.created, None, &mut progress)
                .map_err(|source| snapshot_error(volume, name, "keep a snapshot of", source))
        });
        reporter.stage_over();
        taken
    }
}

impl Engine {
    /// Keeps what a machine left on a volume when it stopped cleanly, as a revision, and removes
    /// those of its snapshots that nobody asked for beyond as many as are kept. The volume's lock
    /// is held, and nothing has changed it since.
    ///
    /// A crash in the middle leaves the revision or none; called again, it takes no second one.
    ///
    /// # Errors
    /// Where the pool keeps no snapshots, has no room, or the volume is damaged. The volume is
    /// as usable as it was.
    pub(crate) fn leave_revision(&self, volume: &Volume, stopped: Timestamp) -> Result<()> {
        let keep = self.revisions_to_keep(volume)?;
        let mut history = volume.history.clone();
        let kept = history.marks.values();
        if keep == 0
            && kept
                .filter(|mark| mark.kind == SnapshotKind::Revision)
                .count()
                == 0
        {
            return Ok(());
        }
        let pool = self.pool(&volume.pool)?;
        let power = power_of(pool.as_ref())?;
        let there = self.snapshots_in(volume, power)?;
        let is_this = |snapshot: &Snapshot| {
            let kind = history.mark(&snapshot.name).kind;
            // Some drivers keep no more of the time than its second.
            let whole = Timestamp::from_second(stopped.as_second());
            let then = snapshot.created == stopped || whole.is_ok_and(|it| snapshot.created == it);
            kind == SnapshotKind::Revision && then
        };
        if keep > 0 && !there.iter().any(is_this) {
            self.refuse_damaged(volume.id)?;
            if power.snapshot_cost() == Cost::Copy {
                let needed = data_of(volume, pool.as_ref())?;
                let action = || format!("keep a snapshot of volume {}", volume.name);
                self.ensure_room(pool.as_ref(), needed, action)?;
            }
            let revision = SnapshotKind::Revision;
            let planned = Planned::new(&mut history, &there, stopped, revision)?;
            let marks = history.marks.clone();
            self.record_history(volume.id, |history| history.marks = marks)?;
            let _: Way = planned.take(self, volume, power)?;
        }
        let there = self.snapshots_in(volume, power)?;
        for name in surplus(&there, &history, keep) {
            let _: Changed = power
                .delete_snapshot(volume.id, &name)
                .map_err(|source| snapshot_error(volume, &name, "delete a snapshot of", source))?;
        }
        let there = self.snapshots_in(volume, power)?;
        self.record_history(volume.id, |history| keep_marks_of(&there, history))
    }
}

/// The bytes that a copy of a volume would read.
pub(crate) fn data_of(volume: &Volume, pool: &dyn Pool) -> Result<u64> {
    let fail = |source| pool_error(volume, "read", source);
    let content = pool.content(volume.id, Access::ReadOnly).map_err(fail)?;
    data_bytes(content.as_ref()).map_err(fail)
}

/// Which snapshots go, oldest first, where so many are kept that nobody asked for: revisions, and
/// states that were replaced. What is pinned neither goes nor counts. Without a number of
/// revisions, states that were replaced stay too.
///
/// `there` is in the order of their times.
pub(crate) fn surplus(there: &[Snapshot], history: &History, keep: u32) -> Vec<SnapshotName> {
    let rotates = |snapshot: &&Snapshot| {
        let mark = history.mark(&snapshot.name);
        let kind = match mark.kind {
            SnapshotKind::Requested => false,
            SnapshotKind::Revision => true,
            SnapshotKind::Replaced => keep > 0,
        };
        kind && !mark.pinned
    };
    let mut rotating: Vec<_> = there.iter().filter(rotates).collect();
    let stay = usize::try_from(keep).unwrap_or(usize::MAX);
    rotating.truncate(rotating.len().saturating_sub(stay));
    rotating
        .into_iter()
        .map(|snapshot| snapshot.name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sistemo_model::Bytes;

    use super::*;

    fn kind() -> impl Strategy<Value = SnapshotKind> {
        prop_oneof![
            Just(SnapshotKind::Requested),
            Just(SnapshotKind::Revision),
            Just(SnapshotKind::Replaced),
        ]
    }

    /// Snapshots `s0`, `s1`, … in the order of their times, and what is known of them.
    fn scene(marks: &[(SnapshotKind, bool)]) -> (Vec<Snapshot>, History) {
        let mut history = History::default();
        let mut there = Vec::new();
        for (number, (kind, pinned)) in marks.iter().enumerate() {
            let name: SnapshotName = format!("s{number}").parse().unwrap();
            let (kind, pinned) = (*kind, *pinned);
            let mark = SnapshotMark { kind, pinned };
            history.marks.insert(name.clone(), mark);
            there.push(Snapshot {
                name,
                created: Timestamp::UNIX_EPOCH,
                size: Bytes::MINIMUM,
                alone: None,
            });
        }
        (there, history)
    }

    fn gone(marks: &[(SnapshotKind, bool)], keep: u32) -> Vec<String> {
        let (there, history) = scene(marks);
        let names = surplus(&there, &history, keep).into_iter();
        names.map(|name| name.to_string()).collect()
    }

    const ASKED: (SnapshotKind, bool) = (SnapshotKind::Requested, false);
    const REVISION: (SnapshotKind, bool) = (SnapshotKind::Revision, false);
    const PINNED: (SnapshotKind, bool) = (SnapshotKind::Revision, true);
    const REPLACED: (SnapshotKind, bool) = (SnapshotKind::Replaced, false);

    #[test]
    fn the_oldest_that_nobody_asked_for_go() {
        let all = [REVISION, ASKED, REPLACED, PINNED, REVISION, REVISION];
        assert_eq!(gone(&all, 2), ["s0", "s2"]);
        assert_eq!(gone(&all, 3), ["s0"]);
        assert_eq!(gone(&all, 4), [""; 0]);
    }

    #[test]
    fn without_a_number_revisions_go_and_what_was_replaced_stays() {
        assert_eq!(gone(&[REVISION, REPLACED, ASKED, PINNED], 0), ["s0"]);
    }

    proptest! {
        #[test]
        fn what_stays_is_what_was_asked_for_what_is_pinned_and_the_newest_of_the_rest(
            marks in prop::collection::vec((kind(), any::<bool>()), 0..12),
            keep in 0..6_u32,
        ) {
            let (there, history) = scene(&marks);
            let gone = surplus(&there, &history, keep);
            let rotates = |name: &SnapshotName| {
                let mark = history.mark(name);
                !mark.pinned && mark.kind != SnapshotKind::Requested
            };
            prop_assert!(gone.iter().all(rotates));
            let position = |name: &SnapshotName| there.iter().position(|it| it.name == *name);
            prop_assert!(gone.is_sorted_by_key(position), "oldest first");
            if keep > 0 {
                let stay = there.iter().filter(|it| rotates(&it.name) && !gone.contains(&it.name));
                let stay: Vec<_> = stay.collect();
                let rotating = stay.len() + gone.len();
                prop_assert_eq!(stay.len(), rotating.min(keep as usize));
                if let (Some(oldest), Some(newest)) = (stay.first(), gone.last()) {
                    prop_assert!(position(newest) < position(&oldest.name));
                }
            }
        }
    }
}
