//! One layer: its logs, its indexes, its data files.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::mend::Mend;
use super::{Report, adopted, journal};
use crate::catalog::{LayerRow, LayerState, Store};
use crate::format::index::Index;
use crate::format::journal::{FrameReader, LogHeader, LogKind, Record};
use crate::format::{FileKind, FileLayout, FormatError, GRANULE_BYTES, Ino, InodeRecord, OwnedRun};
use crate::io::host::{boot_id, open_plain, read_plain};
use crate::io::sys;

/// How often a log that looks damaged is read, and the time in between.
pub(super) const READS_MAX: u32 = 5;
pub(super) const REREAD_PAUSE: Duration = Duration::from_millis(20);

pub(super) fn check_layer(store: &Store, row: &LayerRow, report: &mut Report) {
    let dir = store.layer_dir(row.id);
    let (journal, index) = (dir.join("journal"), dir.join("index"));
    // The index first: a layer that is finalized just now loses its journal after it has one.
    let has_journal = check_log(&journal, LogKind::Journal, row, report);
    check_log(&dir.join("volatile"), LogKind::Volatile, row, report);
    let has_index = check_index(store, &index, row, report, true);
    if row.used && !has_journal && !has_index && !index.exists() {
        report.damaged(
            dir,
            "the layer was written to, and neither its journal nor its index is there",
        );
        return;
    }
    if has_index {
        require_sealed(&index, row, report);
    } else {
        journal::check_data_files(store, row, report);
    }
    check_merged(store, &dir.join("merged"), row, report);
    for name in ["index.tmp", "merged.tmp", "sums.tmp", "pack.tmp"] {
        let path = dir.join(name);
        if path.exists() {
            report.leftover(path, "left behind by an interrupted write", Mend::RemoveTemporary);
        }
    }
}

/// A layer gets an index after it was sealed.
fn require_sealed(index: &Path, row: &LayerRow, report: &mut Report) {
    if row.state == LayerState::Open {
        let problem = "the layer was sealed, and the catalog says that it is open: the catalog is \
                       older than the layer";
        report.damaged(index, problem);
    }
}

/// Whether it is a file that can hold contents.
pub(super) fn is_regular(meta: &std::fs::Metadata) -> bool {
    meta.file_type().is_file()
}

/// A merged index says what the indexes of the layers below it say: it may go if it is damaged.
fn check_merged(store: &Store, path: &Path, row: &LayerRow, report: &mut Report) {
    let before = report.damage.len();
    check_index(store, path, row, report, false);
    for finding in report.damage.iter_mut().skip(before) {
        finding.mend = Some(Mend::RemoveMerged);
    }
}

/// Whether there is that log; damage in it is reported.
fn check_log(path: &Path, kind: LogKind, row: &LayerRow, report: &mut Report) -> bool {
    for attempts_left in (0..READS_MAX).rev() {
        let bytes = match read_plain(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
            Err(error) => {
                report.damaged(path, error);
                return true;
            }
        };
        let Err(error) = verify_log(&bytes, kind, row) else { return true };
        // A log that is begun anew while it is read looks damaged; a damaged one stays as it is.
        std::thread::sleep(REREAD_PAUSE);
        if attempts_left == 0 || read_plain(path).is_ok_and(|now| now == bytes) {
            report.damaged(path, error);
            return true;
        }
    }
    true
}

fn verify_log(bytes: &[u8], kind: LogKind, row: &LayerRow) -> Result<(), FormatError> {
    let zeros = bytes.iter().take(LogHeader::BYTES).all(|byte| *byte == 0);
    if bytes.len() < LogHeader::BYTES || zeros {
        // Made, and not synced yet: nothing in it was promised.
        return Ok(());
    }
    let header = LogHeader::decode(bytes)?;
    if header.layer != row.id || header.kind != kind {
        return Err(FormatError::Corrupt { what: "log header of another file", offset: 0 });
    }
    // Nothing in a volatile log was synced: after a restart of the host nobody reads it.
    if kind == LogKind::Volatile && boot_id().ok() != Some(header.boot_id) {
        return Ok(());
    }
    let mut frames = FrameReader::new(bytes.get(LogHeader::BYTES..).unwrap_or_default(), 1);
    frames.try_for_each(|frame| {
        if frame?.records.iter().all(|record| inode_of(record) <= Ino::LAST) {
            return Ok(());
        }
        Err(FormatError::Corrupt { what: "inode number", offset: LogHeader::BYTES as u64 })
    })
}

/// The inode that a record is about.
fn inode_of(record: &Record) -> Ino {
    match record {
        Record::Inode(record) => record.ino,
        Record::Forget(ino) | Record::NextIno(ino) => *ino,
        Record::Layout(delta) => delta.ino,
        Record::Dirent { dir, .. } => *dir,
        Record::Length { ino, .. } | Record::Lost { ino, .. } => *ino,
        Record::Closed { .. } => Ino(0),
    }
}

/// Whether there is an index; damage in it is reported. `own`: it is the layer's own, so its
/// claims are held against the layer's data files.
fn check_index(store: &Store, path: &Path, row: &LayerRow, report: &mut Report, own: bool) -> bool {
    let map = match open_plain(path).and_then(|file| sys::map_immutable(&file)) {
        Ok(map) => map,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
        Err(error) => {
            report.damaged(path, error);
            return true;
        }
    };
    let index = match Index::open(Box::new(map)).and_then(|index| {
        index.verify()?;
        Ok(index)
    }) {
        Ok(index) => index,
        Err(error) => {
            report.damaged(path, error);
            return true;
        }
    };
    let meta = index.meta();
    if meta.layer != row.id || meta.depth != row.depth {
        report.damaged(path, "it belongs to another layer");
        return true;
    }
    if meta.next_ino > Ino::LAST {
        report.damaged(path, format!("its next inode number is {}", meta.next_ino));
    }
    if own {
        check_files(store, &index, path, row, report);
    }
    true
}

fn check_files(store: &Store, index: &Index, path: &Path, row: &LayerRow, report: &mut Report) {
    let Some(dir) = path.parent() else { return };
    for file in index.files() {
        let (record, layout) = match file {
            Ok(file) => file,
            Err(error) => {
                report.damaged(path, error);
                return;
            }
        };
        if let (Some(base), Some(source)) = (&row.adopted_from, &record.adopted) {
            report.data_files += 1;
            adopted::check_source(base, source, report);
        } else if let Some(layout) = layout {
            check_data_file(dir, row, &record, &layout, report);
            let others = layout.runs.iter().filter(|run| run.layer != row.id);
            for run in others {
                if let Some(problem) = borrows_wrongly(store, row, run) {
                    report.damaged(path, format!("inode {} borrows {problem}", record.ino));
                }
            }
        }
    }
}

/// A data file must be as long as what the layer claims of it.
fn check_data_file(
    dir: &Path,
    row: &LayerRow,
    record: &InodeRecord,
    layout: &FileLayout,
    report: &mut Report,
) {
    let path = dir.join(record.ino.data_path());
    if record.kind != FileKind::Regular {
        report.damaged(path, "a file that is not regular has contents");
        return;
    }
    let own = layout.runs.iter().filter(|run| (run.layer, run.file) == (row.id, record.ino));
    let Some(last) = own.map(|run| run.source + run.len).max() else { return };
    report.data_files += 1;
    let needed = (u64::from(last) * GRANULE_BYTES).min(record.size);
    match std::fs::symlink_metadata(&path) {
        Ok(meta) if !is_regular(&meta) => report.damaged(path, "it is no regular file"),
        Ok(meta) if meta.len() < needed => {
            let len = meta.len();
            report.damaged(path, format!("it has {len} bytes; the index claims {needed}"));
        }
        Ok(_) => {}
        Err(error) => report.damaged(path, error),
    }
}

/// What is wrong with a run that a layer shows from a data file of another one, if something is.
fn borrows_wrongly(store: &Store, row: &LayerRow, run: &OwnedRun) -> Option<String> {
    let name = run.layer.dir_name();
    let other = match store.catalog.layer(run.layer) {
        Ok(Some(other)) if other.depth < row.depth && other.state == LayerState::Sealed => other,
        Ok(Some(_)) => return Some(format!("from layer {name}, which does not lie below")),
        Ok(None) => return Some(format!("from layer {name}, which is missing")),
        Err(error) => return Some(format!("from layer {name}: {error}")),
    };
    if other.adopted_from.is_some() {
        // Its files are held against their times.
        return None;
    }
    let path = store.layer_dir(run.layer).join(run.file.data_path());
    // Whole granules, the last of which may be the end of a file.
    let needed = u64::from(run.source + run.len - 1) * GRANULE_BYTES + 1;
    match std::fs::symlink_metadata(&path) {
        Ok(meta) if meta.len() >= needed => None,
        Ok(meta) => {
            Some(format!("{} bytes of {}, which has {}", needed, path.display(), meta.len()))
        }
        Err(error) => Some(format!("from {}: {error}", path.display())),
    }
}
