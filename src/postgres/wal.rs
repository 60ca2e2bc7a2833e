//! Names and page headers of WAL segments.
//!
//! Facts from the Postgres sources, the same in 12 to 18: `access/xlog_internal.h` (names, and
//! `XLogPageHeaderData`), documentation "WAL Internals".

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str::FromStr;

/// Bytes of a page of WAL as Postgres is nearly always built (`XLOG_BLCKSZ`).
pub const PAGE_BYTES: u64 = 8192;
/// Bytes of the part of a page header that says where the page belongs.
pub const HEADER_BYTES: usize = 16;
/// Sizes that a segment may have, in bytes.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 30;

/// A position in the WAL, in bytes from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = String;

    fn from_str(text: &str) -> Result<Lsn, String> {
        let half = |half: &str| {
            let hex = (1..=8).contains(&half.len()) && half.bytes().all(|b| b.is_ascii_hexdigit());
            hex.then(|| u64::from_str_radix(half, 16).ok()).flatten()
        };
        let halves = text.split_once('/').and_then(|(high, low)| Some((half(high)?, half(low)?)));
        let lsn = halves.map(|(high, low)| Lsn(high << 32 | low));
        lsn.ok_or_else(|| format!("{text:?} is not a position in the WAL such as 0/16B3748"))
    }
}

/// A segment: a file of `pg_wal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// The timeline it was written on.
    pub timeline: u32,
    /// Counts segments from the beginning of the WAL.
    pub number: u64,
}

/// Whether a file of so many bytes may be a segment.
pub fn may_be_segment_bytes(bytes: u64) -> bool {
    bytes.is_power_of_two() && SEGMENT_BYTES.contains(&bytes)
}

impl Segment {
    /// Parses the name of a segment of `segment_bytes` bytes: timeline, upper and lower part of its
    /// number, eight digits each.
    pub fn parse(name: &str, segment_bytes: u64) -> Option<Segment> {
        let digits = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
        if name.len() != 24 || !name.bytes().all(digits) {
            return None;
        }
        let part = |at: usize| u32::from_str_radix(&name[at..at + 8], 16).ok();
        let (timeline, log, low) = (part(0)?, u64::from(part(8)?), u64::from(part(16)?));
        let per_log = (1 << 32) / segment_bytes;
        (low < per_log).then_some(Segment { timeline, number: log * per_log + low })
    }

    /// The name of the file.
    pub fn name(self, segment_bytes: u64) -> String {
        let per_log = (1 << 32) / segment_bytes;
        let (log, low) = (self.number / per_log, self.number % per_log);
        format!("{:08X}{log:08X}{low:08X}", self.timeline)
    }
}

/// Where a page of WAL says that it belongs: timeline and position; `None` if it is none.
///
/// A segment that was recycled has its next name and still its old pages; one that was made ahead
/// has zeros.
pub fn page_place(header: &[u8; HEADER_BYTES]) -> Option<(u32, Lsn)> {
    // xlp_magic u16, xlp_info u16, xlp_tli u32, xlp_pageaddr u64; every magic begins with 0xD1.
    let timeline = header[4..8].try_into().map(u32::from_le_bytes).ok()?;
    let address = header[8..].try_into().map(u64::from_le_bytes).ok()?;
    (header[1] == 0xd1).then_some((timeline, Lsn(address)))
}

/// Whether the WAL in the directory `dir` goes on for `bytes` and more behind `redo`.
///
/// Asks one page: its header says whether it was written or is left from a former use of the file.
pub fn reaches(dir: &Path, timeline: u32, redo: Lsn, bytes: u64) -> bool {
    let there = |from: Lsn| -> Option<(u32, Lsn)> {
        let segment_bytes = segment_bytes_in(dir, timeline)?;
        let segment = Segment { timeline, number: from.0 / segment_bytes };
        let file = File::open(dir.join(segment.name(segment_bytes))).ok()?;
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, from.0 % segment_bytes).ok()?;
        page_place(&header)
    };
    redo.0.checked_add(bytes).is_some_and(|far| {
        let page = Lsn(far - far % PAGE_BYTES);
        there(page) == Some((timeline, page))
    })
}

/// The size of the segments of a timeline: that of any of them.
fn segment_bytes_in(dir: &Path, timeline: u32) -> Option<u64> {
    let prefix = format!("{timeline:08X}");
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    let mut names = entries.filter(|entry| {
        let name = entry.file_name();
        name.len() == 24 && name.to_str().is_some_and(|name| name.starts_with(&prefix))
    });
    let bytes = names.next()?.metadata().ok()?.len();
    may_be_segment_bytes(bytes).then_some(bytes)
}

/// Where the WAL ends in a page that is the last one written: behind the last record that begins in
/// it, or at the end of the page. In bytes from its beginning, 1..=[`PAGE_BYTES`].
///
/// What is not written yet is zeros: Postgres clears a page before it puts records into it.
pub fn end_in_page(page: &[u8]) -> u64 {
    let field = |at: u64| -> u64 {
        let bytes = page.get(at as usize..at as usize + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, |bytes| u64::from(u32::from_le_bytes(bytes)))
    };
    // xlp_info u16 at 2, of which 2 is XLP_LONG_HEADER; xlp_rem_len u32 at 16: what is left of a
    // record that began in an earlier page. A record begins with xl_tot_len u32.
    let header = if field(0) >> 16 & 2 == 0 { 24 } else { 40 };
    let mut at = aligned(header + field(16));
    while at < PAGE_BYTES && field(at) > 0 {
        at = aligned(at + field(at));
    }
    at.min(PAGE_BYTES)
}

fn aligned(bytes: u64) -> u64 {
    bytes.next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn positions_are_written_as_postgres_does() {
        for (text, value) in [("0/0", 0), ("0/16B3748", 0x16b_3748), ("1A/FF", 0x1a_0000_00ff)] {
            assert_eq!(text.parse::<Lsn>().unwrap().0, value);
            assert_eq!(Lsn(value).to_string(), text);
        }
        for text in ["", "/", "0/", "0/G", "0/123456789", "16B3748", "0/0/0", "+1/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_of_segments() {
        let name = "00000001000000010000008F";
        for (bytes, number) in [(16 << 20, 256 + 0x8f), (1 << 20, 4096 + 0x8f)] {
            let segment = Segment::parse(name, bytes).unwrap();
            assert_eq!(segment, Segment { timeline: 1, number });
            assert_eq!(segment.name(bytes), name);
        }
        for name in
            ["00000002.history", "00000001000000010000008f", "000000010000000100000100", "é"]
        {
            assert_eq!(Segment::parse(name, 16 << 20), None, "{name}");
        }
    }

    #[test]
    fn sizes_of_segments() {
        let sizes = [1 << 20, 16 << 20, 1 << 30, 0, 512, 3 << 20, 2 << 30];
        assert_eq!(sizes.map(may_be_segment_bytes), [true, true, true, false, false, false, false]);
    }

    #[test]
    fn pages_say_where_they_belong() {
        let mut header = [0; HEADER_BYTES];
        assert_eq!(page_place(&header), None);
        header[..2].copy_from_slice(&0xd110_u16.to_le_bytes());
        header[8..].copy_from_slice(&0x300_0000_u64.to_le_bytes());
        header[4] = 7;
        assert_eq!(page_place(&header), Some((7, Lsn(0x300_0000))));
    }

    #[test]
    fn wal_reaches_as_far_as_its_pages_say() {
        let dir = tempfile::tempdir().unwrap();
        let segment = |number: u64, pages_written: u64, of: u64| {
            let file = File::create(dir.path().join(Segment { timeline: 3, number }.name(1 << 20)))
                .unwrap();
            file.set_len(1 << 20).unwrap();
            for page in 0..pages_written {
                let mut header = [0; HEADER_BYTES];
                header[..2].copy_from_slice(&0xd110_u16.to_le_bytes());
                header[4] = 3;
                let at = page * PAGE_BYTES;
                header[8..].copy_from_slice(&((of << 20) + at).to_le_bytes());
                file.write_all_at(&header, at).unwrap();
            }
        };
        segment(5, 128, 5);
        segment(6, 2, 6);
        segment(7, 128, 1);
        let reaches = |redo: u64, bytes| reaches(dir.path(), 3, Lsn(redo), bytes);
        let redo = (5 << 20) + 0x28;
        assert!(reaches(redo, 0) && reaches(redo, 1 << 20) && reaches(redo, (1 << 20) + 8192));
        assert!(!reaches(redo, (1 << 20) + 2 * 8192), "a page of zeros");
        assert!(!reaches(redo, 2 << 20), "a recycled segment");
        assert!(!reaches(redo, 3 << 20), "no such segment");
        assert!(!reaches(u64::MAX, 1), "there is no such position");
        assert!(!super::reaches(dir.path(), 4, Lsn(redo), 0), "another timeline");
        assert!(!super::reaches(&dir.path().join("none"), 3, Lsn(redo), 0));
    }

    #[test]
    fn a_page_ends_behind_its_last_record() {
        let mut page = vec![0; PAGE_BYTES as usize];
        let mut put =
            |at: usize, value: u32| page[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(0, 0xd110 | 2 << 16);
        assert_eq!(end_in_page(&page), 40, "no record yet");
        let mut put =
            |at: usize, value: u32| page[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(16, 10);
        put(56, 30);
        assert_eq!(end_in_page(&page), 88);
        page[88] = 200;
        assert_eq!(end_in_page(&page), 288);
        page[290] = 0xff;
        assert_eq!(end_in_page(&page), PAGE_BYTES, "a record that goes on in the next page");
        page[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(end_in_page(&page), PAGE_BYTES);
    }
}
