//! A fork's first mount: what belongs to the parent's running server goes.

use super::{Fs, FsError};
use crate::format::{FileKind, Ino};
use crate::io::crash::{Point, crash_point};
use crate::postgres::hygiene::POSTMASTER_FILES;

impl Fs {
    /// Removes the parent's server files and its sockets (with their lock files), durably.
    ///
    /// Runs before the first request of a forked branch is answered; running it twice is harmless.
    pub fn apply_fork_hygiene(&self) -> Result<(), FsError> {
        for name in POSTMASTER_FILES {
            self.remove_if_there(Ino::ROOT, name, |kind| kind != FileKind::Directory)?;
        }
        for (dir, name) in self.branch.view().sockets()? {
            let found = self.resolve(&self.branch.view(), dir, &name)?;
            if found.is_none_or(|(_, kind)| kind != FileKind::Socket) {
                continue;
            }
            // The lock file first: only its socket tells whose it is, also when a crash came between.
            let lock_file = [name.as_slice(), b".lock"].concat();
            self.remove_if_there(dir, &lock_file, |kind| kind == FileKind::Regular)?;
            self.remove_if_there(dir, &name, |kind| kind == FileKind::Socket)?;
        }
        crash_point(Point::HygieneRemoved);
        let _durable = self.sync_dir()?;
        crash_point(Point::HygieneSynced);
        let cleared = self.branch.store.catalog.clear_hygiene(self.branch.row.id);
        cleared.map_err(crate::branch::BranchError::from)?;
        crash_point(Point::HygieneNoted);
        Ok(())
    }

    fn remove_if_there(
        &self,
        dir: Ino,
        name: &[u8],
        wanted: impl Fn(FileKind) -> bool,
    ) -> Result<(), FsError> {
        match self.resolve(&self.branch.view(), dir, name)? {
            Some((_, kind)) if wanted(kind) => self.unlink(dir, name),
            _ => Ok(()),
        }
    }
}
