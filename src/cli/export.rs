//! `cowfs export`: a branch becomes an ordinary data directory again.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::mount::parse_duration;
use super::snapshot::PassingBranch;
use super::{interrupt, output, requester};
use crate::catalog::{BranchPoint, Store};
use crate::export::{self, Archive, Contents, Directory, ExportError, Exported, Target, Watch};
use crate::format::{InodeRecord, counted};
use crate::postgres::instance::Wishes;
use crate::postgres::postmaster::StopMode;
use crate::serve::Failure;

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
    let cancel = interrupt::catch();
    // First what may be refused.
    let to_stdout = args.tar.as_deref() == Some(Path::new("-"));
    if to_stdout && args.json {
        let text = "--json and an archive cannot both go to the standard output";
        return Err(Failure::new("usage", text).exit(2).hint("name a file for the archive"));
    }
    let mut target = begin(args)?;
    let exported = export(args, &Arc::new(store), &mut *target, &cancel);
    if exported.is_err() {
        target.give_up();
    }
    let exported = exported?;
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

fn export(
    args: &ExportArgs,
    store: &Arc<Store>,
    target: &mut dyn Target,
    cancel: &AtomicBool,
) -> Result<Exported, Failure> {
    let by = requester();
    let child = PassingBranch::of(store, &args.point, "export", &by)?;
    let exported = prepare(&child, args).and_then(|()| write_out(&child, target, cancel));
    let gone = child.delete();
    let exported = exported?;
    gone.map(|()| exported)
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
    let archive = NewArchive::begin(path).map_err(|error| of_export(&error))?;
    Ok(Box::new(archive))
}

/// An archive in a new file, which gets its name when it is whole.
struct NewArchive {
    archive: Archive<BufWriter<File>>,
    partial: PathBuf,
    path: PathBuf,
}

impl NewArchive {
    fn begin(path: &Path) -> Result<NewArchive, ExportError> {
        if path.symlink_metadata().is_ok() {
            return Err(ExportError::InTheWay { path: path.to_owned() });
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(format!(".{}.partial", std::process::id()));
        let partial = PathBuf::from(partial);
        let file = File::create(&partial);
        let file = file.map_err(|source| {
            let path = partial.clone();
            ExportError::Write { what: "creating", path, source }
        })?;
        let out = BufWriter::with_capacity(1 << 20, file);
        let archive = Archive::begin(out, &partial.display().to_string());
        Ok(NewArchive { archive, partial, path: path.to_owned() })
    }

    /// Makes the file durable under its name, in the place of nothing.
    fn publish(&mut self) -> io::Result<()> {
        let flags = RenameFlags::RENAME_NOREPLACE;
        match renameat2(AT_FDCWD, &self.partial, AT_FDCWD, &self.path, flags) {
            // Filesystems that cannot promise that.
            Err(Errno::EINVAL | Errno::ENOSYS) => std::fs::rename(&self.partial, &self.path)?,
            other => other?,
        }
        let above = self.path.parent().filter(|dir| !dir.as_os_str().is_empty());
        File::open(above.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Target for NewArchive {
    fn directory(&mut self, path: &Path, record: &InodeRecord) -> Result<(), ExportError> {
        self.archive.directory(path, record)
    }

    fn file(
        &mut self,
        path: &Path,
        record: &InodeRecord,
        contents: &Contents<'_>,
    ) -> Result<u64, ExportError> {
        self.archive.file(path, record, contents)
    }

    fn hard_link(&mut self, path: &Path, first: &Path) -> Result<(), ExportError> {
        self.archive.hard_link(path, first)
    }

    fn other(&mut self, path: &Path, record: &InodeRecord) -> Result<(), ExportError> {
        self.archive.other(path, record)
    }

    fn finish(&mut self) -> Result<(), ExportError> {
        self.archive.finish()?;
        let synced = self.archive.out().get_ref().sync_all();
        synced.and_then(|()| self.publish()).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => ExportError::InTheWay { path: self.path.clone() },
            _ => ExportError::Write { what: "writing", path: self.path.clone(), source },
        })
    }

    fn give_up(&mut self) {
        // After it was published nothing of that name is there.
        let _ = std::fs::remove_file(&self.partial);
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
        ExportError::PathTooLong { .. } => {
            Failure::caused("export", error).hint("--tar writes paths of any length")
        }
        ExportError::Write { .. } => crate::serve::failure::of_host("export", error),
        ExportError::Interrupted => Failure::caused("interrupted", error).exit(130),
    }
}

/// Has Postgres recover and shut down on it, if that was asked for.
fn prepare(child: &PassingBranch<'_>, args: &ExportArgs) -> Result<(), Failure> {
    if !args.clean {
        return Ok(());
    }
    let wishes = Wishes { pg_bin: args.pg_bin.clone(), ..Wishes::default() };
    child.start(&wishes, args.timeout)?;
    child.stop(StopMode::Fast, args.timeout)
}

fn write_out(
    child: &PassingBranch<'_>,
    target: &mut dyn Target,
    cancel: &AtomicBool,
) -> Result<Exported, Failure> {
    let opened = child.open()?;
    let bar = bar();
    let watch = Watch { cancel, advanced: &|bytes| bar.inc(bytes) };
    let exported = export::export(&opened.fs, target, &watch);
    bar.finish_and_clear();
    opened.close()?;
    exported.map_err(|error| of_export(&error))
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
