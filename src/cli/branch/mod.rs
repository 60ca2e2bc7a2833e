//! `cowfs branch …`.

pub(super) mod create;
pub(super) mod delete;
mod list;
mod rename;
mod show;

use clap::Subcommand;

use crate::catalog::Store;
use crate::serve::Failure;

#[derive(Debug, Subcommand)]
pub(super) enum BranchCommand {
    /// Create a branch: empty, or from another, which may be mounted and busy
    Create(create::CreateArgs),
    /// List the branches as a tree
    List(list::ListArgs),
    /// Show one branch in detail
    Show(show::ShowArgs),
    /// Give a branch another name
    Rename(rename::RenameArgs),
    /// Delete a branch; its children keep their data
    Delete(delete::DeleteArgs),
}

impl BranchCommand {
    /// Whether the command must work in a store without any space left.
    pub(super) fn makes_room(&self) -> bool {
        matches!(self, BranchCommand::Delete(_))
    }

    pub(super) fn run(&self, store: Store) -> Result<u8, Failure> {
        match self {
            BranchCommand::Create(args) => create::run(args, store),
            BranchCommand::List(args) => list::run(args, &store),
            BranchCommand::Show(args) => show::run(args, &store),
            BranchCommand::Rename(args) => rename::run(args, &store),
            BranchCommand::Delete(args) => delete::run(args, &store),
        }
    }
}
