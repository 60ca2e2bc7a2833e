//! `cowfs env`: the variables of a branch, for a shell.

use super::super::output;
use super::reach;
use super::url::ConnectionArgs;
use crate::catalog::{BranchName, Store};
use crate::serve::Failure;

/// Arguments of `cowfs env`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  eval \"$(cowfs env experiment)\"")]
pub(in crate::cli) struct EnvArgs {
    /// The branch
    branch: BranchName,
    #[command(flatten)]
    connection: ConnectionArgs,
}

pub(in crate::cli) fn run(args: &EnvArgs, store: &Store) -> Result<u8, Failure> {
    let server = reach::require_server(store, &args.branch)?;
    output::print(&args.connection.apply(server.connection).exports());
    Ok(0)
}
