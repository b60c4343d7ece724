//! Which clusters of a file are in use, and finding some that are not.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::io::Errno;
use sistemo_host::directory::FileError;

use super::super::format::{CLUSTER, COUNTED_BY_BLOCK, Fault, Header};
use super::table::{self, Table};
use super::{ImageError, fault_at, read_or_zeros};

/// The counts of a file that is written.
#[derive(Debug)]
pub(super) struct Refcounts {
    table_offset: u64,
    /// Where each block of counts is; 0 where there is none.
    table: Vec<u64>,
    table_changed: Vec<usize>,
    blocks: BTreeMap<usize, Table>,
    /// No cluster before this one is free.
    cursor: u64,
    /// Not free before the tables that named them are on disk.
    released: Vec<u64>,
}

fn slot(cluster: u64) -> (usize, usize) {
    let block = usize::try_from(cluster / COUNTED_BY_BLOCK).unwrap_or(usize::MAX);
    let slot = usize::try_from(cluster % COUNTED_BY_BLOCK).unwrap_or(usize::MAX);
    (block, slot)
}

impl Refcounts {
    pub(super) fn load(file: &File, path: &Path, header: &Header) -> Result<Refcounts, ImageError> {
        let length = u64::from(header.refcount_table_clusters) * CLUSTER;
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        read_or_zeros(file, &mut bytes, header.refcount_table_offset)
            .map_err(|error| FileError::new("read", path, error))?;
        let table = table::numbers(&bytes);
        if let Some(wrong) = table.iter().find(|at| !at.is_multiple_of(CLUSTER)) {
            return Err(fault_at(path, Fault::Entry(*wrong)));
        }
        Ok(Refcounts {
            table_offset: header.refcount_table_offset,
            table,
            table_changed: Vec::new(),
            blocks: BTreeMap::new(),
            cursor: 0,
            released: Vec::new(),
        })
    }

    fn block(&mut self, file: &File, index: usize) -> io::Result<Option<&mut Table>> {
        if !self.blocks.contains_key(&index) {
            match self.table.get(index) {
                Some(0) | None => return Ok(None),
                Some(at) => {
                    let block = Table::read(file, *at)?;
                    self.blocks.insert(index, block);
                }
            }
        }
        Ok(self.blocks.get_mut(&index))
    }

    /// How often a cluster is used.
    pub(super) fn count(&mut self, file: &File, cluster: u64) -> io::Result<u16> {
        let (index, slot) = slot(cluster);
        let block = self.block(file, index)?;
        Ok(block.map_or(0, |block| block.count(slot)))
    }

    /// Takes so many free clusters in a row and says the first.
    pub(super) fn take(&mut self, file: &File, wanted: u64, length: u64) -> io::Result<u64> {
        let mut first = self.cursor;
        let mut next = first;
        while next < first + wanted {
            self.make_block(slot(next).0, length)?;
            if self.count(file, next)? != 0 {
                first = next + 1;
            }
            next += 1;
        }
        for cluster in first..first + wanted {
            self.set_count(file, cluster, 1)?;
        }
        if wanted == 1 || first == self.cursor {
            self.cursor = first + wanted;
        }
        Ok(first)
    }

    fn set_count(&mut self, file: &File, cluster: u64, count: u16) -> io::Result<()> {
        let (index, slot) = slot(cluster);
        if let Some(block) = self.block(file, index)? {
            block.set_count(slot, count);
        }
        Ok(())
    }

    /// Makes the block that counts a part of the file, in the first cluster of that part, where
    /// there is none yet: nothing in that part is in use then.
    fn make_block(&mut self, index: usize, length: u64) -> io::Result<()> {
        match self.table.get(index) {
            // 16 TiB for each cluster of the table, which is made for twice the volume's size.
            None => return Err(Errno::FBIG.into()),
            Some(0) => {}
            Some(_) => return Ok(()),
        }
        let at = index as u64 * COUNTED_BY_BLOCK * CLUSTER;
        let mut block = Table::new(at, at < length);
        block.set_count(0, 1);
        self.blocks.insert(index, block);
        self.table[index] = at;
        self.table_changed.push(index);
        Ok(())
    }

    /// Where the file must reach for all blocks to be within it.
    pub(super) fn end(&self) -> u64 {
        let made = self.table_changed.iter().map(|index| self.table[*index]);
        made.max().map_or(0, |at| at + CLUSTER)
    }

    pub(super) fn release(&mut self, at: u64) {
        self.released.push(at / CLUSTER);
    }

    pub(super) fn is_changed(&self) -> bool {
        self.blocks.values().any(Table::is_changed)
    }

    /// Writes what was taken: first the blocks, then, behind a barrier, what leads to new ones.
    pub(super) fn write(
        &mut self,
        file: &File,
        barrier: &dyn Fn() -> io::Result<()>,
    ) -> io::Result<()> {
        for block in self.blocks.values_mut() {
            block.write(file)?;
        }
        if !self.table_changed.is_empty() {
            barrier()?;
            for index in &self.table_changed {
                let at = self.table_offset + *index as u64 * 8;
                file.write_all_at(&self.table[*index].to_be_bytes(), at)?;
            }
            // Only now: after an error they are still to be written.
            self.table_changed.clear();
        }
        Ok(())
    }

    /// Gives back the space of what was released; nothing on disk leads there any more.
    pub(super) fn write_released(&mut self, file: &File) -> io::Result<Vec<u64>> {
        let released = std::mem::take(&mut self.released);
        for cluster in &released {
            self.set_count(file, *cluster, 0)?;
            self.cursor = self.cursor.min(*cluster);
        }
        for block in self.blocks.values_mut() {
            block.write(file)?;
        }
        Ok(released)
    }

    pub(super) fn has_released(&self) -> bool {
        !self.released.is_empty()
    }
}
