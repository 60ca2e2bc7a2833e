//! The server of a branch as other commands see it: does it run, and how is it reached?

use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::failure;
use crate::catalog::{BranchName, BranchRow, Store};
use crate::io::sys;
use crate::postgres::client::Target;
use crate::postgres::connection::Connection;
use crate::postgres::instance::{Files, Instance};
use crate::postgres::locate::{self, Binaries};
use crate::postgres::owner::Owner;
use crate::postgres::postmaster::{self, Running};
use crate::postgres::process::ProcessId;
use crate::postgres::{DataDirectory, PostgresError};
use crate::serve::Failure;
use crate::serve::status::{self, State};

/// The database that every cluster has.
const DATABASE: &str = "postgres";

/// A live server on a branch, started by `cowfs start` or by other means.
pub(in crate::cli) struct Server {
    /// The branch.
    pub branch: BranchName,
    /// Its postmaster.
    pub process: ProcessId,
    /// How clients reach it.
    pub connection: Connection,
    /// Its data directory; may be gone from the name space.
    pub data_dir: PathBuf,
    /// How it was started, if by us.
    pub instance: Option<Instance>,
}

pub(in crate::cli) fn require(store: &Store, name: &BranchName) -> Result<BranchRow, Failure> {
    store.catalog.require_branch(name).map_err(|error| failure::of_catalog(&error))
}

pub(in crate::cli) fn files(store: &Store, row: &BranchRow) -> Files {
    Files::new(store.run_dir(), row.id.0)
}

/// Where the branch is mounted, if it is and its process answers.
pub(in crate::cli) fn mount_point(store: &Store, row: &BranchRow) -> Option<PathBuf> {
    let status = status::one(store, row);
    (status.state == State::Mounted).then_some(status.mount_point).flatten()
}

/// The server that runs on the branch, if one does.
pub(in crate::cli) fn find(store: &Store, row: &BranchRow) -> Option<Server> {
    if let Some(instance) = files(store, row).read_alive() {
        return Some(Server::of_instance(row.name.clone(), instance));
    }
    let dir = mount_point(store, row)?;
    let running = postmaster::running_in(&dir)?;
    Some(Server::of_stranger(row.name.clone(), dir, running))
}

/// The server that runs on the branch; an error says how to start one.
pub(in crate::cli) fn require_server(store: &Store, name: &BranchName) -> Result<Server, Failure> {
    let row = require(store, name)?;
    find(store, &row).ok_or_else(|| {
        Failure::new("not_started", format!("no Postgres runs on branch {name}"))
            .hint(format!("`cowfs start {name}`"))
    })
}

impl Server {
    pub(super) fn of_instance(branch: BranchName, instance: Instance) -> Server {
        let listens = instance.settings.iter().find(|setting| setting.name == "listen_addresses");
        // Whatever it listens on as the user has configured it, loopback is the likeliest.
        let tcp = listens.is_none_or(|setting| !setting.value.trim().is_empty());
        let connection = Connection {
            host: "127.0.0.1".to_owned(),
            port: instance.port,
            user: instance.user.clone(),
            database: instance.database.clone(),
            socket_dir: Some(instance.socket_dir.clone()),
        };
        Server {
            branch,
            process: instance.process.clone(),
            connection: if tcp { connection } else { connection.through_socket() },
            data_dir: instance.data_dir.clone(),
            instance: Some(instance),
        }
    }

    fn of_stranger(branch: BranchName, data_dir: PathBuf, running: Running) -> Server {
        let user = Owner::of(&data_dir).map(|owner| owner.database_user());
        let connection = Connection {
            host: match running.address.as_str() {
                "*" | "0.0.0.0" | "::" => "127.0.0.1".to_owned(),
                address => address.to_owned(),
            },
            port: running.port,
            user: user.unwrap_or_else(|_| DATABASE.to_owned()),
            database: DATABASE.to_owned(),
            socket_dir: running.socket_dir,
        };
        let no_tcp = connection.host.is_empty();
        Server {
            branch,
            process: running.process,
            connection: if no_tcp { connection.through_socket() } else { connection },
            data_dir,
            instance: None,
        }
    }

    /// Where its programs are, as far as that is known.
    fn bin_dir(&self) -> Option<PathBuf> {
        if let Some(instance) = &self.instance {
            return Some(instance.bin_dir.clone());
        }
        let major = DataDirectory::probe(&self.data_dir).ok()?.major;
        Some(Binaries::find(major, None).ok()?.dir)
    }

    /// Runs one query; gives the first column of each row.
    pub fn ask(&self, sql: &str) -> Result<Vec<String>, PostgresError> {
        let owner = Owner::of(&self.data_dir)?;
        self.ask_as(&owner, sql)
    }

    /// The same in one of its databases.
    pub fn ask_in(&self, database: &str, sql: &str) -> Result<Vec<String>, PostgresError> {
        let owner = Owner::of(&self.data_dir)?;
        self.ask_of(&owner, database, sql)
    }

    pub(super) fn ask_as(&self, owner: &Owner, sql: &str) -> Result<Vec<String>, PostgresError> {
        self.ask_of(owner, &self.connection.database, sql)
    }

    fn ask_of(
        &self,
        owner: &Owner,
        database: &str,
        sql: &str,
    ) -> Result<Vec<String>, PostgresError> {
        let socket_dir = self.connection.socket_dir.as_deref().unwrap_or(Path::new("/tmp"));
        let target = Target {
            socket_dir,
            port: self.connection.port,
            user: &self.connection.user,
            database,
            owner,
        };
        target.ask(sql)
    }

    /// A client program for it, which runs as the owner of the data directory and connects through
    /// the socket.
    pub fn client(&self, program: &str) -> Result<Command, PostgresError> {
        let mut command = Command::new(locate::client(program, self.bin_dir().as_deref())?);
        for (name, value) in self.connection.clone().through_socket().variables() {
            if name != "DATABASE_URL" {
                command.env(name, value);
            }
        }
        sys::prepare_process(&mut command, Owner::of(&self.data_dir)?.credentials, false);
        Ok(command)
    }
}

/// The database to name in URLs unless told otherwise.
pub(super) fn default_database() -> String {
    DATABASE.to_owned()
}
