//! The checksums of a sealed layer: opening, asking, walking, what is left of damaged ones; and writing them anew.

use super::{crc, put};
use cowfs::format::sums::{EXTENT_GRANULES_MAX, SumExtent, Sums, SumsWriter};
use cowfs::format::{Ino, LayerId};

const HEADER: usize = 64;
const EXTENT: usize = 32;
const SUM: usize = 4;

/// One input.
pub fn run(data: &[u8]) {
    examine(data);
    if let Some(healed) = heal(data) {
        examine(&healed);
    }
}

/// The same with a right header and, as far as they lead to checksums, right extents.
fn heal(bytes: &[u8]) -> Option<Vec<u8>> {
    let body = bytes.len().checked_sub(HEADER)?;
    let mut healed = bytes.to_vec();
    let wanted = u64::from_le_bytes(bytes[32..40].try_into().ok()?);
    let extents = usize::try_from(wanted).unwrap_or(usize::MAX).min(body / EXTENT);
    let sums = (body - extents * EXTENT) / SUM;
    healed.truncate(HEADER + sums * SUM + extents * EXTENT);
    put(&mut healed, 0, b"cowfssum\x01\0\0\0");
    put(&mut healed, 24, &(sums as u64).to_le_bytes());
    put(&mut healed, 32, &(extents as u64).to_le_bytes());
    let header = crc(&healed[..HEADER - 4]);
    put(&mut healed, HEADER - 4, &header);
    let table = HEADER + sums * SUM;
    for at in (table..healed.len()).step_by(EXTENT) {
        let number = |from: usize, len: usize| {
            let mut wide = [0; 8];
            wide[..len].copy_from_slice(&healed[at + from..at + from + len]);
            usize::try_from(u64::from_le_bytes(wide)).unwrap_or(usize::MAX)
        };
        let begin = number(16, 8).saturating_mul(SUM).saturating_add(HEADER);
        let end = begin.saturating_add(number(12, 4).saturating_mul(SUM));
        if end <= table {
            let record = crc32c::crc32c(&healed[at..at + 24]);
            let both = crc32c::crc32c_append(record, &healed[begin..end]);
            put(&mut healed, at + 24, &both.to_le_bytes());
        }
    }
    Some(healed)
}

fn open(bytes: &[u8]) -> Option<Sums> {
    Sums::open(Box::new(bytes.to_vec())).ok()
}

fn examine(bytes: &[u8]) {
    let layer = LayerId(
        bytes.get(16..24).map_or(0, |id| u64::from_le_bytes(id.try_into().expect("eight bytes"))),
    );
    if let Some(left) = Sums::open_damaged(Box::new(bytes.to_vec()), layer) {
        assert!(left.sound_extents().next().is_some(), "nothing is left and it was opened");
        what_is_sound_is_found(&left);
    }
    let Some(sums) = open(bytes) else { return };
    // Whatever is wrong with it, asking is safe, and an answer has as many as were asked for.
    for (file, start, len) in
        [(0, 0, 1), (1, 5, 3000), (u64::MAX, u32::MAX, 2), (4, u32::MAX - 1, 7)]
    {
        if let Ok(found) = sums.get(Ino(file), start, len) {
            assert_eq!(found.len(), len as usize);
        }
    }
    what_is_sound_is_found(&sums);
    let all: Result<Vec<_>, _> = sums.extents().collect();
    if let Ok(all) = all {
        is_consistent(&sums, &all);
    }
}

fn what_is_sound_is_found(sums: &Sums) {
    for (extent, expected) in sums.sound_extents() {
        assert!((1..=EXTENT_GRANULES_MAX).contains(&extent.len));
        let found = sums.get_sound(extent.file, extent.start, extent.len);
        assert_eq!(found, expected.iter().copied().map(Some).collect::<Vec<_>>());
    }
}

/// Of a file that is sound throughout every checksum is found, also as that of a damaged one, and it can be written
/// again.
fn is_consistent(sums: &Sums, all: &[(SumExtent, Vec<u32>)]) {
    for (extent, expected) in all {
        let expected: Vec<_> = expected.iter().copied().map(Some).collect();
        let found = sums.get(extent.file, extent.start, extent.len).expect("sound checksums");
        assert_eq!(found, expected);
    }
    let sound: Vec<_> = sums.sound_extents().collect();
    assert_eq!(sound, all);
    let extents: Vec<SumExtent> = all.iter().map(|(extent, _)| *extent).collect();
    let mut writer = SumsWriter::new(Vec::new(), sums.layer(), &extents).expect("a header");
    for (extent, sums) in all {
        writer.extent(*extent, sums).expect("what was sound can be written");
    }
    let again = open(&writer.finish().expect("a table")).expect("what was written opens");
    let again: Vec<_> =
        again.extents().collect::<Result<_, _>>().expect("what was written is sound");
    assert_eq!(again, all);
}
