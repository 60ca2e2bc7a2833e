//! The checksums of a sealed layer's contents: one CRC32C per granule that the layer owns.
//!
//! | part | bytes | order |
//! | --- | --- | --- |
//! | header | 64 | |
//! | checksums | 4 per granule | as the extents |
//! | extents | 32 each | by data file, then granule |
//!
//! An extent is a stretch of at most [`EXTENT_GRANULES_MAX`] granules of one data file. It carries a
//! checksum of itself and of its granules' checksums, so that rot in this file is not taken for rot
//! in the data. The checksum of a granule is that of its 4096 bytes in the data file; what lies past
//! the end of the data file counts as zeros.
//!
//! The file is derived from the data and may be removed and made again at any time.

mod salvage;

use std::io::{self, Write};
use std::sync::OnceLock;

use super::bytes::{Append, Reader, split_crc};
use super::error::FormatError;
use super::id::{Granule, Ino, LayerId};
use super::index::{Index, IndexBytes};

const MAGIC: [u8; 8] = *b"cowfssum";
const VERSION: u32 = 1;
const WHAT: &str = "checksum file";
const HEADER_BYTES: usize = 64;
const EXTENT_BYTES: usize = 32;
const SUM_BYTES: usize = 4;

/// Granules of an extent, at most: 4 MiB of contents, 4 KiB of checksums.
pub const EXTENT_GRANULES_MAX: u32 = 1024;

/// A stretch of one data file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SumExtent {
    /// The data file.
    pub file: Ino,
    /// First granule within the data file.
    pub start: Granule,
    /// Granules, 1 to [`EXTENT_GRANULES_MAX`].
    pub len: u32,
}

/// The header of a checksum file.
///
/// | at | field | type |
/// | --- | --- | --- |
/// | 0 | magic `cowfssum` | 8 bytes |
/// | 8 | version, 1 | u32 |
/// | 12 | zeros | 4 bytes |
/// | 16 | layer | u64 |
/// | 24 | number of granules | u64 |
/// | 32 | number of extents | u64 |
/// | 40 | zeros | 20 bytes |
/// | 60 | CRC32C of bytes 0..60 | u32 |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Header {
    layer: LayerId,
    granules: u64,
    extents: u64,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.put(&MAGIC);
        out.put_u32(VERSION);
        out.put_u32(0);
        out.put_u64(self.layer.0);
        out.put_u64(self.granules);
        out.put_u64(self.extents);
        out.put(&[0; 20]);
        out.put_u32(crc32c::crc32c(&out));
        out
    }

    fn decode(bytes: &[u8]) -> Result<Header, FormatError> {
        let header = Reader::new(bytes, 0, WHAT).take(HEADER_BYTES)?;
        let mut reader = Reader::new(header, 0, WHAT);
        if reader.array()? != MAGIC {
            return Err(FormatError::BadMagic { what: WHAT });
        }
        let version = reader.u32()?;
        if version != VERSION {
            let (found, supported) = (version, VERSION);
            return Err(FormatError::UnknownVersion { what: WHAT, found, supported });
        }
        if split_crc(header).is_none_or(|(covered, crc)| crc32c::crc32c(covered) != crc) {
            return Err(FormatError::Checksum { section: WHAT, offset: 0 });
        }
        reader.u32()?;
        Ok(Header {
            layer: LayerId(reader.u64()?),
            granules: reader.u64()?,
            extents: reader.u64()?,
        })
    }
}

/// The checksum of a granule: `bytes` is its content up to the end of the data file.
pub fn granule_sum(bytes: &[u8]) -> u32 {
    const ZEROS: [u8; 4096] = [0; 4096];
    let missing = ZEROS.get(bytes.len()..).unwrap_or_default();
    crc32c::crc32c_append(crc32c::crc32c(bytes), missing)
}

/// Cuts ascending, disjoint stretches into extents.
pub fn cut_extents(stretches: impl IntoIterator<Item = SumExtent>) -> Vec<SumExtent> {
    let mut extents = Vec::new();
    for mut rest in stretches {
        while rest.len > 0 {
            let len = rest.len.min(EXTENT_GRANULES_MAX);
            extents.push(SumExtent { len, ..rest });
            rest.start += len;
            rest.len -= len;
        }
    }
    extents
}

/// The stretches of a layer's own data files that its index refers to, ascending and disjoint.
pub fn owned_stretches(index: &Index) -> Result<Vec<SumExtent>, FormatError> {
    let layer = index.meta().layer;
    let mut owned = Vec::new();
    for file in index.files() {
        let Some(layout) = file?.1 else { continue };
        let own = layout.runs.iter().filter(|run| run.layer == layer);
        owned.extend(own.map(|run| SumExtent { file: run.file, start: run.source, len: run.len }));
    }
    owned.sort_unstable_by_key(|extent| (extent.file, extent.start));
    let mut stretches: Vec<SumExtent> = Vec::with_capacity(owned.len());
    for next in owned {
        // Two files may share a stretch of a data file (copy_file_range).
        match stretches.last_mut() {
            Some(last) if last.file == next.file && last.start + last.len >= next.start => {
                last.len = last.len.max(next.start + next.len - last.start);
            }
            _ => stretches.push(next),
        }
    }
    Ok(stretches)
}

/// Writes a checksum file in one pass: the extents are known beforehand, their checksums come in
/// their order.
pub struct SumsWriter<W> {
    out: W,
    extents: Vec<u8>,
    granules_left: u64,
    extents_left: u64,
    granules_done: u64,
}

impl<W: Write> SumsWriter<W> {
    /// Begins a file for `extents`, which ascend and are as [`cut_extents`] makes them.
    pub fn new(mut out: W, layer: LayerId, extents: &[SumExtent]) -> io::Result<SumsWriter<W>> {
        let granules = extents.iter().map(|extent| u64::from(extent.len)).sum();
        let header = Header { layer, granules, extents: extents.len() as u64 };
        out.write_all(&header.encode())?;
        let table = Vec::with_capacity(extents.len() * EXTENT_BYTES);
        Ok(SumsWriter {
            out,
            extents: table,
            granules_left: granules,
            extents_left: header.extents,
            granules_done: 0,
        })
    }

    /// Adds the next extent with the checksums of its granules.
    pub fn extent(&mut self, extent: SumExtent, sums: &[u32]) -> io::Result<()> {
        let expected = sums.len() as u64 == u64::from(extent.len)
            && self.granules_left >= u64::from(extent.len)
            && self.extents_left > 0;
        if !expected {
            return Err(io::Error::other("checksums of another extent than announced"));
        }
        let mut bytes = Vec::with_capacity(sums.len() * SUM_BYTES);
        for sum in sums {
            bytes.put_u32(*sum);
        }
        self.extents.put(&encode_extent(extent, self.granules_done, &bytes));
        self.granules_left -= u64::from(extent.len);
        self.granules_done += u64::from(extent.len);
        self.extents_left -= 1;
        self.out.write_all(&bytes)
    }

    /// Writes the table of extents and hands the output back.
    pub fn finish(mut self) -> io::Result<W> {
        if self.granules_left > 0 || self.extents_left > 0 {
            return Err(io::Error::other("fewer checksums than announced"));
        }
        self.out.write_all(&self.extents)?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// An extent's record.
///
/// | at | field | type |
/// | --- | --- | --- |
/// | 0 | data file | u64 |
/// | 8 | first granule | u32 |
/// | 12 | granules | u32 |
/// | 16 | position of its first checksum | u64 |
/// | 24 | CRC32C of bytes 0..24 and its checksums | u32 |
/// | 28 | zeros | u32 |
fn encode_extent(extent: SumExtent, first: u64, sums: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(EXTENT_BYTES);
    out.put_u64(extent.file.0);
    out.put_u32(extent.start);
    out.put_u32(extent.len);
    out.put_u64(first);
    out.put_u32(crc32c::crc32c_append(crc32c::crc32c(&out), sums));
    out.put_u32(0);
    out
}

/// A checksum file, searched in place.
pub struct Sums {
    bytes: IndexBytes,
    layer: LayerId,
    extents_at: usize,
    extents: u64,
    /// The positions of the extents that can be relied on; made when damage was met.
    sound: OnceLock<Vec<u64>>,
}

/// One record of the table, with the bytes of its checksums, both verified.
struct Found<'a> {
    extent: SumExtent,
    first: u64,
    sums: &'a [u8],
}

impl Found<'_> {
    /// Puts its checksums where they belong in `known`, which begins at granule `start`.
    fn put_into(&self, known: &mut [Option<u32>], start: Granule) {
        for (offset, sum) in self.sums.chunks_exact(SUM_BYTES).enumerate() {
            let slot = (self.extent.start as usize + offset)
                .checked_sub(start as usize)
                .and_then(|slot| known.get_mut(slot));
            if let (Some(slot), Ok(sum)) = (slot, <[u8; 4]>::try_from(sum)) {
                *slot = Some(u32::from_le_bytes(sum));
            }
        }
    }
}

impl Sums {
    /// Opens a file; its extents are verified when they are used.
    pub fn open(bytes: IndexBytes) -> Result<Sums, FormatError> {
        let header = Header::decode(&bytes)?;
        let sums_bytes = header.granules.checked_mul(SUM_BYTES as u64);
        let table_bytes = header.extents.checked_mul(EXTENT_BYTES as u64);
        let extents_at = sums_bytes.and_then(|bytes| bytes.checked_add(HEADER_BYTES as u64));
        let end = extents_at.zip(table_bytes).and_then(|(at, bytes)| at.checked_add(bytes));
        let found = bytes.len() as u64;
        match (extents_at, end) {
            (Some(extents_at), Some(end)) if end == found => Ok(Sums {
                bytes,
                layer: header.layer,
                extents_at: extents_at as usize,
                extents: header.extents,
                sound: OnceLock::new(),
            }),
            (_, Some(wanted)) if wanted > found => {
                Err(FormatError::Truncated { what: WHAT, offset: 0, wanted, found })
            }
            _ => Err(FormatError::Corrupt { what: "length of a checksum file", offset: found }),
        }
    }

    /// The layer whose contents it describes.
    pub fn layer(&self) -> LayerId {
        self.layer
    }

    /// The checksums of granules `start..start + len` of a data file, `None` where there is none.
    pub fn get(
        &self,
        file: Ino,
        start: Granule,
        len: u32,
    ) -> Result<Vec<Option<u32>>, FormatError> {
        let mut found = vec![None; len as usize];
        let end = start.saturating_add(len);
        let mut position = self.first_ending_past(file, start)?;
        while position < self.extents {
            let (extent, ..) = self.record(position)?;
            if extent.file != file || extent.start >= end {
                break;
            }
            self.verified(position)?.put_into(&mut found, start);
            position += 1;
        }
        Ok(found)
    }

    /// The extents of a data file, in order; they and their checksums are verified.
    pub fn extents_of(&self, file: Ino) -> Result<Vec<SumExtent>, FormatError> {
        let mut found: Vec<SumExtent> = Vec::new();
        for position in self.first_ending_past(file, 0)?..self.extents {
            if self.record(position)?.0.file != file {
                break;
            }
            let extent = self.verified(position)?.extent;
            if found.last().is_some_and(|last| last.start + last.len > extent.start) {
                return Err(self.corrupt("order of extents", position));
            }
            found.push(extent);
        }
        Ok(found)
    }

    /// Every extent with its checksums, in order; everything is verified on the way.
    pub fn extents(
        &self,
    ) -> impl Iterator<Item = Result<(SumExtent, Vec<u32>), FormatError>> + use<'_> {
        let mut next_sum = 0;
        let mut before: Option<SumExtent> = None;
        (0..self.extents).map(move |position| {
            let found = self.verified(position)?;
            let ascends = before.is_none_or(|last| {
                (last.file, last.start.saturating_add(last.len))
                    <= (found.extent.file, found.extent.start)
            });
            if !ascends || found.first != next_sum {
                return Err(self.corrupt("order of extents", position));
            }
            next_sum += u64::from(found.extent.len);
            before = Some(found.extent);
            let sums = found.sums.chunks_exact(SUM_BYTES);
            let sums = sums.filter_map(|sum| sum.try_into().ok().map(u32::from_le_bytes));
            Ok((found.extent, sums.collect()))
        })
    }

    /// The position of the first extent of `file` (or a later file) that ends past `granule`.
    fn first_ending_past(&self, file: Ino, granule: Granule) -> Result<u64, FormatError> {
        let (mut low, mut high) = (0, self.extents);
        while low < high {
            let middle = low + (high - low) / 2;
            let (extent, ..) = self.record(middle)?;
            if (extent.file, u64::from(extent.start) + u64::from(extent.len))
                <= (file, u64::from(granule))
            {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// The record at `position`, not verified: extent, first checksum, checksum of itself.
    fn record(&self, position: u64) -> Result<(SumExtent, u64, u32), FormatError> {
        let at = self.extents_at.saturating_add((position as usize).saturating_mul(EXTENT_BYTES));
        let bytes = self.bytes.get(at..).unwrap_or_default();
        let mut reader = Reader::new(bytes, at as u64, WHAT);
        let extent =
            SumExtent { file: Ino(reader.u64()?), start: reader.u32()?, len: reader.u32()? };
        Ok((extent, reader.u64()?, reader.u32()?))
    }

    fn verified(&self, position: u64) -> Result<Found<'_>, FormatError> {
        let (extent, first, crc) = self.record(position)?;
        let sums = first.checked_mul(SUM_BYTES as u64);
        let at = sums.and_then(|at| at.checked_add(HEADER_BYTES as u64));
        let end = at.and_then(|at| at.checked_add(u64::from(extent.len) * SUM_BYTES as u64));
        let sums = at
            .zip(end)
            .filter(|(_, end)| *end <= self.extents_at as u64)
            .and_then(|(at, end)| self.bytes.get(at as usize..end as usize))
            .ok_or_else(|| self.corrupt("extent", position))?;
        if !(1..=EXTENT_GRANULES_MAX).contains(&extent.len)
            || extent.start.checked_add(extent.len).is_none()
        {
            return Err(self.corrupt("extent", position));
        }
        let record = encode_extent(extent, first, sums);
        if record.get(24..28) != Some(&crc.to_le_bytes()) {
            let offset = self.extents_at as u64 + position * EXTENT_BYTES as u64;
            return Err(FormatError::Checksum { section: WHAT, offset });
        }
        Ok(Found { extent, first, sums })
    }

    fn corrupt(&self, what: &'static str, position: u64) -> FormatError {
        FormatError::Corrupt {
            what,
            offset: self.extents_at as u64 + position * EXTENT_BYTES as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn extent(file: u64, start: Granule, len: u32) -> SumExtent {
        SumExtent { file: Ino(file), start, len }
    }

    fn written(stretches: &[SumExtent]) -> Vec<u8> {
        let extents = cut_extents(stretches.iter().copied());
        let mut writer = SumsWriter::new(Vec::new(), LayerId(5), &extents).unwrap();
        for extent in &extents {
            let sums: Vec<u32> =
                (0..extent.len).map(|i| sum_of(extent.file, extent.start + i)).collect();
            writer.extent(*extent, &sums).unwrap();
        }
        writer.finish().unwrap()
    }

    pub(super) fn sum_of(file: Ino, granule: Granule) -> u32 {
        crc32c::crc32c(&[file.0.to_le_bytes(), u64::from(granule).to_le_bytes()].concat())
    }

    pub(super) const STRETCHES: [(u64, Granule, u32); 4] =
        [(3, 0, 1), (3, 4, 3000), (3, 9000, 2), (9, 7, 1)];

    pub(super) fn sample() -> Vec<u8> {
        written(&STRETCHES.map(|(file, start, len)| extent(file, start, len)))
    }

    #[test]
    fn every_granule_has_its_own_checksum_and_no_other() {
        let sums = Sums::open(Box::new(sample())).unwrap();
        assert_eq!(sums.layer(), LayerId(5));
        for file in [2_u64, 3, 4, 9, 10] {
            for (start, len) in [(0, 12), (1000, 3000), (3003, 2), (8999, 4), (0, 1), (3, 1)] {
                let got = sums.get(Ino(file), start, len).unwrap();
                for (granule, sum) in (start..).zip(got) {
                    let owned = STRETCHES.iter().any(|(owner, first, count)| {
                        *owner == file && (*first..first + count).contains(&granule)
                    });
                    assert_eq!(sum, owned.then(|| sum_of(Ino(file), granule)), "{file} {granule}");
                }
            }
        }
    }

    #[test]
    fn all_extents_come_back_in_order() {
        let sums = Sums::open(Box::new(sample())).unwrap();
        let extents: Vec<_> = sums.extents().map(|found| found.unwrap().0).collect();
        let stretches = STRETCHES.map(|(file, start, len)| extent(file, start, len));
        assert_eq!(extents, cut_extents(stretches));
        assert!(extents.iter().all(|extent| extent.len <= EXTENT_GRANULES_MAX));
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed_and_gives_no_wrong_checksum() {
        let good = sample();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            let Ok(sums) = Sums::open(Box::new(bytes)) else { continue };
            // The last four bytes of a record are not used.
            let table = good.len() - 6 * EXTENT_BYTES;
            let unused = at >= table && (at - table) % EXTENT_BYTES >= 28;
            assert!(unused || sums.extents().any(|found| found.is_err()), "flip at {at}");
            for (file, start, len) in STRETCHES {
                let Ok(got) = sums.get(Ino(file), start, len) else { continue };
                for (granule, sum) in (start..).zip(got) {
                    assert!(
                        sum.is_none_or(|sum| sum == sum_of(Ino(file), granule)),
                        "flip at {at}"
                    );
                }
            }
        }
    }

    #[test]
    fn cut_short_at_any_length_is_refused() {
        let good = sample();
        for len in 0..good.len() {
            assert!(Sums::open(Box::new(good[..len].to_vec())).is_err(), "{len} bytes");
        }
    }

    // Found by fuzzing: where the sums begin was added up without a look at the largest number.
    #[test]
    fn checksums_at_the_end_of_all_numbers_are_damage() {
        for beyond in [1, 5, 15, 16] {
            let mut bytes = sample();
            let table = bytes.len() - 6 * EXTENT_BYTES;
            let first = (u64::MAX / SUM_BYTES as u64 + 1).wrapping_sub(beyond);
            bytes[table + 16..table + 24].copy_from_slice(&first.to_le_bytes());
            let sums = Sums::open(Box::new(bytes)).unwrap();
            assert!(sums.get(Ino(3), 0, 1).is_err(), "{first:x}");
            assert!(sums.extents().next().unwrap().is_err(), "{first:x}");
        }
    }

    #[test]
    fn a_short_granule_counts_as_filled_with_zeros() {
        let mut whole = vec![7_u8; 100];
        let short = granule_sum(&whole);
        whole.resize(4096, 0);
        assert_eq!(short, granule_sum(&whole));
    }

    #[test]
    fn header_bytes_are_pinned() {
        let bytes = written(&[extent(3, 1, 1)]);
        assert_eq!(&bytes[..12], b"cowfssum\x01\0\0\0");
        assert_eq!(
            bytes[16..40],
            [5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(bytes.len(), 64 + 4 + 32);
        assert_eq!(bytes[68..84], [3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
    }
}
