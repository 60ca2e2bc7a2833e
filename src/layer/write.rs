//! Writing to a file of the open layer: take ownership where needed, then write.
//!
//! Order within one write, each step before the next: the bytes reach the data file; the volatile
//! log says that the granules are owned; readers see them as owned; the caller replies. A failure
//! before the second step leaves the old contents visible, so nothing half-applied ever shows.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::LayerError;
use super::open::OpenLayer;
use super::open_file::OpenFile;
use super::owner_map::OwnerMap;
use crate::format::id::granules_spanned;
use crate::format::journal::Record;
use crate::format::{GRANULE_BYTES, Granule, GranuleRange, LayoutDelta, OwnedRun};
use crate::io::crash::{Point, crash_point};
use crate::io::{Allocate, HostFile, write_all_at};

fn covering(offset: u64, len: u64) -> GranuleRange {
    GranuleRange { start: (offset / GRANULE_BYTES) as Granule, end: granules_spanned(offset + len) }
}

/// One file being changed: the layer, the file in it, and what lies below.
pub struct Target<'a> {
    /// The open layer.
    pub layer: &'a OpenLayer,
    /// The file in it.
    pub file: &'a Arc<OpenFile>,
    /// The owners below the open layer.
    pub lower: &'a OwnerMap,
}

impl Target<'_> {
    /// Writes `data` at `offset`, growing the file if it ends past its end.
    ///
    /// A write that fails leaves the size and the contents of granules not owned before as they
    /// were.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), LayerError> {
        let outcome = self.try_write(offset, data);
        if outcome.is_err() {
            self.undo_growth();
        }
        outcome
    }

    /// Tells the log of an earlier cut, if it could not be told then.
    fn catch_up(&self) -> Result<(), LayerError> {
        let mut unlogged = self.file.unlogged.lock();
        if let Some(delta) = &*unlogged {
            self.layer.log.append_volatile(&[Record::Layout(delta.clone())])?;
            *unlogged = None;
        }
        Ok(())
    }

    fn try_write(&self, offset: u64, data: &[u8]) -> Result<(), LayerError> {
        self.catch_up()?;
        let range = covering(offset, data.len() as u64);
        {
            let _shared = self.file.writers.read();
            if !self.copies_up(range, offset, data.len() as u64) {
                return self.write_owned(range, offset, data);
            }
        }
        let _exclusive = self.file.writers.write();
        self.copy_up_edges(range, offset, data.len() as u64)?;
        self.write_owned(range, offset, data)
    }

    /// Whether a granule at an edge is written in part, is not owned yet, and has bytes below.
    fn copies_up(&self, range: GranuleRange, offset: u64, len: u64) -> bool {
        self.edges(range, offset, len).iter().flatten().any(|granule| self.needs_filling(*granule))
    }

    fn edges(&self, range: GranuleRange, offset: u64, len: u64) -> [Option<Granule>; 2] {
        let end = offset + len;
        let head = !offset.is_multiple_of(GRANULE_BYTES);
        // Past the end of the file nothing lies below that would have to be kept.
        let tail = !end.is_multiple_of(GRANULE_BYTES) && end < self.file.size();
        let last = range.end - 1;
        [head.then_some(range.start), (tail && !(head && last == range.start)).then_some(last)]
    }

    /// Whether reading `granule` now would read a lower layer.
    pub(super) fn shows_lower(&self, granule: Granule) -> bool {
        let own = self.file.ownership.read();
        if own.private {
            return own.borrowed.at(granule, granule + 1).0.is_some();
        }
        !own.present.contains(granule)
            && granule < own.floor
            && self.lower.at(granule, granule + 1).0.is_some()
    }

    /// Whether the data file's bytes of `granule` must be made those that reading it shows, before
    /// it may be owned by writing a part of it.
    fn needs_filling(&self, granule: Granule) -> bool {
        if self.shows_lower(granule) {
            return true;
        }
        let own = self.file.ownership.read();
        self.file.strays.load(Ordering::Acquire) && !own.private && !own.present.contains(granule)
    }

    /// Copies the lower contents of partly written granules into the data file. They count as
    /// owned only together with the write that follows.
    fn copy_up_edges(&self, range: GranuleRange, offset: u64, len: u64) -> Result<(), LayerError> {
        for granule in self.edges(range, offset, len).into_iter().flatten() {
            if self.needs_filling(granule) {
                self.copy_up(GranuleRange { start: granule, end: granule + 1 })?;
            }
        }
        Ok(())
    }

    /// Copies what lower layers show of `range` into the data file, up to the file's size. Where
    /// they show nothing the data file has a hole, unless it has strays: those become zeros.
    pub(super) fn copy_up(&self, range: GranuleRange) -> Result<(), LayerError> {
        let host = self.host()?;
        let size = self.file.size();
        let borrowed;
        let (floor, lower) = {
            let own = self.file.ownership.read();
            borrowed = own.borrowed.within(range);
            if own.private { (Granule::MAX, &borrowed) } else { (own.floor, self.lower) }
        };
        let strays = self.file.strays.load(Ordering::Acquire);
        let mut buf = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (run, end) =
                if at < floor { lower.at(at, range.end.min(floor)) } else { (None, range.end) };
            // 1 MiB at a time bounds memory.
            let end = end.min(at.saturating_add(256));
            let start_byte = u64::from(at) * GRANULE_BYTES;
            let end_byte = (u64::from(end) * GRANULE_BYTES).min(size);
            if start_byte < end_byte && (run.is_some() || strays) {
                buf.clear();
                buf.resize((end_byte - start_byte) as usize, 0);
                if let Some(run) = run {
                    let source = u64::from(run.source + (at - run.start)) * GRANULE_BYTES;
                    self.layer.data.read_run(run, &mut buf, source)?;
                }
                self.write_host(&host, &buf, start_byte)?;
                crash_point(Point::OwnerCopiedUp);
            }
            at = end;
        }
        Ok(())
    }

    fn write_host(
        &self,
        host: &Arc<dyn HostFile>,
        data: &[u8],
        offset: u64,
    ) -> Result<(), LayerError> {
        let outcome = write_all_at(&**host, data, offset);
        // After the write: a sync that came in between must find the file dirty again.
        self.file.mark_dirty(host);
        self.file.write_out.wrote(offset, data.len() as u64);
        outcome.map_err(|source| {
            // Some of it may be there: not visible, and not to become visible by a later write.
            self.file.strays.store(true, Ordering::Release);
            LayerError::Host { layer: self.layer.id, what: "writing", source }
        })
    }

    /// After a failed write past the end: the data file's length is the file's size again.
    ///
    /// A failure here is not reported, the first error is; whatever is left past the end then
    /// counts as the file's contents after a remount.
    fn undo_growth(&self) {
        let _exclusive = self.file.writers.write();
        let Ok(host) = self.host() else { return };
        let size = self.file.size();
        match host.metadata() {
            Ok(meta) if meta.len <= size => {}
            _ => {
                if let Err(error) = host.set_len(size) {
                    tracing::warn!(ino = %self.file.ino, %error, "taking back a failed write");
                }
            }
        }
    }

    fn write_owned(&self, range: GranuleRange, offset: u64, data: &[u8]) -> Result<(), LayerError> {
        let host = self.host()?;
        self.write_host(&host, data, offset)?;
        crash_point(Point::WriteStored);
        self.claim(range)?;
        crash_point(Point::WriteOwned);
        let mut own = self.file.ownership.write();
        own.size = own.size.max(offset + data.len() as u64);
        Ok(())
    }

    /// Makes `range` owned, unless it is; its contents must be in the data file already.
    fn claim(&self, range: GranuleRange) -> Result<(), LayerError> {
        {
            let own = self.file.ownership.read();
            let owned = if own.private {
                !own.borrowed.touches(range)
            } else {
                own.present.contains_all(range)
            };
            if owned {
                return Ok(());
            }
        }
        let delta = LayoutDelta { added: vec![range], ..LayoutDelta::unchanged(self.file.ino) };
        let recorded = self.record(&delta);
        if recorded.is_err() {
            // The bytes are there and do not count.
            self.file.strays.store(true, Ordering::Release);
        }
        recorded
    }

    pub(super) fn record(&self, delta: &LayoutDelta) -> Result<(), LayerError> {
        self.layer.log.append_volatile(&[Record::Layout(delta.clone())])?;
        self.file.apply(delta);
        Ok(())
    }

    /// Makes the file `size` bytes long; what is cut off is gone, what is added reads as zeros.
    pub fn truncate(&self, size: u64) -> Result<(), LayerError> {
        let _exclusive = self.file.writers.write();
        self.catch_up()?;
        let old_size = self.file.size();
        let host = self.host()?;
        let (private, logged) = {
            let own = self.file.ownership.read();
            (own.private, !own.private || !own.borrowed.is_empty())
        };
        let end = granules_spanned(size);
        let mut delta = LayoutDelta::unchanged(self.file.ino);
        if logged && size < old_size {
            delta.cut = end;
            delta.floor = if private { Granule::MAX } else { end };
            delta.private = private || size == 0;
            if !size.is_multiple_of(GRANULE_BYTES) && self.shows_lower(end - 1) {
                // The rest of the last granule must read as zeros when the file grows again.
                let last = GranuleRange { start: end - 1, end };
                self.copy_up(last)?;
                delta.added.push(last);
            }
        }
        host.set_len(size).map_err(self.host_error("truncating"))?;
        self.file.mark_dirty(&host);
        crash_point(Point::CutDone);
        if logged
            && size < old_size
            && let Err(error) = self.record(&delta)
        {
            // It has happened: the data file is shorter, and recovery would find that out. What must
            // not happen is that the file grows again before the log knows.
            tracing::warn!(ino = %self.file.ino, %error, "a cut could not be logged yet");
            self.file.apply(&delta);
            *self.file.unlogged.lock() = Some(delta);
        }
        crash_point(Point::CutLogged);
        self.file.ownership.write().size = size;
        Ok(())
    }

    /// Takes the whole file over, once: from then on it is private and its fsync is one fdatasync.
    pub fn take_over(&self) -> Result<(), LayerError> {
        let _exclusive = self.file.writers.write();
        let own = self.file.ownership.read().clone();
        if own.private {
            return Ok(());
        }
        let end = granules_spanned(own.size);
        let mut at = 0;
        while at < end {
            let (present, run_end) = own.present.run_at(at, end);
            if !present {
                self.copy_up(GranuleRange { start: at, end: run_end })?;
            }
            at = run_end;
        }
        crash_point(Point::TakenOver);
        self.record(&LayoutDelta { private: true, ..LayoutDelta::unchanged(self.file.ino) })
    }

    /// Shows `runs` of finalized layers as granules of this private file, which must be whole ones;
    /// the file then has at least `size` bytes. Takes no space, and copies nothing.
    pub fn borrow(&self, runs: Vec<OwnedRun>, size: u64) -> Result<(), LayerError> {
        let exclusive = self.file.writers.write();
        self.catch_up()?;
        let outcome = self.try_borrow(runs, size);
        drop(exclusive);
        if outcome.is_err() {
            self.undo_growth();
        }
        outcome
    }

    /// Makes the file at least `size` bytes long; what is added reads as zeros.
    pub fn grow(&self, size: u64) -> Result<(), LayerError> {
        let _exclusive = self.file.writers.write();
        self.catch_up()?;
        self.grow_host(size)?;
        let mut own = self.file.ownership.write();
        own.size = own.size.max(size);
        Ok(())
    }

    fn grow_host(&self, size: u64) -> Result<(), LayerError> {
        if size > self.file.size() {
            let host = self.host()?;
            host.set_len(size).map_err(self.host_error("growing"))?;
            self.file.mark_dirty(&host);
        }
        Ok(())
    }

    fn try_borrow(&self, runs: Vec<OwnedRun>, size: u64) -> Result<(), LayerError> {
        self.grow_host(size)?;
        let unchanged = LayoutDelta::unchanged(self.file.ino);
        self.record(&LayoutDelta { private: true, borrowed: runs, ..unchanged })?;
        let mut own = self.file.ownership.write();
        own.size = own.size.max(size);
        Ok(())
    }

    /// Makes `offset..offset + len` read as zeros; the size does not change.
    ///
    /// `punch` frees blocks of the host; otherwise they stay allocated.
    pub fn zero(&self, offset: u64, len: u64, punch: bool) -> Result<(), LayerError> {
        let _exclusive = self.file.writers.write();
        self.catch_up()?;
        let size = self.file.size();
        let end = offset.saturating_add(len).min(size);
        if offset >= end {
            return Ok(());
        }
        let range = covering(offset, end - offset);
        self.copy_up_edges(range, offset, end - offset)?;
        let host = self.host()?;
        let mode = if punch { Allocate::PunchHole } else { Allocate::ZeroKeepSize };
        host.allocate(mode, offset, end - offset).map_err(self.host_error("zeroing"))?;
        self.file.mark_dirty(&host);
        crash_point(Point::ZeroDone);
        self.claim(range)
    }

    /// Reserves space of the host for `offset..offset + len`; may grow the file.
    pub fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<(), LayerError> {
        let exclusive = self.file.writers.write();
        self.catch_up()?;
        let host = self.host()?;
        let mode = if keep_size { Allocate::KeepSize } else { Allocate::Extend };
        if let Err(source) = host.allocate(mode, offset, len) {
            drop(exclusive);
            self.undo_growth();
            return Err(self.host_error("allocating")(source));
        }
        self.file.mark_dirty(&host);
        if !keep_size {
            let mut own = self.file.ownership.write();
            own.size = own.size.max(offset + len);
        }
        Ok(())
    }

    fn host(&self) -> Result<Arc<dyn HostFile>, LayerError> {
        self.file.host(&self.layer.data).map_err(self.host_error("opening a data file"))
    }

    fn host_error(&self, what: &'static str) -> impl FnOnce(std::io::Error) -> LayerError + use<> {
        LayerError::host(self.layer.id, what)
    }
}
