//! A branch for one command alone: nobody else knows of it, and it goes with the command.

use std::sync::Arc;
use std::time::Duration;

use super::super::branch::delete::{self, After};
use super::super::branch::here_or_there::require;
use super::super::postgres::bring_up::BringUp;
use super::super::postgres::reach::Server;
use super::super::postgres::stop;
use super::super::{failure, interrupt};
use super::PassingState;
use crate::branch::fork::Requester;
use crate::branch::snapshot::{branch_from_layer, branch_from_snapshot};
use crate::branch::{Branch, OpenMode};
use crate::catalog::{Actor, BranchName, BranchPoint, BranchRow, Store, now_ms};
use crate::format::LayerId;
use crate::fs::{Fs, FsOptions};
use crate::postgres::instance::Wishes;
use crate::postgres::postmaster::StopMode;
use crate::serve::Failure;

/// It goes after that time, should the command die.
const EXPIRES_AFTER_MS: i64 = 86_400_000;

/// The branch.
pub(in crate::cli) struct PassingBranch<'a> {
    store: &'a Arc<Store>,
    pub row: BranchRow,
}

/// The files of a passing branch, without a mount.
pub(in crate::cli) struct Opened {
    branch: Arc<Branch>,
    pub fs: Arc<Fs>,
}

impl<'a> PassingBranch<'a> {
    /// One with the state of `point`. `what` it is for begins its name.
    pub fn of(
        store: &'a Arc<Store>,
        point: &BranchPoint,
        what: &str,
        by: &Requester,
    ) -> Result<PassingBranch<'a>, Failure> {
        let state = PassingState::of(store, point, what, by)?;
        let child = name(what, &format!("{point} {}", state.snapshot.id))?;
        let expires = Some(expires());
        let made = branch_from_snapshot(store, &state.branch, &state.snapshot, child, expires, by);
        state.forget(store, by);
        Ok(PassingBranch { store, row: made.map_err(|error| failure::of_branch(&error))? })
    }

    /// One that stands on a layer below a branch.
    pub fn on(
        store: &'a Arc<Store>,
        branch: &BranchRow,
        layer: LayerId,
        what: &str,
        by: &Requester,
    ) -> Result<PassingBranch<'a>, Failure> {
        let child = name(what, &layer.dir_name())?;
        Self::called(store, branch, layer, child, by)
    }

    /// The same with a name that was chosen: if all goes well, it is to stay.
    pub fn called(
        store: &'a Arc<Store>,
        branch: &BranchRow,
        layer: LayerId,
        child: BranchName,
        by: &Requester,
    ) -> Result<PassingBranch<'a>, Failure> {
        let made = branch_from_layer(store, branch, layer, child, Some(expires()), by);
        Ok(PassingBranch { store, row: made.map_err(|error| failure::of_branch(&error))? })
    }

    /// Has it stay.
    pub fn keep(self, by: &Requester) -> Result<(), Failure> {
        let actor = Actor { uid: by.uid, command: &by.command };
        let kept = self.store.catalog.set_expiry(self.row.id, None, actor);
        kept.map(drop).map_err(|error| failure::of_catalog(&error))
    }

    /// Starts Postgres on it.
    pub fn start(&self, wishes: &Wishes, timeout: Duration) -> Result<Server, Failure> {
        let (store, row, interrupted) = (&**self.store, &self.row, interrupt::caught);
        let up = BringUp { store, row, wishes, timeout, interrupted: &interrupted }.run()?;
        Ok(up.server)
    }

    /// Stops its Postgres, and unmounts it.
    pub fn stop(&self, mode: StopMode, timeout: Duration) -> Result<(), Failure> {
        stop::stop(self.store, &self.row, stop::How { mode, timeout, unmount: true }).map(drop)
    }

    /// Opens its files, while it is not mounted.
    pub fn open(&self) -> Result<Opened, Failure> {
        let lock = self.store.lock_branch(self.row.id);
        let lock = lock.map_err(|error| failure::of_lock(self.row.name.as_str(), &error))?;
        let row = require(self.store, &self.row.name)?;
        let branch = Branch::open(self.store.clone(), row, lock, OpenMode::ReadWrite);
        let branch = branch.map_err(|error| failure::of_branch(&error))?;
        let fs = Fs::new(branch.clone(), FsOptions::default());
        fs.prepare().map_err(|error| crate::serve::failure::of_fs(&error))?;
        Ok(Opened { branch, fs })
    }

    /// Deletes it, and whatever runs on it.
    pub fn delete(self) -> Result<(), Failure> {
        delete::delete(self.store, &self.row, true, After::Purge)
    }
}

impl Opened {
    /// Ends the use of the files.
    pub fn close(self) -> Result<(), Failure> {
        self.fs.finish().map_err(|error| crate::serve::failure::of_fs(&error))?;
        self.branch.close().map_err(|error| failure::of_branch(&error))
    }
}

fn expires() -> i64 {
    now_ms() + EXPIRES_AFTER_MS
}

/// A name that nobody has.
fn name(what: &str, seed: &str) -> Result<BranchName, Failure> {
    let seed = format!("{seed} {} {}", std::process::id(), now_ms());
    let hash = xxhash_rust::xxh3::xxh3_64(seed.as_bytes()) as u32;
    format!("{what}-{hash:08x}").parse().map_err(|error| Failure::caused("name", &error).exit(255))
}
