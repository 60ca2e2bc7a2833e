//! The state of a branch for one command: a snapshot that is there, or one taken for it alone.

use std::sync::Arc;

use super::super::branch::here_or_there::require;
use super::super::failure;
use crate::branch::fork::Requester;
use crate::catalog::{
    Actor, BranchPoint, BranchRow, CatalogError, SnapshotName, SnapshotRow, Store, now_ms,
};
use crate::serve::Failure;

/// One that was taken for a command goes after that time, should the command die.
const EXPIRES_AFTER_MS: i64 = 3_600_000;

/// A state that does not change.
pub(in crate::cli) struct PassingState {
    /// The branch it is one of.
    pub branch: BranchRow,
    /// The snapshot that keeps it.
    pub snapshot: SnapshotRow,
    passing: bool,
}

impl PassingState {
    /// The state of `point`: of its snapshot, or else of the branch as it is now. `what` it is for
    /// is what a snapshot that has to be taken is called after.
    pub fn of(
        store: &Arc<Store>,
        point: &BranchPoint,
        what: &str,
        by: &Requester,
    ) -> Result<PassingState, Failure> {
        let branch = require(store, &point.branch)?;
        let passing = point.snapshot.is_none();
        let name = point.snapshot.clone();
        let name = name.unwrap_or_else(|| SnapshotName::at_time(what, now_ms()));
        if passing {
            super::take(store, &point.branch, &name, Some(now_ms() + EXPIRES_AFTER_MS), by)?;
        }
        let snapshot = store.catalog.require_snapshot(&branch, &name);
        let snapshot = snapshot.map_err(|error: CatalogError| failure::of_catalog(&error))?;
        Ok(PassingState { branch, snapshot, passing })
    }

    /// Removes the snapshot if it was taken for this; branches that stand on it keep its state.
    pub fn forget(self, store: &Store, by: &Requester) {
        if !self.passing {
            return;
        }
        let actor = Actor { uid: by.uid, command: &by.command };
        let name = Some(&self.branch.name);
        if let Err(error) = store.catalog.delete_snapshots(&[self.snapshot.id], name, actor) {
            tracing::warn!(%error, "a snapshot that is not needed any more stays for gc");
        }
    }
}
