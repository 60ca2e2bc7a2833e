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
    /// fsync of a directory.
    SyncDir,
    /// fallocate.
    Allocate,
    /// rename.
    Rename,
    /// unlink.
    Remove,
}

/// What goes wrong, when, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The call that fails.
    pub call: Call,
    /// The errno it fails with.
    pub errno: i32,
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
}

impl Plan {
    fn check(&self, call: Call) -> io::Result<()> {
        let mut slot = self.fault.lock();
        let Some(fault) = *slot else { return Ok(()) };
        if fault.call != call || self.seen.fetch_add(1, Ordering::Relaxed) < fault.after {
            return Ok(());
        }
        self.struck.store(true, Ordering::Relaxed);
        if !fault.for_ever {
            *slot = None;
        }
        Err(io::Error::from_raw_os_error(fault.errno))
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
}

struct FaultFile {
    inner: Arc<dyn HostFile>,
    plan: Arc<Plan>,
}

impl HostFile for FaultFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.plan.check(Call::Read)?;
        self.inner.read_at(buf, offset)
    }

    fn read_once_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.plan.check(Call::Read)?;
        self.inner.read_once_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.plan.check(Call::Write)?;
        self.inner.write_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.plan.check(Call::SetLen)?;
        self.inner.set_len(len)
    }

    fn metadata(&self) -> io::Result<HostMetadata> {
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
        self.inner.seek_data(offset)
    }

    fn seek_hole(&self, offset: u64) -> io::Result<Option<u64>> {
        self.inner.seek_hole(offset)
    }

    fn copy_from(&self, source: &dyn HostFile, from: u64, to: u64, len: u64) -> io::Result<u64> {
        self.plan.check(Call::Write)?;
        self.inner.copy_from(source, from, to, len)
    }

    fn start_write_out(&self, offset: u64, len: u64) {
        self.inner.start_write_out(offset, len);
    }

    fn will_need(&self, offset: u64, len: u64) {
        self.inner.will_need(offset, len);
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

    fn metadata(&self, path: &Path) -> io::Result<HostMetadata> {
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
        self.inner.list(path)
    }
}
