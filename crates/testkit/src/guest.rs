//! A guest that boots in three seconds and does what it is told.
//!
//! `scripts/test-assets` makes it: Debian's cloud kernel and an initial RAM disk with `BusyBox`,
//! whose /init is `scripts/test-guest-init`. What it is to do stands on the kernel command line
//! behind ` -- `, which the kernel hands to init as arguments; what it says comes on `ttyS0`.

use std::env;
use std::path::{Path, PathBuf};

/// The kernel and initial RAM disk of the tests' guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TinyGuest {
    /// A bzImage.
    pub kernel: PathBuf,
    /// The initial RAM disk, which is all there is of the system.
    pub initrd: PathBuf,
}

/// Something the guest does. It prints `guest: done WORD` behind each that ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Prints a line for each disk: `disk vda size=BYTES serial=SERIAL ro=0`.
    Disks,
    /// Does nothing for so many seconds.
    Sleep(u32),
    /// Fills a disk, such as `vda`, and waits until all is written.
    Fill(&'static str),
    /// Writes 4 KiB to a disk; prints `cannot write /dev/NAME` where that fails.
    Write(&'static str),
    /// Waits until a disk has another size, then does as [`Action::Disks`].
    WaitUntilGrown(&'static str),
    /// Answers as a guest agent from now on: freezes and thaws what is mounted on /mnt, and prints
    /// `agent: frozen` and `agent: thawed`.
    Agent,
    /// Prints `count 1`, `count 2`, … ten times a second, for ever.
    Count,
    /// Waits until the power button is pressed.
    WaitForButton,
    /// Runs a line of shell, without double quotes.
    Shell(&'static str),
    /// Runs the shell script that its first disk holds from byte 4096 on, in at most 4096 bytes.
    Script,
    /// Panics.
    Panic,
    /// Starts anew, with the same actions.
    Reboot,
    /// Powers itself off.
    PowerOff,
}

impl Action {
    /// The word of it on the kernel command line.
    #[must_use]
    pub fn word(&self) -> String {
        match self {
            Action::Disks => "disks".into(),
            Action::Sleep(seconds) => format!("sleep:{seconds}"),
            Action::Fill(disk) => format!("fill:{disk}"),
            Action::Write(disk) => format!("write:{disk}"),
            Action::WaitUntilGrown(disk) => format!("grown:{disk}"),
            Action::Agent => "agent".into(),
            Action::Count => "count".into(),
            Action::WaitForButton => "button".into(),
            Action::Shell(line) => format!("shell:{line}"),
            Action::Script => "script".into(),
            Action::Panic => "panic".into(),
            Action::Reboot => "reboot".into(),
            Action::PowerOff => "off".into(),
        }
    }

    /// What the guest prints when it has done this.
    #[must_use]
    pub fn done(&self) -> String {
        format!("guest: done {}", self.word())
    }
}

impl TinyGuest {
    /// What the guest prints before its first action.
    pub const UP: &'static str = "guest: up";

    /// The guest that `scripts/test-assets` made; `None` where it has not been run.
    #[must_use]
    pub fn find() -> Option<TinyGuest> {
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
            PathBuf::from,
        );
        let assets = std::path::absolute(target.join("test-assets")).ok()?;
        let guest = TinyGuest {
            kernel: assets.join("vmlinuz"),
            initrd: assets.join("initrd"),
        };
        (guest.kernel.is_file() && guest.initrd.is_file()).then_some(guest)
    }

    /// The kernel command line that makes the guest do `actions`, one after the other.
    #[must_use]
    pub fn command_line(&self, actions: &[Action]) -> String {
        let words: Vec<String> = actions
            .iter()
            .map(|action| format!("\"{}\"", action.word()))
            .collect();
        format!("console=ttyS0 quiet -- {}", words.join(" "))
    }

    /// The beginning of a root disk that makes the guest do `actions`, for a test that does not
    /// write the command line itself. A line of shell among them is one word.
    #[must_use]
    pub fn disk(&self, actions: &[Action]) -> Vec<u8> {
        let words: Vec<String> = actions.iter().map(Action::word).collect();
        format!("guest: {}\n", words.join(" ")).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Requirement, met};

    #[test]
    fn actions_stand_behind_the_kernels_own_words() {
        if !met(&[Requirement::TinyGuest]) {
            return;
        }
        let guest = TinyGuest::find().unwrap();
        let line = guest.command_line(&[Action::Shell("echo a b"), Action::PowerOff]);
        assert_eq!(line, r#"console=ttyS0 quiet -- "shell:echo a b" "off""#);
    }
}
