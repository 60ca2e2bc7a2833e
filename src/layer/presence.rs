//! Which granules of a file an open layer owns: a two-level bitmap.

use crate::format::{Granule, GranuleRange};

const CHUNK_WORDS: usize = 512;
const CHUNK_GRANULES: u32 = (CHUNK_WORDS as u32) * 64;

/// A set of granules, empty at first.
///
/// Chunks of 4 KiB cover 128 MiB of file each and exist only where something is owned, so a
/// single page written in a 10 TiB file costs one chunk and a pointer per 128 MiB before it.
#[derive(Default, Clone)]
pub struct Presence {
    chunks: Vec<Option<Box<[u64; CHUNK_WORDS]>>>,
    count: u64,
}

fn place(granule: Granule) -> (usize, usize, u32) {
    let within = granule % CHUNK_GRANULES;
    ((granule / CHUNK_GRANULES) as usize, (within / 64) as usize, within % 64)
}

/// A word with the bits `from..to` set; `to` is 1..=64.
fn mask(from: u32, to: u32) -> u64 {
    (u64::MAX >> (64 - (to - from))) << from
}

impl Presence {
    /// Number of granules in the set.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether `granule` is in the set.
    pub fn contains(&self, granule: Granule) -> bool {
        let (chunk, word, bit) = place(granule);
        match self.chunks.get(chunk) {
            Some(Some(words)) => words[word] & (1 << bit) != 0,
            _ => false,
        }
    }

    /// Whether all of `range` is in the set.
    pub fn contains_all(&self, range: GranuleRange) -> bool {
        let (present, end) = self.run_at(range.start, range.end);
        present && end == range.end
    }

    /// The run that starts at `start`: whether its granules are in the set, and where it ends
    /// (at most `limit`, which must exceed `start`).
    pub fn run_at(&self, start: Granule, limit: Granule) -> (bool, Granule) {
        let present = self.contains(start);
        let mut at = start;
        while at < limit {
            let (chunk, word, bit) = place(at);
            let Some(Some(words)) = self.chunks.get(chunk) else {
                if present {
                    break;
                }
                at = at.saturating_add(CHUNK_GRANULES - at % CHUNK_GRANULES);
                continue;
            };
            // A set bit in `differs` is a granule of the other kind.
            let differs = if present { !words[word] } else { words[word] } >> bit;
            if differs != 0 {
                at = at.saturating_add(differs.trailing_zeros());
                break;
            }
            at = at.saturating_add(64 - bit);
        }
        (present, at.min(limit))
    }

    /// Adds `range`.
    pub fn insert(&mut self, range: GranuleRange) {
        self.update(range, true);
    }

    /// Removes everything at or past `from`.
    pub fn cut(&mut self, from: Granule) {
        let end = (self.chunks.len() as u64 * u64::from(CHUNK_GRANULES)).min(u64::from(u32::MAX));
        let end = end as Granule;
        if from < end {
            self.update(GranuleRange { start: from, end }, false);
        }
    }

    fn update(&mut self, range: GranuleRange, present: bool) {
        let mut at = range.start;
        while at < range.end {
            let (chunk, word, bit) = place(at);
            let step = (64 - bit).min(range.end - at);
            if present && self.chunks.len() <= chunk {
                self.chunks.resize_with(chunk + 1, || None);
            }
            let Some(slot) = self.chunks.get_mut(chunk) else { return };
            if present || slot.is_some() {
                let words = slot.get_or_insert_with(|| Box::new([0; CHUNK_WORDS]));
                let before = words[word].count_ones();
                let bits = mask(bit, bit + step);
                if present {
                    words[word] |= bits;
                } else {
                    words[word] &= !bits;
                }
                self.count += u64::from(words[word].count_ones());
                self.count -= u64::from(before);
            }
            at += step;
        }
    }

    /// The owned ranges in ascending order.
    pub fn ranges(&self) -> impl Iterator<Item = GranuleRange> + '_ {
        let limit = (self.chunks.len() as u64 * u64::from(CHUNK_GRANULES)).min(u64::from(u32::MAX))
            as Granule;
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < limit {
                let (present, end) = self.run_at(at, limit);
                let range = GranuleRange { start: at, end };
                at = end;
                if present {
                    return Some(range);
                }
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(start: Granule, end: Granule) -> GranuleRange {
        GranuleRange { start, end }
    }

    #[test]
    fn runs_cross_words_and_chunks() {
        let mut p = Presence::default();
        p.insert(range(60, 70));
        p.insert(range(CHUNK_GRANULES - 1, CHUNK_GRANULES + 1));
        assert_eq!(p.run_at(0, u32::MAX), (false, 60));
        assert_eq!(p.run_at(60, u32::MAX), (true, 70));
        assert_eq!(p.run_at(70, u32::MAX), (false, CHUNK_GRANULES - 1));
        assert_eq!(p.run_at(CHUNK_GRANULES - 1, u32::MAX), (true, CHUNK_GRANULES + 1));
        assert_eq!(p.run_at(CHUNK_GRANULES + 1, u32::MAX), (false, u32::MAX));
        assert_eq!(p.count(), 12);
    }

    #[test]
    fn the_last_granule_of_the_largest_file_can_be_owned() {
        let mut p = Presence::default();
        p.insert(range(u32::MAX - 1, u32::MAX));
        assert!(p.contains(u32::MAX - 1));
        assert_eq!(p.ranges().collect::<Vec<_>>(), vec![range(u32::MAX - 1, u32::MAX)]);
        p.cut(u32::MAX - 1);
        assert_eq!(p.count(), 0);
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(ops in prop::collection::vec((0u8..3, 0u32..100_000, 1u32..5_000), 1..40)) {
            let mut p = Presence::default();
            let mut model = BTreeSet::new();
            for (kind, start, len) in ops {
                if kind == 0 {
                    p.cut(start);
                    model.retain(|g| *g < start);
                } else {
                    p.insert(range(start, start + len));
                    model.extend(start..start + len);
                }
            }
            prop_assert_eq!(p.count(), model.len() as u64);
            let listed: BTreeSet<u32> = p.ranges().flat_map(|r| r.start..r.end).collect();
            prop_assert_eq!(&listed, &model);
            for g in [0, 1, 63, 64, 32_767, 32_768, 50_000] {
                prop_assert_eq!(p.contains(g), model.contains(&g));
            }
        }
    }
}
