//! Packing: scattered granules of the layers below a merged index are copied together, as long as they
//! are few, so that reading a file costs the same however many layers it was written in.

use std::ops::ControlFlow;

use super::compaction::Work;
use super::merge::level_of;
use super::view::{SealedPart, View};
use super::{Branch, BranchError};
use crate::format::index::Index;
use crate::format::{FormatError, Ino};
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

/// The merged indexes whose pack has not been made, the newest first.
pub(super) fn owed(view: &View) -> impl Iterator<Item = &SealedPart> {
    view.sealed.iter().filter(|part| part.which == IndexFile::Merged && part.pack.is_none())
}

impl Branch {
    /// Makes the packs that are owed, the oldest first, as the background does. `pace` is told of what
    /// was copied, in bytes, and may wait, or stop the work.
    pub fn pack_owed(
        &self,
        pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), BranchError> {
        let view = self.view();
        let owed: Vec<&SealedPart> = owed(&view).collect();
        for part in owed.into_iter().rev() {
            if pace(0).is_break() || !self.has_room() {
                break;
            }
            let Some(_permit) = self.compaction.begin(Work::Pack, part.layer) else { break };
            if self.pack(part, pace)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Whether the disk has room for what takes none away from anybody else: a twentieth is free.
    fn has_room(&self) -> bool {
        let host = nix::sys::statvfs::statvfs(&self.store.root);
        host.is_ok_and(|host| host.blocks_available() >= host.blocks() / 20)
    }

    fn pack(
        &self,
        part: &SealedPart,
        pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, BranchError> {
        let (data, layer) = (&self.data, part.layer);
        let choose = || {
            let path = part.which.path(data, layer);
            chosen(&part.index).map_err(|source| LayerError::Damaged { layer, path, source })
        };
        let mut bytes = 0;
        let mut paced = |copied| {
            bytes += copied;
            pace(copied)
        };
        match pack::make(data, layer, choose, &mut paced)? {
            Made::Now => self.compaction.packed(bytes),
            Made::Before => {}
            Made::Stopped => return Ok(ControlFlow::Break(())),
            // Another process is at it, for a branch that shares the layer.
            Made::Elsewhere | Made::NotSealed => return Ok(ControlFlow::Continue(())),
        }
        let packed = with_pack(data, part.clone());
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
                if same { packed.clone() } else { part.clone() }
            };
            let sealed = old.sealed.iter().map(newer).collect();
            old.with_sealed(sealed)
        });
    }
}

/// What a pack beside `index` is to hold: the files with the least to copy first, as long as the sum
/// is small.
fn chosen(index: &Index) -> Result<Vec<Wanted>, FormatError> {
    let mut candidates: Vec<(u64, Ino)> = Vec::new();
    for file in index.files() {
        let (record, Some(layout)) = file? else { continue };
        let ranges = worth_copying(&layout.runs);
        if !ranges.is_empty() {
            let wanted = Wanted { ino: record.ino, ranges, runs: layout.runs };
            candidates.push((wanted.bytes(), wanted.ino));
        }
    }
    candidates.sort_unstable();
    let mut left = bytes_max(index.meta().depth - index.meta().lowest_depth + 1);
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

/// Bytes of a pack of so many layers, at most.
fn bytes_max(span: u32) -> u64 {
    let per_layer = BYTES_PER_LAYER_MAX >> level_of(span).saturating_sub(1);
    (u64::from(span) * per_layer).min(PACK_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_copied_per_layer_has_a_bound_over_all_levels() {
        let spans = [8_u32, 64, 512, 4096, 1 << 15];
        let per_layer: Vec<u64> =
            spans.map(|span| bytes_max(span) / u64::from(span)).into_iter().collect();
        assert_eq!(per_layer[..3], [2 << 20, 1 << 20, 512 << 10]);
        assert!(per_layer.iter().sum::<u64>() <= 2 * BYTES_PER_LAYER_MAX, "{per_layer:?}");
    }
}
