//! `cowfs init`: a new store.

use std::path::Path;

use super::{failure, host_fs, output};
use crate::catalog::Store;
use crate::serve::Failure;

/// Arguments of `cowfs init`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  cowfs --store /srv/cowfs init")]
pub(super) struct InitArgs {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Report {
    store: String,
    filesystem: String,
    reflink: bool,
    free_bytes: u64,
}

pub(super) fn run(args: &InitArgs, dir: &Path) -> Result<u8, Failure> {
    let store = Store::init(dir).map_err(|error| failure::of_store(&error))?;
    let host = nix::sys::statvfs::statvfs(&store.root)
        .map_err(|error| Failure::caused("store", &error))?;
    let report = Report {
        store: store.root.display().to_string(),
        filesystem: host_fs::name(&store.root),
        reflink: host_fs::reflinks(&store.root),
        free_bytes: host.blocks_available() * host.fragment_size(),
    };
    if args.json {
        output::print_json(&report)?;
        return Ok(0);
    }
    let consequence = if report.reflink {
        "has reflinks: an import from the same filesystem copies nothing"
    } else {
        "has no reflinks: an import copies its source once; forks never copy"
    };
    output::print(&format!(
        "Made store {} on {}, which {consequence}. {} free.\n",
        report.store,
        report.filesystem,
        output::bytes(report.free_bytes)
    ));
    if let Some(doubt) = host_fs::doubt(&report.filesystem) {
        eprintln!("Note: {doubt}");
    }
    Ok(0)
}
