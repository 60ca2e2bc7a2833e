//! `cowfs branch protect`, `unprotect`, `expire`, `detach` and `promote`: what is said of a branch.

use super::super::span::{self, OrNever};
use super::super::{failure, output, requester};
use super::here_or_there::require;
use crate::branch::fork::Requester;
use crate::catalog::{Actor, BranchName, CatalogError, Store};
use crate::serve::Failure;

/// Arguments of the commands that need only a branch.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct OneBranchArgs {
    /// The branch
    #[arg(add = crate::cli::complete::branches())]
    name: BranchName,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `cowfs branch expire`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "`cowfs gc` deletes an expired branch; one that is in use, or protected, stays until \
it is neither.

Examples:
  cowfs branch expire ticket-42 7d
  cowfs branch expire ticket-42 never"
)]
pub(in crate::cli) struct ExpireArgs {
    /// The branch
    #[arg(add = crate::cli::complete::branches())]
    name: BranchName,
    /// From now, for example 12h or 7d; or never
    #[arg(value_name = "DURATION", value_parser = span::parse_or_never)]
    after: OrNever,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Attributes<'a> {
    branch: &'a BranchName,
    parent: Option<BranchName>,
    protected: bool,
    /// When gc may delete it.
    expires: Option<String>,
}

fn actor(by: &Requester) -> Actor<'_> {
    Actor { uid: by.uid, command: &by.command }
}

fn answer(store: &Store, name: &BranchName, json: bool, sentence: &str) -> Result<u8, Failure> {
    if !json {
        output::print(sentence);
        return Ok(0);
    }
    let row = require(store, name)?;
    let parent = row.parent.map_or(Ok(None), |id| store.catalog.branch_by_id(id));
    let parent = parent.map_err(|error| failure::of_catalog(&error))?.map(|row| row.name);
    let expires = row.expires_ms.map(output::time);
    output::print_json(&Attributes { branch: name, parent, protected: row.protected, expires })?;
    Ok(0)
}

pub(super) fn protect(args: &OneBranchArgs, store: &Store, on: bool) -> Result<u8, Failure> {
    let (row, by) = (require(store, &args.name)?, requester());
    let set = store.catalog.set_protected(row.id, on, actor(&by));
    set.map_err(|error| failure::of_catalog(&error))?;
    let what = if on {
        "is protected: delete, reset, restore and expiry leave it alone"
    } else {
        "is not protected any more"
    };
    answer(store, &args.name, args.json, &format!("Branch {} {what}\n", args.name))
}

pub(super) fn expire(args: &ExpireArgs, store: &Store) -> Result<u8, Failure> {
    let (row, by) = (require(store, &args.name)?, requester());
    let at = args.after.0.map(span::Span::ahead_ms);
    let set = store.catalog.set_expiry(row.id, at, actor(&by));
    set.map_err(|error| failure::of_catalog(&error))?;
    let when = at.map_or_else(
        || "never expires".to_owned(),
        |at| format!("expires {}; `cowfs gc` deletes it then", output::time(at)),
    );
    answer(store, &args.name, args.json, &format!("Branch {} {when}\n", args.name))
}

pub(super) fn detach(args: &OneBranchArgs, store: &Store) -> Result<u8, Failure> {
    let (row, by) = (require(store, &args.name)?, requester());
    let no_parent = CatalogError::NoParent { name: row.name.clone() };
    if row.parent.is_none() {
        return Err(failure::of_catalog(&no_parent));
    }
    let set = store.catalog.detach_branch(row.id, actor(&by));
    set.map_err(|error| failure::of_catalog(&error))?;
    let sentence = format!("Branch {} stands by itself now; its data is as it was\n", args.name);
    answer(store, &args.name, args.json, &sentence)
}

pub(super) fn promote(args: &OneBranchArgs, store: &Store) -> Result<u8, Failure> {
    let (row, by) = (require(store, &args.name)?, requester());
    let promoted = store.catalog.promote_branch(row.id, actor(&by));
    let (_, former) = promoted.map_err(|error| failure::of_catalog(&error))?;
    let sentence = format!("Branch {} is the parent of {} now\n", args.name, former.name);
    answer(store, &args.name, args.json, &sentence)
}
