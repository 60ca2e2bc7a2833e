//! Watching and pausing what the background does to keep lookups short and reads verified.
//!
//! Four kinds of work can be paused: finalizing frozen layers, merging indexes, making checksums, and
//! packing scattered granules together.
//! None of it makes anything durable that somebody was promised: a frozen layer keeps its logs and
//! is synced through them until it has an index. What durability does rest on goes on during a
//! pause: fsync (which finalizes a layer whose logs belong to another process, as there is no other
//! way to sync it), the sync of names every few seconds, and the end of a mount.
//!
//! A pause is a matter of the serving process. It leaves nothing on the disk, so that whoever
//! mounts the branch after a kill finds the work waiting, and does it.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};

use super::{Branch, BranchError, OpenMode, merge, pack};
use crate::format::LayerId;
use crate::io::crash::{Point, crash_point};

/// After something failed (on a full disk, mostly: that will not be gone in seconds) it is not tried until
/// then.
pub(super) const AFTER_A_FAILURE: Duration = Duration::from_secs(600);

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// A frozen layer's data is synced and its logs become an index.
    Finalize,
    /// Several indexes become one.
    Merge,
    /// Scattered granules below a merged index are copied together.
    Pack,
    /// The contents of a sealed layer are read and get checksums.
    Checksums,
}

/// What is at work.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AtWork {
    /// The kind.
    pub work: Work,
    /// On which layer.
    pub layer: LayerId,
    /// It waits, in the midst of it, for the pause to end.
    pub held: bool,
}

/// The last thing that failed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Failed {
    /// What was being done.
    pub work: Work,
    /// Why it failed.
    pub message: String,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
}

/// What the background of a branch does, for `cowfs status`. Counts begin with the mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CompactionStats {
    /// Whether it is paused.
    pub paused: bool,
    /// Layers that were finalized.
    pub finalized_layers: u64,
    /// Sealed layers that wait for that.
    pub waiting_layers: usize,
    /// Merged indexes that were written or taken over from another process.
    pub merged_indexes: u64,
    /// Merged indexes that are owed.
    pub waiting_merges: usize,
    /// Packs that are owed.
    #[serde(default)]
    pub waiting_packs: usize,
    /// Bytes that were copied into packs.
    #[serde(default)]
    pub packed_bytes: u64,
    /// Packs that cannot be relied on, and are not used.
    #[serde(default)]
    pub bad_packs: usize,
    /// Bytes that got checksums.
    pub checksummed_bytes: u64,
    /// Bytes of sealed layers that have none yet, at most; none before the first look.
    pub checksum_bytes_to_go: Option<u64>,
    /// What is going on.
    pub at_work: Vec<AtWork>,
    /// How often something failed; it is tried again.
    pub failures: u64,
    /// The last time.
    pub last_failure: Option<Failed>,
}

#[derive(Default)]
struct State {
    /// All but what the branch's view tells.
    stats: CompactionStats,
    /// Bytes that the layer at work has behind it, which `checksum_bytes_to_go` still counts.
    behind: u64,
}

/// What the background threads of a branch tell, and the switch that pauses them.
#[derive(Default)]
pub struct Compaction {
    state: Mutex<State>,
    changed: Condvar,
}

/// A piece of work; it counts as at work until this is dropped.
pub(super) struct Permit<'a> {
    compaction: &'a Compaction,
    work: Work,
    layer: LayerId,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut state = self.compaction.state.lock();
        let ours = |at: &AtWork| at.work == self.work && at.layer == self.layer;
        if let Some(position) = state.stats.at_work.iter().position(ours) {
            state.stats.at_work.remove(position);
        }
        drop(state);
        self.compaction.changed.notify_all();
    }
}

impl Compaction {
    /// Leave to begin a piece of work; `None` during a pause.
    pub(super) fn begin(&self, work: Work, layer: LayerId) -> Option<Permit<'_>> {
        let mut state = self.state.lock();
        if state.stats.paused {
            return None;
        }
        state.stats.at_work.push(AtWork { work, layer, held: false });
        Some(Permit { compaction: self, work, layer })
    }

    pub(super) fn is_paused(&self) -> bool {
        self.state.lock().stats.paused
    }

    /// Sets or ends the pause; false if that changes nothing.
    fn set_paused(&self, paused: bool) -> bool {
        std::mem::replace(&mut self.state.lock().stats.paused, paused) != paused
    }

    /// The branch is being closed.
    pub(super) fn end_pause(&self) {
        self.set_paused(false);
    }

    /// Waits until what was at work has ended, or holds still; false if it takes longer.
    fn wait_until_still(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.state.lock();
        while state.stats.at_work.iter().any(|at| !at.held) {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return false;
            }
        }
        true
    }

    /// Notes that checksums hold still in the midst of a layer, or go on.
    pub(super) fn hold(&self, held: bool) {
        for at in &mut self.state.lock().stats.at_work {
            at.held = held && matches!(at.work, Work::Checksums | Work::Pack);
        }
        self.changed.notify_all();
    }

    pub(super) fn finalized(&self) {
        self.state.lock().stats.finalized_layers += 1;
    }

    pub(super) fn merged(&self) {
        self.state.lock().stats.merged_indexes += 1;
    }

    pub(super) fn packed(&self, bytes: u64) {
        self.state.lock().stats.packed_bytes += bytes;
    }

    /// So many bytes of the layer at work got checksums.
    pub(super) fn checksummed(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.stats.checksummed_bytes += bytes;
        state.behind += bytes;
    }

    /// So many bytes lack checksums, those of the layer that is next included.
    pub(super) fn checksums_to_go(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.stats.checksum_bytes_to_go = Some(bytes);
        state.behind = 0;
    }

    pub(super) fn failed(&self, work: Work, error: &BranchError) {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_ms = i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX);
        let mut state = self.state.lock();
        state.stats.failures += 1;
        state.stats.last_failure = Some(Failed { work, message: error.to_string(), at_ms });
    }

    fn stats(&self) -> CompactionStats {
        let state = self.state.lock();
        let to_go = state.stats.checksum_bytes_to_go.map(|all| all.saturating_sub(state.behind));
        CompactionStats { checksum_bytes_to_go: to_go, ..state.stats.clone() }
    }
}

/// What became of the wish to pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paused {
    /// False if it was paused already.
    pub changed: bool,
    /// False if something is still being finished.
    pub still: bool,
}

impl Branch {
    /// Pauses the background and waits a little for what is at work. A branch that is served
    /// read-only has no background to pause.
    pub fn pause_compaction(&self, patience: Duration) -> Result<Paused, BranchError> {
        self.require_background()?;
        let changed = self.compaction.set_paused(true);
        crash_point(Point::CompactionPaused);
        Ok(Paused { changed, still: self.compaction.wait_until_still(patience) })
    }

    /// Ends the pause; false if there was none.
    pub fn resume_compaction(&self) -> Result<bool, BranchError> {
        self.require_background()?;
        let changed = self.compaction.set_paused(false);
        self.background.wake();
        self.checksums.wake();
        crash_point(Point::CompactionResumed);
        Ok(changed)
    }

    fn require_background(&self) -> Result<(), BranchError> {
        match self.mode {
            OpenMode::ReadWrite => Ok(()),
            OpenMode::ReadOnly => Err(BranchError::ReadOnly { name: self.row.name.to_string() }),
        }
    }

    /// What the background does.
    pub fn compaction_stats(&self) -> CompactionStats {
        let view = self.view();
        let (waiting_merges, waiting_packs) = match self.mode {
            OpenMode::ReadWrite => (merge::owed(&view).count(), pack::owed(&view).count()),
            OpenMode::ReadOnly => (0, 0),
        };
        let waiting_layers = view.frozen.len();
        let told = self.compaction.stats();
        let bad_packs = self.data.packs.given_up();
        CompactionStats { waiting_layers, waiting_merges, waiting_packs, bad_packs, ..told }
    }

    /// Finalizes what is frozen and makes up for merges that are owed, unless it is paused.
    pub(super) fn compact(&self, not_before: &mut Option<Instant>) {
        while let Some(oldest) = self.view().frozen.last().cloned() {
            let Some(_permit) = self.compaction.begin(Work::Finalize, oldest.id) else { return };
            if let Err(error) = self.finalize_layer(&oldest) {
                tracing::error!(%error, "finalizing a layer failed; it stays readable from its logs");
                self.compaction.failed(Work::Finalize, &error);
                return;
            }
        }
        if not_before.is_some_and(|time| Instant::now() < time) {
            return;
        }
        *not_before = None;
        if let Err((depth, error)) = self.merge_owed() {
            tracing::warn!(%error, depth, "merging indexes failed; it is tried again later");
            self.compaction.failed(Work::Merge, &error);
            *not_before = Some(Instant::now() + AFTER_A_FAILURE);
        }
    }

    /// A merge was not made when its newest layer was finalized: a pause, a kill or a failure came
    /// between.
    fn merge_owed(&self) -> Result<(), (u32, BranchError)> {
        let mut tried = HashSet::new();
        // The deepest first: those above may cover what it makes.
        while let Some((depth, _)) =
            merge::owed(&self.view()).filter(|(depth, _)| !tried.contains(depth)).last()
        {
            tried.insert(depth);
            crash_point(Point::MergeOwed);
            merge::merge_below(self, depth).map_err(|error| (depth, error))?;
            if self.compaction.is_paused() {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;

    const LAYER: LayerId = LayerId(7);

    #[test]
    fn a_pause_lets_nothing_begin_and_waits_for_what_has() {
        let compaction = Arc::new(Compaction::default());
        let permit = compaction.begin(Work::Finalize, LAYER).unwrap();
        assert!(compaction.set_paused(true) && !compaction.set_paused(true));
        assert!(compaction.begin(Work::Merge, LAYER).is_none());
        assert!(!compaction.wait_until_still(Duration::from_millis(1)));
        let waiting = {
            let compaction = compaction.clone();
            std::thread::spawn(move || compaction.wait_until_still(Duration::from_secs(60)))
        };
        drop(permit);
        assert!(waiting.join().unwrap());
        assert!(compaction.set_paused(false));
        assert!(compaction.begin(Work::Merge, LAYER).is_some());
        assert_eq!(compaction.stats().at_work, []);
    }

    #[test]
    fn checksums_that_hold_still_count_as_still() {
        let compaction = Compaction::default();
        let _permit = compaction.begin(Work::Checksums, LAYER).unwrap();
        compaction.set_paused(true);
        compaction.hold(true);
        assert!(compaction.wait_until_still(Duration::ZERO));
        assert!(compaction.stats().at_work[0].held);
        compaction.hold(false);
        assert!(!compaction.wait_until_still(Duration::ZERO));
    }

    #[test]
    fn what_is_to_go_shrinks_within_a_layer() {
        let compaction = Compaction::default();
        assert_eq!(compaction.stats().checksum_bytes_to_go, None);
        compaction.checksums_to_go(100);
        compaction.checksummed(30);
        compaction.checksummed(30);
        assert_eq!(compaction.stats().checksum_bytes_to_go, Some(40));
        compaction.checksums_to_go(20);
        let stats = compaction.stats();
        assert_eq!((stats.checksum_bytes_to_go, stats.checksummed_bytes), (Some(20), 60));
    }
}
