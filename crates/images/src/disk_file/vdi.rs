//! What a VDI file says of itself, as `VirtualBox` writes it and QEMU's block/vdi.c reads it.

use super::header::Header;
use crate::error::Result;

const SIGNATURE: u64 = 0x40;
const MAGIC: [u8; 4] = 0xbeda_107f_u32.to_le_bytes();
const VERSION_1_1: u32 = 0x0001_0001;
const DYNAMIC: u32 = 1;
const FIXED: u32 = 2;
/// Where the IDs of the snapshot that it belongs to, and of its parent, are.
const LINK: u64 = 0x1a8;
const ID: usize = 16;

/// The size of the disk in a file that needs no other.
pub(super) fn disk_size(header: &Header<'_>) -> Result<u64> {
    header.expect(SIGNATURE, &MAGIC)?;
    if header.le_u32(0x44)? != VERSION_1_1 {
        return Err(header.unsupported("it is of a version other than 1.1"));
    }
    let of_another = header.bytes(LINK, 2 * ID)?.iter().any(|byte| *byte != 0);
    if of_another || ![DYNAMIC, FIXED].contains(&header.le_u32(0x4c)?) {
        return Err(header.reads_another("its parent"));
    }
    let (data, block) = (header.le_u32(0x158)?, header.le_u32(0x178)?);
    let (blocks, allocated) = (header.le_u32(0x180)?, header.le_u32(0x184)?);
    let size = header.le_u64(0x170)?;
    if allocated > blocks || size > u64::from(blocks) * u64::from(block) {
        return Err(header.corrupt());
    }
    // What lies behind its end, QEMU reads as zeros.
    header.expect_length(u64::from(data) + u64::from(allocated) * u64::from(block))?;
    Ok(size)
}
