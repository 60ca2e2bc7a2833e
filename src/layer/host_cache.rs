//! Whether the host's page cache is to keep what is read of sealed layers.
//!
//! What a mount has read lies in the kernel's cache of that mount. A second copy, in the host's cache,
//! is of use to the other mounted branches that read the same data files. Where there are none it
//! only takes memory: with room for a database once and not twice, keeping both copies cost half of
//! the reads from memory (`docs/design/2026-11-28-data-path.md`).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// How long an answer is relied on, in milliseconds: another branch may be mounted, or the last one
/// unmounted, at any time, and nothing but memory depends on it.
const LOOK_EVERY_MS: u64 = 2000;

/// Says whether somebody else reads the data files.
type AskOthers = Box<dyn Fn() -> bool + Send + Sync>;

/// Decides for each read of a sealed layer.
pub struct HostCache {
    others: OnceLock<AskOthers>,
    begin: Instant,
    next_look_ms: AtomicU64,
    keep: AtomicBool,
}

impl Default for HostCache {
    /// Keeps everything until [`HostCache::ask`].
    fn default() -> HostCache {
        HostCache {
            others: OnceLock::new(),
            begin: Instant::now(),
            next_look_ms: AtomicU64::new(0),
            keep: AtomicBool::new(true),
        }
    }
}

impl HostCache {
    /// From now on pages are kept only while `others` says that somebody else reads them. It is
    /// called from time to time, by whoever reads just then.
    pub fn ask(&self, others: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.others.set(Box::new(others));
    }

    /// Whether a page that is read now is to stay in the host's cache.
    pub fn keeps(&self) -> bool {
        if let Some(others) = self.others.get() {
            let now = self.begin.elapsed().as_millis() as u64;
            let due = self.next_look_ms.load(Ordering::Relaxed);
            let turn = |due| {
                let next = now + LOOK_EVERY_MS;
                let order = Ordering::Relaxed;
                self.next_look_ms.compare_exchange(due, next, order, order).is_ok()
            };
            if now >= due && turn(due) {
                self.keep.store(others(), Ordering::Relaxed);
            }
        }
        self.keep.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn without_an_answer_everything_is_kept() {
        assert!(HostCache::default().keeps());
    }

    #[test]
    fn others_are_asked_for_once_in_a_while() {
        let asked = Arc::new(AtomicU64::new(0));
        let (cache, count) = (HostCache::default(), asked.clone());
        cache.ask(move || count.fetch_add(1, Ordering::Relaxed) > 0);
        assert!(!cache.keeps());
        assert!(!cache.keeps());
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        cache.next_look_ms.store(0, Ordering::Relaxed);
        assert!(cache.keeps());
    }
}
