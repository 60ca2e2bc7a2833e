//! What the serving process does for each request on its control socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::detach::{self, DetachError, Manner};
use super::failure;
use super::listener::Handler;
use super::mountinfo::{self, MountEntry};
use super::process;
use super::protocol::{Failure, Request, Response, ServerStatus};
use super::run_file::RunFile;
use crate::branch::fork::Requester;
use crate::catalog::{BranchName, NewSnapshot};
use crate::fs::Fs;
use crate::fuse::{Metrics, ReadAround};

/// How long a pause waits for what is at work; merging the indexes of a deep branch takes a second.
const STILL_PATIENCE: Duration = Duration::from_secs(20);

/// The mount of this process, and how to take it away.
pub struct OwnMount {
    /// As the kernel listed it right after mounting.
    pub entry: MountEntry,
    /// What fetches the pages around those that are read, and uses the mount for that.
    pub read_around: Option<Arc<ReadAround>>,
}

impl OwnMount {
    /// Takes the mount away, whoever asks for it. One that is gone already is fine.
    ///
    /// Returns true if it was in use: it is detached then, and the kernel goes on sending requests
    /// until the last user is done. With [`Manner::IfUnused`] that is an error instead.
    pub fn take_away(&self, manner: Manner) -> Result<bool, DetachError> {
        let Some(dir) = self.mount_point() else { return Ok(false) };
        if let Some(around) = &self.read_around {
            around.let_go();
        }
        match detach::detach(&dir, Manner::IfUnused) {
            Ok(()) | Err(DetachError::NotMounted { .. }) => Ok(false),
            Err(DetachError::Busy { .. }) if manner == Manner::Lazy => {
                detach::detach(&dir, Manner::Lazy).map(|()| true)
            }
            Err(error) => Err(error),
        }
    }

    /// Where it is mounted now: a directory above it may have been renamed. `None` if it is not,
    /// or if something else was mounted over it.
    pub fn mount_point(&self) -> Option<PathBuf> {
        let entries = mountinfo::read().ok()?;
        let ours =
            |entry: &&MountEntry| (entry.id, entry.device) == (self.entry.id, self.entry.device);
        let dir = entries.iter().find(ours)?.mount_point.clone();
        mountinfo::topmost_at(&entries, &dir).filter(ours).map(|_| dir)
    }
}

/// Carries control requests out on a served branch.
pub struct BranchHandler {
    /// The filesystem, with its branch.
    pub fs: Arc<Fs>,
    /// Counts and latencies.
    pub metrics: Arc<Metrics>,
    /// The mount.
    pub mount: Arc<OwnMount>,
    /// What the run file says.
    pub run: RunFile,
    /// Whether requests come by io_uring.
    pub io_uring: bool,
}

impl Handler for BranchHandler {
    fn handle(&self, uid: u32, request: Request) -> Result<Response, Failure> {
        match request {
            Request::Ping => Ok(Response::Pong { pid: self.run.pid, version: version() }),
            Request::Status => Ok(Response::Status(Box::new(self.status()))),
            Request::Fork { name, uid: creator, command } => {
                let creator = creator.filter(|_| uid == 0).unwrap_or(uid);
                self.fork(&name, &Requester { uid: creator, command })
            }
            Request::Snapshot { name, expires_ms, uid: creator, command } => {
                let uid = creator.filter(|_| uid == 0).unwrap_or(uid);
                self.snapshot(NewSnapshot { name, expires_ms, uid, command })
            }
            Request::Quota { bytes } => {
                self.fs.quota.set(bytes);
                Ok(Response::Limited)
            }
            Request::Compaction { pause } => self.compaction(pause),
            Request::Sync => match self.fs.sync_everything() {
                Ok(_durable) => Ok(Response::Synced),
                Err(error) => Err(failure::of_fs(&error)),
            },
            Request::Unmount { lazy } => self.unmount(lazy),
            Request::Seal => match self.fs.branch.seal() {
                Ok(sealed) => Ok(Response::Sealed { sealed }),
                Err(error) => Err(failure::of_branch(&error)),
            },
        }
    }
}

impl BranchHandler {
    fn status(&self) -> ServerStatus {
        let mount_point = self.mount.mount_point();
        ServerStatus {
            pid: self.run.pid,
            version: version(),
            attached: mount_point.is_some(),
            mount_point: mount_point.unwrap_or_else(|| self.run.mount_point.clone()),
            since_ms: self.run.since_ms,
            read_only: self.run.read_only,
            io_uring: self.io_uring,
            read_around: self.mount.read_around.as_ref().map(|around| around.stats()),
            host_cache: self.fs.branch.data.host_cache.keeps(),
            branch: self.fs.branch.stats(),
            compaction: self.fs.branch.compaction_stats(),
            requests: self.metrics.snapshot(),
            resident_bytes: process::resident_bytes(),
        }
    }

    fn fork(&self, name: &str, by: &Requester) -> Result<Response, Failure> {
        let name: BranchName =
            name.parse().map_err(|error| Failure::caused("branch_name", &error).exit(2))?;
        let report = self.fs.branch.fork(name, by).map_err(|error| failure::of_branch(&error))?;
        tracing::info!(
            child = %report.child.name,
            gate_us = report.gate_us,
            total_us = report.total_us,
            "forked"
        );
        Ok(Response::Forked {
            child: report.child.id,
            gate_us: report.gate_us,
            commit_us: report.commit_us,
            total_us: report.total_us,
        })
    }

    fn snapshot(&self, new: NewSnapshot) -> Result<Response, Failure> {
        let report = self.fs.branch.snapshot(new).map_err(|error| failure::of_branch(&error))?;
        let (name, times) = (&report.snapshot.name, report.times);
        tracing::info!(%name, gate_us = times.gate_us, total_us = times.total_us, "snapshot taken");
        Ok(Response::Snapshotted { times })
    }

    fn compaction(&self, pause: bool) -> Result<Response, Failure> {
        let branch = &self.fs.branch;
        let done = if pause {
            branch.pause_compaction(STILL_PATIENCE).map(|done| (done.changed, done.still))
        } else {
            branch.resume_compaction().map(|changed| (changed, true))
        };
        let (changed, still) = done.map_err(|error| failure::of_branch(&error))?;
        tracing::info!(pause, changed, "compaction");
        Ok(Response::Compaction { changed, still, stats: branch.compaction_stats() })
    }

    fn unmount(&self, lazy: bool) -> Result<Response, Failure> {
        let manner = if lazy { Manner::Lazy } else { Manner::IfUnused };
        let was_detached = self.mount.mount_point().is_none();
        match self.mount.take_away(manner) {
            Ok(in_use) => {
                let in_use = in_use || (lazy && was_detached);
                tracing::info!(in_use, "unmounted on request");
                Ok(Response::Unmounted { in_use })
            }
            Err(error @ DetachError::Busy { .. }) => Err(Failure::caused(IN_USE, &error)),
            Err(error) => Err(Failure::caused("unmount", &error)),
        }
    }
}

/// Kind of the failure that says that somebody uses the mount.
pub const IN_USE: &str = "mount_in_use";

fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}
