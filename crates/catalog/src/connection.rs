//! Opening the catalogue, and the two ways to use it: read and write.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use sistemo_host::directory::{Directory, Open};
use sistemo_host::lock::PATIENCE;
use sistemo_model::CatalogueId;

use crate::error::{CatalogError, Result};
use crate::schema;

const FILE: &str = "sistemo.db";

/// More prepared statements than there are queries in this crate.
const STATEMENTS: usize = 64;

/// After how many pages (of 4 KiB) the log is copied into the database.
///
/// `SQLite` would also do so whenever the last connection closes, which for short commands that
/// run one after another is each time, and costs more than the commits themselves. Instead the
/// log stays, and is kept short, for whoever opens the catalogue first reads all of it.
const LOG_PAGES: u32 = 256;

/// Held while this process looks for the database file and makes a missing one.
///
/// `SQLite` locks with fcntl(2), and a process loses all such locks on a file when it closes any
/// descriptor of it. So the file is never opened outside `SQLite` once it can be in use.
static MAKING: Mutex<()> = Mutex::new(());

/// The catalogue of one data directory.
///
/// It may be shared among threads; each read and write takes a connection of its own. A write
/// inside a write waits for itself and fails with [`CatalogError::Busy`].
#[derive(Debug)]
pub struct Catalogue {
    path: PathBuf,
    id: CatalogueId,
    idle: Mutex<Vec<Connection>>,
}

impl Catalogue {
    /// Opens the catalogue in an existing directory: `sistemo.db`, mode 0600, made where missing
    /// and brought up to this version's schema where older. Any number of processes may do so at
    /// once. Opening one that is up to date writes nothing to it.
    ///
    /// A crash in the middle leaves an empty database or a whole one; both open.
    ///
    /// # Errors
    /// [`CatalogError::File`] where the directory is missing or the file cannot be made;
    /// [`CatalogError::NotWritable`], [`CatalogError::Full`], [`CatalogError::Damaged`],
    /// [`CatalogError::Foreign`] and [`CatalogError::Newer`] as their names say.
    pub fn open(data_dir: &Path) -> Result<Catalogue> {
        let path = make_file(data_dir)?;
        let mut connection = connect(&path)?;
        let id = schema::bring_up_to_date(&mut connection, &path)?;
        Ok(Catalogue {
            path,
            id,
            idle: Mutex::new(vec![connection]),
        })
    }

    /// The identifier of this catalogue, made when it was.
    #[must_use]
    pub fn id(&self) -> CatalogueId {
        self.id
    }

    /// The database file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs queries that all see the catalogue as it was at the first of them.
    ///
    /// # Errors
    /// What `work` returns, and what `SQLite` says to beginning a transaction.
    pub fn read<T, E>(
        &self,
        work: impl FnOnce(&Session<'_>) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E>
    where
        E: From<CatalogError>,
    {
        self.with_transaction(TransactionBehavior::Deferred, |connection| {
            work(&Session {
                connection,
                path: &self.path,
            })
        })
    }

    /// Runs queries and changes that happen together where `work` returns `Ok`, and not at all
    /// where it returns `Err` or the process dies. `Ok` is returned after the disk has them.
    ///
    /// No other process writes meanwhile (`BEGIN IMMEDIATE`), so what `work` has read still
    /// holds when it writes; `work` should do nothing slow.
    ///
    /// # Errors
    /// What `work` returns; [`CatalogError::Busy`] where others wrote for 10 s without a break;
    /// what `SQLite` says to the commit, such as [`CatalogError::Full`], nothing being changed.
    pub fn write<T, E>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E>
    where
        E: From<CatalogError>,
    {
        self.with_transaction(TransactionBehavior::Immediate, |connection| {
            work(&Transaction {
                session: Session {
                    connection,
                    path: &self.path,
                },
            })
        })
    }

    /// Looks the whole file over: its structure, its constraints, its references. Returns what is
    /// wrong, nothing where all is well.
    ///
    /// # Errors
    /// [`CatalogError::Damaged`] where it is too damaged to be looked over.
    pub fn check(&self) -> Result<Vec<String>> {
        self.read(|session| {
            let fail = |error| CatalogError::database("check", &self.path, error);
            let mut findings = Vec::new();
            let connection = session.connection;
            connection
                .pragma_query(None, "integrity_check", |row| {
                    findings.push(row.get::<_, String>(0)?);
                    Ok(())
                })
                .map_err(fail)?;
            findings.retain(|finding| finding != "ok");
            connection
                .pragma_query(None, "foreign_key_check", |row| {
                    let (table, parent): (String, String) = (row.get(0)?, row.get(2)?);
                    findings.push(format!(
                        "a row of {table} refers to a missing row of {parent}"
                    ));
                    Ok(())
                })
                .map_err(fail)?;
            Ok(findings)
        })
    }

    fn with_transaction<T, E>(
        &self,
        behavior: TransactionBehavior,
        work: impl FnOnce(&Connection) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E>
    where
        E: From<CatalogError>,
    {
        let connection = self.take_connection()?;
        let fail = |action, error| CatalogError::database(action, &self.path, error);
        let transaction = rusqlite::Transaction::new_unchecked(&connection, behavior)
            .map_err(|error| fail("begin a transaction", error))?;
        // Dropped without a commit, by an error or a panic, it rolls back.
        let result = work(&transaction)?;
        transaction
            .commit()
            .map_err(|error| fail("commit a transaction", error))?;
        self.idle().push(connection);
        Ok(result)
    }

    fn take_connection(&self) -> Result<Connection> {
        let idle = self.idle().pop();
        idle.map_or_else(|| connect(&self.path), Ok)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        // The list is whole at every instant, also when another thread died holding it.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Queries on one snapshot of the catalogue; see [`Catalogue::read`].
#[derive(Debug)]
pub struct Session<'c> {
    pub(crate) connection: &'c Connection,
    pub(crate) path: &'c Path,
}

/// Queries and changes that happen together; see [`Catalogue::write`].
#[derive(Debug)]
pub struct Transaction<'c> {
    session: Session<'c>,
}

impl<'c> Deref for Transaction<'c> {
    type Target = Session<'c>;

    fn deref(&self) -> &Session<'c> {
        &self.session
    }
}

fn make_file(data_dir: &Path) -> Result<PathBuf> {
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = Directory::open(data_dir)?;
    if !directory.contains(FILE)? {
        match directory.file(FILE, Open::CreateNew) {
            Ok(_) => directory.flush()?,
            Err(error) if error.is_already_there() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(directory.path_of(FILE))
}

/// Makes a connection: the only place that does, so that none lacks a setting.
fn connect(path: &Path) -> Result<Connection> {
    let open = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(PATIENCE)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        Ok(connection)
    };
    open().map_err(|error| CatalogError::database("open a connection", path, error))
}
