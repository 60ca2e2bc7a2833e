//! Packs: copies of scattered granules of several layers, in one data file per file.
//!
//! A merged index says where the granules of many layers lie; reading them still means one data file
//! and one checksum file per layer. A pack holds copies of those that are scattered, at the same
//! offsets, below the directory of the layer that the merged index belongs to:
//!
//!     layers/<layer>/pack/sums              which granules, and their checksums
//!     layers/<layer>/pack/data/<group>/<ino>
//!
//! It is derived, and nothing but speed depends on it: every granule read from it is held against its
//! checksum, and what does not match is read from where it was copied from ([`super::read`]). It may be
//! removed at any time. Who owns a granule is told by the indexes alone.

use std::io::{self, BufWriter};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::LayerError;
use super::data_files::DataFiles;
use super::sums::{self, Made};
use crate::format::sums::{SumExtent, Sums, SumsWriter, cut_extents, granule_sum};
use crate::format::{GRANULE_BYTES, Granule, GranuleRange, Ino, LayerId, OwnedRun};
use crate::io::crash::{Point, crash_point};
use crate::io::{Access, Appender, write_all_at};

/// Whether copies are read at all. After the first that cannot be relied on, all go unused until the
/// branch is mounted anew.
#[derive(Default)]
pub(super) struct Packs {
    given_up: AtomicBool,
}

impl Packs {
    pub(super) fn are_sound(&self) -> bool {
        !self.given_up.load(Ordering::Relaxed)
    }

    /// A copy was not what it was, or could not be read.
    pub(super) fn give_up(&self, error: &LayerError) {
        if !self.given_up.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "copies in packs are not used any more, their layers are; `cowfs check --read-data` tells more");
        }
    }
}

/// Runs of so many granules are read quickly where they are.
const SCATTERED_GRANULES_MAX: u32 = 64;
/// What was copied, with its checksums.
type Copied = Vec<(SumExtent, Vec<u32>)>;

/// What is copied of one file.
pub struct Wanted {
    /// The file; also the data file of the copies.
    pub ino: Ino,
    /// Its granules that are copied, ascending and apart.
    pub ranges: Vec<GranuleRange>,
    /// Who owns its granules, ascending and disjoint.
    pub runs: Vec<OwnedRun>,
}

impl Wanted {
    /// Bytes that are copied.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| u64::from(range.end - range.start) * GRANULE_BYTES).sum()
    }
}

/// The granules of a file that are worth a copy: those in short runs, if they lie in more than one
/// data file.
pub fn worth_copying(runs: &[OwnedRun]) -> Vec<GranuleRange> {
    let short = || runs.iter().filter(|run| run.len < SCATTERED_GRANULES_MAX);
    let origin = |run: &OwnedRun| (run.layer, run.file);
    let Some(first) = short().next().map(origin) else { return Vec::new() };
    if short().all(|run| origin(run) == first) {
        return Vec::new();
    }
    let mut ranges: Vec<GranuleRange> = Vec::new();
    for run in short() {
        let end = run.start + run.len;
        match ranges.last_mut() {
            Some(last) if last.end == run.start => last.end = end,
            _ => ranges.push(GranuleRange { start: run.start, end }),
        }
    }
    ranges
}

/// `runs` with what `copies` (both ascend and are disjoint) hold of them read from data file `ino` of
/// `pack`.
pub fn with_copies(
    runs: &[OwnedRun],
    copies: &[SumExtent],
    (pack, ino): (LayerId, Ino),
) -> Vec<OwnedRun> {
    let mut out = Vec::with_capacity(runs.len());
    let mut copies = copies.iter().peekable();
    for run in runs {
        let end = run.start + run.len;
        let mut at = run.start;
        while at < end {
            while copies.next_if(|copy| copy.start + copy.len <= at).is_some() {}
            let next = copies.peek().map_or(end, |copy| copy.start.clamp(at, end));
            if next > at {
                let source = run.source + (at - run.start);
                out.push(OwnedRun { start: at, len: next - at, source, ..*run });
            }
            let Some(copy) = copies.peek().filter(|copy| next < end && copy.start <= next) else {
                break;
            };
            at = end.min(copy.start + copy.len);
            out.push(OwnedRun {
                start: next,
                len: at - next,
                layer: pack,
                file: ino,
                source: next,
            });
        }
    }
    out
}

/// What `layer` has of a pack. A damaged one is logged and counts as none.
pub fn open(data: &DataFiles, layer: LayerId) -> Option<Arc<Sums>> {
    match sums::open_intact(data, layer.pack()) {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "a pack is not used: its granules are read from their layers");
            None
        }
    }
}

/// Makes the pack of `layer`, unless it has one, in place of what is left of an earlier attempt.
/// `choose` says what its merged index has to be copied. `pace` is told of every few bytes (their
/// number) and may wait, or stop the work. A file that cannot be read is left out.
///
/// Its lock is not the layer's `finalize.lock`: fsync waits for that one, and this work may be held.
pub fn make(
    data: &DataFiles,
    layer: LayerId,
    choose: impl FnOnce() -> Result<Vec<Wanted>, LayerError>,
    pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Made, LayerError> {
    let pack = layer.pack();
    let dir = data.layer_dir(pack);
    data.storage.create_dirs(&dir).map_err(writing(pack))?;
    let temporary = dir.join("sums.tmp");
    let lock = sums::lock(&temporary).map_err(LayerError::host(pack, "locking a pack"))?;
    let Some(_lock) = lock else { return Ok(Made::Elsewhere) };
    let made = match open(data, layer) {
        Some(_) => Ok(Made::Before),
        None => clear(data, pack)
            .and_then(|()| choose())
            .and_then(|wanted| copy_all(data, layer, &wanted, pace)),
    };
    if made.is_err() {
        // On a full disk half a pack takes the room of what matters.
        clear(data, pack)?;
    }
    if !matches!(made, Ok(Made::Now)) {
        let removed = data.storage.remove_file(&temporary);
        removed.map_err(LayerError::host(pack, "removing half a pack"))?;
    }
    made
}

fn copy_all(
    data: &DataFiles,
    layer: LayerId,
    wanted: &[Wanted],
    pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Made, LayerError> {
    let pack = layer.pack();
    let mut copied = Copied::new();
    for file in wanted {
        match copy_file(data, pack, file) {
            Ok(extents) => copied.extend(extents),
            Err(Failed::Read(error)) => {
                tracing::warn!(%error, ino = %file.ino, "a file is not packed");
                data.destroy(pack, file.ino).map_err(writing(pack))?;
            }
            Err(Failed::Write(error)) => return Err(writing(pack)(error)),
        }
        if pace(file.bytes()).is_break() {
            return Ok(Made::Stopped);
        }
    }
    crash_point(Point::PackCopied);
    publish(data, layer, copied).map_err(writing(pack))?;
    Ok(Made::Now)
}

fn writing(pack: LayerId) -> impl FnOnce(io::Error) -> LayerError {
    LayerError::host(pack, "writing a pack")
}

enum Failed {
    Read(LayerError),
    Write(io::Error),
}

/// Copies what is wanted of a file, and syncs it.
fn copy_file(data: &DataFiles, pack: LayerId, file: &Wanted) -> Result<Copied, Failed> {
    let target = data.create_own(pack, file.ino).map_err(Failed::Write)?;
    let ranges = file.ranges.iter().map(|range| SumExtent {
        file: file.ino,
        start: range.start,
        len: range.end - range.start,
    });
    let mut copied = Copied::new();
    let mut buf = Vec::new();
    for extent in cut_extents(ranges) {
        buf.resize(extent.len as usize * GRANULE_BYTES as usize, 0);
        read(data, &file.runs, extent, &mut buf).map_err(Failed::Read)?;
        let offset = u64::from(extent.start) * GRANULE_BYTES;
        write_all_at(&*target, &buf, offset).map_err(Failed::Write)?;
        let granules = buf.chunks_exact(GRANULE_BYTES as usize);
        copied.push((extent, granules.map(granule_sum).collect()));
    }
    target.sync_data().map_err(Failed::Write)?;
    data.sync_entry(pack, file.ino).map_err(Failed::Write)?;
    Ok(copied)
}

/// Reads an extent of the file from its owners, who own all of it.
fn read(
    data: &DataFiles,
    runs: &[OwnedRun],
    extent: SumExtent,
    buf: &mut [u8],
) -> Result<(), LayerError> {
    let end = extent.start + extent.len;
    let first = runs.partition_point(|run| run.start + run.len <= extent.start);
    let bytes = |granule: Granule| (granule - extent.start) as usize * GRANULE_BYTES as usize;
    for run in runs.iter().skip(first).take_while(|run| run.start < end) {
        let (from, to) = (run.start.max(extent.start), (run.start + run.len).min(end));
        let source = u64::from(run.source + (from - run.start)) * GRANULE_BYTES;
        if let Some(part) = buf.get_mut(bytes(from)..bytes(to)) {
            data.read_run(*run, part, source)?;
        }
    }
    Ok(())
}

/// Writes the checksums, by which the copies begin to count.
fn publish(data: &DataFiles, layer: LayerId, copied: Copied) -> io::Result<()> {
    let pack = layer.pack();
    let dir = data.layer_dir(pack);
    let (path, temporary) = (sums::path(data, pack), dir.join("sums.tmp"));
    let file = data.storage.open(&temporary, Access::CreateEmpty)?;
    let extents: Vec<SumExtent> = copied.iter().map(|(extent, _)| *extent).collect();
    let out = BufWriter::with_capacity(1 << 20, Appender::new(&*file));
    let mut writer = SumsWriter::new(out, pack, &extents)?;
    for (extent, sums) in copied {
        writer.extent(extent, &sums)?;
    }
    drop(writer.finish()?);
    crash_point(Point::PackSummed);
    file.sync_data()?;
    data.storage.rename(&temporary, &path)?;
    crash_point(Point::PackRenamed);
    data.storage.sync_dir(&dir)?;
    data.storage.sync_dir(&data.layer_dir(layer))
}

/// Removes what there is of a pack: the checksums first, without which it is none.
fn clear(data: &DataFiles, pack: LayerId) -> Result<(), LayerError> {
    let clear = || -> io::Result<()> {
        let dir = data.layer_dir(pack);
        data.storage.remove_file(&sums::path(data, pack))?;
        crash_point(Point::PackCleared);
        for group in names(data, &dir.join("data"))? {
            for name in names(data, &dir.join("data").join(&group))? {
                if let Some(ino) = name.to_str().and_then(|name| u64::from_str_radix(name, 16).ok())
                {
                    data.destroy(pack, Ino(ino))?;
                }
            }
        }
        Ok(())
    };
    clear().map_err(LayerError::host(pack, "removing half a pack"))
}

fn names(data: &DataFiles, dir: &std::path::Path) -> io::Result<Vec<std::ffi::OsString>> {
    match data.storage.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(layer: u64, start: u32, len: u32) -> OwnedRun {
        OwnedRun { start, len, layer: LayerId(layer), file: Ino(5), source: start }
    }

    fn ranges(runs: &[OwnedRun]) -> Vec<(u32, u32)> {
        worth_copying(runs).iter().map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn short_runs_of_several_data_files_are_worth_a_copy() {
        assert_eq!(ranges(&[]), []);
        assert_eq!(ranges(&[run(1, 0, 2), run(1, 9, 2)]), []);
        assert_eq!(ranges(&[run(1, 0, 2), run(2, 2, 2), run(1, 9, 2)]), [(0, 4), (9, 11)]);
        // A long run is read quickly where it is.
        assert_eq!(ranges(&[run(1, 0, 2), run(2, 2, 64)]), []);
        assert_eq!(ranges(&[run(1, 0, 2), run(2, 2, 64), run(3, 70, 1)]), [(0, 2), (70, 71)]);
    }

    proptest! {
        /// Granule by granule: a copy where there is one, the owner elsewhere, nothing where nobody
        /// owns it.
        #[test]
        fn copies_take_the_place_of_what_they_hold(
            runs in prop::collection::vec((0_u32..4, 1_u32..6, 1_u64..4), 0..8),
            copies in prop::collection::vec((0_u32..5, 1_u32..5), 0..8),
        ) {
            let mut at = 0;
            let runs: Vec<OwnedRun> = runs.into_iter().map(|(gap, len, layer)| {
                let run = OwnedRun { source: at + 7, ..run(layer, at + gap, len) };
                at += gap + len;
                run
            }).collect();
            let mut at = 0;
            let copies: Vec<SumExtent> = copies.into_iter().map(|(gap, len)| {
                let extent = SumExtent { file: Ino(9), start: at + gap, len };
                at += gap + len;
                extent
            }).collect();
            let pack = LayerId(3).pack();
            let found = with_copies(&runs, &copies, (pack, Ino(9)));
            prop_assert!(crate::format::layout::runs_are_sound(&found));
            let at = |runs: &[OwnedRun], g: u32| runs.iter()
                .find(|run| run.start <= g && g < run.start + run.len)
                .map(|run| (run.layer, run.file, run.source + (g - run.start)));
            for g in 0..80 {
                let copied = copies.iter().any(|copy| copy.start <= g && g < copy.start + copy.len);
                let owner = at(&runs, g);
                let wanted = if copied { owner.map(|_| (pack, Ino(9), g)) } else { owner };
                prop_assert_eq!(at(&found, g), wanted, "granule {}", g);
            }
        }
    }
}
