//! The states of a branch over time, and the WAL that leads from one to the next.
//!
//! Two states that follow one another on a branch (the later one stands on the layers of the
//! earlier one) are joined if all WAL from the end of the earlier to the end of the later is in the
//! `pg_wal` of later ones. Then every moment between can be reached: recovery replays
//! from the earlier state, and stops there.

mod files;
mod timeline;
mod wal;

pub use files::{Files, Mounted};
pub use timeline::{History, State, Stretch};
pub use wal::{RESTORE_COMMAND, RESTORED_DIR, Wal, bring_wal};

use std::path::PathBuf;

use crate::fs::FsError;
use crate::postgres::control_file::ControlFileError;

/// A state could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// A file could not be read or written.
    #[error("{what} {path}")]
    File {
        /// What was being done.
        what: &'static str,
        /// The path within the branch.
        path: String,
        /// Why not.
        source: Box<FsError>,
    },
    /// The same, at a mount.
    #[error("reading {}", path.display())]
    Host {
        /// The path.
        path: PathBuf,
        /// The host's answer.
        source: std::io::Error,
    },
    /// Its layers could not be opened.
    #[error("its layers")]
    Open {
        /// Why not.
        source: Box<crate::branch::BranchError>,
    },
    /// It is no cluster, or a damaged one.
    #[error("global/pg_control")]
    Control {
        /// Why it was not believed.
        source: ControlFileError,
    },
    /// Its WAL is not where it has to be.
    #[error("pg_wal has no segment of timeline {timeline} at {redo}, where recovery would begin")]
    NoWal {
        /// The timeline.
        timeline: u32,
        /// Where recovery begins.
        redo: crate::postgres::wal::Lsn,
    },
}
