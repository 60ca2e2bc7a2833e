//! The catalog's write-ahead log: kept short, and never grown by a commit if that can be helped.
//!
//! A commit ends with an fdatasync of the log. If the commit made the file longer, ext4 has to
//! commit its own journal for that, and in its ordered mode first writes out the new blocks of
//! every other file: seconds of dirty data of a busy branch, in the way of a fork. A commit into
//! blocks that were written before waits for itself alone. So the log is kept longer than what is
//! in use, by zeros that were written ahead; `SQLite` takes them for the end of the log.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

use super::{BUSY_TIMEOUT, CatalogError};
use crate::io::crash::{Point, crash_point};
use crate::io::host::open_plain_with;

/// Bytes in use that the end of a process leaves behind at most.
///
/// The first process to open an idle catalog reads all of them, so more would cost every
/// command; less would cost every so many commands a few syncs more.
pub const BYTES_AT_END: u64 = 1 << 20;

/// Bytes in use after which a process that serves a branch shortens the log in the background, so
/// that commands do not come to it.
pub const BYTES_SERVED: u64 = BYTES_AT_END / 2;

/// Bytes in use after which even a commit shortens the log, for processes that never end.
pub const BYTES_MAX: u64 = 16 << 20;

/// Length in bytes to which the file is extended. A fork's commit takes about 40 KiB.
pub const LENGTH: u64 = 2 * BYTES_AT_END;

/// Bytes of the file's header and of each frame's, by the file format of `SQLite`.
const HEADER_BYTES: u64 = 32;
const FRAME_HEADER_BYTES: u64 = 24;

fn file_of(catalog: &Path) -> PathBuf {
    let mut path = catalog.as_os_str().to_owned();
    path.push("-wal");
    path.into()
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.len())
}

/// Bytes of the log that hold commits.
fn used(connection: &Connection) -> rusqlite::Result<u64> {
    let frames: i64 =
        connection.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| row.get("log"))?;
    let page: i64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    // -1 is said of a log that nobody has looked at yet.
    let frames = u64::try_from(frames).unwrap_or(0);
    Ok(HEADER_BYTES + frames * (page.unsigned_abs() + FRAME_HEADER_BYTES))
}

/// Whether the log is long, or about to grow with a commit.
pub fn needs_care(connection: &Connection, catalog: &Path) -> Result<bool, CatalogError> {
    let used = used(connection)?;
    Ok(used > BYTES_SERVED || length(&file_of(catalog)) < used + LENGTH / 4)
}

/// Copies the log into the database and empties it, if more than `limit` bytes of it are in use
/// and nobody else is at it: otherwise whoever comes next does.
///
/// The way of `SQLite` itself does not work here. Its automatic checkpoint leaves the log to be
/// reused by a later commit, and how far it got is forgotten when the last process ends: with
/// processes that commit once, the log would grow for ever, and each would read and copy all of it.
pub fn shorten(connection: &Connection, catalog: &Path, limit: u64) {
    if length(&file_of(catalog)) <= limit {
        return;
    }
    let shorten = || -> rusqlite::Result<()> {
        if used(connection)? <= limit {
            return Ok(());
        }
        connection.busy_timeout(Duration::ZERO)?;
        // The first does what takes long, and lets others commit meanwhile.
        let done =
            connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).and_then(|()| {
                crash_point(Point::WalCopied);
                connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            });
        crash_point(Point::WalEmptied);
        connection.busy_timeout(BUSY_TIMEOUT)?;
        done
    };
    if let Err(error) = shorten() {
        // What was committed is durable in the log; only its length is not as it should be.
        tracing::debug!(%error, "could not shorten the catalog's log");
    }
}

/// Writes zeros from the end of the log's file up to [`LENGTH`], durably.
///
/// Under the write lock, so that no commit appends meanwhile; bytes that are there stay.
pub fn extend(connection: &Connection, catalog: &Path) -> Result<(), CatalogError> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let outcome = write_zeros(&file_of(catalog));
    connection.execute_batch("ROLLBACK")?;
    if let Err(error) = outcome {
        // A full disk, say: commits may still succeed, and be slower.
        tracing::debug!(%error, "could not extend the catalog's log");
    }
    Ok(())
}

fn write_zeros(path: &Path) -> io::Result<()> {
    let file = open_plain_with(File::options().write(true), path)?;
    let mut at = file.metadata()?.len();
    if at >= LENGTH {
        return Ok(());
    }
    let zeros = vec![0; 64 << 10];
    while at < LENGTH {
        let part =
            zeros.get(..usize::try_from(LENGTH - at).unwrap_or(usize::MAX)).unwrap_or(&zeros);
        at += file.write_at(part, at)? as u64;
        crash_point(Point::WalHalfExtended);
    }
    crash_point(Point::WalExtended);
    file.sync_all()
}
