//! What can go wrong in the catalog.

use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode;

use super::{BranchName, LayerState, SnapshotName};
use crate::format::{BranchId, LayerId};

/// An operation on the catalog failed; nothing of it was applied.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The name is in use.
    #[error("branch {name} exists already")]
    BranchExists {
        /// The name.
        name: BranchName,
    },
    /// No branch has that name.
    #[error("there is no branch {name}")]
    BranchNotFound {
        /// The name.
        name: BranchName,
    },
    /// No branch has that id (any more).
    #[error("branch {id} does not exist any more")]
    BranchGone {
        /// The id.
        id: BranchId,
    },
    /// The branch is not to be deleted, nor given another state.
    #[error("branch {name} is protected")]
    Protected {
        /// Its name.
        name: BranchName,
    },
    /// The branch has no parent that is there still.
    #[error("branch {name} has no parent")]
    NoParent {
        /// Its name.
        name: BranchName,
    },
    /// The name is in use.
    #[error("snapshot {branch}@{name} exists already")]
    SnapshotExists {
        /// The branch.
        branch: BranchName,
        /// The snapshot's name.
        name: SnapshotName,
    },
    /// The branch has no such snapshot.
    #[error("there is no snapshot {branch}@{name}")]
    SnapshotNotFound {
        /// The branch.
        branch: BranchName,
        /// The snapshot's name.
        name: SnapshotName,
    },
    /// Nothing was ever written to the branch.
    #[error("branch {branch} holds nothing that a snapshot could keep")]
    NothingToKeep {
        /// The branch.
        branch: BranchName,
    },
    /// The operation log has no such entry.
    #[error("there is no operation {operation}")]
    NoSuchOperation {
        /// Its number.
        operation: i64,
    },
    /// It is of a kind that cannot be taken back.
    #[error("operation {operation} cannot be taken back")]
    NotUndoable {
        /// Its number.
        operation: i64,
    },
    /// It was taken back before.
    #[error("operation {operation} was taken back already, by operation {by}")]
    UndoneAlready {
        /// Its number.
        operation: i64,
        /// The operation that took it back.
        by: i64,
    },
    /// Something that happened since stands in the way.
    #[error("operation {operation} cannot be taken back any more: {what}")]
    UndoOvertaken {
        /// Its number.
        operation: i64,
        /// What.
        what: String,
    },
    /// The catalog has no row for a layer.
    #[error("the catalog has no layer {}", .layer.dir_name())]
    LayerNotFound {
        /// The layer.
        layer: LayerId,
    },
    /// A new layer's id is taken.
    #[error("layer id {} is taken", .layer.dir_name())]
    LayerExists {
        /// The id.
        layer: LayerId,
    },
    /// A layer is not in the state that the operation needs.
    #[error("layer {} is {found}, not {wanted}", .layer.dir_name())]
    LayerNotInState {
        /// The layer.
        layer: LayerId,
        /// What it is.
        found: LayerState,
        /// What it would have to be.
        wanted: LayerState,
    },
    /// The branch's head is another layer than the caller planned with.
    #[error("the head of branch {branch} is layer {}, not {}", .found.dir_name(), .expected.dir_name())]
    HeadMoved {
        /// The branch.
        branch: BranchId,
        /// The head in the plan.
        expected: LayerId,
        /// The head in the catalog.
        found: LayerId,
    },
    /// A child would stand on another layer than its parent's last sealed one.
    #[error("a child of branch {branch} must stand on {}, not on {}", name(*.expected), name(*.found))]
    WrongBase {
        /// The parent.
        branch: BranchId,
        /// The layer that the parent's head stands on.
        expected: Option<LayerId>,
        /// The layer in the plan.
        found: Option<LayerId>,
    },
    /// What the caller wanted to do before the commit failed.
    #[error("could not reserve branch {branch}")]
    Reserve {
        /// The id that the branch would have had.
        branch: BranchId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Rows contradict each other.
    #[error("the catalog is damaged: layer {} {problem}", .layer.dir_name())]
    Damaged {
        /// The layer at fault.
        layer: LayerId,
        /// What is wrong with it.
        problem: Damage,
    },
    /// Commits that were made are missing.
    #[error(
        "{} is older than the store: {noted} commits were made, and it holds {commits}; it, or its \
         log beside it, was damaged, removed, or replaced by an older copy",
        .path.display()
    )]
    WentBack {
        /// The file.
        path: PathBuf,
        /// Commits that it holds.
        commits: u64,
        /// Commits that were made, at least.
        noted: u64,
    },
    /// A catalog is there already.
    #[error("{} exists already", .path.display())]
    AlreadyExists {
        /// The file.
        path: PathBuf,
    },
    /// There is no catalog.
    #[error("{} is missing", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{} is not a cowfs catalog", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A later version of cowfs made it.
    #[error("{} has version {found}; this cowfs knows version {supported}", .path.display())]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The version that this program reads and writes.
        supported: i64,
    },
    /// `SQLite` failed.
    #[error("the catalog database failed")]
    Database {
        /// Its error.
        #[from]
        source: rusqlite::Error,
    },
}

/// What `SQLite`'s errors come down to, for whoever has to advise on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseTrouble {
    /// The file's contents make no sense.
    Damaged,
    /// It cannot be opened, or not to be written to.
    NotWritable,
    /// The disk is full.
    Full,
    /// Somebody else held it for too long.
    Busy,
}

impl CatalogError {
    /// What kind of trouble the database has, if it is one of the known kinds.
    pub fn database_trouble(&self) -> Option<DatabaseTrouble> {
        let CatalogError::Database { source } = self else { return None };
        // A value that is never written.
        let unreadable = matches!(
            source,
            rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::Utf8Error(..)
        );
        if unreadable {
            return Some(DatabaseTrouble::Damaged);
        }
        Some(match source.sqlite_error_code()? {
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => DatabaseTrouble::Damaged,
            ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied => {
                DatabaseTrouble::NotWritable
            }
            ErrorCode::DiskFull => DatabaseTrouble::Full,
            ErrorCode::DatabaseBusy => DatabaseTrouble::Busy,
            _ => return None,
        })
    }
}

/// How rows about layers contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Its parent has no row, or not a depth of one less.
    #[error("stands on layer {}, which is missing or not one level lower", .parent.dir_name())]
    BrokenParent {
        /// The parent it names.
        parent: LayerId,
    },
    /// It has a depth above 0 and no parent.
    #[error("has depth {depth} but stands on nothing")]
    Rootless {
        /// Its depth.
        depth: u32,
    },
    /// It has depth 0 and a parent.
    #[error("has depth 0 but stands on layer {}", .parent.dir_name())]
    DeepBase {
        /// The parent it names.
        parent: LayerId,
    },
}

fn name(layer: Option<LayerId>) -> String {
    layer.map_or_else(|| "nothing".to_owned(), |id| format!("layer {}", id.dir_name()))
}

/// Whether `error` says that a row with the same key is there already.
pub(super) fn is_conflict(error: &rusqlite::Error) -> bool {
    matches!(
        error,
        rusqlite::Error::SqliteFailure(cause, _)
            if cause.extended_code == rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE
                || cause.extended_code == rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY
    )
}
