//! Files and streams to volumes.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sistemo_host::directory::FileError;
use sistemo_host::lock::Lock;
use sistemo_host::sparse;
use sistemo_images::{DiskFile, ImageFormat};
use sistemo_model::{
    Access, Bytes, Digest, Filesystem, History, Lifecycle, PoolName, Reference, Role, Timestamp,
    Volume, VolumeId, VolumeName,
};
use sistemo_pools::{Draft, Pool};

use super::Checksum;
use super::checksum::{self, Sum};
use crate::copying::write_sparsely;
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::volumes::{VolumeView, description, held_lock, pool_error};

/// How much of a stream is read before the volume grows by it.
const STEP: usize = 32 << 20;
/// What a file is called in errors that came through a stream.
const STREAM: &str = "standard input";

/// A volume to be made from a file or a stream.
#[derive(Clone, Debug)]
pub struct NewImported {
    /// Its name.
    pub name: VolumeName,
    /// Its pool; without one, the default pool.
    pub pool: Option<PoolName>,
    /// The filesystem that it holds, as far as the user knows; it is not looked at.
    pub filesystem: Filesystem,
    /// How the file holds it; without a format, as the file's name says, and raw where it says
    /// nothing.
    pub format: Option<ImageFormat>,
    /// Whether its bytes are hashed, what was added to fill the volume left out.
    pub checksum: Checksum,
}

/// A volume that was made from a file or a stream.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The volume.
    pub volume: VolumeView,
    /// How the file held it.
    pub format: ImageFormat,
    /// The SHA-256 of its bytes, where it was wanted.
    pub sha256: Option<Digest>,
}

/// What came of filling a volume: how large it has become, and its checksum.
type Filled = (Bytes, Option<Digest>);

impl Engine {
    /// Makes a volume from a file, without its holes. Its size is the disk's, rounded up to 512
    /// bytes and to 1 MB at the least; what is added reads as zeros. A file that is not raw must
    /// be of its format by its own word, and need no other file. A crash in the middle leaves
    /// nothing once the next operation has begun.
    ///
    /// # Errors
    /// Where the name is taken, the file is empty or no regular file or cannot be what it should,
    /// the pool has no room, or the checksum is another.
    pub fn import_volume(&self, new: &NewImported, from: &Path) -> Result<Imported> {
        let named = new.format.or_else(|| ImageFormat::of_name(from));
        match named.unwrap_or(ImageFormat::Raw) {
            ImageFormat::Raw => self.import_raw(new, from),
            format => {
                self.refuse_taken(&new.name)?;
                self.reporter.stage(&format!("checking {}", from.display()));
                let disk = DiskFile::open(from, format);
                self.reporter.stage_over();
                self.import_disk(new, disk)
            }
        }
    }

    /// Makes a volume from a stream, which is read to its end; what of it holds only zeros takes
    /// no room. One that is not raw goes into a file without a name first, in the pool or in the
    /// data directory. Otherwise as [`Engine::import_volume`].
    ///
    /// # Errors
    /// As [`Engine::import_volume`], [`Error::EmptyInput`], and [`Error::Stream`] where the
    /// stream cannot be read.
    pub fn import_volume_from(&self, new: &NewImported, from: &mut dyn Read) -> Result<Imported> {
        match new.format.unwrap_or(ImageFormat::Raw) {
            ImageFormat::Raw => self.import_stream(new, from),
            format => {
                self.refuse_taken(&new.name)?;
                let pool = self.pool(&self.pool_for(new.pool.as_ref())?)?;
                let mut file = self.scratch(Some(pool.as_ref()), &new.importing())?;
                self.reporter.stage("reading standard input");
                let read = io::copy(from, &mut file);
                self.reporter.stage_over();
                if read.map_err(|error| new.stream_error(error))? == 0 {
                    return Err(new.empty());
                }
                self.import_disk(new, DiskFile::of(Path::new(STREAM), file, format))
            }
        }
    }

    /// Refuses a name that is taken before a long look at what is to have it: it is looked at
    /// again when it is taken.
    fn refuse_taken(&self, name: &VolumeName) -> Result<()> {
        let there = self.catalogue.read(|session| session.volumes())?;
        if there.iter().any(|volume| volume.name == *name) {
            return Err(Error::NameTaken {
                kind: Kind::Volume,
                name: name.to_string(),
            });
        }
        Ok(())
    }

    fn import_raw(&self, new: &NewImported, from: &Path) -> Result<Imported> {
        let refuse = |reason| {
            Err(Error::Exchange {
                action: "import",
                path: from.to_owned(),
                reason,
            })
        };
        let fail = |error| Error::File {
            action: new.importing(),
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
            self.ensure_room(pool.as_ref(), needed, || new.importing())?;
        }
        let size = size_for(meta.len());
        self.import(new, ImageFormat::Raw, pool_name, size, |volume, pool, _| {
            let fail = |source| pool_error(volume, "create", source);
            self.with_room(&volume.pool, || {
                let mut progress = |done, total| self.reporter.progress(done, total);
                let mut draft = pool.draft(&description(volume)).map_err(fail)?;
                let _ = draft.fill_from(&file, &mut progress).map_err(fail)?;
                let sum = self.sum_of_draft(new, volume, draft.as_mut(), meta.len())?;
                draft.commit().map_err(fail)?;
                Ok((volume.size, sum))
            })
        })
    }

    fn import_disk(
        &self,
        new: &NewImported,
        disk: sistemo_images::Result<DiskFile>,
    ) -> Result<Imported> {
        let refused = |source| Error::DiskFile {
            action: new.importing(),
            source,
        };
        let disk = disk.map_err(refused)?;
        let pool_name = self.pool_for(new.pool.as_ref())?;
        let pool = self.pool(&pool_name)?;
        let needed = disk.data_bytes().map_err(refused)?;
        self.ensure_room(pool.as_ref(), needed, || new.importing())?;
        let (format, size) = (disk.format(), size_for(disk.size()));
        let fill = |volume: &Volume, pool: &dyn Pool, lock: &Lock| {
            let fail = |source| pool_error(volume, "create", source);
            let mut progress = |done, total| self.reporter.progress(done, total);
            let mut draft = pool.draft(&description(volume)).map_err(fail)?;
            let unopened = |path: &Path| {
                let path = path.to_owned();
                move |error| Error::File {
                    action: new.importing(),
                    source: FileError::new("open", path, error),
                }
            };
            if let Some(path) = draft.raw_path() {
                let target = File::options().write(true).read(true).open(path);
                let target = target.map_err(unopened(path))?;
                disk.convert_into(&target, &[lock.as_fd()], &mut progress)
                    .map_err(refused)?;
            } else {
                let target = self.scratch(Some(pool), &new.importing())?;
                let made = target.set_len(disk.size());
                made.map_err(unopened(pool.directory()))?;
                disk.convert_into(&target, &[lock.as_fd()], &mut progress)
                    .map_err(refused)?;
                let _ = draft.fill_from(&target, &mut progress).map_err(fail)?;
            }
            let sum = self.sum_of_draft(new, volume, draft.as_mut(), disk.size())?;
            draft.commit().map_err(fail)?;
            Ok((volume.size, sum))
        };
        self.import(new, format, pool_name, size, |volume, pool, lock| {
            self.with_room(&volume.pool, || fill(volume, pool, lock))
        })
    }

    /// The checksum of what has come into a volume, before that exists.
    fn sum_of_draft(
        &self,
        new: &NewImported,
        volume: &Volume,
        draft: &mut dyn Draft,
        length: u64,
    ) -> Result<Option<Digest>> {
        if !new.checksum.is_wanted() {
            return Ok(None);
        }
        let fail = |source| pool_error(volume, "read", source);
        let mut progress = |done, total| self.reporter.progress(done, total);
        let content = draft.content().map_err(fail)?;
        let sum = checksum::of_content(content, length, &mut progress).map_err(fail)?;
        checksum::verified(&new.checksum, &new.name, Some(sum))
    }

    fn import_stream(&self, new: &NewImported, from: &mut dyn Read) -> Result<Imported> {
        let pool_name = self.pool_for(new.pool.as_ref())?;
        let mut step = Vec::with_capacity(STEP);
        read_step(new, from, &mut step)?;
        if step.is_empty() {
            return Err(new.empty());
        }
        // How long a stream is shows at its end, and a volume does not shrink: so it grows with it.
        let first = size_for(step.len() as u64);
        self.import(
            new,
            ImageFormat::Raw,
            pool_name,
            first,
            |volume, pool, _| {
                let fail = |source| pool_error(volume, "create", source);
                self.with_room(&volume.pool, || {
                    let draft = pool.draft(&description(volume)).map_err(fail)?;
                    draft.commit().map_err(fail)
                })?;
                let mut sum = new.checksum.is_wanted().then(Sum::new);
                let (mut at, mut size) = (0, volume.size);
                while !step.is_empty() {
                    let end = at + step.len() as u64;
                    size = size.max(size_for(end));
                    // A stream is read once; what was read of it may be written again.
                    self.with_room(&volume.pool, || {
                        let _ = pool.grow(volume.id, size).map_err(fail)?;
                        let opened = pool.content(volume.id, Access::ReadWrite);
                        let mut content = opened.map_err(fail)?;
                        write_sparsely(content.as_mut(), &step, at).map_err(fail)?;
                        content.flush().map_err(fail)
                    })?;
                    if let Some(sum) = &mut sum {
                        sum.add(&step);
                    }
                    at = end;
                    self.reporter.progress(at, 0);
                    read_step(new, from, &mut step)?;
                }
                let sum = checksum::verified(&new.checksum, &new.name, sum.map(Sum::digest))?;
                Ok((size, sum))
            },
        )
    }

    /// Makes a volume that is filled from outside.
    fn import(
        &self,
        new: &NewImported,
        format: ImageFormat,
        pool_name: PoolName,
        size: Bytes,
        fill: impl FnOnce(&Volume, &dyn Pool, &Lock) -> Result<Filled>,
    ) -> Result<Imported> {
        let id = VolumeId::random();
        let held = self.hold_volumes(&[id])?;
        let lock = held_lock(&held, id)?;
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
            let (size, sum) = fill(&volume, pool.as_ref(), lock)?;
            if size != volume.size {
                self.catalogue
                    .write(|session| session.set_volume_size(id, size))?;
            }
            Ok(sum)
        });
        self.reporter.stage_over();
        let sha256 = self.finish_new(&volume, intent, filled)?;
        Ok(Imported {
            volume: self.volume(&Reference::from(id.to_string()))?,
            format,
            sha256,
        })
    }
}

impl NewImported {
    fn importing(&self) -> String {
        format!("import volume {}", self.name)
    }

    fn empty(&self) -> Error {
        Error::EmptyInput {
            volume: self.name.clone(),
        }
    }

    fn stream_error(&self, source: io::Error) -> Error {
        Error::Stream {
            action: "import",
            volume: self.name.clone(),
            source,
        }
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
    read.map(drop).map_err(|error| new.stream_error(error))
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
