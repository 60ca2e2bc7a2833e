//! The bytes of an inode: a core of fixed width, and extras that few inodes have.
//!
//! Journal records and indexes share both.
//!
//! Core, 96 bytes (8-byte fields first, so that nothing straddles its own alignment):
//!
//! | at | field | type |
//! | --- | --- | --- |
//! | 0 | ino | u64 |
//! | 8 | parent (0 unless a directory) | u64 |
//! | 16 | size in bytes | u64 |
//! | 24 | atime, mtime, ctime, btime: seconds | 4 × i64 |
//! | 56 | atime, mtime, ctime, btime: nanoseconds | 4 × u32 |
//! | 72 | uid | u32 |
//! | 76 | gid | u32 |
//! | 80 | nlink | u32 |
//! | 84 | rdev | u32 |
//! | 88 | perm, at most 0o7777 | u16 |
//! | 90 | kind | u8 |
//! | 91 | flags (0 in a journal) | u8 |
//! | 92 | bytes of extras, 0 for none | u32 |
//!
//! Extras: symlink length u32, xattr count u32, adopted u8 (0 or 1), the symlink's target; for each
//! xattr: name length u32, value length u32, name, value; if adopted: host inode u64, size u64,
//! mtime seconds i64, mtime nanoseconds u32, ctime seconds i64, ctime nanoseconds u32, path length
//! u32, path.

use super::bytes::{Append, Reader};
use super::error::FormatError;
use super::id::Ino;
use super::inode::{AdoptedSource, DirentTarget, FileKind, InodeRecord, Timestamp};

/// Bytes of an inode's core.
pub(super) const CORE_BYTES: usize = 96;

const NANOS_MAX: u32 = 999_999_999;
const PERM_MASK: u16 = 0o7777;

/// An inode's core as read: the record still lacks its extras.
pub(super) struct Core {
    pub(super) record: InodeRecord,
    pub(super) flags: u8,
    pub(super) extra_bytes: u32,
}

/// Appends the core of `record`. Fields out of range are brought into it, so that whatever was
/// written can be read.
pub(super) fn encode_core(
    record: &InodeRecord,
    flags: u8,
    extra_bytes: u32,
    out: &mut impl Append,
) {
    let times = [record.atime, record.mtime, record.ctime, record.btime];
    out.put_u64(record.ino.0);
    out.put_u64(record.parent.0);
    out.put_u64(record.size);
    for time in times {
        out.put_i64(time.secs);
    }
    for time in times {
        out.put_u32(time.nanos.min(NANOS_MAX));
    }
    out.put_u32(record.uid);
    out.put_u32(record.gid);
    out.put_u32(record.nlink);
    out.put_u32(record.rdev);
    out.put_u16(record.perm & PERM_MASK);
    out.put_u8(record.kind as u8);
    out.put_u8(flags);
    out.put_u32(extra_bytes);
}

/// Appends the extras of `record`: nothing at all if it has none. Returns the bytes appended.
pub(super) fn encode_extra(record: &InodeRecord, out: &mut Vec<u8>) -> u32 {
    if record.symlink.is_empty() && record.xattrs.is_empty() && record.adopted.is_none() {
        return 0;
    }
    let before = out.len();
    out.put_u32(record.symlink.len() as u32);
    out.put_u32(record.xattrs.len() as u32);
    out.put_u8(u8::from(record.adopted.is_some()));
    out.put(&record.symlink);
    for (name, value) in &record.xattrs {
        out.put_u32(name.len() as u32);
        out.put_u32(value.len() as u32);
        out.put(name);
        out.put(value);
    }
    if let Some(adopted) = &record.adopted {
        out.put_u64(adopted.host_ino);
        out.put_u64(adopted.size);
        for time in [adopted.mtime, adopted.ctime] {
            out.put_i64(time.secs);
            out.put_u32(time.nanos.min(NANOS_MAX));
        }
        out.put_u32(adopted.path.len() as u32);
        out.put(&adopted.path);
    }
    u32::try_from(out.len() - before).expect("the xattrs of one inode stay far below 4 GiB")
}

/// Reads a core; the extras of its record are empty.
pub(super) fn decode_core(reader: &mut Reader<'_>) -> Result<Core, FormatError> {
    let ino = Ino(reader.u64()?);
    let parent = Ino(reader.u64()?);
    let size = reader.u64()?;
    let secs = [reader.i64()?, reader.i64()?, reader.i64()?, reader.i64()?];
    let mut times = [Timestamp::default(); 4];
    for (time, secs) in times.iter_mut().zip(secs) {
        *time = Timestamp { secs, nanos: nanos(reader)? };
    }
    let [atime, mtime, ctime, btime] = times;
    let (uid, gid) = (reader.u32()?, reader.u32()?);
    let (nlink, rdev) = (reader.u32()?, reader.u32()?);
    let perm = reader.u16()?;
    if perm & !PERM_MASK != 0 {
        return Err(reader.corrupt("permission bits"));
    }
    let kind = reader.u8()?;
    let kind = FileKind::from_byte(kind).ok_or_else(|| reader.corrupt("file kind"))?;
    let flags = reader.u8()?;
    let extra_bytes = reader.u32()?;
    let record = InodeRecord {
        ino,
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
        parent,
        symlink: Vec::new(),
        xattrs: Vec::new(),
        adopted: None,
    };
    Ok(Core { record, flags, extra_bytes })
}

/// Reads extras, all of `reader`, into `record`.
pub(super) fn decode_extra(
    mut reader: Reader<'_>,
    record: &mut InodeRecord,
) -> Result<(), FormatError> {
    let symlink_bytes = reader.u32()? as usize;
    let xattr_count = reader.u32()? as usize;
    let adopted = match reader.u8()? {
        0 => false,
        1 => true,
        _ => return Err(reader.corrupt("adoption mark")),
    };
    record.symlink = reader.take(symlink_bytes)?.to_vec();
    // No capacity in advance: a damaged count must not allocate. Each round reads at least 8 bytes.
    for _ in 0..xattr_count {
        let (name_bytes, value_bytes) = (reader.u32()? as usize, reader.u32()? as usize);
        let name = reader.take(name_bytes)?.to_vec();
        record.xattrs.push((name, reader.take(value_bytes)?.to_vec()));
    }
    if adopted {
        let (host_ino, size) = (reader.u64()?, reader.u64()?);
        let mut time =
            || Ok::<_, FormatError>(Timestamp { secs: reader.i64()?, nanos: nanos(&mut reader)? });
        let (mtime, ctime) = (time()?, time()?);
        let path_bytes = reader.u32()? as usize;
        let path = reader.take(path_bytes)?.to_vec();
        record.adopted = Some(AdoptedSource { path, host_ino, size, mtime, ctime });
    }
    reader.finish()
}

fn nanos(reader: &mut Reader<'_>) -> Result<u32, FormatError> {
    let nanos = reader.u32()?;
    if nanos > NANOS_MAX { Err(reader.corrupt("nanoseconds")) } else { Ok(nanos) }
}

/// The inode and kind byte that stand for `target`: zeros for a whiteout.
pub(super) fn encode_target(target: DirentTarget) -> (u64, u8) {
    match target {
        DirentTarget::Link { ino, kind } => (ino.0, kind as u8),
        DirentTarget::Whiteout => (0, 0),
    }
}

/// What [`encode_target`] was given, or `None` if it never answers so.
pub(super) fn decode_target(ino: u64, kind: u8) -> Option<DirentTarget> {
    if (ino, kind) == (0, 0) {
        return Some(DirentTarget::Whiteout);
    }
    FileKind::from_byte(kind).map(|kind| DirentTarget::Link { ino: Ino(ino), kind })
}
