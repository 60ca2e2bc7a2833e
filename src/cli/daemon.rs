//! `cowfs daemon`: what is to be done now and then: scheduled snapshots, and what has expired.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::mount::parse_duration;
use super::prune::prune;
use super::span::{self, Span};
use super::{failure, gc, snapshot};
use crate::catalog::{CatalogError, FileLock, LockError, Store};
use crate::serve::Failure;

/// How soon a signal is noticed.
const NOTICE: Duration = Duration::from_millis(100);

/// Arguments of `cowfs daemon`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Takes the snapshots of `cowfs snapshot schedule` and removes those that have expired. \
With --reap it also deletes expired branches and frees what nothing needs, as `cowfs \
gc` does. Mounted branches need no daemon: each has a process of its own. It runs \
until SIGTERM or SIGINT; with --once it does what is due and ends, for a timer.

Examples:
  cowfs daemon --reap
  cowfs daemon --reap --once"
)]
pub(super) struct DaemonArgs {
    /// Also delete expired branches, and run gc
    #[arg(long)]
    reap: bool,
    /// With --reap: for how long a deleted branch can come back
    #[arg(long, value_name = "DURATION", default_value = "1d", value_parser = span::parse)]
    grace: Span,
    /// Do what is due once, and end
    #[arg(long)]
    once: bool,
    /// How often to look
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = parse_duration)]
    every: Duration,
}

pub(super) fn run(args: &DaemonArgs, store: Store) -> Result<u8, Failure> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let caught = signal_hook::flag::register(signal, ended.clone());
        caught.map_err(|error| Failure::caused("signals", &error))?;
    }
    let _turn =
        FileLock::acquire(&store.run_dir().join("daemon.lock")).map_err(|error| match error {
            LockError::Busy { .. } => Failure::new(
                "busy",
                format!("another daemon serves this store: its lock is {error}"),
            ),
            LockError::Io { .. } => failure::of_lock_file(&error),
        })?;
    let store = Arc::new(store);
    loop {
        let failed = round(args, &store);
        if args.once {
            return Ok(u8::from(failed));
        }
        let next = Instant::now() + args.every;
        while Instant::now() < next {
            if ended.load(Ordering::Relaxed) {
                return Ok(0);
            }
            std::thread::sleep(NOTICE.min(args.every));
        }
    }
}

/// Does what is due; what fails is said, and tried again the next time. Returns whether something
/// failed.
fn round(args: &DaemonArgs, store: &Arc<Store>) -> bool {
    let mut failed = false;
    let mut say = |what: &str, failure: &Failure| {
        eprintln!("Error: {what}: {failure}");
        failed = true;
    };
    match snapshot::take_due(store) {
        Ok(taken) => {
            for snapshot::Taken { name, outcome } in taken {
                match outcome {
                    Ok(()) => eprintln!("Took snapshot {name}"),
                    Err(failure) => say(&format!("snapshot {name}"), &failure),
                }
            }
        }
        Err(failure) => say("scheduled snapshots", &failure),
    }
    let reaped = if args.reap { reap(args, store) } else { expire_snapshots(store) };
    if let Err(failure) = reaped {
        say("what has expired", &failure);
    }
    failed
}

fn expire_snapshots(store: &Store) -> Result<(), Failure> {
    let gone = super::prune::expired_snapshots(store)?;
    if gone > 0 {
        eprintln!("Deleted {}", crate::format::counted(gone, "expired snapshot"));
    }
    Ok(())
}

fn reap(args: &DaemonArgs, store: &Store) -> Result<(), Failure> {
    let garbage = || -> Result<bool, CatalogError> {
        let reachable = store.catalog.reachable_layers()?;
        Ok(store.catalog.all_layers()?.iter().any(|row| !reachable.contains(&row.id)))
    };
    let would = prune(store, Some(args.grace), true)?;
    if would.is_nothing() && !garbage().map_err(|error| failure::of_catalog(&error))? {
        return Ok(());
    }
    let report = gc::collect(store, Some(args.grace), false)?;
    eprint!("{}", gc::sentence(&report));
    Ok(())
}
