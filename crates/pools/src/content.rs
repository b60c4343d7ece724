//! A volume's bytes, however they are reached.

mod raw;

use std::fmt;

use sistemo_host::sparse::Extent;
use sistemo_model::Bytes;

pub(crate) use self::raw::RawContent;

use crate::PoolError;

/// An open volume's bytes: what formatting, images, export, import, move and backup work on.
///
/// Guaranteed: a byte that was never written reads as zero; writing beyond the end is refused,
/// so nothing here changes the size. Not guaranteed: that what was written survives a power cut
/// before [`Content::flush`], or that two contents of one volume see each other's writes.
pub trait Content: Send + fmt::Debug {
    /// The volume's virtual size when it was opened.
    fn size(&self) -> Bytes;

    /// The first part at or behind `from` that may hold something else than zeros; `None` where
    /// only zeros follow.
    ///
    /// A part may be larger than what was written (filesystems allocate whole blocks) and may
    /// hold zeros; what lies between two parts reads as zeros.
    ///
    /// # Errors
    /// Where the pool cannot be read.
    fn next_extent(&self, from: u64) -> Result<Option<Extent>, PoolError>;

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`PoolError::Outside`] where they are not all within the volume; and where the pool
    /// cannot be read.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), PoolError>;

    /// Writes all of `data` from `offset` on.
    ///
    /// # Errors
    /// [`PoolError::Outside`], [`PoolError::OpenedReadOnly`], [`PoolError::Full`], and where the
    /// pool cannot be written; a part of `data` may then have been written.
    fn write_at(&mut self, data: &[u8], offset: u64) -> Result<(), PoolError>;

    /// Makes `extent` read as zeros, and gives back its space where the pool can.
    ///
    /// # Errors
    /// As [`Content::write_at`].
    fn make_hole(&mut self, extent: Extent) -> Result<(), PoolError>;

    /// Waits until everything written is on disk.
    ///
    /// # Errors
    /// What fsync(2) says; what was written must then be taken for lost.
    fn flush(&mut self) -> Result<(), PoolError>;
}

// Not a provided method of the trait: a wrapper could forget to forward that.
impl dyn Content + '_ {
    /// All parts that [`Content::next_extent`] finds, in order.
    ///
    /// # Errors
    /// Where the pool cannot be read.
    pub fn extents(&self) -> Result<Vec<Extent>, PoolError> {
        let mut extents = Vec::new();
        let mut at = 0;
        while let Some(extent) = self.next_extent(at)? {
            at = extent.end();
            extents.push(extent);
        }
        Ok(extents)
    }
}
