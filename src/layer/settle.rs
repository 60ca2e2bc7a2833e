//! After an unclean end: what a lost cut of a file hid stays hidden.
//!
//! The length of a data file is the file's size, and the host may commit a new length while the
//! record that goes with it is lost: the power went between the two, or the process was killed
//! there. The file then is short, which nobody was promised it would not be; but nothing says any
//! more that the contents of lower layers past its end are gone, and they would show again as
//! soon as the file grows.

use super::LayerError;
use super::write::Target;
use crate::format::id::granules_spanned;
use crate::format::{GRANULE_BYTES, Granule, GranuleRange, LayoutDelta};
use crate::io::crash::{Point, crash_point};

impl Target<'_> {
    /// Makes good for a cut whose record was lost, if there was one: `below` is the size in bytes
    /// that the layers below give the file.
    ///
    /// Returns whether anything was changed; the change is logged but not synced.
    pub fn settle(&self, below: u64) -> Result<bool, LayerError> {
        let _exclusive = self.file.writers.write();
        let own = self.file.ownership.read().clone();
        let end = granules_spanned(own.size);
        // Only whole granules within the file are ever borrowed.
        let whole = (own.size / GRANULE_BYTES) as Granule;
        let settled = if own.private { own.borrowed.end() <= whole } else { own.size >= below };
        if settled {
            return Ok(false);
        }
        let mut delta = LayoutDelta::unchanged(self.file.ino);
        delta.cut = end;
        delta.floor = if own.private { Granule::MAX } else { end };
        delta.private = own.private;
        if !own.size.is_multiple_of(GRANULE_BYTES) && self.shows_lower(end - 1) {
            let last = GranuleRange { start: end - 1, end };
            self.copy_up(last)?;
            crash_point(Point::SettleCopied);
            delta.added.push(last);
        }
        if !own.private && own.floor <= end && delta.added.is_empty() {
            return Ok(false);
        }
        self.record_settled(&delta)?;
        crash_point(Point::SettleLogged);
        Ok(true)
    }

    /// A frozen layer's logs take nothing new: there the change counts in memory until the index
    /// holds it, and is found again from the same state if a crash comes first.
    fn record_settled(&self, delta: &LayoutDelta) -> Result<(), LayerError> {
        if self.layer.foreign {
            self.file.apply(delta);
            return Ok(());
        }
        self.record(delta)
    }
}
