//! `cowfs unmount`: end serving a branch.

use std::ffi::OsString;
use std::time::Duration;

use super::mount::parse_duration;
use super::output;
use crate::catalog::Store;
use crate::serve::error::ServeError;
use crate::serve::protocol::Failure;
use crate::serve::unmount::{self, Outcome, Unmounted};

/// Arguments of `cowfs unmount`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Refused while in use; the processes that use it are named. Returns when everything is \
durable.

Examples:
  cowfs unmount main
  cowfs unmount /srv/main
  cowfs unmount main --lazy"
)]
pub struct UnmountArgs {
    /// Branch, or directory that one is mounted on (anything that begins with / or .)
    #[arg(value_name = "BRANCH|DIR")]
    #[arg(add = crate::cli::complete::branches())]
    pub target: OsString,
    /// Detach a mount that is in use; its users go on until they are done
    #[arg(long)]
    pub lazy: bool,
    /// How long to wait until everything is written and the serving process has ended
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// Runs `cowfs unmount`; returns the exit code.
pub fn run(args: &UnmountArgs, store: &Store) -> Result<u8, Failure> {
    let target = unmount::resolve_target(store, &args.target);
    let done = target.and_then(|target| unmount::unmount(store, &target, args.lazy, args.timeout));
    let done = done.map_err(|error: ServeError| error.to_failure())?;
    output::print(&(sentence(&done) + "\n"));
    Ok(0)
}

fn sentence(done: &Unmounted) -> String {
    let what = match (&done.branch, &done.mount_point) {
        (Some(branch), Some(dir)) => format!("{branch} from {}", dir.display()),
        (Some(branch), None) => branch.to_string(),
        (None, Some(dir)) => format!("what was mounted at {}", dir.display()),
        (None, None) => String::new(),
    };
    match &done.outcome {
        Outcome::Unmounted => format!("Unmounted {what}"),
        Outcome::LeftoversRemoved => {
            format!("Unmounted {what}: its serving process was gone, what it left is removed")
        }
        Outcome::Detached { pid, holders } => {
            let server = pid.map_or_else(String::new, |pid| format!(" {pid}"));
            format!("Detached {what}; the serving process{server} ends after {holders}")
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_said() {
        let mut done = Unmounted {
            branch: Some("main".parse().unwrap()),
            mount_point: Some("/mnt/x".into()),
            outcome: Outcome::Unmounted,
        };
        assert_eq!(sentence(&done), "Unmounted main from /mnt/x");
        done.outcome = Outcome::Detached { pid: Some(7), holders: Box::default() };
        assert_eq!(
            sentence(&done),
            "Detached main from /mnt/x; the serving process 7 ends after somebody who cannot be \
             seen from here"
        );
        done.branch = None;
        done.outcome = Outcome::Unmounted;
        assert_eq!(sentence(&done), "Unmounted what was mounted at /mnt/x");
    }
}
