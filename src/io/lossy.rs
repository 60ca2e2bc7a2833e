//! A [`Storage`] whose power can be cut: what was not synced may then be lost, in any combination.
//!
//! For tests of recovery. It is harsher than real hosts: of the writes to a file since its last
//! sync any subset survives, page by page; of the changes of a directory since its last sync any
//! prefix does, whatever happened to the files themselves or to other directories. Files are
//! copied in whole at each sync, so it suits small ones.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Access, Allocate, HostFile, HostMetadata, Storage};

/// Writes are torn at multiples of this, in bytes.
const PAGE: usize = 4096;

/// Picks a number below its argument.
pub type Dice<'a> = &'a mut dyn FnMut(usize) -> usize;

enum DataOp {
    Write { offset: u64, bytes: Vec<u8> },
    SetLen(u64),
    Zero { offset: u64, len: u64 },
}

/// What of a file's contents is on the disk for sure, and what may be.
#[derive(Default)]
struct Contents {
    durable: Option<Vec<u8>>,
    since: Vec<DataOp>,
}

type Shared = Arc<Mutex<Contents>>;

/// A file that has no name any more, unless the power goes.
struct Grave {
    at: PathBuf,
    contents: Option<Shared>,
}

enum EntryOp {
    Created(PathBuf),
    Removed(PathBuf, Grave),
    Renamed { from: PathBuf, to: PathBuf, replaced: Option<Grave> },
}

#[derive(Default)]
struct State {
    files: HashMap<PathBuf, Shared>,
    entries: HashMap<PathBuf, Vec<EntryOp>>,
    /// Numbers paths in the order of their first use, so that the same dice give the same loss
    /// whatever names were drawn.
    order: HashMap<PathBuf, usize>,
    graves: u64,
    off: bool,
}

/// Wraps another storage; see the module.
#[derive(Clone)]
pub struct LossyStorage {
    inner: Arc<dyn Storage>,
    graveyard: PathBuf,
    state: Arc<Mutex<State>>,
}

impl State {
    fn number(&mut self, path: &Path) {
        let next = self.order.len();
        self.order.entry(path.to_owned()).or_insert(next);
    }
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).to_owned()
}

fn dead() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl LossyStorage {
    /// Wraps `inner`. `graveyard` is a directory on the same filesystem, outside of what is stored.
    pub fn new(inner: Arc<dyn Storage>, graveyard: PathBuf) -> LossyStorage {
        LossyStorage { inner, graveyard, state: Arc::default() }
    }

    /// Cuts the power: afterwards the host holds what `dice` left of it, and every call fails.
    pub fn cut(&self, dice: Dice<'_>) -> io::Result<()> {
        let mut state = self.state.lock();
        state.off = true;
        let mut dirs: Vec<PathBuf> = state.entries.keys().cloned().collect();
        dirs.sort_by_key(|dir| state.order.get(dir).copied());
        for dir in dirs.iter().rev() {
            let mut ops = state.entries.remove(dir).unwrap_or_default();
            let kept = dice(ops.len() + 1);
            for op in ops.drain(kept..).rev() {
                undo(&mut state, op)?;
            }
        }
        let mut files: Vec<(PathBuf, Shared)> = state.files.drain().collect();
        files.sort_by_key(|(path, _)| state.order.get(path).copied());
        for (path, contents) in files {
            if path.exists() {
                contents.lock().settle(&path, dice)?;
            }
        }
        Ok(())
    }

    fn note(&self, state: &mut State, op: EntryOp) {
        let (EntryOp::Created(path)
        | EntryOp::Removed(path, _)
        | EntryOp::Renamed { to: path, .. }) = &op;
        let dir = parent(path);
        state.number(&dir);
        state.entries.entry(dir).or_default().push(op);
    }

    fn bury(&self, state: &mut State, path: &Path) -> io::Result<Option<Grave>> {
        if std::fs::symlink_metadata(path).is_err() {
            return Ok(None);
        }
        std::fs::create_dir_all(&self.graveyard)?;
        state.graves += 1;
        let at = self.graveyard.join(state.graves.to_string());
        std::fs::rename(path, &at)?;
        Ok(Some(Grave { at, contents: state.files.remove(path) }))
    }

    fn on(&self) -> io::Result<parking_lot::MutexGuard<'_, State>> {
        let state = self.state.lock();
        if state.off { Err(dead()) } else { Ok(state) }
    }
}

fn unbury(state: &mut State, path: &Path, grave: Grave) -> io::Result<()> {
    if std::fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    std::fs::rename(&grave.at, path)?;
    if let Some(contents) = grave.contents {
        state.files.insert(path.to_owned(), contents);
    }
    Ok(())
}

fn undo(state: &mut State, op: EntryOp) -> io::Result<()> {
    match op {
        EntryOp::Created(path) => {
            let Ok(meta) = std::fs::symlink_metadata(&path) else { return Ok(()) };
            if meta.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) }
        }
        EntryOp::Removed(path, grave) => unbury(state, &path, grave),
        EntryOp::Renamed { from, to, replaced } => {
            std::fs::rename(&to, &from)?;
            if let Some(contents) = state.files.remove(&to) {
                state.files.insert(from, contents);
            }
            replaced.map_or(Ok(()), |grave| unbury(state, &to, grave))
        }
    }
}

impl Contents {
    /// Notes what is on the disk before the first change.
    fn before(&mut self, file: &dyn HostFile) -> io::Result<()> {
        if self.durable.is_none() {
            self.durable = Some(whole(file)?);
        }
        Ok(())
    }

    fn settle(&mut self, path: &Path, dice: Dice<'_>) -> io::Result<()> {
        let Some(mut bytes) = self.durable.take() else { return Ok(()) };
        for op in self.since.drain(..).filter(|_| dice(2) == 1) {
            match op {
                DataOp::Write { offset, bytes: new } => {
                    let end = offset as usize + new.len();
                    bytes.resize(bytes.len().max(end), 0);
                    bytes.splice(offset as usize..end, new);
                }
                DataOp::SetLen(len) => bytes.resize(len as usize, 0),
                DataOp::Zero { offset, len } => {
                    let end = bytes.len().min((offset + len) as usize);
                    if let Some(range) = bytes.get_mut(offset as usize..end) {
                        range.fill(0);
                    }
                }
            }
        }
        std::fs::write(path, bytes)
    }
}

fn whole(file: &dyn HostFile) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; file.metadata()?.len as usize];
    super::read_full_at(file, &mut bytes, 0)?;
    Ok(bytes)
}

struct LossyFile {
    inner: Arc<dyn HostFile>,
    contents: Shared,
    state: Arc<Mutex<State>>,
}

impl LossyFile {
    fn on(&self) -> io::Result<()> {
        if self.state.lock().off { Err(dead()) } else { Ok(()) }
    }

    fn change<T>(
        &self,
        op: impl FnOnce(&T) -> Vec<DataOp>,
        apply: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        self.on()?;
        let mut contents = self.contents.lock();
        contents.before(&*self.inner)?;
        let done = apply()?;
        contents.since.extend(op(&done));
        Ok(done)
    }
}

/// One write as the pages that reach the disk or not.
fn pages(bytes: &[u8], offset: u64) -> Vec<DataOp> {
    let mut out = Vec::new();
    let (mut rest, mut at) = (bytes, offset);
    while !rest.is_empty() {
        let len = (PAGE - at as usize % PAGE).min(rest.len());
        let (page, after) = rest.split_at(len);
        out.push(DataOp::Write { offset: at, bytes: page.to_vec() });
        (rest, at) = (after, at + len as u64);
    }
    out
}

impl HostFile for LossyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.on()?;
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let written = |n: &usize| pages(buf.split_at(*n).0, offset);
        self.change(written, || self.inner.write_at(buf, offset))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|()| vec![DataOp::SetLen(len)], || self.inner.set_len(len))
    }

    fn metadata(&self) -> io::Result<HostMetadata> {
        self.inner.metadata()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.on()?;
        let mut contents = self.contents.lock();
        contents.durable = Some(whole(&*self.inner)?);
        contents.since.clear();
        Ok(())
    }

    fn allocate(&self, mode: Allocate, offset: u64, len: u64) -> io::Result<()> {
        let before = self.inner.metadata()?.len;
        let ops = |(): &()| match mode {
            Allocate::KeepSize => Vec::new(),
            Allocate::Extend if offset + len <= before => Vec::new(),
            Allocate::Extend => vec![DataOp::SetLen(offset + len)],
            Allocate::PunchHole | Allocate::ZeroKeepSize => vec![DataOp::Zero { offset, len }],
            Allocate::ZeroExtend => {
                vec![DataOp::SetLen(before.max(offset + len)), DataOp::Zero { offset, len }]
            }
        };
        self.change(ops, || self.inner.allocate(mode, offset, len))
    }

    fn seek_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.inner.seek_data(offset)
    }

    fn seek_hole(&self, offset: u64) -> io::Result<Option<u64>> {
        self.inner.seek_hole(offset)
    }

    fn copy_from(&self, source: &dyn HostFile, from: u64, to: u64, len: u64) -> io::Result<u64> {
        let mut bytes = vec![0; len as usize];
        let n = source.read_at(&mut bytes, from)?;
        bytes.truncate(n);
        super::write_all_at(self, &bytes, to)?;
        Ok(n as u64)
    }

    fn start_write_out(&self, _offset: u64, _len: u64) -> io::Result<()> {
        // Whatever was not synced may be on the disk: a cut decides.
        Ok(())
    }

    fn will_need(&self, _offset: u64, _len: u64) {}

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.inner.descriptor()
    }
}

impl Storage for LossyStorage {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn HostFile>> {
        let mut state = self.on()?;
        let creates = matches!(access, Access::Create | Access::CreateEmpty);
        let existed = std::fs::symlink_metadata(path).is_ok();
        let quiet = if access == Access::CreateEmpty { Access::Create } else { access };
        let inner = self.inner.open(path, quiet)?;
        if creates && !existed {
            self.note(&mut state, EntryOp::Created(path.to_owned()));
        }
        state.number(path);
        let contents = state.files.entry(path.to_owned()).or_default().clone();
        drop(state);
        let file = LossyFile { inner, contents, state: self.state.clone() };
        if access == Access::CreateEmpty && existed {
            file.set_len(0)?;
        }
        Ok(Arc::new(file))
    }

    fn metadata(&self, path: &Path) -> io::Result<HostMetadata> {
        drop(self.on()?);
        self.inner.metadata(path)
    }

    fn create_dirs(&self, path: &Path) -> io::Result<()> {
        let mut state = self.on()?;
        let missing: Vec<&Path> =
            path.ancestors().take_while(|dir| std::fs::symlink_metadata(dir).is_err()).collect();
        self.inner.create_dirs(path)?;
        for dir in missing.into_iter().rev() {
            self.note(&mut state, EntryOp::Created(dir.to_owned()));
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.on()?;
        if let Some(grave) = self.bury(&mut state, path)? {
            self.note(&mut state, EntryOp::Removed(path.to_owned(), grave));
        }
        Ok(())
    }

    /// Not modelled: what is removed as a whole is nothing that anybody was promised.
    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        if self.inner.exists(path)? { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.on()?;
        let replaced = self.bury(&mut state, to)?;
        self.inner.rename(from, to)?;
        state.number(to);
        if let Some(contents) = state.files.remove(from) {
            state.files.insert(to.to_owned(), contents);
        }
        let (from, to) = (from.to_owned(), to.to_owned());
        self.note(&mut state, EntryOp::Renamed { from, to, replaced });
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.on()?.entries.remove(path);
        Ok(())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        drop(self.on()?);
        self.inner.read(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        drop(self.on()?);
        self.inner.list(path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::io::host::HostStorage;

    fn cut_all(storage: &LossyStorage) {
        storage.cut(&mut |_| 0).unwrap();
    }

    #[test]
    fn synced_bytes_stay_and_others_go() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        std::fs::create_dir(&store).unwrap();
        let storage = LossyStorage::new(Arc::new(HostStorage), dir.path().join("graves"));
        let (a, b) = (store.join("a"), store.join("b"));
        let file = storage.open(&a, Access::Create).unwrap();
        file.write_at(b"kept", 0).unwrap();
        file.sync_data().unwrap();
        storage.sync_dir(&store).unwrap();
        file.write_at(b"lost!", 2).unwrap();
        storage.open(&b, Access::Create).unwrap().write_at(b"x", 0).unwrap();
        storage.remove_file(&a).unwrap();
        cut_all(&storage);
        assert_eq!(std::fs::read(&a).unwrap(), b"kept");
        assert!(!b.exists());
        assert_eq!(file.write_at(b"y", 0).unwrap_err().raw_os_error(), Some(libc::EIO));
    }

    #[test]
    fn a_rename_that_was_not_synced_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let storage = LossyStorage::new(Arc::new(HostStorage), dir.path().join("graves"));
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for (path, text) in [(&a, b"new"), (&b, b"old")] {
            let file = storage.open(path, Access::Create).unwrap();
            file.write_at(text, 0).unwrap();
            file.sync_data().unwrap();
        }
        storage.sync_dir(dir.path()).unwrap();
        storage.rename(&a, &b).unwrap();
        cut_all(&storage);
        assert_eq!(std::fs::read(&a).unwrap(), b"new");
        assert_eq!(std::fs::read(&b).unwrap(), b"old");
    }
}
