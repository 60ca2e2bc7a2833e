//! What differs between two states of a store: found from names, inodes and owners of granules, so
//! without reading a file's contents.
//!
//! Two states that share a layer share what lies in it. A granule differs when another data file
//! owns it: it was written since, if only with the same bytes. [`Exactness::Bytes`] reads what was
//! written and leaves out what is the same.

mod changes;
mod pages;
mod tree;

pub use changes::{Change, Difference, diff};
pub use pages::{BLOCK_BYTES, blocks, bytes_of};

use std::path::PathBuf;

use crate::fs::FsError;

/// A comparison failed.
#[derive(Debug, thiserror::Error)]
#[error("reading {} of {of}", path.display())]
pub struct DiffError {
    /// The path within the branch.
    pub path: PathBuf,
    /// What was compared.
    pub of: String,
    /// Why.
    pub source: Box<FsError>,
}

/// How exactly contents are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exactness {
    /// By who owns them: what was written counts.
    Owners,
    /// What was written is read and compared.
    Bytes,
}
