#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::time::Instant;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::format::FormatError;
use crate::format::inode::{FileKind, InodeRecord};
use crate::format::layout::OwnedRun;
use crate::format::name_hash;
use crate::format::samples::{self, hex};

pub(super) const META: IndexMeta =
    IndexMeta { layer: LayerId(0xabc), lowest_depth: 2, depth: 5, next_ino: Ino(u64::MAX) };

type Dirents = BTreeMap<(u64, Vec<u8>), DirentTarget>;
type Inodes = BTreeMap<u64, (InodeRecord, Option<FileLayout>)>;

pub(super) fn link(ino: u64, kind: FileKind) -> DirentTarget {
    DirentTarget::Link { ino: Ino(ino), kind }
}

pub(super) fn written(builder: IndexBuilder) -> Vec<u8> {
    let mut bytes = Vec::new();
    assert_eq!(builder.write(&mut bytes).unwrap(), bytes.len() as u64);
    bytes
}

pub(super) fn open(bytes: Vec<u8>) -> Result<Index, FormatError> {
    Index::open(Box::new(bytes))
}

/// One file, one removed name and one socket.
pub(super) fn small() -> IndexBuilder {
    let mut builder = IndexBuilder::new(META);
    builder.dirent(Ino(1), b"PG_VERSION", link(9, FileKind::Regular));
    builder.dirent(Ino(1), b".s.PGSQL.5432", link(10, FileKind::Socket));
    builder.dirent(Ino(1), b"postmaster.pid", DirentTarget::Whiteout);
    let run = OwnedRun { start: 1, len: 2, layer: LayerId(3), file: Ino(4), source: 5 };
    let layout = FileLayout { private: true, floor: 8, runs: vec![run] };
    builder.inode(samples::plain_inode(9), Some(layout));
    let symlink = InodeRecord { symlink: b"to".to_vec(), ..samples::plain_inode(10) };
    builder.inode(symlink, None);
    builder
}

fn dirents() -> impl Strategy<Value = Dirents> {
    btree_map((1u64..5, samples::name()), samples::target(), 0..40)
}

fn inodes() -> impl Strategy<Value = Inodes> {
    vec((samples::inode(), option::of(samples::layout())), 0..20).prop_map(|all| {
        let usable = all.into_iter().filter(|(record, _)| record.ino < META.next_ino);
        usable.map(|(record, layout)| (record.ino.0, (record, layout))).collect()
    })
}

fn build(dirents: &Dirents, inodes: &Inodes, backwards: bool) -> Vec<u8> {
    let mut builder = IndexBuilder::new(META);
    let mut names: Vec<_> = dirents.iter().collect();
    let mut files: Vec<_> = inodes.values().cloned().collect();
    if backwards {
        names.reverse();
        files.reverse();
    }
    for ((dir, name), target) in names {
        builder.dirent(Ino(*dir), name, *target);
    }
    for (record, layout) in files {
        builder.inode(record, layout);
    }
    written(builder)
}

#[test]
fn bytes_are_pinned() {
    let bytes = written(small());
    let (inodes, dirents, runs) = (64, 64 + 256, 64 + 256 + 96);
    assert_eq!(
        hex(&bytes[..inodes]),
        [
            "636f77667369647802000000020000000500000000000000bc0a000000000000",
            "ffffffffffffffff0000000000000000000000000000000000000000fbde55f5"
        ]
        .concat()
    );
    assert_eq!(
        hex(&bytes[inodes..inodes + 128]),
        [
            "0900000000000000000000000000000000200000000000000100000000000000",
            "03000000000000000500000000000000ffffffffffffffff0200000004000000",
            "06000000ffc99a3b460000004700000001000000000000008001010300000000",
            "0000000000000000000000000000000001000000080000000000000000000000"
        ]
        .concat()
    );
    assert_eq!(
        hex(&bytes[dirents..dirents + 32]),
        ["0100000000000000b744298db4a8ae0b00000000000000000000000000000e00"].concat()
    );
    assert_eq!(
        hex(&bytes[runs..runs + 32]),
        ["0100000002000000030000000000000004000000000000000500000000000000"].concat()
    );
    assert_eq!(
        hex(&bytes[runs + 32..]),
        [
            "0100000000000000706f73746d61737465722e7069642e732e504753514c2e35",
            "34333250475f56455253494f4e020000000000000000746f700a5fceb8deb831",
            "3ae4e993adcf14c5cc03b22e9635d84f636f776673656e64bc0a000000000000",
            "6802000000000000000100000000000060000000000000002000000000000000",
            "080000000000000025000000000000000b000000000000000600000000000000",
            "397fd7526041c6e0"
        ]
        .concat()
    );
}

#[test]
fn an_empty_index_answers_nothing() {
    let index = open(written(IndexBuilder::new(META))).unwrap();
    assert_eq!(index.meta(), META);
    assert_eq!(index.counts(), IndexCounts { bytes: 152, ..IndexCounts::default() });
    assert_eq!(index.lookup(Ino(1), 3, b"a").unwrap(), None);
    assert_eq!(index.inode(Ino(1)).unwrap(), None);
    assert_eq!(index.entries_after(Ino(1), 0).count(), 0);
    index.verify().unwrap();
}

#[test]
fn names_of_one_hash_are_told_apart() {
    let mut builder = IndexBuilder::new(META);
    for (ino, name) in (1..).zip([&b"m"[..], b"a", b"z"]) {
        builder.dirent_with_hash(Ino(1), 77, name, link(ino, FileKind::Regular));
    }
    builder.dirent_with_hash(Ino(1), 78, b"b", link(4, FileKind::Regular));
    let index = open(written(builder)).unwrap();
    for (ino, name) in (1..).zip([&b"m"[..], b"a", b"z"]) {
        let found = index.lookup(Ino(1), 77, name).unwrap();
        assert_eq!(found, Some(link(ino, FileKind::Regular)));
    }
    for missing in [&b"0"[..], b"b", b"zz"] {
        assert_eq!(index.lookup(Ino(1), 77, missing).unwrap(), None);
    }
    let names: Vec<_> = index.entries_after(Ino(1), 76).map(|entry| entry.unwrap().name).collect();
    assert_eq!(names, [&b"a"[..], b"m", b"z", b"b"]);
    assert_eq!(index.entries_after(Ino(1), 77).count(), 1);
    assert_eq!(index.entries_after(Ino(1), u64::MAX).count(), 0);
    assert!(matches!(index.verify(), Err(FormatError::Corrupt { what: "hash of a name", .. })));
}

#[test]
fn what_must_not_be_written_is_refused_by_name() {
    let refusal = |fill: &dyn Fn(&mut IndexBuilder)| {
        let mut builder = IndexBuilder::new(META);
        fill(&mut builder);
        match builder.write(Vec::new()).unwrap_err() {
            FormatError::Unwritable { what, ino } => (what, ino),
            other => panic!("{other}"),
        }
    };
    let twice = refusal(&|b| {
        b.dirent(Ino(4), b"a", DirentTarget::Whiteout);
        b.dirent(Ino(4), b"a", link(5, FileKind::Regular));
    });
    assert_eq!(twice, ("a name that was added twice", 4));
    let twice = refusal(&|b| {
        b.inode(samples::plain_inode(6), None);
        b.inode(samples::plain_inode(6), None);
    });
    assert_eq!(twice, ("an inode that was added twice", 6));
    let name = refusal(&|b| b.dirent(Ino(7), b"a/b", DirentTarget::Whiteout));
    assert_eq!(name.1, 7);
    let run = OwnedRun { start: 4, len: 2, layer: LayerId(3), file: Ino(4), source: u32::MAX };
    let layout = FileLayout { private: true, floor: 0, runs: vec![run] };
    let overflow = refusal(&|b| b.inode(samples::plain_inode(8), Some(layout.clone())));
    assert_eq!(overflow.1, 8);
}

#[test]
fn a_failing_writer_is_reported() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let error = std::io::Error::from(small().write(Full).unwrap_err());
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
}

proptest! {
    #[test]
    fn agrees_with_maps(dirents in dirents(), inodes in inodes(), miss in samples::name()) {
        let bytes = build(&dirents, &inodes, false);
        prop_assert_eq!(&bytes, &build(&dirents, &inodes, true));
        let index = open(bytes).unwrap();
        index.verify().unwrap();
        for ((dir, name), target) in &dirents {
            prop_assert_eq!(index.lookup(Ino(*dir), name_hash(name), name).unwrap(), Some(*target));
        }
        let expected = dirents.get(&(2, miss.clone())).copied();
        prop_assert_eq!(index.lookup(Ino(2), name_hash(&miss), &miss).unwrap(), expected);
        for (ino, (record, layout)) in &inodes {
            prop_assert_eq!(&index.inode(Ino(*ino)).unwrap().unwrap(), record);
            prop_assert_eq!(&index.layout(Ino(*ino)).unwrap(), layout);
            let next = Ino(ino.wrapping_add(1));
            prop_assert_eq!(index.inode(next).unwrap().is_some(), inodes.contains_key(&next.0));
        }
        let files: Vec<_> = index.files().map(Result::unwrap).collect();
        prop_assert_eq!(files, inodes.into_values().collect::<Vec<_>>());
        let mut sockets: Vec<_> = dirents
            .iter()
            .filter(|(_, target)| matches!(target, DirentTarget::Link { kind: FileKind::Socket, .. }))
            .map(|((dir, name), _)| (Ino(*dir), name.clone()))
            .collect();
        sockets.sort_by_key(|(dir, name)| (*dir, name_hash(name)));
        prop_assert_eq!(index.sockets().unwrap(), sockets);
    }

    #[test]
    fn a_directory_is_listed_from_any_position(dirents in dirents()) {
        let index = open(build(&dirents, &Inodes::new(), false)).unwrap();
        let mut sorted: Vec<_> = dirents.iter().map(|((dir, name), target)| {
            DirEntryRef { dir: Ino(*dir), hash: name_hash(name), name, target: *target }
        }).collect();
        sorted.sort_by_key(|entry| (entry.dir, entry.hash, entry.name));
        let all: Vec<_> = index.dirents().map(Result::unwrap).collect();
        prop_assert_eq!(&all, &sorted);
        for dir in 0..6 {
            for after in sorted.iter().map(|entry| entry.hash).chain([0, 2, u64::MAX]) {
                let wanted = sorted.iter().filter(|e| e.dir == Ino(dir) && e.hash > after);
                let found = index.entries_after(Ino(dir), after).map(Result::unwrap);
                prop_assert!(found.eq(wanted.copied()));
            }
        }
    }
}

/// Run by hand: `cargo test --release -- --ignored --nocapture a_million_files`.
#[test]
#[ignore = "takes seconds and 400 MB"]
fn a_million_files() {
    const FILES: u64 = 1_000_000;
    let start = Instant::now();
    let meta = IndexMeta { next_ino: Ino(2 * FILES), ..META };
    let mut builder = IndexBuilder::new(meta);
    for n in 0..FILES {
        // A stride that is coprime to the count: every file once, in no useful order.
        let ino = 2 + n * 7_654_321 % FILES;
        let name = format!("{ino}_fsm");
        builder.dirent(Ino(1 + ino % 1000), name.as_bytes(), link(ino, FileKind::Regular));
        let file = Ino(ino);
        let run = OwnedRun { start: 0, len: 2, layer: META.layer, file, source: 0 };
        let layout = FileLayout { private: true, floor: 0, runs: vec![run] };
        builder.inode(samples::plain_inode(ino), Some(layout));
    }
    println!("filled after {:?}", start.elapsed());
    let bytes = written(builder);
    println!("written after {:?}: {} bytes", start.elapsed(), bytes.len());
    let start = Instant::now();
    let index = open(bytes).unwrap();
    let open_time = start.elapsed();
    println!("opened in {open_time:?}");
    assert!(open_time.as_millis() < 20);
    for round in ["cold", "warm"] {
        let start = Instant::now();
        for n in 0..100_000 {
            let ino = 2 + n * 1_234_567 % FILES;
            let name = format!("{ino}_fsm");
            let found =
                index.lookup(Ino(1 + ino % 1000), name_hash(name.as_bytes()), name.as_bytes());
            assert_eq!(found.unwrap(), Some(link(ino, FileKind::Regular)));
        }
        println!("lookup ({round}): {:?} each", start.elapsed() / 100_000);
    }
    let start = Instant::now();
    index.verify().unwrap();
    println!("verified in {:?}", start.elapsed());
}
