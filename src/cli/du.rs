//! `cowfs du`: which branch takes how much, and what deleting it frees.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;

use super::branch::here_or_there::require;
use super::sizes::Sizes;
use super::{failure, output};
use crate::catalog::{BranchName, BranchRow, CatalogError, Reach, SnapshotRow, Store};
use crate::format::{BranchId, LayerId};
use crate::serve::Failure;

/// Arguments of `cowfs du`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Bytes are blocks on the host's disk. TOTAL is all that a branch or snapshot stands \
on, FREES what goes when it alone is deleted (with a branch go its snapshots), after \
a `cowfs gc --now`. The files of an adopted directory count for neither. Deleted \
branches that `cowfs undo` can bring back stand at the end.

Examples:
  cowfs du
  cowfs du ticket-42"
)]
pub(super) struct DuArgs {
    /// Only this branch, with its snapshots
    #[arg(add = crate::cli::complete::branches())]
    branch: Option<BranchName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, serde::Serialize)]
struct Usage {
    /// A branch or, with an @, a snapshot.
    name: String,
    /// Whether the branch was deleted, and can come back.
    deleted: bool,
    /// Bytes of all layers that it stands on.
    total_bytes: u64,
    /// Bytes of the layers that others stand on as well.
    shared_bytes: u64,
    /// Bytes of the layers that go when it is deleted.
    reclaimable_bytes: u64,
}

#[derive(serde::Serialize)]
struct Report {
    usage: Vec<Usage>,
    /// Bytes of all layers of the store, each once.
    store_bytes: u64,
    /// Bytes that nothing stands on: `cowfs gc` frees them.
    garbage_bytes: u64,
}

pub(super) fn run(args: &DuArgs, store: &Store) -> Result<u8, Failure> {
    let only = args.branch.as_ref().map(|name| require(store, name)).transpose()?;
    let report = collect(store, only.map(|row| row.id));
    let report = report.map_err(|error| failure::of_catalog(&error))?;
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(&table(&report));
    }
    Ok(0)
}

fn collect(store: &Store, only: Option<BranchId>) -> Result<Report, CatalogError> {
    let reach = store.catalog.reach()?;
    let rows = store.catalog.branches()?.into_iter().chain(store.catalog.deleted_branches()?);
    let mut snapshots: BTreeMap<BranchId, Vec<SnapshotRow>> = BTreeMap::new();
    for row in store.catalog.snapshots()? {
        snapshots.entry(row.branch).or_default().push(row);
    }
    let mut sizes = Sizes::default();
    let mut usage = Vec::new();
    for row in rows.filter(|row| only.is_none_or(|only| only == row.id)) {
        usage.push(of_branch(store, &reach, &row, &mut sizes));
        for snapshot in snapshots.get(&row.id).into_iter().flatten() {
            usage.push(of_snapshot(store, (&reach, &row), snapshot, &mut sizes));
        }
    }
    let all: HashSet<LayerId> = store.catalog.all_layers()?.into_iter().map(|row| row.id).collect();
    let reached = reach.of(|_| true);
    let garbage: HashSet<LayerId> = all.difference(&reached).copied().collect();
    Ok(Report {
        usage,
        store_bytes: sizes.sum(store, &all),
        garbage_bytes: sizes.sum(store, &garbage),
    })
}

fn of_branch(store: &Store, reach: &Reach, row: &BranchRow, sizes: &mut Sizes) -> Usage {
    let total = reach.of(|root| root.branch == row.id && root.snapshot.is_none());
    let (total, free) = (sizes.sum(store, &total), sizes.sum(store, &reach.only_of_branch(row.id)));
    // Of what goes with its snapshots it may not stand on everything itself.
    let own = reach.only_of(|root| root.branch == row.id && root.snapshot.is_none());
    Usage {
        name: row.name.to_string(),
        deleted: row.deleted_ms.is_some(),
        total_bytes: total,
        shared_bytes: total - sizes.sum(store, &own),
        reclaimable_bytes: free,
    }
}

fn of_snapshot(
    store: &Store,
    (reach, row): (&Reach, &BranchRow),
    snapshot: &SnapshotRow,
    sizes: &mut Sizes,
) -> Usage {
    let total = sizes.sum(store, &reach.of(|root| root.snapshot == Some(snapshot.id)));
    let free = sizes.sum(store, &reach.only_of(|root| root.snapshot == Some(snapshot.id)));
    Usage {
        name: format!("{}@{}", row.name, snapshot.name),
        deleted: row.deleted_ms.is_some(),
        total_bytes: total,
        shared_bytes: total - free,
        reclaimable_bytes: free,
    }
}

fn table(report: &Report) -> String {
    let shown = |usage: &Usage| {
        let mark = if usage.deleted { " (deleted)" } else { "" };
        format!("{}{mark}", usage.name)
    };
    let width = report.usage.iter().map(|usage| shown(usage).len()).max().unwrap_or(0).max(4);
    let mut text = format!("{:<width$}  {:>11}  {:>11}\n", "NAME", "TOTAL", "FREES");
    for usage in &report.usage {
        let (total, frees) = (usage.total_bytes, usage.reclaimable_bytes);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<width$}  {:>11}  {:>11}",
            shown(usage),
            output::bytes(total),
            output::bytes(frees)
        );
    }
    let _ = writeln!(text, "The layers of the store take {}", output::bytes(report.store_bytes));
    if report.garbage_bytes > 0 {
        let bytes = output::bytes(report.garbage_bytes);
        let _ = writeln!(text, "Nothing stands on {bytes} of that; `cowfs gc` frees it");
    }
    text
}
