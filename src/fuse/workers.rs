//! Threads for requests that wait for the disk, so that reads are never stuck behind fsyncs.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

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
