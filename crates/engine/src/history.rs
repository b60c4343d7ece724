//! What is known of a volume's past: changing it, and what it forbids.
//!
//! The catalogue says it; the description beside the volume repeats it.

use std::collections::BTreeMap;

use serde::Serialize;
use sistemo_catalog::Intent;
use sistemo_host::Changed;
use sistemo_model::{
    Access, CloneOrigin, History, Lifetime, Machine, Reference, SnapshotMark, SnapshotName,
    Timestamp, Volume, VolumeId, VolumeName,
};
use sistemo_pools::Snapshot;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::holding::Unless;
use crate::snapshots::{SnapshotView, power_of};
use crate::volumes::VolumeView;

/// What users see of a volume's past.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Past {
    /// Whether the machine that had it last did not stop cleanly.
    pub dirty: bool,
    /// When its content last changed, as far as that goes through us; `None` where it has not
    /// since it was made.
    pub changed: Option<Timestamp>,
    /// What it was cloned from.
    pub origin: Option<OriginView>,
    /// Whether that has changed since; `None` for what is no clone, or whose source is gone.
    pub outdated: Option<bool>,
    /// How many revisions of it are kept; `None` where it follows its pool, and that cannot be
    /// used.
    pub revisions_to_keep: Option<u32>,
    /// Who says how many: `volume` or `pool`.
    pub revisions_set_by: &'static str,
}

/// What users see of what a volume was cloned from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OriginView {
    /// The volume.
    pub volume_id: VolumeId,
    /// Its name; `None` where it is gone.
    pub volume: Option<VolumeName>,
    /// When it held what was cloned.
    pub as_of: Timestamp,
}

struct Source {
    view: OriginView,
    outdated: Option<bool>,
}

/// What is to be different about a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeChanges {
    /// How many revisions of it are kept.
    pub revisions_to_keep: Option<RevisionsToKeep>,
}

/// How many revisions of a volume are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevisionsToKeep {
    /// So many; 0 keeps none.
    Number(u32),
    /// As many as its pool says.
    AsPool,
}

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
            keep_marks_of(there, history);
        })
    }

    /// Forgets what was known of snapshots that are gone. The volume's lock is held.
    pub(crate) fn forget_stale_marks(&self, volume: &Volume) -> Result<()> {
        let there = self.snapshots_of(volume)?;
        self.change_marks(volume.id, &there, |_| {})
    }

    /// Notes that the content of a volume, whose lock is held, is another now.
    pub(crate) fn note_changed(&self, id: VolumeId) -> Result<()> {
        self.change_history(id, |history| history.changed = Some(Timestamp::now()))
    }

    /// Records what is known of a volume, whose lock is held, for an intent that brings its
    /// description in line.
    pub(crate) fn record_history(
        &self,
        id: VolumeId,
        change: impl FnOnce(&mut History),
    ) -> Result<()> {
        self.catalogue.write(|session| {
            let mut history = session.volume(id)?.history;
            change(&mut history);
            Ok(session.set_volume_history(id, &history)?)
        })
    }

    /// How many revisions of a volume are kept: as many as it says, else as its pool does.
    ///
    /// # Errors
    /// Where its pool is not usable as it is configured.
    pub(crate) fn revisions_to_keep(&self, volume: &Volume) -> Result<u32> {
        match volume.history.revisions_to_keep {
            Some(number) => Ok(number),
            None => Ok(self.pool_keeping(&volume.pool)?.revisions),
        }
    }

    /// Changes what is kept of a volume, which may be in use.
    ///
    /// # Errors
    /// Where it is to keep revisions and its pool keeps no snapshots.
    pub fn set_volume(&self, reference: &Reference, changes: &VolumeChanges) -> Result<VolumeView> {
        let (volume, _held) = self.hold_volume_alone(reference)?;
        if let Some(RevisionsToKeep::Number(1..)) = changes.revisions_to_keep {
            let _ = power_of(self.pool(&volume.pool)?.as_ref())?;
        }
        self.change_history(volume.id, |history| {
            if let Some(revisions) = changes.revisions_to_keep {
                history.revisions_to_keep = match revisions {
                    RevisionsToKeep::Number(number) => Some(number),
                    RevisionsToKeep::AsPool => None,
                };
            }
        })?;
        self.volume(&Reference::from(volume.id.to_string()))
    }

    /// What there is to tell of a volume's past.
    pub(crate) fn past(&self, volume: &Volume) -> Result<Past> {
        let history = &volume.history;
        let source = history.origin.map(|origin| self.origin_of(origin));
        let source = source.transpose()?;
        let own = history.revisions_to_keep;
        Ok(Past {
            dirty: history.dirty,
            changed: history.changed,
            outdated: source.as_ref().and_then(|source| source.outdated),
            origin: source.map(|source| source.view),
            revisions_to_keep: self.revisions_to_keep(volume).ok(),
            revisions_set_by: if own.is_some() { "volume" } else { "pool" },
        })
    }

    /// What a volume was cloned from, and whether that has changed since.
    fn origin_of(&self, origin: CloneOrigin) -> Result<Source> {
        let (source, holder) = self.catalogue.read(|session| {
            let all = session.volumes()?.into_iter();
            let source = all.into_iter().find(|volume| volume.id == origin.volume);
            Ok::<_, Error>((source, session.holder_of(origin.volume)?))
        })?;
        let view = OriginView {
            volume_id: origin.volume,
            volume: source.as_ref().map(|source| source.name.clone()),
            as_of: origin.as_of,
        };
        let Some(source) = source else {
            let outdated = None;
            return Ok(Source { view, outdated });
        };
        let mut changed = source.history.changed > Some(origin.as_of);
        if let Some(holder) = holder.filter(|h| h.attachment.access == Access::ReadWrite) {
            // A machine that runs changes it now, and one that has ended has until it did.
            let machine = self.settle(holder.attachment.machine)?;
            let history = self
                .catalogue
                .read(|session| session.volume(source.id))?
                .history;
            changed = machine.state.is_active() || history.changed > Some(origin.as_of);
        }
        Ok(Source {
            view,
            outdated: Some(changed),
        })
    }

    /// Pins a snapshot, so that neither a rotation nor a delete takes it, or takes the pin out;
    /// its volume may be in use. Returns it with whether that changed anything.
    ///
    /// # Errors
    /// Where there is no such snapshot, the pool cannot be read, or the volume goes with a stop of
    /// its machine, whatever is pinned of it.
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
        if pinned {
            self.require_lasting(&volume)?;
        }
        mark.pinned = pinned;
        let there = self.snapshots_of(&volume)?;
        self.change_marks(volume.id, &there, |marks| {
            marks.insert(name.clone(), mark);
        })?;
        Ok((SnapshotView::new(snapshot, mark), Changed::Yes))
    }

    /// Refuses a volume that goes with a stop of its machine.
    fn require_lasting(&self, volume: &Volume) -> Result<()> {
        self.refuse_disposable(volume, Unless::Never)?;
        let passes = self.catalogue.read(|session| {
            let holder = session.holder_of(volume.id)?;
            let root = holder.filter(|holder| holder.attachment.position == 0);
            let machine = root.map(|root| session.machine(root.attachment.machine));
            let goes = |it: &Machine| it.owns_root && it.lifetime == Lifetime::Ephemeral;
            Ok::<_, Error>(machine.transpose()?.filter(goes))
        })?;
        passes.map_or(Ok(()), |machine| {
            Err(Error::MachineEphemeral {
                machine: machine.name,
                action: "pin a snapshot of its root volume",
            })
        })
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

/// Forgets what is known of snapshots that are not there, and what says nothing.
pub(crate) fn keep_marks_of(there: &[Snapshot], history: &mut History) {
    history.marks.retain(|name, mark| {
        let says_something = *mark != SnapshotMark::default();
        says_something && there.iter().any(|snapshot| snapshot.name == *name)
    });
}
