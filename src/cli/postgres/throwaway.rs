//! `cowfs try`: one command on a child that is thrown away.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::super::branch::delete;
use super::checkpoint::CheckpointArgs;
use super::fork::{self, ForkRequest};
use super::reach::Server;
use super::run;
use super::start::{ServerArgs, milliseconds};
use crate::catalog::{BranchName, BranchPoint, Store};
use crate::serve::Failure;

/// How often the command and the signals are looked at.
const POLL: Duration = Duration::from_millis(5);
/// How long the command has to end after a signal.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `cowfs try`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The command gets DATABASE_URL, PGHOST, PGPORT, PGUSER, PGDATABASE and COWFS_BRANCH; \
the exit code is its own. The child is deleted afterwards, also on SIGINT, SIGTERM \
and SIGHUP, and nothing of it reaches the parent.

Examples:
  cowfs try main -- ./migrate up
  cowfs try main --keep-on-failure -- npm test"
)]
pub(in crate::cli) struct TryArgs {
    /// The branch to fork, or one of its snapshots
    #[arg(value_name = "PARENT[@SNAPSHOT]")]
    #[arg(add = crate::cli::complete::points())]
    parent: BranchPoint,
    /// Leave the child running if the command fails
    #[arg(long)]
    keep_on_failure: bool,
    #[command(flatten)]
    checkpoint: CheckpointArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// The signal that ends it all; 0 as long as there is none.
static CAUGHT: AtomicI32 = AtomicI32::new(0);

pub(in crate::cli) fn run(args: &TryArgs, store: Store) -> Result<u8, Failure> {
    catch_signals()?;
    let store = Arc::new(store);
    let name = child_name()?;
    let request = ForkRequest {
        parent: &args.parent,
        name: &name,
        checkpoint: args.checkpoint.wanted(),
        server: &args.server,
        interrupted: &|| caught().is_some(),
    };
    let outcome = fork::fork(&store, &request)?;
    let started = outcome.up.is_ok();
    let tried = outcome.up.and_then(|(up, steps)| {
        for note in &up.notes {
            eprintln!("Note: {note}");
        }
        eprintln!("{}", fork::sentence(&args.parent.to_string(), name.as_str(), steps));
        command(args, &up.server)
    });
    let failed = !matches!(tried, Ok(0));
    if failed && args.keep_on_failure && caught().is_none() {
        let look = if started { "psql" } else { "logs" };
        eprintln!(
            "Kept {name}: `cowfs {look} {name}` looks at it, `cowfs branch delete --force {name}` \
             removes it"
        );
    } else {
        let deleted = delete::delete(&store, &outcome.row, true, delete::After::Purge);
        match (&tried, deleted) {
            (Ok(_), Ok(())) => eprintln!("Deleted {name}"),
            (Ok(_), Err(failure)) => return Err(failure),
            // Why it failed is what counts.
            (Err(_), Err(failure)) => eprintln!("Cannot delete {name}: {failure}"),
            (Err(_), Ok(())) => {}
        }
    }
    let tried = match tried {
        // The log that the hint names went with the child.
        Err(failure) if !started && !args.keep_on_failure => {
            Err(failure.hint("--keep-on-failure keeps the child and its log"))
        }
        tried => tried,
    };
    match caught() {
        Some(signal) => Ok(128 + signal.unsigned_abs() as u8),
        None => tried,
    }
}

/// A name that nobody has: by time and process, so that many may run at once.
fn child_name() -> Result<BranchName, Failure> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = format!("{:?} {}", now, std::process::id());
    let hash = xxhash_rust::xxh3::xxh3_64(seed.as_bytes()) as u32;
    format!("try-{hash:08x}").parse().map_err(|error| Failure::caused("name", &error).exit(255))
}

fn catch_signals() -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::caused("signals", &error);
    let mut signals =
        signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
    let watch = move || {
        for signal in signals.forever() {
            // The first one counts.
            let _ = CAUGHT.compare_exchange(0, signal, Ordering::AcqRel, Ordering::Acquire);
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch).map_err(failed)?;
    Ok(())
}

fn caught() -> Option<i32> {
    Some(CAUGHT.load(Ordering::Acquire)).filter(|&signal| signal != 0)
}

fn command(args: &TryArgs, server: &Server) -> Result<u8, Failure> {
    let begin = Instant::now();
    let child = run::command(&args.command, server, &server.connection).spawn();
    let mut child = child.map_err(|error| run::cannot_run(&args.command, &error))?;
    let status = wait(&mut child).map_err(|error| Failure::caused("command", &error))?;
    let took = milliseconds(u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX));
    let code = code_of(status);
    eprintln!("The command ended with {status} after {took} ms");
    Ok(code)
}

/// As shells have it: 128 and the signal for a command that one has ended.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// Waits for the command. A signal that only we got is passed on; a command that does not end on it
/// is killed.
fn wait(child: &mut Child) -> std::io::Result<ExitStatus> {
    let pid = Pid::from_raw(child.id().cast_signed());
    let mut deadline = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        match (caught(), deadline) {
            (Some(signal), None) => {
                deadline = Some(Instant::now() + END_PATIENCE);
                // Ctrl-C at a terminal reaches the command by itself.
                let has_it = signal == SIGINT && std::io::stdin().is_terminal();
                if !has_it && let Ok(signal) = Signal::try_from(signal) {
                    let _ = kill(pid, signal);
                }
            }
            (Some(_), Some(at)) if Instant::now() >= at => {
                let _ = kill(pid, Signal::SIGKILL);
            }
            _ => {}
        }
        std::thread::sleep(POLL);
    }
}
