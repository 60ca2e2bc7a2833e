//! The operation log: who changed what, when, by which command.

use rusqlite::{Connection, params};

use super::{Catalog, CatalogError, now_ms};

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
}

/// Who changes the catalog, and by which command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Actor<'a> {
    pub uid: u32,
    pub command: &'a str,
}

impl Actor<'static> {
    /// This process, for changes that no person asked for by name.
    pub(super) fn process(command: &'static str) -> Actor<'static> {
        Actor { uid: nix::unistd::getuid().as_raw(), command }
    }
}

/// Adds a row, in the caller's transaction.
pub(super) fn record(
    transaction: &Connection,
    actor: Actor<'_>,
    branch: Option<&str>,
    detail: &str,
) -> Result<(), CatalogError> {
    transaction
        .prepare_cached(
            "INSERT INTO operations (at_ms, uid, command, branch, detail) VALUES (?, ?, ?, ?, ?)",
        )?
        .execute(params![now_ms(), actor.uid, actor.command, branch, detail])?;
    Ok(())
}

impl Catalog {
    /// The latest `limit` operations, newest first.
    pub fn log(&self, limit: u32) -> Result<Vec<OperationRow>, CatalogError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id, at_ms, uid, command, branch, detail
                 FROM operations ORDER BY id DESC LIMIT ?",
            )?;
            let rows = statement.query_map([limit], |row| {
                Ok(OperationRow {
                    id: row.get(0)?,
                    at_ms: row.get(1)?,
                    uid: row.get(2)?,
                    command: row.get(3)?,
                    branch: row.get(4)?,
                    detail: row.get(5)?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}
