//! One request: from its bytes to a call, and from the answer to bytes.

use std::time::Instant;

use fuser::Errno;

use super::super::calls::{Answer, Calls, Write};
use super::super::convert::{FOREVER, kind_from_mode, permissions, type_number};
use super::super::metrics::Kind;
use super::wire::{Fields, InHeader, Writer};
use crate::format::{FileKind, Ino};
use crate::fs::attr::{Attributes, SetAttributes};
use crate::fs::dir::DirLine;
use crate::fs::names::NewFile;
use crate::fs::{Caller, now};
use crate::layer::sync::Durable;

/// `enum fuse_opcode`, as far as it is answered; the rest is ENOSYS, and the kernel does without.
mod opcode {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const READLINK: u32 = 5;
    pub(super) const SYMLINK: u32 = 6;
    pub(super) const MKNOD: u32 = 8;
    pub(super) const MKDIR: u32 = 9;
    pub(super) const UNLINK: u32 = 10;
    pub(super) const RMDIR: u32 = 11;
    pub(super) const RENAME: u32 = 12;
    pub(super) const LINK: u32 = 13;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const SETXATTR: u32 = 21;
    pub(super) const GETXATTR: u32 = 22;
    pub(super) const LISTXATTR: u32 = 23;
    pub(super) const REMOVEXATTR: u32 = 24;
    pub(super) const OPENDIR: u32 = 27;
    pub(super) const READDIR: u32 = 28;
    pub(super) const RELEASEDIR: u32 = 29;
    pub(super) const FSYNCDIR: u32 = 30;
    pub(super) const CREATE: u32 = 35;
    pub(super) const DESTROY: u32 = 38;
    pub(super) const FALLOCATE: u32 = 43;
    pub(super) const RENAME2: u32 = 45;
    pub(super) const LSEEK: u32 = 46;
    pub(super) const COPY_FILE_RANGE: u32 = 47;
}

/// `FUSE_WRITE_CACHE`: the data come out of the page cache.
const WRITE_CACHE: u32 = 1;
/// `FOPEN_KEEP_CACHE`.
const KEEP_CACHE: u32 = 1 << 1;

/// A request in the buffers of a slot.
pub(super) struct Incoming<'a> {
    pub(super) header: InHeader,
    /// What is fixed for the operation.
    pub(super) fixed: &'a [u8],
    /// Names or data; the answer goes into the same place.
    pub(super) payload: &'a mut [u8],
    /// Bytes of it that belong to the request.
    pub(super) payload_len: usize,
}

/// Answers a request; gives the length of the answer, which lies in the payload then.
pub(super) fn answer(calls: &Calls, request: Incoming<'_>) -> Answer<usize> {
    let Incoming { header, fixed, payload, payload_len } = request;
    let node = Ino(header.node);
    let fixed = Fields(fixed);
    let payload_len = payload_len.min(payload.len());
    match header.opcode {
        opcode::READ => {
            let size = (fixed.u32(16) as usize).min(payload.len());
            let open_flags = fixed.u32(32).cast_signed();
            calls.read(node, fixed.u64(8), open_flags, &mut payload[..size])
        }
        opcode::WRITE => {
            let size = (fixed.u32(16) as usize).min(payload_len);
            let write = Write {
                ino: node,
                offset: fixed.u64(8),
                data: &payload[..size],
                from_cache: fixed.u32(20) & WRITE_CACHE != 0,
                open_flags: fixed.u32(32).cast_signed(),
            };
            calls.write(&write)?;
            Ok(written(payload, size as u32))
        }
        opcode::FSYNC => calls.sync(node).map(|Durable { .. }| 0),
        opcode::FSYNCDIR => calls.sync_dir().map(|Durable { .. }| 0),
        opcode::GETATTR => Ok(attr_out(payload, &calls.attributes(node)?)),
        opcode::SETATTR => Ok(attr_out(payload, &calls.set_attributes(node, to_set(&fixed))?)),
        opcode::READLINK => {
            let target = calls.read_link(node)?;
            Ok(Writer::new(payload).bytes(&target).len())
        }
        opcode::FALLOCATE => {
            let mode = fixed.u32(24).cast_signed();
            calls.allocate(node, fixed.u64(8), fixed.u64(16), mode).map(|()| 0)
        }
        opcode::COPY_FILE_RANGE => {
            let (from, to) = ((node, fixed.u64(8)), (Ino(fixed.u64(16)), fixed.u64(32)));
            let copied = calls.copy(from, to, fixed.u64(40))?;
            Ok(written(payload, copied))
        }
        opcode::STATFS => statfs_out(calls, payload),
        opcode::READDIR => {
            let lines = calls.list(node, fixed.u64(8))?;
            let size = (fixed.u32(16) as usize).min(payload.len());
            Ok(dir_out(&mut payload[..size], &lines))
        }
        // Directories need no handles.
        opcode::OPENDIR => Ok(Writer::new(payload).u64(0).u64(0).len()),
        opcode::RELEASE | opcode::RELEASEDIR | opcode::DESTROY => Ok(0),
        // See `Adapter::open` and `Adapter::lseek`.
        opcode::OPEN => refused(calls, Kind::Open),
        opcode::LSEEK => refused(calls, Kind::Lseek),
        opcode::SETXATTR | opcode::GETXATTR | opcode::LISTXATTR | opcode::REMOVEXATTR => {
            xattr(calls, header.opcode, node, &fixed, payload, payload_len)
        }
        _ => named(calls, &header, &fixed, payload, payload_len),
    }
}

fn refused(calls: &Calls, kind: Kind) -> Answer<usize> {
    calls.metrics.count(kind, Instant::now(), 0);
    Err(Errno::ENOSYS)
}

/// Requests that come with names.
fn named(
    calls: &Calls,
    header: &InHeader,
    fixed: &Fields<'_>,
    payload: &mut [u8],
    payload_len: usize,
) -> Answer<usize> {
    let (first, second) = two_strings(&payload[..payload_len]);
    let dir = Ino(header.node);
    let caller = Caller { uid: header.uid, gid: header.gid };
    let make = |request, kind, mode, rdev| {
        let new = NewFile { kind, perm: permissions(mode), rdev, symlink: second };
        calls.make(request, dir, first, &new, caller)
    };
    let made = match header.opcode {
        opcode::LOOKUP => calls.lookup(dir, first)?,
        opcode::MKNOD => {
            let kind = kind_from_mode(fixed.u32(0)).ok_or(Errno::EINVAL)?;
            Some(make("mknod", kind, fixed.u32(0), fixed.u32(4))?)
        }
        opcode::MKDIR => Some(make("mkdir", FileKind::Directory, fixed.u32(0), 0)?),
        opcode::SYMLINK => {
            // The name comes first here, the target behind it.
            Some(make("symlink", FileKind::Symlink, 0o777, 0)?)
        }
        opcode::CREATE => {
            let made = make("create", FileKind::Regular, fixed.u32(4), 0)?;
            let mut out = Writer::new(payload);
            return Ok(entry_out(&mut out, Some(&made)).u64(0).u32(KEEP_CACHE).u32(0).len());
        }
        opcode::LINK => Some(calls.link(Ino(fixed.u64(0)), dir, first)?),
        opcode::UNLINK => return calls.unlink(dir, first).map(|()| 0),
        opcode::RMDIR => return calls.rmdir(dir, first).map(|()| 0),
        opcode::RENAME => {
            return calls.rename((dir, first), (Ino(fixed.u64(0)), second), 0).map(|()| 0);
        }
        opcode::RENAME2 => {
            let to = (Ino(fixed.u64(0)), second);
            return calls.rename((dir, first), to, fixed.u32(8)).map(|()| 0);
        }
        _ => return Err(Errno::ENOSYS),
    };
    Ok(entry_out(&mut Writer::new(payload), made.as_ref()).len())
}

fn xattr(
    calls: &Calls,
    operation: u32,
    node: Ino,
    fixed: &Fields<'_>,
    payload: &mut [u8],
    payload_len: usize,
) -> Answer<usize> {
    let strings = &payload[..payload_len];
    let (name, _) = two_strings(strings);
    let size = fixed.u32(0) as usize;
    let value = match operation {
        opcode::SETXATTR => {
            let value = strings.get(name.len() + 1..).unwrap_or_default();
            let value = value.get(..size).ok_or(Errno::EINVAL)?;
            return calls.set_xattr(node, name, value, fixed.u32(4).cast_signed()).map(|()| 0);
        }
        opcode::REMOVEXATTR => return calls.remove_xattr(node, name).map(|()| 0),
        opcode::LISTXATTR => calls.list_xattrs(node)?,
        _ => calls.get_xattr(node, name)?,
    };
    match size {
        0 => Ok(Writer::new(payload).u32(value.len() as u32).u32(0).len()),
        _ if value.len() > size => Err(Errno::ERANGE),
        _ => Ok(Writer::new(payload).bytes(&value).len()),
    }
}

/// The first one or two of strings that end with a zero byte each.
fn two_strings(bytes: &[u8]) -> (&[u8], &[u8]) {
    let mut strings = bytes.split(|byte| *byte == 0);
    (strings.next().unwrap_or_default(), strings.next().unwrap_or_default())
}

/// `struct fuse_setattr_in`.
fn to_set(fixed: &Fields<'_>) -> SetAttributes {
    use crate::format::Timestamp;
    const MODE: u32 = 1;
    const UID: u32 = 1 << 1;
    const GID: u32 = 1 << 2;
    const SIZE: u32 = 1 << 3;
    const ATIME: u32 = 1 << 4;
    const MTIME: u32 = 1 << 5;
    const ATIME_NOW: u32 = 1 << 7;
    const MTIME_NOW: u32 = 1 << 8;
    const CTIME: u32 = 1 << 10;
    let valid = fixed.u32(0);
    let given = |bit: u32| valid & bit != 0;
    let at =
        |secs, nanos| Timestamp { secs: fixed.u64(secs).cast_signed(), nanos: fixed.u32(nanos) };
    let time = |bit, now_bit, secs, nanos| {
        given(bit).then(|| if given(now_bit) { now() } else { at(secs, nanos) })
    };
    SetAttributes {
        perm: given(MODE).then(|| permissions(fixed.u32(68))),
        uid: given(UID).then(|| fixed.u32(76)),
        gid: given(GID).then(|| fixed.u32(80)),
        size: given(SIZE).then(|| fixed.u64(16)),
        atime: time(ATIME, ATIME_NOW, 32, 56),
        mtime: time(MTIME, MTIME_NOW, 40, 60),
        ctime: given(CTIME).then(|| at(48, 64)),
    }
}

/// `struct fuse_write_out`.
fn written(payload: &mut [u8], bytes: u32) -> usize {
    Writer::new(payload).u32(bytes).u32(0).len()
}

/// `struct fuse_attr_out`.
fn attr_out(payload: &mut [u8], attributes: &Attributes) -> usize {
    Writer::new(payload).u64(FOREVER.as_secs()).u64(0).attributes(attributes).len()
}

/// `struct fuse_entry_out`; without attributes, "there is no such name".
fn entry_out<'w, 'a>(
    out: &'w mut Writer<'a>,
    attributes: Option<&Attributes>,
) -> &'w mut Writer<'a> {
    let node = attributes.map_or(0, |attributes| attributes.record.ino.0);
    let forever = FOREVER.as_secs();
    out.u64(node).u64(0).u64(forever).u64(forever).u64(0);
    match attributes {
        Some(attributes) => out.attributes(attributes),
        None => out.bytes(&[0; 88]),
    }
}

/// `struct fuse_statfs_out`.
fn statfs_out(calls: &Calls, payload: &mut [u8]) -> Answer<usize> {
    let room = calls.room()?;
    let mut out = Writer::new(payload);
    for number in room.blocks.into_iter().chain(room.inodes) {
        out.u64(number);
    }
    out.u32(room.preferred).u32(255).u32(room.block as u32);
    Ok(out.bytes(&[0; 28]).len())
}

/// `struct fuse_dirent` for each entry, as many as fit.
fn dir_out(room: &mut [u8], lines: &[DirLine]) -> usize {
    const FIXED_BYTES: usize = 24;
    let size = room.len();
    let mut out = Writer::new(room);
    for line in lines {
        let len = (FIXED_BYTES + line.name.len()).next_multiple_of(8);
        if out.len() + len > size {
            break;
        }
        out.u64(line.ino.0)
            .u64(line.cookie)
            .u32(line.name.len() as u32)
            .u32(type_number(line.kind));
        out.bytes(&line.name);
        let padding = len - FIXED_BYTES - line.name.len();
        out.bytes(&[0; 8][..padding]);
    }
    out.len()
}
