//! Pages around those that are read here and there, fetched into the kernel's cache of the mount.
//!
//! Each page that the kernel does not have is a request, which takes as much processor time as the rest
//! of a short query. Where several pages of a region were asked for one by one, the others will be
//! too: the kernel is asked to read the rest of the region, which is a request or two. The server cannot
//! put pages into the kernel's cache itself (`FUSE_NOTIFY_STORE` overwrites what was changed and is not
//! written back yet); the kernel's own read-ahead leaves alone what is there. So a thread of ours opens
//! the file and gives posix_fadvise(2), like any other user of the mount; the serving threads answer.
//! What it gains, and what it must not do, is in docs/design/2026-11-29-read-around.md.

mod fetcher;
mod memory;
mod regions;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use self::fetcher::{Fetcher, Order, Wanted};
use self::memory::Memory;
use self::regions::Regions;
use crate::format::Ino;

/// Regions that wait to be fetched, at most; further ones are passed over.
const WAITING_MAX: usize = 256;
/// Seconds of rest after a write has failed: the disk is full or broken, and whoever wrote is to be told
/// by close(2), which says what went wrong to the first who closes the file.
const REST_S: u32 = 60;
/// How long it may take until the mount is let go.
const LET_GO_PATIENCE: Duration = Duration::from_secs(1);

/// What was fetched so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadAroundStats {
    /// Regions of 256 KiB of which the kernel was asked to read what it did not have.
    pub regions: u64,
    /// How often one was worth it and not fetched: memory was short, the disk had just failed a write, or
    /// too many were waiting.
    pub passed_over: u64,
}

/// Common to those who note reads and to the one who fetches.
struct Shared {
    start: Instant,
    regions: Mutex<Regions>,
    /// No files are opened or closed until then, in seconds since `start`.
    rest_until_s: AtomicU32,
    fetched: AtomicU64,
    passed_over: AtomicU64,
}

impl Shared {
    fn now_s(&self) -> u32 {
        u32::try_from(self.start.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    fn is_at_rest(&self) -> bool {
        self.now_s() < self.rest_until_s.load(Ordering::Relaxed)
    }

    fn pass_over(&self) {
        self.passed_over.fetch_add(1, Ordering::Relaxed);
    }
}

/// Watches the reads of a mount.
pub struct ReadAround {
    shared: Arc<Shared>,
    /// `None`: also where memory is short.
    memory: Option<Mutex<Memory>>,
    orders: SyncSender<Order>,
}

impl ReadAround {
    /// Begins for the mount at `dir`, which is being served; `always`, or only while there is memory to
    /// spare. `write_back`: the kernel may have changed pages that were not written back yet.
    ///
    /// Fails without `CAP_DAC_READ_SEARCH`, by which files are opened by their numbers, and before Linux
    /// 6.5 if there is write-back: it lacks cachestat(2).
    pub fn start(dir: PathBuf, always: bool, write_back: bool) -> io::Result<ReadAround> {
        let shared = Arc::new(Shared {
            start: Instant::now(),
            regions: Mutex::default(),
            rest_until_s: AtomicU32::new(0),
            fetched: AtomicU64::new(0),
            passed_over: AtomicU64::new(0),
        });
        let (orders, queue) = sync_channel(WAITING_MAX);
        let (ready, started) = sync_channel(1);
        let common = shared.clone();
        let thread = std::thread::Builder::new().name("cowfs-around".to_owned());
        thread.spawn(move || match Fetcher::new(dir, write_back, common) {
            Ok(fetcher) => {
                let _ = ready.send(Ok(()));
                fetcher.run(&queue);
            }
            Err(error) => drop(ready.send(Err(error))),
        })?;
        started.recv().map_err(io::Error::other)??;
        let memory = (!always).then(|| Mutex::new(Memory::new()));
        Ok(ReadAround { shared, memory, orders })
    }

    /// Notes that a request of the kernel for `len` bytes was answered.
    pub fn note_read(&self, ino: Ino, offset: u64, len: u64) {
        let shared = &self.shared;
        let worth = shared.regions.lock().note(ino, offset, len, shared.now_s());
        let Some(offset) = worth else { return };
        let memory = self.memory.as_ref().is_none_or(|memory| memory.lock().is_to_spare());
        let order = Order::Fetch(Wanted { ino, offset, since: Instant::now() });
        if !memory || shared.is_at_rest() || self.orders.try_send(order).is_err() {
            shared.pass_over();
        }
    }

    /// Notes that a write has failed.
    pub fn note_failed_write(&self) {
        let until_s = self.shared.now_s().saturating_add(REST_S);
        self.shared.rest_until_s.fetch_max(until_s, Ordering::Relaxed);
    }

    /// Closes what is open, so that the mount can be taken away.
    pub fn let_go(&self) {
        let (done, closed) = sync_channel(1);
        if self.orders.try_send(Order::LetGo(done)).is_ok() {
            let _ = closed.recv_timeout(LET_GO_PATIENCE);
        }
    }

    /// What was fetched so far.
    pub fn stats(&self) -> ReadAroundStats {
        ReadAroundStats {
            regions: self.shared.fetched.load(Ordering::Relaxed),
            passed_over: self.shared.passed_over.load(Ordering::Relaxed),
        }
    }
}
