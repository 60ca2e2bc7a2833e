//! Early write-out: written pages go on their way to the disk before somebody waits for them.
//!
//! Postgres' checkpoints, like every careful writer, hand their pages over in small batches
//! (`checkpoint_flush_after`) and expect little to be left for the fsync at the end. On a mount that
//! moves pages from the kernel's cache to the host's and no further; the disk would stand idle and
//! the fsync find everything still to do.
//!
//! What is too little for a batch is known as well ([`Waiting`]): where many files are synced one after
//! the other, all of them can go on their way before the second (`fs/series`).

use std::ops::Range;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::open_file::OpenFile;

/// So much of a file is written before its write-out begins: what Postgres takes for a checkpoint.
const BATCH_BYTES: u64 = 256 << 10;

/// What was written to a data file and is not on its way yet.
#[derive(Debug, Default)]
pub struct WriteOut(Mutex<Batch>);

#[derive(Debug, Default)]
struct Batch {
    bytes: u64,
    /// What was written since the last sync, on its way or not.
    unsynced: u64,
    /// Where they lie.
    span: Range<u64>,
    /// The file is in the layer's list of those that wait.
    listed: bool,
}

impl WriteOut {
    /// Notes a write of `len` bytes at `offset`.
    pub fn wrote(&self, offset: u64, len: u64) {
        let mut batch = self.0.lock();
        let written = offset..offset + len;
        batch.span = match batch.bytes {
            0 => written,
            _ => batch.span.start.min(written.start)..batch.span.end.max(written.end),
        };
        batch.bytes += len;
        batch.unsynced += len;
    }

    /// Whether something waits and the file is in no list. It is taken to be in one then.
    pub fn is_to_be_listed(&self) -> bool {
        let mut batch = self.0.lock();
        batch.bytes > 0 && !std::mem::replace(&mut batch.listed, true)
    }

    /// Bytes written since the last sync.
    pub fn unsynced_bytes(&self) -> u64 {
        self.0.lock().unsynced
    }

    /// The stretch of the file to write out now, once, if it is time.
    pub fn take_due(&self) -> Option<Range<u64>> {
        let mut batch = self.0.lock();
        (batch.bytes >= BATCH_BYTES).then(|| batch.take())
    }

    /// The stretch of the file that waits, and how many bytes of it were written, of a file that is not
    /// listed any more.
    pub fn take_waiting(&self) -> Option<(Range<u64>, u64)> {
        let mut batch = self.0.lock();
        batch.listed = false;
        let bytes = batch.bytes;
        (bytes > 0).then(|| (batch.take(), bytes))
    }

    /// Notes that a sync has begun, which takes everything.
    pub fn synced(&self) {
        let mut batch = self.0.lock();
        *batch = Batch { listed: batch.listed, ..Batch::default() };
    }
}

impl Batch {
    fn take(&mut self) -> Range<u64> {
        self.bytes = 0;
        std::mem::take(&mut self.span)
    }
}

/// So many files are listed before those are dropped that are gone.
const PRUNED_FROM: usize = 1024;

/// The files of a layer of which something waits to be written out, each once. Some may have been synced
/// since they were listed, and some may be gone: they are not kept for this.
#[derive(Default)]
pub struct Waiting(Mutex<List>);

#[derive(Default)]
struct List {
    files: Vec<Weak<OpenFile>>,
    /// When to look for those that are gone.
    prune_at: usize,
}

impl Waiting {
    /// Lists a file that [`OpenFile::is_to_be_listed`].
    pub fn add(&self, file: &Arc<OpenFile>) {
        self.list(std::iter::once(Arc::downgrade(file)));
    }

    fn list(&self, files: impl Iterator<Item = Weak<OpenFile>>) {
        let mut list = self.0.lock();
        list.files.extend(files);
        if list.files.len() >= list.prune_at.max(PRUNED_FROM) {
            list.files.retain(|file| file.strong_count() > 0);
            list.prune_at = list.files.len() * 2;
        }
    }

    /// Starts to write out what waits of the files that are `wanted`, until `bytes` of it were handed
    /// over; the rest stays listed.
    pub(super) fn start(&self, mut bytes: u64, wanted: impl Fn(&OpenFile) -> bool) {
        let mut files = std::mem::take(&mut *self.0.lock()).files.into_iter();
        while bytes > 0
            && let Some(file) = files.next()
        {
            // One at a time: a file that is removed meanwhile is not held up.
            let Some(file) = file.upgrade() else { continue };
            if wanted(&file) {
                bytes = bytes.saturating_sub(file.start_waiting());
            }
        }
        self.list(files);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Ino, LayerId};

    #[test]
    fn a_batch_goes_as_one_stretch() {
        let out = WriteOut::default();
        let page = 8192;
        let batch = BATCH_BYTES / page;
        for at in (1..batch).rev() {
            out.wrote(at * 10 * page, page);
            assert_eq!(out.take_due(), None);
        }
        let last = (batch - 1) * 10 * page + page;
        out.wrote(5 * page, page);
        assert_eq!(out.take_due(), Some(5 * page..last));
        out.wrote(0, page);
        assert_eq!(out.take_due(), None, "the next batch begins empty");
    }

    #[test]
    fn a_large_write_goes_at_once() {
        let out = WriteOut::default();
        out.wrote(4096, 1 << 20);
        assert_eq!(out.take_due(), Some(4096..4096 + (1 << 20)));
    }

    #[test]
    fn a_file_is_listed_once_until_it_is_taken() {
        let out = WriteOut::default();
        assert!(!out.is_to_be_listed());
        out.wrote(0, 10);
        assert!(out.is_to_be_listed() && !out.is_to_be_listed());
        out.synced();
        out.wrote(4096, 10);
        assert!(!out.is_to_be_listed(), "it is in the list");
        assert_eq!(out.take_waiting(), Some((4096..4106, 10)));
        out.wrote(0, 10);
        assert!(out.is_to_be_listed());
        out.synced();
        assert_eq!(out.take_waiting(), None, "a sync has taken it");
    }

    fn listed(waiting: &Waiting) -> usize {
        waiting.0.lock().files.len()
    }

    #[test]
    fn files_that_are_gone_leave_the_list() {
        let waiting = Waiting::default();
        let file = |ino| Arc::new(OpenFile::new(LayerId(1), Ino(ino), true, 0));
        let kept = file(1);
        waiting.add(&kept);
        for ino in 2..3 * PRUNED_FROM as u64 {
            waiting.add(&file(ino));
            assert!(listed(&waiting) < 2 * PRUNED_FROM);
        }
        waiting.start(1, |_| true);
        assert_eq!(listed(&waiting), 0, "nothing waited, so all were looked at");
    }

    #[test]
    fn what_is_too_much_stays_listed() {
        let waiting = Waiting::default();
        let files: Vec<_> = (1..9)
            .map(|ino| {
                let file = Arc::new(OpenFile::new(LayerId(1), Ino(ino), true, 0));
                file.write_out.wrote(0, 1000);
                assert!(file.is_to_be_listed());
                waiting.add(&file);
                file
            })
            .collect();
        waiting.start(2500, |_| true);
        assert_eq!(listed(&waiting), 5);
        assert!(!files[7].is_to_be_listed(), "it still is");
        waiting.start(u64::MAX, |_| true);
        assert_eq!(listed(&waiting), 0);
    }

    #[test]
    fn what_is_synced_is_not_written_out_again() {
        let out = WriteOut::default();
        out.wrote(0, BATCH_BYTES - 1);
        out.synced();
        out.wrote(1 << 30, 1);
        assert_eq!(out.take_due(), None);
    }
}
