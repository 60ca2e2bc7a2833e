//! The open layer of a branch: the only place where anything is written.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::LayerError;
use super::data_files::DataFiles;
use super::leave::Left;
use super::log::{FirstUse, Log, LogEnd, Ticket};
use super::names::Names;
use super::open_file::OpenFile;
use super::sync::Durable;
use super::write_out::Waiting;
use crate::format::journal::Record;
use crate::format::name_hash::name_hash;
use crate::format::{DirentTarget, Ino, InodeRecord, LayerId, LayoutDelta};
use crate::io::crash::{Point, crash_point};

/// Destroys wait until the journal says that nothing leads to the file any more.
struct Doomed {
    ino: Ino,
    ticket: Ticket,
    bytes: u64,
}

/// An inode that this layer changed.
struct ChangedInode {
    record: InodeRecord,
    ticket: Ticket,
}

/// A layer that takes writes, or that did until a fork a moment ago ("frozen").
///
/// A frozen layer gets no new content; its journal still grows while syncs complete, until the
/// index replaces it.
pub struct OpenLayer {
    /// The layer's id.
    pub id: LayerId,
    /// Layers below it; 0 for a base.
    pub depth: u32,
    /// Data files of the store.
    pub data: Arc<DataFiles>,
    /// Journal and volatile log.
    pub log: Log,
    /// Another process may be writing this layer's journal: sync it by finalizing it only.
    pub foreign: bool,
    names: RwLock<Names>,
    inodes: RwLock<HashMap<Ino, ChangedInode>>,
    files: RwLock<HashMap<Ino, Arc<OpenFile>>>,
    doomed: Mutex<Vec<Doomed>>,
    /// Files with something to be written out, but for those that are written out with their commits (WAL)
    /// or, one hopes, never (what queries spill).
    pub waiting: Waiting,
    ino_last: AtomicU64,
    /// How the layer was left, if it was left in order; see [`super::leave`].
    pub(super) left: Option<Left>,
}

impl OpenLayer {
    /// An empty layer; nothing is made on disk before the first change.
    pub fn empty(
        (id, depth): (LayerId, u32),
        data: Arc<DataFiles>,
        boot_id: [u8; 16],
        first_use: FirstUse,
    ) -> OpenLayer {
        Self::resume((id, depth), data, boot_id, (LogEnd::default(), LogEnd::default()), first_use)
    }

    /// A layer whose logs continue at the given ends; the caller restores the contents.
    pub fn resume(
        (id, depth): (LayerId, u32),
        data: Arc<DataFiles>,
        boot_id: [u8; 16],
        ends: (LogEnd, LogEnd),
        first_use: FirstUse,
    ) -> OpenLayer {
        let dir = data.layer_dir(id);
        let log = Log::resume(id, dir, data.storage.clone(), boot_id, ends, first_use);
        OpenLayer {
            id,
            depth,
            data,
            log,
            foreign: false,
            names: RwLock::default(),
            inodes: RwLock::default(),
            files: RwLock::default(),
            doomed: Mutex::default(),
            waiting: Waiting::default(),
            ino_last: AtomicU64::new(0),
            left: None,
        }
    }

    /// Whether the layer holds nothing at all.
    pub fn is_empty(&self) -> bool {
        self.names.read().is_empty()
            && self.inodes.read().is_empty()
            && self.files.read().is_empty()
    }

    /// What this layer says about a name, if anything.
    pub fn lookup(&self, dir: Ino, hash: u64, name: &[u8]) -> Option<DirentTarget> {
        self.names.read().get(dir, hash, name)
    }

    /// Up to `limit` entries of `dir` whose hash is greater than `after`.
    pub fn entries_after(
        &self,
        dir: Ino,
        after: u64,
        limit: usize,
    ) -> Vec<(u64, Vec<u8>, DirentTarget)> {
        let names = self.names.read();
        let mut out: Vec<(u64, Vec<u8>, DirentTarget)> = Vec::new();
        for (hash, name, target) in names.after(dir, after) {
            // Never stop inside a group of equal hashes: the cursor could not tell them apart.
            if out.len() >= limit && out.last().is_some_and(|(last, _, _)| *last != hash) {
                break;
            }
            out.push((hash, name.to_vec(), target));
        }
        out
    }

    /// What this layer says about an inode, if anything. For a regular file with a data file here
    /// the size is the data file's.
    pub fn inode(&self, ino: Ino) -> Option<InodeRecord> {
        let mut record = self.inodes.read().get(&ino).map(|changed| changed.record.clone())?;
        if let Some(file) = self.file(ino) {
            record.size = file.size();
        }
        Some(record)
    }

    /// The journal ticket of an inode's last record here; 0 if there is none.
    pub fn inode_ticket(&self, ino: Ino) -> Ticket {
        self.inodes.read().get(&ino).map_or(0, |changed| changed.ticket)
    }

    /// The file, if this layer owns any of it.
    pub fn file(&self, ino: Ino) -> Option<Arc<OpenFile>> {
        self.files.read().get(&ino).cloned()
    }

    /// Starts to write out `bytes` of what waits, at most, but for files without a name.
    pub fn write_out_waiting(&self, bytes: u64) {
        let nameless = |changed: &ChangedInode| changed.record.nlink == 0;
        let gone = |ino| self.inodes.read().get(&ino).is_some_and(nameless);
        self.waiting.start(bytes, |file| !gone(file.ino));
    }

    /// Every file that this layer owns any of.
    pub fn all_files(&self) -> Vec<Arc<OpenFile>> {
        self.files.read().values().cloned().collect()
    }

    /// Number of files, names and inodes that this layer changed.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.files.read().len(), self.names.read().len(), self.inodes.read().len())
    }

    /// Visits every changed inode.
    pub fn for_each_inode(&self, mut visit: impl FnMut(&InodeRecord)) {
        for changed in self.inodes.read().values() {
            visit(&changed.record);
        }
    }

    /// Visits every changed name.
    pub fn for_each_name(&self, mut visit: impl FnMut(Ino, &[u8], DirentTarget)) {
        for (dir, name, target) in self.names.read().iter() {
            visit(dir, name, target);
        }
    }

    /// Applies records as one step: logged first, so that no reply precedes its record.
    pub fn commit(&self, records: &[Record]) -> Result<Ticket, LayerError> {
        let ticket = self.log.append(records)?;
        for record in records {
            self.apply(record, ticket);
        }
        Ok(ticket)
    }

    /// Applies one record to memory only (it is logged already).
    pub fn apply(&self, record: &Record, ticket: Ticket) {
        match record {
            Record::Inode(inode) => {
                let changed = ChangedInode { record: (**inode).clone(), ticket };
                self.ino_last.fetch_max(inode.ino.0, Ordering::Relaxed);
                self.inodes.write().insert(inode.ino, changed);
            }
            Record::Forget(ino) => {
                self.ino_last.fetch_max(ino.0, Ordering::Relaxed);
                self.inodes.write().remove(ino);
                self.files.write().remove(ino);
            }
            Record::Dirent { dir, name, target } => {
                self.names.write().set(*dir, name_hash(name), name, *target);
            }
            Record::Layout(delta) => self.file_or_new(delta).restore(delta),
            Record::NextIno(ino) => {
                self.ino_last.fetch_max(ino.0.saturating_sub(1), Ordering::Relaxed);
            }
            // What is said about the data files, not about the files.
            Record::Length { .. } | Record::Closed { .. } | Record::Lost { .. } => {}
        }
    }

    fn file_or_new(&self, delta: &LayoutDelta) -> Arc<OpenFile> {
        let mut files = self.files.write();
        let new = || Arc::new(OpenFile::new(self.id, delta.ino, delta.private, 0));
        files.entry(delta.ino).or_insert_with(new).clone()
    }

    /// The lowest inode number that this layer's records never mentioned, however they ended.
    pub fn next_ino_floor(&self) -> u64 {
        self.ino_last.load(Ordering::Relaxed).saturating_add(1)
    }

    /// The file for writing: the layer's own, or one made now over `size` bytes of lower layers.
    pub fn file_for_write(&self, ino: Ino, size: u64) -> Result<Arc<OpenFile>, LayerError> {
        if let Some(file) = self.file(ino) {
            return Ok(file);
        }
        let file = Arc::new(OpenFile::new(self.id, ino, false, size));
        let mut files = self.files.write();
        if let Some(winner) = files.get(&ino) {
            return Ok(winner.clone());
        }
        // The length carries the file's size: it must be right before anything is owned.
        let create = || -> io::Result<()> {
            let host = file.host(&self.data)?;
            host.set_len(size)?;
            file.mark_dirty(&host);
            Ok(())
        };
        create().map_err(LayerError::host(self.id, "creating a data file"))?;
        crash_point(Point::FileSized);
        let delta = LayoutDelta::unchanged(ino);
        self.log.append_volatile(&[Record::Layout(delta.clone())])?;
        crash_point(Point::FileLogged);
        file.apply(&delta);
        files.insert(ino, file.clone());
        Ok(file)
    }

    /// Drops an inode that has no name and no user left; its data file goes once that is durable.
    pub fn forget(&self, ino: Ino) -> Result<(), LayerError> {
        let file = self.file(ino);
        self.commit(&[Record::Forget(ino)])?;
        if let Some(file) = file {
            self.doom(ino, file.size());
        }
        Ok(())
    }

    /// Has a data file removed that no record leads to any more, once that is durable. Never at
    /// once: the journal on disk may still lead to it, by an older record.
    pub fn doom(&self, ino: Ino, bytes: u64) {
        let ticket = self.log.last_ticket();
        self.doomed.lock().push(Doomed { ino, ticket, bytes });
    }

    /// Bytes (of file size) that wait for the journal before they can be freed.
    pub fn doomed_bytes(&self) -> u64 {
        self.doomed.lock().iter().map(|doomed| doomed.bytes).sum()
    }

    /// Whether the data file of `ino` waits to be removed.
    pub fn is_doomed(&self, ino: Ino) -> bool {
        self.doomed.lock().iter().any(|doomed| doomed.ino == ino)
    }

    /// Whether any data file waits to be removed.
    pub fn has_doomed(&self) -> bool {
        !self.doomed.lock().is_empty()
    }

    /// Syncs the journal and removes the data files that waited for it.
    pub fn reap(&self) -> Result<Durable, LayerError> {
        let doomed = std::mem::take(&mut *self.doomed.lock());
        let last = doomed.iter().map(|doomed| doomed.ticket).max().unwrap_or(0);
        let receipt = match self.log.sync_to(last) {
            Ok(receipt) => receipt,
            Err(error) => {
                self.doomed.lock().extend(doomed);
                return Err(error);
            }
        };
        let mut first_error = None;
        for gone in doomed {
            crash_point(Point::ReapSynced);
            if let Err(source) = self.data.destroy(self.id, gone.ino) {
                first_error.get_or_insert(source);
                self.doomed.lock().push(gone);
            }
            crash_point(Point::ReapRemoved);
        }
        match first_error {
            Some(source) => Err(LayerError::host(self.id, "removing a data file")(source)),
            None => Ok(receipt),
        }
    }
}
