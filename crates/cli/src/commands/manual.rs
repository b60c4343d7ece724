//! `sistemo man DIR`, which `make install` uses.

use std::path::PathBuf;

use clap::{Args, CommandFactory, ValueHint};

use crate::arguments::Arguments;
use crate::failure::Failure;

/// What `man` takes.
#[derive(Debug, Args)]
pub(crate) struct Manual {
    /// The directory to write them into; made where it is missing
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    directory: PathBuf,
}

impl Manual {
    /// Writes a page for every command. They can be written again, so a crash in the middle
    /// does no harm.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let fail = |source| Failure::File {
            action: "write the manual pages into",
            path: self.directory.clone(),
            source,
        };
        std::fs::create_dir_all(&self.directory).map_err(fail)?;
        clap_mangen::generate_to(Arguments::command(), &self.directory).map_err(fail)
    }
}
