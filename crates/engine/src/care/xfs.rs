//! XFS, with xfsprogs.

use sistemo_host::program::{Program, ProgramError};
use sistemo_host::sparse::Extent;
use sistemo_model::Filesystem;

use super::check::{Obstacle, Verdict};
use super::tools::{Disk, Free, Look, Tools, failed, words};

const CHECKER: &str = "xfs_repair";
/// What `xfs_repair(8)` says of a log that has to be replayed, with and without `-n`.
const DIRTY_LOG: &str = "valuable metadata changes in a log";
/// What it says while all is well.
const PROGRESS: [&str; 7] = [
    "Phase ",
    "- ",
    "No modify flag",
    "Cannot get host filesystem geometry",
    "Repair may fail if there is a sector size mismatch",
    "the image and the host filesystem",
    "zero_log: head block",
];

/// Where the superblock has what is needed of it, in bytes from its start (the kernel's
/// `fs/xfs/libxfs/xfs_format.h`); it is at the start of the volume, in big endian.
const BLOCK_SIZE: usize = 4;
const BLOCKS: usize = 8;
const GROUP_BLOCKS: usize = 84;
const GROUPS: usize = 88;

pub(super) struct Xfs;

/// A program of xfsprogs is told that it works on a file, where it does.
fn program(disk: &Disk<'_>, name: &str) -> Result<Program, ProgramError> {
    let program = disk.program(name)?;
    let is_file = std::fs::metadata(disk.path).is_ok_and(|meta| meta.is_file());
    Ok(if is_file { program.arg("-f") } else { program })
}

impl Tools for Xfs {
    fn filesystem(&self) -> Filesystem {
        Filesystem::Xfs
    }

    fn sign_in(&self, head: &[u8]) -> bool {
        head.starts_with(b"XFSB")
    }

    fn checker(&self) -> &'static str {
        CHECKER
    }

    fn look(&self, disk: &Disk<'_>) -> Result<Look, ProgramError> {
        let ended = program(disk, CHECKER)?
            .arg("-n")
            .arg(disk.path)
            .transcribe()?;
        if ended.text.contains(DIRTY_LOG) {
            // What it finds without replaying the log is no damage.
            return Ok(Look::told(
                Verdict::Unclean,
                "it was not unmounted cleanly; the next mount replays its log",
            )
            // It could be thrown away with -L, and with it what was written last.
            .not_mendable(Obstacle::DirtyLog));
        }
        let idle = |line: &str| PROGRESS.iter().any(|begins| line.starts_with(begins));
        match ended.status.code() {
            Some(0) => Ok(Look::sound()),
            Some(1) => Ok(Look::damaged(words(&ended.text, |line| {
                (!idle(line)).then_some(line)
            }))),
            _ => Err(failed(CHECKER, &ended)),
        }
    }

    fn repair(&self, disk: &Disk<'_>) -> Result<(), ProgramError> {
        let ended = program(disk, CHECKER)?
            .arg(disk.path)
            .own_group()
            .transcribe()?;
        if ended.status.success() {
            Ok(())
        } else {
            Err(failed(CHECKER, &ended))
        }
    }

    fn free(&self, disk: &Disk<'_>) -> Result<Free, ProgramError> {
        let output = program(disk, "xfs_db")?
            .args(["-r", "-c", "freesp -d -s"])
            .arg(disk.path)
            .run_undisturbed()?;
        let geometry = Geometry {
            block: disk.big(BLOCK_SIZE, 4),
            blocks: disk.big(BLOCKS, 8),
            group_blocks: disk.big(GROUP_BLOCKS, 4),
            groups: disk.big(GROUPS, 4),
        };
        Ok(match free_in(&output.text(), &geometry) {
            Some(extents) => Free::Extents(extents),
            None => Free::Unknown("counts its free blocks otherwise than it lists them"),
        })
    }
}

/// How the blocks of an XFS are arranged, all in blocks but for the block itself.
struct Geometry {
    block: u64,
    blocks: u64,
    group_blocks: u64,
    groups: u64,
}

/// The free extents that `freesp -d -s` of `xfs_db(8)` lists, in bytes; `None` where they are not
/// as many as it counts itself, or anything else is not as it should be.
///
/// Those that each allocation group keeps for its own trees are among them: their content is of
/// no meaning either.
fn free_in(text: &str, geometry: &Geometry) -> Option<Vec<Extent>> {
    let mut lines = text.lines();
    let heading: Vec<_> = lines.next()?.split_whitespace().collect();
    if heading != ["agno", "agbno", "len"] {
        return None;
    }
    let mut extents: Vec<Extent> = Vec::new();
    let mut sum = 0_u64;
    for line in lines.by_ref() {
        let words: Vec<_> = line.split_whitespace().collect();
        if words.first() == Some(&"from") {
            break;
        }
        let numbers: Option<Vec<u64>> = words.iter().map(|word| word.parse().ok()).collect();
        let &[group, first, length] = numbers?.as_slice() else {
            return None;
        };
        let end = first.checked_add(length)?;
        if length == 0 || group >= geometry.groups || end > geometry.group_blocks {
            return None;
        }
        let at = group
            .checked_mul(geometry.group_blocks)?
            .checked_add(first)?;
        if at.checked_add(length)? > geometry.blocks {
            return None;
        }
        sum = sum.checked_add(length)?;
        extents.push(Extent {
            offset: at.checked_mul(geometry.block)?,
            length: length.checked_mul(geometry.block)?,
        });
    }
    let counted = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line?.trim().parse::<u64>().ok()
    };
    let extents_counted = counted("total free extents")?;
    if counted("total free blocks")? != sum || extents_counted != extents.len() as u64 {
        return None;
    }
    extents.sort_by_key(|extent| extent.offset);
    let apart = extents
        .windows(2)
        .all(|pair| pair[0].end() <= pair[1].offset);
    apart.then_some(extents)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: &str = "    agno    agbno      len
       0        6        1
       0       10        6
       2    16394     4086
   from      to extents  blocks    pct
      1       1       1       1   0.02
      4       7       1       6   0.01
   2048    4095       1    4086   6.24
total free extents 3
total free blocks 4093
average free extent size 1364.33
";

    const GEOMETRY: Geometry = Geometry {
        block: 4096,
        blocks: 4 * 20480,
        group_blocks: 20480,
        groups: 4,
    };

    #[test]
    fn free_extents_are_read_as_xfs_db_lists_them() {
        let extents = free_in(FREE, &GEOMETRY).unwrap();
        let found: Vec<_> = extents.iter().map(|e| (e.offset, e.length)).collect();
        let expected = [(6, 1), (10, 6), (2 * 20480 + 16394, 4086)];
        assert_eq!(found, expected.map(|(at, n)| (at << 12, n << 12)));
    }

    #[test]
    fn a_list_that_is_cut_short_or_wrong_is_not_believed() {
        for (from, to) in [
            ("       0       10        6\n", ""),
            (
                "       0       10        6\n",
                "       0        6        6\n",
            ),
            (
                "       0       10        6\n",
                "       4       10        6\n",
            ),
            ("16394", "16395"),
            ("agbno", "block"),
            ("total free blocks 4093\n", ""),
        ] {
            let text = FREE.replacen(from, to, 1);
            assert_ne!(text, FREE);
            assert_eq!(free_in(&text, &GEOMETRY), None, "{from}{to}");
        }
        assert_eq!(free_in("", &GEOMETRY), None);
    }
}
