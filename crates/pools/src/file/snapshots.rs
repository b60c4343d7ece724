//! Volumes kept as they were.
//!
//! A snapshot is one file, which nobody writes to: mode 0400. When it was taken is the file's
//! modification time, set before the file gets its name: one file appears in one rename, where a
//! record beside it could be there without it, or not with it; and what copies files, such as cp
//! -a, tar and rsync, keeps it.

use std::os::unix::fs::MetadataExt;

use rustix::fs::{Mode, Timespec, Timestamps};
use sistemo_host::Changed;
use sistemo_host::directory::{self, FileError, Open};
use sistemo_model::{Access, Bytes, SnapshotName, Timestamp, VolumeId};

use super::names::{self, Kind};
use super::sharing::{self, Copying};
use super::{Data, FilePool};
use crate::content::RawContent;
use crate::contract::{
    Cost, LiveCopies, LiveDisk, LiveSwitches, Location, Progress, Snapshot, Snapshots, Way,
};
use crate::{Content, PoolError};

/// A file that comes to be under a name of its own; removed when this is dropped before it was
/// renamed.
#[derive(Debug)]
pub(super) struct Unfinished<'a> {
    pool: &'a FilePool,
    name: Option<String>,
}

impl Unfinished<'_> {
    pub(super) fn renamed(mut self) {
        self.name = None;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && let Err(error) = self.pool.directory.unlink(name)
        {
            tracing::warn!(%error, "a file that was not finished stays");
        }
    }
}

impl FilePool {
    /// The file name of a snapshot.
    fn snapshot_name(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Option<String>, PoolError> {
        for name in names::every_snapshot(volume, snapshot) {
            if self.stat(volume, &name)?.is_some_and(|stat| stat.regular) {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    pub(super) fn check_no_snapshot(
        &self,
        volume: VolumeId,
        name: &SnapshotName,
    ) -> Result<(), PoolError> {
        if self.snapshot_name(volume, name)?.is_none() {
            return Ok(());
        }
        Err(PoolError::SnapshotThere {
            pool: self.name.clone(),
            volume,
            snapshot: name.clone(),
        })
    }

    pub(super) fn open_kept(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<RawContent, PoolError> {
        let Some(name) = self.snapshot_name(volume, snapshot)? else {
            return Err(self.no_such_snapshot(volume, snapshot)?);
        };
        self.open_file(volume, &name, Access::ReadOnly)
    }

    /// What is missing where there is no such snapshot: it, or the whole volume.
    fn no_such_snapshot(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<PoolError, PoolError> {
        let there = matches!(self.locate(volume)?, Data::File { .. });
        if !there && self.snapshots(volume)?.is_empty() {
            return Ok(self.subject(volume).missing());
        }
        Ok(PoolError::NoSuchSnapshot {
            pool: self.name.clone(),
            volume,
            snapshot: snapshot.clone(),
        })
    }

    fn snapshot_of(
        &self,
        volume: VolumeId,
        file: &str,
        name: SnapshotName,
        alone: bool,
    ) -> Result<Option<Snapshot>, PoolError> {
        let failed = |action, error: std::io::Error| {
            let source = FileError::new(action, self.path_of(file), error);
            self.subject(volume).failed("list the snapshots of", source)
        };
        let opened = match self.directory.file(file, Open::Read) {
            Ok(opened) => opened,
            // Removed meanwhile.
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => {
                let subject = self.subject(volume);
                return Err(subject.failed("list the snapshots of", error));
            }
        };
        let meta = opened.metadata().map_err(|e| failed("look up", e))?;
        let nanosecond = i32::try_from(meta.mtime_nsec()).unwrap_or(0);
        let created = Timestamp::new(meta.mtime(), nanosecond)
            .map_err(|error| failed("read the time of", std::io::Error::other(error)))?;
        Ok(Some(Snapshot {
            name,
            created,
            size: Bytes::new(meta.len()),
            alone: alone.then(|| Bytes::new(meta.blocks() * 512)),
        }))
    }

    /// Removes what killed operations left beside a volume, without waiting for the disk.
    pub(super) fn sweep(
        &self,
        volume: VolumeId,
        action: &'static str,
    ) -> Result<Changed, PoolError> {
        let mut changed = Changed::No;
        for (kind, name) in self.files_of(volume)? {
            if kind.is_leftover() {
                let removed = self.directory.unlink(&name);
                if removed.map_err(|source| self.subject(volume).failed(action, source))?
                    == Changed::Yes
                {
                    changed = Changed::Yes;
                }
            }
        }
        Ok(changed)
    }

    pub(super) fn unfinished(
        &self,
        volume: VolumeId,
        name: String,
        action: &'static str,
    ) -> Result<(Unfinished<'_>, RawContent), PoolError> {
        let file = self
            .directory
            .file(&name, Open::CreateNew)
            .map_err(|source| self.subject(volume).failed(action, source))?;
        let content = RawContent {
            file,
            path: self.path_of(&name),
            pool: self.name.clone(),
            volume,
            size: Bytes::new(0),
            access: Access::ReadWrite,
        };
        let unfinished = Unfinished {
            pool: self,
            name: Some(name),
        };
        Ok((unfinished, content))
    }

    /// Gives a snapshot's file its time and takes away the right to write to it.
    pub(super) fn seal(target: &RawContent, taken: Timestamp) -> Result<(), FileError> {
        let time = Timespec {
            tv_sec: taken.as_second(),
            tv_nsec: taken.subsec_nanosecond().into(),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::futimens(&target.file, &times)
            .map_err(|error| FileError::new("set the time of", &target.path, error))?;
        rustix::fs::fchmod(&target.file, Mode::RUSR)
            .map_err(|error| FileError::new("set the mode of", &target.path, error))
    }

    fn shared(
        &self,
        source: &RawContent,
        target: &RawContent,
        copying: Copying,
        action: &'static str,
        progress: Progress<'_>,
    ) -> Result<Way, PoolError> {
        sharing::share(&source.file, &target.file, copying, progress).map_err(|error| {
            let error = FileError::new("fill", &target.path, error);
            self.subject(source.volume).failed(action, error)
        })
    }
}

impl Snapshots for FilePool {
    fn snapshot_cost(&self) -> Cost {
        self.cost()
    }

    fn snapshots(&self, volume: VolumeId) -> Result<Vec<Snapshot>, PoolError> {
        // Elsewhere telling takes a look at each extent.
        let alone = self.never_shares();
        let mut found = Vec::new();
        for (kind, file) in self.files_of(volume)? {
            if let Kind::Snapshot(name) = kind {
                found.extend(self.snapshot_of(volume, &file, name, alone)?);
            }
        }
        if found.is_empty() {
            self.data(volume)?;
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
        const ACTION: &str = "snapshot";
        let (data, _) = self.data(volume)?;
        self.check_no_snapshot(volume, name)?;
        // Who was told that a snapshot is instant lets the machine go on writing: a copy would
        // then be of no one instant.
        let copying = match disk {
            Some(_) if self.cost() == Cost::Instant => Copying::Never,
            _ => self.copying,
        };
        let _ = self.sweep(volume, ACTION)?;
        let source = self.open_file(volume, &data, Access::ReadOnly)?;
        let file = names::snapshot(volume, name, &data);
        let draft = names::snapshot_draft(&file);
        let (unfinished, target) = self.unfinished(volume, draft.clone(), ACTION)?;
        let way = self.shared(&source, &target, copying, ACTION, progress)?;
        FilePool::seal(&target, created)
            .and_then(|()| self.publish(&draft, &file))
            .map_err(|source| self.subject(volume).failed(ACTION, source))?;
        unfinished.renamed();
        Ok(way)
    }

    fn revert(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
        progress: Progress<'_>,
    ) -> Result<Way, PoolError> {
        const ACTION: &str = "revert";
        let failed = |source| self.subject(volume).failed(ACTION, source);
        let source = self.open_kept(volume, snapshot)?;
        let mut description = self.read_description(volume)?;
        let data = match self.locate(volume)? {
            Data::File { name, .. } => name,
            // Its data was lost: here is an older state of it.
            Data::Missing => names::data(volume, description.filesystem),
            Data::Flawed(flaw) => return Err(self.subject(volume).damaged(flaw)),
        };
        let _ = self.sweep(volume, ACTION)?;
        let replacement = names::replacement(&data);
        let (unfinished, target) = self.unfinished(volume, replacement.clone(), ACTION)?;
        let way = self.shared(&source, &target, self.copying, ACTION, progress)?;
        directory::flush(&target.path, &target.file).map_err(failed)?;
        // Written before anything is renamed: a pool that is full then refuses in time.
        let described = if description.size == source.size {
            None
        } else {
            description.size = source.size;
            Some(self.prepare_description(&description)?)
        };
        if let Err(error) = self.directory.rename_unflushed(&replacement, &data) {
            if let Some((part, _)) = described {
                let _ = self.directory.unlink(&part);
            }
            return Err(failed(error));
        }
        unfinished.renamed();
        if let Some((part, name)) = described {
            self.directory
                .rename_unflushed(&part, &name)
                .map_err(failed)?;
        }
        self.directory.flush().map_err(failed)?;
        Ok(way)
    }

    fn delete_snapshot(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Changed, PoolError> {
        const ACTION: &str = "delete a snapshot of";
        let failed = |source| self.subject(volume).failed(ACTION, source);
        let mut changed = Changed::No;
        for name in names::every_snapshot(volume, snapshot) {
            if self.directory.unlink(&name).map_err(failed)? == Changed::Yes {
                changed = Changed::Yes;
            }
        }
        let swept = self.sweep(volume, ACTION)?;
        if [changed, swept].contains(&Changed::Yes) {
            self.directory.flush().map_err(failed)?;
        }
        Ok(changed)
    }

    fn snapshot_content(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Box<dyn Content>, PoolError> {
        Ok(Box::new(self.open_kept(volume, snapshot)?))
    }

    fn open_snapshot(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Option<Location>, PoolError> {
        let kept = self.open_kept(volume, snapshot)?;
        Ok(Some(Location::RawFile(kept.path)))
    }

    fn live_copies(&self) -> Option<&dyn LiveCopies> {
        (self.cost() == Cost::Copy).then_some(self as &dyn LiveCopies)
    }

    fn live_switches(&self) -> Option<&dyn LiveSwitches> {
        None
    }
}
