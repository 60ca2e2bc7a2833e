//! The contents of a layer against their checksums, and data files that nothing leads to.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::Report;
use super::mend::Mend;
use crate::catalog::{LayerRow, LayerState, Store};
use crate::format::index::Index;
use crate::format::sums::{SumExtent, Sums, cut_extents, granule_sum, owned_stretches};
use crate::format::{GRANULE_BYTES, Ino};
use crate::io::host::open_plain;
use crate::io::sys;

/// Bytes read at once of files without checksums.
const READ_BYTES: usize = 4 << 20;

/// Checks the checksum file of a layer; with `read_data` also everything that the layer holds.
pub(super) fn check_contents(
    store: &Store,
    row: &LayerRow,
    read_data: bool,
    progress: &mut dyn FnMut(u64),
    report: &mut Report,
) {
    let dir = store.layer_dir(row.id);
    let (sums, problem) = open_sums(&dir.join("sums"), row);
    if let Some((problem, mend)) = problem {
        let finding = report.finding(dir.join("sums"), problem, mend);
        report.damage.push(finding);
    }
    let Some(index) = open_index(&dir.join("index")) else {
        if read_data {
            read_all(&dir.join("data"), progress, report);
        }
        return;
    };
    let Ok(stretches) = owned_stretches(&index) else { return };
    let owned: BTreeSet<Ino> = stretches.iter().map(|stretch| stretch.file).collect();
    if row.state == LayerState::Sealed && row.adopted_from.is_none() {
        find_leaks(&dir.join("data"), &index, &owned, report);
    }
    if !read_data {
        return;
    }
    let layer = Contents { dir: &dir, row, index: &index };
    let mut compared = Vec::new();
    if let Some(sums) = &sums {
        compared = layer.compare(sums, progress, report);
    }
    layer.read(&without(&stretches, &compared), progress, report);
}

/// What of `stretches` lies in none of `extents`; both ascend.
fn without(stretches: &[SumExtent], extents: &[SumExtent]) -> Vec<SumExtent> {
    let end_of = |extent: &SumExtent| u64::from(extent.start) + u64::from(extent.len);
    let mut left = Vec::new();
    for stretch in stretches {
        let before = |extent: &SumExtent| {
            (extent.file, end_of(extent)) <= (stretch.file, u64::from(stretch.start))
        };
        let first = extents.partition_point(before);
        let mut at = u64::from(stretch.start);
        let mut add = |from: u64, to: u64| {
            if from < to {
                left.push(SumExtent { start: from as u32, len: (to - from) as u32, ..*stretch });
            }
        };
        for extent in extents.iter().skip(first) {
            if extent.file != stretch.file || u64::from(extent.start) >= end_of(stretch) {
                break;
            }
            add(at, u64::from(extent.start));
            at = end_of(extent);
        }
        add(at, end_of(stretch));
    }
    left
}

/// The checksums of a layer, as far as they can be relied on, and what is wrong with their file.
/// The checksums that can be relied on, and what is wrong with the others. What the host does not
/// let us read may be sound: that is not for `--repair`.
fn open_sums(path: &Path, row: &LayerRow) -> (Option<Sums>, Option<(String, Option<Mend>)>) {
    let damaged = |what: String| Some((what, Some(Mend::RemakeSums)));
    let map = || open_plain(path).and_then(|file| sys::map_immutable(&file));
    let mapped = match map() {
        Ok(mapped) => mapped,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return (None, None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return (None, damaged(error.to_string()));
        }
        Err(error) => return (None, Some((error.to_string(), None))),
    };
    match Sums::open(Box::new(mapped)) {
        Ok(sums) if sums.layer() != row.id => (None, damaged("checksums of another layer".into())),
        Ok(sums) => {
            let problem = sums.extents().find_map(Result::err);
            (Some(sums), problem.and_then(|error| damaged(error.to_string())))
        }
        Err(error) => {
            let left = map().ok().and_then(|map| Sums::open_damaged(Box::new(map), row.id));
            (left, damaged(error.to_string()))
        }
    }
}

fn open_index(path: &Path) -> Option<Index> {
    let map = open_plain(path).and_then(|file| sys::map_immutable(&file)).ok()?;
    Index::open(Box::new(map)).ok()
}

struct Contents<'a> {
    dir: &'a Path,
    row: &'a LayerRow,
    index: &'a Index,
}

impl Contents<'_> {
    /// Where a data file lies, or the adopted file that stands for it.
    fn path(&self, file: Ino) -> PathBuf {
        let adopted = self.index.inode(file).ok().flatten().and_then(|record| record.adopted);
        match (&self.row.adopted_from, adopted) {
            (Some(base), Some(source)) => base.join(OsStr::from_bytes(&source.path)),
            _ => self.dir.join(file.data_path()),
        }
    }

    /// Compares all contents that have a checksum; returns where they lie.
    fn compare(
        &self,
        sums: &Sums,
        progress: &mut dyn FnMut(u64),
        report: &mut Report,
    ) -> Vec<SumExtent> {
        let mut reader = Reader::default();
        let mut compared = Vec::new();
        // Damage in the file was reported when it was opened.
        for (extent, expected) in sums.sound_extents() {
            compared.push(extent);
            let path = self.path(extent.file);
            let bytes = match reader.extent(&path, extent) {
                Ok(bytes) => bytes,
                Err(error) => {
                    report.damaged(path, format!("cannot be read: {error}"));
                    continue;
                }
            };
            let granules = bytes.chunks_exact(GRANULE_BYTES as usize);
            for (granule, (content, sum)) in (u64::from(extent.start)..).zip(granules.zip(expected))
            {
                if granule_sum(content) == sum {
                    report.verified_bytes += GRANULE_BYTES;
                } else {
                    let at = granule * GRANULE_BYTES;
                    let problem = format!("corrupt contents at offset {at} (checksum mismatch)");
                    report.damaged(path.clone(), problem);
                }
            }
            progress(u64::from(extent.len) * GRANULE_BYTES);
        }
        compared
    }

    /// Reads contents that have no checksum: whether that works is all that can be told of them.
    fn read(&self, stretches: &[SumExtent], progress: &mut dyn FnMut(u64), report: &mut Report) {
        let mut reader = Reader::default();
        for extent in cut_extents(stretches.iter().copied()) {
            let path = self.path(extent.file);
            match reader.data_of(&path, extent) {
                Ok(bytes) => report.unverified_bytes += bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => report.damaged(path, format!("cannot be read: {error}")),
            }
            progress(u64::from(extent.len) * GRANULE_BYTES);
        }
    }
}

/// Reads extents, which come file by file.
#[derive(Default)]
pub(super) struct Reader {
    open: Option<(PathBuf, File)>,
    buf: Vec<u8>,
}

impl Reader {
    /// The bytes of an extent; what lies past the end of the file is zeros.
    pub(super) fn extent(&mut self, path: &Path, extent: SumExtent) -> io::Result<&[u8]> {
        let file = match self.open.take() {
            Some((at, file)) if at == path => file,
            _ => open_plain(path)?,
        };
        self.buf.clear();
        self.buf.resize(extent.len as usize * GRANULE_BYTES as usize, 0);
        let mut done = 0;
        while let Some(rest) = self.buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, u64::from(extent.start) * GRANULE_BYTES + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.open = Some((path.to_owned(), file));
        Ok(&self.buf)
    }
}

impl Reader {
    /// Reads what the host holds of an extent; returns how many bytes that are. Holes are zeros,
    /// and can be nothing else.
    fn data_of(&mut self, path: &Path, extent: SumExtent) -> io::Result<u64> {
        let end = (u64::from(extent.start) + u64::from(extent.len)) * GRANULE_BYTES;
        let mut at = u64::from(extent.start) * GRANULE_BYTES;
        let file = open_plain(path)?;
        let mut done = 0;
        while at < end {
            let seek = |whence| sys::seek(file.as_fd(), at, whence);
            let Some(data) = seek(libc::SEEK_DATA)?.filter(|data| *data < end) else { break };
            let hole = sys::seek(file.as_fd(), data, libc::SEEK_HOLE)?.unwrap_or(end).min(end);
            let start = data / GRANULE_BYTES;
            let len = hole.div_ceil(GRANULE_BYTES) - start;
            self.extent(path, SumExtent { start: start as u32, len: len as u32, ..extent })?;
            done += len * GRANULE_BYTES;
            at = (start + len) * GRANULE_BYTES;
        }
        Ok(done)
    }
}

/// Data files below `data`, with their inodes.
fn data_files(data: &Path) -> impl Iterator<Item = (Ino, PathBuf)> {
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries(data).flat_map(move |group| entries(&group.path())).filter_map(|entry| {
        let ino = u64::from_str_radix(entry.file_name().to_str()?, 16).ok()?;
        Some((Ino(ino), entry.path()))
    })
}

fn find_leaks(data: &Path, index: &Index, owned: &BTreeSet<Ino>, report: &mut Report) {
    for (ino, path) in data_files(data) {
        // A private file without a run holds nothing but its length.
        if owned.contains(&ino) || !matches!(index.layout(ino), Ok(None)) {
            continue;
        }
        let bytes = path.symlink_metadata().map_or(0, |meta| meta.blocks() * 512);
        report.leaked_bytes += bytes;
        report.leftover(path, "no record leads to this data file", Mend::RemoveDataFile);
    }
}

/// Reads the data files of a layer that is not finalized yet.
fn read_all(data: &Path, progress: &mut dyn FnMut(u64), report: &mut Report) {
    let mut buf = vec![0; READ_BYTES];
    for (_, path) in data_files(data) {
        let Ok(file) = open_plain(&path) else { continue };
        let mut at = 0;
        loop {
            match file.read_at(&mut buf, at) {
                Ok(0) => break,
                Ok(read) => {
                    at += read as u64;
                    report.unverified_bytes += read as u64;
                    progress(read as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    report.damaged(path.clone(), format!("cannot be read at {at}: {error}"));
                    break;
                }
            }
        }
    }
}
