//! Command lines that are not understood, and requests for help.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Command, CommandFactory};
use sistemo::model::{Bytes, SizeError};

use crate::arguments::{Arguments, Format};
use crate::failure::{Failure, USAGE};
use crate::output::{error, print, tell};

/// Options that take the next word as their value.
const WITH_VALUE: [&str; 3] = ["--data-dir", "--output", "-o"];

/// Answers a command line that clap did not accept: prints the help or version that was asked
/// for, or says what is wrong.
pub(crate) fn answer(refusal: &clap::Error, words: &[OsString]) -> ExitCode {
    let text = refusal.render();
    match refusal.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            match print(&text.ansi().to_string()) {
                Err(failure) if !failure.is_broken_pipe() => {
                    error::show(&failure, format(words));
                    ExitCode::from(failure.status())
                }
                _ => ExitCode::SUCCESS,
            }
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand if format(words) == Format::Table => {
            tell(text.ansi().to_string().trim_end());
            ExitCode::from(USAGE)
        }
        _ => {
            let (message, hint) = explain(refusal, words);
            let failure = Failure::Usage { message, hint };
            error::show(&failure, format(words));
            ExitCode::from(USAGE)
        }
    }
}

/// Says what is wrong in our own words: the value's own error where a value is wrong, what
/// clap says where anything else is.
fn explain(refusal: &clap::Error, words: &[OsString]) -> (String, String) {
    let command = command_of(words).0;
    let help = format!("{} --help", command.join(" "));
    if refusal.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return (format!("`{}` needs more words", command.join(" ")), help);
    }
    if refusal.kind() == ErrorKind::ValueValidation
        && let Some(source) = std::error::Error::source(refusal)
    {
        return (source.to_string(), help);
    }
    if refusal.kind() == ErrorKind::UnknownArgument
        && let Some(error) = words
            .iter()
            .find_map(|word| bad_negative(&word.to_string_lossy()))
    {
        return (error.to_string(), help);
    }
    let rendered = refusal.render().to_string();
    let message = rendered.split("\n\n").next().unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let tip = rendered
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("tip: "));
    (
        message,
        tip.map_or(help.clone(), |tip| format!("{tip} ({help})")),
    )
}

/// A negative size with a unit, which clap takes for an option.
fn bad_negative(word: &str) -> Option<SizeError> {
    let digits = word.strip_prefix('-')?;
    digits
        .starts_with(|c: char| c.is_ascii_digit())
        .then(|| word.parse::<Bytes>().err())?
}

/// What others read who wait for us: the command and its first object, and no more of it, for
/// the rest may hold what is nobody else's business.
pub(crate) fn purpose(words: &[OsString]) -> String {
    let (mut command, object) = command_of(words);
    command.extend(object);
    command.join(" ")
}

/// The full name of the command that the words call, and the word after it.
fn command_of(words: &[OsString]) -> (Vec<String>, Option<String>) {
    let root = Arguments::command();
    let mut command: &Command = &root;
    let mut path = vec![root.get_name().to_owned()];
    let mut words = words.iter().skip(1).map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        if WITH_VALUE.contains(&word.as_ref()) {
            words.next();
        } else if let Some(next) = command.find_subcommand(word.as_ref()) {
            path.push(next.get_name().to_owned());
            command = next;
        } else if !word.starts_with('-') {
            return (path, Some(word.into_owned()));
        }
    }
    (path, None)
}

/// The format that errors are wanted in, where the words as a whole make no sense.
fn format(words: &[OsString]) -> Format {
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let before_escape = words.iter().take_while(|word| *word != "--");
    let joined = before_escape
        .clone()
        .any(|word| matches!(word.as_ref(), "-ojson" | "-o=json" | "--output=json"));
    let apart = before_escape
        .clone()
        .zip(before_escape.skip(1))
        .any(|(option, value)| matches!(option.as_ref(), "-o" | "--output") && value == "json");
    if joined || apart {
        Format::Json
    } else {
        Format::Table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_purpose_names_the_command_and_its_object_and_nothing_behind_it() {
        for (line, expected) in [
            (
                "sistemo -o json volume resize pgdata 10G",
                "sistemo volume resize pgdata",
            ),
            (
                "sistemo vm exec db1 -- psql --password=x",
                "sistemo machine exec db1",
            ),
            (
                "sistemo --data-dir volume machine rm -y db1",
                "sistemo machine delete db1",
            ),
            ("sistemo volume list", "sistemo volume list"),
        ] {
            assert_eq!(purpose(&words(line)), expected);
        }
    }

    #[test]
    fn json_is_recognized_in_words_that_make_no_sense() {
        for line in ["x -o json", "x --output=json y", "x -ojson"] {
            assert_eq!(format(&words(line)), Format::Json, "{line}");
        }
        for line in ["x -- -o json", "x json", "x -o table"] {
            assert_eq!(format(&words(line)), Format::Table, "{line}");
        }
    }
}
