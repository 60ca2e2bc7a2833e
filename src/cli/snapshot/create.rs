//! `cowfs snapshot create`.

use std::sync::Arc;

use super::super::branch::here_or_there::here_or_there;
use super::super::span::{self, Span};
use super::super::{failure, output, requester};
use crate::branch::fork::{Requester, Times};
use crate::branch::snapshot::snapshot_unmounted;
use crate::catalog::{BranchName, BranchPoint, NewSnapshot, SnapshotName, Store, now_ms};
use crate::serve::{Failure, Request, Response};

/// Arguments of `cowfs snapshot create`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without a name it is called after the time. A snapshot takes no space by itself: it \
keeps what the branch overwrites or deletes later.

Examples:
  cowfs snapshot create main
  cowfs snapshot create main@before-migration
  cowfs snapshot create main@nightly --ttl 7d"
)]
pub(in crate::cli) struct CreateArgs {
    /// The branch, and the name of the snapshot
    #[arg(value_name = "BRANCH[@NAME]")]
    #[arg(add = crate::cli::complete::points())]
    point: BranchPoint,
    /// Have gc delete it after that time, for example 24h or 7d
    #[arg(long, value_name = "DURATION", value_parser = span::parse)]
    ttl: Option<Span>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Created<'a> {
    branch: &'a BranchName,
    snapshot: &'a SnapshotName,
    /// When gc may delete it.
    expires: Option<String>,
    #[serde(flatten)]
    times: Times,
}

pub(super) fn run(args: &CreateArgs, store: Store) -> Result<u8, Failure> {
    let store = Arc::new(store);
    let branch = &args.point.branch;
    let chosen = args.point.snapshot.clone();
    let name = chosen.unwrap_or_else(|| SnapshotName::at_time("at", now_ms()));
    let expires_ms = args.ttl.map(Span::ahead_ms);
    let times = take(&store, branch, &name, expires_ms, &requester())?;
    if args.json {
        let expires = expires_ms.map(output::time);
        output::print_json(&Created { branch, snapshot: &name, expires, times })?;
    } else {
        let (whole, rest) = (times.total_us / 1000, times.total_us % 1000 / 100);
        output::print(&format!("Created snapshot {branch}@{name} in {whole}.{rest} ms\n"));
    }
    Ok(0)
}

/// Takes a snapshot through the process that serves the branch, or here if none does.
pub(in crate::cli) fn take(
    store: &Arc<Store>,
    branch: &BranchName,
    name: &SnapshotName,
    expires_ms: Option<i64>,
    by: &Requester,
) -> Result<Times, Failure> {
    let (uid, command) = (by.uid, by.command.clone());
    let new = NewSnapshot { name: name.clone(), expires_ms, uid, command: command.clone() };
    here_or_there(
        store,
        branch,
        |row, lock| {
            let report = snapshot_unmounted(store, row, lock, new.clone());
            report.map(|report| report.times).map_err(|error| failure::of_branch(&error))
        },
        &Request::Snapshot { name: name.clone(), expires_ms, uid: Some(uid), command },
        |response| match response {
            Response::Snapshotted { times } => Some(times),
            _ => None,
        },
    )
}
