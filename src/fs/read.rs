//! read(2).

use super::{Fs, FsError};
use crate::format::{FileKind, Ino};

impl Fs {
    /// Reads up to `len` bytes at `offset` into `buf`, whatever that held; fewer only at the end of
    /// the file.
    pub fn read(&self, ino: Ino, offset: u64, len: u32, buf: &mut Vec<u8>) -> Result<(), FsError> {
        buf.resize(len as usize, 0);
        let read = self.read_at(ino, offset, buf)?;
        buf.truncate(read);
        Ok(())
    }

    /// Reads up to `buf.len()` bytes at `offset`; gives how many, fewer only at the end of the file.
    pub fn read_at(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize, FsError> {
        let node = self.node(ino)?;
        if node.kind == FileKind::Directory {
            return Err(FsError::IsDirectory);
        }
        let wanted = offset.saturating_add(buf.len() as u64);
        self.lost.check(ino, Some(offset..wanted))?;
        let view = self.branch.view();
        let size = node.state.lock().record.size;
        let len = wanted.min(size).saturating_sub(offset) as usize;
        let Some(buf) = buf.get_mut(..len).filter(|buf| !buf.is_empty()) else { return Ok(0) };
        node.readable(&view)?.read(&view.data, buf, offset)?;
        Ok(len)
    }
}
