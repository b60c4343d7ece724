//! One qcow2 file: its header, its tables, and the clusters they lead to.

mod check;
mod refcounts;
mod table;
mod write;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use sistemo_host::directory::{self, FileError};

use self::refcounts::Refcounts;
use self::table::Table;
use super::format::{
    CLUSTER, Entry, Fault, Header, L1_LIMIT, MAPPED_BY_TABLE, Pointer, TABLE_ENTRIES,
};

/// Enough for any header that we or QEMU write, with its extensions and the name behind them.
const HEADER_READ: usize = 4096;
/// How many L2 tables are kept: together they map 16 GiB.
const TABLES_KEPT: usize = 32;

/// What went wrong with one file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not what it should be; `name` is its name in the pool.
    #[error("{name} {fault}")]
    Fault { name: String, fault: Fault },
}

impl ImageError {
    /// Whether a file was not there.
    pub(super) fn is_missing(&self) -> bool {
        matches!(
            self,
            ImageError::Fault {
                fault: Fault::Missing,
                ..
            }
        )
    }
}

/// Whether what is written must survive a power cut at any instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Care {
    /// The file is a volume's: what a table names is on disk before the table is.
    PowerCut,
    /// Nobody has it until it is flushed as a whole.
    Draft,
}

/// An open qcow2 file.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
    path: PathBuf,
    header: Header,
    /// All that is behind this reads as zeros and was never given out.
    length: u64,
    /// Whether the file has to be made that long.
    grown: bool,
    l1: Vec<u64>,
    /// The entries of `l1` that are not on disk yet.
    l1_changed: Vec<usize>,
    l2: RefCell<HashMap<usize, Table>>,
    /// Only where it was opened to write.
    refcounts: Option<Refcounts>,
    care: Care,
}

/// What a file's header and inode say.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    pub(super) header: Header,
    /// The space it takes in bytes.
    pub(super) used: u64,
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn fault_at(path: &Path, fault: Fault) -> ImageError {
    ImageError::Fault {
        name: name_of(path),
        fault,
    }
}

/// Reads as much as there is and fills the rest with zeros, as QEMU does.
fn read_or_zeros(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer[done..].fill(0);
    Ok(())
}

fn read_header(file: &File, path: &Path, length: u64) -> Result<Header, ImageError> {
    let mut want = HEADER_READ;
    loop {
        let there = usize::try_from(length).unwrap_or(usize::MAX).min(want);
        let mut bytes = vec![0; there];
        file.read_exact_at(&mut bytes, 0)
            .map_err(|error| FileError::new("read", path, error))?;
        let cluster = usize::try_from(CLUSTER).unwrap_or(usize::MAX);
        match Header::decode(&bytes) {
            Err(Fault::Short) if there == want && want < cluster => want = cluster,
            Ok(header) => return Ok(header),
            Err(fault) => return Err(fault_at(path, fault)),
        }
    }
}

/// Reads what a file's header says, in one read.
pub(super) fn summary(file: &File, path: &Path) -> Result<Summary, ImageError> {
    let meta = file
        .metadata()
        .map_err(|error| FileError::new("look up", path, error))?;
    if !meta.is_file() {
        return Err(fault_at(path, Fault::Magic));
    }
    Ok(Summary {
        header: read_header(file, path, meta.len())?,
        used: meta.blocks() * 512,
    })
}

impl Image {
    /// Opens a file; what its header says of its own tables is checked, what the tables say when
    /// they are read.
    pub(super) fn open(file: File, path: PathBuf, care: Option<Care>) -> Result<Image, ImageError> {
        let length = file
            .metadata()
            .map_err(|error| FileError::new("look up", &path, error))?
            .len();
        let header = read_header(&file, &path, length)?;
        let behind_end = |offset| fault_at(&path, Fault::BehindEnd { offset, length });
        let table_bytes = u64::from(header.refcount_table_clusters) * CLUSTER;
        if header.refcount_table_offset + table_bytes > length.next_multiple_of(CLUSTER) {
            return Err(behind_end(header.refcount_table_offset));
        }
        let l1_bytes = u64::from(header.l1_entries) * 8;
        if header.l1_offset + l1_bytes > length {
            return Err(behind_end(header.l1_offset));
        }
        let mut bytes = vec![0; usize::try_from(l1_bytes).unwrap_or(0)];
        read_or_zeros(&file, &mut bytes, header.l1_offset)
            .map_err(|error| FileError::new("read", &path, error))?;
        let mut image = Image {
            l1: table::numbers(&bytes),
            file,
            path,
            header,
            length,
            grown: false,
            l1_changed: Vec::new(),
            l2: RefCell::default(),
            refcounts: None,
            care: care.unwrap_or(Care::PowerCut),
        };
        if care.is_some() {
            image.refcounts = Some(Refcounts::load(&image.file, &image.path, &image.header)?);
            image.forget_autoclear()?;
        }
        Ok(image)
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// The volume's bytes.
    pub(super) fn size(&self) -> u64 {
        self.header.size
    }

    /// Its name in the pool.
    pub(super) fn name(&self) -> String {
        name_of(&self.path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Says who may write to it; whoever has it open goes on as before.
    pub(super) fn set_mode(&self, mode: Mode) -> Result<(), ImageError> {
        rustix::fs::fchmod(&self.file, mode).map_err(|error| self.failed("set the mode of", error))
    }

    /// Whether it says nothing of any cluster, so that all of what lies beneath shows.
    pub(super) fn is_blank(&self) -> bool {
        self.l1.iter().all(|entry| *entry == 0)
    }

    fn failed(&self, action: &'static str, error: impl Into<io::Error>) -> ImageError {
        FileError::new(action, &self.path, error).into()
    }

    fn fault(&self, fault: Fault) -> ImageError {
        fault_at(&self.path, fault)
    }

    fn behind_end(&self, offset: u64) -> ImageError {
        let length = self.length;
        self.fault(Fault::BehindEnd { offset, length })
    }

    /// Waits until all that was written to the file is on disk.
    pub(super) fn sync(&self) -> Result<(), ImageError> {
        Ok(directory::flush(&self.path, &self.file)?)
    }

    /// Where the L2 table of a part of the volume is, if there is one.
    fn table_offset(&self, index: usize) -> Result<Option<u64>, ImageError> {
        let raw = self.l1.get(index).copied().unwrap_or(0);
        let Pointer(at) = Pointer::decode(raw).map_err(|fault| self.fault(fault))?;
        match at {
            Some(at) if at >= self.length => Err(self.behind_end(at)),
            at => Ok(at),
        }
    }

    fn read_table(&self, at: u64) -> Result<Table, ImageError> {
        Table::read(&self.file, at).map_err(|error| self.failed("read", error))
    }

    /// What the file says of a cluster of the volume, counted from 0.
    pub(super) fn entry(&self, cluster: u64) -> Result<Entry, ImageError> {
        let (index, slot) = place(cluster);
        let Some(at) = self.table_offset(index)? else {
            return Ok(Entry::Empty);
        };
        let mut tables = self.l2.borrow_mut();
        if !tables.contains_key(&index) {
            if tables.len() >= TABLES_KEPT {
                tables.retain(|_, table| table.is_changed());
            }
            tables.insert(index, self.read_table(at)?);
        }
        let raw = tables.get(&index).map_or(0, |table| table.number(slot));
        drop(tables);
        let entry = Entry::decode(raw).map_err(|fault| self.fault(fault))?;
        match entry.cluster() {
            Some(at) if at >= self.length => Err(self.behind_end(at)),
            _ => Ok(entry),
        }
    }

    /// Whether it may say something of the clusters that one L2 table maps.
    pub(super) fn maps_any(&self, table: u64) -> bool {
        let index = usize::try_from(table).unwrap_or(usize::MAX);
        self.l1.get(index).is_some_and(|entry| *entry != 0)
    }

    /// Reads from the file itself, as a table entry says.
    pub(super) fn read_raw(&self, buffer: &mut [u8], at: u64) -> Result<(), ImageError> {
        read_or_zeros(&self.file, buffer, at).map_err(|error| self.failed("read", error))
    }
}

/// The L1 entry and the L2 entry for a cluster of the volume.
fn place(cluster: u64) -> (usize, usize) {
    let index = usize::try_from(cluster / TABLE_ENTRIES).unwrap_or(usize::MAX);
    let slot = usize::try_from(cluster % TABLE_ENTRIES).unwrap_or(usize::MAX);
    (index, slot)
}

/// How many L1 entries a volume needs; `None` where there can be none that large.
fn l1_entries(size: u64) -> Option<u32> {
    let entries = size.div_ceil(MAPPED_BY_TABLE);
    u32::try_from(entries).ok().filter(|_| entries <= L1_LIMIT)
}
