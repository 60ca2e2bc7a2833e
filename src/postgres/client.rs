//! Asking a server, through its socket and as the owner of its data directory.
//!
//! By the `postgres` crate and not by psql: a psql may be missing (packages of other majors have
//! none), costs 15 ms a time, and Debian's is a wrapper that takes 60.

use std::path::Path;
use std::time::Duration;

use super::PostgresError;
use super::owner::Owner;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where to ask, and as whom.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Directory of the server's socket.
    pub socket_dir: &'a Path,
    /// Its port, which is part of the socket's name.
    pub port: u16,
    /// The database user.
    pub user: &'a str,
    /// The database.
    pub database: &'a str,
    /// The operating system's user to connect as, for `peer` authentication.
    pub owner: &'a Owner,
}

impl Target<'_> {
    /// Runs one query without parameters; gives the first column of each row as text.
    pub fn ask(&self, sql: &str) -> Result<Vec<String>, PostgresError> {
        let asked = self.owner.act(|| self.ask_here(sql))?;
        asked.map_err(|source| PostgresError::Query { port: self.port, source })
    }

    fn ask_here(&self, sql: &str) -> Result<Vec<String>, postgres::Error> {
        let mut config = postgres::Config::new();
        config
            .host_path(self.socket_dir)
            .port(self.port)
            .user(self.user)
            .dbname(self.database)
            .application_name("cowfs")
            .connect_timeout(CONNECT_TIMEOUT);
        if let Ok(password) = std::env::var("PGPASSWORD") {
            config.password(password);
        }
        let mut client = config.connect(postgres::NoTls)?;
        let messages = client.simple_query(sql)?;
        let first = |message: &postgres::SimpleQueryMessage| match message {
            postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        };
        Ok(messages.iter().filter_map(first).collect())
    }
}
