//! Everything that is written: results to standard output, the rest to standard error.
//!
//! | module | what it writes |
//! |---|---|
//! | [`table`] | lists, one line an object |
//! | [`details`] | one object, one line a property |
//! | [`error`] | failures |
//! | [`progress`] | what is being done, and what is worth knowing |

use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::arguments::Format;
use crate::failure::Failure;
use details::Details;
use table::Table;

pub(crate) mod details;
pub(crate) mod error;
pub(crate) mod progress;
pub(crate) mod table;

/// What is well.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// What deserves a look.
pub(crate) const NOTABLE: Style = AnsiColor::Yellow.on_default();
/// What is wrong.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// What is of no weight.
pub(crate) const PLAIN: Style = Style::new();

/// An object that can be shown. Its JSON is its serialization.
pub(crate) trait Shown: Serialize + Sized {
    /// Several of them, one line each.
    fn table(objects: &[Self]) -> Table;
}

/// An object with more to tell than fits on a line.
pub(crate) trait Described: Serialize {
    /// All there is to tell.
    fn details(&self) -> Details;
}

/// Where results and notes go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    format: Format,
    quiet: bool,
}

impl Output {
    /// Writes results in `format`, and notes unless `quiet`.
    pub(crate) fn new(format: Format, quiet: bool) -> Output {
        Output { format, quiet }
    }

    /// How results and errors are written.
    pub(crate) fn format(self) -> Format {
        self.format
    }

    /// Whether nothing but results and errors is to be said.
    pub(crate) fn is_quiet(self) -> bool {
        self.quiet
    }

    /// Writes a list: an array, or a table whose header stands there for an empty list too.
    /// `empty` says what to do about an empty one.
    pub(crate) fn list<T: Shown>(self, objects: &[T], empty: &str) -> Result<(), Failure> {
        if objects.is_empty() && self.format == Format::Table {
            self.note(empty);
        }
        match self.format {
            Format::Table => print(&T::table(objects).to_string()),
            Format::Json => print_json(&objects),
        }
    }

    /// Writes one object as a list would: an object, or a table of one row.
    pub(crate) fn one<T: Shown>(self, object: &T) -> Result<(), Failure> {
        match self.format {
            Format::Table => print(&T::table(std::slice::from_ref(object)).to_string()),
            Format::Json => print_json(object),
        }
    }

    /// Writes all there is to tell about one object.
    pub(crate) fn details<T: Described>(self, object: &T) -> Result<(), Failure> {
        match self.format {
            Format::Table => print(&object.details().to_string()),
            Format::Json => print_json(object),
        }
    }

    /// Writes what was deleted: an array for programs; people are told on standard error.
    pub(crate) fn deleted<T: Serialize>(self, objects: &[T]) -> Result<(), Failure> {
        match self.format {
            Format::Table => Ok(()),
            Format::Json => print_json(&objects),
        }
    }

    /// Writes what was made outside of us: an object for programs; people are told on standard
    /// error.
    pub(crate) fn made<T: Serialize>(self, object: &T) -> Result<(), Failure> {
        match self.format {
            Format::Table => Ok(()),
            Format::Json => print_json(object),
        }
    }

    /// Writes a line of text, or in JSON the object it is from.
    pub(crate) fn text<T: Serialize>(self, text: &str, object: &T) -> Result<(), Failure> {
        match self.format {
            Format::Table => print(&format!("{text}\n")),
            Format::Json => print_json(object),
        }
    }

    /// Tells people something on standard error.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet {
            tell(text);
        }
    }
}

/// Writes to standard output as it is, styles aside.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = anstream::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(Failure::Output)
}

/// Writes bytes to standard output; a terminal gets them without what it would obey.
pub(crate) fn print_foreign(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = if stdout.is_terminal() {
        stdout.write_all(&without_control_sequences(bytes))
    } else {
        stdout.write_all(bytes)
    };
    written
        .and_then(|()| stdout.flush())
        .map_err(Failure::Output)
}

/// A console log is written by the guest, who may try to steer the reader's terminal.
fn without_control_sequences(bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    let stripped = anstream::adapter::strip_str(&text).to_string();
    let harmless = |c: &char| matches!(c, '\n' | '\t') || !c.is_control();
    stripped
        .chars()
        .filter(harmless)
        .collect::<String>()
        .into_bytes()
}

fn print_json<T: Serialize>(object: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(object)
        .map_err(|error| Failure::Output(io::Error::other(error)))?;
    print(&format!("{text}\n"))
}

/// Writes a line to standard error.
pub(crate) fn tell(text: &str) {
    // Where standard error is gone, there is nobody left to tell.
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_steer_the_terminal_of_who_reads_its_log() {
        let log = b"\x1b]0;title\x07\x1b[2J\x1b[31mred\x1b[0m\r\n\tok \xff\x9b31m\x08";
        let shown = String::from_utf8(without_control_sequences(log)).unwrap();
        assert!(shown.starts_with("red\n\tok "), "{shown:?}");
        assert!(
            !shown
                .chars()
                .any(|c| c.is_control() && !matches!(c, '\n' | '\t')),
            "{shown:?}"
        );
    }
}
