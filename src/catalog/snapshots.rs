//! Snapshots: named states of a branch. Each keeps one sealed layer, and all below it, alive.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::branches::{self, BranchRow, NewBranch};
use super::error::is_conflict;
use super::fork::{self, SealPlan};
use super::layers::{self, NewLayer};
use super::oplog::{self, Actor};
use super::{BranchName, Catalog, CatalogError, LayerState, SnapshotName, now_ms};
use crate::format::{BranchId, LayerId};

/// A snapshot as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRow {
    /// Never reused.
    pub id: i64,
    /// The branch it was taken of.
    pub branch: BranchId,
    /// Unique among the snapshots of the branch.
    pub name: SnapshotName,
    /// The sealed layer that was the newest of the branch.
    pub layer: LayerId,
    /// Who took it.
    pub created_by: u32,
    /// Milliseconds since 1970.
    pub created_ms: i64,
    /// When `gc` may take it, in milliseconds since 1970; never, if none.
    pub expires_ms: Option<i64>,
}

/// What is to be recorded of a snapshot that comes into being.
#[derive(Debug, Clone)]
pub struct NewSnapshot {
    /// Its name.
    pub name: SnapshotName,
    /// See [`SnapshotRow::expires_ms`].
    pub expires_ms: Option<i64>,
    /// Who asked for it.
    pub uid: u32,
    /// The command that made it, for the operation log.
    pub command: String,
}

/// A snapshot as the branch code planned it. The catalog checks it against what it knows.
#[derive(Debug, Clone)]
pub struct SnapshotPlan {
    /// The branch.
    pub branch: BranchId,
    /// The snapshot.
    pub new: NewSnapshot,
    /// Set unless the branch's open layer is empty.
    pub seal: Option<SealPlan>,
    /// The layer that is sealed, or else the one below the head.
    pub base: Option<LayerId>,
}

const COLUMNS: &str = "id, branch, name, layer, created_by, created_ms, expires_ms";

fn from_row(row: &Row<'_>) -> rusqlite::Result<SnapshotRow> {
    let name: String = row.get(2)?;
    Ok(SnapshotRow {
        id: row.get(0)?,
        branch: BranchId(row.get(1)?),
        name: name
            .parse()
            .map_err(|e| rusqlite::Error::FromSqlConversionFailure(2, Type::Text, Box::new(e)))?,
        layer: LayerId(row.get(3)?),
        created_by: row.get(4)?,
        created_ms: row.get(5)?,
        expires_ms: row.get(6)?,
    })
}

fn find(
    connection: &Connection,
    branch: BranchId,
    name: &SnapshotName,
) -> Result<Option<SnapshotRow>, CatalogError> {
    let sql = format!("SELECT {COLUMNS} FROM snapshots WHERE branch = ? AND name = ?");
    let mut statement = connection.prepare_cached(&sql)?;
    Ok(statement.query_row(params![branch.0, name.as_str()], from_row).optional()?)
}

fn select(connection: &Connection, filter: &str) -> Result<Vec<SnapshotRow>, CatalogError> {
    let sql = format!("SELECT {COLUMNS} FROM snapshots {filter}");
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map([], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn insert(
    transaction: &Transaction<'_>,
    branch: &BranchRow,
    new: &NewSnapshot,
    layer: LayerId,
) -> Result<SnapshotRow, CatalogError> {
    let created_ms = now_ms();
    let inserted = transaction
        .prepare_cached(
            "INSERT INTO snapshots (branch, name, layer, created_by, created_ms, expires_ms)
             VALUES (?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            branch.id.0,
            new.name.as_str(),
            layer.0,
            new.uid,
            created_ms,
            new.expires_ms
        ]);
    inserted.map_err(|error| {
        if is_conflict(&error) {
            let (branch, name) = (branch.name.clone(), new.name.clone());
            return CatalogError::SnapshotExists { branch, name };
        }
        error.into()
    })?;
    Ok(SnapshotRow {
        id: transaction.last_insert_rowid(),
        branch: branch.id,
        name: new.name.clone(),
        layer,
        created_by: new.uid,
        created_ms,
        expires_ms: new.expires_ms,
    })
}

impl Catalog {
    /// Takes a snapshot of a branch in one transaction, durable when this returns.
    pub fn snapshot(&self, plan: &SnapshotPlan) -> Result<SnapshotRow, CatalogError> {
        self.write(|transaction| {
            let branch = branches::require(transaction, plan.branch)?;
            let base = fork::seal_for(transaction, &branch, plan.seal, plan.base)?;
            let Some(layer) = base else {
                return Err(CatalogError::NothingToKeep { branch: branch.name });
            };
            layers::require_state(transaction, layer, LayerState::Sealed)?;
            let row = insert(transaction, &branch, &plan.new, layer)?;
            let actor = Actor { uid: plan.new.uid, command: &plan.new.command };
            let detail = format!("snapshot {} of layer {}", row.name, layer.dir_name());
            oplog::record(transaction, actor, Some(branch.name.as_str()), &detail)?;
            Ok(row)
        })
    }

    /// The snapshot of that name of a branch, or [`CatalogError::SnapshotNotFound`].
    pub fn require_snapshot(
        &self,
        branch: &BranchRow,
        name: &SnapshotName,
    ) -> Result<SnapshotRow, CatalogError> {
        let found = self.read(|connection| find(connection, branch.id, name))?;
        found.ok_or_else(|| CatalogError::SnapshotNotFound {
            branch: branch.name.clone(),
            name: name.clone(),
        })
    }

    /// All snapshots, also those of deleted branches, in the order in which they were taken.
    pub fn snapshots(&self) -> Result<Vec<SnapshotRow>, CatalogError> {
        self.read(|connection| select(connection, "ORDER BY id"))
    }

    /// The snapshots of a branch, in the order in which they were taken.
    pub fn snapshots_of(&self, branch: BranchId) -> Result<Vec<SnapshotRow>, CatalogError> {
        let mut all = self.snapshots()?;
        all.retain(|row| row.branch == branch);
        Ok(all)
    }

    /// Deletes snapshots; their layers stay for gc. Those that are gone already are no error.
    ///
    /// Returns how many went.
    pub fn delete_snapshots(
        &self,
        ids: &[i64],
        branch: Option<&BranchName>,
        actor: Actor<'_>,
    ) -> Result<usize, CatalogError> {
        self.write(|transaction| {
            let mut gone = Vec::new();
            for id in ids {
                let mut delete = transaction
                    .prepare_cached("DELETE FROM snapshots WHERE id = ? RETURNING name")?;
                gone.extend(delete.query_row([id], |row| row.get::<_, String>(0)).optional()?);
            }
            if !gone.is_empty() {
                let detail = format!("snapshot {} deleted", gone.join(", "));
                oplog::record(transaction, actor, branch.map(BranchName::as_str), &detail)?;
            }
            Ok(gone.len())
        })
    }

    /// Adds a branch whose new open layer `head` stands on a snapshot.
    pub fn create_branch_from_snapshot(
        &self,
        new: &NewBranch,
        snapshot: &SnapshotRow,
        head: LayerId,
    ) -> Result<BranchRow, CatalogError> {
        self.write(|transaction| {
            let parent = branches::require(transaction, snapshot.branch)?;
            let still = find(transaction, snapshot.branch, &snapshot.name)?;
            if still.as_ref() != Some(snapshot) {
                let (branch, name) = (parent.name, snapshot.name.clone());
                return Err(CatalogError::SnapshotNotFound { branch, name });
            }
            let from = format!("{}@{}", parent.name, snapshot.name);
            stand_on(transaction, new, (&parent, snapshot.layer), head, &from)
        })
    }

    /// Adds a branch whose new open layer `head` stands on a sealed layer that a branch or a
    /// snapshot reaches; `parent` is whose child it is.
    pub fn create_branch_from_layer(
        &self,
        new: &NewBranch,
        parent: BranchId,
        layer: LayerId,
        head: LayerId,
    ) -> Result<BranchRow, CatalogError> {
        self.write(|transaction| {
            let parent = branches::require(transaction, parent)?;
            layers::require_state(transaction, layer, LayerState::Sealed)?;
            if !layers::reachable(transaction)?.contains(&layer) {
                return Err(CatalogError::LayerNotFound { layer });
            }
            let from = format!("layer {}", layer.dir_name());
            stand_on(transaction, new, (&parent, layer), head, &from)
        })
    }
}

/// Adds a branch on a layer; `from` says in the log what that is.
fn stand_on(
    transaction: &Transaction<'_>,
    new: &NewBranch,
    (parent, layer): (&BranchRow, LayerId),
    head: LayerId,
    from: &str,
) -> Result<BranchRow, CatalogError> {
    let top = NewLayer { id: head, parent: Some(layer) };
    layers::insert(transaction, top, LayerState::Open, false, None)?;
    let row = branches::insert(transaction, new, Some(parent.id), head, true)?;
    let actor = Actor { uid: new.uid, command: &new.command };
    oplog::record(
        transaction,
        actor,
        Some(row.name.as_str()),
        &format!("branch {} from {from}", row.id),
    )?;
    Ok(row)
}
