//! What is said of a branch, without its state: protection, expiry, its place in the tree.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rusqlite::{ToSql, params};

use super::branches::{self, BranchRow};
use super::oplog::{self, Actor};
use super::{Catalog, CatalogError};
use crate::format::BranchId;

impl Catalog {
    /// Protects a branch from delete, reset, restore and expiry, or ends that.
    pub fn set_protected(
        &self,
        id: BranchId,
        protected: bool,
        actor: Actor<'_>,
    ) -> Result<BranchRow, CatalogError> {
        let detail = if protected { "protected" } else { "not protected any more" };
        self.set(id, "protected = ?2", Some(i64::from(protected)), detail, actor)
    }

    /// Sets when gc may delete a branch, in milliseconds since 1970, or that it never may.
    pub fn set_expiry(
        &self,
        id: BranchId,
        expires_ms: Option<i64>,
        actor: Actor<'_>,
    ) -> Result<BranchRow, CatalogError> {
        let detail = match expires_ms {
            Some(ms) => format!("expires {}", moment(ms)),
            None => "never expires".to_owned(),
        };
        self.set(id, "expires_ms = ?2", expires_ms, &detail, actor)
    }

    /// Sets how many bytes the layers that a branch writes may take, at least 1; any number, if none.
    pub fn set_quota(
        &self,
        id: BranchId,
        bytes: Option<u64>,
        actor: Actor<'_>,
    ) -> Result<BranchRow, CatalogError> {
        let detail = match bytes {
            Some(bytes) => format!("quota {bytes} bytes"),
            None => "no quota".to_owned(),
        };
        let value = bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
        self.set(id, "quota_bytes = ?2", value, &detail, actor)
    }

    /// Sets where the programs of a branch's Postgres are; none: they are searched for.
    pub fn set_pg_bin(
        &self,
        id: BranchId,
        dir: Option<&Path>,
        actor: Actor<'_>,
    ) -> Result<BranchRow, CatalogError> {
        let detail = match dir {
            Some(dir) => format!("Postgres programs in {}", dir.display()),
            None => "Postgres programs are searched for".to_owned(),
        };
        let value = dir.map(|dir| dir.as_os_str().as_bytes());
        self.set(id, "pg_bin = ?2", value, &detail, actor)
    }

    /// Makes a branch a root of the tree: it has no parent any more.
    pub fn detach_branch(&self, id: BranchId, actor: Actor<'_>) -> Result<BranchRow, CatalogError> {
        self.set(id, "parent = ?2", None::<i64>, "detached from its parent", actor)
    }

    /// Has a branch and its parent change places in the tree. Nobody's data changes.
    ///
    /// Returns the branch and its former parent, as they are now.
    pub fn promote_branch(
        &self,
        id: BranchId,
        actor: Actor<'_>,
    ) -> Result<(BranchRow, BranchRow), CatalogError> {
        self.write(|transaction| {
            let row = branches::require(transaction, id)?;
            let no_parent = || CatalogError::NoParent { name: row.name.clone() };
            let parent = row.parent.ok_or_else(no_parent)?;
            let parent = branches::require(transaction, parent).map_err(|_| no_parent())?;
            let mut set =
                transaction.prepare_cached("UPDATE branches SET parent = ? WHERE id = ?")?;
            set.execute(params![parent.parent.map(|id| id.0), id.0])?;
            set.execute(params![id.0, parent.id.0])?;
            let detail = format!("changed places with its parent {}", parent.name);
            oplog::record(transaction, actor, Some(row.name.as_str()), &detail)?;
            Ok((branches::require(transaction, id)?, branches::require(transaction, parent.id)?))
        })
    }

    fn set(
        &self,
        id: BranchId,
        assignment: &str,
        value: impl ToSql,
        detail: &str,
        actor: Actor<'_>,
    ) -> Result<BranchRow, CatalogError> {
        self.write(|transaction| {
            let row = branches::require(transaction, id)?;
            let sql = format!("UPDATE branches SET {assignment} WHERE id = ?1");
            transaction.prepare_cached(&sql)?.execute(params![id.0, value])?;
            oplog::record(transaction, actor, Some(row.name.as_str()), detail)?;
            branches::require(transaction, id)
        })
    }
}

/// For people who read the log.
fn moment(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| format!("at {ms} ms"), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}
