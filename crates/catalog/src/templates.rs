//! Root volumes that are made anew at each start, and what they are made from.

use std::collections::BTreeMap;

use sistemo_model::{MachineId, MachineName, VolumeId, VolumeName};

use crate::connection::Session;
use crate::error::Result;
use crate::rows::Columns;

/// A root volume that is made at each start of its machine, and thrown away at each stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disposable {
    /// The machine whose root it is.
    pub machine: MachineId,
    /// That machine's name.
    pub machine_name: MachineName,
    /// The volume that it is cloned from.
    pub template: VolumeId,
    /// That volume's name.
    pub template_name: VolumeName,
    /// Whether the machine is recorded as active: only then is there anything of the volume.
    pub active: bool,
}

impl Session<'_> {
    /// All root volumes that are made anew at each start.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`](crate::CatalogError::DamagedRow) and what `SQLite` says.
    pub fn disposables(&self) -> Result<BTreeMap<VolumeId, Disposable>> {
        Ok(self.select_disposables(None)?.into_iter().collect())
    }

    /// What is to be known of a volume that is made anew at each start; `None` for any other.
    ///
    /// # Errors
    /// As [`Session::disposables`].
    pub fn disposable(&self, id: VolumeId) -> Result<Option<Disposable>> {
        let found = self.select_disposables(Some(id))?.pop();
        Ok(found.map(|(_, disposable)| disposable))
    }

    /// The machines whose root volumes are cloned from this volume, those being made or removed
    /// included, ordered by name.
    ///
    /// # Errors
    /// As [`Session::disposables`].
    pub fn based_on(&self, template: VolumeId) -> Result<Vec<MachineName>> {
        let sql = "SELECT id, name FROM machines WHERE template = ?1 ORDER BY name";
        self.rows("machines", sql, [template.to_string()], |row| {
            row.word("name")
        })
    }

    fn select_disposables(&self, only: Option<VolumeId>) -> Result<Vec<(VolumeId, Disposable)>> {
        let sql = "SELECT attachments.volume AS id, machines.id AS machine,
                          machines.name AS machine_name, machines.template AS template,
                          templates.name AS template_name, machines.state AS state
                   FROM machines
                   JOIN attachments ON attachments.machine = machines.id
                   JOIN volumes AS templates ON templates.id = machines.template
                   WHERE attachments.position = 0 AND (?1 IS NULL OR attachments.volume = ?1)";
        let only = only.map(|id| id.to_string());
        self.rows("machines", sql, [only], |row| {
            Ok((row.word("id")?, read_disposable(row)?))
        })
    }
}

fn read_disposable(row: &Columns<'_>) -> Result<Disposable> {
    let state: String = row.value("state")?;
    Ok(Disposable {
        machine: row.word("machine")?,
        machine_name: row.word("machine_name")?,
        template: row.word("template")?,
        template_name: row.word("template_name")?,
        active: state != "stopped",
    })
}
