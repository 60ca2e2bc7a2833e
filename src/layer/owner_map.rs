//! Which data file holds each granule of a file below the open layer.

use crate::format::{Granule, GranuleRange, OwnedRun};

/// The owners of a file's granules, resolved over a stack of layers; granules in no run are zeros.
///
/// Immutable once built and shared by `Arc`, so a read costs one binary search however many layers
/// lie below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerMap {
    runs: Vec<OwnedRun>,
}

impl OwnerMap {
    /// The map of these runs, which ascend and are disjoint.
    pub fn of(runs: Vec<OwnedRun>) -> OwnerMap {
        let map = OwnerMap { runs };
        debug_assert!(map.self_check());
        map
    }

    /// The runs in ascending order.
    pub fn runs(&self) -> &[OwnedRun] {
        &self.runs
    }

    /// Whether no granule has an owner.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The owner of `granule`, if it has one, and where that answer ends (at most `limit`).
    pub fn at(&self, granule: Granule, limit: Granule) -> (Option<OwnedRun>, Granule) {
        let next = self.runs.partition_point(|run| run.start + run.len <= granule);
        match self.runs.get(next) {
            Some(run) if run.start <= granule => (Some(*run), (run.start + run.len).min(limit)),
            Some(run) => (None, run.start.min(limit)),
            None => (None, limit),
        }
    }

    /// Whether any granule of `range` has an owner.
    pub fn owns_any(&self, range: GranuleRange) -> bool {
        let (owner, end) = self.at(range.start, range.end);
        owner.is_some() || end < range.end
    }

    /// Checks that runs ascend, are not empty and do not overlap.
    pub fn self_check(&self) -> bool {
        self.runs.iter().all(|run| run.len > 0 && run.start.checked_add(run.len).is_some())
            && self.runs.windows(2).all(|pair| pair[0].start + pair[0].len <= pair[1].start)
    }
}

/// Resolves ownership layer by layer, the newest first.
pub struct OwnerMapBuilder {
    runs: Vec<OwnedRun>,
    gaps: Vec<GranuleRange>,
    floor: Granule,
    private: bool,
}

impl Default for OwnerMapBuilder {
    fn default() -> Self {
        OwnerMapBuilder {
            runs: Vec::new(),
            gaps: vec![GranuleRange { start: 0, end: Granule::MAX }],
            floor: Granule::MAX,
            private: false,
        }
    }
}

impl OwnerMapBuilder {
    /// Puts the next lower layer's ownership under what is there; `runs` ascend and are disjoint.
    ///
    /// Nothing of still lower layers shows at or past `floor`, or anywhere if `private`.
    pub fn layer(
        &mut self,
        private: bool,
        floor: Granule,
        runs: impl IntoIterator<Item = OwnedRun>,
    ) {
        let mut gaps_left = Vec::with_capacity(self.gaps.len());
        let mut gaps = std::mem::take(&mut self.gaps).into_iter();
        let mut gap = gaps.next();
        for run in runs {
            let run_end = run.start + run.len;
            while let Some(current) = gap {
                if current.end <= run.start {
                    gaps_left.push(current);
                    gap = gaps.next();
                    continue;
                }
                if current.start >= run_end {
                    break;
                }
                if current.start < run.start {
                    gaps_left.push(GranuleRange { start: current.start, end: run.start });
                }
                let start = current.start.max(run.start);
                let end = current.end.min(run_end);
                let source = run.source + (start - run.start);
                self.runs.push(OwnedRun { start, len: end - start, source, ..run });
                gap = if current.end > run_end {
                    Some(GranuleRange { start: run_end, end: current.end })
                } else {
                    gaps.next()
                };
                if current.end > run_end {
                    break;
                }
            }
        }
        gaps_left.extend(gap);
        gaps_left.extend(gaps);
        self.gaps = gaps_left;
        self.floor = self.floor.min(floor);
        self.private |= private;
        let keep_below = if self.private { 0 } else { self.floor };
        self.gaps.retain_mut(|gap| {
            gap.end = gap.end.min(keep_below);
            gap.start < gap.end
        });
    }

    /// Whether lower layers cannot matter any more.
    pub fn is_complete(&self) -> bool {
        self.gaps.is_empty()
    }

    /// The resolved map.
    pub fn finish(self) -> OwnerMap {
        self.finish_layout().2
    }

    /// The resolved map with what it says about layers below: (private, floor, map).
    pub fn finish_layout(mut self) -> (bool, Granule, OwnerMap) {
        self.runs.sort_unstable_by_key(|run| run.start);
        let mut merged: Vec<OwnedRun> = Vec::with_capacity(self.runs.len());
        for run in self.runs {
            match merged.last_mut() {
                Some(last)
                    if last.start + last.len == run.start
                        && last.source + last.len == run.source
                        && (last.layer, last.file) == (run.layer, run.file) =>
                {
                    last.len += run.len;
                }
                _ => merged.push(run),
            }
        }
        let map = OwnerMap { runs: merged };
        debug_assert!(map.self_check());
        (self.private, self.floor, map)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::format::{Ino, LayerId};

    fn run(layer: u64, start: Granule, len: u32) -> OwnedRun {
        OwnedRun { start, len, layer: LayerId(layer), file: Ino(7), source: start }
    }

    #[test]
    fn truncate_then_extend_reads_zeros() {
        let mut b = OwnerMapBuilder::default();
        b.layer(false, Granule::MAX, [run(3, 8, 1)]);
        b.layer(false, 5, []);
        b.layer(true, Granule::MAX, [run(1, 0, 10)]);
        let map = b.finish();
        assert_eq!(map.runs(), &[run(1, 0, 5), run(3, 8, 1)]);
        assert_eq!(map.at(6, 100), (None, 8));
    }

    #[test]
    fn a_private_layer_hides_what_is_below() {
        let mut b = OwnerMapBuilder::default();
        b.layer(true, Granule::MAX, [run(2, 4, 2)]);
        assert!(b.is_complete());
        b.layer(true, Granule::MAX, [run(1, 0, 10)]);
        assert_eq!(b.finish().runs(), &[run(2, 4, 2)]);
    }

    type Layer = (bool, Option<u32>, Vec<(u32, u32)>);

    fn layers() -> impl Strategy<Value = Vec<Layer>> {
        let runs = prop::collection::vec((1u32..6, 1u32..6), 0..5);
        prop::collection::vec(
            (prop::bool::weighted(0.1), prop::option::weighted(0.3, 0u32..50), runs),
            1..6,
        )
    }

    proptest! {
        #[test]
        fn agrees_with_a_slow_oracle(stack in layers()) {
            let mut builder = OwnerMapBuilder::default();
            let mut decided: Vec<Option<Option<u64>>> = vec![None; 64];
            for (depth, (private, floor, steps)) in stack.iter().enumerate() {
                let layer = depth as u64 + 1;
                let (mut at, mut runs) = (0, Vec::new());
                for (gap, len) in steps {
                    runs.push(run(layer, at + gap, *len));
                    at += gap + len;
                }
                builder.layer(*private, floor.unwrap_or(u32::MAX), runs.iter().copied());
                for (g, slot) in decided.iter_mut().enumerate() {
                    let g = g as u32;
                    if slot.is_some() { continue }
                    if runs.iter().any(|r| r.start <= g && g < r.start + r.len) {
                        *slot = Some(Some(layer));
                    } else if *private || floor.is_some_and(|f| g >= f) {
                        *slot = Some(None);
                    }
                }
            }
            let map = builder.finish();
            prop_assert!(map.self_check());
            for (g, slot) in decided.iter().enumerate() {
                let (owner, end) = map.at(g as u32, 64);
                prop_assert!(end > g as u32);
                prop_assert_eq!(owner.map(|o| o.layer.0), slot.unwrap_or(None));
            }
        }
    }
}
