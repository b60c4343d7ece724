//! `sistemo completion SHELL`

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::arguments::Arguments;
use crate::failure::Failure;
use crate::output::print;

/// What `completion` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sistemo completion bash > ~/.local/share/bash-completion/completions/sistemo
  sistemo completion zsh > ~/.zfunc/_sistemo
  sistemo completion fish > ~/.config/fish/completions/sistemo.fish")]
pub(crate) struct Completion {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completion {
    /// Prints the script.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let mut script = Vec::new();
        let mut command = Arguments::command();
        clap_complete::generate(self.shell, &mut command, "sistemo", &mut script);
        print(&String::from_utf8_lossy(&script))
    }
}
