//! The replication slots that a fork inherits, and the mark by which a fork is known.
//!
//! A slot belongs to the parent's consumers: in a fork nobody reads from it, so it would keep WAL
//! for ever. No setting drops slots (with `max_replication_slots` too low the server does not even
//! start), so their directories are removed before the first start, as `pg_basebackup` leaves them
//! out of a backup. Slots that are made in the branch later stay: a small file in the data
//! directory says which branch it was started as, and a fork of it has the file of its parent.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{PostgresError, read_bounded};

/// The mark: the id of the branch that the data directory was last started as.
const MARK: &str = "cowfs_branch";
/// A mark is one short number.
const MARK_BYTES_MAX: u64 = 64;

/// Whether the data directory at `dir` has been started as the branch `id` before.
pub fn is_marked(dir: &Path, id: u64) -> bool {
    let bytes = read_bounded(&dir.join(MARK), MARK_BYTES_MAX).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim() == id.to_string()
}

/// Marks the data directory at `dir` as that of the branch `id`; called as its owner.
pub fn mark(dir: &Path, id: u64) -> Result<(), PostgresError> {
    let path = dir.join(MARK);
    let write = || {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)?;
        writeln!(file, "{id}")?;
        file.sync_all()?;
        std::fs::File::open(dir)?.sync_all()
    };
    write().map_err(|source| host("writing", &path, source))
}

/// Removes the slots of the stopped server at `dir`; returns their names. Called as its owner.
pub fn remove_all(dir: &Path) -> Result<Vec<String>, PostgresError> {
    let slots = dir.join("pg_replslot");
    let entries = match std::fs::read_dir(&slots) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(host("reading", &slots, source)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| host("reading", &slots, source))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            std::fs::remove_dir_all(&path).map_err(|source| host("removing", &path, source))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    if !names.is_empty() {
        let synced = std::fs::File::open(&slots).and_then(|slots| slots.sync_all());
        synced.map_err(|source| host("syncing", &slots, source))?;
    }
    names.sort();
    Ok(names)
}

fn host(what: &str, path: &Path, source: io::Error) -> PostgresError {
    PostgresError::Host { what: format!("{what} {}", path.display()), source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn marks_and_slots() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_marked(dir.path(), 7));
        assert_eq!(remove_all(dir.path()).unwrap(), [""; 0]);
        mark(dir.path(), 7).unwrap();
        assert!(is_marked(dir.path(), 7) && !is_marked(dir.path(), 70));
        for slot in ["two", "one"] {
            std::fs::create_dir_all(dir.path().join("pg_replslot").join(slot)).unwrap();
            std::fs::write(dir.path().join("pg_replslot").join(slot).join("state"), "x").unwrap();
        }
        assert_eq!(remove_all(dir.path()).unwrap(), ["one", "two"]);
        assert_eq!(std::fs::read_dir(dir.path().join("pg_replslot")).unwrap().count(), 0);
        mark(dir.path(), 8).unwrap();
        assert!(is_marked(dir.path(), 8) && !is_marked(dir.path(), 7));
    }
}
