//! fsync: data first, then the journal, then a receipt.

use std::io;
use std::sync::atomic::Ordering;

use super::LayerError;
use super::log::Ticket;
use super::open::OpenLayer;
use super::open_file::OpenFile;
use crate::format::Ino;
use crate::format::journal::Record;
use crate::io::crash::{Point, crash_point};

/// Proof that what was asked for is on stable storage. Only code that synced can make one, and
/// the reply to an fsync takes one.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Durable(());

impl Durable {
    pub(super) fn witnessed() -> Durable {
        Durable(())
    }

    /// For files whose contents were durable before they became visible: sealed, finalized layers.
    pub fn sealed() -> Durable {
        Durable(())
    }
}

impl OpenLayer {
    /// Makes one file's data, its ownership and its inode durable as far as this layer holds them.
    ///
    /// A file with nothing unsynced costs no call to the host.
    pub fn sync_file(&self, ino: Ino) -> Result<Durable, LayerError> {
        let mut ticket = self.inode_ticket(ino);
        if let Some(file) = self.file(ino) {
            ticket = ticket.max(self.sync_data(&file)?);
        }
        self.log.sync_to(ticket)
    }

    /// Makes everything durable that this layer holds.
    pub fn sync_all(&self) -> Result<Durable, LayerError> {
        self.write_out_waiting(u64::MAX);
        for file in self.all_files() {
            self.sync_data(&file)?;
        }
        self.log.sync_to(self.log.last_ticket())
    }

    /// Makes names and inodes durable: what fsync of a directory promises.
    pub fn sync_names(&self) -> Result<Durable, LayerError> {
        self.log.sync_to(self.log.last_ticket())
    }

    /// fdatasync of one data file, then its ownership into the journal's queue.
    fn sync_data(&self, file: &OpenFile) -> Result<Ticket, LayerError> {
        // One at a time per file, and before looking whether there is anything to do: what a sync in
        // progress has taken looks clean already, and a second caller must not return before it.
        let _turn = file.sync_turn.lock();
        if !file.needs_sync() {
            return Ok(0);
        }
        let latched = || LayerError::Latched { layer: self.id, ino: file.ino };
        if file.is_latched() {
            return Err(latched());
        }
        // Ownership noted before this point has its data written: writers note it afterwards.
        let pending = file.take_pending();
        if file.dirty.swap(false, Ordering::AcqRel) {
            if let Err(source) = self.sync_host(file) {
                file.latch("fdatasync", &source);
                return Err(LayerError::Host {
                    layer: self.id,
                    what: "syncing a data file",
                    source,
                });
            }
            // Of what a write-out that failed has dropped, the sync has found nothing.
            file.wait_for_write_outs();
            if file.is_latched() {
                return Err(latched());
            }
        }
        file.unpin_if_clean();
        let mut ticket = 0;
        if let Some(delta) = pending {
            ticket = self.log.append_synced(&[Record::Layout(delta)]);
            file.layout_ticket.fetch_max(ticket, Ordering::AcqRel);
            crash_point(Point::SyncedQueued);
        }
        Ok(ticket.max(file.layout_ticket.load(Ordering::Acquire)))
    }

    fn sync_host(&self, file: &OpenFile) -> io::Result<()> {
        file.write_out.synced();
        let Some(host) = file.existing_host(&self.data)? else { return Ok(()) };
        host.sync_data().inspect_err(|_| {
            // What was not written counts as clean, and whoever opens the file next is told of no
            // error: only the disk may tell what there is.
            host.forget_clean_pages();
        })?;
        crash_point(Point::SyncedData);
        if !file.entry_durable.swap(true, Ordering::AcqRel) {
            self.data.sync_entry(self.id, file.ino)?;
            crash_point(Point::SyncedEntry);
        }
        Ok(())
    }
}
