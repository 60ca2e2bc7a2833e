//! fsync over the stack: the layers that are not finalized yet, the oldest first.
//!
//! A change never becomes durable before one that came earlier, so what lies in older layers is
//! synced before the open one. Usually there is nothing: layers are finalized in the background
//! soon after they freeze.

use std::sync::Arc;

use super::view::View;
use super::{Branch, BranchError};
use crate::format::Ino;
use crate::io::crash::{Point, crash_point};
use crate::layer::LayerError;
use crate::layer::open::OpenLayer;
use crate::layer::sealed::IndexFile;
use crate::layer::sync::Durable;

impl Branch {
    /// Makes a file's data, size, names and attributes durable.
    ///
    /// Without the epoch gate: the stack is a snapshot, and what a fork meanwhile freezes is synced
    /// through it all the same.
    pub fn sync_file(&self, ino: Ino) -> Result<Durable, BranchError> {
        let view = self.view();
        self.sync_below(&view, |layer| {
            let _durable = layer.sync_file(ino)?;
            layer.sync_names()
        })?;
        self.sync_layer(&view.open, |layer| layer.sync_file(ino))
    }

    /// Makes every name and every explicit change of attributes durable.
    pub fn sync_names(&self) -> Result<Durable, BranchError> {
        let view = self.view();
        self.sync_below(&view, OpenLayer::sync_names)?;
        self.sync_layer(&view.open, OpenLayer::sync_names)
    }

    /// Makes everything durable.
    pub fn sync_all(&self) -> Result<Durable, BranchError> {
        let view = self.view();
        self.sync_below(&view, OpenLayer::sync_all)?;
        self.sync_layer(&view.open, OpenLayer::sync_all)
    }

    fn sync_below(
        &self,
        view: &View,
        sync: impl Fn(&OpenLayer) -> Result<Durable, LayerError>,
    ) -> Result<(), BranchError> {
        for layer in view.frozen.iter().rev() {
            let _durable = self.sync_layer(layer, &sync)?;
            crash_point(Point::SyncedBelow);
        }
        Ok(())
    }

    /// Syncs one layer that has no index yet. One whose logs belong to another process is synced by
    /// finalizing it.
    fn sync_layer(
        &self,
        layer: &Arc<OpenLayer>,
        sync: impl Fn(&OpenLayer) -> Result<Durable, LayerError>,
    ) -> Result<Durable, BranchError> {
        if layer.foreign {
            self.finalize_layer(layer)?;
            return Ok(Durable::sealed());
        }
        match sync(layer) {
            // A child's process may have finalized the layer just now and taken the logs away.
            Err(error) if !self.has_index(layer) => Err(error.into()),
            Err(_) => {
                self.finalize_layer(layer)?;
                Ok(Durable::sealed())
            }
            Ok(durable) => Ok(durable),
        }
    }

    /// Whether somebody has finalized a layer, or is about to be done with it.
    fn has_index(&self, layer: &OpenLayer) -> bool {
        self.data.storage.metadata(&IndexFile::Own.path(&self.data, layer.id)).is_ok()
    }
}
