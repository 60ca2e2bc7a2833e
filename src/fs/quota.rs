//! A limit to what a branch takes on the disk: the layers that it has written since it began.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::node::Node;
use super::{Fs, FsError};
use crate::branch::Branch;
use crate::branch::view::View;
use crate::format::id::granules_spanned;
use crate::format::{GRANULE_BYTES, Granule, GranuleRange, LayerId};
use crate::io::usage::disk_usage;

/// No limit.
const NONE: u64 = u64::MAX;
/// Bytes written before the disk is looked at again, at least.
const RECOUNT_BYTES: u64 = 4 << 20;
/// A branch at its limit looks at the disk so often, at most.
const RECOUNT_PAUSE: Duration = Duration::from_millis(50);

/// The limit of a branch, and how far it is.
#[derive(Debug)]
pub struct Quota {
    /// Bytes; [`NONE`] for no limit.
    limit: AtomicU64,
    count: Mutex<Count>,
}

#[derive(Debug, Default)]
struct Count {
    /// Bytes on the disk when it was looked at, and all that was written to new places since.
    used: u64,
    /// Bytes written since then, wherever.
    written: u64,
    looked: Option<Instant>,
    /// Layers that do not change any more.
    sealed: HashMap<LayerId, u64>,
}

impl Quota {
    pub(super) fn new(bytes: Option<u64>) -> Quota {
        Quota { limit: AtomicU64::new(bytes.unwrap_or(NONE)), count: Mutex::default() }
    }

    /// Sets the limit, in bytes.
    pub fn set(&self, bytes: Option<u64>) {
        self.limit.store(bytes.unwrap_or(NONE), Ordering::Relaxed);
        // What was written meanwhile was not counted.
        self.count.lock().looked = None;
    }

    fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|&limit| limit != NONE)
    }
}

impl Count {
    /// Looks at the disk.
    fn look(&mut self, branch: &Branch) -> Result<(), FsError> {
        let layers = branch.written_layers()?;
        let open = branch.view().open.id;
        let frozen: Vec<LayerId> = branch.view().frozen.iter().map(|layer| layer.id).collect();
        let mut used = 0;
        for layer in layers {
            let size = || disk_usage(&branch.store.layer_dir(layer));
            used += if layer == open || frozen.contains(&layer) {
                size()
            } else {
                *self.sealed.entry(layer).or_insert_with(size)
            };
        }
        (self.used, self.written, self.looked) = (used, 0, Some(Instant::now()));
        Ok(())
    }
}

impl Fs {
    /// Lets a write of `len` bytes at `offset` of a file pass, or says that the branch may take no
    /// more. What is written in place is let through always.
    pub(super) fn admit(
        &self,
        view: &View,
        node: &Node,
        offset: u64,
        len: u64,
    ) -> Result<(), FsError> {
        let Some(limit) = self.quota.limit() else { return Ok(()) };
        let new = new_bytes(view, node, offset, len);
        let mut count = self.quota.count.lock();
        let left = limit.saturating_sub(count.used);
        if count.looked.is_none() || count.written >= RECOUNT_BYTES.max(left / 8) {
            count.look(&self.branch)?;
        }
        let fits = |count: &Count| count.used.saturating_add(new) <= limit;
        if new > 0 && !fits(&count) {
            if count.looked.is_none_or(|looked| looked.elapsed() >= RECOUNT_PAUSE) {
                count.look(&self.branch)?;
            }
            if !fits(&count) {
                return Err(FsError::OverQuota);
            }
        }
        count.used += new;
        count.written += len;
        Ok(())
    }

    /// The limit and what of it is left, in bytes, if there is one.
    pub fn quota(&self) -> Result<Option<(u64, u64)>, FsError> {
        let Some(limit) = self.quota.limit() else { return Ok(None) };
        let mut count = self.quota.count.lock();
        if count.looked.is_none_or(|looked| looked.elapsed() >= RECOUNT_PAUSE) {
            count.look(&self.branch)?;
        }
        Ok(Some((limit, limit.saturating_sub(count.used))))
    }
}

/// How many of the bytes of a write may need a new place on the disk.
fn new_bytes(view: &View, node: &Node, offset: u64, len: u64) -> u64 {
    let range = GranuleRange {
        start: (offset / GRANULE_BYTES) as Granule,
        end: granules_spanned(offset.saturating_add(len)),
    };
    if range.start >= range.end {
        return 0;
    }
    let all = u64::from(range.end - range.start) * GRANULE_BYTES;
    let Some(file) = node.own(view) else { return all };
    let own = file.ownership.read();
    if own.private {
        // Holes of it are found when the disk is looked at.
        let there = u64::from(granules_spanned(own.size)) * GRANULE_BYTES;
        return (u64::from(range.end) * GRANULE_BYTES).saturating_sub(there).min(all);
    }
    if own.present.contains_all(range) { 0 } else { all }
}
