//! Unmounting a branch, whatever state its serving process is in.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::bad_end;
use super::control::{self, ControlError};
use super::detach::{self, DetachError, Manner};
use super::error::{ServeError, UnmountError};
use super::handler::IN_USE;
use super::holders::{self, Holders};
use super::mount_point;
use super::mountinfo::{self, MountEntry};
use super::namespaces;
use super::probe::{self, Answer};
use super::protocol::{Request, Response};
use super::run_file::RunFile;
use crate::catalog::{BranchName, BranchRow, LockError, Store};

/// How long a mount may take to answer before it counts as alive.
const PROBE_PATIENCE: Duration = Duration::from_secs(3);
/// How long the serving process may take to say where it is mounted.
const STATUS_PATIENCE: Duration = Duration::from_secs(1);
/// How long a detached mount may take to turn out to be unused after all.
const DETACH_PATIENCE: Duration = Duration::from_millis(500);
/// How long the serving process may take to end before it is asked what keeps it.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// How long to wait for whoever holds the lock of a branch that is not mounted.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// What to unmount.
#[derive(Clone, Debug)]
pub enum Target {
    /// A branch of the store.
    Branch(Box<BranchRow>),
    /// Whatever is mounted at this absolute path without links.
    Directory(PathBuf),
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Unmounted; the serving process has ended.
    Unmounted,
    /// Detached while in use: the serving process ends after its last user.
    Detached {
        /// The serving process.
        pid: Option<u32>,
        /// Who uses it.
        holders: Box<Holders>,
    },
    /// The serving process had been killed; what it left is gone.
    LeftoversRemoved,
}

/// What was unmounted, and how it went.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Unmounted {
    /// The branch, if it belongs to this store.
    pub branch: Option<BranchName>,
    /// Where it was mounted, if that is known.
    pub mount_point: Option<PathBuf>,
    /// How it went.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Finds out what `text` names: a path if it begins with `/` or `.`, else a branch if there is one
/// of that name, else a path.
pub fn resolve_target(store: &Store, text: &OsStr) -> Result<Target, ServeError> {
    let is_path = matches!(text.as_bytes().first(), Some(b'/' | b'.'));
    let name = text.to_str().and_then(|text| text.parse::<BranchName>().ok());
    if let (false, Some(name)) = (is_path, name)
        && let Some(row) = store.catalog.branch(&name)?
    {
        return Ok(Target::Branch(Box::new(row)));
    }
    match mount_point::resolve(Path::new(text)) {
        Ok(dir) => Ok(Target::Directory(dir)),
        Err(_) => {
            Err(UnmountError::UnknownTarget { target: text.to_string_lossy().into_owned() }.into())
        }
    }
}

/// Unmounts `target`; returns once the serving process has let the branch go.
///
/// A mount in use is refused, or with `lazy` detached.
pub fn unmount(
    store: &Store,
    target: &Target,
    lazy: bool,
    timeout: Duration,
) -> Result<Unmounted, ServeError> {
    let deadline = Instant::now() + timeout;
    match target {
        Target::Branch(row) => Ok(unmount_branch(store, row, lazy, timeout, deadline)?),
        Target::Directory(dir) => unmount_directory(store, dir, lazy, timeout, deadline),
    }
}

fn unmount_branch(
    store: &Store,
    row: &BranchRow,
    lazy: bool,
    timeout: Duration,
    deadline: Instant,
) -> Result<Unmounted, UnmountError> {
    let run = RunFile::read(&store.run_dir(), row.id);
    let mount_point = mount_point_of(store, row, run.as_ref());
    let pid = run.as_ref().map(|run| run.pid);
    let done = |outcome| Unmounted {
        branch: Some(row.name.clone()),
        mount_point: mount_point.clone(),
        outcome,
    };
    // Before anything is detached: afterwards the paths of its users lead nowhere.
    let users = || mount_point.as_deref().map(users_of).unwrap_or_default();
    let users_before = if lazy { users() } else { Holders::default() };
    let device = mount_point
        .as_deref()
        .and_then(mount_at)
        .filter(|(_, mount)| mount.is_cowfs())
        .map(|(_, mount)| mount.device);
    if let (false, Some(dir), Some(device)) = (lazy, &mount_point, device) {
        let elsewhere = namespaces::users_of(device);
        if !elsewhere.is_empty() {
            let (mount_point, holders) = (dir.clone(), Box::new(elsewhere));
            return Err(UnmountError::InUse { mount_point, holders });
        }
    }
    match control::request(store, row.id, &Request::Unmount { lazy }, timeout) {
        Ok(Response::Unmounted { in_use: true }) => {
            match store.lock_branch_waiting(row.id, DETACH_PATIENCE) {
                Ok(_) => Ok(done(Outcome::Unmounted)),
                Err(_) => Ok(done(Outcome::Detached { pid, holders: Box::new(users_before) })),
            }
        }
        Ok(_) => Ok(done(match await_end(store, row, pid, device, timeout, deadline)? {
            None => match bad_end::take(&store.run_dir(), row.id) {
                None => Outcome::Unmounted,
                Some(mut why) => {
                    if why.is_empty() {
                        // On a full disk there is room for the name of the note and not for its text.
                        why = format!("`cowfs logs --mount {}` says why", row.name);
                    }
                    return Err(UnmountError::EndedBadly { branch: row.name.clone(), why });
                }
            },
            Some(holders) => Outcome::Detached { pid, holders: Box::new(holders) },
        })),
        Err(ControlError::NotServed) => {
            not_served(store, row, run.as_ref())?;
            Ok(done(Outcome::LeftoversRemoved))
        }
        Err(ControlError::Failed(failure)) if failure.kind == IN_USE => Err(UnmountError::InUse {
            mount_point: mount_point.clone().unwrap_or_default(),
            holders: Box::new(users()),
        }),
        Err(control @ (ControlError::TimedOut { .. } | ControlError::Garbled { .. })) => {
            match (&mount_point, lazy) {
                (Some(dir), true) => {
                    detach::detach(dir, Manner::Lazy)?;
                    Ok(done(Outcome::Detached { pid, holders: Box::new(users_before) }))
                }
                _ => Err(UnmountError::Silent { branch: row.name.clone(), control }),
            }
        }
        Err(error) => Err(UnmountError::Control(error)),
    }
}

/// Where the branch is mounted now, as its serving process says, or else as it was mounted.
fn mount_point_of(store: &Store, row: &BranchRow, run: Option<&RunFile>) -> Option<PathBuf> {
    match control::request(store, row.id, &Request::Status, STATUS_PATIENCE) {
        Ok(Response::Status(server)) => Some(server.mount_point),
        _ => run.map(|run| run.mount_point.clone()),
    }
}

/// Waits until the serving process has let the lock go, so that a delete or mount may follow.
///
/// Returns who has a copy of the mount in a mount namespace of its own, if that is what the serving
/// process waits for: then it may go on for days.
fn await_end(
    store: &Store,
    row: &BranchRow,
    pid: Option<u32>,
    device: Option<(u32, u32)>,
    timeout: Duration,
    deadline: Instant,
) -> Result<Option<Holders>, UnmountError> {
    let left = || deadline.saturating_duration_since(Instant::now()).max(DETACH_PATIENCE);
    if store.lock_branch_waiting(row.id, END_PATIENCE.min(left())).is_ok() {
        return Ok(None);
    }
    if let Some(holders) = device.map(namespaces::with_copies).filter(|found| !found.is_empty()) {
        return Ok(Some(holders));
    }
    match store.lock_branch_waiting(row.id, left()) {
        Ok(_) => Ok(None),
        Err(LockError::Busy { .. }) => Err(UnmountError::StillWriting { timeout, pid }),
        Err(lock) => Err(UnmountError::Lock(lock)),
    }
}

/// Nobody listens: cleans up after a killed server, under the branch's lock.
fn not_served(store: &Store, row: &BranchRow, run: Option<&RunFile>) -> Result<(), UnmountError> {
    let branch = row.name.clone();
    let _lock = match store.lock_branch_waiting(row.id, LOCK_PATIENCE) {
        Ok(lock) => lock,
        Err(lock @ LockError::Busy { .. }) => return Err(UnmountError::Busy { branch, lock }),
        Err(lock) => return Err(UnmountError::Lock(lock)),
    };
    let Some(run) = run else { return Err(UnmountError::NotMounted { branch }) };
    take_dead_mount(&run.mount_point)?;
    RunFile::remove(&store.run_dir(), row.id)
        .map_err(|source| UnmountError::RunFile { branch: branch.clone(), source })
}

/// Takes away the mount at `dir` if it is a branch whose server is gone; returns whether it was.
pub fn take_dead_mount(dir: &Path) -> Result<bool, UnmountError> {
    let ours = mount_at(dir).is_some_and(|(_, mount)| mount.is_cowfs());
    if !ours || probe::probe(dir, PROBE_PATIENCE) != Answer::Dead {
        return Ok(false);
    }
    match detach::detach(dir, Manner::Lazy) {
        Ok(()) => Ok(true),
        Err(DetachError::NotMounted { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn mount_at(dir: &Path) -> Option<(Vec<MountEntry>, MountEntry)> {
    let entries = mountinfo::read().ok()?;
    let mount = mountinfo::topmost_at(&entries, dir)?.clone();
    Some((entries, mount))
}

fn users_of(dir: &Path) -> Holders {
    match mount_at(dir) {
        Some((entries, mount)) if mount.is_cowfs() => holders::find(&entries, &mount),
        _ => Holders::default(),
    }
}

fn unmount_directory(
    store: &Store,
    dir: &Path,
    lazy: bool,
    timeout: Duration,
    deadline: Instant,
) -> Result<Unmounted, ServeError> {
    let nothing = || UnmountError::NothingThere { dir: dir.to_owned() };
    let (_, mount) = mount_at(dir).filter(|(_, mount)| mount.is_cowfs()).ok_or_else(nothing)?;
    let runs = RunFile::read_all(&store.run_dir())
        .map_err(|source| ServeError::Host { what: "reading the run files".to_owned(), source })?;
    for run in &runs {
        let Some(row) = store.catalog.branch_by_id(run.branch)? else { continue };
        if run.mount_point != dir && mount_point_of(store, &row, None).as_deref() != Some(dir) {
            continue;
        }
        let outcome = unmount_branch(store, &row, lazy, timeout, deadline);
        // Otherwise the run file was a left-over, and the mount is somebody else's.
        let gone = mount_at(dir).is_none_or(|(_, now)| now.id != mount.id);
        if gone || !matches!(outcome, Ok(Unmounted { outcome: Outcome::LeftoversRemoved, .. })) {
            return Ok(outcome?);
        }
    }
    Ok(detach_foreign(dir, lazy)?)
}

/// Takes away a mount that no run file of this store names: of another store, or of a branch that
/// is gone.
fn detach_foreign(dir: &Path, lazy: bool) -> Result<Unmounted, UnmountError> {
    let mount_point = Some(dir.to_owned());
    if take_dead_mount(dir)? {
        return Ok(Unmounted { branch: None, mount_point, outcome: Outcome::LeftoversRemoved });
    }
    let users = users_of(dir);
    let outcome = match detach::detach(dir, Manner::IfUnused) {
        Ok(()) => Outcome::Unmounted,
        Err(DetachError::Busy { .. }) if lazy => {
            detach::detach(dir, Manner::Lazy)?;
            Outcome::Detached { pid: None, holders: Box::new(users) }
        }
        Err(DetachError::Busy { mount_point }) => {
            return Err(UnmountError::InUse { mount_point, holders: Box::new(users) });
        }
        Err(error) => return Err(error.into()),
    };
    Ok(Unmounted { branch: None, mount_point, outcome })
}
