//! Whether the parent of a fork writes a checkpoint first.
//!
//! The child replays the WAL since the parent's last checkpoint before it answers, and ends its
//! replay with a checkpoint of its own: beside a load that takes 30 ms per MiB of WAL, most of it in
//! the queue for a processor and for the disk's flush. The parent's own checkpoint writes the same
//! pages, from memory that has them, once for all forks that come after it.

use std::time::{Duration, Instant};

use super::super::failure;
use super::reach::{self, Server};
use crate::catalog::{BranchPoint, Store};
use crate::postgres::control_file::DbState;
use crate::postgres::{probe, wal};
use crate::serve::Failure;

/// From so many bytes of WAL on a checkpoint is sooner done than their replay.
const LONG_WAL_BYTES: u64 = 32 << 20;
/// How long a checkpoint that nobody has asked for is waited for. The server goes on with it.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is wanted of the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checkpoint {
    /// `--checkpoint`.
    Always,
    /// The default.
    IfLong,
    /// `--no-checkpoint`.
    Never,
}

/// The options for it; the same for fork and try.
#[derive(Debug, clap::Args)]
pub(super) struct CheckpointArgs {
    /// First have the parent's Postgres write a checkpoint, however little WAL there is
    #[arg(long)]
    checkpoint: bool,
    /// Ask the parent's Postgres for nothing, however much WAL the child must replay
    #[arg(long, conflicts_with = "checkpoint")]
    no_checkpoint: bool,
}

impl CheckpointArgs {
    pub fn wanted(&self) -> Checkpoint {
        match (self.checkpoint, self.no_checkpoint) {
            (true, _) => Checkpoint::Always,
            (false, true) => Checkpoint::Never,
            (false, false) => Checkpoint::IfLong,
        }
    }
}

/// Has the parent's Postgres write a checkpoint, if one is wanted; gives how long it took.
pub(super) fn before_fork(
    store: &Store,
    parent: &BranchPoint,
    wanted: Checkpoint,
) -> Result<u64, Failure> {
    let begin = Instant::now();
    let written = match wanted {
        Checkpoint::Never => false,
        Checkpoint::IfLong => if_long(store, parent)?,
        Checkpoint::Always => {
            demand(store, parent)?;
            true
        }
    };
    let us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
    Ok(if written { us } else { 0 })
}

fn demand(store: &Store, parent: &BranchPoint) -> Result<(), Failure> {
    if parent.snapshot.is_some() {
        let text = format!("--checkpoint: {parent} is what it is");
        return Err(Failure::new("usage", text).exit(2).hint("leave it away for a snapshot"));
    }
    let server = reach::require_server(store, &parent.branch).map_err(|failure| {
        failure.hint("--checkpoint asks the parent's Postgres; leave it away if none runs")
    })?;
    let asked = server.ask("CHECKPOINT");
    asked.map(drop).map_err(|error| failure::of_postgres(parent.branch.as_str(), &error))
}

/// A parent that cannot be asked, or is too slow, is forked as it is.
fn if_long(store: &Store, parent: &BranchPoint) -> Result<bool, Failure> {
    if parent.snapshot.is_some() {
        return Ok(false);
    }
    let row = reach::require(store, &parent.branch)?;
    let Some(server) = reach::find(store, &row).filter(has_long_wal) else { return Ok(false) };
    let sql = format!("SET statement_timeout = {}; CHECKPOINT", PATIENCE.as_millis());
    match server.ask(&sql) {
        Ok(_) => Ok(true),
        Err(error) => {
            let name = &parent.branch;
            tracing::info!(%error, "no checkpoint on {name} before the fork");
            Ok(false)
        }
    }
}

/// Only of a server that has ended its recovery: a standby cannot write one when it likes.
fn has_long_wal(server: &Server) -> bool {
    let control = probe::read_control_file(&server.data_dir);
    control.is_ok_and(|control| {
        control.state == DbState::InProduction
            && wal::reaches(
                &server.data_dir.join("pg_wal"),
                control.timeline,
                control.redo,
                LONG_WAL_BYTES,
            )
    })
}
