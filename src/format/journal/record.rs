//! One change of a layer, as its logs hold it.

use crate::format::bytes::{Append, Reader};
use crate::format::error::FormatError;
use crate::format::id::{Granule, Ino, LayerId};
use crate::format::inode::{DirentTarget, InodeRecord};
use crate::format::inode_codec::{
    decode_core, decode_extra, decode_target, encode_core, encode_extra, encode_target,
};
use crate::format::layout::{GranuleRange, LayoutDelta, OwnedRun, runs_are_sound};
use crate::format::name_hash::name_is_valid;

const TAG_INODE: u8 = 1;
const TAG_FORGET: u8 = 2;
const TAG_DIRENT: u8 = 3;
const TAG_LAYOUT: u8 = 4;
const TAG_NEXT_INO: u8 = 5;
const TAG_LENGTH: u8 = 6;
const TAG_CLOSED: u8 = 7;
const TAG_LOST: u8 = 8;

const LAYOUT_PRIVATE: u8 = 1;
const LAYOUT_BORROWS: u8 = 2;
const RANGE_BYTES: usize = 8;
const RUN_BYTES: usize = 28;

/// A resulting state (not a step), so that replaying a record twice is harmless.
///
/// | tag u8 | record | bytes after the tag |
/// | --- | --- | --- |
/// | 1 | `Inode` | core (96 bytes) and extras, see `inode_codec.rs` |
/// | 2 | `Forget` | ino u64 |
/// | 3 | `Dirent` | dir u64, ino u64, kind u8, name length u8, name; ino 0 and kind 0: whiteout |
/// | 4 | `Layout` | ino u64, floor u32, cut u32, flags u8 (1 private, 2 borrows), count u32, per range: start u32, end u32; if it borrows: count u32, per run: start u32, length u32, layer u64, file u64, source u32 |
/// | 5 | `NextIno` | ino u64 |
/// | 6 | `Length` | ino u64, bytes u64 |
/// | 7 | `Closed` | files u64 |
/// | 8 | `Lost` | ino u64, bytes u64 |
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// The inode is now so.
    Inode(Box<InodeRecord>),
    /// The inode is gone; this layer no longer says anything about it.
    Forget(Ino),
    /// A name in a directory leads there now, or nowhere.
    Dirent {
        /// The directory.
        dir: Ino,
        /// The name; must satisfy [`name_is_valid`].
        name: Vec<u8>,
        /// Where it leads.
        target: DirentTarget,
    },
    /// The layer's ownership of a file changed.
    Layout(LayoutDelta),
    /// Inode numbers below this one have been given out.
    NextIno(Ino),
    /// The layer's data file of that inode has so many bytes. See [`Record::Closed`].
    Length {
        /// The file.
        ino: Ino,
        /// Bytes; 0 also of a file that has no data file.
        bytes: u64,
    },
    /// The layer was left in order. The last record of a journal's last frame, which says the
    /// lengths of all `files` data files: until somebody takes the layer up again, they stay so.
    Closed {
        /// [`Record::Length`]s in the same frame.
        files: u64,
    },
    /// The layer's data file of that inode had so many bytes, and was found otherwise: until it is
    /// put back, or the inode forgotten, nobody gets at its contents.
    Lost {
        /// The file.
        ino: Ino,
        /// Bytes that it had.
        bytes: u64,
    },
}

impl Record {
    /// Appends the record.
    ///
    /// # Panics
    /// If a name is not valid or ranges are out of order: the record could not be read back, so it
    /// must not be acknowledged.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Record::Inode(inode) => encode_inode(inode, out),
            Record::Forget(ino) => {
                out.put_u8(TAG_FORGET);
                out.put_u64(ino.0);
            }
            Record::Dirent { dir, name, target } => {
                assert!(name_is_valid(name), "the caller refuses names that cannot be stored");
                let (ino, kind) = encode_target(*target);
                out.put_u8(TAG_DIRENT);
                out.put_u64(dir.0);
                out.put_u64(ino);
                out.put_u8(kind);
                out.put_u8(name.len() as u8);
                out.put(name);
            }
            Record::Layout(delta) => encode_layout(delta, out),
            Record::NextIno(ino) => {
                out.put_u8(TAG_NEXT_INO);
                out.put_u64(ino.0);
            }
            Record::Length { ino, bytes } => {
                out.put_u8(TAG_LENGTH);
                out.put_u64(ino.0);
                out.put_u64(*bytes);
            }
            Record::Closed { files } => {
                out.put_u8(TAG_CLOSED);
                out.put_u64(*files);
            }
            Record::Lost { ino, bytes } => {
                out.put_u8(TAG_LOST);
                out.put_u64(ino.0);
                out.put_u64(*bytes);
            }
        }
    }

    /// Reads the next record.
    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Record, FormatError> {
        match reader.u8()? {
            TAG_INODE => decode_inode(reader),
            TAG_FORGET => Ok(Record::Forget(Ino(reader.u64()?))),
            TAG_DIRENT => decode_dirent(reader),
            TAG_LAYOUT => decode_layout(reader),
            TAG_NEXT_INO => Ok(Record::NextIno(Ino(reader.u64()?))),
            TAG_LENGTH => Ok(Record::Length { ino: Ino(reader.u64()?), bytes: reader.u64()? }),
            TAG_CLOSED => Ok(Record::Closed { files: reader.u64()? }),
            TAG_LOST => Ok(Record::Lost { ino: Ino(reader.u64()?), bytes: reader.u64()? }),
            _ => Err(reader.corrupt("record tag")),
        }
    }
}

fn encode_inode(inode: &InodeRecord, out: &mut Vec<u8>) {
    let mut extra = Vec::new();
    let extra_bytes = encode_extra(inode, &mut extra);
    out.put_u8(TAG_INODE);
    encode_core(inode, 0, extra_bytes, out);
    out.put(&extra);
}

fn decode_inode(reader: &mut Reader<'_>) -> Result<Record, FormatError> {
    let core = decode_core(reader)?;
    if core.flags != 0 {
        return Err(reader.corrupt("inode flags"));
    }
    let mut record = core.record;
    if core.extra_bytes > 0 {
        let offset = reader.offset();
        let extra = reader.take(core.extra_bytes as usize)?;
        decode_extra(Reader::new(extra, offset, "inode record"), &mut record)?;
    }
    Ok(Record::Inode(Box::new(record)))
}

fn decode_dirent(reader: &mut Reader<'_>) -> Result<Record, FormatError> {
    let dir = Ino(reader.u64()?);
    let (ino, kind) = (reader.u64()?, reader.u8()?);
    let target = decode_target(ino, kind).ok_or_else(|| reader.corrupt("entry target"))?;
    let name_bytes = reader.u8()?;
    let name = reader.take(usize::from(name_bytes))?.to_vec();
    if !name_is_valid(&name) {
        return Err(reader.corrupt("name"));
    }
    Ok(Record::Dirent { dir, name, target })
}

fn encode_layout(delta: &LayoutDelta, out: &mut Vec<u8>) {
    out.put_u8(TAG_LAYOUT);
    out.put_u64(delta.ino.0);
    out.put_u32(delta.floor);
    out.put_u32(delta.cut);
    let borrows = !delta.borrowed.is_empty();
    let private = if delta.private { LAYOUT_PRIVATE } else { 0 };
    out.put_u8(private | if borrows { LAYOUT_BORROWS } else { 0 });
    out.put_u32(u32::try_from(delta.added.len()).expect("disjoint ranges of u32 granules"));
    let mut free_from: Granule = 0;
    for range in &delta.added {
        assert!(
            free_from <= range.start && range.start < range.end,
            "the caller records ranges in order, disjoint and not empty"
        );
        free_from = range.end;
        out.put_u32(range.start);
        out.put_u32(range.end);
    }
    if borrows {
        out.put_u32(u32::try_from(delta.borrowed.len()).expect("disjoint runs of u32 granules"));
    }
    for run in &delta.borrowed {
        out.put_u32(run.start);
        out.put_u32(run.len);
        out.put_u64(run.layer.0);
        out.put_u64(run.file.0);
        out.put_u32(run.source);
    }
}

fn decode_layout(reader: &mut Reader<'_>) -> Result<Record, FormatError> {
    let ino = Ino(reader.u64()?);
    let (floor, cut) = (reader.u32()?, reader.u32()?);
    let flags = reader.u8()?;
    if flags & !(LAYOUT_PRIVATE | LAYOUT_BORROWS) != 0 {
        return Err(reader.corrupt("layout flags"));
    }
    let private = flags & LAYOUT_PRIVATE != 0;
    let count = reader.count(RANGE_BYTES)?;
    let mut added = Vec::with_capacity(count);
    let mut free_from: Granule = 0;
    for _ in 0..count {
        let (start, end) = (reader.u32()?, reader.u32()?);
        if start < free_from || start >= end {
            return Err(reader.corrupt("granule range"));
        }
        free_from = end;
        added.push(GranuleRange { start, end });
    }
    let borrowed = if flags & LAYOUT_BORROWS != 0 { decode_runs(reader)? } else { Vec::new() };
    Ok(Record::Layout(LayoutDelta { ino, private, floor, cut, added, borrowed }))
}

fn decode_runs(reader: &mut Reader<'_>) -> Result<Vec<OwnedRun>, FormatError> {
    let count = reader.count(RUN_BYTES)?;
    let mut runs = Vec::with_capacity(count);
    for _ in 0..count {
        let (start, len) = (reader.u32()?, reader.u32()?);
        let (layer, file) = (LayerId(reader.u64()?), Ino(reader.u64()?));
        runs.push(OwnedRun { start, len, layer, file, source: reader.u32()? });
    }
    if runs_are_sound(&runs) { Ok(runs) } else { Err(reader.corrupt("borrowed runs")) }
}
