//! Early write-out: written pages go on their way to the disk before somebody waits for them.
//!
//! Postgres' checkpoints, like every careful writer, hand their pages over in small batches
//! (`checkpoint_flush_after`) and expect little to be left for the fsync at the end. On a mount that
//! moves pages from the kernel's cache to the host's and no further; the disk would stand idle and
//! the fsync find everything still to do.

use std::ops::Range;

use parking_lot::Mutex;

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

    /// Bytes written since the last sync.
    pub fn unsynced_bytes(&self) -> u64 {
        self.0.lock().unsynced
    }

    /// The stretch of the file to write out now, once, if it is time.
    pub fn take_due(&self) -> Option<Range<u64>> {
        let mut batch = self.0.lock();
        let due = batch.bytes >= BATCH_BYTES;
        due.then(|| {
            batch.bytes = 0;
            std::mem::take(&mut batch.span)
        })
    }

    /// Notes that a sync has begun, which takes everything.
    pub fn synced(&self) {
        *self.0.lock() = Batch::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn what_is_synced_is_not_written_out_again() {
        let out = WriteOut::default();
        out.wrote(0, BATCH_BYTES - 1);
        out.synced();
        out.wrote(1 << 30, 1);
        assert_eq!(out.take_due(), None);
    }
}
