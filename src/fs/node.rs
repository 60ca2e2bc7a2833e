//! Inodes that the kernel knows, with what is cached of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::ahead::Commits;
use super::{Fs, FsError};
use crate::branch::View;
use crate::format::{FileKind, Ino, InodeRecord};
use crate::layer::ahead::Ahead;
use crate::layer::open_file::OpenFile;
use crate::layer::owner_map::OwnerMap;
use crate::layer::read::Readable;

/// An inode's attributes, newer than what the open layer has logged only as to times.
pub struct NodeState {
    /// The attributes.
    pub record: InodeRecord,
    /// Times changed since the last logged record.
    pub times_dirty: bool,
}

/// The owners below the open layer and the copies of what they own, valid for one generation of the
/// view.
#[derive(Clone)]
struct Stacked {
    generation: u64,
    lower: Arc<OwnerMap>,
    copies: Arc<OwnerMap>,
}

/// An inode in use.
///
/// Lock order: epoch gate, `Fs::names_turn`, `state`, `stacked`.
pub struct Node {
    /// The inode number.
    pub ino: Ino,
    /// Its kind, which never changes.
    pub kind: FileKind,
    /// References that the kernel holds.
    lookups: AtomicU64,
    /// Lies in pg_wal: taken over whole at the first write.
    pub wal: AtomicBool,
    /// A temporary file of Postgres: nobody will ever sync it.
    pub temporary: AtomicBool,
    /// How it is written and synced, if it does.
    pub commits: Commits,
    /// Attributes.
    pub state: Mutex<NodeState>,
    stacked: RwLock<Option<Stacked>>,
    ahead: Arc<Ahead>,
}

impl Node {
    fn new(record: InodeRecord) -> Node {
        Node {
            ino: record.ino,
            kind: record.kind,
            lookups: AtomicU64::new(0),
            wal: AtomicBool::new(false),
            temporary: AtomicBool::new(false),
            commits: Commits::default(),
            state: Mutex::new(NodeState { record, times_dirty: false }),
            stacked: RwLock::new(None),
            ahead: Arc::default(),
        }
    }

    /// Whether it lies in pg_wal.
    pub fn is_wal(&self) -> bool {
        self.wal.load(Ordering::Relaxed)
    }

    /// The open layer's part of the file, if there is one.
    pub fn own(&self, view: &View) -> Option<Arc<OpenFile>> {
        view.open.file(self.ino)
    }

    /// How the file is read at `view`.
    pub fn readable(&self, view: &View) -> Result<Readable, FsError> {
        let known = self.stacked.read().clone();
        if let Some(stacked) = known.filter(|known| known.generation == view.generation) {
            return Ok(self.over(stacked, view));
        }
        let mut slot = self.stacked.write();
        // After a fork what the then open layer owned lies below. Resolving anew costs a look into
        // each part of the stack, once per file and fork, and needs no knowledge of the past.
        let stacked = match slot.take() {
            Some(stacked) if stacked.generation == view.generation => stacked,
            _ => Stacked {
                generation: view.generation,
                lower: Arc::new(view.owners_below(self.ino, 1)?),
                copies: Arc::new(view.copies_below(self.ino, 1)?),
            },
        };
        *slot = Some(stacked.clone());
        Ok(self.over(stacked, view))
    }

    fn over(&self, Stacked { lower, copies, .. }: Stacked, view: &View) -> Readable {
        Readable { own: self.own(view), lower, copies, ahead: self.ahead.clone() }
    }
}

impl Fs {
    /// The node of an inode, loaded from the branch if it is not in memory.
    pub fn node(&self, ino: Ino) -> Result<Arc<Node>, FsError> {
        if let Some(node) = self.nodes.lock().get(&ino) {
            return Ok(node.clone());
        }
        let record = self.branch.view().inode(ino)?.ok_or(FsError::NotFound)?;
        let node = Arc::new(Node::new(record));
        Ok(self.nodes.lock().entry(ino).or_insert(node).clone())
    }

    /// Puts a node made just now into the table.
    pub(super) fn insert_node(&self, record: InodeRecord) -> Arc<Node> {
        let node = Arc::new(Node::new(record));
        self.nodes.lock().insert(node.ino, node.clone());
        node
    }

    /// Counts a reference that the kernel is about to get.
    pub(super) fn reference(&self, node: &Arc<Node>) {
        // Under the table's lock, and on the node in the table: a forget of the last reference may
        // have dropped this one a moment ago, and the count must not be lost with it.
        let mut nodes = self.nodes.lock();
        let known = nodes.entry(node.ino).or_insert_with(|| node.clone());
        known.lookups.fetch_add(1, Ordering::Relaxed);
    }

    /// The kernel gives `count` references to an inode back.
    pub fn forget(&self, ino: Ino, count: u64) {
        let node = {
            let mut nodes = self.nodes.lock();
            let Some(node) = nodes.get(&ino).cloned() else { return };
            let before = node.lookups.fetch_sub(count, Ordering::Relaxed);
            debug_assert!(before >= count, "forget of more references than were given");
            if before > count {
                return;
            }
            if !node.state.lock().times_dirty || self.writable().is_err() {
                nodes.remove(&ino);
            }
            node
        };
        if let Err(error) = self.retire(&node) {
            tracing::warn!(%ino, %error, "forgetting an inode");
        }
    }

    /// Ends a node without users: its times are logged, or, without a name, it goes for good.
    fn retire(&self, node: &Arc<Node>) -> Result<(), FsError> {
        if self.writable().is_err() {
            return Ok(());
        }
        let gate = self.branch.enter();
        let gone = node.state.lock().record.nlink == 0;
        if gone {
            gate.open.forget(node.ino)?;
            self.lost.replaced(node.ino, 0..u64::MAX);
        } else {
            Self::log_times(&gate, node)?;
        }
        let mut nodes = self.nodes.lock();
        if node.lookups.load(Ordering::Relaxed) == 0 {
            nodes.remove(&node.ino);
        }
        Ok(())
    }

    /// Ends `node` if the kernel holds no reference to it (its name was just removed).
    pub(super) fn retire_unused(&self, node: &Arc<Node>) {
        if node.lookups.load(Ordering::Relaxed) == 0
            && let Err(error) = self.retire(node)
        {
            tracing::warn!(ino = %node.ino, %error, "dropping a removed file");
        }
    }

    /// Every node in memory.
    pub(super) fn all_nodes(&self) -> Vec<Arc<Node>> {
        self.nodes.lock().values().cloned().collect()
    }

    /// Ends all nodes at unmount: logs times, drops files without a name.
    pub fn retire_all(&self) -> Result<(), FsError> {
        for node in self.all_nodes() {
            node.lookups.store(0, Ordering::Relaxed);
            self.retire(&node)?;
        }
        Ok(())
    }

    /// Drops inodes without a name that a killed process left in the open layer.
    pub fn drop_orphans(&self) -> Result<(), FsError> {
        self.writable()?;
        let gate = self.branch.enter();
        let mut orphans = Vec::new();
        gate.open.for_each_inode(|record| {
            if record.nlink == 0 {
                orphans.push(record.ino);
            }
        });
        for ino in orphans {
            gate.open.forget(ino)?;
        }
        Ok(())
    }
}
