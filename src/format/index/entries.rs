//! Walking through an index.

use super::read::Index;
use super::{DirEntryRef, Section};
use crate::format::error::FormatError;
use crate::format::id::Ino;
use crate::format::inode::InodeRecord;
use crate::format::layout::FileLayout;

/// The entries of one directory, see [`Index::entries_after`].
struct Entries<'a> {
    index: &'a Index,
    dir: Ino,
    next: Result<u64, Option<FormatError>>,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<DirEntryRef<'a>, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        let position = match &mut self.next {
            Ok(position) => *position,
            Err(error) => return error.take().map(Err),
        };
        // An error and the end of the directory are both final.
        self.next = Err(None);
        if position >= self.index.blocks.count(Section::Dirents) {
            return None;
        }
        match self.index.dirent_at(position) {
            Ok(entry) if entry.dir == self.dir => {
                self.next = Ok(position + 1);
                Some(Ok(entry))
            }
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

impl Index {
    /// The entries of `dir` whose hash is greater than `after_hash`, by (hash, name), whiteouts
    /// included. Ends after the first error.
    pub fn entries_after(
        &self,
        dir: Ino,
        after_hash: u64,
    ) -> impl Iterator<Item = Result<DirEntryRef<'_>, FormatError>> {
        let next = match after_hash.checked_add(1) {
            Some(hash) => self.dirent_lower_bound((dir.0, hash)).map_err(Some),
            None => Err(None),
        };
        Entries { index: self, dir, next }
    }

    /// Every directory entry, by (directory, hash, name).
    pub fn dirents(&self) -> impl Iterator<Item = Result<DirEntryRef<'_>, FormatError>> {
        (0..self.blocks.count(Section::Dirents)).map(|position| self.dirent_at(position))
    }

    /// Every inode, in order.
    pub fn inodes(&self) -> impl Iterator<Item = Result<InodeRecord, FormatError>> {
        self.files().map(|file| file.map(|(record, _)| record))
    }

    /// Every inode with what the layer says about its granules, in order.
    pub fn files(
        &self,
    ) -> impl Iterator<Item = Result<(InodeRecord, Option<FileLayout>), FormatError>> {
        (0..self.blocks.count(Section::Inodes)).map(|position| self.inode_at(position))
    }
}
