//! Asking before something is lost.

use std::io::{self, BufRead, IsTerminal, Write};

use sistemo::model::Timestamp;

use crate::failure::Failure;

const FOR_GOOD: &str = " It cannot be restored.";

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
        self.confirm_with(lost, "")
    }

    /// The same for what has been deleted before, and is now destroyed.
    ///
    /// # Errors
    /// As [`Beforehand::confirm`].
    pub(crate) fn confirm_for_good(self, lost: &[String]) -> Result<(), Failure> {
        if self.yes || lost.is_empty() {
            return Ok(());
        }
        let what = lost.join(", ");
        ask(
            &format!("Destroy {what}?{FOR_GOOD}"),
            &format!("{what} would be destroyed"),
            "destroys",
        )
    }

    /// The same for what can be restored; each with the time until when, where it can.
    ///
    /// # Errors
    /// As [`Beforehand::confirm`].
    pub(crate) fn confirm_restorable(
        self,
        lost: &[String],
        until: &[Option<Timestamp>],
    ) -> Result<(), Failure> {
        self.confirm_with(lost, &afterwards("It", until))
    }

    /// The same for machines whose root volumes can be restored.
    ///
    /// # Errors
    /// As [`Beforehand::confirm`].
    pub(crate) fn confirm_roots(
        self,
        lost: &[String],
        until: &[Option<Timestamp>],
    ) -> Result<(), Failure> {
        self.confirm_with(lost, &afterwards("The root volume", until))
    }

    fn confirm_with(self, lost: &[String], afterwards: &str) -> Result<(), Failure> {
        if self.yes || lost.is_empty() {
            return Ok(());
        }
        let what = lost.join(", ");
        ask(
            &format!("Delete {what}?{afterwards}"),
            &format!("{what} would be deleted"),
            "deletes",
        )
    }
}

/// What the user said beforehand about something that is not deleted, but loses what it holds.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct BeforehandOfLoss {
    /// Revert without asking
    #[arg(short, long)]
    yes: bool,
}

impl BeforehandOfLoss {
    /// Asks a question on a terminal, unless the answer was given beforehand. `loss` says what
    /// would come of it where there is nobody to ask.
    ///
    /// # Errors
    /// As [`Beforehand::confirm`].
    pub(crate) fn confirm(self, question: &str, loss: &str) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        ask(question, loss, "reverts")
    }
}

/// What is said of whether some things can be restored, each with the time until when.
fn afterwards(what: &str, until: &[Option<Timestamp>]) -> String {
    match until.iter().flatten().min() {
        None => FOR_GOOD.to_owned(),
        Some(_) if until.contains(&None) => " Not all of it can be restored.".to_owned(),
        Some(until) => format!(" {what} can be restored until {until:.0}."),
    }
}

fn ask(question: &str, loss: &str, does: &'static str) -> Result<(), Failure> {
    let (stdin, mut stderr) = (io::stdin(), io::stderr());
    if !(stdin.is_terminal() && stderr.is_terminal()) {
        let loss = loss.to_owned();
        return Err(Failure::ConfirmationNeeded { loss, does });
    }
    let fail = |action| move |source| Failure::Terminal { action, source };
    write!(stderr, "{question} [y/N] ")
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
