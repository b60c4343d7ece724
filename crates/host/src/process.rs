//! Processes known by more than a number.
//!
//! A process ID is used again after its process is gone. Its start time (field 22 of
//! /proc/PID/stat, proc(5)) and the boot ID tell whether it is still the same one, and a pidfd
//! (`pidfd_open(2)`) keeps it so while we look at it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::system;

/// A process of this boot or an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
    /// The boot it belongs to, from /`proc/sys/kernel/random/boot_id`.
    pub boot: String,
}

/// How to end a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// SIGTERM: it may tidy up.
    Terminate,
    /// SIGKILL: at once.
    Kill,
}

impl ProcessIdentity {
    /// Identifies a running process; `None` where there is none of that number.
    ///
    /// # Errors
    /// Where /proc cannot be read.
    pub fn of(pid: u32) -> io::Result<Option<ProcessIdentity>> {
        let Some(started) = start_time(pid)? else {
            return Ok(None);
        };
        Ok(Some(ProcessIdentity {
            pid,
            started,
            boot: system::boot_id()?,
        }))
    }

    /// Identifies this process.
    ///
    /// # Errors
    /// Where /proc cannot be read.
    pub fn own() -> io::Result<ProcessIdentity> {
        ProcessIdentity::of(std::process::id())?
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "/proc/self/stat is missing"))
    }

    /// Whether it still runs, in any of its threads. A zombie does not.
    ///
    /// # Errors
    /// Where /proc cannot be read.
    pub fn is_alive(&self) -> io::Result<bool> {
        Ok(ProcessIdentity::of(self.pid)?.as_ref() == Some(self))
    }

    /// Sends it a signal; one that is gone already is no error.
    ///
    /// # Errors
    /// Where the process belongs to somebody else.
    pub fn end(&self, ending: Ending) -> io::Result<()> {
        let Some(handle) = self.handle()? else {
            return Ok(());
        };
        let signal = match ending {
            Ending::Terminate => Signal::TERM,
            Ending::Kill => Signal::KILL,
        };
        match pidfd_send_signal(&handle, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it is gone, up to `limit` (`None`: for ever); returns whether it is gone.
    ///
    /// # Errors
    /// Where the system has no descriptor left.
    pub fn wait_gone(&self, limit: Option<Duration>) -> io::Result<bool> {
        let Some(handle) = self.handle()? else {
            return Ok(true);
        };
        let limit = limit.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        });
        let mut polled = [PollFd::new(&handle, PollFlags::IN)];
        loop {
            match poll(&mut polled, limit.as_ref()) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A descriptor that means this very process; `None` where it is gone.
    ///
    /// # Errors
    /// Where the system has no descriptor left.
    pub fn handle(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // Checked after the descriptor is open: from here on the number cannot be reused.
            Ok(handle) => Ok(self.is_alive()?.then_some(handle)),
            Err(Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Field 22 of /proc/PID/stat; `None` where the process is gone or a zombie.
fn start_time(pid: u32) -> io::Result<Option<u64>> {
    let stat = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(start_time_in(&stat))
}

fn start_time_in(stat: &str) -> Option<u64> {
    // The second field is the command in parentheses and may hold anything, parentheses too.
    let (_, after_command) = stat.rsplit_once(')')?;
    let mut fields = after_command.split_whitespace();
    let state = fields.next()?;
    let threads: u32 = fields.nth(16)?.parse().ok()?;
    // Field 20: a first thread that ended before the others is a zombie too, but the process
    // lives on in them, and what it has open stays open.
    if matches!(state, "Z" | "X") && threads <= 1 {
        return None;
    }
    fields.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Program;

    #[test]
    fn a_process_is_itself_and_no_other() {
        let own = ProcessIdentity::own().unwrap();
        assert!(own.is_alive().unwrap());
        let earlier = ProcessIdentity {
            started: own.started - 1,
            ..own.clone()
        };
        assert!(!earlier.is_alive().unwrap());
        let last_boot = ProcessIdentity {
            boot: "another".into(),
            ..own
        };
        assert!(!last_boot.is_alive().unwrap());
        assert!(last_boot.wait_gone(None).unwrap());
    }

    #[test]
    fn a_process_is_gone_with_its_last_thread() {
        let stat = |state: &str, threads: u32| {
            format!("7 (a) b) {state} 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 {threads} 0 4711 0 0")
        };
        assert_eq!(start_time_in(&stat("S", 1)), Some(4711));
        assert_eq!(start_time_in(&stat("Z", 3)), Some(4711));
        assert_eq!(start_time_in(&stat("Z", 1)), None);
        assert_eq!(start_time_in(&stat("X", 0)), None);
        assert_eq!(start_time_in(""), None);
    }

    #[test]
    fn a_killed_process_is_gone() {
        let mut child = Program::find("sleep").unwrap().arg("60").spawn().unwrap();
        let identity = ProcessIdentity::of(child.pid()).unwrap().unwrap();
        assert!(!identity.wait_gone(Some(Duration::from_millis(1))).unwrap());
        identity.end(Ending::Kill).unwrap();
        assert!(identity.wait_gone(Some(Duration::from_secs(10))).unwrap());
        child.kill();
        assert!(!identity.is_alive().unwrap());
        identity.end(Ending::Kill).unwrap();
    }
}
