//! Giving unused blocks back to the host.

use serde::Serialize;
use sistemo_host::sparse::Extent;
use sistemo_model::{Access, PoolName, Reference, Volume, VolumeId, VolumeName};
use sistemo_pools::{Content, Format, Pool, PoolError};

use super::tools::Free;
use crate::copying::part_of;
use crate::engine::Engine;
use crate::error::Result;
use crate::reporter::Notice;
use crate::volumes::pool_error;

/// How much is read at a time.
const BUFFER: usize = 1 << 20;
/// What is looked at for zeros is a multiple of this, as where volumes are copied.
const BLOCK: u64 = 64 << 10;

/// A volume that was trimmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trimmed {
    /// The volume.
    pub id: VolumeId,
    /// Its name.
    pub name: VolumeName,
    /// Its pool.
    pub pool: PoolName,
    /// What its bytes show it to hold, as in [`Checked`](super::Checked::holds).
    pub holds: &'static str,
    /// Why its filesystem was not asked for what it does not use, where it was not.
    pub reason: Option<String>,
    /// What of its data its filesystem did not use, in bytes.
    pub unused_bytes: u64,
    /// What else of its data held only zeros, in bytes.
    pub zero_bytes: u64,
    /// What it took on the host before, in bytes.
    pub used_before_bytes: u64,
    /// What it takes now, in bytes.
    pub used_bytes: u64,
    /// What it takes less than before, in bytes.
    pub given_back_bytes: u64,
}

impl Engine {
    /// Gives blocks of a volume back to the host: those that its filesystem does not use, where
    /// that is sound and was unmounted cleanly, and whatever it holds those in which there are
    /// only zeros. What files hold is as it was; what was deleted is gone for good. The volume's
    /// machine, if it has one, must be stopped.
    ///
    /// A crash in the middle leaves some blocks given back.
    ///
    /// # Errors
    /// Where the machine is active, the volume is damaged, its pool cannot be written, or a
    /// program is missing or could not do its work.
    pub fn trim_volume(&self, reference: &Reference) -> Result<Trimmed> {
        let held = self.hold_idle_volume(reference, "trim")?;
        let volume = &held.volume;
        self.require_pool(&volume.pool)?;
        self.refuse_damaged(volume.id)?;
        let pool = self.pool(&volume.pool)?;
        let facts = || {
            pool.facts(volume.id)
                .map_err(|e| pool_error(volume, "trim", e))
        };
        let before = facts()?;
        let checking = format!("checking {}", volume.name);
        let (inside, free) = self.in_stage(&checking, || self.free_blocks(&held))?;
        let (free, reason) = match free {
            Some(Free::Extents(extents)) => (extents, None),
            Some(Free::Unknown(reason)) => {
                let reason = format!("its {} {reason}", inside.as_str());
                self.reporter.notice(&Notice::OnlyZerosTrimmed {
                    volume: volume.name.clone(),
                    reason: reason.clone(),
                });
                (Vec::new(), Some(reason))
            }
            None => (Vec::new(), Some(format!("it holds {inside}"))),
        };
        let trimming = format!("trimming {}", volume.name);
        let (unused, zeros) = self.in_stage(&trimming, || {
            self.give_back(volume, pool.as_ref(), &free, grain_of(before.format))
                .map_err(|source| pool_error(volume, "trim", source))
        })?;
        self.tell_of_snapshots(volume, pool.as_ref());
        let (before, now) = (before.used.get(), facts()?.used.get());
        Ok(Trimmed {
            id: volume.id,
            name: volume.name.clone(),
            pool: volume.pool.clone(),
            holds: inside.as_str(),
            reason,
            unused_bytes: unused,
            zero_bytes: zeros,
            used_before_bytes: before,
            used_bytes: now,
            given_back_bytes: before.saturating_sub(now),
        })
    }

    /// Makes holes of what is free and of what holds only zeros; returns how many bytes each
    /// were.
    fn give_back(
        &self,
        volume: &Volume,
        pool: &dyn Pool,
        free: &[Extent],
        grain: u64,
    ) -> std::result::Result<(u64, u64), PoolError> {
        let mut content = pool.content(volume.id, Access::ReadWrite)?;
        let mut unused = 0;
        for hole in within(free, &content.extents()?, grain) {
            content.make_hole(hole)?;
            unused += hole.length;
        }
        let zeros = make_holes_of_zeros(content.as_mut(), &mut |done, total| {
            self.reporter.progress(done, total);
        })?;
        content.flush()?;
        Ok((unused, zeros))
    }

    fn tell_of_snapshots(&self, volume: &Volume, pool: &dyn Pool) {
        let there = pool.snapshots().map(|power| power.snapshots(volume.id));
        if there.is_some_and(|there| there.is_ok_and(|there| !there.is_empty())) {
            let volume = volume.name.clone();
            self.reporter.notice(&Notice::SnapshotsHold { volume });
        }
    }
}

/// The least that can be given back, in bytes: less would be written as zeros, and may take space
/// instead.
fn grain_of(format: Format) -> u64 {
    match format {
        Format::Raw => 4096,
        Format::Qcow2 => BLOCK,
    }
}

/// What of the free parts holds data, in whole grains; both are in order.
fn within(free: &[Extent], data: &[Extent], grain: u64) -> Vec<Extent> {
    let mut found = Vec::new();
    let mut data = data.iter().peekable();
    for free in free {
        let (start, end) = (
            free.offset.next_multiple_of(grain),
            free.end() / grain * grain,
        );
        while let Some(extent) = data.peek() {
            let (from, to) = (start.max(extent.offset), end.min(extent.end()));
            // Data ends where the volume does, or in the midst of a grain that is free as a whole.
            let from = from.next_multiple_of(grain);
            if from < to {
                found.push(Extent {
                    offset: from,
                    length: to - from,
                });
            }
            if extent.end() > end {
                break;
            }
            data.next();
        }
    }
    found
}

/// Makes holes of the blocks that hold only zeros; returns how many bytes they had.
///
/// `progress` is told the bytes done and the bytes there are to do.
fn make_holes_of_zeros(
    content: &mut dyn Content,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<u64, PoolError> {
    let size = content.size().get();
    let blocks = whole_blocks(&content.extents()?, size);
    let total = blocks.iter().map(|extent| extent.length).sum();
    let mut buffer = vec![0; BUFFER];
    let (mut done, mut zeros) = (0, 0);
    for extent in blocks {
        let mut at = extent.offset;
        while at < extent.end() {
            let part = part_of(&mut buffer, extent.end() - at);
            content.read_at(part, at)?;
            let length = part.len() as u64;
            for hole in zeros_in(part, at) {
                content.make_hole(hole)?;
                zeros += hole.length;
            }
            at += length;
            done += length;
            progress(done, total);
        }
    }
    Ok(zeros)
}

/// The blocks in which there is data, those that follow on each other as one.
fn whole_blocks(extents: &[Extent], size: u64) -> Vec<Extent> {
    let mut blocks: Vec<Extent> = Vec::new();
    for extent in extents {
        let start = extent.offset / BLOCK * BLOCK;
        let end = extent.end().next_multiple_of(BLOCK).min(size);
        match blocks.last_mut() {
            Some(last) if last.end() >= start => last.length = end.max(last.end()) - last.offset,
            _ => blocks.push(Extent {
                offset: start,
                length: end - start,
            }),
        }
    }
    blocks
}

/// The blocks of some data that hold only zeros, as few parts as there can be.
fn zeros_in(data: &[u8], at: u64) -> Vec<Extent> {
    let mut found: Vec<Extent> = Vec::new();
    let mut offset = at;
    for block in data.chunks(usize::try_from(BLOCK).unwrap_or(BUFFER)) {
        let length = block.len() as u64;
        if block.iter().all(|byte| *byte == 0) {
            match found.last_mut() {
                Some(last) if last.end() == offset => last.length += length,
                _ => found.push(Extent { offset, length }),
            }
        }
        offset += length;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(spans: &[(u64, u64)]) -> Vec<Extent> {
        let extents = spans.iter().map(|(offset, end)| Extent {
            offset: *offset,
            length: end - offset,
        });
        extents.collect()
    }

    const KIB: u64 = 1 << 10;

    #[test]
    fn only_what_is_free_as_a_whole_and_holds_data_is_given_back() {
        let free = extents(&[
            (3 * KIB, 20 * KIB),
            (32 * KIB, 33 * KIB),
            (40 * KIB, 80 * KIB),
        ]);
        let data = extents(&[(0, 8 * KIB), (12 * KIB, 44 * KIB), (64 * KIB, 100 * KIB)]);
        let expected = [
            (4 * KIB, 8 * KIB),
            (12 * KIB, 20 * KIB),
            (40 * KIB, 44 * KIB),
            (64 * KIB, 80 * KIB),
        ];
        assert_eq!(within(&free, &data, 4 * KIB), extents(&expected));
        assert_eq!(within(&free, &data, BLOCK), []);
        let free = extents(&[(10 * KIB, 200 * KIB)]);
        let data = extents(&[(0, 128 * KIB)]);
        let expected = extents(&[(64 * KIB, 128 * KIB)]);
        assert_eq!(within(&free, &data, BLOCK), expected);
        assert_eq!(within(&[], &data, BLOCK), []);
    }

    #[test]
    fn blocks_are_looked_at_whole_and_once() {
        let data = extents(&[
            (4 * KIB, 8 * KIB),
            (12 * KIB, 70 * KIB),
            (256 * KIB, 300 * KIB),
        ]);
        let expected = extents(&[(0, 128 * KIB), (256 * KIB, 310 * KIB)]);
        assert_eq!(whole_blocks(&data, 310 * KIB), expected);
    }

    #[test]
    fn zeros_are_found_in_whole_blocks() {
        let mut data = vec![0; 300 << 10];
        assert_eq!(
            zeros_in(&data, BLOCK),
            extents(&[(BLOCK, BLOCK + 300 * KIB)])
        );
        data[130 << 10] = 1;
        let expected = extents(&[(0, 128 * KIB), (192 * KIB, 300 * KIB)]);
        assert_eq!(zeros_in(&data, 0), expected);
    }
}
