//! Names: lookup, create, mkdir, mknod, symlink, link, unlink, rmdir.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::attr::Attributes;
use super::node::Node;
use super::txn::Txn;
use super::{Caller, Fs, FsError, NAME_BYTES_MAX, now};
use crate::branch::View;
use crate::format::journal::Record;
use crate::format::name_hash::name_hash;
use crate::format::{DirentTarget, FileKind, Ino, InodeRecord, LayoutDelta};

const LINKS_MAX: u32 = 65_000;
const SYMLINK_BYTES_MAX: usize = 4095;
const SET_GROUP_ID: u16 = 0o2000;

/// What to make.
#[derive(Clone, Debug)]
pub struct NewFile<'a> {
    /// Its kind.
    pub kind: FileKind,
    /// Permission bits.
    pub perm: u16,
    /// Device number, for device nodes.
    pub rdev: u32,
    /// Target, for symbolic links.
    pub symlink: &'a [u8],
}

pub(super) fn check_name(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(FsError::NameTooLong);
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
        return Err(FsError::Invalid);
    }
    Ok(())
}

impl Fs {
    /// Finds `name` in `dir` and counts a reference to what it leads to.
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Attributes, FsError> {
        if name.len() > NAME_BYTES_MAX {
            return Err(FsError::NameTooLong);
        }
        let (ino, _) = self.resolve(&self.branch.view(), dir, name)?.ok_or(FsError::NotFound)?;
        let node = self.node(ino)?;
        self.note_place(&node, dir, name);
        self.reference(&node);
        Ok(self.attributes_of(&node))
    }

    pub(super) fn resolve(
        &self,
        view: &View,
        dir: Ino,
        name: &[u8],
    ) -> Result<Option<(Ino, FileKind)>, FsError> {
        Ok(match view.lookup(dir, name_hash(name), name)? {
            Some(DirentTarget::Link { ino, kind }) => Some((ino, kind)),
            _ => None,
        })
    }

    /// Remembers which directories hold WAL or what queries spill, and which files lie there.
    pub(super) fn note_place(&self, node: &Node, dir: Ino, name: &[u8]) {
        if dir == Ino::ROOT && (name == b"pg_wal" || name == b"pg_xlog") {
            self.wal_dirs.write().insert(node.ino);
        } else if node.kind == FileKind::Regular && self.wal_dirs.read().contains(&dir) {
            node.wal.store(true, Ordering::Relaxed);
        } else if is_temporary(name) || self.temporary_dirs.read().contains(&dir) {
            node.temporary.store(true, Ordering::Relaxed);
            if node.kind == FileKind::Directory {
                self.temporary_dirs.write().insert(node.ino);
            }
        }
    }

    /// A directory that names can be made in.
    pub(super) fn directory(&self, dir: Ino) -> Result<Arc<Node>, FsError> {
        let node = self.node(dir)?;
        if node.kind != FileKind::Directory {
            return Err(FsError::NotDirectory);
        }
        // A removed directory takes no new names.
        if node.state.lock().record.nlink == 0 {
            return Err(FsError::NotFound);
        }
        Ok(node)
    }

    /// Makes a file, directory, symbolic link or special file; counts a reference to it.
    pub fn make(
        &self,
        dir: Ino,
        name: &[u8],
        new: &NewFile<'_>,
        caller: Caller,
    ) -> Result<Attributes, FsError> {
        self.writable()?;
        check_name(name)?;
        if new.symlink.len() > SYMLINK_BYTES_MAX {
            return Err(FsError::NameTooLong);
        }
        let gate = self.branch.enter();
        let _turn = self.names_turn.lock();
        let parent = self.directory(dir)?;
        if self.resolve(&gate, dir, name)?.is_some() {
            return Err(FsError::Exists);
        }
        let mut txn = Txn::default();
        let parent_record = txn.edit(&parent);
        let record = self.new_inode(parent_record, new, caller);
        if new.kind == FileKind::Directory {
            if parent_record.nlink >= LINKS_MAX {
                return Err(FsError::TooManyLinks);
            }
            parent_record.nlink += 1;
        }
        parent_record.mtime = record.ctime;
        parent_record.ctime = record.ctime;
        txn.push(Record::Inode(Box::new(record.clone())));
        if new.kind == FileKind::Regular {
            // Nothing of lower layers can belong to a new file.
            let private = LayoutDelta { private: true, ..LayoutDelta::unchanged(record.ino) };
            txn.push(Record::Layout(private));
        }
        txn.link(dir, name, record.ino, new.kind);
        txn.commit(&gate.open)?;
        let node = self.insert_node(record);
        self.note_place(&node, dir, name);
        self.reference(&node);
        Ok(self.attributes_of(&node))
    }

    fn new_inode(&self, parent: &InodeRecord, new: &NewFile<'_>, caller: Caller) -> InodeRecord {
        let time = now();
        let is_dir = new.kind == FileKind::Directory;
        let inherits_group = parent.perm & SET_GROUP_ID != 0;
        let group_bit = if inherits_group && is_dir { SET_GROUP_ID } else { 0 };
        InodeRecord {
            ino: self.branch.allocate_ino(),
            kind: new.kind,
            perm: new.perm | group_bit,
            uid: caller.uid,
            gid: if inherits_group { parent.gid } else { caller.gid },
            nlink: if is_dir { 2 } else { 1 },
            rdev: new.rdev,
            size: new.symlink.len() as u64,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            parent: if is_dir { parent.ino } else { Ino(0) },
            symlink: new.symlink.to_vec(),
            xattrs: Vec::new(),
            adopted: None,
        }
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let node = self.node(ino)?;
        if node.kind != FileKind::Symlink {
            return Err(FsError::Invalid);
        }
        let target = node.state.lock().record.symlink.clone();
        Ok(target)
    }

    /// Gives an inode another name; counts a reference to it.
    pub fn link(&self, ino: Ino, dir: Ino, name: &[u8]) -> Result<Attributes, FsError> {
        self.writable()?;
        check_name(name)?;
        let gate = self.branch.enter();
        let _turn = self.names_turn.lock();
        let (parent, node) = (self.directory(dir)?, self.node(ino)?);
        if node.kind == FileKind::Directory {
            return Err(FsError::NotPermitted);
        }
        if self.resolve(&gate, dir, name)?.is_some() {
            return Err(FsError::Exists);
        }
        let (mut txn, time) = (Txn::default(), now());
        let record = txn.edit(&node);
        if record.nlink == 0 {
            return Err(FsError::NotFound);
        }
        if record.nlink >= LINKS_MAX {
            return Err(FsError::TooManyLinks);
        }
        record.nlink += 1;
        record.ctime = time;
        let parent_record = txn.edit(&parent);
        parent_record.mtime = time;
        parent_record.ctime = time;
        txn.link(dir, name, ino, node.kind);
        txn.commit(&gate.open)?;
        self.note_place(&node, dir, name);
        self.reference(&node);
        Ok(self.attributes_of(&node))
    }

    /// Removes a name of anything but a directory.
    pub fn unlink(&self, dir: Ino, name: &[u8]) -> Result<(), FsError> {
        self.remove(dir, name, false)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, dir: Ino, name: &[u8]) -> Result<(), FsError> {
        self.remove(dir, name, true)
    }

    fn remove(&self, dir: Ino, name: &[u8], want_dir: bool) -> Result<(), FsError> {
        self.writable()?;
        if name.len() > NAME_BYTES_MAX {
            return Err(FsError::NameTooLong);
        }
        let gate = self.branch.enter();
        let turn = self.names_turn.lock();
        let parent = self.directory(dir)?;
        let (ino, kind) = self.resolve(&gate, dir, name)?.ok_or(FsError::NotFound)?;
        match (want_dir, kind == FileKind::Directory) {
            (true, false) => return Err(FsError::NotDirectory),
            (false, true) => return Err(FsError::IsDirectory),
            _ => {}
        }
        let node = self.node(ino)?;
        if want_dir && !gate.is_empty_dir(ino)? {
            return Err(FsError::NotEmpty);
        }
        let (mut txn, time) = (Txn::default(), now());
        drop_link(txn.edit(&node), time);
        let parent_record = txn.edit(&parent);
        parent_record.mtime = time;
        parent_record.ctime = time;
        if want_dir {
            parent_record.nlink -= 1;
        }
        txn.unlink(dir, name);
        txn.commit(&gate.open)?;
        drop(turn);
        drop(gate);
        self.retire_unused(&node);
        Ok(())
    }
}

/// One name fewer; a directory loses its `.` with its only name.
pub(super) fn drop_link(record: &mut InodeRecord, time: crate::format::Timestamp) {
    record.nlink = match record.kind {
        FileKind::Directory => 0,
        _ => record.nlink.saturating_sub(1),
    };
    record.ctime = time;
}

/// Whether Postgres calls a temporary file or directory so: `pgsql_tmp`, `pgsql_tmp123.0`, and
/// `t3_16384` for the table of a session.
fn is_temporary(name: &[u8]) -> bool {
    let of_a_session = |name: &[u8]| {
        let rest = name.strip_prefix(b"t")?;
        let at = rest.iter().position(|byte| *byte == b'_')?;
        let digits = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
        let last = rest[at + 1..].split(|byte| matches!(byte, b'_' | b'.')).next()?;
        Some(digits(&rest[..at]) && digits(last))
    };
    name.starts_with(b"pgsql_tmp") || of_a_session(name) == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_files_of_postgres() {
        for name in [
            "pgsql_tmp",
            "pgsql_tmp4711.0",
            "pgsql_tmp9.1.sharedfileset",
            "t3_16384",
            "t3_16384.1",
            "t3_16384_fsm",
        ] {
            assert!(is_temporary(name.as_bytes()), "{name}");
        }
        for name in ["16384", "t", "t_1", "t3", "t3_", "table_1", "t3_x", "pg_wal"] {
            assert!(!is_temporary(name.as_bytes()), "{name}");
        }
    }
}
