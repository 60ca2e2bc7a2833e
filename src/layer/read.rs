//! Reading a file: split the range by owner, then read each owner's data file.

use std::sync::Arc;

use super::LayerError;
use super::data_files::DataFiles;
use super::open_file::OpenFile;
use super::owner_map::OwnerMap;
use crate::format::{GRANULE_BYTES, Granule, OwnedRun};
use crate::io::{HostFile, read_full_at};

/// A request of so many bytes is part of a file being read in order.
const SEQUENTIAL_BYTES: u64 = 256 << 10;
/// Bytes that the host is told to fetch beyond such a request.
const AHEAD_BYTES: u64 = 2 << 20;

/// Where a stretch of a file's bytes comes from.
pub enum Source {
    /// The open layer's data file, at the same offset.
    Own,
    /// A data file of a lower layer.
    Lower(OwnedRun),
    /// No layer: zeros.
    Zeros,
}

/// One stretch of a read: `len` bytes at `offset` of the file.
pub struct Piece {
    /// Where the bytes come from.
    pub source: Source,
    /// Byte offset within the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// A file as it is read: the open layer's part, if any, over the lower owners.
#[derive(Clone)]
pub struct Readable {
    /// The open layer's part.
    pub own: Option<Arc<OpenFile>>,
    /// The owners below it.
    pub lower: Arc<OwnerMap>,
}

impl Readable {
    /// Splits `offset..offset + len` (which must lie within the file) by owner.
    pub fn plan(&self, offset: u64, len: u64) -> Vec<Piece> {
        let mut pieces = Vec::with_capacity(1);
        let end = offset + len;
        let own = self.own.as_ref().map(|file| file.ownership.read());
        if let Some(own) = &own
            && own.private
            && own.borrowed.is_empty()
        {
            return vec![Piece { source: Source::Own, offset, len }];
        }
        let limit = crate::format::id::granules_spanned(end);
        let mut at = offset;
        while at < end {
            let granule = (at / GRANULE_BYTES) as Granule;
            let (source, stop) = match &own {
                Some(own) if own.private => match own.borrowed.at(granule, limit) {
                    (Some(run), stop) => (Source::Lower(run), stop),
                    (None, stop) => (Source::Own, stop),
                },
                Some(own) => match own.present.run_at(granule, limit) {
                    (true, stop) => (Source::Own, stop),
                    (false, stop) if granule >= own.floor => (Source::Zeros, stop),
                    (false, stop) => self.lower_piece(granule, stop.min(own.floor)),
                },
                None => self.lower_piece(granule, limit),
            };
            let next = (u64::from(stop) * GRANULE_BYTES).min(end);
            pieces.push(Piece { source, offset: at, len: next - at });
            at = next;
        }
        pieces
    }

    fn lower_piece(&self, granule: Granule, limit: Granule) -> (Source, Granule) {
        match self.lower.at(granule, limit) {
            (Some(run), stop) => (Source::Lower(run), stop),
            (None, stop) => (Source::Zeros, stop),
        }
    }

    /// Reads `buf.len()` bytes at `offset`; the range must lie within the file.
    ///
    /// No lock is held while the host reads.
    pub fn read(&self, data: &DataFiles, buf: &mut [u8], offset: u64) -> Result<(), LayerError> {
        let pieces = self.plan(offset, buf.len() as u64);
        if pieces.len() > 1 {
            // Scattered owners: have the host fetch all of them at once, not one after the other.
            will_need(data, &pieces);
        }
        if buf.len() as u64 >= SEQUENTIAL_BYTES {
            // The kernel asks for so much at a time only once it has seen a file being read in
            // order. While this is copied, the host fetches what will be asked for next.
            will_need(data, &self.plan(offset + buf.len() as u64, AHEAD_BYTES));
        }
        let mut rest = buf;
        for piece in pieces {
            let (head, tail) = rest.split_at_mut(piece.len as usize);
            rest = tail;
            match piece.source {
                Source::Zeros => head.fill(0),
                Source::Own => self.read_own(data, head, piece.offset)?,
                Source::Lower(run) => {
                    let skip = piece.offset - u64::from(run.start) * GRANULE_BYTES;
                    let source = u64::from(run.source) * GRANULE_BYTES + skip;
                    data.read_run(run, head, source)?;
                }
            }
        }
        Ok(())
    }

    fn read_own(&self, data: &DataFiles, buf: &mut [u8], offset: u64) -> Result<(), LayerError> {
        let Some(own) = &self.own else {
            buf.fill(0);
            return Ok(());
        };
        let host: Option<Arc<dyn HostFile>> =
            own.existing_host(data).map_err(LayerError::host(own.layer, "opening a data file"))?;
        match host {
            Some(host) => {
                read_full_at(&*host, buf, offset).map_err(LayerError::host(own.layer, "reading"))
            }
            None => {
                buf.fill(0);
                Ok(())
            }
        }
    }
}

/// Tells the host of all that comes from lower layers.
fn will_need(data: &DataFiles, pieces: &[Piece]) {
    for piece in pieces {
        if let Source::Lower(run) = piece.source {
            let start = (piece.offset / GRANULE_BYTES) as Granule;
            let len = crate::format::id::granules_spanned(piece.len);
            let source = run.source + (start - run.start);
            data.will_need(OwnedRun { start, len, source, ..run });
        }
    }
}
