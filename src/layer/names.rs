//! The directory entries that an open layer changed.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::format::{DirentTarget, Ino};

type Key = (Ino, u64, Box<[u8]>);

/// Directory entries sorted by (directory, hash of the name, name): the order of a listing.
#[derive(Default)]
pub struct Names {
    entries: BTreeMap<Key, DirentTarget>,
}

impl Names {
    /// What this layer says about `name` in `dir`.
    pub fn get(&self, dir: Ino, hash: u64, name: &[u8]) -> Option<DirentTarget> {
        self.entries.get(&(dir, hash, Box::from(name))).copied()
    }

    /// Records what `name` in `dir` leads to.
    pub fn set(&mut self, dir: Ino, hash: u64, name: &[u8], target: DirentTarget) {
        self.entries.insert((dir, hash, Box::from(name)), target);
    }

    /// The entries of `dir` with a hash greater than `after`, in order.
    pub fn after(
        &self,
        dir: Ino,
        after: u64,
    ) -> impl Iterator<Item = (u64, &[u8], DirentTarget)> + '_ {
        let from = Bound::Included((dir, after.saturating_add(1), Box::from(&b""[..])));
        let to = Bound::Excluded((Ino(dir.0 + 1), 0, Box::from(&b""[..])));
        self.entries
            .range::<Key, _>((from, to))
            .map(|((_, hash, name), target)| (*hash, name.as_ref(), *target))
    }

    /// Every entry: directory, name, target.
    pub fn iter(&self) -> impl Iterator<Item = (Ino, &[u8], DirentTarget)> + '_ {
        self.entries.iter().map(|((dir, _, name), target)| (*dir, name.as_ref(), *target))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the layer changed no name.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
