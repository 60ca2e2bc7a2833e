//! A directory tree becomes a sealed base layer and a branch on top of it, by copy or by adoption.
//!
//! 1. Look at the source ([`crate::postgres`]); refuse what must not be imported.
//! 2. Walk it ([`walk`]) into a [`plan::Plan`]: every name, every inode, what is to be copied.
//!    Nothing has been written so far.
//! 3. Take `run/import-<layer>.lock`, add the catalog row (`importing`), make the layer directory
//!    ([`publish`]). *Crash from here to step 6: the row stays `importing`, its lock is free, gc
//!    removes the layer. A refusal or SIGINT does the same at once.*
//! 4. Copy ([`copy`]), and look at the source again: what changed meanwhile is an error.
//! 5. Make the contents durable, then write the index, durably.
//! 6. One catalog transaction seals the layer and creates the branch. Only now is anything visible.
//!
//! **Invariant**: nothing is written to the source, and no symbolic link of it is followed except
//! the two kinds that Postgres itself makes (`pg_tblspc/<oid>`, `pg_wal`), once, on purpose.

pub mod copy;
mod copy_file;
pub mod error;
pub mod note;
pub mod plan;
mod postgres_links;
mod publish;
pub mod source;
pub mod walk;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use error::ImportError;
pub use note::Note;

use crate::catalog::{BranchName, BranchRow, CatalogError, NewBranch, Store};
use crate::io::crash::{Point, crash_point};
use crate::postgres::{ControlFile, DataDirectory, ProbeError, config, probe};
use copy::CopyStats;
use plan::Plan;
use source::SourceTree;
use walk::{ClusterFacts, WalkOptions};

/// The majors whose data directories are understood.
const SUPPORTED_MAJORS: std::ops::RangeInclusive<u32> = 12..=18;

/// What to import, and how.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    /// The directory.
    pub source: PathBuf,
    /// The name of the branch.
    pub name: BranchName,
    /// Make the directory itself the base, without a copy.
    pub adopt: bool,
    /// Take a cluster that was not shut down cleanly.
    pub allow_crashed: bool,
    /// Take any directory tree.
    pub any: bool,
    /// Files copied at the same time, at least 1.
    pub jobs: usize,
    /// Who asks, for the catalog.
    pub uid: u32,
    /// The command as typed, for the operation log.
    pub command: String,
    /// Set from outside (a signal handler) to give up.
    pub cancel: Arc<AtomicBool>,
}

/// Told how far an import has come; the terminal belongs to the caller.
pub trait Observer: Sync {
    /// So many files with so many bytes are about to be copied.
    fn planned(&self, files: u64, bytes: u64) {
        let _ = (files, bytes);
    }
    /// So many more bytes are done (holes and shared extents count).
    fn advanced(&self, bytes: u64) {
        let _ = bytes;
    }
    /// All bytes are copied; the disk is being waited for.
    fn syncing(&self) {}
}

/// What an import did.
#[derive(Debug, serde::Serialize)]
pub struct ImportReport {
    /// The new branch; in JSON its name.
    #[serde(serialize_with = "note::name_only")]
    pub branch: BranchRow,
    /// The directory, as the system names it.
    #[serde(serialize_with = "note::lossy")]
    pub source: PathBuf,
    /// Whether it was adopted rather than copied.
    pub adopted: bool,
    /// Major version of Postgres, if the tree is a cluster.
    pub postgres_major: Option<u32>,
    /// System identifier of the cluster, as `pg_controldata` shows it.
    pub system_identifier: Option<u64>,
    /// What the tree holds.
    pub counts: plan::Counts,
    /// How the contents were copied.
    pub copied: CopyStats,
    /// What the user must know.
    pub notes: Vec<Note>,
    /// Milliseconds in all.
    pub elapsed_ms: u64,
}

/// Imports a directory tree. On an error nothing is left behind, except after a crash.
pub fn import(
    store: &Store,
    request: &ImportRequest,
    observer: &dyn Observer,
) -> Result<ImportReport, ImportError> {
    let start = std::time::Instant::now();
    if store.catalog.branch(&request.name)?.is_some() {
        return Err(CatalogError::BranchExists { name: request.name.clone() }.into());
    }
    let tree = open_source(&request.source)?;
    refuse_overlap(&store.root, tree.path())?;
    let source = tree.path().to_owned();
    let mut notes = Vec::new();
    let cluster = examine(&source, request, &mut notes)?;
    let options = WalkOptions {
        cluster: cluster.as_ref().map(Cluster::facts),
        adopt: request.adopt,
        any: request.any,
        store: canonical(&store.root)?,
        cancel: request.cancel.clone(),
    };
    let mut plan = walk::walk(tree, &options)?;
    if plan.is_empty_tree() {
        return Err(ImportError::Empty { dir: source });
    }
    let layer = publish::PendingLayer::begin(store, request.adopt.then_some(source.as_path()))?;
    let copied = fill(&layer, &mut plan, request, observer)?;
    crash_point(Point::ImportCopied);
    still_the_same(&source, cluster.as_ref(), &plan, request)?;
    layer.sync_contents(&copied, observer)?;
    let counts = plan.counts.clone();
    notes.append(&mut plan.notes);
    layer.write_index(plan)?;
    interrupted(&request.cancel)?;
    let origin = format!("{}:{}", if request.adopt { "adopt" } else { "import" }, source.display());
    let branch = layer.finish(&NewBranch {
        name: request.name.clone(),
        origin,
        uid: request.uid,
        command: request.command.clone(),
        expires_ms: None,
    })?;
    Ok(ImportReport {
        branch,
        source,
        adopted: request.adopt,
        postgres_major: cluster.as_ref().map(|cluster| cluster.major),
        system_identifier: cluster
            .and_then(|cluster| cluster.control)
            .map(|control| control.system_identifier),
        counts,
        copied,
        notes,
        elapsed_ms: start.elapsed().as_millis() as u64,
    })
}

/// A source that is a Postgres data directory.
struct Cluster {
    major: u32,
    /// `None` only with `--any`: the control file is unusable.
    control: Option<ControlFile>,
}

impl Cluster {
    fn facts(&self) -> ClusterFacts {
        ClusterFacts {
            major: self.major,
            catalog_version: self.control.map(|control| control.catalog_version),
        }
    }
}

fn canonical(dir: &Path) -> Result<PathBuf, ImportError> {
    std::fs::canonicalize(dir).map_err(|source| ImportError::Source { dir: dir.to_owned(), source })
}

fn open_source(dir: &Path) -> Result<SourceTree, ImportError> {
    let path = canonical(dir)?;
    SourceTree::open(&path).map_err(|source| match source.raw_os_error() {
        Some(libc::ENOTDIR) => ImportError::NotADirectory { dir: dir.to_owned() },
        _ => ImportError::Source { dir: path, source },
    })
}

/// Refuses trees that contain the store or lie in it: the copy would copy itself.
fn refuse_overlap(store: &Path, tree: &Path) -> Result<(), ImportError> {
    let store = canonical(store)?;
    if tree.starts_with(&store) || store.starts_with(tree) {
        return Err(ImportError::Overlap { tree: tree.to_owned(), store });
    }
    Ok(())
}

fn running(source: &Path, pid: i32) -> ImportError {
    let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    ImportError::Running { dir: source.to_owned(), pid, command: command.trim().to_owned() }
}

/// What Postgres has to say about the source; `None` for a tree that is no cluster.
fn examine(
    source: &Path,
    request: &ImportRequest,
    notes: &mut Vec<Note>,
) -> Result<Option<Cluster>, ImportError> {
    // A PG_VERSION alone does not make a cluster: the directory of each database has one.
    if request.any && !source.join("global").is_dir() {
        return Ok(None);
    }
    let directory = match DataDirectory::probe(source) {
        Ok(directory) => directory,
        Err(ProbeError::NotADataDirectory { .. } | ProbeError::BadVersion { .. })
            if request.any =>
        {
            return Ok(None);
        }
        Err(ProbeError::NotADataDirectory { .. }) if is_empty_dir(source) => {
            return Err(ImportError::Empty { dir: source.to_owned() });
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(pid) = directory.running_pid {
        return Err(running(source, pid));
    }
    if !SUPPORTED_MAJORS.contains(&directory.major) && !request.any {
        return Err(ImportError::UnsupportedMajor { major: directory.major });
    }
    let control = match directory.control {
        Ok(control) => Some(control),
        Err(error) if request.any => {
            notes.push(Note::ControlFileUnusable { reason: chain(&error) });
            None
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(state) = control.map(|control| control.state)
        && !state.is_clean()
    {
        if !request.allow_crashed {
            return Err(ImportError::NotShutDown { dir: source.to_owned(), state });
        }
        notes.push(Note::NotShutDown { state });
    }
    if config::uses_syncfs(source) {
        notes.push(Note::SyncfsConfigured);
    }
    if !directory.has_config {
        notes.push(Note::NoConfiguration);
    }
    Ok(Some(Cluster { major: directory.major, control }))
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn is_empty_dir(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// Fills the layer: copies, or only counts when the tree is adopted.
fn fill(
    layer: &publish::PendingLayer<'_>,
    plan: &mut Plan,
    request: &ImportRequest,
    observer: &dyn Observer,
) -> Result<CopyStats, ImportError> {
    if request.adopt {
        return Ok(CopyStats::default());
    }
    observer.planned(plan.jobs.len() as u64, plan.bytes_to_copy());
    let settings = copy::CopySettings {
        layer_dir: layer.dir(),
        threads: request.jobs.max(1),
        sync_each_file: layer.syncs_each_file(),
        tolerate_vanished: request.any,
        cancel: &request.cancel,
    };
    let (stats, vanished) = copy::copy_all(plan, &settings, observer)?;
    plan.forget_vanished(&vanished);
    Ok(stats)
}

/// Proves that nobody worked on the source while it was walked and copied.
fn still_the_same(
    source: &Path,
    cluster: Option<&Cluster>,
    plan: &Plan,
    request: &ImportRequest,
) -> Result<(), ImportError> {
    interrupted(&request.cancel)?;
    if let Some(cluster) = cluster {
        if let Some(pid) = probe::running_pid(source) {
            return Err(running(source, pid));
        }
        if cluster.control != probe::read_control_file(source).ok() {
            let path = source.join("global/pg_control");
            return Err(ImportError::Changed { path, change: "its contents differ" });
        }
    }
    // In an arbitrary tree names may come and go (that is what --any tolerates).
    if request.any { Ok(()) } else { plan.verify_directories() }
}

/// Fails when somebody asked to give up.
pub(crate) fn interrupted(cancel: &AtomicBool) -> Result<(), ImportError> {
    if cancel.load(Ordering::Relaxed) { Err(ImportError::Interrupted) } else { Ok(()) }
}
