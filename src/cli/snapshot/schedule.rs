//! `cowfs snapshot schedule`, and taking what is due.

use std::sync::Arc;

use super::super::branch::here_or_there::require;
use super::super::span::{self, Span};
use super::super::{failure, output, requester};
use crate::catalog::schedules::Schedule;
use crate::catalog::{Actor, BranchName, BranchRow, CatalogError, SnapshotName, Store, now_ms};
use crate::serve::Failure;

/// What the names of scheduled snapshots begin with.
const PREFIX: &str = "auto";

/// Arguments of `cowfs snapshot schedule`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "`cowfs daemon` takes the snapshots, and removes those that have expired. Without \
options the schedule is shown.

Examples:
  cowfs snapshot schedule main --every 10m --keep 24h
  cowfs snapshot schedule main --off"
)]
pub(in crate::cli) struct ScheduleArgs {
    /// The branch
    #[arg(add = crate::cli::complete::branches())]
    branch: BranchName,
    /// From one snapshot to the next, for example 10m
    #[arg(long, value_name = "DURATION", value_parser = span::parse, requires = "keep")]
    every: Option<Span>,
    /// For how long each is kept, for example 24h
    #[arg(long, value_name = "DURATION", value_parser = span::parse, requires = "every")]
    keep: Option<Span>,
    /// Take no more of them
    #[arg(long, conflicts_with_all = ["every", "keep"])]
    off: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Shown<'a> {
    branch: &'a BranchName,
    every_seconds: Option<i64>,
    keep_seconds: Option<i64>,
}

pub(super) fn run(args: &ScheduleArgs, store: &Store) -> Result<u8, Failure> {
    let catalog = |error: CatalogError| failure::of_catalog(&error);
    let row = require(store, &args.branch)?;
    let by = requester();
    let actor = Actor { uid: by.uid, command: &by.command };
    if let (Some(every), Some(keep)) = (args.every, args.keep) {
        let new = Schedule { branch: row.id, every_ms: every.ms(), keep_ms: keep.ms() };
        store.catalog.set_schedule(new, actor).map_err(catalog)?;
    } else if args.off {
        store.catalog.end_schedule(row.id, actor).map_err(catalog)?;
    }
    let all = store.catalog.schedules().map_err(catalog)?;
    let found = all.iter().find(|schedule| schedule.branch == row.id);
    if args.json {
        output::print_json(&Shown {
            branch: &args.branch,
            every_seconds: found.map(|found| found.every_ms / 1000),
            keep_seconds: found.map(|found| found.keep_ms / 1000),
        })?;
        return Ok(0);
    }
    output::print(&match found {
        None => format!("Branch {} has no snapshots taken by schedule\n", args.branch),
        Some(found) => format!(
            "Branch {} has a snapshot taken every {}, each kept for {}; `cowfs daemon` does so\n",
            args.branch,
            Span::of_ms(found.every_ms),
            Span::of_ms(found.keep_ms)
        ),
    });
    Ok(0)
}

/// What became of a snapshot that was due.
pub(in crate::cli) struct Taken {
    /// As people write it.
    pub name: String,
    pub outcome: Result<(), Failure>,
}

/// Takes every snapshot that is due; gives what was taken, and what could not be.
pub(in crate::cli) fn take_due(store: &Arc<Store>) -> Result<Vec<Taken>, Failure> {
    let catalog = |error: CatalogError| failure::of_catalog(&error);
    let mut done = Vec::new();
    for schedule in store.catalog.schedules().map_err(catalog)? {
        let Some(row) = store.catalog.branch_by_id(schedule.branch).map_err(catalog)? else {
            continue;
        };
        if let Some(name) = due(store, &row, schedule).map_err(catalog)? {
            let expires = now_ms() + schedule.keep_ms;
            let taken = super::take(store, &row.name, &name, Some(expires), &requester());
            done.push(Taken { name: format!("{}@{name}", row.name), outcome: taken.map(drop) });
        }
    }
    Ok(done)
}

/// The name of the snapshot that is due now, if one is.
fn due(
    store: &Store,
    row: &BranchRow,
    schedule: Schedule,
) -> Result<Option<SnapshotName>, CatalogError> {
    let now = now_ms();
    let ours = |name: &SnapshotName| name.as_str().starts_with(&format!("{PREFIX}-"));
    let taken = store.catalog.snapshots_of(row.id)?;
    let last = taken.iter().rev().find(|snapshot| ours(&snapshot.name));
    // A clock that was set back must not end the schedule.
    let waits = last
        .is_some_and(|last| (last.created_ms..last.created_ms + schedule.every_ms).contains(&now));
    Ok((!waits).then(|| SnapshotName::at_time(PREFIX, now)))
}
