//! Bytes that layers take on the disk.

use std::collections::HashMap;

use crate::catalog::Store;
use crate::format::LayerId;
use crate::io::usage::disk_usage;

/// Sizes of layers, each looked up once: branches share them, and sealed ones do not change.
#[derive(Default)]
pub(super) struct Sizes {
    known: HashMap<LayerId, u64>,
}

impl Sizes {
    /// Bytes on disk of a layer.
    pub fn of(&mut self, store: &Store, layer: LayerId) -> u64 {
        let look = || disk_usage(&store.layer_dir(layer));
        *self.known.entry(layer).or_insert_with(look)
    }

    /// Looks a layer that changes up again, the next time.
    pub fn forget(&mut self, layer: LayerId) {
        self.known.remove(&layer);
    }

    /// Bytes on disk of several.
    pub fn sum<'a>(&mut self, store: &Store, layers: impl IntoIterator<Item = &'a LayerId>) -> u64 {
        layers.into_iter().map(|layer| self.of(store, *layer)).sum()
    }
}
