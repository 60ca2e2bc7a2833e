//! The index of a sealed layer: everything that it says about names, inodes and granules, sorted.
//!
//! An index is written once, then mapped and searched in place. Opening one reads its header, its
//! footer and its checksum table, however many entries it has.
//!
//! | part | bytes | order |
//! | --- | --- | --- |
//! | header | 64 | |
//! | inodes | 128 each | by inode |
//! | dirents | 32 each | by (directory, hash of the name, name) |
//! | runs | 32 each | by file, then granule |
//! | sockets | 8 each: position in the dirents | as the dirents |
//! | names | names of dirents, back to back | as the dirents |
//! | extras | symlinks, xattrs, adopted paths | as the inodes |
//! | checksums | CRC32C per 64 KiB block of each section (a section's last block may be shorter) | |
//! | footer | 88 | |
//!
//! There is no padding: every byte is covered by one checksum. Records of fixed width never straddle
//! a block, because their widths divide 64 KiB. A block is verified when it is first used.

mod blocks;
mod build;
mod entries;
mod envelope;
mod read;
mod record;
mod verify;

use std::ops::Deref;

use super::id::{Ino, LayerId};
use super::inode::DirentTarget;

pub use super::layout::FileLayout;
pub use build::IndexBuilder;
pub use read::Index;

/// The bytes of an index: a mapping of its file, or memory.
pub type IndexBytes = Box<dyn Deref<Target = [u8]> + Send + Sync>;

/// What an index is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexMeta {
    /// The layer, or the topmost layer of a merged index.
    pub layer: LayerId,
    /// Depth in its chain of the lowest layer that is merged in; `depth` for a single layer.
    pub lowest_depth: u32,
    /// Depth of `layer` in its chain; 0 is the base.
    pub depth: u32,
    /// Every inode number of the layer and those below it is lower than this one.
    pub next_ino: Ino,
}

/// How many entries an index has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct IndexCounts {
    /// Inodes.
    pub inodes: u64,
    /// Directory entries, whiteouts included.
    pub dirents: u64,
    /// Runs of owned granules.
    pub runs: u64,
    /// Directory entries that lead to sockets.
    pub sockets: u64,
    /// Bytes of the whole index.
    pub bytes: u64,
}

/// One entry of a directory, as it lies in the index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirEntryRef<'a> {
    /// The directory.
    pub dir: Ino,
    /// [`name_hash`](super::name_hash()) of the name.
    pub hash: u64,
    /// The name.
    pub name: &'a [u8],
    /// Where it leads.
    pub target: DirentTarget,
}

/// The sections, in the order of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Section {
    Inodes,
    Dirents,
    Runs,
    Sockets,
    Names,
    Extras,
}

impl Section {
    const ALL: [Section; 6] = [
        Section::Inodes,
        Section::Dirents,
        Section::Runs,
        Section::Sockets,
        Section::Names,
        Section::Extras,
    ];

    /// Its name in error messages.
    fn name(self) -> &'static str {
        match self {
            Section::Inodes => "index inodes",
            Section::Dirents => "index dirents",
            Section::Runs => "index runs",
            Section::Sockets => "index sockets",
            Section::Names => "index names",
            Section::Extras => "index extras",
        }
    }

    /// Bytes per record; 1 for sections of variable records.
    fn width(self) -> u64 {
        match self {
            Section::Inodes => record::INODE_BYTES as u64,
            Section::Dirents => record::DIRENT_BYTES as u64,
            Section::Runs => record::RUN_BYTES as u64,
            Section::Sockets => record::SOCKET_BYTES as u64,
            Section::Names | Section::Extras => 1,
        }
    }
}

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod tests;
