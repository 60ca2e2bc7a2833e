//! Many files synced one after the other: a checkpoint, the end of initdb, CREATE DATABASE.
//!
//! On a plain filesystem the data of all of them is on its way by then, for that is what was asked for
//! before (sync_file_range); the first fsync makes the places of all of them durable and those that follow
//! have little to wait for. On a mount the data is in the host's cache by then and no further, and every
//! fsync would find its own still to be given a place and to be written. So the second file of a series
//! has all that waits go on its way.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Fs;
use super::node::Node;
use crate::branch::View;
use crate::format::Ino;

/// Syncs of a series follow each other within this.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Tells a series of syncs.
#[derive(Debug, Default)]
pub struct Series(Mutex<Option<(Ino, Instant)>>);

impl Series {
    /// Notes a sync of `ino` that begins `now`. Whether it continues a series.
    fn continues(&self, ino: Ino, now: Instant) -> bool {
        let mut last = self.0.lock();
        let continues = last
            .is_some_and(|(other, ended)| other != ino && now.duration_since(ended) < PAUSE_MAX);
        *last = Some((ino, now));
        continues
    }

    /// Notes that the sync of `ino` has ended.
    fn ended(&self, ino: Ino, now: Instant) {
        let mut last = self.0.lock();
        if last.is_some_and(|(of, _)| of == ino) {
            *last = Some((ino, now));
        }
    }
}

impl Fs {
    /// Runs `sync` of a file, after what it hints at was begun.
    pub(super) fn in_series<T>(&self, view: &View, ino: Ino, sync: impl FnOnce() -> T) -> T {
        let own = view.open.file(ino).is_some_and(|file| file.needs_sync());
        // A commit tells nothing, nor does a sync that has nothing to do.
        if !own || self.is_wal(ino) {
            return sync();
        }
        if self.series.continues(ino, Instant::now()) {
            self.write_out_waiting(view);
        }
        let done = sync();
        self.series.ended(ino, Instant::now());
        done
    }

    /// Has everything go on its way to the disk that somebody may want to be there.
    fn write_out_waiting(&self, view: &View) {
        for file in view.open.waiting.take() {
            let Some(start) = file.waiting_write_out() else { continue };
            let kept =
                |node: Arc<Node>| self.is_to_be_kept(&node) && !node.wal.load(Ordering::Relaxed);
            if self.node(file.ino).is_ok_and(kept) {
                start();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_soon_after_one_continues_a_series() {
        let (series, start) = (Series::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert!(!series.continues(Ino(5), at(0)));
        series.ended(Ino(5), at(100));
        assert!(series.continues(Ino(6), at(120)), "however long the first one took");
        assert!(!series.continues(Ino(6), at(130)), "the same file again");
        assert!(!series.continues(Ino(7), at(200)), "too late");
        assert!(series.continues(Ino(5), at(210)));
    }
}
