//! `cowfs snapshot list`.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::super::branch::here_or_there::require;
use super::super::{failure, output};
use crate::catalog::{BranchName, SnapshotName, SnapshotRow, Store};
use crate::format::BranchId;
use crate::serve::Failure;

/// Arguments of `cowfs snapshot list`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ListArgs {
    /// Only those of this branch
    #[arg(add = crate::cli::complete::branches())]
    branch: Option<BranchName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Listed<'a> {
    branch: &'a BranchName,
    snapshot: &'a SnapshotName,
    created: String,
    created_by: u32,
    expires: Option<String>,
}

pub(super) fn run(args: &ListArgs, store: &Store) -> Result<u8, Failure> {
    let catalog = |error| failure::of_catalog(&error);
    let only = args.branch.as_ref().map(|name| require(store, name)).transpose()?;
    let branches: BTreeMap<BranchId, BranchName> = store
        .catalog
        .branches()
        .map_err(catalog)?
        .into_iter()
        .filter(|row| only.as_ref().is_none_or(|only| only.id == row.id))
        .map(|row| (row.id, row.name))
        .collect();
    let mut rows: Vec<(&BranchName, SnapshotRow)> = store
        .catalog
        .snapshots()
        .map_err(catalog)?
        .into_iter()
        .filter_map(|row| Some((branches.get(&row.branch)?, row)))
        .collect();
    // Within a branch they stay in the order in which they were taken.
    rows.sort_by_key(|(branch, _)| *branch);
    if args.json {
        let listed = rows.iter().map(|(branch, row)| Listed {
            branch,
            snapshot: &row.name,
            created: output::time(row.created_ms),
            created_by: row.created_by,
            expires: row.expires_ms.map(output::time),
        });
        output::print_json(&listed.collect::<Vec<_>>())?;
        return Ok(0);
    }
    let width = rows.iter().map(|(branch, row)| branch.as_str().len() + row.name.as_str().len());
    let width = width.max().unwrap_or(0) + 1;
    let mut text = String::new();
    for (branch, row) in &rows {
        let name = format!("{branch}@{}", row.name);
        let expires =
            row.expires_ms.map_or_else(String::new, |at| format!("  expires {}", output::time(at)));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<width$}  {}{expires}", output::time(row.created_ms));
    }
    output::print(&text);
    Ok(0)
}
