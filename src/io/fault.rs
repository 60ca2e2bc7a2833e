//! A [`Storage`] that fails on command, for tests of every error path.

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{Access, Allocate, HostFile, HostMetadata, Storage};

/// The host calls that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Opening or creating a file.
    Open,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Changing the length.
    SetLen,
    /// fdatasync of a file.
    SyncData,
    /// `sync_file_range`.
    WriteOut,
    /// fsync of a directory.
    SyncDir,
    /// fallocate.
    Allocate,
    /// rename.
    Rename,
    /// unlink.
    Remove,
    /// stat, of a name or an open file.
    Metadata,
    /// Listing a directory.
    List,
    /// lseek to data or to a hole.
    Seek,
}

/// How a call goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// With this errno, and nothing done.
    Errno(i32),
    /// A write (or a read) does the first half of what it was asked, and says so.
    Short,
    /// As [`Failure::Short`]; the calls of that kind that follow fail with this errno: what a disk
    /// does that becomes full.
    ShortThen(i32),
}

/// What goes wrong, when, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The call that fails.
    pub call: Call,
    /// With what.
    pub failure: Failure,
    /// How many such calls succeed first.
    pub after: u64,
    /// Whether every later call fails, too.
    pub for_ever: bool,
}

#[derive(Default)]
struct Plan {
    fault: Mutex<Option<Fault>>,
    seen: AtomicU64,
    struck: AtomicBool,
    write_outs: Mutex<Vec<u64>>,
}

impl Plan {
    /// Fails, or says how many of `len` bytes are to be moved.
    fn check_moving(&self, call: Call, len: u64) -> io::Result<u64> {
        let mut slot = self.fault.lock();
        let Some(fault) = *slot else { return Ok(len) };
        if fault.call != call || self.seen.fetch_add(1, Ordering::Relaxed) < fault.after {
            return Ok(len);
        }
        // A call that moves one byte cannot stop halfway.
        let half = if len > 1 { len / 2 } else { len };
        self.struck.store(true, Ordering::Relaxed);
        match fault.failure {
            Failure::ShortThen(errno) => {
                let failure = Failure::Errno(errno);
                *slot = Some(Fault { failure, ..fault });
                return Ok(half);
            }
            _ if !fault.for_ever => *slot = None,
            _ => {}
        }
        match fault.failure {
            Failure::Errno(errno) => Err(io::Error::from_raw_os_error(errno)),
            Failure::Short | Failure::ShortThen(_) => Ok(half),
        }
    }

    fn check(&self, call: Call) -> io::Result<()> {
        self.check_moving(call, 0).map(drop)
    }
}

/// Wraps another storage and injects one [`Fault`] at a time.
#[derive(Clone)]
pub struct FaultStorage {
    inner: Arc<dyn Storage>,
    plan: Arc<Plan>,
}

impl FaultStorage {
    /// Wraps `inner`; nothing fails until [`FaultStorage::inject`].
    pub fn new(inner: Arc<dyn Storage>) -> FaultStorage {
        FaultStorage { inner, plan: Arc::default() }
    }

    /// Arms `fault` (or disarms with `None`) and starts counting anew.
    pub fn inject(&self, fault: Option<Fault>) {
        let mut slot = self.plan.fault.lock();
        self.plan.seen.store(0, Ordering::Relaxed);
        self.plan.struck.store(false, Ordering::Relaxed);
        *slot = fault;
    }

    /// Whether the armed fault has happened.
    pub fn struck(&self) -> bool {
        self.plan.struck.load(Ordering::Relaxed)
    }

    /// The host inodes of which something was written out since the last call, in order.
    pub fn take_write_outs(&self) -> Vec<u64> {
        std::mem::take(&mut *self.plan.write_outs.lock())
    }
}

struct FaultFile {
    inner: Arc<dyn HostFile>,
    plan: Arc<Plan>,
}

impl HostFile for FaultFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = self.plan.check_moving(Call::Read, buf.len() as u64)?;
        self.inner.read_at(&mut buf[..len as usize], offset)
    }

    fn read_once_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = self.plan.check_moving(Call::Read, buf.len() as u64)?;
        self.inner.read_once_at(&mut buf[..len as usize], offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let len = self.plan.check_moving(Call::Write, buf.len() as u64)?;
        self.inner.write_at(&buf[..len as usize], offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.plan.check(Call::SetLen)?;
        self.inner.set_len(len)
    }

    fn metadata(&self) -> io::Result<HostMetadata> {
        self.plan.check(Call::Metadata)?;
        self.inner.metadata()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.plan.check(Call::SyncData)?;
        self.inner.sync_data()
    }

    fn allocate(&self, mode: Allocate, offset: u64, len: u64) -> io::Result<()> {
        self.plan.check(Call::Allocate)?;
        self.inner.allocate(mode, offset, len)
    }

    fn seek_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.plan.check(Call::Seek)?;
        self.inner.seek_data(offset)
    }

    fn seek_hole(&self, offset: u64) -> io::Result<Option<u64>> {
        self.plan.check(Call::Seek)?;
        self.inner.seek_hole(offset)
    }

    fn copy_from(&self, source: &dyn HostFile, from: u64, to: u64, len: u64) -> io::Result<u64> {
        let len = self.plan.check_moving(Call::Write, len)?;
        self.inner.copy_from(source, from, to, len)
    }

    fn start_write_out(&self, offset: u64, len: u64) -> io::Result<()> {
        self.plan.write_outs.lock().extend(self.inner.metadata().map(|meta| meta.ino));
        self.plan.check(Call::WriteOut)?;
        self.inner.start_write_out(offset, len)
    }

    fn will_need(&self, offset: u64, len: u64) {
        self.inner.will_need(offset, len);
    }

    fn forget_clean_pages(&self) {
        self.inner.forget_clean_pages();
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.inner.descriptor()
    }
}

impl Storage for FaultStorage {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn HostFile>> {
        self.plan.check(Call::Open)?;
        let inner = self.inner.open(path, access)?;
        Ok(Arc::new(FaultFile { inner, plan: self.plan.clone() }))
    }

    fn open_foreign(&self, path: &Path) -> io::Result<Arc<dyn HostFile>> {
        self.plan.check(Call::Open)?;
        let inner = self.inner.open_foreign(path)?;
        Ok(Arc::new(FaultFile { inner, plan: self.plan.clone() }))
    }

    fn metadata(&self, path: &Path) -> io::Result<HostMetadata> {
        self.plan.check(Call::Metadata)?;
        self.inner.metadata(path)
    }

    fn create_dirs(&self, path: &Path) -> io::Result<()> {
        self.plan.check(Call::Open)?;
        self.inner.create_dirs(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.plan.check(Call::Remove)?;
        self.inner.remove_file(path)
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.plan.check(Call::Remove)?;
        self.inner.remove_tree(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.plan.check(Call::Rename)?;
        self.inner.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.plan.check(Call::SyncDir)?;
        self.inner.sync_dir(path)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.plan.check(Call::Read)?;
        self.inner.read(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.plan.check(Call::List)?;
        self.inner.list(path)
    }
}
