//! The few files of a state that are looked at: of a branch that is open here, or at its mount.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::HistoryError;
use crate::format::Ino;
use crate::fs::{Fs, FsError};

/// Files of a state, by their paths.
pub trait Files {
    /// Names in a directory, and their sizes in bytes.
    fn list(&self, dir: &str) -> Result<Vec<(String, u64)>, HistoryError>;
    /// Reads at `offset`, to the end of `buf` or of the file; returns how much.
    fn read(&self, path: &str, offset: u64, buf: &mut [u8]) -> Result<usize, HistoryError>;
}

/// Where a path leads.
pub(super) fn find(fs: &Fs, path: &str) -> Result<Ino, FsError> {
    let mut at = Ino::ROOT;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let found = fs.lookup(at, name.as_bytes())?.record.ino;
        // Nobody else uses the tree, and its nodes go with it.
        fs.forget(found, 1);
        at = found;
    }
    Ok(at)
}

pub(super) fn failed<'a>(
    what: &'static str,
    path: &'a str,
) -> impl Fn(FsError) -> HistoryError + use<'a> {
    move |source| HistoryError::File { what, path: path.to_owned(), source: Box::new(source) }
}

impl Files for Fs {
    fn list(&self, dir: &str) -> Result<Vec<(String, u64)>, HistoryError> {
        let failed = failed("listing", dir);
        let mut found = Vec::new();
        for line in self.entries(find(self, dir).map_err(&failed)?).map_err(&failed)? {
            let size = self.attributes(line.ino).map_err(&failed)?.record.size;
            found.push((String::from_utf8_lossy(&line.name).into_owned(), size));
        }
        Ok(found)
    }

    fn read(&self, path: &str, offset: u64, buf: &mut [u8]) -> Result<usize, HistoryError> {
        let mut bytes = Vec::new();
        let len = u32::try_from(buf.len()).unwrap_or(u32::MAX);
        let read = find(self, path).and_then(|ino| Fs::read(self, ino, offset, len, &mut bytes));
        read.map_err(failed("reading", path))?;
        buf[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

/// A mounted branch.
pub struct Mounted(pub PathBuf);

impl Files for Mounted {
    fn list(&self, dir: &str) -> Result<Vec<(String, u64)>, HistoryError> {
        let path = self.0.join(dir);
        let list = || -> io::Result<Vec<(String, u64)>> {
            let mut found = Vec::new();
            for entry in std::fs::read_dir(&path)? {
                let entry = entry?;
                // A segment may go while we look.
                let Ok(meta) = entry.metadata() else { continue };
                found.push((entry.file_name().to_string_lossy().into_owned(), meta.len()));
            }
            Ok(found)
        };
        list().map_err(|source| HistoryError::Host { path: path.clone(), source })
    }

    fn read(&self, path: &str, offset: u64, buf: &mut [u8]) -> Result<usize, HistoryError> {
        let path = self.0.join(path);
        let mut read = || {
            let file = File::open(&path)?;
            let left = file.metadata()?.len().saturating_sub(offset);
            let len = left.min(buf.len() as u64) as usize;
            file.read_exact_at(&mut buf[..len], offset)?;
            Ok(len)
        };
        read().map_err(|source| HistoryError::Host { path: path.clone(), source })
    }
}
