//! What gc lets go of before it looks for layers: expired branches and snapshots, and deleted
//! branches that nobody brought back.

use std::collections::HashSet;

use super::branch::delete::{self, After};
use super::branch::list;
use super::span::Span;
use super::{failure, requester};
use crate::catalog::reach::Root;
use crate::catalog::{Actor, BranchRow, CatalogError, Store, now_ms};
use crate::format::BranchId;
use crate::serve::Failure;

/// What was let go of, or would be.
#[derive(Debug, Default, serde::Serialize)]
pub(super) struct Pruned {
    /// Branches that were deleted because they had expired.
    pub expired_branches: Vec<String>,
    /// Expired branches that stay because they are in use or protected.
    pub expired_branches_kept: Vec<String>,
    /// Snapshots that had expired.
    pub expired_snapshots: usize,
    /// Deleted branches that cannot come back any more.
    pub purged_branches: usize,
    /// Deleted branches that can, until a later gc.
    pub deleted_branches_kept: usize,
    /// The same by id, and the snapshots: for a dry run, in which they are all there still.
    #[serde(skip)]
    doomed: (HashSet<BranchId>, HashSet<i64>),
}

impl Pruned {
    /// Whether there is nothing to let go of.
    pub fn is_nothing(&self) -> bool {
        self.expired_branches.is_empty() && self.expired_snapshots + self.purged_branches == 0
    }

    /// Whether a root is gone, or would be.
    pub fn dooms(&self, root: &Root) -> bool {
        let (branches, snapshots) = &self.doomed;
        branches.contains(&root.branch) || root.snapshot.is_some_and(|id| snapshots.contains(&id))
    }
}

/// Deletes a branch that nobody uses, or tells whether it would.
fn may_go(store: &Store, row: &BranchRow, dry_run: bool) -> bool {
    if dry_run {
        return !list::in_use(store, row);
    }
    delete::delete(store, row, false, After::Keep).is_ok()
}

/// Deletes what has expired, and forgets branches that were deleted longer ago than `grace`.
pub(super) fn prune(store: &Store, grace: Option<Span>, dry_run: bool) -> Result<Pruned, Failure> {
    let catalog = |error: CatalogError| failure::of_catalog(&error);
    let mut pruned = Pruned::default();
    let now = now_ms();
    let due = |expires: Option<i64>| expires.is_some_and(|at| at <= now);
    let expired: Vec<BranchRow> = store.catalog.branches().map_err(catalog)?;
    for row in expired.into_iter().filter(|row| due(row.expires_ms)) {
        let gone = !row.protected && may_go(store, &row, dry_run);
        if gone && dry_run && grace.is_none() {
            pruned.doomed.0.insert(row.id);
        }
        let list =
            if gone { &mut pruned.expired_branches } else { &mut pruned.expired_branches_kept };
        list.push(row.name.to_string());
    }
    let snapshots = store.catalog.snapshots().map_err(catalog)?;
    let due: Vec<i64> =
        snapshots.iter().filter(|row| due(row.expires_ms)).map(|row| row.id).collect();
    let deleted = store.catalog.deleted_branches().map_err(catalog)?;
    let until = grace.map_or_else(now_ms, Span::ago_ms);
    let old = |row: &&BranchRow| row.deleted_ms.is_some_and(|at| at <= until);
    let doomed: Vec<BranchId> = deleted.iter().filter(old).map(|row| row.id).collect();
    pruned.doomed.0.extend(&doomed);
    pruned.doomed.1.extend(&due);
    pruned.expired_snapshots = due.len();
    pruned.purged_branches = doomed.len();
    pruned.deleted_branches_kept = deleted.len() - doomed.len();
    if dry_run {
        return Ok(pruned);
    }
    let by = requester();
    let actor = Actor { uid: by.uid, command: &by.command };
    if !due.is_empty() {
        store.catalog.delete_snapshots(&due, None, actor).map_err(catalog)?;
    }
    if !doomed.is_empty() {
        store.catalog.purge_branches(&doomed, actor).map_err(catalog)?;
    }
    Ok(pruned)
}

/// Deletes the snapshots that have expired; gives how many.
pub(super) fn expired_snapshots(store: &Store) -> Result<usize, Failure> {
    let catalog = |error: CatalogError| failure::of_catalog(&error);
    let now = now_ms();
    let all = store.catalog.snapshots().map_err(catalog)?;
    let due: Vec<i64> = all
        .iter()
        .filter(|row| row.expires_ms.is_some_and(|at| at <= now))
        .map(|row| row.id)
        .collect();
    if due.is_empty() {
        return Ok(0);
    }
    let by = requester();
    let actor = Actor { uid: by.uid, command: &by.command };
    store.catalog.delete_snapshots(&due, None, actor).map_err(catalog)
}
