//! Host files behind small traits, so that faults can be injected at every call.
//!
//! [`Storage`] opens and names files, [`HostFile`] reads and writes one. The real implementation
//! is [`host::HostStorage`]; tests put [`fault::FaultStorage`] around it.

pub mod crash;
mod device;
pub mod fault;
pub mod host;
pub mod lossy;
pub mod pool;
pub mod sys;
pub mod usage;

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::format::Timestamp;

/// What the host knows of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostMetadata {
    /// Length in bytes.
    pub len: u64,
    /// Allocated bytes.
    pub allocated: u64,
    /// Last modification.
    pub mtime: Timestamp,
    /// When its contents or attributes were last changed.
    pub ctime: Timestamp,
    /// Host inode number.
    pub ino: u64,
}

/// How to open a host file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only; the file must exist.
    Read,
    /// Read and write; the file must exist.
    ReadWrite,
    /// Read and write; created if missing.
    Create,
    /// Read and write; created, or emptied if it exists.
    CreateEmpty,
}

/// What `fallocate(2)` is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Allocate; grow the file if the range ends past its end.
    Extend,
    /// Allocate without growing the file.
    KeepSize,
    /// Deallocate; the range reads as zeros, the size stays.
    PunchHole,
    /// Make the range read as zeros; grow the file if needed.
    ZeroExtend,
    /// Make the range read as zeros without growing the file.
    ZeroKeepSize,
}

/// An open host file. Every method maps to one system call.
pub trait HostFile: Send + Sync {
    /// Reads at `offset`; a short count means end of file or an interruption.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Like [`HostFile::read_at`], for bytes that nobody will want again soon: they are not kept in
    /// the host's page cache where it can do without.
    fn read_once_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(buf, offset)
    }
    /// Writes at `offset`; may write less than asked.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize>;
    /// Sets the length in bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Length, allocation and times.
    fn metadata(&self) -> io::Result<HostMetadata>;
    /// `fdatasync(2)`: contents and size are on stable storage when this returns `Ok`.
    fn sync_data(&self) -> io::Result<()>;
    /// `fallocate(2)`.
    fn allocate(&self, mode: Allocate, offset: u64, len: u64) -> io::Result<()>;
    /// `lseek(SEEK_DATA)`: the next offset with data, or `None` past the last.
    fn seek_data(&self, offset: u64) -> io::Result<Option<u64>>;
    /// `lseek(SEEK_HOLE)`: the next hole at or after `offset` (the end of the file counts as one).
    fn seek_hole(&self, offset: u64) -> io::Result<Option<u64>>;
    /// Copies a range from `source` (which must come from the same [`Storage`]), sharing blocks
    /// where the host can. Returns the bytes copied, 0 at the end of `source`.
    fn copy_from(&self, source: &dyn HostFile, from: u64, to: u64, len: u64) -> io::Result<u64>;
    /// Starts write-out of dirty pages without waiting for it; that nothing was started is no error.
    /// After one, what was to be written may be lost.
    fn start_write_out(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Asks the host to read a range ahead. A hint.
    fn will_need(&self, offset: u64, len: u64);
    /// Has the host forget what it holds of the file in memory and has not to write any more. A hint.
    fn forget_clean_pages(&self) {}
    /// The descriptor, for calls that need two files at once.
    fn descriptor(&self) -> std::os::fd::BorrowedFd<'_>;
}

/// The host filesystem below a store.
pub trait Storage: Send + Sync {
    /// Opens a file.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn HostFile>>;
    /// Opens a file of a directory that belongs to somebody else, for reading: only a regular one,
    /// and through no symbolic link anywhere on `path` (absolute). ELOOP where there is one,
    /// `InvalidInput` for what is not a regular file.
    fn open_foreign(&self, path: &Path) -> io::Result<Arc<dyn HostFile>> {
        self.open(path, Access::Read)
    }
    /// Metadata of a path, not following a final symbolic link.
    fn metadata(&self, path: &Path) -> io::Result<HostMetadata>;
    /// Whether something is there, whatever it is. Only the host saying so is an absence; any
    /// other failure to look is an error.
    fn exists(&self, path: &Path) -> io::Result<bool> {
        match self.metadata(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
    /// Makes a directory and its parents; existing ones are fine.
    fn create_dirs(&self, path: &Path) -> io::Result<()>;
    /// Removes a file; one that is missing is fine.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes whatever is at `path`, a directory with all that it holds; symbolic links are removed
    /// and not followed. Nothing there is fine.
    fn remove_tree(&self, path: &Path) -> io::Result<()>;
    /// Renames a file over another, or a directory to where none is.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the entries of a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Reads a whole file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Names in a directory, without `.` and `..`, in any order.
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>>;
}

/// Reads until `buf` is full or the file ends; the rest of `buf` becomes zeros.
pub fn read_full_at(file: &dyn HostFile, buf: &mut [u8], offset: u64) -> io::Result<()> {
    read_up_to(file, buf, offset).map(|_end| ())
}

/// Like [`read_full_at`]; returns where in the file the bytes read end.
pub fn read_up_to(file: &dyn HostFile, buf: &mut [u8], offset: u64) -> io::Result<u64> {
    read_full(|buf, offset| file.read_at(buf, offset), buf, offset)
}

/// Like [`read_up_to`], with [`HostFile::read_once_at`].
pub fn read_once_up_to(file: &dyn HostFile, buf: &mut [u8], offset: u64) -> io::Result<u64> {
    read_full(|buf, offset| file.read_once_at(buf, offset), buf, offset)
}

fn read_full(
    read: impl Fn(&mut [u8], u64) -> io::Result<usize>,
    mut buf: &mut [u8],
    mut offset: u64,
) -> io::Result<u64> {
    while !buf.is_empty() {
        match read(buf, offset) {
            Ok(0) => {
                buf.fill(0);
                return Ok(offset);
            }
            Ok(n) => {
                offset += n as u64;
                buf = buf.split_at_mut(n).1;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(offset)
}

/// Writes all of `buf`, or fails with the error that stopped it (some of it may be written then).
pub fn write_all_at(file: &dyn HostFile, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match file.write_at(buf, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                offset += n as u64;
                buf = buf.split_at(n).1;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes a host file from its beginning to its end.
pub struct Appender<'a> {
    file: &'a dyn HostFile,
    at: u64,
}

impl<'a> Appender<'a> {
    /// Writes to `file` from offset 0 on.
    pub fn new(file: &'a dyn HostFile) -> Appender<'a> {
        Appender { file, at: 0 }
    }
}

impl io::Write for Appender<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.file.write_at(buf, self.at)?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
