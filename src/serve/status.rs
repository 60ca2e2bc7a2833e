//! What is mounted where, as far as it can be known without touching a mount.

use std::path::PathBuf;
use std::time::Duration;

use super::control::{self, ControlError};
use super::error::ServeError;
use super::protocol::{Request, Response, ServerStatus};
use super::run_file::RunFile;
use crate::catalog::{BranchRow, FileLock, Store};
use crate::format::BranchId;

/// How long a serving process may take to tell of itself.
const PATIENCE: Duration = Duration::from_secs(2);
/// Servers asked at the same time.
const ASKED_AT_ONCE_MAX: usize = 16;

/// Whether a branch is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Mounted, and its process answers.
    Mounted,
    /// Detached while in use: served until the last user is done.
    Detached,
    /// A process has it and does not answer.
    Silent,
    /// A process has it and does not listen: it starts, ends, or is another command.
    Busy,
    /// Its process was killed; what it left is still there.
    Dead,
    /// Nobody has it.
    NotMounted,
}

/// One branch.
#[derive(Clone, Debug)]
pub struct BranchStatus {
    /// Its name; its id in decimal if the catalog does not know it any more.
    pub branch: String,
    /// Its id.
    pub id: BranchId,
    /// Whether it is served.
    pub state: State,
    /// Where it is (or was) mounted.
    pub mount_point: Option<PathBuf>,
    /// The serving process.
    pub pid: Option<u32>,
    /// Since when, in milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// Whether it is mounted read-only.
    pub read_only: Option<bool>,
    /// What the serving process tells of itself.
    pub server: Option<Box<ServerStatus>>,
    /// Why it tells nothing.
    pub problem: Option<String>,
}

/// The branch of `row`, mounted or not.
pub fn one(store: &Store, row: &BranchRow) -> BranchStatus {
    let run = RunFile::read(&store.run_dir(), row.id);
    ask(store, row.id, row.name.to_string(), run.as_ref())
}

/// Every branch that is served, or whose killed server left something.
pub fn all(store: &Store) -> Result<Vec<BranchStatus>, ServeError> {
    let runs = RunFile::read_all(&store.run_dir())
        .map_err(|source| ServeError::Host { what: "reading the run files".to_owned(), source })?;
    let mut named = Vec::with_capacity(runs.len());
    for run in runs {
        let row = store.catalog.branch_by_id(run.branch)?;
        let name = row.map_or_else(|| run.branch.to_string(), |row| row.name.to_string());
        named.push((name, run));
    }
    let mut found = Vec::with_capacity(named.len());
    for chunk in named.chunks(ASKED_AT_ONCE_MAX) {
        std::thread::scope(|scope| {
            let asked: Vec<_> = chunk
                .iter()
                .map(|(name, run)| scope.spawn(|| ask(store, run.branch, name.clone(), Some(run))))
                .collect();
            found.extend(asked.into_iter().filter_map(|thread| thread.join().ok()));
        });
    }
    found.sort_by(|a, b| a.branch.cmp(&b.branch));
    Ok(found)
}

fn ask(store: &Store, id: BranchId, branch: String, run: Option<&RunFile>) -> BranchStatus {
    let (state, server, problem) = match control::request(store, id, &Request::Status, PATIENCE) {
        Ok(Response::Status(server)) => {
            let state = if server.attached { State::Mounted } else { State::Detached };
            (state, Some(server), None)
        }
        Ok(_) => (State::Silent, None, Some("it gave the wrong answer".to_owned())),
        Err(ControlError::NotServed) => (unserved(store, id, run.is_some()), None, None),
        Err(error) => (State::Silent, None, Some(error.to_string())),
    };
    BranchStatus {
        branch,
        id,
        state,
        mount_point: server
            .as_ref()
            .map(|server| server.mount_point.clone())
            .or_else(|| run.map(|run| run.mount_point.clone())),
        pid: run.map(|run| run.pid),
        since_ms: run.map(|run| run.since_ms),
        read_only: run.map(|run| run.read_only),
        server,
        problem,
    }
}

fn unserved(store: &Store, id: BranchId, has_run_file: bool) -> State {
    let lock = store.run_dir().join(format!("{id}.lock"));
    match (FileLock::is_held(&lock), has_run_file) {
        (Ok(true), _) => State::Busy,
        // It may just have ended and removed its files.
        (_, true) if RunFile::read(&store.run_dir(), id).is_some() => State::Dead,
        _ => State::NotMounted,
    }
}
