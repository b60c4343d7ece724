//! How the data of a pool's new volumes is written.

use std::fs::File;
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{IFlags, XattrFlags};
use rustix::io::Errno;
use sistemo_host::directory::FileError;

/// The property's name as an extended attribute: btrfs-property(8).
const COMPRESSION: &str = "btrfs.compression";

/// How the data of a pool's new volumes is written. A volume keeps to it for life, and so do
/// its clones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writing {
    /// As the filesystem was mounted.
    #[default]
    AsMounted,
    /// Compressed, however the filesystem was mounted.
    Compressed(Compression),
    /// Not compressed, however the filesystem was mounted.
    Uncompressed,
    /// Over what was there before, without checksums and without compression: `nodatacow`.
    InPlace,
}

/// How data is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// The best ratio for its speed.
    Zstd,
    /// The fastest.
    Lzo,
    /// The oldest.
    Zlib,
}

impl Compression {
    fn as_str(self) -> &'static str {
        match self {
            Compression::Zstd => "zstd",
            Compression::Lzo => "lzo",
            Compression::Zlib => "zlib",
        }
    }
}

/// What a word for [`Writing`] is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is one of zstd, lzo, zlib and no")]
pub struct NoCompression;

impl FromStr for Writing {
    type Err = NoCompression;

    fn from_str(word: &str) -> Result<Writing, NoCompression> {
        match word {
            "zstd" => Ok(Writing::Compressed(Compression::Zstd)),
            "lzo" => Ok(Writing::Compressed(Compression::Lzo)),
            "zlib" => Ok(Writing::Compressed(Compression::Zlib)),
            "no" | "none" => Ok(Writing::Uncompressed),
            _ => Err(NoCompression),
        }
    }
}

impl Writing {
    /// Makes it what all data is written like in an empty file from now on. Set on the directory
    /// instead, `no` would not reach the file: Linux hands down only what compresses.
    pub(super) fn set_on(self, path: &Path, file: &File) -> Result<(), FileError> {
        let set = match self {
            Writing::AsMounted => Ok(()),
            Writing::Compressed(compression) => compress(file, compression.as_str()),
            Writing::Uncompressed => compress(file, "no"),
            Writing::InPlace => rustix::fs::ioctl_getflags(file)
                .and_then(|flags| rustix::fs::ioctl_setflags(file, flags | IFlags::NOCOW)),
        };
        set.map_err(|error| FileError::new("set how data is written in", path, error))
    }
}

fn compress(file: &File, how: &str) -> Result<(), Errno> {
    rustix::fs::fsetxattr(file, COMPRESSION, how.as_bytes(), XattrFlags::empty())
}
