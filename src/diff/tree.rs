//! All names of a state with their inodes.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::DiffError;
use crate::branch::view::View;
use crate::format::{FileKind, Ino, InodeRecord};
use crate::fs::{Fs, FsError};
use crate::layer::owner_map::OwnerMap;
use crate::layer::read::Readable;

/// A state that is compared.
pub struct Tree<'a> {
    fs: &'a Fs,
    view: Arc<View>,
    /// What it is called in errors.
    called: &'a str,
    /// Everything but the root, by path.
    pub entries: BTreeMap<PathBuf, InodeRecord>,
}

impl<'a> Tree<'a> {
    /// Walks a state that nobody changes.
    pub fn walk(fs: &'a Fs, called: &'a str) -> Result<Tree<'a>, DiffError> {
        let view = fs.branch.view();
        let mut tree = Tree { fs, view, called, entries: BTreeMap::new() };
        let mut pending = vec![(Ino::ROOT, PathBuf::new())];
        while let Some((dir, path)) = pending.pop() {
            tree.directory(dir, &path, &mut pending)?;
        }
        Ok(tree)
    }

    fn directory(
        &mut self,
        dir: Ino,
        path: &Path,
        pending: &mut Vec<(Ino, PathBuf)>,
    ) -> Result<(), DiffError> {
        for line in self.fs.entries(dir).map_err(|error| self.failed(path, error))? {
            let path = path.join(OsStr::from_bytes(&line.name));
            let attributes = self.fs.attributes(line.ino);
            let record = attributes.map_err(|error| self.failed(&path, error))?.record;
            if line.kind == FileKind::Directory {
                pending.push((line.ino, path.clone()));
            }
            self.entries.insert(path, record);
        }
        Ok(())
    }

    /// Who owns the granules of a file.
    pub fn owners(&self, path: &Path, ino: Ino) -> Result<OwnerMap, DiffError> {
        self.view.owners_below(ino, 0).map_err(|error| self.failed(path, error.into()))
    }

    /// Reads `buf.len()` bytes at `offset`; beyond the end there are zeros.
    pub fn read(
        &self,
        path: &Path,
        record: &InodeRecord,
        buf: &mut [u8],
        offset: u64,
    ) -> Result<(), DiffError> {
        let len = record.size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (there, beyond) = buf.split_at_mut(len);
        beyond.fill(0);
        let mut read = || -> Result<(), FsError> {
            let readable: Readable = self.fs.node(record.ino)?.readable(&self.view)?;
            Ok(readable.read(&self.fs.branch.data, there, offset)?)
        };
        read().map_err(|error| self.failed(path, error))
    }

    fn failed(&self, path: &Path, source: FsError) -> DiffError {
        DiffError { path: path.to_owned(), of: self.called.to_owned(), source: Box::new(source) }
    }
}
