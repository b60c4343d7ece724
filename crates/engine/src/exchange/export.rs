//! Volumes to files and streams.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sistemo_host::directory::{self, FileError};
use sistemo_host::sparse;
use sistemo_host::unpublished::Unpublished;
use sistemo_images::{ImageFormat, Place, Written};
use sistemo_model::{Bytes, Digest, Reference, SnapshotName};
use sistemo_pools::{Content, Location};

use super::checksum::{self, Sum};
use super::scratch::{part_name, require_space};
use super::{BUFFER, Checksum};
use crate::copying::{data_bytes, part_of, runs};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::sources::Source;
use crate::volumes::{VolumeView, held_lock, pool_error};

/// A volume to be written to a file or a stream.
#[derive(Clone, Debug)]
pub struct Export {
    /// The volume.
    pub source: Reference,
    /// The snapshot of it; without one, the volume as it is now.
    pub snapshot: Option<SnapshotName>,
    /// How it is written; without a format, as the file's name says, and raw where it says
    /// nothing.
    pub format: Option<ImageFormat>,
    /// Whether its bytes are hashed.
    pub checksum: Checksum,
}

impl Export {
    /// The volume as it is now, written as the file's name says.
    #[must_use]
    pub fn of(source: Reference) -> Export {
        Export {
            source,
            snapshot: None,
            format: None,
            checksum: Checksum::Skip,
        }
    }
}

/// A volume that was written.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The volume.
    pub volume: VolumeView,
    /// The size of the disk.
    pub size: Bytes,
    /// How it was written.
    pub format: ImageFormat,
    /// The SHA-256 of its bytes, where it was wanted: in no format but raw that of the file.
    pub sha256: Option<Digest>,
}

impl Engine {
    /// Writes a volume to a new file, without its holes. The file appears when it is whole and on
    /// disk; until then it has no name, and a crash leaves nothing. On filesystems that know no
    /// files without a name a crash leaves one whose name ends in `.part`.
    ///
    /// # Errors
    /// Where the file is there already, the volume's machine is active and no snapshot is named,
    /// or there is no room.
    pub fn export_volume(&self, export: &Export, to: &Path) -> Result<Exported> {
        let refused = |reason| Error::Exchange {
            action: "export to",
            path: to.to_owned(),
            reason,
        };
        match to.symlink_metadata() {
            Ok(meta) if meta.is_dir() => return Err(refused("it is a directory")),
            Ok(_) => return Err(refused("it exists already")),
            Err(_) => {}
        }
        let named = export.format.or_else(|| ImageFormat::of_name(to));
        let format = named.unwrap_or(ImageFormat::Raw);
        let source = self.export_source(export)?;
        let written = self.staged_export(&source, |content| {
            let action = || source.exporting();
            let fail = |source| Error::File {
                action: action(),
                source,
            };
            let (directory, name) = directory::split(to).map_err(fail)?;
            let path = directory.path().to_owned();
            let new = Unpublished::create(directory, &part_name("export")).map_err(fail)?;
            if format == ImageFormat::Raw {
                let file = RawFile {
                    file: new.file(),
                    path: &path.join(&name),
                    action: &action(),
                };
                self.write_raw(&source, content, &file)?;
            } else {
                self.write_format(&source, content, format, new.file(), &path, &name)?;
            }
            let sum = self.sum_of(&source, content, &export.checksum)?;
            match new.publish(&name) {
                // Another was faster.
                Err(error) if error.source.kind() == ErrorKind::AlreadyExists => {
                    return Err(refused("it exists already"));
                }
                published => published.map_err(fail)?,
            }
            Ok(sum)
        });
        self.exported(&source, format, written?)
    }

    /// Writes a volume to a stream. Raw, it goes from its first byte to its last, holes as zeros;
    /// in another format it is written to a file without a name first, in the data directory.
    ///
    /// # Errors
    /// As [`Engine::export_volume`], and [`Error::Stream`] where the stream breaks.
    pub fn export_volume_to(&self, export: &Export, to: &mut dyn Write) -> Result<Exported> {
        let format = export.format.unwrap_or(ImageFormat::Raw);
        let source = self.export_source(export)?;
        let written = self.staged_export(&source, |content| {
            if format == ImageFormat::Raw {
                return self.stream_raw(&source, content, &export.checksum, to);
            }
            let file = self.scratch(None, &source.exporting())?;
            let name = format!("{}.{format}", source.volume.name);
            self.write_format(&source, content, format, &file, self.data_dir(), &name)?;
            let sum = self.sum_of(&source, content, &export.checksum)?;
            self.stream_file(&source, &file, to)?;
            Ok(sum)
        });
        self.exported(&source, format, written?)
    }

    fn export_source<'a>(&self, export: &'a Export) -> Result<Source<'a>> {
        self.hold_source(&export.source, export.snapshot.as_ref(), "export")
    }

    fn staged_export<T>(
        &self,
        source: &Source<'_>,
        write: impl FnOnce(&dyn Content) -> Result<T>,
    ) -> Result<T> {
        let content = source.content()?;
        self.reporter
            .stage(&format!("exporting {}", source.volume.name));
        let written = write(content.as_ref());
        self.reporter.stage_over();
        written
    }

    fn exported(
        &self,
        source: &Source<'_>,
        format: ImageFormat,
        sha256: Option<Digest>,
    ) -> Result<Exported> {
        Ok(Exported {
            volume: self.volume(&Reference::from(source.volume.id.to_string()))?,
            size: source.size,
            format,
            sha256,
        })
    }

    fn sum_of(
        &self,
        source: &Source<'_>,
        content: &dyn Content,
        wanted: &Checksum,
    ) -> Result<Option<Digest>> {
        if !wanted.is_wanted() {
            return Ok(None);
        }
        let mut progress = |done, total| self.reporter.progress(done, total);
        let sum = checksum::of_content(content, content.size().get(), &mut progress)
            .map_err(|error| pool_error(&source.volume, "read", error))?;
        checksum::verified(wanted, &source.volume.name, Some(sum))
    }

    fn stream_raw(
        &self,
        source: &Source<'_>,
        content: &dyn Content,
        wanted: &Checksum,
        stream: &mut dyn Write,
    ) -> Result<Option<Digest>> {
        let broken = |error| source.stream_error(error);
        let size = content.size().get();
        let mut sum = wanted.is_wanted().then(Sum::new);
        let mut buffer = vec![0; BUFFER];
        let mut at = 0;
        while at < size {
            let part = part_of(&mut buffer, size - at);
            content
                .read_at(part, at)
                .map_err(|error| pool_error(&source.volume, "read", error))?;
            if let Some(sum) = &mut sum {
                sum.add(part);
            }
            stream.write_all(part).map_err(broken)?;
            at += part.len() as u64;
            self.reporter.progress(at, size);
        }
        stream.flush().map_err(broken)?;
        checksum::verified(wanted, &source.volume.name, sum.map(Sum::digest))
    }

    fn stream_file(
        &self,
        source: &Source<'_>,
        mut file: &File,
        stream: &mut dyn Write,
    ) -> Result<()> {
        let broken = |error| source.stream_error(error);
        let total = file.metadata().map_err(broken)?.len();
        let (mut buffer, mut done) = (vec![0; BUFFER], 0);
        file.rewind().map_err(broken)?;
        loop {
            let read = file.read(&mut buffer).map_err(broken)?;
            if read == 0 {
                return stream.flush().map_err(broken);
            }
            stream.write_all(&buffer[..read]).map_err(broken)?;
            done += read as u64;
            self.reporter.progress(done, total);
        }
    }

    /// Writes the bytes as they are into an empty file.
    pub(crate) fn write_raw(
        &self,
        source: &Source<'_>,
        content: &dyn Content,
        target: &RawFile<'_>,
    ) -> Result<()> {
        let Some(raw) = source.raw_file()? else {
            return self.write_bytes(source, content, target);
        };
        let mut progress = |done, total| self.reporter.progress(done, total);
        let copied = sparse::copy(&raw, target.file, &mut progress);
        copied.map(drop).map_err(|error| target.failed(error))
    }

    fn write_bytes(
        &self,
        source: &Source<'_>,
        content: &dyn Content,
        target: &RawFile<'_>,
    ) -> Result<()> {
        let failed = |error| target.failed(error);
        let unreadable = |error| pool_error(&source.volume, "read", error);
        let size = content.size().get();
        target.file.set_len(size).map_err(failed)?;
        let extents = content.extents().map_err(unreadable)?;
        let total = extents.iter().map(|extent| extent.length).sum();
        let (mut buffer, mut done) = (vec![0; BUFFER], 0);
        for extent in extents {
            let mut at = extent.offset;
            while at < extent.end() {
                let read = part_of(&mut buffer, extent.end() - at);
                content.read_at(read, at).map_err(unreadable)?;
                for (start, end) in runs(read) {
                    let to = at + start as u64;
                    let written = target.file.write_all_at(&read[start..end], to);
                    written.map_err(failed)?;
                }
                at += read.len() as u64;
                done += read.len() as u64;
                self.reporter.progress(done, total);
            }
        }
        Ok(())
    }

    /// Writes the volume in a format other than raw into an empty file, which is in `directory`
    /// and is to have a name.
    fn write_format(
        &self,
        source: &Source<'_>,
        content: &dyn Content,
        format: ImageFormat,
        file: &File,
        directory: &Path,
        file_name: &str,
    ) -> Result<()> {
        let needed = data_bytes(content);
        let needed = needed.map_err(|error| pool_error(&source.volume, "read", error))?;
        require_space(directory, needed, || source.exporting())?;
        let lock = held_lock(&source.locks, source.volume.id)?;
        let name = format!("volume {}", source.volume.name);
        let mut progress = |done, total| self.reporter.progress(done, total);
        let mut write = |place: Place<'_>| {
            let written = Written {
                name: &name,
                place,
                size: source.size.get(),
                file_name,
            };
            written
                .write(file, format, &[lock.as_fd()], &mut progress)
                .map_err(|error| Error::DiskFile {
                    action: source.exporting(),
                    source: error,
                })
        };
        source.with_location(|location| match location {
            Some(Location::RawFile(path) | Location::BlockDevice(path)) => {
                write(Place::Path(path, ImageFormat::Raw))
            }
            Some(Location::Qcow2File(path)) => write(Place::Path(path, ImageFormat::Qcow2)),
            // No program can read it: it is read as its driver does.
            None => {
                let action = source.exporting();
                let file = &self.scratch(Some(source.pool.as_ref()), &action)?;
                let raw = RawFile {
                    file,
                    path: source.pool.directory(),
                    action: &action,
                };
                self.write_bytes(source, content, &raw)?;
                write(Place::Open(file))
            }
        })
    }
}

/// An empty file that is to hold a volume's bytes.
pub(crate) struct RawFile<'a> {
    pub(crate) file: &'a File,
    /// What errors call it, and what it is written for.
    pub(crate) path: &'a Path,
    pub(crate) action: &'a str,
}

impl RawFile<'_> {
    fn failed(&self, error: std::io::Error) -> Error {
        Error::File {
            action: self.action.to_owned(),
            source: FileError::new("write", self.path, error),
        }
    }
}

impl Source<'_> {
    fn exporting(&self) -> String {
        format!("export volume {}", self.volume.name)
    }

    fn stream_error(&self, source: std::io::Error) -> Error {
        Error::Stream {
            action: "export",
            volume: self.volume.name.clone(),
            source,
        }
    }
}
