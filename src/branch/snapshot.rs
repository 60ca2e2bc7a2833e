//! Snapshots: a branch's state is kept under a name, and branches begin with it.

use std::sync::Arc;
use std::time::Instant;

use super::fork::{Requester, Times, micros, new_branch, new_layer_id, plan_unmounted};
use super::{Branch, BranchError};
use crate::catalog::rehead::Reheaded;
use crate::catalog::{
    Actor, BranchLock, BranchName, BranchRow, NewBranch, NewSnapshot, ReheadPlan, SnapshotPlan,
    SnapshotRow, Store,
};
use crate::format::LayerId;

/// A snapshot, and how long it took.
#[derive(Clone, Debug)]
pub struct SnapshotReport {
    /// The snapshot.
    pub snapshot: SnapshotRow,
    /// How long it took.
    pub times: Times,
}

impl Branch {
    /// Keeps the state of this (served, perhaps busy) branch under a name.
    pub fn snapshot(&self, new: NewSnapshot) -> Result<SnapshotReport, BranchError> {
        let (snapshot, times) = self.freeze(|open, open_parent, seal| {
            let base = if seal.is_some() { Some(open) } else { open_parent };
            let plan = SnapshotPlan { branch: self.row.id, new, seal, base };
            Ok(self.store.catalog.snapshot(&plan)?)
        })?;
        Ok(SnapshotReport { snapshot, times })
    }
}

/// Takes a snapshot of a branch that no process serves; the caller holds its lock.
pub fn snapshot_unmounted(
    store: &Arc<Store>,
    branch: &BranchRow,
    _lock: &BranchLock,
    new: NewSnapshot,
) -> Result<SnapshotReport, BranchError> {
    let start = Instant::now();
    let (head, seal) = plan_unmounted(store, branch)?;
    let base = if seal.is_some() { Some(head.id) } else { head.parent };
    let snapshot = store.catalog.snapshot(&SnapshotPlan { branch: branch.id, new, seal, base })?;
    let total_us = micros(start.elapsed());
    Ok(SnapshotReport { snapshot, times: Times { gate_us: 0, commit_us: total_us, total_us } })
}

/// Creates a branch from a snapshot. What it stands on never changes, so nobody is asked. gc may
/// delete it at `expires_ms`, in milliseconds since 1970.
pub fn branch_from_snapshot(
    store: &Store,
    parent: &BranchRow,
    snapshot: &SnapshotRow,
    name: BranchName,
    expires_ms: Option<i64>,
    by: &Requester,
) -> Result<BranchRow, BranchError> {
    let origin = format!("fork:{}@{}", parent.name, snapshot.name);
    let new = NewBranch { expires_ms, ..new_branch(name, origin, by) };
    Ok(store.catalog.create_branch_from_snapshot(&new, snapshot, new_layer_id()?)?)
}

/// Creates a branch on a sealed layer of another's, as the state that it went through once. gc may
/// delete it at `expires_ms`.
pub fn branch_from_layer(
    store: &Store,
    branch: &BranchRow,
    layer: LayerId,
    name: BranchName,
    expires_ms: Option<i64>,
    by: &Requester,
) -> Result<BranchRow, BranchError> {
    let new = NewBranch { expires_ms, ..new_branch(name, format!("fork:{}", branch.name), by) };
    Ok(store.catalog.create_branch_from_layer(&new, branch.id, layer, new_layer_id()?)?)
}

/// Gives a branch that nobody serves the state of a snapshot; `lock` is the branch's.
pub fn rehead(
    store: &Store,
    branch: &BranchRow,
    _lock: &BranchLock,
    (base, origin): (LayerId, String),
    keep_as: Option<&BranchName>,
    by: &Requester,
) -> Result<Reheaded, BranchError> {
    let plan = ReheadPlan { branch: branch.id, base, head: new_layer_id()?, origin, keep_as };
    Ok(store.catalog.rehead(&plan, Actor { uid: by.uid, command: &by.command })?)
}
