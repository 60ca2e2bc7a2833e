//! Listing a directory over the whole stack.

use std::collections::BTreeMap;

use super::view::View;
use crate::format::{DirentTarget, FileKind, Ino};
use crate::layer::LayerError;

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Hash of the name: the position in the listing (a telldir cookie).
    pub hash: u64,
    /// The name.
    pub name: Vec<u8>,
    /// Where it leads.
    pub ino: Ino,
    /// The kind of file there.
    pub kind: FileKind,
}

/// Entries asked of each layer at a time.
const BATCH: usize = 256;

impl View {
    /// Entries of `dir` whose hash is greater than `after`, in order of hash; empty at the end.
    ///
    /// A listing that goes on by the hash of its last entry sees every name that was there all
    /// along exactly once, whatever comes and goes meanwhile, because a name's position never
    /// depends on other names.
    pub fn list(&self, dir: Ino, after: u64) -> Result<Vec<Entry>, LayerError> {
        let mut after = after;
        loop {
            let (entries, horizon) = self.list_step(dir, after)?;
            if !entries.is_empty() || horizon == u64::MAX {
                return Ok(entries);
            }
            // Only whiteouts up to the horizon: look further.
            after = horizon;
        }
    }

    /// Merges one batch of every layer. Complete up to the returned horizon.
    fn list_step(&self, dir: Ino, after: u64) -> Result<(Vec<Entry>, u64), LayerError> {
        let mut merged: BTreeMap<(u64, Vec<u8>), DirentTarget> = BTreeMap::new();
        let mut horizon = u64::MAX;
        for layer in self.in_memory() {
            let batch = layer.entries_after(dir, after, BATCH);
            if batch.len() >= BATCH {
                horizon = horizon.min(batch.last().map_or(after, |(hash, _, _)| *hash));
            }
            for (hash, name, target) in batch {
                merged.entry((hash, name)).or_insert(target);
            }
        }
        for part in self.sealed.iter() {
            let mut taken: Option<u64> = None;
            for (count, entry) in part.index.entries_after(dir, after).enumerate() {
                let entry = entry.map_err(|source| LayerError::Damaged {
                    layer: part.layer,
                    path: part.which.path(&self.data, part.layer),
                    source,
                })?;
                // Stop between two hashes only, so that a group of equal ones stays whole.
                if count >= BATCH && taken.is_some_and(|last| last != entry.hash) {
                    horizon = horizon.min(taken.unwrap_or(after));
                    break;
                }
                taken = Some(entry.hash);
                merged.entry((entry.hash, entry.name.to_vec())).or_insert(entry.target);
            }
        }
        let entries = merged
            .into_iter()
            .filter(|((hash, _), _)| *hash <= horizon)
            .filter_map(|((hash, name), target)| match target {
                DirentTarget::Link { ino, kind } => Some(Entry { hash, name, ino, kind }),
                DirentTarget::Whiteout => None,
            })
            .collect();
        Ok((entries, horizon))
    }

    /// Whether `dir` has no entries.
    pub fn is_empty_dir(&self, dir: Ino) -> Result<bool, LayerError> {
        Ok(self.list(dir, 0)?.is_empty())
    }
}
