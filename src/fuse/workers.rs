//! Threads for requests that wait for the disk, so that reads are never stuck behind fsyncs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

/// Lets a bounded number of threads do something at once.
pub struct Semaphore(AtomicUsize);

/// Permission by a [`Semaphore`], until it is dropped.
pub struct Permit<'a>(&'a Semaphore);

impl Semaphore {
    /// For at most `permits` threads at once.
    pub fn new(permits: usize) -> Semaphore {
        Semaphore(AtomicUsize::new(permits))
    }

    /// A permit if one is left; never waits.
    pub fn try_enter(&self) -> Option<Permit<'_>> {
        let take = |left: usize| left.checked_sub(1);
        self.0.fetch_update(Ordering::Acquire, Ordering::Relaxed, take).ok().map(|_| Permit(self))
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Release);
    }
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// A pool that grows on demand up to a limit; dropping it lets queued jobs finish.
pub struct Workers {
    shared: Arc<Shared>,
    limit: usize,
}

impl Workers {
    /// A pool of at most `limit` threads (at least 1), none of them started yet.
    pub fn new(limit: usize) -> Workers {
        Workers { shared: Arc::default(), limit: limit.max(1) }
    }

    /// Runs `job` on some thread, soon.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut queue = self.shared.queue.lock();
        queue.jobs.push_back(Box::new(job));
        if queue.idle == 0 && queue.threads < self.limit {
            let shared = self.shared.clone();
            let spawned = std::thread::Builder::new()
                .name("cowfs-sync".to_owned())
                .spawn(move || work(&shared));
            match spawned {
                Ok(_) => queue.threads += 1,
                Err(error) if queue.threads == 0 => {
                    // No thread to be had at all: do the work here, late rather than never.
                    tracing::warn!(%error, "no worker thread");
                    let job = queue.jobs.pop_back();
                    drop(queue);
                    if let Some(job) = job {
                        job();
                    }
                    return;
                }
                Err(error) => tracing::warn!(%error, "no further worker thread"),
            }
        }
        drop(queue);
        self.shared.changed.notify_one();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

fn work(shared: &Shared) {
    let mut queue = shared.queue.lock();
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            job();
            queue = shared.queue.lock();
        } else if queue.closed {
            return;
        } else {
            queue.idle += 1;
            shared.changed.wait(&mut queue);
            queue.idle -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn permits_come_back() {
        let semaphore = Semaphore::new(2);
        let first = semaphore.try_enter().unwrap();
        let second = semaphore.try_enter().unwrap();
        assert!(semaphore.try_enter().is_none());
        drop(first);
        assert!(semaphore.try_enter().is_some());
        drop(second);
        assert!(Semaphore::new(0).try_enter().is_none());
    }
}
