//! `run/<branch id>.failed`: why a serving process could not make everything durable at its end, for
//! the command that waits for the end.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::format::BranchId;
use crate::io::host::{open_plain, open_plain_with};

/// More is not read.
const BYTES_MAX: u64 = 4096;

fn path_of(run_dir: &Path, branch: BranchId) -> PathBuf {
    run_dir.join(format!("{branch}.failed"))
}

/// Leaves word; the caller holds the branch's lock.
pub fn note(run_dir: &Path, branch: BranchId, why: &str) -> io::Result<()> {
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(true);
    open_plain_with(file, &path_of(run_dir, branch))?.write_all(why.as_bytes())
}

/// Takes the word that was left, if any.
pub fn take(run_dir: &Path, branch: BranchId) -> Option<String> {
    let path = path_of(run_dir, branch);
    let file = open_plain(&path).ok()?;
    let mut bytes = Vec::new();
    let read = file.take(BYTES_MAX).read_to_end(&mut bytes);
    let _ = std::fs::remove_file(&path);
    read.ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn word_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let branch = BranchId(3);
        assert_eq!(take(dir.path(), branch), None);
        note(dir.path(), branch, "the first").unwrap();
        note(dir.path(), branch, "no space").unwrap();
        assert_eq!(take(dir.path(), BranchId(4)), None);
        assert_eq!(take(dir.path(), branch).as_deref(), Some("no space"));
        assert_eq!(take(dir.path(), branch), None);
    }
}
