//! What a VMDK file says of itself, from the Virtual Disk Format 5.0 of its maker, and as QEMU's
//! block/vmdk.c reads it.
//!
//! A VMDK may be one file with all in it, or a text that names the files it consists of. Even the
//! former has such a text inside, and QEMU goes by that text where the header gives no capacity,
//! or where it names a parent.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::Header;
use crate::error::Result;

const MAGIC: &[u8] = b"KDMV";
/// The magic of the files that some disks are split into.
const SPLIT: &[u8] = b"COWD";
/// What stands at the beginning of a description.
const TITLE: &str = "# disk descriptorfile";
const LONGEST_TITLE: usize = 1024;
const SPLIT_INTO: &str = "of those that the disk is split into";
const SECTOR: u64 = 512;
/// Where QEMU reads the description, whatever the header says, in sectors, and how much of it.
const DESCRIPTION_SECTOR: u64 = 1;
const DESCRIPTION: u64 = DESCRIPTION_SECTOR * SECTOR;
const DESCRIPTION_LENGTH: usize = 20 * 512;
const NO_PARENT: &str = "ffffffff";
/// Kinds of disks that are one file.
const WHOLE: [&str; 2] = ["monolithicSparse", "streamOptimized"];
/// In place of where the grain directory is: that is in a second header, near the end.
const AT_END: u64 = u64::MAX;
/// Where from the file's end that header is.
const FOOTER: u64 = 1024;
const COMPRESSED: u16 = 1;
/// The largest table of tables that QEMU takes, in entries.
const MOST_TABLES: u64 = 32 << 20;
/// What comes before a compressed grain: its place and its length.
const MARKER: u64 = 12;

/// The size of the disk in a file that needs no other.
pub(super) fn disk_size(header: &Header<'_>) -> Result<u64> {
    if is_split(header)? {
        return Err(header.reads_another(SPLIT_INTO));
    }
    header.expect(0, MAGIC)?;
    if header.le_u64(12)? == 0 {
        return Err(header.reads_another("what its description names"));
    }
    refuse_parts(header)?;
    let at = if header.le_u64(56)? == AT_END {
        header.expect_length(header.length().next_multiple_of(SECTOR).max(FOOTER))?;
        let at = header.length() - FOOTER;
        if header.bytes(at, 4)? != MAGIC {
            return Err(header.corrupt());
        }
        at
    } else {
        0
    };
    let tables = Tables {
        capacity: header.le_u64(at + 12)?,
        grain: header.le_u64(at + 20)?,
        directory: header.le_u64(at + 56)?,
        per_table: u64::from(header.le_u32(at + 44)?),
        compressed: header.le_u16(at + 77)? == COMPRESSED,
    };
    let size = tables.capacity.checked_mul(SECTOR);
    let size = size.ok_or_else(|| header.corrupt())?;
    tables.refuse_cut_off(header)?;
    Ok(size)
}

/// Whether it is a part of a disk, or the description alone, which names the parts.
fn is_split(header: &Header<'_>) -> Result<bool> {
    let length = usize::try_from(header.length()).unwrap_or(usize::MAX);
    let start = header.bytes(0, length.min(LONGEST_TITLE))?;
    let title = String::from_utf8_lossy(&start).to_ascii_lowercase();
    Ok(start.starts_with(SPLIT) || (!start.starts_with(MAGIC) && title.contains(TITLE)))
}

/// Refuses a description of a disk of several files, or of one with a parent.
fn refuse_parts(header: &Header<'_>) -> Result<()> {
    if header.le_u64(28)? != DESCRIPTION_SECTOR {
        return Err(header.unsupported("its description is not where QEMU reads it"));
    }
    let description = header.bytes(DESCRIPTION, DESCRIPTION_LENGTH)?;
    let text = String::from_utf8_lossy(&description);
    // As QEMU looks for it: anywhere.
    if text.contains("parentFileNameHint") {
        return Err(header.reads_another(quoted(&text, "parentFileNameHint")));
    }
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(key));
        line.map(|value| value.trim_matches(['=', ' ', '"', '\0']))
    };
    if !value("parentCID").is_some_and(|parent| parent.eq_ignore_ascii_case(NO_PARENT)) {
        return Err(header.reads_another("its parent"));
    }
    if !value("createType").is_some_and(|kind| WHOLE.contains(&kind)) {
        return Err(header.reads_another(SPLIT_INTO));
    }
    Ok(())
}

fn quoted(text: &str, key: &str) -> String {
    let value = text
        .split(key)
        .nth(1)
        .and_then(|rest| rest.split('"').nth(1));
    value.unwrap_or("its parent").escape_debug().to_string()
}

/// Where the parts of the disk are in the file, sizes in sectors.
struct Tables {
    capacity: u64,
    grain: u64,
    directory: u64,
    per_table: u64,
    compressed: bool,
}

impl Tables {
    /// Makes sure that all parts of the disk are in the file: what lies behind its end, QEMU
    /// reads as zeros.
    fn refuse_cut_off(&self, header: &Header<'_>) -> Result<()> {
        let power = |n: u64| n.is_power_of_two();
        if !power(self.grain) || self.grain < 8 || self.grain > 1 << 16 || self.per_table != 512 {
            return Err(header.corrupt());
        }
        let covered = self.grain * self.per_table;
        let tables = self.capacity.div_ceil(covered);
        if tables > MOST_TABLES {
            return Err(header.corrupt());
        }
        let mut directory = Vec::new();
        for number in 0..tables {
            // Read a part at a time: a length that a header claims is not to be believed.
            if number % self.per_table == 0 {
                let left = (tables - number).min(self.per_table);
                directory = entries(header, self.directory, number, left)?;
            }
            let index = usize::try_from(number % self.per_table).unwrap_or(0);
            let table = directory.get(index).copied().unwrap_or(0);
            if table == 0 {
                continue;
            }
            let entries = entries(header, u64::from(table), 0, self.per_table)?;
            for (place, grain) in (number * self.per_table..).zip(entries) {
                self.expect_grain(header, place, u64::from(grain))?;
            }
        }
        Ok(())
    }

    fn expect_grain(&self, header: &Header<'_>, place: u64, grain: u64) -> Result<()> {
        // Nothing is there, or zeros.
        if grain <= 1 {
            return Ok(());
        }
        let at = grain * SECTOR;
        let length = if self.compressed {
            MARKER + u64::from(header.le_u32(at + 8)?)
        } else {
            let left = self.capacity.saturating_sub(place * self.grain);
            left.min(self.grain) * SECTOR
        };
        header.expect_length(at + length)
    }
}

/// `count` numbers of a table that begins at a sector, from `first` on.
fn entries(header: &Header<'_>, at: u64, first: u64, count: u64) -> Result<Vec<u32>> {
    let offset = at
        .checked_mul(SECTOR)
        .and_then(|at| at.checked_add(first * 4))
        .ok_or_else(|| header.corrupt())?;
    let bytes = header.bytes(offset, usize::try_from(count * 4).unwrap_or(0))?;
    let number = |part: &[u8]| part.try_into().map_or(0, u32::from_le_bytes);
    Ok(bytes.chunks(4).map(number).collect())
}

/// Tells a disk that was written to a file of another name what its name is, as programs other
/// than QEMU want to know.
pub(super) fn name_extent(file: &File, name: &str) -> io::Result<()> {
    let mut description = vec![0; DESCRIPTION_LENGTH];
    file.read_exact_at(&mut description, DESCRIPTION)?;
    let text = String::from_utf8_lossy(&description);
    let text = text.trim_end_matches('\0');
    // A quote would end the name.
    let name = name.replace(['"', '\n', '\r'], "_");
    let named: Vec<String> = text
        .lines()
        .map(|line| match line.split_once(" SPARSE \"") {
            Some((before, _)) => format!("{before} SPARSE \"{name}\""),
            None => line.to_owned(),
        })
        .collect();
    let mut named = format!("{}\n", named.join("\n")).into_bytes();
    if named.len() < DESCRIPTION_LENGTH {
        named.resize(DESCRIPTION_LENGTH, 0);
        file.write_all_at(&named, DESCRIPTION)?;
    }
    Ok(())
}
