//! Branches: what is stacked now, forking, sealing, and turning frozen layers into indexes.

pub mod checksums;
pub mod close;
pub mod compaction;
pub mod create;
pub mod finalize;
pub mod fork;
pub mod listing;
pub mod merge;
pub mod open;
mod pack;
mod recover;
pub mod snapshot;
pub mod sync;
pub mod view;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use crate::catalog::{BranchLock, BranchRow, CatalogError, Store};
use crate::format::LayerId;
use crate::layer::LayerError;
use crate::layer::data_files::DataFiles;
pub use view::View;

/// What can go wrong with a branch as a whole.
#[derive(Debug, thiserror::Error)]
pub enum BranchError {
    /// A layer refused.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The catalog refused.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The host refused something else.
    #[error("{what} {path}: {source}", path = path.display())]
    Host {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// A layer that the catalog says was written to has no directory.
    #[error("layer {layer:012x} is missing from the store although it was written to", layer = layer.0)]
    LayerMissing {
        /// The layer.
        layer: LayerId,
    },
    /// A branch's open layer was sealed, says the disk; the catalog does not know of it.
    #[error(
        "layer {layer:012x} is open, says the catalog, but it was sealed and has an index: the \
         catalog is older than the layer",
        layer = layer.0
    )]
    HeadSealed {
        /// The layer.
        layer: LayerId,
    },
    /// A record names an inode number that no branch gets to.
    #[error(
        "branch {name} would have to go on at inode number {next}: one of its layers is damaged"
    )]
    InodeNumbers {
        /// The branch.
        name: String,
        /// The number that would be the next.
        next: u64,
    },
    /// The branch is served read-only.
    #[error("branch {name} is mounted read-only")]
    ReadOnly {
        /// The branch.
        name: String,
    },
}

/// How a branch is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Reads and writes.
    ReadWrite,
    /// Writes nothing at all, not even logs.
    ReadOnly,
}

/// A branch that this process serves.
pub struct Branch {
    /// The store.
    pub store: Arc<Store>,
    /// The catalog's row when the branch was opened (its head changes with forks).
    pub row: BranchRow,
    /// Data files of the store.
    pub data: Arc<DataFiles>,
    /// How it was opened.
    pub mode: OpenMode,
    /// The epoch gate: mutating requests hold it shared while they apply, a fork exclusively.
    gate: RwLock<()>,
    /// The stack as it is now. Held for a moment only, never while anything else is taken.
    current: Mutex<Arc<View>>,
    /// One fork or seal at a time.
    fork_turn: Mutex<()>,
    /// Wakes the background finalizer.
    background: finalize::Background,
    /// Makes the checksums of sealed layers.
    checksums: Arc<checksums::Checksums>,
    /// What both of them tell, and the switch that pauses them.
    compaction: Arc<compaction::Compaction>,
    next_ino: std::sync::atomic::AtomicU64,
    boot_id: [u8; 16],
    /// None of a state that never changes.
    _lock: Option<BranchLock>,
}

/// Shared hold on the epoch gate: no fork happens while it lives.
pub struct GateGuard<'a> {
    _hold: RwLockReadGuard<'a, ()>,
    view: Arc<View>,
}

impl std::ops::Deref for GateGuard<'_> {
    type Target = View;

    fn deref(&self) -> &View {
        &self.view
    }
}

impl Branch {
    /// Holds the gate shared, for a request that changes something. Never take it twice.
    pub fn enter(&self) -> GateGuard<'_> {
        let hold = self.gate.read();
        GateGuard { _hold: hold, view: self.view() }
    }

    /// The stack as it is now, for a request that changes nothing.
    pub fn view(&self) -> Arc<View> {
        self.current.lock().clone()
    }

    /// The layers that the branch has written since it began (or was reset or restored), the newest
    /// first.
    pub fn written_layers(&self) -> Result<Vec<LayerId>, BranchError> {
        let Some(row) = self.store.catalog.branch_by_id(self.row.id)? else {
            return Ok(Vec::new());
        };
        let chain = self.store.catalog.chain(row.head)?.into_iter().map(|layer| layer.id);
        Ok(chain.take_while(|layer| Some(*layer) != row.begins).collect())
    }

    /// Replaces the stack by what `change` makes of it. Without the gate, what the stack says
    /// must stay the same.
    fn replace_view(&self, change: impl FnOnce(&View) -> View) {
        let mut current = self.current.lock();
        *current = Arc::new(change(&current));
    }
}
