//! `run/<branch id>.json`: where a branch is mounted, by which process, since when.
//!
//! For people and for finding a mount by its directory. The branch's lock decides whether it is
//! served; this file may be left over from a process that was killed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::format::BranchId;

/// Larger files are not ours.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// What a serving process leaves in the `run` directory for others to find.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFile {
    /// The branch.
    pub branch: BranchId,
    /// Where it is mounted.
    #[serde(with = "path_bytes")]
    pub mount_point: PathBuf,
    /// The serving process.
    pub pid: u32,
    /// Milliseconds since 1970.
    pub since_ms: i64,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}

fn path_of(run_dir: &Path, branch: BranchId) -> PathBuf {
    run_dir.join(format!("{branch}.json"))
}

impl RunFile {
    /// Writes the file of a branch whose lock the caller holds.
    pub fn write(&self, run_dir: &Path) -> io::Result<()> {
        let path = path_of(run_dir, self.branch);
        let new = run_dir.join(format!("{}.json.new", self.branch));
        remove_if_there(&new)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        serde_json::to_writer(&mut file, self).map_err(io::Error::from)?;
        file.write_all(b"\n")?;
        // Not synced: after a power cut nothing is mounted.
        std::fs::rename(&new, &path)
    }

    /// Reads the file of a branch; `None` if there is none, or what is there is not one.
    pub fn read(run_dir: &Path, branch: BranchId) -> Option<RunFile> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path_of(run_dir, branch))
            .ok()?;
        read_from(&file).filter(|run| run.branch == branch)
    }

    /// All run files of a store, by branch id.
    pub fn read_all(run_dir: &Path) -> io::Result<Vec<RunFile>> {
        let branches = RunFile::branches(run_dir)?;
        let mut found: Vec<RunFile> =
            branches.into_iter().filter_map(|id| RunFile::read(run_dir, id)).collect();
        found.sort_by_key(|run| run.branch);
        Ok(found)
    }

    /// The branches that have a run file, which may be left over.
    pub fn branches(run_dir: &Path) -> io::Result<Vec<BranchId>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(run_dir)? {
            let name = entry?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".json")?.parse().ok());
            // `03.json` is not the file of branch 3.
            found.extend(id.map(BranchId).filter(|id| *name == *format!("{id}.json")));
        }
        Ok(found)
    }

    /// Removes what a serving process leaves in `run_dir`; the caller holds the branch's lock.
    pub fn remove(run_dir: &Path, branch: BranchId) -> io::Result<()> {
        remove_if_there(&path_of(run_dir, branch))?;
        remove_if_there(&run_dir.join(super::control::socket_name(branch)))
    }
}

fn read_from(file: &File) -> Option<RunFile> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// A path as text where it is UTF-8, else as an array of bytes.
pub(super) mod path_bytes {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Form {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        let form = match path.to_str() {
            Some(text) => Form::Text(text.to_owned()),
            None => Form::Bytes(path.as_os_str().as_bytes().to_vec()),
        };
        form.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Ok(match Form::deserialize(deserializer)? {
            Form::Text(text) => PathBuf::from(text),
            Form::Bytes(bytes) => PathBuf::from(OsString::from_vec(bytes)),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    fn sample(id: u64, mount_point: &[u8]) -> RunFile {
        RunFile {
            branch: BranchId(id),
            mount_point: PathBuf::from(OsStr::from_bytes(mount_point)),
            pid: 42,
            since_ms: 1_700_000_000_000,
            read_only: false,
        }
    }

    #[test]
    fn written_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, odd) = (sample(10, b"/mnt/a b"), sample(9, b"/mnt/\xff\n"));
        plain.write(dir.path()).unwrap();
        odd.write(dir.path()).unwrap();
        plain.write(dir.path()).unwrap();
        assert_eq!(RunFile::read(dir.path(), BranchId(9)), Some(odd.clone()));
        assert_eq!(RunFile::read_all(dir.path()).unwrap(), [odd, plain]);
        RunFile::remove(dir.path(), BranchId(10)).unwrap();
        RunFile::remove(dir.path(), BranchId(10)).unwrap();
        assert_eq!(RunFile::read_all(dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn other_things_are_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("1.json"), "{").unwrap();
        sample(3, b"/x").write(dir.path()).unwrap();
        std::fs::rename(dir.path().join("3.json"), dir.path().join("2.json")).unwrap();
        std::os::unix::fs::symlink("2.json", dir.path().join("4.json")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("5.json"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        std::fs::create_dir(dir.path().join("6.json")).unwrap();
        assert_eq!(RunFile::read_all(dir.path()).unwrap(), []);
    }
}
