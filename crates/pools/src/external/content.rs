//! The bytes of a volume where an external driver says that they are.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags};
use sistemo_host::directory::FileError;
use sistemo_host::sparse::Extent;
use sistemo_model::{Access, Bytes, PoolName, VolumeId};

use super::fault::DriverFault;
use crate::content::RawContent;
use crate::contract::{Format, Location};
use crate::error::Subject;
use crate::{Content, PoolError};

const ZEROS: usize = 1 << 20;
/// Devices take holes in whole blocks of theirs, none of which is larger.
const BLOCK: u64 = 4096;

/// Whose bytes are to be opened, and for what.
pub(super) struct Wanted<'a> {
    pub(super) pool: &'a PoolName,
    pub(super) volume: VolumeId,
    pub(super) access: Access,
}

/// Opens the bytes at a location. What is there is what the location says, or refused; its
/// format is never guessed.
pub(super) fn content_of(
    location: &Location,
    wanted: &Wanted<'_>,
) -> Result<Box<dyn Content>, DriverFault> {
    match location {
        Location::RawFile(path) => Ok(Box::new(raw_file(path, wanted)?)),
        Location::BlockDevice(path) => Ok(Box::new(DeviceContent(device(path, wanted)?))),
        Location::Qcow2File(_) => Err(DriverFault::Format {
            format: Format::Qcow2.as_str(),
        }),
    }
}

/// The size of what is at a location; `None` where this program cannot tell.
pub(super) fn size_of(
    location: &Location,
    wanted: &Wanted<'_>,
) -> Result<Option<Bytes>, DriverFault> {
    match location {
        Location::Qcow2File(_) => Ok(None),
        raw => content_of(raw, wanted).map(|content| Some(content.size())),
    }
}

/// Opens a raw file, which is no link.
pub(super) fn raw_file(path: &Path, wanted: &Wanted<'_>) -> Result<RawContent, DriverFault> {
    let wrong = |error: io::Error| not_there("a raw file", path, "open", error);
    let file = open(path, wanted.access, OFlags::NOFOLLOW).map_err(wrong)?;
    let meta = file.metadata().map_err(wrong)?;
    if !meta.is_file() {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
        return Err(wrong(error));
    }
    Ok(wanted.raw(file, path, Bytes::new(meta.len())))
}

/// Opens a block device, to which links may lead, as those of udev do.
fn device(path: &Path, wanted: &Wanted<'_>) -> Result<RawContent, DriverFault> {
    let wrong = |error: io::Error| not_there("a block device", path, "open", error);
    let mut file = open(path, wanted.access, OFlags::empty()).map_err(wrong)?;
    if !file
        .metadata()
        .map_err(wrong)?
        .file_type()
        .is_block_device()
    {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "it is not a block device");
        return Err(wrong(error));
    }
    let size = file.seek(SeekFrom::End(0)).map_err(wrong)?;
    Ok(wanted.raw(file, path, Bytes::new(size)))
}

fn open(path: &Path, access: Access, flags: OFlags) -> io::Result<File> {
    // A pipe, for one, would block.
    let flags = flags | OFlags::NONBLOCK;
    OpenOptions::new()
        .read(true)
        .write(access == Access::ReadWrite)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or(0))
        .open(path)
}

fn not_there(
    what: &'static str,
    path: &Path,
    action: &'static str,
    error: io::Error,
) -> DriverFault {
    DriverFault::NotThere {
        what,
        path: path.to_owned(),
        source: FileError::new(action, path, error),
    }
}

impl Wanted<'_> {
    fn raw(&self, file: File, path: &Path, size: Bytes) -> RawContent {
        RawContent {
            file,
            path: path.to_owned(),
            pool: self.pool.clone(),
            volume: self.volume,
            size,
            access: self.access,
        }
    }
}

/// A block device: a file that has no holes to tell of, and takes them in whole blocks.
#[derive(Debug)]
struct DeviceContent(RawContent);

impl DeviceContent {
    fn write_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        let zeros = vec![0; ZEROS];
        let mut at = from;
        while at < to {
            let part = usize::try_from(to - at).unwrap_or(ZEROS).min(ZEROS);
            self.0.file.write_all_at(&zeros[..part], at)?;
            at += part as u64;
        }
        Ok(())
    }

    fn zero(&self, extent: Extent) -> io::Result<()> {
        let start = extent.offset.next_multiple_of(BLOCK).min(extent.end());
        let end = (extent.end() / BLOCK * BLOCK).max(start);
        if start < end {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // Not every device takes holes, but every one takes zeros.
            if rustix::fs::fallocate(&self.0.file, flags, start, end - start).is_err() {
                return self.write_zeros(extent.offset, extent.end());
            }
        }
        self.write_zeros(extent.offset, start)?;
        self.write_zeros(end, extent.end())
    }
}

impl Content for DeviceContent {
    fn size(&self) -> Bytes {
        self.0.size()
    }

    fn next_extent(&self, from: u64) -> Result<Option<Extent>, PoolError> {
        let end = self.0.size.get();
        Ok((from < end).then(|| Extent {
            offset: from,
            length: end - from,
        }))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), PoolError> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&mut self, data: &[u8], offset: u64) -> Result<(), PoolError> {
        self.0.write_at(data, offset)
    }

    fn make_hole(&mut self, extent: Extent) -> Result<(), PoolError> {
        // What may not be written, or is outside, is refused by writing nothing there.
        self.0.write_at(&[], extent.offset)?;
        self.0
            .write_at(&[], extent.offset.saturating_add(extent.length))?;
        self.zero(extent).map_err(|error| {
            let subject = Subject {
                pool: &self.0.pool,
                volume: self.0.volume,
            };
            let action = "make a hole in";
            subject.failed(action, FileError::new(action, &self.0.path, error))
        })
    }

    fn flush(&mut self) -> Result<(), PoolError> {
        self.0.flush()
    }
}

/// Fills a volume with the data of a file, without its holes.
pub(super) fn fill(
    content: &mut dyn Content,
    source: &File,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), FillError> {
    let extents = sistemo_host::sparse::data_extents(source).map_err(FillError::Source)?;
    let total = extents.iter().map(|extent| extent.length).sum();
    let all = Extent {
        offset: 0,
        length: content.size().get(),
    };
    content.make_hole(all).map_err(FillError::Pool)?;
    let mut buffer = vec![0; ZEROS];
    let mut done = 0;
    for extent in extents {
        let mut at = extent.offset;
        while at < extent.end() {
            let part = usize::try_from(extent.end() - at)
                .unwrap_or(ZEROS)
                .min(ZEROS);
            let buffer = &mut buffer[..part];
            source
                .read_exact_at(buffer, at)
                .map_err(FillError::Source)?;
            content.write_at(buffer, at).map_err(FillError::Pool)?;
            at += part as u64;
            done += part as u64;
            progress(done, total);
        }
    }
    Ok(())
}

/// Where filling a volume failed.
pub(super) enum FillError {
    Source(io::Error),
    Pool(PoolError),
}
