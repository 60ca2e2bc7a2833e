//! One method per request: translate, call, reply.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::answer::{logged, reply_empty, reply_entry, reply_xattr};
use super::convert::{
    FOREVER, allocate_mode, chosen_time, file_attr, from_system, kind_from_mode, kind_of,
    negative_attr, permissions,
};
use super::metrics::{Kind, Metrics};
use super::workers::{Semaphore, Workers};
use crate::format::{FileKind, Ino};
use crate::fs::attr::{Attributes, SetAttributes};
use crate::fs::names::NewFile;
use crate::fs::rename::RenameMode;
use crate::fs::xattr::SetMode;
use crate::fs::{Caller, Fs, FsError};
use crate::layer::sync::Durable;

/// One request carries at most this much; the kernel caps it at fs.fuse.max_pages_limit.
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Requests the kernel keeps in flight for read-ahead and write-back.
const BACKGROUND_MAX: u16 = 64;
/// fsyncs that wait for the disk at once; more would not make it faster.
const SYNC_THREADS_MAX: usize = 16;

/// Serves one branch's filesystem to the kernel.
pub struct Adapter {
    fs: Arc<Fs>,
    metrics: Arc<Metrics>,
    sync_workers: Workers,
    /// Threads that serve requests and may wait for the disk at this moment.
    may_wait: Semaphore,
}

impl Adapter {
    /// An adapter for `fs` that counts into `metrics`, to be served by `threads` threads.
    pub fn new(fs: Arc<Fs>, metrics: Arc<Metrics>, threads: usize) -> Adapter {
        let sync_workers = Workers::new(SYNC_THREADS_MAX);
        Adapter { fs, metrics, sync_workers, may_wait: Semaphore::new(threads / 2) }
    }

    fn make(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new: &NewFile<'_>,
    ) -> Result<Attributes, FsError> {
        let caller = Caller { uid: req.uid(), gid: req.gid() };
        self.fs.make(Ino(parent.0), name.as_bytes(), new, caller)
    }

    /// Answers a sync: only a receipt makes it a success.
    fn sync_later(
        &self,
        reply: ReplyEmpty,
        sync: impl FnOnce(&Fs) -> Result<Durable, FsError> + Send + 'static,
    ) {
        let (fs, metrics, start) = (self.fs.clone(), self.metrics.clone(), Instant::now());
        let work = move || {
            match sync(&fs) {
                Ok(Durable { .. }) => reply.ok(),
                Err(error) => reply.error(logged("fsync", &error)),
            }
            metrics.count(Kind::Fsync, start, 0);
        };
        // Waking another thread up takes a tenth of what a commit takes. It is needed only so that
        // some threads are always left for requests that do not wait.
        match self.may_wait.try_enter() {
            Some(_permit) => work(),
            None => self.sync_workers.run(work),
        }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let write_back =
            (!self.fs.options.write_through).then_some(InitFlags::FUSE_WRITEBACK_CACHE);
        // One by one: an older kernel lacks some, and works without them.
        for wanted in write_back.into_iter().chain([
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
        ]) {
            if config.add_capabilities(wanted).is_err() {
                tracing::info!(capability = ?wanted, "not offered by this kernel");
            }
        }
        // Each setter answers with the nearest value that the kernel accepts.
        if let Err(nearest) = config.set_max_write(REQUEST_BYTES_MAX) {
            let _ = config.set_max_write(nearest);
        }
        if let Err(nearest) = config.set_max_readahead(REQUEST_BYTES_MAX) {
            let _ = config.set_max_readahead(nearest);
        }
        if let Err(nearest) = config.set_max_background(BACKGROUND_MAX) {
            let _ = config.set_max_background(nearest);
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let start = Instant::now();
        match self.fs.lookup(Ino(parent.0), name.as_bytes()) {
            Err(FsError::NotFound) => reply.entry(&FOREVER, &negative_attr(), Generation(0)),
            found => reply_entry(reply, "lookup", found),
        }
        self.metrics.count(Kind::Lookup, start, 0);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.fs.forget(Ino(ino.0), nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let start = Instant::now();
        match self.fs.attributes(Ino(ino.0)) {
            Ok(attributes) => reply.attr(&FOREVER, &file_attr(&attributes)),
            Err(error) => reply.error(logged("getattr", &error)),
        }
        self.metrics.count(Kind::Getattr, start, 0);
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let start = Instant::now();
        let set = SetAttributes {
            perm: mode.map(permissions),
            uid,
            gid,
            size,
            atime: atime.map(chosen_time),
            mtime: mtime.map(chosen_time),
            ctime: ctime.map(from_system),
        };
        match self.fs.set_attributes(Ino(ino.0), set) {
            Ok(attributes) => reply.attr(&FOREVER, &file_attr(&attributes)),
            Err(error) => reply.error(logged("setattr", &error)),
        }
        self.metrics.count(Kind::Setattr, start, 0);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.fs.read_link(Ino(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(logged("readlink", &error)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let start = Instant::now();
        let Some(kind) = kind_from_mode(mode) else {
            reply.error(Errno::EINVAL);
            return;
        };
        let new = NewFile { kind, perm: permissions(mode), rdev, symlink: b"" };
        reply_entry(reply, "mknod", self.make(req, parent, name, &new));
        self.metrics.count(Kind::Create, start, 0);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let start = Instant::now();
        let kind = FileKind::Directory;
        let new = NewFile { kind, perm: permissions(mode), rdev: 0, symlink: b"" };
        reply_entry(reply, "mkdir", self.make(req, parent, name, &new));
        self.metrics.count(Kind::Create, start, 0);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let start = Instant::now();
        reply_empty(reply, "unlink", self.fs.unlink(Ino(parent.0), name.as_bytes()));
        self.metrics.count(Kind::Unlink, start, 0);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let start = Instant::now();
        reply_empty(reply, "rmdir", self.fs.rmdir(Ino(parent.0), name.as_bytes()));
        self.metrics.count(Kind::Unlink, start, 0);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let start = Instant::now();
        let symlink = target.as_os_str().as_bytes();
        let new = NewFile { kind: FileKind::Symlink, perm: 0o777, rdev: 0, symlink };
        reply_entry(reply, "symlink", self.make(req, parent, link_name, &new));
        self.metrics.count(Kind::Create, start, 0);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let start = Instant::now();
        let mode = if flags == RenameFlags::empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            reply.error(Errno::EINVAL);
            return;
        };
        let from = (Ino(parent.0), name.as_bytes());
        let to = (Ino(newparent.0), newname.as_bytes());
        reply_empty(reply, "rename", self.fs.rename(from, to, mode));
        self.metrics.count(Kind::Rename, start, 0);
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let start = Instant::now();
        let linked = self.fs.link(Ino(ino.0), Ino(newparent.0), newname.as_bytes());
        reply_entry(reply, "link", linked);
        self.metrics.count(Kind::Create, start, 0);
    }

    /// Files need no handles: ENOSYS has the kernel stop sending OPEN and RELEASE altogether (and
    /// keep its cache over opens), which saves two round trips per file that a backend opens.
    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.metrics.count(Kind::Open, Instant::now(), 0);
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        thread_local! {
            /// Fresh memory for each request would cost a page fault for every 4 KiB of it.
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let start = Instant::now();
        BUFFER.with_borrow_mut(|buf| {
            match self.fs.read(Ino(ino.0), offset, size, buf) {
                Ok(()) => reply.data(buf),
                Err(error) => reply.error(logged("read", &error)),
            }
            self.metrics.count(Kind::Read, start, buf.len() as u64);
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let start = Instant::now();
        let direct = !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let write = if direct { Fs::write } else { Fs::write_back };
        let mut done = write(&self.fs, Ino(ino.0), offset, data);
        // A write that did not come out of the page cache is not followed by an FSYNC request.
        if direct && flags.0 & libc::O_DSYNC != 0 && done.is_ok() {
            done = self.fs.sync(Ino(ino.0)).map(|Durable { .. }| ());
        }
        match done {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(logged("write", &error)),
        }
        self.metrics.count(Kind::Write, start, data.len() as u64);
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Nothing waits for a close: the kernel need not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.sync_later(reply, move |fs| fs.sync(Ino(ino.0)));
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let start = Instant::now();
        match self.fs.list(Ino(ino.0), offset) {
            Ok(lines) => {
                for line in lines {
                    let name = OsStr::from_bytes(&line.name);
                    if reply.add(INodeNo(line.ino.0), line.cookie, kind_of(line.kind), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(logged("readdir", &error)),
        }
        self.metrics.count(Kind::Readdir, start, 0);
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.sync_later(reply, Fs::sync_dir);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let host = match nix::sys::statvfs::statvfs(&self.fs.branch.store.root) {
            Ok(host) => host,
            Err(errno) => {
                reply.error(Errno::from_i32(errno as i32));
                return;
            }
        };
        let size = host.fragment_size().max(1);
        // A catalog that cannot be asked is no reason to say nothing of the host.
        let quota = self.fs.quota().unwrap_or_default();
        let (all, left) =
            quota.map_or((u64::MAX, u64::MAX), |(all, left)| (all / size, left / size));
        reply.statfs(
            host.blocks().min(all),
            host.blocks_free().min(left),
            host.blocks_available().min(left),
            host.files(),
            host.files_free(),
            host.block_size() as u32,
            255,
            size as u32,
        );
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        if !self.fs.options.xattr {
            reply.error(Errno::ENOSYS);
            return;
        }
        let mode = match flags {
            libc::XATTR_CREATE => SetMode::Create,
            libc::XATTR_REPLACE => SetMode::Replace,
            _ => SetMode::Any,
        };
        let set = self.fs.set_xattr(Ino(ino.0), name.as_bytes(), value, mode);
        reply_empty(reply, "setxattr", set);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if !self.fs.options.xattr {
            reply.error(Errno::ENOSYS);
            return;
        }
        reply_xattr(reply, size, self.fs.get_xattr(Ino(ino.0), name.as_bytes()));
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if !self.fs.options.xattr {
            reply.error(Errno::ENOSYS);
            return;
        }
        reply_xattr(reply, size, self.fs.list_xattrs(Ino(ino.0)));
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if !self.fs.options.xattr {
            reply.error(Errno::ENOSYS);
            return;
        }
        reply_empty(reply, "removexattr", self.fs.remove_xattr(Ino(ino.0), name.as_bytes()));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let start = Instant::now();
        let kind = FileKind::Regular;
        let new = NewFile { kind, perm: permissions(mode), rdev: 0, symlink: b"" };
        match self.make(req, parent, name, &new) {
            Ok(attributes) => reply.created(
                &FOREVER,
                &file_attr(&attributes),
                Generation(0),
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE,
            ),
            Err(error) => reply.error(logged("create", &error)),
        }
        self.metrics.count(Kind::Create, start, 0);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let start = Instant::now();
        match allocate_mode(mode) {
            Some(mode) => {
                let done = self.fs.allocate(Ino(ino.0), offset, length, mode);
                reply_empty(reply, "fallocate", done);
            }
            None => reply.error(Errno::EOPNOTSUPP),
        }
        self.metrics.count(Kind::Fallocate, start, length);
    }

    /// The kernel does not write its dirty pages back before it asks, so whatever we said of holes
    /// could be wrong. ENOSYS has it answer by itself: all is data up to the end of the file.
    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        self.metrics.count(Kind::Lseek, Instant::now(), 0);
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let start = Instant::now();
        // The reply counts in 32 bits; the caller asks again for the rest.
        let len = len.min(1 << 30);
        let copied =
            self.fs.copy_range((Ino(ino_in.0), offset_in), (Ino(ino_out.0), offset_out), len);
        match copied {
            Ok(copied) => reply.written(copied as u32),
            Err(error) => reply.error(logged("copy_file_range", &error)),
        }
        self.metrics.count(Kind::Copy, start, len);
    }
}
