//! Getting an operating system into a volume.
//!
//! An image is a raw filesystem or disk and, where it does not boot by firmware, the kernel it
//! boots. Images live in the data directory:
//!
//! ```text
//! images/<name>.json            the description: the image exists while this does
//! images/<name>-<id>.raw        its content, sparse
//! images/<name>-<id>.build/     where a build is at work
//! kernels/<sha256>              kernels and initial RAM disks, each kept once
//! locks/image-<name>.lock       one writer an image
//! locks/kernels.lock            a kernel comes with what boots it, or goes, under this lock
//! ```
//!
//! The content is whole and on disk before the description is renamed into place, and the
//! description goes before the content: whatever is killed, an image is there or not. Content
//! and build directories that no description names are what a killed process left; they are
//! removed at the next build or import.
//!
//! Disks come in files of several formats, and go into such files: [`DiskFile`] is one that was
//! read before any program opened it, [`Written`] one that is to be made.

mod debian;
mod disk_file;
mod error;
mod import;
mod kernels;
mod store;

pub use debian::{
    BuildRequest, BuildStep, DEBIAN, GuestIdentity, check_subordinate_ids, command_line,
};
pub use disk_file::{DiskFile, ImageFormat, Place, Written};
pub use error::{Error, Result};
pub use import::{BorrowedContent, ImportRequest};
pub use kernels::{Discarded, KernelGuard};
pub use store::{DamagedImage, ImageDraft, Images, Listing, OpenImage};
