//! `cowfs mount`: serve a branch at a directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::output;
use crate::catalog::{BranchName, Store};
use crate::serve::error::ServeError;
use crate::serve::lifecycle;
use crate::serve::options::{self, MountOptions, OPTIONS_VARIABLE};
use crate::serve::probe;
use crate::serve::protocol::Failure;
use crate::serve::readiness::Ready;
use crate::serve::server::{self, MountRequest};

fn after_help() -> String {
    format!(
        "Mount options:\n{}
{OPTIONS_VARIABLE} holds options for every mount, that of `cowfs start`, too; where they differ, -o wins.

Examples:
  cowfs mount main /srv/main
  cowfs mount main /srv/main --read-only
  cowfs mount main /srv/main -o xattr,noexec",
        options::explained()
    )
}

/// Arguments of `cowfs mount`.
#[derive(Debug, clap::Args)]
#[command(after_help = after_help())]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub struct MountArgs {
    /// Branch to mount
    #[arg(add = crate::cli::complete::branches())]
    pub branch: BranchName,
    /// Directory to mount it on
    pub dir: PathBuf,
    /// Serve in this process instead of in the background
    #[arg(long)]
    pub foreground: bool,
    /// Mount read-only
    #[arg(long)]
    pub read_only: bool,
    /// Mount options, separated by commas; listed below
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// How long to wait until the mount answers
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Threads that serve requests [default: by the number of processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// Report readiness to the process at the other end of the standard output
    #[arg(long, hide = true)]
    pub ready_on_stdout: bool,
    /// Only touch the directory and tell by the exit code how it answers
    #[arg(long, hide = true)]
    pub probe: bool,
}

/// Runs `cowfs mount` on the store that `open` opens; returns the exit code.
pub fn run(args: &MountArgs, open: impl FnOnce() -> Result<Store, Failure>) -> Result<u8, Failure> {
    if args.probe {
        return Ok(probe::probe_here(&args.dir));
    }
    let request = request(args).map_err(|error| error.to_failure())?;
    let outcome = if args.ready_on_stdout {
        let open = || Ok(Arc::new(open()?));
        lifecycle::serve_in_background(open, &request)
    } else if args.foreground {
        let store = Arc::new(open()?);
        server::serve(&store, &request, &mut |ready| {
            report(&request.branch, &ready);
            Ok(())
        })
    } else {
        lifecycle::start(&open()?, &request).map(|ready| report(&request.branch, &ready))
    };
    outcome.map(|()| 0).map_err(|error| error.to_failure())
}

fn request(args: &MountArgs) -> Result<MountRequest, ServeError> {
    let mut options = usual_options()?.and(&args.options)?;
    options.read_only |= args.read_only;
    Ok(MountRequest {
        branch: args.branch.clone(),
        dir: args.dir.clone(),
        options,
        threads: args.threads.map(usize::from),
        timeout: args.timeout,
    })
}

/// The mount options that the environment asks for, for every mount.
pub(in crate::cli) fn usual_options() -> Result<MountOptions, ServeError> {
    let list = std::env::var_os(OPTIONS_VARIABLE).unwrap_or_default();
    Ok(MountOptions::parse(&[list.to_string_lossy()])?)
}

fn report(branch: &BranchName, ready: &Ready) {
    for notice in &ready.notices {
        eprintln!("Note: {notice}");
    }
    let text = sentence(branch, &ready.mount_point, ready.read_only, ready.pid);
    output::print(&(text + "\n"));
}

fn sentence(branch: &BranchName, dir: &Path, read_only: bool, pid: u32) -> String {
    let how = if read_only { " read-only" } else { "" };
    format!("Mounted {branch}{how} at {} (process {pid})", dir.display())
}

/// Parses a duration such as `500ms`, `30s`, `5m` or `1h`; a bare number counts seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let rule = || format!("{text:?} is not a duration such as 500ms, 30s, 5m or 1h");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| rule())?;
    let unit_ms = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(rule()),
    };
    let ms = number.checked_mul(unit_ms).filter(|ms| (1..=86_400_000).contains(ms));
    ms.map(Duration::from_millis).ok_or_else(|| format!("{text} is not between 1ms and 24h"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations() {
        let ms = |text| parse_duration(text).map(|d| d.as_millis());
        assert_eq!(ms("250ms"), Ok(250));
        assert_eq!(ms("7"), Ok(7000));
        assert_eq!(ms("2m"), Ok(120_000));
        for bad in ["", "s", "-1s", "1d", "1.5s", "0", "25h", "99999999999999999999s"] {
            assert!(ms(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_said() {
        let name = "main".parse().unwrap();
        assert_eq!(
            sentence(&name, Path::new("/mnt/x"), true, 9),
            "Mounted main read-only at /mnt/x (process 9)"
        );
    }
}
