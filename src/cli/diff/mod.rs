//! `cowfs diff`: what differs between two states of the store.

mod files;
mod schema;
mod servers;
mod tables;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::branch::here_or_there::require;
use super::mount::parse_duration;
use super::snapshot::PassingBranch;
use super::{failure, interrupt, requester};
use crate::branch::fork::Requester;
use crate::catalog::{BranchPoint, BranchRow, Store};
use crate::diff::{self, DiffError, Difference, Exactness};
use crate::serve::Failure;
use servers::Servers;

/// Arguments of `cowfs diff`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "With one state: what the branch has changed since it was made. With two: how to get \
from the first to the second, be they branches or snapshots, mounted and busy or not.

Files, pages and tables are found from the layers alone, without reading contents: what was written \
counts, if only with the same bytes. --exact reads what was written and leaves out what is the same. \
Tables are named by the branch's Postgres, or by one that is started on a passing copy; so is the \
schema, which pg_dump writes.

A added, D deleted, M modified, R renamed, P other permissions or owner. Pages are blocks of 8 KiB.

Examples:
  cowfs diff ticket-42
  cowfs diff main@nightly main --tables
  cowfs diff main ticket-42 --schema
  cowfs diff ticket-42 --stat --exact"
)]
pub(super) struct DiffArgs {
    /// A branch, or one of its snapshots
    #[arg(value_name = "A[@SNAPSHOT]")]
    #[arg(add = crate::cli::complete::points())]
    a: BranchPoint,
    /// Another [default: with A alone, what A has changed since it was made]
    #[arg(value_name = "B[@SNAPSHOT]")]
    #[arg(add = crate::cli::complete::points())]
    b: Option<BranchPoint>,
    /// One line per file (the default)
    #[arg(long, group = "view")]
    files: bool,
    /// One line per file with a bar for how much
    #[arg(long, group = "view")]
    stat: bool,
    /// The numbers of the pages
    #[arg(long, group = "view")]
    pages: bool,
    /// By table and index
    #[arg(long, group = "view")]
    tables: bool,
    /// The schema of each database, as a unified diff
    #[arg(long, group = "view")]
    schema: bool,
    /// Leave out pages that were written with the bytes they had
    #[arg(long, conflicts_with = "schema")]
    exact: bool,
    /// Directory with the Postgres programs, for --tables and --schema
    /// [default: found by the cluster's version]
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// How long a Postgres for --tables and --schema may take to start
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    timeout: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One of the two states that are compared.
pub(in crate::cli) struct Side<'a> {
    /// What it is called.
    called: String,
    /// The branch as it was named, if it is the branch as it is now: its Postgres may be asked.
    now: Option<BranchRow>,
    branch: PassingBranch<'a>,
}

pub(super) fn run(args: &DiffArgs, store: Store) -> Result<u8, Failure> {
    let store = Arc::new(store);
    interrupt::catch();
    let by = requester();
    let (before, after) = sides(args, &store, &by)?;
    let shown = show(args, &store, &before, &after);
    let gone = [before.branch.delete(), after.branch.delete()];
    shown?;
    gone.into_iter().collect::<Result<(), _>>()?;
    Ok(0)
}

fn show(
    args: &DiffArgs,
    store: &Arc<Store>,
    before: &Side<'_>,
    after: &Side<'_>,
) -> Result<(), Failure> {
    let pg_bin = args.pg_bin.clone();
    let servers = Servers { store, before, after, pg_bin, timeout: args.timeout };
    if args.schema {
        return schema::show(&servers, args.json);
    }
    let exactness = if args.exact { Exactness::Bytes } else { Exactness::Owners };
    let found = compare(before, after, exactness)?;
    interrupt::go_on()?;
    if args.tables {
        return tables::show(&servers, &found, args.json);
    }
    if args.json {
        files::print_json(&found, args.pages)
    } else {
        let view = match (args.stat, args.pages) {
            (true, _) => files::stat,
            (_, true) => files::pages,
            _ => files::lines,
        };
        super::output::print(&view(&found));
        Ok(())
    }
}

/// The two states, each as a branch of its own that nobody changes.
fn sides<'a>(
    args: &DiffArgs,
    store: &'a Arc<Store>,
    by: &Requester,
) -> Result<(Side<'a>, Side<'a>), Failure> {
    let side = |point: &BranchPoint| -> Result<Side<'a>, Failure> {
        let row = require(store, &point.branch)?;
        let branch = PassingBranch::of(store, point, "diff", by)?;
        Ok(Side { called: point.to_string(), now: point.snapshot.is_none().then_some(row), branch })
    };
    let Some(b) = &args.b else {
        let after = side(&args.a)?;
        return match beginning(store, &args.a, by) {
            Ok(before) => Ok((before, after)),
            Err(failure) => {
                after.branch.delete()?;
                Err(failure)
            }
        };
    };
    let before = side(&args.a)?;
    match side(b) {
        Ok(after) => Ok((before, after)),
        Err(failure) => {
            before.branch.delete()?;
            Err(failure)
        }
    }
}

/// The state in which a branch began.
fn beginning<'a>(
    store: &'a Arc<Store>,
    point: &BranchPoint,
    by: &Requester,
) -> Result<Side<'a>, Failure> {
    let row = require(store, &point.branch)?;
    let Some(layer) = row.begins else {
        let text = format!("branch {} began empty: all of it is its own", row.name);
        return Err(Failure::new("began_empty", text)
            .exit(2)
            .hint(format!("name two states: `cowfs diff A {point}`")));
    };
    let branch = PassingBranch::on(store, &row, layer, "diff", by)?;
    Ok(Side { called: format!("{} at its beginning", row.name), now: None, branch })
}

fn compare(
    before: &Side<'_>,
    after: &Side<'_>,
    exactness: Exactness,
) -> Result<Vec<Difference>, Failure> {
    let (old, new) = (before.branch.open()?, after.branch.open()?);
    // A layer whose index is not written yet counts holes as its own.
    for opened in [&old, &new] {
        let done = opened.fs.branch.finalize_frozen();
        done.map_err(|error| failure::of_branch(&error))?;
    }
    let found = diff::diff((&old.fs, &before.called), (&new.fs, &after.called), exactness);
    old.close()?;
    new.close()?;
    found.map_err(|error| of_diff(&error))
}

fn of_diff(error: &DiffError) -> Failure {
    let of_source = crate::serve::failure::of_fs(&error.source);
    Failure { message: Failure::caused("", error).message, ..of_source }
}
