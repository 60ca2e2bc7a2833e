//! Branches: look up, create, rename, delete.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::error::is_conflict;
use super::layers::{self, NewLayer};
use super::oplog::{self, Actor};
use super::undo::Undo;
use super::{BranchName, Catalog, CatalogError, LayerState, now_ms};
use crate::format::{BranchId, LayerId};

/// A branch as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchRow {
    /// Never reused.
    pub id: BranchId,
    /// Unique among the branches of the store; may change.
    pub name: BranchName,
    /// The branch it was forked from, while that exists.
    pub parent: Option<BranchId>,
    /// Its open layer.
    pub head: LayerId,
    /// The sealed layer on which its own layers stand: what it began with, or was given since; none
    /// of a branch that began empty.
    pub begins: Option<LayerId>,
    /// Milliseconds since 1970.
    pub created_ms: i64,
    /// Who created it.
    pub created_by: u32,
    /// Whether what its parent's server left behind (pid file, sockets) is still to be removed.
    pub hygiene_pending: bool,
    /// `empty`, `import:/path`, `adopt:/path`, `fork:parent` or `fork:parent@snapshot`.
    pub origin: String,
    /// Whether delete, reset and restore are refused.
    pub protected: bool,
    /// When `gc` may delete it, in milliseconds since 1970; never, if none.
    pub expires_ms: Option<i64>,
    /// Bytes that its own layers may take; any number, if none.
    pub quota_bytes: Option<u64>,
    /// The directory with the programs of its Postgres, if one was set; else they are searched for.
    pub pg_bin: Option<PathBuf>,
    /// When it was deleted; what it held stays until `gc` purges it. None while it lives.
    pub deleted_ms: Option<i64>,
}

/// What is to be recorded of a branch that comes into being.
#[derive(Debug, Clone)]
pub struct NewBranch {
    /// Its name.
    pub name: BranchName,
    /// Where it comes from, see [`BranchRow::origin`].
    pub origin: String,
    /// Who asked for it.
    pub uid: u32,
    /// The command that made it, for the operation log.
    pub command: String,
    /// See [`BranchRow::expires_ms`].
    pub expires_ms: Option<i64>,
}

const COLUMNS: &str = "id, name, parent, head, created_ms, created_by, hygiene_pending, origin, \
                       protected, expires_ms, deleted_ms, begins, quota_bytes, pg_bin";

fn from_row(row: &Row<'_>) -> rusqlite::Result<BranchRow> {
    let name: String = row.get(1)?;
    Ok(BranchRow {
        id: BranchId(row.get(0)?),
        name: name
            .parse()
            .map_err(|e| rusqlite::Error::FromSqlConversionFailure(1, Type::Text, Box::new(e)))?,
        parent: row.get::<_, Option<u64>>(2)?.map(BranchId),
        head: LayerId(row.get(3)?),
        created_ms: row.get(4)?,
        created_by: row.get(5)?,
        hygiene_pending: row.get(6)?,
        origin: row.get(7)?,
        protected: row.get(8)?,
        expires_ms: row.get(9)?,
        deleted_ms: row.get(10)?,
        begins: row.get::<_, Option<u64>>(11)?.map(LayerId),
        quota_bytes: row.get(12)?,
        pg_bin: row
            .get::<_, Option<Vec<u8>>>(13)?
            .map(|bytes| PathBuf::from(OsString::from_vec(bytes))),
    })
}

/// The branch with `id`, or an error that says it is gone.
pub(super) fn require(connection: &Connection, id: BranchId) -> Result<BranchRow, CatalogError> {
    find(connection, id)?.ok_or(CatalogError::BranchGone { id })
}

/// The branch with `id`, deleted or not, or an error that says it is gone.
pub(super) fn require_any(
    connection: &Connection,
    id: BranchId,
) -> Result<BranchRow, CatalogError> {
    let sql = format!("SELECT {COLUMNS} FROM branches WHERE id = ?");
    let found = connection.prepare_cached(&sql)?.query_row([id.0], from_row).optional()?;
    found.ok_or(CatalogError::BranchGone { id })
}

/// The branch with `id`, for something that a protected branch is to be safe from.
pub(super) fn require_unprotected(
    connection: &Connection,
    id: BranchId,
) -> Result<BranchRow, CatalogError> {
    let row = require(connection, id)?;
    if row.protected { Err(CatalogError::Protected { name: row.name }) } else { Ok(row) }
}

fn find(connection: &Connection, id: BranchId) -> Result<Option<BranchRow>, CatalogError> {
    let sql = format!("SELECT {COLUMNS} FROM live_branches WHERE id = ?");
    Ok(connection.prepare_cached(&sql)?.query_row([id.0], from_row).optional()?)
}

/// Adds a branch whose head layer has its row already. Its Postgres is its parent's.
pub(super) fn insert(
    transaction: &Transaction<'_>,
    new: &NewBranch,
    parent: Option<BranchId>,
    head: LayerId,
    hygiene_pending: bool,
) -> Result<BranchRow, CatalogError> {
    insert_as(transaction, new, parent, head, hygiene_pending, None)
}

/// Like [`insert`], perhaps of a branch that counts as deleted from the beginning.
pub(super) fn insert_as(
    transaction: &Transaction<'_>,
    new: &NewBranch,
    parent: Option<BranchId>,
    head: LayerId,
    hygiene_pending: bool,
    deleted_ms: Option<i64>,
) -> Result<BranchRow, CatalogError> {
    let created_ms = now_ms();
    transaction
        .prepare_cached(
            "INSERT INTO branches
             (name, parent, head, created_ms, created_by, hygiene_pending, origin, deleted_ms,
              expires_ms, begins, pg_bin)
             SELECT ?1, ?2, id, ?3, ?4, ?5, ?6, ?7, ?8, parent,
                    (SELECT pg_bin FROM branches WHERE id = ?2)
             FROM layers WHERE id = ?9",
        )?
        .execute(params![
            new.name.as_str(),
            parent.map(|id| id.0),
            created_ms,
            new.uid,
            hygiene_pending,
            new.origin,
            deleted_ms,
            new.expires_ms,
            head.0
        ])
        .map_err(|e| name_taken(e, &new.name))?;
    require_any(transaction, BranchId(transaction.last_insert_rowid() as u64))
}

/// Heads are fresh layers, so a conflict can only be about the name.
pub(super) fn name_taken(error: rusqlite::Error, name: &BranchName) -> CatalogError {
    if is_conflict(&error) {
        CatalogError::BranchExists { name: name.clone() }
    } else {
        error.into()
    }
}

/// Points a branch at another head.
pub(super) fn set_head(
    transaction: &Transaction<'_>,
    id: BranchId,
    head: LayerId,
) -> Result<(), CatalogError> {
    transaction
        .prepare_cached("UPDATE branches SET head = ? WHERE id = ?")?
        .execute([head.0, id.0])?;
    Ok(())
}

impl Catalog {
    /// The branch of that name, if there is one.
    pub fn branch(&self, name: &BranchName) -> Result<Option<BranchRow>, CatalogError> {
        self.read(|connection| {
            let sql = format!("SELECT {COLUMNS} FROM live_branches WHERE name = ?");
            let mut statement = connection.prepare_cached(&sql)?;
            Ok(statement.query_row([name.as_str()], from_row).optional()?)
        })
    }

    /// The branch of that name, or [`CatalogError::BranchNotFound`].
    pub fn require_branch(&self, name: &BranchName) -> Result<BranchRow, CatalogError> {
        self.branch(name)?.ok_or_else(|| CatalogError::BranchNotFound { name: name.clone() })
    }

    /// The branch with that id, if it still exists.
    pub fn branch_by_id(&self, id: BranchId) -> Result<Option<BranchRow>, CatalogError> {
        self.read(|connection| find(connection, id))
    }

    /// The branches that were deleted and can come back still, the last one first.
    pub fn deleted_branches(&self) -> Result<Vec<BranchRow>, CatalogError> {
        self.read(|connection| {
            let sql = format!(
                "SELECT {COLUMNS} FROM branches WHERE deleted_ms IS NOT NULL
                 ORDER BY deleted_ms DESC, id DESC"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement.query_map([], from_row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// All branches, ordered by name.
    pub fn branches(&self) -> Result<Vec<BranchRow>, CatalogError> {
        self.read(|connection| {
            let sql = format!("SELECT {COLUMNS} FROM live_branches ORDER BY name");
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement.query_map([], from_row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Adds a branch with a new open layer `head`, which stands on nothing or on a sealed layer.
    pub fn create_branch(
        &self,
        new: &NewBranch,
        head: NewLayer,
    ) -> Result<BranchRow, CatalogError> {
        self.write(|transaction| {
            layers::insert(transaction, head, LayerState::Open, false, None)?;
            let row = insert(transaction, new, None, head.id, false)?;
            let actor = Actor { uid: new.uid, command: &new.command };
            let detail = format!("branch {} from {}", row.id, row.origin);
            oplog::record(transaction, actor, Some(row.name.as_str()), &detail)?;
            Ok(row)
        })
    }

    /// Notes that the leftovers of the parent's server are gone from the branch.
    pub fn clear_hygiene(&self, id: BranchId) -> Result<(), CatalogError> {
        self.write(|transaction| {
            let row = require(transaction, id)?;
            transaction
                .prepare_cached("UPDATE branches SET hygiene_pending = 0 WHERE id = ?")?
                .execute([id.0])?;
            let actor = Actor::process("hygiene");
            oplog::record(transaction, actor, Some(row.name.as_str()), "hygiene done")
        })
    }

    /// Gives a branch another name.
    pub fn rename_branch(
        &self,
        id: BranchId,
        name: &BranchName,
        uid: u32,
        command: &str,
    ) -> Result<BranchRow, CatalogError> {
        self.write(|transaction| {
            let old = require(transaction, id)?;
            transaction
                .prepare_cached("UPDATE branches SET name = ? WHERE id = ?")?
                .execute(params![name.as_str(), id.0])
                .map_err(|e| name_taken(e, name))?;
            let detail = format!("branch {id} renamed from {}", old.name);
            let undo = Undo::Rename { branch: id, from: old.name.clone(), to: name.clone() };
            let actor = Actor { uid, command };
            oplog::record_undoable(transaction, actor, Some(name.as_str()), &detail, &undo)?;
            Ok(BranchRow { name: name.clone(), ..old })
        })
    }

    /// Deletes a branch. Its children keep their data; its own stays until it is purged.
    ///
    /// The caller holds the branch's lock. A protected branch is refused.
    pub fn delete_branch(
        &self,
        id: BranchId,
        uid: u32,
        command: &str,
    ) -> Result<BranchRow, CatalogError> {
        self.write(|transaction| {
            let row = require_unprotected(transaction, id)?;
            transaction
                .prepare_cached("UPDATE branches SET deleted_ms = ? WHERE id = ?")?
                .execute(params![now_ms(), id.0])?;
            let detail = format!("branch {id} deleted, head was layer {}", row.head.dir_name());
            let (actor, undo) = (Actor { uid, command }, Undo::Delete { branch: id });
            oplog::record_undoable(transaction, actor, Some(row.name.as_str()), &detail, &undo)?;
            Ok(row)
        })
    }

    /// Forgets deleted branches for good, with their snapshots; layers stay for gc. Those that
    /// live are left alone. Returns how many went.
    pub fn purge_branches(
        &self,
        ids: &[BranchId],
        actor: Actor<'_>,
    ) -> Result<usize, CatalogError> {
        self.write(|transaction| {
            let mut gone = Vec::new();
            for id in ids {
                let mut purge = transaction.prepare_cached(
                    "DELETE FROM branches WHERE id = ? AND deleted_ms IS NOT NULL RETURNING name",
                )?;
                gone.extend(purge.query_row([id.0], |row| row.get::<_, String>(0)).optional()?);
            }
            if !gone.is_empty() {
                let detail = format!("purged {}", gone.join(", "));
                oplog::record(transaction, actor, None, &detail)?;
            }
            Ok(gone.len())
        })
    }
}
