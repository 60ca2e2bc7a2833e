//! Which granules of a file a layer owns.

use super::id::{Granule, Ino, LayerId};

/// A half-open range of granules, `start..end`, never empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GranuleRange {
    /// First granule.
    pub start: Granule,
    /// One past the last granule; greater than `start`.
    pub end: Granule,
}

/// Granules whose contents come from a data file of some layer.
///
/// Granule `start + i` of the file reads granule `source + i` of data file `file` in `layer`, for
/// `i < len`. Ordinarily `file` is the file itself and `source == start` (same-offset data files);
/// they differ only for ranges that `copy_file_range(2)` shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnedRun {
    /// First granule within the file.
    pub start: Granule,
    /// Granules in the run, at least 1.
    pub len: u32,
    /// The layer whose data file holds them.
    pub layer: LayerId,
    /// The data file within that layer.
    pub file: Ino,
    /// First granule within the data file.
    pub source: Granule,
}

/// A change of one layer's ownership of one file, as journalled.
///
/// Applied in this order: ownership at or past `cut` is dropped; the truncation floor sinks to
/// `floor` if that is lower; `private` makes the file private (for good); `added` becomes owned;
/// `borrowed` is shown from other data files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayoutDelta {
    /// The file.
    pub ino: Ino,
    /// The layer owns the file completely: lower layers never show through, holes read as zeros.
    pub private: bool,
    /// Contents of lower layers at or past this granule are gone; `u32::MAX` for "no floor".
    pub floor: Granule,
    /// Granules of this layer at or past this index are dropped first; `u32::MAX` for "none".
    pub cut: Granule,
    /// Granules that this layer owns from now on, ascending and disjoint. Of a private file: that
    /// are not borrowed any more.
    pub added: Vec<GranuleRange>,
    /// Granules of a private file that `copy_file_range(2)` has shared: they are those of lower
    /// layers until they are owned again. Ascending and disjoint.
    pub borrowed: Vec<OwnedRun>,
}

impl LayoutDelta {
    /// A delta for `ino` that changes nothing.
    pub fn unchanged(ino: Ino) -> LayoutDelta {
        LayoutDelta {
            ino,
            private: false,
            floor: Granule::MAX,
            cut: Granule::MAX,
            added: Vec::new(),
            borrowed: Vec::new(),
        }
    }
}

/// What one sealed layer (or a merged stack of layers) says about the granules of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileLayout {
    /// Granules outside `runs` are zeros; lower layers never show through.
    pub private: bool,
    /// Unless `private`: granules at or past this one that are in no run are zeros, those before it
    /// fall through to lower layers. `u32::MAX` for "no floor".
    pub floor: Granule,
    /// The granules that have an owner, ascending and disjoint.
    pub runs: Vec<OwnedRun>,
}

impl FileLayout {
    /// Whether runs ascend, are not empty, do not overlap and stay within `u32` granules on both
    /// sides.
    pub fn self_check(&self) -> bool {
        runs_are_sound(&self.runs)
    }
}

/// Whether `runs` ascend, are not empty, do not overlap and stay within `u32` granules on both
/// sides.
pub fn runs_are_sound(runs: &[OwnedRun]) -> bool {
    let mut free_from = 0;
    runs.iter().all(|run| {
        let fits = run.len > 0
            && run.start >= free_from
            && run.start.checked_add(run.len).is_some()
            && run.source.checked_add(run.len).is_some();
        free_from = run.start.saturating_add(run.len);
        fits
    })
}
