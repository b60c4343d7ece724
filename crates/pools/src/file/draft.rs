//! A volume of the `file` driver that does not exist yet.

use std::fs::File;
use std::io;
use std::path::Path;

use sistemo_host::directory::{FileError, Open};
use sistemo_host::sparse::{self, CopyPath};
use sistemo_model::{Access, Bytes};

use super::sharing::{self, Copying};
use super::{FilePool, names};
use crate::content::RawContent;
use crate::contract::{Progress, Way};
use crate::error::Subject;
use crate::{Content, Description, Draft, Flaw, PoolError, place};

/// A file under a draft's name, removed when this is dropped.
#[derive(Debug)]
pub(super) struct FileDraft<'a> {
    pool: &'a FilePool,
    description: Description,
    name: String,
    content: RawContent,
    stage: Stage,
}

/// What has to go when the draft is dropped.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Data,
    DataAndDescription,
    Committed,
}

impl<'a> FileDraft<'a> {
    /// Makes the draft's file. The caller has seen that neither volume nor draft is there.
    pub(super) fn begin(
        pool: &'a FilePool,
        description: &Description,
    ) -> Result<FileDraft<'a>, PoolError> {
        let id = description.id;
        let name = names::draft(id, description.filesystem);
        let path = pool.directory.path_of(&name);
        let file = match pool.directory.file(&name, Open::CreateNew) {
            Ok(file) => file,
            Err(error) if error.is_already_there() => {
                return Err(PoolError::DraftThere {
                    pool: pool.name.clone(),
                    volume: id,
                });
            }
            Err(error) => return Err(pool.subject(id).failed("create", error)),
        };
        let draft = FileDraft {
            pool,
            description: description.clone(),
            name,
            content: RawContent {
                file,
                path,
                pool: pool.name.clone(),
                volume: id,
                size: description.size,
                access: Access::ReadWrite,
            },
            stage: Stage::Data,
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

    /// Makes it hold what `source` does, and zeros behind that. After an error it is good for
    /// nothing but dropping.
    pub(super) fn share(
        &mut self,
        source: &File,
        copying: Copying,
        progress: Progress<'_>,
    ) -> Result<Way, PoolError> {
        let failed = |error: io::Error| {
            let source = FileError::new("fill", &self.content.path, error);
            self.subject().failed("clone into", source)
        };
        let length = source.metadata().map_err(failed)?.len();
        place::check_fits(self.subject(), self.description.size, length)?;
        self.set_length(Bytes::new(0))?;
        let target = &self.content.file;
        let way = sharing::share(source, target, copying, progress).map_err(failed)?;
        self.set_length(self.description.size)?;
        Ok(way)
    }

    fn publish(&self) -> Result<(), PoolError> {
        let id = self.description.id;
        let name = names::data(id, self.description.filesystem);
        self.pool.publish(&self.name, &name).map_err(|error| {
            if error.is_already_there() {
                self.pool.already_there(id)
            } else {
                self.subject().failed("create", error)
            }
        })
    }

    fn unlink(&self, name: &str) {
        if let Err(error) = self.pool.directory.unlink(name) {
            tracing::warn!(%error, "a file of a volume that was not made stays");
        }
    }
}

impl Draft for FileDraft<'_> {
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
        let id = self.description.id;
        // By name, not by handle: a program that was given the path may have put another file there.
        let stat = self.pool.stat(id, &self.name)?;
        match stat {
            Some(stat) if stat.regular && stat.size == self.description.size => {}
            Some(stat) if stat.regular => {
                return Err(self.subject().damaged(Flaw::WrongSize {
                    recorded: self.description.size,
                    real: stat.size,
                }));
            }
            Some(_) => {
                let path = self.content.path.clone();
                return Err(self.subject().damaged(Flaw::NotAFile { path }));
            }
            None => return Err(self.subject().damaged(Flaw::Missing)),
        }
        self.pool.check_no_data(id)?;
        self.stage = Stage::DataAndDescription;
        self.pool.stage_description(&self.description)?;
        self.publish()?;
        self.stage = Stage::Committed;
        Ok(())
    }
}

impl Drop for FileDraft<'_> {
    fn drop(&mut self) {
        if self.stage == Stage::Committed {
            return;
        }
        self.unlink(&self.name);
        if self.stage == Stage::DataAndDescription {
            self.unlink(&names::description(self.description.id));
        }
    }
}
