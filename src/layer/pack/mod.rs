//! Packs: copies of scattered granules of several layers, in one data file per file.
//!
//! A merged index says where the granules of many layers lie; reading them still means one data file
//! and one checksum file per layer. A pack holds copies of those that are scattered, at the same
//! offsets, below the directory of the layer that the merged index belongs to:
//!
//! ```text
//! layers/<layer>/pack/sums              which granules, and their checksums
//! layers/<layer>/pack/data/<group>/<ino>
//! layers/<layer>/pack.tmp/..            one that is being made
//! layers/<layer>/pack.lock              flock of whoever makes it
//! ```
//!
//! It is derived, and nothing but speed depends on it: every granule read from it is held against its
//! checksum, and what does not match is read from where it was copied from ([`super::read`]). It may be
//! removed at any time. Who owns a granule is told by the indexes alone.

mod make;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

pub use self::make::make;
use super::LayerError;
use super::data_files::DataFiles;
use super::sums;
use crate::format::sums::{SumExtent, Sums};
use crate::format::{FormatError, GRANULE_BYTES, GranuleRange, Ino, LayerId, OwnedRun};
use crate::io::host::read_plain;

/// How often a pack that went bad is made anew, until the next mount.
const MADE_ANEW_MAX: u32 = 1;

/// Packs that cannot be relied on: a copy was not what it was, or could not be read. They go unused until
/// they are made anew.
#[derive(Default)]
pub struct Packs {
    /// Whether there is one, so that a read need not look.
    any: AtomicBool,
    /// Whether it is bad now, and how often it went bad.
    seen: Mutex<HashMap<LayerId, (bool, u32)>>,
}

impl Packs {
    /// Whether all copies are to be read.
    pub(super) fn are_sound(&self) -> bool {
        !self.any.load(Ordering::Relaxed)
    }

    /// Whether copies in `pack` are to be read.
    pub(super) fn is_sound(&self, pack: LayerId) -> bool {
        self.are_sound() || self.seen.lock().get(&pack).is_none_or(|(bad, _)| !bad)
    }

    /// Copies in the pack of `error` are read no more.
    pub(super) fn give_up(&self, error: &LayerError) {
        let pack = error.layer().filter(|layer| layer.is_pack());
        let Some(pack) = pack.filter(|pack| self.is_sound(*pack)) else { return };
        tracing::error!(%error, "a pack is not used any more: what it has copies of is read from the layers");
        let mut seen = self.seen.lock();
        let (bad, times) = seen.entry(pack).or_default();
        (*bad, *times) = (true, *times + 1);
        self.any.store(true, Ordering::Relaxed);
    }

    /// The pack of `layer` is a new one.
    pub(super) fn renewed(&self, layer: LayerId) {
        let mut seen = self.seen.lock();
        if let Some((bad, _)) = seen.get_mut(&layer.pack()) {
            *bad = false;
        }
        self.any.store(seen.values().any(|(bad, _)| *bad), Ordering::Relaxed);
    }

    /// Whether the pack of `layer` is to be made anew.
    pub fn is_owed(&self, layer: LayerId) -> bool {
        let seen = self.seen.lock();
        seen.get(&layer.pack()).is_some_and(|(bad, times)| *bad && *times <= MADE_ANEW_MAX)
    }

    /// Packs that are not used now.
    pub fn given_up(&self) -> usize {
        self.seen.lock().values().filter(|(bad, _)| *bad).count()
    }
}

/// Runs of so many granules are read quickly where they are.
const SCATTERED_GRANULES_MAX: u32 = 64;

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
    match read_sums(data, layer.pack()) {
        Ok(found) => found.map(Arc::new),
        Err(error) => {
            tracing::warn!(%error, "a pack is not used: its granules are read from their layers");
            None
        }
    }
}

/// The checksums of a pack, all of them verified. They are read and not mapped: this file is not one that
/// never changes.
fn read_sums(data: &DataFiles, pack: LayerId) -> Result<Option<Sums>, LayerError> {
    let path = sums::path(data, pack);
    let bytes = match read_plain(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LayerError::opening(pack, "reading a pack", &path)(error)),
    };
    let opened = Sums::open(Box::new(bytes)).and_then(|sums| {
        if sums.layer() != pack {
            return Err(FormatError::Corrupt { what: "checksums of another pack", offset: 16 });
        }
        sums.extents().try_for_each(|extent| extent.map(drop))?;
        Ok(Some(sums))
    });
    opened.map_err(|source| LayerError::Damaged { layer: pack, path, source })
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
