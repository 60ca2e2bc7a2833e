//! What cowfs knows about Postgres: the facts of a data directory, its control file, the settings
//! that matter to us, and the files that must not follow a fork or an import.
//!
//! Nothing here runs Postgres or changes a data directory.

pub mod config;
pub mod control_file;
pub mod hygiene;
pub mod probe;

pub use control_file::{ControlFile, ControlFileError, DbState};
pub use probe::{DataDirectory, ProbeError};

use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Reads a small regular file, at most `limit` bytes of it.
///
/// A data directory is somebody else's: what should be a file may be a FIFO that never answers or
/// a device that never ends, so only a regular file is read, and not without a bound.
fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}
