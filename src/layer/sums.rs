//! Checksums of sealed contents: made once after sealing, held against every read from then on.

use std::fs::{File, TryLockError};
use std::io::{self, BufWriter};
use std::ops::ControlFlow;
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

/// Opens a layer's checksums, or `None` if there are none (yet).
fn open(data: &DataFiles, layer: LayerId) -> Result<Option<Arc<Sums>>, LayerError> {
    let path = path(data, layer);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(LayerError::host(layer, "opening checksums")(e)),
    };
    let map = sys::map_immutable(&file).map_err(LayerError::host(layer, "mapping checksums"))?;
    let opened = Sums::open(Box::new(map)).and_then(|sums| {
        let what = "checksums of another layer";
        let right = sums.layer() == layer;
        if right { Ok(sums) } else { Err(FormatError::Corrupt { what, offset: 16 }) }
    });
    match opened {
        Ok(sums) => Ok(Some(Arc::new(sums))),
        Err(source) => Err(LayerError::Damaged { layer, path, source }),
    }
}

impl DataFiles {
    /// The checksums of a sealed layer. Damaged ones are logged and count as none: they say nothing
    /// about the data.
    fn sums_of(&self, layer: LayerId) -> Option<Arc<Sums>> {
        if let Some(known) = self.sums.read().get(&layer) {
            return known.clone();
        }
        let found = open(self, layer).unwrap_or_else(|error| {
            tracing::error!(%error, "contents of the layer are served without verification");
            None
        });
        self.sums.write().entry(layer).or_insert(found).clone()
    }

    /// Reads `buf` at byte `offset` and compares every granule touched with its checksum.
    pub(super) fn read_verified(
        &self,
        from: &Immutable,
        buf: &mut [u8],
        offset: u64,
    ) -> Result<(), LayerError> {
        let read = |buf: &mut [u8], offset| {
            let end = read_up_to(&*from.host, buf, offset)
                .map_err(LayerError::host(from.layer, "reading"))?;
            from.check_length(end, offset + buf.len() as u64)
        };
        let Some(sums) = self.sums_of(from.layer) else { return read(buf, offset) };
        let end = offset + buf.len() as u64;
        let (first, last) = (offset / GRANULE_BYTES, u64::from(granules_spanned(end)));
        if offset == first * GRANULE_BYTES && end == last * GRANULE_BYTES {
            read(buf, offset)?;
            return self.verify(from, &sums, buf, first as Granule);
        }
        // Granules that are wanted in part only can be verified whole only.
        let mut whole = vec![0; ((last - first) * GRANULE_BYTES) as usize];
        read(&mut whole, first * GRANULE_BYTES)?;
        self.verify(from, &sums, &whole, first as Granule)?;
        let skip = (offset - first * GRANULE_BYTES) as usize;
        buf.copy_from_slice(&whole[skip..skip + buf.len()]);
        Ok(())
    }

    fn verify(
        &self,
        from: &Immutable,
        sums: &Sums,
        granules: &[u8],
        first: Granule,
    ) -> Result<(), LayerError> {
        let count = (granules.len() as u64 / GRANULE_BYTES) as u32;
        let expected = match sums.get(from.file, first, count) {
            Ok(expected) => expected,
            Err(error) => {
                let path = path(self, from.layer);
                tracing::error!(%error, path = %path.display(), "damaged checksums are not used");
                self.sums.write().insert(from.layer, None);
                return Ok(());
            }
        };
        let chunks = granules.chunks_exact(GRANULE_BYTES as usize);
        for (granule, (bytes, expected)) in (u64::from(first)..).zip(chunks.zip(expected)) {
            if expected.is_some_and(|sum| sum != granule_sum(bytes)) {
                return Err(LayerError::Corrupt {
                    layer: from.layer,
                    path: from.path.clone(),
                    offset: granule * GRANULE_BYTES,
                });
            }
        }
        Ok(())
    }
}

/// Makes the checksums of a sealed layer unless it has some. `pace` is told of every few
/// megabytes (their number in bytes) and may wait, or stop the work.
pub fn make(
    data: &DataFiles,
    layer: LayerId,
    pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Made, LayerError> {
    if matches!(open(data, layer), Ok(Some(_))) {
        return Ok(Made::Before);
    }
    let Some(index) = open_index(data, layer, IndexFile::Own)? else { return Ok(Made::NotSealed) };
    let temporary = data.layer_dir(layer).join("sums.tmp");
    let lock = lock(&temporary).map_err(LayerError::host(layer, "locking checksums"))?;
    let Some(_lock) = lock else { return Ok(Made::Elsewhere) };
    let made = write(data, &index, &temporary, pace);
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
    temporary: &Path,
    pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Made, LayerError> {
    let layer = index.meta().layer;
    let stretches = owned_stretches(index).map_err(|source| LayerError::Damaged {
        layer,
        path: IndexFile::Own.path(data, layer),
        source,
    })?;
    let extents = cut_extents(with_data(data, layer, &stretches)?);
    let writing = |error| LayerError::host(layer, "writing checksums")(error);
    let file = data.storage.open(temporary, Access::CreateEmpty).map_err(writing)?;
    crash_point(Point::SumsCreated);
    let out = BufWriter::with_capacity(1 << 20, Appender::new(&*file));
    let mut writer = SumsWriter::new(out, layer, &extents).map_err(writing)?;
    for extent in extents {
        let sums = sums_of_extent(data, layer, extent)?;
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
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Whoever had it before may have renamed it into place meanwhile.
    let still_there = std::fs::metadata(path)?.ino() == file.metadata()?.ino();
    Ok(still_there.then_some(file))
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

fn sums_of_extent(
    data: &DataFiles,
    layer: LayerId,
    extent: SumExtent,
) -> Result<Vec<u32>, LayerError> {
    let from = data.immutable(layer, extent.file)?;
    let mut buf = vec![0; extent.len as usize * GRANULE_BYTES as usize];
    let offset = u64::from(extent.start) * GRANULE_BYTES;
    let end = read_once_up_to(&*from.host, &mut buf, offset)
        .map_err(LayerError::host(layer, "reading"))?;
    from.check_length(end, offset + buf.len() as u64)?;
    from.check_unchanged()?;
    Ok(buf.chunks_exact(GRANULE_BYTES as usize).map(granule_sum).collect())
}
