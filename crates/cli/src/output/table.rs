//! Lists, one line an object.

use std::fmt;

use anstyle::Style;

use super::PLAIN;

/// What stands where there is nothing to show.
pub(crate) const NONE: &str = "—";

const BETWEEN: &str = "  ";

/// A table with a header. Columns are two spaces apart and as wide as their widest cell.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

/// A column's heading, and how narrow it may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    heading: &'static str,
    at_least: usize,
}

impl Column {
    /// A column as wide as what is in it.
    pub(crate) const fn new(heading: &'static str) -> Column {
        Column {
            heading,
            at_least: 0,
        }
    }

    /// A column that keeps a width, so that short lists look alike.
    pub(crate) const fn at_least(heading: &'static str, at_least: usize) -> Column {
        Column { heading, at_least }
    }
}

/// What stands in a row under a column.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A text with a style. The style is an addition: the text alone has the meaning.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "takes what there is, owned or not"
    )]
    pub(crate) fn styled(text: impl ToString, style: Style) -> Cell {
        Cell {
            text: text.to_string(),
            style,
        }
    }

    /// A text.
    pub(crate) fn new(text: impl ToString) -> Cell {
        Cell::styled(text, PLAIN)
    }

    /// A text, or the sign for nothing.
    pub(crate) fn maybe(text: Option<impl ToString>) -> Cell {
        text.map_or_else(|| Cell::new(NONE), Cell::new)
    }
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(columns: Vec<Column>) -> Table {
        Table {
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row: one cell a column.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    fn width(&self, index: usize, column: &Column) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(index));
        cells
            .map(|cell| cell.text.chars().count())
            .chain([column.heading.len(), column.at_least])
            .max()
            .unwrap_or(0)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(index, column)| self.width(index, column))
            .collect();
        let header = self
            .columns
            .iter()
            .map(|column| Cell::new(column.heading))
            .collect();
        for row in std::iter::once(&header).chain(&self.rows) {
            for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let (on, off) = (cell.style, cell.style);
                write!(f, "{on}{}{off:#}", cell.text)?;
                // Nothing follows the last cell, so that no line ends in spaces.
                if index + 1 < row.len() {
                    let padding = width - cell.text.chars().count();
                    write!(f, "{:padding$}{BETWEEN}", "")?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::GOOD;

    #[test]
    fn columns_are_two_spaces_apart_and_lines_end_without_spaces() {
        let mut table = Table::new(vec![Column::new("NAME"), Column::new("ATTACHED TO")]);
        table.row(vec![Cell::new("pgdata-old"), Cell::maybe(Some("db1"))]);
        table.row(vec![Cell::new("x"), Cell::maybe(None::<&str>)]);
        assert_eq!(
            table.to_string(),
            "NAME        ATTACHED TO\npgdata-old  db1\nx           —\n"
        );
    }

    #[test]
    fn colour_does_not_move_a_column() {
        let mut table = Table::new(vec![Column::new("STATUS"), Column::new("X")]);
        table.row(vec![Cell::styled("ok", GOOD), Cell::new("y")]);
        let plain = anstream::adapter::strip_str(&table.to_string()).to_string();
        assert_eq!(plain, "STATUS  X\nok      y\n");
    }
}
