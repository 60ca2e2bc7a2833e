//! What cowfs knows about Postgres: the facts of a data directory ([`probe`], [`control_file`],
//! [`config`]), the files that must not follow a fork ([`hygiene`]), and how to run a server on a
//! data directory: its binaries ([`locate`]), its user ([`owner`]), the settings that keep a branch
//! from acting in its parent's name ([`settings`]), start and stop ([`launch`], [`postmaster`]).
//!
//! Nothing here knows of branches' layers or of mounts: it is given directories.

pub mod client;
pub mod config;
pub mod connection;
pub mod control_file;
pub mod error;
pub mod hygiene;
pub mod instance;
pub mod launch;
pub mod locate;
pub mod owner;
pub mod port;
pub mod postmaster;
pub mod probe;
pub mod process;
pub mod runtime_dir;
pub mod settings;
pub mod slots;
pub mod wal;

pub use control_file::{ControlFile, ControlFileError, DbState};
pub use error::PostgresError;
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
