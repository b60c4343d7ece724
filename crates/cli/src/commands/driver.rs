//! `sistemo driver …`

use std::env;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, Subcommand};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use sistemo::drivers::{
    CheckedDriver, DriverCheck, LawOutcome, Progress, Report, WorkerCommand, check, work,
};

use crate::arguments::Format;
use crate::commands::pool::{pair, refuse_repeated};
use crate::failure::{FAILED, Failure};
use crate::output::{BAD, GOOD, NOTABLE, PLAIN, print};
use crate::session::Session;

/// A verb for drivers.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check that a driver does what every driver must
    ///
    /// Tries each law of the driver contract on pools that are made for it and removed afterwards,
    /// in a new directory within `dir_path`, or within the data directory. No other pool and no
    /// volume is touched. As root, full pools are tried too, on small filesystems that are mounted
    /// meanwhile.
    #[command(after_help = "\
Exit status: 0 when no law is broken, else 1.

Examples:
  sistemo driver check file -O dir_path=/mnt/nvme
  sistemo driver check ./my-driver -O dir_path=/srv/scratch")]
    Check(Check),
    /// Work in a pool that is checked; started by Sistemo itself
    #[command(hide = true)]
    Work {
        /// What is to be done
        task: String,
    },
}

/// What `driver check` takes.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// A driver's name, or the path of an executable
    #[arg(value_name = "DRIVER")]
    driver: String,
    /// An option of the driver; may be given again
    #[arg(short = 'O', long = "option", value_name = "KEY=VALUE", value_parser = pair)]
    options: Vec<(String, String)>,
    /// What random work begins with, to repeat a check that failed
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

impl Command {
    /// Runs the command. The status is 0 where no law is broken, else 1.
    pub(crate) fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        match self {
            Command::Check(check) => check.run(session),
            Command::Work { task } => {
                work(&session.settings()?, &task)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl Check {
    fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let Check {
            driver,
            options,
            seed,
        } = self;
        refuse_repeated(&options, "driver check")?;
        let settings = session.settings()?;
        let asked = DriverCheck {
            driver,
            options,
            seed,
            worker: worker(session)?,
        };
        let output = session.output;
        let interruption = interruption()?;
        let mut unwritable = None;
        let checked = check(&settings, &asked, &mut |progress| {
            let told = match progress {
                Progress::Begins { directory, laws } => {
                    output.note(&format!(
                        "checking driver {} with {laws} laws in {}; an interruption ends the check \
                         with the law at hand, a second one at once, which leaves that directory",
                        asked.driver,
                        directory.display()
                    ));
                    Ok(())
                }
                Progress::Tried(report) if output.format() == Format::Table => {
                    print(&line_of(report))
                }
                Progress::Tried(_) => Ok(()),
            };
            if let Err(failure) = told {
                unwritable = Some(failure);
                return ControlFlow::Break(());
            }
            if interruption.load(Ordering::Relaxed) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        for remains in &checked.remains {
            output.note(&format!(
                "{} stays: {}",
                remains.path.display(),
                remains.why
            ));
        }
        // Nobody reads the rest.
        if let Some(failure) = unwritable {
            return Err(failure);
        }
        output.text(&summary_of(&checked), &checked)?;
        Ok(if checked.is_sound() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(FAILED)
        })
    }
}

fn worker(session: &Session) -> Result<WorkerCommand, Failure> {
    let program = env::current_exe().map_err(|source| Failure::File {
        action: "find the executable of",
        path: "sistemo".into(),
        source,
    })?;
    let data_dir = session.settings()?.data_dir.value;
    let words = ["driver", "work", "--"].map(Into::into);
    let arguments = [vec!["--data-dir".into(), data_dir.into()], words.into()].concat();
    Ok(WorkerCommand { program, arguments })
}

/// Becomes true when the user interrupts us; the second time we end at once.
fn interruption() -> Result<Arc<AtomicBool>, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: the first looks at what the second has set the last time.
        flag::register_conditional_default(signal, Arc::clone(&interrupted))
            .and_then(|_| flag::register(signal, Arc::clone(&interrupted)))
            .map_err(|source| Failure::Terminal {
                action: "watch for signals of",
                source,
            })?;
    }
    Ok(interrupted)
}

fn line_of(report: &Report) -> String {
    let law = report.law;
    let (style, word, told) = match &report.outcome {
        LawOutcome::Passed => (GOOD, "passed", String::new()),
        LawOutcome::NotClaimed { power } => (PLAIN, "not claimed", format!(": {power}")),
        LawOutcome::Skipped { why } => (NOTABLE, "skipped", format!(": {}", harmless(why))),
        LawOutcome::Failed(failure) => (
            BAD,
            "FAILED",
            format!(": {}", harmless(&failure.to_string())),
        ),
    };
    format!("{style}{word:<11}{style:#}  {law}{told}\n")
}

/// What a driver says may hold anything, and is one line here.
fn harmless(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' => ' '.to_string(),
        c if c.is_control() => c.escape_debug().to_string(),
        c => c.to_string(),
    };
    text.chars().map(shown).collect()
}

fn summary_of(checked: &CheckedDriver) -> String {
    let counts = checked.counts;
    let mut text = format!(
        "{}: {} passed, {} failed, {} not claimed, {} skipped",
        checked.driver, counts.passed, counts.failed, counts.not_claimed, counts.skipped
    );
    if checked.interrupted {
        text.push_str("; interrupted");
    }
    if counts.failed > 0 {
        let seed = checked.seed.to_string();
        text.extend(["; --seed ", &seed, " repeats it"]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_driver_says_is_one_line_that_steers_no_terminal() {
        assert_eq!(harmless("a\nb \u{1b}[2J"), "a b \\u{1b}[2J");
        let report = Report {
            law: "a_law",
            promise: "It holds.",
            outcome: LawOutcome::Skipped {
                why: "not root".to_owned(),
            },
        };
        let line = anstream::adapter::strip_str(&line_of(&report)).to_string();
        assert_eq!(line, "skipped      a_law: not root\n");
    }
}
