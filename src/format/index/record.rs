//! The records of fixed width.

use crate::format::bytes::{Append, Reader};
use crate::format::error::FormatError;
use crate::format::id::{Granule, Ino, LayerId};
use crate::format::inode::InodeRecord;
use crate::format::inode_codec::{CORE_BYTES, decode_core};
use crate::format::layout::OwnedRun;

/// Bytes of an inode: [`InodeEntry`].
pub(super) const INODE_BYTES: usize = 128;
/// Bytes of a directory entry: [`DirentEntry`].
pub(super) const DIRENT_BYTES: usize = 32;
/// Bytes of a run: start u32, length u32, layer u64, data file u64, source u32, zeros u32.
pub(super) const RUN_BYTES: usize = 32;
/// Bytes of a socket: the position of its directory entry, u64.
pub(super) const SOCKET_BYTES: usize = 8;

/// Inode flag: the layer says something about the file's granules.
pub(super) const FLAG_LAYOUT: u8 = 1;
/// Inode flag: that layout is private.
pub(super) const FLAG_PRIVATE: u8 = 2;

/// Names lie below 2^48 bytes: the offset shares a word with length and kind.
pub(super) const NAMES_BYTES_MAX: u64 = 1 << 48;

/// Where an inode's extras and runs lie.
///
/// | at | field | type |
/// | --- | --- | --- |
/// | 0 | core, see `inode_codec.rs`; flags: 1 has a layout, 2 the layout is private | 96 bytes |
/// | 96 | offset in the extras | u64 |
/// | 104 | position of the first run | u64 |
/// | 112 | number of runs | u32 |
/// | 116 | floor | u32 |
/// | 120 | zeros | 8 bytes |
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct InodeLinks {
    pub(super) extra_offset: u64,
    pub(super) run_first: u64,
    pub(super) run_count: u32,
    pub(super) floor: Granule,
}

/// An inode as it lies in the index.
pub(super) struct InodeEntry {
    /// Without its extras.
    pub(super) record: InodeRecord,
    pub(super) flags: u8,
    pub(super) extra_bytes: u32,
    pub(super) links: InodeLinks,
}

pub(super) fn encode_inode(core: &[u8; CORE_BYTES], links: &InodeLinks, out: &mut Vec<u8>) {
    out.put(core);
    out.put_u64(links.extra_offset);
    out.put_u64(links.run_first);
    out.put_u32(links.run_count);
    out.put_u32(links.floor);
    out.put_u64(0);
}

pub(super) fn decode_inode(mut reader: Reader<'_>) -> Result<InodeEntry, FormatError> {
    let core = decode_core(&mut reader)?;
    let links = InodeLinks {
        extra_offset: reader.u64()?,
        run_first: reader.u64()?,
        run_count: reader.u32()?,
        floor: reader.u32()?,
    };
    let (record, flags, extra_bytes) = (core.record, core.flags, core.extra_bytes);
    if flags & !(FLAG_LAYOUT | FLAG_PRIVATE) != 0 {
        return Err(reader.corrupt("inode flags"));
    }
    Ok(InodeEntry { record, flags, extra_bytes, links })
}

/// A directory entry.
///
/// | at | field | type |
/// | --- | --- | --- |
/// | 0 | directory | u64 |
/// | 8 | hash of the name | u64 |
/// | 16 | inode, 0 for a whiteout | u64 |
/// | 24 | bits 0..48: offset in the names; 48..56: name length; 56..64: kind, 0 for a whiteout | u64 |
///
/// Directory and hash come first: a search compares 16 bytes and seldom needs more.
#[derive(Clone, Copy, Debug)]
pub(super) struct DirentEntry {
    pub(super) dir: u64,
    pub(super) hash: u64,
    pub(super) ino: u64,
    pub(super) name_offset: u64,
    pub(super) name_bytes: u8,
    pub(super) kind: u8,
}

impl DirentEntry {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        debug_assert!(self.name_offset < NAMES_BYTES_MAX);
        out.put_u64(self.dir);
        out.put_u64(self.hash);
        out.put_u64(self.ino);
        out.put_u64(
            self.name_offset | u64::from(self.name_bytes) << 48 | u64::from(self.kind) << 56,
        );
    }

    pub(super) fn decode(mut reader: Reader<'_>) -> Result<DirentEntry, FormatError> {
        let (dir, hash, ino) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let name = reader.u64()?;
        Ok(DirentEntry {
            dir,
            hash,
            ino,
            name_offset: name % NAMES_BYTES_MAX,
            name_bytes: (name >> 48) as u8,
            kind: (name >> 56) as u8,
        })
    }
}

pub(super) fn encode_run(run: &OwnedRun, out: &mut Vec<u8>) {
    out.put_u32(run.start);
    out.put_u32(run.len);
    out.put_u64(run.layer.0);
    out.put_u64(run.file.0);
    out.put_u32(run.source);
    out.put_u32(0);
}

pub(super) fn decode_run(reader: &mut Reader<'_>) -> Result<OwnedRun, FormatError> {
    let (start, len) = (reader.u32()?, reader.u32()?);
    let (layer, file) = (LayerId(reader.u64()?), Ino(reader.u64()?));
    let source = reader.u32()?;
    reader.u32()?;
    Ok(OwnedRun { start, len, layer, file, source })
}
