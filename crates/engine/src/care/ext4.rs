//! ext2, ext3 and ext4, with e2fsprogs.

use sistemo_host::program::ProgramError;
use sistemo_host::sparse::Extent;
use sistemo_model::Filesystem;

use super::check::{Obstacle, Verdict};
use super::tools::{Disk, Free, Look, Tools, failed, words};
use crate::filesystems::{SUPERBLOCK, SUPERBLOCK_LENGTH, is_ext4, was_unmounted};

const CHECKER: &str = "e2fsck";
/// Exit status of e2fsck(8), which is a sum: errors are left; it could not do something, which
/// after errors is one of theirs; from here on, it did not do its work.
const ERRORS_LEFT: i32 = 4;
const COULD_NOT: i32 = 8;
const NOT_DONE: i32 = 16;
/// What it says where neither the superblock nor a copy of it is to be found.
const NO_SUPERBLOCK: &str = "does not describe a valid ext2/ext3/ext4";

pub(super) struct Ext4;

/// What e2fsck says of a filesystem while it changes nothing.
fn examined(disk: &Disk<'_>) -> Result<Look, ProgramError> {
    let program = disk.program(CHECKER)?.args(["-f", "-n"]).arg(disk.path);
    let ended = program.transcribe()?;
    let found = || {
        words(&ended.text, |line| {
            worth(line, &disk.path.to_string_lossy())
        })
    };
    match ended.status.code() {
        // What it says beside, such as of counts that every mount sets right, is no damage.
        Some(0) => Ok(Look::sound()),
        Some(code) if code < NOT_DONE && code & ERRORS_LEFT != 0 => Ok(Look::damaged(found())),
        Some(COULD_NOT) if ended.text.contains(NO_SUPERBLOCK) => {
            let told = "there is neither a superblock nor a copy of one";
            Ok(Look::told(Verdict::Damaged, told).not_mendable(Obstacle::Lost))
        }
        _ => Err(failed(CHECKER, &ended)),
    }
}

fn superblock(head: &[u8]) -> &[u8] {
    let at = usize::try_from(SUPERBLOCK).unwrap_or(usize::MAX);
    head.get(at..at + SUPERBLOCK_LENGTH).unwrap_or_default()
}

impl Tools for Ext4 {
    fn filesystem(&self) -> Filesystem {
        Filesystem::Ext4
    }

    fn sign_in(&self, head: &[u8]) -> bool {
        is_ext4(superblock(head))
    }

    fn checker(&self) -> &'static str {
        CHECKER
    }

    fn look(&self, disk: &Disk<'_>) -> Result<Look, ProgramError> {
        if !was_unmounted(superblock(disk.head)) {
            // What e2fsck finds without replaying the journal is no damage.
            return Ok(Look::told(
                Verdict::Unclean,
                "it was not unmounted cleanly; the next mount replays its journal",
            ));
        }
        examined(disk)
    }

    fn look_for_lost(&self, disk: &Disk<'_>) -> Result<Option<Look>, ProgramError> {
        // It goes by the copies of the superblock.
        examined(disk).map(Some)
    }

    fn repair(&self, disk: &Disk<'_>) -> Result<(), ProgramError> {
        let program = disk.program(CHECKER)?.args(["-f", "-y"]).arg(disk.path);
        let ended = program.own_group().transcribe()?;
        match ended.status.code() {
            // Whether errors are left, the next look says.
            Some(code) if code < COULD_NOT => Ok(()),
            Some(code) if code < NOT_DONE && code & ERRORS_LEFT != 0 => Ok(()),
            _ => Err(failed(CHECKER, &ended)),
        }
    }

    fn free(&self, disk: &Disk<'_>) -> Result<Free, ProgramError> {
        let output = disk.program("dumpe2fs")?.arg(disk.path).run_undisturbed()?;
        Ok(match free_in(&output.text()) {
            Some(extents) => Free::Extents(extents),
            None => Free::Unknown("counts its free blocks otherwise than it lists them"),
        })
    }
}

/// What of a line of e2fsck(8) tells of damage: neither how far it came, nor what it would ask.
fn worth<'a>(line: &'a str, path: &str) -> Option<&'a str> {
    let line = line.rsplit_once("e2fsck: ").map_or(line, |(_, line)| line);
    let line = line.strip_suffix("? no").map_or(line, |asked| {
        asked
            .rsplit_once(".  ")
            .or(asked.rsplit_once(". "))
            .map_or("", |(told, _)| told)
    });
    let idle = line == "IGNORED."
        || ["Pass ", "e2fsck ", path]
            .iter()
            .any(|begins| line.starts_with(begins));
    (!idle).then_some(line)
}

/// The free blocks that dumpe2fs(8) lists, in bytes; `None` where they are not as many as the
/// superblock counts, or anything else is not as it should be.
fn free_in(text: &str) -> Option<Vec<Extent>> {
    let header = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line?.trim().parse::<u64>().ok()
    };
    let (size, blocks) = (header("Block size:")?, header("Block count:")?);
    let counted = header("Free blocks:")?;
    let mut extents: Vec<Extent> = Vec::new();
    let mut sum = 0_u64;
    let lists = text
        .lines()
        .filter_map(|line| line.strip_prefix("  Free blocks: "));
    for range in lists.flat_map(|list| list.split(", ")) {
        if range.is_empty() {
            continue;
        }
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        let end = last.checked_add(1)?;
        if first >= end || end > blocks {
            return None;
        }
        sum = sum.checked_add(end - first)?;
        let extent = Extent {
            offset: first.checked_mul(size)?,
            length: (end - first).checked_mul(size)?,
        };
        match extents.last_mut() {
            Some(before) if before.end() == extent.offset => before.length += extent.length,
            Some(before) if before.end() > extent.offset => return None,
            _ => extents.push(extent),
        }
    }
    (sum == counted).then_some(extents)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "\
Filesystem volume name:   data
Block count:              65536
Free blocks:              9
First block:              1
Block size:               1024

Group 0: (Blocks 1-8192) csum 0xd195 [ITABLE_ZEROED]
  7 free blocks, 2037 free inodes, 2 directories
  Free blocks: 4385, 8188-8192, 8193
  Free inodes: 12-2048
Group 1: (Blocks 8193-16384) csum 0x640e [INODE_UNINIT]
  Free blocks: 9000-9001
Group 2: (Blocks 16385-24576)
  Free blocks: 
";

    #[test]
    fn its_words_are_what_is_wrong_alone() {
        for (line, told) in [
            ("Pass 1: Checking inodes, blocks, and sizes", None),
            ("Fix? no", Some("")),
            (
                "Resize inode not valid.  Recreate? no",
                Some("Resize inode not valid"),
            ),
            (
                "Inode 7, i_blocks is 2562, should be 2558.  Fix? no",
                Some("Inode 7, i_blocks is 2562, should be 2558"),
            ),
            (
                "/usr/sbin/e2fsck: Group descriptors look bad...",
                Some("Group descriptors look bad..."),
            ),
            ("/proc/7/fd/9: 11/16384 files", None),
        ] {
            assert_eq!(worth(line, "/proc/7/fd/9").map(str::trim_end), told);
        }
    }

    #[test]
    fn free_blocks_are_read_as_dumpe2fs_lists_them() {
        let extents = free_in(DUMP).unwrap();
        let found: Vec<_> = extents.iter().map(|e| (e.offset, e.length)).collect();
        let expected = [(4385, 1), (8188, 6), (9000, 2)];
        assert_eq!(found, expected.map(|(at, n)| (at << 10, n << 10)));
    }

    #[test]
    fn a_list_that_is_cut_short_or_wrong_is_not_believed() {
        for (from, to) in [
            ("9000-9001", "9000"),
            ("9000-9001", "9001-9000"),
            ("9000-9001", "8100-8101"),
            ("9000-9001", "x"),
            ("65536", "9000"),
            (
                "Free blocks:              9",
                "Free blocks:              10",
            ),
        ] {
            let text = DUMP.replacen(from, to, 1);
            assert_ne!(text, DUMP);
            assert_eq!(free_in(&text), None, "{to}");
        }
        assert_eq!(free_in(""), None);
    }
}
