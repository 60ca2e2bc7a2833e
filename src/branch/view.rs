//! A View: the stack of layers at one generation, and what it says about names and inodes.

use std::collections::HashMap;
use std::sync::Arc;

use super::BranchError;
use crate::format::index::Index;
use crate::format::sums::Sums;
use crate::format::{DirentTarget, FileKind, FileLayout, Ino, InodeRecord, LayerId, OwnedRun};
use crate::layer::LayerError;
use crate::layer::data_files::DataFiles;
use crate::layer::open::OpenLayer;
use crate::layer::owner_map::{OwnerMap, OwnerMapBuilder};
use crate::layer::pack::with_copies;
use crate::layer::sealed::IndexFile;

/// A finalized part of the stack: the index of one layer, or of several merged.
#[derive(Clone)]
pub struct SealedPart {
    /// The newest layer it covers.
    pub layer: LayerId,
    /// Which of that layer's index files it is.
    pub which: IndexFile,
    /// The index.
    pub index: Arc<Index>,
    /// Copies of scattered granules, of a merged one that has them.
    pub pack: Option<Arc<Sums>>,
}

impl SealedPart {
    /// A part without a pack.
    pub fn new(layer: LayerId, which: IndexFile, index: Arc<Index>) -> SealedPart {
        SealedPart { layer, which, index, pack: None }
    }
}

/// The layers of a branch, newest first: open, frozen, finalized.
pub struct View {
    /// Counts the forks (and seals) since the branch was opened.
    pub generation: u64,
    /// The layer that takes writes.
    pub open: Arc<OpenLayer>,
    /// The layer below it in the catalog; `None` for the first layer of an empty branch.
    pub open_parent: Option<LayerId>,
    /// Depth of the open layer; the base of a chain has depth 0.
    pub open_depth: u32,
    /// Sealed layers whose index is not in use yet, newest first.
    pub frozen: Vec<Arc<OpenLayer>>,
    /// Finalized layers, newest first.
    pub sealed: Arc<Vec<SealedPart>>,
    /// Data files of the store.
    pub data: Arc<DataFiles>,
}

impl View {
    /// The open layer and the frozen ones, newest first.
    pub fn in_memory(&self) -> impl Iterator<Item = &Arc<OpenLayer>> {
        std::iter::once(&self.open).chain(&self.frozen)
    }

    /// The same stack with other finalized layers.
    pub(super) fn with_sealed(&self, sealed: Vec<SealedPart>) -> View {
        View {
            generation: self.generation,
            open: self.open.clone(),
            open_parent: self.open_parent,
            open_depth: self.open_depth,
            frozen: self.frozen.clone(),
            sealed: Arc::new(sealed),
            data: self.data.clone(),
        }
    }

    fn damaged(&self, part: &SealedPart) -> impl FnOnce(crate::format::FormatError) -> LayerError {
        let (layer, path) = (part.layer, part.which.path(&self.data, part.layer));
        move |source| LayerError::Damaged { layer, path, source }
    }

    /// Where `name` in `dir` leads.
    pub fn lookup(
        &self,
        dir: Ino,
        hash: u64,
        name: &[u8],
    ) -> Result<Option<DirentTarget>, LayerError> {
        for layer in self.in_memory() {
            if let Some(target) = layer.lookup(dir, hash, name) {
                return Ok(visible(target));
            }
        }
        for part in self.sealed.iter() {
            let found = part.index.lookup(dir, hash, name).map_err(self.damaged(part))?;
            if let Some(target) = found {
                return Ok(visible(target));
            }
        }
        Ok(None)
    }

    /// The newest record of an inode.
    pub fn inode(&self, ino: Ino) -> Result<Option<InodeRecord>, LayerError> {
        self.inode_below(ino, 0)
    }

    /// Like [`View::inode`], skipping the `skip` newest in-memory layers.
    pub fn inode_below(&self, ino: Ino, skip: usize) -> Result<Option<InodeRecord>, LayerError> {
        let layers = || self.in_memory().skip(skip);
        let changed = layers().find_map(|layer| layer.inode(ino));
        let owner = layers().find_map(|layer| Some((layer.id, layer.file(ino)?)));
        let from_logs = changed.is_some();
        let Some(mut record) = (match changed {
            Some(record) => Some(record),
            None => self.sealed_inode(ino)?,
        }) else {
            return Ok(None);
        };
        if record.kind != FileKind::Regular {
            return Ok(Some(record));
        }
        // The newest layer with a data file decides the size. A record in a log may come from a
        // later change, of which the power took the rest.
        if let Some((layer, file)) = owner {
            record.size = file.size();
            self.take_host_times(&mut record, layer);
        } else if from_logs {
            record.size = self.sealed_inode(ino)?.map_or(0, |sealed| sealed.size);
        }
        Ok(Some(record))
    }

    /// A write after the inode's last record is known to the data file only: its modification
    /// time then is the file's.
    fn take_host_times(&self, record: &mut InodeRecord, layer: LayerId) {
        let Ok(host) = self.data.storage.metadata(&self.data.path(layer, record.ino)) else {
            return;
        };
        if host.mtime > record.ctime {
            record.mtime = host.mtime;
            record.ctime = host.mtime;
        }
    }

    fn sealed_inode(&self, ino: Ino) -> Result<Option<InodeRecord>, LayerError> {
        for part in self.sealed.iter() {
            let record = part.index.inode(ino).map_err(self.damaged(part))?;
            if record.is_some() {
                return Ok(record);
            }
        }
        Ok(None)
    }

    /// Who owns the granules of a file below the `skip` newest in-memory layers.
    pub fn owners_below(&self, ino: Ino, skip: usize) -> Result<OwnerMap, LayerError> {
        self.resolve(ino, skip, |_, layout| layout.runs)
    }

    /// The granules below the `skip` newest in-memory layers of which a pack has copies, as owned
    /// by the pack.
    pub fn copies_below(&self, ino: Ino, skip: usize) -> Result<OwnerMap, LayerError> {
        let mut copies = HashMap::new();
        for part in self.sealed.iter() {
            match part.pack.as_ref().map(|pack| pack.extents_of(ino)).transpose() {
                Ok(found) => {
                    copies.extend(found.filter(|of| !of.is_empty()).map(|of| (part.layer, of)));
                }
                Err(error) => {
                    let layer = part.layer.pack().dir_name();
                    tracing::warn!(%error, layer, "a damaged pack is not used");
                }
            }
        }
        if copies.is_empty() {
            return Ok(OwnerMap::default());
        }
        let resolved = self.resolve(ino, skip, |part, layout| match copies.get(&part.layer) {
            Some(of) => with_copies(&layout.runs, of, (part.layer.pack(), ino)),
            None => layout.runs,
        })?;
        let copies = resolved.runs().iter().filter(|run| run.layer.is_pack());
        Ok(OwnerMap::of(copies.copied().collect()))
    }

    fn resolve(
        &self,
        ino: Ino,
        skip: usize,
        runs_of: impl Fn(&SealedPart, FileLayout) -> Vec<OwnedRun>,
    ) -> Result<OwnerMap, LayerError> {
        let mut builder = OwnerMapBuilder::default();
        for layer in self.in_memory().skip(skip) {
            if let Some(file) = layer.file(ino) {
                let (private, floor, runs) = file.layout();
                builder.layer(private, floor, runs);
                if builder.is_complete() {
                    return Ok(builder.finish());
                }
            }
        }
        for part in self.sealed.iter() {
            let layout = part.index.layout(ino).map_err(self.damaged(part))?;
            if let Some(layout) = layout {
                let (private, floor) = (layout.private, layout.floor);
                builder.layer(private, floor, runs_of(part, layout));
                if builder.is_complete() {
                    break;
                }
            }
        }
        Ok(builder.finish())
    }

    /// The sockets that any finalized layer names and that are still there.
    pub fn sockets(&self) -> Result<Vec<(Ino, Vec<u8>)>, BranchError> {
        let mut candidates: Vec<(Ino, Vec<u8>)> = Vec::new();
        for layer in self.in_memory() {
            layer.for_each_name(|dir, name, target| {
                if let DirentTarget::Link { kind: FileKind::Socket, .. } = target {
                    candidates.push((dir, name.to_vec()));
                }
            });
        }
        for part in self.sealed.iter() {
            candidates.extend(part.index.sockets().map_err(self.damaged(part))?);
        }
        candidates.sort();
        candidates.dedup();
        Ok(candidates)
    }
}

fn visible(target: DirentTarget) -> Option<DirentTarget> {
    match target {
        DirentTarget::Whiteout => None,
        link @ DirentTarget::Link { .. } => Some(link),
    }
}
