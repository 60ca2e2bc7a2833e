//! The command line: one file per command.
//!
//! Data goes to stdout, everything else to stderr. Exit codes: 0 ok, 1 refused or failed, 2 usage,
//! 3 damage found, 4 timed out, 255 internal.

mod branch;
mod check;
mod compaction;
mod complete;
mod completions;
mod daemon;
mod diff;
mod doctor;
mod du;
mod dump;
mod export;
mod failure;
mod gc;
mod host_fs;
mod import;
mod import_server;
mod init;
mod interrupt;
mod log;
mod metrics;
mod mount;
mod mount_helper;
mod output;
mod postgres;
mod prune;
mod sizes;
mod snapshot;
mod span;
mod status;
mod unmount;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::branch::fork::Requester;
use crate::catalog::{Store, default_store_dir, reserve};
use crate::serve::Failure;

/// Names the store; counts as unset when it is empty.
const STORE_VARIABLE: &str = "COWFS_STORE";

/// Fork a running Postgres data directory in constant time.
///
/// A branch mounts as an ordinary directory; a fork of it shares every page until one of the two
/// changes it.
#[derive(Debug, Parser)]
#[command(name = "cowfs", version, max_term_width = 100, propagate_version = true)]
#[command(after_help = "Examples:
  cowfs init
  cowfs import /var/lib/postgresql/15/main --as main
  cowfs start main
  cowfs fork main experiment
  cowfs psql experiment
  cowfs try main -- ./migrate up")]
pub struct Cli {
    /// Directory of the store [default: COWFS_STORE, else /var/lib/cowfs for root, else below the
    /// user's data directory]
    // Not with clap's `env`: usage lines would show the option as if it were required.
    #[arg(long, global = true, value_name = "DIR", display_order = 900)]
    store: Option<PathBuf>,
    /// Log more (-v: information, -vv: debugging)
    #[arg(short, long, global = true, action = clap::ArgAction::Count, display_order = 901)]
    verbose: u8,
    /// Log errors only
    #[arg(short, long, global = true, conflicts_with = "verbose", display_order = 902)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new store
    Init(init::InitArgs),
    Import(import::ImportArgs),
    /// Write a branch out as an ordinary data directory, or as a tar archive
    Export(export::ExportArgs),
    /// Create, list, show, reset and delete branches
    #[command(subcommand)]
    Branch(branch::BranchCommand),
    /// Keep states of a branch under names
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Take scheduled snapshots, and let go of what has expired
    Daemon(daemon::DaemonArgs),
    /// Show what differs between two states: files, pages, tables or the schema
    Diff(diff::DiffArgs),
    /// Say what this machine lacks, and how to mend it
    Doctor(doctor::DoctorArgs),
    /// Show which branch takes how much, and what deleting it frees
    Du(du::DuArgs),
    /// Show who did what, and when
    Log(log::LogArgs),
    /// Take back a delete, rename, reset or restore
    Undo(log::UndoArgs),
    /// Serve a branch at a directory
    Mount(mount::MountArgs),
    /// Stop serving a branch
    Unmount(unmount::UnmountArgs),
    /// Show what is mounted where, and how it is doing
    Status(status::StatusArgs),
    /// Print what the serving processes count, for Prometheus
    Metrics(metrics::MetricsArgs),
    /// Pause what a mounted branch does in the background, and resume it
    #[command(subcommand)]
    Compaction(compaction::CompactionCommand),
    /// Start Postgres on a branch; mounts it if need be
    Start(postgres::start::StartArgs),
    /// Stop the Postgres of a branch
    Stop(postgres::stop::StopArgs),
    /// Stop and start again in the same way
    Restart(postgres::restart::RestartArgs),
    /// Fork a branch and start Postgres on the child
    Fork(postgres::fork::ForkArgs),
    /// Run a command on a child that is thrown away
    Try(postgres::throwaway::TryArgs),
    /// Run a command with the variables of a branch
    Run(postgres::run::RunArgs),
    /// Open psql on a branch
    Psql(postgres::psql::PsqlArgs),
    /// Print how to reach the Postgres of a branch
    Url(postgres::url::UrlArgs),
    /// Print the variables of a branch for a shell
    Env(postgres::env::EnvArgs),
    /// Show the log of the Postgres of a branch
    Logs(postgres::logs::LogsArgs),
    /// Free what no branch reaches any more
    Gc(gc::GcArgs),
    Check(check::CheckArgs),
    Dump(dump::DumpArgs),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
    /// Print the manual pages, or write them to a directory
    Man(completions::ManArgs),
}

/// Runs the command line; the exit code tells how it went.
pub fn main() -> ExitCode {
    if let Some(code) = crate::io::crash::prepare() {
        return ExitCode::from(code);
    }
    complete::answer();
    let cli = Cli::parse_from(mount_helper::translated(std::env::args_os().collect()));
    start_tracing(cli.verbose, cli.quiet);
    match cli.run() {
        Ok(0) if output::lost() => ExitCode::from(1),
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("Error: {}", output::message(&failure.message));
            if let Some(hint) = &failure.hint {
                eprintln!("Hint: {}", output::message(hint));
            }
            ExitCode::from(failure.exit_code)
        }
    }
}

fn start_tracing(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    // The FUSE library warns about every request that we leave to the kernel on purpose.
    let default = format!("{level},fuser=error");
    let filter = tracing_subscriber::EnvFilter::try_from_env("COWFS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    // A serving process logs to a file of the store: on a full disk a line that cannot be written
    // must not end it.
    tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_ansi(std::env::var_os("NO_COLOR").is_none() && std::io::stderr().is_terminal())
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}

/// The command as typed, for the operation log.
fn command_line() -> String {
    let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    without_secrets(words)
}

/// The words of a command as the log may keep them: it is read by more people than a password is for.
fn without_secrets(words: impl Iterator<Item = String>) -> String {
    const URL: &str = "--from-server";
    let mut line = "cowfs".to_owned();
    let mut is_url = false;
    for word in words {
        let word = match word.strip_prefix(URL).and_then(|rest| rest.strip_prefix('=')) {
            _ if is_url => import_server::without_password(&word),
            Some(url) => format!("{URL}={}", import_server::without_password(url)),
            None => word,
        };
        is_url = word == URL;
        line = format!("{line} {word}");
    }
    line
}

/// Who runs this command, for the operation log.
fn requester() -> Requester {
    Requester { uid: nix::unistd::getuid().as_raw(), command: command_line() }
}

impl Cli {
    fn store_dir(&self) -> PathBuf {
        let named = || std::env::var_os(STORE_VARIABLE).filter(|dir| !dir.is_empty());
        self.store.clone().or_else(|| named().map(PathBuf::from)).unwrap_or_else(default_store_dir)
    }

    fn open_store(&self) -> Result<Store, Failure> {
        Store::open(&self.store_dir()).map_err(|error| failure::of_store(&error))
    }

    /// Runs what makes room in a store, once more with the store's reserve if it is full.
    fn with_room(&self, work: impl Fn() -> Result<u8, Failure>) -> Result<u8, Failure> {
        work().or_else(
            |failure| {
                if reserve::give_up(&self.store_dir()) { work() } else { Err(failure) }
            },
        )
    }

    fn import(&self, args: &import::ImportArgs) -> Result<(), Failure> {
        let store = self.open_store()?;
        let Some(url) = &args.from_server else {
            let done = import::run(&store, args, command_line());
            return done.map_err(|error| failure::of_import(&error));
        };
        let import = import_server::ServerImport {
            url,
            name: &args.branch,
            standby: args.standby,
            pg_bin: args.pg_bin.as_deref(),
            json: args.json,
        };
        import_server::run(&std::sync::Arc::new(store), &import)
    }

    fn run(&self) -> Result<u8, Failure> {
        match &self.command {
            Command::Init(args) => init::run(args, &self.store_dir()),
            Command::Import(args) => self.import(args).map(|()| 0),
            Command::Branch(command) if command.makes_room() => {
                self.with_room(|| command.run(self.open_store()?))
            }
            Command::Branch(command) => command.run(self.open_store()?),
            Command::Snapshot(command) if command.makes_room() => {
                self.with_room(|| command.run(self.open_store()?))
            }
            Command::Snapshot(command) => command.run(self.open_store()?),
            Command::Daemon(args) => daemon::run(args, self.open_store()?),
            Command::Diff(args) => diff::run(args, self.open_store()?),
            Command::Doctor(args) => doctor::run(args, &self.store_dir()),
            Command::Du(args) => du::run(args, &self.open_store()?),
            Command::Export(args) => export::run(args, self.open_store()?),
            Command::Log(args) => log::run(args, &self.open_store()?),
            Command::Undo(args) => log::undo(args, &self.open_store()?),
            Command::Mount(args) => mount::run(args, || self.open_store()),
            Command::Unmount(args) => unmount::run(args, &self.open_store()?),
            Command::Status(args) => status::run(args, &self.open_store()?),
            Command::Metrics(args) => metrics::run(args, &self.open_store()?),
            Command::Compaction(command) => command.run(&self.open_store()?),
            Command::Gc(args) => self.with_room(|| gc::run(args, &self.open_store()?, self.quiet)),
            Command::Start(args) => postgres::start::run(args, &self.open_store()?),
            Command::Stop(args) => postgres::stop::run(args, &self.open_store()?),
            Command::Restart(args) => postgres::restart::run(args, &self.open_store()?),
            Command::Fork(args) => postgres::fork::run(args, self.open_store()?),
            Command::Try(args) => postgres::throwaway::run(args, self.open_store()?),
            Command::Run(args) => postgres::run::run(args, &self.open_store()?),
            Command::Psql(args) => postgres::psql::run(args, &self.open_store()?),
            Command::Url(args) => postgres::url::run(args, &self.open_store()?),
            Command::Env(args) => postgres::env::run(args, &self.open_store()?),
            Command::Logs(args) => postgres::logs::run(args, &self.open_store()?),
            Command::Check(args) => check::run(args, self.open_store()?),
            Command::Dump(args) => dump::run(args, || self.open_store()),
            Command::Completions(args) => completions::run(args),
            Command::Man(args) => completions::run_man(args),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
