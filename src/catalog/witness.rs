//! What tells that the catalog went back in time.
//!
//! `SQLite` takes the first frame of its log that does not agree with its checksum for the end of
//! the log: after one wrong bit all later commits are gone, and nobody says so. The same becomes of
//! a log that was removed, or of an old copy that was put back. Layers that only the lost commits
//! knew would look like leftovers, and sealed layers like open ones.
//!
//! So every commit counts itself in the database, and the count is noted in a file beside it. A
//! catalog that has counted less than was noted is older than the store, and takes no changes.
//!
//! The note is written after the commit is durable, and not synced: it never runs ahead of the
//! catalog, also when the power goes. It may fall behind then, or when two processes commit at
//! once, and tells less for as long as it does.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

const MAGIC: [u8; 8] = *b"cowfscnt";
const BYTES: usize = 20;

/// How often a note is read that looks damaged, since somebody may be writing it.
const READS_MAX: u32 = 5;
const REREAD_PAUSE: Duration = Duration::from_millis(5);

/// The file beside the catalog at `catalog`: 20 bytes, all integers little-endian.
///
/// | at | field | type |
/// | --- | --- | --- |
/// | 0 | magic `cowfscnt` | 8 bytes |
/// | 8 | commits that were made, at least | u64 |
/// | 16 | CRC32C of bytes 0..16 | u32 |
pub fn path_of(catalog: &Path) -> PathBuf {
    catalog.with_extension("commits")
}

/// What the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// There is none (yet).
    Nothing,
    /// At least so many commits were made.
    Commits(u64),
    /// It is not what was written.
    Damaged,
}

fn encode(commits: u64) -> [u8; BYTES] {
    let mut out = [0; BYTES];
    out[..8].copy_from_slice(&MAGIC);
    out[8..16].copy_from_slice(&commits.to_le_bytes());
    let crc = crc32c::crc32c(&out[..16]);
    out[16..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn decode(bytes: &[u8]) -> Option<u64> {
    let commits = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
    (bytes == encode(commits)).then_some(commits)
}

fn open(path: &Path, write: bool) -> io::Result<File> {
    // Neither waits for a FIFO nor follows a link that somebody has put there.
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let mut options = File::options();
    options.read(true).write(write).create(write).truncate(false).mode(0o600).custom_flags(flags);
    let file = options.open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn read_once(path: &Path) -> Noted {
    let file = match open(path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Noted::Nothing,
        Err(_) => return Noted::Damaged,
    };
    let mut bytes = [0; BYTES + 1];
    let mut length = 0;
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Noted::Damaged,
        }
    }
    match length {
        0 => Noted::Nothing,
        _ => bytes.get(..length).and_then(decode).map_or(Noted::Damaged, Noted::Commits),
    }
}

/// Reads the note beside the catalog at `catalog`.
pub fn read(catalog: &Path) -> Noted {
    let path = path_of(catalog);
    for _ in 1..READS_MAX {
        match read_once(&path) {
            Noted::Damaged => std::thread::sleep(REREAD_PAUSE),
            noted => return noted,
        }
    }
    read_once(&path)
}

/// Notes that `commits` were made, unless more were noted already. A damaged note stays for
/// `cowfs check` to tell of.
pub fn raise(catalog: &Path, commits: u64) {
    let behind = match read(catalog) {
        Noted::Nothing => true,
        Noted::Commits(noted) => noted < commits,
        Noted::Damaged => false,
    };
    let note = || open(&path_of(catalog), true)?.write_all_at(&encode(commits), 0);
    if behind && let Err(error) = note() {
        // The commit is durable; an older catalog is recognised a little less surely.
        tracing::debug!(%error, "could not note the number of commits");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_note_never_sinks_and_damage_stays() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = dir.path().join("catalog.sqlite");
        assert_eq!(read(&catalog), Noted::Nothing);
        for (commits, noted) in [(7, 7), (5, 7), (8, 8)] {
            raise(&catalog, commits);
            assert_eq!(read(&catalog), Noted::Commits(noted));
        }
        let path = path_of(&catalog);
        assert_eq!(path, dir.path().join("catalog.commits"));
        let good = std::fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(read_once(&path), Noted::Damaged, "bit {bit}");
        }
        std::fs::write(&path, [&good[..], b"x"].concat()).unwrap();
        assert_eq!(read(&catalog), Noted::Damaged);
        raise(&catalog, 9);
        assert_eq!(read(&catalog), Noted::Damaged);
        std::fs::write(&path, "").unwrap();
        assert_eq!(read(&catalog), Noted::Nothing);
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read(&catalog), Noted::Damaged);
    }

    #[test]
    fn bytes_are_pinned() {
        let pinned = b"cowfscnt\x02\x01\0\0\0\0\0\0\xb2\x4d\x5a\x17";
        assert_eq!(encode(0x0102), *pinned);
    }
}
