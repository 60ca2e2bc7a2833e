//! The offline verifier: reads a store through `catalog`, `format` and `io` only, never through
//! the engine, so that it does not share the engine's mistakes. It changes nothing.

mod adopted;
mod layer;

use std::path::PathBuf;

use crate::catalog::{CatalogError, LayerState, Store};

/// Something that is not as it must be.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Finding {
    /// The file or directory at fault.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

/// What a check saw.
#[derive(Debug, Default, serde::Serialize)]
pub struct Report {
    /// Branches in the catalog.
    pub branches: usize,
    /// Layers that some branch reaches.
    pub layers: usize,
    /// Data files compared with the ownership that indexes claim.
    pub data_files: u64,
    /// Layers that nothing reaches; `cowfs gc` frees them. Not damage.
    pub unreachable_layers: usize,
    /// Damage; empty for a sound store.
    pub damage: Vec<Finding>,
}

impl Report {
    fn damaged(&mut self, path: impl Into<PathBuf>, problem: impl std::fmt::Display) {
        self.damage.push(Finding { path: path.into(), problem: problem.to_string() });
    }
}

/// Verifies a store: the catalog, every reachable layer's logs and indexes with all checksums,
/// and every claim of ownership against its data file. Branches may be mounted meanwhile.
pub fn check(store: &Store) -> Result<Report, CatalogError> {
    let mut report = Report { branches: store.catalog.branches()?.len(), ..Report::default() };
    for problem in store.catalog.self_check()? {
        report.damaged(store.catalog.path(), problem);
    }
    for branch in store.catalog.branches()? {
        if let Err(error) = store.catalog.chain(branch.head) {
            report.damaged(store.catalog.path(), format!("branch {}: {error}", branch.name));
        }
    }
    let reachable = store.catalog.reachable_layers()?;
    for row in store.catalog.all_layers()? {
        if !reachable.contains(&row.id) {
            report.unreachable_layers += usize::from(row.state != LayerState::Importing);
            continue;
        }
        report.layers += 1;
        layer::check_layer(store, &row, &mut report);
    }
    Ok(report)
}
