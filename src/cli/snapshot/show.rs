//! `cowfs snapshot show`.

use super::super::branch::here_or_there::require;
use super::super::{failure, output};
use crate::catalog::{CatalogError, SnapshotPoint, Store};
use crate::io::usage::disk_usage;
use crate::serve::Failure;

/// Arguments of `cowfs snapshot show`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ShowArgs {
    /// The snapshot
    #[arg(value_name = "BRANCH@NAME")]
    #[arg(add = crate::cli::complete::snapshots())]
    point: SnapshotPoint,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Shown<'a> {
    snapshot: &'a SnapshotPoint,
    created: String,
    created_by: u32,
    /// When gc may delete it.
    expires: Option<String>,
    /// The newest of its layers.
    layer: String,
    /// Layers below that.
    depth: u32,
    /// Bytes on disk that deleting it frees, after a gc.
    reclaimable_bytes: u64,
}

pub(super) fn run(args: &ShowArgs, store: &Store) -> Result<u8, Failure> {
    let branch = require(store, &args.point.branch)?;
    let shown = || -> Result<Shown<'_>, CatalogError> {
        let row = store.catalog.require_snapshot(&branch, &args.point.snapshot)?;
        let depth = store.catalog.chain(row.layer)?.first().map_or(0, |layer| layer.depth);
        let only = store.catalog.reach()?.only_of(|root| root.snapshot == Some(row.id));
        let bytes = only.iter().map(|id| disk_usage(&store.layer_dir(*id)));
        Ok(Shown {
            snapshot: &args.point,
            created: output::time(row.created_ms),
            created_by: row.created_by,
            expires: row.expires_ms.map(output::time),
            layer: row.layer.dir_name(),
            depth,
            reclaimable_bytes: bytes.sum(),
        })
    };
    let shown = shown().map_err(|error| failure::of_catalog(&error))?;
    if args.json {
        output::print_json(&shown)?;
        return Ok(0);
    }
    output::print(&format!(
        "Snapshot {}\n  created      {} by user {}\n  expires      {}\n  layer        {}, depth {}\n  \
         reclaimable  {}\n",
        shown.snapshot,
        shown.created,
        shown.created_by,
        shown.expires.as_deref().unwrap_or("never"),
        shown.layer,
        shown.depth,
        output::bytes(shown.reclaimable_bytes),
    ));
    Ok(0)
}
