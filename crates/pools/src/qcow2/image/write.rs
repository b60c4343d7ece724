//! Writing one qcow2 file: making it, giving out clusters, growing.
//!
//! Tables are changed in memory and written together. The order on disk is: data and counts,
//! then what leads to them, then what gives back the clusters that nothing leads to any more,
//! with a flush between each two. So a kill or a power cut leaves clusters that are counted and
//! not used, never the other way round.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use sistemo_host::directory::{self, FileError};
use sistemo_model::Timestamp;

use super::super::format::{CLUSTER, Entry, Fault, Header, Pointer, Position};
use super::refcounts::Refcounts;
use super::table::Table;
use super::{Care, Image, ImageError, l1_entries, place};

/// How much of the volume one cluster of the refcount table is for: it counts 16 TiB, and the
/// file of a volume is little larger than the volume.
const SIZE_BY_REFCOUNT_CLUSTER: u64 = 8 << 40;
/// How many changed L2 tables are kept before they are written.
const CHANGED_TABLES: usize = 64;

/// Where new data goes.
enum Taken {
    /// The cluster reads as zeros already.
    Fresh(u64),
    /// The cluster may hold anything.
    Used(u64),
}

impl Image {
    /// Makes an empty file a qcow2 file of which nothing is written yet; what lies beneath shows.
    ///
    /// It takes four small writes, and 12 KiB on disk.
    pub(in crate::qcow2) fn create(
        file: File,
        path: PathBuf,
        size: u64,
        backing: Option<&str>,
        taken: Option<Timestamp>,
    ) -> Result<Image, ImageError> {
        let failed = |error: io::Error| FileError::new("write", &path, error);
        let Some(l1_entries) = l1_entries(size) else {
            return Err(failed(Errno::FBIG.into()).into());
        };
        let table_clusters = size.div_ceil(SIZE_BY_REFCOUNT_CLUSTER);
        let block_at = (1 + table_clusters) * CLUSTER;
        let l1_offset = block_at + CLUSTER;
        let l1_clusters = (u64::from(l1_entries) * 8).div_ceil(CLUSTER);
        let length = l1_offset + l1_clusters * CLUSTER;
        let header = Header {
            size,
            backing: backing.map(str::to_owned),
            taken,
            l1_offset,
            l1_entries,
            refcount_table_offset: CLUSTER,
            refcount_table_clusters: u32::try_from(table_clusters).unwrap_or(u32::MAX),
            autoclear: false,
        };
        let mut counts = Table::new(block_at, false);
        for cluster in 0..usize::try_from(length / CLUSTER).unwrap_or(0) {
            counts.set_count(cluster, 1);
        }
        file.set_len(0)
            .and_then(|()| file.set_len(length))
            .and_then(|()| counts.write(&file))
            .and_then(|()| file.write_all_at(&block_at.to_be_bytes(), CLUSTER))
            .and_then(|()| file.write_all_at(&header.encode(), 0))
            .map_err(failed)?;
        Image::open(file, path, Some(Care::Draft))
    }

    fn barrier(&self) -> impl Fn() -> io::Result<()> + use<> {
        let file = match self.care {
            Care::PowerCut => Some(self.file.try_clone()),
            Care::Draft => None,
        };
        let path = self.path.clone();
        move || match &file {
            None => Ok(()),
            Some(Ok(file)) => directory::flush(&path, file).map_err(|error| error.source),
            Some(Err(error)) => Err(error.kind().into()),
        }
    }

    fn counts(&mut self) -> Result<&mut Refcounts, ImageError> {
        let Some(ref mut refcounts) = self.refcounts else {
            return Err(FileError::new("write", &self.path, Errno::BADF).into());
        };
        Ok(refcounts)
    }

    /// Takes back what holds only while nobody else writes, such as bitmaps of QEMU.
    pub(super) fn forget_autoclear(&mut self) -> Result<(), ImageError> {
        if self.header.autoclear {
            self.poke(Position::Autoclear, &[0; 8])?;
            self.header.autoclear = false;
        }
        Ok(())
    }

    /// Changes fields of the header in place, all within one sector.
    fn poke(&self, position: Position, bytes: &[u8]) -> Result<(), ImageError> {
        self.file
            .write_all_at(bytes, position as u64)
            .map_err(|error| self.failed("write", error))
    }

    fn take(&mut self, wanted: u64) -> Result<Taken, ImageError> {
        let length = self.length;
        let taken = match self.refcounts.as_mut() {
            None => Err(Errno::BADF.into()),
            Some(counts) => counts
                .take(&self.file, wanted, length)
                .map(|first| (first * CLUSTER, counts.end())),
        };
        let (at, blocks_end) = taken.map_err(|error| self.failed("write", error))?;
        let end = (at + wanted * CLUSTER).max(blocks_end);
        if end > self.length {
            self.length = end;
            self.grown = true;
        }
        Ok(if at >= length {
            Taken::Fresh(at)
        } else {
            Taken::Used(at)
        })
    }

    fn write_raw(&self, data: &[u8], at: u64) -> Result<(), ImageError> {
        self.file
            .write_all_at(data, at)
            .map_err(|error| self.failed("write", error))
    }

    fn set_entry(&mut self, cluster: u64, entry: Entry) -> Result<(), ImageError> {
        // Reads the table where it is not there yet, and finds what is wrong with it.
        let before = self.entry(cluster)?;
        if before == entry {
            return Ok(());
        }
        let (index, slot) = place(cluster);
        if self.table_offset(index)?.is_none() {
            let (at, stale) = match self.take(1)? {
                Taken::Fresh(at) => (at, false),
                Taken::Used(at) => (at, true),
            };
            self.l2.get_mut().insert(index, Table::new(at, stale));
            self.l1[index] = Pointer(Some(at)).encode();
            self.l1_changed.push(index);
        }
        if let Some(table) = self.l2.get_mut().get_mut(&index) {
            table.set_number(slot, entry.encode());
        }
        if before.cluster() != entry.cluster()
            && let Some(released) = before.cluster()
        {
            self.counts()?.release(released);
        }
        let tables = self.l2.get_mut();
        if tables.len() > CHANGED_TABLES {
            self.write_back()?;
            self.l2.get_mut().clear();
        }
        Ok(())
    }

    /// Writes a part of one cluster of the volume; `beneath` fills a whole cluster with what shows
    /// there without this file, and says whether that is anything but zeros.
    pub(in crate::qcow2) fn write(
        &mut self,
        cluster: u64,
        within: usize,
        data: &[u8],
        beneath: &mut dyn FnMut(&mut [u8]) -> Result<bool, ImageError>,
    ) -> Result<(), ImageError> {
        let entry = self.entry(cluster)?;
        if let Entry::Data { at } = entry {
            return self.write_raw(data, at + within as u64);
        }
        let mut whole = vec![0; usize::try_from(CLUSTER).unwrap_or(0)];
        let shows = entry == Entry::Empty && data.len() < whole.len() && beneath(&mut whole)?;
        let taken = match entry {
            Entry::Zero { kept: Some(at) } => Taken::Used(at),
            _ => self.take(1)?,
        };
        let at = match taken {
            // The rest of the cluster stays a hole.
            Taken::Fresh(at) if !shows => {
                self.write_raw(data, at + within as u64)?;
                at
            }
            Taken::Fresh(at) | Taken::Used(at) => {
                whole[within..within + data.len()].copy_from_slice(data);
                self.write_raw(&whole, at)?;
                at
            }
        };
        self.set_entry(cluster, Entry::Data { at })
    }

    /// Makes a part of a cluster that this file itself holds read as zeros, and gives its space
    /// back where the filesystem can; `false` where the file holds no such cluster, or it cannot.
    pub(in crate::qcow2) fn punch(
        &mut self,
        cluster: u64,
        within: usize,
        length: usize,
    ) -> Result<bool, ImageError> {
        let Entry::Data { at } = self.entry(cluster)? else {
            return Ok(false);
        };
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, at + within as u64, length as u64) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(error) => Err(self.failed("make a hole in", error)),
        }
    }

    /// Makes a whole cluster read as zeros, or show what lies beneath where that is zeros too.
    pub(in crate::qcow2) fn clear(
        &mut self,
        cluster: u64,
        shows_beneath: bool,
    ) -> Result<(), ImageError> {
        let cleared = if shows_beneath {
            Entry::Zero { kept: None }
        } else {
            Entry::Empty
        };
        self.set_entry(cluster, cleared)
    }

    /// Writes all tables that have changed.
    pub(in crate::qcow2) fn write_back(&mut self) -> Result<(), ImageError> {
        let failed = |path: &PathBuf, error| FileError::new("write", path, error);
        let barrier = self.barrier();
        let Some(counts) = self.refcounts.as_mut() else {
            return Ok(());
        };
        let tables = self.l2.get_mut();
        let tables_changed = tables.values().any(Table::is_changed);
        let all = || -> io::Result<()> {
            if self.grown {
                self.file.set_len(self.length)?;
            }
            if counts.is_changed() {
                counts.write(&self.file, &barrier)?;
            }
            if tables_changed {
                barrier()?;
                for table in tables.values_mut().filter(|table| table.is_changed()) {
                    table.write(&self.file)?;
                }
            }
            if !self.l1_changed.is_empty() {
                barrier()?;
                for index in &self.l1_changed {
                    let at = self.header.l1_offset + *index as u64 * 8;
                    let entry = self.l1.get(*index).copied().unwrap_or(0);
                    self.file.write_all_at(&entry.to_be_bytes(), at)?;
                }
                // Only now: after an error they are still to be written.
                self.l1_changed.clear();
            }
            if counts.has_released() {
                barrier()?;
                punch_all(&self.file, counts.write_released(&self.file)?);
            }
            Ok(())
        };
        let mut all = all;
        all().map_err(|error| failed(&self.path, error))?;
        self.grown = false;
        Ok(())
    }

    /// Writes all that was changed and waits until it is on disk.
    pub(in crate::qcow2) fn flush(&mut self) -> Result<(), ImageError> {
        self.write_back()?;
        self.sync()
    }

    /// Makes the volume larger; the new part is empty. A crash leaves the old size or the new.
    pub(in crate::qcow2) fn grow(&mut self, size: u64) -> Result<(), ImageError> {
        let Some(entries) = l1_entries(size) else {
            return Err(self.failed("write", Errno::FBIG));
        };
        let old = self.header.clone();
        let room = (u64::from(old.l1_entries) * 8).next_multiple_of(CLUSTER) / 8;
        self.header.size = size;
        if u64::from(entries) > room {
            let clusters = (u64::from(entries) * 8).div_ceil(CLUSTER);
            let at = match self.take(clusters)? {
                Taken::Fresh(at) | Taken::Used(at) => at,
            };
            let entries = self.l1.iter().flat_map(|entry| entry.to_be_bytes());
            let mut l1: Vec<u8> = entries.collect();
            l1.resize(usize::try_from(clusters * CLUSTER).unwrap_or(0), 0);
            self.write_raw(&l1, at)?;
            self.header.l1_offset = at;
            self.flush()?;
        } else if entries > old.l1_entries {
            // Files of ours have zeros behind the table in its cluster, those that QEMU has grown
            // may have anything.
            let added = usize::try_from(entries - old.l1_entries).unwrap_or(0);
            let behind = old.l1_offset + u64::from(old.l1_entries) * 8;
            let mut bytes = vec![0; added * 8];
            self.read_raw(&mut bytes, behind)?;
            if bytes.iter().any(|byte| *byte != 0) {
                bytes.fill(0);
                self.write_raw(&bytes, behind)?;
                self.sync()?;
            }
        }
        self.header.l1_entries = entries.max(old.l1_entries);
        let whole = usize::try_from(self.header.l1_entries).unwrap_or(0);
        self.l1.resize(whole, 0);
        self.poke(Position::Size, &self.header.encode_mapping())?;
        self.sync()?;
        if self.header.l1_offset != old.l1_offset {
            let clusters = (u64::from(old.l1_entries) * 8).div_ceil(CLUSTER);
            for cluster in 0..clusters {
                self.counts()?.release(old.l1_offset + cluster * CLUSTER);
            }
            self.write_back()?;
        }
        Ok(())
    }

    /// Takes back a growth of which nothing was used.
    pub(in crate::qcow2) fn shrink_back(&mut self, size: u64) -> Result<(), ImageError> {
        self.header.size = size;
        self.poke(Position::Size, &self.header.encode_mapping())?;
        self.sync()
    }

    /// Cuts the file off from what lies beneath, all of which it has itself. It is flushed before
    /// and after: a crash leaves it with or without.
    pub(in crate::qcow2) fn cut_off(&mut self) -> Result<(), ImageError> {
        self.flush()?;
        // The offset and, behind it, the length of the name.
        self.poke(Position::BackingName, &[0; 12])?;
        self.header.backing = None;
        self.sync()
    }

    /// Refuses a file over a layer that is larger: growing would show what was never there.
    pub(in crate::qcow2) fn check_over(&self, layer: &Image) -> Result<(), ImageError> {
        if layer.size() > self.size() {
            return Err(self.fault(Fault::SmallerThanLayer));
        }
        Ok(())
    }
}

/// Takes the space of clusters back where the filesystem can; where it cannot, they are given out
/// again later. Neighbours go together: each call may wait for the filesystem.
fn punch_all(file: &File, mut clusters: Vec<u64>) {
    clusters.sort_unstable();
    for run in clusters.chunk_by(|one, next| one + 1 == *next) {
        let Some(first) = run.first() else { continue };
        let (at, length) = (first * CLUSTER, run.len() as u64 * CLUSTER);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Err(error) = rustix::fs::fallocate(file, flags, at, length) {
            tracing::debug!(%error, at, length, "the space of clusters stays");
        }
    }
}
