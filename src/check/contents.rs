//! The contents of a layer against their checksums, and data files that nothing leads to.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::Report;
use super::mend::Mend;
use crate::catalog::{LayerRow, LayerState, Store};
use crate::format::index::Index;
use crate::format::sums::{SumExtent, Sums, cut_extents, granule_sum, owned_stretches};
use crate::format::{FormatError, GRANULE_BYTES, Ino};
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
    let sums = match open_sums(&dir.join("sums"), row) {
        Ok(sums) => sums,
        Err(problem) => {
            report.mendable(dir.join("sums"), problem, Mend::RemoveSums);
            None
        }
    };
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
    match &sums {
        Some(sums) => layer.compare(sums, progress, report),
        None => layer.read(&stretches, progress, report),
    }
}

fn open_sums(path: &Path, row: &LayerRow) -> Result<Option<Sums>, String> {
    let map = match File::open(path).and_then(|file| sys::map_immutable(&file)) {
        Ok(map) => map,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let verify = || -> Result<Sums, FormatError> {
        let sums = Sums::open(Box::new(map))?;
        if sums.layer() != row.id {
            let what = "checksums of another layer";
            return Err(FormatError::Corrupt { what, offset: 16 });
        }
        for extent in sums.extents() {
            extent?;
        }
        Ok(sums)
    };
    verify().map(Some).map_err(|error| error.to_string())
}

fn open_index(path: &Path) -> Option<Index> {
    let map = File::open(path).and_then(|file| sys::map_immutable(&file)).ok()?;
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

    fn compare(&self, sums: &Sums, progress: &mut dyn FnMut(u64), report: &mut Report) {
        let mut reader = Reader::default();
        for found in sums.extents() {
            // Damage in the file was reported when it was opened.
            let Ok((extent, expected)) = found else { return };
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
    }

    fn read(&self, stretches: &[SumExtent], progress: &mut dyn FnMut(u64), report: &mut Report) {
        let mut reader = Reader::default();
        for extent in cut_extents(stretches.iter().copied()) {
            let path = self.path(extent.file);
            match reader.extent(&path, extent) {
                Ok(bytes) => report.unverified_bytes += bytes.len() as u64,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => report.damaged(path, format!("cannot be read: {error}")),
            }
            progress(u64::from(extent.len) * GRANULE_BYTES);
        }
    }
}

/// Reads extents, which come file by file.
#[derive(Default)]
struct Reader {
    open: Option<(PathBuf, File)>,
    buf: Vec<u8>,
}

impl Reader {
    /// The bytes of an extent; what lies past the end of the file is zeros.
    fn extent(&mut self, path: &Path, extent: SumExtent) -> io::Result<&[u8]> {
        let file = match self.open.take() {
            Some((at, file)) if at == path => file,
            _ => File::open(path)?,
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
        let Ok(file) = File::open(&path) else { continue };
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
