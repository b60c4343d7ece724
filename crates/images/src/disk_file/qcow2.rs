//! What a qcow2 file says of itself, from QEMU's docs/interop/qcow2.txt.

use super::header::Header;
use crate::error::{Error, Result};

const MAGIC: &[u8] = b"QFI\xfb";
/// The longest name of a backing file.
const LONGEST_NAME: u32 = 1023;

/// Incompatible features: who does not know one must not open the file.
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
/// All that there are until now: dirty, corrupt, external data, compression type, extended L2.
const KNOWN: u64 = 0x1f;

const END: u32 = 0;
const DATA_FILE: u32 = 0x4441_5441;
/// More header extensions than any file has.
const MOST_EXTENSIONS: usize = 64;

/// The size of the disk in a file that needs no other.
pub(super) fn disk_size(header: &Header<'_>) -> Result<u64> {
    header.expect(0, MAGIC)?;
    let version = header.be_u32(4)?;
    if !(2..=3).contains(&version) {
        return Err(header.unsupported("it is of a version other than 2 and 3"));
    }
    let backing = header.be_u64(8)?;
    if backing != 0 {
        return Err(header.reads_another(name_at(header, backing, header.be_u32(16)?)?));
    }
    if header.be_u32(32)? != 0 {
        return Err(header.encrypted());
    }
    let features = if version == 2 { 0 } else { header.be_u64(72)? };
    if features & EXTERNAL_DATA != 0 {
        return Err(header.reads_another(data_file(header)?));
    }
    if features & CORRUPT != 0 {
        return Err(header.corrupt());
    }
    if features & !KNOWN != 0 {
        return Err(header.unsupported("it has features that are not known"));
    }
    let cluster_bits = header.be_u32(20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(header.corrupt());
    }
    header.be_u64(24)
}

fn name_at(header: &Header<'_>, offset: u64, length: u32) -> Result<String> {
    let length = length.min(LONGEST_NAME) as usize;
    match header.bytes(offset, length) {
        Ok(name) if !name.is_empty() => {
            Ok(String::from_utf8_lossy(&name).escape_debug().to_string())
        }
        // It is refused for having one, whatever its name is.
        Ok(_) | Err(Error::CutOff { .. }) => Ok("without a name".to_owned()),
        Err(error) => Err(error),
    }
}

/// The name of the file that holds the data, from the header's extensions.
fn data_file(header: &Header<'_>) -> Result<String> {
    let mut at = u64::from(header.be_u32(100)?);
    for _ in 0..MOST_EXTENSIONS {
        let (Ok(kind), Ok(length)) = (header.be_u32(at), header.be_u32(at + 4)) else {
            break;
        };
        match kind {
            END => break,
            DATA_FILE => return name_at(header, at + 8, length),
            _ => at += 8 + u64::from(length).next_multiple_of(8),
        }
    }
    Ok("without a name".to_owned())
}
