//! What a VHDX file says of itself, from Microsoft's \[MS-VHDX\].

use super::header::Header;
use crate::error::Result;

const MAGIC: &[u8] = b"vhdxfile";
/// The two headers, of which the one with the higher number holds.
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const REGIONS: u64 = 192 << 10;
const MOST_ENTRIES: u16 = 2047;
const ENTRY: u64 = 32;
const ID: usize = 16;

// Identifiers, as their bytes are in the file.
const METADATA: [u8; ID] = [
    0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e,
];
const PARAMETERS: [u8; ID] = [
    0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b,
];
const DISK_SIZE: [u8; ID] = [
    0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8,
];
pub(super) const PARENT: [u8; ID] = [
    0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c,
];

const HAS_PARENT: u32 = 1 << 1;

/// The size of the disk in a file that needs no other.
pub(super) fn disk_size(header: &Header<'_>) -> Result<u64> {
    header.expect(0, MAGIC)?;
    refuse_log(header)?;
    let table = region(header)?;
    if header.bytes(table, 8)? != b"metadata" {
        return Err(header.corrupt());
    }
    let (mut parameters, mut size) = (None, None);
    for entry in entries(header, header.le_u16(table + 10)?, table + ENTRY)? {
        let id = header.bytes(entry, ID)?;
        let at = table + u64::from(header.le_u32(entry + 16)?);
        if id == PARENT {
            return Err(header.reads_another("its parent"));
        } else if id == PARAMETERS {
            parameters = Some(header.le_u32(at + 4)?);
        } else if id == DISK_SIZE {
            size = Some(header.le_u64(at)?);
        }
    }
    let (Some(parameters), Some(size)) = (parameters, size) else {
        return Err(header.corrupt());
    };
    if parameters & HAS_PARENT != 0 {
        return Err(header.reads_another("its parent"));
    }
    Ok(size)
}

/// What was written last may be in the log alone, which would have to be written into the file.
fn refuse_log(header: &Header<'_>) -> Result<()> {
    let mut current = None;
    for at in HEADERS {
        if header.bytes(at, 4)? == b"head" {
            current = current.max(Some((header.le_u64(at + 8)?, at)));
        }
    }
    let Some((_, at)) = current else {
        return Err(header.corrupt());
    };
    if header.bytes(at + 48, ID)? != [0; ID] {
        return Err(header.unsupported("it was not closed, and its log has yet to be replayed"));
    }
    Ok(())
}

/// Where the metadata are.
fn region(header: &Header<'_>) -> Result<u64> {
    if header.bytes(REGIONS, 4)? != b"regi" {
        return Err(header.corrupt());
    }
    let count = u16::try_from(header.le_u32(REGIONS + 8)?).unwrap_or(u16::MAX);
    for entry in entries(header, count, REGIONS + 16)? {
        if header.bytes(entry, ID)? == METADATA {
            let at = header.le_u64(entry + 16)?;
            // All of it is reckoned with below.
            header.expect_length(at)?;
            return Ok(at);
        }
    }
    Err(header.corrupt())
}

fn entries(header: &Header<'_>, count: u16, first: u64) -> Result<impl Iterator<Item = u64>> {
    if count > MOST_ENTRIES {
        return Err(header.corrupt());
    }
    Ok((0..u64::from(count)).map(move |number| first + number * ENTRY))
}
