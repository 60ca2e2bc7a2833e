//! The layer of an import in progress: reserved, made durable, and published in one step.

use std::fs::{DirBuilder, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{FsType, fstatfs};

use super::copy::CopyStats;
use super::plan::Plan;
use super::source::as_path;
use super::{ImportError, Observer};
use crate::branch::fork::random_layer_id;
use crate::catalog::{BranchRow, FileLock, LayerState, NewBranch, Store};
use crate::format::id::granules_spanned;
use crate::io::Storage;
use crate::io::crash::{Point, crash_point};
use crate::io::host::HostStorage;
use crate::layer::holes::data_runs;

use crate::format::{
    FileKind, FileLayout, Granule, IndexBuilder, IndexMeta, Ino, InodeRecord, LayerId, OwnedRun,
};

/// Filesystems whose `syncfs(2)` is known to write everything and to wait for the device.
///
/// Elsewhere (FUSE answers without telling anybody, network filesystems differ) every file is
/// synced by itself.
const SYNCFS_TRUSTED: [i64; 5] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // Btrfs
    0xf2f5_2010, // F2FS
    0x0102_1994, // tmpfs: nothing to be durable on
];

/// A layer that is being filled. Dropped before [`finish`](Self::finish), it is removed.
pub(super) struct PendingLayer<'a> {
    store: &'a Store,
    id: LayerId,
    dir: PathBuf,
    /// Held as long as somebody works on the layer; gc takes layers whose lock is free.
    lock: Option<FileLock>,
    /// Open since before the first write, so that syncfs reports every failed write-back.
    layers: File,
    syncfs: bool,
}

impl<'a> PendingLayer<'a> {
    /// Reserves a layer: lock, catalog row, directory, in this order.
    pub(super) fn begin(
        store: &'a Store,
        adopted_from: Option<&Path>,
    ) -> Result<PendingLayer<'a>, ImportError> {
        let id = random_layer_id().map_err(ImportError::host("reading", "/dev/urandom"))?;
        let dir = store.layer_dir(id);
        let parent = dir.parent().unwrap_or(&store.root);
        let layers = File::open(parent).map_err(ImportError::host("opening", parent))?;
        let syncfs = trusts_syncfs(&layers);
        let lock = store.lock_import(id)?;
        crash_point(Point::ImportLocked);
        if let Err(error) = store.catalog.begin_import(id, adopted_from) {
            // Nobody will look for it: gc finds such locks by their layer's row.
            let _ = lock.remove();
            return Err(error.into());
        }
        crash_point(Point::ImportNoted);
        let pending =
            PendingLayer { store, id, dir: dir.clone(), lock: Some(lock), layers, syncfs };
        DirBuilder::new().mode(0o700).create(&dir).map_err(ImportError::host("creating", dir))?;
        crash_point(Point::ImportBegun);
        Ok(pending)
    }

    /// The layer's directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether each data file must be synced when it is written.
    pub(super) fn syncs_each_file(&self) -> bool {
        !self.syncfs
    }

    /// Makes the data files and their directories durable.
    pub(super) fn sync_contents(
        &self,
        copied: &CopyStats,
        observer: &dyn Observer,
    ) -> Result<(), ImportError> {
        if copied.directories.is_empty() {
            return Ok(());
        }
        observer.syncing();
        if self.syncfs {
            nix::unistd::syncfs(&self.layers).map_err(ImportError::host("syncing", &self.dir))?;
        }
        // Also after syncfs: a few hundred calls that find nothing to do.
        for dir in &copied.directories {
            sync_dir(&self.dir.join(dir))?;
        }
        crash_point(Point::ImportSynced);
        Ok(())
    }

    /// Writes the index, durably.
    pub(super) fn write_index(&self, plan: Plan) -> Result<(), ImportError> {
        let builder = build_index(self.id, &self.dir, plan);
        let (temporary, path) = (self.dir.join("index.tmp"), self.dir.join("index"));
        let write = || -> io::Result<()> {
            let mut out = BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
            builder.write(&mut out)?;
            out.flush()?;
            out.get_ref().sync_all()?;
            crash_point(Point::ImportIndexWritten);
            std::fs::rename(&temporary, &path)
        };
        write().map_err(ImportError::host("writing", &path))?;
        crash_point(Point::ImportIndexRenamed);
        sync_dir(&self.dir)?;
        self.layers.sync_all().map_err(ImportError::host("syncing", &self.dir))?;
        crash_point(Point::ImportIndexDurable);
        Ok(())
    }

    /// Seals the layer and creates the branch on top of it: the import becomes visible.
    pub(super) fn finish(mut self, new: &NewBranch) -> Result<BranchRow, ImportError> {
        let head = random_layer_id().map_err(ImportError::host("reading", "/dev/urandom"))?;
        let row = self.store.catalog.finish_import(self.id, head, new)?;
        crash_point(Point::ImportPublished);
        if let Some(lock) = self.lock.take() {
            // A lock file that stays is harmless: gc removes those without a layer.
            let _ = lock.remove();
        }
        crash_point(Point::ImportEnded);
        Ok(row)
    }
}

impl Drop for PendingLayer<'_> {
    fn drop(&mut self) {
        let Some(lock) = self.lock.take() else { return };
        // A commit that failed with an error may have happened: only what is still `importing` goes.
        let state = self.store.catalog.layer(self.id);
        if !matches!(state, Ok(Some(row)) if row.state == LayerState::Importing) {
            return;
        }
        // Contents first: the row is what gc finds them by, if this fails half-way.
        let removed = match std::fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
        if let Err(error) = removed {
            tracing::warn!(layer = %self.id.dir_name(), %error, "left to gc");
            return;
        }
        crash_point(Point::ImportUndone);
        match self.store.catalog.abort_import(self.id) {
            Ok(()) => {
                crash_point(Point::ImportForgotten);
                let _ = lock.remove();
            }
            Err(error) => tracing::warn!(layer = %self.id.dir_name(), %error, "left to gc"),
        }
    }
}

fn build_index(layer: LayerId, dir: &Path, plan: Plan) -> IndexBuilder {
    let source = plan.trees.first().map(|tree| tree.path().to_owned()).unwrap_or_default();
    let next_ino = Ino(plan.inodes.len() as u64 + 1);
    let meta = IndexMeta { layer, lowest_depth: 0, depth: 0, next_ino };
    let mut builder = IndexBuilder::new(meta);
    for dirent in &plan.dirents {
        builder.dirent(dirent.dir, &dirent.name, dirent.target);
    }
    for record in plan.inodes {
        if record.nlink > 0 {
            let path = match &record.adopted {
                Some(adopted) => source.join(as_path(&adopted.path)),
                None => dir.join(record.ino.data_path()),
            };
            let layout = layout(layer, &record, &path);
            builder.inode(record, layout);
        }
    }
    builder
}

/// A base file belongs to its layer from the first byte to the last, but for its holes; there is
/// nothing below. `path` is where its contents lie.
fn layout(layer: LayerId, record: &InodeRecord, path: &Path) -> Option<FileLayout> {
    if record.kind != FileKind::Regular {
        return None;
    }
    let run = OwnedRun {
        start: 0,
        len: granules_spanned(record.size),
        layer,
        file: record.ino,
        source: 0,
    };
    let has_holes =
        || std::fs::symlink_metadata(path).is_ok_and(|meta| meta.blocks() * 512 < record.size);
    let runs = if record.size == 0 {
        Vec::new()
    } else if has_holes() {
        let open = HostStorage.open_foreign(path);
        open.and_then(|host| data_runs(&*host, run)).unwrap_or_else(|_| vec![run])
    } else {
        vec![run]
    };
    Some(FileLayout { private: true, floor: Granule::MAX, runs })
}

/// Whether one syncfs makes everything durable there, and reports if it could not.
fn trusts_syncfs(layers: &File) -> bool {
    let known = fstatfs(layers).is_ok_and(|stat| {
        SYNCFS_TRUSTED.iter().any(|magic| stat.filesystem_type() == FsType(*magic))
    });
    known && syncfs_reports_errors()
}

/// Before Linux 5.8, syncfs returned success whatever happened to the pages.
fn syncfs_reports_errors() -> bool {
    let Ok(system) = nix::sys::utsname::uname() else { return false };
    let release = system.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (5, 8),
        _ => false,
    }
}

fn sync_dir(dir: &Path) -> Result<(), ImportError> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(ImportError::host("syncing", dir))
}
