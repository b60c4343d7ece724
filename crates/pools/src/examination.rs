//! Reading all that a volume and its snapshots hold, to find what can be read no more.

use std::error::Error;

use sistemo_host::sparse::Extent;
use sistemo_model::{Access, Bytes, VolumeId};

use crate::contract::{Flaw, Pool, Progress};
use crate::{Content, PoolError};

const CHUNK: usize = 1 << 20;

/// Data that is to be read, all of it.
pub(crate) struct Part {
    /// Whose it is, in front of `data`.
    whose: String,
    content: Box<dyn Content>,
    extents: Vec<Extent>,
}

impl Part {
    /// Finds the data, or why it cannot be found. `whose` comes before the word data: `its`.
    pub(crate) fn of(whose: String, content: Box<dyn Content>) -> Result<Part, Flaw> {
        match content.extents() {
            Ok(extents) => Ok(Part {
                whose,
                content,
                extents,
            }),
            Err(error) => Err(unreadable(&whose, 0, &error)),
        }
    }

    fn length(&self) -> u64 {
        self.extents.iter().map(|extent| extent.length).sum()
    }

    /// Reads up to what cannot be read.
    fn read(&self, read: &mut dyn FnMut(u64)) -> Option<Flaw> {
        let mut buffer = vec![0; CHUNK];
        for extent in &self.extents {
            let mut at = extent.offset;
            while at < extent.end() {
                let length = (CHUNK as u64).min(extent.end() - at);
                let buffer = &mut buffer[..usize::try_from(length).unwrap_or(CHUNK)];
                if let Err(error) = self.content.read_at(buffer, at) {
                    return Some(unreadable(&self.whose, at, &error));
                }
                at += length;
                read(length);
            }
        }
        None
    }
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
    let mut parts = Vec::new();
    let mut add = |whose, content| match Part::of(whose, content) {
        Ok(part) => parts.push(part),
        Err(flaw) => flaws.push(flaw),
    };
    add("its".to_owned(), pool.content(id, Access::ReadOnly)?);
    let mut unopened = Vec::new();
    if let Some(power) = pool.snapshots() {
        for snapshot in power.snapshots(id)? {
            let whose = format!("of its snapshot {}, the", snapshot.name);
            match power.snapshot_content(id, &snapshot.name) {
                Ok(content) => add(whose, content),
                Err(error) => unopened.push(unreadable(&whose, 0, &error)),
            }
        }
    }
    flaws.extend(unopened);
    flaws.extend(read_all(&parts, progress));
    Ok(flaws)
}

/// Whether there is nothing that could be read.
pub(crate) fn is_in_the_way(flaw: &Flaw) -> bool {
    matches!(
        flaw,
        Flaw::Missing | Flaw::NotAFile { .. } | Flaw::Several { .. } | Flaw::Unreadable { .. }
    )
}

/// Reads all parts and says where that failed.
pub(crate) fn read_all(parts: &[Part], progress: Progress<'_>) -> Vec<Flaw> {
    let total = parts.iter().map(Part::length).sum();
    let (mut done, mut flaws) = (0, Vec::new());
    for part in parts {
        let before = done;
        flaws.extend(part.read(&mut |bytes| {
            done += bytes;
            progress(done, total);
        }));
        // What lies behind a failure is done with too.
        if done < before + part.length() {
            done = before + part.length();
            progress(done, total);
        }
    }
    flaws
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use sistemo_host::directory::FileError;

    use super::*;

    /// 4 MiB with a sector that cannot be read.
    #[derive(Debug)]
    struct Scratched {
        at: u64,
    }

    impl Content for Scratched {
        fn size(&self) -> Bytes {
            Bytes::from_mib(4)
        }

        fn next_extent(&self, from: u64) -> Result<Option<Extent>, PoolError> {
            let end = self.size().get();
            Ok((from < end).then(|| Extent {
                offset: from,
                length: end - from,
            }))
        }

        fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), PoolError> {
            if !(offset..offset + buffer.len() as u64).contains(&self.at) {
                return Ok(());
            }
            // Input/output error, as a disk has it.
            let error = io::Error::from_raw_os_error(5);
            Err(PoolError::Volume {
                action: "read",
                pool: "default".parse().unwrap(),
                volume: VolumeId::random(),
                source: FileError::new("read", Path::new("/data"), error),
            })
        }

        fn write_at(&mut self, _data: &[u8], _offset: u64) -> Result<(), PoolError> {
            unreachable!("examining changes nothing")
        }

        fn make_hole(&mut self, _extent: Extent) -> Result<(), PoolError> {
            unreachable!("examining changes nothing")
        }

        fn flush(&mut self) -> Result<(), PoolError> {
            unreachable!("examining changes nothing")
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_and_the_rest_is_read() {
        let part =
            |whose: &str, at| Part::of(whose.to_owned(), Box::new(Scratched { at })).unwrap();
        let parts = [
            part("its", 2_100_000),
            part("of its snapshot one, the", u64::MAX),
        ];
        let mut told = Vec::new();
        let flaws = read_all(&parts, &mut |done, total| {
            told.push((done >> 20, total >> 20));
        });
        let reason = "its data cannot be read from byte 2097152 on: \
                      Input/output error (os error 5)";
        let reason = reason.to_owned();
        assert_eq!(flaws, [Flaw::Unreadable { reason }]);
        assert_eq!(
            told,
            [(1, 8), (2, 8), (4, 8), (5, 8), (6, 8), (7, 8), (8, 8)]
        );
    }
}
