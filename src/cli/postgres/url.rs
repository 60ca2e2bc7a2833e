//! `cowfs url`: how to reach the Postgres of a branch.

use super::super::output;
use super::reach;
use crate::catalog::{BranchName, Store};
use crate::postgres::connection::Connection;
use crate::serve::Failure;

/// The forms of `cowfs url`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Format {
    /// postgresql://user@host:port/database
    Uri,
    /// NAME=value lines, as in a .env file
    Env,
    /// jdbc:postgresql://host:port/database?user=user
    Jdbc,
    /// All parts as JSON
    Json,
}

/// Which user and database, and by which way; the same for url, env and run.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ConnectionArgs {
    /// Database [default: that of the start]
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// Database user [default: that of the start]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Through the socket instead of the loopback address
    #[arg(long)]
    socket: bool,
}

impl ConnectionArgs {
    /// The connection with what is asked for changed.
    pub fn apply(&self, connection: Connection) -> Connection {
        let mut changed = if self.socket { connection.through_socket() } else { connection };
        changed.database = self.database.clone().unwrap_or(changed.database);
        changed.user = self.user.clone().unwrap_or(changed.user);
        changed
    }
}

/// Arguments of `cowfs url`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  psql \"$(cowfs url experiment)\"
  cowfs url experiment --format env > .env")]
pub(in crate::cli) struct UrlArgs {
    /// The branch
    #[arg(add = crate::cli::complete::branches())]
    branch: BranchName,
    /// In which form
    #[arg(long, value_enum, default_value = "uri")]
    format: Format,
    /// Print all parts as JSON; the same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
}

#[derive(serde::Serialize)]
struct Parts<'a> {
    branch: &'a BranchName,
    url: String,
    jdbc: String,
    #[serde(flatten)]
    connection: &'a Connection,
}

pub(in crate::cli) fn run(args: &UrlArgs, store: &Store) -> Result<u8, Failure> {
    let server = reach::require_server(store, &args.branch)?;
    let connection = args.connection.apply(server.connection);
    match if args.json { Format::Json } else { args.format } {
        Format::Uri => output::print(&(connection.uri() + "\n")),
        Format::Env => output::print(&connection.dotenv()),
        Format::Jdbc => output::print(&(connection.jdbc() + "\n")),
        Format::Json => output::print_json(&Parts {
            branch: &args.branch,
            url: connection.uri(),
            jdbc: connection.jdbc(),
            connection: &connection,
        })?,
    }
    Ok(0)
}
