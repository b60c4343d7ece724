//! The text of a storage.conf, and changes to it that leave the rest of it as it is.
//!
//! The dialect is that of Python's `ConfigParser` as Qubes OS R3.2 used it: `[section]`,
//! `key = value` or `key: value`, keys in any case, comments behind `#` and `;` on a line of their
//! own or after white space. Two things of it are left out, which no such file needs: values that
//! go on in the next line, and `%(…)s`.

use std::ops::Range;

use super::fault::Problem;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A file's bytes, and what was understood of them.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub(super) text: Vec<u8>,
    pub(super) sections: Vec<Section>,
    /// What stands before the first section and should not.
    pub(super) stray: Option<Mistake>,
}

/// A section, from its title to the next one.
#[derive(Clone, Debug)]
pub(super) struct Section {
    pub(super) title: String,
    pub(super) line: usize,
    pub(super) entries: Vec<Entry>,
    pub(super) mistakes: Vec<Mistake>,
    /// From the start of its title's line to the end of its last line that says something:
    /// comments behind that may belong to the next section.
    span: Range<usize>,
}

/// An option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// In lower case, as they are compared.
    pub(super) key: String,
    pub(super) value: String,
    pub(super) line: usize,
    /// Where the value stands in the file.
    span: Range<usize>,
}

/// A line that is not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    pub(super) line: usize,
    pub(super) key: Option<String>,
    pub(super) problem: Problem,
}

impl Document {
    /// Reads any bytes at all: what is wrong is noted where it stands.
    pub(super) fn parse(text: Vec<u8>) -> Document {
        let mut document = Document {
            text: Vec::new(),
            sections: Vec::new(),
            stray: None,
        };
        let mut at = if text.starts_with(BYTE_ORDER_MARK) {
            BYTE_ORDER_MARK.len()
        } else {
            0
        };
        let mut number = 0;
        while at < text.len() {
            let length = text[at..].iter().position(|byte| *byte == b'\n');
            let end = length.map_or(text.len(), |length| at + length + 1);
            number += 1;
            document.read_line(&text[at..end], at, number);
            at = end;
        }
        document.text = text;
        document
    }

    fn read_line(&mut self, whole: &[u8], start: usize, line: usize) {
        let lossy = String::from_utf8_lossy(whole);
        let is_text = matches!(lossy, std::borrow::Cow::Borrowed(_));
        let shown = lossy.trim();
        if is_text && (shown.is_empty() || shown.starts_with(['#', ';'])) {
            return;
        }
        let end = start + whole.len();
        if let Some(title) = shown.strip_prefix('[') {
            let (title, mistake) = read_title(title);
            let mistake = if is_text {
                mistake
            } else {
                Some(Problem::NotUtf8)
            };
            let mistakes = mistake.into_iter().map(|problem| Mistake {
                line,
                key: None,
                problem,
            });
            self.sections.push(Section {
                title: title.to_owned(),
                line,
                entries: Vec::new(),
                mistakes: mistakes.collect(),
                span: start..end,
            });
            return;
        }
        let entry = if is_text {
            read_entry(&lossy, start, line)
        } else {
            Err(Problem::NotUtf8)
        };
        let Some(section) = self.sections.last_mut() else {
            self.stray.get_or_insert(Mistake {
                line,
                key: None,
                problem: if is_text {
                    Problem::OutsideSection
                } else {
                    Problem::NotUtf8
                },
            });
            return;
        };
        section.span.end = end;
        match entry {
            Ok(entry) if section.entries.iter().any(|other| other.key == entry.key) => {
                section.mistakes.push(Mistake {
                    line,
                    key: Some(entry.key),
                    problem: Problem::KeyTwice,
                });
            }
            Ok(entry) => section.entries.push(entry),
            Err(problem) => section.mistakes.push(Mistake {
                line,
                key: None,
                problem,
            }),
        }
    }

    /// The text with a section appended.
    pub(super) fn with_section(&self, title: &str, options: &[(String, String)]) -> Vec<u8> {
        let mut text = self.text.clone();
        if !text.is_empty() && text != BYTE_ORDER_MARK {
            if !text.ends_with(b"\n") {
                text.extend_from_slice(self.line_end());
            }
            text.extend_from_slice(self.line_end());
        }
        self.append_line(&mut text, &format!("[{title}]"));
        for (key, value) in options {
            self.append_line(&mut text, &format!("{key} = {value}"));
        }
        text
    }

    /// The text with an option of a section changed, or added behind the section's others.
    pub(super) fn with_option(&self, section: &Section, key: &str, value: &str) -> Vec<u8> {
        let mut new = Vec::new();
        let entry = section.entries.iter().find(|entry| entry.key == key);
        let place = if let Some(entry) = entry {
            new.extend_from_slice(value.as_bytes());
            // A comment that stood right behind an empty value must not become a part of it.
            let next = self.text.get(entry.span.end);
            if next.is_some_and(|next| !next.is_ascii_whitespace()) {
                new.push(b' ');
            }
            entry.span.clone()
        } else {
            let end = section.span.end;
            if !self.text[..end].ends_with(b"\n") {
                new.extend_from_slice(self.line_end());
            }
            self.append_line(&mut new, &format!("{key} = {value}"));
            end..end
        };
        let mut text = self.text.clone();
        text.splice(place, new);
        text
    }

    /// The text without a section. Comments above its title and behind its last option stay.
    pub(super) fn without_section(&self, section: &Section) -> Vec<u8> {
        let (mut before, after) = (
            self.text[..section.span.start].to_vec(),
            &self.text[section.span.end..],
        );
        let blank_behind = after.is_empty() || after.starts_with(self.line_end());
        for blank in [&b"\r\n\r\n"[..], b"\n\n"] {
            if blank_behind && before.ends_with(blank) {
                before.truncate(before.len() - blank.len() / 2);
                break;
            }
        }
        before.extend_from_slice(after);
        before
    }

    /// How its lines end, told by the first.
    fn line_end(&self) -> &'static [u8] {
        let first = self.text.iter().position(|byte| *byte == b'\n');
        match first {
            Some(at) if self.text[..at].ends_with(b"\r") => b"\r\n",
            _ => b"\n",
        }
    }

    fn append_line(&self, text: &mut Vec<u8>, line: &str) {
        text.extend_from_slice(line.as_bytes());
        text.extend_from_slice(self.line_end());
    }
}

/// Reads what follows the bracket of a section's title.
fn read_title(text: &str) -> (&str, Option<Problem>) {
    let Some((title, behind)) = text.split_once(']') else {
        return (text.trim(), Some(Problem::UnclosedSection));
    };
    let behind = behind.trim_start();
    let only_a_comment = behind.is_empty() || behind.starts_with(['#', ';']);
    (
        title.trim(),
        (!only_a_comment).then_some(Problem::BehindSection),
    )
}

fn read_entry(text: &str, start: usize, line: usize) -> Result<Entry, Problem> {
    let separator = text.find(['=', ':']).ok_or(Problem::NotAnOption)?;
    let key = text[..separator].trim();
    if key.is_empty() {
        return Err(Problem::NotAnOption);
    }
    let rest = &text[separator + 1..];
    let blanks = rest.len() - rest.trim_start_matches(is_blank).len();
    let value = without_comment(&rest[blanks..]).trim_end();
    let value_start = start + separator + 1 + blanks;
    Ok(Entry {
        key: key.to_lowercase(),
        value: value.to_owned(),
        line,
        span: value_start..value_start + value.len(),
    })
}

/// White space within a line; the line's end is none, so that an empty value has a place.
fn is_blank(character: char) -> bool {
    character.is_whitespace() && !matches!(character, '\n' | '\r')
}

/// A value without the comment behind it. A comment begins the value or follows white space, so
/// that a path may hold `#` and `;`.
fn without_comment(value: &str) -> &str {
    let mut after_blank = true;
    for (at, character) in value.char_indices() {
        if after_blank && matches!(character, '#' | ';') {
            return &value[..at];
        }
        after_blank = character.is_whitespace();
    }
    value
}
