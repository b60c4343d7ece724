//! What was about to be done, for whoever finds it after a crash.
//!
//! The owner of an operation of several steps takes the locks of its objects, records an intent
//! in the transaction that changes their records, does the work, and removes the intent in the
//! transaction that records the result. It holds the locks from before the intent is recorded
//! until after it is removed. So whoever finds an intent and can take those locks
//! ([`Locks::try_intent`](crate::Locks::try_intent)) knows that its owner is gone, and that no
//! program the owner started is still writing; holding them, and having looked whether the
//! intent is still there ([`Session::intent`]), it may finish the operation or undo it.

use std::fmt;

use serde::{Deserialize, Serialize};
use sistemo_model::{Bytes, MachineId, PoolName, SnapshotName, Timestamp, VolumeId};

use crate::connection::{Session, Transaction};
use crate::error::{CatalogError, Result};
use crate::rows::Columns;

/// The number of a recorded intent; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IntentId(i64);

impl fmt::Display for IntentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An operation of several steps that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Intent {
    /// A volume is being made; its record is `Creating`.
    CreateVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// A volume is being removed; its record is `Deleting`.
    DeleteVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// A volume is being made larger; its record has the old size.
    GrowVolume {
        /// The volume.
        volume: VolumeId,
        /// The size it had.
        from: Bytes,
        /// The size it is to have.
        to: Bytes,
    },
    /// The record of a volume has changed, and the description beside it may not say so yet.
    #[serde(alias = "rename-volume")]
    DescribeVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// A machine that could write to a volume has stopped, and what belongs to that is still to
    /// be done about the volume.
    AfterStop {
        /// The volume.
        volume: VolumeId,
        /// The machine. Its lock is not needed.
        machine: MachineId,
        /// When it stopped.
        stopped: Timestamp,
        /// Whether it left the volume clean.
        clean: bool,
    },
    /// A root volume that is made anew at each start of its machine is being made, or is still
    /// there though the machine has stopped: what there is of it is to go.
    DiscardRoot {
        /// The volume.
        volume: VolumeId,
        /// The machine. Its lock is not needed.
        machine: MachineId,
    },
    /// A volume is being taken back to a snapshot; its record may have the size of either.
    RevertVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// A volume is being copied into another pool; its record has the one that it is in.
    MoveVolume {
        /// The volume.
        volume: VolumeId,
        /// The pool it is in.
        from: PoolName,
        /// The pool it is to be in.
        to: PoolName,
    },
    /// A volume was moved; its record has the pool that it is in now, and the other one may still
    /// hold what it was copied from.
    RemoveMoved {
        /// The volume.
        volume: VolumeId,
        /// The pool it was in.
        from: PoolName,
    },
    /// A volume is being copied into a snapshot while its machine, which ran, is held.
    SnapshotHeld {
        /// The machine, to be let go when that is over.
        machine: MachineId,
        /// The volume.
        volume: VolumeId,
    },
    /// A machine that ran is held while its volumes are kept as snapshots.
    HoldGuest {
        /// The machine, to be let go when that is over.
        machine: MachineId,
        /// Whether its guest's filesystems are frozen, or about to be; then they are to be thawed.
        frozen: bool,
    },
    /// Volumes are being kept as they are at one instant: all, or none.
    TakeSnapshots {
        /// The volumes.
        volumes: Vec<VolumeId>,
        /// The name of each snapshot, which none had before.
        snapshot: SnapshotName,
        /// The time of each snapshot, by which it is known from one that came later.
        created: Timestamp,
    },
    /// A copy of an image is being made in a pool; its record is `Creating`.
    CreateImageCopy {
        /// The copy, which is a volume to its pool.
        volume: VolumeId,
    },
    /// A copy of an image is being removed from a pool; its record is `Deleting`.
    DeleteImageCopy {
        /// The copy.
        volume: VolumeId,
    },
    /// A machine is being made; its record is `Creating`.
    DeployMachine {
        /// The machine.
        machine: MachineId,
        /// The root volume, where this deploy makes it.
        root: Option<VolumeId>,
    },
    /// A machine is being made of the volumes of another; its record, and theirs, is `Creating`.
    CloneMachine {
        /// The machine that is made.
        machine: MachineId,
        /// Its volumes, all of which are made for it.
        volumes: Vec<VolumeId>,
    },
    /// A machine is being removed; its record is `Deleting`.
    DeleteMachine {
        /// The machine.
        machine: MachineId,
        /// The root volume, where it is to be removed too.
        root: Option<VolumeId>,
    },
}

impl Intent {
    /// The volumes whose locks its owner holds.
    #[must_use]
    pub fn volumes(&self) -> Vec<VolumeId> {
        match self {
            Intent::CreateVolume { volume }
            | Intent::DeleteVolume { volume }
            | Intent::GrowVolume { volume, .. }
            | Intent::DescribeVolume { volume }
            | Intent::AfterStop { volume, .. }
            | Intent::DiscardRoot { volume, .. }
            | Intent::RevertVolume { volume }
            | Intent::MoveVolume { volume, .. }
            | Intent::RemoveMoved { volume, .. }
            | Intent::CreateImageCopy { volume }
            | Intent::DeleteImageCopy { volume } => vec![*volume],
            Intent::DeployMachine { root, .. } | Intent::DeleteMachine { root, .. } => {
                root.iter().copied().collect()
            }
            Intent::CloneMachine { volumes, .. } | Intent::TakeSnapshots { volumes, .. } => {
                volumes.clone()
            }
            // To let the machine go its own lock is enough, whoever has the volume's.
            Intent::SnapshotHeld { .. } | Intent::HoldGuest { .. } => Vec::new(),
        }
    }

    /// The machine whose lock its owner holds.
    #[must_use]
    pub fn machine(&self) -> Option<MachineId> {
        match self {
            Intent::DeployMachine { machine, .. }
            | Intent::CloneMachine { machine, .. }
            | Intent::DeleteMachine { machine, .. }
            | Intent::SnapshotHeld { machine, .. }
            | Intent::HoldGuest { machine, .. } => Some(*machine),
            Intent::CreateVolume { .. }
            | Intent::DeleteVolume { .. }
            | Intent::GrowVolume { .. }
            | Intent::DescribeVolume { .. }
            | Intent::AfterStop { .. }
            | Intent::DiscardRoot { .. }
            | Intent::RevertVolume { .. }
            | Intent::MoveVolume { .. }
            | Intent::RemoveMoved { .. }
            | Intent::TakeSnapshots { .. }
            | Intent::CreateImageCopy { .. }
            | Intent::DeleteImageCopy { .. } => None,
        }
    }
}

impl Intent {
    /// Whether it is part of what belongs to a stop of that machine, for whoever stopped it to
    /// carry out.
    #[must_use]
    pub fn follows_stop_of(&self, stopped: MachineId) -> bool {
        match *self {
            Intent::AfterStop { machine, .. }
            | Intent::DiscardRoot { machine, .. }
            // That of a machine that is gone when it stops.
            | Intent::DeleteMachine { machine, .. } => machine == stopped,
            _ => false,
        }
    }
}

impl Session<'_> {
    /// What is under way or was left behind, oldest first.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`] and what `SQLite` says.
    pub fn intents(&self) -> Result<Vec<(IntentId, Intent)>> {
        let sql = "SELECT id, intent FROM intents ORDER BY id";
        self.rows("intents", sql, (), |row| {
            Ok((IntentId(row.value("id")?), read_intent(row)?))
        })
    }

    /// The intent of that number, where it is not finished.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`] and what `SQLite` says.
    pub fn intent(&self, id: IntentId) -> Result<Option<Intent>> {
        let sql = "SELECT id, intent FROM intents WHERE id = ?1";
        self.row("intents", sql, [id.0], read_intent)
    }
}

impl Transaction<'_> {
    /// Records what its caller, who holds the locks of its objects, is about to do.
    ///
    /// # Errors
    /// What `SQLite` says.
    pub fn begin(&self, intent: &Intent) -> Result<IntentId> {
        let fail = |error| CatalogError::database("record an intent", self.path, error);
        let text = serde_json::to_string(intent)
            .map_err(|error| fail(rusqlite::Error::ToSqlConversionFailure(Box::new(error))))?;
        let sql = "INSERT INTO intents (intent, created) VALUES (?1, ?2)";
        self.execute(
            "record an intent",
            sql,
            (text, Timestamp::now().to_string()),
        )?;
        Ok(IntentId(self.connection.last_insert_rowid()))
    }

    /// Removes an intent that was carried out or undone; a finished one is no error.
    ///
    /// # Errors
    /// What `SQLite` says.
    pub fn finish(&self, id: IntentId) -> Result<()> {
        self.execute(
            "finish an intent",
            "DELETE FROM intents WHERE id = ?1",
            [id.0],
        )?;
        Ok(())
    }
}

fn read_intent(row: &Columns<'_>) -> Result<Intent> {
    let text: String = row.value("intent")?;
    serde_json::from_str(&text).map_err(|error| row.damaged("intent", error))
}
