//! The real host filesystem.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::fcntl::{
    AT_FDCWD, FallocateFlags, OFlag, OpenHow, PosixFadviseAdvice, ResolveFlag, openat2,
};

use super::{Access, Allocate, HostFile, HostMetadata, Storage, device, sys};
use crate::format::Timestamp;

/// The filesystem of the host, called directly.
#[derive(Debug, Default, Clone, Copy)]
pub struct HostStorage;

struct RealFile {
    file: File,
    /// The kernel or the filesystem cannot read without its cache.
    always_cached: AtomicBool,
    /// What one hint may ask for.
    hint_bytes_max: OnceLock<u64>,
}

impl RealFile {
    fn new(file: File) -> RealFile {
        RealFile { file, always_cached: AtomicBool::new(false), hint_bytes_max: OnceLock::new() }
    }
}

/// This boot's id, which tells a volatile log of this boot from one of an earlier.
pub fn boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id"))?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16)
        .map(u128::to_be_bytes)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Opens a file of a store for reading: a regular file, not what somebody has put in its place. A
/// link is not followed, and a FIFO not waited for; both, like everything else that is not a
/// regular file, are refused with `InvalidData`.
pub fn open_plain(path: &Path) -> io::Result<File> {
    open_plain_with(OpenOptions::new().read(true), path)
}

/// Reads a whole file of a store; see [`open_plain`].
pub fn read_plain(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_plain(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens a file of a store with `options`, which are changed; see [`open_plain`].
pub fn open_plain_with(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let refused = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let opened = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => refused("a symbolic link, not a regular file"),
        Some(libc::EISDIR | libc::ENXIO) => refused("not a regular file"),
        _ => error,
    })?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(refused("not a regular file")) }
}

/// The lock (flock) of the file at `path`, which is made if it is missing; `None` if somebody else has it.
pub fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let file = open_plain_with(File::options().create(true).truncate(false).write(true), path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn convert(meta: &std::fs::Metadata) -> HostMetadata {
    HostMetadata {
        len: meta.len(),
        allocated: meta.blocks() * 512,
        mtime: Timestamp { secs: meta.mtime(), nanos: meta.mtime_nsec() as u32 },
        ctime: Timestamp { secs: meta.ctime(), nanos: meta.ctime_nsec() as u32 },
        ino: meta.ino(),
    }
}

impl HostFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn read_once_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.always_cached.load(Ordering::Relaxed) {
            return self.read_at(buf, offset);
        }
        match sys::read_uncached(self.file.as_fd(), buf, offset) {
            // Before Linux 6.14, or a filesystem that does not know it.
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS)
                ) =>
            {
                self.always_cached.store(true, Ordering::Relaxed);
                self.read_at(buf, offset)
            }
            other => other,
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn metadata(&self) -> io::Result<HostMetadata> {
        Ok(convert(&self.file.metadata()?))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn allocate(&self, mode: Allocate, offset: u64, len: u64) -> io::Result<()> {
        let flags = match mode {
            Allocate::Extend => FallocateFlags::empty(),
            Allocate::KeepSize => FallocateFlags::FALLOC_FL_KEEP_SIZE,
            Allocate::PunchHole => {
                FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE
            }
            Allocate::ZeroExtend => FallocateFlags::FALLOC_FL_ZERO_RANGE,
            Allocate::ZeroKeepSize => {
                FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE
            }
        };
        Ok(nix::fcntl::fallocate(self.file.as_fd(), flags, offset as i64, len as i64)?)
    }

    fn seek_data(&self, offset: u64) -> io::Result<Option<u64>> {
        sys::seek(self.file.as_fd(), offset, libc::SEEK_DATA)
    }

    fn seek_hole(&self, offset: u64) -> io::Result<Option<u64>> {
        sys::seek(self.file.as_fd(), offset, libc::SEEK_HOLE)
    }

    fn copy_from(&self, source: &dyn HostFile, from: u64, to: u64, len: u64) -> io::Result<u64> {
        sys::copy_range(source.descriptor(), from, self.file.as_fd(), to, len)
    }

    fn start_write_out(&self, offset: u64, len: u64) -> io::Result<()> {
        sys::start_write_out(self.file.as_fd(), offset, len)
    }

    fn will_need(&self, offset: u64, len: u64) {
        let step = *self.hint_bytes_max.get_or_init(|| {
            // Device 0 is none.
            device::hint_bytes_max(self.file.metadata().map_or(0, |meta| meta.dev()))
        });
        let end = offset.saturating_add(len);
        for start in (offset..end).step_by(step as usize) {
            // A hint that fails costs only speed.
            let _ = nix::fcntl::posix_fadvise(
                self.file.as_fd(),
                start as i64,
                step.min(end - start) as i64,
                PosixFadviseAdvice::POSIX_FADV_WILLNEED,
            );
        }
    }

    fn forget_clean_pages(&self) {
        let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        let _ = nix::fcntl::posix_fadvise(self.file.as_fd(), 0, 0, advice);
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Storage for HostStorage {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn HostFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(access != Access::Read).mode(0o600);
        match access {
            Access::Read | Access::ReadWrite => {}
            Access::Create => {
                options.create(true);
            }
            Access::CreateEmpty => {
                options.create(true).truncate(true);
            }
        }
        Ok(Arc::new(RealFile::new(open_plain_with(&mut options, path)?)))
    }

    fn open_foreign(&self, path: &Path) -> io::Result<Arc<dyn HostFile>> {
        // A FIFO would keep us waiting for ever.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS;
        let how = OpenHow::new().flags(flags).resolve(resolve);
        let file = match openat2(AT_FDCWD, path, how) {
            Ok(file) => File::from(file),
            // Before Linux 5.6 and in some sandboxes: the last component at least is no link.
            Err(Errno::ENOSYS | Errno::EPERM) => {
                return Ok(Arc::new(RealFile::new(open_plain(path)?)));
            }
            Err(errno) => return Err(errno.into()),
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Arc::new(RealFile::new(file)))
    }

    fn metadata(&self, path: &Path) -> io::Result<HostMetadata> {
        Ok(convert(&std::fs::symlink_metadata(path)?))
    }

    fn create_dirs(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        match path.symlink_metadata() {
            Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
            Ok(_) => self.remove_file(path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        read_plain(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        std::fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect()
    }
}
