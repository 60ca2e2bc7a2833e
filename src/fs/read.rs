//! read(2).

use super::{Fs, FsError};
use crate::format::{FileKind, Ino};

impl Fs {
    /// Reads up to `len` bytes at `offset` into `buf`, whatever that held; fewer only at the end of
    /// the file.
    pub fn read(&self, ino: Ino, offset: u64, len: u32, buf: &mut Vec<u8>) -> Result<(), FsError> {
        let node = self.node(ino)?;
        if node.kind == FileKind::Directory {
            return Err(FsError::IsDirectory);
        }
        self.lost.check(ino, Some(offset..offset.saturating_add(u64::from(len))))?;
        let view = self.branch.view();
        let size = node.state.lock().record.size;
        let end = offset.saturating_add(u64::from(len)).min(size);
        if offset >= end {
            buf.clear();
            return Ok(());
        }
        // Not cleared before: each byte is written by the read, or the read fails.
        buf.resize((end - offset) as usize, 0);
        node.readable(&view)?.read(&view.data, buf, offset)?;
        Ok(())
    }
}
