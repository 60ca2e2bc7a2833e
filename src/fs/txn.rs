//! A change of several inodes and names that becomes visible and is logged as one.

use parking_lot::MutexGuard;

use super::FsError;
use super::node::{Node, NodeState};
use crate::format::journal::Record;
use crate::format::{DirentTarget, FileKind, Ino, InodeRecord};
use crate::layer::open::OpenLayer;

struct Edited<'a> {
    ino: Ino,
    guard: MutexGuard<'a, NodeState>,
    record: InodeRecord,
}

/// Locks the inodes it touches until it is committed or dropped; dropped, it changes nothing.
///
/// Only one transaction over several inodes runs at a time (`Fs::names_turn`), so the order in
/// which they are locked cannot deadlock.
#[derive(Default)]
pub struct Txn<'a> {
    edited: Vec<Edited<'a>>,
    records: Vec<Record>,
}

impl<'a> Txn<'a> {
    /// The attributes of `node`, to be edited.
    pub fn edit(&mut self, node: &'a Node) -> &mut InodeRecord {
        let at = match self.edited.iter().position(|edited| edited.ino == node.ino) {
            Some(at) => at,
            None => {
                let guard = node.state.lock();
                let record = guard.record.clone();
                self.edited.push(Edited { ino: node.ino, guard, record });
                self.edited.len() - 1
            }
        };
        &mut self.edited[at].record
    }

    /// Makes `name` in `dir` lead to an inode.
    pub fn link(&mut self, dir: Ino, name: &[u8], ino: Ino, kind: FileKind) {
        self.dirent(dir, name, DirentTarget::Link { ino, kind });
    }

    /// Removes `name` from `dir`.
    pub fn unlink(&mut self, dir: Ino, name: &[u8]) {
        self.dirent(dir, name, DirentTarget::Whiteout);
    }

    fn dirent(&mut self, dir: Ino, name: &[u8], target: DirentTarget) {
        self.records.push(Record::Dirent { dir, name: name.to_vec(), target });
    }

    /// Adds a record of another kind (a new inode, its ownership).
    pub fn push(&mut self, record: Record) {
        self.records.push(record);
    }

    /// Logs all of it as one frame, then shows it.
    pub fn commit(mut self, layer: &OpenLayer) -> Result<(), FsError> {
        for edited in &self.edited {
            self.records.push(Record::Inode(Box::new(edited.record.clone())));
        }
        layer.commit(&self.records)?;
        for edited in &mut self.edited {
            edited.guard.record = edited.record.clone();
            edited.guard.times_dirty = false;
        }
        Ok(())
    }
}
