//! Checksums of sealed contents: made once after sealing, held against every read from then on.

use std::fs::File;
use std::io::{self, BufWriter};
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::LayerError;
use super::data_files::{DataFiles, Immutable};
use super::sealed::{IndexFile, open_index};
use crate::format::id::granules_spanned;
use crate::format::index::Index;
use crate::format::sums::{SumExtent, Sums, SumsWriter, cut_extents, granule_sum, owned_stretches};
use crate::format::{FormatError, GRANULE_BYTES, Granule, LayerId};
use crate::io::crash::{Point, crash_point};
use crate::io::host::{open_plain, try_lock};
use crate::io::{Access, Appender, HostFile, read_once_up_to, read_up_to, sys};

/// What became of an attempt to make a layer's checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// They exist now.
    Now,
    /// They existed.
    Before,
    /// Another process is making them.
    Elsewhere,
    /// The layer has no index (yet).
    NotSealed,
    /// The caller asked to stop.
    Stopped,
}

/// Where a layer's checksums lie.
pub fn path(data: &DataFiles, layer: LayerId) -> PathBuf {
    data.layer_dir(layer).join("sums")
}

/// A layer's checksums.
struct Opened {
    sums: Option<Arc<Sums>>,
    /// Why some of them are missing.
    damage: Option<LayerError>,
}

/// Opens a layer's checksums; of a damaged file what can still be relied on. `None` if there are
/// none (yet).
fn open(data: &DataFiles, layer: LayerId) -> Result<Option<Opened>, LayerError> {
    let path = path(data, layer);
    let map = || open_plain(&path).and_then(|file| sys::map_immutable(&file));
    let mapped = match map() {
        Ok(mapped) => mapped,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(LayerError::opening(layer, "opening checksums", &path)(e)),
    };
    let (sums, problem) = match Sums::open(Box::new(mapped)) {
        Ok(sums) if sums.layer() == layer => (Some(sums), None),
        Ok(_) => {
            let what = "checksums of another layer";
            (None, Some(FormatError::Corrupt { what, offset: 16 }))
        }
        Err(source) => {
            let again = map().map_err(LayerError::host(layer, "mapping checksums"))?;
            (Sums::open_damaged(Box::new(again), layer), Some(source))
        }
    };
    let damage = problem.map(|source| LayerError::Damaged { layer, path, source });
    Ok(Some(Opened { sums: sums.map(Arc::new), damage }))
}

impl DataFiles {
    /// From now on what is read of a pack is held against `sums`, whatever becomes of the file.
    pub fn use_pack(&self, layer: LayerId, sums: &Arc<Sums>) {
        self.sums.write().insert(layer.pack(), Some(sums.clone()));
    }

    /// The checksums of a sealed layer. Damaged ones are logged and count as none: they say nothing
    /// about the data. Those beside them do.
    fn sums_of(&self, layer: LayerId) -> Option<Arc<Sums>> {
        if let Some(known) = self.sums.read().get(&layer) {
            return known.clone();
        }
        if layer.is_pack() {
            return None;
        }
        let (found, damage) = match open(self, layer) {
            Ok(opened) => opened.map_or((None, None), |opened| (opened.sums, opened.damage)),
            Err(error) => (None, Some(error)),
        };
        if let Some(error) = damage {
            tracing::error!(%error, "contents of the layer are served with less verification");
        }
        self.sums.write().entry(layer).or_insert(found).clone()
    }

    /// Reads `buf` at byte `offset` and compares every granule that `parts` (bytes of `buf`) touch with
    /// its checksum.
    pub(super) fn read_verified(
        &self,
        from: &Immutable,
        buf: &mut [u8],
        offset: u64,
        parts: &[Range<u64>],
    ) -> Result<(), LayerError> {
        let read = |buf: &mut [u8], offset| {
            let read = if self.host_cache.keeps() { read_up_to } else { read_once_up_to };
            let end =
                read(&*from.host, buf, offset).map_err(LayerError::host(from.layer, "reading"))?;
            from.check_length(end, offset + buf.len() as u64)
        };
        let sums = match self.sums_of(from.layer) {
            Some(sums) => sums,
            None if from.layer.is_pack() => return Err(from.corrupt(offset)),
            None => return read(buf, offset),
        };
        let end = offset + buf.len() as u64;
        let (first, last) = (offset / GRANULE_BYTES, u64::from(granules_spanned(end)));
        if offset == first * GRANULE_BYTES && end == last * GRANULE_BYTES {
            read(buf, offset)?;
            return self.verify(from, &sums, (buf, parts), first as Granule);
        }
        // Granules that are wanted in part only can be verified whole only.
        let mut whole = vec![0; ((last - first) * GRANULE_BYTES) as usize];
        read(&mut whole, first * GRANULE_BYTES)?;
        let all = 0..whole.len() as u64;
        self.verify(from, &sums, (&whole, &[all]), first as Granule)?;
        let skip = (offset - first * GRANULE_BYTES) as usize;
        buf.copy_from_slice(&whole[skip..skip + buf.len()]);
        Ok(())
    }

    fn verify(
        &self,
        from: &Immutable,
        sums: &Sums,
        (granules, parts): (&[u8], &[Range<u64>]),
        first: Granule,
    ) -> Result<(), LayerError> {
        let count = (granules.len() as u64 / GRANULE_BYTES) as u32;
        let expected = match sums.get(from.file, first, count) {
            Ok(expected) => expected,
            Err(error) => {
                if self.sums_told.lock().insert(from.layer) {
                    let path = path(self, from.layer);
                    tracing::error!(%error, path = %path.display(), "damaged checksums are not used");
                }
                sums.get_sound(from.file, first, count)
            }
        };
        for part in parts {
            let skip = part.start / GRANULE_BYTES;
            let chunks = granules[part.start as usize..part.end as usize]
                .chunks_exact(GRANULE_BYTES as usize);
            let expected = expected.iter().skip(skip as usize);
            for (granule, (bytes, expected)) in
                (u64::from(first) + skip..).zip(chunks.zip(expected))
            {
                // A copy counts only with its checksum, and contents also without.
                let missing = expected.is_none() && from.layer.is_pack();
                if missing || expected.is_some_and(|sum| sum != granule_sum(bytes)) {
                    return Err(from.corrupt(granule * GRANULE_BYTES));
                }
            }
        }
        Ok(())
    }
}

/// What a layer lacks of checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking {
    /// It has them.
    Nothing,
    /// It has none, and owns so many bytes, holes included.
    Bytes(u64),
    /// It has no index (yet).
    NotSealed,
}

/// Whether a layer has checksums, and how much there is to do if not.
pub fn lacking(data: &DataFiles, layer: LayerId) -> Result<Lacking, LayerError> {
    if data.storage.metadata(&path(data, layer)).is_ok() {
        return Ok(Lacking::Nothing);
    }
    let Some(index) = open_index(data, layer, IndexFile::Own)? else {
        return Ok(Lacking::NotSealed);
    };
    let stretches = stretches_of(data, &index)?;
    Ok(Lacking::Bytes(stretches.iter().map(|s| u64::from(s.len) * GRANULE_BYTES).sum()))
}

fn stretches_of(data: &DataFiles, index: &Index) -> Result<Vec<SumExtent>, LayerError> {
    let layer = index.meta().layer;
    owned_stretches(index).map_err(|source| LayerError::Damaged {
        layer,
        path: IndexFile::Own.path(data, layer),
        source,
    })
}

/// Makes the checksums of a sealed layer unless it has some. `pace` is told of every few
/// megabytes (their number in bytes) and may wait, or stop the work.
///
/// Damaged ones stay as they are: to make them anew is to believe the contents, which is for
/// whoever looks after the store to decide.
pub fn make(
    data: &DataFiles,
    layer: LayerId,
    pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Made, LayerError> {
    let there = data.storage.exists(&path(data, layer));
    if there.map_err(LayerError::host(layer, "looking for checksums"))? {
        return Ok(Made::Before);
    }
    make_beside(data, layer, None, pace)
}

/// Makes the damaged checksums of a sealed layer again from the contents as they are now. Those
/// that can be relied on are kept, and so is all that they tell of the contents.
pub fn remake(data: &DataFiles, layer: LayerId) -> Result<Made, LayerError> {
    let kept = match open(data, layer) {
        Ok(opened) => opened.and_then(|opened| opened.sums),
        // They may be sound, and know of rot: what cannot be read is not to be replaced.
        Err(error @ LayerError::Host { .. }) => return Err(error),
        Err(_) => None,
    };
    make_beside(data, layer, kept.as_deref(), &mut |_| ControlFlow::Continue(()))
}

fn make_beside(
    data: &DataFiles,
    layer: LayerId,
    kept: Option<&Sums>,
    pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Made, LayerError> {
    let Some(index) = open_index(data, layer, IndexFile::Own)? else { return Ok(Made::NotSealed) };
    let temporary = data.layer_dir(layer).join("sums.tmp");
    let lock = lock(&temporary).map_err(LayerError::host(layer, "locking checksums"))?;
    let Some(_lock) = lock else { return Ok(Made::Elsewhere) };
    let made = write(data, &index, kept, &temporary, pace);
    if !matches!(made, Ok(Made::Now)) {
        // Half a file is of no use, least of all on a full disk.
        let removed = data.storage.remove_file(&temporary);
        removed.map_err(LayerError::host(layer, "removing half-made checksums"))?;
    }
    data.sums.write().remove(&layer);
    made
}

/// Writes the checksum file of the layer of `index`, by way of `temporary`.
fn write(
    data: &DataFiles,
    index: &Index,
    kept: Option<&Sums>,
    temporary: &Path,
    pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Made, LayerError> {
    let layer = index.meta().layer;
    let stretches = stretches_of(data, index)?;
    let extents = cut_extents(with_data(data, layer, &stretches)?);
    let writing = |error| LayerError::host(layer, "writing checksums")(error);
    let file = data.storage.open(temporary, Access::CreateEmpty).map_err(writing)?;
    crash_point(Point::SumsCreated);
    let out = BufWriter::with_capacity(1 << 20, Appender::new(&*file));
    let mut writer = SumsWriter::new(out, layer, &extents).map_err(writing)?;
    for extent in extents {
        let known = kept.map(|kept| kept.get_sound(extent.file, extent.start, extent.len));
        let sums = sums_of_extent(data, layer, extent, known.unwrap_or_default())?;
        writer.extent(extent, &sums).map_err(writing)?;
        if pace(u64::from(extent.len) * GRANULE_BYTES).is_break() {
            return Ok(Made::Stopped);
        }
    }
    drop(writer.finish().map_err(writing)?);
    crash_point(Point::SumsWritten);
    // Its name need not be durable: without it the checksums are made again.
    file.sync_data().map_err(writing)?;
    crash_point(Point::SumsSynced);
    data.storage.rename(temporary, &path(data, layer)).map_err(writing)?;
    crash_point(Point::SumsRenamed);
    Ok(Made::Now)
}

/// The right to write the temporary file at `path`; `None` if another process has it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let Some(file) = try_lock(path)? else { return Ok(None) };
    // Whoever had it before may have renamed it into place meanwhile.
    let there = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?.ino(),
    };
    Ok((there == file.metadata()?.ino()).then_some(file))
}

/// What of `stretches` the host holds data for: holes are zeros and need no checksum.
fn with_data(
    data: &DataFiles,
    layer: LayerId,
    stretches: &[SumExtent],
) -> Result<Vec<SumExtent>, LayerError> {
    let mut found: Vec<SumExtent> = Vec::with_capacity(stretches.len());
    for stretch in stretches {
        let from = match data.immutable(layer, stretch.file) {
            Ok(from) => from,
            // Of a file that was unlinked while it was open, only the index is left.
            Err(LayerError::DataTooShort { .. }) => continue,
            Err(error) => return Err(error),
        };
        let seek = |error| LayerError::host(layer, "looking for data")(error);
        segments(&*from.host, *stretch, &mut found).map_err(seek)?;
    }
    Ok(found)
}

fn segments(host: &dyn HostFile, stretch: SumExtent, out: &mut Vec<SumExtent>) -> io::Result<()> {
    let limit = u64::from(stretch.start) + u64::from(stretch.len);
    let mut at = u64::from(stretch.start);
    while at < limit {
        let Some(data) = host.seek_data(at * GRANULE_BYTES)? else { break };
        let start = (data / GRANULE_BYTES).max(at);
        if start >= limit {
            break;
        }
        let hole = host.seek_hole(start * GRANULE_BYTES)?.unwrap_or(limit * GRANULE_BYTES);
        let end = hole.div_ceil(GRANULE_BYTES).clamp(start + 1, limit);
        out.push(SumExtent { start: start as Granule, len: (end - start) as u32, ..stretch });
        at = end;
    }
    Ok(())
}

/// The checksums of an extent; those that are `known` are not made from the contents.
fn sums_of_extent(
    data: &DataFiles,
    layer: LayerId,
    extent: SumExtent,
    known: Vec<Option<u32>>,
) -> Result<Vec<u32>, LayerError> {
    if !known.is_empty()
        && let Some(all) = known.iter().copied().collect()
    {
        return Ok(all);
    }
    let from = data.immutable(layer, extent.file)?;
    let mut buf = vec![0; extent.len as usize * GRANULE_BYTES as usize];
    let offset = u64::from(extent.start) * GRANULE_BYTES;
    let end = read_once_up_to(&*from.host, &mut buf, offset)
        .map_err(LayerError::host(layer, "reading"))?;
    from.check_length(end, offset + buf.len() as u64)?;
    from.check_unchanged()?;
    let known = known.into_iter().chain(std::iter::repeat(None));
    let granules = buf.chunks_exact(GRANULE_BYTES as usize).zip(known);
    Ok(granules.map(|(bytes, known)| known.unwrap_or_else(|| granule_sum(bytes))).collect())
}
