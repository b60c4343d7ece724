//! The records of images that stand in pools.
//!
//! A copy is a volume to its pool, with an ID of the same kind and so a lock of the same kind;
//! it is no user's, so it is not among the volumes.

use rusqlite::Params;
use sistemo_model::{Bytes, ImageId, ImageName, Lifecycle, PoolName, Timestamp, VolumeId};

use crate::connection::{Session, Transaction};
use crate::error::{CatalogError, Kind, Result};
use crate::objects::expect_lifecycle;
use crate::rows::Columns;

/// An image that stands in a pool, for root volumes to be cloned from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageCopy {
    /// What its pool and its lock know it by.
    pub id: VolumeId,
    /// The image's content; a rebuilt image has another.
    pub image: ImageId,
    /// The name the image had then, for people.
    pub name: ImageName,
    /// The pool that holds it.
    pub pool: PoolName,
    /// Its virtual size.
    pub size: Bytes,
    /// Where it stands between being made and being removed.
    pub lifecycle: Lifecycle,
    /// When it was made.
    pub created: Timestamp,
}

impl Session<'_> {
    /// All copies, also those being made or removed, ordered by pool and image.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`] and what `SQLite` says.
    pub fn image_copies(&self) -> Result<Vec<ImageCopy>> {
        self.select_copies("ORDER BY pool, image", ())
    }

    /// The copy of an image in a pool, in whatever stage of its life.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`] and what `SQLite` says.
    pub fn image_copy_in(&self, pool: &PoolName, image: ImageId) -> Result<Option<ImageCopy>> {
        let which = "WHERE pool = ?1 AND image = ?2";
        let found = self.select_copies(which, (pool.as_str(), image.to_string()))?;
        Ok(found.into_iter().next())
    }

    /// The copy with this ID, in whatever stage of its life.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`] and what `SQLite` says.
    pub fn image_copy(&self, id: VolumeId) -> Result<Option<ImageCopy>> {
        let found = self.select_copies("WHERE id = ?1", [id.to_string()])?;
        Ok(found.into_iter().next())
    }

    fn select_copies(&self, which: &str, params: impl Params) -> Result<Vec<ImageCopy>> {
        let sql = format!("SELECT * FROM image_copies {which}");
        self.rows("image_copies", &sql, params, read_copy)
    }
}

impl Transaction<'_> {
    /// Records a copy as it is given.
    ///
    /// # Errors
    /// What `SQLite` says, also to a second copy of one image in one pool.
    pub fn insert_image_copy(&self, copy: &ImageCopy) -> Result<()> {
        self.execute(
            "record an image's copy",
            "INSERT INTO image_copies (id, image, name, pool, size, lifecycle, created)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            (
                copy.id.to_string(),
                copy.image.to_string(),
                copy.name.as_str(),
                copy.pool.as_str(),
                self.stored("a size", copy.size.get())?,
                copy.lifecycle.as_str(),
                copy.created.to_string(),
            ),
        )?;
        Ok(())
    }

    /// Moves a copy to another stage of its life.
    ///
    /// # Errors
    /// [`CatalogError::IllegalLifecycle`] where that stage cannot follow;
    /// [`CatalogError::NotFound`].
    pub fn set_image_copy_lifecycle(&self, id: VolumeId, next: Lifecycle) -> Result<()> {
        let found = self.image_copy(id)?;
        let copy = found.ok_or_else(|| CatalogError::no_such(Kind::Volume, &id))?;
        expect_lifecycle(Kind::Volume, &copy.name, copy.lifecycle, next)?;
        let sql = "UPDATE image_copies SET lifecycle = ?2 WHERE id = ?1";
        let values = (id.to_string(), next.as_str());
        self.execute("change an image's copy", sql, values)?;
        Ok(())
    }

    /// Forgets a copy; one that is not recorded is no error.
    ///
    /// # Errors
    /// What `SQLite` says.
    pub fn delete_image_copy(&self, id: VolumeId) -> Result<()> {
        let sql = "DELETE FROM image_copies WHERE id = ?1";
        self.execute("forget an image's copy", sql, [id.to_string()])?;
        Ok(())
    }
}

fn read_copy(row: &Columns<'_>) -> Result<ImageCopy> {
    Ok(ImageCopy {
        id: row.word("id")?,
        image: row.word("image")?,
        name: row.word("name")?,
        pool: row.word("pool")?,
        size: Bytes::new(row.number("size")?),
        lifecycle: row.word("lifecycle")?,
        created: row.word("created")?,
    })
}
