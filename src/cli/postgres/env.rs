//! `cowfs env`: the variables of a branch, for a shell.

use std::collections::BTreeMap;

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
    #[arg(add = crate::cli::complete::branches())]
    branch: BranchName,
    #[command(flatten)]
    connection: ConnectionArgs,
    /// Print the variables as a JSON object
    #[arg(long)]
    json: bool,
}

pub(in crate::cli) fn run(args: &EnvArgs, store: &Store) -> Result<u8, Failure> {
    let server = reach::require_server(store, &args.branch)?;
    let connection = args.connection.apply(server.connection);
    if args.json {
        output::print_json(&BTreeMap::from(connection.variables()))?;
    } else {
        output::print(&connection.exports());
    }
    Ok(0)
}
