//! The bytes of a volume that is one raw file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use sistemo_host::directory::{self, FileError};
use sistemo_host::sparse::{self, Extent, Shares};
use sistemo_model::{Access, Bytes, PoolName, VolumeId};

use crate::error::Subject;
use crate::{Content, PoolError};

const ZEROS: usize = 1 << 20;

/// An open raw file.
#[derive(Debug)]
pub(crate) struct RawContent {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) pool: PoolName,
    pub(crate) volume: VolumeId,
    pub(crate) size: Bytes,
    pub(crate) access: Access,
}

impl RawContent {
    fn failed(&self, action: &'static str, error: impl Into<io::Error>) -> PoolError {
        let subject = Subject {
            pool: &self.pool,
            volume: self.volume,
        };
        subject.failed(action, FileError::new(action, &self.path, error))
    }

    fn check_within(&self, offset: u64, length: u64) -> Result<(), PoolError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size.get() => Ok(()),
            _ => Err(PoolError::Outside {
                volume: self.volume,
                size: self.size,
                offset,
                length,
            }),
        }
    }

    fn check_writable(&self) -> Result<(), PoolError> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(PoolError::OpenedReadOnly {
                pool: self.pool.clone(),
                volume: self.volume,
            }),
        }
    }

    /// How much of the file's space others use too; `None` where its filesystem does not tell.
    pub(crate) fn shares(&self) -> Result<Option<Shares>, PoolError> {
        sparse::shares(&self.file).map_err(|error| self.failed("find the extents of", error))
    }

    /// Writes zeros where there is data, for filesystems that cannot take space back.
    fn write_zeros(&self, hole: Extent) -> io::Result<()> {
        let mut at = hole.offset;
        while let Some(extent) = sparse::next_data(&self.file, at, hole.end())? {
            at = extent.end();
            let mut zeroed = extent.offset;
            let zeros = vec![0; ZEROS];
            while zeroed < at {
                let part = usize::try_from(at - zeroed).unwrap_or(ZEROS).min(ZEROS);
                self.file.write_all_at(&zeros[..part], zeroed)?;
                zeroed += part as u64;
            }
        }
        Ok(())
    }
}

impl Content for RawContent {
    fn size(&self) -> Bytes {
        self.size
    }

    fn next_extent(&self, from: u64) -> Result<Option<Extent>, PoolError> {
        sparse::next_data(&self.file, from, self.size.get())
            .map_err(|error| self.failed("find the data of", error))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), PoolError> {
        self.check_within(offset, buffer.len() as u64)?;
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|error| self.failed("read", error))
    }

    fn write_at(&mut self, data: &[u8], offset: u64) -> Result<(), PoolError> {
        self.check_writable()?;
        self.check_within(offset, data.len() as u64)?;
        self.file
            .write_all_at(data, offset)
            .map_err(|error| self.failed("write", error))
    }

    fn make_hole(&mut self, extent: Extent) -> Result<(), PoolError> {
        self.check_writable()?;
        self.check_within(extent.offset, extent.length)?;
        if extent.length == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, extent.offset, extent.length) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self
                .write_zeros(extent)
                .map_err(|error| self.failed("write zeros to", error)),
            Err(error) => Err(self.failed("make a hole in", error)),
        }
    }

    fn flush(&mut self) -> Result<(), PoolError> {
        directory::flush(&self.path, &self.file).map_err(|source| {
            let subject = Subject {
                pool: &self.pool,
                volume: self.volume,
            };
            subject.failed("flush", source)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_no_hole_can_be_made_zeros_are_written_to_the_data_alone() {
        const MIB: u64 = 1 << 20;
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.set_len(64 * MIB).unwrap();
        file.write_all_at(&vec![7; 3 << 20], 8 * MIB).unwrap();
        let content = RawContent {
            file,
            path: PathBuf::from("test"),
            pool: "default".parse().unwrap(),
            volume: VolumeId::random(),
            size: Bytes::from_mib(64),
            access: Access::ReadWrite,
        };
        let hole = Extent {
            offset: 9 * MIB,
            length: 55 * MIB,
        };
        content.write_zeros(hole).unwrap();
        let mut read = vec![1; 4 << 20];
        content.read_at(&mut read, 8 * MIB).unwrap();
        assert!(read[..1 << 20].iter().all(|byte| *byte == 7));
        assert!(read[1 << 20..].iter().all(|byte| *byte == 0));
        assert!(sparse::used_bytes(&content.file).unwrap() < 4 * MIB);
    }
}
