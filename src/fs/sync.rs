//! fsync(2), fdatasync(2), of files and directories.

use super::{Fs, FsError};
use crate::format::Ino;
use crate::layer::sync::Durable;

impl Fs {
    /// Makes a file's data, size, names and explicit changes of its attributes durable.
    ///
    /// fdatasync is the same call: the data file's length carries the size. The times of plain
    /// writes are not logged here; after a power cut the data file's own time stands for them.
    pub fn sync(&self, ino: Ino) -> Result<Durable, FsError> {
        if self.writable().is_err() {
            return Ok(Durable::sealed());
        }
        let sync = || self.branch.sync_file(ino);
        // A commit tells nothing of other files.
        let durable = if self.note_commit_sync(ino) { sync() } else { self.in_series(ino, sync) }?;
        self.lost.check(ino, None)?;
        Ok(durable)
    }

    /// Makes every name and attribute of the branch durable.
    pub fn sync_dir(&self) -> Result<Durable, FsError> {
        if self.writable().is_err() {
            return Ok(Durable::sealed());
        }
        Ok(self.branch.sync_names()?)
    }

    /// Makes everything durable.
    pub fn sync_everything(&self) -> Result<Durable, FsError> {
        if self.writable().is_err() {
            return Ok(Durable::sealed());
        }
        Ok(self.branch.sync_all()?)
    }
}
