//! `cowfs branch rename`.

use super::super::{command_line, failure, output};
use crate::catalog::{BranchName, Store};
use crate::format::BranchId;
use crate::serve::Failure;

/// Arguments of `cowfs branch rename`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct RenameArgs {
    /// The branch
    #[arg(add = crate::cli::complete::branches())]
    name: BranchName,
    /// Its new name
    new_name: BranchName,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Renamed<'a> {
    branch: &'a BranchName,
    id: BranchId,
    was: &'a BranchName,
}

pub(super) fn run(args: &RenameArgs, store: &Store) -> Result<u8, Failure> {
    let rename = || {
        let row = store.catalog.require_branch(&args.name)?;
        let uid = nix::unistd::getuid().as_raw();
        // A mounted branch can be renamed: whatever serves it knows it by its id.
        store.catalog.rename_branch(row.id, &args.new_name, uid, &command_line())
    };
    let row = rename().map_err(|error| failure::of_catalog(&error))?;
    if args.json {
        output::print_json(&Renamed { branch: &row.name, id: row.id, was: &args.name })?;
    } else {
        output::print(&format!("Renamed branch {} to {}\n", args.name, args.new_name));
    }
    Ok(0)
}
