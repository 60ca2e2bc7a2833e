//! What is left of a damaged checksum file: every extent proves itself, so those that the damage
//! has spared are as good as before.

use std::sync::OnceLock;

use super::{EXTENT_BYTES, HEADER_BYTES, IndexBytes, SUM_BYTES, SumExtent, Sums};
use crate::format::id::{Granule, Ino, LayerId};

impl Sums {
    /// Opens the checksum file of `layer` although its header is damaged: the table of extents is
    /// looked for at the end of the file. `None` if nothing of it can be relied on.
    pub fn open_damaged(bytes: IndexBytes, layer: LayerId) -> Option<Sums> {
        let table_end = bytes.len();
        let mut sums =
            Sums { bytes, layer, extents_at: table_end, extents: 0, sound: OnceLock::new() };
        // The last record tells where the table begins, and so does the first one.
        let mut at = table_end;
        while let Some(earlier) = at.checked_sub(EXTENT_BYTES).filter(|at| *at >= HEADER_BYTES) {
            at = earlier;
            sums.extents_at = at;
            let Ok((extent, first, _)) = sums.record(0) else { continue };
            let last = at + EXTENT_BYTES == table_end;
            let granules = if last { first.checked_add(u64::from(extent.len)) } else { None };
            let begins = match granules {
                _ if first == 0 && sums.verified(0).is_ok() => Some(at),
                Some(granules) => usize::try_from(granules)
                    .ok()
                    .and_then(|granules| granules.checked_mul(SUM_BYTES))
                    .and_then(|bytes| bytes.checked_add(HEADER_BYTES)),
                None => None,
            };
            let Some(begins) = begins.filter(|begins| *begins <= at) else { continue };
            if (table_end - begins).is_multiple_of(EXTENT_BYTES) {
                sums.extents_at = begins;
                sums.extents = ((table_end - begins) / EXTENT_BYTES) as u64;
                if !sums.sound_positions().is_empty() {
                    return Some(sums);
                }
                (sums.extents, sums.sound) = (0, OnceLock::new());
            }
        }
        None
    }

    /// Like [`Sums::get`], but passes over damage: `None` also where the checksum cannot be relied
    /// on.
    pub fn get_sound(&self, file: Ino, start: Granule, len: u32) -> Vec<Option<u32>> {
        let mut known = vec![None; len as usize];
        let end = start.saturating_add(len);
        let positions = self.sound_positions();
        let key = |position: &u64| {
            self.record(*position).map_or((file, 0), |(extent, ..)| {
                (extent.file, u64::from(extent.start) + u64::from(extent.len))
            })
        };
        let first = positions.partition_point(|at| key(at) <= (file, u64::from(start)));
        for position in positions.iter().skip(first) {
            let Ok(found) = self.verified(*position) else { continue };
            if found.extent.file != file || found.extent.start >= end {
                break;
            }
            found.put_into(&mut known, start);
        }
        known
    }

    /// The extents that can be relied on, in order, with their checksums.
    pub fn sound_extents(&self) -> impl Iterator<Item = (SumExtent, Vec<u32>)> + use<'_> {
        self.sound_positions().iter().filter_map(|position| {
            let found = self.verified(*position).ok()?;
            let sums = found.sums.chunks_exact(SUM_BYTES);
            let sums = sums.filter_map(|sum| sum.try_into().ok().map(u32::from_le_bytes));
            Some((found.extent, sums.collect()))
        })
    }

    /// The positions of the records that prove themselves and ascend.
    fn sound_positions(&self) -> &[u64] {
        self.sound.get_or_init(|| {
            let mut free_from = (Ino(0), 0);
            let mut positions = Vec::new();
            for position in 0..self.extents {
                let Ok(found) = self.verified(position) else { continue };
                let extent = found.extent;
                if (extent.file, u64::from(extent.start)) >= free_from {
                    free_from = (extent.file, u64::from(extent.start) + u64::from(extent.len));
                    positions.push(position);
                }
            }
            positions
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::super::tests::{STRETCHES, sample, sum_of};
    use super::*;

    /// Whatever bit is wrong, at most the extent that it belongs to is lost.
    #[test]
    fn one_wrong_bit_costs_one_extent_at_most() {
        let good = sample();
        let all = Sums::open(Box::new(good.clone())).unwrap().extents().count();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            let sums = Sums::open(Box::new(bytes.clone())).ok();
            let sums = sums.or_else(|| Sums::open_damaged(Box::new(bytes), LayerId(5))).unwrap();
            let left = sums.sound_extents().count();
            assert!(left + 1 >= all, "flip at {at}: {left} of {all} extents are left");
            for (file, start, len) in STRETCHES {
                for (granule, sum) in (start..).zip(sums.get_sound(Ino(file), start, len)) {
                    let right = sum_of(Ino(file), granule);
                    assert!(sum.is_none_or(|sum| sum == right), "flip at {at}");
                }
            }
            let known =
                |(file, start, len)| sums.get_sound(Ino(file), start, len).iter().flatten().count();
            let of_extents: usize = sums.sound_extents().map(|(_, sums)| sums.len()).sum();
            assert_eq!(STRETCHES.into_iter().map(known).sum::<usize>(), of_extents);
        }
    }

    #[test]
    fn header_and_last_record_damaged_leave_the_rest() {
        let mut bytes = sample();
        let len = bytes.len();
        bytes[20] ^= 1;
        bytes[len - EXTENT_BYTES + 1] ^= 1;
        let sums = Sums::open_damaged(Box::new(bytes), LayerId(5)).unwrap();
        assert_eq!(sums.layer(), LayerId(5));
        assert_eq!(sums.get_sound(Ino(9), 7, 1), [None]);
        assert_eq!(sums.get_sound(Ino(3), 0, 1), [Some(sum_of(Ino(3), 0))]);
    }

    #[test]
    fn of_foreign_bytes_nothing_is_left() {
        for bytes in [vec![], vec![0; 64], vec![0; 4096], b"foreign".repeat(100)] {
            assert!(Sums::open_damaged(Box::new(bytes), LayerId(5)).is_none());
        }
    }
}
