//! The durable root of a store: branches, layers and the operation log, in `SQLite`.
//!
//! The catalog names layers by id and never opens them. Many processes share it; every change is
//! one transaction, on stable storage when the call returns. [`store::Store`] is the directory
//! around it, [`lock`] decides who may serve or change a branch.

pub mod attributes;
pub mod branch_name;
pub mod branches;
pub mod error;
pub mod fork;
pub mod layers;
pub mod lock;
pub mod oplog;
pub mod reach;
pub mod rehead;
pub mod reserve;
pub mod schedules;
mod schema;
pub mod snapshot_name;
pub mod snapshots;
pub mod store;
pub mod undo;
mod wal;
pub mod witness;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

pub use branch_name::{BranchName, BranchNameError};
pub use branches::{BranchRow, NewBranch};
pub use error::{CatalogError, DatabaseTrouble};
pub use fork::{ForkPlan, SealPlan};
pub use layers::{LayerRow, LayerState, NewLayer};
pub use lock::{BranchLock, FileLock, LockError};
pub use oplog::{Actor, OperationRow};
pub use reach::Reach;
pub use rehead::ReheadPlan;
pub use snapshot_name::{BranchPoint, PointError, SnapshotName, SnapshotPoint};
pub use snapshots::{NewSnapshot, SnapshotPlan, SnapshotRow};
pub use store::{Store, StoreError, default_store_dir};
use witness::Noted;

use crate::io::crash::{Point, crash_point};

/// How long a call waits for another process' transaction before it fails as busy.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection is used by one thread at a time.
const OPEN_FLAGS: OpenFlags =
    OpenFlags::SQLITE_OPEN_READ_WRITE.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

/// An open catalog. One connection, shared by the threads of a process.
pub struct Catalog {
    connection: Mutex<Connection>,
    path: PathBuf,
}

impl Catalog {
    /// Makes a new, empty catalog at `path`, which must not exist.
    pub fn create(path: &Path) -> Result<Catalog, CatalogError> {
        if path.exists() {
            return Err(CatalogError::AlreadyExists { path: path.to_owned() });
        }
        let flags = OPEN_FLAGS | OpenFlags::SQLITE_OPEN_CREATE;
        let connection = Connection::open_with_flags(path, flags)?;
        configure(&connection)?;
        schema::create(&connection)?;
        wal::extend(&connection, path)?;
        witness::raise(path, 0);
        Ok(Catalog { connection: Mutex::new(connection), path: path.to_owned() })
    }

    /// Opens the catalog at `path`; refuses foreign files and versions it does not know.
    pub fn open(path: &Path) -> Result<Catalog, CatalogError> {
        if !path.exists() {
            return Err(CatalogError::Missing { path: path.to_owned() });
        }
        let connection = Connection::open_with_flags(path, OPEN_FLAGS)?;
        configure(&connection).map_err(|e| schema::name_foreign(path, e))?;
        schema::verify(&connection, path)?;
        Ok(Catalog { connection: Mutex::new(connection), path: path.to_owned() })
    }

    /// The file that holds the catalog.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses a catalog that holds fewer commits than were made: what it says about layers is
    /// true of an earlier moment, and must not be acted upon.
    pub fn require_current(&self) -> Result<(), CatalogError> {
        let noted = witness::read(&self.path);
        self.read(|connection| self.require_reaches(noted, schema::commits(connection)?))
    }

    /// `commits` must have been read after `noted`.
    fn require_reaches(&self, noted: Noted, commits: u64) -> Result<(), CatalogError> {
        match noted {
            Noted::Commits(noted) if noted > commits => {
                Err(CatalogError::WentBack { path: self.path.clone(), commits, noted })
            }
            _ => Ok(()),
        }
    }

    /// Copies the whole write-ahead log into the database and begins it anew, if nobody is reading.
    pub fn checkpoint(&self) -> Result<(), CatalogError> {
        self.require_current()?;
        let connection = self.connection.lock();
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        wal::extend(&connection, &self.path)
    }

    /// Keeps the write-ahead log short and commits quick: for a process that serves, now and then.
    pub fn tend_log(&self) -> Result<(), CatalogError> {
        self.require_current()?;
        if !wal::needs_care(&self.connection.lock(), &self.path)? {
            return Ok(());
        }
        // On a connection of its own: what waits for the disk here must not hold up a fork.
        let connection = Connection::open_with_flags(&self.path, OPEN_FLAGS)?;
        configure(&connection)?;
        wal::shorten(&connection, &self.path, wal::BYTES_SERVED);
        wal::extend(&connection, &self.path)
    }

    /// Verifies the database file's own structure (pages, indexes, references between rows).
    ///
    /// Reads all of it; returns what is wrong, one line each, empty if nothing is.
    pub fn self_check(&self) -> Result<Vec<String>, CatalogError> {
        let connection = self.connection.lock();
        let mut found = Vec::new();
        let mut integrity = connection.prepare("PRAGMA integrity_check(100)")?;
        for line in integrity.query_map([], |row| row.get::<_, String>(0))? {
            let line = line?;
            if line != "ok" {
                found.push(line);
            }
        }
        let mut references = connection.prepare("PRAGMA foreign_key_check")?;
        for line in references.query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Option<i64>>(1)?, row.get::<_, String>(2)?))
        })? {
            let (table, row, target) = line?;
            let row = row.map_or_else(|| "?".to_owned(), |id| id.to_string());
            found.push(format!("row {row} of {table} names a missing row of {target}"));
        }
        Ok(found)
    }

    /// Runs `work` with the connection; for reads of a single statement.
    fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        work(&self.connection.lock())
    }

    /// Runs `work` in a transaction that holds the write lock from its start, and commits it
    /// durably. An error rolls everything back.
    fn write<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        let mut connection = self.connection.lock();
        let noted = witness::read(&self.path);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.require_reaches(noted, schema::commits(&transaction)?)?;
        let value = work(&transaction)?;
        let commits = schema::count_commit(&transaction)?;
        crash_point(Point::CatalogUncommitted);
        transaction.commit()?;
        crash_point(Point::CatalogCommitted);
        witness::raise(&self.path, commits);
        crash_point(Point::CatalogNoted);
        wal::shorten(&connection, &self.path, wal::BYTES_MAX);
        Ok(value)
    }
}

impl Drop for Catalog {
    fn drop(&mut self) {
        // What a damaged log still holds after its damage must not be thrown away.
        if self.require_current().is_err() {
            return;
        }
        wal::shorten(self.connection.get_mut(), &self.path, wal::BYTES_AT_END);
    }
}

/// Settings of a connection; those of the file itself are written once by [`schema::create`].
fn configure(connection: &Connection) -> Result<(), CatalogError> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    // A command that lives for milliseconds must not pay for a checkpoint when it ends.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    // See `wal::shorten`.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    Ok(())
}

/// Now, in milliseconds since 1970.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}
