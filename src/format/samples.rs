//! Random values for the property tests of the formats.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::id::{Ino, LayerId};
use super::inode::{AdoptedSource, DirentTarget, FileKind, InodeRecord, Timestamp};
use super::journal::Record;
use super::layout::{FileLayout, GranuleRange, LayoutDelta, OwnedRun};
use super::name_hash::name_is_valid;

pub fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => "[0-9]{1,6}(_(fsm|vm))?".prop_map(String::into_bytes),
        3 => vec(any::<u8>(), 1..20),
        1 => vec(1u8..=255, 255..=255),
    ]
    .prop_map(|mut name| {
        name.iter_mut().filter(|b| **b == 0 || **b == b'/').for_each(|b| *b = b'_');
        if name_is_valid(&name) { name } else { b"dots".to_vec() }
    })
}

pub fn kind() -> impl Strategy<Value = FileKind> {
    (1u8..=7).prop_map(|byte| FileKind::from_byte(byte).unwrap())
}

pub fn target() -> impl Strategy<Value = DirentTarget> {
    prop_oneof![
        1 => Just(DirentTarget::Whiteout),
        4 => (1u64.., kind()).prop_map(|(ino, kind)| DirentTarget::Link { ino: Ino(ino), kind }),
    ]
}

fn timestamp() -> impl Strategy<Value = Timestamp> {
    (any::<i64>(), 0u32..1_000_000_000).prop_map(|(secs, nanos)| Timestamp { secs, nanos })
}

fn adopted() -> impl Strategy<Value = AdoptedSource> {
    (vec(any::<u8>(), 0..30), any::<u64>(), any::<u64>(), timestamp(), timestamp()).prop_map(
        |(path, host_ino, size, mtime, ctime)| AdoptedSource { path, host_ino, size, mtime, ctime },
    )
}

pub fn inode() -> impl Strategy<Value = InodeRecord> {
    let numbers = any::<(u64, u32, u32, u32, u32, u64, u64)>();
    let times = (timestamp(), timestamp(), timestamp(), timestamp());
    let xattrs = vec((name(), vec(any::<u8>(), 0..40)), 0..3);
    let extras =
        (prop_oneof![Just(Vec::new()), vec(any::<u8>(), 0..40)], xattrs, option::of(adopted()));
    (numbers, kind(), 0u16..=0o7777, times, extras).prop_map(|(n, kind, perm, times, extras)| {
        let (ino, uid, gid, nlink, rdev, size, parent) = n;
        let (atime, mtime, ctime, btime) = times;
        let (symlink, xattrs, adopted) = extras;
        InodeRecord {
            ino: Ino(ino),
            kind,
            perm,
            uid,
            gid,
            nlink,
            rdev,
            size,
            atime,
            mtime,
            ctime,
            btime,
            parent: Ino(parent),
            symlink,
            xattrs,
            adopted,
        }
    })
}

/// Ascending, disjoint (start, length) pairs; some touch.
fn pieces() -> impl Strategy<Value = Vec<(u32, u32)>> {
    vec((0u32..1000, 1u32..1000), 0..5).prop_map(|steps| {
        let mut at = 0;
        let place = |(gap, len)| {
            let start = at + gap;
            at = start + len;
            (start, len)
        };
        steps.into_iter().map(place).collect()
    })
}

pub fn layout() -> impl Strategy<Value = FileLayout> {
    (any::<bool>(), any::<u32>(), pieces(), 1u64.., 1u64.., 0u32..100).prop_map(
        |(private, floor, pieces, layer, file, shift)| {
            let (layer, file) = (LayerId(layer), Ino(file));
            let run = |(start, len)| OwnedRun { start, len, layer, file, source: start + shift };
            FileLayout { private, floor, runs: pieces.into_iter().map(run).collect() }
        },
    )
}

fn delta() -> impl Strategy<Value = LayoutDelta> {
    (any::<(u64, bool, u32, u32)>(), pieces(), layout()).prop_map(
        |((ino, private, floor, cut), pieces, other)| {
            let range = |(start, len)| GranuleRange { start, end: start + len };
            let added = pieces.into_iter().map(range).collect();
            LayoutDelta { ino: Ino(ino), private, floor, cut, added, borrowed: other.runs }
        },
    )
}

pub fn record() -> impl Strategy<Value = Record> {
    prop_oneof![
        inode().prop_map(|inode| Record::Inode(Box::new(inode))),
        any::<u64>().prop_map(|ino| Record::Forget(Ino(ino))),
        (any::<u64>(), name(), target()).prop_map(|(dir, name, target)| Record::Dirent {
            dir: Ino(dir),
            name,
            target
        }),
        delta().prop_map(Record::Layout),
        any::<u64>().prop_map(|ino| Record::NextIno(Ino(ino))),
        any::<(u64, u64)>().prop_map(|(ino, bytes)| Record::Length { ino: Ino(ino), bytes }),
        any::<u64>().prop_map(|files| Record::Closed { files }),
        any::<(u64, u64)>().prop_map(|(ino, bytes)| Record::Lost { ino: Ino(ino), bytes }),
    ]
}

/// A plain inode for tests that pin bytes.
pub fn plain_inode(ino: u64) -> InodeRecord {
    let time = |secs, nanos| Timestamp { secs, nanos };
    InodeRecord {
        ino: Ino(ino),
        kind: FileKind::Regular,
        perm: 0o600,
        uid: 70,
        gid: 71,
        nlink: 1,
        rdev: 0,
        size: 8192,
        atime: time(1, 2),
        mtime: time(3, 4),
        ctime: time(5, 6),
        btime: time(-1, 999_999_999),
        parent: Ino(0),
        symlink: Vec::new(),
        xattrs: Vec::new(),
        adopted: None,
    }
}

/// Lower-case hex, for comparisons that show what changed.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}
