//! The pools that were used before.
//!
//! Which pools there are is configuration. The catalogue only remembers which of them it has
//! seen with its marker: without one in its directory such a pool is not new but missing, as when
//! its disk is not mounted, and nothing may be created there.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use sistemo_model::{PoolName, Timestamp};

use crate::connection::{Session, Transaction};
use crate::error::Result;
use crate::rows::Columns;

/// A pool that was used before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPool {
    /// Its name.
    pub name: PoolName,
    /// The directory it had when it was last remembered.
    pub directory: PathBuf,
    /// The driver it had then; `None` where it was remembered before drivers were.
    pub driver: Option<String>,
    /// When it was first remembered.
    pub first_seen: Timestamp,
}

impl Session<'_> {
    /// What is remembered of a pool, where it was used before.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`](crate::CatalogError::DamagedRow) and what `SQLite` says.
    pub fn known_pool(&self, name: &PoolName) -> Result<Option<KnownPool>> {
        let sql = "SELECT * FROM pools WHERE name = ?1";
        self.row("pools", sql, [name.as_str()], read_pool)
    }

    /// All pools that were used before, ordered by name.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`](crate::CatalogError::DamagedRow) and what `SQLite` says.
    pub fn known_pools(&self) -> Result<Vec<KnownPool>> {
        self.rows("pools", "SELECT * FROM pools ORDER BY name", (), read_pool)
    }
}

impl Transaction<'_> {
    /// Remembers that a pool of this driver in this directory has this catalogue's marker. A pool that was
    /// known keeps the time it was first seen.
    ///
    /// # Errors
    /// What `SQLite` says.
    pub fn remember_pool(
        &self,
        name: &PoolName,
        directory: &Path,
        driver: Option<&str>,
    ) -> Result<()> {
        let sql = "INSERT INTO pools (name, directory, driver, first_seen) VALUES (?1, ?2, ?3, ?4)
                   ON CONFLICT (name) DO UPDATE
                   SET directory = excluded.directory, driver = excluded.driver";
        let now = Timestamp::now().to_string();
        let place = directory.as_os_str().as_bytes();
        let values = (name.as_str(), place, driver, now);
        self.execute("remember a pool", sql, values)?;
        Ok(())
    }

    /// Forgets a pool; one that is not known is no error.
    ///
    /// # Errors
    /// What `SQLite` says.
    pub fn forget_pool(&self, name: &PoolName) -> Result<()> {
        let sql = "DELETE FROM pools WHERE name = ?1";
        self.execute("forget a pool", sql, [name.as_str()])?;
        Ok(())
    }
}

fn read_pool(row: &Columns<'_>) -> Result<KnownPool> {
    Ok(KnownPool {
        name: row.word("name")?,
        directory: PathBuf::from(OsString::from_vec(row.value("directory")?)),
        driver: row.value("driver")?,
        first_seen: row.word("first_seen")?,
    })
}
