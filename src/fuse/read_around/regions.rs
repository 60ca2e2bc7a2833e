//! Which parts of which files are being read here and there.

use std::collections::HashMap;

use crate::format::Ino;

/// Bytes that are fetched together.
pub const REGION_BYTES: u64 = PAGE_BYTES * 32;
/// What one read asks for, as Postgres does; a region has a bit for each.
const PAGE_BYTES: u64 = 8192;
/// So many pages of a region must have been asked for, one by one, before the rest is worth fetching.
const SEEN_PAGES_MIN: u32 = 4;
/// Reads longer than this are parts of a scan, which the kernel reads ahead by itself.
const READ_BYTES_MAX: u64 = 4 * PAGE_BYTES;
/// Regions remembered at least; at most twice as many: those of 4 to 8 GiB of data, in 2 MiB of memory.
const REMEMBERED_MIN: usize = 1 << 14;
/// Seconds until a region may be fetched a second time. Twice as many until the third time, and so
/// on: pages that are asked for once more were in memory that was needed for something else.
const AGAIN_AFTER_S: u32 = 30;
/// The longest such pause is this many doublings, 4 hours.
const DOUBLINGS_MAX: u32 = 9;

/// A region: the file, and its offset there in regions.
type Key = (Ino, u64);

#[derive(Clone, Copy, Default)]
struct Region {
    /// A bit for each page that was read since it was worth fetching last.
    seen: u32,
    /// When it may be fetched (again).
    from_s: u32,
    /// How often it was fetched.
    fetched: u32,
}

/// Remembers which pages of which regions were read, and what was fetched. Regions that were not heard
/// of while many others were are forgotten.
#[derive(Default)]
pub struct Regions {
    recent: HashMap<Key, Region>,
    older: HashMap<Key, Region>,
}

impl Regions {
    /// Notes a read of `len` bytes at `now_s`, seconds of a clock that does not go back; gives the
    /// offset of a region that is worth fetching now. Said for the same region again after as many
    /// more pages, unless it [was fetched](Regions::was_fetched).
    pub fn note(&mut self, ino: Ino, offset: u64, len: u64, now_s: u32) -> Option<u64> {
        if len == 0 || len > READ_BYTES_MAX {
            return None;
        }
        let region = self.region((ino, offset / REGION_BYTES));
        if now_s < region.from_s {
            return None;
        }
        let within = offset % REGION_BYTES;
        let end = (within + len).min(REGION_BYTES);
        for page in within / PAGE_BYTES..end.div_ceil(PAGE_BYTES) {
            region.seen |= 1 << page;
        }
        if region.seen.count_ones() < SEEN_PAGES_MIN {
            return None;
        }
        region.seen = 0;
        Some(offset - within)
    }

    /// Notes that the region at `offset` was fetched.
    pub fn was_fetched(&mut self, ino: Ino, offset: u64, now_s: u32) {
        let region = self.region((ino, offset / REGION_BYTES));
        let pause_s = AGAIN_AFTER_S << region.fetched.min(DOUBLINGS_MAX);
        let fetched = region.fetched.saturating_add(1);
        *region = Region { seen: 0, from_s: now_s.saturating_add(pause_s), fetched };
    }

    fn region(&mut self, key: Key) -> &mut Region {
        if self.recent.len() >= REMEMBERED_MIN && !self.recent.contains_key(&key) {
            self.older = std::mem::take(&mut self.recent);
        }
        let older = &mut self.older;
        self.recent.entry(key).or_insert_with(|| older.remove(&key).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Ino = Ino(7);

    /// Reads pages, and fetches what is worth it.
    fn read_pages(regions: &mut Regions, pages: &[u64], now_s: u32) -> Vec<u64> {
        let mut fetched = Vec::new();
        for page in pages {
            if let Some(offset) = regions.note(FILE, page * PAGE_BYTES, PAGE_BYTES, now_s) {
                regions.was_fetched(FILE, offset, now_s);
                fetched.push(offset);
            }
        }
        fetched
    }

    #[test]
    fn the_fourth_page_of_a_region_makes_it_worth_fetching() {
        let mut regions = Regions::default();
        assert!(read_pages(&mut regions, &[64, 95, 80], 0).is_empty());
        assert_eq!(read_pages(&mut regions, &[70], 0), [2 * REGION_BYTES]);
        let others = [71, 72, 73, 74, 75, 64];
        assert!(read_pages(&mut regions, &others, 0).is_empty(), "it is on its way");
    }

    #[test]
    fn what_does_not_stay_in_memory_is_fetched_less_and_less() {
        let mut regions = Regions::default();
        let pages: Vec<u64> = (0..32).collect();
        let mut fetches = Vec::new();
        for now_s in 0..24 * 3600 {
            for _ in read_pages(&mut regions, &pages, now_s) {
                fetches.push(now_s);
            }
        }
        assert_eq!(fetches[..5], [0, 30, 90, 210, 450]);
        assert_eq!(fetches.len(), 14, "{fetches:?}");
    }

    #[test]
    fn what_was_not_fetched_is_worth_it_soon_again() {
        let mut regions = Regions::default();
        let mut note = |page: u64| regions.note(FILE, page * PAGE_BYTES, PAGE_BYTES, 5);
        assert_eq!((0..8).filter_map(&mut note).count(), 2);
    }

    #[test]
    fn what_was_fetched_is_remembered_while_many_others_are_read() {
        let mut regions = Regions::default();
        assert_eq!(read_pages(&mut regions, &[0, 1, 2, 3], 0), [0]);
        for region in 1..2 * REMEMBERED_MIN as u64 - 2 {
            regions.note(FILE, region * REGION_BYTES, PAGE_BYTES, 0);
        }
        assert!(read_pages(&mut regions, &[0, 1, 2, 3], 1).is_empty());
    }

    #[test]
    fn a_page_that_is_read_again_and_again_is_one() {
        let mut regions = Regions::default();
        assert!(read_pages(&mut regions, &[3; 50], 0).is_empty());
        assert!(read_pages(&mut regions, &[3, 4, 5], 0).is_empty());
        assert_eq!(read_pages(&mut regions, &[6], 0), [0]);
    }

    #[test]
    fn pages_spread_over_regions_and_files_are_left_alone() {
        let mut regions = Regions::default();
        for region in 0..1000 {
            assert!(read_pages(&mut regions, &[region * 32, region * 32 + 9], 0).is_empty());
        }
        for ino in 100..110 {
            assert_eq!(regions.note(Ino(ino), 0, PAGE_BYTES, 0), None);
        }
    }

    #[test]
    fn scans_are_left_alone() {
        let mut regions = Regions::default();
        let request = READ_BYTES_MAX * 2;
        assert!((0..100).all(|at| regions.note(FILE, at * request, request, 0).is_none()));
        assert!(regions.recent.is_empty());
    }

    #[test]
    fn odd_reads_count_for_the_pages_that_they_touch() {
        let mut regions = Regions::default();
        assert_eq!(regions.note(FILE, REGION_BYTES - 1, 1, 0), None);
        assert_eq!(regions.note(FILE, REGION_BYTES - PAGE_BYTES - 1, 2, 0), None);
        assert_eq!(regions.note(FILE, 100, PAGE_BYTES, 0), Some(0), "two at each end");
        assert_eq!(regions.note(FILE, u64::MAX - 1, 1, 0), None);
        assert_eq!(regions.note(FILE, 0, 0, 0), None);
    }

    #[test]
    fn memory_is_bounded() {
        let mut regions = Regions::default();
        for region in 0..100 * REMEMBERED_MIN as u64 {
            regions.note(FILE, region * REGION_BYTES, PAGE_BYTES, 0);
        }
        assert!(regions.recent.len() + regions.older.len() <= 2 * REMEMBERED_MIN);
    }
}
