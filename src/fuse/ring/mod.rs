//! Requests by io_uring instead of by reading /dev/fuse (Linux 6.14).
//!
//! The kernel has a queue for each processor and puts a request into that of the processor on
//! which the caller runs. A thread with a slot in the queue answers it and waits for the next one
//! in a single system call. What is not a request for an answer (FORGET, INTERRUPT) still comes
//! through /dev/fuse, to [`super::adapter`].

mod dispatch;
mod wire;

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use self::dispatch::{Incoming, answer};
use self::wire::{Fields, InHeader, OUT_HEADER_BYTES, Writer};
use super::adapter::REQUEST_BYTES_MAX;
use super::calls::Calls;
use crate::io::sys::FuseSlot;

/// Threads that one queue gets at most, all waiting for the disk at once. One is always left to
/// take requests as long as there are fewer.
const THREADS_PER_QUEUE_MAX: usize = 16;
/// The kernel says EAGAIN as long as it has not digested the answer to INIT.
const REGISTER_TRIES: u32 = 200;
const REGISTER_PAUSE: Duration = Duration::from_millis(5);
/// A request's payload: the data of a READ or WRITE, and room to spare for the smallest buffer
/// that the kernel accepts.
const PAYLOAD_BYTES: usize = REQUEST_BYTES_MAX as usize;

/// Where the kernel says how many queues there are: as many as processors could ever be.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
/// Where it says whether FUSE may use io_uring.
pub const ENABLED: &str = "/sys/module/fuse/parameters/enable_uring";

/// Whether the kernel takes requests by io_uring now. What it says may change with the next mount.
pub fn available() -> bool {
    let enabled = std::fs::read_to_string(ENABLED).is_ok_and(|text| text.trim() == "Y");
    enabled && FuseSlot::supported()
}

/// Has the kernel take requests by io_uring from the next mount on; only root may.
pub fn enable() -> io::Result<()> {
    // Never creates the file, which an older kernel does not have.
    std::fs::OpenOptions::new().write(true).open(ENABLED).and_then(|mut file| file.write_all(b"Y"))
}

type Said = mpsc::Sender<io::Result<()>>;

/// The queues of one mount, with the threads that serve them.
pub struct Rings {
    shared: Arc<Shared>,
}

struct Shared {
    calls: Arc<Calls>,
    device: OwnedFd,
    queues: Vec<Queue>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Queue {
    /// Threads that have, or are about to have, a slot in it.
    threads: AtomicUsize,
    /// Those of them that are answering a request.
    busy: AtomicUsize,
}

impl Rings {
    /// Begins to serve an initialised connection whose device is `device`. Until every queue has a
    /// slot, the kernel holds all requests back.
    pub fn start(device: BorrowedFd<'_>, calls: Arc<Calls>) -> io::Result<Rings> {
        let queues = possible_processors()?;
        let shared = Arc::new(Shared {
            calls,
            device: device.try_clone_to_owned()?,
            queues: (0..queues).map(|_| Queue::default()).collect(),
            threads: Mutex::default(),
        });
        let rings = Rings { shared };
        let (said, offered) = mpsc::channel();
        for queue in 0..queues {
            rings.shared.add_thread(queue, Some(said.clone()))?;
        }
        drop(said);
        for _ in 0..queues {
            offered.recv().unwrap_or_else(|_| Err(io::Error::other("a serving thread ended")))?;
        }
        Ok(rings)
    }

    /// Waits until the mount is gone and the last thread has ended.
    pub fn wait(self) {
        loop {
            // A thread may have started another one just before it ended.
            let threads = std::mem::take(&mut *self.shared.threads.lock());
            if threads.is_empty() {
                return;
            }
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a serving thread panicked");
                }
            }
        }
    }
}

impl Shared {
    fn add_thread(self: &Arc<Shared>, queue: usize, said: Option<Said>) -> io::Result<()> {
        let shared = self.clone();
        let mut threads = self.threads.lock();
        self.queues[queue].threads.fetch_add(1, Ordering::Relaxed);
        let spawned = std::thread::Builder::new()
            .name(format!("cowfs-queue-{queue}"))
            .spawn(move || shared.serve(queue, said));
        match spawned {
            Ok(thread) => {
                threads.push(thread);
                Ok(())
            }
            Err(error) => {
                self.queues[queue].threads.fetch_sub(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// Serves one slot until the mount is gone. Whether the kernel took the slot goes to `said`.
    fn serve(self: &Arc<Shared>, queue: usize, said: Option<Said>) {
        let offered = self.offer(queue);
        let (offered, slot) = match offered {
            Ok(slot) => (Ok(()), Some(slot)),
            Err(error) => (Err(error), None),
        };
        let ended = match (said, offered) {
            (Some(said), offered) => said.send(offered).map_err(io::Error::other),
            (None, offered) => offered,
        };
        let ended = ended.and_then(|()| slot.map_or(Ok(()), |slot| self.serve_slot(queue, slot)));
        self.queues[queue].threads.fetch_sub(1, Ordering::Relaxed);
        if let Err(error) = ended {
            match error.raw_os_error() {
                // The kernel's ways to say "unmounted".
                Some(libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV | libc::ECANCELED) => {}
                _ => tracing::error!(%error, queue, "a serving thread ended"),
            }
        }
    }

    fn offer(&self, queue: usize) -> io::Result<FuseSlot> {
        let mut slot = FuseSlot::new(self.device.as_fd(), queue as u16, PAYLOAD_BYTES)?;
        for _ in 1..REGISTER_TRIES {
            match slot.register() {
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                    std::thread::sleep(REGISTER_PAUSE);
                }
                other => return other.map(|()| slot),
            }
        }
        slot.register().map(|()| slot)
    }

    fn serve_slot(self: &Arc<Shared>, queue: usize, mut slot: FuseSlot) -> io::Result<()> {
        slot.wait()?;
        loop {
            self.leave_one_idle(queue);
            let commit = self.answer(&mut slot);
            self.queues[queue].busy.fetch_sub(1, Ordering::Relaxed);
            slot.commit_and_wait(commit)?;
        }
    }

    /// Sees to it that somebody is left to take the next request while this thread is busy.
    fn leave_one_idle(self: &Arc<Shared>, queue: usize) {
        let this = &self.queues[queue];
        let busy = this.busy.fetch_add(1, Ordering::Relaxed) + 1;
        let threads = this.threads.load(Ordering::Relaxed);
        if busy >= threads
            && threads < THREADS_PER_QUEUE_MAX
            && let Err(error) = self.add_thread(queue, None)
        {
            tracing::warn!(%error, "no further serving thread");
        }
    }

    /// Answers the request in the slot's buffers, in place; gives the number under which the
    /// kernel knows it.
    fn answer(&self, slot: &mut FuseSlot) -> u64 {
        /// `struct fuse_uring_req_header`: the operation's fixed part, and the slot's own.
        const FIXED: std::ops::Range<usize> = 128..256;
        const SLOT: std::ops::Range<usize> = 256..288;
        let (head, payload) = slot.buffers();
        let own = Fields(&head[SLOT]);
        let (commit, payload_len) = (own.u64(8), own.u32(16) as usize);
        let header = InHeader::of(&head[..128]);
        let fixed = &head[FIXED];
        let request = Incoming { header, fixed, payload, payload_len };
        let (error, len) = match answer(&self.calls, request) {
            Ok(len) => (0, len),
            Err(errno) => (-errno.code(), 0),
        };
        Writer::new(&mut head[..OUT_HEADER_BYTES])
            .u32((OUT_HEADER_BYTES + len) as u32)
            .u32(error.cast_unsigned())
            .u64(header.unique);
        Writer::new(&mut head[SLOT]).u64(0).u64(commit).u32(len as u32);
        commit
    }
}

fn possible_processors() -> io::Result<usize> {
    let text = std::fs::read_to_string(POSSIBLE)?;
    count_processors(&text).ok_or_else(|| io::Error::other(format!("{POSSIBLE} says {text:?}")))
}

/// Queues that a list like `0-7` or `0,2-3` asks for: one for every number up to the last.
fn count_processors(list: &str) -> Option<usize> {
    let last = list.trim().rsplit([',', '-']).next()?;
    Some(last.parse::<usize>().ok()? + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted_up_to_the_last() {
        assert_eq!(count_processors("0-7\n"), Some(8));
        assert_eq!(count_processors("0"), Some(1));
        assert_eq!(count_processors("0,2-3"), Some(4));
        assert_eq!(count_processors(""), None);
    }
}
