//! Why an operation on images was refused or failed.
//!
//! Each variant names the operation and the object; what the system or a program said is its
//! source. What to do about it is the command line's business.

use std::fmt;
use std::path::PathBuf;

use sistemo_host::directory::FileError;
use sistemo_host::lock::LockError;
use sistemo_host::program::ProgramError;
use sistemo_model::{Digest, ImageName};

use crate::disk_file::ImageFormat;

/// The result of an operation on images.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on images was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no image of that name.
    #[error("image {name} does not exist")]
    NotFound {
        /// The name asked for.
        name: ImageName,
    },
    /// An image of that name exists.
    #[error("image name {name} is taken")]
    NameTaken {
        /// The name asked for.
        name: ImageName,
    },
    /// An image's description is not one.
    #[error("image {name} is damaged: {} is not a description of it", path.display())]
    Damaged {
        /// The image.
        name: ImageName,
        /// Its description.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Option<serde_json::Error>,
    },
    /// An image was made by a newer version than this one.
    #[error("image {name} was made by a newer version (format {version})")]
    Newer {
        /// The image.
        name: ImageName,
        /// The version of its description's format.
        version: u32,
    },
    /// A kernel or initial RAM disk is not kept here.
    #[error("kernel {digest} is missing")]
    KernelMissing {
        /// Its digest.
        digest: Digest,
    },
    /// A kept kernel or initial RAM disk is not what its digest says.
    #[error("kernel {} is damaged", path.display())]
    KernelDamaged {
        /// The file.
        path: PathBuf,
    },
    /// A file's name does not say what its format is.
    #[error("the name of {} does not tell its format", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// What was to be read as a file is something else.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A file that was to be imported holds nothing.
    #[error("{} is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// An initial RAM disk was given without the kernel that reads it.
    #[error("image {name} has an initrd but no kernel")]
    InitrdWithoutKernel {
        /// The image.
        name: ImageName,
    },
    /// A file is not what its name, or the user, says.
    #[error("{} is no {format} file", path.display())]
    NotOfFormat {
        /// The file.
        path: PathBuf,
        /// The format that was expected.
        format: ImageFormat,
    },
    /// A file takes part of its content from another file, which could be any of the host.
    #[error("{} reads another file, {other}", path.display())]
    ReadsAnotherFile {
        /// The file.
        path: PathBuf,
        /// The file it names, or what that is to it.
        other: String,
    },
    /// What a file holds is encrypted.
    #[error("{} is encrypted", path.display())]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// A file is in a state or a variant of its format that is not read.
    #[error("{} is a {format} file that cannot be read: {what}", path.display())]
    UnsupportedDisk {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: ImageFormat,
        /// Why not.
        what: &'static str,
    },
    /// A file ends before what it says it holds, as after a download that broke off.
    #[error("{} is cut off: it has {length} bytes instead of {needed} or more", path.display())]
    CutOff {
        /// The file.
        path: PathBuf,
        /// Its length.
        length: u64,
        /// The least length that it should have.
        needed: u64,
    },
    /// A file is marked as corrupt, or is. Cut off, it would read as zeros.
    #[error("{} is corrupt", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the check found.
        #[source]
        source: Option<ProgramError>,
    },
    /// A program that the work needs is missing or failed.
    #[error("cannot {action} {object}")]
    Program {
        /// What was tried: `build image`, `convert`, …
        action: &'static str,
        /// What it was tried on.
        object: String,
        /// What the program said.
        #[source]
        source: ProgramError,
    },
    /// A text is not the name of a Debian package.
    #[error("`{}` is not the name of a package", name.escape_debug())]
    PackageName {
        /// The text.
        name: String,
    },
    /// A text is not the name of a Debian release.
    #[error("`{}` is not the name of a Debian release", suite.escape_debug())]
    Suite {
        /// The text.
        suite: String,
    },
    /// A guest of that release would not let its owner in.
    #[error("Debian {suite} is too old: its systemd takes no SSH key from the kernel command line")]
    SuiteTooOld {
        /// The release.
        suite: String,
    },
    /// An ordinary user builds files of many owners, and has no other IDs to own them.
    #[error("user {user} has no range of at least 65536 IDs in {file}")]
    NoSubordinateIds {
        /// The user.
        user: String,
        /// `/etc/subuid` or `/etc/subgid`.
        file: &'static str,
    },
    /// Images are built for this processor only by others like it.
    #[error("building for {architecture} is not supported")]
    Architecture {
        /// The host's.
        architecture: &'static str,
    },
    /// A system was built that is not fit to be an image.
    #[error("the system built for image {name} {fault}")]
    Unfit {
        /// The image.
        name: ImageName,
        /// What is wrong with it.
        fault: String,
    },
    /// An SSH key cannot stand on a kernel command line.
    #[error("the SSH key cannot be handed to a guest: it {fault}")]
    AuthorizedKey {
        /// Why not.
        fault: &'static str,
    },
    /// The kernel would cut its command line off.
    #[error("the kernel command line has {length} characters; at most {limit} are allowed")]
    CommandLineTooLong {
        /// Its length in bytes.
        length: usize,
        /// The longest that the kernel takes.
        limit: usize,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another process works on the same thing.
    #[error(transparent)]
    Lock(#[from] LockError),
}

impl Error {
    pub(crate) fn program(
        action: &'static str,
        object: impl fmt::Display,
    ) -> impl FnOnce(ProgramError) -> Error {
        let object = format!("{object}");
        move |source| Error::Program {
            action,
            object,
            source,
        }
    }
}
