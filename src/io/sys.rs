//! Every `unsafe` call of the crate, each behind a small safe function.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

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

/// `preadv2(RWF_DONTCACHE)`: reads without keeping in the page cache what was not there before.
/// Fails with `EOPNOTSUPP` where the kernel (before 6.14) or the filesystem does not know it.
pub fn read_uncached(fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: the one buffer is writable for its length and outlives the call.
    let read = unsafe {
        libc::preadv2(fd.as_raw_fd(), &raw const iov, 1, offset as i64, libc::RWF_DONTCACHE)
    };
    if read < 0 { Err(io::Error::last_os_error()) } else { Ok(read as usize) }
}

/// Makes the calling thread give way to everybody else, for the processor and for the disk.
/// A hint: where it is refused, the thread runs like any other.
pub fn yield_to_others() {
    const IOPRIO_WHO_PROCESS: libc::c_long = 1;
    const IOPRIO_CLASS_IDLE: libc::c_long = 3 << 13;
    const THIS_THREAD: libc::c_long = 0;
    const LOWEST: libc::c_int = 19;
    // SAFETY: neither takes a pointer, and both change only the calling thread (on Linux a
    // "process" of these calls is a thread).
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, LOWEST);
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, THIS_THREAD, IOPRIO_CLASS_IDLE);
    }
}

/// While it lives, the calling thread and the threads that it starts meanwhile are real-time
/// threads (`SCHED_RR`, lowest priority); those it has started stay so.
#[must_use = "the thread is an ordinary one again as soon as this is dropped"]
pub struct RealTime(());

impl RealTime {
    /// Needs `CAP_SYS_NICE` or a limit on real-time priority (`ulimit -r`) above 0.
    pub fn begin() -> io::Result<RealTime> {
        schedule(libc::SCHED_RR, 1).map(|()| RealTime(()))
    }
}

impl Drop for RealTime {
    fn drop(&mut self) {
        if let Err(error) = schedule(libc::SCHED_OTHER, 0) {
            tracing::warn!(%error, "a thread stays a real-time thread");
        }
    }
}

fn schedule(policy: libc::c_int, priority: libc::c_int) -> io::Result<()> {
    const THIS_THREAD: libc::pid_t = 0;
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the parameters outlive the call, which changes only the calling thread.
    let done = unsafe { libc::sched_setscheduler(THIS_THREAD, policy, &raw const parameters) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `sync_file_range(SYNC_FILE_RANGE_WRITE)`: starts write-out and does not wait. Where there is no such call
/// nothing is started.
///
/// # Errors
/// The host could not begin: ext4 that finds no place for pages may drop them, and tell nobody else.
pub fn start_write_out(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = (offset as i64, len as i64);
    // SAFETY: no pointers.
    let done =
        unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    if done == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EINVAL | libc::ESPIPE | libc::EOPNOTSUPP) => Ok(()),
        _ => Err(error),
    }
}

/// Opens the inode `nodeid` of the FUSE mount that `mount` lies in, for reading, by `open_by_handle_at(2)`.
///
/// Only what the kernel has in its cache can be opened so: anything else is `ESTALE`. Needs
/// `CAP_DAC_READ_SEARCH`.
pub fn open_fuse_inode(mount: BorrowedFd<'_>, nodeid: u64) -> io::Result<std::fs::File> {
    /// `FILEID_INO64_GEN` of `<linux/exportfs.h>`; what follows is laid out as in `fuse_encode_fh`
    /// (fs/fuse/inode.c): node id, high half first, then the generation, which is always 0 here.
    const FILEID_INO64_GEN: libc::c_int = 0x81;
    const HANDLE_BYTES: u32 = 12;
    #[repr(C)]
    struct Handle {
        bytes: libc::c_uint,
        kind: libc::c_int,
        nodeid: [u32; 2],
        generation: u32,
    }
    let mut handle = Handle {
        bytes: HANDLE_BYTES,
        kind: FILEID_INO64_GEN,
        nodeid: [(nodeid >> 32) as u32, nodeid as u32],
        generation: 0,
    };
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the structure begins like a `file_handle` and has as many bytes after that as it says;
    // it outlives the call. A descriptor that comes back is new and nobody else's.
    unsafe {
        let fd = libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), flags);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(std::os::fd::FromRawFd::from_raw_fd(fd))
    }
}

/// Gives the calling thread descriptors of its own, of which it has standard input, output and error and
/// none else: what it opens from here on it alone has, and what others have open it has not.
/// `close_range(2)` with `CLOSE_RANGE_UNSHARE` (Linux 5.9).
pub fn own_descriptors() -> io::Result<()> {
    const FIRST: libc::c_uint = libc::STDERR_FILENO as libc::c_uint + 1;
    // SAFETY: descriptors that other threads own stay open in their table; this thread, which is to
    // own none yet, loses sight of them.
    let done = unsafe {
        libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Pages of the file in the page cache that were changed and not written back, or are being written back:
/// `cachestat(2)` (Linux 6.5).
pub fn changed_pages(fd: BorrowedFd<'_>) -> io::Result<u64> {
    /// The same on all architectures that Rust and Postgres have in common; not all of libc's have it.
    const SYS_CACHESTAT: libc::c_long = 451;
    #[repr(C)]
    struct Range {
        offset: u64,
        len: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Counts {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    // A length of 0 means up to the end.
    let range = Range { offset: 0, len: 0 };
    let mut counts = Counts::default();
    // SAFETY: both structures are laid out as in <linux/mman.h> and outlive the call.
    let done = unsafe {
        let (range, counts) = (&raw const range, &raw mut counts);
        libc::syscall(SYS_CACHESTAT, fd.as_raw_fd(), range, counts, 0_u32)
    };
    if done == 0 { Ok(counts.dirty + counts.writeback) } else { Err(io::Error::last_os_error()) }
}

/// Requests of the kernel's FUSE side, one at a time, by way of an io_uring of their own (Linux
/// 6.14; `FUSE_OVER_IO_URING` in `<linux/fuse.h>`, Documentation/filesystems/fuse/fuse-io-uring.rst).
///
/// The kernel writes a request into the two buffers and completes; the answer is written into the
/// same buffers, and one system call hands it over and waits for the next request.
pub struct FuseSlot {
    // Before the buffers: dropping it ends the kernel's use of them.
    ring: io_uring::IoUring<io_uring::squeue::Entry128>,
    device: std::os::fd::OwnedFd,
    queue: u16,
    header: Box<[u8; FuseSlot::HEADER_BYTES]>,
    payload: memmap2::MmapMut,
    /// What the registration points to.
    vectors: Box<[libc::iovec; 2]>,
}

// SAFETY: the pointers in `vectors` lead to buffers that the slot owns and that do not move.
unsafe impl Send for FuseSlot {}

impl FuseSlot {
    /// `struct fuse_uring_req_header`: 128 bytes for `fuse_in_header` or `fuse_out_header`, 128 for
    /// what is fixed for each operation, 32 for `fuse_uring_ent_in_out`.
    pub const HEADER_BYTES: usize = 288;
    const REGISTER: u32 = 1;
    const COMMIT_AND_FETCH: u32 = 2;

    /// A slot of the queue `queue` (the number of a processor) of an initialised FUSE connection,
    /// for requests with at most `payload_bytes` beside their header. Belongs to the thread that
    /// makes it.
    pub fn new(device: BorrowedFd<'_>, queue: u16, payload_bytes: usize) -> io::Result<FuseSlot> {
        let ring =
            io_uring::IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(2)?;
        let mut header = Box::new([0; FuseSlot::HEADER_BYTES]);
        let mut payload = memmap2::MmapMut::map_anon(payload_bytes)?;
        let vector = |base: *mut u8, len| libc::iovec { iov_base: base.cast(), iov_len: len };
        let vectors = Box::new([
            vector(header.as_mut_ptr(), header.len()),
            vector(payload.as_mut_ptr(), payload.len()),
        ]);
        let device = device.try_clone_to_owned()?;
        Ok(FuseSlot { ring, device, queue, header, payload, vectors })
    }

    /// Whether this process may have rings of this kind at all.
    pub fn supported() -> bool {
        let mut builder = io_uring::IoUring::<io_uring::squeue::Entry128>::builder();
        builder.setup_single_issuer().setup_defer_taskrun().build(2).is_ok()
    }

    /// Offers the slot to the kernel; [`FuseSlot::wait`] has its first request.
    pub fn register(&mut self) -> io::Result<()> {
        self.push(FuseSlot::REGISTER, 0)?;
        self.ring.submit()?;
        // What is refused is refused at once; the rest completes with a request.
        self.completed().unwrap_or(Ok(()))
    }

    /// Waits for a request.
    pub fn wait(&mut self) -> io::Result<()> {
        loop {
            if let Some(result) = self.completed() {
                return result;
            }
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
    }

    /// Hands over the answer to the request `commit`, and waits for the next request.
    pub fn commit_and_wait(&mut self, commit: u64) -> io::Result<()> {
        self.push(FuseSlot::COMMIT_AND_FETCH, commit)?;
        self.wait()
    }

    fn completed(&mut self) -> Option<io::Result<()>> {
        let result = self.ring.completion().next()?.result();
        Some(if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) })
    }

    /// The header and the payload of the request at hand.
    pub fn buffers(&mut self) -> (&mut [u8; FuseSlot::HEADER_BYTES], &mut [u8]) {
        (&mut self.header, &mut self.payload)
    }

    fn push(&mut self, operation: u32, commit: u64) -> io::Result<()> {
        use io_uring::squeue::Entry128;
        /// Where `len` lies in a submission queue entry.
        const LEN_AT: usize = 24;
        // struct fuse_uring_cmd_req: flags, commit_id, qid.
        let mut command = [0_u8; 80];
        command[8..16].copy_from_slice(&commit.to_ne_bytes());
        command[16..18].copy_from_slice(&self.queue.to_ne_bytes());
        let device = io_uring::types::Fd(self.device.as_raw_fd());
        let built = io_uring::opcode::UringCmd80::new(device, operation).cmd(command);
        let mut entry = if operation == FuseSlot::REGISTER {
            built.addr(Some(self.vectors.as_ptr() as u64)).build()
        } else {
            built.build()
        };
        if operation == FuseSlot::REGISTER {
            // SAFETY: an entry is 128 plain bytes (io_uring_sqe), and stays a valid one with
            // another `len`, which the builder does not set.
            unsafe {
                let bytes: *mut [u8; 128] = (&raw mut entry).cast();
                let len = (self.vectors.len() as u32).to_ne_bytes();
                (&mut (*bytes))[LEN_AT..LEN_AT + 4].copy_from_slice(&len);
            }
            const { assert!(size_of::<Entry128>() == 128) };
        }
        // SAFETY: the buffers that the kernel may write to from now on live as long as the ring,
        // and `&mut self` is held until it has finished with them.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(io::Error::other)
    }
}

/// Maps a file that nobody changes (a sealed index) for reading.
pub fn map_immutable(file: &std::fs::File) -> io::Result<memmap2::Mmap> {
    // SAFETY: the callers map sealed files only; cowfs never changes one after its rename into
    // place. If somebody else truncates it, the process gets SIGBUS and the branch ends there:
    // no wrong bytes are served (docs/SEMANTICS.md lists it among the assumptions).
    unsafe { memmap2::Mmap::map(file) }
}

/// `ioctl(FICLONE)`: makes `target` share all extents of `source`, without copying.
pub fn clone_file(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: FICLONE takes the source descriptor by value; both are open for the borrow.
    let result = unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONE, source.as_raw_fd()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `ioctl(FICLONERANGE)`: has `len` bytes of `target` at `to` share the extents of `source` at `from`.
pub fn clone_range(
    source: BorrowedFd<'_>,
    from: u64,
    target: BorrowedFd<'_>,
    to: u64,
    len: u64,
) -> io::Result<()> {
    let range = libc::file_clone_range {
        src_fd: i64::from(source.as_raw_fd()),
        src_offset: from,
        src_length: len,
        dest_offset: to,
    };
    // SAFETY: the argument is the structure that the request wants, and outlives the call; both
    // descriptors are open for the borrow.
    let result = unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONERANGE, &raw const range) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `lsetxattr(2)`.
pub fn set_xattr(path: &std::path::Path, name: &[u8], value: &[u8]) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let name = std::ffi::CString::new(name)?;
    // SAFETY: both strings end with a zero byte, the value is readable for its length, and all of
    // them outlive the call.
    let result = unsafe {
        libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the file has extended attributes that people set: `user.*` or an access control list.
///
/// `fd` may be opened with `O_PATH`. Without `/proc`, or where attributes do not exist: no.
pub fn has_portable_xattrs(fd: BorrowedFd<'_>) -> bool {
    // flistxattr refuses O_PATH descriptors; their links in /proc are followed to the file itself.
    let Ok(path) = std::ffi::CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())) else {
        return false;
    };
    // SAFETY: a null list of size 0 asks for the size only; the path is NUL-terminated.
    let size = unsafe { libc::listxattr(path.as_ptr(), std::ptr::null_mut(), 0) };
    let Ok(size @ 1..) = usize::try_from(size) else { return false };
    // Room for what is added in between; a list that outgrows it is not worth a loop.
    let mut names = vec![0_u8; size + 256];
    // SAFETY: the buffer is as long as said; the path is NUL-terminated.
    let size = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let Some(names) = usize::try_from(size).ok().and_then(|size| names.get(..size)) else {
        return false;
    };
    names
        .split(|byte| *byte == 0)
        .any(|name| name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_"))
}

/// `PR_SET_IO_FLUSHER` of `<linux/prctl.h>` (Linux 5.6); the libc crate does not have it.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// `prctl(PR_SET_IO_FLUSHER)`: the kernel never waits for this process' own write-back when this
/// process asks it for memory. Needs `CAP_SYS_RESOURCE`; threads started later inherit it.
pub fn set_io_flusher() -> io::Result<()> {
    // SAFETY: takes no pointers and changes only flags of the calling thread.
    let done = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1_u64, 0_u64, 0_u64, 0_u64) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The user that a process is to run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// User id.
    pub uid: libc::uid_t,
    /// Primary group.
    pub gid: libc::gid_t,
    /// Supplementary groups.
    pub groups: Vec<libc::gid_t>,
}

/// Has `command` run with `credentials`, if given, and in a session of its own if `detached`: out
/// of reach of the terminal's signals. A detached process creates files for its user alone.
pub fn prepare_process(command: &mut Command, credentials: Option<Credentials>, detached: bool) {
    let prepare = move || {
        if let Some(credentials) = &credentials {
            become_user(credentials)?;
        }
        if detached {
            // SAFETY: both take no pointers and are safe between fork and exec. setsid fails only
            // for the leader of a process group, which a new process is not.
            unsafe {
                libc::setsid();
                libc::umask(0o077);
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec nothing is allocated or locked, only system calls are made;
    // the closure owns what it reads.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Changes the ids of this process for good, groups first: afterwards it may not any more.
fn become_user(credentials: &Credentials) -> io::Result<()> {
    let Credentials { uid, gid, groups } = credentials;
    // SAFETY: the list of groups is valid for its length; the other calls take no pointers.
    let done = unsafe {
        libc::setgroups(groups.len(), groups.as_ptr()) == 0
            && libc::setresgid(*gid, *gid, *gid) == 0
            && libc::setresuid(*uid, *uid, *uid) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Changes the effective ids and the groups of the calling thread alone.
///
/// Linux keeps ids per thread; the wrappers of libc change those of all, so they are passed by.
/// For a thread that does one thing as somebody else and then ends.
pub fn become_user_in_this_thread(credentials: &Credentials) -> io::Result<()> {
    const KEEP: libc::c_long = -1;
    let Credentials { uid, gid, groups } = credentials;
    // SAFETY: the list of groups is valid for its length; the other calls take ids only.
    let done = unsafe {
        libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) == 0
            && libc::syscall(libc::SYS_setresgid, KEEP, libc::c_long::from(*gid), KEEP) == 0
            && libc::syscall(libc::SYS_setresuid, KEEP, libc::c_long::from(*uid), KEEP) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}
