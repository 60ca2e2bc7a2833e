//! What a command has done by the process that serves a branch, or does itself if none serves it.

use std::time::{Duration, Instant};

use super::super::failure;
use crate::catalog::{BranchLock, BranchName, BranchRow, CatalogError, LockError, Store};
use crate::serve::{ControlError, Failure, Request, Response, control};

/// How long a command waits for a branch that is just being mounted, unmounted or changed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time for the serving process to answer; forks and snapshots take milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs `here` with the lock of an unserved branch, or else sends `request` to its server, whose
/// answer `take` understands.
pub(in crate::cli) fn here_or_there<T>(
    store: &Store,
    name: &BranchName,
    here: impl Fn(&BranchRow, &BranchLock) -> Result<T, Failure>,
    request: &Request,
    take: impl Fn(Response) -> Option<T>,
) -> Result<T, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let row = require(store, name)?;
        match store.lock_branch(row.id) {
            Ok(lock) => {
                // The head may have moved between the look and the lock.
                return here(&require(store, name)?, &lock);
            }
            Err(error @ LockError::Io { .. }) => return Err(failure::of_lock_file(&error)),
            Err(error @ LockError::Busy { .. }) => match ask(store, &row, request, &take) {
                Err(ControlError::NotServed) if Instant::now() < deadline => {
                    // Somebody mounts, unmounts or changes it: soon there is a server, or a lock.
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(ControlError::NotServed) => {
                    return Err(failure::of_lock(name.as_str(), &error));
                }
                Err(ControlError::Failed(failure)) => return Err(failure),
                Err(error @ ControlError::TimedOut { .. }) => {
                    return Err(Failure::caused("timeout", &error).exit(4));
                }
                Err(error) => return Err(Failure::caused("control", &error)),
                Ok(value) => return Ok(value),
            },
        }
    }
}

fn ask<T>(
    store: &Store,
    row: &BranchRow,
    request: &Request,
    take: impl Fn(Response) -> Option<T>,
) -> Result<T, ControlError> {
    let response = control::request(store, row.id, request, ANSWER_TIMEOUT)?;
    take(response).ok_or(ControlError::NotServed)
}

/// The branch of that name.
pub(in crate::cli) fn require(store: &Store, name: &BranchName) -> Result<BranchRow, Failure> {
    let row = store.catalog.require_branch(name);
    row.map_err(|error: CatalogError| failure::of_catalog(&error))
}
