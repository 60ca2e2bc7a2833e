//! `cowfs compaction`: pausing what the process that serves a branch does in the background.

use std::time::Duration;

use super::branch::here_or_there::require;
use super::output;
use super::status::compaction::Compaction;
use crate::branch::compaction::CompactionStats;
use crate::catalog::{BranchName, Store};
use crate::serve::{ControlError, Failure, Request, Response, control};

/// Time for the serving process to answer; it waits up to 20 s for what is at work.
const PATIENCE: Duration = Duration::from_secs(40);

/// What is paused, and what is not.
const WHAT: &str = "Paused are: turning sealed layers into indexes, merging indexes, making \
checksums, and packing scattered pages of several layers together. All of it only keeps lookups, mounts and scans short \
and reads verified. Never paused is what durability rests \
on: fsync, the sync of names every five seconds, the end of a mount. An fsync that has to sync a sealed layer of \
another process still makes its index. While it is paused, each fork leaves one more layer with its logs, in memory \
and to be replayed by whoever mounts a child.

The pause is one of the serving process, not of the branch: it ends with resume, unmount, or the process (a kill loses \
nothing), and other branches go on. A branch that is not mounted, or is mounted read-only, has nothing to pause \
(exit code 1). `cowfs status BRANCH` shows what is waiting.";

#[derive(Debug, clap::Subcommand)]
pub(super) enum CompactionCommand {
    /// Pause it; returns when what was at work has ended
    #[command(after_help = PAUSE_HELP.as_str())]
    Pause(CompactionArgs),
    /// Have it go on
    #[command(after_help = RESUME_HELP.as_str())]
    Resume(CompactionArgs),
}

static PAUSE_HELP: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
    format!(
        "{WHAT}\n\nExamples:\n  cowfs compaction pause main\n  cowfs compaction pause main --json\n  \
         cowfs status main --watch"
    )
});

static RESUME_HELP: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
    "What waited is done in the background, at once. Exit code 1 if the branch is not mounted, or is \
     mounted read-only.\n\nExamples:\n  cowfs compaction resume main"
        .to_owned()
});

/// Arguments of both.
#[derive(Debug, clap::Args)]
pub(super) struct CompactionArgs {
    /// The branch
    #[arg(add = crate::cli::complete::branches())]
    branch: BranchName,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Outcome<'a> {
    branch: &'a BranchName,
    /// False if it was so already.
    changed: bool,
    /// Of a pause: false if something is still being finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    still: Option<bool>,
    compaction: Compaction<'a>,
}

impl CompactionCommand {
    pub(super) fn run(&self, store: &Store) -> Result<u8, Failure> {
        let (args, pause) = match self {
            CompactionCommand::Pause(args) => (args, true),
            CompactionCommand::Resume(args) => (args, false),
        };
        let row = require(store, &args.branch)?;
        let answer = control::request(store, row.id, &Request::Compaction { pause }, PATIENCE);
        let (changed, still, stats) = match answer {
            Ok(Response::Compaction { changed, still, stats }) => (changed, still, stats),
            Ok(_) => {
                return Err(Failure::new("control", "the serving process gave a wrong answer"));
            }
            Err(error) => return Err(refused(&args.branch, error)),
        };
        if args.json {
            let compaction = Compaction::of(&stats);
            let still = pause.then_some(still);
            output::print_json(&Outcome { branch: &args.branch, changed, still, compaction })?;
        } else {
            output::print(&sentence(&args.branch, pause, changed, still, &stats));
        }
        Ok(0)
    }
}

fn refused(name: &BranchName, error: ControlError) -> Failure {
    match error {
        ControlError::NotServed => {
            let message = format!("branch {name} is not mounted: nothing works in its background");
            Failure::new("not_mounted", message).hint("`cowfs status` shows what is mounted")
        }
        ControlError::Failed(failure) => failure,
        error @ ControlError::TimedOut { .. } => Failure::caused("timeout", &error).exit(4),
        error => Failure::caused("control", &error),
    }
}

fn sentence(
    name: &BranchName,
    pause: bool,
    changed: bool,
    still: bool,
    stats: &CompactionStats,
) -> String {
    let state = match (pause, changed) {
        (true, true) => "is paused",
        (true, false) => "was paused already",
        (false, true) => "goes on",
        (false, false) => "was not paused",
    };
    let rest = if still { "" } else { "; what was at work is still being finished" };
    let waiting = stats.waiting_layers + stats.waiting_merges + stats.waiting_packs;
    let waiting = if waiting == 0 { String::new() } else { format!(", {waiting} waiting") };
    format!("The compaction of {name} {state}{waiting}{rest}\n")
}
