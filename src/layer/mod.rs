//! One layer: what it owns, how it records that, and how stacked layers resolve to owners.

pub mod ahead;
pub mod borrowed;
pub mod data_files;
mod entries;
pub mod holes;
pub mod host_cache;
mod leave;
pub mod log;
pub mod names;
pub mod open;
pub mod open_file;
pub mod owner_map;
pub mod pack;
pub mod presence;
pub mod read;
pub mod replay;
pub mod sealed;
pub mod settle;
pub mod sums;
pub mod sync;
pub mod write;
pub mod write_out;

use std::path::{Path, PathBuf};

use crate::format::{FormatError, Ino, LayerId};

/// What can go wrong inside a layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The host refused a call on a file of the store.
    #[error("layer {layer}: {what}: {source}", layer = layer.dir_name())]
    Host {
        /// The layer.
        layer: LayerId,
        /// What was being done.
        what: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
    /// Bytes on disk are not what was written.
    #[error("layer {layer}: {path}: {source}", layer = layer.dir_name(), path = path.display())]
    Damaged {
        /// The layer.
        layer: LayerId,
        /// The file with the damage.
        path: PathBuf,
        /// What is wrong with it.
        source: FormatError,
    },
    /// Contents of a sealed layer are not what they were when their checksum was made.
    #[error(
        "layer {layer}: corrupt contents in {path} at offset {offset} (checksum mismatch)",
        layer = layer.dir_name(), path = path.display()
    )]
    Corrupt {
        /// The layer.
        layer: LayerId,
        /// The data file, or the file of an adopted base.
        path: PathBuf,
        /// Where the granule begins, in bytes.
        offset: u64,
    },
    /// A sealed layer owns bytes that its data file does not have.
    #[error("layer {layer}: {path} ends at byte {end}, and bytes up to {wanted} were written to it", layer = layer.dir_name(), path = path.display())]
    DataTooShort {
        /// The layer.
        layer: LayerId,
        /// The data file, which may be missing altogether.
        path: PathBuf,
        /// Where it ends, in bytes.
        end: u64,
        /// Where the bytes end that were to be read from it.
        wanted: u64,
    },
    /// An earlier fsync of the file failed: what the disk holds is unknown until it is checked.
    #[error("layer {layer}: an earlier sync of inode {ino} failed; remount and check the branch", layer = layer.dir_name())]
    Latched {
        /// The layer.
        layer: LayerId,
        /// The file, or `Ino(0)` for the journal.
        ino: Ino,
    },
    /// A file of an adopted base is not as it was when it was adopted.
    #[error("adopted file {path} was changed from outside ({change}); its contents cannot be trusted", path = path.display())]
    AdoptedChanged {
        /// The file.
        path: PathBuf,
        /// What differs.
        change: &'static str,
    },
}

impl LayerError {
    /// The layer (or the pack) that it is about.
    pub(crate) fn layer(&self) -> Option<LayerId> {
        match self {
            LayerError::Host { layer, .. }
            | LayerError::Damaged { layer, .. }
            | LayerError::Corrupt { layer, .. }
            | LayerError::DataTooShort { layer, .. }
            | LayerError::Latched { layer, .. } => Some(*layer),
            LayerError::AdoptedChanged { .. } => None,
        }
    }

    /// A file of the layer could not be opened or read.
    pub(crate) fn opening(
        layer: LayerId,
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> LayerError {
        move |source| match source.kind() {
            // Something else has been put in its place.
            std::io::ErrorKind::InvalidData => {
                let source = FormatError::NotAFile(source);
                LayerError::Damaged { layer, path: path.to_owned(), source }
            }
            _ => LayerError::Host { layer, what, source },
        }
    }

    pub(crate) fn host(
        layer: LayerId,
        what: &'static str,
    ) -> impl FnOnce(std::io::Error) -> LayerError {
        move |source| LayerError::Host { layer, what, source }
    }
}
