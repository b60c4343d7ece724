//! `sistemo machine ssh` and `sistemo machine exec`

use std::process::ExitCode;

use clap::Args;
use sistemo::model::Reference;
use sistemo_host::program::shell_status;

use crate::arguments::reference;
use crate::failure::Failure;
use crate::session::Session;

/// A machine and a command for it.
///
/// They are one list, for clap then leaves everything after its first word alone: options
/// behind the machine belong to the command.
#[derive(Debug, Args)]
pub(crate) struct Remote {
    /// The machine, then the command and its arguments
    #[arg(
        value_names = ["MACHINE", "COMMAND"],
        num_args = 1..,
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<String>,
}

impl Remote {
    /// Takes the machine and the command apart; `--` between them is no part of the command.
    ///
    /// # Errors
    /// Where the machine's name is empty.
    pub(crate) fn split(self) -> Result<(Reference, Vec<String>), Failure> {
        let mut words = self.words.into_iter();
        let machine = words.next().unwrap_or_default();
        let machine = reference(&machine).map_err(|message| usage(message, "ssh"))?;
        let mut command: Vec<String> = words.collect();
        if command.first().is_some_and(|word| word == "--") {
            command.remove(0);
        }
        Ok((machine, command))
    }

    /// Opens a shell, or runs a command as ssh does. The code is that of ssh.
    pub(super) fn open_shell(self, session: &Session) -> Result<ExitCode, Failure> {
        let (machine, command) = self.split()?;
        let status = session.engine()?.open_shell(&machine, &command)?;
        Ok(ExitCode::from(shell_status(status)))
    }

    /// Runs a command, each argument as given. The code is that of the command.
    pub(super) fn execute(self, session: &Session) -> Result<ExitCode, Failure> {
        let (machine, command) = self.split()?;
        if command.is_empty() {
            return Err(usage(
                "a command to run on the machine is needed".to_owned(),
                "exec",
            ));
        }
        let run = || {
            session
                .engine()?
                .execute(&machine, &command)
                .map_err(Failure::from)
        };
        match run() {
            Ok(status) => Ok(ExitCode::from(shell_status(status))),
            Err(Failure::Engine(error)) => Err(Failure::Execute(error)),
            Err(other) => Err(other),
        }
    }
}

fn usage(message: String, verb: &str) -> Failure {
    Failure::Usage {
        message,
        hint: format!("sistemo machine {verb} --help"),
    }
}
