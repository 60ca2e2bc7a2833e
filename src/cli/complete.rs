//! What a shell offers for the name of a branch or of a snapshot.

use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::CompleteEnv;

use super::{Cli, STORE_VARIABLE};
use crate::catalog::{Store, default_store_dir};

/// Set by the scripts of `cowfs completions` when a shell asks.
pub(super) const VARIABLE: &str = "COWFS_COMPLETE";

/// Answers a shell that asks for completions, and ends the process then.
pub(super) fn answer() {
    CompleteEnv::with_factory(Cli::command)
        .var(VARIABLE)
        .bin("cowfs")
        .completer("cowfs")
        .complete();
}

/// Names of branches.
pub(super) fn branches() -> ArgValueCandidates {
    ArgValueCandidates::new(|| names(true, false))
}

/// Names of branches, and of their snapshots after an @.
pub(super) fn points() -> ArgValueCandidates {
    ArgValueCandidates::new(|| names(true, true))
}

/// Names of snapshots with their branches.
pub(super) fn snapshots() -> ArgValueCandidates {
    ArgValueCandidates::new(|| names(false, true))
}

/// What the store of the command line being typed holds; nothing, if there is none.
fn names(branches: bool, snapshots: bool) -> Vec<CompletionCandidate> {
    let Ok(store) = Store::open(&store_dir()) else { return Vec::new() };
    let Ok(rows) = store.catalog.branches() else { return Vec::new() };
    let mut names: Vec<String> = Vec::new();
    if branches {
        names.extend(rows.iter().map(|row| row.name.to_string()));
    }
    if snapshots {
        for snapshot in store.catalog.snapshots().unwrap_or_default() {
            let branch = rows.iter().find(|row| row.id == snapshot.branch);
            names.extend(branch.map(|row| format!("{}@{}", row.name, snapshot.name)));
        }
    }
    names.into_iter().map(CompletionCandidate::new).collect()
}

fn store_dir() -> PathBuf {
    let mut words = std::env::args_os().skip_while(|word| word != "--store").skip(1);
    let named = words.next().or_else(|| std::env::var_os(STORE_VARIABLE));
    named.filter(|dir| !dir.is_empty()).map_or_else(default_store_dir, PathBuf::from)
}
