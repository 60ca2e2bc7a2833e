//! Errors of the lower folders as failures with a kind, a hint and an exit code.
//!
//! In one place, so that a command says the same whether it works on a branch itself or asks the
//! process that serves it.

use std::error::Error;
use std::io;

use super::protocol::Failure;
use crate::branch::BranchError;
use crate::catalog::{CatalogError, DatabaseTrouble, LockError};
use crate::fs::FsError;
use crate::layer::LayerError;

/// Kind of everything that says that bytes in the store are not as they must be; exit code 3.
const DAMAGED: &str = "damaged";

/// Said with every damage.
const CHECK_HINT: &str = "`cowfs check` shows all that is damaged";

/// Said when contents do not agree with their checksum.
const READ_DATA_HINT: &str = "`cowfs check --read-data` finds all contents that are damaged";

/// Said where the store cannot be written to.
const NOT_WRITABLE_HINT: &str = "the store must be writable for you: every command writes to its \
                                 catalog, or to the locks beside it";

/// Said where the catalog is lost, or too old.
const WHOLE_COPY_HINT: &str = "put the whole store back from one copy, never the catalog alone, which would not know of all layers";

/// Said where the host has no space left.
const FULL_HINT: &str = "the disk below the store is full: delete branches, then `cowfs gc`";

/// A failure of the catalog.
pub fn of_catalog(error: &CatalogError) -> Failure {
    let failure = |kind| Failure::caused(kind, error);
    match error {
        CatalogError::BranchNotFound { .. } | CatalogError::BranchGone { .. } => {
            failure("branch_not_found").hint("`cowfs branch list` shows the branches")
        }
        CatalogError::BranchExists { .. } => {
            failure("branch_exists").hint("choose another name, or delete that branch first")
        }
        CatalogError::Protected { name } => failure("protected")
            .hint(format!("`cowfs branch unprotect {name}` first, if that is what you want")),
        CatalogError::NoParent { .. } => {
            failure("no_parent").hint("`cowfs branch list` shows the tree")
        }
        CatalogError::SnapshotExists { branch, .. } => failure("snapshot_exists")
            .hint(format!("choose another name; `cowfs snapshot list {branch}` shows them")),
        CatalogError::SnapshotNotFound { branch, .. } => {
            failure("snapshot_not_found").hint(format!("`cowfs snapshot list {branch}` shows them"))
        }
        CatalogError::NothingToKeep { .. } => failure("empty").hint("write something to it first"),
        CatalogError::NoSuchOperation { .. }
        | CatalogError::NotUndoable { .. }
        | CatalogError::UndoneAlready { .. } => {
            failure("not_undoable").hint("`cowfs log` shows what can be taken back")
        }
        CatalogError::UndoOvertaken { .. } => {
            failure("not_undoable").hint("`cowfs log` shows what happened since")
        }
        CatalogError::Damaged { .. } => failure(DAMAGED).exit(3).hint(CHECK_HINT),
        CatalogError::Missing { .. } | CatalogError::Foreign { .. } => failure(DAMAGED)
            .exit(3)
            .hint(format!("without its catalog a store cannot be read: {WHOLE_COPY_HINT}")),
        CatalogError::WentBack { .. } => failure(DAMAGED).exit(3).hint(format!(
            "nothing was changed. `cowfs check` shows what no longer fits together, and `cowfs mount \
             --read-only` what the catalog still knows of; {WHOLE_COPY_HINT}"
        )),
        CatalogError::UnknownVersion { .. } => {
            failure("catalog").hint("use the cowfs that made the store")
        }
        CatalogError::Database { .. } => of_database(error),
        CatalogError::Reserve { .. } => of_host("catalog", error),
        _ => failure("catalog"),
    }
}

fn of_database(error: &CatalogError) -> Failure {
    let failure = Failure::caused("catalog", error);
    match error.database_trouble() {
        Some(DatabaseTrouble::Damaged) => Failure::caused(DAMAGED, error).exit(3).hint(CHECK_HINT),
        Some(DatabaseTrouble::NotWritable) => failure.hint(NOT_WRITABLE_HINT),
        Some(DatabaseTrouble::Full) => failure.hint(FULL_HINT),
        Some(DatabaseTrouble::Busy) => failure.hint("another command holds it; try again"),
        None => failure,
    }
}

/// A failure of a branch.
pub fn of_branch(error: &BranchError) -> Failure {
    match error {
        BranchError::Catalog(error) => of_catalog(error),
        BranchError::Layer(error) => of_layer(error),
        BranchError::LayerMissing { .. }
        | BranchError::HeadSealed { .. }
        | BranchError::InodeNumbers { .. } => {
            Failure::caused(DAMAGED, error).exit(3).hint(CHECK_HINT)
        }
        BranchError::ReadOnly { .. } => Failure::caused("read_only", error)
            .hint("unmount it first, or mount it without --read-only"),
        BranchError::Host { .. } => of_host("branch", error),
    }
}

fn of_layer(error: &LayerError) -> Failure {
    match error {
        LayerError::Corrupt { .. } => Failure::caused(DAMAGED, error).exit(3).hint(READ_DATA_HINT),
        LayerError::Damaged { .. }
        | LayerError::DataTooShort { .. }
        | LayerError::AdoptedChanged { .. } => {
            Failure::caused(DAMAGED, error).exit(3).hint(CHECK_HINT)
        }
        LayerError::Host { .. } => of_host("branch", error),
        LayerError::Latched { .. } => Failure::caused("branch", error),
    }
}

/// A failure of the given kind, with a hint where the host's answer tells what to do.
pub fn of_host(kind: &str, error: &(dyn Error + 'static)) -> Failure {
    let failure = Failure::caused(kind, error);
    match host_hint(error) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// What to do, where an answer of the host among the causes of `error` alone tells it.
pub(super) fn host_hint(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) => {
                return Some(NOT_WRITABLE_HINT);
            }
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                return Some(FULL_HINT);
            }
            _ => cause = error.source(),
        }
    }
    None
}

/// A failure of the filesystem of a served branch.
pub fn of_fs(error: &FsError) -> Failure {
    match error {
        FsError::Layer(error) => of_layer(error),
        FsError::Branch(error) => of_branch(error),
        _ => Failure::caused("filesystem", error),
    }
}

/// A failure to take a lock, other than that somebody has it.
pub fn of_lock_file(error: &LockError) -> Failure {
    match error {
        LockError::Io { .. } => of_host("lock", error),
        LockError::Busy { .. } => Failure::caused("lock", error),
    }
}
