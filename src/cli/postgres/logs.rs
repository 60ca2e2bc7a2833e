//! `cowfs logs`: what the Postgres of a branch has written.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use super::super::output;
use super::reach;
use crate::catalog::{BranchName, Store};
use crate::serve::{Failure, lifecycle};

/// How often `--follow` looks again.
const POLL: Duration = Duration::from_millis(100);
/// Lines are looked for in this much of the end of the log.
const TAIL_BYTES_MAX: u64 = 4 << 20;

/// Arguments of `cowfs logs`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The log outlives the server; a new one begins when it has grown over 8 MiB. A server \
started with --keep logging logs where its configuration says. --mount shows what the \
serving process wrote: after an input/output error, which file it was.

Examples:
  cowfs logs experiment --follow
  cowfs logs experiment --mount"
)]
pub(in crate::cli) struct LogsArgs {
    /// The branch
    #[arg(add = crate::cli::complete::branches())]
    branch: BranchName,
    /// Show the last N lines
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    lines: usize,
    /// Go on with what is written from now on
    #[arg(short, long)]
    follow: bool,
    /// The log of the process that serves the mount, instead of that of Postgres
    #[arg(long)]
    mount: bool,
    /// Only say where the log is
    #[arg(long)]
    path: bool,
}

pub(in crate::cli) fn run(args: &LogsArgs, store: &Store) -> Result<u8, Failure> {
    let row = reach::require(store, &args.branch)?;
    let path = if args.mount {
        lifecycle::log_path(&store.run_dir(), row.id)
    } else {
        reach::files(store, &row).log()
    };
    if args.path {
        output::print(&format!("{}\n", path.display()));
        return Ok(0);
    }
    if !path.exists() && !args.follow {
        let name = &args.branch;
        let (whose, hint) = if args.mount {
            ("no log of a mount", "it has one once it was mounted")
        } else {
            ("no log", "it has one once it was started with `cowfs start`")
        };
        return Err(Failure::new("no_log", format!("branch {name} has {whose}")).hint(hint));
    }
    let failed = |error: std::io::Error| Failure::caused("log", &error);
    let (text, end) = tail(&path, args.lines).map_err(failed)?;
    output::print(&text);
    if args.follow { follow(&path, end).map_err(failed) } else { Ok(0) }
}

/// Opens a log for reading; does not wait for whoever writes to a FIFO in its place.
fn open(path: &Path) -> std::io::Result<File> {
    let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let named = || format!("{} is not a regular file", path.display());
    if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::Error::other(named())) }
}

/// The last lines, and where the file ended.
fn tail(path: &Path, lines: usize) -> std::io::Result<(String, u64)> {
    let mut file = match open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Default::default()),
        other => other?,
    };
    let end = file.metadata()?.len();
    file.seek(SeekFrom::Start(end.saturating_sub(TAIL_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.split_inclusive('\n').collect();
    Ok((all[all.len().saturating_sub(lines)..].concat(), end))
}

/// Until whoever reads has seen enough, or a signal ends us.
fn follow(path: &Path, mut end: u64) -> std::io::Result<u8> {
    let mut out = std::io::stdout();
    loop {
        if let Ok(mut file) = open(path) {
            let length = file.metadata()?.len();
            // A new log began.
            end = if length < end { 0 } else { end };
            file.seek(SeekFrom::Start(end))?;
            let mut bytes = Vec::new();
            file.take(length - end).read_to_end(&mut bytes)?;
            end += bytes.len() as u64;
            if out.write_all(&bytes).and_then(|()| out.flush()).is_err() {
                return Ok(0);
            }
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!(tail(&path, 5).unwrap(), (String::new(), 0));
        std::fs::write(&path, "one\ntwo\nthree").unwrap();
        assert_eq!(tail(&path, 2).unwrap(), ("two\nthree".to_owned(), 13));
        assert_eq!(tail(&path, 0).unwrap().0, "");
        assert_eq!(tail(&path, 9).unwrap().0, "one\ntwo\nthree");
    }
}
