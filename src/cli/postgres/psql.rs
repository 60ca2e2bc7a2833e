//! `cowfs psql`: a session on a branch.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;

use super::super::failure;
use super::reach;
use crate::catalog::{BranchName, Store};
use crate::serve::Failure;

/// Arguments of `cowfs psql`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Runs as the owner of the data directory when you are root, so that `peer` \
authentication works.

Examples:
  cowfs psql experiment
  cowfs psql experiment -- -d app -c 'SELECT count(*) FROM users'
  cowfs psql experiment < migration.sql"
)]
pub(in crate::cli) struct PsqlArgs {
    /// The branch
    #[arg(add = crate::cli::complete::branches())]
    branch: BranchName,
    /// Arguments for psql
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

pub(in crate::cli) fn run(args: &PsqlArgs, store: &Store) -> Result<u8, Failure> {
    let server = reach::require_server(store, &args.branch)?;
    let of_postgres = |error| failure::of_postgres(args.branch.as_str(), &error);
    let mut command = server.client("psql").map_err(of_postgres)?;
    command.args(&args.args);
    // Only comes back if it could not be run.
    let error = command.exec();
    let psql = Path::new(command.get_program());
    Err(Failure::new("psql", format!("cannot run {}: {error}", psql.display())))
}
