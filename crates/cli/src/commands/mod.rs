//! The commands, one file a noun.

use std::process::ExitCode;

use crate::arguments::Command;
use crate::failure::Failure;
use crate::session::Session;

pub(crate) mod completion;
mod config;
mod doctor;
pub(crate) mod driver;
pub(crate) mod image;
pub(crate) mod machine;
pub(crate) mod manual;
pub(crate) mod pool;
mod ssh_key;
pub(crate) mod volume;

/// Runs a command; the code it returns is not 0 where it has said no in its result.
pub(crate) fn run(command: Command, session: &Session) -> Result<ExitCode, Failure> {
    let done = ExitCode::SUCCESS;
    match command {
        Command::Volume(command) => command.run(session),
        Command::Machine(command) => command.run(session),
        Command::Image(command) => command.run(session).map(|()| done),
        Command::Pool(command) => command.run(session).map(|()| done),
        Command::Driver(command) => command.run(session),
        Command::Config => config::run(session).map(|()| done),
        Command::Doctor => doctor::run(session),
        Command::SshKey => ssh_key::run(session).map(|()| done),
        Command::Completion(completion) => completion.run().map(|()| done),
        Command::Man(manual) => manual.run().map(|()| done),
        Command::Monitor { id } => {
            session.engine()?.monitor(id)?;
            Ok(done)
        }
    }
}
