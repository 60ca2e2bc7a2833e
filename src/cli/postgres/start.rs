//! `cowfs start`: Postgres on a branch.

use std::path::PathBuf;
use std::time::Duration;

use super::super::mount::parse_duration;
use super::super::{failure, interrupt, output};
use super::bring_up::{BringUp, Times, Up};
use super::reach;
use crate::catalog::{BranchName, Store};
use crate::postgres::instance::Wishes;
use crate::postgres::settings::{Kept, parse_assignment};
use crate::serve::Failure;

/// How a server is started; the same for start, fork and try.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ServerArgs {
    /// Listen on this port [default: a free one, the same each time if possible]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Directory with the Postgres programs [default: found by the cluster's version]
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// Configuration file [default: the one in the data directory, or that of Debian's cluster]
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Set a server variable; may be repeated
    #[arg(short = 'c', value_name = "NAME=VALUE", value_parser = parse_assignment)]
    settings: Vec<(String, String)>,
    /// Leave what a branch is kept from as the cluster has it: listen, archive, sync-standbys,
    /// slots, subscriptions, workers, recovery, logging, or all
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    keep: Vec<String>,
    /// Keep also the original from acting outside, as a fork is
    #[arg(long)]
    harmless: bool,
    /// Database user in URLs and for the commands [default: the owner of the data directory]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Database in URLs and for the commands [default: postgres]
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// How long to wait until it answers
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// Arguments of `cowfs start`.
#[derive(Debug, clap::Args)]
#[command(after_help = "A branch that is not mounted is mounted below the runtime directory \
(COWFS_RUNTIME_DIR, /run/cowfs), and `cowfs stop` unmounts it again. The URL is the \
only thing on the standard output.

Examples:
  cowfs start experiment
  cowfs start main --port 5432 --keep listen
  psql \"$(cowfs start experiment)\"
  cowfs start experiment -c shared_buffers=1GB -c work_mem=64MB")]
pub(in crate::cli) struct StartArgs {
    /// The branch
    #[arg(add = crate::cli::complete::branches())]
    branch: BranchName,
    #[command(flatten)]
    server: ServerArgs,
    /// Write a checkpoint once it runs, so that forks of it start sooner
    #[arg(long)]
    checkpoint: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Started<'a> {
    branch: &'a BranchName,
    url: String,
    port: u16,
    pid: i32,
    already_running: bool,
    #[serde(flatten)]
    times: Times,
    notes: &'a [String],
}

impl ServerArgs {
    /// In the form that is kept for a restart.
    pub fn wishes(&self) -> Result<Wishes, Failure> {
        Kept::parse(&self.keep)
            .map_err(|error| Failure::new("usage", format!("--keep: {error}")).exit(2))?;
        let absolute = |path: &Option<PathBuf>| match path {
            Some(path) => {
                std::path::absolute(path).map(Some).map_err(|error| Failure::caused("host", &error))
            }
            None => Ok(None),
        };
        Ok(Wishes {
            port: self.port,
            pg_bin: absolute(&self.pg_bin)?,
            config_file: absolute(&self.config_file)?,
            keep: self.keep.clone(),
            harmless: self.harmless,
            settings: self.settings.clone(),
            user: self.user.clone(),
            database: self.database.clone(),
        })
    }
}

pub(in crate::cli) fn run(args: &StartArgs, store: &Store) -> Result<u8, Failure> {
    let row = reach::require(store, &args.branch)?;
    let wishes = args.server.wishes()?;
    let timeout = args.server.timeout;
    interrupt::catch();
    let interrupted = &interrupt::caught;
    let up = BringUp { store, row: &row, wishes: &wishes, timeout, interrupted }.run()?;
    if args.checkpoint {
        let asked = up.server.ask("CHECKPOINT");
        asked.map_err(|error| failure::of_postgres(args.branch.as_str(), &error))?;
    }
    report(&args.branch, &up, args.json)?;
    Ok(0)
}

/// Says how it went on the standard error, and the URL on the standard output.
pub(in crate::cli) fn report(branch: &BranchName, up: &Up, json: bool) -> Result<(), Failure> {
    let url = up.server.connection.uri();
    if json {
        return output::print_json(&Started {
            branch,
            url,
            port: up.server.connection.port,
            pid: up.server.process.pid,
            already_running: up.already,
            times: up.times,
            notes: &up.notes,
        });
    }
    for note in &up.notes {
        eprintln!("Note: {note}");
    }
    eprintln!("{}", sentence(branch, up));
    output::print(&(url + "\n"));
    Ok(())
}

fn sentence(branch: &BranchName, up: &Up) -> String {
    let (port, pid) = (up.server.connection.port, up.server.process.pid);
    if up.already {
        return format!("Postgres runs on {branch} already, on port {port} (process {pid})");
    }
    let Times { mount_us, start_us, query_us } = up.times;
    let total = milliseconds(mount_us + start_us + query_us);
    let mounted =
        if mount_us > 0 { format!("mount {}, ", milliseconds(mount_us)) } else { String::new() };
    let (start, query) = (milliseconds(start_us), milliseconds(query_us));
    format!(
        "Started {branch} on port {port} in {total} ms ({mounted}start {start}, first query {query})"
    )
}

/// Milliseconds for people: one decimal below 10.
pub(super) fn milliseconds(us: u64) -> String {
    if us < 10_000 {
        format!("{}.{}", us / 1000, us % 1000 / 100)
    } else {
        format!("{}", (us + 500) / 1000)
    }
}
