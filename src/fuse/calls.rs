//! What each request of the kernel does, whichever way it came: call `fs`, count, and tell the log
//! of what is no everyday answer. [`super::adapter`] and [`super::ring`] only translate.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use fuser::Errno;

use super::convert::{allocate_mode, rename_mode};
use super::errno::{errno_of, is_ordinary};
use super::metrics::{Kind, Metrics};
use super::read_around::ReadAround;
use crate::format::Ino;
use crate::fs::attr::{Attributes, SetAttributes};
use crate::fs::dir::DirLine;
use crate::fs::names::NewFile;
use crate::fs::xattr::SetMode;
use crate::fs::{Caller, Fs, FsError};
use crate::layer::sync::Durable;

/// A copy is told of in 32 bits; the caller asks again for the rest.
const COPY_BYTES_MAX: u64 = 1 << 30;

/// What a request comes to.
pub type Answer<T> = Result<T, Errno>;

/// A write(2), or what the kernel writes back from its cache.
pub struct Write<'a> {
    /// The file.
    pub ino: Ino,
    /// Byte offset.
    pub offset: u64,
    /// The bytes.
    pub data: &'a [u8],
    /// Out of the kernel's cache: an FSYNC request follows if somebody asks for one.
    pub from_cache: bool,
    /// The flags with which the file was opened.
    pub open_flags: i32,
}

/// What statfs tells, in blocks of `block` bytes.
pub struct Room {
    /// Bytes in a block.
    pub block: u64,
    /// Preferred size of a request, in bytes.
    pub preferred: u32,
    /// Blocks in all, free, and free for everybody.
    pub blocks: [u64; 3],
    /// Inodes in all, and free.
    pub inodes: [u64; 2],
}

/// Answers the requests of one mount.
pub struct Calls {
    /// What is served.
    pub fs: Arc<Fs>,
    /// Counts and latencies.
    pub metrics: Arc<Metrics>,
    /// Fetches what lies around pages that are read; set once the mount is there, if it is wanted.
    pub read_around: OnceLock<Arc<ReadAround>>,
}

impl Calls {
    fn count<T>(
        &self,
        kind: Kind,
        request: &'static str,
        call: impl FnOnce(&Fs) -> Result<T, FsError>,
    ) -> Answer<T> {
        let start = Instant::now();
        let answer = call(&self.fs).map_err(|error| logged(request, &error));
        self.metrics.count(kind, start, 0);
        answer
    }

    /// LOOKUP; `None` for a name that leads nowhere, which the kernel may remember.
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Answer<Option<Attributes>> {
        self.count(Kind::Lookup, "lookup", |fs| match fs.lookup(dir, name) {
            Err(FsError::NotFound) => Ok(None),
            found => found.map(Some),
        })
    }

    /// GETATTR.
    pub fn attributes(&self, ino: Ino) -> Answer<Attributes> {
        self.count(Kind::Getattr, "getattr", |fs| fs.attributes(ino))
    }

    /// SETATTR.
    pub fn set_attributes(&self, ino: Ino, set: SetAttributes) -> Answer<Attributes> {
        self.count(Kind::Setattr, "setattr", |fs| fs.set_attributes(ino, set))
    }

    /// READLINK.
    pub fn read_link(&self, ino: Ino) -> Answer<Vec<u8>> {
        self.count(Kind::Other, "readlink", |fs| fs.read_link(ino))
    }

    /// CREATE, MKNOD, MKDIR and SYMLINK.
    pub fn make(
        &self,
        request: &'static str,
        dir: Ino,
        name: &[u8],
        new: &NewFile<'_>,
        caller: Caller,
    ) -> Answer<Attributes> {
        self.count(Kind::Create, request, |fs| fs.make(dir, name, new, caller))
    }

    /// LINK.
    pub fn link(&self, ino: Ino, dir: Ino, name: &[u8]) -> Answer<Attributes> {
        self.count(Kind::Create, "link", |fs| fs.link(ino, dir, name))
    }

    /// UNLINK.
    pub fn unlink(&self, dir: Ino, name: &[u8]) -> Answer<()> {
        self.count(Kind::Unlink, "unlink", |fs| fs.unlink(dir, name))
    }

    /// RMDIR.
    pub fn rmdir(&self, dir: Ino, name: &[u8]) -> Answer<()> {
        self.count(Kind::Unlink, "rmdir", |fs| fs.rmdir(dir, name))
    }

    /// RENAME and RENAME2, with the flags of renameat2(2).
    pub fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: u32) -> Answer<()> {
        let mode = rename_mode(flags).ok_or(Errno::EINVAL)?;
        self.count(Kind::Rename, "rename", |fs| fs.rename(from, to, mode))
    }

    /// READ of up to `buf.len()` bytes from a file opened with `open_flags`; gives how many there were.
    pub fn read(&self, ino: Ino, offset: u64, open_flags: i32, buf: &mut [u8]) -> Answer<usize> {
        let start = Instant::now();
        let read = self.fs.read_at(ino, offset, buf).map_err(|error| logged("read", &error));
        let bytes = read.as_ref().map_or(0, |read| *read as u64);
        self.metrics.count(Kind::Read, start, bytes);
        // Who reads past the page cache wants nothing in it.
        if open_flags & libc::O_DIRECT == 0
            && let Some(around) = self.read_around.get()
        {
            around.note_read(ino, offset, bytes);
        }
        read
    }

    /// WRITE of all of the data.
    pub fn write(&self, write: &Write<'_>) -> Answer<()> {
        let start = Instant::now();
        let call = if write.from_cache { Fs::write_back } else { Fs::write };
        let mut done = call(&self.fs, write.ino, write.offset, write.data);
        // A write that did not come out of the page cache is not followed by an FSYNC request.
        if !write.from_cache && write.open_flags & libc::O_DSYNC != 0 && done.is_ok() {
            done = self.fs.sync(write.ino).map(|Durable { .. }| ());
        }
        self.metrics.count(Kind::Write, start, write.data.len() as u64);
        if done.is_err()
            && let Some(around) = self.read_around.get()
        {
            around.note_failed_write();
        }
        done.map_err(|error| logged("write", &error))
    }

    /// What is worth doing after a write was answered, if this thread may wait for the disk.
    pub fn after_write(&self, ino: Ino) {
        // Failed, it is told by the FSYNC that follows.
        let _ = self.fs.sync_ahead(ino);
    }

    /// FSYNC: only a receipt is a success.
    pub fn sync(&self, ino: Ino) -> Answer<Durable> {
        self.count(Kind::Fsync, "fsync", |fs| fs.sync(ino))
    }

    /// FSYNCDIR, likewise.
    pub fn sync_dir(&self) -> Answer<Durable> {
        self.count(Kind::Fsync, "fsyncdir", Fs::sync_dir)
    }

    /// READDIR: entries from the position `cookie` on.
    pub fn list(&self, ino: Ino, cookie: u64) -> Answer<Vec<DirLine>> {
        self.count(Kind::Readdir, "readdir", |fs| fs.list(ino, cookie))
    }

    /// FALLOCATE, with the mode of fallocate(2).
    pub fn allocate(&self, ino: Ino, offset: u64, len: u64, mode: i32) -> Answer<()> {
        let mode = allocate_mode(mode).ok_or(Errno::EOPNOTSUPP)?;
        self.count(Kind::Fallocate, "fallocate", |fs| fs.allocate(ino, offset, len, mode))
    }

    /// COPY_FILE_RANGE; gives how much of it was copied.
    pub fn copy(&self, from: (Ino, u64), to: (Ino, u64), len: u64) -> Answer<u32> {
        let len = len.min(COPY_BYTES_MAX);
        let copy = |fs: &Fs| fs.copy_range(from, to, len);
        Ok(self.count(Kind::Copy, "copy_file_range", copy)? as u32)
    }

    /// STATFS.
    pub fn room(&self) -> Answer<Room> {
        let host = nix::sys::statvfs::statvfs(&self.fs.branch.store.root)
            .map_err(|errno| Errno::from_i32(errno as i32))?;
        let block = host.fragment_size().max(1);
        // A catalog that cannot be asked is no reason to say nothing of the host.
        let quota = self.fs.quota().unwrap_or_default();
        let (all, left) =
            quota.map_or((u64::MAX, u64::MAX), |(all, left)| (all / block, left / block));
        Ok(Room {
            block,
            preferred: host.block_size() as u32,
            blocks: [
                host.blocks().min(all),
                host.blocks_free().min(left),
                host.blocks_available().min(left),
            ],
            inodes: [host.files(), host.files_free()],
        })
    }

    fn xattr<T>(&self, call: impl FnOnce(&Fs) -> Result<T, FsError>) -> Answer<T> {
        if !self.fs.options.xattr {
            return Err(Errno::ENOSYS);
        }
        self.count(Kind::Xattr, "xattr", call)
    }

    /// SETXATTR, with the flags of setxattr(2).
    pub fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Answer<()> {
        let mode = match flags {
            libc::XATTR_CREATE => SetMode::Create,
            libc::XATTR_REPLACE => SetMode::Replace,
            _ => SetMode::Any,
        };
        self.xattr(|fs| fs.set_xattr(ino, name, value, mode))
    }

    /// GETXATTR.
    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Answer<Vec<u8>> {
        self.xattr(|fs| fs.get_xattr(ino, name))
    }

    /// LISTXATTR.
    pub fn list_xattrs(&self, ino: Ino) -> Answer<Vec<u8>> {
        self.xattr(|fs| fs.list_xattrs(ino))
    }

    /// REMOVEXATTR.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Answer<()> {
        self.xattr(|fs| fs.remove_xattr(ino, name))
    }
}

/// The errno of `error`, with a line in the log unless it is an everyday answer.
fn logged(request: &'static str, error: &FsError) -> Errno {
    if !is_ordinary(error) {
        tracing::error!(request, %error, "request failed");
    }
    errno_of(error)
}
