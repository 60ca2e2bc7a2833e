//! `cowfs restart`: the same server once more.

use std::time::Duration;

use super::super::mount::parse_duration;
use super::bring_up::BringUp;
use super::{reach, start, stop};
use crate::catalog::{BranchName, Store};
use crate::postgres::instance::Wishes;
use crate::postgres::postmaster::StopMode;
use crate::serve::Failure;

/// Arguments of `cowfs restart`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Starts with the port and the options of the last start. To change them, stop and start."
)]
pub(in crate::cli) struct RestartArgs {
    /// The branch
    #[arg(add = crate::cli::complete::branches())]
    branch: BranchName,
    /// How to stop it: smart, fast or immediate
    #[arg(long, default_value = "fast")]
    mode: StopMode,
    /// How long each step may take
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    timeout: Duration,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(in crate::cli) fn run(args: &RestartArgs, store: &Store) -> Result<u8, Failure> {
    let row = reach::require(store, &args.branch)?;
    // Of a server that was killed too.
    let old = reach::files(store, &row).read();
    let mut wishes = old.as_ref().map_or_else(Wishes::default, |old| old.wishes.clone());
    let how = stop::How { mode: args.mode, timeout: args.timeout, unmount: false };
    stop::stop(store, &row, how)?;
    // Clients have the URL.
    let same_port = old.map(|old| old.port).filter(|&port| crate::postgres::port::is_free(port));
    wishes.port = wishes.port.or(same_port);
    let interrupted = || false;
    let up = BringUp {
        store,
        row: &row,
        wishes: &wishes,
        timeout: args.timeout,
        interrupted: &interrupted,
    };
    start::report(&args.branch, &up.run()?, args.json)?;
    Ok(0)
}
