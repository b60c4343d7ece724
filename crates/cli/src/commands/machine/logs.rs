//! `sistemo machine logs`

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use clap::Args;
use sistemo::Engine;
use sistemo::model::Reference;
use sistemo_host::directory::{Directory, FileError, Open};

use crate::arguments::reference;
use crate::failure::Failure;
use crate::output::print_foreign;
use crate::session::Session;

const CHUNK: usize = 64 << 10;
const PAUSE: Duration = Duration::from_millis(200);

/// What `machine logs` takes.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The machine's name, ID, or the first 8 or more characters of its ID
    #[arg(value_parser = reference)]
    machine: Reference,
    /// Go on printing what is written, also after a restart, until interrupted
    #[arg(short, long)]
    follow: bool,
}

impl Logs {
    /// Prints the log.
    pub(super) fn run(&self, engine: &Engine, session: &Session) -> Result<(), Failure> {
        let mut reader = LogReader::new(engine.console_log(&self.machine)?);
        let found = reader.print_new()?;
        if self.follow {
            loop {
                thread::sleep(PAUSE);
                reader.print_new()?;
            }
        }
        if !found {
            session
                .output
                .note(&format!("machine {} has written nothing yet", self.machine));
        }
        Ok(())
    }
}

/// Reads a file that grows, is truncated, and is replaced.
struct LogReader {
    path: PathBuf,
    open: Option<File>,
    position: u64,
}

impl LogReader {
    fn new(path: PathBuf) -> LogReader {
        LogReader {
            path,
            open: None,
            position: 0,
        }
    }

    /// Prints what was written since the last time; returns whether there was anything.
    fn print_new(&mut self) -> Result<bool, Failure> {
        let mut printed = false;
        while let Some(bytes) = self.next_chunk()? {
            print_foreign(&bytes)?;
            printed = true;
        }
        Ok(printed)
    }

    fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let fail = |path: &Path, source| Failure::File {
            action: "read",
            path: path.to_owned(),
            source,
        };
        self.look_again()
            .map_err(|error| fail(&error.path, error.source))?;
        let Some(file) = &mut self.open else {
            return Ok(None);
        };
        let mut bytes = Vec::with_capacity(CHUNK);
        file.seek(SeekFrom::Start(self.position))
            .and_then(|_| file.take(CHUNK as u64).read_to_end(&mut bytes))
            .map_err(|source| fail(&self.path, source))?;
        self.position += bytes.len() as u64;
        Ok(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }

    /// Finds the file where there is none yet, and begins again where it is another or shorter.
    fn look_again(&mut self) -> Result<(), FileError> {
        let current = match open(&self.path) {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        let meta = |file: &File| {
            file.metadata()
                .map_err(|error| FileError::new("look at", &self.path, error))
        };
        let now = meta(&current)?;
        let same = match &self.open {
            Some(file) => meta(file)?.ino() == now.ino(),
            None => false,
        };
        if !same || now.len() < self.position {
            self.open = Some(current);
            self.position = 0;
        }
        Ok(())
    }
}

fn open(path: &Path) -> Result<File, FileError> {
    let (Some(parent), Some(name)) = (
        path.parent(),
        path.file_name().and_then(|name| name.to_str()),
    ) else {
        return Err(FileError::new(
            "open",
            path,
            io::Error::from(io::ErrorKind::InvalidInput),
        ));
    };
    Directory::open(parent)?.file(name, Open::Read)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(reader: &mut LogReader) -> String {
        let bytes = reader.next_chunk().unwrap().unwrap_or_default();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_log_is_followed_from_before_its_beginning_through_a_truncation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let mut reader = LogReader::new(path.clone());
        assert_eq!(read(&mut reader), "");

        let mut log = File::create(&path).unwrap();
        log.write_all(b"first boot").unwrap();
        assert_eq!(read(&mut reader), "first boot");
        assert_eq!(read(&mut reader), "");
        log.write_all(b", more").unwrap();
        assert_eq!(read(&mut reader), ", more");

        let mut log = File::create(&path).unwrap();
        log.write_all(b"second").unwrap();
        assert_eq!(read(&mut reader), "second");
    }
}
