//! Granules of a private file that are shown from data files of lower layers.
//!
//! copy_file_range(2) shares what lies in finalized layers: the new file borrows these granules until
//! they are written, zeroed or cut off. Only whole granules within the file are ever borrowed.

use super::owner_map::OwnerMap;
use crate::format::{Granule, GranuleRange, OwnedRun};

/// Borrowed runs, ascending and disjoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Borrowed {
    runs: Vec<OwnedRun>,
}

impl Borrowed {
    /// Whether nothing is borrowed.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The runs.
    pub fn runs(&self) -> &[OwnedRun] {
        &self.runs
    }

    /// Granules borrowed.
    pub fn count(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.len)).sum()
    }

    /// One past the last borrowed granule; 0 if there is none.
    pub fn end(&self) -> Granule {
        self.runs.last().map_or(0, |run| run.start + run.len)
    }

    /// The run that `granule` is borrowed from, if it is, and where that answer ends (at most
    /// `limit`).
    pub fn at(&self, granule: Granule, limit: Granule) -> (Option<OwnedRun>, Granule) {
        let next = self.first_past(granule);
        match self.runs.get(next) {
            Some(run) if run.start <= granule => (Some(*run), (run.start + run.len).min(limit)),
            Some(run) => (None, run.start.min(limit)),
            None => (None, limit),
        }
    }

    /// Whether any granule of `range` is borrowed.
    pub fn touches(&self, range: GranuleRange) -> bool {
        self.runs.get(self.first_past(range.start)).is_some_and(|run| run.start < range.end)
    }

    /// What is borrowed of `range`.
    pub fn within(&self, range: GranuleRange) -> OwnerMap {
        let first = self.first_past(range.start);
        let runs = self.runs[first..].iter().take_while(|run| run.start < range.end);
        OwnerMap::of(runs.map(|run| clipped(*run, range)).collect())
    }

    /// Gives `range` back.
    pub fn remove(&mut self, range: GranuleRange) {
        let first = self.first_past(range.start);
        let count = self.runs[first..].iter().take_while(|run| run.start < range.end).count();
        if count == 0 {
            return;
        }
        let (head, tail) = (self.runs[first], self.runs[first + count - 1]);
        let mut left = Vec::with_capacity(2);
        if head.start < range.start {
            left.push(OwnedRun { len: range.start - head.start, ..head });
        }
        if tail.start + tail.len > range.end {
            left.push(clipped(tail, GranuleRange { start: range.end, end: Granule::MAX }));
        }
        self.runs.splice(first..first + count, left);
    }

    /// Gives everything at or past `from` back.
    pub fn cut(&mut self, from: Granule) {
        if from < Granule::MAX {
            self.remove(GranuleRange { start: from, end: Granule::MAX });
        }
    }

    /// Borrows `run`, in place of whatever its granules were.
    pub fn insert(&mut self, run: OwnedRun) {
        self.remove(GranuleRange { start: run.start, end: run.start + run.len });
        let at = self.first_past(run.start);
        if let Some(last) = at.checked_sub(1).and_then(|before| self.runs.get_mut(before))
            && last.start + last.len == run.start
            && last.source + last.len == run.source
            && (last.layer, last.file) == (run.layer, run.file)
        {
            last.len += run.len;
        } else {
            self.runs.insert(at, run);
        }
    }

    /// Position of the first run that ends past `granule`.
    fn first_past(&self, granule: Granule) -> usize {
        self.runs.partition_point(|run| run.start + run.len <= granule)
    }
}

/// The part of `run` that lies in `range`; they overlap.
fn clipped(run: OwnedRun, range: GranuleRange) -> OwnedRun {
    let start = run.start.max(range.start);
    let end = (run.start + run.len).min(range.end);
    OwnedRun { start, len: end - start, source: run.source + (start - run.start), ..run }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::{Ino, LayerId};

    #[derive(Clone, Debug)]
    enum Change {
        Insert(OwnedRun),
        Remove(GranuleRange),
        Cut(Granule),
    }

    fn change() -> impl Strategy<Value = Change> {
        let range = (0u32..40, 1u32..12);
        prop_oneof![
            3 => (range.clone(), 1u64..3, 0u32..50).prop_map(|((start, len), file, source)| {
                Change::Insert(OwnedRun { start, len, layer: LayerId(1), file: Ino(file), source })
            }),
            3 => range.prop_map(|(start, len)| {
                Change::Remove(GranuleRange { start, end: start + len })
            }),
            1 => (0u32..50).prop_map(Change::Cut),
        ]
    }

    proptest! {
        #[test]
        fn like_a_table(changes in prop::collection::vec(change(), 0..40)) {
            let (mut borrowed, mut table) = (Borrowed::default(), [None; 60]);
            for change in changes {
                match change {
                    Change::Insert(run) => {
                        borrowed.insert(run);
                        for n in 0..run.len {
                            table[(run.start + n) as usize] = Some((run.file, run.source + n));
                        }
                    }
                    Change::Remove(range) => {
                        borrowed.remove(range);
                        table[range.start as usize..range.end as usize].fill(None);
                    }
                    Change::Cut(from) => {
                        borrowed.cut(from);
                        table[from as usize..].fill(None);
                    }
                }
                let all = borrowed.within(GranuleRange { start: 0, end: 60 });
                prop_assert!(all.self_check());
                for granule in 0..60 {
                    let (found, end) = borrowed.at(granule, 60);
                    prop_assert!(end > granule);
                    let found = found.map(|run| (run.file, run.source + granule - run.start));
                    prop_assert_eq!(found, table[granule as usize]);
                    let one = GranuleRange { start: granule, end: granule + 1 };
                    prop_assert_eq!(borrowed.touches(one), found.is_some());
                }
                let count = table.iter().flatten().count() as u64;
                prop_assert_eq!(borrowed.count(), count);
                let end = table.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
                prop_assert_eq!(borrowed.end() as usize, end);
            }
        }
    }
}
