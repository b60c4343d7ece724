//! Copying a volume's bytes to where no driver shares them, without what holds only zeros.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sistemo_host::sparse::Extent;
use sistemo_model::{Bytes, PoolName};
use sistemo_pools::{Content, Pool, PoolError};

use crate::error::{Error, Result};

/// How much is read at a time.
const BUFFER: usize = 1 << 20;
/// What is left out is a multiple of this: the blocks of most filesystems are not larger.
const BLOCK: usize = 64 << 10;
/// Where two contents are compared, so much is told apart: what drivers share is not finer.
const GRAIN: usize = 4 << 10;
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

/// A part of two contents, of which at least one may hold something else than zeros there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    start: u64,
    end: u64,
    in_one: bool,
    in_other: bool,
}

/// What has to be looked at to compare two contents: all that either may hold, in parts of no
/// more than is read at a time.
fn parts(one: &[Extent], other: &[Extent]) -> Vec<Part> {
    let (mut one, mut other) = (one.iter().peekable(), other.iter().peekable());
    let (mut parts, mut at) = (Vec::new(), 0);
    loop {
        while one.next_if(|extent| extent.end() <= at).is_some() {}
        while other.next_if(|extent| extent.end() <= at).is_some() {}
        let next = [one.peek(), other.peek()];
        let begins = next.iter().flatten().map(|extent| extent.offset.max(at));
        let Some(start) = begins.min() else {
            return parts;
        };
        // Up to where the first of them ends or the other begins.
        let bounds = next.iter().flatten().map(|extent| {
            if extent.offset > start {
                extent.offset
            } else {
                extent.end()
            }
        });
        let end = bounds.fold(start + BUFFER as u64, u64::min);
        let [in_one, in_other] = next.map(|extent| extent.is_some_and(|e| e.offset <= start));
        parts.push(Part {
            start,
            end,
            in_one,
            in_other,
        });
        at = end;
    }
}

/// Reads of a content what it may hold in a part; where that is nothing, zeros.
fn read_part<'a>(
    content: &dyn Content,
    part: Part,
    is_there: bool,
    buffer: &'a mut [u8],
) -> Result<&'a [u8], PoolError> {
    let read = part_of(buffer, part.end - part.start);
    if is_there {
        content.read_at(read, part.start)?;
    } else {
        read.fill(0);
    }
    Ok(read)
}

/// What is to be done about a grain of a content to make it read as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Nothing,
    Write,
    Clear,
}

/// The runs of grains in which `wanted` differs from `there`, and what is to be done about each.
fn changes(wanted: &[u8], there: &[u8]) -> Vec<(Change, usize, usize)> {
    let mut runs: Vec<(Change, usize, usize)> = Vec::new();
    let mut at = 0;
    for (wanted, there) in wanted.chunks(GRAIN).zip(there.chunks(GRAIN)) {
        let end = at + wanted.len();
        let change = if wanted == there {
            Change::Nothing
        } else if wanted == &ZEROS[..wanted.len()] {
            Change::Clear
        } else {
            Change::Write
        };
        match runs.last_mut() {
            Some(last) if last.0 == change => last.2 = end,
            _ => runs.push((change, at, end)),
        }
        at = end;
    }
    runs.retain(|(change, ..)| *change != Change::Nothing);
    runs
}

/// Makes one content read as another of its size, and writes only where they differ. Nothing is
/// flushed. Returns how many bytes were written.
///
/// `progress` is told how many bytes more were looked at.
///
/// # Errors
/// Where the one cannot be read or the other not be read and written.
pub(crate) fn bring(
    to: &mut dyn Content,
    wanted: &dyn Content,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, PoolError> {
    let (mut one, mut other) = (vec![0; BUFFER], vec![0; BUFFER]);
    let mut written = 0;
    for part in parts(&wanted.extents()?, &to.extents()?) {
        let Part { start, end, .. } = part;
        if !part.in_one {
            let length = end - start;
            to.make_hole(Extent {
                offset: start,
                length,
            })?;
        } else if !part.in_other {
            write_sparsely(to, read_part(wanted, part, true, &mut one)?, start)?;
            written += end - start;
        } else {
            let data = read_part(wanted, part, true, &mut one)?;
            let there = read_part(to, part, true, &mut other)?;
            for (change, from, until) in changes(data, there) {
                let offset = start + from as u64;
                match change {
                    Change::Nothing => {}
                    Change::Write => {
                        to.write_at(&data[from..until], offset)?;
                        written += (until - from) as u64;
                    }
                    Change::Clear => to.make_hole(Extent {
                        offset,
                        length: (until - from) as u64,
                    })?,
                }
            }
        }
        progress(end - start);
    }
    Ok(written)
}

/// How many bytes would be written to bring one content to what another holds, or to clear them.
///
/// # Errors
/// Where one cannot be read.
pub(crate) fn differing_bytes(one: &dyn Content, other: &dyn Content) -> Result<u64, PoolError> {
    let (mut first, mut second) = (vec![0; BUFFER], vec![0; BUFFER]);
    let mut differing = 0;
    for part in parts(&one.extents()?, &other.extents()?) {
        let there = read_part(one, part, part.in_one, &mut first)?;
        let wanted = read_part(other, part, part.in_other, &mut second)?;
        let changes = changes(wanted, there).into_iter();
        differing += changes.map(|(_, from, to)| (to - from) as u64).sum::<u64>();
    }
    Ok(differing)
}

/// The first byte in which two contents of one size differ; `None` where they hold the same.
///
/// `progress` is told how many bytes more were compared.
///
/// # Errors
/// Where one cannot be read.
pub(crate) fn first_difference(
    one: &dyn Content,
    other: &dyn Content,
    progress: &mut dyn FnMut(u64),
) -> Result<Option<u64>, PoolError> {
    let (mut first, mut second) = (vec![0; BUFFER], vec![0; BUFFER]);
    for part in parts(&one.extents()?, &other.extents()?) {
        let read = read_part(one, part, part.in_one, &mut first)?;
        let again = read_part(other, part, part.in_other, &mut second)?;
        if read != again {
            let differs = read.iter().zip(again).position(|(one, other)| one != other);
            return Ok(differs.map(|at| part.start + at as u64));
        }
        progress(part.end - part.start);
    }
    Ok(None)
}

/// The bytes that a copy would read.
///
/// # Errors
/// Where the pool cannot be read.
pub(crate) fn data_bytes(content: &dyn Content) -> Result<u64, PoolError> {
    Ok(content.extents()?.iter().map(|extent| extent.length).sum())
}

/// Whether two directories take their room from one place, and may share extents: then a copy may
/// take no room.
pub(crate) fn on_one_filesystem(one: &Path, other: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|meta| meta.dev());
    matches!((device(one), device(other)), (Ok(one), Ok(other)) if one == other)
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

    fn extents(all: &[(u64, u64)]) -> Vec<Extent> {
        let of = |&(start, end): &(u64, u64)| Extent {
            offset: start,
            length: end - start,
        };
        all.iter().map(of).collect()
    }

    #[test]
    fn the_parts_of_two_contents_are_all_that_either_holds() {
        let (one, other) = (extents(&[(0, 10), (20, 30)]), extents(&[(5, 25), (40, 50)]));
        let found: Vec<_> = parts(&one, &other)
            .iter()
            .map(|part| (part.start, part.end, part.in_one, part.in_other))
            .collect();
        assert_eq!(
            found,
            [
                (0, 5, true, false),
                (5, 10, true, true),
                (10, 20, false, true),
                (20, 25, true, true),
                (25, 30, true, false),
                (40, 50, false, true),
            ]
        );
        let long = 3 * BUFFER as u64 / 2;
        let found = parts(&[], &extents(&[(1, 1 + long)]));
        assert_eq!(
            found.len(),
            2,
            "no part is longer than what is read at a time"
        );
        assert_eq!(parts(&[], &[]), []);
    }

    #[test]
    fn what_became_zero_is_cleared_and_what_stayed_is_let_alone() {
        let there = vec![7; 4 * GRAIN + 5];
        let mut wanted = there.clone();
        wanted[GRAIN..3 * GRAIN].fill(0);
        wanted[4 * GRAIN] = 8;
        assert_eq!(
            changes(&wanted, &there),
            [
                (Change::Clear, GRAIN, 3 * GRAIN),
                (Change::Write, 4 * GRAIN, 4 * GRAIN + 5)
            ]
        );
        assert_eq!(changes(&there, &there), []);
    }

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
