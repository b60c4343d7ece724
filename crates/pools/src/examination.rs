//! Reading all that a volume and its snapshots hold, to find what can be read no more.

use std::error::Error;

use sistemo_host::sparse::Extent;
use sistemo_model::{Access, Bytes, VolumeId};

use crate::contract::{Flaw, Pool, Progress};
use crate::{Content, PoolError};

const CHUNK: usize = 1 << 20;

/// What is read, and whose it is.
struct Part {
    /// Before what is wrong with it.
    whose: String,
    content: Box<dyn Content>,
    extents: Vec<Extent>,
}

/// Verifies a volume and reads all its data and that of its snapshots.
pub(crate) fn examine(
    pool: &dyn Pool,
    id: VolumeId,
    recorded: Bytes,
    progress: Progress<'_>,
) -> Result<Vec<Flaw>, PoolError> {
    let mut flaws = pool.verify(id, recorded)?;
    if flaws.iter().any(is_in_the_way) {
        return Ok(flaws);
    }
    let volume = pool.content(id, Access::ReadOnly)?;
    let mut parts = Vec::new();
    flaws.extend(add(&mut parts, "its", volume));
    if let Some(power) = pool.snapshots() {
        for snapshot in power.snapshots(id)? {
            let whose = format!("of its snapshot {}, the", snapshot.name);
            match power.snapshot_content(id, &snapshot.name) {
                Ok(content) => flaws.extend(add(&mut parts, &whose, content)),
                // Deleted meanwhile.
                Err(PoolError::NoSuchSnapshot { .. }) => {}
                Err(error) => flaws.push(unreadable(&whose, 0, &error)),
            }
        }
    }
    let lengths = parts.iter().flat_map(|part| &part.extents);
    let total = lengths.map(|extent| extent.length).sum();
    let mut done = 0;
    for part in parts {
        let mut read = |bytes| {
            done += bytes;
            progress(done, total);
        };
        flaws.extend(read_all(&part, &mut read));
    }
    Ok(flaws)
}

/// Whether there is nothing that could be read.
fn is_in_the_way(flaw: &Flaw) -> bool {
    matches!(
        flaw,
        Flaw::Missing | Flaw::NotAFile { .. } | Flaw::Several { .. } | Flaw::Unreadable { .. }
    )
}

fn add(parts: &mut Vec<Part>, whose: &str, content: Box<dyn Content>) -> Option<Flaw> {
    match content.extents() {
        Ok(extents) => {
            parts.push(Part {
                whose: whose.to_owned(),
                content,
                extents,
            });
            None
        }
        Err(error) => Some(unreadable(whose, 0, &error)),
    }
}

/// Reads a part up to what cannot be read.
fn read_all(part: &Part, read: &mut dyn FnMut(u64)) -> Option<Flaw> {
    let mut buffer = vec![0; CHUNK];
    for extent in &part.extents {
        let mut at = extent.offset;
        while at < extent.end() {
            let length = (CHUNK as u64).min(extent.end() - at);
            let buffer = &mut buffer[..usize::try_from(length).unwrap_or(CHUNK)];
            if let Err(error) = part.content.read_at(buffer, at) {
                return Some(unreadable(&part.whose, at, &error));
            }
            at += length;
            read(length);
        }
    }
    None
}

fn unreadable(whose: &str, at: u64, error: &PoolError) -> Flaw {
    let mut cause: &dyn Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    Flaw::Unreadable {
        reason: format!("{whose} data cannot be read from byte {at} on: {cause}"),
    }
}
