//! Searching an index in place.

use std::cmp::Ordering;

use super::blocks::Blocks;
use super::record::{
    DIRENT_BYTES, DirentEntry, FLAG_LAYOUT, FLAG_PRIVATE, INODE_BYTES, InodeEntry, RUN_BYTES,
    SOCKET_BYTES, decode_inode, decode_run,
};
use super::{DirEntryRef, IndexBytes, IndexCounts, IndexMeta, Section};
use crate::format::bytes::Reader;
use crate::format::error::FormatError;
use crate::format::id::Ino;
use crate::format::inode::{DirentTarget, InodeRecord};
use crate::format::inode_codec::{decode_extra, decode_target};
use crate::format::layout::{FileLayout, OwnedRun};

/// An open index. Shared between threads; every answer comes from verified bytes.
pub struct Index {
    meta: IndexMeta,
    pub(super) blocks: Blocks,
}

impl Index {
    /// Opens an index; reads only its header, footer and checksum table.
    pub fn open(bytes: IndexBytes) -> Result<Index, FormatError> {
        let (meta, blocks) = Blocks::open(bytes)?;
        Ok(Index { meta, blocks })
    }

    /// What the index is about.
    pub fn meta(&self) -> IndexMeta {
        self.meta
    }

    /// How many entries there are.
    pub fn counts(&self) -> IndexCounts {
        IndexCounts {
            inodes: self.blocks.count(Section::Inodes),
            dirents: self.blocks.count(Section::Dirents),
            runs: self.blocks.count(Section::Runs),
            sockets: self.blocks.count(Section::Sockets),
            bytes: self.blocks.index_bytes(),
        }
    }

    /// What the layer says about `name` in `dir`; `hash` is the name's hash.
    pub fn lookup(
        &self,
        dir: Ino,
        hash: u64,
        name: &[u8],
    ) -> Result<Option<DirentTarget>, FormatError> {
        let first = self.dirent_lower_bound((dir.0, hash))?;
        for position in first..self.blocks.count(Section::Dirents) {
            let entry = self.dirent_entry(position)?;
            if (entry.dir, entry.hash) != (dir.0, hash) {
                break;
            }
            match self.name(&entry)?.cmp(name) {
                Ordering::Less => {}
                Ordering::Equal => return self.target(position, &entry).map(Some),
                Ordering::Greater => break,
            }
        }
        Ok(None)
    }

    /// What the layer records of an inode.
    pub fn inode(&self, ino: Ino) -> Result<Option<InodeRecord>, FormatError> {
        self.find_inode(ino)?.map(|entry| self.complete(entry)).transpose()
    }

    /// What the layer says about the granules of a file.
    pub fn layout(&self, ino: Ino) -> Result<Option<FileLayout>, FormatError> {
        match self.find_inode(ino)? {
            Some(entry) => self.layout_of(&entry),
            None => Ok(None),
        }
    }

    /// The directory and name of every entry that leads to a socket.
    pub fn sockets(&self) -> Result<Vec<(Ino, Vec<u8>)>, FormatError> {
        let mut found = Vec::new();
        for number in 0..self.blocks.count(Section::Sockets) {
            let entry = self.dirent_entry(self.socket(number)?)?;
            found.push((Ino(entry.dir), self.name(&entry)?.to_vec()));
        }
        Ok(found)
    }

    /// The first position whose (directory, hash) is not below `key`.
    pub(super) fn dirent_lower_bound(&self, key: (u64, u64)) -> Result<u64, FormatError> {
        let (mut low, mut high) = (0, self.blocks.count(Section::Dirents));
        while low < high {
            let middle = low + (high - low) / 2;
            let mut reader = self.record::<DIRENT_BYTES>(Section::Dirents, middle)?;
            if (reader.u64()?, reader.u64()?) < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    pub(super) fn dirent_entry(&self, position: u64) -> Result<DirentEntry, FormatError> {
        DirentEntry::decode(self.record::<DIRENT_BYTES>(Section::Dirents, position)?)
    }

    /// The directory entry at `position`.
    pub(super) fn dirent_at(&self, position: u64) -> Result<DirEntryRef<'_>, FormatError> {
        let entry = self.dirent_entry(position)?;
        let target = self.target(position, &entry)?;
        let name = self.name(&entry)?;
        Ok(DirEntryRef { dir: Ino(entry.dir), hash: entry.hash, name, target })
    }

    /// The inode at `position`, with its layout.
    pub(super) fn inode_at(
        &self,
        position: u64,
    ) -> Result<(InodeRecord, Option<FileLayout>), FormatError> {
        let entry = self.inode_entry(position)?;
        let layout = self.layout_of(&entry)?;
        Ok((self.complete(entry)?, layout))
    }

    /// The position of the directory entry of socket `number`.
    pub(super) fn socket(&self, number: u64) -> Result<u64, FormatError> {
        self.record::<SOCKET_BYTES>(Section::Sockets, number)?.u64()
    }

    pub(super) fn inode_entry(&self, position: u64) -> Result<InodeEntry, FormatError> {
        decode_inode(self.record::<INODE_BYTES>(Section::Inodes, position)?)
    }

    fn find_inode(&self, ino: Ino) -> Result<Option<InodeEntry>, FormatError> {
        let (mut low, mut high) = (0, self.blocks.count(Section::Inodes));
        while low < high {
            let middle = low + (high - low) / 2;
            let found = self.record::<INODE_BYTES>(Section::Inodes, middle)?.u64()?;
            match found.cmp(&ino.0) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return self.inode_entry(middle).map(Some),
            }
        }
        Ok(None)
    }

    fn complete(&self, entry: InodeEntry) -> Result<InodeRecord, FormatError> {
        let mut record = entry.record;
        if entry.extra_bytes > 0 {
            let at = entry.links.extra_offset;
            let extra = self.blocks.get(Section::Extras, at, u64::from(entry.extra_bytes))?;
            let offset = self.blocks.file_offset(Section::Extras, at);
            decode_extra(Reader::new(extra, offset, Section::Extras.name()), &mut record)?;
        }
        Ok(record)
    }

    fn layout_of(&self, entry: &InodeEntry) -> Result<Option<FileLayout>, FormatError> {
        if entry.flags & FLAG_LAYOUT == 0 {
            return Ok(None);
        }
        let runs = self.runs(entry.links.run_first, entry.links.run_count)?;
        let private = entry.flags & FLAG_PRIVATE != 0;
        let layout = FileLayout { private, floor: entry.links.floor, runs };
        if !layout.self_check() {
            let at = entry.links.run_first.saturating_mul(RUN_BYTES as u64);
            let offset = self.blocks.file_offset(Section::Runs, at);
            return Err(FormatError::Corrupt { what: "owned runs", offset });
        }
        Ok(Some(layout))
    }

    fn runs(&self, first: u64, count: u32) -> Result<Vec<OwnedRun>, FormatError> {
        let at = first.saturating_mul(RUN_BYTES as u64);
        let bytes = self.blocks.get(Section::Runs, at, u64::from(count) * RUN_BYTES as u64)?;
        let offset = self.blocks.file_offset(Section::Runs, at);
        let mut reader = Reader::new(bytes, offset, Section::Runs.name());
        (0..count).map(|_| decode_run(&mut reader)).collect()
    }

    fn name(&self, entry: &DirentEntry) -> Result<&[u8], FormatError> {
        self.blocks.get(Section::Names, entry.name_offset, u64::from(entry.name_bytes))
    }

    fn target(&self, position: u64, entry: &DirentEntry) -> Result<DirentTarget, FormatError> {
        decode_target(entry.ino, entry.kind).ok_or_else(|| FormatError::Corrupt {
            what: "entry target",
            offset: self.blocks.file_offset(Section::Dirents, position * DIRENT_BYTES as u64),
        })
    }

    /// A reader of record `position` of a section.
    fn record<const N: usize>(
        &self,
        section: Section,
        position: u64,
    ) -> Result<Reader<'_>, FormatError> {
        let at = position.saturating_mul(N as u64);
        let bytes = self.blocks.get(section, at, N as u64)?;
        Ok(Reader::new(bytes, self.blocks.file_offset(section, at), section.name()))
    }
}
