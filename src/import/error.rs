//! Why an import was refused or failed.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::catalog::{CatalogError, LockError};
use crate::format::abbreviated;
use crate::postgres::{DbState, ProbeError};

/// An import was refused or failed; the store is as it was before.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The source cannot be used at all.
    #[error("cannot import {}", dir.display())]
    Source {
        /// The directory.
        dir: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The source is something else than a directory.
    #[error("{} is not a directory", dir.display())]
    NotADirectory {
        /// The path.
        dir: PathBuf,
    },
    /// The source has no entries.
    #[error("{} is empty: there is nothing to import", dir.display())]
    Empty {
        /// The directory.
        dir: PathBuf,
    },
    /// The source contains the store, or the other way round.
    #[error("{} and the store {} overlap", tree.display(), store.display())]
    Overlap {
        /// The directory to be imported, or one that it links to.
        tree: PathBuf,
        /// The store.
        store: PathBuf,
    },
    /// Its Postgres facts do not allow it.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The version of Postgres is not one that is understood.
    #[error("the cluster is of Postgres {major}; versions 12 to 18 can be imported")]
    UnsupportedMajor {
        /// Its major version.
        major: u32,
    },
    /// A server runs on it.
    #[error(
        "a Postgres server is running on {}: its postmaster.pid names process {pid} ({command})",
        dir.display()
    )]
    Running {
        /// The data directory.
        dir: PathBuf,
        /// The process that its postmaster.pid names.
        pid: i32,
        /// What that process is called.
        command: String,
    },
    /// Its server did not stop in order.
    #[error("the cluster {} was not shut down cleanly: its state is '{state}'", dir.display())]
    NotShutDown {
        /// The data directory.
        dir: PathBuf,
        /// The state in its control file.
        state: DbState,
    },
    /// An adopted tree would have to be two trees.
    #[error("{} leads out of the tree, to {}: adopting takes one tree only", link.display(), target.display())]
    OutsideWhileAdopting {
        /// The symbolic link.
        link: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A link would bring the cluster into itself.
    #[error(
        "{} leads to {}, which contains the data directory or lies in it",
        link.display(), target.display()
    )]
    LinkToItself {
        /// The symbolic link.
        link: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A part of the cluster's data lies elsewhere.
    #[error("{} leads out of the data directory, to {}", link.display(), target.display())]
    DataOutside {
        /// The symbolic link.
        link: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// Something is missing that every cluster has.
    #[error("{} is not a complete cluster: it has no directory {directory}", dir.display())]
    Incomplete {
        /// The data directory.
        dir: PathBuf,
        /// What is missing.
        directory: &'static str,
    },
    /// A tablespace or WAL directory cannot be reached.
    #[error("cannot open {}, to which {} leads", target.display(), link.display())]
    BrokenLink {
        /// The symbolic link.
        link: PathBuf,
        /// Its target.
        target: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The source changed while it was read.
    #[error("{} changed during the import: {change}", path.display())]
    Changed {
        /// The file or directory.
        path: PathBuf,
        /// What differs.
        change: &'static str,
    },
    /// A file is larger than a branch can hold.
    #[error("{} has {bytes} bytes; a file of a branch can have 16 TiB", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// An adopted file is read by its path, and the host knows no path of that length.
    #[error(
        "{} has {} bytes, more than a path of the host can have, and could not be read",
        abbreviated(path), path.as_os_str().len()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The host refused a call.
    #[error("{what} {}", path.display())]
    Host {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The layer's lock could not be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The catalog refused.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Somebody asked to give up.
    #[error("interrupted; nothing was imported")]
    Interrupted,
}

impl ImportError {
    /// For `map_err`: the host refused `what` on `path`.
    pub(crate) fn host<E: Into<io::Error>>(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> ImportError {
        let path = path.into();
        move |error| ImportError::Host { what, path, source: error.into() }
    }

    /// What the user can do about it, if there is something.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            ImportError::Running { .. } => {
                "stop the server first (pg_ctl stop); if that process is not a Postgres server, \
                 remove the stale postmaster.pid"
            }
            ImportError::NotShutDown { .. } => {
                "start and stop the server once, or say --allow-crashed: the branch then begins \
                 with crash recovery"
            }
            ImportError::Probe(ProbeError::NotADataDirectory { .. }) => {
                "name the directory that holds PG_VERSION, or say --any for an arbitrary tree"
            }
            ImportError::OutsideWhileAdopting { .. } => {
                "use a copying import (cowfs import PGDATA), which brings it into the branch"
            }
            ImportError::PathTooLong { .. } => {
                "use a copying import, which needs no path to read it again"
            }
            ImportError::Catalog(CatalogError::BranchExists { .. }) => {
                "choose another name, or delete that branch first"
            }
            ImportError::DataOutside { .. } => {
                "a server on the branch would write to the files of this cluster there: move them \
                 back into the data directory, or say --any to keep the link as it is"
            }
            ImportError::LinkToItself { .. } => "correct the link, or remove it",
            ImportError::Incomplete { .. } => {
                "restore what is missing, or say --any for an arbitrary tree"
            }
            ImportError::Empty { .. } => "use: cowfs branch create NAME --empty",
            ImportError::BrokenLink { .. } => {
                "restore the target, or say --any to keep the link as it is"
            }
            _ => return None,
        })
    }
}
