//! One object, one line a property.

use std::fmt;

use anstyle::Style;

use super::table::NONE;

/// The properties of one object, aligned.
#[derive(Debug, Default)]
pub(crate) struct Details {
    lines: Vec<(&'static str, String)>,
}

impl Details {
    /// Adds a property that is always told.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "takes what there is, owned or not"
    )]
    pub(crate) fn line(&mut self, key: &'static str, value: impl ToString) {
        self.lines.push((key, value.to_string()));
    }

    /// Adds a property that may be nothing, and is then told as such.
    pub(crate) fn maybe(&mut self, key: &'static str, value: Option<impl ToString>) {
        let value = value.map_or_else(|| NONE.to_owned(), |value| value.to_string());
        self.lines.push((key, value));
    }

    /// Adds a property that is told only where there is one.
    pub(crate) fn if_any(&mut self, key: &'static str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.line(key, value);
        }
    }

    /// Adds a property of several lines, the key before the first; nothing where there are none.
    pub(crate) fn several(&mut self, key: &'static str, values: impl IntoIterator<Item = String>) {
        let keys = std::iter::once(key).chain(std::iter::repeat(""));
        let lines = keys.zip(values);
        self.lines.extend(lines);
    }

    /// Adds a property in a style that adds nothing to its meaning.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "takes what there is, owned or not"
    )]
    pub(crate) fn styled(&mut self, key: &'static str, value: impl ToString, style: Style) {
        let off = style;
        self.line(key, format!("{style}{}{off:#}", value.to_string()));
    }
}

impl fmt::Display for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .lines
            .iter()
            .map(|(key, _)| key.len() + 1)
            .max()
            .unwrap_or(0);
        for (key, value) in &self.lines {
            let key = if key.is_empty() {
                String::new()
            } else {
                format!("{key}:")
            };
            writeln!(f, "{key:width$}  {value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_below_each_other() {
        let mut details = Details::default();
        details.line("Name", "pgdata");
        details.maybe("Attached to", None::<&str>);
        details.if_any("Reason", None::<&str>);
        details.several("Volumes", ["a".to_owned(), "b".to_owned()]);
        let expected = "\
Name:         pgdata
Attached to:  —
Volumes:      a
              b
";
        assert_eq!(details.to_string(), expected);
    }
}
