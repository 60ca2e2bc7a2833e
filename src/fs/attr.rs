//! Attributes: stat, chmod, chown, utimens, truncate.

use super::node::Node;
use super::txn::Txn;
use super::{Fs, FsError, now};
use crate::branch::View;
use crate::format::id::FILE_BYTES_MAX;
use crate::format::journal::Record;
use crate::format::{FileKind, Ino, InodeRecord, Timestamp};

/// What stat shows.
#[derive(Clone, Debug)]
pub struct Attributes {
    /// The inode's record.
    pub record: InodeRecord,
    /// Allocated blocks of 512 bytes, as far as this branch's own data and the size tell.
    pub blocks: u64,
}

/// Which attributes to change, and to what.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttributes {
    /// Permission bits (12 bits).
    pub perm: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<Timestamp>,
    /// Modification time.
    pub mtime: Option<Timestamp>,
    /// Change time: only the kernel's flush of its cached times sets it.
    pub ctime: Option<Timestamp>,
}

impl SetAttributes {
    /// Whether this is the kernel writing back the times of its cached writes.
    fn is_time_flush(&self) -> bool {
        self.ctime.is_some()
            && self.perm.is_none()
            && self.uid.is_none()
            && self.gid.is_none()
            && self.size.is_none()
    }
}

impl Fs {
    /// stat.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes, FsError> {
        Ok(self.attributes_of(&*self.node(ino)?))
    }

    pub(super) fn attributes_of(&self, node: &Node) -> Attributes {
        let mut record = node.state.lock().record.clone();
        if node.ino == Ino::ROOT {
            record.ino = self.root_number();
        }
        if record.parent == Ino::ROOT {
            record.parent = self.root_number();
        }
        // Where a file is private its own blocks count; what is shared is taken to be allocated.
        let blocks = record.size.div_ceil(4096) * 8;
        Attributes { record, blocks }
    }

    /// The inode number that stat shows for the root directory.
    ///
    /// Postgres tells data directories apart by it (the key of its shared memory interlock is made
    /// of its low 32 bits), so every branch has its own, far from those of ordinary files.
    pub fn root_number(&self) -> Ino {
        Ino((1 << 40) | (0x4000_0000 + (self.branch.row.id.0 & 0x3fff_ffff)))
    }

    /// setattr: all that is asked for, as one step.
    pub fn set_attributes(&self, ino: Ino, set: SetAttributes) -> Result<Attributes, FsError> {
        self.writable()?;
        let node = self.node(ino)?;
        let gate = self.branch.enter();
        if set.is_time_flush() {
            // No record: the data file's own time says the same after a crash, and a commit of
            // Postgres would otherwise pay for one.
            let mut state = node.state.lock();
            state.record.atime = set.atime.unwrap_or(state.record.atime);
            state.record.mtime = set.mtime.unwrap_or(state.record.mtime);
            state.record.ctime = set.ctime.unwrap_or(state.record.ctime);
            state.times_dirty = true;
            drop(state);
            return Ok(self.attributes_of(&node));
        }
        if let Some(size) = set.size {
            self.resize(&gate, &node, size)?;
        }
        let mut txn = Txn::default();
        let record = txn.edit(&node);
        record.perm = set.perm.unwrap_or(record.perm);
        record.uid = set.uid.unwrap_or(record.uid);
        record.gid = set.gid.unwrap_or(record.gid);
        record.atime = set.atime.unwrap_or(record.atime);
        record.ctime = now();
        record.mtime =
            set.mtime.unwrap_or(if set.size.is_some() { record.ctime } else { record.mtime });
        txn.commit(&gate.open)?;
        Ok(self.attributes_of(&node))
    }

    fn resize(&self, view: &View, node: &Node, size: u64) -> Result<(), FsError> {
        match node.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(FsError::IsDirectory),
            _ => return Err(FsError::Invalid),
        }
        if size > FILE_BYTES_MAX {
            return Err(FsError::TooBig);
        }
        self.lost.replaced(node.ino, size..u64::MAX);
        if node.state.lock().record.size == size {
            return Ok(());
        }
        self.change_contents(view, node, size == 0, |target| target.truncate(size))?;
        node.state.lock().record.size = size;
        Ok(())
    }

    /// Logs times that changed without a record.
    pub(super) fn log_times(view: &View, node: &Node) -> Result<(), FsError> {
        let mut state = node.state.lock();
        if state.times_dirty {
            view.open.commit(&[Record::Inode(Box::new(state.record.clone()))])?;
            state.times_dirty = false;
        }
        Ok(())
    }
}
