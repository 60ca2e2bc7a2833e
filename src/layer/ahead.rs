//! What the host was told to fetch of a file that is being read in order.

use std::ops::Range;

use parking_lot::Mutex;

/// Bytes that the host is told to fetch beyond a request that is part of a scan.
const AHEAD_BYTES: u64 = 2 << 20;
/// Requests of one scan are served at the same time and overtake each other by so much, at most.
const OVERTAKING_BYTES: u64 = 8 << 20;

/// The stretch of a file that the host was told of last.
#[derive(Debug, Default)]
pub struct Ahead(Mutex<Range<u64>>);

impl Ahead {
    /// What the host is to be told of now that `request` is read in order: the request and what
    /// follows, without what it was told of before.
    ///
    /// A scan that begins anew in the stretch of an earlier one starts anew: the host may have
    /// dropped since then what it had fetched.
    pub fn advance(&self, request: Range<u64>) -> Range<u64> {
        let wanted = request.start..request.end.saturating_add(AHEAD_BYTES);
        let mut told = self.0.lock();
        let same_scan = told.start <= wanted.start
            && (wanted.start..=wanted.end.saturating_add(OVERTAKING_BYTES)).contains(&told.end);
        if !same_scan {
            *told = wanted.clone();
            return wanted;
        }
        let new = told.end.min(wanted.end)..wanted.end;
        told.end = told.end.max(wanted.end);
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_scan_tells_of_each_byte_once() {
        let ahead = Ahead::default();
        let mut told = 0;
        for start in 0..100 {
            let new = ahead.advance(start * MIB..(start + 1) * MIB);
            assert_eq!(new.start, told, "neither a gap nor a byte twice");
            told = new.end;
        }
        assert_eq!(told, 100 * MIB + AHEAD_BYTES);
    }

    #[test]
    fn requests_that_overtake_each_other_leave_no_gap() {
        let ahead = Ahead::default();
        let mut told: Vec<Range<u64>> = Vec::new();
        for start in [0, 2, 1, 4, 3, 7, 5, 6, 8] {
            told.push(ahead.advance(start * MIB..(start + 1) * MIB));
        }
        for byte in (0..9 * MIB).step_by(4096) {
            assert!(told.iter().any(|range| range.contains(&byte)), "{byte}");
        }
    }

    #[test]
    fn a_second_scan_is_told_of_again() {
        let ahead = Ahead::default();
        for start in 0..100 {
            ahead.advance(start * MIB..(start + 1) * MIB);
        }
        assert_eq!(ahead.advance(0..MIB), 0..MIB + AHEAD_BYTES);
        assert_eq!(ahead.advance(MIB..2 * MIB), MIB + AHEAD_BYTES..2 * MIB + AHEAD_BYTES);
        // And one that starts before what is known.
        ahead.advance(50 * MIB..51 * MIB);
        assert_eq!(ahead.advance(49 * MIB..50 * MIB), 49 * MIB..50 * MIB + AHEAD_BYTES);
    }
}
