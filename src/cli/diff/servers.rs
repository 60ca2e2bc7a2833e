//! Postgres for the two states: the one that runs, or one on the passing copy.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::super::failure;
use super::super::postgres::fork::like_the_parent;
use super::super::postgres::reach::{self, Server};
use super::Side;
use crate::catalog::Store;
use crate::postgres::PostgresError;
use crate::postgres::instance::Wishes;
use crate::postgres::postmaster::StopMode;
use crate::serve::Failure;

/// Both sides, and how servers are started on them.
pub(super) struct Servers<'a> {
    pub store: &'a Arc<Store>,
    pub before: &'a Side<'a>,
    pub after: &'a Side<'a>,
    pub pg_bin: Option<PathBuf>,
    /// For each step of a start.
    pub timeout: Duration,
}

impl Servers<'_> {
    /// Asks the Postgres of one side: the branch's own if it runs, else one that is started for it.
    pub fn ask<T>(
        &self,
        side: &Side<'_>,
        work: impl FnOnce(&Server) -> Result<T, PostgresError>,
    ) -> Result<T, Failure> {
        let of_postgres = |error| failure::of_postgres(&side.called, &error);
        let running = side.now.as_ref().and_then(|row| reach::find(self.store, row));
        if let Some(server) = running {
            return work(&server).map_err(of_postgres);
        }
        let row = side.branch.row.parent.map(|id| self.store.catalog.branch_by_id(id));
        let parent = row.and_then(Result::ok).flatten();
        let mut wishes = Wishes { pg_bin: self.pg_bin.clone(), ..Wishes::default() };
        if let Some(parent) = parent {
            wishes = like_the_parent(self.store, &parent, wishes);
        }
        let server = side.branch.start(&wishes, self.timeout)?;
        let done = work(&server).map_err(of_postgres);
        // Nobody needs what it has written.
        side.branch.stop(StopMode::Immediate, self.timeout)?;
        done
    }
}

/// The databases of a server that can be connected to.
pub(super) fn databases(server: &Server) -> Result<Vec<String>, PostgresError> {
    server.ask("SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname")
}
