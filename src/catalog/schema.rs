//! The tables, and the marks by which a catalog is recognised.

use std::path::Path;

use rusqlite::{Connection, ErrorCode};

use super::CatalogError;

/// "cowf" in ASCII: `file(1)` and [`verify`] recognise a catalog by it.
const APPLICATION_ID: i64 = 0x636f_7766;

/// The version of the tables below. A higher one is refused.
pub const SCHEMA_VERSION: i64 = 4;

/// Branch ids are never reused (AUTOINCREMENT), because lock and socket files carry them. Layer
/// ids are random and chosen by the caller. Depth is stored so that a walk down a chain proves
/// itself: each step is one lower, so a cycle cannot go unnoticed.
///
/// A deleted branch keeps its row, and with it its layers, until `gc` purges it; its name is free at
/// once. `roots` is all that keeps a layer alive.
const TABLES: &str = "
CREATE TABLE layers (
    id            INTEGER PRIMARY KEY CHECK (id > 0),
    parent        INTEGER REFERENCES layers (id),
    depth         INTEGER NOT NULL CHECK (depth >= 0),
    state         TEXT NOT NULL CHECK (state IN ('importing', 'open', 'sealed')),
    used          INTEGER NOT NULL CHECK (used IN (0, 1)),
    adopted_from  BLOB,
    created_ms    INTEGER NOT NULL
) STRICT;
CREATE INDEX layers_by_parent ON layers (parent) WHERE parent IS NOT NULL;

CREATE TABLE branches (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    name             TEXT NOT NULL,
    parent           INTEGER REFERENCES branches (id) ON DELETE SET NULL,
    head             INTEGER NOT NULL UNIQUE REFERENCES layers (id),
    begins           INTEGER,
    origin           TEXT NOT NULL,
    hygiene_pending  INTEGER NOT NULL CHECK (hygiene_pending IN (0, 1)),
    created_by       INTEGER NOT NULL,
    created_ms       INTEGER NOT NULL,
    protected        INTEGER NOT NULL DEFAULT 0 CHECK (protected IN (0, 1)),
    expires_ms       INTEGER,
    quota_bytes      INTEGER CHECK (quota_bytes > 0),
    pg_bin           BLOB,
    deleted_ms       INTEGER
) STRICT;
CREATE UNIQUE INDEX branch_names ON branches (name) WHERE deleted_ms IS NULL;
CREATE VIEW live_branches AS SELECT * FROM branches WHERE deleted_ms IS NULL;
CREATE INDEX branches_by_parent ON branches (parent) WHERE parent IS NOT NULL;

CREATE TABLE snapshots (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    branch      INTEGER NOT NULL REFERENCES branches (id) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    layer       INTEGER NOT NULL REFERENCES layers (id),
    created_by  INTEGER NOT NULL,
    created_ms  INTEGER NOT NULL,
    expires_ms  INTEGER,
    UNIQUE (branch, name)
) STRICT;
CREATE INDEX snapshots_by_layer ON snapshots (layer);

CREATE TABLE schedules (
    branch    INTEGER PRIMARY KEY REFERENCES branches (id) ON DELETE CASCADE,
    every_ms  INTEGER NOT NULL CHECK (every_ms > 0),
    keep_ms   INTEGER NOT NULL CHECK (keep_ms > 0)
) STRICT;

CREATE VIEW roots AS
    SELECT head AS layer, id AS branch, NULL AS snapshot FROM branches
    UNION ALL SELECT layer, branch, id FROM snapshots;

CREATE TABLE operations (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms      INTEGER NOT NULL,
    uid        INTEGER NOT NULL,
    command    TEXT NOT NULL,
    branch     TEXT,
    detail     TEXT NOT NULL,
    undo       TEXT,
    undone_by  INTEGER REFERENCES operations (id)
) STRICT;

CREATE TABLE commits (
    only   INTEGER PRIMARY KEY CHECK (only = 1),
    count  INTEGER NOT NULL CHECK (count >= 0)
) STRICT;
INSERT INTO commits VALUES (1, 0);
";

/// How many transactions have changed the catalog; see [`witness`](super::witness).
pub(super) fn commits(connection: &Connection) -> Result<u64, CatalogError> {
    let mut statement = connection.prepare_cached("SELECT count FROM commits")?;
    Ok(statement.query_row([], |row| row.get(0))?)
}

/// Counts a transaction that is about to be committed.
pub(super) fn count_commit(connection: &Connection) -> Result<u64, CatalogError> {
    let mut statement =
        connection.prepare_cached("UPDATE commits SET count = count + 1 RETURNING count")?;
    Ok(statement.query_row([], |row| row.get(0))?)
}

/// Writes the tables and the marks into an empty database.
pub(super) fn create(connection: &Connection) -> Result<(), CatalogError> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE; {TABLES}
         PRAGMA application_id = {APPLICATION_ID};
         PRAGMA user_version = {SCHEMA_VERSION};
         COMMIT;"
    ))?;
    // The file itself must be complete before anybody relies on it.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(())
}

/// Refuses a database that is not a catalog, or one of another version.
pub(super) fn verify(connection: &Connection, path: &Path) -> Result<(), CatalogError> {
    let number = |pragma: &str| {
        connection
            .pragma_query_value(None, pragma, |row| row.get::<_, i64>(0))
            .map_err(|e| name_foreign(path, e.into()))
    };
    if number("application_id")? != APPLICATION_ID {
        return Err(CatalogError::Foreign { path: path.to_owned() });
    }
    let found = number("user_version")?;
    if found != SCHEMA_VERSION {
        return Err(CatalogError::UnknownVersion {
            path: path.to_owned(),
            found,
            supported: SCHEMA_VERSION,
        });
    }
    Ok(())
}

/// Turns the "not a database" of `SQLite` into the error that names the file.
pub(super) fn name_foreign(path: &Path, error: CatalogError) -> CatalogError {
    match &error {
        CatalogError::Database { source }
            if source.sqlite_error_code() == Some(ErrorCode::NotADatabase) =>
        {
            CatalogError::Foreign { path: path.to_owned() }
        }
        _ => error,
    }
}
