//! The operation log: who changed what, when, by which command.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::undo::Undo;
use super::{BranchName, Catalog, CatalogError, now_ms};

/// One change of the catalog.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct OperationRow {
    /// Ascends with time.
    pub id: i64,
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// Who asked for it.
    pub uid: u32,
    /// The command that did it.
    pub command: String,
    /// The branch concerned, by the name it had after the change.
    pub branch: Option<String>,
    /// What changed.
    pub detail: String,
    /// How it can be taken back; see [`Undo`].
    #[serde(skip)]
    pub undo: Option<String>,
    /// The operation that took it back.
    pub undone_by: Option<i64>,
}

/// Who changes the catalog, and by which command.
#[derive(Debug, Clone, Copy)]
pub struct Actor<'a> {
    /// User id.
    pub uid: u32,
    /// The command as typed, or the part of cowfs that did it.
    pub command: &'a str,
}

impl Actor<'static> {
    /// This process, for changes that no person asked for by name.
    pub fn process(command: &'static str) -> Actor<'static> {
        Actor { uid: nix::unistd::getuid().as_raw(), command }
    }
}

pub(super) const COLUMNS: &str = "id, at_ms, uid, command, branch, detail, undo, undone_by";

pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<OperationRow> {
    Ok(OperationRow {
        id: row.get(0)?,
        at_ms: row.get(1)?,
        uid: row.get(2)?,
        command: row.get(3)?,
        branch: row.get(4)?,
        detail: row.get(5)?,
        undo: row.get(6)?,
        undone_by: row.get(7)?,
    })
}

pub(super) fn find(connection: &Connection, id: i64) -> Result<OperationRow, CatalogError> {
    let sql = format!("SELECT {COLUMNS} FROM operations WHERE id = ?");
    let found = connection.prepare_cached(&sql)?.query_row([id], from_row).optional()?;
    found.ok_or(CatalogError::NoSuchOperation { operation: id })
}

/// Adds a row, in the caller's transaction.
pub(super) fn record(
    transaction: &Connection,
    actor: Actor<'_>,
    branch: Option<&str>,
    detail: &str,
) -> Result<(), CatalogError> {
    record_with(transaction, actor, branch, detail, None).map(|_| ())
}

/// Adds a row for something that can be taken back; returns its number.
pub(super) fn record_undoable(
    transaction: &Connection,
    actor: Actor<'_>,
    branch: Option<&str>,
    detail: &str,
    undo: &Undo,
) -> Result<i64, CatalogError> {
    // Names and numbers: nothing in them can fail to be written as JSON.
    let undo = serde_json::to_string(undo).unwrap_or_default();
    record_with(transaction, actor, branch, detail, Some(&undo))
}

pub(super) fn record_with(
    transaction: &Connection,
    actor: Actor<'_>,
    branch: Option<&str>,
    detail: &str,
    undo: Option<&str>,
) -> Result<i64, CatalogError> {
    transaction
        .prepare_cached(
            "INSERT INTO operations (at_ms, uid, command, branch, detail, undo)
             VALUES (?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![now_ms(), actor.uid, actor.command, branch, detail, undo])?;
    Ok(transaction.last_insert_rowid())
}

impl Catalog {
    /// The latest `limit` operations, newest first, of one branch if it is named.
    pub fn log(
        &self,
        branch: Option<&BranchName>,
        limit: u32,
    ) -> Result<Vec<OperationRow>, CatalogError> {
        self.read(|connection| {
            let sql = format!(
                "SELECT {COLUMNS} FROM operations WHERE ?1 IS NULL OR branch = ?1
                 ORDER BY id DESC LIMIT ?2"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let name = branch.map(BranchName::as_str);
            let rows = statement.query_map(params![name, limit], from_row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}
