//! `cowfs branch …`.

mod at;
mod attributes;
pub(super) mod create;
pub(super) mod delete;
pub(super) mod here_or_there;
pub(super) mod list;
mod moment;
mod rename;
mod reset;
mod show;
mod window;

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
    /// Have a branch begin anew with the state of its parent, or of another branch
    Reset(reset::ResetArgs),
    /// Give a branch the state of one of its snapshots
    Restore(reset::RestoreArgs),
    /// Have a branch and its parent change places in the tree
    Promote(attributes::OneBranchArgs),
    /// Take a branch out of the tree of its parent
    Detach(attributes::OneBranchArgs),
    /// Keep a branch from delete, reset, restore and expiry
    Protect(attributes::OneBranchArgs),
    /// End the protection of a branch
    Unprotect(attributes::OneBranchArgs),
    /// Set when gc deletes a branch
    Expire(attributes::ExpireArgs),
    /// Limit what a branch takes on the disk
    Quota(attributes::QuotaArgs),
    /// Set where the programs of a branch's Postgres are
    PgBin(attributes::PgBinArgs),
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
            BranchCommand::Show(args) => show::run(args, store),
            BranchCommand::Rename(args) => rename::run(args, &store),
            BranchCommand::Delete(args) => delete::run(args, &store),
            BranchCommand::Reset(args) => reset::reset(args, store),
            BranchCommand::Restore(args) => reset::restore(args, store),
            BranchCommand::Promote(args) => attributes::promote(args, &store),
            BranchCommand::Detach(args) => attributes::detach(args, &store),
            BranchCommand::Protect(args) => attributes::protect(args, &store, true),
            BranchCommand::Unprotect(args) => attributes::protect(args, &store, false),
            BranchCommand::Expire(args) => attributes::expire(args, &store),
            BranchCommand::Quota(args) => attributes::quota(args, &store),
            BranchCommand::PgBin(args) => attributes::pg_bin(args, &store),
        }
    }
}
