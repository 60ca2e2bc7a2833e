//! Finalizing: a frozen layer's data is synced and its logs become an index.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use parking_lot::{Condvar, Mutex};

use super::compaction::Work;
use super::view::{SealedPart, View};
use super::{Branch, BranchError, merge};
use crate::format::index::{FileLayout, IndexBuilder, IndexMeta};
use crate::format::{FileKind, Ino, LayerId};
use crate::io::crash::{ENABLED, Point, crash_point};
use crate::io::host::open_plain_with;
use crate::io::{Access, Appender};
use crate::layer::LayerError;
use crate::layer::data_files::DataFiles;
use crate::layer::holes::without_holes;
use crate::layer::open::OpenLayer;
use crate::layer::sealed::{IndexFile, open_index};

/// How often the background thread looks around when nobody wakes it.
const TICK: Duration = Duration::from_secs(1);
/// Names and inodes become durable after this long without an fsync (as on ext4).
const NAMES_SYNC_EVERY: Duration = Duration::from_secs(5);
/// Logs larger than this are turned into an index by sealing the open layer.
const LOG_BYTES_MAX: u64 = 256 << 20;

/// The background thread of a branch.
#[derive(Default)]
pub struct Background {
    state: Mutex<Wanted>,
    changed: Condvar,
    /// One finalization at a time within the process.
    turn: Mutex<()>,
}

#[derive(Default)]
struct Wanted {
    work: bool,
    stop: bool,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Background {
    /// Starts the thread of `branch`.
    pub fn start(branch: &Arc<Branch>) {
        let weak = Arc::downgrade(branch);
        let spawned =
            std::thread::Builder::new().name("cowfs-finalize".to_owned()).spawn(move || run(&weak));
        match spawned {
            Ok(thread) => branch.background.state.lock().thread = Some(thread),
            Err(error) => {
                tracing::error!(%error, "no background thread: layers are finalized at unmount");
            }
        }
        branch.background.wake();
    }

    /// Has the thread look for work now.
    pub fn wake(&self) {
        self.state.lock().work = true;
        self.changed.notify_all();
    }

    /// Ends the thread and waits for it.
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

    /// Waits for work; false when the thread shall end.
    fn next(&self) -> bool {
        let mut state = self.state.lock();
        if !state.work && !state.stop {
            self.changed.wait_for(&mut state, TICK);
        }
        state.work = false;
        !state.stop
    }
}

fn run(weak: &Weak<Branch>) {
    let mut names_synced = Instant::now();
    let mut merges_not_before = None;
    loop {
        let Some(branch) = weak.upgrade() else { return };
        if !branch.background.next() {
            return;
        }
        branch.compact(&mut merges_not_before);
        if let Err(error) = branch.tend_open_layer(&mut names_synced) {
            tracing::error!(%error, "background sync failed");
        }
    }
}

impl Branch {
    fn tend_open_layer(&self, names_synced: &mut Instant) -> Result<(), BranchError> {
        let view = self.view();
        if view.open.has_doomed() || names_synced.elapsed() >= NAMES_SYNC_EVERY {
            *names_synced = Instant::now();
            let _durable = self.sync_names()?;
            let _durable = self.view().open.reap()?;
        }
        self.store.catalog.tend_log()?;
        let (journal, volatile) = view.open.log.sizes();
        // During a pause the logs of a sealed layer would stay as they are.
        if journal.max(volatile) > LOG_BYTES_MAX && !self.compaction.is_paused() {
            self.seal()?;
        }
        Ok(())
    }

    /// Finalizes every frozen layer, the oldest first.
    pub fn finalize_frozen(&self) -> Result<(), BranchError> {
        while let Some(oldest) = self.view().frozen.last().cloned() {
            self.finalize_layer(&oldest)?;
        }
        Ok(())
    }

    /// Finalizes `layer` (and older ones first), unless somebody has done so.
    pub(super) fn finalize_layer(&self, layer: &Arc<OpenLayer>) -> Result<(), BranchError> {
        let _turn = self.background.turn.lock();
        let view = self.view();
        let Some(position) = view.frozen.iter().position(|f| Arc::ptr_eq(f, layer)) else {
            return Ok(());
        };
        // Oldest first; a fork meanwhile only adds newer ones in front.
        for _ in position..view.frozen.len() {
            self.finalize_oldest(&self.view())?;
        }
        Ok(())
    }

    fn finalize_oldest(&self, view: &Arc<View>) -> Result<(), BranchError> {
        let Some(layer) = view.frozen.last().cloned() else { return Ok(()) };
        let position = view.frozen.len() - 1;
        let depth = layer.depth;
        let part =
            if layer.is_empty() { None } else { Some(self.index_of(view, position, &layer)?) };
        self.swap_in(&layer, part);
        layer.log.retire();
        crash_point(Point::FinalizeSwapped);
        // What was unlinked just before the fork waited for the journal; the index stands for it now.
        let _durable = layer.reap()?;
        crash_point(Point::FinalizeReaped);
        let dir = self.data.layer_dir(layer.id);
        for (name, point) in
            [("journal", Point::FinalizeJournalRemoved), ("volatile", Point::FinalizeLogsRemoved)]
        {
            let removed = self.data.storage.remove_file(&dir.join(name));
            removed.map_err(host_error("removing", &dir.join(name)))?;
            crash_point(point);
        }
        self.data.finalized(layer.id);
        self.compaction.finalized();
        if let Err(error) = merge::merge_below(self, depth) {
            // Lookups visit more indexes than they might; nothing else depends on it.
            tracing::warn!(%error, depth, "merging indexes failed");
            self.compaction.failed(Work::Merge, &error);
        }
        Ok(())
    }

    /// The durable index of a frozen layer, written now unless another process has written it.
    fn index_of(
        &self,
        view: &View,
        position: usize,
        layer: &OpenLayer,
    ) -> Result<SealedPart, BranchError> {
        let dir = self.data.layer_dir(layer.id);
        let _lock = finalize_lock(&dir)?;
        let which = IndexFile::Own;
        if open_index(&self.data, layer.id, which)?.is_none() {
            crash_point(Point::FinalizeLocked);
            sync_contents(layer, &self.data)?;
            crash_point(Point::FinalizeSynced);
            let builder = self.build_index(view, position, layer)?;
            write_index(builder, &self.data, layer.id, which)?;
            // A layer whose journal was never synced: from here on its absence is damage.
            self.store.catalog.mark_layer_used(layer.id)?;
            crash_point(Point::FinalizeNoted);
        }
        let index = open_index(&self.data, layer.id, which)?
            .ok_or(BranchError::LayerMissing { layer: layer.id })?;
        Ok(SealedPart::new(layer.id, which, index))
    }

    fn build_index(
        &self,
        view: &View,
        position: usize,
        layer: &OpenLayer,
    ) -> Result<IndexBuilder, BranchError> {
        // Any number above every inode of the layer will do; the branch's own is at hand.
        let next_ino = Ino(self.next_ino.load(std::sync::atomic::Ordering::Relaxed));
        let meta =
            IndexMeta { layer: layer.id, lowest_depth: layer.depth, depth: layer.depth, next_ino };
        let mut builder = IndexBuilder::new(meta);
        layer.for_each_name(|dir, name, target| builder.dirent(dir, name, target));
        let mut inos = BTreeSet::new();
        layer.for_each_inode(|record| {
            inos.insert(record.ino);
        });
        inos.extend(layer.all_files().iter().map(|file| file.ino));
        for ino in inos {
            // Position 0 of the in-memory layers is the open one.
            let Some(record) = view.inode_below(ino, position + 1)? else { continue };
            // A file without a name is kept: somebody may have it open still.
            let layout = layer.file(ino).map(|file| {
                let (private, floor, runs) = file.layout();
                let runs = if private { without_holes(layer, &file, runs) } else { runs };
                FileLayout { private, floor, runs }
            });
            debug_assert!(layout.is_none() || record.kind == FileKind::Regular);
            builder.inode(record, layout);
        }
        Ok(builder)
    }

    /// Replaces the oldest frozen layer by its index; what the stack says does not change.
    fn swap_in(&self, layer: &Arc<OpenLayer>, part: Option<SealedPart>) {
        self.replace_view(|old| View {
            frozen: old.frozen.iter().filter(|f| !Arc::ptr_eq(f, layer)).cloned().collect(),
            ..old.with_sealed(part.into_iter().chain(old.sealed.iter().cloned()).collect())
        });
    }

    /// Replaces the newest finalized parts down to `lowest_depth` by one merged index.
    pub(super) fn swap_merged(&self, part: &SealedPart) {
        let lowest = part.index.meta().lowest_depth;
        let depth = part.index.meta().depth;
        self.replace_view(|old| {
            let mut sealed = Vec::with_capacity(old.sealed.len());
            let mut placed = false;
            for existing in old.sealed.iter() {
                let meta = existing.index.meta();
                if meta.depth > depth || meta.lowest_depth < lowest {
                    sealed.push(existing.clone());
                } else if !placed {
                    sealed.push(part.clone());
                    placed = true;
                }
            }
            old.with_sealed(sealed)
        });
    }
}

/// Makes every byte of a frozen layer durable before an index claims it.
fn sync_contents(layer: &OpenLayer, data: &DataFiles) -> Result<(), BranchError> {
    if !layer.foreign {
        let _durable = layer.sync_all()?;
        return Ok(());
    }
    // The journal belongs to another process; the index will take its place, so only data counts.
    for file in layer.all_files() {
        // There is nothing to make durable; the index says what was there, and reads say the rest.
        if file.damage().is_some() {
            continue;
        }
        let sync = || -> io::Result<()> {
            if let Some(host) = file.existing_host(data)? {
                host.sync_data()?;
                data.sync_entry(layer.id, file.ino)?;
            }
            Ok(())
        };
        sync().map_err(|source| LayerError::Host {
            layer: layer.id,
            what: "syncing a data file",
            source,
        })?;
    }
    Ok(())
}

fn host_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BranchError + use<> {
    let path = path.to_owned();
    move |source| BranchError::Host { what, path, source }
}

/// Waits for the right to finalize the layer in `dir`.
pub(super) fn finalize_lock(dir: &Path) -> Result<Flock<File>, BranchError> {
    let path = dir.join("finalize.lock");
    std::fs::create_dir_all(dir).map_err(host_error("creating", dir))?;
    let mut options = File::options();
    let file = open_plain_with(options.create(true).truncate(false).write(true), &path)
        .map_err(host_error("opening", &path))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| host_error("locking", &path)(errno.into()))
}

/// Writes an index file so that it is either absent or complete and durable.
pub(super) fn write_index(
    builder: IndexBuilder,
    data: &DataFiles,
    layer: LayerId,
    which: IndexFile,
) -> Result<(), BranchError> {
    let (path, dir) = (which.path(data, layer), data.layer_dir(layer));
    let temporary = path.with_extension("tmp");
    let [created, half_written, written, synced, renamed, durable] = points_of(which);
    let write = || -> io::Result<()> {
        let file = data.storage.open(&temporary, Access::CreateEmpty)?;
        crash_point(created);
        // Small, so that half an index can be left behind.
        let buffer = if ENABLED { 256 } else { 1 << 20 };
        let mut out = BufWriter::with_capacity(buffer, Appender::new(&*file));
        builder.write(&mut out)?;
        crash_point(half_written);
        out.flush()?;
        crash_point(written);
        file.sync_data()?;
        crash_point(synced);
        data.storage.rename(&temporary, &path)?;
        crash_point(renamed);
        data.storage.sync_dir(&dir)?;
        // The layer may never have been synced before: then its directory is new, too.
        data.storage.sync_dir(dir.parent().unwrap_or(Path::new("/")))?;
        crash_point(durable);
        Ok(())
    };
    write().map_err(host_error("writing", &path))
}

/// The crash points of writing an index, in their order.
fn points_of(which: IndexFile) -> [Point; 6] {
    match which {
        IndexFile::Own => [
            Point::IndexCreated,
            Point::IndexHalfWritten,
            Point::IndexWritten,
            Point::IndexSynced,
            Point::IndexRenamed,
            Point::IndexDurable,
        ],
        IndexFile::Merged => [
            Point::MergedCreated,
            Point::MergedHalfWritten,
            Point::MergedWritten,
            Point::MergedSynced,
            Point::MergedRenamed,
            Point::MergedDurable,
        ],
    }
}
