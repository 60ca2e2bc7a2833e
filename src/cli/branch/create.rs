//! `cowfs branch create`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::mount::parse_duration;
use super::super::span::{self, Span};
use super::super::{failure, output, requester};
use super::at::At;
use super::here_or_there::{self, here_or_there};
use super::moment::Moment;
use crate::branch::create::create_empty;
use crate::branch::fork::{Requester, fork_unmounted};
use crate::branch::snapshot::branch_from_snapshot;
use crate::catalog::{Actor, BranchName, BranchPoint, BranchRow, SnapshotName, Store};
use crate::serve::{Failure, Request, Response};

/// Arguments of `cowfs branch create`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("source").required(true))]
#[command(
    after_help = "With --at Postgres replays WAL from the nearest earlier snapshot, on the new branch; the WAL comes \
from that snapshot, the next one, and the branch as it is now. `cowfs branch show` tells which moments can \
be reached; `cowfs snapshot schedule` makes more of them reachable. A branch that began so is a cluster \
on a timeline of its own.

Examples:
  cowfs branch create scratch --empty
  cowfs branch create ticket-42 --from main
  cowfs branch create before-the-mistake --from main --at '10 minutes ago'
  cowfs branch create yesterday --from main@nightly --ttl 7d"
)]
pub(in crate::cli) struct CreateArgs {
    /// Name of the new branch
    name: BranchName,
    /// Start with an empty directory
    #[arg(long, group = "source")]
    empty: bool,
    /// Fork this branch, mounted or not, or one of its snapshots
    #[arg(long, value_name = "PARENT[@SNAPSHOT]", group = "source")]
    #[arg(add = crate::cli::complete::points())]
    from: Option<BranchPoint>,
    /// The parent as it was then: a time such as 2026-11-22T10:00:00Z, '10 minutes ago', or a
    /// position in the WAL such as 0/16B3748
    #[arg(long, value_name = "MOMENT", requires = "from", conflicts_with = "empty")]
    at: Option<Moment>,
    /// Directory with the Postgres programs, for --at [default: found by the cluster's version]
    #[arg(long, value_name = "DIR", requires = "at")]
    pg_bin: Option<PathBuf>,
    /// How long Postgres may replay WAL, for --at
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = parse_duration)]
    timeout: Duration,
    /// Have gc delete it after that time, for example 12h or 7d
    #[arg(long, value_name = "DURATION", value_parser = span::parse)]
    ttl: Option<Span>,
    /// Succeed if the branch exists already
    #[arg(long)]
    if_not_exists: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Created<'a> {
    branch: &'a BranchName,
    /// The branch that it is a fork of, also where another one was asked for.
    parent: Option<BranchName>,
    /// The parent's snapshot that it began with.
    snapshot: Option<SnapshotName>,
    created: bool,
    /// How a branch that exists already is not what was asked for; none if it is.
    differs: Option<String>,
    /// Microseconds that changes in the parent were held up; 0 for a parent that is not mounted.
    gate_us: u64,
    /// Microseconds of the fork itself.
    fork_us: u64,
    /// When gc may delete it.
    expires: Option<String>,
    /// The moment of the parent that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
    /// Bytes of WAL that came from later states.
    #[serde(skip_serializing_if = "Option::is_none")]
    wal_bytes: Option<u64>,
}

pub(super) fn run(args: &CreateArgs, store: Store) -> Result<u8, Failure> {
    let store = Arc::new(store);
    let by = requester();
    let mut created = Created {
        branch: &args.name,
        parent: args.from.as_ref().map(|from| from.branch.clone()),
        snapshot: args.from.as_ref().and_then(|from| from.snapshot.clone()),
        expires: None,
        created: true,
        differs: None,
        gate_us: 0,
        fork_us: 0,
        at: args.at.map(|moment| moment.to_string()),
        wal_bytes: None,
    };
    let done = match &args.from {
        None => create_empty(&store, args.name.clone(), &by)
            .map(|_| (0, 0))
            .map_err(|error| failure::of_branch(&error)),
        Some(parent) => match args.at {
            None => fork(&store, parent, &args.name, &by),
            Some(moment) => at(args, &store, (parent, moment), &by, &mut created),
        },
    };
    match done {
        Ok((gate_us, fork_us)) => {
            (created.gate_us, created.fork_us) = (gate_us, fork_us);
            let row = require(&store, &args.name)?;
            created.expires = expire(&store, &row, args.ttl, &by)?;
        }
        Err(failure) if args.if_not_exists && failure.kind == "branch_exists" => {
            created.created = false;
            let row = require(&store, &args.name)?;
            created.parent = existing_parent(&store, &row)?;
            created.snapshot = snapshot_of(&row);
            created.expires = row.expires_ms.map(output::time);
            created.differs = difference(&row, created.parent.as_ref(), args.from.as_ref());
        }
        Err(failure) => return Err(failure),
    }
    if let Some(differs) = &created.differs {
        eprintln!("Note: branch {} exists already; {differs}", args.name);
    }
    if args.json {
        output::print_json(&created)?;
    } else {
        output::print(&sentence(&created));
    }
    Ok(0)
}

fn at(
    args: &CreateArgs,
    store: &Arc<Store>,
    (parent, moment): (&BranchPoint, Moment),
    by: &Requester,
    created: &mut Created<'_>,
) -> Result<(u64, u64), Failure> {
    if parent.snapshot.is_some() {
        let text = format!("--at: {parent} is what it is");
        return Err(Failure::new("usage", text).exit(2).hint("name the branch alone"));
    }
    let (pg_bin, timeout) = (args.pg_bin.clone(), args.timeout);
    let at = At { store, parent: &parent.branch, child: &args.name, moment, pg_bin, timeout, by };
    let reached = at.run()?;
    created.wal_bytes = Some(reached.wal_bytes);
    Ok((0, u64::try_from(reached.took.as_micros()).unwrap_or(u64::MAX)))
}

fn existing_parent(store: &Store, row: &BranchRow) -> Result<Option<BranchName>, Failure> {
    let Some(id) = row.parent else { return Ok(None) };
    let parent = store.catalog.branch_by_id(id).map_err(|error| failure::of_catalog(&error))?;
    Ok(parent.map(|row| row.name))
}

/// The snapshot that a branch began with, as its origin has it.
fn snapshot_of(row: &BranchRow) -> Option<SnapshotName> {
    row.origin.strip_prefix("fork:")?.split_once('@')?.1.parse().ok()
}

/// In which way the branch of `row`, a fork of `parent`, is not the fork of `wanted` (or the empty
/// branch) that was asked for.
fn difference(
    row: &BranchRow,
    parent: Option<&BranchName>,
    wanted: Option<&BranchPoint>,
) -> Option<String> {
    let empty = parent.is_none() && row.origin == "empty";
    let snapshot = snapshot_of(row);
    let same = parent == wanted.map(|wanted| &wanted.branch)
        && snapshot.as_ref() == wanted.and_then(|wanted| wanted.snapshot.as_ref());
    if same && (parent.is_some() || empty) {
        return None;
    }
    let (is, fork) = match (parent, row.origin.split_once(':')) {
        (Some(parent), _) => {
            let at = snapshot.map_or_else(String::new, |name| format!("@{name}"));
            (format!("a fork of {parent}{at}"), true)
        }
        (None, Some(("fork", gone))) => (format!("a fork of {gone}, which was deleted"), true),
        (None, Some((_, source))) => (format!("an import of {source}"), false),
        (None, None) => ("a branch that began empty".to_owned(), false),
    };
    let wanted = match (wanted, fork) {
        (Some(wanted), true) => format!("of {wanted}"),
        (Some(wanted), false) => format!("a fork of {wanted}"),
        (None, _) => "one that began empty".to_owned(),
    };
    Some(format!("it is {is}, not {wanted}"))
}

fn sentence(created: &Created<'_>) -> String {
    let name = created.branch;
    match (created.created, &created.parent) {
        (false, _) => format!("Branch {name} exists already\n"),
        (true, None) => format!("Created branch {name}, empty\n"),
        (true, Some(parent)) => {
            let (whole, rest) = (created.fork_us / 1000, created.fork_us % 1000 / 100);
            let mut at = created.snapshot.as_ref().map_or_else(String::new, |at| format!("@{at}"));
            if let Some(moment) = &created.at {
                at = format!(" as of {moment}");
            }
            format!("Created branch {name} from {parent}{at} in {whole}.{rest} ms\n")
        }
    }
}

/// Sets when gc may delete a new branch, if that was asked for; gives the time for people.
fn expire(
    store: &Store,
    row: &BranchRow,
    ttl: Option<Span>,
    by: &Requester,
) -> Result<Option<String>, Failure> {
    let Some(ttl) = ttl else { return Ok(None) };
    let (at, actor) = (ttl.ahead_ms(), Actor { uid: by.uid, command: &by.command });
    let set = store.catalog.set_expiry(row.id, Some(at), actor);
    set.map_err(|error| failure::of_catalog(&error))?;
    Ok(Some(output::time(at)))
}

/// Forks through the process that serves the parent, or here if none does; gives microseconds that
/// the parent was held up, and of the fork itself.
pub(in crate::cli) fn fork(
    store: &Arc<Store>,
    parent: &BranchPoint,
    child: &BranchName,
    by: &Requester,
) -> Result<(u64, u64), Failure> {
    let Some(snapshot) = &parent.snapshot else {
        return fork_now(store, &parent.branch, child, by);
    };
    let begin = Instant::now();
    let row = require(store, &parent.branch)?;
    let snapshot = store.catalog.require_snapshot(&row, snapshot);
    let snapshot = snapshot.map_err(|error| failure::of_catalog(&error))?;
    let made = branch_from_snapshot(store, &row, &snapshot, child.clone(), None, by);
    made.map_err(|error| failure::of_branch(&error))?;
    Ok((0, u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX)))
}

fn fork_now(
    store: &Arc<Store>,
    parent: &BranchName,
    child: &BranchName,
    by: &Requester,
) -> Result<(u64, u64), Failure> {
    let request =
        Request::Fork { name: child.to_string(), uid: Some(by.uid), command: by.command.clone() };
    here_or_there(
        store,
        parent,
        |row, lock| {
            let report = fork_unmounted(store, row, lock, child.clone(), by);
            report.map(|report| (0, report.total_us)).map_err(|error| failure::of_branch(&error))
        },
        &request,
        |response| match response {
            Response::Forked { gate_us, total_us, .. } => Some((gate_us, total_us)),
            _ => None,
        },
    )
}

fn require(store: &Store, name: &BranchName) -> Result<BranchRow, Failure> {
    here_or_there::require(store, name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::format::{BranchId, LayerId};

    #[test]
    fn what_an_existing_branch_is_instead() {
        let row = |origin: &str| BranchRow {
            id: BranchId(2),
            name: "x".parse().unwrap(),
            parent: None,
            head: LayerId(9),
            created_ms: 0,
            created_by: 0,
            hygiene_pending: false,
            origin: origin.to_owned(),
            protected: false,
            expires_ms: None,
            begins: None,
            quota_bytes: None,
            pg_bin: None,
            deleted_ms: None,
        };
        let names: [BranchPoint; 2] = ["p".parse().unwrap(), "q".parse().unwrap()];
        let at: BranchPoint = "q@s".parse().unwrap();
        let (p, q) = (Some(&names[0]), Some(&names[1]));
        let said = |origin, parent: Option<&BranchPoint>, wanted| {
            difference(&row(origin), parent.map(|parent| &parent.branch), wanted)
        };
        assert_eq!(said("fork:q@s", q, Some(&at)), None);
        assert_eq!(said("fork:q@s", q, q).as_deref(), Some("it is a fork of q@s, not of q"));
        assert_eq!(said("fork:q", q, q), None);
        assert_eq!(said("empty", None, None), None);
        for (origin, parent, wanted, text) in [
            ("fork:q", q, p, "it is a fork of q, not of p"),
            ("fork:q", q, None, "it is a fork of q, not one that began empty"),
            ("fork:q", None, p, "it is a fork of q, which was deleted, not of p"),
            ("empty", None, p, "it is a branch that began empty, not a fork of p"),
            ("import:/x", None, p, "it is an import of /x, not a fork of p"),
            ("adopt:/x", None, None, "it is an import of /x, not one that began empty"),
        ] {
            assert_eq!(said(origin, parent, wanted).as_deref(), Some(text));
        }
    }
}
