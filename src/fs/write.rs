//! write(2), fallocate(2).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::node::Node;
use super::{Fs, FsError, now};
use crate::branch::View;
use crate::format::id::FILE_BYTES_MAX;
use crate::format::{FileKind, Ino};
use crate::layer::LayerError;
use crate::layer::owner_map::OwnerMap;
use crate::layer::write::Target;

/// WAL segments up to this size are taken over whole at their first write (Postgres' default is
/// 16 MiB): from then on a commit is one fdatasync of one host file.
const TAKE_OVER_BYTES_MAX: u64 = 16 << 20;

/// What fallocate(2) was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocateMode {
    /// Reserve space; grow the file.
    Extend,
    /// Reserve space; keep the size.
    KeepSize,
    /// Free the range; it reads as zeros.
    PunchHole,
    /// The range reads as zeros; grow the file.
    ZeroExtend,
    /// The range reads as zeros; keep the size.
    ZeroKeepSize,
}

impl Fs {
    /// Writes all of `data` at `offset`.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8]) -> Result<(), FsError> {
        self.writable()?;
        let node = self.node(ino)?;
        let end = checked_end(&node, offset, data.len() as u64)?;
        if data.is_empty() {
            return Ok(());
        }
        let gate = self.branch.enter();
        self.admit(&gate, &node, offset, data.len() as u64)?;
        let mut write_out = None;
        self.change_contents(&gate, &node, false, |target| {
            target.write(offset, data)?;
            write_out = target.file.due_write_out();
            if target.file.is_to_be_listed() && self.is_to_be_kept(&node) && !node.is_wal() {
                target.layer.waiting.add(target.file);
            }
            Ok(())
        })?;
        self.note_write(&node, end);
        self.note_commit_write(&node);
        self.lost.replaced(ino, offset..end);
        // A fork need not wait for the disk's queue.
        drop(gate);
        if let Some(start) = write_out
            && self.is_to_be_kept(&node)
        {
            start();
        }
        Ok(())
    }

    /// fallocate(2).
    pub fn allocate(
        &self,
        ino: Ino,
        offset: u64,
        len: u64,
        mode: AllocateMode,
    ) -> Result<(), FsError> {
        self.writable()?;
        let node = self.node(ino)?;
        if len == 0 {
            return Err(FsError::Invalid);
        }
        let end = checked_end(&node, offset, len)?;
        let gate = self.branch.enter();
        let extends = matches!(mode, AllocateMode::Extend | AllocateMode::ZeroExtend);
        if extends || mode == AllocateMode::KeepSize {
            self.admit(&gate, &node, offset, len)?;
        }
        self.change_contents(&gate, &node, false, |target| match mode {
            AllocateMode::Extend => target.allocate(offset, len, false),
            AllocateMode::KeepSize => target.allocate(offset, len, true),
            AllocateMode::PunchHole => target.zero(offset, len, true),
            AllocateMode::ZeroKeepSize => target.zero(offset, len, false),
            AllocateMode::ZeroExtend => {
                target.zero(offset, len, false)?;
                target.allocate(offset, len, false)
            }
        })?;
        self.note_write(&node, if extends { end } else { 0 });
        if !matches!(mode, AllocateMode::Extend | AllocateMode::KeepSize) {
            self.lost.replaced(ino, offset..end);
        }
        Ok(())
    }

    /// Runs `change` on the open layer's file of `node`, which is made now if need be. `emptied`:
    /// the change leaves nothing of what is there, so nothing is worth taking over.
    pub(super) fn change_contents(
        &self,
        view: &View,
        node: &Node,
        emptied: bool,
        change: impl FnOnce(&Target<'_>) -> Result<(), LayerError>,
    ) -> Result<(), FsError> {
        let nothing = Arc::new(OwnerMap::default());
        if let Some(file) = view.open.file(node.ino)
            && file.ownership.read().private
        {
            return Ok(change(&Target { layer: &view.open, file: &file, lower: &nothing })?);
        }
        let lower = node.readable(view)?.lower;
        let size = node.state.lock().record.size;
        let file = view.open.file_for_write(node.ino, size)?;
        let target = Target { layer: &view.open, file: &file, lower: &lower };
        let wal = node.is_wal() && size <= TAKE_OVER_BYTES_MAX;
        if !emptied && (wal || lower.is_empty()) {
            target.take_over()?;
        }
        Ok(change(&target)?)
    }

    /// Whether a file is more than scratch paper, which mostly is gone before it gets to the disk.
    fn is_to_be_kept(&self, node: &Node) -> bool {
        !node.temporary.load(Ordering::Relaxed) && node.state.lock().record.nlink > 0
    }

    /// Notes size and times of a write in memory; the data file carries both over a crash.
    pub(super) fn note_write(&self, node: &Node, end: u64) {
        let time = now();
        let mut state = node.state.lock();
        state.record.size = state.record.size.max(end);
        state.record.mtime = time;
        state.record.ctime = time;
        state.times_dirty = true;
    }
}

fn checked_end(node: &Node, offset: u64, len: u64) -> Result<u64, FsError> {
    match node.kind {
        FileKind::Regular => {}
        FileKind::Directory => return Err(FsError::IsDirectory),
        _ => return Err(FsError::Invalid),
    }
    let end = offset.checked_add(len).ok_or(FsError::TooBig)?;
    if end > FILE_BYTES_MAX { Err(FsError::TooBig) } else { Ok(end) }
}
