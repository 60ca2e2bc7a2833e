//! `cowfs export`: a branch becomes an ordinary data directory again.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::branch::delete::{self, After};
use super::branch::here_or_there::require;
use super::mount::parse_duration;
use super::postgres::{bring_up, stop};
use super::snapshot::PassingState;
use super::{failure, output, requester};
use crate::branch::fork::Requester;
use crate::branch::snapshot::branch_from_snapshot;
use crate::branch::{Branch, BranchError, OpenMode};
use crate::catalog::{Actor, BranchName, BranchPoint, BranchRow, Store, now_ms};
use crate::export::{self, Archive, Directory, ExportError, Exported, Target, Watch};
use crate::format::counted;
use crate::fs::{Fs, FsOptions};
use crate::postgres::instance::Wishes;
use crate::postgres::postmaster::StopMode;
use crate::serve::Failure;

/// What only serves an export goes after that time, should the export die.
const PASSING_MS: i64 = 86_400_000;

/// Arguments of `cowfs export`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The copy is of one moment, also of a branch on which Postgres runs; the server \
recovers at its first start from it, as after a crash. With --clean it was started \
and shut down once before, and does not. Blocks are shared with the store where the \
host filesystem can (reflink); what is copied is verified against the checksums on \
the way.

Examples:
  cowfs export main /srv/copy
  cowfs export main@nightly /srv/copy --clean
  cowfs export main --tar main.tar
  cowfs export main --tar - | zstd > main.tar.zst"
)]
pub(super) struct ExportArgs {
    /// The branch, or one of its snapshots
    #[arg(value_name = "BRANCH[@SNAPSHOT]")]
    #[arg(add = crate::cli::complete::points())]
    point: BranchPoint,
    /// Directory to fill; missing or empty
    #[arg(required_unless_present = "tar")]
    dir: Option<PathBuf>,
    /// Write a tar archive to this new file instead, or to the standard output for -
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    tar: Option<PathBuf>,
    /// Have its Postgres recover and shut down first
    #[arg(long)]
    clean: bool,
    /// Directory with the Postgres programs, for --clean [default: found by the cluster's version]
    #[arg(long, value_name = "DIR", requires = "clean")]
    pg_bin: Option<PathBuf>,
    /// How long each step of --clean may take
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    timeout: Duration,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Report<'a> {
    from: &'a BranchPoint,
    to: String,
    clean: bool,
    #[serde(flatten)]
    exported: Exported,
}

pub(super) fn run(args: &ExportArgs, store: Store) -> Result<u8, Failure> {
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // Without the handler the signal ends the process, and gc cleans up: as good, only later.
        let _ = signal_hook::flag::register(signal, cancel.clone());
    }
    // First what may be refused.
    let to_stdout = args.tar.as_deref() == Some(Path::new("-"));
    if to_stdout && args.json {
        let text = "--json and an archive cannot both go to the standard output";
        return Err(Failure::new("usage", text).exit(2).hint("name a file for the archive"));
    }
    let mut target = begin(args)?;
    let store = Arc::new(store);
    let by = requester();
    let child = Child::make(&store, &args.point, &by)?;
    let exported = child.prepare(args).and_then(|()| child.export(&mut *target, &cancel));
    let gone = delete::delete(&store, &child.row, true, After::Purge);
    let exported = exported?;
    gone?;
    let to = args.tar.as_ref().or(args.dir.as_ref());
    let to = to.map_or_else(String::new, |path| path.display().to_string());
    if args.json {
        output::print_json(&Report { from: &args.point, to, clean: args.clean, exported })?;
    } else {
        let text = sentence(&args.point, &to, exported);
        if to_stdout { eprint!("{text}") } else { output::print(&text) }
    }
    Ok(0)
}

fn sentence(from: &BranchPoint, to: &str, done: Exported) -> String {
    let to = if to == "-" { "the standard output" } else { to };
    let shared = match done.shared_bytes {
        0 => String::new(),
        bytes => format!(", {} of it shared with the store (reflink)", output::bytes(bytes)),
    };
    let (files, directories) =
        (counted(done.files, "file"), counted(done.directories, "directory"));
    format!(
        "Exported {from} to {to}: {files}, {directories}, {}{shared}\n",
        output::bytes(done.bytes)
    )
}

fn begin(args: &ExportArgs) -> Result<Box<dyn Target>, Failure> {
    let Some(path) = &args.tar else {
        let dir = args.dir.as_deref().unwrap_or(Path::new(""));
        return Ok(Box::new(Directory::begin(dir).map_err(|error| of_export(&error))?));
    };
    if path == Path::new("-") {
        let out: Box<dyn Write> = Box::new(BufWriter::with_capacity(1 << 20, io::stdout()));
        return Ok(Box::new(Archive::begin(out, "the standard output")));
    }
    let file = File::options().write(true).create_new(true).open(path);
    let file = file.map_err(|source| {
        let path = path.clone();
        of_export(&match source.kind() {
            io::ErrorKind::AlreadyExists => ExportError::InTheWay { path },
            _ => ExportError::Write { what: "creating", path, source },
        })
    })?;
    let out: Box<dyn Write> = Box::new(Synced(BufWriter::with_capacity(1 << 20, file)));
    Ok(Box::new(Archive::begin(out, &path.display().to_string())))
}

/// A file whose flush reaches the disk.
struct Synced(BufWriter<File>);

impl Write for Synced {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()?;
        self.0.get_ref().sync_all()
    }
}

fn of_export(error: &ExportError) -> Failure {
    match error {
        ExportError::InTheWay { .. } => {
            Failure::caused("export", error).hint("name one that is missing or empty")
        }
        ExportError::Read { source, .. } => {
            // What it is called is as good to know as what became of it.
            let of_source = crate::serve::failure::of_fs(source);
            Failure { message: Failure::caused("", error).message, ..of_source }
        }
        ExportError::Write { .. } => crate::serve::failure::of_host("export", error),
        ExportError::Interrupted => Failure::caused("interrupted", error).exit(130),
    }
}

/// A branch for this export alone: nobody else changes it.
struct Child<'a> {
    store: &'a Arc<Store>,
    row: BranchRow,
}

impl<'a> Child<'a> {
    fn make(
        store: &'a Arc<Store>,
        point: &BranchPoint,
        by: &Requester,
    ) -> Result<Child<'a>, Failure> {
        let state = PassingState::of(store, point, "export", by)?;
        let seed = format!("{point} {} {}", state.snapshot.id, std::process::id());
        let hash = xxhash_rust::xxh3::xxh3_64(seed.as_bytes()) as u32;
        let child: BranchName = format!("export-{hash:08x}")
            .parse()
            .map_err(|error| Failure::caused("name", &error).exit(255))?;
        let made = branch_from_snapshot(store, &state.branch, &state.snapshot, child, by);
        state.forget(store, by);
        let row = made.map_err(|error| failure::of_branch(&error))?;
        let actor = Actor { uid: by.uid, command: &by.command };
        let expiring = store.catalog.set_expiry(row.id, Some(now_ms() + PASSING_MS), actor);
        let row = expiring.map_err(|error| failure::of_catalog(&error))?;
        Ok(Child { store, row })
    }

    /// Has Postgres recover and shut down on it, if that was asked for.
    fn prepare(&self, args: &ExportArgs) -> Result<(), Failure> {
        if !args.clean {
            return Ok(());
        }
        let wishes = Wishes { pg_bin: args.pg_bin.clone(), ..Wishes::default() };
        let (store, row, timeout) = (&**self.store, &self.row, args.timeout);
        let interrupted = || false;
        bring_up::BringUp { store, row, wishes: &wishes, timeout, interrupted: &interrupted }
            .run()?;
        let how = stop::How { mode: StopMode::Fast, timeout, unmount: true };
        stop::stop(store, row, how)?;
        Ok(())
    }

    fn export(&self, target: &mut dyn Target, cancel: &AtomicBool) -> Result<Exported, Failure> {
        let lock = self.store.lock_branch(self.row.id);
        let lock = lock.map_err(|error| failure::of_lock(self.row.name.as_str(), &error))?;
        let row = require(self.store, &self.row.name)?;
        let of_branch = |error: BranchError| failure::of_branch(&error);
        let branch = Branch::open(self.store.clone(), row, lock, OpenMode::ReadWrite);
        let branch = branch.map_err(of_branch)?;
        let fs = Fs::new(branch.clone(), FsOptions::default());
        let of_fs = |error| crate::serve::failure::of_fs(&error);
        fs.prepare().map_err(of_fs)?;
        let bar = bar();
        let watch = Watch { cancel, advanced: &|bytes| bar.inc(bytes) };
        let exported = export::export(&fs, target, &watch);
        bar.finish_and_clear();
        fs.finish().map_err(of_fs)?;
        branch.close().map_err(of_branch)?;
        exported.map_err(|error| of_export(&error))
    }
}

/// A spinner on stderr, if that is a terminal: how much it will be is known only at the end.
fn bar() -> ProgressBar {
    let bar = ProgressBar::no_length();
    let terminal = std::io::stderr().is_terminal();
    bar.set_draw_target(if terminal {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    });
    if let Ok(style) =
        ProgressStyle::with_template("{spinner} {binary_bytes} {binary_bytes_per_sec}")
    {
        bar.set_style(style);
    }
    bar
}
