//! Bytes to structs and back: the on-disk formats, pure, without I/O.
//!
//! Every layout is written once, at its type; docs/FORMAT.md links here. All integers are
//! little-endian and of fixed width. Bytes from the disk are never trusted: whatever they hold, the
//! answer is a value or a [`FormatError`], never a panic.
#![deny(clippy::indexing_slicing)]

mod bytes;
mod counted;
pub mod error;
pub mod id;
pub mod index;
pub mod inode;
mod inode_codec;
pub mod journal;
pub mod layout;
pub mod name_hash;
#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod samples;
pub mod sums;

pub use counted::{abbreviated, counted};
pub use error::FormatError;
pub use id::{BranchId, GRANULE_BYTES, Granule, Ino, LayerId};
pub use index::{DirEntryRef, Index, IndexBuilder, IndexBytes, IndexCounts, IndexMeta};
pub use inode::{AdoptedSource, DirentTarget, FileKind, InodeRecord, Timestamp};
pub use journal::{Frame, FrameReader, LogHeader, LogKind, Record, Tail, encode_frame};
pub use layout::{FileLayout, GranuleRange, LayoutDelta, OwnedRun};
pub use name_hash::{NAME_BYTES_MAX, name_hash};
