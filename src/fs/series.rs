//! Many files synced one after the other: a checkpoint, the end of initdb, CREATE DATABASE.
//!
//! On a plain filesystem the data of all of them is on its way by then, for that is what was asked for
//! before (sync_file_range); the first fsync makes the places of all of them durable and those that follow
//! have little to wait for. On a mount the data is in the host's cache by then and no further, and every
//! fsync would find its own still to be given a place and to be written. So from the second file of a
//! series on, what waits in the open layer goes on its way first.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Fs;
use crate::format::Ino;

/// Syncs of a series follow each other within this.
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// Who syncs so many files in turns, again and again, syncs no series.
const IN_TURNS: usize = 4;
/// What goes on its way before one sync, in bytes: it has to wait for it.
const BYTES_MAX: u64 = 16 << 20;

/// Tells a series of syncs.
#[derive(Debug, Default)]
pub struct Series(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The files that were synced last.
    last: VecDeque<Ino>,
    in_progress: u32,
    /// When the last sync ended.
    ended: Option<Instant>,
}

impl Series {
    /// Notes that a sync of `ino` begins `now`. Whether it continues a series.
    fn begins(&self, ino: Ino, now: Instant) -> bool {
        let mut state = self.0.lock();
        let soon = state.ended.is_some_and(|ended| now.duration_since(ended) < PAUSE_MAX);
        let continues = (soon || state.in_progress > 0) && !state.last.contains(&ino);
        state.in_progress += 1;
        state.last.retain(|other| *other != ino);
        state.last.push_back(ino);
        if state.last.len() > IN_TURNS {
            state.last.pop_front();
        }
        continues
    }

    /// Notes that a sync has ended.
    fn ends(&self, now: Instant) {
        let mut state = self.0.lock();
        state.in_progress -= 1;
        state.ended = Some(now);
    }
}

impl Fs {
    /// Runs `sync` of `ino`. If that continues a series, what waits in the open layer is started before.
    pub(super) fn in_series<T>(&self, ino: Ino, sync: impl FnOnce() -> T) -> T {
        let view = self.branch.view();
        // A sync that has nothing to do says nothing.
        if !view.open.file(ino).is_some_and(|file| file.has_unsynced()) {
            return sync();
        }
        if self.series.begins(ino, Instant::now()) {
            view.open.write_out_waiting(BYTES_MAX);
        }
        let done = sync();
        self.series.ends(Instant::now());
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn another_file_soon_after_one_continues_a_series() {
        let (series, start) = (Series::default(), Instant::now());
        assert!(!series.begins(Ino(5), at(start, 0)));
        series.ends(at(start, 1000));
        assert!(series.begins(Ino(6), at(start, 1200)), "however long the first one took");
        assert!(series.begins(Ino(7), at(start, 9000)), "while another one is in progress");
        series.ends(at(start, 9100));
        series.ends(at(start, 9200));
        assert!(!series.begins(Ino(8), at(start, 9500)), "too late");
    }

    #[test]
    fn files_synced_in_turns_are_no_series() {
        let (series, start) = (Series::default(), Instant::now());
        let mut continued = 0;
        for round in 0..10 {
            for ino in 1..=IN_TURNS as u64 {
                continued += u32::from(series.begins(Ino(ino), at(start, round)));
                series.ends(at(start, round));
            }
        }
        assert_eq!(continued, IN_TURNS as u32 - 1, "only as long as each is a new one");
        assert!(series.begins(Ino(9), at(start, 10)));
    }
}
