//! `cowfs fork`: a branch and a server on it, in one go.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::super::branch::create;
use super::super::{interrupt, output, requester};
use super::bring_up::{BringUp, Times, Up};
use super::checkpoint::{self, Checkpoint, CheckpointArgs};
use super::reach;
use super::start::{ServerArgs, milliseconds};
use crate::catalog::{BranchName, BranchPoint, BranchRow, Store};
use crate::postgres::instance::Wishes;
use crate::serve::Failure;

/// A start that took longer has replayed a lot of WAL.
const LONG_START_US: u64 = 2_000_000;

/// Arguments of `cowfs fork`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The same as `cowfs branch create NAME --from PARENT` and `cowfs start NAME`. The \
parent may be mounted or not, and its Postgres may be busy. The child replays the WAL \
that the parent has written since its last checkpoint. If that is 32 MiB or more, the \
parent's Postgres is asked for a checkpoint first, which is waited for at most 10 \
seconds; --checkpoint always asks and waits, --no-checkpoint never asks.

Examples:
  cowfs fork main experiment
  psql \"$(cowfs fork main experiment --checkpoint)\""
)]
pub(in crate::cli) struct ForkArgs {
    /// The branch to fork, or one of its snapshots
    #[arg(value_name = "PARENT[@SNAPSHOT]")]
    #[arg(add = crate::cli::complete::points())]
    parent: BranchPoint,
    /// Name of the new branch
    name: BranchName,
    #[command(flatten)]
    checkpoint: CheckpointArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// How long each step of a fork took.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(super) struct Steps {
    /// The parent's checkpoint; 0 if none was written.
    checkpoint_us: u64,
    /// The fork, and finding the parent.
    branch_us: u64,
    #[serde(flatten)]
    server: Times,
    /// From the beginning to the answer of the first query.
    total_us: u64,
}

#[derive(serde::Serialize)]
struct Forked<'a> {
    branch: &'a BranchName,
    parent: &'a BranchPoint,
    url: String,
    port: u16,
    pid: i32,
    #[serde(flatten)]
    steps: Steps,
    notes: &'a [String],
}

/// What a fork with a server is made of.
pub(super) struct ForkRequest<'a> {
    pub parent: &'a BranchPoint,
    pub name: &'a BranchName,
    pub checkpoint: Checkpoint,
    pub server: &'a ServerArgs,
    pub interrupted: &'a dyn Fn() -> bool,
}

/// What came of it: the new branch in any case, and a server or why there is none.
pub(super) struct ForkOutcome {
    pub row: BranchRow,
    pub up: Result<(Up, Steps), Failure>,
}

fn us(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Forks and starts. An error means that there is no new branch.
pub(super) fn fork(store: &Arc<Store>, request: &ForkRequest<'_>) -> Result<ForkOutcome, Failure> {
    let begin = Instant::now();
    let mut steps = Steps::default();
    let wishes = wishes(store, request)?;
    steps.checkpoint_us = checkpoint::before_fork(store, request.parent, request.checkpoint)?;
    // Once there is a branch, whoever interrupts is told so.
    interrupt::catch();
    let by = requester();
    let branching = Instant::now();
    create::fork(store, request.parent, request.name, &by)?;
    let row = reach::require(store, request.name)?;
    steps.branch_us = us(branching);
    let timeout = request.server.timeout;
    let interrupted = request.interrupted;
    let up = BringUp { store, row: &row, wishes: &wishes, timeout, interrupted }.run();
    let up = up.map(|up| {
        steps.server = up.times;
        steps.total_us = us(begin);
        (up, steps)
    });
    Ok(ForkOutcome { row, up })
}

/// What was asked for; where the programs are and whom to connect as, like the parent's server
/// unless it was said.
fn wishes(store: &Store, request: &ForkRequest<'_>) -> Result<Wishes, Failure> {
    let parent = reach::require(store, &request.parent.branch)?;
    Ok(like_the_parent(store, &parent, request.server.wishes()?))
}

/// The same for a server on any child of `parent`.
pub(in crate::cli) fn like_the_parent(
    store: &Store,
    parent: &BranchRow,
    mut wishes: Wishes,
) -> Wishes {
    if let Some(like) = reach::files(store, parent).read() {
        // A file in the parent's data directory is one of the parent's.
        let elsewhere = |path: &PathBuf| !path.starts_with(&like.data_dir);
        wishes.pg_bin = wishes.pg_bin.or(like.wishes.pg_bin);
        wishes.config_file = wishes.config_file.or(like.wishes.config_file.filter(elsewhere));
        wishes.user = wishes.user.or(like.wishes.user);
        wishes.database = wishes.database.or(like.wishes.database);
    }
    wishes
}

pub(in crate::cli) fn run(args: &ForkArgs, store: Store) -> Result<u8, Failure> {
    let store = Arc::new(store);
    let request = ForkRequest {
        parent: &args.parent,
        name: &args.name,
        checkpoint: args.checkpoint.wanted(),
        server: &args.server,
        interrupted: &interrupt::caught,
    };
    let (up, steps) = fork(&store, &request)?.up.map_err(|failure| {
        let name = &args.name;
        let then = format!(
            "the branch {name} is there: `cowfs start {name}` tries again, `cowfs branch delete \
             {name}` removes it"
        );
        let hint = failure.hint.clone().map_or(then.clone(), |hint| format!("{hint}; {then}"));
        failure.hint(hint)
    })?;
    let url = up.server.connection.uri();
    if args.json {
        output::print_json(&Forked {
            branch: &args.name,
            parent: &args.parent,
            url,
            port: up.server.connection.port,
            pid: up.server.process.pid,
            steps,
            notes: &up.notes,
        })?;
        return Ok(0);
    }
    for note in &up.notes {
        eprintln!("Note: {note}");
    }
    if steps.checkpoint_us == 0 && steps.server.start_us > LONG_START_US {
        eprintln!(
            "Note: the child replayed what {} has written since its last checkpoint; --checkpoint \
             shortens that",
            args.parent
        );
    }
    eprintln!("{}", sentence(&args.parent.to_string(), args.name.as_str(), steps));
    output::print(&(url + "\n"));
    Ok(0)
}

/// `Forked main as x in 312 ms: branch 7.1, mount 28, start 240, first query 35`.
pub(super) fn sentence(parent: &str, name: &str, steps: Steps) -> String {
    let checkpoint = match steps.checkpoint_us {
        0 => String::new(),
        us => format!("checkpoint {}, ", milliseconds(us)),
    };
    let Times { mount_us, start_us, query_us } = steps.server;
    format!(
        "Forked {parent} as {name} in {} ms: {checkpoint}branch {}, mount {}, start {}, first query {}",
        milliseconds(steps.total_us),
        milliseconds(steps.branch_us),
        milliseconds(mount_us),
        milliseconds(start_us),
        milliseconds(query_us)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said() {
        let mut steps = Steps {
            checkpoint_us: 0,
            branch_us: 7_140,
            server: Times { mount_us: 28_600, start_us: 240_000, query_us: 35_000 },
            total_us: 312_499,
        };
        assert_eq!(
            sentence("main", "x", steps),
            "Forked main as x in 312 ms: branch 7.1, mount 29, start 240, first query 35"
        );
        steps.checkpoint_us = 9_999;
        assert!(sentence("main", "x", steps).contains("ms: checkpoint 9.9, branch 7.1"));
    }
}
