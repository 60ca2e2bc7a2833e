//! `cowfs snapshot delete`.

use super::super::branch::here_or_there::require;
use super::super::{failure, output, requester};
use crate::catalog::{Actor, SnapshotPoint, Store};
use crate::serve::Failure;

/// Arguments of `cowfs snapshot delete`.
#[derive(Debug, clap::Args)]
#[command(after_help = "It cannot be taken back. The space is freed by `cowfs gc`.")]
pub(in crate::cli) struct DeleteArgs {
    /// The snapshot
    #[arg(value_name = "BRANCH@NAME")]
    #[arg(add = crate::cli::complete::snapshots())]
    point: SnapshotPoint,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Deleted<'a> {
    snapshot: &'a SnapshotPoint,
}

pub(super) fn run(args: &DeleteArgs, store: &Store) -> Result<u8, Failure> {
    let branch = require(store, &args.point.branch)?;
    let by = requester();
    let delete = || {
        let row = store.catalog.require_snapshot(&branch, &args.point.snapshot)?;
        let actor = Actor { uid: by.uid, command: &by.command };
        store.catalog.delete_snapshots(&[row.id], Some(&branch.name), actor)
    };
    delete().map_err(|error| failure::of_catalog(&error))?;
    if args.json {
        output::print_json(&Deleted { snapshot: &args.point })?;
    } else {
        output::print(&format!("Deleted snapshot {}\n", args.point));
    }
    Ok(0)
}
