//! Exchange with the world outside: a volume as a raw file, and a raw file as a volume.
//!
//! Raw is what it is: no format is guessed from what a file holds, for a guest may have written
//! any.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use sistemo_host::directory::{self, Directory, FileError, Open};
use sistemo_host::sparse;
use sistemo_model::{
    Access, Bytes, Filesystem, History, Lifecycle, PoolName, Reference, Role, SnapshotName,
    Timestamp, Volume, VolumeId, VolumeName,
};
use sistemo_pools::{Content, Pool};

use crate::copying::{part_of, require_room, runs, write_sparsely};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::volumes::{VolumeView, description, pool_error};

/// How much of a stream is written at a time.
const BUFFER: usize = 1 << 20;
/// How much of a stream is read before the volume grows by it.
const STEP: usize = 32 << 20;

/// A volume to be written to a file or a stream.
#[derive(Clone, Debug)]
pub struct Export {
    /// The volume.
    pub source: Reference,
    /// The snapshot of it; without one, the volume as it is now.
    pub snapshot: Option<SnapshotName>,
}

/// A volume that was written.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The volume.
    pub volume: VolumeView,
    /// The length of the file or stream.
    pub size: Bytes,
}

/// A volume to be made from a file or a stream.
#[derive(Clone, Debug)]
pub struct NewImported {
    /// Its name.
    pub name: VolumeName,
    /// Its pool; without one, the default pool.
    pub pool: Option<PoolName>,
    /// The filesystem that it holds, as far as the user knows; it is not looked at.
    pub filesystem: Filesystem,
}

/// Where a volume goes.
enum Target<'a> {
    File(&'a Path),
    Stream(&'a mut dyn Write),
}

impl Engine {
    /// Writes a volume to a new raw file, without its holes. The file appears when it is whole
    /// and on disk. A crash in the middle leaves one beside it whose name ends in `.part`, which
    /// another export to that name replaces.
    ///
    /// # Errors
    /// Where the file is there already, the volume's machine is active and no snapshot is named,
    /// or there is no room.
    pub fn export_volume(&self, export: &Export, to: &Path) -> Result<Exported> {
        let refuse = |reason| {
            Err(Error::Exchange {
                action: "export to",
                path: to.to_owned(),
                reason,
            })
        };
        match to.symlink_metadata() {
            Ok(meta) if meta.is_dir() => return refuse("it is a directory"),
            Ok(_) => return refuse("it exists already"),
            Err(_) => {}
        }
        self.export(export, Target::File(to))
    }

    /// Writes a volume to a stream, from its first byte to its last, holes as zeros.
    ///
    /// # Errors
    /// As [`Engine::export_volume`], and [`Error::Stream`] where the stream breaks.
    pub fn export_volume_to(&self, export: &Export, to: &mut dyn Write) -> Result<Exported> {
        self.export(export, Target::Stream(to))
    }

    fn export(&self, export: &Export, target: Target<'_>) -> Result<Exported> {
        let source = self.hold_source(&export.source, export.snapshot.as_ref(), "export")?;
        let volume = &source.volume;
        let content = source.content()?;
        self.reporter.stage(&format!("exporting {}", volume.name));
        let written = match target {
            Target::Stream(stream) => self.write_stream(volume, content.as_ref(), stream),
            Target::File(path) => source
                .raw_file()
                .and_then(|raw| self.write_file(volume, content.as_ref(), raw.as_ref(), path)),
        };
        self.reporter.stage_over();
        written?;
        Ok(Exported {
            size: content.size(),
            volume: self.volume(&Reference::from(volume.id.to_string()))?,
        })
    }

    fn write_stream(
        &self,
        volume: &Volume,
        content: &dyn Content,
        stream: &mut dyn Write,
    ) -> Result<()> {
        let broken = |source| Error::Stream {
            action: "export",
            volume: volume.name.clone(),
            source,
        };
        let size = content.size().get();
        let mut buffer = vec![0; BUFFER];
        let mut at = 0;
        while at < size {
            let part = part_of(&mut buffer, size - at);
            content
                .read_at(part, at)
                .map_err(|source| pool_error(volume, "read", source))?;
            stream.write_all(part).map_err(broken)?;
            at += part.len() as u64;
            self.reporter.progress(at, size);
        }
        stream.flush().map_err(broken)
    }

    fn write_file(
        &self,
        volume: &Volume,
        content: &dyn Content,
        raw: Option<&File>,
        path: &Path,
    ) -> Result<()> {
        let fail = |source| Error::File {
            action: format!("export volume {}", volume.name),
            source,
        };
        let (directory, name) = directory::split(path).map_err(fail)?;
        // Nobody else's name: what has it was made here, and may be published or removed.
        let part = format!(".sistemo-export.{}.part", VolumeId::random().simple());
        let written = self.write_part(volume, content, raw, &directory, &part);
        let published = written.and_then(|()| directory.publish(&part, &name).map_err(fail));
        if published.is_err() {
            // The error that matters is the one above.
            let _ = directory.unlink(&part);
        }
        published
    }

    fn write_part(
        &self,
        volume: &Volume,
        content: &dyn Content,
        raw: Option<&File>,
        directory: &Directory,
        part: &str,
    ) -> Result<()> {
        let action = || format!("export volume {}", volume.name);
        let fail = |source| Error::File {
            action: action(),
            source,
        };
        let failed = |error| fail(FileError::new("write", directory.path_of(part), error));
        let file = directory.file(part, Open::CreateNew).map_err(fail)?;
        let mut progress = |done, total| self.reporter.progress(done, total);
        if let Some(raw) = raw {
            let _ = sparse::copy(raw, &file, &mut progress).map_err(failed)?;
            return Ok(());
        }
        let unreadable = |source| pool_error(volume, "read", source);
        file.set_len(content.size().get()).map_err(failed)?;
        let extents = content.extents().map_err(unreadable)?;
        let total = extents.iter().map(|extent| extent.length).sum();
        let (mut buffer, mut done) = (vec![0; BUFFER], 0);
        for extent in extents {
            let mut at = extent.offset;
            while at < extent.end() {
                let read = part_of(&mut buffer, extent.end() - at);
                content.read_at(read, at).map_err(unreadable)?;
                for (start, end) in runs(read) {
                    file.write_all_at(&read[start..end], at + start as u64)
                        .map_err(failed)?;
                }
                at += read.len() as u64;
                done += read.len() as u64;
                progress(done, total);
            }
        }
        Ok(())
    }

    /// Makes a volume from a raw file, without its holes. Its size is the file's, rounded up to
    /// 512 bytes and to 1 MB at the least; what is added reads as zeros. A crash in the middle
    /// leaves nothing once the next operation has begun.
    ///
    /// # Errors
    /// Where the name is taken, the file is empty or no regular file, or the pool has no room.
    pub fn import_volume(&self, new: &NewImported, from: &Path) -> Result<VolumeView> {
        let refuse = |reason| {
            Err(Error::Exchange {
                action: "import",
                path: from.to_owned(),
                reason,
            })
        };
        let fail = |error| Error::File {
            action: format!("import volume {}", new.name),
            source: FileError::new("open", from, error),
        };
        // Looked at before it is opened: opening a pipe would wait, and a device may do anything.
        let meta = std::fs::metadata(from).map_err(fail)?;
        if !meta.is_file() {
            return refuse("it is not a regular file");
        }
        let file = File::open(from).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        if meta.len() == 0 {
            return refuse("it is empty");
        }
        let pool_name = self.pool_for(new.pool.as_ref())?;
        let pool = self.pool(&pool_name)?;
        let shares = std::fs::metadata(pool.directory()).is_ok_and(|at| at.dev() == meta.dev());
        if !shares {
            // On one filesystem it may be shared and take no room at all.
            let data = sparse::data_extents(&file).map_err(fail)?;
            let needed = data.iter().map(|extent| extent.length).sum();
            let action = || format!("import volume {}", new.name);
            require_room(pool.as_ref(), needed, action)?;
        }
        self.import(new, pool_name, size_for(meta.len()), |volume, pool| {
            let fail = |source| pool_error(volume, "create", source);
            let mut progress = |done, total| self.reporter.progress(done, total);
            let mut draft = pool.draft(&description(volume)).map_err(fail)?;
            let _ = draft.fill_from(&file, &mut progress).map_err(fail)?;
            draft.commit().map_err(fail)?;
            Ok(volume.size)
        })
    }

    /// Makes a volume from a stream, which is read to its end; what of it holds only zeros takes
    /// no room. Otherwise as [`Engine::import_volume`].
    ///
    /// # Errors
    /// As [`Engine::import_volume`], [`Error::EmptyInput`], and [`Error::Stream`] where the
    /// stream cannot be read.
    pub fn import_volume_from(&self, new: &NewImported, from: &mut dyn Read) -> Result<VolumeView> {
        let pool_name = self.pool_for(new.pool.as_ref())?;
        let mut step = Vec::with_capacity(STEP);
        read_step(new, from, &mut step)?;
        if step.is_empty() {
            let volume = new.name.clone();
            return Err(Error::EmptyInput { volume });
        }
        // How long a stream is shows at its end, and a volume does not shrink: so it grows with it.
        let first = size_for(step.len() as u64);
        self.import(new, pool_name, first, |volume, pool| {
            let fail = |source| pool_error(volume, "create", source);
            let draft = pool.draft(&description(volume)).map_err(fail)?;
            draft.commit().map_err(fail)?;
            let (mut at, mut size) = (0, volume.size);
            while !step.is_empty() {
                let end = at + step.len() as u64;
                if end > size.get() {
                    size = size_for(end);
                    let _ = pool.grow(volume.id, size).map_err(fail)?;
                }
                let opened = pool.content(volume.id, Access::ReadWrite);
                let mut content = opened.map_err(fail)?;
                write_sparsely(content.as_mut(), &step, at).map_err(fail)?;
                content.flush().map_err(fail)?;
                at = end;
                self.reporter.progress(at, 0);
                read_step(new, from, &mut step)?;
            }
            Ok(size)
        })
    }

    /// Makes a volume that is filled from outside; `fill` says how large it has become.
    fn import(
        &self,
        new: &NewImported,
        pool_name: PoolName,
        size: Bytes,
        fill: impl FnOnce(&Volume, &dyn Pool) -> Result<Bytes>,
    ) -> Result<VolumeView> {
        let id = VolumeId::random();
        let _held = self.hold_volumes(&[id])?;
        let now = Timestamp::now();
        let volume = Volume {
            id,
            name: new.name.clone(),
            size,
            role: Role::Data,
            pool: pool_name,
            filesystem: new.filesystem,
            boot: None,
            history: History::default(),
            lifecycle: Lifecycle::Creating,
            created: now,
            modified: now,
        };
        let (volume, intent) = self.record_new(volume, false)?;
        self.reporter.stage(&format!("importing {}", volume.name));
        let filled = self.pool(&volume.pool).and_then(|pool| {
            let size = fill(&volume, pool.as_ref())?;
            if size != volume.size {
                self.catalogue
                    .write(|session| session.set_volume_size(id, size))?;
            }
            Ok(())
        });
        self.reporter.stage_over();
        self.finish_new(&volume, intent, filled)?;
        self.volume(&Reference::from(id.to_string()))
    }
}

/// The size of a volume that holds so many bytes.
fn size_for(bytes: u64) -> Bytes {
    Bytes::new(bytes.next_multiple_of(Bytes::SECTOR)).max(Bytes::MINIMUM)
}

/// Fills a buffer from a stream; it is shorter only at the stream's end.
fn read_step(new: &NewImported, from: &mut dyn Read, step: &mut Vec<u8>) -> Result<()> {
    step.clear();
    let read = from.take(STEP as u64).read_to_end(step);
    read.map(drop).map_err(|source| Error::Stream {
        action: "import",
        volume: new.name.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_that_of_what_it_holds_rounded_up() {
        for (bytes, size) in [
            (1, 1 << 20),
            (1 << 20, 1 << 20),
            ((1 << 20) + 1, (1 << 20) + 512),
            (3 << 20, 3 << 20),
        ] {
            assert_eq!(size_for(bytes).get(), size);
        }
    }
}
