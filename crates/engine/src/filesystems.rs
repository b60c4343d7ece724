//! Making and growing filesystems on volumes, with the host's own tools.

use std::os::fd::BorrowedFd;
use std::path::Path;

use sistemo_host::lock::Lock;
use sistemo_host::program::{Program, ProgramError};
use sistemo_model::{Filesystem, VolumeName};

/// Where ext2, ext3 and ext4 keep their superblock, in bytes from the start of the device; the
/// fields below are from the kernel's Documentation/filesystems/ext4/super.rst.
pub(crate) const SUPERBLOCK: u64 = 1024;
pub(crate) const SUPERBLOCK_LENGTH: usize = 1024;
const MAGIC: (usize, u16) = (0x38, 0xef53);
const STATE: usize = 0x3a;
/// Unmounted cleanly. The bit beside it, errors found, is for e2fsck to deal with.
const VALID: u16 = 1;
const INCOMPATIBLE_FEATURES: usize = 0x60;
const NEEDS_RECOVERY: u32 = 0x4;

/// Makes a filesystem on an empty raw file. Inode tables and the journal are left to the
/// guest's first mount: the file is known to read as zeros, so nothing needs to be written
/// there (mke2fs(8), extended options).
///
/// The program inherits `lock`, so that nobody takes the volume for abandoned while it writes,
/// also where this process is killed.
pub(crate) fn make(
    filesystem: Filesystem,
    path: &Path,
    volume: &VolumeName,
    lock: &Lock,
) -> Result<(), ProgramError> {
    let program = match filesystem {
        Filesystem::None => return Ok(()),
        Filesystem::Ext4 => Program::find("mkfs.ext4")?.args([
            "-q",
            "-F",
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1,nodiscard,assume_storage_prezeroed=1",
        ]),
        Filesystem::Xfs => Program::find("mkfs.xfs")?.args(["-q", "-f", "-K"]),
        Filesystem::Btrfs => Program::find("mkfs.btrfs")?.args(["-q", "-f", "-K"]),
    };
    let label = label(filesystem, volume);
    program
        .args(["-L", label])
        .inherit(lock)?
        .arg(path)
        .run_undisturbed()?;
    Ok(())
}

/// As much of the volume's name as the filesystem's label holds: 16 bytes for ext4, 12 for XFS,
/// 255 for btrfs.
fn label(filesystem: Filesystem, volume: &VolumeName) -> &str {
    let limit = match filesystem {
        Filesystem::Xfs => 12,
        Filesystem::Ext4 => 16,
        Filesystem::Btrfs | Filesystem::None => 255,
    };
    let name = volume.as_str();
    &name[..name.len().min(limit)]
}

/// Why the filesystem on a volume cannot be grown from outside; `None` where it can: an ext4 on
/// the bare volume that was unmounted cleanly.
pub(crate) fn obstacle_to_growing(superblock: &[u8; SUPERBLOCK_LENGTH]) -> Option<&'static str> {
    if !is_ext4(superblock) {
        Some("it holds no ext4 on the bare volume")
    } else if !was_unmounted(superblock) {
        Some("it was not unmounted cleanly")
    } else {
        None
    }
}

/// Whether this is the superblock of an ext2, ext3 or ext4.
pub(crate) fn is_ext4(superblock: &[u8]) -> bool {
    word(superblock, MAGIC.0) == Some(MAGIC.1)
}

/// Whether an ext4 was unmounted cleanly, going by its superblock.
pub(crate) fn was_unmounted(superblock: &[u8]) -> bool {
    let low = word(superblock, INCOMPATIBLE_FEATURES).map_or(0, u32::from);
    let valid = word(superblock, STATE).is_some_and(|state| state & VALID != 0);
    valid && low & NEEDS_RECOVERY == 0
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let word = bytes.get(at..at + 2)?;
    Some(u16::from_le_bytes(word.try_into().ok()?))
}

/// The free bytes that growing an ext4 by so much may take on the host: resize2fs 1.47 wrote
/// 1 MB for 5 GB and 96 MB for 1 TB, and this is well above both.
pub(crate) fn room_to_grow(growth: u64) -> u64 {
    (16 << 20) + growth / 2048
}

/// Checks an ext4 and corrects what can be corrected without a question, with e2fsck(8), which
/// inherits `held`.
pub(crate) fn check(path: &Path, held: &[BorrowedFd<'_>]) -> Result<(), ProgramError> {
    let program = Program::find("e2fsck")?.args(["-f", "-p"]);
    match inherit(program, held)?.arg(path).run_undisturbed() {
        // Status 1: there were errors, and they are corrected.
        Err(ProgramError::Failed { status, .. }) if status.code() == Some(1) => Ok(()),
        checked => checked.map(drop),
    }
}

/// Grows an ext4, which was checked just now, to the size of its file.
///
/// resize2fs(8) is not atomic. Neither a killed `sistemo` nor a key on the terminal stops it, and
/// it holds what it inherits, the volume's lock among it; where the host goes down in its midst, the check before the next growth mends
/// the filesystem.
pub(crate) fn grow(path: &Path, held: &[BorrowedFd<'_>]) -> Result<(), ProgramError> {
    let program = inherit(Program::find("resize2fs")?, held)?.arg(path);
    program.run_undisturbed().map(drop)
}

pub(crate) fn inherit(program: Program, held: &[BorrowedFd<'_>]) -> Result<Program, ProgramError> {
    held.iter().try_fold(program, Program::inherit)
}
