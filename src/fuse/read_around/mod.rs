//! Pages around those that are read here and there, fetched into the kernel's cache of the mount.
//!
//! Each page that the kernel does not have is a request, which takes as much processor time as the rest
//! of a short query. Where several pages of a region were asked for one by one, the others will be
//! too: the kernel is asked to read the rest of the region, which is a request or two. The server cannot
//! put pages into the kernel's cache itself (`FUSE_NOTIFY_STORE` overwrites what was changed and is not
//! written back yet); the kernel's own read-ahead leaves alone what is there. So a thread of ours opens
//! the file and gives posix_fadvise(2), like any other user of the mount; the serving threads answer.
//! What it gains is in docs/design/2026-11-29-read-around.md.
//!
//! By itself it takes only memory that nobody uses for anything.

mod regions;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use parking_lot::Mutex;

use self::regions::{REGION_BYTES, Regions};
use crate::format::Ino;
use crate::io::sys;

/// Regions that wait to be fetched, at most; further ones are passed over.
const WAITING_MAX: usize = 256;
/// A region that has waited longer is not fetched any more: our open file would keep the mount busy after
/// its users have gone.
const WAITING_TIME_MAX: Duration = Duration::from_millis(50);
/// Memory is to spare while one part in so many is used by nobody, not even for caches.
const UNUSED_MEMORY_PART: u64 = 8;
/// The root of every FUSE mount.
const ROOT: Ino = Ino(1);

struct Wanted {
    ino: Ino,
    offset: u64,
    since: Instant,
}

/// Watches the reads of a mount.
pub struct ReadAround {
    start: Instant,
    /// Also where memory is short.
    always: bool,
    regions: Mutex<Regions>,
    wanted: SyncSender<Wanted>,
    fetched: Arc<AtomicU64>,
    refused: Arc<AtomicBool>,
}

impl ReadAround {
    /// Begins for the mount at `dir`, which is being served; `always` or only while there is memory to
    /// spare.
    ///
    /// It opens files by their numbers. That takes `CAP_DAC_READ_SEARCH`; without it nothing is fetched.
    pub fn start(dir: PathBuf, always: bool) -> io::Result<ReadAround> {
        let (wanted, queue) = sync_channel(WAITING_MAX);
        let fetched = Arc::<AtomicU64>::default();
        let refused = Arc::<AtomicBool>::default();
        let fetcher = Fetcher { dir, fetched: fetched.clone() };
        let say_refused = refused.clone();
        std::thread::Builder::new().name("cowfs-around".to_owned()).spawn(move || {
            let Err(error) = fetcher.open(ROOT) else { return fetcher.run(&queue) };
            tracing::info!(%error, "pages around a read are not fetched");
            say_refused.store(true, Ordering::Relaxed);
        })?;
        let regions = Mutex::default();
        Ok(ReadAround { start: Instant::now(), always, regions, wanted, fetched, refused })
    }

    /// Notes that a request of the kernel for `len` bytes was answered.
    pub fn note_read(&self, ino: Ino, offset: u64, len: u64) {
        if self.refused.load(Ordering::Relaxed) {
            return;
        }
        let now_s = u32::try_from(self.start.elapsed().as_secs()).unwrap_or(u32::MAX / 2);
        let Some(offset) = self.regions.lock().note(ino, offset, len, now_s) else { return };
        if self.always || is_memory_to_spare() {
            // Full or closed: then this one is read page by page.
            let _ = self.wanted.try_send(Wanted { ino, offset, since: Instant::now() });
        }
    }

    /// Regions whose rest was fetched; `None` if that is not permitted.
    pub fn fetched(&self) -> Option<u64> {
        (!self.refused.load(Ordering::Relaxed)).then(|| self.fetched.load(Ordering::Relaxed))
    }
}

fn is_memory_to_spare() -> bool {
    nix::sys::sysinfo::sysinfo()
        .is_ok_and(|memory| memory.ram_unused() >= memory.ram_total() / UNUSED_MEMORY_PART)
}

/// The thread that asks the kernel.
struct Fetcher {
    dir: PathBuf,
    fetched: Arc<AtomicU64>,
}

impl Fetcher {
    fn run(&self, queue: &Receiver<Wanted>) {
        while let Ok(wanted) = queue.recv() {
            if wanted.since.elapsed() > WAITING_TIME_MAX {
                continue;
            }
            match self.fetch(&wanted) {
                Ok(()) => _ = self.fetched.fetch_add(1, Ordering::Relaxed),
                // The mount is gone, or elsewhere, or the kernel has let the inode go.
                Err(error) => tracing::debug!(ino = %wanted.ino, %error, "not read around"),
            }
        }
    }

    fn fetch(&self, wanted: &Wanted) -> io::Result<()> {
        let file = self.open(wanted.ino)?;
        let (offset, len) = (wanted.offset as i64, REGION_BYTES as i64);
        Ok(posix_fadvise(file.as_fd(), offset, len, PosixFadviseAdvice::POSIX_FADV_WILLNEED)?)
    }

    /// Opened anew each time, and never for long: an open file keeps the mount busy.
    fn open(&self, ino: Ino) -> io::Result<std::fs::File> {
        let mount = open_directory(&self.dir)?;
        sys::open_fuse_inode(mount.as_fd(), ino.0)
    }
}

fn open_directory(dir: &Path) -> io::Result<std::fs::File> {
    std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(dir)
}
