#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::format::FormatError;
use crate::format::id::{Ino, LayerId};
use crate::format::inode::{AdoptedSource, DirentTarget, FileKind, Timestamp};
use crate::format::layout::{GranuleRange, LayoutDelta};
use crate::format::samples::{self, hex};

fn frame(sequence: u64, records: &[Record]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_frame(sequence, records, &mut out);
    out
}

/// A log of frames 1, 2, ...; and where each ends.
fn log(frames: &[Vec<Record>]) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut ends) = (Vec::new(), Vec::new());
    for (sequence, records) in (1..).zip(frames) {
        encode_frame(sequence, records, &mut bytes);
        ends.push(bytes.len());
    }
    (bytes, ends)
}

fn read(bytes: &[u8]) -> (Result<Vec<Frame>, FormatError>, Tail) {
    let mut reader = FrameReader::new(bytes, 1);
    let frames = reader.by_ref().collect();
    (frames, reader.tail())
}

fn sample_frames() -> Vec<Vec<Record>> {
    let link = DirentTarget::Link { ino: Ino(9), kind: FileKind::Regular };
    let added = vec![GranuleRange { start: 2, end: 5 }];
    vec![
        vec![
            Record::Inode(Box::new(samples::plain_inode(9))),
            Record::Dirent { dir: Ino(1), name: b"a".to_vec(), target: link },
        ],
        vec![Record::Layout(LayoutDelta {
            private: true,
            added,
            ..LayoutDelta::unchanged(Ino(9))
        })],
        vec![
            Record::Dirent { dir: Ino(1), name: b"a".to_vec(), target: DirentTarget::Whiteout },
            Record::Forget(Ino(9)),
            Record::NextIno(Ino(10)),
        ],
    ]
}

#[test]
fn only_a_whole_closing_frame_tells_lengths() {
    let length = |ino| Record::Length { ino: Ino(ino), bytes: ino * 10 };
    let told = |records: &[Record]| {
        let bytes = frame(1, records);
        let frame = FrameReader::new(&bytes, 1).next().unwrap().unwrap();
        frame.lengths_at_close().map(|lengths| lengths.into_iter().collect::<Vec<_>>())
    };
    assert_eq!(told(&[Record::Closed { files: 0 }]), Some(vec![]));
    let before = Record::NextIno(Ino(3));
    assert_eq!(told(&[before, length(2), Record::Closed { files: 1 }]), Some(vec![(Ino(2), 20)]));
    assert_eq!(told(&[length(2), Record::Closed { files: 2 }]), None);
    assert_eq!(told(&[length(2), Record::Closed { files: 1 }, Record::Forget(Ino(2))]), None);
    assert_eq!(told(&[length(2)]), None);
}

#[test]
fn header_bytes_are_pinned() {
    let boot_id = *b"0123456789abcdef";
    let header = LogHeader { kind: LogKind::Volatile, layer: LayerId(0x0102_0304_0506), boot_id };
    assert_eq!(
        hex(&header.encode()),
        [
            "636f7766736c6f67030000000200000006050403020100003031323334353637",
            "38396162636465660000000000000000000000000000000000000000b43ca61e"
        ]
        .concat()
    );
    assert_eq!(LogHeader::decode(&header.encode()).unwrap(), header);
}

#[test]
fn frame_bytes_are_pinned() {
    let frames = sample_frames();
    assert_eq!(
        hex(&frame(1, &frames[0])),
        [
            "7900000030bbd2d0010000000000000002000000010900000000000000000000",
            "0000000000002000000000000001000000000000000300000000000000050000",
            "0000000000ffffffffffffffff020000000400000006000000ffc99a3b460000",
            "0047000000010000000000000080010100000000000301000000000000000900",
            "000000000000010161"
        ]
        .concat()
    );
    assert_eq!(
        hex(&frame(2, &frames[1])),
        [
            "2200000016a742d7020000000000000001000000040900000000000000ffffff",
            "ffffffffff01010000000200000005000000"
        ]
        .concat()
    );
    assert_eq!(
        hex(&frame(3, &frames[2])),
        [
            "2a00000004deadf3030000000000000003000000030100000000000000000000",
            "0000000000000161020900000000000000050a00000000000000"
        ]
        .concat()
    );
}

#[test]
fn inode_extras_are_pinned() {
    let mut inode = samples::plain_inode(9);
    inode.symlink = b"to".to_vec();
    inode.xattrs = vec![(b"user.k".to_vec(), b"v".to_vec())];
    let mtime = Timestamp { secs: 7, nanos: 8 };
    inode.adopted =
        Some(AdoptedSource { path: b"base/1".to_vec(), host_ino: 5, size: 6, mtime, ctime: mtime });
    let bytes = frame(1, &[Record::Inode(Box::new(inode))]);
    // After frame head, count, tag and core.
    assert_eq!(
        hex(&bytes[16 + 4 + 1 + 96..]),
        [
            "020000000100000001746f0600000001000000757365722e6b76050000000000",
            "0000060000000000000007000000000000000800000007000000000000000800",
            "000006000000626173652f31"
        ]
        .concat()
    );
}

#[test]
fn every_bit_of_a_header_counts() {
    let header = LogHeader { kind: LogKind::Journal, layer: LayerId(7), boot_id: [0; 16] };
    let good = header.encode();
    for bit in 0..good.len() * 8 {
        let mut bad = good;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(LogHeader::decode(&bad).is_err(), "bit {bit}");
    }
    for len in 0..good.len() {
        assert!(matches!(LogHeader::decode(&good[..len]), Err(FormatError::Truncated { .. })));
    }
}

#[test]
fn a_future_header_is_refused_by_its_version() {
    let header = LogHeader { kind: LogKind::Journal, layer: LayerId(7), boot_id: [0; 16] };
    let mut bytes = header.encode();
    bytes[8] = 4;
    let error = LogHeader::decode(&bytes).unwrap_err();
    assert!(matches!(error, FormatError::UnknownVersion { found: 4, supported: 3, .. }));
    assert!(matches!(LogHeader::decode(&[0; 64]), Err(FormatError::BadMagic { .. })));
}

#[test]
fn an_empty_log_is_clean() {
    assert!(matches!(read(b""), (Ok(frames), Tail::Clean) if frames.is_empty()));
}

#[test]
fn a_log_cut_anywhere_has_its_whole_frames_and_a_torn_tail() {
    let frames = sample_frames();
    let (bytes, ends) = log(&frames);
    for len in 0..=bytes.len() {
        let (found, tail) = read(&bytes[..len]);
        let found = found.unwrap();
        let whole = ends.iter().filter(|end| **end <= len).count();
        let records: Vec<_> = found.iter().map(|frame| frame.records.clone()).collect();
        assert_eq!(records, frames[..whole], "cut at {len}");
        let offset = if whole == 0 { 0 } else { ends[whole - 1] };
        let torn = Tail::Torn { offset: offset as u64, bytes: (len - offset) as u64 };
        assert_eq!(tail, if offset == len { Tail::Clean } else { torn }, "cut at {len}");
    }
}

#[test]
fn a_tail_of_zeros_is_torn() {
    let (mut bytes, ends) = log(&sample_frames());
    bytes.extend([0; 5000]);
    let (frames, tail) = read(&bytes);
    assert_eq!(frames.unwrap().len(), 3);
    assert_eq!(tail, Tail::Torn { offset: ends[2] as u64, bytes: 5000 });
}

#[test]
fn a_flipped_bit_is_damage_before_the_last_frame_and_a_torn_tail_in_it() {
    let frames = sample_frames();
    let (good, ends) = log(&frames);
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let (found, tail) = read(&bad);
        if bit / 8 < ends[1] {
            let error = found.unwrap_err();
            assert!(matches!(error, FormatError::DamagedFrame { .. }), "bit {bit}: {error}");
        } else {
            assert_eq!(found.unwrap().len(), 2, "bit {bit}");
            let (offset, bytes) = (ends[1] as u64, (good.len() - ends[1]) as u64);
            assert_eq!(tail, Tail::Torn { offset, bytes }, "bit {bit}");
        }
    }
}

#[test]
fn damage_names_both_frames() {
    let (mut bytes, ends) = log(&sample_frames());
    bytes[ends[0] + 20] ^= 1;
    let (offset, intact_offset) = (ends[0] as u64, ends[1] as u64);
    let error = read(&bytes).0.unwrap_err();
    let FormatError::DamagedFrame { offset: a, intact_offset: b, sequence: 3 } = error else {
        panic!("{error}");
    };
    assert_eq!((a, b), (offset, intact_offset));
}

#[test]
fn an_old_frame_after_a_torn_one_does_not_make_it_damage() {
    // What an earlier, longer life of the log could have left behind a shorter tail.
    let (mut bytes, ends) = log(&sample_frames());
    bytes.extend(&frame(4, &[Record::Forget(Ino(1))])[..20]);
    bytes.extend(frame(2, &[Record::Forget(Ino(1))]));
    let (frames, tail) = read(&bytes);
    assert_eq!(frames.unwrap().len(), 3);
    assert!(matches!(tail, Tail::Torn { offset, .. } if offset == ends[2] as u64));
}

#[test]
fn a_sequence_that_does_not_rise_is_refused() {
    for second in [4, 5] {
        let mut bytes = frame(5, &[]);
        bytes.extend(frame(second, &[]));
        assert!(matches!(read(&bytes).0, Err(FormatError::Corrupt { .. })));
    }
    let mut reader = FrameReader::new(b"", 3);
    assert!(reader.next().is_none());
    let early = frame(2, &[]);
    assert!(matches!(FrameReader::new(&early, 3).next(), Some(Err(FormatError::Corrupt { .. }))));
}

#[test]
fn a_sequence_that_nothing_could_follow_is_refused() {
    let mut bytes = frame(u64::MAX, &[]);
    bytes.extend(frame(u64::MAX, &[]));
    assert!(matches!(read(&bytes).0, Err(FormatError::Corrupt { .. })));
}

#[test]
fn the_reader_says_where_to_go_on() {
    let (bytes, ends) = log(&sample_frames());
    let mut reader = FrameReader::new(&bytes, 1);
    let frames: Vec<_> = reader.by_ref().map(Result::unwrap).collect();
    assert_eq!((reader.next_sequence(), reader.bytes_read()), (4, ends[2] as u64));
    assert_eq!((frames[1].offset, frames[1].end), (ends[0] as u64, ends[1] as u64));
}

#[test]
fn fields_out_of_range_are_brought_into_it_before_they_are_written() {
    let mut inode = samples::plain_inode(9);
    inode.perm = 0o10_0644;
    inode.atime.nanos = u32::MAX;
    let bytes = frame(1, &[Record::Inode(Box::new(inode))]);
    let frames = read(&bytes).0.unwrap();
    let Record::Inode(read) = &frames[0].records[0] else { panic!() };
    assert_eq!((read.perm, read.atime.nanos), (0o644, 999_999_999));
}

#[test]
#[should_panic(expected = "names that cannot be stored")]
fn a_name_that_could_not_be_read_back_is_not_written() {
    let target = DirentTarget::Whiteout;
    frame(1, &[Record::Dirent { dir: Ino(1), name: b"a/b".to_vec(), target }]);
}

proptest! {
    #[test]
    fn frames_come_back_as_written(frames in vec(vec(samples::record(), 0..5), 0..6)) {
        let (found, tail) = read(&log(&frames).0);
        let found: Vec<_> = found.unwrap().into_iter().map(|frame| frame.records).collect();
        prop_assert_eq!(found, frames);
        prop_assert_eq!(tail, Tail::Clean);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in vec(any::<u8>(), 0..300), first: u64) {
        FrameReader::new(&bytes, first).for_each(drop);
        let _ = LogHeader::decode(&bytes);
    }

    #[test]
    fn no_payload_with_a_right_checksum_makes_the_reader_panic(
        records in vec(samples::record(), 1..3),
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = frame(1, &records);
        bytes.truncate(20 + cut.index(bytes.len() - 19));
        let len = bytes.len();
        for (at, value) in edits {
            bytes[16 + at.index(len - 16)] = value;
        }
        bytes[..4].copy_from_slice(&((len - 16) as u32).to_le_bytes());
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        // Whatever is accepted can be written again and means the same.
        if let (Ok(frames), Tail::Clean) = read(&bytes) {
            let again = frame(1, &frames[0].records);
            prop_assert_eq!(&read(&again).0.unwrap()[0].records, &frames[0].records);
        }
    }
}
