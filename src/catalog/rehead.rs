//! The transactions that give a branch another state: reset, restore, and taking them back.

use rusqlite::{Transaction, params};

use super::branches::{self, BranchRow, NewBranch};
use super::layers::{self, NewLayer};
use super::oplog::{self, Actor};
use super::undo::Undo;
use super::{BranchName, Catalog, CatalogError, LayerState, now_ms};
use crate::format::{BranchId, LayerId};

/// What a branch is to begin anew with.
#[derive(Debug, Clone)]
pub struct ReheadPlan<'a> {
    /// The branch. The caller holds its lock.
    pub branch: BranchId,
    /// The sealed layer it is to stand on.
    pub base: LayerId,
    /// Its new open layer.
    pub head: LayerId,
    /// Where the state comes from, see [`BranchRow::origin`].
    pub origin: String,
    /// The name under which what it was stays as a branch; without one it is kept like a deleted
    /// branch, until gc takes it.
    pub keep_as: Option<&'a BranchName>,
}

/// What became of a branch.
#[derive(Debug, Clone)]
pub struct Reheaded {
    /// The branch as it is now.
    pub row: BranchRow,
    /// What it was.
    pub kept: BranchRow,
    /// The entry of the operation log.
    pub operation: i64,
}

impl Catalog {
    /// Gives a branch another state; what it was stays, as a branch of its own.
    pub fn rehead(
        &self,
        plan: &ReheadPlan<'_>,
        actor: Actor<'_>,
    ) -> Result<Reheaded, CatalogError> {
        self.write(|transaction| {
            let old = branches::require_unprotected(transaction, plan.branch)?;
            let top = NewLayer { id: plan.head, parent: Some(plan.base) };
            layers::insert(transaction, top, LayerState::Open, false, None)?;
            transaction
                .prepare_cached(
                    "UPDATE branches SET head = ?, begins = ?, origin = ?, hygiene_pending = 1
                     WHERE id = ?",
                )?
                .execute(params![plan.head.0, plan.base.0, plan.origin, old.id.0])?;
            let kept = keep(transaction, &old, plan.keep_as, actor)?;
            let undo = Undo::Rehead { branch: old.id, kept: kept.id };
            let detail = format!(
                "branch {} is {} now; it was layer {}, kept as {}",
                old.id,
                plan.origin,
                old.head.dir_name(),
                kept.id
            );
            let operation = oplog::record_undoable(
                transaction,
                actor,
                Some(old.name.as_str()),
                &detail,
                &undo,
            )?;
            let row = branches::require(transaction, old.id)?;
            Ok(Reheaded { row, kept, operation })
        })
    }
}

/// Adds a branch for the state that `old` had until now.
fn keep(
    transaction: &Transaction<'_>,
    old: &BranchRow,
    keep_as: Option<&BranchName>,
    actor: Actor<'_>,
) -> Result<BranchRow, CatalogError> {
    let new = NewBranch {
        name: keep_as.unwrap_or(&old.name).clone(),
        origin: old.origin.clone(),
        uid: old.created_by,
        command: actor.command.to_owned(),
        expires_ms: None,
    };
    let deleted_ms = keep_as.is_none().then(now_ms);
    let kept = branches::insert_as(
        transaction,
        &new,
        old.parent,
        old.head,
        old.hygiene_pending,
        deleted_ms,
    )?;
    let mut set = transaction.prepare_cached(
        "UPDATE branches SET begins = ?1, pg_bin = (SELECT pg_bin FROM branches WHERE id = ?2)
         WHERE id = ?3",
    )?;
    set.execute(params![old.begins.map(|layer| layer.0), old.id.0, kept.id.0])?;
    branches::require_any(transaction, kept.id)
}

/// Exchanges the states of two branches; the second counts as deleted from then on.
pub(super) fn exchange(
    transaction: &Transaction<'_>,
    branch: BranchId,
    kept: BranchId,
) -> Result<(BranchRow, BranchRow), CatalogError> {
    let one = branches::require_unprotected(transaction, branch)?;
    let other = branches::require_any(transaction, kept)?;
    // Two rows exchange a unique value: for a moment one of them has a layer that does not exist.
    transaction.pragma_update(None, "defer_foreign_keys", "ON")?;
    transaction.execute("UPDATE branches SET head = -1 WHERE id = ?", [one.id.0])?;
    let mut set = transaction.prepare_cached(
        "UPDATE branches SET head = ?, begins = ?, origin = ?, hygiene_pending = ?, deleted_ms = ?
         WHERE id = ?",
    )?;
    for (from, to, deleted_ms) in [(&one, &other, Some(now_ms())), (&other, &one, None)] {
        let begins = from.begins.map(|layer| layer.0);
        let (origin, pending) = (&from.origin, from.hygiene_pending);
        set.execute(params![from.head.0, begins, origin, pending, deleted_ms, to.id.0])?;
    }
    Ok((branches::require(transaction, one.id)?, branches::require_any(transaction, other.id)?))
}
