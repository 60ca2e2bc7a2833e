//! Every `unsafe` call of the crate, each behind a small safe function.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `lseek(2)` with `SEEK_DATA` or `SEEK_HOLE`; `None` where the kernel answers ENXIO.
pub fn seek(fd: BorrowedFd<'_>, offset: u64, whence: i32) -> io::Result<Option<u64>> {
    // SAFETY: lseek takes no pointers; the descriptor is open for the length of the borrow.
    let found = unsafe { libc::lseek(fd.as_raw_fd(), offset as i64, whence) };
    if found >= 0 {
        return Ok(Some(found as u64));
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENXIO) { Ok(None) } else { Err(error) }
}

/// `copy_file_range(2)`, the host's reflink or copy inside the kernel. Returns bytes copied.
pub fn copy_range(
    source: BorrowedFd<'_>,
    from: u64,
    target: BorrowedFd<'_>,
    to: u64,
    len: u64,
) -> io::Result<u64> {
    let (mut from, mut to) = (from as i64, to as i64);
    // SAFETY: both offsets outlive the call, both descriptors are open for the borrow.
    let copied = unsafe {
        libc::copy_file_range(
            source.as_raw_fd(),
            &raw mut from,
            target.as_raw_fd(),
            &raw mut to,
            len as usize,
            0,
        )
    };
    if copied < 0 { Err(io::Error::last_os_error()) } else { Ok(copied as u64) }
}

/// `sync_file_range(SYNC_FILE_RANGE_WRITE)`: starts write-out, does not wait, reports nothing.
pub fn start_write_out(fd: BorrowedFd<'_>, offset: u64, len: u64) {
    // SAFETY: no pointers; a failure only means that write-out starts later.
    unsafe {
        libc::sync_file_range(
            fd.as_raw_fd(),
            offset as i64,
            len as i64,
            libc::SYNC_FILE_RANGE_WRITE,
        );
    }
}

/// Maps a file that nobody changes (a sealed index) for reading.
pub fn map_immutable(file: &std::fs::File) -> io::Result<memmap2::Mmap> {
    // SAFETY: the callers map sealed files only; cowfs never changes one after its rename into
    // place. If somebody else truncates it, the process gets SIGBUS and the branch ends there:
    // no wrong bytes are served (docs/SEMANTICS.md lists it among the assumptions).
    unsafe { memmap2::Mmap::map(file) }
}
