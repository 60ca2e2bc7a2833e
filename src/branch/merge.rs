//! Index merging: keeps the number of indexes that a lookup visits logarithmic in the depth.
//!
//! The layer at depth d gets a `merged` index over the s layers d-s+1..=d, where s is the largest
//! power of [`FANOUT`] that divides d. A stack of depth d is then covered by about
//! [`FANOUT`] indexes per level, whoever forked where: the rule depends on the depth alone, so
//! branches that share layers share the merged indexes too. Data files stay where they are. The
//! base (depth 0) is never merged: it may hold millions of files.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::compaction::Work;
use super::finalize::{finalize_lock, write_index};
use super::view::{SealedPart, View};
use super::{Branch, BranchError};
use crate::format::index::{FileLayout, Index, IndexBuilder, IndexMeta};
use crate::format::{FormatError, Ino};
use crate::io::crash::{Point, crash_point};
use crate::layer::LayerError;
use crate::layer::owner_map::OwnerMapBuilder;
use crate::layer::sealed::{IndexFile, open_index};

/// Indexes merged into one at each level.
const FANOUT: u32 = 8;

/// How many layers the merged index at `depth` covers; 1 for "no merged index".
fn span_at(depth: u32) -> u32 {
    let mut span = 1;
    while depth > 0 && depth.is_multiple_of(span * FANOUT) {
        span *= FANOUT;
    }
    span
}

/// How often layers were merged for an index that covers `span` of them: 0 for a single one.
pub(super) fn level_of(span: u32) -> u32 {
    span.max(1).ilog(FANOUT)
}

/// The depths, the newest first, at which the stack has finalized layers that a merged index is to
/// cover and does not, and what is there instead.
pub(super) fn owed(view: &View) -> impl Iterator<Item = (u32, &SealedPart)> {
    view.sealed.iter().filter_map(|part| {
        let meta = part.index.meta();
        let span = span_at(meta.depth);
        (span > 1 && meta.lowest_depth > meta.depth - span + 1).then_some((meta.depth, part))
    })
}

/// Writes the merged index that the layer finalized at `depth` calls for, if any, unless the
/// background is paused.
pub(super) fn merge_below(branch: &Branch, depth: u32) -> Result<(), BranchError> {
    let span = span_at(depth);
    if span == 1 {
        return Ok(());
    }
    let view = branch.view();
    let lowest = depth - span + 1;
    let parts: Vec<SealedPart> = view
        .sealed
        .iter()
        .filter(|part| part.index.meta().depth <= depth && part.index.meta().lowest_depth >= lowest)
        .cloned()
        .collect();
    let Some(top) = parts.first().filter(|part| part.index.meta().depth == depth) else {
        // The layer was empty and has no directory of its own: lookups go on part by part.
        return Ok(());
    };
    let (data, layer) = (&branch.data, top.layer);
    let Some(_permit) = branch.compaction.begin(Work::Merge, layer) else { return Ok(()) };
    // The parent's process and the child's come here for the same layer at the same time.
    let _lock = finalize_lock(&data.layer_dir(layer))?;
    if open_index(data, layer, IndexFile::Merged)?.is_none() {
        let builder = merged(&parts, lowest).map_err(|(part, source)| LayerError::Damaged {
            layer: part.layer,
            path: part.which.path(data, part.layer),
            source,
        })?;
        write_index(builder, data, layer, IndexFile::Merged)?;
    }
    if let Some(index) = open_index(data, layer, IndexFile::Merged)? {
        branch.swap_merged(&SealedPart::new(layer, IndexFile::Merged, index));
        branch.compaction.merged();
        crash_point(Point::MergedSwapped);
    }
    Ok(())
}

type Blamed<T> = Result<T, (SealedPart, FormatError)>;

fn merged(parts: &[SealedPart], lowest_depth: u32) -> Blamed<IndexBuilder> {
    let top = parts[0].index.meta();
    let meta =
        IndexMeta { layer: top.layer, lowest_depth, depth: top.depth, next_ino: top.next_ino };
    let mut builder = IndexBuilder::new(meta);
    let mut names = BTreeMap::new();
    let mut inos = BTreeSet::new();
    for part in parts {
        let blame = |error| (part.clone(), error);
        for entry in part.index.dirents() {
            let entry = entry.map_err(blame)?;
            names.entry((entry.dir, entry.name.to_vec())).or_insert(entry.target);
        }
        for record in part.index.inodes() {
            inos.insert(record.map_err(blame)?.ino);
        }
    }
    for ((dir, name), target) in names {
        builder.dirent(dir, &name, target);
    }
    for ino in inos {
        add_inode(&mut builder, parts, ino)?;
    }
    Ok(builder)
}

/// The newest record of an inode with its ownership resolved over all parts.
fn add_inode(builder: &mut IndexBuilder, parts: &[SealedPart], ino: Ino) -> Blamed<()> {
    let mut owners = OwnerMapBuilder::default();
    let (mut newest, mut owned) = (None, false);
    for part in parts {
        let index: &Arc<Index> = &part.index;
        let blame = |error| (part.clone(), error);
        if newest.is_none() {
            newest = index.inode(ino).map_err(blame)?;
        }
        if let Some(layout) = index.layout(ino).map_err(blame)? {
            owned = true;
            owners.layer(layout.private, layout.floor, layout.runs);
        }
    }
    let Some(record) = newest else { return Ok(()) };
    let layout = owned.then(|| {
        let (private, floor, map) = owners.finish_layout();
        FileLayout { private, floor, runs: map.runs().to_vec() }
    });
    builder.inode(record, layout);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_span_follows_the_depth() {
        let spans: Vec<u32> = [0, 1, 7, 8, 12, 16, 64, 72, 512, 1000].map(span_at).to_vec();
        assert_eq!(spans, [1, 1, 1, 8, 1, 8, 64, 8, 512, 8]);
    }

    #[test]
    fn a_thousand_layers_are_covered_by_few_indexes() {
        let (mut depth, mut count) = (999_u32, 0);
        while depth > 0 {
            depth -= span_at(depth);
            count += 1;
        }
        assert!(count <= 28, "{count} indexes");
    }
}
