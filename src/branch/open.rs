//! Opening a branch: the catalog's chain of layers becomes a View.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::checksums::Checksums;
use super::finalize::Background;
use super::view::{SealedPart, View};
use super::{Branch, BranchError, OpenMode, pack, recover};
use crate::catalog::{BranchLock, BranchRow, LayerRow, Store};
use crate::format::journal::Record;
use crate::format::{Ino, LayerId};
use crate::io::Storage;
use crate::io::crash::{Point, crash_point};
use crate::io::host::HostStorage;
use crate::layer::data_files::DataFiles;
use crate::layer::log::FirstUse;
use crate::layer::open::OpenLayer;
use crate::layer::replay;
use crate::layer::sealed::{IndexFile, open_index};

/// Idle descriptors kept open per branch, at most; a quarter of the process's limit otherwise.
const DESCRIPTORS_MAX: usize = 4096;

/// What a branch stands on.
#[derive(Clone)]
pub struct Host {
    /// The filesystem of the store's layers.
    pub storage: Arc<dyn Storage>,
    /// Tells whether the host was restarted since a log was written.
    pub boot_id: [u8; 16],
    /// Whether a thread finalizes and syncs in the background; without it the caller does.
    pub background: bool,
}

impl Host {
    /// The machine this runs on.
    pub fn real() -> Result<Host, BranchError> {
        let boot_id = replay::boot_id().map_err(|source| BranchError::Host {
            what: "reading",
            path: "/proc/sys/kernel/random/boot_id".into(),
            source,
        })?;
        Ok(Host { storage: Arc::new(HostStorage), boot_id, background: true })
    }
}

impl Branch {
    /// Opens the branch of `row`, whose lock the caller holds.
    pub fn open(
        store: Arc<Store>,
        row: BranchRow,
        lock: BranchLock,
        mode: OpenMode,
    ) -> Result<Arc<Branch>, BranchError> {
        Self::open_on(&Host::real()?, store, row, lock, mode)
    }

    /// Like [`Branch::open`], on a host of the caller's making: for tests of faults and power cuts.
    pub fn open_on(
        host: &Host,
        store: Arc<Store>,
        row: BranchRow,
        lock: BranchLock,
        mode: OpenMode,
    ) -> Result<Arc<Branch>, BranchError> {
        let boot_id = host.boot_id;
        let data = data_files(host.storage.clone(), &store);
        if mode == OpenMode::ReadWrite {
            store.catalog.require_current()?;
        }
        let chain = store.catalog.chain(row.head)?;
        let view = match head_is_sealed(&data, row.head)? {
            false => load_view(&store, &data, boot_id, &chain)?,
            true if mode == OpenMode::ReadWrite => {
                return Err(BranchError::HeadSealed { layer: row.head });
            }
            true => {
                let error = BranchError::HeadSealed { layer: row.head };
                tracing::error!(%error, "shown as it was when that layer was sealed");
                sealed_view(&store, &data, boot_id, &chain)?
            }
        };
        let view = Arc::new(view);
        let next_ino = next_ino(&view, &row)?;
        let settled = match mode {
            OpenMode::ReadWrite => {
                crash_point(Point::OpenReplayed);
                let settled = recover::recover(&view)?;
                crash_point(Point::OpenRecovered);
                view.open.log.begin()?;
                crash_point(Point::OpenBegun);
                view.open.note_losses()?;
                crash_point(Point::OpenLossesNoted);
                settled
            }
            OpenMode::ReadOnly => Vec::new(),
        };
        let branch = Arc::new(Branch {
            store,
            row,
            data,
            mode,
            gate: RwLock::new(()),
            current: Mutex::new(view),
            fork_turn: Mutex::new(()),
            background: Background::default(),
            checksums: Arc::default(),
            compaction: Arc::default(),
            next_ino: AtomicU64::new(next_ino.0),
            boot_id,
            _lock: Some(lock),
        });
        if !settled.is_empty() {
            branch.finalize_frozen()?;
            crash_point(Point::OpenFinalized);
            for ino in settled {
                let _durable = branch.view().open.sync_file(ino)?;
                crash_point(Point::OpenSynced);
            }
        }
        if mode == OpenMode::ReadWrite && host.background {
            Background::start(&branch);
            Checksums::start(&branch);
        }
        Ok(branch)
    }

    /// The state that ends with a sealed `layer` of the branch of `row`: nobody changes it, so that
    /// no lock is needed, and it cannot be written to. Something must keep the layer meanwhile.
    pub fn at_layer(
        store: Arc<Store>,
        row: BranchRow,
        layer: LayerId,
    ) -> Result<Arc<Branch>, BranchError> {
        let host = Host::real()?;
        let data = data_files(host.storage.clone(), &store);
        let chain = store.catalog.chain(layer)?;
        let view = sealed_view(&store, &data, host.boot_id, &chain)?;
        Ok(Arc::new(Branch {
            store,
            row,
            data,
            mode: OpenMode::ReadOnly,
            gate: RwLock::new(()),
            current: Mutex::new(Arc::new(view)),
            fork_turn: Mutex::new(()),
            background: Background::default(),
            checksums: Arc::default(),
            compaction: Arc::default(),
            next_ino: AtomicU64::new(Ino::LAST.0),
            boot_id: host.boot_id,
            _lock: None,
        }))
    }

    /// An inode number that this branch never used.
    pub fn allocate_ino(&self) -> Ino {
        Ino(self.next_ino.fetch_add(1, Ordering::Relaxed))
    }
}

/// Data files of a store, with as many descriptors as the process may keep.
pub(super) fn data_files(storage: Arc<dyn Storage>, store: &Store) -> Arc<DataFiles> {
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .map_or(1024, |(soft, _)| soft);
    let keep = usize::try_from(limit / 4).unwrap_or(usize::MAX).clamp(16, DESCRIPTORS_MAX);
    let keep = NonZeroUsize::new(keep).unwrap_or(NonZeroUsize::MIN);
    DataFiles::new(storage, store.root.join("layers"), keep)
}

/// Tells the catalog, durably, that a layer has contents: from then on a missing directory is
/// damage and not an empty layer.
pub(super) fn first_use(store: &Arc<Store>, layer: LayerId) -> FirstUse {
    let store = store.clone();
    Box::new(move || store.catalog.mark_layer_used(layer).map_err(std::io::Error::other))
}

/// Stacks the layers of `chain` (newest first; the first is the open one).
pub(super) fn load_view(
    store: &Arc<Store>,
    data: &Arc<DataFiles>,
    boot_id: [u8; 16],
    chain: &[LayerRow],
) -> Result<View, BranchError> {
    let (head, below) =
        chain.split_first().ok_or(BranchError::LayerMissing { layer: LayerId(0) })?;
    let (frozen, sealed) = load_sealed(store, data, boot_id, below)?;
    check_present(data, head)?;
    let open = replay::replay(data, (head.id, head.depth), boot_id, first_use(store, head.id))?;
    Ok(View {
        generation: 0,
        open: Arc::new(open),
        open_parent: head.parent,
        open_depth: head.depth,
        frozen,
        sealed: Arc::new(sealed),
        data: data.clone(),
    })
}

/// Stacks the sealed layers of `chain` (newest first), with nothing to write to on top.
fn sealed_view(
    store: &Arc<Store>,
    data: &Arc<DataFiles>,
    boot_id: [u8; 16],
    chain: &[LayerRow],
) -> Result<View, BranchError> {
    let (frozen, sealed) = load_sealed(store, data, boot_id, chain)?;
    let open_depth = chain.first().map_or(0, |layer| layer.depth + 1);
    let nowhere = (LayerId(0), open_depth);
    let first_use = first_use(store, LayerId(0));
    Ok(View {
        generation: 0,
        open: Arc::new(OpenLayer::empty(nowhere, data.clone(), boot_id, first_use)),
        open_parent: chain.first().map(|layer| layer.id),
        open_depth,
        frozen,
        sealed: Arc::new(sealed),
        data: data.clone(),
    })
}

type Loaded = (Vec<Arc<OpenLayer>>, Vec<SealedPart>);

fn load_sealed(
    store: &Arc<Store>,
    data: &Arc<DataFiles>,
    boot_id: [u8; 16],
    below: &[LayerRow],
) -> Result<Loaded, BranchError> {
    let (mut frozen, mut sealed) = (Vec::new(), Vec::new());
    let mut covered_from = u32::MAX;
    for row in below {
        if row.depth >= covered_from {
            continue;
        }
        if let Some(part) = load_part(data, row)? {
            covered_from = part.index.meta().lowest_depth;
            sealed.push(part);
            continue;
        }
        check_present(data, row)?;
        let mut layer =
            replay::replay(data, (row.id, row.depth), boot_id, first_use(store, row.id))?;
        layer.foreign = true;
        // The process that froze it may have finalized it meanwhile and removed its logs.
        if let Some(part) = load_part(data, row)? {
            covered_from = part.index.meta().lowest_depth;
            sealed.push(part);
        } else if !layer.is_empty() {
            frozen.push(Arc::new(layer));
        }
    }
    Ok((frozen, sealed))
}

/// The widest index of a finalized layer.
fn load_part(data: &DataFiles, row: &LayerRow) -> Result<Option<SealedPart>, BranchError> {
    for which in [IndexFile::Merged, IndexFile::Own] {
        if let Some(index) = open_index(data, row.id, which)? {
            if let Some(dir) = &row.adopted_from {
                data.adopt(row.id, dir.clone(), index.clone());
            }
            let part = SealedPart::new(row.id, which, index);
            return Ok(Some(pack::with_pack(data, part)));
        }
    }
    Ok(None)
}

/// A layer that was written to must have a directory with a journal or an index.
fn check_present(data: &DataFiles, row: &LayerRow) -> Result<(), BranchError> {
    let dir = data.layer_dir(row.id);
    let there = |name: &str| is_there(data, &dir.join(name));
    if row.used && !there("journal")? && !there("index")? {
        return Err(BranchError::LayerMissing { layer: row.id });
    }
    Ok(())
}

/// Whether the layer was sealed, whatever the catalog says: a layer gets an index after that, and
/// is never open again. Taken for an open one it would have no records, and its data files would
/// look like leftovers.
fn head_is_sealed(data: &DataFiles, head: LayerId) -> Result<bool, BranchError> {
    let there = |which: IndexFile| is_there(data, &which.path(data, head));
    Ok(there(IndexFile::Own)? || there(IndexFile::Merged)?)
}

/// Whether there is a file at `path`. What recovery does rests on it, so a host that does not tell
/// is an error: a file that is taken for absent costs what it says.
pub(super) fn is_there(data: &DataFiles, path: &Path) -> Result<bool, BranchError> {
    let host = |source| BranchError::Host { what: "looking for", path: path.to_owned(), source };
    data.storage.exists(path).map_err(host)
}

/// The first inode number that no layer mentions.
fn next_ino(view: &View, row: &BranchRow) -> Result<Ino, BranchError> {
    let mut next = Ino::ROOT.0 + 1;
    for layer in view.in_memory() {
        layer.for_each_inode(|record| next = next.max(record.ino.0.saturating_add(1)));
        next = next.max(layer.next_ino_floor());
    }
    for part in view.sealed.iter() {
        next = next.max(part.index.meta().next_ino.0);
    }
    // A number beyond would come round to those of other files, sooner or later.
    if next > Ino::LAST.0 {
        return Err(BranchError::InodeNumbers { name: row.name.to_string(), next });
    }
    Ok(Ino(next))
}

/// Records a layer's first inode: the root directory of an empty branch.
pub(super) fn write_root(layer: &OpenLayer, root: Record) -> Result<(), BranchError> {
    let ticket = layer.commit(&[root])?;
    let _durable = layer.log.sync_to(ticket)?;
    Ok(())
}
