//! `cowfs snapshot …`.

mod create;
mod delete;
mod list;
mod passing;
mod passing_branch;
mod schedule;
mod show;

pub(super) use create::take;
pub(super) use passing::PassingState;
pub(super) use passing_branch::PassingBranch;
pub(super) use schedule::{Taken, take_due};

use clap::Subcommand;

use crate::catalog::Store;
use crate::serve::Failure;

#[derive(Debug, Subcommand)]
pub(super) enum SnapshotCommand {
    /// Keep the state of this moment under a name, also of a mounted and busy branch
    Create(create::CreateArgs),
    /// List the snapshots of a branch, or of all
    List(list::ListArgs),
    /// Show one snapshot
    Show(show::ShowArgs),
    /// Have a snapshot taken now and then, or show how often
    Schedule(schedule::ScheduleArgs),
    /// Delete a snapshot; branches that began with it keep their data
    Delete(delete::DeleteArgs),
}

impl SnapshotCommand {
    /// Whether the command must work in a store without any space left.
    pub(super) fn makes_room(&self) -> bool {
        matches!(self, SnapshotCommand::Delete(_))
    }

    pub(super) fn run(&self, store: Store) -> Result<u8, Failure> {
        match self {
            SnapshotCommand::Create(args) => create::run(args, store),
            SnapshotCommand::List(args) => list::run(args, &store),
            SnapshotCommand::Show(args) => show::run(args, &store),
            SnapshotCommand::Schedule(args) => schedule::run(args, &store),
            SnapshotCommand::Delete(args) => delete::run(args, &store),
        }
    }
}
