//! Reading what a format says of itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sistemo_host::directory::FileError;

use super::ImageFormat;
use crate::error::{Error, Result};

/// A file whose beginning, or end, is read as a format has it.
pub(super) struct Header<'a> {
    path: &'a Path,
    file: &'a File,
    format: ImageFormat,
    length: u64,
}

impl<'a> Header<'a> {
    pub(super) fn new(path: &'a Path, file: &'a File, format: ImageFormat) -> Result<Header<'a>> {
        let facts = file
            .metadata()
            .map_err(|error| FileError::new("examine", path, error))?;
        Ok(Header {
            path,
            file,
            format,
            length: facts.len(),
        })
    }

    /// The length of the file.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// So many bytes at an offset.
    ///
    /// # Errors
    /// [`Error::CutOff`] where the file ends before.
    pub(super) fn bytes(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        match self.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.cut_off(offset.saturating_add(length as u64)))
            }
            Err(error) => Err(FileError::new("read", self.path, error).into()),
        }
    }

    fn array<const N: usize>(&self, offset: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.bytes(offset, N)?);
        Ok(bytes)
    }

    pub(super) fn be_u32(&self, offset: u64) -> Result<u32> {
        self.array(offset).map(u32::from_be_bytes)
    }

    pub(super) fn be_u64(&self, offset: u64) -> Result<u64> {
        self.array(offset).map(u64::from_be_bytes)
    }

    pub(super) fn le_u16(&self, offset: u64) -> Result<u16> {
        self.array(offset).map(u16::from_le_bytes)
    }

    pub(super) fn le_u32(&self, offset: u64) -> Result<u32> {
        self.array(offset).map(u32::from_le_bytes)
    }

    pub(super) fn le_u64(&self, offset: u64) -> Result<u64> {
        self.array(offset).map(u64::from_le_bytes)
    }

    /// Makes sure that the file is of its format: that it has these bytes there.
    ///
    /// # Errors
    /// [`Error::NotOfFormat`].
    pub(super) fn expect(&self, offset: u64, magic: &[u8]) -> Result<()> {
        match self.bytes(offset, magic.len()) {
            Ok(found) if found == magic => Ok(()),
            Ok(_) | Err(Error::CutOff { .. }) => Err(self.not_of_format()),
            Err(error) => Err(error),
        }
    }

    /// Makes sure that the file has so many bytes.
    ///
    /// # Errors
    /// [`Error::CutOff`].
    pub(super) fn expect_length(&self, needed: u64) -> Result<()> {
        if self.length < needed {
            return Err(self.cut_off(needed));
        }
        Ok(())
    }

    pub(super) fn not_of_format(&self) -> Error {
        Error::NotOfFormat {
            path: self.path.to_owned(),
            format: self.format,
        }
    }

    pub(super) fn cut_off(&self, needed: u64) -> Error {
        Error::CutOff {
            path: self.path.to_owned(),
            length: self.length,
            needed,
        }
    }

    pub(super) fn corrupt(&self) -> Error {
        Error::Corrupt {
            path: self.path.to_owned(),
            source: None,
        }
    }

    pub(super) fn reads_another(&self, other: impl Into<String>) -> Error {
        Error::ReadsAnotherFile {
            path: self.path.to_owned(),
            other: other.into(),
        }
    }

    pub(super) fn encrypted(&self) -> Error {
        Error::Encrypted {
            path: self.path.to_owned(),
        }
    }

    pub(super) fn unsupported(&self, what: &'static str) -> Error {
        Error::UnsupportedDisk {
            path: self.path.to_owned(),
            format: self.format,
            what,
        }
    }
}
