//! What a volume holds, by the signs that filesystems and others leave at fixed places.
//!
//! A guest may have made another filesystem than the volume was made with, so the signs count, not
//! the record. They are only ever a reason to ask a program, which then says whether they lie;
//! where there are signs of more than one thing, one of them is a remnant, and nothing is asked.
//! Only where there is no sign of anything does the record count: what was there is lost then.

use std::fmt;

use sistemo_pools::{Content, PoolError};

use super::tools::{ALL, Tools};

/// Where the last sign ends: that of btrfs, whose superblock is at 64 KiB.
const HEAD: usize = (64 << 10) + 4096;

/// Signs of what is no filesystem that we know programs for: the word for it, where its sign is
/// in bytes from the start of the volume, and the sign. From the sources of libblkid.
const OTHERS: [(&str, usize, &[u8]); 7] = [
    ("partitions", 510, &[0x55, 0xaa]),
    ("partitions", 512, b"EFI PART"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("lvm", 512, b"LABELONE"),
    ("swap", 4086, b"SWAPSPACE2"),
    ("mdraid", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    (
        "bcache",
        4096 + 24,
        &[
            0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba,
            0x6d, 0x81,
        ],
    ),
];

/// How much of a volume is all zeros where nothing was ever put on it: there is no filesystem that
/// writes nothing there.
const BEGINNING: usize = 1 << 20;

/// The first bytes of a volume, in which all signs are.
pub(super) fn head_of(content: &dyn Content) -> Result<Vec<u8>, PoolError> {
    first_of(content, HEAD)
}

/// Whether a volume begins as one that nothing was ever put on, or that was wiped.
pub(super) fn begins_empty(content: &dyn Content) -> Result<bool, PoolError> {
    let beginning = first_of(content, BEGINNING)?;
    Ok(beginning.iter().all(|byte| *byte == 0))
}

fn first_of(content: &dyn Content, most: usize) -> Result<Vec<u8>, PoolError> {
    let length = usize::try_from(content.size().get()).map_or(most, |size| size.min(most));
    let mut first = vec![0; length];
    content.read_at(&mut first, 0)?;
    Ok(first)
}

/// What a volume holds.
#[derive(Clone, Copy)]
pub(super) enum Inside {
    /// One filesystem on the bare volume, and the programs for it.
    Filesystem(&'static dyn Tools),
    /// Something else, by its word.
    Other(&'static str),
    /// Signs of more than one thing.
    Several,
    /// Nothing that is known.
    Unknown,
}

impl Inside {
    /// Looks for signs in a volume's first bytes.
    pub(super) fn of(head: &[u8]) -> Inside {
        let filesystems = ALL.iter().filter(|tools| tools.sign_in(head));
        let mut filesystems = filesystems.copied();
        let (first, second) = (filesystems.next(), filesystems.next());
        let other = OTHERS.iter().find(|(_, at, sign)| {
            head.get(*at..)
                .is_some_and(|behind| behind.starts_with(sign))
        });
        match (first, second, other) {
            (Some(tools), None, None) => Inside::Filesystem(tools),
            (None, None, Some((word, ..))) => Inside::Other(word),
            (None, None, None) => Inside::Unknown,
            _ => Inside::Several,
        }
    }

    /// The word for programs.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Inside::Filesystem(tools) => tools.filesystem().as_str(),
            Inside::Other(word) => word,
            Inside::Several => "several",
            Inside::Unknown => "unknown",
        }
    }
}

/// Why there is no filesystem to ask a program about; the reason follows on "it holds".
impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Inside::Filesystem(tools) => tools.filesystem().as_str(),
            Inside::Other("partitions") => "partitions",
            Inside::Other("luks") => "encrypted data (LUKS)",
            Inside::Other("lvm") => "a physical volume of LVM",
            Inside::Other("swap") => "swap space",
            Inside::Other("mdraid") => "a part of an array (md)",
            Inside::Other(word) => word,
            Inside::Several => "signs of more than one thing",
            Inside::Unknown => "no filesystem that is known here",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(signs: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        for (at, sign) in signs {
            head[*at..at + sign.len()].copy_from_slice(sign);
        }
        head
    }

    const EXT4: (usize, &[u8]) = (0x438, &[0x53, 0xef]);
    const XFS: (usize, &[u8]) = (0, b"XFSB");
    const BTRFS: (usize, &[u8]) = (0x1_0040, b"_BHRfS_M");

    #[test]
    fn a_filesystem_is_known_by_its_sign() {
        for (sign, word) in [(EXT4, "ext4"), (XFS, "xfs"), (BTRFS, "btrfs")] {
            assert_eq!(Inside::of(&with(&[sign])).as_str(), word);
        }
        for (word, at, sign) in OTHERS {
            assert_eq!(Inside::of(&with(&[(at, sign)])).as_str(), word);
        }
        assert_eq!(Inside::of(&with(&[])).as_str(), "unknown");
        assert_eq!(Inside::of(&[]).as_str(), "unknown");
    }

    #[test]
    fn remnants_of_another_filesystem_leave_it_open_which_is_there() {
        let table: (usize, &[u8]) = (510, &[0x55, 0xaa]);
        for signs in [[EXT4, BTRFS], [XFS, BTRFS], [EXT4, table]] {
            assert_eq!(Inside::of(&with(&signs)).as_str(), "several");
        }
    }
}
