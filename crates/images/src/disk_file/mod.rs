//! Files that hold a disk: what each format says of itself, and converting between them.
//!
//! Such a file comes from anywhere, and most formats let it name other files: of this host, once
//! it is opened here. So each is read by us first, and refused where it is not whole in itself,
//! before a program of QEMU's opens it, which then follows what it finds.
//!
//! What a file is, its name or the user says, and its own beginning must confirm it. A raw file
//! has no such beginning: what is in it is a guest's.

mod convert;
mod header;
mod qcow2;
mod vdi;
mod vhdx;
mod vmdk;

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;
use sistemo_host::directory::FileError;
use sistemo_host::sparse;
use sistemo_model::{Bytes, UnknownWord};

use self::convert::{Conversion, From};
use self::header::Header;
use crate::error::{Error, Result};

/// How a file holds a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's format.
    Qcow2,
    /// `VMware`'s format, all in one sparse file.
    Vmdk,
    /// Hyper-V's format.
    Vhdx,
    /// `VirtualBox`'s format.
    Vdi,
}

impl ImageFormat {
    /// All there are.
    pub const ALL: [ImageFormat; 5] = [
        ImageFormat::Raw,
        ImageFormat::Qcow2,
        ImageFormat::Vmdk,
        ImageFormat::Vhdx,
        ImageFormat::Vdi,
    ];

    /// The word users and tools know it by.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
            ImageFormat::Vmdk => "vmdk",
            ImageFormat::Vhdx => "vhdx",
            ImageFormat::Vdi => "vdi",
        }
    }

    /// The format that a file's name tells, in any case: `.raw`, `.img` and `.ext4` are raw, the
    /// others have their own names.
    #[must_use]
    pub fn of_name(path: &Path) -> Option<ImageFormat> {
        let extension = path.extension().and_then(OsStr::to_str)?;
        let extension = extension.to_ascii_lowercase();
        match extension.as_str() {
            "img" | "ext4" => Some(ImageFormat::Raw),
            word => word.parse().ok(),
        }
    }
}

impl FromStr for ImageFormat {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<ImageFormat, UnknownWord> {
        ImageFormat::ALL
            .into_iter()
            .find(|format| format.as_str() == word)
            .ok_or_else(|| UnknownWord::new("format of a disk's file", word))
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An open file that holds a disk, and needs no other file for it.
#[derive(Debug)]
pub struct DiskFile {
    path: PathBuf,
    file: File,
    format: ImageFormat,
    size: u64,
}

impl DiskFile {
    /// Opens a file of a format, which its content confirms.
    ///
    /// # Errors
    /// [`Error::NotAFile`], [`Error::Empty`]; [`Error::NotOfFormat`]; [`Error::ReadsAnotherFile`],
    /// [`Error::Encrypted`], [`Error::UnsupportedDisk`]; [`Error::CutOff`] and [`Error::Corrupt`].
    pub fn open(path: &Path, format: ImageFormat) -> Result<DiskFile> {
        DiskFile::of(path, open_regular(path)?, format)
    }

    /// Takes an open file of a format, which its content confirms; `path` is what errors call it.
    ///
    /// # Errors
    /// As [`DiskFile::open`].
    pub fn of(path: &Path, file: File, format: ImageFormat) -> Result<DiskFile> {
        let header = Header::new(path, &file, format)?;
        let size = match format {
            ImageFormat::Raw => header.length(),
            ImageFormat::Qcow2 => qcow2::disk_size(&header)?,
            ImageFormat::Vmdk => vmdk::disk_size(&header)?,
            ImageFormat::Vhdx => vhdx::disk_size(&header)?,
            ImageFormat::Vdi => vdi::disk_size(&header)?,
        };
        if size == 0 {
            return Err(Error::Empty {
                path: path.to_owned(),
            });
        }
        // No disk is so large; what reckons with more may overflow.
        if size > i64::MAX.unsigned_abs() {
            return Err(header.corrupt());
        }
        if format != ImageFormat::Raw {
            convert::check(path, &file, format)?;
        }
        Ok(DiskFile {
            path: path.to_owned(),
            file,
            format,
            size,
        })
    }

    /// The disk's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The least volume that the disk fits on.
    #[must_use]
    pub fn whole_sectors(&self) -> Bytes {
        whole_sectors(self.size)
    }

    /// Its format.
    #[must_use]
    pub fn format(&self) -> ImageFormat {
        self.format
    }

    /// About how much room the disk's data takes as a sparse file. A compressed one may take more.
    ///
    /// # Errors
    /// Where the file cannot be examined.
    pub fn data_bytes(&self) -> Result<u64> {
        let used = sparse::used_bytes(&self.file)
            .map_err(|error| FileError::new("examine", &self.path, error))?;
        Ok(used.min(self.size))
    }

    /// The file, where it holds the disk's bytes as they are.
    #[must_use]
    pub fn raw(&self) -> Option<&File> {
        (self.format == ImageFormat::Raw).then_some(&self.file)
    }

    pub(crate) fn into_file(self) -> File {
        self.file
    }

    /// Writes the disk into an empty file as [`DiskFile::convert_into`] does.
    pub(crate) fn convert_into_new(
        &self,
        target: &File,
        held: &[BorrowedFd<'_>],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        target
            .set_len(self.size)
            .map_err(|error| FileError::new("make a file for", &self.path, error))?;
        self.convert_into(target, held, progress)
    }

    /// Writes the disk into `target`, a raw file or block device that is at least as large and
    /// reads as zeros; what holds only zeros is left out. Nothing is flushed. The program that
    /// does it inherits `held`, and ends when this process does.
    ///
    /// `progress` is told the bytes done and the bytes there are to do.
    ///
    /// # Errors
    /// Where the one cannot be read or the other not be written; `target` then holds a part.
    pub fn convert_into(
        &self,
        target: &File,
        held: &[BorrowedFd<'_>],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        Conversion {
            object: &self.path.display(),
            from: From::File(&self.file),
            from_format: self.format,
            into: target,
            into_format: ImageFormat::Raw,
            in_place: true,
            held,
        }
        .run(self.size, progress)
    }
}

/// A disk that is to be written to a file of a format.
#[derive(Debug)]
pub struct Written<'a> {
    /// What errors call the disk, such as `volume pgdata`.
    pub name: &'a str,
    /// Where it is.
    pub place: Place<'a>,
    /// Its size in bytes.
    pub size: u64,
    /// The name that the file is to have, which one format wants to know.
    pub file_name: &'a str,
}

/// Where a disk is that is to be written to a file.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// A raw file that is open.
    Open(&'a File),
    /// A file or block device, raw or qcow2, to which nobody writes.
    Path(&'a Path, ImageFormat),
}

impl Written<'_> {
    /// Writes the disk into `target`, an empty file, in a format; what holds only zeros takes no
    /// room there. Nothing is flushed. The program that does it inherits `held`, and ends when
    /// this process does.
    ///
    /// `progress` is told the bytes done and the bytes there are to do.
    ///
    /// # Errors
    /// Where the one cannot be read or the other not be written; `target` then holds a part.
    pub fn write(
        &self,
        target: &File,
        format: ImageFormat,
        held: &[BorrowedFd<'_>],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let (from, from_format) = match self.place {
            Place::Open(file) => (From::File(file), ImageFormat::Raw),
            Place::Path(path, format) => (From::Path(path), format),
        };
        Conversion {
            object: &self.name,
            from,
            from_format,
            into: target,
            into_format: format,
            in_place: false,
            held,
        }
        .run(self.size, progress)?;
        if format == ImageFormat::Vmdk {
            vmdk::name_extent(target, self.file_name)
                .map_err(|error| FileError::new("write", self.file_name, error))?;
        }
        Ok(())
    }
}

/// The size of a disk that has whole sectors.
pub(crate) fn whole_sectors(length: u64) -> Bytes {
    Bytes::new(length.div_ceil(Bytes::SECTOR) * Bytes::SECTOR)
}

/// Opens a file that holds something. It is examined before it is opened, for opening a FIFO
/// waits, and opening a device may act.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    let examine = |error| FileError::new("open", path, error);
    let not_a_file = || Error::NotAFile {
        path: path.to_owned(),
    };
    if !fs::metadata(path).map_err(examine)?.is_file() {
        return Err(not_a_file());
    }
    let file = File::open(path).map_err(examine)?;
    let facts = file.metadata().map_err(examine)?;
    if !facts.is_file() {
        return Err(not_a_file());
    }
    if facts.len() == 0 {
        return Err(Error::Empty {
            path: path.to_owned(),
        });
    }
    Ok(file)
}

#[cfg(test)]
mod tests;
