//! Taking back what the operation log says was done.

use rusqlite::{Connection, Transaction, params};
use serde::{Deserialize, Serialize};

use super::branches::{self, BranchRow};
use super::oplog::{self, Actor, OperationRow};
use super::{BranchName, Catalog, CatalogError, rehead};
use crate::format::BranchId;

/// How an operation is taken back. Part of the catalog's format, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "undo", rename_all = "snake_case")]
pub enum Undo {
    /// A branch was deleted: it comes back.
    Delete {
        /// The branch.
        branch: BranchId,
    },
    /// A branch was renamed: it gets its name back.
    Rename {
        /// The branch.
        branch: BranchId,
        /// What it was called.
        from: BranchName,
        /// What it was called after.
        to: BranchName,
    },
    /// A branch was given another state: the two exchange theirs.
    Rehead {
        /// The branch.
        branch: BranchId,
        /// Under which id its former state is kept.
        kept: BranchId,
    },
}

impl Undo {
    /// The branches nobody may use meanwhile.
    pub fn touches(&self) -> Vec<BranchId> {
        match self {
            Undo::Delete { .. } | Undo::Rename { .. } => Vec::new(),
            Undo::Rehead { branch, kept } => vec![*branch, *kept],
        }
    }
}

/// What an undo did.
#[derive(Debug, Clone)]
pub struct Undone {
    /// What was taken back.
    pub operation: OperationRow,
    /// The branch as it is now.
    pub row: BranchRow,
}

impl Catalog {
    /// The newest operation that can be taken back, of one branch if it is named (as it was called
    /// then). If of none the data is still there, the newest all the same: taking that back says so.
    pub fn last_undoable(
        &self,
        branch: Option<&BranchName>,
    ) -> Result<Option<(OperationRow, Undo)>, CatalogError> {
        self.read(|connection| {
            let sql = format!(
                "SELECT {} FROM operations
                 WHERE undo IS NOT NULL AND undone_by IS NULL AND (?1 IS NULL OR branch = ?1)
                 ORDER BY id DESC",
                oplog::COLUMNS
            );
            let name = branch.map(BranchName::as_str);
            let mut statement = connection.prepare_cached(&sql)?;
            let mut newest = None;
            for row in statement.query_map([name], oplog::from_row)? {
                let (operation, undo) = with_undo(row?)?;
                if is_there(connection, &undo)? {
                    return Ok(Some((operation, undo)));
                }
                newest.get_or_insert((operation, undo));
            }
            Ok(newest)
        })
    }

    /// When a branch was given another state (or got one back), in milliseconds since 1970: its
    /// history before does not lead to what is after.
    pub fn reheaded_ms(&self, branch: BranchId) -> Result<Vec<i64>, CatalogError> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT at_ms, undo FROM operations WHERE undo IS NOT NULL")?;
            let rows =
                statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
            let mut times = Vec::new();
            for row in rows {
                let (at_ms, undo) = row?;
                if let Ok(Undo::Rehead { branch: which, .. }) = serde_json::from_str(&undo)
                    && which == branch
                {
                    times.push(at_ms);
                }
            }
            Ok(times)
        })
    }

    /// The operation with that number, which must be one that can be taken back.
    pub fn undoable(&self, id: i64) -> Result<(OperationRow, Undo), CatalogError> {
        self.read(|connection| oplog::find(connection, id)).and_then(with_undo)
    }

    /// Takes an operation back, in one transaction. The caller holds the locks of the branches
    /// that [`Undo::touches`] names.
    pub fn undo(&self, id: i64, actor: Actor<'_>) -> Result<Undone, CatalogError> {
        self.write(|transaction| {
            let (operation, undo) = with_undo(oplog::find(transaction, id)?)?;
            let row = apply(transaction, id, &undo)?;
            let detail = format!("took back operation {id} ({})", operation.detail);
            let name = Some(row.name.as_str());
            let by = match undo {
                // Exchanging once more is how this is taken back in turn.
                Undo::Rehead { .. } => {
                    oplog::record_undoable(transaction, actor, name, &detail, &undo)?
                }
                _ => oplog::record_with(transaction, actor, name, &detail, None)?,
            };
            transaction
                .prepare_cached("UPDATE operations SET undone_by = ? WHERE id = ?")?
                .execute([by, id])?;
            Ok(Undone { operation, row })
        })
    }
}

/// Whether what an undo needs was not purged.
fn is_there(connection: &Connection, undo: &Undo) -> Result<bool, CatalogError> {
    let branch = match undo {
        Undo::Delete { branch } | Undo::Rename { branch, .. } => branch,
        Undo::Rehead { kept, .. } => kept,
    };
    let mut there = connection.prepare_cached("SELECT 1 FROM branches WHERE id = ?")?;
    Ok(there.exists([branch.0])?)
}

fn with_undo(operation: OperationRow) -> Result<(OperationRow, Undo), CatalogError> {
    if let Some(by) = operation.undone_by {
        return Err(CatalogError::UndoneAlready { operation: operation.id, by });
    }
    match operation.undo.as_deref().and_then(|text| serde_json::from_str(text).ok()) {
        Some(undo) => Ok((operation, undo)),
        None => Err(CatalogError::NotUndoable { operation: operation.id }),
    }
}

fn apply(
    transaction: &Transaction<'_>,
    operation: i64,
    undo: &Undo,
) -> Result<BranchRow, CatalogError> {
    let overtaken = |what: String| CatalogError::UndoOvertaken { operation, what };
    match undo {
        Undo::Delete { branch } => {
            let row = branches::require_any(transaction, *branch)?;
            if row.deleted_ms.is_none() {
                return Err(overtaken(format!("branch {} is there", row.name)));
            }
            transaction
                .prepare_cached("UPDATE branches SET deleted_ms = NULL WHERE id = ?")?
                .execute([branch.0])
                .map_err(|error| branches::name_taken(error, &row.name))?;
            branches::require(transaction, *branch)
        }
        Undo::Rename { branch, from, to } => {
            let row = branches::require(transaction, *branch)?;
            if row.name != *to {
                return Err(overtaken(format!("the branch is called {} by now", row.name)));
            }
            transaction
                .prepare_cached("UPDATE branches SET name = ? WHERE id = ?")?
                .execute(params![from.as_str(), branch.0])
                .map_err(|error| branches::name_taken(error, from))?;
            branches::require(transaction, *branch)
        }
        Undo::Rehead { branch, kept } => Ok(rehead::exchange(transaction, *branch, *kept)?.0),
    }
}
