//! What is known of a volume's past, and what is to be kept of it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::volume::{UnknownWord, from_word};
use crate::{SnapshotName, Timestamp, VolumeId};

/// What is known of a volume's past, and what is to be kept of it.
///
/// Which snapshots there are is said by the volume's pool alone; here is what people and the
/// engine want of them. On disk, in the catalogue and beside the volume, it is a JSON object
/// without the fields that say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// How many revisions of it are kept; without a number, as many as its pool says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revisions_to_keep: Option<u32>,
    /// What it was cloned from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<CloneOrigin>,
    /// When its content last changed, as far as that goes through us: a machine that runs with
    /// it changes it until it stops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed: Option<Timestamp>,
    /// Whether the machine that had it last did not stop cleanly.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dirty: bool,
    /// What is known of its snapshots. A snapshot without a mark is one that was asked for and
    /// is not pinned; a mark without a snapshot means nothing.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub marks: BTreeMap<SnapshotName, SnapshotMark>,
    /// Since when it is in the trash, and until when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trashed: Option<Trashed>,
}

impl History {
    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == History::default()
    }

    /// What is known of a snapshot.
    #[must_use]
    pub fn mark(&self, snapshot: &SnapshotName) -> SnapshotMark {
        self.marks.get(snapshot).copied().unwrap_or_default()
    }
}

/// The state of a volume that another one was cloned from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneOrigin {
    /// The volume.
    pub volume: VolumeId,
    /// When it held what was cloned.
    pub as_of: Timestamp,
}

/// What is known of a snapshot besides what its pool says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMark {
    /// Why it was taken.
    pub kind: SnapshotKind,
    /// Whether it stays until somebody says otherwise: neither a rotation nor a delete takes it.
    pub pinned: bool,
}

/// Why a snapshot was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotKind {
    /// Somebody asked for it.
    #[default]
    Requested,
    /// A machine stopped cleanly; it goes when there are newer ones enough.
    Revision,
    /// The volume was taken back or repaired, and this is what it held before.
    Replaced,
}

impl SnapshotKind {
    /// The word users see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            SnapshotKind::Requested => "requested",
            SnapshotKind::Revision => "revision",
            SnapshotKind::Replaced => "replaced",
        }
    }
}

/// A volume's time in the trash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trashed {
    /// When it was deleted.
    pub at: Timestamp,
    /// Until when it can be restored, unless its pool needs the space.
    pub until: Timestamp,
}

from_word!(
    SnapshotKind,
    "kind of snapshot",
    [
        SnapshotKind::Requested,
        SnapshotKind::Revision,
        SnapshotKind::Replaced
    ]
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_without_what_says_nothing() {
        let text = serde_json::to_string(&History::default()).unwrap();
        assert_eq!(text, "{}");
        let mut history = History {
            dirty: true,
            ..History::default()
        };
        let mark = SnapshotMark {
            kind: SnapshotKind::Revision,
            pinned: true,
        };
        history.marks.insert("monday".parse().unwrap(), mark);
        let text = serde_json::to_string(&history).unwrap();
        let expected = r#"{"dirty":true,"marks":{"monday":{"kind":"revision","pinned":true}}}"#;
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<History>(&text).unwrap(), history);
    }

    #[test]
    fn a_snapshot_without_a_mark_was_asked_for() {
        let mark = History::default().mark(&"monday".parse().unwrap());
        assert_eq!((mark.kind, mark.pinned), (SnapshotKind::Requested, false));
    }
}
