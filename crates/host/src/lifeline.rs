//! Programs that end when nobody holds on to them any more.
//!
//! A program that serves others must not outlive them all, however they end. It gets a session
//! and a pseudoterminal of its own, the other side of which is its lifeline: once that and every
//! descriptor inherited from it are closed, the kernel sends the program SIGHUP, as to a shell
//! whose window is closed (pty(7)). Unlike a parent's death signal this counts all who hold on,
//! and unlike it, it knows no thread.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};

use crate::program::{Program, ProgramError, Running, locate};

/// Keeps a program alive. It is told to end (SIGHUP) when this value, and every descriptor
/// inherited from it, is gone.
#[derive(Debug)]
#[must_use]
pub struct Lifeline {
    master: OwnedFd,
}

impl Lifeline {
    /// Starts a program in a session of its own; what it prints goes to `output`.
    ///
    /// # Errors
    /// Where it or setsid(1), which gives it the session, cannot be started.
    pub fn spawn(program: Program, output: File) -> Result<(Running, Lifeline), ProgramError> {
        const LEADER: &str = "setsid";
        let setsid = locate(LEADER).ok_or_else(|| ProgramError::NotInstalled {
            name: LEADER.to_owned(),
        })?;
        let path = program.path().to_owned();
        if !path.exists() {
            let name = path.file_name().unwrap_or(path.as_os_str());
            let name = name.to_string_lossy().into_owned();
            return Err(ProgramError::NotInstalled { name });
        }
        let fail = |source| ProgramError::Start {
            path: path.clone(),
            source,
        };
        let (master, slave) = terminal().map_err(fail)?;
        let copy = output.try_clone().map_err(fail)?;
        let running =
            program
                .run_by(&setsid, ["--ctty"])
                .spawn_connected(slave, copy.into(), output)?;
        Ok((running, Lifeline { master }))
    }
}

impl AsFd for Lifeline {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }
}

fn terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    Ok((master, slave))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::time::Duration;

    use super::*;
    use crate::process::ProcessIdentity;

    const HANGUP: i32 = 1;

    fn output() -> File {
        tempfile::tempfile().unwrap()
    }

    fn sleep() -> Program {
        Program::find("sleep").unwrap().arg("60")
    }

    #[test]
    fn a_program_ends_with_its_lifeline() {
        let (mut running, lifeline) = Lifeline::spawn(sleep(), output()).unwrap();
        assert!(running.try_wait().unwrap().is_none());
        drop(lifeline);
        // A hangup, or setsid's complaint that there is no terminal any more.
        assert!(!running.wait().unwrap().success());
    }

    #[test]
    fn who_inherits_a_lifeline_holds_on_to_the_program() {
        let (mut running, lifeline) = Lifeline::spawn(sleep(), output()).unwrap();
        let mut user = sleep().inherit(&lifeline).unwrap().spawn().unwrap();
        drop(lifeline);
        let identity = ProcessIdentity::of(running.pid()).unwrap().unwrap();
        assert!(!identity.wait_gone(Some(Duration::from_millis(50))).unwrap());
        user.kill();
        assert_eq!(running.wait().unwrap().signal(), Some(HANGUP));
    }

    #[test]
    fn a_missing_program_is_named() {
        let program = Program::at(std::path::Path::new("/no/such-daemon"));
        let error = Lifeline::spawn(program, output()).unwrap_err();
        assert_eq!(error.to_string(), "such-daemon is not installed");
    }
}
