//! Extended attributes of the `user.` namespace, where the mount was asked to keep them.

use super::txn::Txn;
use super::{Fs, FsError, now};
use crate::format::{FileKind, Ino};

/// Bytes of names and values that one inode may carry, as on ext4 with 4 KiB blocks.
const TOTAL_BYTES_MAX: usize = 4096;
const NAME_BYTES_MAX: usize = 255;

/// Whether an attribute must exist or must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetMode {
    /// Either.
    Any,
    /// It must not exist.
    Create,
    /// It must exist.
    Replace,
}

impl Fs {
    fn allowed(&self, name: &[u8]) -> Result<(), FsError> {
        if name.len() > NAME_BYTES_MAX {
            return Err(FsError::NameTooLong);
        }
        if self.options.xattr && name.starts_with(b"user.") && name.len() > 5 {
            Ok(())
        } else {
            Err(FsError::NotSupported)
        }
    }

    /// The value of an attribute.
    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, FsError> {
        self.allowed(name)?;
        let node = self.node(ino)?;
        let state = node.state.lock();
        let found = state.record.xattrs.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone()).ok_or(FsError::NoAttribute)
    }

    /// The names of all attributes, each followed by a zero byte.
    pub fn list_xattrs(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let node = self.node(ino)?;
        let state = node.state.lock();
        let names = state.record.xattrs.iter().map(|(name, _)| [name.as_slice(), b"\0"].concat());
        Ok(names.collect::<Vec<_>>().concat())
    }

    /// Sets an attribute.
    pub fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: SetMode,
    ) -> Result<(), FsError> {
        self.change_xattrs(ino, name, |xattrs| {
            let at = xattrs.binary_search_by(|(known, _)| known.as_slice().cmp(name));
            match (at, mode) {
                (Ok(_), SetMode::Create) => return Err(FsError::Exists),
                (Err(_), SetMode::Replace) => return Err(FsError::NoAttribute),
                (Ok(at), _) => xattrs[at].1 = value.to_vec(),
                (Err(at), _) => xattrs.insert(at, (name.to_vec(), value.to_vec())),
            }
            let total: usize = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
            if total > TOTAL_BYTES_MAX { Err(FsError::AttributeTooBig) } else { Ok(()) }
        })
    }

    /// Removes an attribute.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<(), FsError> {
        self.change_xattrs(ino, name, |xattrs| {
            let before = xattrs.len();
            xattrs.retain(|(known, _)| known != name);
            if xattrs.len() == before { Err(FsError::NoAttribute) } else { Ok(()) }
        })
    }

    fn change_xattrs(
        &self,
        ino: Ino,
        name: &[u8],
        change: impl FnOnce(&mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        self.writable()?;
        self.allowed(name)?;
        let node = self.node(ino)?;
        if !matches!(node.kind, FileKind::Regular | FileKind::Directory) {
            return Err(FsError::NotPermitted);
        }
        let gate = self.branch.enter();
        let mut txn = Txn::default();
        let record = txn.edit(&node);
        change(&mut record.xattrs)?;
        record.ctime = now();
        txn.commit(&gate.open)
    }
}
