//! Which machine holds which volume.

use rusqlite::Params;
use sistemo_model::{Access, Attachment, Lifecycle, MachineId, MachineName, VolumeId};

use crate::connection::{Session, Transaction};
use crate::error::{CatalogError, Kind, Result};
use crate::rows::Columns;

/// An attachment with the name of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The name of the machine that holds the volume.
    pub machine_name: MachineName,
    /// The volume and its place.
    pub attachment: Attachment,
}

impl Session<'_> {
    /// The volumes of a machine by position, its root first.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`] and what `SQLite` says.
    pub fn attachments_of(&self, machine: MachineId) -> Result<Vec<Attachment>> {
        let which = "WHERE machine = ?1 ORDER BY position";
        let holdings = self.select_holdings(which, [machine.to_string()])?;
        Ok(holdings
            .into_iter()
            .map(|holding| holding.attachment)
            .collect())
    }

    /// The machine that holds a volume, if any.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`] and what `SQLite` says.
    pub fn holder_of(&self, volume: VolumeId) -> Result<Option<Holding>> {
        let holdings = self.select_holdings("WHERE volume = ?1", [volume.to_string()])?;
        Ok(holdings.into_iter().next())
    }

    /// Every attachment, ordered by machine name and position.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`] and what `SQLite` says.
    pub fn all_attachments(&self) -> Result<Vec<Holding>> {
        self.select_holdings("ORDER BY machine_name, position", ())
    }

    /// The lowest free position of a machine for a data volume, 1 or more.
    ///
    /// # Errors
    /// [`CatalogError::NoPosition`] where all are taken; [`CatalogError::NotFound`].
    pub fn next_position(&self, machine: MachineId) -> Result<u8> {
        let record = self.machine(machine)?;
        let taken = self.attachments_of(machine)?;
        (1..Attachment::LIMIT)
            .find(|position| taken.iter().all(|held| held.position != *position))
            .ok_or(CatalogError::NoPosition {
                machine: record.name,
            })
    }

    fn select_holdings(&self, which: &str, params: impl Params) -> Result<Vec<Holding>> {
        let sql = format!(
            "SELECT volume, machine, position, read_only, volumes.name AS volume_name,
                    machines.name AS machine_name
             FROM attachments JOIN volumes ON volumes.id = volume
                              JOIN machines ON machines.id = machine {which}"
        );
        self.rows("attachments", &sql, params, read_holding)
    }
}

impl Transaction<'_> {
    /// Gives a volume to a machine. Position 0 is the root's.
    ///
    /// # Errors
    /// [`CatalogError::VolumeAttached`] where a machine holds it, be it this one;
    /// [`CatalogError::PositionTaken`]; [`CatalogError::NoPosition`] for a position beyond the
    /// last; [`CatalogError::BeingDeleted`] where either is going, or the volume is in the trash;
    /// [`CatalogError::NotFound`].
    pub fn attach(
        &self,
        machine: MachineId,
        volume: VolumeId,
        position: u8,
        access: Access,
    ) -> Result<()> {
        let (machine_record, volume_record) = (self.machine(machine)?, self.volume(volume)?);
        let goes = [Lifecycle::Trashed, Lifecycle::Deleting];
        if goes.contains(&volume_record.lifecycle) {
            return Err(being_deleted(Kind::Volume, volume_record.name));
        }
        if machine_record.lifecycle == Lifecycle::Deleting {
            return Err(being_deleted(Kind::Machine, machine_record.name));
        }
        self.expect_free(volume)?;
        if position >= Attachment::LIMIT {
            return Err(CatalogError::NoPosition {
                machine: machine_record.name,
            });
        }
        let held = self.attachments_of(machine)?;
        if let Some(there) = held.into_iter().find(|held| held.position == position) {
            return Err(CatalogError::PositionTaken {
                machine: machine_record.name,
                position,
                volume: there.volume_name,
            });
        }
        let sql = "INSERT INTO attachments (volume, machine, position, read_only)
                   VALUES (?1, ?2, ?3, ?4)";
        let read_only = access == Access::ReadOnly;
        let values = (volume.to_string(), machine.to_string(), position, read_only);
        self.execute("attach a volume", sql, values)?;
        self.touch_machine(machine)
    }

    /// Takes a volume from a machine.
    ///
    /// # Errors
    /// [`CatalogError::NotAttached`] where that machine does not hold it;
    /// [`CatalogError::NotFound`].
    pub fn detach(&self, machine: MachineId, volume: VolumeId) -> Result<()> {
        let (machine_record, volume_record) = (self.machine(machine)?, self.volume(volume)?);
        let sql = "DELETE FROM attachments WHERE machine = ?1 AND volume = ?2";
        let values = (machine.to_string(), volume.to_string());
        if self.execute("detach a volume", sql, values)? == 0 {
            return Err(CatalogError::NotAttached {
                volume: volume_record.name,
                machine: machine_record.name,
            });
        }
        self.touch_machine(machine)
    }
}

fn being_deleted(kind: Kind, name: impl Into<String>) -> CatalogError {
    CatalogError::BeingDeleted {
        kind,
        name: name.into(),
    }
}

fn read_holding(row: &Columns<'_>) -> Result<Holding> {
    let read_only: bool = row.value("read_only")?;
    Ok(Holding {
        machine_name: row.word("machine_name")?,
        attachment: Attachment {
            machine: row.word("machine")?,
            volume: row.word("volume")?,
            volume_name: row.word("volume_name")?,
            position: row.number("position")?,
            access: if read_only {
                Access::ReadOnly
            } else {
                Access::ReadWrite
            },
        },
    })
}
