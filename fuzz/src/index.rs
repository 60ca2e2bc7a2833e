//! The index of a layer: opening, searching, walking, verifying; and writing it anew.

use super::heal_index;
use cowfs::format::{DirentTarget, FileLayout, Index, IndexBuilder, Ino, InodeRecord};

/// One input.
pub fn run(data: &[u8]) {
    examine(data);
    if let Some(healed) = heal_index(data) {
        examine(&healed);
    }
}

type Said = (Vec<(Ino, Vec<u8>, DirentTarget)>, Vec<(InodeRecord, Option<FileLayout>)>);

fn open(bytes: &[u8]) -> Option<Index> {
    Index::open(Box::new(bytes.to_vec())).ok()
}

fn examine(bytes: &[u8]) {
    let Some(index) = open(bytes) else { return };
    // Whatever is wrong with it, asking is safe.
    let _ = index.sockets();
    for entry in index.dirents().flatten() {
        let _ = index.lookup(entry.dir, entry.hash, entry.name);
        let _ = index.entries_after(entry.dir, entry.hash).take(8).count();
    }
    for (record, _) in index.files().flatten() {
        let _ = (index.inode(record.ino), index.layout(record.ino));
    }
    for ino in [0, 1, 2, u64::MAX].map(Ino) {
        let _ = (index.inode(ino), index.layout(ino), index.lookup(ino, u64::MAX, b"x"));
    }
    if index.verify().is_ok() {
        is_consistent(&index);
    }
}

fn all_of(index: &Index) -> Said {
    let name = |e: cowfs::format::DirEntryRef<'_>| (e.dir, e.name.to_vec(), e.target);
    let names = index.dirents().map(|entry| entry.map(name));
    (
        names.collect::<Result<_, _>>().expect("verified names"),
        index.files().collect::<Result<_, _>>().expect("verified inodes"),
    )
}

/// A verified index answers every question, finds all that it lists, and can be written again.
fn is_consistent(index: &Index) {
    let said = all_of(index);
    let mut builder = IndexBuilder::new(index.meta());
    for (dir, name, target) in &said.0 {
        let hash = cowfs::format::name_hash(name);
        assert_eq!(index.lookup(*dir, hash, name).expect("a verified index"), Some(*target));
        builder.dirent(*dir, name, *target);
    }
    for (record, layout) in &said.1 {
        assert_eq!(index.inode(record.ino).expect("a verified index").as_ref(), Some(record));
        assert_eq!(&index.layout(record.ino).expect("a verified index"), layout);
        builder.inode(record.clone(), layout.clone());
    }
    assert_eq!(index.sockets().expect("a verified index").len() as u64, index.counts().sockets);
    let mut bytes = Vec::new();
    builder.write(&mut bytes).expect("what was verified can be written");
    let again = open(&bytes).expect("what was written opens");
    again.verify().expect("what was written is sound");
    assert_eq!((again.meta(), all_of(&again)), (index.meta(), said));
}
