//! `cowfs branch reset` and `restore`: a branch begins anew with another state.

use std::sync::Arc;
use std::time::Duration;

use super::super::postgres::{bring_up, reach, start, stop};
use super::super::snapshot::PassingState;
use super::super::{failure, output, requester};
use super::here_or_there::require;
use crate::branch::snapshot::rehead;
use crate::catalog::rehead::Reheaded;
use crate::catalog::{
    BranchLock, BranchName, BranchPoint, BranchRow, CatalogError, LockError, SnapshotName, Store,
};
use crate::postgres::instance::Wishes;
use crate::postgres::postmaster::StopMode;
use crate::postgres::runtime_dir::RuntimeDir;
use crate::serve::Failure;

/// How long each step of a restart may take.
const RESTART_PATIENCE: Duration = Duration::from_secs(300);

/// What happens to the former state, and to a Postgres.
#[derive(Debug, clap::Args)]
struct How {
    /// Keep what the branch was as a branch of this name
    #[arg(long, value_name = "NAME")]
    preserve_as: Option<BranchName>,
    /// Stop its Postgres first, and start it again afterwards in the same way
    #[arg(long)]
    restart: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `cowfs branch reset`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The branch keeps its name, its port and its children. What it was can come back with \
`cowfs undo` until gc takes it, a day later.

Examples:
  cowfs branch reset ticket-42
  cowfs branch reset ticket-42 --to main@nightly --restart
  cowfs branch reset ticket-42 --preserve-as ticket-42-old"
)]
pub(in crate::cli) struct ResetArgs {
    /// The branch
    #[arg(add = crate::cli::complete::branches())]
    name: BranchName,
    /// The state to begin anew with [default: its parent as it is now]
    #[arg(long, value_name = "PARENT[@SNAPSHOT]")]
    #[arg(add = crate::cli::complete::points())]
    to: Option<BranchPoint>,
    #[command(flatten)]
    how: How,
}

/// Arguments of `cowfs branch restore`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "What the branch was can come back with `cowfs undo` until gc takes it, a day later.

Examples:
  cowfs branch restore ticket-42 before-migration
  cowfs branch restore ticket-42 before-migration --restart"
)]
pub(in crate::cli) struct RestoreArgs {
    /// The branch
    #[arg(add = crate::cli::complete::branches())]
    name: BranchName,
    /// One of its own snapshots
    snapshot: SnapshotName,
    #[command(flatten)]
    how: How,
}

#[derive(serde::Serialize)]
struct Done<'a> {
    branch: &'a BranchName,
    /// What it is now a copy of.
    from: &'a BranchPoint,
    /// The branch that it was is called so; none if it is kept for an undo only.
    preserved_as: Option<&'a BranchName>,
    /// For `cowfs undo`.
    operation: i64,
    /// Where its Postgres is, if that was restarted.
    url: Option<String>,
}

pub(super) fn reset(args: &ResetArgs, store: Store) -> Result<u8, Failure> {
    let row = require(&store, &args.name)?;
    let to = match &args.to {
        Some(to) => to.clone(),
        None => BranchPoint { branch: parent_of(&store, &row)?, snapshot: None },
    };
    if to.branch == args.name && to.snapshot.is_none() {
        let text = format!("{} is what it is already", args.name);
        return Err(Failure::new("usage", text).exit(2).hint("name another branch, or a snapshot"));
    }
    begin_anew(&Arc::new(store), &row, &to, &args.how)
}

pub(super) fn restore(args: &RestoreArgs, store: Store) -> Result<u8, Failure> {
    let row = require(&store, &args.name)?;
    let to = BranchPoint { branch: row.name.clone(), snapshot: Some(args.snapshot.clone()) };
    begin_anew(&Arc::new(store), &row, &to, &args.how)
}

fn parent_of(store: &Store, row: &BranchRow) -> Result<BranchName, Failure> {
    let found = row.parent.map_or(Ok(None), |id| store.catalog.branch_by_id(id));
    let found = found.map_err(|error| failure::of_catalog(&error))?;
    found.map(|parent| parent.name).ok_or_else(|| {
        let error = CatalogError::NoParent { name: row.name.clone() };
        failure::of_catalog(&error).hint("name a branch with --to")
    })
}

fn begin_anew(
    store: &Arc<Store>,
    row: &BranchRow,
    to: &BranchPoint,
    how: &How,
) -> Result<u8, Failure> {
    refuse_what_cannot_be(store, row, how)?;
    let by = requester();
    // Before anything is stopped: it may not exist.
    let state = PassingState::of(store, to, "reset", &by)?;
    let running = if how.restart { stop_server(store, row)? } else { None };
    let reheaded = with_lock(store, row).and_then(|lock| {
        let origin = (state.snapshot.layer, format!("fork:{to}"));
        let done = rehead(store, row, &lock, origin, how.preserve_as.as_ref(), &by);
        done.map_err(|error| failure::of_branch(&error))
    });
    state.forget(store, &by);
    let reheaded = reheaded?;
    let up = running.map(|wishes| {
        let (row, timeout) = (&reheaded.row, RESTART_PATIENCE);
        let up = bring_up::BringUp { store, row, wishes: &wishes, timeout, interrupted: &|| false };
        up.run()
    });
    let up = up.transpose()?;
    report(&reheaded, to, how, up.as_ref())?;
    Ok(0)
}

fn report(
    reheaded: &Reheaded,
    to: &BranchPoint,
    how: &How,
    up: Option<&bring_up::Up>,
) -> Result<(), Failure> {
    let name = &reheaded.row.name;
    let preserved_as = how.preserve_as.as_ref();
    if how.json {
        return output::print_json(&Done {
            branch: name,
            from: to,
            preserved_as,
            operation: reheaded.operation,
            url: up.map(|up| up.server.connection.uri()),
        });
    }
    let kept = match preserved_as {
        Some(old) => format!("what it was is branch {old}"),
        None => format!("`cowfs undo {}` takes that back", reheaded.operation),
    };
    let text = format!("Branch {name} begins anew as {to}; {kept}\n");
    match up {
        Some(up) => {
            eprint!("{text}");
            start::report(name, up, false)?;
        }
        None => output::print(&text),
    }
    Ok(())
}

fn refuse_what_cannot_be(store: &Store, row: &BranchRow, how: &How) -> Result<(), Failure> {
    if row.protected {
        return Err(failure::of_catalog(&CatalogError::Protected { name: row.name.clone() }));
    }
    if let Some(old) = &how.preserve_as {
        let taken = store.catalog.branch(old).map_err(|error| failure::of_catalog(&error))?;
        if taken.is_some() {
            return Err(failure::of_catalog(&CatalogError::BranchExists { name: old.clone() }));
        }
    }
    let server = reach::find(store, row);
    if let (Some(server), false) = (server, how.restart) {
        let (name, pid) = (&row.name, server.process.pid);
        let text = format!("Postgres runs on branch {name} (process {pid})");
        return Err(Failure::new("running", text)
            .hint(format!("`cowfs stop {name}` first, or add --restart, which does so")));
    }
    Ok(())
}

/// Stops the Postgres of a branch and unmounts it; gives what it takes to start it again.
fn stop_server(store: &Store, row: &BranchRow) -> Result<Option<Wishes>, Failure> {
    let runtime = RuntimeDir::of_branch(&store.root, row.id.0);
    if let Some(dir) = reach::mount_point(store, row)
        && dir != runtime.mount_point()
    {
        let (name, at) = (&row.name, dir.display());
        let text = format!("branch {name} is mounted at {at}, by other means than `cowfs start`");
        return Err(Failure::new("busy", text).hint(format!("`cowfs unmount {name}` first")));
    }
    let was = reach::find(store, row).and(reach::files(store, row).read());
    let how = stop::How { mode: StopMode::Fast, timeout: RESTART_PATIENCE, unmount: true };
    stop::stop(store, row, how)?;
    Ok(was.map(|was| Wishes { port: was.wishes.port.or(Some(was.port)), ..was.wishes }))
}

fn with_lock(store: &Store, row: &BranchRow) -> Result<BranchLock, Failure> {
    store.lock_branch(row.id).map_err(|error| match error {
        LockError::Io { .. } => failure::of_lock_file(&error),
        LockError::Busy { .. } => {
            let name = &row.name;
            Failure::new("busy", format!("branch {name} is mounted or {error}"))
                .hint(format!("`cowfs unmount {name}` first"))
        }
    })
}
