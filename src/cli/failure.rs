//! Errors of the lower folders as failures with a kind and a hint.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::catalog::{LockError, StoreError};
use crate::import::ImportError;
use crate::postgres::PostgresError;
use crate::serve::Failure;
use crate::serve::failure::of_host;
pub(super) use crate::serve::failure::{of_branch, of_catalog, of_lock_file};

pub(super) fn of_store(error: &StoreError) -> Failure {
    let failure = Failure::caused("store", error);
    match error {
        StoreError::NotAStore { .. } => {
            failure.hint("make one with `cowfs init`, or name another with --store or COWFS_STORE")
        }
        StoreError::NotPrivate { hint, .. } => failure.hint(hint.as_str()),
        StoreError::NotEmpty { .. } => failure.hint("name a directory that is empty or missing"),
        StoreError::UnknownVersion { .. } => failure.hint("use the cowfs that made the store"),
        StoreError::DamagedFormat { .. } => failure.exit(3),
        StoreError::Catalog(error) => of_catalog(error),
        StoreError::Host { path, source, .. } if source.kind() == ErrorKind::PermissionDenied => {
            failure.hint(of_whom(path))
        }
        StoreError::AlreadyAStore { .. }
        | StoreError::NotADirectory { .. }
        | StoreError::Host { .. } => failure,
    }
}

/// Who may do what was refused at `path`, which may be out of sight.
fn of_whom(path: &Path) -> String {
    let above = path.ancestors().find_map(|dir| dir.metadata().ok());
    let whose = above.map_or_else(String::new, |meta| format!(" (user {})", meta.uid()));
    format!(
        "run it as the user who made the store{whose}, or name one of your own with --store or \
         COWFS_STORE"
    )
}

pub(super) fn of_lock(branch: &str, error: &LockError) -> Failure {
    Failure::new("busy", format!("branch {branch} is {error}"))
        .hint("unmount it first with `cowfs unmount`, or wait for the command that uses it")
}

pub(super) fn of_import(error: &ImportError) -> Failure {
    match error {
        ImportError::Catalog(error) => return of_catalog(error),
        ImportError::Lock(error) => return of_lock_file(error),
        // Of the source the user knows best; of the store we know that it has to have room.
        ImportError::Host { source, .. } if source.kind() == ErrorKind::StorageFull => {
            return of_host("import", error);
        }
        _ => {}
    }
    let failure = Failure::caused("import", error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// `branch` is the name for commands in hints.
pub(super) fn of_postgres(branch: &str, error: &PostgresError) -> Failure {
    let failure = Failure::caused(error.kind(), error).exit(error.exit_code());
    match error.hint(branch) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
