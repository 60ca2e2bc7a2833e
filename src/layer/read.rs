//! Reading a file: split the range by owner, then read each owner's data file.

use std::sync::Arc;

use super::LayerError;
use super::ahead::Ahead;
use super::data_files::DataFiles;
use super::open_file::OpenFile;
use super::owner_map::OwnerMap;
use crate::format::{GRANULE_BYTES, Granule, Ino, LayerId, OwnedRun};
use crate::io::{HostFile, read_full_at};

/// A request of so many bytes is part of a file being read in order.
const SEQUENTIAL_BYTES: u64 = 256 << 10;
/// So much between two pieces from one data file is read along with them.
const GAP_BYTES_MAX: u64 = 64 << 10;

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

impl Piece {
    fn run(&self) -> Option<OwnedRun> {
        match self.source {
            Source::Lower(run) => Some(run),
            Source::Own | Source::Zeros => None,
        }
    }

    /// Whether it consists of whole granules.
    fn is_whole(&self) -> bool {
        self.offset.is_multiple_of(GRANULE_BYTES) && self.len.is_multiple_of(GRANULE_BYTES)
    }
}

/// A data file of a lower layer, and how far its granules are from where they show: pieces of one
/// origin are as far apart in the data file as they are in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Origin {
    layer: LayerId,
    file: Ino,
    shift: i64,
}

impl Origin {
    fn of(run: &OwnedRun) -> Origin {
        let shift = i64::from(run.source) - i64::from(run.start);
        Origin { layer: run.layer, file: run.file, shift }
    }

    /// Where byte `offset` of the file lies in the data file.
    fn source(self, offset: u64) -> u64 {
        offset.wrapping_add_signed(self.shift * GRANULE_BYTES as i64)
    }
}

/// A file as it is read: the open layer's part, if any, over the lower owners.
#[derive(Clone)]
pub struct Readable {
    /// The open layer's part.
    pub own: Option<Arc<OpenFile>>,
    /// The owners below it.
    pub lower: Arc<OwnerMap>,
    /// Copies of some of what they own, which are quicker to read.
    pub copies: Arc<OwnerMap>,
    /// What the host was told of the file.
    pub ahead: Arc<Ahead>,
}

impl Readable {
    /// Splits `offset..offset + len` (which must lie within the file) by owner.
    pub fn plan(&self, offset: u64, len: u64) -> Vec<Piece> {
        self.plan_with(&OwnerMap::default(), offset, len)
    }

    /// Like [`Readable::plan`], with `copies` in the place of what they are copies of.
    fn plan_with(&self, copies: &OwnerMap, offset: u64, len: u64) -> Vec<Piece> {
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
                    (false, stop) => self.lower_piece(copies, granule, stop.min(own.floor)),
                },
                None => self.lower_piece(copies, granule, limit),
            };
            let next = (u64::from(stop) * GRANULE_BYTES).min(end);
            pieces.push(Piece { source, offset: at, len: next - at });
            at = next;
        }
        pieces
    }

    fn lower_piece(
        &self,
        copies: &OwnerMap,
        granule: Granule,
        limit: Granule,
    ) -> (Source, Granule) {
        let stop = match copies.at(granule, limit) {
            (Some(copy), stop) => return (Source::Lower(copy), stop),
            (None, stop) => stop,
        };
        match self.lower.at(granule, stop) {
            (Some(run), stop) => (Source::Lower(run), stop),
            (None, stop) => (Source::Zeros, stop),
        }
    }

    /// Reads `buf.len()` bytes at `offset`; the range must lie within the file.
    ///
    /// No lock is held while the host reads.
    pub fn read(&self, data: &DataFiles, buf: &mut [u8], offset: u64) -> Result<(), LayerError> {
        if self.copies.is_empty() {
            return self.read_from(&self.copies, data, buf, offset);
        }
        if !data.packs.are_sound() {
            let sound = |run: &OwnedRun| data.packs.is_sound(run.layer);
            let copies = self.copies.runs().iter().copied().filter(sound).collect();
            return self.read_copies(&OwnerMap::of(copies), data, buf, offset);
        }
        self.read_copies(&self.copies, data, buf, offset)
    }

    /// Reads `copies` where there are some. Nothing depends on them: what cannot be read with them is
    /// read without.
    fn read_copies(
        &self,
        copies: &OwnerMap,
        data: &DataFiles,
        buf: &mut [u8],
        offset: u64,
    ) -> Result<(), LayerError> {
        let Err(error) = self.read_from(copies, data, buf, offset) else { return Ok(()) };
        self.read_from(&OwnerMap::default(), data, buf, offset)?;
        data.packs.give_up(&error);
        Ok(())
    }

    fn read_from(
        &self,
        copies: &OwnerMap,
        data: &DataFiles,
        buf: &mut [u8],
        offset: u64,
    ) -> Result<(), LayerError> {
        let end = offset + buf.len() as u64;
        let pieces = self.plan_with(copies, offset, end - offset);
        if buf.len() as u64 >= SEQUENTIAL_BYTES {
            // The kernel asks for so much at a time only once it has seen a file being read in
            // order. While this is copied, the host fetches what will be asked for next.
            let ahead = self.ahead.advance(offset..end);
            if ahead.start < end && pieces.len() > 1 {
                self.will_need(data, &pieces);
            }
            let start = ahead.start.max(end);
            let ahead = self.plan_with(copies, start, ahead.end.saturating_sub(start));
            self.will_need(data, &ahead);
        } else if pieces.len() > 1 {
            // Scattered owners: have the host fetch all of them at once, not one after the other.
            self.will_need(data, &pieces);
        }
        let through = pieces.len() > 2;
        let through = through.then(|| self.read_through(data, &pieces, buf, offset)).transpose()?;
        let mut own = None;
        for piece in &pieces {
            let start = (piece.offset - offset) as usize;
            let part = &mut buf[start..start + piece.len as usize];
            match piece.source {
                Source::Zeros => part.fill(0),
                Source::Own => self.read_own(data, &mut own, part, piece.offset)?,
                Source::Lower(run) => {
                    let origin = Origin::of(&run);
                    if Some(origin) == through.flatten() && piece.is_whole() {
                        continue;
                    }
                    data.read_run(run, part, origin.source(piece.offset))?;
                }
            }
        }
        Ok(())
    }

    /// Reads the pieces that come from the origin of the longest piece, and with them the little
    /// that lies between two of them: one large read is cheaper than several small ones. What
    /// lies between is to be overwritten. Returns that origin.
    ///
    /// Only whole granules are read in this way.
    fn read_through(
        &self,
        data: &DataFiles,
        pieces: &[Piece],
        buf: &mut [u8],
        offset: u64,
    ) -> Result<Option<Origin>, LayerError> {
        let longest = pieces
            .iter()
            .filter_map(|piece| Some((piece.len, piece.run()?)))
            .max_by_key(|found| found.0);
        let Some((_, run)) = longest else { return Ok(None) };
        let origin = Origin::of(&run);
        let mut parts = pieces
            .iter()
            .filter(|piece| {
                piece.is_whole() && piece.run().is_some_and(|run| Origin::of(&run) == origin)
            })
            .map(|piece| piece.offset..piece.offset + piece.len)
            .peekable();
        while let Some(first) = parts.next() {
            let mut span = first.clone();
            let mut wanted = vec![first];
            while let Some(next) = parts.next_if(|next| next.start - span.end <= GAP_BYTES_MAX) {
                span.end = next.end;
                wanted.push(next);
            }
            let part = &mut buf[(span.start - offset) as usize..(span.end - offset) as usize];
            for range in &mut wanted {
                *range = range.start - span.start..range.end - span.start;
            }
            data.read_parts(run, part, origin.source(span.start), &wanted)?;
        }
        Ok(Some(origin))
    }

    fn read_own(
        &self,
        data: &DataFiles,
        host: &mut Option<Arc<dyn HostFile>>,
        buf: &mut [u8],
        offset: u64,
    ) -> Result<(), LayerError> {
        let Some(own) = &self.own else {
            buf.fill(0);
            return Ok(());
        };
        if host.is_none() {
            let opened = own.existing_host(data);
            *host = opened.map_err(LayerError::host(own.layer, "opening a data file"))?;
        }
        match host {
            Some(host) => {
                read_full_at(&**host, buf, offset).map_err(LayerError::host(own.layer, "reading"))
            }
            None => {
                buf.fill(0);
                Ok(())
            }
        }
    }

    /// Tells the host of all that is about to be read.
    fn will_need(&self, data: &DataFiles, pieces: &[Piece]) {
        let mut own = None;
        // Stretches of one data file with little between them are one.
        let mut next: Option<(OwnedRun, Origin)> = None;
        for piece in pieces {
            match piece.source {
                Source::Zeros => {}
                Source::Own => {
                    let host = own.get_or_insert_with(|| {
                        self.own.as_ref().and_then(|own| own.existing_host(data).ok()?)
                    });
                    if let Some(host) = host {
                        host.will_need(piece.offset, piece.len);
                    }
                }
                Source::Lower(run) => {
                    let origin = Origin::of(&run);
                    let start = (piece.offset / GRANULE_BYTES) as Granule;
                    let end = crate::format::id::granules_spanned(piece.offset + piece.len);
                    let source = run.source + (start - run.start);
                    let hint = OwnedRun { start, len: end - start, source, ..run };
                    match &mut next {
                        Some((before, of))
                            if *of == origin
                                && u64::from(start - (before.start + before.len))
                                    <= GAP_BYTES_MAX / GRANULE_BYTES =>
                        {
                            before.len = end - before.start;
                        }
                        _ => {
                            if let Some((before, _)) = next.replace((hint, origin)) {
                                data.will_need(before);
                            }
                        }
                    }
                }
            }
        }
        if let Some((last, _)) = next {
            data.will_need(last);
        }
    }
}
