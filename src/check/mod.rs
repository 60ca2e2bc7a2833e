//! The offline verifier: reads a store through `catalog`, `format` and `io` only, never through
//! the engine, so that it does not share the engine's mistakes. It changes nothing but what
//! [`repair`](mend::mend) is told to.

mod adopted;
mod contents;
mod journal;
mod layer;
pub mod mend;
mod names;
mod pack;
mod strangers;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use crate::catalog::witness::{self, Noted};
use crate::catalog::{BranchName, BranchRow, CatalogError, LayerRow, LayerState, Store};
use crate::format::LayerId;

/// Something that is not as it must be.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Finding {
    /// The file or directory at fault.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
    /// The branches that stand on it.
    pub branches: Vec<String>,
    /// What would mend it without a risk for data, if anything does.
    pub mend: Option<mend::Mend>,
    /// The layer that it is about, if it is about one.
    #[serde(skip)]
    pub layer: Option<LayerId>,
}

/// JSON knows no names that are not UTF-8.
fn lossy<S: serde::Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}

fn all_lossy<S: serde::Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}

/// What to look at.
#[derive(Debug, Default)]
pub struct Options {
    /// Only what this branch stands on.
    pub branch: Option<BranchName>,
    /// Read all contents, and compare them with their checksums.
    pub read_data: bool,
}

/// What a check saw.
#[derive(Debug, Default, serde::Serialize)]
pub struct Report {
    /// Branches looked at.
    pub branches: usize,
    /// Layers that they reach.
    pub layers: usize,
    /// Data files compared with the ownership that indexes claim.
    pub data_files: u64,
    /// Names whose targets were followed.
    pub names: u64,
    /// Bytes of contents that were read and agree with their checksum.
    pub verified_bytes: u64,
    /// Bytes of contents that were read and have no checksum (yet).
    pub unverified_bytes: u64,
    /// Layers that nothing reaches; `cowfs gc` frees them. Not damage.
    pub unreachable_layers: usize,
    /// Bytes in data files that no record leads to. Not damage.
    pub leaked_bytes: u64,
    /// Damage; empty for a sound store.
    pub damage: Vec<Finding>,
    /// What is superfluous, and harmless.
    pub leftovers: Vec<Finding>,
    /// Files among those of the layers that cowfs has not made. Nobody reads them.
    #[serde(serialize_with = "all_lossy")]
    pub strangers: Vec<PathBuf>,
    #[serde(skip)]
    affected: BTreeMap<LayerId, BTreeSet<String>>,
    #[serde(skip)]
    current: Option<LayerId>,
}

impl Report {
    fn finding(&self, path: PathBuf, problem: String, mend: Option<mend::Mend>) -> Finding {
        let branches = self.current.and_then(|layer| self.affected.get(&layer));
        let branches = branches.into_iter().flatten().cloned().collect();
        Finding { path, problem, branches, mend, layer: self.current }
    }

    fn damaged(&mut self, path: impl Into<PathBuf>, problem: impl std::fmt::Display) {
        let finding = self.finding(path.into(), problem.to_string(), None);
        self.damage.push(finding);
    }

    fn mendable(
        &mut self,
        path: impl Into<PathBuf>,
        problem: impl std::fmt::Display,
        mend: mend::Mend,
    ) {
        let finding = self.finding(path.into(), problem.to_string(), Some(mend));
        self.damage.push(finding);
    }

    fn stranger(&mut self, path: PathBuf) {
        self.strangers.push(path);
    }

    fn leftover(&mut self, path: impl Into<PathBuf>, problem: &str, mend: mend::Mend) {
        let finding = self.finding(path.into(), problem.to_owned(), Some(mend));
        self.leftovers.push(finding);
    }
}

/// Verifies a store: the catalog, every reachable layer's logs and indexes with all checksums,
/// every claim of ownership against its data file, and the tree of names of every branch. Branches
/// may be mounted meanwhile: of what they have not synced yet nothing is expected.
///
/// `progress` is told of every few megabytes of contents that were read (their number in bytes).
pub fn check(
    store: &Store,
    options: &Options,
    progress: &mut dyn FnMut(u64),
) -> Result<Report, CatalogError> {
    let mut report = Report::default();
    check_catalog(store, &mut report)?;
    let mut branches = store.catalog.branches()?;
    if let Some(only) = &options.branch {
        branches.retain(|branch| branch.name == *only);
    }
    report.branches = branches.len();
    for row in &branches {
        let Some(begins) = row.begins else { continue };
        // A chain that cannot be followed is told of below.
        let stands = |chain: Vec<LayerRow>| chain.iter().any(|layer| layer.id == begins);
        if store.catalog.chain(row.head).is_ok_and(|chain| !stands(chain)) {
            let (name, layer) = (&row.name, begins.dir_name());
            let problem =
                format!("branch {name} does not stand on layer {layer}, with which it began");
            report.damaged(store.catalog.path(), problem);
        }
    }
    let mut chains = Vec::new();
    for (who, top) in states(store, branches, options.branch.is_none())? {
        match store.catalog.chain(top) {
            Ok(chain) => {
                for row in &chain {
                    report.affected.entry(row.id).or_default().insert(who.clone());
                }
                chains.push(chain);
            }
            Err(error) => report.damaged(store.catalog.path(), format!("branch {who}: {error}")),
        }
    }
    let sound = check_layers(store, options, progress, &mut report)?;
    check_trees(store, &chains, &sound, &mut report);
    report.current = None;
    if options.branch.is_none() {
        strangers::check_layers_dir(store, &mut report)?;
    }
    Ok(report)
}

/// The catalog itself, and whether it is as young as the store.
fn check_catalog(store: &Store, report: &mut Report) -> Result<(), CatalogError> {
    let path = store.catalog.path();
    for problem in store.catalog.self_check()? {
        report.damaged(path, problem);
    }
    match store.catalog.require_current() {
        Err(error @ CatalogError::WentBack { .. }) => report.damaged(path, error),
        other => other?,
    }
    if witness::read(path) == Noted::Damaged {
        let problem = "it does not say how many commits were made";
        report.mendable(witness::path_of(path), problem, mend::Mend::RemoveNote);
    }
    Ok(())
}

/// All that the store promises to keep: the branches with their snapshots and, if `with_deleted`,
/// what was deleted and can come back. For each what it is called, and its newest layer.
fn states(
    store: &Store,
    branches: Vec<BranchRow>,
    with_deleted: bool,
) -> Result<Vec<(String, LayerId)>, CatalogError> {
    let deleted = if with_deleted { store.catalog.deleted_branches()? } else { Vec::new() };
    let snapshots = store.catalog.snapshots()?;
    let mut states = Vec::new();
    for row in branches.into_iter().chain(deleted) {
        let name = match row.deleted_ms {
            None => row.name.to_string(),
            Some(_) => format!("{} (deleted, id {})", row.name, row.id),
        };
        for snapshot in snapshots.iter().filter(|snapshot| snapshot.branch == row.id) {
            states.push((format!("{name}@{}", snapshot.name), snapshot.layer));
        }
        states.push((name, row.head));
    }
    Ok(states)
}

/// Looks at every layer; returns those whose records can be read.
fn check_layers(
    store: &Store,
    options: &Options,
    progress: &mut dyn FnMut(u64),
    report: &mut Report,
) -> Result<HashSet<LayerId>, CatalogError> {
    let reachable = store.catalog.reachable_layers()?;
    let mut sound = HashSet::new();
    for row in store.catalog.all_layers()? {
        if !reachable.contains(&row.id) {
            report.unreachable_layers += usize::from(row.state != LayerState::Importing);
            continue;
        }
        if !report.affected.contains_key(&row.id) {
            continue;
        }
        report.layers += 1;
        report.current = Some(row.id);
        let before = report.damage.len();
        layer::check_layer(store, &row, report);
        if report.damage.len() == before {
            sound.insert(row.id);
        }
        contents::check_contents(store, &row, options.read_data, progress, report);
        pack::check_pack(store, &row, options.read_data, progress, report);
    }
    Ok(sound)
}

/// Follows the names of every branch whose layers can all be read; branches with the same
/// contents are followed once.
fn check_trees(
    store: &Store,
    chains: &[Vec<LayerRow>],
    sound: &HashSet<LayerId>,
    report: &mut Report,
) {
    let mut followed = HashSet::new();
    for chain in chains {
        let used: Vec<&LayerRow> =
            chain.iter().filter(|row| names::has_records(store, row)).collect();
        let Some(newest) = used.first() else { continue };
        if !followed.insert(newest.id) || !used.iter().all(|row| sound.contains(&row.id)) {
            continue;
        }
        report.current = Some(newest.id);
        if let Err(problem) = names::check_tree(store, &used, report) {
            report.damaged(store.layer_dir(newest.id), problem);
        }
    }
}
