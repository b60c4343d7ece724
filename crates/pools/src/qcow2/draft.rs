//! A volume of the `qcow2` driver that does not exist yet.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sistemo_host::directory::{FileError, Open};
use sistemo_host::sparse::{self, CopyPath};
use sistemo_model::Access;

use super::chain::Chain;
use super::content::Qcow2Content;
use super::image::Image;
use super::{Qcow2Pool, names};
use crate::error::Subject;
use crate::{Content, Description, Draft, Flaw, PoolError, place};

const CHUNK: usize = 1 << 20;

/// A file under a draft's name, removed when this is dropped.
#[derive(Debug)]
pub(super) struct Qcow2Draft<'a> {
    pool: &'a Qcow2Pool,
    description: Description,
    name: String,
    content: Qcow2Content,
    stage: Stage,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Draft,
    /// A part of its content is missing.
    Spoiled,
    Committed,
}

impl<'a> Qcow2Draft<'a> {
    /// Makes the draft's file. The caller has seen that neither volume nor draft is there.
    pub(super) fn begin(
        pool: &'a Qcow2Pool,
        description: &Description,
        generation: u64,
    ) -> Result<Qcow2Draft<'a>, PoolError> {
        let id = description.id;
        let name = names::data(id, generation);
        let image = pool.new_image(&name, description, None)?;
        Ok(Qcow2Draft {
            pool,
            description: description.clone(),
            name,
            content: Qcow2Content {
                chain: Chain {
                    images: vec![image],
                },
                pool: pool.name.clone(),
                volume: id,
                size: description.size,
                access: Access::ReadWrite,
            },
            stage: Stage::Draft,
        })
    }

    fn subject(&self) -> Subject<'_> {
        self.pool.subject(self.description.id)
    }

    /// Makes the file as it was at first.
    fn empty(&mut self) -> Result<(), PoolError> {
        let name = names::new(&self.name);
        let path = self.pool.path_of(&name);
        let size = self.description.size.get();
        let image = self
            .pool
            .directory
            .file(&name, Open::ReadWrite)
            .map_err(Into::into)
            .and_then(|file| Image::create(file, path, size, None, None))
            .map_err(|error| self.subject().image("fill", error))?;
        self.content.chain.images = vec![image];
        Ok(())
    }

    fn copy(&mut self, source: &File, progress: &mut dyn FnMut(u64, u64)) -> Result<(), PoolError> {
        let new = self.pool.path_of(&names::new(&self.name));
        let failed = |pool: &Qcow2Pool, error: io::Error| {
            let subject = pool.subject(self.description.id);
            subject.failed("fill", FileError::new("copy into", &new, error))
        };
        let extents = sparse::data_extents(source).map_err(|error| failed(self.pool, error))?;
        let total = extents.iter().map(|extent| extent.length).sum();
        let mut done = 0;
        let mut buffer = vec![0; CHUNK];
        for extent in extents {
            let mut at = extent.offset;
            while at < extent.end() {
                // Up to where clusters begin, so that they are written whole.
                let aligned = CHUNK as u64 - at % CHUNK as u64;
                let length = aligned.min(extent.end() - at);
                let part = &mut buffer[..usize::try_from(length).unwrap_or(CHUNK)];
                source
                    .read_exact_at(part, at)
                    .map_err(|error| failed(self.pool, error))?;
                self.content.write_data(part, at)?;
                at += length;
                done += length;
                progress(done, total);
            }
        }
        self.content.write_back()
    }

    fn take_away(&self) {
        for name in [
            names::new(&self.name),
            names::new_description(self.description.id),
        ] {
            if let Err(error) = self.pool.directory.unlink(&name) {
                tracing::warn!(%error, "a file of a volume that was not made stays");
            }
        }
    }
}

impl Draft for Qcow2Draft<'_> {
    fn raw_path(&self) -> Option<&Path> {
        None
    }

    fn content(&mut self) -> Result<&mut dyn Content, PoolError> {
        Ok(&mut self.content)
    }

    fn fill_from(
        &mut self,
        source: &File,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<CopyPath, PoolError> {
        let target = self.pool.path_of(&names::new(&self.name));
        place::check_source(self.subject(), self.description.size, &target, source)?;
        self.stage = Stage::Spoiled;
        self.empty()?;
        if let Err(error) = self.copy(source, progress) {
            // Gives back the space.
            let _ = self.empty();
            return Err(error);
        }
        self.stage = Stage::Draft;
        Ok(CopyPath::Copied)
    }

    fn commit(mut self: Box<Self>) -> Result<(), PoolError> {
        let id = self.description.id;
        if self.stage == Stage::Spoiled {
            return Err(self.subject().damaged(Flaw::Unreadable {
                reason: "a part of its content could not be written".to_owned(),
            }));
        }
        self.content.flush()?;
        self.pool.check_no_volume(id)?;
        self.pool.bring_to_be(&self.name, &self.description)?;
        self.stage = Stage::Committed;
        Ok(())
    }
}

impl Drop for Qcow2Draft<'_> {
    fn drop(&mut self) {
        if self.stage != Stage::Committed {
            self.take_away();
        }
    }
}
