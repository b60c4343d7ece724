//! A table of one cluster, and which parts of it are not on disk yet.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::super::format::CLUSTER;
use super::read_or_zeros;

/// What a table is written in: of a new one, the parts without entries stay holes.
const PAGE: usize = 4096;

#[derive(Debug)]
pub(super) struct Table {
    pub(super) at: u64,
    bytes: Vec<u8>,
    /// One bit a page.
    changed: u16,
}

impl Table {
    fn zeros() -> Vec<u8> {
        vec![0; usize::try_from(CLUSTER).unwrap_or(0)]
    }

    pub(super) fn read(file: &File, at: u64) -> io::Result<Table> {
        let mut bytes = Table::zeros();
        read_or_zeros(file, &mut bytes, at)?;
        Ok(Table {
            at,
            bytes,
            changed: 0,
        })
    }

    /// A table of zeros in a cluster that holds `stale` bytes, or nothing yet.
    pub(super) fn new(at: u64, stale: bool) -> Table {
        Table {
            at,
            bytes: Table::zeros(),
            changed: if stale { u16::MAX } else { 0 },
        }
    }

    pub(super) fn is_changed(&self) -> bool {
        self.changed != 0
    }

    pub(super) fn number(&self, slot: usize) -> u64 {
        let at = slot * 8;
        let bytes = self.bytes.get(at..at + 8).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u64::from_be_bytes)
    }

    pub(super) fn set_number(&mut self, slot: usize, number: u64) {
        self.set(slot * 8, &number.to_be_bytes());
    }

    pub(super) fn count(&self, slot: usize) -> u16 {
        let at = slot * 2;
        let bytes = self.bytes.get(at..at + 2).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u16::from_be_bytes)
    }

    pub(super) fn set_count(&mut self, slot: usize, count: u16) {
        self.set(slot * 2, &count.to_be_bytes());
    }

    fn set(&mut self, at: usize, value: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
            self.changed |= 1 << (at / PAGE);
        }
    }

    /// Writes what has changed.
    pub(super) fn write(&mut self, file: &File) -> io::Result<()> {
        for (index, page) in self.bytes.chunks(PAGE).enumerate() {
            if self.changed & (1 << index) != 0 {
                file.write_all_at(page, self.at + (index * PAGE) as u64)?;
            }
        }
        self.changed = 0;
        Ok(())
    }
}

/// Big-endian 64-bit numbers.
pub(super) fn numbers(bytes: &[u8]) -> Vec<u64> {
    let (numbers, _) = bytes.as_chunks::<8>();
    numbers.iter().map(|n| u64::from_be_bytes(*n)).collect()
}
