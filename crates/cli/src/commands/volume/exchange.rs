//! `sistemo volume export` and `sistemo volume import`

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum, ValueHint};
use serde::Serialize;
use sistemo::Engine;
use sistemo::exchange::{Export as Exporting, NewImported};
use sistemo::model::{Filesystem, PoolName, Reference, SnapshotName, VolumeName};

use super::filesystems;
use crate::arguments::{reference, value};
use crate::failure::Failure;
use crate::session::Session;

/// Standard input or output in a file's place.
const STREAM: &str = "-";

/// How a volume is written into a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// As its bytes are
    Raw,
}

/// What `volume export` takes.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The volume's name, ID, or the first 8 or more characters of its ID
    #[arg(value_name = "VOLUME", value_parser = reference)]
    volume: Reference,
    /// The file to write, which is not there yet; - is standard output
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Export this snapshot of the volume instead of the volume as it is now
    #[arg(long, value_parser = value::<SnapshotName>, allow_hyphen_values = true)]
    snapshot: Option<SnapshotName>,
    /// How it is written
    #[arg(long, value_enum, default_value = "raw")]
    format: Format,
}

/// What `volume import` takes.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The file to read; - is standard input
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// The volume's name
    #[arg(long, value_parser = value::<VolumeName>, allow_hyphen_values = true)]
    name: VolumeName,
    /// The pool to make it in
    #[arg(short = 'P', long, value_parser = value::<PoolName>, allow_hyphen_values = true)]
    pool: Option<PoolName>,
    /// The filesystem that it holds, which is not looked at
    #[arg(long, value_name = "FS", value_parser = filesystems(), default_value = "none")]
    fs: Filesystem,
    /// How the file is stored
    #[arg(long, value_enum, default_value = "raw")]
    format: Format,
}

/// What programs are told of an export.
#[derive(Debug, Serialize)]
struct Written {
    path: PathBuf,
    size_bytes: u64,
}

impl Export {
    pub(super) fn run(self, engine: &Engine, session: &Session) -> Result<(), Failure> {
        let Format::Raw = self.format;
        let export = Exporting {
            source: self.volume,
            snapshot: self.snapshot,
        };
        if self.file == Path::new(STREAM) {
            let stdout = io::stdout();
            refuse_terminal(&stdout, "written to a terminal", "> FILE")?;
            // Not through the standard library's buffer, which looks for ends of lines.
            let mut stream = whole(&stdout, "write to")?;
            let exported = engine.export_volume_to(&export, &mut stream)?;
            let (name, size) = (&exported.volume.name, exported.size);
            session.output.note(&format!("exported {name}: {size}"));
            return Ok(());
        }
        let exported = engine.export_volume(&export, &self.file)?;
        let (name, size) = (&exported.volume.name, exported.size);
        let told = format!("exported {name} to {}: {size}", self.file.display());
        session.output.note(&told);
        session.output.made(&Written {
            path: std::path::absolute(&self.file).unwrap_or(self.file),
            size_bytes: exported.size.get(),
        })
    }
}

impl Import {
    pub(super) fn run(self, engine: &Engine, session: &Session) -> Result<(), Failure> {
        let Format::Raw = self.format;
        let new = NewImported {
            name: self.name,
            pool: self.pool,
            filesystem: self.fs,
        };
        let volume = if self.file == Path::new(STREAM) {
            let stdin = io::stdin();
            refuse_terminal(&stdin, "read from a terminal", "< FILE")?;
            engine.import_volume_from(&new, &mut whole(&stdin, "read from")?)?
        } else {
            engine.import_volume(&new, &self.file)?
        };
        session.output.one(&volume)
    }
}

fn refuse_terminal(stream: &impl IsTerminal, what: &str, instead: &str) -> Result<(), Failure> {
    if !stream.is_terminal() {
        return Ok(());
    }
    Err(Failure::Usage {
        message: format!("a volume is not {what}"),
        hint: format!("name a file, or redirect: `{instead}`"),
    })
}

/// A standard stream as the file that it is.
fn whole(stream: &impl AsFd, action: &'static str) -> Result<File, Failure> {
    let duplicate = stream.as_fd().try_clone_to_owned();
    duplicate.map(File::from).map_err(|source| Failure::File {
        action,
        path: STREAM.into(),
        source,
    })
}
