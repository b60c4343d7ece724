//! The binary `sistemo`: arguments in; tables, JSON and errors out.
//!
//! No rule lives here. A command parses its words into the engine's types, calls one engine
//! operation, and shows what it returned.

use std::process::ExitCode;

mod arguments;
mod commands;
mod confirmation;
mod failure;
mod hint;
mod output;
mod session;
mod terminal;
mod usage;

fn main() -> ExitCode {
    session::run(&std::env::args_os().collect::<Vec<_>>())
}
