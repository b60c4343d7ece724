//! `sistemo volume export` and `sistemo volume import`

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use serde::Serialize;
use sistemo::exchange::{Checksum, Export as Exporting, Exported, Imported, NewImported};
use sistemo::model::{Digest, Filesystem, PoolName, Reference, SnapshotName, VolumeName};
use sistemo::volumes::VolumeView;
use sistemo::{Engine, ImageFormat};

use super::filesystems;
use crate::arguments::{disk_formats, reference, value};
use crate::failure::Failure;
use crate::output::Shown;
use crate::output::table::Table;
use crate::session::Session;

/// Standard input or output in a file's place.
const STREAM: &str = "-";

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
    /// How it is written; without it, as the file's name says, and else raw
    #[arg(long, value_parser = disk_formats())]
    format: Option<ImageFormat>,
    /// Tell the SHA-256 of the volume's bytes, which takes as long as reading all of it
    #[arg(long)]
    checksum: bool,
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
    /// How the file is stored; without it, as its name says, and else raw
    #[arg(long, value_parser = disk_formats())]
    format: Option<ImageFormat>,
    /// Tell the SHA-256 of the volume's bytes, which takes as long as reading all of it
    #[arg(long)]
    checksum: bool,
    /// Make the volume only if its bytes have this SHA-256
    #[arg(long, value_name = "DIGEST", value_parser = value::<Digest>)]
    sha256: Option<Digest>,
}

/// What programs are told of an export.
#[derive(Debug, Serialize)]
struct Written {
    path: PathBuf,
    size_bytes: u64,
    format: ImageFormat,
    sha256: Option<Digest>,
}

/// What is told of an import: the volume, and what is known of the file.
#[derive(Debug, Serialize)]
struct Read {
    #[serde(flatten)]
    volume: VolumeView,
    sha256: Option<Digest>,
}

impl Shown for Read {
    fn table(objects: &[Read]) -> Table {
        let volumes: Vec<_> = objects.iter().map(|read| read.volume.clone()).collect();
        VolumeView::table(&volumes)
    }
}

impl Export {
    pub(super) fn run(self, engine: &Engine, session: &Session) -> Result<(), Failure> {
        let checksum = if self.checksum {
            Checksum::Tell
        } else {
            Checksum::Skip
        };
        let export = Exporting {
            source: self.volume,
            snapshot: self.snapshot,
            format: self.format,
            checksum,
        };
        if self.file == Path::new(STREAM) {
            let stdout = io::stdout();
            refuse_terminal(&stdout, "written to a terminal", "> FILE")?;
            // Not through the standard library's buffer, which looks for ends of lines.
            let mut stream = whole(&stdout, "write to")?;
            let exported = engine.export_volume_to(&export, &mut stream)?;
            let name = &exported.volume.name;
            let told = format!(
                "exported {name}: {}",
                summary(&exported, Some(ImageFormat::Raw))
            );
            session.output.note(&told);
            return Ok(());
        }
        let exported = engine.export_volume(&export, &self.file)?;
        let (name, file) = (&exported.volume.name, self.file.display());
        let told = format!(
            "exported {name} to {file}: {}",
            summary(&exported, ImageFormat::of_name(&self.file))
        );
        session.output.note(&told);
        session.output.made(&Written {
            path: std::path::absolute(&self.file).unwrap_or(self.file),
            size_bytes: exported.size.get(),
            format: exported.format,
            sha256: exported.sha256,
        })
    }
}

/// What was exported. That it is raw is said where nothing else, such as the file's name, tells.
fn summary(exported: &Exported, told: Option<ImageFormat>) -> String {
    let mut text = exported.size.to_string();
    if exported.format != ImageFormat::Raw || told != Some(ImageFormat::Raw) {
        text = format!("{text} as {}", exported.format);
    }
    match &exported.sha256 {
        Some(digest) => format!("{text}, SHA-256 {digest}"),
        None => text,
    }
}

impl Import {
    pub(super) fn run(self, engine: &Engine, session: &Session) -> Result<(), Failure> {
        let checksum = match self.sha256 {
            Some(digest) => Checksum::Expect(digest),
            None if self.checksum => Checksum::Tell,
            None => Checksum::Skip,
        };
        let new = NewImported {
            name: self.name,
            pool: self.pool,
            filesystem: self.fs,
            format: self.format,
            checksum,
        };
        let is_stream = self.file == Path::new(STREAM);
        let guessed =
            !is_stream && self.format.is_none() && ImageFormat::of_name(&self.file).is_none();
        let Imported {
            volume,
            format,
            sha256,
        } = if is_stream {
            let stdin = io::stdin();
            refuse_terminal(&stdin, "read from a terminal", "< FILE")?;
            engine.import_volume_from(&new, &mut whole(&stdin, "read from")?)?
        } else {
            engine.import_volume(&new, &self.file)?
        };
        let mut told = format!("imported {}", volume.name);
        if guessed {
            told = format!("{told} as {format}");
        }
        if let Some(digest) = &sha256 {
            told = format!("{told}, SHA-256 {digest}");
        }
        if guessed || sha256.is_some() {
            session.output.note(&told);
        }
        session.output.one(&Read { volume, sha256 })
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
