//! Sealed, finalized layers: their indexes, mapped and never changed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::LayerError;
use super::data_files::DataFiles;
use crate::format::index::Index;
use crate::format::{FormatError, LayerId};
use crate::io::host::open_plain;
use crate::io::sys;

/// Which of a layer's two index files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexFile {
    /// The layer alone.
    Own,
    /// The layer and a number of layers below it, merged.
    Merged,
}

impl IndexFile {
    fn name(self) -> &'static str {
        match self {
            IndexFile::Own => "index",
            IndexFile::Merged => "merged",
        }
    }

    /// Where the file lies.
    pub fn path(self, data: &DataFiles, layer: LayerId) -> PathBuf {
        data.layer_dir(layer).join(self.name())
    }
}

/// Opens an index of `layer`, or `None` if it does not exist (yet).
pub fn open_index(
    data: &DataFiles,
    layer: LayerId,
    which: IndexFile,
) -> Result<Option<Arc<Index>>, LayerError> {
    let path = which.path(data, layer);
    let file = match open_plain(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(LayerError::opening(layer, "opening an index", &path)(e)),
    };
    let map = sys::map_immutable(&file).map_err(LayerError::host(layer, "mapping an index"))?;
    let damaged = |source| LayerError::Damaged { layer, path: path.clone(), source };
    let index = Index::open(Box::new(map)).map_err(damaged)?;
    if index.meta().layer != layer {
        let what = "index of another layer";
        return Err(damaged(FormatError::Corrupt { what, offset: 0 }));
    }
    Ok(Some(Arc::new(index)))
}
