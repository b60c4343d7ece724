//! One run of the program: parse, do, show, end.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use sistemo::settings::{Origin, Setting, SettingsError};
use sistemo::{Caller, Engine, Error, MonitorCommand, Reporter, Settings, Silent};
use tracing_subscriber::EnvFilter;

use crate::arguments::{Arguments, Global};
use crate::commands;
use crate::failure::Failure;
use crate::output::progress::Progress;
use crate::output::{Output, error};
use crate::usage;

/// What every command is given.
#[derive(Debug)]
pub(crate) struct Session {
    global: Global,
    purpose: String,
    /// Where results and notes go.
    pub(crate) output: Output,
}

/// Runs the program on its arguments, the program's own name included.
pub(crate) fn run(words: &[OsString]) -> ExitCode {
    let arguments = match Arguments::try_parse_from(words) {
        Ok(arguments) => arguments,
        Err(refusal) => return usage::answer(&refusal, words),
    };
    trace(arguments.global.verbose);
    let output = Output::new(arguments.global.output, arguments.global.quiet);
    let session = Session {
        purpose: usage::purpose(words),
        global: arguments.global,
        output,
    };
    tracing::info!(command = session.purpose, "begins");
    match commands::run(arguments.command, &session) {
        Ok(code) => code,
        // The reader went away, as `head` does; it has all it wanted.
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            error::show(&failure, session.output.format());
            ExitCode::from(failure.status())
        }
    }
}

fn trace(verbosity: u8) {
    let level = match verbosity {
        0 => return,
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(format!("sistemo={level}")))
        .with_writer(anstream::stderr)
        .init();
}

impl Session {
    /// The settings in effect.
    pub(crate) fn settings(&self) -> Result<Settings, Failure> {
        let variables = |name: &str| env::var(name).ok();
        let data_dir = self.data_dir()?;
        let path = data_dir.value.clone();
        Settings::load(data_dir, &variables).map_err(|error| match error {
            // The settings are the first thing that is looked for in the directory.
            SettingsError::File(source) => Error::DataDirectory {
                path,
                source: Box::new(source),
            }
            .into(),
            other => Error::from(other).into(),
        })
    }

    /// Opens the data directory.
    pub(crate) fn engine(&self) -> Result<Engine, Failure> {
        let settings = self.settings()?;
        let program = env::current_exe().map_err(|source| Failure::File {
            action: "find the executable of",
            path: "sistemo".into(),
            source,
        })?;
        let data_dir = settings.data_dir.value.clone();
        let arguments = vec![
            "-v".into(),
            "--data-dir".into(),
            data_dir.into(),
            "monitor".into(),
        ];
        let caller = Caller {
            purpose: self.purpose.clone(),
            monitor: MonitorCommand { program, arguments },
        };
        Ok(Engine::open(settings, self.reporter(), caller)?)
    }

    fn reporter(&self) -> Arc<dyn Reporter> {
        if self.output.is_quiet() {
            Arc::new(Silent)
        } else {
            Arc::new(Progress::new())
        }
    }

    /// The directory that holds everything, as an absolute path: a machine's monitor lives on
    /// in another working directory.
    fn data_dir(&self) -> Result<Setting<PathBuf>, Failure> {
        const VARIABLE: &str = "SISTEMO_DATA_DIR";
        let named = |name| env::var_os(name).filter(|value| !value.is_empty());
        let (path, origin) = if let Some(path) = &self.global.data_dir {
            (path.clone(), Origin::Option("--data-dir"))
        } else if let Some(path) = named(VARIABLE) {
            (path.into(), Origin::Environment(VARIABLE.to_owned()))
        } else {
            let home = named("HOME").ok_or(Failure::NoHome)?;
            (PathBuf::from(home).join(".sistemo"), Origin::Default)
        };
        let value = std::path::absolute(&path).map_err(|source| Failure::File {
            action: "find the data directory",
            path,
            source,
        })?;
        Ok(Setting { value, origin })
    }
}
