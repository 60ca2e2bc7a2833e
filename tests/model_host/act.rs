//! The operations themselves: the same system calls, below whatever root.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cowfs::io::sys;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::sys::stat::{Mode, SFlag, mknod};

use super::op::{Act, Allocate, How, Span};

/// Where an operation is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Mount,
    Host,
}

/// A number that both sides must agree on: bytes, for the most part.
pub type Outcome = Result<u64, Errno>;

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

fn done<T>(result: io::Result<T>) -> Outcome {
    result.map(|_| 0).map_err(|error| errno(&error))
}

pub fn perform(act: &Act, root: &Path, side: Side) -> Outcome {
    let at = |path: &String| root.join(path);
    match act {
        Act::Write(path, how, span, byte) => write(&at(path), *how, *span, *byte, side),
        Act::Truncate(path, size) => {
            let file = open(&at(path), libc::O_WRONLY)?;
            done(file.set_len(*size))
        }
        Act::Allocate(path, mode, span) => {
            reserve(&open(&at(path), libc::O_WRONLY)?, *mode, *span).map(|()| 0)
        }
        Act::Copy(from, span, to, offset) => copy(&at(from), *span, &at(to), *offset),
        Act::Map(path, span, byte) => map(&at(path), *span, *byte),
        Act::Touch(path, seconds) => {
            let file = open(&at(path), libc::O_WRONLY)?;
            let time = SystemTime::UNIX_EPOCH
                + Duration::new(u64::from(*seconds), *seconds % 1_000_000_000);
            file.set_modified(time).map_err(|error| errno(&error))?;
            let meta = file.metadata().map_err(|error| errno(&error))?;
            Ok(meta.mtime().cast_unsigned() * 1_000_000_000 + meta.mtime_nsec().cast_unsigned())
        }
        Act::Fsync(path) => done(open(&at(path), libc::O_RDONLY)?.sync_all()),
        other => name(other, root),
    }
}

/// Operations on names and attributes.
fn name(act: &Act, root: &Path) -> Outcome {
    let at = |path: &String| root.join(path);
    let special = |path: &String, kind| {
        mknod(&at(path), kind, Mode::from_bits_truncate(0o644), 0).map(|()| 0)
    };
    let rename = |from: &String, to: &String, flags| {
        renameat2(AT_FDCWD, &at(from), AT_FDCWD, &at(to), flags).map(|()| 0)
    };
    match act {
        Act::Create(path, mode) => {
            let mut options = OpenOptions::new();
            done(options.write(true).create_new(true).mode(*mode).open(at(path)))
        }
        Act::Mkdir(path, mode) => {
            nix::unistd::mkdir(&at(path), Mode::from_bits_truncate(*mode)).map(|()| 0)
        }
        Act::Symlink(path, target) => done(std::os::unix::fs::symlink(target, at(path))),
        Act::Fifo(path) => special(path, SFlag::S_IFIFO),
        Act::Socket(path) => special(path, SFlag::S_IFSOCK),
        Act::Unlink(path) => done(fs::remove_file(at(path))),
        Act::Rmdir(path) => done(fs::remove_dir(at(path))),
        Act::Rename(from, to) => rename(from, to, RenameFlags::empty()),
        Act::RenameNoReplace(from, to) => rename(from, to, RenameFlags::RENAME_NOREPLACE),
        Act::Exchange(from, to) => rename(from, to, RenameFlags::RENAME_EXCHANGE),
        Act::Link(from, to) => done(fs::hard_link(at(from), at(to))),
        Act::Chmod(path, mode) => {
            done(fs::set_permissions(at(path), fs::Permissions::from_mode(*mode)))
        }
        Act::Chown(path, id) => done(std::os::unix::fs::lchown(at(path), Some(*id), Some(*id + 1))),
        _ => Ok(0),
    }
}

/// Opens without waiting for the other end of a FIFO.
fn open(path: &Path, flags: i32) -> Result<File, Errno> {
    let mut options = OpenOptions::new();
    match flags {
        libc::O_RDONLY => options.read(true),
        libc::O_WRONLY => options.write(true),
        _ => options.read(true).write(true),
    };
    options.custom_flags(libc::O_NONBLOCK).open(path).map_err(|error| errno(&error))
}

fn write(path: &Path, how: How, span: Span, byte: u8, side: Side) -> Outcome {
    let mut options = OpenOptions::new();
    let flags = match how {
        How::Sync => libc::O_DSYNC,
        How::Direct if side == Side::Mount => libc::O_DIRECT,
        How::Truncate => libc::O_TRUNC,
        How::Append => libc::O_APPEND,
        How::Plain | How::Direct => 0,
    };
    options.write(true).create(true).mode(0o640).custom_flags(flags | libc::O_NONBLOCK);
    let file = options.open(path).map_err(|error| errno(&error))?;
    // Not the same byte everywhere: a shifted granule must show.
    let offset = if matches!(how, How::Append) { 0 } else { span.offset };
    done(file.write_all_at(&pattern(offset, span.len, byte), span.offset))
}

/// `len` bytes for `offset` that tell where they belong.
pub fn pattern(offset: u64, len: u64, byte: u8) -> Vec<u8> {
    let at = |n: u64| byte ^ ((offset + n) >> 9) as u8;
    (0..len).map(|n| at(n).max(1)).collect()
}

pub fn reserve(file: &File, mode: Allocate, span: Span) -> Result<(), Errno> {
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let flags = match mode {
        Allocate::Extend => FallocateFlags::empty(),
        Allocate::KeepSize => keep,
        Allocate::Punch => keep | FallocateFlags::FALLOC_FL_PUNCH_HOLE,
        Allocate::Zero => FallocateFlags::FALLOC_FL_ZERO_RANGE,
        Allocate::ZeroKeepSize => keep | FallocateFlags::FALLOC_FL_ZERO_RANGE,
    };
    fallocate(file, flags, span.offset.cast_signed(), span.len.cast_signed())
}

fn copy(from: &Path, span: Span, to: &Path, offset: u64) -> Outcome {
    let (source, target) = (open(from, libc::O_RDONLY)?, open(to, libc::O_WRONLY)?);
    let mut copied = 0;
    // It may copy less than asked, as any read may.
    while copied < span.len {
        let (at, left) = (span.offset + copied, span.len - copied);
        let step = sys::copy_range(source.as_fd(), at, target.as_fd(), offset + copied, left);
        match step.map_err(|error| errno(&error))? {
            0 => break,
            n => copied += n,
        }
    }
    Ok(copied)
}

/// Maps a file for writing, and keeps it open.
pub fn mapped(file: &File) -> io::Result<memmap2::MmapRaw> {
    memmap2::MmapRaw::map_raw(file)
}

fn map(path: &Path, span: Span, byte: u8) -> Outcome {
    let file = open(path, libc::O_RDWR)?;
    let meta = file.metadata().map_err(|error| errno(&error))?;
    let end = meta.len().min(span.offset + span.len);
    if !meta.is_file() || span.offset >= end {
        return Ok(0);
    }
    let mut map = mapped(&file).map_err(|error| errno(&error))?;
    poke(&mut map, span.offset, &pattern(span.offset, end - span.offset, byte));
    done(map.flush())?;
    Ok(end - span.offset)
}

/// Writes into a map; the range must lie within the file as it is now.
pub fn poke(map: &mut memmap2::MmapRaw, offset: u64, bytes: &[u8]) {
    assert!(offset as usize + bytes.len() <= map.len());
    // SAFETY: the range is within the mapping, and within the file (else the kernel would send
    // SIGBUS); nobody else has the mapping.
    unsafe {
        std::ptr::copy_nonoverlapping(
            bytes.as_ptr(),
            map.as_mut_ptr().add(offset as usize),
            bytes.len(),
        );
    }
}

/// What is written so far goes to the filesystem, but not to the disk: the kernel flushes
/// whenever a descriptor is closed.
pub fn flush(file: &File) {
    drop(file.try_clone().unwrap());
}

/// Every path below `root`, parents first.
pub fn paths_below(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    let mut at = 0;
    while at < found.len() {
        let dir = found[at].clone();
        if dir.symlink_metadata().unwrap().is_dir() {
            let mut inside: Vec<PathBuf> =
                fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
            inside.sort();
            found.extend(inside);
        }
        at += 1;
    }
    found
}
