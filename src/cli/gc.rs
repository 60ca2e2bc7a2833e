//! `cowfs gc`: frees layers and leftovers that nothing reaches.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::prune::{Pruned, prune};
use super::span::{self, Span};
use super::{failure, output};
use crate::catalog::{CatalogError, FileLock, LayerRow, LayerState, LockError, Store, reserve};
use crate::format::{BranchId, LayerId, counted};
use crate::io::crash::{Point, crash_point};
use crate::io::usage::disk_usage;
use crate::postgres::instance::Files;
use crate::serve::Failure;

/// A directory without a row may belong to a branch that is being created: only old ones go while
/// other processes have the store open.
const GRACE: Duration = Duration::from_secs(600);
/// What is appended to the name of a directory that is being removed.
const DOOMED: &str = ".gone";

/// Arguments of `cowfs gc`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Deletes branches and snapshots that have expired, forgets branches that were deleted \
more than a day ago (until then `cowfs undo` brings them back), and frees the layers \
that nothing needs any more. Safe at any time, also beside mounted branches, forks \
and imports. With -q nothing is printed but errors.

Examples:
  cowfs gc --dry-run
  cowfs gc --now
  cowfs gc -q"
)]
pub(super) struct GcArgs {
    /// Only say what would be freed
    #[arg(long)]
    dry_run: bool,
    /// Forget deleted branches at once, and remove leftovers younger than ten minutes too, if no
    /// other cowfs uses the store
    #[arg(long, conflicts_with = "grace")]
    now: bool,
    /// For how long a deleted branch can come back
    #[arg(long, value_name = "DURATION", default_value = "1d", value_parser = span::parse)]
    grace: Span,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What a gc did, or would.
#[derive(Default, serde::Serialize)]
pub(super) struct Report {
    dry_run: bool,
    /// Layers that no branch reaches, among them those of interrupted imports.
    layers: usize,
    /// Directories that no layer owns.
    leftovers: usize,
    /// Such directories that stay because they are young.
    young_leftovers: usize,
    /// Such directories that stay because they hold contents: the catalog has known them.
    unknown_layers: usize,
    /// Bytes on disk.
    bytes: u64,
    /// Bytes that only deleted branches need that can come back still.
    bytes_kept: u64,
    #[serde(flatten)]
    pruned: Pruned,
}

/// With `quiet` nothing is said but errors, and the JSON that was asked for.
pub(super) fn run(args: &GcArgs, store: &Store, quiet: bool) -> Result<u8, Failure> {
    let grace = (!args.now).then_some(args.grace);
    let report = collect(store, grace, args.dry_run)?;
    if args.json {
        output::print_json(&report)?;
    } else if !quiet {
        output::print(&sentence(&report));
    }
    Ok(0)
}

/// Frees what nothing needs. `grace` is for how long deleted branches are kept; without it they go
/// at once, and so do young leftovers.
pub(super) fn collect(
    store: &Store,
    grace: Option<Span>,
    dry_run: bool,
) -> Result<Report, Failure> {
    let mut report = Report { dry_run, ..Report::default() };
    // What an older catalog does not reach may be what the lost commits kept.
    store.catalog.require_current().map_err(|error| failure::of_catalog(&error))?;
    let turn = if dry_run { None } else { Some(take_turn(store)?) };
    if turn.is_some() {
        crash_point(Point::GcLocked);
    }
    report.pruned = prune(store, grace, dry_run)?;
    if turn.is_some() {
        crash_point(Point::GcPruned);
    }
    remove_layers(store, &mut report)?;
    remove_leftovers(store, grace.is_none(), &mut report)?;
    if turn.is_some() {
        crash_point(Point::GcLeftoversRemoved);
        remove_run_files(store).map_err(|error| failure::of_catalog(&error))?;
        crash_point(Point::GcRunFilesRemoved);
        store.catalog.checkpoint().map_err(|error| failure::of_catalog(&error))?;
        crash_point(Point::GcLogShortened);
        reserve::make(&store.root);
        crash_point(Point::GcEnded);
    }
    Ok(report)
}

/// What was done, for people.
pub(super) fn sentence(report: &Report) -> String {
    let verb = if report.dry_run { "Would free" } else { "Freed" };
    let mut text = format!(
        "{verb} {} in {} and {}\n",
        output::bytes(report.bytes),
        counted(report.layers, "layer"),
        counted(report.leftovers, "leftover"),
    );
    let pruned = &report.pruned;
    let count = |text: &mut String, names: &[String], what: &str| {
        if !names.is_empty() {
            let branches = if names.len() == 1 { "branch" } else { "branches" };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{what} {branches} {}", names.join(", "));
        }
    };
    let deleted = if report.dry_run { "Would delete expired" } else { "Deleted expired" };
    count(&mut text, &pruned.expired_branches, deleted);
    let kept = "Kept, for they are in use or protected, expired";
    count(&mut text, &pruned.expired_branches_kept, kept);
    if pruned.expired_snapshots > 0 {
        let verb = if report.dry_run { "Would delete" } else { "Deleted" };
        let _ = writeln!(text, "{verb} {}", counted(pruned.expired_snapshots, "expired snapshot"));
    }
    if pruned.deleted_branches_kept > 0 {
        let n = pruned.deleted_branches_kept;
        let _ = writeln!(
            text,
            "{} in {n} deleted {} kept for `cowfs undo`; with --now they go",
            output::bytes(report.bytes_kept),
            if n == 1 { "branch" } else { "branches" },
        );
    }
    if report.young_leftovers > 0 {
        text.push_str(&counted(report.young_leftovers, "leftover"));
        text.push_str(" younger than ten minutes kept: a running command may need it\n");
    }
    if report.unknown_layers > 0 {
        text.push_str(&counted(report.unknown_layers, "layer"));
        text.push_str(" with contents kept that the catalog does not know; see `cowfs check`\n");
    }
    text
}

/// One gc at a time: two would remove the same files and report them twice.
fn take_turn(store: &Store) -> Result<FileLock, Failure> {
    FileLock::acquire(&store.run_dir().join("gc.lock")).map_err(|error| match error {
        LockError::Busy { .. } => {
            Failure::new("busy", format!("another gc runs: its lock is {error}"))
                .hint("wait for it to end")
        }
        LockError::Io { .. } => failure::of_lock_file(&error),
    })
}

/// Removes a directory with all in it; one that is missing is fine.
fn remove_tree(dir: &Path) -> Result<(), Failure> {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        // What is refused here is met again below, and said there.
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let _ = if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        crash_point(Point::GcEntryRemoved);
    }
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::new("gc", format!("removing {}: {error}", dir.display())))
        }
        _ => Ok(()),
    }
}

/// Removes the layers that no branch reaches.
///
/// A layer that is sealed or open and unreachable stays so: new layers only ever stand on
/// reachable ones. One that an import fills becomes reachable when the import ends, so it counts
/// only while this process holds the import's lock.
fn remove_layers(store: &Store, report: &mut Report) -> Result<(), Failure> {
    let catalog = |error: CatalogError| failure::of_catalog(&error);
    let rows = store.catalog.all_layers().map_err(catalog)?;
    let reach = store.catalog.reach().map_err(catalog)?;
    let reachable = reach.of(|root| !report.pruned.dooms(root));
    let only_deleted = reach.only_of(|root| root.deleted || report.pruned.dooms(root));
    let kept = only_deleted.intersection(&reachable).map(|id| store.layer_dir(*id));
    report.bytes_kept = kept.map(|dir| disk_usage(&dir)).sum();
    let mut gone = Vec::new();
    let mut claims = Vec::new();
    for row in rows.iter().filter(|row| !reachable.contains(&row.id)) {
        if row.state == LayerState::Importing {
            match claim_import(store, row, report.dry_run).map_err(catalog)? {
                Claim::Alive => continue,
                Claim::Dead(lock) => claims.extend(lock),
            }
        }
        let dir = store.layer_dir(row.id);
        report.bytes += disk_usage(&dir);
        report.layers += 1;
        if !report.dry_run {
            remove_tree(&dir)?;
            crash_point(Point::GcLayerRemoved);
            gone.push(row.id);
        }
    }
    if !gone.is_empty() {
        store.catalog.remove_layers(&gone).map_err(catalog)?;
        crash_point(Point::GcRowsRemoved);
    }
    for lock in claims {
        // What stays is removed by the next gc.
        let _ = lock.remove();
    }
    Ok(())
}

enum Claim {
    /// The import runs, or has just ended.
    Alive,
    /// Nobody runs it. The lock keeps it so; none in a dry run, which leaves no trace.
    Dead(Option<FileLock>),
}

fn claim_import(store: &Store, row: &LayerRow, dry_run: bool) -> Result<Claim, CatalogError> {
    if dry_run {
        let held = FileLock::is_held(&store.import_lock_path(row.id)).unwrap_or(true);
        return Ok(if held { Claim::Alive } else { Claim::Dead(None) });
    }
    let Ok(lock) = store.lock_import(row.id) else { return Ok(Claim::Alive) };
    // The import may have ended between our look at the rows and our lock: then its layer is the
    // base of a branch by now.
    let state = store.catalog.layer(row.id)?.map(|row| row.state);
    if state == Some(LayerState::Importing) {
        Ok(Claim::Dead(Some(lock)))
    } else {
        let _ = lock.remove();
        Ok(Claim::Alive)
    }
}

/// Removes layer directories that no row names.
///
/// They are renamed first, and the young ones only while nobody else has the store open, so that
/// nobody can give one of them a row meanwhile.
fn remove_leftovers(store: &Store, now: bool, report: &mut Report) -> Result<(), Failure> {
    let dry_run = report.dry_run;
    let alone =
        if now { store.while_alone(|| doom(store, dry_run, Duration::ZERO)) } else { Ok(None) };
    let alone = alone.map_err(|error| failure::of_store(&error))?;
    let found = alone.unwrap_or_else(|| doom(store, dry_run, GRACE))?;
    report.young_leftovers = found.young;
    report.unknown_layers = found.unknown;
    for dir in found.doomed {
        report.bytes += disk_usage(&dir);
        report.leftovers += 1;
        if !dry_run {
            remove_tree(&dir)?;
        }
    }
    Ok(())
}

#[derive(Default)]
struct Leftovers {
    doomed: Vec<PathBuf>,
    young: usize,
    unknown: usize,
}

/// Finds the leftovers that are at least `grace` old and (but in a dry run) renames them.
fn doom(store: &Store, dry_run: bool, grace: Duration) -> Result<Leftovers, Failure> {
    let failed = |what: &str, path: &Path, error: &std::io::Error| {
        Failure::new("gc", format!("{what} {}: {error}", path.display()))
    };
    let layers = store.layers_dir();
    let entries: Vec<PathBuf> = std::fs::read_dir(&layers)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(|error| failed("reading", &layers, &error))?;
    // Directories first, rows second: a row that appears in between is seen.
    let rows = store.catalog.all_layers().map_err(|error| failure::of_catalog(&error))?;
    let known: HashSet<OsString> = rows.iter().map(|row| row.id.dir_name().into()).collect();
    let mut found = Leftovers::default();
    for path in entries {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.strip_suffix(DOOMED).is_some_and(is_layer_name) {
            found.doomed.push(path);
            continue;
        }
        if !is_layer_name(name) || known.contains(path.file_name().unwrap_or_default()) {
            continue;
        }
        if Store::holds_contents(&path) {
            found.unknown += 1;
            continue;
        }
        if age(&path).is_none_or(|age| age < grace) {
            found.young += 1;
            continue;
        }
        if dry_run {
            found.doomed.push(path);
            continue;
        }
        let doomed = layers.join(format!("{name}{DOOMED}"));
        match std::fs::rename(&path, &doomed) {
            Ok(()) => {
                crash_point(Point::GcDoomed);
                found.doomed.push(doomed);
            }
            // Whoever made it gave up and removed it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("renaming", &path, &error)),
        }
    }
    Ok(found)
}

/// Whether a directory of that name would be a layer's. Others are not ours to remove.
fn is_layer_name(name: &str) -> bool {
    u64::from_str_radix(name, 16).is_ok_and(|id| LayerId(id).dir_name() == name)
}

/// Time since the last change; `None` if it cannot be told, zero for a time in the future.
fn age(path: &Path) -> Option<Duration> {
    let modified = path.symlink_metadata().and_then(|meta| meta.modified()).ok()?;
    Some(SystemTime::now().duration_since(modified).unwrap_or_default())
}

/// Removes what deleted branches and ended imports left in `run/`; what somebody holds locked
/// stays.
fn remove_run_files(store: &Store) -> Result<(), CatalogError> {
    let mut branches = BTreeSet::new();
    for entry in std::fs::read_dir(store.run_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((owner, _)) = name.to_str().and_then(|name| name.split_once('.')) else {
            continue;
        };
        if let Ok(id) = owner.parse() {
            branches.insert(BranchId(id));
        } else if let Some(layer) = owner.strip_prefix("import-").filter(|id| is_layer_name(id)) {
            let id = u64::from_str_radix(layer, 16).map(LayerId).unwrap_or_default();
            remove_import_lock(store, id, &entry.path())?;
        }
    }
    for id in branches {
        if store.catalog.branch_by_id(id)?.is_some() {
            continue;
        }
        // A child that is being forked has a lock before it has a row, and may have both by now.
        let Ok(lock) = store.lock_branch(id) else { continue };
        if store.catalog.branch_by_id(id)?.is_some() {
            continue;
        }
        for suffix in ["sock", "json", "json.new", "log", "log.old"] {
            let _ = std::fs::remove_file(store.run_dir().join(format!("{id}.{suffix}")));
        }
        Files::new(store.run_dir(), id.0).remove_all();
        let _ = lock.remove();
    }
    Ok(())
}

/// An import takes its lock before its row appears, so only an old lock file without a row is left
/// over.
fn remove_import_lock(store: &Store, layer: LayerId, path: &Path) -> Result<(), CatalogError> {
    if age(path).is_none_or(|age| age < GRACE) {
        return Ok(());
    }
    let Ok(lock) = store.lock_import(layer) else { return Ok(()) };
    let importing =
        store.catalog.layer(layer)?.is_some_and(|row| row.state == LayerState::Importing);
    if !importing {
        let _ = lock.remove();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_names_of_layers_are_ours() {
        for name in ["00000000000a", "ffffffffffff"] {
            assert!(is_layer_name(name), "{name}");
        }
        for name in ["a", "00000000000A", "00000000000a.gone", "0000000000000a", "lost+found", ""] {
            assert!(!is_layer_name(name), "{name}");
        }
    }

    #[test]
    fn the_sentence_counts() {
        let report = Report { layers: 1, bytes: 2048, young_leftovers: 2, ..Report::default() };
        let text = sentence(&report);
        assert!(text.starts_with("Freed 2.00 KiB in 1 layer and 0 leftovers\n"), "{text}");
        assert!(text.contains("2 leftovers younger than ten minutes kept"), "{text}");
    }

    #[test]
    fn an_import_that_ended_meanwhile_keeps_its_layer() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::init(&dir.path().join("store")).unwrap();
        let lock = store.lock_import(LayerId(1)).unwrap();
        store.catalog.begin_import(LayerId(1), None).unwrap();
        let seen = store.catalog.layer(LayerId(1)).unwrap().unwrap();
        assert!(matches!(claim_import(&store, &seen, false).unwrap(), Claim::Alive));
        let new = crate::catalog::NewBranch {
            name: "main".parse().unwrap(),
            origin: "import:/x".to_owned(),
            uid: 0,
            command: String::new(),
            expires_ms: None,
        };
        store.catalog.finish_import(LayerId(1), LayerId(2), &new).unwrap();
        drop(lock);
        // `seen` still says that the import runs, and its lock is free.
        assert!(matches!(claim_import(&store, &seen, false).unwrap(), Claim::Alive));
    }
}
