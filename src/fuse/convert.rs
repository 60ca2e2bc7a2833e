//! Between fuser's types and ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::format::{FileKind, Timestamp};
use crate::fs::attr::Attributes;
use crate::fs::now;
use crate::fs::rename::RenameMode;
use crate::fs::write::AllocateMode;

/// Names and attributes stay cached: nobody but this mount changes the branch.
pub(super) const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

pub(super) fn kind_of(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// The `S_IFMT` bits of a kind.
pub(super) fn mode_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::Regular => libc::S_IFREG,
        FileKind::Directory => libc::S_IFDIR,
        FileKind::Symlink => libc::S_IFLNK,
        FileKind::Fifo => libc::S_IFIFO,
        FileKind::Socket => libc::S_IFSOCK,
        FileKind::CharDevice => libc::S_IFCHR,
        FileKind::BlockDevice => libc::S_IFBLK,
    }
}

/// The number of a kind in a directory's entries: `DT_REG` and its like.
pub(super) fn type_number(kind: FileKind) -> u32 {
    mode_bits(kind) >> 12
}

/// The kind that the `S_IFMT` bits of `mode` name; `None` for a directory or nonsense, which
/// mknod does not make.
pub(super) fn kind_from_mode(mode: u32) -> Option<FileKind> {
    Some(match mode & libc::S_IFMT {
        0 | libc::S_IFREG => FileKind::Regular,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => FileKind::CharDevice,
        libc::S_IFBLK => FileKind::BlockDevice,
        _ => return None,
    })
}

fn to_system(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let base = if time.secs >= 0 { UNIX_EPOCH + whole } else { UNIX_EPOCH - whole };
    base + Duration::from_nanos(u64::from(time.nanos))
}

pub(super) fn from_system(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp { secs: after.as_secs().cast_signed(), nanos: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            let (mut secs, mut nanos) = (-(before.as_secs().cast_signed()), 0);
            if before.subsec_nanos() > 0 {
                secs -= 1;
                nanos = 1_000_000_000 - before.subsec_nanos();
            }
            Timestamp { secs, nanos }
        }
    }
}

pub(super) fn chosen_time(time: TimeOrNow) -> Timestamp {
    match time {
        TimeOrNow::SpecificTime(time) => from_system(time),
        TimeOrNow::Now => now(),
    }
}

pub(super) fn file_attr(attributes: &Attributes) -> FileAttr {
    let record = &attributes.record;
    FileAttr {
        ino: INodeNo(record.ino.0),
        size: record.size,
        blocks: attributes.blocks,
        atime: to_system(record.atime),
        mtime: to_system(record.mtime),
        ctime: to_system(record.ctime),
        crtime: to_system(record.btime),
        kind: kind_of(record.kind),
        perm: record.perm,
        nlink: record.nlink,
        uid: record.uid,
        gid: record.gid,
        rdev: record.rdev,
        blksize: 4096,
        flags: 0,
    }
}

/// The answer "there is no such name", which the kernel may remember.
pub(super) fn negative_attr() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// The permission bits of a mode.
pub(super) fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// What the flags of renameat2(2) ask for; `None` where that is not known.
pub(super) fn rename_mode(flags: u32) -> Option<RenameMode> {
    Some(match flags {
        0 => RenameMode::Replace,
        libc::RENAME_NOREPLACE => RenameMode::NoReplace,
        libc::RENAME_EXCHANGE => RenameMode::Exchange,
        _ => return None,
    })
}

/// What a mode of fallocate(2) asks for; `None` where it is not known.
pub(super) fn allocate_mode(mode: i32) -> Option<AllocateMode> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH_KEEP: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = ZERO | KEEP;
    Some(match mode {
        0 => AllocateMode::Extend,
        KEEP => AllocateMode::KeepSize,
        PUNCH_KEEP => AllocateMode::PunchHole,
        ZERO => AllocateMode::ZeroExtend,
        ZERO_KEEP => AllocateMode::ZeroKeepSize,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_survive() {
        for time in [
            Timestamp { secs: -2, nanos: 500_000_000 },
            Timestamp { secs: -1, nanos: 0 },
            Timestamp { secs: 0, nanos: 1 },
            Timestamp { secs: 4_000_000_000, nanos: 999_999_999 },
        ] {
            assert_eq!(from_system(to_system(time)), time);
        }
    }
}
