//! The schema, and how an older catalogue comes to it.
//!
//! Each migration is a file that is applied once, in order, inside one transaction with all that
//! are missing; `PRAGMA user_version` counts them. A released migration is never edited.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior};
use sistemo_host::lock::PATIENCE;
use sistemo_model::{CatalogueId, Timestamp};

use crate::error::{CatalogError, Result};

const MIGRATIONS: [&str; 3] = [
    include_str!("schema/0001_foundation.sql"),
    include_str!("schema/0002_image_copies.sql"),
    include_str!("schema/0003_history.sql"),
];

/// `Sist`: what file(1) and we know a catalogue by (`PRAGMA application_id`).
const APPLICATION_ID: u32 = 0x5369_7374;

const PAUSE: Duration = Duration::from_millis(5);

/// Checks that the database is ours, applies what is missing, and returns the catalogue's ID.
///
/// A crash in the middle leaves the version that was there before.
pub(crate) fn bring_up_to_date(connection: &mut Connection, path: &Path) -> Result<CatalogueId> {
    if found_version(connection, path)? < known() {
        write_ahead(connection, path)?;
        migrate(connection, path)?;
    }
    id(connection, path)
}

fn known() -> u32 {
    u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX)
}

fn found_version(connection: &Connection, path: &Path) -> Result<u32> {
    let fail = |error| CatalogError::database("read the schema version", path, error);
    let query = "SELECT user_version, application_id, (SELECT count(*) FROM sqlite_schema)
                 FROM pragma_user_version, pragma_application_id";
    let (version, application, objects) = connection
        .query_row(query, (), |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, i64>(1)?,
                row.get::<_, i64>(2)?,
            ))
        })
        .map_err(fail)?;
    let untouched = version == 0 && application == 0 && objects == 0;
    let ours = untouched || application == i64::from(APPLICATION_ID);
    let Some(version) = u32::try_from(version).ok().filter(|_| ours) else {
        return Err(CatalogError::Foreign {
            path: path.to_owned(),
        });
    };
    if version > known() {
        return Err(CatalogError::Newer {
            path: path.to_owned(),
            found: version,
            known: known(),
        });
    }
    Ok(version)
}

/// Switches to write-ahead logging, which the file then keeps.
///
/// The busy timeout does not cover all of this: where waiting could deadlock, `SQLite` answers
/// `SQLITE_BUSY` at once (`sqlite3_busy_handler` in its manual). So this tries again.
fn write_ahead(connection: &Connection, path: &Path) -> Result<()> {
    let started = Instant::now();
    loop {
        let switched = connection
            .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0));
        match switched {
            Ok(mode) if mode == "wal" => return Ok(()),
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && started.elapsed() < PATIENCE => {}
            Err(error) => return Err(CatalogError::database("start a log", path, error)),
            // It answers with another mode and no error where it cannot.
            Ok(_) => {
                let path = path.to_owned();
                return Err(CatalogError::Unshareable { path });
            }
        }
        thread::sleep(PAUSE);
    }
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<()> {
    let fail = |error| CatalogError::database("migrate the schema", path, error);
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(fail)?;
    // Asked again: another process may have migrated while this one waited.
    let from = found_version(&transaction, path)?;
    for migration in MIGRATIONS.iter().skip(from as usize) {
        transaction.execute_batch(migration).map_err(fail)?;
    }
    if from == 0 {
        let insert = "INSERT INTO meta (key, value) VALUES ('id', ?1), ('created', ?2)";
        let now = Timestamp::now().to_string();
        transaction
            .execute(insert, (CatalogueId::random().to_string(), now))
            .map_err(fail)?;
        transaction
            .pragma_update(None, "application_id", APPLICATION_ID)
            .map_err(fail)?;
    }
    if from < known() {
        transaction
            .pragma_update(None, "user_version", known())
            .map_err(fail)?;
    }
    transaction.commit().map_err(fail)
}

fn id(connection: &Connection, path: &Path) -> Result<CatalogueId> {
    let text: Option<String> = connection
        .query_row("SELECT value FROM meta WHERE key = 'id'", (), |row| {
            row.get(0)
        })
        .optional()
        .map_err(|error| CatalogError::database("read its ID", path, error))?;
    text.unwrap_or_default()
        .parse()
        .map_err(|error| CatalogError::DamagedRow {
            table: "meta",
            row: "id".to_owned(),
            column: "value",
            source: Box::new(error),
        })
}
