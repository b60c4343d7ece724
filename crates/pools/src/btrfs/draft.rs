//! A volume of the `btrfs` driver that does not exist yet.

use std::fs::File;
use std::path::Path;

use sistemo_host::directory::{self, FileError, Open};
use sistemo_host::sparse::{self, CopyPath};
use sistemo_model::{Access, Bytes};

use super::workplace::Workplace;
use super::{BtrfsPool, names, subvolume};
use crate::content::RawContent;
use crate::error::Subject;
use crate::{Content, Description, Draft, Flaw, PoolError, place};

/// A subvolume in a nursery, removed when this is dropped.
#[derive(Debug)]
pub(super) struct BtrfsDraft<'a> {
    pool: &'a BtrfsPool,
    description: Description,
    content: RawContent,
    stage: Stage,
    // Dropped, and so removed, after what is in it.
    nursery: Workplace<'a>,
}

/// What has to go when the draft is dropped.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Data,
    DataAndDescription,
    Committed,
}

impl<'a> BtrfsDraft<'a> {
    /// Makes an empty subvolume with the data file. The caller has seen that the volume is not
    /// there.
    pub(super) fn begin(
        pool: &'a BtrfsPool,
        description: &Description,
    ) -> Result<BtrfsDraft<'a>, PoolError> {
        let id = description.id;
        let nursery = Workplace::nursery(pool, id)?;
        let begun = make_subvolume(pool, &nursery, description);
        if begun.is_err() {
            discard(&nursery);
        }
        BtrfsDraft::of(pool, description, nursery, begun?)
    }

    /// Takes over a subvolume that was made of another, at most as large as the volume is to be.
    pub(super) fn of_snapshot(
        pool: &'a BtrfsPool,
        description: &Description,
        nursery: Workplace<'a>,
    ) -> Result<BtrfsDraft<'a>, PoolError> {
        let opened = nursery
            .directory()
            .subdirectory(names::MADE)
            .and_then(|made| made.file(names::DATA, Open::ReadWrite))
            .map_err(|error| pool.subject(description.id).failed("clone", error));
        if opened.is_err() {
            discard(&nursery);
        }
        BtrfsDraft::of(pool, description, nursery, opened?)
    }

    fn of(
        pool: &'a BtrfsPool,
        description: &Description,
        nursery: Workplace<'a>,
        file: File,
    ) -> Result<BtrfsDraft<'a>, PoolError> {
        let draft = BtrfsDraft {
            pool,
            description: description.clone(),
            content: RawContent {
                file,
                path: nursery.made().join(names::DATA),
                pool: pool.name.clone(),
                volume: description.id,
                size: description.size,
                access: Access::ReadWrite,
            },
            stage: Stage::Data,
            nursery,
        };
        draft.set_length(description.size)?;
        Ok(draft)
    }

    fn subject(&self) -> Subject<'_> {
        self.pool.subject(self.description.id)
    }

    fn set_length(&self, size: Bytes) -> Result<(), PoolError> {
        self.content.file.set_len(size.get()).map_err(|error| {
            let source = FileError::new("set the length of", &self.content.path, error);
            self.subject().failed("create", source)
        })
    }

    /// Checks by name, not by handle: a program that was given the path may have put another
    /// file there.
    fn check(&self) -> Result<(), PoolError> {
        let failed = |error| self.subject().failed("create", error);
        let made = self.nursery.directory().subdirectory(names::MADE);
        let made = made.map_err(failed)?;
        let stat = super::stat(&made, names::DATA).map_err(failed)?;
        let path = self.content.path.clone();
        let flaw = match stat {
            Some(stat) if stat.regular && stat.size == self.description.size => return Ok(()),
            Some(stat) if stat.regular => Flaw::WrongSize {
                recorded: self.description.size,
                real: stat.size,
            },
            Some(_) => Flaw::NotAFile { path },
            None => Flaw::Missing,
        };
        Err(self.subject().damaged(flaw))
    }

    /// Gives the subvolume its name, and waits until all of it is on disk.
    ///
    /// The rename comes before the data is flushed. What was flushed first would cost a commit
    /// of the filesystem's transaction by itself, for a new subvolume has no log of its own that
    /// fsync could write to; now one commit carries both.
    fn publish(&self) -> Result<(), PoolError> {
        let id = self.description.id;
        let (pool, nursery) = (&self.pool.directory, self.nursery.directory());
        let name = names::volume(id);
        // Before the move, which a power cut may keep without the data.
        directory::flush(&self.content.path, &self.content.file)
            .map_err(|source| self.subject().failed("create", source))?;
        if let Err(error) = pool.move_in(nursery, names::MADE, &name) {
            return Err(if error.is_already_there() {
                self.pool.already_there(id)
            } else {
                self.subject().failed("create", error)
            });
        }
        pool.flush().map_err(|error| {
            if let Err(error) = nursery.move_in(pool, &name, names::MADE) {
                tracing::warn!(%error, "a volume that was not made stays");
            }
            self.subject().failed("create", error)
        })
    }
}

fn make_subvolume(
    pool: &BtrfsPool,
    nursery: &Workplace<'_>,
    description: &Description,
) -> Result<File, PoolError> {
    let path = nursery.made();
    nursery.run("create", |lock| subvolume::create(lock, &path))?;
    let made = || {
        let made = nursery.directory().subdirectory(names::MADE)?;
        super::keep_private(&made)?;
        let file = made.file(names::DATA, Open::CreateNew)?;
        pool.writing.set_on(&made.path_of(names::DATA), &file)?;
        Ok(file)
    };
    made().map_err(|error| pool.subject(description.id).failed("create", error))
}

fn discard(nursery: &Workplace<'_>) {
    if let Err(error) = nursery.discard_made("remove") {
        tracing::warn!(?error, "a subvolume of a volume that was not made stays");
    }
}

impl Draft for BtrfsDraft<'_> {
    fn raw_path(&self) -> Option<&Path> {
        Some(&self.content.path)
    }

    fn content(&mut self) -> Result<&mut dyn Content, PoolError> {
        Ok(&mut self.content)
    }

    fn fill_from(
        &mut self,
        source: &File,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<CopyPath, PoolError> {
        let (size, target) = (self.description.size, &self.content.path);
        place::check_source(self.subject(), size, target, source)?;
        self.set_length(Bytes::new(0))?;
        match sparse::copy(source, &self.content.file, progress) {
            Ok(way) => {
                self.set_length(self.description.size)?;
                Ok(way)
            }
            Err(error) => {
                // Gives back the space, and keeps a part of the data from being committed.
                let _ = self.content.file.set_len(0);
                let source = FileError::new("copy into", &self.content.path, error);
                Err(self.subject().failed("fill", source))
            }
        }
    }

    fn commit(mut self: Box<Self>) -> Result<(), PoolError> {
        self.check()?;
        self.pool.check_no_volume(self.description.id)?;
        self.stage = Stage::DataAndDescription;
        self.pool.stage_description(&self.description)?;
        self.publish()?;
        self.stage = Stage::Committed;
        Ok(())
    }
}

impl Drop for BtrfsDraft<'_> {
    fn drop(&mut self) {
        if self.stage == Stage::Committed {
            return;
        }
        discard(&self.nursery);
        if self.stage == Stage::DataAndDescription {
            let name = names::description(self.description.id);
            if let Err(error) = self.pool.directory.unlink(&name) {
                tracing::warn!(%error, "the description of a volume that was not made stays");
            }
        }
    }
}
