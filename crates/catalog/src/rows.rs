//! Reading rows into types, so that a damaged one is an error with its place and never a panic.

use std::error::Error;
use std::str::FromStr;

use rusqlite::types::{FromSql, Value};
use rusqlite::{Params, Row};

use crate::connection::{Session, Transaction};
use crate::error::{CatalogError, Result};

/// One row of a table, whose first column is its key.
pub(crate) struct Columns<'r> {
    table: &'static str,
    row: &'r Row<'r>,
}

impl Columns<'_> {
    /// The value as `SQLite` stores it.
    pub(crate) fn value<T: FromSql>(&self, column: &'static str) -> Result<T> {
        self.row
            .get(column)
            .map_err(|error| self.damaged(column, error))
    }

    /// A text that is one of our words.
    pub(crate) fn word<T>(&self, column: &'static str) -> Result<T>
    where
        T: FromStr<Err: Error + Send + Sync + 'static>,
    {
        let text: String = self.value(column)?;
        text.parse().map_err(|error| self.damaged(column, error))
    }

    /// A text that is one of our words, or NULL.
    pub(crate) fn optional_word<T>(&self, column: &'static str) -> Result<Option<T>>
    where
        T: FromStr<Err: Error + Send + Sync + 'static>,
    {
        let text: Option<String> = self.value(column)?;
        text.map(|text| text.parse().map_err(|error| self.damaged(column, error)))
            .transpose()
    }

    /// A number that fits the type.
    pub(crate) fn number<T>(&self, column: &'static str) -> Result<T>
    where
        T: TryFrom<i64, Error: Error + Send + Sync + 'static>,
    {
        let number: i64 = self.value(column)?;
        T::try_from(number).map_err(|error| self.damaged(column, error))
    }

    pub(crate) fn damaged(
        &self,
        column: &'static str,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> CatalogError {
        let row = match self.row.get(0) {
            Ok(Value::Text(text)) => text,
            Ok(Value::Integer(number)) => number.to_string(),
            _ => "with a damaged key".to_owned(),
        };
        CatalogError::DamagedRow {
            table: self.table,
            row,
            column,
            source: source.into(),
        }
    }
}

impl Session<'_> {
    /// Runs a query on `table` whose first column is the row's key.
    pub(crate) fn rows<T>(
        &self,
        table: &'static str,
        sql: &str,
        params: impl Params,
        read: impl Fn(&Columns<'_>) -> Result<T>,
    ) -> Result<Vec<T>> {
        let fail = |error| CatalogError::database(format!("read {table}"), self.path, error);
        let mut statement = self.connection.prepare_cached(sql).map_err(fail)?;
        let mut rows = statement.query(params).map_err(fail)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(fail)? {
            found.push(read(&Columns { table, row })?);
        }
        Ok(found)
    }

    /// Runs a query on `table` that finds at most one row.
    pub(crate) fn row<T>(
        &self,
        table: &'static str,
        sql: &str,
        params: impl Params,
        read: impl Fn(&Columns<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        Ok(self.rows(table, sql, params, read)?.pop())
    }
}

impl Transaction<'_> {
    /// Runs a change; returns how many rows it was about.
    pub(crate) fn execute(
        &self,
        action: &'static str,
        sql: &str,
        params: impl Params,
    ) -> Result<usize> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(params))
            .map_err(|error| CatalogError::database(action, self.path, error))
    }

    /// A number as `SQLite` stores it: at most 2^63 − 1.
    pub(crate) fn stored(&self, what: &'static str, number: u64) -> Result<i64> {
        i64::try_from(number).map_err(|error| {
            let error = rusqlite::Error::ToSqlConversionFailure(Box::new(error));
            CatalogError::database(format!("record {what}"), self.path, error)
        })
    }
}
