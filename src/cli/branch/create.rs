//! `cowfs branch create`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::{command_line, failure, output};
use crate::branch::fork::{Requester, create_empty, fork_unmounted};
use crate::catalog::{BranchName, BranchRow, CatalogError, LockError, Store};
use crate::serve::{ControlError, Failure, Request, Response, control};

/// How long a fork waits for a parent that is just being mounted, unmounted or changed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time for the serving process to answer; forks take milliseconds.
const FORK_TIMEOUT: Duration = Duration::from_secs(60);

/// Arguments of `cowfs branch create`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("source").required(true))]
#[command(after_help = "Examples:
  cowfs branch create scratch --empty
  cowfs branch create ticket-42 --from main")]
pub(in crate::cli) struct CreateArgs {
    /// Name of the new branch
    name: BranchName,
    /// Start with an empty directory
    #[arg(long, group = "source")]
    empty: bool,
    /// Fork this branch, mounted or not
    #[arg(long, value_name = "PARENT", group = "source")]
    from: Option<BranchName>,
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
    created: bool,
    /// How a branch that exists already is not what was asked for; none if it is.
    differs: Option<String>,
    /// Microseconds that changes in the parent were held up; 0 for a parent that is not mounted.
    gate_us: u64,
    /// Microseconds of the fork itself.
    fork_us: u64,
}

pub(super) fn run(args: &CreateArgs, store: Store) -> Result<u8, Failure> {
    let store = Arc::new(store);
    let by = Requester { uid: nix::unistd::getuid().as_raw(), command: command_line() };
    let mut created = Created {
        branch: &args.name,
        parent: args.from.clone(),
        created: true,
        differs: None,
        gate_us: 0,
        fork_us: 0,
    };
    let done = match &args.from {
        None => create_empty(&store, args.name.clone(), &by)
            .map(|_| (0, 0))
            .map_err(|error| failure::of_branch(&error)),
        Some(parent) => fork(&store, parent, &args.name, &by),
    };
    match done {
        Ok((gate_us, fork_us)) => (created.gate_us, created.fork_us) = (gate_us, fork_us),
        Err(failure) if args.if_not_exists && failure.kind == "branch_exists" => {
            created.created = false;
            let row = require(&store, &args.name)?;
            created.parent = existing_parent(&store, &row)?;
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

fn existing_parent(store: &Store, row: &BranchRow) -> Result<Option<BranchName>, Failure> {
    let Some(id) = row.parent else { return Ok(None) };
    let parent = store.catalog.branch_by_id(id).map_err(|error| failure::of_catalog(&error))?;
    Ok(parent.map(|row| row.name))
}

/// In which way the branch of `row`, a fork of `parent`, is not the fork of `wanted` (or the empty
/// branch) that was asked for.
fn difference(
    row: &BranchRow,
    parent: Option<&BranchName>,
    wanted: Option<&BranchName>,
) -> Option<String> {
    let empty = parent.is_none() && row.origin == "empty";
    if parent == wanted && (parent.is_some() || empty) {
        return None;
    }
    let (is, fork) = match (parent, row.origin.split_once(':')) {
        (Some(parent), _) => (format!("a fork of {parent}"), true),
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
            format!("Created branch {name} from {parent} in {whole}.{rest} ms\n")
        }
    }
}

/// Forks through the process that serves the parent, or here if none does; gives microseconds that
/// the parent was held up, and of the fork itself.
pub(in crate::cli) fn fork(
    store: &Arc<Store>,
    parent: &BranchName,
    child: &BranchName,
    by: &Requester,
) -> Result<(u64, u64), Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let row = require(store, parent)?;
        match store.lock_branch(row.id) {
            Ok(lock) => {
                // The head may have moved between the look and the lock.
                let row = require(store, parent)?;
                let report = fork_unmounted(store, &row, &lock, child.clone(), by);
                let report = report.map_err(|error| failure::of_branch(&error))?;
                return Ok((0, report.total_us));
            }
            Err(error @ LockError::Io { .. }) => return Err(failure::of_lock_file(&error)),
            Err(error @ LockError::Busy { .. }) => match ask_server(store, &row, child, by) {
                Err(ControlError::NotServed) if Instant::now() < deadline => {
                    // Somebody mounts, unmounts or changes it: soon there is a server, or a lock.
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(ControlError::NotServed) => {
                    return Err(failure::of_lock(parent.as_str(), &error));
                }
                Err(ControlError::Failed(failure)) => return Err(failure),
                Err(error @ ControlError::TimedOut { .. }) => {
                    return Err(Failure::caused("timeout", &error).exit(4));
                }
                Err(error) => return Err(Failure::caused("control", &error)),
                Ok(times) => return Ok(times),
            },
        }
    }
}

fn require(store: &Store, name: &BranchName) -> Result<BranchRow, Failure> {
    let row = store.catalog.require_branch(name);
    row.map_err(|error: CatalogError| failure::of_catalog(&error))
}

fn ask_server(
    store: &Store,
    row: &BranchRow,
    child: &BranchName,
    by: &Requester,
) -> Result<(u64, u64), ControlError> {
    let request =
        Request::Fork { name: child.to_string(), uid: Some(by.uid), command: by.command.clone() };
    match control::request(store, row.id, &request, FORK_TIMEOUT)? {
        Response::Forked { gate_us, total_us, .. } => Ok((gate_us, total_us)),
        _ => Err(ControlError::NotServed),
    }
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
        };
        let names: [BranchName; 2] = ["p".parse().unwrap(), "q".parse().unwrap()];
        let (p, q) = (Some(&names[0]), Some(&names[1]));
        let said = |origin, parent, wanted| difference(&row(origin), parent, wanted);
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
