//! The data files of a store: where they lie, opened through a bounded pool.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::LayerError;
use super::entries::Entries;
use super::host_cache::HostCache;
use super::pack::Packs;
use crate::format::index::Index;
use crate::format::sums::Sums;
use crate::format::{AdoptedSource, GRANULE_BYTES, Ino, LayerId, OwnedRun};
use crate::io::pool::FilePool;
use crate::io::{Access, HostFile, Storage, sys};

/// An adopted directory that serves as a base layer.
struct AdoptedBase {
    dir: PathBuf,
    index: Arc<Index>,
}

/// Opens, reads and removes the data files of every layer of a store.
pub struct DataFiles {
    /// The host.
    pub storage: Arc<dyn Storage>,
    /// Whether the host is to keep copies of what is read of sealed layers.
    pub host_cache: HostCache,
    /// Whether packs are read.
    pub packs: Packs,
    layers: PathBuf,
    pool: FilePool,
    adopted: RwLock<HashMap<LayerId, Arc<AdoptedBase>>>,
    /// Which names of data files are durable.
    entries: Entries,
    /// Directories whose own entry is durable.
    entries_synced: Mutex<HashSet<PathBuf>>,
    /// Checksums of the sealed layers that were read from; `None` where there are none.
    pub(super) sums: RwLock<HashMap<LayerId, Option<Arc<Sums>>>>,
    /// Layers of whose damaged checksums the log was told.
    pub(super) sums_told: Mutex<HashSet<LayerId>>,
}

impl DataFiles {
    /// Data files below `layers` (a store's `layers/`), with at most `descriptors` kept open.
    pub fn new(
        storage: Arc<dyn Storage>,
        layers: PathBuf,
        descriptors: NonZeroUsize,
    ) -> Arc<DataFiles> {
        Arc::new(DataFiles {
            storage,
            host_cache: HostCache::default(),
            packs: Packs::default(),
            layers,
            pool: FilePool::new(descriptors),
            adopted: RwLock::default(),
            entries: Entries::default(),
            entries_synced: Mutex::default(),
            sums: RwLock::default(),
            sums_told: Mutex::default(),
        })
    }

    /// Descriptors that are kept open at the moment.
    pub fn open_descriptors(&self) -> usize {
        self.pool.len()
    }

    /// The directory of a layer.
    pub fn layer_dir(&self, layer: LayerId) -> PathBuf {
        self.layers.join(layer.dir_name())
    }

    /// Where a layer's own data file of `ino` lies.
    pub fn path(&self, layer: LayerId, ino: Ino) -> PathBuf {
        self.layer_dir(layer).join(ino.data_path())
    }

    /// Declares that the contents of `layer` lie in `dir`, described by `index`.
    pub fn adopt(&self, layer: LayerId, dir: PathBuf, index: Arc<Index>) {
        self.adopted.write().insert(layer, Arc::new(AdoptedBase { dir, index }));
    }

    /// The data file of the open layer, if it exists.
    pub fn open_own(&self, layer: LayerId, ino: Ino) -> io::Result<Option<Arc<dyn HostFile>>> {
        let path = self.path(layer, ino);
        match self.pool.get((layer, ino), || self.storage.open(&path, Access::ReadWrite)) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The data file of the open layer, made if it is missing.
    pub fn create_own(&self, layer: LayerId, ino: Ino) -> io::Result<Arc<dyn HostFile>> {
        let path = self.path(layer, ino);
        let open = || self.open_making_dirs(&path, Access::Create);
        self.pool.get((layer, ino), || open().inspect(|_| self.entries.made(layer, ino)))
    }

    /// Opens a file that may have to be made, and its directories with it.
    pub(super) fn open_making_dirs(
        &self,
        path: &Path,
        access: Access,
    ) -> io::Result<Arc<dyn HostFile>> {
        match self.storage.open(path, access) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = path.parent() {
                    self.storage.create_dirs(parent)?;
                }
                self.storage.open(path, access)
            }
            other => other,
        }
    }

    /// Makes the directory entry of a new data file durable, and those of its neighbours with it.
    pub fn sync_entry(&self, layer: LayerId, ino: Ino) -> io::Result<()> {
        self.entries.sync(layer, ino, || self.sync_group(&self.path(layer, ino)))
    }

    /// The pack of `layer` is a new one, with these data files: what is open is of the old one.
    pub(super) fn forget_pack(&self, layer: LayerId, files: impl Iterator<Item = Ino>) {
        let pack = layer.pack();
        files.for_each(|file| self.pool.forget((pack, file)));
        self.packs.renewed(layer);
    }

    /// The layer is finalized: none of its data files is synced any more.
    pub fn finalized(&self, layer: LayerId) {
        self.entries.forget(layer);
    }

    fn sync_group(&self, path: &Path) -> io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        self.storage.sync_dir(dir)?;
        // The group of the data file, and the directory of all groups, are made once: their own
        // entries need to be synced once.
        for made in dir.ancestors().take(2) {
            if !self.entries_synced.lock().contains(made) {
                self.storage.sync_dir(made.parent().unwrap_or(Path::new("/")))?;
                self.entries_synced.lock().insert(made.to_owned());
            }
        }
        Ok(())
    }

    /// Removes a data file for good.
    pub fn destroy(&self, layer: LayerId, ino: Ino) -> io::Result<()> {
        self.pool.forget((layer, ino));
        self.entries.removed(layer, ino);
        self.storage.remove_file(&self.path(layer, ino))
    }

    /// Reads within one run of an immutable layer: `buf` from byte `offset` of its data file.
    /// In the granule where the data file ends, what lies past its end reads as zeros; a granule
    /// that begins past its end is damage. Granules that have a checksum are verified.
    pub fn read_run(&self, run: OwnedRun, buf: &mut [u8], offset: u64) -> Result<(), LayerError> {
        let all = 0..buf.len() as u64;
        self.read_parts(run, buf, offset, std::slice::from_ref(&all))
    }

    /// Like [`DataFiles::read_run`], of a stretch of which only `parts` (bytes of `buf`, the last one
    /// at its end) are wanted: what lies between is read and means nothing, neither as contents
    /// nor as damage. More than one part: only of whole granules.
    pub(super) fn read_parts(
        &self,
        run: OwnedRun,
        buf: &mut [u8],
        offset: u64,
        parts: &[Range<u64>],
    ) -> Result<(), LayerError> {
        let found = self.immutable(run.layer, run.file)?;
        let read = self.read_verified(&found, buf, offset, parts);
        // Of an adopted file that somebody changed, that is what there is to say.
        found.check_unchanged()?;
        read
    }

    /// Has `len` bytes of `target` at `to` share the blocks of a run, from byte `from` of its data
    /// file. False if the host cannot do that between these two filesystems. Checksums are not looked at.
    pub fn share_run(
        &self,
        run: OwnedRun,
        from: u64,
        target: BorrowedFd<'_>,
        to: u64,
        len: u64,
    ) -> Result<bool, LayerError> {
        let found = self.immutable(run.layer, run.file)?;
        found.check_unchanged()?;
        match sys::clone_range(found.host.descriptor(), from, target, to, len) {
            Ok(()) => Ok(true),
            Err(error) => {
                let never = [libc::EOPNOTSUPP, libc::ENOTTY, libc::ENOSYS, libc::EXDEV];
                if error.raw_os_error().is_some_and(|code| never.contains(&code)) {
                    return Ok(false);
                }
                Err(LayerError::host(run.layer, "sharing blocks of a data file")(error))
            }
        }
    }

    /// The data file `file` of an immutable layer, or the adopted file that stands for it.
    pub(super) fn immutable(&self, layer: LayerId, file: Ino) -> Result<Immutable, LayerError> {
        let adopted = self.adopted.read().get(&layer).cloned();
        if let Some(base) = adopted {
            return self.adopted_file(&base, layer, file);
        }
        let path = self.path(layer, file);
        match self.pool.get((layer, file), || self.open_shared(&path)) {
            Ok(host) => Ok(Immutable { layer, file, host, path, adopted: None }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(LayerError::DataTooShort { layer, path, end: 0, wanted: 1 })
            }
            Err(e) => {
                let what = "opening a data file of a sealed layer";
                Err(LayerError::opening(layer, what, &path)(e))
            }
        }
    }

    /// Opens a data file that may be this branch's own or another's: writable where possible,
    /// because the same descriptor may sync what a frozen layer still has to.
    fn open_shared(&self, path: &Path) -> io::Result<Arc<dyn HostFile>> {
        match self.storage.open(path, Access::ReadWrite) {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                self.storage.open(path, Access::Read)
            }
            other => other,
        }
    }

    /// Tells the host that a run is about to be read.
    pub fn will_need(&self, run: OwnedRun) {
        if self.adopted.read().contains_key(&run.layer) {
            return;
        }
        let path = self.path(run.layer, run.file);
        let open = || self.open_shared(&path);
        if let Ok(file) = self.pool.get((run.layer, run.file), open) {
            file.will_need(
                u64::from(run.source) * GRANULE_BYTES,
                u64::from(run.len) * GRANULE_BYTES,
            );
        }
    }

    fn adopted_file(
        &self,
        base: &AdoptedBase,
        layer: LayerId,
        file: Ino,
    ) -> Result<Immutable, LayerError> {
        let index_path = self.layer_dir(layer).join("index");
        let record = base.index.inode(file).map_err(|source| LayerError::Damaged {
            layer,
            path: index_path,
            source,
        })?;
        let Some(source) = record.and_then(|record| record.adopted) else {
            return Err(LayerError::AdoptedChanged {
                path: base.dir.clone(),
                change: "the index has no such file",
            });
        };
        let path = base.dir.join(OsStr::from_bytes(&source.path));
        let open = || self.storage.open_foreign(&path);
        match self.pool.get((layer, file), open) {
            Ok(host) => Ok(Immutable { layer, file, host, path, adopted: Some(source) }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(changed(path, "it is gone")),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR)) => {
                Err(changed(path, "a symbolic link took its place"))
            }
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                Err(changed(path, "it is no regular file"))
            }
            Err(e) => Err(LayerError::host(layer, "opening an adopted file")(e)),
        }
    }
}

/// A host file that holds contents of an immutable layer.
pub(super) struct Immutable {
    /// The layer.
    pub(super) layer: LayerId,
    /// The data file within it.
    pub(super) file: Ino,
    /// The host file.
    pub(super) host: Arc<dyn HostFile>,
    /// Where it lies.
    pub(super) path: PathBuf,
    adopted: Option<AdoptedSource>,
}

impl Immutable {
    /// The granule at byte `offset` is not what it was.
    pub(super) fn corrupt(&self, offset: u64) -> LayerError {
        LayerError::Corrupt { layer: self.layer, path: self.path.clone(), offset }
    }

    /// Fails if a read of bytes up to `wanted` ended at `end`, before the last granule: a granule
    /// that is owned was written, and zeros in its place would look like contents.
    pub(super) fn check_length(&self, end: u64, wanted: u64) -> Result<(), LayerError> {
        // The length of an adopted file is known.
        if self.adopted.is_none() && end < wanted && end.next_multiple_of(GRANULE_BYTES) < wanted {
            let (layer, path) = (self.layer, self.path.clone());
            return Err(LayerError::DataTooShort { layer, path, end, wanted });
        }
        Ok(())
    }

    /// Fails if it is a file of an adopted base that was changed. To be asked after a read: a
    /// change that came before the bytes were taken must not go unnoticed.
    pub(super) fn check_unchanged(&self) -> Result<(), LayerError> {
        let Some(source) = &self.adopted else { return Ok(()) };
        let now = self.host.metadata().map_err(LayerError::host(self.layer, "checking"))?;
        match difference(source, &now) {
            None => Ok(()),
            Some(change) => Err(changed(self.path.clone(), change)),
        }
    }
}

fn changed(path: PathBuf, change: &'static str) -> LayerError {
    tracing::error!(path = %path.display(), change, "adopted base changed");
    LayerError::AdoptedChanged { path, change }
}

fn difference(then: &AdoptedSource, now: &crate::io::HostMetadata) -> Option<&'static str> {
    if then.host_ino != now.ino {
        Some("another file took its place")
    } else if then.size != now.len {
        Some("its size differs")
    } else if then.mtime != now.mtime {
        Some("its modification time differs")
    } else if then.ctime != now.ctime {
        Some("its change time differs: it was written to, or its attributes were changed")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::io::host::HostStorage;
    use crate::io::lossy::LossyStorage;
    use crate::io::write_all_at;

    /// Inodes 5 and 5000 lie in different groups.
    #[test]
    fn a_data_file_in_a_second_group_is_as_durable_as_one_in_the_first() {
        let temp = tempfile::tempdir().unwrap();
        let (layers, graves) = (temp.path().join("layers"), temp.path().join("graves"));
        let layer = LayerId(7);
        std::fs::create_dir_all(layers.join(layer.dir_name())).unwrap();
        let storage = LossyStorage::new(Arc::new(HostStorage), graves);
        let data = DataFiles::new(Arc::new(storage.clone()), layers, NonZeroUsize::MIN);
        for ino in [Ino(5), Ino(5000)] {
            let host = data.create_own(layer, ino).unwrap();
            write_all_at(&*host, b"contents", 0).unwrap();
            host.sync_data().unwrap();
            data.sync_entry(layer, ino).unwrap();
        }
        // Nothing survives that was not synced.
        storage.cut(&mut |_| 0).unwrap();
        for ino in [Ino(5), Ino(5000)] {
            assert_eq!(std::fs::read(data.path(layer, ino)).unwrap(), b"contents", "inode {ino}");
        }
    }
}
