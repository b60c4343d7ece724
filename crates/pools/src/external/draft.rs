//! A volume of an external driver that does not exist yet: one whose description says so.

use std::fs::File;
use std::io;
use std::path::Path;

use sistemo_host::directory::FileError;
use sistemo_host::sparse::{self, CopyPath};
use sistemo_model::Access;

use super::content::{self, FillError, Wanted};
use super::fault::DriverFault;
use super::pool::ExternalPool;
use super::protocol::{ChangedAnswer, Done, LocationAnswer, Operation};
use crate::contract::{Draft, Flaw, Location};
use crate::error::Subject;
use crate::{Content, Description, PoolError};

/// A volume that is removed when this is dropped.
#[derive(Debug)]
pub(super) struct ExternalDraft<'a> {
    pool: &'a ExternalPool,
    /// As it is once the volume exists.
    description: Description,
    location: Location,
    /// `None` where this program cannot read the format.
    content: Option<Box<dyn Content>>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Draft,
    /// Filling failed half-way.
    Spoiled,
    Committed,
}

impl<'a> ExternalDraft<'a> {
    /// Has the driver make the volume, described as unfinished.
    pub(super) fn begin(
        pool: &'a ExternalPool,
        description: &Description,
    ) -> Result<ExternalDraft<'a>, PoolError> {
        let (volume, size) = (description.id, description.size);
        let unfinished = Description {
            unfinished: true,
            ..description.clone()
        };
        let operation = Operation::Create {
            volume,
            size,
            description: pool.written(&unfinished)?,
        };
        let word = operation.word();
        let LocationAnswer { location } = pool.ask_new(operation)?;
        let mut draft = ExternalDraft {
            pool,
            description: Description {
                unfinished: false,
                ..description.clone()
            },
            location: location.into(),
            content: None,
            stage: Stage::Draft,
        };
        // From here on dropping it removes what the driver made.
        pool.check_path(word, draft.location.path())?;
        draft.content = match &draft.location {
            Location::Qcow2File(_) => None,
            raw => {
                let opened = content::content_of(raw, &draft.wanted());
                Some(opened.map_err(|fault| pool.failed(word, fault))?)
            }
        };
        if let Some(real) = draft.content.as_ref().map(|content| content.size())
            && real != size
        {
            let fault = DriverFault::size(real, size);
            return Err(pool.failed(word, fault));
        }
        Ok(draft)
    }

    fn wanted(&self) -> Wanted<'a> {
        self.pool.wanted(self.description.id, Access::ReadWrite)
    }

    fn subject(&self) -> Subject<'_> {
        self.pool.subject(self.description.id)
    }

    fn failed_fill(&self, error: io::Error) -> PoolError {
        let path = self.location.path();
        let source = FileError::new("copy into", path, error);
        self.subject().failed("fill", source)
    }

    /// Copies a file's data; what was there before is lost.
    fn copy(
        &mut self,
        source: &File,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<CopyPath, PoolError> {
        if let Location::RawFile(path) = &self.location {
            let word = "create";
            let opened = content::raw_file(path, &self.wanted());
            let file = opened.map_err(|fault| self.pool.failed(word, fault))?.file;
            let copied = file
                .set_len(0)
                .and_then(|()| sparse::copy(source, &file, progress))
                .and_then(|way| file.set_len(self.description.size.get()).map(|()| way));
            return copied.map_err(|error| self.failed_fill(error));
        }
        match content::fill(self.content()?, source, progress) {
            Ok(()) => Ok(CopyPath::Copied),
            Err(FillError::Source(error)) => Err(self.failed_fill(error)),
            Err(FillError::Pool(error)) => Err(error),
        }
    }

    /// Makes sure that what a program may have done to the data left it what it was to be, and
    /// flushes it.
    fn check_and_flush(&mut self) -> Result<(), PoolError> {
        if self.content.take().is_none() {
            return Ok(());
        }
        // By name: a program that was given the path may have put another file there.
        let opened = content::content_of(&self.location, &self.wanted());
        let mut content = opened.map_err(|fault| self.pool.failed("create", fault))?;
        let (recorded, real) = (self.description.size, content.size());
        if real != recorded {
            return Err(self.subject().damaged(Flaw::WrongSize { recorded, real }));
        }
        content.flush()
    }
}

impl Draft for ExternalDraft<'_> {
    fn raw_path(&self) -> Option<&Path> {
        match &self.location {
            Location::RawFile(path) | Location::BlockDevice(path) => Some(path),
            Location::Qcow2File(_) => None,
        }
    }

    fn content(&mut self) -> Result<&mut dyn Content, PoolError> {
        match &mut self.content {
            Some(content) => Ok(content.as_mut()),
            None => Err(self.pool.unreadable("create", &self.location)),
        }
    }

    fn fill_from(
        &mut self,
        source: &File,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<CopyPath, PoolError> {
        let meta = source.metadata().map_err(|error| self.failed_fill(error))?;
        if !meta.is_file() {
            // A device has length 0 here, and would pass for an empty file.
            let error = io::Error::new(io::ErrorKind::InvalidInput, "the source is not a file");
            return Err(self.failed_fill(error));
        }
        if meta.len() > self.description.size.get() {
            return Err(PoolError::SourceTooLarge {
                pool: self.pool.name.clone(),
                volume: self.description.id,
                size: self.description.size,
                source_size: meta.len(),
            });
        }
        let copied = self.copy(source, progress);
        if copied.is_err() {
            self.stage = Stage::Spoiled;
        }
        copied
    }

    fn commit(mut self: Box<Self>) -> Result<(), PoolError> {
        let volume = self.description.id;
        if self.stage == Stage::Spoiled {
            let reason = "only a part of its data was written".to_owned();
            return Err(self.subject().damaged(Flaw::Unreadable { reason }));
        }
        self.check_and_flush()?;
        if !self.pool.driver.always_open() {
            let _: Done = self.pool.ask(Operation::Close { volume })?;
        }
        let description = self.pool.written(&self.description)?;
        let _: Done = self.pool.ask(Operation::Describe {
            volume,
            description,
        })?;
        self.stage = Stage::Committed;
        Ok(())
    }
}

impl Drop for ExternalDraft<'_> {
    fn drop(&mut self) {
        if self.stage == Stage::Committed {
            return;
        }
        self.content = None;
        let volume = self.description.id;
        if let Err(error) = self.pool.ask::<ChangedAnswer>(Operation::Remove { volume }) {
            tracing::warn!(%error, "what is left of a volume that was not made stays");
        }
    }
}
