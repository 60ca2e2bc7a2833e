//! Which granules of a file differ between two states.

use crate::format::id::granules_spanned;
use crate::format::{GRANULE_BYTES, Granule, GranuleRange, OwnedRun};
use crate::layer::owner_map::OwnerMap;

/// Bytes of a block of Postgres as it is nearly always built (`BLCKSZ`).
pub const BLOCK_BYTES: u64 = 8192;

/// A file in one of the states.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// Who owns its granules.
    pub owners: &'a OwnerMap,
    /// Bytes.
    pub size: u64,
}

/// Where a granule comes from.
fn origin(run: OwnedRun, granule: Granule) -> (u64, u64, Granule) {
    (run.layer.0, run.file.0, run.source + (granule - run.start))
}

/// The granules that differ, ascending and apart: those with other owners in the two states, and
/// all that only one of them has.
pub fn changed(before: Side<'_>, after: Side<'_>) -> Vec<GranuleRange> {
    let (old, new) = (granules_spanned(before.size), granules_spanned(after.size));
    let common = old.min(new);
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < common {
        let (was, was_until) = before.owners.at(at, common);
        let (is, is_until) = after.owners.at(at, common);
        let until = was_until.min(is_until);
        let same = match (was, is) {
            (None, None) => true,
            (Some(was), Some(is)) => origin(was, at) == origin(is, at),
            _ => false,
        };
        if !same {
            push(&mut ranges, at, until);
        }
        at = until;
    }
    if before.size != after.size {
        // Where the shorter one ends in the midst of a granule, that granule reads otherwise.
        let whole = before.size.min(after.size) / GRANULE_BYTES;
        push(&mut ranges, whole as Granule, old.max(new));
    }
    ranges
}

fn push(ranges: &mut Vec<GranuleRange>, start: Granule, end: Granule) {
    match ranges.last_mut() {
        Some(last) if last.end >= start => last.end = last.end.max(end),
        _ if start < end => ranges.push(GranuleRange { start, end }),
        _ => {}
    }
}

/// Bytes of these ranges in a file of `size` bytes.
pub fn bytes_of(ranges: &[GranuleRange], size: u64) -> u64 {
    let within = |granule: Granule| (u64::from(granule) * GRANULE_BYTES).min(size);
    ranges.iter().map(|range| within(range.end) - within(range.start)).sum()
}

/// The same as blocks of [`BLOCK_BYTES`]: first and last, ascending and apart.
pub fn blocks(ranges: &[GranuleRange]) -> Vec<(u64, u64)> {
    const PER_BLOCK: u64 = BLOCK_BYTES / GRANULE_BYTES;
    let mut blocks: Vec<(u64, u64)> = Vec::new();
    for range in ranges {
        let (first, last) =
            (u64::from(range.start) / PER_BLOCK, u64::from(range.end - 1) / PER_BLOCK);
        match blocks.last_mut() {
            Some(before) if before.1 + 1 >= first => before.1 = before.1.max(last),
            _ => blocks.push((first, last)),
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::{Ino, LayerId};

    fn run(start: u32, len: u32, layer: u64, source: u32) -> OwnedRun {
        OwnedRun { start, len, layer: LayerId(layer), file: Ino(5), source }
    }

    fn ranges(before: &[OwnedRun], old: u64, after: &[OwnedRun], new: u64) -> Vec<(u32, u32)> {
        let (was, is) = (OwnerMap::of(before.to_vec()), OwnerMap::of(after.to_vec()));
        let before = Side { owners: &was, size: old };
        let after = Side { owners: &is, size: new };
        changed(before, after).iter().map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn what_another_layer_owns_differs() {
        let below = [run(0, 100, 1, 0)];
        let above = [run(0, 10, 1, 0), run(10, 2, 2, 10), run(12, 88, 1, 12)];
        let size = 100 * GRANULE_BYTES;
        assert_eq!(ranges(&below, size, &above, size), [(10, 12)]);
        assert_eq!(ranges(&above, size, &above, size), []);
        // The same granule of the same file, however the runs are cut.
        let cut = [run(0, 50, 1, 0), run(50, 50, 1, 50)];
        assert_eq!(ranges(&below, size, &cut, size), []);
        // Another granule of it is another content.
        let moved = [run(0, 50, 1, 0), run(50, 50, 1, 0)];
        assert_eq!(ranges(&below, size, &moved, size), [(50, 100)]);
        assert_eq!(ranges(&below, size, &[], size), [(0, 100)]);
    }

    #[test]
    fn what_only_one_state_has_differs() {
        let below = [run(0, 4, 1, 0)];
        let four = 4 * GRANULE_BYTES;
        assert_eq!(ranges(&below, four, &below, four - 1), [(3, 4)]);
        assert_eq!(ranges(&below, four, &below, 0), [(0, 4)]);
        assert_eq!(ranges(&below, four, &below, four + 1), [(4, 5)]);
        assert_eq!(ranges(&[], 0, &below, four), [(0, 4)]);
        // A granule that was written and cut is one range with what is behind it.
        let written = [run(0, 3, 1, 0), run(3, 3, 2, 3)];
        assert_eq!(ranges(&below, four, &written, 6 * GRANULE_BYTES), [(3, 6)]);
    }

    #[test]
    fn bytes_and_blocks() {
        let range = |start, end| GranuleRange { start, end };
        assert_eq!(bytes_of(&[range(0, 1), range(3, 5)], 4 * GRANULE_BYTES + 10), 2 * 4096 + 10);
        assert_eq!(bytes_of(&[range(3, 5)], 100), 0);
        assert_eq!(
            blocks(&[range(0, 1), range(1, 2), range(2, 3), range(9, 10)]),
            [(0, 1), (4, 4)]
        );
        assert_eq!(blocks(&[]), []);
    }

    proptest! {
        #[test]
        fn agrees_with_a_comparison_granule_by_granule(
            lens in prop::collection::vec((1_u32..5, 0_u64..3, 0_u32..2), 0..12),
            others in prop::collection::vec((1_u32..5, 0_u64..3, 0_u32..2), 0..12),
            old in 0_u64..40_000, new in 0_u64..40_000,
        ) {
            let map = |parts: &[(u32, u64, u32)]| {
                let mut at = 0;
                let mut runs = Vec::new();
                for (len, layer, skew) in parts {
                    // Layer 0: nobody owns it.
                    if *layer > 0 {
                        runs.push(run(at, *len, *layer, at + skew));
                    }
                    at += len;
                }
                OwnerMap::of(runs)
            };
            let (was, is) = (map(&lens), map(&others));
            let found = changed(Side { owners: &was, size: old }, Side { owners: &is, size: new });
            let differs = |granule: u32| {
                let end = u64::from(granule + 1) * GRANULE_BYTES;
                let shown = |map: &OwnerMap| map.at(granule, granule + 1).0.map(|run| origin(run, granule));
                old.min(end) != new.min(end) || shown(&was) != shown(&is)
            };
            for granule in 0..granules_spanned(old.max(new)) {
                let listed = found.iter().any(|range| range.start <= granule && granule < range.end);
                prop_assert_eq!(listed, differs(granule), "granule {}", granule);
            }
            prop_assert!(found.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
