#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use proptest::collection::vec;
use proptest::prelude::*;

use super::blocks::BlockWriter;
use super::envelope::{FOOTER_BYTES, encode_header};
use super::tests::{META, link, open, small, written};
use super::*;
use crate::format::FormatError;
use crate::format::inode::FileKind;
use crate::format::name_hash;
use crate::format::samples;

/// Asks an index everything; answers what it said, as text.
fn interrogate(index: &Index) -> Result<Vec<String>, FormatError> {
    let mut said = vec![format!("{:?} {:?}", index.meta(), index.sockets()?)];
    for entry in index.dirents() {
        said.push(format!("{:?}", entry?));
    }
    for file in index.files() {
        said.push(format!("{:?}", file?));
    }
    for ino in (0..12).map(Ino) {
        said.push(format!("{:?} {:?}", index.inode(ino)?, index.layout(ino)?));
        for entry in index.entries_after(ino, 0) {
            said.push(format!("{:?}", entry?));
        }
    }
    for name in [&b"PG_VERSION"[..], b"missing"] {
        said.push(format!("{:?}", index.lookup(Ino(1), name_hash(name), name)?));
    }
    Ok(said)
}

#[test]
fn a_flipped_bit_anywhere_is_found() {
    let good = written(small());
    let wanted = interrogate(&open(good.clone()).unwrap()).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let Ok(index) = open(bad) else { continue };
        assert!(matches!(index.verify(), Err(FormatError::Checksum { .. })), "bit {bit}");
        // Without that check, every answer is still right or an error.
        assert!(interrogate(&index).map_or(true, |said| said == wanted), "bit {bit}");
    }
}

#[test]
fn a_cut_or_extended_index_does_not_open() {
    let good = written(small());
    for len in 0..good.len() {
        assert!(open(good[..len].to_vec()).is_err(), "cut to {len}");
    }
    for more in [vec![0], vec![0; FOOTER_BYTES], good[good.len() - FOOTER_BYTES..].to_vec()] {
        assert!(open([good.clone(), more].concat()).is_err());
    }
}

#[test]
fn a_future_version_is_refused_by_its_number() {
    let mut bytes = written(small());
    bytes[8] = 9;
    let error = open(bytes).err().unwrap();
    assert!(matches!(error, FormatError::UnknownVersion { found: 9, supported: 2, .. }));
    assert!(matches!(open(vec![7; 500]), Err(FormatError::BadMagic { .. })));
}

#[test]
fn a_footer_of_another_layer_is_refused() {
    let mut bytes = written(small());
    let other = IndexMeta { layer: LayerId(77), ..META };
    bytes[..64].copy_from_slice(&encode_header(&other));
    assert!(matches!(open(bytes), Err(FormatError::Corrupt { .. })));
}

/// 5,000 files: several blocks in the larger sections.
fn large() -> Vec<u8> {
    let mut builder = IndexBuilder::new(META);
    for ino in 1..=5000 {
        builder.dirent(Ino(1), format!("file-{ino}").as_bytes(), link(ino, FileKind::Regular));
        builder.inode(samples::plain_inode(ino), None);
    }
    written(builder)
}

#[test]
fn only_the_blocks_in_use_are_verified_and_errors_say_where() {
    let mut bytes = large();
    // Inodes fill 9 full blocks and a part; inode n lies at 64 + (n - 1) * 128.
    let last = 64 + 4999 * 128;
    bytes[last + 16] ^= 1;
    let index = open(bytes).unwrap();
    assert_eq!(index.inode(Ino(1)).unwrap().unwrap().ino, Ino(1));
    assert_eq!(index.dirents().flatten().count(), 5000);
    let FormatError::Checksum { section, offset } = index.inode(Ino(5000)).unwrap_err() else {
        panic!()
    };
    assert_eq!((section, offset), ("index inodes", 64 + 9 * 65_536));
    // Not only the first time.
    assert!(index.inode(Ino(5000)).is_err());
    assert!(index.verify().is_err());
}

#[test]
fn sections_of_many_blocks_read_back() {
    let index = open(large()).unwrap();
    index.verify().unwrap();
    for ino in 1..=5000 {
        let name = format!("file-{ino}");
        let found = index.lookup(Ino(1), name_hash(name.as_bytes()), name.as_bytes()).unwrap();
        assert_eq!(found, Some(link(ino, FileKind::Regular)));
    }
}

/// An index whose checksums are right, whatever its sections hold.
fn forged(sections: &[Vec<u8>; 6]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = BlockWriter::new(&mut bytes);
    writer.raw(&encode_header(&META)).unwrap();
    let lengths = sections.each_ref().map(|section| {
        writer.put(section).unwrap();
        writer.end_section().unwrap()
    });
    writer.finish(&META, lengths).unwrap();
    bytes
}

/// The sections of the small index.
fn genuine() -> [Vec<u8>; 6] {
    let bytes = written(small());
    let lengths = [256, 96, 32, 8, 37, 11];
    let mut at = 64;
    lengths.map(|len| {
        at += len;
        bytes[at - len..at].to_vec()
    })
}

#[test]
fn forging_nothing_gives_the_genuine_bytes() {
    assert_eq!(forged(&genuine()), written(small()));
}

#[test]
fn order_that_searches_rely_on_is_verified() {
    for (section, width) in [(0, 128), (1, 32)] {
        let mut sections = genuine();
        sections[section].rotate_left(width);
        let index = open(forged(&sections)).unwrap();
        assert!(matches!(index.verify(), Err(FormatError::Corrupt { .. })));
    }
    let mut sections = genuine();
    sections[3].clear();
    let index = open(forged(&sections)).unwrap();
    assert!(matches!(index.verify(), Err(FormatError::Corrupt { what: "socket", .. })));
}

proptest! {
    #[test]
    fn no_forgery_makes_the_index_panic(
        edits in vec((0usize..6, any::<prop::sample::Index>(), any::<u8>()), 1..6),
        swap in (0usize..6, vec(any::<u8>(), 0..300)),
        swapped: bool,
    ) {
        let mut sections = genuine();
        for (section, at, value) in edits {
            let at = at.index(sections[section].len());
            sections[section][at] = value;
        }
        if swapped {
            sections[swap.0] = swap.1;
        }
        if let Ok(index) = open(forged(&sections)) {
            let _ = index.verify();
            let _ = interrogate(&index);
        }
    }

    #[test]
    fn no_bytes_make_open_panic(bytes in vec(any::<u8>(), 0..400)) {
        prop_assert!(open(bytes).is_err());
    }
}
