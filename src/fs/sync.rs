//! fsync(2), fdatasync(2), of files and directories.

use super::{Fs, FsError};
use crate::format::Ino;
use crate::layer::sync::Durable;

impl Fs {
    /// Makes a file's data, size, names and explicit changes of its attributes durable.
    ///
    /// fdatasync is the same call: the data file's length carries the size. The times of plain
    /// writes are not logged here; after a power cut the data file's own time stands for them.
    ///
    /// The epoch gate is not held while the disk works: the stack is a snapshot, and what a fork
    /// meanwhile freezes is synced through it all the same.
    pub fn sync(&self, ino: Ino) -> Result<Durable, FsError> {
        if self.writable().is_err() {
            return Ok(Durable::sealed());
        }
        let view = self.branch.view();
        let _inherited = self.branch.sync_inherited(&view, Some(ino))?;
        Ok(view.open.sync_file(ino)?)
    }

    /// Makes every name and attribute of the branch durable.
    pub fn sync_dir(&self) -> Result<Durable, FsError> {
        if self.writable().is_err() {
            return Ok(Durable::sealed());
        }
        let view = self.branch.view();
        let _inherited = self.branch.sync_inherited(&view, None)?;
        Ok(view.open.sync_names()?)
    }

    /// Makes everything durable.
    pub fn sync_everything(&self) -> Result<Durable, FsError> {
        let view = self.branch.view();
        for layer in view.frozen.iter().rev() {
            if !layer.foreign {
                let _durable = layer.sync_all()?;
            }
        }
        let _inherited = self.branch.sync_inherited(&view, None)?;
        Ok(view.open.sync_all()?)
    }
}
