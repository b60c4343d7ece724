//! Snapshots of volumes that running machines write to: a machine is switched to an empty file over
//! the one that it wrote to until then.
//!
//! That takes flushed files under several names, and only the switch itself has to be at the
//! instant that the snapshot is of. Before, the empty file is published over the one that is still
//! written to; after, so is the snapshot. The pool's lock is held for each, and not in between: a
//! published file over a layer is what keeps that layer.

use rustix::fs::Mode;
use sistemo_host::directory::Open;
use sistemo_host::lock;
use sistemo_model::{SnapshotName, Timestamp, VolumeId};

use super::image::Image;
use super::{Files, Qcow2Pool, names};
use crate::contract::{LiveDisk, LiveSwitches, PreparedSnapshot, Progress};
use crate::{LiveDiskError, PoolError};

/// A snapshot of a volume whose machine can be switched.
struct Switch<'a> {
    pool: &'a Qcow2Pool,
    volume: VolumeId,
    /// What the machine writes to.
    data: Image,
    /// What it is to write to.
    next: String,
    /// The snapshot, flushed; it is not published yet.
    file: String,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Taken,
    /// Nothing is to be removed: it is published, or the VMM's refusal was dealt with.
    Over,
}

impl PreparedSnapshot for Switch<'_> {
    fn take(&mut self, disk: &mut dyn LiveDisk) -> Result<(), PoolError> {
        let (pool, volume) = (self.pool, self.volume);
        self.state = State::Over;
        let switched = pool.switch(volume, &self.data, &self.next, disk);
        if switched.is_err() {
            pool.discard(&[names::new(&self.file)]);
        } else {
            self.state = State::Taken;
        }
        switched
    }

    fn commit(mut self: Box<Self>) -> Result<(), PoolError> {
        let (pool, volume) = (self.pool, self.volume);
        let lock = pool.lock(volume, "snapshot")?;
        self.state = State::Over;
        pool.publish_snapshot(volume, &self.file)?;
        drop(lock);
        Ok(())
    }
}

impl Drop for Switch<'_> {
    fn drop(&mut self) {
        if self.state == State::Over {
            return;
        }
        self.pool.discard(&[names::new(&self.file)]);
        if self.state == State::Ready {
            self.pool.withdraw(self.volume, &self.next);
        }
    }
}

impl LiveSwitches for Qcow2Pool {
    fn prepare_snapshot(
        &self,
        volume: VolumeId,
        name: &SnapshotName,
        created: Timestamp,
        disk: &mut dyn LiveDisk,
        progress: Progress<'_>,
    ) -> Result<Box<dyn PreparedSnapshot + '_>, PoolError> {
        let file = self.vacant_snapshot(volume, name)?;
        self.shorten_live(volume, disk, progress)?;
        self.flush_data(volume)?;
        let lock = self.lock(volume, "snapshot")?;
        let files = self.files_of(volume)?;
        self.tidy(volume, &files)?;
        let top = self.top(volume)?;
        let (written, next) = self.ends_of_switch(volume, top, &files, disk)?;
        let data = self.open_to_read(volume, &written)?;
        let size = data.size();
        if !self.is_there(volume, &next)? {
            self.overlay(volume, &next, size, Some(&written), None)?;
            self.publish(volume, &next)?;
        }
        let switch = Switch {
            pool: self,
            volume,
            data,
            next,
            file,
            state: State::Ready,
        };
        self.overlay(volume, &switch.file, size, Some(&written), Some(created))?;
        self.flush(volume, "freeze")?;
        drop(lock);
        Ok(Box::new(switch))
    }
}

impl Qcow2Pool {
    /// Lets a machine write to a published empty file from now on.
    ///
    /// It has its final name before the machine is told, for QEMU opens it again by name.
    /// Killed before the machine has switched, that file is empty, and the machine goes on with
    /// the one beneath it: whoever opens the volume next sees all of that, and the next snapshot
    /// switches to that file ([`Qcow2Pool::ends_of_switch`]).
    fn switch(
        &self,
        id: VolumeId,
        data: &Image,
        next: &str,
        disk: &mut dyn LiveDisk,
    ) -> Result<(), PoolError> {
        if let Err(source) = disk.switch_to(&self.path_of(next)) {
            self.withdraw(id, next);
            return Err(self.refused(id, source));
        }
        data.set_mode(Mode::RUSR)
            .map_err(|error| self.subject(id).image("freeze", error))
    }

    /// The file that a machine writes to, and the one that it is to write to next.
    ///
    /// The second is there already where the machine was never told of it, an earlier snapshot
    /// having been killed or refused. It is taken then, for a machine that starts again begins
    /// with it, and it has to lie over the file that was written last.
    fn ends_of_switch(
        &self,
        volume: VolumeId,
        top: String,
        files: &Files,
        disk: &mut dyn LiveDisk,
    ) -> Result<(String, String), PoolError> {
        let written = disk.file().map_err(|source| self.refused(volume, source))?;
        let written = written.file_name().and_then(|name| name.to_str());
        if written == Some(&top) {
            return Ok((top, names::data(volume, files.next_generation())));
        }
        let over = self.open_to_read(volume, &top)?;
        match (written, &over.header().backing) {
            (Some(written), Some(below)) if written == below && over.is_blank() => {
                Ok((below.clone(), top))
            }
            _ => {
                let reason = format!("it writes to a file that does not lie beneath {top}");
                Err(self.refused(volume, reason.into()))
            }
        }
    }

    fn refused(&self, volume: VolumeId, source: LiveDiskError) -> PoolError {
        PoolError::LiveDisk {
            action: "snapshot",
            pool: self.name.clone(),
            volume,
            source,
        }
    }

    /// Removes an empty file that a VMM has refused, unless it has it open all the same: then it
    /// may come to write there, and an empty file more does no harm.
    fn withdraw(&self, id: VolumeId, next: &str) {
        let is_free = || -> Result<bool, PoolError> {
            let failed = |source| self.subject(id).failed("open", source);
            let file = self.directory.file(next, Open::ReadWrite).map_err(failed)?;
            let free = lock::take_record_lock(&file).unwrap_or(false);
            let image = Image::open(file, self.path_of(next), None);
            if free && image.is_ok_and(|image| image.is_blank()) {
                self.unlink(id, next)?;
                self.flush(id, "snapshot")?;
            }
            Ok(free)
        };
        match is_free() {
            Ok(true) => {}
            Ok(false) => tracing::warn!(%next, "the VMM has a file open that it has refused"),
            Err(error) => tracing::warn!(%error, "a file that a VMM has refused stays"),
        }
    }
}
