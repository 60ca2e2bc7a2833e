//! `cowfs branch delete`.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::postgres::{reach, stop};
use super::super::{command_line, failure, output};
use crate::catalog::{
    Actor, BranchLock, BranchName, BranchRow, CatalogError, LockError, SnapshotName, Store,
};
use crate::format::{BranchId, counted};
use crate::io::crash::{Point, crash_point};
use crate::postgres::postmaster::StopMode;
use crate::postgres::runtime_dir::RuntimeDir;
use crate::serve::Failure;
use crate::serve::control;
use crate::serve::protocol::{Request, Response};
use crate::serve::run_file::RunFile;
use crate::serve::unmount::{self, Outcome, Target};

/// How long `--force` waits for Postgres to end; its data goes, so it is stopped at once.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
/// How long `--force` waits for the serving process to end by itself.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(10);
/// How long a mount that is still used after that has to let go.
const LET_GO_PATIENCE: Duration = Duration::from_millis(500);

/// Arguments of `cowfs branch delete`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "It can come back with `cowfs undo` until `cowfs gc` frees its space, which it does a \
day later (`cowfs gc --now`: at once). With --purge it cannot, and the next gc frees it.

Examples:
  cowfs branch delete ticket-42
  cowfs branch delete ticket-42 --force --purge"
)]
pub(in crate::cli) struct DeleteArgs {
    /// The branch
    #[arg(add = crate::cli::complete::branches())]
    name: BranchName,
    /// Stop its Postgres and unmount it first, whoever uses it
    #[arg(long)]
    force: bool,
    /// For good: it cannot come back
    #[arg(long)]
    purge: bool,
    /// Only say what would happen
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Deleted<'a> {
    branch: &'a BranchName,
    id: BranchId,
    dry_run: bool,
    /// Those that were forked from it; they keep their data, and have no parent any more.
    children: Vec<BranchName>,
    /// Its snapshots, which go with it.
    snapshots: Vec<SnapshotName>,
    /// Whether it is gone for good.
    purged: bool,
}

/// Whether a deleted branch can come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum After {
    /// Until gc takes it.
    Keep,
    /// Never.
    Purge,
}

impl Deleted<'_> {
    fn sentence(&self) -> String {
        let verb = if self.dry_run { "Would delete" } else { "Deleted" };
        let kept = match self.children.as_slice() {
            [] => String::new(),
            [child] => format!("; its child {child} keeps its data"),
            children => format!("; its {} children keep their data", children.len()),
        };
        let snapshots = match self.snapshots.len() {
            0 => String::new(),
            n => format!(", with {}", counted(n, "snapshot")),
        };
        let back = if self.purged || self.dry_run { "" } else { "; `cowfs undo` brings it back" };
        format!("{verb} branch {}{snapshots}{kept}{back}\n", self.branch)
    }
}

pub(super) fn run(args: &DeleteArgs, store: &Store) -> Result<u8, Failure> {
    let row = require(store, &args.name)?;
    let children = children(store, &row)?;
    let snapshots = store.catalog.snapshots_of(row.id);
    let snapshots = snapshots.map_err(|error| failure::of_catalog(&error))?;
    let deleted = Deleted {
        branch: &args.name,
        id: row.id,
        dry_run: args.dry_run,
        children,
        snapshots: snapshots.into_iter().map(|row| row.name).collect(),
        purged: args.purge,
    };
    if row.protected {
        return Err(failure::of_catalog(&CatalogError::Protected { name: row.name }));
    }
    if !args.dry_run {
        let after = if args.purge { After::Purge } else { After::Keep };
        delete(store, &row, args.force, after)?;
    }
    if args.json {
        output::print_json(&deleted)?;
    } else {
        output::print(&deleted.sentence());
    }
    Ok(0)
}

/// Deletes a branch that nobody uses; with `force` whoever uses it has to go.
pub(in crate::cli) fn delete(
    store: &Store,
    row: &BranchRow,
    force: bool,
    after: After,
) -> Result<(), Failure> {
    if let Some(server) = reach::find(store, row) {
        if !force {
            let (name, pid) = (&row.name, server.process.pid);
            let text = format!("Postgres runs on branch {name} (process {pid})");
            return Err(Failure::new("running", text).hint(format!(
                "`cowfs stop {name}` first, or delete it with --force, which does so"
            )));
        }
        let how = stop::How { mode: StopMode::Immediate, timeout: STOP_PATIENCE, unmount: false };
        stop::stop(store, row, how)?;
    }
    let lock = lock(force, store, row)?;
    crash_point(Point::DeleteLocked);
    let uid = nix::unistd::getuid().as_raw();
    let deleted = store.catalog.delete_branch(row.id, uid, &command_line());
    deleted.map_err(|error| failure::of_catalog(&error))?;
    crash_point(Point::DeleteCommitted);
    if after == After::Purge {
        let actor = Actor { uid, command: &command_line() };
        let purged = store.catalog.purge_branches(&[row.id], actor);
        purged.map_err(|error| failure::of_catalog(&error))?;
    }
    reach::files(store, row).remove_all();
    RuntimeDir::of_branch(&store.root, row.id.0).remove();
    crash_point(Point::DeleteTidied);
    // Nothing is left to lock; a file that stays is removed by gc.
    let _ = lock.remove();
    crash_point(Point::DeleteEnded);
    Ok(())
}

fn require(store: &Store, name: &BranchName) -> Result<BranchRow, Failure> {
    store.catalog.require_branch(name).map_err(|error| failure::of_catalog(&error))
}

fn children(store: &Store, row: &BranchRow) -> Result<Vec<BranchName>, Failure> {
    let all = store.catalog.branches().map_err(|error| failure::of_catalog(&error))?;
    Ok(all.into_iter().filter(|b| b.parent == Some(row.id)).map(|b| b.name).collect())
}

/// Takes away what a killed server of the branch left mounted: nothing would name it any more.
fn take_dead_mount(store: &Store, row: &BranchRow) {
    if let Some(run) = RunFile::read(&store.run_dir(), row.id)
        && let Err(error) = unmount::take_dead_mount(&run.mount_point)
    {
        tracing::warn!(%error, "cannot take away the dead mount");
    }
    // What stays is removed by gc.
    let _ = RunFile::remove(&store.run_dir(), row.id);
}

fn lock(force: bool, store: &Store, row: &BranchRow) -> Result<BranchLock, Failure> {
    match store.lock_branch(row.id) {
        Ok(lock) => {
            take_dead_mount(store, row);
            return Ok(lock);
        }
        Err(error @ LockError::Io { .. }) => return Err(failure::of_lock_file(&error)),
        Err(error @ LockError::Busy { .. }) if !force => {
            let name = &row.name;
            return Err(Failure::new("busy", format!("branch {name} is mounted or {error}")).hint(
                format!("`cowfs unmount {name}` first, or delete it with --force, which does so"),
            ));
        }
        Err(LockError::Busy { .. }) => {}
    }
    let target = Target::Branch(Box::new(row.clone()));
    let unmounted = unmount::unmount(store, &target, true, UNMOUNT_PATIENCE);
    let unmounted = unmounted.map_err(|error| error.to_failure())?;
    if let Outcome::Detached { pid: Some(pid), holders } = unmounted.outcome
        && let Err(LockError::Busy { .. }) = store.lock_branch_waiting(row.id, LET_GO_PATIENCE)
    {
        // What they use is about to go; without its server every access of theirs fails.
        eprintln!("Ended process {pid}, which served branch {} to {holders}", row.name);
        kill_server(store, row, pid);
    }
    store
        .lock_branch_waiting(row.id, UNMOUNT_PATIENCE)
        .map_err(|error| failure::of_lock(row.name.as_str(), &error))
}

/// Kills the process that serves the branch, if that is still `pid`.
fn kill_server(store: &Store, row: &BranchRow, pid: u32) {
    let status = control::request(store, row.id, &Request::Status, LET_GO_PATIENCE);
    if matches!(status, Ok(Response::Status(server)) if server.pid == pid) {
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    }
}
