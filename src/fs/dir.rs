//! Listing directories.

use super::{Fs, FsError};
use crate::branch::listing::Entry;
use crate::format::{FileKind, Ino};

/// One line of a listing, with the cookie that continues after it.
#[derive(Clone, Debug)]
pub struct DirLine {
    /// The inode number.
    pub ino: Ino,
    /// Continue here: 1 and 2 after `.` and `..`, the hash of the name after others.
    pub cookie: u64,
    /// The kind.
    pub kind: FileKind,
    /// The name.
    pub name: Vec<u8>,
}

impl Fs {
    /// The lines after `cookie` (0 for the start), some hundreds at a time; none at the end.
    ///
    /// A cookie stays good however the directory changes: it is a position in the order of hashes.
    pub fn list(&self, dir: Ino, cookie: u64) -> Result<Vec<DirLine>, FsError> {
        let node = self.node(dir)?;
        if node.kind != FileKind::Directory {
            return Err(FsError::NotDirectory);
        }
        let (parent, removed) = {
            let state = node.state.lock();
            (state.record.parent, state.record.nlink == 0)
        };
        let mut lines = Vec::new();
        let dots = [(dir, &b"."[..], 1), (parent, &b".."[..], 2)];
        for (ino, name, at) in dots {
            if cookie < at && !removed {
                let ino = if ino == Ino::ROOT { self.root_number() } else { ino };
                let kind = FileKind::Directory;
                lines.push(DirLine { ino, cookie: at, kind, name: name.to_vec() });
            }
        }
        let entries = self.branch.view().list(dir, cookie.max(2))?;
        lines.extend(entries.into_iter().map(|Entry { hash, name, ino, kind }| DirLine {
            ino,
            cookie: hash,
            kind,
            name,
        }));
        Ok(lines)
    }

    /// All lines of a directory but `.` and `..`. For those who go through a whole tree that nobody
    /// changes meanwhile.
    pub fn entries(&self, dir: Ino) -> Result<Vec<DirLine>, FsError> {
        let (mut entries, mut cookie) = (Vec::new(), 2);
        loop {
            let lines = self.list(dir, cookie)?;
            let Some(last) = lines.last() else { return Ok(entries) };
            cookie = last.cookie;
            entries.extend(lines);
        }
    }
}
