//! Running programs as a root that may own files of every user, also without being root.
//!
//! As root they run in a mount namespace of their own, so that what a killed build had mounted
//! is gone with it. An ordinary user's run in a user namespace (`user_namespaces(7)`, unshare(1) of
//! util-linux 2.38) where the user is root and the IDs of /etc/subuid are the others: files made
//! there are owned as they should be, seen from there, and those of its root are the user's own.

use std::fs;

use sistemo_host::program::{Program, ProgramError, locate};
use sistemo_host::system::{is_root, user_name};

use crate::error::{Error, Result};

/// Debian gives each user this many, and a Debian system's IDs end at 65534.
const IDS_NEEDED: u64 = 65_536;

/// Programs that install packages look for others here, also when our own PATH leaves them out.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How this process becomes a root of many users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Namespace {
    /// It is root.
    Mounts,
    /// It is an ordinary user.
    Users,
}

impl Namespace {
    /// The way that is open to this process.
    pub(crate) fn here() -> Namespace {
        if is_root() {
            Namespace::Mounts
        } else {
            Namespace::Users
        }
    }

    /// Makes sure that an ordinary user may become such a root.
    ///
    /// # Errors
    /// [`Error::NoSubordinateIds`], or that the program which maps them is not installed.
    pub(crate) fn check(self, image: &str) -> Result<()> {
        if self == Namespace::Mounts {
            return Ok(());
        }
        for program in ["newuidmap", "newgidmap"] {
            Program::find(program).map_err(Error::program("prepare to build image", image))?;
        }
        let user = user_name();
        let uid = rustix::process::geteuid().as_raw().to_string();
        for file in ["/etc/subuid", "/etc/subgid"] {
            let text = fs::read_to_string(file).unwrap_or_default();
            if !has_range(&text, &user, &uid) {
                return Err(Error::NoSubordinateIds { user, file });
            }
        }
        Ok(())
    }

    /// A program in the namespace; each run makes a new one with the same IDs.
    ///
    /// # Errors
    /// [`ProgramError::NotInstalled`].
    pub(crate) fn program(self, name: &str) -> Result<Program, ProgramError> {
        let path = locate(name).ok_or_else(|| ProgramError::NotInstalled {
            name: name.to_owned(),
        })?;
        let options: &[&str] = match self {
            Namespace::Mounts => &["--mount"],
            Namespace::Users => &["--map-root-user", "--map-auto"],
        };
        Ok(Program::find("unshare")?
            .args(options)
            .arg("--")
            .arg(path)
            .env("PATH", PATH))
    }
}

/// Whether subuid(5) gives a user enough IDs in one range, which is what `--map-auto` takes.
fn has_range(text: &str, user: &str, uid: &str) -> bool {
    text.lines().any(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next();
        let count = fields.nth(1).and_then(|count| count.parse::<u64>().ok());
        (owner == Some(user) || owner == Some(uid)) && count.is_some_and(|n| n >= IDS_NEEDED)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_belongs_to_a_name_or_a_number_and_must_be_large_enough() {
        assert!(has_range("a:1:65536\nme:100000:65536\n", "me", "1000"));
        assert!(has_range("1000:100000:65536", "me", "1000"));
        assert!(!has_range("me:100000:65535", "me", "1000"));
        assert!(!has_range("metoo:100000:65536", "me", "1000"));
        assert!(!has_range("", "me", "1000"));
    }
}
