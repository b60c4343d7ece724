//! The records of volumes.

use rusqlite::Params;
use sistemo_model::{
    Boot, Bytes, Digest, History, Lifecycle, PoolName, Reference, Timestamp, Trashed, Volume,
    VolumeId, VolumeName,
};

use crate::connection::{Session, Transaction};
use crate::error::{CatalogError, Kind, Result};
use crate::objects::expect_lifecycle;
use crate::rows::Columns;

impl Session<'_> {
    /// The volumes that are ready, ordered by name.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`] and what `SQLite` says.
    pub fn volumes(&self) -> Result<Vec<Volume>> {
        self.select_volumes("WHERE lifecycle = 'ready' ORDER BY name", ())
    }

    /// All volumes, also those being made or removed or in the trash, ordered by name.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`] and what `SQLite` says.
    pub fn all_volumes(&self) -> Result<Vec<Volume>> {
        self.select_volumes("ORDER BY name", ())
    }

    /// The volume with this ID, in whatever stage of its life.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    pub fn volume(&self, id: VolumeId) -> Result<Volume> {
        self.any_volume(id)?
            .ok_or_else(|| CatalogError::no_such(Kind::Volume, &id))
    }

    /// As [`Session::volume`], where there may be none: it was destroyed.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`] and what `SQLite` says.
    pub fn any_volume(&self, id: VolumeId) -> Result<Option<Volume>> {
        Ok(self
            .select_volumes("WHERE id = ?1", [id.to_string()])?
            .pop())
    }

    /// The ready volume that a user means: by name, full ID or the beginning of an ID, in that
    /// order.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::Ambiguous`].
    pub fn find_volume(&self, reference: &Reference) -> Result<Volume> {
        let id = self.find(Kind::Volume, reference)?;
        self.select_volumes("WHERE id = ?1", [id])?
            .pop()
            .ok_or_else(|| CatalogError::no_such(Kind::Volume, reference))
    }

    /// What is in the trash, what came there first at the beginning.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`] and what `SQLite` says.
    pub fn trash(&self) -> Result<Vec<Volume>> {
        let mut volumes = self.select_volumes("WHERE lifecycle = 'trashed'", ())?;
        volumes.sort_by_key(|volume| (volume.history.trashed.map(|trashed| trashed.at), volume.id));
        Ok(volumes)
    }

    /// What has been in the trash for as long as it was to be, what was due first at the
    /// beginning. Costs next to nothing where there is none.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`] and what `SQLite` says.
    pub fn expired_trash(&self, now: Timestamp) -> Result<Vec<Volume>> {
        // Compared as texts: a fraction of a second may make that a second late.
        self.select_volumes(
            "WHERE lifecycle = 'trashed' AND history ->> '$.trashed.until' <= ?1
             ORDER BY history ->> '$.trashed.until'",
            [now.to_string()],
        )
    }

    /// The volume in the trash that a user means, as [`Session::find_volume`] finds one that is
    /// ready.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], and [`CatalogError::Ambiguous`] also where several have had
    /// the name.
    pub fn find_trashed_volume(&self, reference: &Reference) -> Result<Volume> {
        let id = self.find_where(Kind::Volume, "lifecycle = 'trashed'", reference)?;
        self.select_volumes("WHERE id = ?1", [id])?
            .pop()
            .ok_or_else(|| CatalogError::no_such(Kind::Volume, reference))
    }

    fn select_volumes(&self, which: &str, params: impl Params) -> Result<Vec<Volume>> {
        let sql = format!("SELECT * FROM volumes {which}");
        self.rows("volumes", &sql, params, read_volume)
    }
}

impl Transaction<'_> {
    /// Records a volume as it is given, times included.
    ///
    /// # Errors
    /// [`CatalogError::NameTaken`], [`CatalogError::IdTaken`].
    pub fn insert_volume(&self, volume: &Volume) -> Result<()> {
        self.expect_free_id(Kind::Volume, &volume.id)?;
        self.expect_free_name(Kind::Volume, &volume.id, volume.name.as_str())?;
        let boot = volume.boot.as_ref();
        self.execute(
            "record a volume",
            "INSERT INTO volumes (id, name, size, role, pool, filesystem, kernel, initrd,
                                  history, lifecycle, created, modified)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            (
                volume.id.to_string(),
                volume.name.as_str(),
                self.stored("a size", volume.size.get())?,
                volume.role.as_str(),
                volume.pool.as_str(),
                volume.filesystem.as_str(),
                boot.map(|boot| boot.kernel.as_str()),
                boot.and_then(|boot| boot.initrd.as_ref())
                    .map(Digest::as_str),
                self.written_history(&volume.history)?,
                volume.lifecycle.as_str(),
                volume.created.to_string(),
                volume.modified.to_string(),
            ),
        )?;
        Ok(())
    }

    /// Moves a volume to another stage of its life.
    ///
    /// # Errors
    /// [`CatalogError::IllegalLifecycle`] where that stage cannot follow;
    /// [`CatalogError::VolumeAttached`] where an attached volume would go;
    /// [`CatalogError::NameTaken`] where one leaves the trash whose name another has.
    pub fn set_volume_lifecycle(&self, id: VolumeId, next: Lifecycle) -> Result<()> {
        let volume = self.volume(id)?;
        expect_lifecycle(Kind::Volume, &volume.name, volume.lifecycle, next)?;
        if volume.lifecycle == Lifecycle::Trashed && next == Lifecycle::Ready {
            self.expect_free_name(Kind::Volume, &id, volume.name.as_str())?;
        }
        if matches!(next, Lifecycle::Trashed | Lifecycle::Deleting) {
            self.expect_free(id)?;
        }
        self.update_volume(id, "lifecycle", next.as_str())
    }

    /// Moves a volume to the trash; its name is anybody's from now on.
    ///
    /// # Errors
    /// As [`Transaction::set_volume_lifecycle`].
    pub fn trash_volume(&self, id: VolumeId, trashed: Trashed) -> Result<()> {
        self.set_volume_lifecycle(id, Lifecycle::Trashed)?;
        let mut history = self.volume(id)?.history;
        history.trashed = Some(trashed);
        self.set_volume_history(id, &history)
    }

    /// Takes a volume out of the trash, under a name that may be another than it had.
    ///
    /// # Errors
    /// As [`Transaction::set_volume_lifecycle`].
    pub fn restore_volume(&self, id: VolumeId, name: &VolumeName) -> Result<()> {
        self.rename_volume(id, name)?;
        self.set_volume_lifecycle(id, Lifecycle::Ready)?;
        let mut history = self.volume(id)?.history;
        history.trashed = None;
        self.set_volume_history(id, &history)
    }

    /// Gives a volume another name; its own does no harm. In the trash several may have one.
    ///
    /// # Errors
    /// [`CatalogError::NameTaken`], [`CatalogError::NotFound`].
    pub fn rename_volume(&self, id: VolumeId, name: &VolumeName) -> Result<()> {
        if self.volume(id)?.lifecycle != Lifecycle::Trashed {
            self.expect_free_name(Kind::Volume, &id, name.as_str())?;
        }
        self.update_volume(id, "name", name.as_str())
    }

    /// Records a volume's new virtual size.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    pub fn set_volume_size(&self, id: VolumeId, size: Bytes) -> Result<()> {
        let size = self.stored("a size", size.get())?;
        self.update_volume(id, "size", size)
    }

    /// Records that a volume is in another pool.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    pub fn set_volume_pool(&self, id: VolumeId, pool: &PoolName) -> Result<()> {
        self.update_volume(id, "pool", pool.as_str())
    }

    /// Records what a volume holds that was made anew under its ID and name: its size, filesystem,
    /// kernel and history.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    pub fn renew_volume(&self, volume: &Volume) -> Result<()> {
        let boot = volume.boot.as_ref();
        let sql = "UPDATE volumes SET size = ?2, filesystem = ?3, kernel = ?4, initrd = ?5,
                                      history = ?6, modified = ?7 WHERE id = ?1";
        let values = (
            volume.id.to_string(),
            self.stored("a size", volume.size.get())?,
            volume.filesystem.as_str(),
            boot.map(|boot| boot.kernel.as_str()),
            boot.and_then(|boot| boot.initrd.as_ref())
                .map(Digest::as_str),
            self.written_history(&volume.history)?,
            Timestamp::now().to_string(),
        );
        match self.execute("change a volume", sql, values)? {
            0 => Err(CatalogError::no_such(Kind::Volume, &volume.id)),
            _ => Ok(()),
        }
    }

    /// Records what is known of a volume's past.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    pub fn set_volume_history(&self, id: VolumeId, history: &History) -> Result<()> {
        let history = self.written_history(history)?;
        self.update_volume(id, "history", history)
    }

    fn written_history(&self, history: &History) -> Result<String> {
        serde_json::to_string(history).map_err(|error| {
            let error = rusqlite::Error::ToSqlConversionFailure(Box::new(error));
            CatalogError::database("record the history of a volume", self.path, error)
        })
    }

    /// Forgets a volume.
    ///
    /// # Errors
    /// [`CatalogError::VolumeAttached`], [`CatalogError::NotFound`].
    pub fn delete_volume(&self, id: VolumeId) -> Result<()> {
        self.expect_free(id)?;
        let sql = "DELETE FROM volumes WHERE id = ?1";
        match self.execute("forget a volume", sql, [id.to_string()])? {
            0 => Err(CatalogError::no_such(Kind::Volume, &id)),
            _ => Ok(()),
        }
    }

    fn update_volume(
        &self,
        id: VolumeId,
        column: &'static str,
        value: impl rusqlite::ToSql,
    ) -> Result<()> {
        let sql = format!("UPDATE volumes SET {column} = ?2, modified = ?3 WHERE id = ?1");
        let now = Timestamp::now().to_string();
        match self.execute("change a volume", &sql, (id.to_string(), value, now))? {
            0 => Err(CatalogError::no_such(Kind::Volume, &id)),
            _ => Ok(()),
        }
    }

    /// Refuses a volume that a machine holds.
    pub(crate) fn expect_free(&self, id: VolumeId) -> Result<()> {
        match self.holder_of(id)? {
            None => Ok(()),
            Some(holding) => Err(CatalogError::VolumeAttached {
                volume: holding.attachment.volume_name,
                machine: holding.machine_name,
            }),
        }
    }
}

fn read_volume(row: &Columns<'_>) -> Result<Volume> {
    let kernel: Option<Digest> = row.optional_word("kernel")?;
    let initrd = row.optional_word("initrd")?;
    Ok(Volume {
        id: row.word("id")?,
        name: row.word("name")?,
        size: Bytes::new(row.number("size")?),
        role: row.word("role")?,
        pool: row.word("pool")?,
        filesystem: row.word("filesystem")?,
        boot: kernel.map(|kernel| Boot { kernel, initrd }),
        history: read_history(row)?,
        lifecycle: row.word("lifecycle")?,
        created: row.word("created")?,
        modified: row.word("modified")?,
    })
}

fn read_history(row: &Columns<'_>) -> Result<History> {
    let text: String = row.value("history")?;
    serde_json::from_str(&text).map_err(|error| row.damaged("history", error))
}
