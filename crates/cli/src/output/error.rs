//! Failures, for people and for programs.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use sistemo::causes;

use crate::arguments::Format;
use crate::failure::{Code, Failure};
use crate::hint::hint;

use super::{BAD, tell};

const HINT: Style = AnsiColor::Cyan.on_default().bold();

/// What programs read: one object on one line.
#[derive(Serialize)]
struct Report<'a> {
    error: Body<'a>,
}

#[derive(Serialize)]
struct Body<'a> {
    code: Code,
    message: &'a str,
    hint: Option<&'a str>,
}

/// Writes a failure to standard error.
pub(crate) fn show(failure: &Failure, format: Format) {
    let hint = hint(failure);
    match format {
        Format::Table => show_to_people(&causes(failure), hint.as_deref()),
        Format::Json => {
            show_to_programs(failure.code(), &causes(failure).join(": "), hint.as_deref());
        }
    }
}

fn show_to_people(texts: &[String], hint: Option<&str>) {
    tell(&for_people(texts, hint));
}

fn for_people(texts: &[String], hint: Option<&str>) -> String {
    let mut shown = String::new();
    for (index, text) in texts.iter().enumerate() {
        // Writing into a string does not fail.
        let _ = match index {
            0 => write!(shown, "{BAD}Error:{BAD:#} {text}"),
            1 => write!(shown, "\nCaused by:\n  {}", indented(text)),
            _ => write!(shown, "\n  {}", indented(text)),
        };
    }
    if let Some(hint) = hint {
        let _ = write!(shown, "\n{HINT}Hint:{HINT:#} {hint}");
    }
    shown
}

fn indented(text: &str) -> String {
    text.replace('\n', "\n  ")
}

fn show_to_programs(code: Code, message: &str, hint: Option<&str>) {
    let report = Report {
        error: Body {
            code,
            message,
            hint,
        },
    };
    match serde_json::to_string(&report) {
        Ok(json) => tell(&json),
        Err(error) => tell(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_object_then_the_causes_then_what_to_type() {
        let texts = [
            "cannot make x".to_owned(),
            "a\nb".to_owned(),
            "c".to_owned(),
        ];
        let shown = for_people(&texts, Some("sistemo doctor"));
        let plain = anstream::adapter::strip_str(&shown).to_string();
        let expected = "\
Error: cannot make x
Caused by:
  a
  b
  c
Hint: sistemo doctor";
        assert_eq!(plain, expected);
    }
}
