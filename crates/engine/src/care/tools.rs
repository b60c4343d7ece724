//! What the programs of a filesystem are asked for.

use std::os::fd::BorrowedFd;
use std::path::Path;

use sistemo_host::program::{Program, ProgramError, Transcript};
use sistemo_host::sparse::Extent;
use sistemo_model::Filesystem;

use super::check::{Obstacle, Verdict};
use super::{btrfs::Btrfs, ext4::Ext4, xfs::Xfs};
use crate::filesystems;

/// How many lines of a program's words are passed on.
const MOST_WORDS: usize = 12;

/// Every filesystem that there are programs for.
pub(super) static ALL: [&dyn Tools; 3] = [&Ext4, &Xfs, &Btrfs];

/// The programs of the filesystem that a volume was made with.
pub(super) fn of(made: Filesystem) -> Option<&'static dyn Tools> {
    ALL.into_iter().find(|tools| tools.filesystem() == made)
}

/// The programs of one filesystem.
pub(super) trait Tools: Sync {
    /// The filesystem.
    fn filesystem(&self) -> Filesystem;

    /// Whether its sign is in the first bytes of a volume.
    fn sign_in(&self, head: &[u8]) -> bool;

    /// The program that checks it.
    fn checker(&self) -> &'static str;

    /// Looks for damage, and changes nothing.
    ///
    /// # Errors
    /// Where the program is missing, or could not do its work.
    fn look(&self, disk: &Disk<'_>) -> Result<Look, ProgramError>;

    /// Looks for a filesystem whose sign is lost, and changes nothing; `None` where the program
    /// has nothing to find it by that could be trusted.
    ///
    /// # Errors
    /// Where the program is missing, or could not do its work.
    fn look_for_lost(&self, _disk: &Disk<'_>) -> Result<Option<Look>, ProgramError> {
        Ok(None)
    }

    /// Mends what can be mended. Neither a killed `sistemo` nor a key on the terminal stops it;
    /// where the host goes down in its midst, another repair mends the rest.
    ///
    /// # Errors
    /// Where the program is missing, or could not do its work.
    fn repair(&self, disk: &Disk<'_>) -> Result<(), ProgramError>;

    /// Which blocks of a sound filesystem it does not use.
    ///
    /// # Errors
    /// Where the program is missing, or could not do its work.
    fn free(&self, disk: &Disk<'_>) -> Result<Free, ProgramError>;
}

/// A volume as programs see it.
pub(super) struct Disk<'a> {
    /// The raw file or block device.
    pub(super) path: &'a Path,
    /// What programs inherit: the volume's lock, and what keeps the raw file there.
    pub(super) held: &'a [BorrowedFd<'a>],
    /// The volume's first bytes.
    pub(super) head: &'a [u8],
}

impl Disk<'_> {
    /// A program that works on it, found and given what it inherits.
    pub(super) fn program(&self, name: &str) -> Result<Program, ProgramError> {
        filesystems::inherit(Program::find(name)?, self.held)
    }

    /// A number of the volume's first bytes in little endian, of at most 8 bytes.
    pub(super) fn little(&self, at: usize, length: usize) -> u64 {
        let bytes = self.head.get(at..at + length).unwrap_or_default();
        let shifted = |number, byte: &u8| number << 8 | u64::from(*byte);
        bytes.iter().rev().fold(0, shifted)
    }

    /// A number of the volume's first bytes in big endian, of at most 8 bytes.
    pub(super) fn big(&self, at: usize, length: usize) -> u64 {
        let bytes = self.head.get(at..at + length).unwrap_or_default();
        let shifted = |number, byte: &u8| number << 8 | u64::from(*byte);
        bytes.iter().fold(0, shifted)
    }
}

/// What a look at a filesystem found.
pub(super) struct Look {
    pub(super) verdict: Verdict,
    /// The program's own.
    pub(super) words: Vec<String>,
    /// Why what was found cannot be mended here; `None` where it can, or need not be.
    pub(super) obstacle: Option<Obstacle>,
}

impl Look {
    /// A look that told this alone.
    pub(super) fn told(verdict: Verdict, words: &str) -> Look {
        Look {
            verdict,
            words: vec![words.to_owned()],
            obstacle: None,
        }
    }

    /// A look that found nothing wrong.
    pub(super) fn sound() -> Look {
        Look {
            verdict: Verdict::Ok,
            words: Vec::new(),
            obstacle: None,
        }
    }

    /// A look that found damage, in the program's words.
    pub(super) fn damaged(words: Vec<String>) -> Look {
        Look {
            verdict: Verdict::Damaged,
            words,
            obstacle: None,
        }
    }

    /// The same, and what a program found of it.
    pub(super) fn and(mut self, found: Look) -> Look {
        self.words.extend(found.words);
        self.obstacle = found.obstacle;
        self
    }

    /// The same, of what cannot be mended here.
    pub(super) fn not_mendable(self, obstacle: Obstacle) -> Look {
        let obstacle = Some(obstacle);
        Look { obstacle, ..self }
    }
}

/// The blocks that a filesystem does not use.
pub(super) enum Free {
    /// In order, none of which overlap.
    Extents(Vec<Extent>),
    /// It cannot be told. The reason has the filesystem as its subject: `is damaged`.
    Unknown(&'static str),
}

/// What a program said that is worth passing on: without its progress, and without anything that
/// would steer a terminal, for it may repeat what a guest wrote.
///
/// `worth` is given each line and returns what of it is.
pub(super) fn words<'a>(text: &'a str, worth: impl Fn(&'a str) -> Option<&'a str>) -> Vec<String> {
    let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut words: Vec<String> = text
        .lines()
        .filter_map(|line| worth(line.trim()))
        .filter(|line| !line.is_empty())
        .map(|line| line.chars().map(shown).collect())
        .collect();
    let more = words.len().saturating_sub(MOST_WORDS);
    if more > 1 {
        words.truncate(MOST_WORDS);
        words.push(format!("and {more} more lines"));
    }
    words
}

/// The error that a program could not do its work.
pub(super) fn failed(name: &str, ended: &Transcript) -> ProgramError {
    ProgramError::Failed {
        name: name.to_owned(),
        status: ended.status,
        message: words(&ended.text, Some).join("\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_few_and_steer_no_terminal() {
        let text = "Pass 1\n\nInode \u{1b}[2J broken\n";
        let found = words(text, |line| (!line.starts_with("Pass ")).then_some(line));
        assert_eq!(found, ["Inode \u{fffd}[2J broken"]);
        let many = "line\n".repeat(100);
        let found = words(&many, Some);
        assert_eq!(found.len(), MOST_WORDS + 1);
        assert_eq!(found[MOST_WORDS], "and 88 more lines");
    }
}
