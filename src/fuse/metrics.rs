//! Counts and latencies of requests by kind.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Latency buckets: bucket i counts requests that took less than 2^i microseconds.
const BUCKETS: usize = 32;

macro_rules! kinds {
    ($($kind:ident => $name:literal),* $(,)?) => {
        /// The kinds of request that are counted apart.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "named as in the FUSE protocol")]
        pub enum Kind { $($kind),* }

        const NAMES: &[&str] = &[$($name),*];
    };
}

kinds! {
    Lookup => "lookup", Getattr => "getattr", Setattr => "setattr", Create => "create",
    Open => "open", Read => "read", Write => "write", Release => "release", Fsync => "fsync",
    Readdir => "readdir", Rename => "rename", Unlink => "unlink", Fallocate => "fallocate",
    Lseek => "lseek", Copy => "copy_file_range", Xattr => "xattr", Other => "other",
}

#[derive(Default)]
struct Counter {
    count: AtomicU64,
    total_us: AtomicU64,
    bytes: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// Counters of one mount; cheap enough to stay on.
pub struct Metrics {
    counters: Vec<Counter>,
}

/// One kind of request, as reported.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RequestStats {
    /// The kind's name.
    pub kind: String,
    /// Requests answered.
    pub count: u64,
    /// Payload bytes read or written.
    pub bytes: u64,
    /// Microseconds in all.
    pub total_us: u64,
    /// Upper bound of the median latency in microseconds (a power of two).
    pub p50_us: u64,
    /// Upper bound of the 99th percentile in microseconds (a power of two).
    pub p99_us: u64,
    /// Requests by latency: number i counts those that took less than 2^i microseconds and no
    /// less than half of that. Ends with the slowest that was seen.
    #[serde(default)]
    pub buckets: Vec<u64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics { counters: NAMES.iter().map(|_| Counter::default()).collect() }
    }
}

impl Metrics {
    /// Counts a request of `kind` that began at `start`.
    pub fn count(&self, kind: Kind, start: Instant, bytes: u64) {
        let Some(counter) = self.counters.get(kind as usize) else { return };
        let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let bucket = (64 - micros.leading_zeros() as usize).min(BUCKETS - 1);
        counter.count.fetch_add(1, Ordering::Relaxed);
        counter.total_us.fetch_add(micros, Ordering::Relaxed);
        counter.bytes.fetch_add(bytes, Ordering::Relaxed);
        counter.buckets[bucket].fetch_add(1, Ordering::Relaxed);
    }

    /// The kinds of request that were seen.
    pub fn snapshot(&self) -> Vec<RequestStats> {
        let seen = NAMES.iter().zip(&self.counters);
        seen.filter(|(_, counter)| counter.count.load(Ordering::Relaxed) > 0)
            .map(|(name, counter)| RequestStats {
                kind: (*name).to_owned(),
                count: counter.count.load(Ordering::Relaxed),
                bytes: counter.bytes.load(Ordering::Relaxed),
                total_us: counter.total_us.load(Ordering::Relaxed),
                p50_us: counter.percentile(50),
                p99_us: counter.percentile(99),
                buckets: counter.seen_buckets(),
            })
            .collect()
    }
}

impl Counter {
    fn seen_buckets(&self) -> Vec<u64> {
        let mut counts: Vec<u64> = self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).collect();
        let used = counts.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        counts.truncate(used);
        counts
    }

    fn percentile(&self, percent: u64) -> u64 {
        let counts = self.seen_buckets();
        let wanted = (counts.iter().sum::<u64>() * percent).div_ceil(100);
        let mut seen = 0;
        for (bucket, count) in counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return 1 << bucket;
            }
        }
        1 << (BUCKETS - 1)
    }
}
