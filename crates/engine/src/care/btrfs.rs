//! btrfs, with btrfs-progs.

use std::collections::BTreeMap;

use sistemo_host::program::ProgramError;
use sistemo_host::sparse::Extent;
use sistemo_model::Filesystem;

use super::check::{Obstacle, Verdict};
use super::tools::{Disk, Free, Look, Tools, failed, words};

const CHECKER: &str = "btrfs";
/// What `btrfs check` says while all is well.
const PROGRESS: [&str; 10] = [
    "[",
    "Opening filesystem to check",
    "Checking filesystem on",
    "UUID:",
    "total ",
    "found ",
    "btree space waste",
    "file data blocks allocated",
    "referenced ",
    "cache and super generation don't match",
];

/// Where the superblock is, and in it, in bytes, what is needed of it, all in little endian (the
/// kernel's `include/uapi/linux/btrfs_tree.h`, `struct btrfs_super_block`).
const SUPERBLOCK: usize = 64 << 10;
const SIGN: usize = SUPERBLOCK + 0x40;
const LOG_ROOT: usize = SUPERBLOCK + 0x60;
const BYTES_USED: usize = SUPERBLOCK + 0x78;
const DEVICES: usize = SUPERBLOCK + 0x88;
const NODE_SIZE: usize = SUPERBLOCK + 0x94;
const INCOMPATIBLE: usize = SUPERBLOCK + 0xbc;
const DEVICE_BYTES: usize = SUPERBLOCK + 0xc9 + 8;

/// The features with which space is accounted for as it is read here: all up to `METADATA_UUID`
/// but RAID56. What came later has other trees.
const KNOWN_FEATURES: u64 = 0x7ff & !0x80;

/// Nothing is kept before this but the first superblock (btrfs(5), "Filesystem limits").
const RESERVED: u64 = 1 << 20;
/// Where the superblock is kept again, and how much is left out around it: a whole stripe, as the
/// kernel does.
const MIRRORS: [u64; 2] = [64 << 20, 256 << 30];
const STRIPE: u64 = 64 << 10;

pub(super) struct Btrfs;

impl Tools for Btrfs {
    fn filesystem(&self) -> Filesystem {
        Filesystem::Btrfs
    }

    fn sign_in(&self, head: &[u8]) -> bool {
        head.get(SIGN..)
            .is_some_and(|behind| behind.starts_with(b"_BHRfS_M"))
    }

    fn checker(&self) -> &'static str {
        "btrfs check"
    }

    fn look(&self, disk: &Disk<'_>) -> Result<Look, ProgramError> {
        if disk.little(DEVICES, 8) != 1 {
            return Ok(Look::told(
                Verdict::NotChecked,
                "it is one of several devices of a btrfs",
            ));
        }
        let program = disk.program(CHECKER)?.args(["check", "--readonly"]);
        let ended = program.arg(disk.path).transcribe()?;
        let idle = |line: &str| PROGRESS.iter().any(|begins| line.starts_with(begins));
        match ended.status.code() {
            Some(0) => Ok(Look::sound()),
            Some(1) => {
                let found = words(&ended.text, |line| (!idle(line)).then_some(line));
                // btrfs-check(8): "Do not use --repair unless you are advised to do so by a
                // developer or an experienced user".
                Ok(Look::damaged(found).not_mendable(Obstacle::NoSafeRepair))
            }
            _ => Err(failed("btrfs check", &ended)),
        }
    }

    fn repair(&self, _disk: &Disk<'_>) -> Result<(), ProgramError> {
        Ok(())
    }

    fn free(&self, disk: &Disk<'_>) -> Result<Free, ProgramError> {
        if disk.little(LOG_ROOT, 8) != 0 {
            return Ok(Free::Unknown("was not unmounted cleanly"));
        }
        if disk.little(INCOMPATIBLE, 8) & !KNOWN_FEATURES != 0 {
            return Ok(Free::Unknown("has features that are not known here"));
        }
        let tree = |name| -> Result<String, ProgramError> {
            let program = disk.program(CHECKER)?;
            let program = program.args(["inspect-internal", "dump-tree", "--noscan", "-t", name]);
            Ok(program.arg(disk.path).run_undisturbed()?.text())
        };
        let (chunks, extents) = (chunks_in(&tree("chunk")?), tree("extent")?);
        let Some(chunks) = chunks else {
            return Ok(Free::Unknown("lays out its chunks as is not known here"));
        };
        let node = disk.little(NODE_SIZE, 4);
        let used = used_in(&extents, node);
        let used = used.filter(|used| used.values().sum::<u64>() == disk.little(BYTES_USED, 8));
        let free = free_of(&chunks, used.as_ref(), disk.little(DEVICE_BYTES, 8));
        Ok(match free {
            Some(extents) => Free::Extents(extents),
            None => Free::Unknown("has extents that do not fit its chunks"),
        })
    }
}

/// A part of the logical space, and where on the device it is: in one place, or in two.
#[derive(Debug, PartialEq, Eq)]
struct Chunk {
    logical: u64,
    length: u64,
    system: bool,
    places: Vec<u64>,
}

/// The object and the offset of the key in a line of `btrfs inspect-internal dump-tree`, where
/// the line begins an item of that type.
fn key_of<'a>(line: &'a str, kind: &str) -> Option<(&'a str, &'a str)> {
    let item = line.strip_prefix("\titem ")?;
    let (_, key) = item.split_once(" key (")?;
    let (key, _) = key.split_once(')')?;
    let mut words = key.split(' ');
    let (object, found, offset) = (words.next()?, words.next()?, words.next()?);
    (found == kind && words.next().is_none()).then_some((object, offset))
}

/// The number behind a word of a line.
fn behind(line: &str, word: &str) -> Option<u64> {
    let mut words = line.split_whitespace();
    words.find(|found| *found == word)?;
    words.next()?.parse().ok()
}

/// The chunks in a dump of the chunk tree; `None` where one is not in one or two whole places.
fn chunks_in(text: &str) -> Option<Vec<Chunk>> {
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((_, logical)) = key_of(line, "CHUNK_ITEM") else {
            continue;
        };
        let (mut length, mut kind, mut stripes, mut places) = (None, "", None, Vec::new());
        while let Some(line) = lines.next_if(|line| line.starts_with("\t\t")) {
            let line = line.trim();
            if line.starts_with("length ") {
                length = behind(line, "length");
                kind = line.split_once(" type ")?.1;
            } else if line.starts_with("num_stripes ") {
                stripes = behind(line, "num_stripes");
            } else if line.starts_with("stripe ") {
                places.push(behind(line, "offset")?);
            }
        }
        let copies = match kind.rsplit_once('|')?.1 {
            "single" => 1,
            "DUP" => 2,
            _ => return None,
        };
        if stripes != Some(copies) || places.len() as u64 != copies {
            return None;
        }
        chunks.push(Chunk {
            logical: logical.parse().ok()?,
            length: length.filter(|length| *length > 0)?,
            system: kind.contains("SYSTEM"),
            places,
        });
    }
    // There is no btrfs without any; a dump that has none is none.
    (!chunks.is_empty()).then_some(chunks)
}

/// The parts of the logical space that a dump of the extent tree says are used, with their
/// lengths.
fn used_in(text: &str, node: u64) -> Option<BTreeMap<u64, u64>> {
    let mut used = BTreeMap::new();
    for line in text.lines() {
        let (at, length) = if let Some((at, length)) = key_of(line, "EXTENT_ITEM") {
            (at, length.parse().ok()?)
        } else if let Some((at, _)) = key_of(line, "METADATA_ITEM") {
            (at, node)
        } else {
            continue;
        };
        if used.insert(at.parse().ok()?, length).is_some() {
            return None;
        }
    }
    Some(used)
}

/// What of a device no chunk has, and, where it is known what of the chunks is used, what of them
/// nothing uses; in bytes of the device. `None` where any of it contradicts itself.
fn free_of(
    chunks: &[Chunk],
    used: Option<&BTreeMap<u64, u64>>,
    device: u64,
) -> Option<Vec<Extent>> {
    // What is used of the device: begin and end, in order.
    let mut taken: Vec<(u64, u64)> = vec![(0, RESERVED)];
    taken.extend(MIRRORS.map(|at| (at, at + STRIPE)));
    let mut accounted = 0;
    for chunk in chunks {
        let end = chunk.logical.checked_add(chunk.length)?;
        let inside: Vec<(u64, u64)> = match used {
            Some(used) => {
                let inside = used.range(chunk.logical..end);
                inside.map(|(at, length)| (*at, *length)).collect()
            }
            None => Vec::new(),
        };
        accounted += inside.len();
        for place in &chunk.places {
            let place_end = place.checked_add(chunk.length)?;
            if place_end > device {
                return None;
            }
            if chunk.system || used.is_none() {
                taken.push((*place, place_end));
                continue;
            }
            for (at, length) in &inside {
                let from = at - chunk.logical + place;
                let to = from.checked_add(*length)?;
                if to > place_end {
                    return None;
                }
                taken.push((from, to));
            }
        }
    }
    if used.is_some_and(|used| used.len() != accounted) {
        return None;
    }
    taken.sort_unstable();
    let (mut free, mut at) = (Vec::new(), 0);
    for (from, to) in taken {
        if from >= device {
            break;
        }
        if from > at {
            free.push(Extent {
                offset: at,
                length: from - at,
            });
        }
        at = at.max(to);
    }
    if device > at {
        free.push(Extent {
            offset: at,
            length: device - at,
        });
    }
    Some(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    const CHUNKS: &str = "\
chunk tree
leaf 22052864 items 5 free space 15676 generation 7 owner CHUNK_TREE
\titem 0 key (DEV_ITEMS DEV_ITEM 1) itemoff 16185 itemsize 98
\t\tdevid 1 total_bytes 335544320 bytes_used 125829120
\titem 1 key (FIRST_CHUNK_TREE CHUNK_ITEM 13631488) itemoff 16105 itemsize 80
\t\tlength 8388608 owner 2 stripe_len 65536 type DATA|single
\t\tio_align 65536 io_width 65536 sector_size 4096
\t\tnum_stripes 1 sub_stripes 1
\t\t\tstripe 0 devid 1 offset 13631488
\t\t\tdev_uuid 9f546a0d-f6b2-4e0f-88cc-4b6a06e5d64e
\titem 2 key (FIRST_CHUNK_TREE CHUNK_ITEM 22020096) itemoff 15993 itemsize 112
\t\tlength 8388608 owner 2 stripe_len 65536 type SYSTEM|DUP
\t\tio_align 65536 io_width 65536 sector_size 4096
\t\tnum_stripes 2 sub_stripes 1
\t\t\tstripe 0 devid 1 offset 22020096
\t\t\tdev_uuid 9f546a0d-f6b2-4e0f-88cc-4b6a06e5d64e
\t\t\tstripe 1 devid 1 offset 30408704
\t\t\tdev_uuid 9f546a0d-f6b2-4e0f-88cc-4b6a06e5d64e
";

    const EXTENTS: &str = "\
extent tree key (EXTENT_TREE ROOT_ITEM 0)
\titem 0 key (13631488 BLOCK_GROUP_ITEM 8388608) itemoff 16259 itemsize 24
\t\tblock group used 0 chunk_objectid 256 flags DATA|single
\titem 1 key (14680064 EXTENT_ITEM 1048576) itemoff 16206 itemsize 53
\t\trefs 1 gen 7 flags DATA
\titem 2 key (22052864 METADATA_ITEM 0) itemoff 16202 itemsize 33
\t\trefs 1 gen 7 flags TREE_BLOCK
";

    fn spans(extents: &[Extent]) -> Vec<(u64, u64)> {
        let spans = extents.iter().map(|extent| (extent.offset, extent.end()));
        spans.collect()
    }

    #[test]
    fn free_is_what_no_chunk_has_and_what_no_extent_uses() {
        let chunks = chunks_in(CHUNKS).unwrap();
        assert_eq!(chunks.len(), 2);
        assert!(chunks[1].system && chunks[1].places == [21 * MIB, 29 * MIB]);
        let used = used_in(EXTENTS, 16384).unwrap();
        assert_eq!(used.values().sum::<u64>(), MIB + 16384);
        let free = free_of(&chunks, Some(&used), 320 * MIB).unwrap();
        let expected = [
            (MIB, 14 * MIB),
            (15 * MIB, 21 * MIB),
            (37 * MIB, 64 * MIB),
            (64 * MIB + STRIPE, 320 * MIB),
        ];
        assert_eq!(spans(&free), expected);
        let without = free_of(&chunks, None, 320 * MIB).unwrap();
        assert_eq!(spans(&without)[..1], [(MIB, 13 * MIB)]);
    }

    #[test]
    fn what_contradicts_itself_is_not_believed() {
        let chunks = chunks_in(CHUNKS).unwrap();
        let used = used_in(EXTENTS, 16384).unwrap();
        assert_eq!(free_of(&chunks, Some(&used), 30 * MIB), None, "too small");
        let outside = used_in(&EXTENTS.replace("14680064", "1"), 16384).unwrap();
        assert_eq!(free_of(&chunks, Some(&outside), 320 * MIB), None);
        let beyond = used_in(&EXTENTS.replace("1048576", "8388608"), 16384).unwrap();
        assert_eq!(free_of(&chunks, Some(&beyond), 320 * MIB), None);
        for (from, to) in [
            ("type SYSTEM|DUP", "type SYSTEM|RAID1"),
            ("num_stripes 2", "num_stripes 1"),
            ("length 8388608", "length x"),
        ] {
            assert_eq!(chunks_in(&CHUNKS.replace(from, to)), None, "{to}");
        }
        assert_eq!(chunks_in(""), None);
    }
}
