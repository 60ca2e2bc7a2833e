//! Commits, seen from below: a write to the WAL and, a moment later, the fsync that it was for.
//!
//! The kernel sends them one after the other, each a round trip. A file that was synced after every
//! single write will be synced after the next one, too: the disk can begin as soon as the write is
//! answered, while the fsync is still on its way. Who asks for the sync then finds it in progress
//! or done. Nothing is promised by it: the answer to the fsync still waits for a sync of its own.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::node::Node;
use super::{Fs, FsError};
use crate::format::Ino;
use crate::layer::sync::Durable;

/// What the last requests for a file looked like.
#[derive(Debug, Default)]
pub struct Commits {
    /// Writes since the last fsync.
    writes: AtomicU32,
    /// That fsync came after a single write.
    alternate: AtomicBool,
}

impl Commits {
    fn wrote(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    fn synced(&self) {
        let single = self.writes.swap(0, Ordering::Relaxed) == 1;
        self.alternate.store(single, Ordering::Relaxed);
    }

    fn sync_follows(&self) -> bool {
        self.alternate.load(Ordering::Relaxed) && self.writes.load(Ordering::Relaxed) == 1
    }
}

impl Fs {
    pub(super) fn note_commit_write(&self, node: &Node) {
        if node.is_wal() {
            node.commits.wrote();
        }
    }

    /// Tells that somebody asked for a sync of the file. Whether that is a commit: the file is WAL.
    pub(super) fn note_commit_sync(&self, ino: Ino) -> bool {
        let wal = self.node(ino).ok().filter(|node| node.is_wal());
        if let Some(node) = &wal {
            node.commits.synced();
        }
        wal.is_some()
    }

    /// Whether a write that was just answered is probably half of a commit.
    pub fn sync_follows(&self, ino: Ino) -> bool {
        self.node(ino).is_ok_and(|node| node.is_wal() && node.commits.sync_follows())
    }

    /// Begins the sync that will be asked for. A failure is that of the file: it latches, and the
    /// fsync that follows fails.
    pub fn sync_ahead(&self, ino: Ino) -> Result<Durable, FsError> {
        Ok(self.branch.sync_file(ino)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_write_after_a_commit_of_one_write_is_half_of_one() {
        let commits = Commits::default();
        commits.wrote();
        assert!(!commits.sync_follows(), "nothing is known yet");
        commits.synced();
        assert!(!commits.sync_follows(), "nothing was written");
        commits.wrote();
        assert!(commits.sync_follows());
        commits.wrote();
        assert!(!commits.sync_follows(), "more than one write");
        commits.synced();
        commits.wrote();
        assert!(!commits.sync_follows(), "the last commit took two writes");
    }
}
