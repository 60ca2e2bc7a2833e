//! Fork: a new branch from the state of another at one instant, in constant time.
//!
//! The steps and what a crash after each of them leaves are in docs/ARCHITECTURE.md.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::open::{Host, data_files, first_use};
use super::view::View;
use super::{Branch, BranchError, OpenMode};
use crate::catalog::{
    BranchLock, BranchName, BranchRow, ForkPlan, LayerRow, NewBranch, SealPlan, Store,
};
use crate::format::LayerId;
use crate::io::crash::{Point, crash_point};
use crate::layer::open::OpenLayer;
use crate::layer::replay;

/// How long a fork took, by part.
#[derive(Clone, Debug)]
pub struct ForkReport {
    /// The new branch.
    pub child: BranchRow,
    /// Microseconds that changing requests of the parent were held up.
    pub gate_us: u64,
    /// Microseconds of the catalog's durable commit.
    pub commit_us: u64,
    /// Microseconds in all.
    pub total_us: u64,
}

/// Who asks, for the operation log.
#[derive(Clone, Debug)]
pub struct Requester {
    /// User id.
    pub uid: u32,
    /// The command as typed.
    pub command: String,
}

/// A random layer id: 48 bits, never 0. A collision is refused by the catalog's primary key.
pub fn random_layer_id() -> io::Result<LayerId> {
    let mut bytes = [0; 8];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(LayerId((u64::from_le_bytes(bytes) & 0xffff_ffff_ffff).max(1)))
}

pub(super) fn new_layer_id() -> Result<LayerId, BranchError> {
    random_layer_id().map_err(|source| BranchError::Host {
        what: "reading",
        path: "/dev/urandom".into(),
        source,
    })
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn plan_seal(open: LayerId, seal: bool) -> Result<Option<SealPlan>, BranchError> {
    let plan = |parent_next| SealPlan { open, parent_next };
    seal.then(|| new_layer_id().map(plan)).transpose()
}

pub(super) fn new_branch(name: BranchName, origin: String, by: &Requester) -> NewBranch {
    NewBranch { name, origin, uid: by.uid, command: by.command.clone(), expires_ms: None }
}

/// The plan for a fork of `parent` whose open layer is `open`.
fn plan(
    parent: &BranchRow,
    open: LayerId,
    open_parent: Option<LayerId>,
    seal: Option<SealPlan>,
    child: NewBranch,
) -> Result<ForkPlan, BranchError> {
    let child_base = if seal.is_some() { Some(open) } else { open_parent };
    Ok(ForkPlan { parent: parent.id, child, seal, child_base, child_head: new_layer_id()? })
}

/// How long an instant that was kept took, by part; all in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Times {
    /// Changing requests of the branch were held up.
    pub gate_us: u64,
    /// The catalog's durable commit.
    pub commit_us: u64,
    /// In all.
    pub total_us: u64,
}

impl Branch {
    /// Forks this (served, perhaps busy) branch.
    pub fn fork(&self, name: BranchName, by: &Requester) -> Result<ForkReport, BranchError> {
        let child = new_branch(name, format!("fork:{}", self.row.name), by);
        let ((child, lock), times) = self.freeze(|open, open_parent, seal| {
            self.commit_fork(&plan(&self.row, open, open_parent, seal, child)?)
        })?;
        // The child may be served from here on: what it stands on does not change any more.
        drop(lock);
        crash_point(Point::ForkReleased);
        let Times { gate_us, commit_us, total_us } = times;
        Ok(ForkReport { child, gate_us, commit_us, total_us })
    }

    /// Freezes the state of this moment: `commit` makes durable what comes of it, given the open
    /// layer, the one below that, and how the open layer is sealed, unless it is empty.
    pub(super) fn freeze<T>(
        &self,
        commit: impl FnOnce(LayerId, Option<LayerId>, Option<SealPlan>) -> Result<T, BranchError>,
    ) -> Result<(T, Times), BranchError> {
        let start = Instant::now();
        let _turn = self.fork_turn.lock();
        let view = self.view();
        let seal = !view.open.is_empty();
        if seal && self.mode == OpenMode::ReadOnly {
            return Err(BranchError::ReadOnly { name: self.row.name.to_string() });
        }
        let (open, open_parent) = (view.open.id, view.open_parent);
        let seal = plan_seal(open, seal)?;
        drop(view);
        crash_point(Point::ForkPlanned);
        let commit_start = Instant::now();
        let value = commit(open, open_parent, seal)?;
        let commit_us = micros(commit_start.elapsed());
        crash_point(Point::ForkCommitted);
        let gate_start = Instant::now();
        if let Some(seal) = seal {
            self.swap_open(seal.parent_next);
        }
        let gate_us = micros(gate_start.elapsed());
        crash_point(Point::ForkSwapped);
        self.background.wake();
        Ok((value, Times { gate_us, commit_us, total_us: micros(start.elapsed()) }))
    }

    fn commit_fork(&self, plan: &ForkPlan) -> Result<(BranchRow, Option<BranchLock>), BranchError> {
        let mut child_lock = None;
        let row = self.store.catalog.fork(plan, &mut |id| {
            child_lock = Some(self.store.lock_branch(id).map_err(io::Error::other)?);
            crash_point(Point::ForkReserved);
            Ok(())
        })?;
        Ok((row, child_lock))
    }

    /// The instant of the fork: the open layer freezes, `next` takes its place.
    fn swap_open(&self, next: LayerId) {
        // Forks and seals take turns, so the depth cannot change before the gate is held.
        let depth = self.view().open_depth + 1;
        let first_use = first_use(&self.store, next);
        let open = OpenLayer::empty((next, depth), self.data.clone(), self.boot_id, first_use);
        let _gate = self.gate.write();
        self.replace_view(|old| {
            let frozen = std::iter::once(old.open.clone()).chain(old.frozen.iter().cloned());
            View {
                generation: old.generation + 1,
                open: Arc::new(open),
                open_parent: Some(old.open.id),
                open_depth: depth,
                frozen: frozen.collect(),
                sealed: old.sealed.clone(),
                data: old.data.clone(),
            }
        });
    }

    /// Seals the open layer without a fork, so that its logs can go once its index is written.
    ///
    /// Returns whether there was anything to seal.
    pub fn seal(&self) -> Result<bool, BranchError> {
        let _turn = self.fork_turn.lock();
        let view = self.view();
        if view.open.is_empty() || self.mode == OpenMode::ReadOnly {
            return Ok(false);
        }
        let next = new_layer_id()?;
        crash_point(Point::SealPlanned);
        self.store.catalog.seal(self.row.id, view.open.id, next)?;
        crash_point(Point::SealCommitted);
        drop(view);
        self.swap_open(next);
        crash_point(Point::SealSwapped);
        self.background.wake();
        Ok(true)
    }
}

/// Forks a branch that no process serves; the caller holds its lock.
///
/// One catalog transaction. What the parent's logs hold is turned into an index by whoever mounts
/// either branch first.
pub fn fork_unmounted(
    store: &Arc<Store>,
    parent: &BranchRow,
    _lock: &BranchLock,
    name: BranchName,
    by: &Requester,
) -> Result<ForkReport, BranchError> {
    let start = Instant::now();
    let (head, seal) = plan_unmounted(store, parent)?;
    let child = new_branch(name, format!("fork:{}", parent.name), by);
    let plan = plan(parent, head.id, head.parent, seal, child)?;
    crash_point(Point::OfflineForkPlanned);
    let mut child_lock = None;
    let row = store.catalog.fork(&plan, &mut |id| {
        child_lock = Some(store.lock_branch(id).map_err(io::Error::other)?);
        Ok(())
    })?;
    crash_point(Point::OfflineForkCommitted);
    let total_us = micros(start.elapsed());
    Ok(ForkReport { child: row, gate_us: 0, commit_us: total_us, total_us })
}

/// The head of a branch that nobody serves, and how it is sealed, unless it is empty.
pub(super) fn plan_unmounted(
    store: &Arc<Store>,
    branch: &BranchRow,
) -> Result<(LayerRow, Option<SealPlan>), BranchError> {
    let host = Host::real()?;
    let data = data_files(host.storage, store);
    let head = store
        .catalog
        .layer(branch.head)?
        .ok_or(BranchError::LayerMissing { layer: branch.head })?;
    let seal = plan_seal(head.id, replay::has_content(&data, head.id, host.boot_id)?)?;
    Ok((head, seal))
}
