//! What is known of a volume's past: changing it, and what it forbids.
//!
//! The catalogue says it; the description beside the volume repeats it.

use std::collections::BTreeMap;

use sistemo_catalog::Intent;
use sistemo_host::Changed;
use sistemo_model::{History, Reference, SnapshotMark, SnapshotName, Volume, VolumeId};
use sistemo_pools::Snapshot;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::snapshots::SnapshotView;

/// What becomes of a snapshot's pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// It is put in.
    In,
    /// It is taken out.
    Out,
}

impl Engine {
    /// Changes what is known of a volume's past, there and beside the volume, whose lock is held.
    /// A crash in the middle, or a pool that cannot be written now, leaves the description as it
    /// was, which the next command makes up for.
    pub(crate) fn change_history(
        &self,
        id: VolumeId,
        change: impl FnOnce(&mut History),
    ) -> Result<()> {
        let intent = Intent::DescribeVolume { volume: id };
        let begun = self.catalogue.write(|session| {
            let before = session.volume(id)?.history;
            let mut history = before.clone();
            change(&mut history);
            if history == before {
                return Ok(None);
            }
            session.set_volume_history(id, &history)?;
            Ok::<_, Error>(Some(session.begin(&intent)?))
        })?;
        if let Some(begun) = begun
            && let Err(error) = self.settle_description(id, begun)
        {
            self.leave_for_later(&intent, &error);
        }
        Ok(())
    }

    /// Changes what is known of a volume's snapshots, given which there are. What was known of
    /// others is forgotten. Its lock is held.
    pub(crate) fn change_marks(
        &self,
        id: VolumeId,
        there: &[Snapshot],
        change: impl FnOnce(&mut BTreeMap<SnapshotName, SnapshotMark>),
    ) -> Result<()> {
        self.change_history(id, |history| {
            change(&mut history.marks);
            history.marks.retain(|name, mark| {
                let says_something = *mark != SnapshotMark::default();
                says_something && there.iter().any(|snapshot| snapshot.name == *name)
            });
        })
    }

    /// Pins a snapshot, so that neither a rotation nor a delete takes it, or takes the pin out;
    /// its volume may be in use. Returns it with whether that changed anything.
    ///
    /// # Errors
    /// Where there is no such snapshot, or the pool cannot be read.
    pub fn pin_snapshot(
        &self,
        reference: &Reference,
        name: &SnapshotName,
        pin: Pin,
    ) -> Result<(SnapshotView, Changed)> {
        self.use_reserve_where_full();
        let (volume, _held) = self.hold_volume_alone(reference)?;
        let snapshot = self.find_snapshot(&volume, name)?;
        let (mut mark, pinned) = (volume.history.mark(name), pin == Pin::In);
        if mark.pinned == pinned {
            return Ok((SnapshotView::new(snapshot, mark), Changed::No));
        }
        mark.pinned = pinned;
        let there = self.snapshots_of(&volume)?;
        self.change_marks(volume.id, &there, |marks| {
            marks.insert(name.clone(), mark);
        })?;
        Ok((SnapshotView::new(snapshot, mark), Changed::Yes))
    }

    /// Refuses to let a volume go that has a pinned snapshot. Its lock is held, or this is only a
    /// look beforehand.
    pub(crate) fn require_no_pins(&self, volume: &Volume) -> Result<()> {
        let pinned = self.pinned_snapshots(volume)?;
        if pinned.is_empty() {
            return Ok(());
        }
        Err(Error::VolumePinned {
            volume: volume.name.clone(),
            snapshots: pinned,
        })
    }

    /// The snapshots of a volume that are pinned, oldest first.
    fn pinned_snapshots(&self, volume: &Volume) -> Result<Vec<SnapshotName>> {
        let history = &volume.history;
        if !history.marks.values().any(|mark| mark.pinned) {
            return Ok(Vec::new());
        }
        let there = self.snapshots_of(volume)?.into_iter();
        let names = there.map(|snapshot| snapshot.name);
        Ok(names.filter(|name| history.mark(name).pinned).collect())
    }
}
