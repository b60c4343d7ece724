//! Asking before something is lost.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::failure::Failure;

/// What the user said beforehand.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Beforehand {
    /// Delete without asking
    #[arg(short, long)]
    pub(crate) yes: bool,
}

impl Beforehand {
    /// Asks on a terminal whether to delete what would be lost; where it is nothing, or the
    /// answer was given beforehand, nobody is asked.
    ///
    /// # Errors
    /// Where there is no terminal to ask on, or the answer is no.
    pub(crate) fn confirm(self, lost: &[String]) -> Result<(), Failure> {
        if self.yes || lost.is_empty() {
            return Ok(());
        }
        let what = lost.join(", ");
        let (stdin, mut stderr) = (io::stdin(), io::stderr());
        if !(stdin.is_terminal() && stderr.is_terminal()) {
            return Err(Failure::ConfirmationNeeded { what });
        }
        let fail = |action| move |source| Failure::Terminal { action, source };
        write!(stderr, "Delete {what}? [y/N] ")
            .and_then(|()| stderr.flush())
            .map_err(fail("write to"))?;
        let mut answer = String::new();
        stdin
            .lock()
            .read_line(&mut answer)
            .map_err(fail("read from"))?;
        match answer.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(Failure::Declined),
        }
    }
}
