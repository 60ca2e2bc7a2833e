//! Packing: scattered granules of the layers below a merged index are copied together, as long as they
//! are few, so that reading a file costs the same however many layers it was written in.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::time::Instant;

use super::compaction::{AFTER_A_FAILURE, Work};
use super::merge::level_of;
use super::view::{SealedPart, View};
use super::{Branch, BranchError};
use crate::format::index::Index;
use crate::format::{DirentTarget, FormatError, Ino};
use crate::io::crash::{Point, crash_point};
use crate::layer::LayerError;
use crate::layer::data_files::DataFiles;
use crate::layer::pack::{self, Wanted, worth_copying};
use crate::layer::sealed::IndexFile;
use crate::layer::sums::Made;

/// Bytes copied per layer at the lowest level of merging, at most. Half as many at each level above:
/// no layer has more than twice as many copied, however deep it comes to lie.
const BYTES_PER_LAYER_MAX: u64 = 2 << 20;
/// Bytes of one pack, at most.
const PACK_BYTES_MAX: u64 = 256 << 20;
/// What a file counts for at least: it has to be made and synced, however little of it is copied.
const FILE_BYTES_MIN: u64 = 32 << 10;

/// `part` with its pack, if that has been made.
pub(super) fn with_pack(data: &DataFiles, part: SealedPart) -> SealedPart {
    if part.which != IndexFile::Merged {
        return part;
    }
    let pack = pack::open(data, part.layer);
    if let Some(pack) = &pack {
        data.use_pack(part.layer, pack);
    }
    SealedPart { pack, ..part }
}

/// The merged indexes whose pack has not been made, or cannot be relied on any more; the newest first.
pub(super) fn owed(view: &View) -> impl Iterator<Item = &SealedPart> {
    let packs = &view.data.packs;
    view.sealed.iter().filter(|part| {
        part.which == IndexFile::Merged && (part.pack.is_none() || packs.is_owed(part.layer))
    })
}

impl Branch {
    /// Makes the packs that are owed, the oldest first, as the background does, unless that failed some
    /// minutes ago. `pace` is told of what was copied, in bytes, and may wait, or stop the work.
    ///
    /// One that fails does not keep the others from being made; the last failure is the result.
    pub fn pack_owed(
        &self,
        not_before: &mut Option<Instant>,
        pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), BranchError> {
        if not_before.is_some_and(|time| Instant::now() < time) {
            return Ok(());
        }
        *not_before = None;
        let view = self.view();
        let owed: Vec<&SealedPart> = owed(&view).collect();
        let mut outcome = Ok(());
        for part in owed.into_iter().rev() {
            if pace(0).is_break() {
                break;
            }
            let Some(_permit) = self.compaction.begin(Work::Pack, part.layer) else { break };
            match self.pack(part, pace) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => break,
                Err(error) => {
                    tracing::warn!(%error, layer = %part.layer.dir_name(), "packing failed; it is tried again later");
                    self.compaction.failed(Work::Pack, &error);
                    *not_before = Some(Instant::now() + AFTER_A_FAILURE);
                    outcome = Err(error);
                }
            }
        }
        outcome
    }

    /// What a pack beside the index of `part` is to hold. The copies must not be what fills the disk: a
    /// twentieth of it stays free.
    fn choose(&self, part: &SealedPart) -> Result<Vec<Wanted>, LayerError> {
        let (data, layer) = (&self.data, part.layer);
        let path = part.which.path(data, layer);
        let meta = part.index.meta();
        let sharers = self.store.catalog.sharers(layer, meta.lowest_depth);
        let limit = bytes_max(meta.depth - meta.lowest_depth + 1, &sharers.unwrap_or_default());
        let wanted = chosen(&part.index, limit).map_err(|source| LayerError::Damaged {
            layer,
            path,
            source,
        })?;
        let bytes: u64 = wanted.iter().map(Wanted::bytes).sum();
        let host = nix::sys::statvfs::statvfs(&self.store.root);
        let has_room = host.is_ok_and(|host| {
            let free = host.blocks_available() * host.fragment_size();
            free >= host.blocks() * host.fragment_size() / 20 + bytes
        });
        if bytes > 0 && !has_room {
            let full = std::io::Error::from_raw_os_error(libc::ENOSPC);
            return Err(LayerError::host(
                layer,
                "packing, which leaves a twentieth of the disk free",
            )(full));
        }
        Ok(wanted)
    }

    fn pack(
        &self,
        part: &SealedPart,
        pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, BranchError> {
        let mut paced = |bytes| {
            self.compaction.packed(bytes);
            pace(bytes)
        };
        match pack::make(&self.data, part.layer, || self.choose(part), &mut paced)? {
            Made::Now | Made::Before => {}
            Made::Stopped => return Ok(ControlFlow::Break(())),
            // Another process is at it, for a branch that shares the layer.
            Made::Elsewhere | Made::NotSealed => return Ok(ControlFlow::Continue(())),
        }
        let packed = with_pack(&self.data, part.clone());
        if packed.pack.is_some() {
            self.swap_pack(&packed);
            crash_point(Point::PackSwapped);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Has the view read the copies; what the stack says does not change.
    fn swap_pack(&self, packed: &SealedPart) {
        self.replace_view(|old| {
            let newer = |part: &SealedPart| {
                let same = part.layer == packed.layer && part.which == packed.which;
                let pack = if same { &packed.pack } else { &part.pack };
                SealedPart { pack: pack.clone(), ..part.clone() }
            };
            let sealed = old.sealed.iter().map(newer).collect();
            old.with_sealed(sealed)
        });
    }
}

/// What a pack of at most `limit` bytes beside `index` is to hold: the files with the least to copy first,
/// without those of which it is known that they were removed again.
fn chosen(index: &Index, limit: u64) -> Result<Vec<Wanted>, FormatError> {
    let mut named = HashSet::new();
    for entry in index.dirents() {
        if let DirentTarget::Link { ino, .. } = entry?.target {
            named.insert(ino);
        }
    }
    let mut candidates: Vec<(u64, Ino)> = Vec::new();
    for file in index.files() {
        let (record, Some(layout)) = file? else { continue };
        // What was made in these layers has its names there as well, or none any more.
        let removed = record.nlink == 0 || layout.private && !named.contains(&record.ino);
        let ranges = worth_copying(&layout.runs);
        if !removed && !ranges.is_empty() {
            let wanted = Wanted { ino: record.ino, ranges, runs: layout.runs };
            candidates.push((wanted.bytes().max(FILE_BYTES_MIN), wanted.ino));
        }
    }
    candidates.sort_unstable();
    let mut left = limit;
    let mut inos: Vec<Ino> = candidates
        .into_iter()
        .map_while(|(bytes, ino)| {
            left = left.checked_sub(bytes)?;
            Some(ino)
        })
        .collect();
    inos.sort_unstable();
    let mut chosen = Vec::with_capacity(inos.len());
    for ino in inos {
        let runs = index.layout(ino)?.map(|layout| layout.runs).unwrap_or_default();
        chosen.push(Wanted { ino, ranges: worth_copying(&runs), runs });
    }
    Ok(chosen)
}

/// Bytes of a pack of `span` layers, at most. Layers that other chains stand on as well count in part:
/// however many branches share them, together they have about as much copied as one.
fn bytes_max(span: u32, sharers: &[u32]) -> u64 {
    let per_layer = BYTES_PER_LAYER_MAX >> level_of(span).saturating_sub(1);
    let (mut share, mut bytes) = (per_layer, per_layer);
    for among in sharers {
        share /= u64::from(*among).max(1);
        bytes += share;
    }
    bytes.min(PACK_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone(span: u32) -> u64 {
        bytes_max(span, &vec![1; span as usize - 1])
    }

    #[test]
    fn what_is_copied_per_layer_has_a_bound_over_all_levels() {
        let per_layer: Vec<u64> =
            [8_u32, 64, 512, 4096].map(|span| alone(span) / u64::from(span)).to_vec();
        assert_eq!(per_layer[..3], [2 << 20, 1 << 20, 512 << 10]);
        assert!(per_layer.iter().sum::<u64>() <= 2 * BYTES_PER_LAYER_MAX, "{per_layer:?}");
    }

    #[test]
    fn layers_that_many_chains_stand_on_are_not_copied_for_each() {
        // The first of them comes alone.
        let all: u64 = (1..=100).map(|chains| bytes_max(8, &[chains, 1, 1, 1, 1, 1, 1])).sum();
        assert_eq!(bytes_max(8, &[100, 1, 1, 1, 1, 1, 1]), (2 << 20) + 7 * ((2 << 20) / 100));
        let own = 100 * BYTES_PER_LAYER_MAX;
        assert!(all - own <= 6 * alone(8), "{all}");
    }
}
