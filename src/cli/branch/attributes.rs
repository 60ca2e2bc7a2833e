//! `cowfs branch protect`, `unprotect`, `expire`, `detach`, `promote`, `quota` and `pg-bin`: what is said of a branch.

use std::path::PathBuf;
use std::time::Duration;

use super::super::span::{self, OrNever};
use super::super::{failure, output, requester};
use super::here_or_there::require;
use crate::branch::fork::Requester;
use crate::catalog::{Actor, BranchName, CatalogError, Store};
use crate::postgres::locate::Binaries;
use crate::serve::{ControlError, Failure, Request, control};

/// Time for a serving process to answer.
const PATIENCE: Duration = Duration::from_secs(10);

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

/// Arguments of `cowfs branch quota`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Counted are the blocks on the disk of what the branch has written since it began, or was reset or \
restored; not what it shares with its parent. At its quota a branch gets ENOSPC, as on a full disk, and may \
still write in place, truncate and delete; others notice nothing. df shows the quota and what is left. The \
kernel takes writes in before it asks: mount with -o writethrough if a write, and not the fsync after it, is \
to say that the branch is full.

Examples:
  cowfs branch quota ticket-42 10G
  cowfs branch quota ticket-42 none"
)]
pub(in crate::cli) struct QuotaArgs {
    /// The branch
    #[arg(add = crate::cli::complete::branches())]
    name: BranchName,
    /// Bytes, with K, M, G or T for powers of 1024; or none
    #[arg(value_name = "SIZE", value_parser = parse_size)]
    size: Size,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `cowfs branch pg-bin`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Kept until it is set anew, over stops and starts; children get it with the fork. --pg-bin of a \
command goes before it.

Examples:
  cowfs branch pg-bin main /opt/pgsql-17/bin
  cowfs branch pg-bin main auto"
)]
pub(in crate::cli) struct PgBinArgs {
    /// The branch
    #[arg(add = crate::cli::complete::branches())]
    name: BranchName,
    /// Directory that holds `postgres`; or auto, to search for the cluster's version
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// A number of bytes, or no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size(Option<u64>);

fn parse_size(text: &str) -> Result<Size, String> {
    if text == "none" {
        return Ok(Size(None));
    }
    let rule = || format!("{text:?} is not a size such as 500M or 10G, nor none");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let power = match unit.trim_end_matches("iB").trim_end_matches('B') {
        "" => 0,
        "K" | "k" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        _ => return Err(rule()),
    };
    let number: u64 = number.parse().map_err(|_| rule())?;
    let bytes = number.checked_mul(1 << (10 * power)).filter(|&bytes| i64::try_from(bytes).is_ok());
    match bytes {
        Some(0) | None => Err(format!("{text} is not between 1 byte and 8 EiB")),
        some => Ok(Size(some)),
    }
}

#[derive(serde::Serialize)]
struct Attributes<'a> {
    branch: &'a BranchName,
    parent: Option<BranchName>,
    protected: bool,
    /// When gc may delete it.
    expires: Option<String>,
    /// Bytes that its own layers may take.
    quota_bytes: Option<u64>,
    /// Where the programs of its Postgres are, if that was set.
    pg_bin: Option<PathBuf>,
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
    let (protected, quota_bytes, pg_bin) = (row.protected, row.quota_bytes, row.pg_bin);
    let attributes = Attributes { branch: name, parent, protected, expires, quota_bytes, pg_bin };
    output::print_json(&attributes)?;
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

pub(super) fn quota(args: &QuotaArgs, store: &Store) -> Result<u8, Failure> {
    let (row, by) = (require(store, &args.name)?, requester());
    let Size(bytes) = args.size;
    let set = store.catalog.set_quota(row.id, bytes, actor(&by));
    set.map_err(|error| failure::of_catalog(&error))?;
    // Whoever mounts it from now on knows; the one who serves it is told.
    match control::request(store, row.id, &Request::Quota { bytes }, PATIENCE) {
        Ok(_) | Err(ControlError::NotServed) => {}
        Err(error) => {
            let failure = Failure::caused("control", &error);
            return Err(failure.hint("the quota holds from the next mount on"));
        }
    }
    let what = bytes.map_or_else(
        || "may take any space".to_owned(),
        |bytes| format!("may take {}", output::bytes(bytes)),
    );
    answer(store, &args.name, args.json, &format!("Branch {} {what}\n", args.name))
}

pub(super) fn pg_bin(args: &PgBinArgs, store: &Store) -> Result<u8, Failure> {
    let (row, by) = (require(store, &args.name)?, requester());
    let dir = if args.dir.as_os_str() == "auto" {
        None
    } else {
        let found = Binaries::in_dir(&args.dir);
        Some(found.map_err(|error| failure::of_postgres(args.name.as_str(), &error))?)
    };
    let set = store.catalog.set_pg_bin(row.id, dir.as_ref().map(|found| &*found.dir), actor(&by));
    set.map_err(|error| failure::of_catalog(&error))?;
    let what = dir.map_or_else(
        || "uses the Postgres of its version that is found".to_owned(),
        |found| format!("uses Postgres {} in {}", found.major, output::path(&found.dir)),
    );
    answer(store, &args.name, args.json, &format!("Branch {} {what}\n", args.name))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_people_write() {
        for (text, bytes) in
            [("1", 1), ("4k", 4096), ("10G", 10 << 30), ("500MiB", 500 << 20), ("1TB", 1 << 40)]
        {
            assert_eq!(parse_size(text), Ok(Size(Some(bytes))), "{text}");
        }
        assert_eq!(parse_size("none"), Ok(Size(None)));
        for text in ["", "G", "0", "-1", "1.5G", "10X", "10 G", "9999999T", "99999999999999999999"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
