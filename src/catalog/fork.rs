//! The transactions that move heads: fork and seal.

use std::io;

use rusqlite::Transaction;

use super::branches::{self, BranchRow, NewBranch};
use super::layers::{self, NewLayer};
use super::oplog::{self, Actor};
use super::{Catalog, CatalogError, LayerState};
use crate::format::{BranchId, LayerId};

/// A branch's open layer becomes sealed and a new one takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealPlan {
    /// The branch's open layer as the caller knows it.
    pub open: LayerId,
    /// Its successor.
    pub parent_next: LayerId,
}

/// A fork as the branch code planned it. The catalog checks it against what it knows.
#[derive(Debug, Clone)]
pub struct ForkPlan {
    /// The branch that is forked.
    pub parent: BranchId,
    /// The branch that comes into being.
    pub child: NewBranch,
    /// Set unless the parent's open layer is empty.
    pub seal: Option<SealPlan>,
    /// What the child's head stands on: the layer that is sealed, or else the one below the
    /// parent's head.
    pub child_base: Option<LayerId>,
    /// The child's open layer.
    pub child_head: LayerId,
}

/// Seals `plan.open` under branch `row` and makes `plan.parent_next` its head.
fn apply_seal(
    transaction: &Transaction<'_>,
    row: &BranchRow,
    plan: SealPlan,
) -> Result<(), CatalogError> {
    if row.head != plan.open {
        return Err(CatalogError::HeadMoved {
            branch: row.id,
            expected: plan.open,
            found: row.head,
        });
    }
    layers::require_state(transaction, plan.open, LayerState::Open)?;
    layers::set_state(transaction, plan.open, LayerState::Sealed)?;
    let next = NewLayer { id: plan.parent_next, parent: Some(plan.open) };
    layers::insert(transaction, next, LayerState::Open, false, None)?;
    branches::set_head(transaction, row.id, plan.parent_next)
}

/// Seals the open layer of branch `row` if that is planned; `planned` must be what a fork or a
/// snapshot then stands on, which is returned.
pub(super) fn seal_for(
    transaction: &Transaction<'_>,
    row: &BranchRow,
    seal: Option<SealPlan>,
    planned: Option<LayerId>,
) -> Result<Option<LayerId>, CatalogError> {
    let head = layers::require_state(transaction, row.head, LayerState::Open)?;
    let base = match seal {
        Some(seal) => {
            apply_seal(transaction, row, seal)?;
            Some(seal.open)
        }
        None => head.parent,
    };
    if planned != base {
        return Err(CatalogError::WrongBase { branch: row.id, expected: base, found: planned });
    }
    Ok(base)
}

impl Catalog {
    /// Forks a branch in one transaction, durable when this returns.
    ///
    /// `on_reserved` runs with the child's id before the commit, so that the caller can take the
    /// child's lock before anybody else can see the child. If it fails, nothing happened.
    pub fn fork(
        &self,
        plan: &ForkPlan,
        on_reserved: &mut dyn FnMut(BranchId) -> io::Result<()>,
    ) -> Result<BranchRow, CatalogError> {
        self.write(|transaction| {
            let parent = branches::require(transaction, plan.parent)?;
            let base = seal_for(transaction, &parent, plan.seal, plan.child_base)?;
            let top = NewLayer { id: plan.child_head, parent: base };
            layers::insert(transaction, top, LayerState::Open, false, None)?;
            let child = branches::insert(transaction, &plan.child, Some(parent.id), top.id, true)?;
            let actor = Actor { uid: plan.child.uid, command: &plan.child.command };
            let detail = format!("branch {} forked from {} ({})", child.id, parent.name, parent.id);
            oplog::record(transaction, actor, Some(child.name.as_str()), &detail)?;
            on_reserved(child.id)
                .map_err(|source| CatalogError::Reserve { branch: child.id, source })?;
            Ok(child)
        })
    }

    /// Seals a branch's open layer without a fork; `next` becomes its head.
    pub fn seal(&self, branch: BranchId, open: LayerId, next: LayerId) -> Result<(), CatalogError> {
        self.write(|transaction| {
            let row = branches::require(transaction, branch)?;
            apply_seal(transaction, &row, SealPlan { open, parent_next: next })?;
            let detail = format!("layer {} sealed", open.dir_name());
            oplog::record(transaction, Actor::process("seal"), Some(row.name.as_str()), &detail)
        })
    }
}
