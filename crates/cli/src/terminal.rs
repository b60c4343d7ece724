//! The terminal in raw mode, and giving it back however we end.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use crate::failure::Failure;

/// A terminal that passes every key on. Dropping it gives the terminal back as it was.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Puts the terminal on standard input into raw mode.
    ///
    /// # Errors
    /// Where standard input is no terminal.
    pub(crate) fn enter() -> Result<RawTerminal, Failure> {
        let fail = |error: rustix::io::Errno| Failure::Terminal {
            action: "set up",
            source: error.into(),
        };
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).map_err(fail)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).map_err(fail)?;
        Ok(RawTerminal { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.before);
    }
}

/// Signals that would end us, turned into something to wait for, so that the terminal is given
/// back first.
#[derive(Debug)]
pub(crate) struct Termination {
    arrived: UnixStream,
}

impl Termination {
    /// Catches SIGHUP, SIGINT and SIGTERM from now on.
    ///
    /// # Errors
    /// Where the system refuses.
    pub(crate) fn watch() -> Result<Termination, Failure> {
        let fail = |source| Failure::Terminal {
            action: "watch for signals to",
            source,
        };
        let (arrived, sender) = UnixStream::pair().map_err(fail)?;
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            let sender = sender.try_clone().map_err(fail)?;
            pipe::register(signal, sender).map_err(fail)?;
        }
        Ok(Termination { arrived })
    }
}

impl AsFd for Termination {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.arrived.as_fd()
    }
}
