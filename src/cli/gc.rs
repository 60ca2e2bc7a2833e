//! `cowfs gc`: frees layers and leftovers that nothing reaches.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{failure, output};
use crate::catalog::{CatalogError, LayerRow, LayerState, Store};
use crate::format::LayerId;
use crate::serve::Failure;

/// A directory without a row may belong to a branch that is being created: only old ones go.
const GRACE: Duration = Duration::from_secs(600);

/// Arguments of `cowfs gc`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Safe at any time, also beside mounted branches and running forks.")]
pub(super) struct GcArgs {
    /// Only say what would be freed
    #[arg(long)]
    dry_run: bool,
    /// Also remove directories that no layer owns and that are younger than ten minutes
    #[arg(long)]
    now: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Default, serde::Serialize)]
struct Report {
    dry_run: bool,
    layers: usize,
    leftovers: usize,
    bytes: u64,
}

pub(super) fn run(args: &GcArgs, store: &Store) -> Result<u8, Failure> {
    let mut report = Report { dry_run: args.dry_run, ..Report::default() };
    remove_layers(args, store, &mut report)?;
    remove_leftovers(args, store, &mut report)?;
    if !args.dry_run {
        remove_run_files(store).map_err(|error| failure::of_catalog(&error))?;
        store.catalog.checkpoint().map_err(|error| failure::of_catalog(&error))?;
    }
    if args.json {
        output::print_json(&report)?;
    } else {
        let verb = if args.dry_run { "Would free" } else { "Freed" };
        output::print(&format!(
            "{verb} {} in {} layers and {} leftovers\n",
            output::bytes(report.bytes),
            report.layers,
            report.leftovers
        ));
    }
    Ok(0)
}

fn remove_tree(dir: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::new("gc", format!("removing {}: {error}", dir.display())))
        }
        _ => Ok(()),
    }
}

/// Removes the layers that no branch reaches. A layer that is unreachable stays so: new layers
/// only ever stand on reachable ones, so nobody can begin to use one meanwhile.
fn remove_layers(args: &GcArgs, store: &Store, report: &mut Report) -> Result<(), Failure> {
    let catalog = |error: CatalogError| failure::of_catalog(&error);
    let rows = store.catalog.all_layers().map_err(catalog)?;
    let reachable = store.catalog.reachable_layers().map_err(catalog)?;
    let mut gone = Vec::new();
    for row in rows.iter().filter(|row| !reachable.contains(&row.id)) {
        // Held until the layer is gone: an import that still runs holds it, and keeps its layer.
        let Some(claim) = claim(store, row)? else { continue };
        let dir = store.layer_dir(row.id);
        report.bytes += output::disk_usage(&dir);
        report.layers += 1;
        if !args.dry_run {
            remove_tree(&dir)?;
            gone.push(row.id);
            if let Claim::Import(lock) = claim {
                // A lock file that stays guards nothing any more.
                let _ = lock.remove();
            }
        }
    }
    if !gone.is_empty() {
        store.catalog.remove_layers(&gone).map_err(catalog)?;
    }
    Ok(())
}

enum Claim {
    Free,
    Import(crate::catalog::FileLock),
}

/// The right to remove a layer that was unreachable a moment ago.
fn claim(store: &Store, row: &LayerRow) -> Result<Option<Claim>, Failure> {
    if row.state != LayerState::Importing {
        return Ok(Some(Claim::Free));
    }
    let Ok(lock) = store.lock_import(row.id) else { return Ok(None) };
    // The import may have come to its end between the look and the lock: then the layer is the
    // base of a branch now.
    let now = store.catalog.layer(row.id).map_err(|error| failure::of_catalog(&error))?;
    let dead = now.is_some_and(|now| now.state == LayerState::Importing);
    Ok(dead.then_some(Claim::Import(lock)))
}

/// Removes layer directories that no row names.
fn remove_leftovers(args: &GcArgs, store: &Store, report: &mut Report) -> Result<(), Failure> {
    // Directories first, rows second: a row that appears in between is seen.
    let found = layer_dirs(store)?;
    let rows = store.catalog.all_layers().map_err(|error| failure::of_catalog(&error))?;
    let known: HashSet<LayerId> = rows.iter().map(|row| row.id).collect();
    for (id, dir) in found {
        let young = dir
            .metadata()
            .and_then(|meta| meta.modified())
            .is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age < GRACE));
        if known.contains(&id) || (young && !args.now) {
            continue;
        }
        report.bytes += output::disk_usage(&dir);
        report.leftovers += 1;
        if !args.dry_run {
            remove_tree(&dir)?;
        }
    }
    Ok(())
}

fn layer_dirs(store: &Store) -> Result<Vec<(LayerId, PathBuf)>, Failure> {
    let layers = store.root.join("layers");
    let entries = std::fs::read_dir(&layers)
        .map_err(|error| Failure::new("gc", format!("reading {}: {error}", layers.display())))?;
    let id_of = |name: &str| u64::from_str_radix(name, 16).ok().map(LayerId);
    Ok(entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let id = id_of(name.to_str()?)?;
            (id.dir_name().as_str() == name.to_str()?).then(|| (id, entry.path()))
        })
        .collect())
}

/// Removes what deleted branches left in `run/`; whatever somebody holds locked stays.
fn remove_run_files(store: &Store) -> Result<(), CatalogError> {
    let known: HashSet<u64> = store.catalog.branches()?.iter().map(|row| row.id.0).collect();
    for entry in std::fs::read_dir(store.run_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.split_once('.')).map(|(id, _)| id);
        let Some(id) = id.and_then(|id| id.parse::<u64>().ok()) else { continue };
        if known.contains(&id) {
            continue;
        }
        // A child that is being forked has a lock before it has a row.
        if let Ok(lock) = store.lock_branch(crate::format::BranchId(id)) {
            if entry.path() == store.branch_lock_path(crate::format::BranchId(id)) {
                let _ = lock.remove();
            } else {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
    Ok(())
}
