//! What `cowfs status` shows of a branch, and its form in JSON.

use std::path::Path;

use super::super::sizes::Sizes;
use super::compaction::Compaction;
use super::output;
use crate::branch::close::BranchStats;
use crate::catalog::{CatalogError, LayerState, Store};
use crate::format::{BranchId, LayerId};
use crate::fuse::{ReadAroundStats, RequestStats};
use crate::serve::status::{BranchStatus, State};

/// A branch with what lies below its open layer.
pub(super) struct Shown {
    pub status: BranchStatus,
    /// Bytes on disk of the sealed layers; the data of an adopted base lies elsewhere.
    pub sealed_bytes: u64,
    pub sealed_layers: usize,
}

impl Shown {
    /// Adds what lies below; nothing if the branch was deleted meanwhile.
    pub fn of(
        status: BranchStatus,
        store: &Store,
        sizes: &mut Sizes,
    ) -> Result<Shown, CatalogError> {
        let chain = match store.catalog.branch_by_id(status.id)? {
            Some(row) => store.catalog.chain(row.head)?,
            None => Vec::new(),
        };
        let sealed = chain.iter().filter(|layer| layer.state == LayerState::Sealed);
        let sealed: Vec<LayerId> = sealed.map(|layer| layer.id).collect();
        let sealed_bytes = sizes.sum(store, &sealed);
        Ok(Shown { status, sealed_bytes, sealed_layers: sealed.len() })
    }
}

/// The form in JSON: names, states and times as in every other command.
#[derive(serde::Serialize)]
pub(super) struct ForJson<'a> {
    branch: &'a str,
    id: BranchId,
    state: State,
    mount_point: Option<&'a Path>,
    pid: Option<u32>,
    since: Option<String>,
    read_only: Option<bool>,
    /// Bytes of pages that the open layer owns; none where no process tells.
    open_bytes: Option<u64>,
    sealed_bytes: u64,
    sealed_layers: usize,
    server: Option<Server<'a>>,
    problem: Option<&'a str>,
}

/// What the serving process tells of itself.
#[derive(serde::Serialize)]
struct Server<'a> {
    version: &'a str,
    /// False once it is detached, and served only for those who still use it.
    attached: bool,
    resident_bytes: u64,
    /// Whether requests come by io_uring, and not from /dev/fuse.
    io_uring: bool,
    /// Whether the host's page cache keeps what is read of sealed layers.
    host_cache: bool,
    /// What was fetched around pages that were read here and there; none where that is switched off or
    /// not possible.
    read_around: Option<ReadAroundStats>,
    branch: &'a BranchStats,
    compaction: Compaction<'a>,
    requests: &'a [RequestStats],
}

impl Shown {
    /// Bytes of pages that the open layer owns, if a process serves the branch and answers.
    pub fn open_bytes(&self) -> Option<u64> {
        self.status.server.as_ref().map(|server| server.branch.owned_bytes)
    }

    pub fn for_json(&self) -> ForJson<'_> {
        let status = &self.status;
        ForJson {
            branch: &status.branch,
            id: status.id,
            state: status.state,
            mount_point: status.mount_point.as_deref(),
            pid: status.pid,
            since: status.since_ms.map(output::time),
            read_only: status.read_only,
            open_bytes: self.open_bytes(),
            sealed_bytes: self.sealed_bytes,
            sealed_layers: self.sealed_layers,
            server: status.server.as_ref().map(|server| Server {
                version: &server.version,
                attached: server.attached,
                resident_bytes: server.resident_bytes,
                io_uring: server.io_uring,
                host_cache: server.host_cache,
                read_around: server.read_around,
                branch: &server.branch,
                compaction: Compaction::of(&server.compaction),
                requests: &server.requests,
            }),
            problem: status.problem.as_deref(),
        }
    }
}
