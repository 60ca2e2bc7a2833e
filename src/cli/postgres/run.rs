//! `cowfs run`: a command that works on a branch.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::reach::{self, Server};
use super::url::ConnectionArgs;
use crate::catalog::{BranchName, Store};
use crate::postgres::connection::Connection;
use crate::serve::Failure;

/// Exit code when the command cannot be found, as shells have it.
const NOT_FOUND: u8 = 127;

/// Arguments of `cowfs run`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The command gets DATABASE_URL, PGHOST, PGPORT, PGUSER, PGDATABASE and COWFS_BRANCH; \
the exit code is its own.

Examples:
  cowfs run experiment -- ./migrate up
  cowfs run experiment -- sh -c 'pg_dump --schema-only > schema.sql'"
)]
pub(in crate::cli) struct RunArgs {
    /// The branch
    #[arg(add = crate::cli::complete::branches())]
    branch: BranchName,
    #[command(flatten)]
    connection: ConnectionArgs,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(in crate::cli) fn run(args: &RunArgs, store: &Store) -> Result<u8, Failure> {
    let server = reach::require_server(store, &args.branch)?;
    let connection = args.connection.apply(server.connection.clone());
    let mut command = command(&args.command, &server, &connection);
    // Only comes back if it could not be run.
    let error = command.exec();
    Err(cannot_run(&args.command, &error))
}

/// The command with the variables of the branch.
pub(super) fn command(words: &[OsString], server: &Server, connection: &Connection) -> Command {
    let (program, arguments) = match words.split_first() {
        Some((program, arguments)) => (program.clone(), arguments),
        None => (OsString::new(), &[][..]),
    };
    let mut command = Command::new(program);
    command.args(arguments).envs(connection.variables());
    command.env("COWFS_BRANCH", server.branch.as_str());
    command
}

pub(super) fn cannot_run(words: &[OsString], error: &std::io::Error) -> Failure {
    let program = words.first().map(|word| word.to_string_lossy()).unwrap_or_default();
    Failure::new("command", format!("cannot run {program}: {error}")).exit(NOT_FOUND)
}
