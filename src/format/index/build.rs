//! Making an index.

use std::io::Write;

use super::blocks::BlockWriter;
use super::envelope::encode_header;
use super::record::{
    DirentEntry, FLAG_LAYOUT, FLAG_PRIVATE, InodeLinks, NAMES_BYTES_MAX, encode_inode, encode_run,
};
use super::{IndexMeta, Section};
use crate::format::error::FormatError;
use crate::format::id::{Granule, Ino};
use crate::format::inode::{DirentTarget, FileKind, InodeRecord};
use crate::format::inode_codec::{CORE_BYTES, encode_core, encode_extra, encode_target};
use crate::format::layout::{FileLayout, OwnedRun};
use crate::format::name_hash::{name_hash, name_is_valid};

/// An inode that waits to be written. Its extras and runs lie in the builder's own lists, at
/// `links` (which count bytes and runs in the order of insertion, not yet of the file).
struct PendingInode {
    ino: u64,
    core: [u8; CORE_BYTES],
    extra_bytes: u32,
    links: InodeLinks,
}

/// Collects what a layer says, in any order, and writes it as an index.
///
/// Takes about 240 bytes of memory per file (one inode, one name, one run).
pub struct IndexBuilder {
    meta: IndexMeta,
    inodes: Vec<PendingInode>,
    dirents: Vec<DirentEntry>,
    runs: Vec<OwnedRun>,
    names: Vec<u8>,
    extras: Vec<u8>,
    /// The first thing that must not be written; reported by `write`, so that callers can add
    /// entries without a check at each.
    refused: Option<FormatError>,
}

impl IndexBuilder {
    /// A builder of an empty index.
    pub fn new(meta: IndexMeta) -> IndexBuilder {
        IndexBuilder {
            meta,
            inodes: Vec::new(),
            dirents: Vec::new(),
            runs: Vec::new(),
            names: Vec::new(),
            extras: Vec::new(),
            refused: None,
        }
    }

    /// Adds what the layer says about `name` in `dir`. Each name may be added once.
    pub fn dirent(&mut self, dir: Ino, name: &[u8], target: DirentTarget) {
        self.dirent_with_hash(dir, name_hash(name), name, target);
    }

    /// Apart from `dirent` so that tests can have names collide.
    pub(super) fn dirent_with_hash(
        &mut self,
        dir: Ino,
        hash: u64,
        name: &[u8],
        target: DirentTarget,
    ) {
        let name_offset = self.names.len() as u64;
        if !name_is_valid(name) || name_offset + name.len() as u64 > NAMES_BYTES_MAX {
            return self.refuse("a name that no directory can hold", dir.0);
        }
        let (ino, kind) = encode_target(target);
        let name_bytes = name.len() as u8;
        self.names.extend_from_slice(name);
        self.dirents.push(DirentEntry { dir: dir.0, hash, ino, name_offset, name_bytes, kind });
    }

    /// Adds an inode and what the layer says about its granules. Each inode may be added once.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers hand over what they built, and need not know that it is encoded at once"
    )]
    pub fn inode(&mut self, record: InodeRecord, layout: Option<FileLayout>) {
        let ino = record.ino.0;
        let mut flags = 0;
        let mut links = InodeLinks {
            extra_offset: self.extras.len() as u64,
            run_first: self.runs.len() as u64,
            run_count: 0,
            floor: Granule::MAX,
        };
        if let Some(layout) = layout {
            if !layout.self_check() {
                return self.refuse("owned runs that overlap or overflow", ino);
            }
            flags = FLAG_LAYOUT | if layout.private { FLAG_PRIVATE } else { 0 };
            links.run_count = layout.runs.len() as u32;
            links.floor = layout.floor;
            self.runs.extend_from_slice(&layout.runs);
        }
        let extra_bytes = encode_extra(&record, &mut self.extras);
        let mut bytes = Vec::with_capacity(CORE_BYTES);
        encode_core(&record, flags, extra_bytes, &mut bytes);
        let mut core = [0; CORE_BYTES];
        core.copy_from_slice(&bytes);
        self.inodes.push(PendingInode { ino, core, extra_bytes, links });
    }

    /// Writes the index and returns its length in bytes; the same content gives the same bytes,
    /// whatever the order in which it was added.
    ///
    /// Writes 64 KiB at a time, so `out` needs no buffer. Nothing is synced.
    pub fn write(mut self, out: impl Write) -> Result<u64, FormatError> {
        if let Some(refused) = self.refused.take() {
            return Err(refused);
        }
        self.sort()?;
        let mut writer = BlockWriter::new(out);
        writer.raw(&encode_header(&self.meta))?;
        let mut section_bytes = [0; Section::ALL.len()];
        for (section, bytes) in Section::ALL.into_iter().zip(&mut section_bytes) {
            match section {
                Section::Inodes => self.write_inodes(&mut writer)?,
                Section::Dirents => self.write_dirents(&mut writer)?,
                Section::Runs => self.write_runs(&mut writer)?,
                Section::Sockets => self.write_sockets(&mut writer)?,
                Section::Names => self.write_names(&mut writer)?,
                Section::Extras => self.write_extras(&mut writer)?,
            }
            *bytes = writer.end_section()?;
        }
        Ok(writer.finish(&self.meta, section_bytes)?)
    }

    fn refuse(&mut self, what: &'static str, ino: u64) {
        self.refused.get_or_insert(FormatError::Unwritable { what, ino });
    }

    /// Brings everything into the order of the file and finds what was added twice.
    fn sort(&mut self) -> Result<(), FormatError> {
        self.inodes.sort_unstable_by_key(|inode| inode.ino);
        let twice = self.inodes.array_windows().find(|[a, b]| a.ino == b.ino);
        if let Some([inode, _]) = twice {
            let ino = inode.ino;
            return Err(FormatError::Unwritable { what: "an inode that was added twice", ino });
        }
        let names = &self.names;
        let order = |a: &DirentEntry, b: &DirentEntry| {
            (a.dir, a.hash).cmp(&(b.dir, b.hash)).then_with(|| name(names, a).cmp(name(names, b)))
        };
        self.dirents.sort_unstable_by(order);
        let twice = self.dirents.array_windows().find(|[a, b]| order(a, b).is_eq());
        if let Some([entry, _]) = twice {
            let ino = entry.dir;
            return Err(FormatError::Unwritable { what: "a name that was added twice", ino });
        }
        Ok(())
    }

    fn write_inodes(&self, writer: &mut BlockWriter<impl Write>) -> Result<(), FormatError> {
        let mut bytes = Vec::new();
        let (mut extra_offset, mut run_first) = (0, 0);
        for inode in &self.inodes {
            bytes.clear();
            let links = InodeLinks { extra_offset, run_first, ..inode.links };
            encode_inode(&inode.core, &links, &mut bytes);
            writer.put(&bytes)?;
            extra_offset += u64::from(inode.extra_bytes);
            run_first += u64::from(inode.links.run_count);
        }
        Ok(())
    }

    fn write_dirents(&self, writer: &mut BlockWriter<impl Write>) -> Result<(), FormatError> {
        let mut bytes = Vec::new();
        let mut name_offset = 0;
        for entry in &self.dirents {
            bytes.clear();
            DirentEntry { name_offset, ..*entry }.encode(&mut bytes);
            writer.put(&bytes)?;
            name_offset += u64::from(entry.name_bytes);
        }
        Ok(())
    }

    fn write_runs(&self, writer: &mut BlockWriter<impl Write>) -> Result<(), FormatError> {
        let mut bytes = Vec::new();
        for inode in &self.inodes {
            let first = inode.links.run_first as usize;
            let runs = self.runs.get(first..first + inode.links.run_count as usize);
            for run in runs.unwrap_or_default() {
                bytes.clear();
                encode_run(run, &mut bytes);
                writer.put(&bytes)?;
            }
        }
        Ok(())
    }

    fn write_sockets(&self, writer: &mut BlockWriter<impl Write>) -> Result<(), FormatError> {
        for (position, entry) in (0u64..).zip(&self.dirents) {
            if entry.kind == FileKind::Socket as u8 {
                writer.put(&position.to_le_bytes())?;
            }
        }
        Ok(())
    }

    fn write_names(&self, writer: &mut BlockWriter<impl Write>) -> Result<(), FormatError> {
        for entry in &self.dirents {
            writer.put(name(&self.names, entry))?;
        }
        Ok(())
    }

    fn write_extras(&self, writer: &mut BlockWriter<impl Write>) -> Result<(), FormatError> {
        for inode in &self.inodes {
            let first = inode.links.extra_offset as usize;
            let extra = self.extras.get(first..first + inode.extra_bytes as usize);
            writer.put(extra.unwrap_or_default())?;
        }
        Ok(())
    }
}

fn name<'a>(names: &'a [u8], entry: &DirentEntry) -> &'a [u8] {
    let first = entry.name_offset as usize;
    names.get(first..first + usize::from(entry.name_bytes)).unwrap_or_default()
}
