//! Images that stand in pools, for root volumes to be cloned from.
//!
//! Where a pool's clones are instant, the first deploy of an image puts the image there, and that
//! and every later deploy clone it. A copy is a cache: it can be made again from the image at any
//! time, nobody is told of it, and one that cannot be had costs a deploy a copy of its own.

use std::collections::HashSet;
use std::fs::File;
use std::time::Duration;

use sistemo_catalog::{CatalogError, ImageCopy, Intent, IntentId, Lockable};
use sistemo_host::lock::Lock;
use sistemo_model::{
    Filesystem, Image, ImageId, ImageName, Lifecycle, PoolName, Role, Timestamp, Volume, VolumeId,
    VolumeName,
};
use sistemo_pools::{Cost, Description, Found, Origin, Pool, PoolError};

use crate::engine::Engine;
use crate::error::{Error, Kind, Result, causes};
use crate::pools::expect_known;
use crate::volumes::{description, pool_error};

impl Engine {
    /// Makes sure that an image stands in a pool; `None` where it would be of no use there, the
    /// pool's clones being copies. Whoever comes second waits for the first.
    pub(crate) fn ensure_image_copy(
        &self,
        image: &Image,
        content: &File,
        pool_name: &PoolName,
    ) -> Result<Option<ImageCopy>> {
        let pool = self.pool(pool_name)?;
        if !clones_at_once(pool.as_ref()) {
            return Ok(None);
        }
        if let Some(ready) = self.ready_image_copy(pool_name, image.id)? {
            return Ok(Some(ready));
        }
        let _making = self.hold_image_copies(pool_name, &image.name)?;
        // It may have been made before we had the lock.
        if let Some(ready) = self.ready_image_copy(pool_name, image.id)? {
            return Ok(Some(ready));
        }
        self.discard_unused_image_copies();
        self.make_image_copy(image, content, pool.as_ref())
            .map(Some)
    }

    /// Refuses a pool in which an image would be of no use.
    pub(crate) fn expect_instant_clones(&self, name: &PoolName) -> Result<()> {
        if clones_at_once(self.pool(name)?.as_ref()) {
            return Ok(());
        }
        Err(Error::PoolLacks {
            pool: name.clone(),
            what: "clone without copying, so an image there would be of no use",
        })
    }

    /// The copy of an image in a pool, where it is whole.
    pub(crate) fn ready_image_copy(
        &self,
        pool: &PoolName,
        image: ImageId,
    ) -> Result<Option<ImageCopy>> {
        let found = self
            .catalogue
            .read(|session| session.image_copy_in(pool, image))?;
        Ok(found.filter(|copy| copy.lifecycle == Lifecycle::Ready))
    }

    fn hold_image_copies(&self, pool: &PoolName, image: &ImageName) -> Result<Lock> {
        let object = Lockable::ImageCopies(pool.clone());
        let at_once = self.locks.clone().with_patience(Duration::ZERO);
        match at_once.acquire(&object, self.purpose()) {
            Err(CatalogError::Locked { holder, .. }) => {
                self.reporter.stage(&format!(
                    "waiting for image {image} in pool {pool}: {holder}"
                ));
                let patient = self.locks.clone().with_patience(Duration::MAX);
                let held = patient.acquire(&object, self.purpose());
                self.reporter.stage_over();
                Ok(held?)
            }
            other => Ok(other?),
        }
    }

    /// Puts an image into a pool. The lock of the pool's copies is held. A crash in the middle
    /// leaves nothing once the next operation has begun.
    fn make_image_copy(&self, image: &Image, content: &File, pool: &dyn Pool) -> Result<ImageCopy> {
        // What a killed deploy has left has the image's place in the catalogue.
        let left = self
            .catalogue
            .read(|session| session.image_copy_in(pool.name(), image.id))?;
        if let Some(left) = left {
            self.remove_image_copy(&left)?;
        }
        let copy = ImageCopy {
            id: VolumeId::random(),
            image: image.id,
            name: image.name.clone(),
            pool: pool.name().clone(),
            size: image.size,
            lifecycle: Lifecycle::Creating,
            created: Timestamp::now(),
        };
        let id = copy.id;
        let _held = self.hold_volumes(&[id])?;
        let intent = self.catalogue.write(|session| {
            expect_known(session, pool.name())?;
            session.insert_image_copy(&copy)?;
            Ok::<_, Error>(session.begin(&Intent::CreateImageCopy { volume: id })?)
        })?;
        let (name, place) = (&image.name, pool.name());
        self.reporter
            .stage(&format!("putting image {name} into pool {place}"));
        let made = description_of(&copy, image).and_then(|description| {
            let fail = |source| copy_error(&copy, "hold", source);
            self.with_room(pool.name(), || {
                let mut draft = pool.draft(&description).map_err(fail)?;
                let mut progress = |done, total| self.reporter.progress(done, total);
                let _ = draft.fill_from(content, &mut progress).map_err(fail)?;
                draft.commit().map_err(fail)
            })
        });
        self.reporter.stage_over();
        let recorded = made.and_then(|()| {
            self.catalogue.write(|session| {
                session.set_image_copy_lifecycle(id, Lifecycle::Ready)?;
                Ok(session.finish(intent)?)
            })
        });
        if let Err(error) = recorded {
            self.undo_after(&error, self.forget_image_copy(id, intent).map(drop));
            return Err(error);
        }
        Ok(ImageCopy {
            lifecycle: Lifecycle::Ready,
            ..copy
        })
    }

    /// Removes a copy that nobody works with; waits for who does.
    fn remove_image_copy(&self, copy: &ImageCopy) -> Result<()> {
        let _held = self.hold_volumes(&[copy.id])?;
        self.remove_held_image_copy(copy.id)
    }

    /// Removes a copy whose lock is held; one that is gone is no error. After a crash in the
    /// middle the next operation finishes it.
    fn remove_held_image_copy(&self, id: VolumeId) -> Result<()> {
        let intent = self.catalogue.write(|session| {
            if session.image_copy(id)?.is_none() {
                return Ok(None);
            }
            session.set_image_copy_lifecycle(id, Lifecycle::Deleting)?;
            let intent = session.begin(&Intent::DeleteImageCopy { volume: id })?;
            Ok::<_, Error>(Some(intent))
        })?;
        match intent {
            Some(intent) => self.forget_image_copy(id, intent).map(drop),
            None => Ok(()),
        }
    }

    /// Removes what there is of a copy, and its record; returns what it was. Each step may have
    /// been done before, and its pool may be gone.
    pub(crate) fn forget_image_copy(
        &self,
        id: VolumeId,
        intent: IntentId,
    ) -> Result<Option<ImageCopy>> {
        let copy = self.catalogue.read(|session| session.image_copy(id))?;
        if let Some(copy) = &copy {
            let _ = self
                .pool(&copy.pool)?
                .remove(id)
                .map_err(|source| copy_error(copy, "lose", source))?;
        }
        self.catalogue.write(|session| {
            session.delete_image_copy(id)?;
            Ok::<_, Error>(session.finish(intent)?)
        })?;
        Ok(copy)
    }

    /// Whether a copy can be cloned; one that cannot, its file having been removed by hand for
    /// instance, goes. Its lock is held.
    pub(crate) fn image_copy_is_whole(&self, copy: &ImageCopy) -> Result<bool> {
        let recorded = self.ready_image_copy(&copy.pool, copy.image)?;
        if recorded.is_none_or(|recorded| recorded.id != copy.id) {
            return Ok(false);
        }
        let flaws = self
            .pool(&copy.pool)?
            .verify(copy.id, copy.size)
            .map_err(|source| copy_error(copy, "verify", source))?;
        if !flaws.is_empty() {
            self.remove_held_image_copy(copy.id)?;
        }
        Ok(flaws.is_empty())
    }

    /// Makes a root volume of an image that stands in its pool. The locks of both are held.
    pub(crate) fn clone_image_copy(&self, copy: &ImageCopy, root: &Volume) -> Result<()> {
        let pool = self.pool(&root.pool)?;
        let power = pool.clones().ok_or_else(|| Error::PoolLacks {
            pool: root.pool.clone(),
            what: "clone volumes",
        })?;
        let origin = Origin {
            volume: copy.id,
            snapshot: None,
        };
        self.with_room(&root.pool, || {
            let mut progress = |done, total| self.reporter.progress(done, total);
            power
                .clone_volume(origin, &description(root), &mut progress)
                .map_err(|source| pool_error(root, "create", source))
        })?;
        Ok(())
    }

    /// Removes the copies of images that there are no longer. What it follows has been done: a
    /// copy that stays, because its pool is not there for instance, is removed another time.
    pub(crate) fn discard_unused_image_copies(&self) {
        if let Err(error) = self.try_discard_image_copies() {
            let reason = causes(&error).join(": ");
            tracing::warn!(
                reason,
                "cannot discard the copies of images that are no more"
            );
        }
    }

    fn try_discard_image_copies(&self) -> Result<()> {
        let copies = self.catalogue.read(|session| session.image_copies())?;
        if copies.is_empty() {
            return Ok(());
        }
        let listing = self.images.list().map_err(Error::ImageStore)?;
        let there: HashSet<ImageId> = listing.images.iter().map(|image| image.id).collect();
        let unused = copies.iter().filter(|copy| !there.contains(&copy.image));
        for copy in unused.filter(|copy| copy.lifecycle == Lifecycle::Ready) {
            if let Err(error) = self.discard_image_copy(copy) {
                let reason = causes(&error).join(": ");
                tracing::warn!(reason, "the copy of an image that is no more stays for now");
            }
        }
        Ok(())
    }

    /// Removes a copy where nobody works with it and its pool can be used.
    fn discard_image_copy(&self, copy: &ImageCopy) -> Result<()> {
        let Some(_held) = self.locks.try_volume(copy.id, self.purpose())? else {
            return Ok(());
        };
        self.require_pool(&copy.pool)?;
        self.remove_held_image_copy(copy.id)
    }

    /// Removes all copies from a pool that is to go, or to be another; also those that this
    /// catalogue has forgotten. Of a pool that cannot be used only the records go: its copies are
    /// found again where it is used again.
    pub(crate) fn empty_of_image_copies(
        &self,
        name: &PoolName,
        pool: Option<&dyn Pool>,
    ) -> Result<()> {
        let copies = self.catalogue.read(|session| session.image_copies())?;
        let here = copies.iter().filter(|copy| copy.pool == *name);
        let Some(pool) = pool else {
            return self.catalogue.write(|session| {
                for copy in here {
                    session.delete_image_copy(copy.id)?;
                }
                Ok(())
            });
        };
        for copy in here {
            self.remove_image_copy(copy)?;
        }
        let fail = |source| Error::Pool {
            pool: name.clone(),
            action: "be emptied of images".to_owned(),
            source,
        };
        for found in pool.list().map_err(fail)? {
            if let Found::Volume { description, .. } = found
                && description.role == Role::Image
            {
                let _held = self.hold_volumes(&[description.id])?;
                let _ = pool.remove(description.id).map_err(fail)?;
            }
        }
        Ok(())
    }
}

fn clones_at_once(pool: &dyn Pool) -> bool {
    pool.clones()
        .is_some_and(|power| power.clone_cost() == Cost::Instant)
}

/// What is written beside a copy in its pool.
fn description_of(copy: &ImageCopy, image: &Image) -> Result<Description> {
    // Whatever is an image's name is a volume's too.
    let name: VolumeName = copy.name.as_str().parse().map_err(|_| Error::NotFound {
        kind: Kind::Image,
        reference: copy.name.to_string(),
    })?;
    Ok(Description {
        id: copy.id,
        name,
        size: copy.size,
        filesystem: if image.boot.is_some() {
            Filesystem::Ext4
        } else {
            Filesystem::None
        },
        role: Role::Image,
        boot: image.boot.clone(),
        created: copy.created,
        history: Box::default(),
        unfinished: false,
        moving_from: None,
    })
}

fn copy_error(copy: &ImageCopy, action: &str, source: PoolError) -> Error {
    let action = format!("{action} image {}", copy.name);
    Error::Pool {
        pool: copy.pool.clone(),
        action,
        source,
    }
}
