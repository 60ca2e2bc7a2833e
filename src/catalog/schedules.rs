//! Which branches have a snapshot taken now and then.

use rusqlite::params;

use super::branches;
use super::oplog::{self, Actor};
use super::{Catalog, CatalogError};
use crate::format::BranchId;

/// How often a branch has a snapshot taken, and for how long each is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// The branch.
    pub branch: BranchId,
    /// Milliseconds from one to the next.
    pub every_ms: i64,
    /// Milliseconds until one expires.
    pub keep_ms: i64,
}

impl Catalog {
    /// The schedules of all branches that are not deleted.
    pub fn schedules(&self) -> Result<Vec<Schedule>, CatalogError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT s.branch, s.every_ms, s.keep_ms
                 FROM schedules s JOIN live_branches b ON b.id = s.branch ORDER BY b.name",
            )?;
            let rows = statement.query_map([], |row| {
                Ok(Schedule {
                    branch: BranchId(row.get(0)?),
                    every_ms: row.get(1)?,
                    keep_ms: row.get(2)?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Gives a branch a schedule instead of the one it may have had.
    pub fn set_schedule(&self, new: Schedule, actor: Actor<'_>) -> Result<(), CatalogError> {
        self.write(|transaction| {
            let row = branches::require(transaction, new.branch)?;
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO schedules (branch, every_ms, keep_ms) VALUES (?, ?, ?)",
                )?
                .execute(params![new.branch.0, new.every_ms, new.keep_ms])?;
            let detail = format!(
                "a snapshot every {} s, kept for {} s",
                new.every_ms / 1000,
                new.keep_ms / 1000
            );
            oplog::record(transaction, actor, Some(row.name.as_str()), &detail)
        })
    }

    /// Ends the schedule of a branch; the snapshots stay until they expire.
    pub fn end_schedule(&self, branch: BranchId, actor: Actor<'_>) -> Result<(), CatalogError> {
        self.write(|transaction| {
            let row = branches::require(transaction, branch)?;
            transaction
                .prepare_cached("DELETE FROM schedules WHERE branch = ?")?
                .execute([branch.0])?;
            oplog::record(transaction, actor, Some(row.name.as_str()), "no snapshots by schedule")
        })
    }
}
