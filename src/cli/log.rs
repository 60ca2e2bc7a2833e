//! `cowfs log` and `cowfs undo`: what was done, and taking it back.

use std::fmt::Write;

use super::{failure, output, requester};
use crate::catalog::{Actor, BranchName, CatalogError, LockError, OperationRow, Store};
use crate::format::BranchId;
use crate::serve::Failure;

/// Arguments of `cowfs log`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Operations marked with * can be taken back: `cowfs undo NUMBER`.

Examples:
  cowfs log
  cowfs log main -n 5")]
pub(super) struct LogArgs {
    /// Only what was done to this branch, by the name it had then
    #[arg(add = crate::cli::complete::branches())]
    branch: Option<BranchName>,
    /// How many, the newest first
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
    limit: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `cowfs undo`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Deleting, renaming, resetting and restoring can be taken back as long as the data is \
there: gc takes it after a day. An undo of a reset or a restore can be taken back in \
turn.

Examples:
  cowfs undo
  cowfs undo 17"
)]
pub(super) struct UndoArgs {
    /// Number of the operation [default: the last one that can be taken back]
    #[arg(value_name = "NUMBER")]
    operation: Option<i64>,
    /// The last one of this branch, by the name it had then
    #[arg(long, value_name = "NAME", conflicts_with = "operation")]
    #[arg(add = crate::cli::complete::branches())]
    branch: Option<BranchName>,
    /// Only say what would be taken back
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Shown<'a> {
    id: i64,
    at: String,
    uid: u32,
    command: &'a str,
    branch: Option<&'a str>,
    detail: &'a str,
    undoable: bool,
    undone_by: Option<i64>,
}

#[derive(serde::Serialize)]
struct Undone<'a> {
    dry_run: bool,
    operation: Shown<'a>,
    /// The branch as it is called now.
    branch: Option<&'a BranchName>,
}

fn shown(row: &OperationRow) -> Shown<'_> {
    Shown {
        id: row.id,
        at: output::time(row.at_ms),
        uid: row.uid,
        command: &row.command,
        branch: row.branch.as_deref(),
        detail: &row.detail,
        undoable: row.undo.is_some() && row.undone_by.is_none(),
        undone_by: row.undone_by,
    }
}

pub(super) fn run(args: &LogArgs, store: &Store) -> Result<u8, Failure> {
    let rows = store.catalog.log(args.branch.as_ref(), args.limit);
    let rows = rows.map_err(|error| failure::of_catalog(&error))?;
    if let (Some(name), true) = (&args.branch, rows.is_empty() && args.limit > 0) {
        // A branch that never was; one that is there has at least its beginning.
        store.catalog.require_branch(name).map_err(|error| failure::of_catalog(&error))?;
    }
    if args.json {
        output::print_json(&rows.iter().map(shown).collect::<Vec<_>>())?;
        return Ok(0);
    }
    let mut text = String::new();
    for row in rows.iter().map(shown) {
        let mark = if row.undoable { '*' } else { ' ' };
        let undone = row.undone_by.map_or_else(String::new, |by| format!(" (taken back by {by})"));
        let branch = row.branch.unwrap_or("-");
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:>6}{mark} {}  user {}  {branch}: {}{undone}  [{}]",
            row.id, row.at, row.uid, row.detail, row.command
        );
    }
    output::print(&text);
    Ok(0)
}

pub(super) fn undo(args: &UndoArgs, store: &Store) -> Result<u8, Failure> {
    let catalog = |error: CatalogError| failure::of_catalog(&error);
    let found = match args.operation {
        Some(id) => store.catalog.undoable(id).map_err(catalog)?,
        None => store.catalog.last_undoable(args.branch.as_ref()).map_err(catalog)?.ok_or_else(
            || {
                Failure::new("not_undoable", "there is nothing that can be taken back")
                    .hint("`cowfs log` shows what was done")
            },
        )?,
    };
    let (operation, undo) = found;
    if args.dry_run {
        return said(args, &operation, None);
    }
    let _locks = undo
        .touches()
        .into_iter()
        .map(|id| lock(store, id))
        .collect::<Result<Vec<_>, Failure>>()?;
    let by = requester();
    let actor = Actor { uid: by.uid, command: &by.command };
    let undone = store.catalog.undo(operation.id, actor).map_err(|error| match error {
        CatalogError::BranchGone { .. } => Failure::new(
            "not_undoable",
            format!(
                "operation {} cannot be taken back any more: gc \
                has taken what was kept",
                operation.id
            ),
        ),
        error => catalog(error),
    })?;
    said(args, &undone.operation, Some(&undone.row.name))
}

fn said(
    args: &UndoArgs,
    operation: &OperationRow,
    branch: Option<&BranchName>,
) -> Result<u8, Failure> {
    if args.json {
        let operation = shown(operation);
        output::print_json(&Undone { dry_run: args.dry_run, operation, branch })?;
        return Ok(0);
    }
    let (verb, now) = match branch {
        None => ("Would take back", String::new()),
        Some(name) => ("Took back", format!("; the branch is {name}")),
    };
    let row = shown(operation);
    let of = row.branch.unwrap_or("-");
    output::print(&format!(
        "{verb} operation {} of {} ({of}: {}){now}\n",
        row.id, row.at, row.detail
    ));
    Ok(0)
}

fn lock(store: &Store, id: BranchId) -> Result<crate::catalog::BranchLock, Failure> {
    store.lock_branch(id).map_err(|error| match error {
        LockError::Io { .. } => failure::of_lock_file(&error),
        LockError::Busy { .. } => {
            let name = store.catalog.branch_by_id(id).ok().flatten().map(|row| row.name);
            let name = name.map_or_else(|| id.to_string(), |name| name.to_string());
            Failure::new("busy", format!("branch {name} is mounted or {error}"))
                .hint(format!("`cowfs stop {name}` or `cowfs unmount {name}` first"))
        }
    })
}
