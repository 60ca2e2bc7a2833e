//! Writes that were lost on their way from the kernel's page cache.
//!
//! write(2) has long returned when the kernel writes a page back. If that fails, for a full disk
//! say, the kernel tells one fsync or close, and takes the page for clean from then on: the next
//! fsync would succeed, and once the page is dropped a read would find what was there before. So
//! what was lost is remembered here until it is written again or cut off: until then fsync of the
//! file fails, and so do reads of the lost bytes.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::{Fs, FsError};
use crate::format::Ino;

/// Ranges kept per file; with more of them all between the first and the last counts as lost.
const RANGES_MAX: usize = 4096;

/// Ranges of bytes: start to end, neither touching nor overlapping.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    fn insert(&mut self, mut range: Range<u64>) {
        let touching: Vec<u64> = self
            .0
            .range(..=range.end)
            .rev()
            .take_while(|(_, end)| **end >= range.start)
            .map(|(start, _)| *start)
            .collect();
        for start in touching {
            let end = self.0.remove(&start).unwrap_or(start);
            range = range.start.min(start)..range.end.max(end);
        }
        self.0.insert(range.start, range.end);
        if self.0.len() > RANGES_MAX
            && let (Some((&first, _)), Some((_, &last))) =
                (self.0.first_key_value(), self.0.last_key_value())
        {
            self.0 = BTreeMap::from([(first, last)]);
        }
    }

    fn remove(&mut self, range: Range<u64>) {
        while let Some((start, end)) = self.overlapping(&range) {
            self.0.remove(&start);
            if start < range.start {
                self.0.insert(start, range.start);
            }
            if end > range.end {
                self.0.insert(range.end, end);
            }
        }
    }

    fn overlapping(&self, range: &Range<u64>) -> Option<(u64, u64)> {
        let (&start, &end) = self.0.range(..range.end).next_back()?;
        (end > range.start && range.start < range.end).then_some((start, end))
    }
}

/// What was lost, by file. Outlives the kernel's interest in a file; ends with the mount.
#[derive(Debug, Default)]
pub(super) struct LostWrites {
    /// Whether there is anything at all: nearly always the answer, and free.
    any: AtomicBool,
    files: Mutex<HashMap<Ino, Ranges>>,
}

impl LostWrites {
    fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    fn add(&self, ino: Ino, range: Range<u64>) {
        let mut files = self.files.lock();
        files.entry(ino).or_default().insert(range);
        self.any.store(true, Ordering::Release);
    }

    /// The bytes hold something new, or are no part of the file any more.
    pub(super) fn replaced(&self, ino: Ino, range: Range<u64>) {
        if self.is_empty() {
            return;
        }
        let mut files = self.files.lock();
        if let Some(ranges) = files.get_mut(&ino) {
            ranges.remove(range);
            if ranges.0.is_empty() {
                files.remove(&ino);
                self.any.store(!files.is_empty(), Ordering::Release);
            }
        }
    }

    /// Fails if some of these bytes were lost; `None` for any byte of the file.
    pub(super) fn check(&self, ino: Ino, range: Option<Range<u64>>) -> Result<(), FsError> {
        if self.is_empty() {
            return Ok(());
        }
        let lost =
            self.files.lock().get(&ino).is_some_and(|ranges| {
                range.is_none_or(|range| ranges.overlapping(&range).is_some())
            });
        if lost { Err(FsError::Lost { ino }) } else { Ok(()) }
    }
}

impl Fs {
    /// Like [`Fs::write`], for what comes out of the kernel's page cache: nobody waits for this
    /// write, so a failure is kept for those who ask later.
    pub fn write_back(&self, ino: Ino, offset: u64, data: &[u8]) -> Result<(), FsError> {
        let written = self.write(ino, offset, data);
        if written.is_err() && self.writable().is_ok() {
            self.lost.add(ino, offset..offset.saturating_add(data.len() as u64));
        }
        written
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const F: Ino = Ino(9);

    #[test]
    fn what_is_written_again_is_not_lost_any_more() {
        let lost = LostWrites::default();
        assert!(lost.check(F, None).is_ok());
        lost.add(F, 4096..8192);
        lost.add(F, 16384..20480);
        assert!(lost.check(F, None).is_err());
        assert!(lost.check(Ino(10), None).is_ok());
        assert!(lost.check(F, Some(0..4096)).is_ok());
        assert!(lost.check(F, Some(0..4097)).is_err());
        assert!(lost.check(F, Some(8192..16384)).is_ok());
        lost.replaced(F, 0..8192);
        assert!(lost.check(F, Some(0..10_000)).is_ok());
        assert!(lost.check(F, None).is_err());
        lost.replaced(F, 10_000..u64::MAX);
        assert!(lost.check(F, None).is_ok() && lost.is_empty());
    }

    #[test]
    fn too_many_ranges_become_one() {
        let lost = LostWrites::default();
        for n in 0..=RANGES_MAX as u64 {
            lost.add(F, n * 10..n * 10 + 1);
        }
        assert!(lost.check(F, Some(5..6)).is_err());
        assert_eq!(lost.files.lock()[&F].0.len(), 1);
    }

    proptest! {
        #[test]
        fn like_a_set_of_bytes(ops in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 0..40)) {
            let (mut ranges, mut bytes) = (Ranges::default(), [false; 80]);
            for (add, start, len) in ops {
                let range = start..start + len;
                if add && len > 0 { ranges.insert(range.clone()) } else { ranges.remove(range.clone()) }
                for at in range {
                    bytes[at as usize] = add;
                }
                for at in 0..80u64 {
                    prop_assert_eq!(ranges.overlapping(&(at..at + 1)).is_some(), bytes[at as usize]);
                }
                let ends: Vec<_> = ranges.0.iter().collect();
                prop_assert!(ends.windows(2).all(|pair| pair[0].1 < pair[1].0 || *pair[0].1 == *pair[1].0));
            }
        }
    }
}
