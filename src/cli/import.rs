//! `cowfs import`: a directory tree becomes a branch.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;
use crate::catalog::{BranchName, Store};
use crate::format::counted;
use crate::import::{self, ImportError, ImportReport, ImportRequest, Observer};

/// Make a branch from an existing data directory
///
/// The server that uses PGDATA must be stopped. Tablespaces and a symlinked pg_wal are brought
/// into the branch, which is self-contained. The source is never changed.
#[derive(Debug, clap::Args)]
#[expect(clippy::doc_markdown, reason = "help texts are not Markdown")]
#[command(group = clap::ArgGroup::new("source").required(true))]
#[command(after_help = "Examples:
  cowfs import /var/lib/postgresql/15/main --as main
  cowfs import --adopt /backup/main --as main
  cowfs import --from-server postgresql://replicator@db.example/ --as main
  cowfs import --from-server postgresql://replicator@db.example/ --standby --as main")]
pub struct ImportArgs {
    /// Data directory to copy
    #[arg(value_name = "PGDATA", group = "source")]
    pub pgdata: Option<PathBuf>,
    /// Name of the new branch
    #[arg(long = "as", value_name = "BRANCH")]
    pub branch: BranchName,
    /// Make DIR itself the base, without a copy; nobody may change it any more
    #[arg(long, value_name = "DIR", group = "source")]
    pub adopt: Option<PathBuf>,
    /// Take a base backup of this running server (a URL or connection string)
    #[arg(long, value_name = "URL", group = "source",
          conflicts_with_all = ["allow_crashed", "any", "jobs"])]
    pub from_server: Option<String>,
    /// Have the branch follow that server by streaming replication; its forks are promoted
    #[arg(long, requires = "from_server")]
    pub standby: bool,
    /// Directory with pg_basebackup [default: the newest found]
    #[arg(long, value_name = "DIR", requires = "from_server")]
    pub pg_bin: Option<PathBuf>,
    /// Take a cluster that was not shut down cleanly; it recovers at its first start
    #[arg(long)]
    pub allow_crashed: bool,
    /// Take any directory tree, not only a Postgres data directory
    #[arg(long)]
    pub any: bool,
    /// Files to copy at the same time [default: number of CPUs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Imports, says what was done on stdout, and shows progress on stderr if that is a terminal.
pub fn run(store: &Store, args: &ImportArgs, command: String) -> Result<(), ImportError> {
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // Without the handler the signal ends the process, and gc cleans up: as good, only later.
        let _ = signal_hook::flag::register(signal, cancel.clone());
    }
    let jobs = args.jobs.map_or_else(default_jobs, usize::from);
    let request = ImportRequest {
        source: args.adopt.clone().or_else(|| args.pgdata.clone()).unwrap_or_default(),
        name: args.branch.clone(),
        adopt: args.adopt.is_some(),
        allow_crashed: args.allow_crashed,
        any: args.any,
        jobs,
        uid: nix::unistd::getuid().as_raw(),
        command,
        cancel,
    };
    let progress = Progress::new();
    let report = import::import(store, &request, &progress);
    progress.bar.finish_and_clear();
    let report = report?;
    if args.json {
        // Numbers and strings (paths are written as text): this cannot fail.
        let text = serde_json::to_string_pretty(&report).expect("a report is plain data");
        output::print(&(text + "\n"));
    } else {
        output::print(&describe(&report));
    }
    Ok(())
}

fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The report for people.
fn describe(report: &ImportReport) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for note in &report.notes {
        let prefix = if note.is_warning() { "warning: " } else { "" };
        let _ = writeln!(text, "{prefix}{note}");
    }
    let counts = &report.counts;
    let verb = if report.adopted { "Adopted" } else { "Imported" };
    let _ = writeln!(
        text,
        "{verb} {} as branch {}: {}, {}, {}{}",
        report.source.display(),
        report.branch.name,
        counted(counts.files, "file"),
        counted(counts.directories, "directory"),
        output::bytes(counts.bytes),
        postgres(report),
    );
    if report.copied.shared_files > 0 {
        let (files, share) = match report.copied.shared_files {
            1 => ("1 file".to_owned(), "shares its"),
            many => (counted(many, "file"), "share their"),
        };
        let _ = writeln!(text, "{files} {share} blocks with the source (reflink)");
    }
    if report.adopted {
        let _ = writeln!(
            text,
            "The branch reads from {}: nobody may change it from now on",
            report.source.display()
        );
    }
    text
}

fn postgres(report: &ImportReport) -> String {
    match (report.postgres_major, report.system_identifier) {
        (Some(major), Some(id)) => format!(", Postgres {major}, system {id}"),
        (Some(major), None) => format!(", Postgres {major}"),
        _ => String::new(),
    }
}

/// A bar on stderr, if that is a terminal.
struct Progress {
    bar: ProgressBar,
}

impl Progress {
    fn new() -> Progress {
        let bar = ProgressBar::hidden();
        let style =
            "{msg} {bar:40} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Progress { bar }
    }
}

impl Observer for Progress {
    fn planned(&self, files: u64, bytes: u64) {
        self.bar.set_length(bytes);
        self.bar.set_message(counted(files, "file"));
        if std::io::stderr().is_terminal() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }

    fn advanced(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn syncing(&self) {
        self.bar.set_message("waiting for the disk");
        self.bar.tick();
    }
}
