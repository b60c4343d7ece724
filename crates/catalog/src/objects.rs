//! What volumes and machines have in common: a name, an ID, and how a user refers to them.

use std::fmt::Display;

use sistemo_model::{Lifecycle, Reference};

use crate::connection::{Session, Transaction};
use crate::error::{Candidate, CatalogError, Kind, Result};

impl Session<'_> {
    /// Finds the ready object that a user means: by name, else by its ID or the beginning of it.
    /// A full ID is the beginning of no other.
    pub(crate) fn find(&self, kind: Kind, reference: &Reference) -> Result<String> {
        let ready = format!("lifecycle = 'ready' AND {}", kind.has_its_name());
        self.find_where(kind, &ready, reference)
    }

    /// Finds the object for which a condition in SQL holds, as [`Session::find`] does; several
    /// may have one name then.
    pub(crate) fn find_where(
        &self,
        kind: Kind,
        condition: &str,
        reference: &Reference,
    ) -> Result<String> {
        let table = kind.table();
        let by_name = format!(
            "SELECT id, name FROM {table} WHERE name = ?1 AND {condition} ORDER BY created"
        );
        // Every character of an ID sorts before `g`.
        let by_id = format!(
            "SELECT id, name FROM {table}
             WHERE id >= ?1 AND id < ?1 || 'g' AND {condition} ORDER BY name"
        );
        let look = |sql: &str, text: &str| {
            self.rows(table, sql, [text], |row| {
                Ok(Candidate {
                    id: row.value("id")?,
                    name: row.value("name")?,
                })
            })
        };
        let mut candidates = look(&by_name, reference.as_str())?;
        if candidates.is_empty()
            && let Some(prefix) = reference.as_id_prefix()
        {
            candidates = look(&by_id, prefix)?;
        }
        let reference = reference.clone();
        match candidates.len() {
            0 => Err(CatalogError::NotFound { kind, reference }),
            1 => Ok(candidates.remove(0).id),
            _ => Err(CatalogError::Ambiguous {
                kind,
                reference,
                candidates,
            }),
        }
    }
}

impl Transaction<'_> {
    /// Refuses a name that another object of the kind has for itself, or for an ID. Since no one
    /// else writes during a transaction, what this found stays so.
    pub(crate) fn expect_free_name(&self, kind: Kind, id: &impl Display, name: &str) -> Result<()> {
        let (table, has_it) = (kind.table(), kind.has_its_name());
        let sql = format!(
            "SELECT id FROM {table} WHERE (name = ?1 AND {has_it} OR id = ?1) AND id <> ?2"
        );
        if self.any(kind, &sql, (name, id.to_string()))? {
            let name = name.to_owned();
            return Err(CatalogError::NameTaken { kind, name });
        }
        Ok(())
    }

    /// Refuses an ID that an object of the kind has for an ID or a name.
    pub(crate) fn expect_free_id(&self, kind: Kind, id: &impl Display) -> Result<()> {
        let (table, has_it, id) = (kind.table(), kind.has_its_name(), id.to_string());
        let sql = format!("SELECT id FROM {table} WHERE id = ?1 OR name = ?1 AND {has_it}");
        if self.any(kind, &sql, [&id])? {
            return Err(CatalogError::IdTaken { kind, id });
        }
        Ok(())
    }

    fn any(&self, kind: Kind, sql: &str, params: impl rusqlite::Params) -> Result<bool> {
        let found = self.row(kind.table(), sql, params, |_| Ok(()))?;
        Ok(found.is_some())
    }
}

/// Refuses a stage of life that cannot follow the one an object is in.
pub(crate) fn expect_lifecycle(
    kind: Kind,
    name: &impl Display,
    from: Lifecycle,
    to: Lifecycle,
) -> Result<()> {
    if from.can_become(to) {
        return Ok(());
    }
    Err(CatalogError::IllegalLifecycle {
        kind,
        name: name.to_string(),
        from,
        to,
    })
}
