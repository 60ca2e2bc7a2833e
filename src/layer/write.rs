//! Writing to a file of the open layer: take ownership where needed, then write.
//!
//! Order within one write, each step before the next: the bytes reach the data file; the volatile
//! log says that the granules are owned; readers see them as owned; the caller replies. A failure
//! before the second step leaves the old contents visible, so nothing half-applied ever shows.

use std::sync::Arc;

use super::LayerError;
use super::open::OpenLayer;
use super::open_file::OpenFile;
use super::owner_map::OwnerMap;
use crate::format::id::granules_spanned;
use crate::format::journal::Record;
use crate::format::{GRANULE_BYTES, Granule, GranuleRange, LayoutDelta};
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
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), LayerError> {
        let range = covering(offset, data.len() as u64);
        {
            let _shared = self.file.writers.read();
            if !self.copies_up(range, offset, data.len() as u64) {
                return self.write_owned(range, offset, data);
            }
        }
        let _exclusive = self.file.writers.write();
        let mut claimed = Vec::new();
        self.copy_up_edges(range, offset, data.len() as u64, &mut claimed)?;
        self.write_owned(range, offset, data)
    }

    /// Whether a granule at an edge is written in part, is not owned yet, and has bytes below.
    fn copies_up(&self, range: GranuleRange, offset: u64, len: u64) -> bool {
        self.edges(range, offset, len).iter().flatten().any(|granule| self.shows_lower(*granule))
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
    fn shows_lower(&self, granule: Granule) -> bool {
        let own = self.file.ownership.read();
        !own.private
            && !own.present.contains(granule)
            && granule < own.floor
            && self.lower.at(granule, granule + 1).0.is_some()
    }

    /// Copies the lower contents of partly written granules into the data file. They count as
    /// owned only together with the write that follows.
    fn copy_up_edges(
        &self,
        range: GranuleRange,
        offset: u64,
        len: u64,
        claimed: &mut Vec<GranuleRange>,
    ) -> Result<(), LayerError> {
        for granule in self.edges(range, offset, len).into_iter().flatten() {
            if self.shows_lower(granule) {
                let range = GranuleRange { start: granule, end: granule + 1 };
                self.copy_up(range)?;
                claimed.push(range);
            }
        }
        Ok(())
    }

    /// Copies what lower layers hold of `range` into the data file, up to the file's size.
    fn copy_up(&self, range: GranuleRange) -> Result<(), LayerError> {
        let host = self.host()?;
        let size = self.file.size();
        let floor = self.file.ownership.read().floor;
        let mut buf = Vec::new();
        let mut at = range.start;
        while at < range.end.min(floor) {
            let (run, end) = self.lower.at(at, range.end.min(floor));
            // 1 MiB at a time bounds memory and the time between two looks at the clock.
            let end = end.min(at.saturating_add(256));
            if let Some(run) = run {
                let start_byte = u64::from(at) * GRANULE_BYTES;
                let end_byte = (u64::from(end) * GRANULE_BYTES).min(size);
                if start_byte < end_byte {
                    buf.resize((end_byte - start_byte) as usize, 0);
                    let source = u64::from(run.source + (at - run.start)) * GRANULE_BYTES;
                    self.layer.data.read_run(run, &mut buf, source)?;
                    write_all_at(&*host, &buf, start_byte).map_err(self.host_error("writing"))?;
                }
            }
            at = end;
        }
        self.file.mark_dirty(&host);
        Ok(())
    }

    fn write_owned(&self, range: GranuleRange, offset: u64, data: &[u8]) -> Result<(), LayerError> {
        let host = self.host()?;
        write_all_at(&*host, data, offset).map_err(self.host_error("writing"))?;
        self.file.mark_dirty(&host);
        self.claim(range)?;
        let mut own = self.file.ownership.write();
        own.size = own.size.max(offset + data.len() as u64);
        Ok(())
    }

    /// Makes `range` owned, unless it is; its contents must be in the data file already.
    fn claim(&self, range: GranuleRange) -> Result<(), LayerError> {
        {
            let own = self.file.ownership.read();
            if own.private || own.present.contains_all(range) {
                return Ok(());
            }
        }
        let delta = LayoutDelta { added: vec![range], ..LayoutDelta::unchanged(self.file.ino) };
        self.record(&delta)
    }

    fn record(&self, delta: &LayoutDelta) -> Result<(), LayerError> {
        self.layer.log.append_volatile(&[Record::Layout(delta.clone())])?;
        self.file.apply(delta);
        Ok(())
    }

    /// Makes the file `size` bytes long; what is cut off is gone, what is added reads as zeros.
    pub fn truncate(&self, size: u64) -> Result<(), LayerError> {
        let _exclusive = self.file.writers.write();
        let old_size = self.file.size();
        let host = self.host()?;
        let shared = !self.file.ownership.read().private;
        let end = granules_spanned(size);
        let mut delta = LayoutDelta::unchanged(self.file.ino);
        if shared && size < old_size {
            delta.cut = end;
            delta.floor = end;
            delta.private = size == 0;
            if !size.is_multiple_of(GRANULE_BYTES) && self.shows_lower(end - 1) {
                // The rest of the last granule must read as zeros when the file grows again.
                let last = GranuleRange { start: end - 1, end };
                self.copy_up(last)?;
                delta.added.push(last);
            }
        }
        host.set_len(size).map_err(self.host_error("truncating"))?;
        self.file.mark_dirty(&host);
        if shared && size < old_size {
            self.record(&delta)?;
        }
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
        self.record(&LayoutDelta { private: true, ..LayoutDelta::unchanged(self.file.ino) })
    }

    /// Makes `offset..offset + len` read as zeros; the size does not change.
    ///
    /// `punch` frees blocks of the host; otherwise they stay allocated.
    pub fn zero(&self, offset: u64, len: u64, punch: bool) -> Result<(), LayerError> {
        let _exclusive = self.file.writers.write();
        let size = self.file.size();
        let end = offset.saturating_add(len).min(size);
        if offset >= end {
            return Ok(());
        }
        let range = covering(offset, end - offset);
        let mut claimed = Vec::new();
        self.copy_up_edges(range, offset, end - offset, &mut claimed)?;
        let host = self.host()?;
        let mode = if punch { Allocate::PunchHole } else { Allocate::ZeroKeepSize };
        host.allocate(mode, offset, end - offset).map_err(self.host_error("zeroing"))?;
        self.file.mark_dirty(&host);
        self.claim(range)
    }

    /// Reserves space of the host for `offset..offset + len`; may grow the file.
    pub fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<(), LayerError> {
        let _exclusive = self.file.writers.write();
        let host = self.host()?;
        let mode = if keep_size { Allocate::KeepSize } else { Allocate::Extend };
        host.allocate(mode, offset, len).map_err(self.host_error("allocating"))?;
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
