//! Checking all of an index.

use super::Section;
use super::read::Index;
use super::record::{DIRENT_BYTES, INODE_BYTES, SOCKET_BYTES};
use crate::format::error::FormatError;
use crate::format::inode::{DirentTarget, FileKind};
use crate::format::name_hash::{name_hash, name_is_valid};

impl Index {
    /// Checks every byte against its checksum, and that the entries are in the order that searches
    /// rely on. Stops at the first error.
    pub fn verify(&self) -> Result<(), FormatError> {
        self.blocks.verify()?;
        let sockets = self.verify_dirents()?;
        self.verify_inodes()?;
        if sockets == self.blocks.count(Section::Sockets) {
            Ok(())
        } else {
            Err(self.corrupt("number of sockets", Section::Sockets, 0))
        }
    }

    /// Returns the number of entries that lead to sockets.
    fn verify_dirents(&self) -> Result<u64, FormatError> {
        let mut sockets = 0;
        let mut previous = None;
        for (position, entry) in (0..).zip(self.dirents()) {
            let entry = entry?;
            let corrupt =
                |what| self.corrupt(what, Section::Dirents, position * DIRENT_BYTES as u64);
            if !name_is_valid(entry.name) {
                return Err(corrupt("name"));
            }
            if entry.hash != name_hash(entry.name) {
                return Err(corrupt("hash of a name"));
            }
            let key = Some((entry.dir, entry.hash, entry.name));
            if previous >= key {
                return Err(corrupt("order of names"));
            }
            previous = key;
            if matches!(entry.target, DirentTarget::Link { kind: FileKind::Socket, .. }) {
                if sockets >= self.blocks.count(Section::Sockets)
                    || self.socket(sockets)? != position
                {
                    return Err(self.corrupt(
                        "socket",
                        Section::Sockets,
                        sockets * SOCKET_BYTES as u64,
                    ));
                }
                sockets += 1;
            }
        }
        Ok(sockets)
    }

    fn verify_inodes(&self) -> Result<(), FormatError> {
        let mut previous = None;
        for (position, inode) in (0..).zip(self.files()) {
            let (record, _layout) = inode?;
            let at = position * INODE_BYTES as u64;
            if previous >= Some(record.ino) {
                return Err(self.corrupt("order of inodes", Section::Inodes, at));
            }
            if record.ino >= self.meta().next_ino {
                return Err(self.corrupt(
                    "inode number (not below the next one)",
                    Section::Inodes,
                    at,
                ));
            }
            previous = Some(record.ino);
        }
        Ok(())
    }

    fn corrupt(&self, what: &'static str, section: Section, at: u64) -> FormatError {
        FormatError::Corrupt { what, offset: self.blocks.file_offset(section, at) }
    }
}
