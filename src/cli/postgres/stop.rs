//! `cowfs stop`: end the Postgres of a branch.

use std::time::Duration;

use super::super::mount::parse_duration;
use super::super::{failure, output};
use super::{bring_up, reach};
use crate::catalog::{BranchName, BranchRow, Store};
use crate::postgres::postmaster::{self, StopMode};
use crate::postgres::runtime_dir::RuntimeDir;
use crate::serve::Failure;

/// Arguments of `cowfs stop`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A branch that `cowfs start` mounted is unmounted again. A branch on which no Postgres \
runs is left as it is, and that is no error.

Examples:
  cowfs stop experiment
  cowfs stop experiment --mode immediate"
)]
pub(in crate::cli) struct StopArgs {
    /// The branches
    #[arg(required = true, value_name = "BRANCH")]
    #[arg(add = crate::cli::complete::branches())]
    branches: Vec<BranchName>,
    /// smart waits for all clients, fast ends their sessions, immediate leaves recovery to the next
    /// start
    #[arg(long, default_value = "fast")]
    mode: StopMode,
    /// Leave it mounted
    #[arg(long)]
    keep_mounted: bool,
    /// How long to wait for its end
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    timeout: Duration,
}

/// What a stop did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct Stopped {
    /// A server ran, and does not any more.
    pub server: bool,
    /// The branch was mounted by a start, and is not any more.
    pub unmounted: bool,
}

pub(in crate::cli) fn run(args: &StopArgs, store: &Store) -> Result<u8, Failure> {
    for branch in &args.branches {
        let row = reach::require(store, branch)?;
        let how = How { mode: args.mode, timeout: args.timeout, unmount: !args.keep_mounted };
        let stopped = stop(store, &row, how)?;
        output::print(&sentence(branch, stopped));
    }
    Ok(0)
}

/// How to stop a server.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) struct How {
    pub mode: StopMode,
    pub timeout: Duration,
    /// Whether a branch that a start has mounted is unmounted.
    pub unmount: bool,
}

/// Stops the server of a branch, whoever started it, and undoes what its start did.
pub(in crate::cli) fn stop(store: &Store, row: &BranchRow, how: How) -> Result<Stopped, Failure> {
    let _lock = bring_up::lock(store, row, how.timeout)?;
    let files = reach::files(store, row);
    let mut stopped = Stopped::default();
    if let Some(server) = reach::find(store, row) {
        postmaster::stop(&server.process, how.mode, how.timeout)
            .map_err(|error| failure::of_postgres(row.name.as_str(), &error))?;
        stopped.server = true;
    }
    let runtime = RuntimeDir::of_branch(&store.root, row.id.0);
    let mounted_here =
        reach::mount_point(store, row).is_some_and(|dir| dir == runtime.mount_point());
    if how.unmount && mounted_here {
        bring_up::unmount(store, row).map_err(|error| error.to_failure())?;
        stopped.unmounted = true;
    }
    files.remove_record().map_err(|error| Failure::caused("host", &error))?;
    if how.unmount {
        runtime.remove();
    }
    Ok(stopped)
}

fn sentence(branch: &BranchName, stopped: Stopped) -> String {
    match (stopped.server, stopped.unmounted) {
        (true, true) => format!("Stopped {branch} and unmounted it\n"),
        (true, false) => format!("Stopped {branch}\n"),
        (false, true) => format!("No Postgres runs on {branch}; unmounted it\n"),
        (false, false) => format!("No Postgres runs on {branch}\n"),
    }
}
