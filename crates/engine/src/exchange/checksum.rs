//! The SHA-256 of a volume's bytes.

use sha2::{Digest as _, Sha256};
use sistemo_model::{Digest, VolumeName};
use sistemo_pools::{Content, PoolError};

use super::{BUFFER, Checksum};
use crate::copying::part_of;
use crate::error::{Error, Result};

static ZEROS: [u8; BUFFER] = [0; BUFFER];

/// A checksum in the making.
pub(super) struct Sum(Sha256);

impl Sum {
    pub(super) fn new() -> Sum {
        Sum(Sha256::new())
    }

    pub(super) fn add(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn add_zeros(&mut self, mut length: u64) {
        while length > 0 {
            let part = length.min(BUFFER as u64);
            self.add(&ZEROS[..usize::try_from(part).unwrap_or(BUFFER)]);
            length -= part;
        }
    }

    pub(super) fn digest(self) -> Digest {
        Digest::from_bytes(self.0.finalize().into())
    }
}

/// The checksum of the first `length` bytes of a content. What is not in its extents is not read.
///
/// `progress` is told the bytes done and the bytes there are to do.
///
/// # Errors
/// Where the content cannot be read.
pub(super) fn of_content(
    content: &dyn Content,
    length: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Digest, PoolError> {
    let (mut sum, mut at) = (Sum::new(), 0);
    let mut buffer = vec![0; BUFFER];
    while at < length {
        let next = content.next_extent(at)?;
        let (from, end) = next.map_or((length, length), |extent| (extent.offset, extent.end()));
        let (from, end) = (from.clamp(at, length), end.min(length));
        while at < from {
            let zeros = (from - at).min(64 * BUFFER as u64);
            sum.add_zeros(zeros);
            at += zeros;
            progress(at, length);
        }
        while at < end {
            let part = part_of(&mut buffer, end - at);
            content.read_at(part, at)?;
            sum.add(part);
            at += part.len() as u64;
            progress(at, length);
        }
    }
    Ok(sum.digest())
}

/// What is told of a checksum that was made.
///
/// # Errors
/// [`Error::ChecksumDiffers`].
pub(super) fn verified(
    wanted: &Checksum,
    volume: &VolumeName,
    found: Option<Digest>,
) -> Result<Option<Digest>> {
    if let (Checksum::Expect(expected), Some(found)) = (wanted, &found)
        && expected != found
    {
        return Err(Error::ChecksumDiffers {
            volume: volume.clone(),
            expected: expected.clone(),
            found: found.clone(),
        });
    }
    Ok(found)
}
