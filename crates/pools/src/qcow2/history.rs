//! Clones and snapshots: freezing what is there and laying empty files over it.

use rustix::fs::Mode;
use sistemo_host::Changed;
use sistemo_host::directory::Open;
use sistemo_model::{Access, Bytes, SnapshotName, Timestamp, VolumeId};

use super::chain::{self, Chain};
use super::format::Fault;
use super::image::{Image, ImageError, Summary};
use super::{Files, Looked, Qcow2Pool, names};
use crate::contract::{
    Clones, Cost, LiveCopies, LiveDisk, LiveSwitches, Location, Origin, Progress, Snapshot,
    Snapshots, Way,
};
use crate::{Content, Description, PoolError, place};

/// What new files are to lie over, and what has to be frozen first.
struct Base {
    layer: Option<String>,
    freeze: Option<Image>,
}

impl Base {
    fn frozen(data: Image) -> Base {
        Base {
            layer: Some(data.name()),
            freeze: Some(data),
        }
    }
}

impl Qcow2Pool {
    /// What a volume that nobody uses holds in the file that is written.
    fn base_of(&self, id: VolumeId, data: Image) -> Result<Base, PoolError> {
        if !data.is_blank() {
            return Ok(Base::frozen(data));
        }
        // What was not written since it was frozen needs no freezing again: chains stay short.
        let layer = data.header().backing.clone();
        if let Some(layer) = &layer
            && self.mode(id, layer)?.is_some_and(|mode| mode & 0o200 != 0)
        {
            // A machine wrote on to it that was never told of the file above.
            let beneath = self.open_to_read(id, layer)?;
            beneath
                .sync()
                .and_then(|()| beneath.set_mode(Mode::RUSR))
                .map_err(|error| self.subject(id).image("freeze", error))?;
        }
        Ok(Base {
            layer,
            freeze: None,
        })
    }

    /// Flushes a volume's data before the pool's lock is taken, so that nobody waits for that.
    pub(super) fn flush_data(&self, id: VolumeId) -> Result<(), PoolError> {
        let data = self.open_to_read(id, &self.top(id)?)?;
        data.sync()
            .map_err(|error| self.subject(id).image("flush", error))
    }

    pub(super) fn open_to_read(&self, id: VolumeId, name: &str) -> Result<Image, PoolError> {
        chain::open_image(&self.directory, name, None)
            .map_err(|error| self.subject(id).image("open", error))
    }

    /// Makes an empty file over a layer, flushed, under the name it has before it is published.
    pub(super) fn overlay(
        &self,
        id: VolumeId,
        name: &str,
        size: u64,
        layer: Option<&str>,
        taken: Option<Timestamp>,
    ) -> Result<(), PoolError> {
        let new = names::new(name);
        self.unlink(id, &new)?;
        let made = self
            .directory
            .file(&new, Open::CreateNew)
            .map_err(ImageError::from)
            .and_then(|file| Image::create(file, self.path_of(&new), size, layer, taken))
            .and_then(|image| image.sync());
        made.map_err(|error| {
            self.discard(&[new]);
            self.subject(id).image("write an overlay of", error)
        })
    }

    pub(super) fn publish(&self, id: VolumeId, name: &str) -> Result<(), PoolError> {
        let new = names::new(name);
        let published = self.directory.publish_unflushed(&new, name);
        published.map_err(|source| {
            self.discard(&[new]);
            self.subject(id).failed("publish an overlay of", source)
        })
    }

    /// Makes the data of a volume that nobody uses a layer, and gives the volume an empty file
    /// over it. That is durable when the directory is flushed, which has to be before anything
    /// else over the layer is published.
    ///
    /// A crash leaves the data as it was, or the empty file over it, which is as good.
    fn freeze(&self, id: VolumeId, data: &Image, next: &str) -> Result<(), PoolError> {
        let failed = |error| self.subject(id).image("freeze", error);
        data.sync().map_err(failed)?;
        self.overlay(id, next, data.size(), Some(&data.name()), None)?;
        data.set_mode(Mode::RUSR).map_err(failed)?;
        self.publish(id, next)
    }

    /// Removes what a kill has left unpublished beside a volume.
    pub(super) fn tidy(&self, id: VolumeId, files: &Files) -> Result<(), PoolError> {
        for name in &files.new {
            self.unlink(id, name)?;
        }
        Ok(())
    }

    fn look_at_snapshot(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Summary, PoolError> {
        let name = names::snapshot(volume, snapshot);
        match self.look(&name, &mut Looked::new()) {
            Ok(summary) => Ok(summary),
            Err(error) if error.is_missing() => {
                self.top(volume)?;
                Err(PoolError::NoSuchSnapshot {
                    pool: self.name.clone(),
                    volume,
                    snapshot: snapshot.clone(),
                })
            }
            Err(error) => Err(self.subject(volume).image("read a snapshot of", error)),
        }
    }

    /// The file of a snapshot that does not exist yet, of a volume that does.
    pub(super) fn vacant_snapshot(
        &self,
        volume: VolumeId,
        name: &SnapshotName,
    ) -> Result<String, PoolError> {
        self.top(volume)?;
        let file = names::snapshot(volume, name);
        if self.is_there(volume, &file)? {
            return Err(PoolError::SnapshotThere {
                pool: self.name.clone(),
                volume,
                snapshot: name.clone(),
            });
        }
        Ok(file)
    }

    /// Makes a snapshot exist whose file is whole. The pool's lock is held.
    pub(super) fn publish_snapshot(&self, volume: VolumeId, file: &str) -> Result<(), PoolError> {
        self.publish(volume, file)?;
        self.flush(volume, "snapshot").inspect_err(|_| {
            self.discard(&[file.to_owned()]);
        })
    }

    /// What a clone is to lie over, and how large that is.
    fn origin_of(&self, origin: Origin<'_>) -> Result<(Base, u64), PoolError> {
        let volume = origin.volume;
        if let Some(snapshot) = origin.snapshot {
            let header = self.look_at_snapshot(volume, snapshot)?.header;
            let base = Base {
                layer: header.backing,
                freeze: None,
            };
            return Ok((base, header.size));
        }
        let image = self.open_to_read(volume, &self.top(volume)?)?;
        let size = image.size();
        Ok((self.base_of(volume, image)?, size))
    }

    fn make_clone(&self, origin: Origin<'_>, new: &Description) -> Result<(), PoolError> {
        let lock = self.lock(new.id, "clone")?;
        let generation = self.check_vacant(new.id)?;
        let volume = origin.volume;
        let files = self.files_of(volume)?;
        let (base, size) = self.origin_of(origin)?;
        place::check_fits(self.subject(new.id), new.size, size)?;
        if let Some(frozen) = &base.freeze {
            self.tidy(volume, &files)?;
            let next = names::data(volume, files.next_generation());
            self.freeze(volume, frozen, &next)?;
        }
        let data = names::data(new.id, generation);
        let image = self.new_image(&data, new, base.layer.as_deref())?;
        let made = image
            .sync()
            .map_err(|error| self.subject(new.id).image("clone", error))
            .and_then(|()| match &base.freeze {
                Some(_) => self.flush(volume, "freeze"),
                None => Ok(()),
            });
        if let Err(error) = made {
            self.discard(&[names::new(&data)]);
            return Err(error);
        }
        self.bring_to_be(&data, new)?;
        drop(lock);
        Ok(())
    }
}

impl Clones for Qcow2Pool {
    fn clone_cost(&self) -> Cost {
        Cost::Instant
    }

    fn clone_volume(
        &self,
        origin: Origin<'_>,
        new: &Description,
        progress: Progress<'_>,
    ) -> Result<Way, PoolError> {
        place::check_size(new.id, new.size)?;
        // An unfinished removal of the same volume is finished first, under the same lock.
        let _ = self.check_free(new.id)?;
        if origin.snapshot.is_none() {
            self.shorten(origin.volume, progress)?;
            self.flush_data(origin.volume)?;
        }
        self.make_clone(origin, new)?;
        Ok(Way::Overlay)
    }
}

impl Snapshots for Qcow2Pool {
    fn snapshot_cost(&self) -> Cost {
        Cost::Instant
    }

    fn snapshots(&self, volume: VolumeId) -> Result<Vec<Snapshot>, PoolError> {
        self.top(volume)?;
        let mut found = Vec::new();
        for name in self.files_of(volume)?.snapshots {
            let header = match self.look_at_snapshot(volume, &name) {
                Ok(summary) => summary.header,
                // Deleted meanwhile.
                Err(PoolError::NoSuchSnapshot { .. }) => continue,
                Err(error) => return Err(error),
            };
            let Some(created) = header.taken else {
                let fault = ImageError::Fault {
                    name: names::snapshot(volume, &name),
                    fault: Fault::Untimed,
                };
                return Err(self.subject(volume).image("read a snapshot of", fault));
            };
            found.push(Snapshot {
                name,
                created,
                size: Bytes::new(header.size),
                alone: None,
            });
        }
        found.sort_by(|one, two| (one.created, &one.name).cmp(&(two.created, &two.name)));
        Ok(found)
    }

    fn take_snapshot(
        &self,
        volume: VolumeId,
        name: &SnapshotName,
        created: Timestamp,
        disk: Option<&mut dyn LiveDisk>,
        progress: Progress<'_>,
    ) -> Result<Way, PoolError> {
        if let Some(disk) = disk {
            let mut prepared = self.prepare_snapshot(volume, name, created, disk, progress)?;
            prepared.take(disk)?;
            prepared.commit()?;
            return Ok(Way::Overlay);
        }
        let file = self.vacant_snapshot(volume, name)?;
        self.shorten(volume, progress)?;
        self.flush_data(volume)?;
        let lock = self.lock(volume, "snapshot")?;
        let files = self.files_of(volume)?;
        self.tidy(volume, &files)?;
        let data = self.open_to_read(volume, &self.top(volume)?)?;
        let size = data.size();
        let base = self.base_of(volume, data)?;
        if let Some(data) = &base.freeze {
            let next = names::data(volume, files.next_generation());
            self.freeze(volume, data, &next)?;
        }
        self.overlay(volume, &file, size, base.layer.as_deref(), Some(created))?;
        if base.freeze.is_some()
            && let Err(error) = self.flush(volume, "freeze")
        {
            self.discard(&[names::new(&file)]);
            return Err(error);
        }
        self.publish_snapshot(volume, &file)?;
        drop(lock);
        Ok(Way::Overlay)
    }

    fn revert(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
        _progress: Progress<'_>,
    ) -> Result<Way, PoolError> {
        let lock = self.lock(volume, "revert")?;
        let wanted = self.look_at_snapshot(volume, snapshot)?.header;
        let mut description = self.read_description(volume)?;
        let top = self.top(volume)?;
        let files = self.files_of(volume)?;
        self.tidy(volume, &files)?;
        let now = self.open_to_read(volume, &top)?;
        let is_so =
            now.is_blank() && now.header().backing == wanted.backing && now.size() == wanted.size;
        if !is_so {
            let next = names::data(volume, files.next_generation());
            self.overlay(volume, &next, wanted.size, wanted.backing.as_deref(), None)?;
            self.publish(volume, &next)?;
        }
        if description.size.get() != wanted.size {
            description.size = Bytes::new(wanted.size);
            self.stage_description(&description)?;
        }
        self.flush(volume, "revert")?;
        self.remove_unused(None)?;
        drop(lock);
        Ok(Way::Overlay)
    }

    fn delete_snapshot(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Changed, PoolError> {
        let name = names::snapshot(volume, snapshot);
        if !self.is_there(volume, &name)? {
            return Ok(Changed::No);
        }
        let lock = self.lock(volume, "delete a snapshot of")?;
        self.unlink(volume, &name)?;
        self.flush(volume, "delete a snapshot of")?;
        self.remove_unused(None)?;
        drop(lock);
        Ok(Changed::Yes)
    }

    fn snapshot_content(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Box<dyn Content>, PoolError> {
        self.look_at_snapshot(volume, snapshot)?;
        let name = names::snapshot(volume, snapshot);
        let chain = Chain::open(&self.directory, &name, None)
            .map_err(|error| self.subject(volume).image("open a snapshot of", error))?;
        Ok(Box::new(self.content_of(volume, chain, Access::ReadOnly)))
    }

    fn open_snapshot(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Option<Location>, PoolError> {
        self.look_at_snapshot(volume, snapshot)?;
        let path = self.path_of(&names::snapshot(volume, snapshot));
        Ok(Some(Location::Qcow2File(path)))
    }

    fn live_copies(&self) -> Option<&dyn LiveCopies> {
        None
    }

    fn live_switches(&self) -> Option<&dyn LiveSwitches> {
        Some(self)
    }
}
