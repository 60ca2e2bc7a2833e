//! Copies the contents of all planned files into the layer, in parallel.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::fcntl::OFlag;
use parking_lot::Mutex;

use super::copy_file::{Abilities, Copied, CopyError, FileCopy};
use super::plan::{CopyJob, Plan};
use super::source::{Identity, modified, open_for_copy};
use super::{ImportError, Observer};
use crate::io::crash::{Point, crash_point};

/// How contents came into the layer.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct CopyStats {
    /// Files whose extents the host shares with the source.
    pub shared_files: u64,
    /// Files that were copied.
    pub copied_files: u64,
    /// Bytes that were copied; neither holes nor shared extents.
    pub copied_bytes: u64,
    /// Directories that were made, relative to the layer; whoever syncs needs them.
    #[serde(skip)]
    pub directories: Vec<PathBuf>,
}

/// How to copy.
pub(super) struct CopySettings<'a> {
    /// The layer's directory.
    pub(super) layer_dir: &'a Path,
    /// Files copied at a time.
    pub(super) threads: usize,
    /// fdatasync every file (else somebody syncs the whole filesystem).
    pub(super) sync_each_file: bool,
    /// A file that is gone is left out instead of an error.
    pub(super) tolerate_vanished: bool,
    /// Set from outside to give up.
    pub(super) cancel: &'a AtomicBool,
}

/// What the workers share.
struct Work<'a> {
    plan: &'a Plan,
    settings: &'a CopySettings<'a>,
    observer: &'a dyn Observer,
    abilities: Abilities,
    next: AtomicUsize,
    /// Set by the first worker that fails: the others stop.
    failed: AtomicBool,
    results: Mutex<Results>,
}

#[derive(Default)]
struct Results {
    stats: CopyStats,
    vanished: Vec<CopyJob>,
    error: Option<ImportError>,
}

/// Copies every job of the plan. Returns what was gone, if that is tolerated.
pub(super) fn copy_all(
    plan: &Plan,
    settings: &CopySettings<'_>,
    observer: &dyn Observer,
) -> Result<(CopyStats, Vec<CopyJob>), ImportError> {
    let directories = make_directories(plan, settings.layer_dir)?;
    crash_point(Point::ImportDirsMade);
    let work = Work {
        plan,
        settings,
        observer,
        abilities: Abilities::default(),
        next: AtomicUsize::new(0),
        failed: AtomicBool::new(false),
        results: Mutex::default(),
    };
    let threads = settings.threads.clamp(1, plan.jobs.len().max(1));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work.run());
        }
    });
    let results = work.results.into_inner();
    match results.error {
        Some(error) => Err(error),
        None => Ok((CopyStats { directories, ..results.stats }, results.vanished)),
    }
}

/// Makes the directories of data files; returns them with those above, deepest first.
fn make_directories(plan: &Plan, layer_dir: &Path) -> Result<Vec<PathBuf>, ImportError> {
    let mut needed = BTreeSet::new();
    for job in &plan.jobs {
        let path = job.ino.data_path();
        needed.extend(
            path.ancestors()
                .skip(1)
                .filter(|dir| !dir.as_os_str().is_empty())
                .map(Path::to_path_buf),
        );
    }
    for dir in &needed {
        let dir = layer_dir.join(dir);
        DirBuilder::new().mode(0o700).create(&dir).map_err(ImportError::host("creating", dir))?;
    }
    Ok(needed.into_iter().rev().collect())
}

impl Work<'_> {
    fn run(&self) {
        let mut stats = CopyStats::default();
        let mut vanished = Vec::new();
        // Files come in the order of the walk: the directory is mostly that of the last one.
        let mut open_dir = None;
        while !self.failed.load(Ordering::Relaxed) {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = self.plan.jobs.get(index) else { break };
            match self.copy_one(job, &mut open_dir) {
                Ok(Some(Copied::Shared)) => stats.shared_files += 1,
                Ok(Some(Copied::Data(bytes))) => {
                    stats.copied_files += 1;
                    stats.copied_bytes += bytes;
                }
                Ok(None) => vanished.push(*job),
                Err(error) => {
                    self.failed.store(true, Ordering::Relaxed);
                    // The first error is the cause; later ones may be its consequences.
                    self.results.lock().error.get_or_insert(error);
                    break;
                }
            }
        }
        let mut results = self.results.lock();
        results.stats.shared_files += stats.shared_files;
        results.stats.copied_files += stats.copied_files;
        results.stats.copied_bytes += stats.copied_bytes;
        results.vanished.append(&mut vanished);
    }

    /// Copies one file; `None` if it is gone and that is tolerated.
    fn copy_one(
        &self,
        job: &CopyJob,
        open_dir: &mut Option<(usize, OwnedFd)>,
    ) -> Result<Option<Copied>, ImportError> {
        super::interrupted(self.settings.cancel)?;
        let path = || self.plan.job_path(job);
        let source = match self.open_source(job, open_dir) {
            Ok(source) => source,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if self.settings.tolerate_vanished {
                    return Ok(None);
                }
                return Err(ImportError::Changed { path: path(), change: "it is gone" });
            }
            Err(e) if e.raw_os_error() == Some(libc::ELOOP) => {
                let change = "a symbolic link took its place";
                return Err(ImportError::Changed { path: path(), change });
            }
            Err(source) => return Err(ImportError::Host { what: "reading", path: path(), source }),
        };
        self.unchanged(job, &source)?;
        let target_path = self.settings.layer_dir.join(job.ino.data_path());
        let target = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&target_path)
            .map_err(ImportError::host("creating", &target_path))?;
        crash_point(Point::ImportFileCreated);
        let copied = FileCopy {
            source: &source,
            target: &target,
            size: self.plan.inode(job.ino).size,
            abilities: &self.abilities,
            cancel: self.settings.cancel,
            advanced: &|bytes| self.observer.advanced(bytes),
        }
        .run()
        .map_err(|error| self.copy_error(job, &target_path, error))?;
        // Only now: what changed while the bytes were taken must not go unnoticed.
        self.unchanged(job, &source)?;
        if self.settings.sync_each_file {
            target.sync_data().map_err(ImportError::host("syncing the copy of", path()))?;
        }
        crash_point(Point::ImportFileCopied);
        Ok(Some(copied))
    }

    fn open_source(
        &self,
        job: &CopyJob,
        open_dir: &mut Option<(usize, OwnedFd)>,
    ) -> io::Result<File> {
        let dir = match open_dir.take() {
            Some((index, fd)) if index == job.dir => fd,
            _ => {
                let dir = &self.plan.dirs[job.dir];
                self.plan.trees[dir.tree].open_at(&dir.path, OFlag::O_PATH | OFlag::O_DIRECTORY)?
            }
        };
        let opened = open_for_copy(&dir, &self.plan.dirents[job.dirent].name);
        *open_dir = Some((job.dir, dir));
        Ok(File::from(opened?))
    }

    /// Fails unless the file is the one that the walk saw, with the same size and time.
    fn unchanged(&self, job: &CopyJob, source: &File) -> Result<(), ImportError> {
        let path = || self.plan.job_path(job);
        let metadata = source.metadata().map_err(ImportError::host("reading", path()))?;
        let planned = self.plan.inode(job.ino);
        let change = if Identity::of(&metadata) != job.identity || !metadata.is_file() {
            "another file took its place"
        } else if metadata.len() != planned.size {
            "its size differs"
        } else if modified(&metadata) != planned.mtime {
            "it was modified"
        } else {
            return Ok(());
        };
        Err(ImportError::Changed { path: path(), change })
    }

    fn copy_error(&self, job: &CopyJob, target: &Path, error: CopyError) -> ImportError {
        match error {
            CopyError::Read(source) => {
                ImportError::Host { what: "reading", path: self.plan.job_path(job), source }
            }
            CopyError::Write(source) => {
                ImportError::Host { what: "writing", path: target.to_owned(), source }
            }
            CopyError::Shrank => {
                ImportError::Changed { path: self.plan.job_path(job), change: "its size differs" }
            }
            CopyError::Interrupted => ImportError::Interrupted,
        }
    }
}
