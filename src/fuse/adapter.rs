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

use super::answer::{reply_attr, reply_empty, reply_entry, reply_written, reply_xattr};
use super::calls::{Answer, Calls, Write};
use super::convert::{
    FOREVER, chosen_time, file_attr, from_system, kind_from_mode, kind_of, permissions,
};
use super::metrics::Kind;
use super::workers::{Semaphore, Workers};
use crate::format::{FileKind, Ino};
use crate::fs::Caller;
use crate::fs::attr::{Attributes, SetAttributes};
use crate::fs::names::NewFile;
use crate::layer::sync::Durable;

/// One request carries at most this much; the kernel caps it at fs.fuse.max_pages_limit.
pub(super) const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Requests the kernel keeps in flight for read-ahead and write-back.
const BACKGROUND_MAX: u16 = 64;
/// fsyncs that wait for the disk at once; more would not make it faster.
const SYNC_THREADS_MAX: usize = 16;

/// Serves one branch's filesystem to the kernel through /dev/fuse.
pub struct Adapter {
    calls: Arc<Calls>,
    sync_workers: Workers,
    /// Threads that serve requests and may wait for the disk at this moment.
    may_wait: Semaphore,
    /// Whether requests are to come by io_uring ([`super::ring`]) and only the rest to this.
    rings: bool,
}

impl Adapter {
    /// An adapter for `calls`, to be served by `threads` threads.
    pub fn new(calls: Arc<Calls>, threads: usize, rings: bool) -> Adapter {
        let sync_workers = Workers::new(SYNC_THREADS_MAX);
        Adapter { calls, sync_workers, may_wait: Semaphore::new(threads / 2), rings }
    }

    fn make(
        &self,
        request: &'static str,
        req: &Request,
        place: (INodeNo, &OsStr),
        new: &NewFile<'_>,
    ) -> Answer<Attributes> {
        let caller = Caller { uid: req.uid(), gid: req.gid() };
        self.calls.make(request, Ino(place.0.0), place.1.as_bytes(), new, caller)
    }

    /// Answers a sync: only a receipt makes it a success.
    fn sync_later(
        &self,
        reply: ReplyEmpty,
        sync: impl FnOnce(&Calls) -> Answer<Durable> + Send + 'static,
    ) {
        let calls = self.calls.clone();
        let work = move || match sync(&calls) {
            Ok(Durable { .. }) => reply.ok(),
            Err(errno) => reply.error(errno),
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
            (!self.calls.fs.options.write_through).then_some(InitFlags::FUSE_WRITEBACK_CACHE);
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
        // Asked for only if the rings can be served: without them every request would wait for ever.
        if self.rings && config.add_capabilities(InitFlags::FUSE_OVER_IO_URING).is_err() {
            return Err(std::io::Error::other("the kernel offers no FUSE over io_uring"));
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
        reply_entry(reply, self.calls.lookup(Ino(parent.0), name.as_bytes()));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.calls.fs.forget(Ino(ino.0), nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply_attr(reply, self.calls.attributes(Ino(ino.0)));
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
        let set = SetAttributes {
            perm: mode.map(permissions),
            uid,
            gid,
            size,
            atime: atime.map(chosen_time),
            mtime: mtime.map(chosen_time),
            ctime: ctime.map(from_system),
        };
        reply_attr(reply, self.calls.set_attributes(Ino(ino.0), set));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.calls.read_link(Ino(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
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
        let Some(kind) = kind_from_mode(mode) else {
            reply.error(Errno::EINVAL);
            return;
        };
        let new = NewFile { kind, perm: permissions(mode), rdev, symlink: b"" };
        reply_entry(reply, self.make("mknod", req, (parent, name), &new).map(Some));
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
        let kind = FileKind::Directory;
        let new = NewFile { kind, perm: permissions(mode), rdev: 0, symlink: b"" };
        reply_entry(reply, self.make("mkdir", req, (parent, name), &new).map(Some));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.calls.unlink(Ino(parent.0), name.as_bytes()));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.calls.rmdir(Ino(parent.0), name.as_bytes()));
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let symlink = target.as_os_str().as_bytes();
        let new = NewFile { kind: FileKind::Symlink, perm: 0o777, rdev: 0, symlink };
        reply_entry(reply, self.make("symlink", req, (parent, link_name), &new).map(Some));
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
        let from = (Ino(parent.0), name.as_bytes());
        let to = (Ino(newparent.0), newname.as_bytes());
        reply_empty(reply, self.calls.rename(from, to, flags.bits()));
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let linked = self.calls.link(Ino(ino.0), Ino(newparent.0), newname.as_bytes());
        reply_entry(reply, linked.map(Some));
    }

    /// Files need no handles: ENOSYS has the kernel stop sending OPEN and RELEASE altogether (and
    /// keep its cache over opens), which saves two round trips per file that a backend opens.
    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.calls.metrics.count(Kind::Open, Instant::now(), 0);
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        thread_local! {
            /// Fresh memory for each request would cost a page fault for every 4 KiB of it.
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        BUFFER.with_borrow_mut(|buf| {
            let size = size as usize;
            buf.resize(buf.len().max(size), 0);
            match self.calls.read(Ino(ino.0), offset, flags.0, &mut buf[..size]) {
                Ok(read) => reply.data(&buf[..read]),
                Err(errno) => reply.error(errno),
            }
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
        let from_cache = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let write = Write { ino: Ino(ino.0), offset, data, from_cache, open_flags: flags.0 };
        reply_written(reply, self.calls.write(&write).map(|()| data.len() as u32));
        if from_cache
            && self.calls.fs.sync_follows(Ino(ino.0))
            && let Some(_permit) = self.may_wait.try_enter()
        {
            self.calls.after_write(Ino(ino.0));
        }
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
        self.sync_later(reply, move |calls| calls.sync(Ino(ino.0)));
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        match self.calls.list(Ino(ino.0), offset) {
            Ok(lines) => {
                for line in lines {
                    let name = OsStr::from_bytes(&line.name);
                    if reply.add(INodeNo(line.ino.0), line.cookie, kind_of(line.kind), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.sync_later(reply, Calls::sync_dir);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.calls.room() {
            Ok(room) => {
                let ([all, free, available], [files, files_free]) = (room.blocks, room.inodes);
                let (preferred, block) = (room.preferred, room.block as u32);
                reply.statfs(all, free, available, files, files_free, preferred, 255, block);
            }
            Err(errno) => reply.error(errno),
        }
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
        reply_empty(reply, self.calls.set_xattr(Ino(ino.0), name.as_bytes(), value, flags));
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, self.calls.get_xattr(Ino(ino.0), name.as_bytes()));
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, self.calls.list_xattrs(Ino(ino.0)));
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.calls.remove_xattr(Ino(ino.0), name.as_bytes()));
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
        let kind = FileKind::Regular;
        let new = NewFile { kind, perm: permissions(mode), rdev: 0, symlink: b"" };
        match self.make("create", req, (parent, name), &new) {
            Ok(attributes) => reply.created(
                &FOREVER,
                &file_attr(&attributes),
                Generation(0),
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE,
            ),
            Err(errno) => reply.error(errno),
        }
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
        reply_empty(reply, self.calls.allocate(Ino(ino.0), offset, length, mode));
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
        self.calls.metrics.count(Kind::Lseek, Instant::now(), 0);
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
        let copied = self.calls.copy((Ino(ino_in.0), offset_in), (Ino(ino_out.0), offset_out), len);
        reply_written(reply, copied);
    }
}
