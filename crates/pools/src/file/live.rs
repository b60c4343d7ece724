//! Snapshots that the VMM of a running machine writes, where files cannot share their data.

use std::path::Path;

use sistemo_host::directory::FileError;
use sistemo_model::{Bytes, SnapshotName, Timestamp, VolumeId};

use super::snapshots::Unfinished;
use super::{FilePool, names};
use crate::content::RawContent;
use crate::contract::{Flaw, LiveCopies, SnapshotDraft};
use crate::{PoolError, place};

const ACTION: &str = "snapshot";

/// A file under the name that a snapshot has while it is taken, removed when this is dropped.
#[derive(Debug)]
struct FileSnapshotDraft<'a> {
    pool: &'a FilePool,
    name: SnapshotName,
    created: Timestamp,
    size: Bytes,
    /// The name that the file has.
    draft: String,
    /// The name that makes it a snapshot.
    file: String,
    unfinished: Unfinished<'a>,
    content: RawContent,
}

impl LiveCopies for FilePool {
    fn draft_snapshot(
        &self,
        volume: VolumeId,
        name: &SnapshotName,
        created: Timestamp,
        size: Bytes,
    ) -> Result<Box<dyn SnapshotDraft + '_>, PoolError> {
        place::check_size(volume, size)?;
        let (data, _) = self.data(volume)?;
        self.check_no_snapshot(volume, name)?;
        let _ = self.sweep(volume, ACTION)?;
        let file = names::snapshot(volume, name, &data);
        let draft = names::snapshot_draft(&file);
        let (unfinished, content) = self.unfinished(volume, draft.clone(), ACTION)?;
        content.file.set_len(size.get()).map_err(|error| {
            let source = FileError::new("set the length of", &content.path, error);
            self.subject(volume).failed(ACTION, source)
        })?;
        Ok(Box::new(FileSnapshotDraft {
            pool: self,
            name: name.clone(),
            created,
            size,
            draft,
            file,
            unfinished,
            content,
        }))
    }
}

impl FileSnapshotDraft<'_> {
    /// By name, not by handle: a program that was given the path may have put another file there.
    fn check(&self) -> Result<(), PoolError> {
        let volume = self.content.volume;
        let flaw = match self.pool.stat(volume, &self.draft)? {
            Some(stat) if stat.regular && stat.size == self.size => return Ok(()),
            Some(stat) if stat.regular => Flaw::WrongSize {
                recorded: self.size,
                real: stat.size,
            },
            Some(_) => Flaw::NotAFile {
                path: self.content.path.clone(),
            },
            None => Flaw::Missing,
        };
        Err(self.pool.subject(volume).damaged(flaw))
    }
}

impl SnapshotDraft for FileSnapshotDraft<'_> {
    fn raw_path(&self) -> &Path {
        &self.content.path
    }

    fn commit(self: Box<Self>) -> Result<(), PoolError> {
        let volume = self.content.volume;
        self.check()?;
        self.pool.check_no_snapshot(volume, &self.name)?;
        FilePool::seal(&self.content, self.created)
            .and_then(|()| self.pool.publish(&self.draft, &self.file))
            .map_err(|source| self.pool.subject(volume).failed(ACTION, source))?;
        self.unfinished.renamed();
        Ok(())
    }
}
