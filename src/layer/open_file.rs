//! What an open layer knows of one regular file that it touched.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use super::borrowed::Borrowed;
use super::data_files::DataFiles;
use super::presence::Presence;
use super::write_out::WriteOut;
use crate::format::{GRANULE_BYTES, Granule, GranuleRange, Ino, LayerId, LayoutDelta, OwnedRun};

/// Which parts of the file the layer owns, and how long the file is.
#[derive(Default, Clone)]
pub struct Ownership {
    /// The layer owns all of the file: lower layers never show, holes read as zeros.
    pub private: bool,
    /// Contents of lower layers at or past this granule are gone.
    pub floor: Granule,
    /// Granules owned by this layer; not kept for a private file.
    pub present: Presence,
    /// Granules of a private file that are those of lower layers.
    pub borrowed: Borrowed,
    /// The file's size in bytes: the length of the data file.
    pub size: u64,
}

impl Ownership {
    /// Bytes that the layer's data file holds, at most.
    pub fn owned_bytes(&self) -> u64 {
        if self.private {
            self.size.saturating_sub(self.borrowed.count() * GRANULE_BYTES)
        } else {
            self.present.count() * GRANULE_BYTES
        }
    }
}

/// A regular file that the open layer owns, wholly or in part.
///
/// Lock order: `writers`, then `ownership` or `pending` (never both), each held for memory
/// operations only, except `writers`, which orders whole writes.
pub struct OpenFile {
    /// The inode.
    pub ino: Ino,
    /// The layer.
    pub layer: LayerId,
    /// Held shared by writes to granules already owned, exclusively by whatever takes ownership
    /// of part of a granule or changes the size downwards.
    pub writers: RwLock<()>,
    /// What is owned. Held for memory operations only.
    pub ownership: RwLock<Ownership>,
    /// Orders the fsyncs of this file.
    pub sync_turn: Mutex<()>,
    /// A sync failed: every later one fails too, until the branch is remounted and checked.
    pub failed: AtomicBool,
    /// Written since the last sync began.
    pub dirty: AtomicBool,
    /// What was written and not handed to the disk.
    pub(super) write_out: WriteOut,
    /// Held shared by whoever hands something to the disk: a sync must not overlook that it failed.
    writing_out: RwLock<()>,
    /// Granules that are not owned may hold bytes in the data file all the same: of a write that
    /// failed half-way, or that a crash took back.
    pub strays: AtomicBool,
    /// The data file's directory entry is durable.
    pub entry_durable: AtomicBool,
    /// The journal ticket of the last ownership record.
    pub layout_ticket: AtomicU64,
    /// A cut that took place and that the volatile log could not be told of yet.
    pub unlogged: Mutex<Option<LayoutDelta>>,
    damage: OnceLock<String>,
    pending: Mutex<Pending>,
    pinned: Mutex<Option<Arc<dyn HostFilePin>>>,
}

// A readable name for what is pinned: the descriptor that saw the writes must see their errors.
use crate::io::HostFile as HostFilePin;

/// Ownership changes that the journal has not been told of.
struct Pending {
    changed: bool,
    private: bool,
    floor: Granule,
    cut: Granule,
    added: Presence,
    borrowed: Borrowed,
}

impl Default for Pending {
    fn default() -> Self {
        Pending {
            changed: false,
            private: false,
            floor: Granule::MAX,
            cut: Granule::MAX,
            added: Presence::default(),
            borrowed: Borrowed::default(),
        }
    }
}

impl OpenFile {
    /// A file of `size` bytes of which the layer owns all (`private`) or nothing yet.
    pub fn new(layer: LayerId, ino: Ino, private: bool, size: u64) -> OpenFile {
        let ownership = Ownership { private, floor: Granule::MAX, size, ..Ownership::default() };
        OpenFile {
            ino,
            layer,
            writers: RwLock::new(()),
            ownership: RwLock::new(ownership),
            sync_turn: Mutex::new(()),
            failed: AtomicBool::new(false),
            dirty: AtomicBool::new(false),
            write_out: WriteOut::default(),
            writing_out: RwLock::new(()),
            strays: AtomicBool::new(false),
            entry_durable: AtomicBool::new(false),
            layout_ticket: AtomicU64::new(0),
            unlogged: Mutex::new(None),
            damage: OnceLock::new(),
            pending: Mutex::default(),
            pinned: Mutex::new(None),
        }
    }

    /// Whether a sync would have anything to do.
    pub fn needs_sync(&self) -> bool {
        self.has_unsynced()
            || self.failed.load(Ordering::Acquire)
            || self.layout_ticket.load(Ordering::Acquire) > 0
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.ownership.read().size
    }

    /// Declares the data file to be other than the records say; `what` names it. The file keeps
    /// its `size`, and nobody gets at its contents any more: neither zeros in the place of what is
    /// lost, nor a new end that would make it look whole.
    pub fn set_damage(&self, what: String, size: u64) {
        tracing::error!("{what}");
        self.ownership.write().size = size;
        // Nothing of it can be made durable.
        self.dirty.store(false, Ordering::Release);
        let _ = self.damage.set(what);
    }

    /// What is wrong with the data file.
    pub fn damage(&self) -> Option<&str> {
        self.damage.get().map(String::as_str)
    }

    fn require_undamaged(&self) -> io::Result<()> {
        match self.damage() {
            None => Ok(()),
            Some(what) => Err(io::Error::new(io::ErrorKind::InvalidData, what)),
        }
    }

    /// The data file, made if it is missing.
    pub fn host(&self, data: &DataFiles) -> io::Result<Arc<dyn HostFilePin>> {
        self.require_undamaged()?;
        if let Some(pinned) = &*self.pinned.lock() {
            return Ok(pinned.clone());
        }
        data.create_own(self.layer, self.ino)
    }

    /// The data file, or `None` while nothing was ever written.
    pub fn existing_host(&self, data: &DataFiles) -> io::Result<Option<Arc<dyn HostFilePin>>> {
        self.require_undamaged()?;
        if let Some(pinned) = &*self.pinned.lock() {
            return Ok(Some(pinned.clone()));
        }
        data.open_own(self.layer, self.ino)
    }

    /// Notes that `host` was written to: called after the write, before the reply.
    pub fn mark_dirty(&self, host: &Arc<dyn HostFilePin>) {
        let mut pinned = self.pinned.lock();
        if pinned.is_none() {
            *pinned = Some(host.clone());
        }
        self.dirty.store(true, Ordering::Release);
    }

    /// Whether a sync of the file failed.
    pub fn is_latched(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Bytes written since the last sync began.
    pub fn unsynced_bytes(&self) -> u64 {
        self.write_out.unsynced_bytes()
    }

    /// What is to be written out now. To be started without a lock: the disk's queue may be full.
    pub fn due_write_out(self: &Arc<Self>) -> Option<impl FnOnce() + use<>> {
        let span = self.write_out.take_due()?;
        let file = self.clone();
        Some(move || file.start_write_out(span))
    }

    /// Whether it is to be put into [`super::write_out::Waiting`] now.
    pub fn is_to_be_listed(&self) -> bool {
        self.write_out.is_to_be_listed()
    }

    /// Starts to write out however little waits; gives how many bytes were written of it. For a file that
    /// was taken out of [`super::write_out::Waiting`].
    pub(super) fn start_waiting(&self) -> u64 {
        let Some((span, bytes)) = self.write_out.take_waiting() else { return 0 };
        self.start_write_out(span);
        bytes
    }

    fn start_write_out(&self, span: Range<u64>) {
        let _busy = self.writing_out.read();
        let Some(host) = self.pinned.lock().clone() else { return };
        if let Err(error) = host.start_write_out(span.start, span.end - span.start) {
            // The pages may be gone, and the fsync would find nothing to write.
            host.forget_clean_pages();
            self.latch("starting to write a data file out", &error);
        }
    }

    /// Waits until what was begun to be written out has begun, or failed.
    pub(super) fn wait_for_write_outs(&self) {
        drop(self.writing_out.write());
    }

    /// Something written may be lost: no fsync of the file succeeds until the branch is mounted anew and
    /// the disk tells what there is.
    pub(super) fn latch(&self, what: &str, error: &io::Error) {
        self.failed.store(true, Ordering::Release);
        let layer = self.layer.dir_name();
        tracing::error!(%layer, ino = %self.ino, %error, "{what} failed: file latched");
    }

    /// Whether something was written, or came to be owned, since the last sync began.
    pub fn has_unsynced(&self) -> bool {
        self.dirty.load(Ordering::Acquire) || self.pending.lock().changed
    }

    /// Lets the descriptor go back to the pool's care once everything is synced.
    pub fn unpin_if_clean(&self) {
        let mut pinned = self.pinned.lock();
        if !self.dirty.load(Ordering::Acquire) {
            *pinned = None;
        }
    }

    /// Whether the descriptor is held because of unsynced writes.
    pub fn is_pinned(&self) -> bool {
        self.pinned.lock().is_some()
    }

    /// Applies a change of ownership and notes it for the journal's next sync.
    pub fn apply(&self, delta: &LayoutDelta) {
        {
            let mut own = self.ownership.write();
            apply_to(&mut own, delta);
        }
        let mut pending = self.pending.lock();
        pending.changed = true;
        pending.private |= delta.private;
        pending.floor = pending.floor.min(delta.floor);
        pending.cut = pending.cut.min(delta.cut);
        pending.added.cut(delta.cut);
        pending.borrowed.cut(delta.cut);
        for range in &delta.added {
            pending.added.insert(*range);
            pending.borrowed.remove(*range);
        }
        // What is added and borrowed later is borrowed: that is the order in which they apply.
        for run in &delta.borrowed {
            pending.borrowed.insert(*run);
        }
    }

    /// Restores ownership that the journal holds already.
    pub fn restore(&self, delta: &LayoutDelta) {
        apply_to(&mut self.ownership.write(), delta);
    }

    /// Takes what the journal does not know, as one delta.
    pub fn take_pending(&self) -> Option<LayoutDelta> {
        let pending = std::mem::take(&mut *self.pending.lock());
        pending.changed.then(|| LayoutDelta {
            ino: self.ino,
            private: pending.private,
            floor: pending.floor,
            cut: pending.cut,
            added: pending.added.ranges().collect(),
            borrowed: pending.borrowed.runs().to_vec(),
        })
    }

    /// This layer's ownership as runs, with (private, floor). The data file must exist if the
    /// file is private and not empty.
    pub fn layout(&self) -> (bool, Granule, Vec<OwnedRun>) {
        let own = self.ownership.read();
        let end = crate::format::id::granules_spanned(own.size);
        let run = |range: GranuleRange| OwnedRun {
            start: range.start,
            len: range.end - range.start,
            layer: self.layer,
            file: self.ino,
            source: range.start,
        };
        let runs = if own.private {
            let mut runs = Vec::with_capacity(1 + 2 * own.borrowed.runs().len());
            let mut at = 0;
            while at < end {
                let (borrowed, stop) = own.borrowed.at(at, end);
                runs.push(match borrowed {
                    Some(borrowed) => borrowed,
                    None => run(GranuleRange { start: at, end: stop }),
                });
                at = stop;
            }
            runs
        } else {
            own.present.ranges().map(run).collect()
        };
        (own.private, own.floor, runs)
    }
}

fn apply_to(own: &mut Ownership, delta: &LayoutDelta) {
    own.present.cut(delta.cut);
    own.floor = own.floor.min(delta.floor);
    own.private |= delta.private;
    own.borrowed.cut(delta.cut);
    if own.private {
        own.present = Presence::default();
        for range in &delta.added {
            own.borrowed.remove(*range);
        }
        for run in &delta.borrowed {
            own.borrowed.insert(*run);
        }
        return;
    }
    for range in &delta.added {
        own.present.insert(*range);
    }
}
