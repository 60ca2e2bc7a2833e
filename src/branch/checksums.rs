//! The thread that makes the checksums of a branch's sealed layers, and packs what lies scattered in
//! them, out of everybody's way.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::compaction::{AFTER_A_FAILURE, Compaction, Work};
use super::open::data_files;
use super::{Branch, BranchError};
use crate::catalog::{BranchName, LayerRow, LayerState, Store};
use crate::format::LayerId;
use crate::io::host::HostStorage;
use crate::io::sys;
use crate::layer::sealed::{IndexFile, open_index};
use crate::layer::sums::{self, Lacking, Made};

/// A branch that was just mounted is about to be used: its reads come first.
const FIRST_LOOK_AFTER: Duration = Duration::from_secs(10);
/// How often the thread looks for layers that were sealed meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Bytes read per second, at most.
const BYTES_PER_SECOND_MAX: u64 = 64 << 20;

/// The checksum thread of a branch.
#[derive(Default)]
pub struct Checksums {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stop: bool,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Checksums {
    /// Starts the thread of `branch`.
    pub fn start(branch: &Arc<Branch>) {
        let (weak, checksums) = (Arc::downgrade(branch), branch.checksums.clone());
        let spawned =
            std::thread::Builder::new().name("cowfs-checksums".to_owned()).spawn(move || {
                sys::yield_to_others();
                run(&checksums, &weak);
            });
        match spawned {
            Ok(thread) => branch.checksums.state.lock().thread = Some(thread),
            Err(error) => tracing::warn!(%error, "no thread: sealed layers get no checksums"),
        }
    }

    /// Ends the thread and waits for it; a half-made file is made again next time.
    pub fn stop(&self) {
        let thread = {
            let mut state = self.state.lock();
            state.stop = true;
            state.thread.take()
        };
        self.changed.notify_all();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic aborts the process, so there is no other outcome to look at.
            let _ = thread.join();
        }
    }

    /// Has the thread look whether a pause is over.
    pub fn wake(&self) {
        // Whoever has looked already waits by now.
        drop(self.state.lock());
        self.changed.notify_all();
    }

    /// Waits while the background is paused; `Break` when the thread shall end.
    fn hold(&self, compaction: &Compaction) -> ControlFlow<()> {
        let mut state = self.state.lock();
        if state.stop || !compaction.is_paused() {
            return if state.stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        }
        compaction.hold(true);
        while !state.stop && compaction.is_paused() {
            self.changed.wait(&mut state);
        }
        compaction.hold(false);
        if state.stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Waits; `Break` when the thread shall end.
    fn pause(&self, length: Duration) -> ControlFlow<()> {
        let mut state = self.state.lock();
        if !state.stop {
            self.changed.wait_for(&mut state, length);
        }
        if state.stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

fn run(checksums: &Checksums, weak: &Weak<Branch>) {
    let (mut settled, mut packs_not_before) = (HashSet::new(), None);
    let mut pause = FIRST_LOOK_AFTER;
    loop {
        if checksums.pause(pause).is_break() {
            return;
        }
        let Some(branch) = weak.upgrade() else { return };
        pause = LOOK_EVERY;
        if let Err(error) = branch.make_checksums(checksums, &mut settled) {
            tracing::warn!(%error, "making checksums failed; it is tried again later");
            branch.compaction.failed(Work::Checksums, &error);
            pause = AFTER_A_FAILURE;
        }
        // With checksums: what rots from now on in one place is not copied into another.
        let _ = branch.pack_owed(&mut packs_not_before, &mut |bytes| branch.pace(checksums, bytes));
    }
}

impl Branch {
    /// Waits, after so many bytes, as long as others are to come first; `Break` when the thread
    /// shall end.
    fn pace(&self, checksums: &Checksums, bytes: u64) -> ControlFlow<()> {
        checksums.hold(&self.compaction)?;
        let nanos = bytes.saturating_mul(1_000_000_000) / BYTES_PER_SECOND_MAX;
        checksums.pause(Duration::from_nanos(nanos))
    }

    /// Makes the checksums of every sealed layer of the branch that is not in `settled` and adds
    /// to that the layers that have theirs.
    fn make_checksums(
        &self,
        checksums: &Checksums,
        settled: &mut HashSet<LayerId>,
    ) -> Result<(), BranchError> {
        let lacking = self.lacking_checksums(settled)?;
        let mut to_go: u64 = lacking.iter().map(|(_, bytes)| bytes).sum();
        let mut pace = |bytes: u64| {
            self.compaction.checksummed(bytes);
            self.pace(checksums, bytes)
        };
        for (layer, bytes) in lacking {
            self.compaction.checksums_to_go(to_go);
            let _permit = loop {
                if checksums.hold(&self.compaction).is_break() {
                    return Ok(());
                }
                if let Some(permit) = self.compaction.begin(Work::Checksums, layer) {
                    break permit;
                }
            };
            match sums::make(&self.data, layer, &mut pace)? {
                Made::Now | Made::Before => {
                    settled.insert(layer);
                    to_go -= bytes;
                }
                Made::Elsewhere | Made::NotSealed => {}
                Made::Stopped => return Ok(()),
            }
        }
        self.compaction.checksums_to_go(to_go);
        Ok(())
    }

    /// The layers of the branch that have an index and no checksums, and the bytes that each of
    /// them owns, holes included. Those that have them are added to `settled`.
    fn lacking_checksums(
        &self,
        settled: &mut HashSet<LayerId>,
    ) -> Result<Vec<(LayerId, u64)>, BranchError> {
        let Some(newest) = self.view().open_parent else { return Ok(Vec::new()) };
        let mut lacking = Vec::new();
        for row in self.store.catalog.chain(newest)? {
            if settled.contains(&row.id) || !row.used {
                continue;
            }
            match sums::lacking(&self.data, row.id)? {
                Lacking::Nothing => {
                    settled.insert(row.id);
                }
                Lacking::Bytes(bytes) => lacking.push((row.id, bytes)),
                Lacking::NotSealed => {}
            }
        }
        Ok(lacking)
    }
}

fn chains(
    store: &Store,
    tops: impl Iterator<Item = LayerId>,
) -> Result<Vec<LayerRow>, BranchError> {
    let mut layers = Vec::new();
    for top in tops {
        layers.extend(store.catalog.chain(top)?);
    }
    Ok(layers)
}

/// Makes the checksums that the sealed layers of a store (or of one branch of it) lack.
///
/// Layers that are not finalized, and layers that another process works on, are passed over.
pub fn add_checksums(
    store: &Arc<Store>,
    branch: Option<&BranchName>,
    pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(), BranchError> {
    let data = data_files(Arc::new(HostStorage), store);
    let mut seen = HashSet::new();
    for row in store.catalog.branches()? {
        if branch.is_some_and(|only| *only != row.name) {
            continue;
        }
        let snapshots = store.catalog.snapshots_of(row.id)?;
        let tops = snapshots.into_iter().map(|snapshot| snapshot.layer).chain([row.head]);
        for layer in chains(store, tops)? {
            if layer.state != LayerState::Sealed || !layer.used || !seen.insert(layer.id) {
                continue;
            }
            if let Some(dir) = &layer.adopted_from
                && let Some(index) = open_index(&data, layer.id, IndexFile::Own)?
            {
                data.adopt(layer.id, dir.clone(), index);
            }
            sums::make(&data, layer.id, pace)?;
        }
    }
    Ok(())
}

/// Makes the damaged checksums of a layer again where they cannot be relied on; false if that has
/// to wait, because somebody else is at it, or the layer has no sound index.
pub fn remake_checksums(store: &Arc<Store>, layer: LayerId) -> Result<bool, BranchError> {
    let data = data_files(Arc::new(HostStorage), store);
    let row = store.catalog.layer(layer)?.ok_or(BranchError::LayerMissing { layer })?;
    if let Some(dir) = &row.adopted_from
        && let Some(index) = open_index(&data, layer, IndexFile::Own)?
    {
        data.adopt(layer, dir.clone(), index);
    }
    Ok(sums::remake(&data, layer)? == Made::Now)
}
