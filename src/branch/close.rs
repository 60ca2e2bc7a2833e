//! Closing a branch: everything durable, logs short.

use super::{Branch, BranchError, OpenMode};
use crate::format::GRANULE_BYTES;
use crate::io::crash::{Point, crash_point};

/// A journal larger than this is turned into an index at unmount, so that the next mount does not
/// replay it. Smaller ones stay: sealing at every unmount would make chains deep for nothing.
const JOURNAL_REPLAY_BYTES_MAX: u64 = 4 << 20;

/// What a branch holds and does, for `cowfs status`.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct BranchStats {
    /// Forks and seals since the branch was opened.
    pub generation: u64,
    /// Layers below the open one.
    pub depth: u32,
    /// Indexes and frozen layers that a lookup may visit.
    pub parts: usize,
    /// Sealed layers that wait for their index.
    pub frozen: usize,
    /// Files of which the open layer owns something.
    pub open_files: usize,
    /// Names that the open layer changed.
    pub open_names: usize,
    /// Bytes of the open layer's journal.
    pub journal_bytes: u64,
    /// Bytes of its volatile log.
    pub volatile_bytes: u64,
    /// Bytes of pages that the open layer owns (private files count in full).
    pub owned_bytes: u64,
    /// Granules written since their file was last synced, a granule written twice counted twice.
    #[serde(default)]
    pub dirty_granules: u64,
    /// Descriptors of data files that are kept open.
    #[serde(default)]
    pub open_descriptors: usize,
    /// Files that could not be synced: their fsync fails until the branch is mounted anew.
    #[serde(default)]
    pub latched_files: usize,
    /// Whether the journal could not be synced: every fsync fails until then.
    #[serde(default)]
    pub journal_latched: bool,
}

impl Branch {
    /// Syncs everything, finalizes what is frozen, and ends the background threads.
    ///
    /// The caller has made sure that no request is running any more.
    pub fn close(&self) -> Result<(), BranchError> {
        self.checksums.stop();
        self.background.stop();
        // An orderly end leaves nothing frozen, paused or not.
        self.compaction.end_pause();
        if self.mode == OpenMode::ReadOnly {
            return Ok(());
        }
        let _durable = self.sync_all()?;
        crash_point(Point::CloseSynced);
        if let Err(error) = self.tidy() {
            // What it changed is to be as durable as the rest; what it left is for the next mount.
            let _durable = self.sync_all()?;
            tracing::warn!(%error, "everything is durable, but not tidied up: the next mount takes longer");
        }
        Ok(())
    }

    /// Leaves the open layer such that the next mount has little to read.
    fn tidy(&self) -> Result<(), BranchError> {
        let open = self.view().open.clone();
        let _durable = open.reap()?;
        crash_point(Point::CloseReaped);
        if open.log.sizes().0 > JOURNAL_REPLAY_BYTES_MAX {
            self.seal()?;
        }
        self.finalize_frozen()?;
        crash_point(Point::CloseFinalized);
        let open = self.view().open.clone();
        let _durable = open.sync_all()?;
        open.leave()?;
        crash_point(Point::CloseSettled);
        Ok(())
    }

    /// Ends the background threads and nothing else, as if the process had been killed: for tests
    /// of recovery.
    pub fn abandon(&self) {
        self.checksums.stop();
        self.background.stop();
    }

    /// What the branch holds at the moment.
    pub fn stats(&self) -> BranchStats {
        let view = self.view();
        let (open_files, open_names, _) = view.open.counts();
        let (journal_bytes, volatile_bytes) = view.open.log.sizes();
        let files = view.open.all_files();
        let latched = view.in_memory().flat_map(|layer| layer.all_files());
        let owned_bytes = files.iter().map(|file| file.ownership.read().owned_bytes()).sum();
        let unsynced: u64 = files.iter().map(|file| file.unsynced_bytes()).sum();
        BranchStats {
            generation: view.generation,
            depth: view.open_depth,
            parts: view.frozen.len() + view.sealed.len(),
            frozen: view.frozen.len(),
            open_files,
            open_names,
            journal_bytes,
            volatile_bytes,
            owned_bytes,
            dirty_granules: unsynced.div_ceil(GRANULE_BYTES),
            open_descriptors: view.data.open_descriptors(),
            latched_files: latched.filter(|file| file.is_latched()).count(),
            journal_latched: view.in_memory().any(|layer| layer.log.is_latched()),
        }
    }
}
