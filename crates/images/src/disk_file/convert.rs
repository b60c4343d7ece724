//! Running qemu-img(1).

use std::fmt::Display;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use sistemo_host::directory::FileError;
use sistemo_host::lifeline::Lifeline;
use sistemo_host::program::{Program, ProgramError, Running};

use super::ImageFormat;
use crate::error::{Error, Result};

const QEMU_IMG: &str = "qemu-img";
/// How often the progress of a conversion is read.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// What the first file that a program inherits is to it, and the second: the files that we
/// opened and examined, whatever their paths have become since.
const FIRST: &str = "/dev/fd/3";
const SECOND: &str = "/dev/fd/4";

/// A disk to be written in another format.
pub(super) struct Conversion<'a> {
    /// What errors call it.
    pub(super) object: &'a dyn Display,
    pub(super) from: From<'a>,
    pub(super) from_format: ImageFormat,
    pub(super) into: &'a File,
    pub(super) into_format: ImageFormat,
    /// Whether the target is there, large enough, and reads as zeros.
    pub(super) in_place: bool,
    /// What the program inherits besides.
    pub(super) held: &'a [BorrowedFd<'a>],
}

/// Where a disk is read.
#[derive(Clone, Copy)]
pub(super) enum From<'a> {
    File(&'a File),
    Path(&'a Path),
}

impl Conversion<'_> {
    pub(super) fn run(&self, size: u64, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let failed = |source| Error::program("convert", self.object)(source);
        let open = |error| FileError::new("create a file in", std::env::temp_dir(), error);
        let log = tempfile::tempfile().map_err(open)?;
        let output = log.try_clone().map_err(open)?;
        let start = || Lifeline::spawn(self.program()?, output);
        // It ends with us: nobody would wait for what it makes.
        let (running, _lifeline) = start().map_err(failed)?;
        wait(running, &log, size, progress).map_err(failed)
    }

    fn program(&self) -> Result<Program, ProgramError> {
        let mut program = Program::find(QEMU_IMG)?.inherit(self.into)?;
        // No conversion guesses a format: each is told.
        let formats = [
            "-f",
            self.from_format.as_str(),
            "-O",
            self.into_format.as_str(),
        ];
        program = program.args(["convert", "-p"]).args(formats);
        if self.in_place {
            program = program.args(["-n", "--target-is-zero"]);
        }
        program = match self.from {
            From::File(file) => program.inherit(file)?.args(["--", SECOND]),
            // What a machine reads too is locked by its VMM, though it never changes.
            From::Path(path) => program
                .args(["-U", "--"])
                .arg(
                    std::path::absolute(path).map_err(|source| ProgramError::Start {
                        path: QEMU_IMG.into(),
                        source,
                    })?,
                ),
        };
        program = program.arg(FIRST);
        for file in self.held {
            program = program.inherit(file)?;
        }
        Ok(program)
    }
}

fn wait(
    mut running: Running,
    log: &File,
    size: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), ProgramError> {
    let status = loop {
        let ended = running.try_wait().map_err(|source| ProgramError::Start {
            path: QEMU_IMG.into(),
            source,
        })?;
        let text = read_log(log);
        if let Some(hundredths) = percent_done(&text) {
            let done = u128::from(size) * u128::from(hundredths) / 10_000;
            progress(u64::try_from(done).unwrap_or(size), size);
        }
        match ended {
            Some(status) if status.success() => return Ok(()),
            Some(status) => break status,
            None => thread::sleep(PROGRESS_INTERVAL),
        }
    };
    let text = read_log(log);
    let words: Vec<&str> = text
        .split(['\r', '\n'])
        .filter(|line| !line.contains("/100%)") && !line.trim().is_empty())
        .collect();
    Err(ProgramError::Failed {
        name: QEMU_IMG.to_owned(),
        status,
        message: words.join("\n"),
    })
}

/// What qemu-img has written so far. It shares the offset of our descriptor, so it is read at
/// positions.
fn read_log(log: &File) -> String {
    let mut content = vec![0; 64 << 10];
    let length = log.metadata().map_or(0, |facts| facts.len());
    let from = length.saturating_sub(content.len() as u64);
    let read = log.read_at(&mut content, from).unwrap_or(0);
    String::from_utf8_lossy(&content[..read]).into_owned()
}

/// The last `(12.34/100%)` of qemu-img's progress, in hundredths of a percent.
fn percent_done(text: &str) -> Option<u64> {
    let (before, _) = text.rsplit_once("/100%)")?;
    let (_, number) = before.rsplit_once('(')?;
    let (whole, hundredths) = number.trim().split_once('.')?;
    let whole: u64 = whole.parse().ok()?;
    let hundredths: u64 = hundredths.parse().ok().filter(|part| *part < 100)?;
    Some((whole * 100 + hundredths).min(10_000))
}

/// Looks whether the tables of a file are whole and all that they name is in it.
pub(super) fn check(path: &Path, source: &File, format: ImageFormat) -> Result<()> {
    /// Exit statuses of qemu-img check, from qemu-img(1).
    const UNREADABLE: i32 = 1;
    const CORRUPTED: i32 = 2;
    const LEAKED: i32 = 3;
    const NOT_SUPPORTED: i32 = 63;
    let run = || {
        Program::find(QEMU_IMG)?
            .inherit(source)?
            .args(["check", "-q", "-f", format.as_str(), "--", FIRST])
            .run()
    };
    let corrupt = |source| Error::Corrupt {
        path: path.to_owned(),
        source: Some(source),
    };
    match run() {
        Ok(_) => Ok(()),
        Err(error @ ProgramError::Failed { status, .. }) => match status.code() {
            // Clusters that nothing uses harm nobody who only reads.
            Some(LEAKED | NOT_SUPPORTED) => Ok(()),
            Some(CORRUPTED | UNREADABLE) => Err(corrupt(error)),
            _ => Err(Error::program("examine", path.display())(error)),
        },
        Err(error) => Err(Error::program("examine", path.display())(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_of_qemu_img_is_read() {
        assert_eq!(
            percent_done("    (0.00/100%)\r    (12.34/100%)\r"),
            Some(1234)
        );
        assert_eq!(percent_done("    (100.00/100%)\r\n"), Some(10_000));
        assert_eq!(percent_done("qemu-img: error"), None);
    }
}
