//! Copying a volume's bytes to where no driver shares them, without what holds only zeros.

use sistemo_model::{Bytes, PoolName};
use sistemo_pools::{Content, Pool, PoolError};

use crate::error::{Error, Result};

/// How much is read at a time.
const BUFFER: usize = 1 << 20;
/// What is left out is a multiple of this: the blocks of most filesystems are not larger.
const BLOCK: usize = 64 << 10;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Copies the bytes of one volume into another that reads as zeros until now, and is not smaller.
/// Returns how many bytes were read. Nothing is flushed.
///
/// `progress` is told the bytes done and the bytes there are to do.
///
/// # Errors
/// Where the one cannot be read or the other not be written.
pub(crate) fn copy(
    from: &dyn Content,
    to: &mut dyn Content,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<u64, PoolError> {
    let extents = from.extents()?;
    let total = extents.iter().map(|extent| extent.length).sum();
    let mut buffer = vec![0; BUFFER];
    let mut done = 0;
    for extent in extents {
        let mut at = extent.offset;
        while at < extent.end() {
            let part = part_of(&mut buffer, extent.end() - at);
            from.read_at(part, at)?;
            write_sparsely(to, part, at)?;
            at += part.len() as u64;
            done += part.len() as u64;
            progress(done, total);
        }
    }
    Ok(done)
}

/// The beginning of a buffer, as long as what is left.
pub(crate) fn part_of(buffer: &mut [u8], left: u64) -> &mut [u8] {
    let length = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
    &mut buffer[..length]
}

/// Writes what is not zero of some data to a content that reads as zeros there.
///
/// # Errors
/// Where it cannot be written.
pub(crate) fn write_sparsely(to: &mut dyn Content, data: &[u8], at: u64) -> Result<(), PoolError> {
    for (start, end) in runs(data) {
        to.write_at(&data[start..end], at + start as u64)?;
    }
    Ok(())
}

/// The parts of some data that are worth writing: whole blocks, as few parts as there can be.
pub(crate) fn runs(data: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let mut at = 0;
    for block in data.chunks(BLOCK) {
        let end = at + block.len();
        if block != &ZEROS[..block.len()] {
            match runs.last_mut() {
                Some(last) if last.1 == at => last.1 = end,
                _ => runs.push((at, end)),
            }
        }
        at = end;
    }
    runs
}

/// The bytes that a copy would read.
///
/// # Errors
/// Where the pool cannot be read.
pub(crate) fn data_bytes(content: &dyn Content) -> Result<u64, PoolError> {
    Ok(content.extents()?.iter().map(|extent| extent.length).sum())
}

/// Makes sure, before a long copy is begun, that a pool has room for it. It may still run full
/// meanwhile.
///
/// # Errors
/// Where it has not, or cannot be asked.
pub(crate) fn require_room(
    pool: &dyn Pool,
    needed: u64,
    action: impl Fn() -> String,
) -> Result<()> {
    let name: &PoolName = pool.name();
    let usage = pool.usage().map_err(|source| Error::Pool {
        pool: name.clone(),
        action: action(),
        source,
    })?;
    if usage.free < needed {
        return Err(Error::PoolTooFull {
            pool: name.clone(),
            action: action(),
            needed: Bytes::new(needed),
            free: Bytes::new(usage.free),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_only_zeros_is_left_out() {
        let mut data = vec![0; 5 * BLOCK + 100];
        assert_eq!(runs(&data), []);
        data[BLOCK] = 1;
        data[3 * BLOCK - 1] = 1;
        data[5 * BLOCK + 99] = 1;
        assert_eq!(
            runs(&data),
            [(BLOCK, 3 * BLOCK), (5 * BLOCK, 5 * BLOCK + 100)]
        );
        assert_eq!(runs(&[]), []);
    }
}
