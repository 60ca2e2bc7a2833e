//! An open (or frozen) layer brought back from its journal and volatile log.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::LayerError;
use super::data_files::DataFiles;
use super::leave::Left;
use super::log::{FirstUse, LogEnd};
use super::open::OpenLayer;
use super::open_file::OpenFile;
use crate::format::id::granules_spanned;
use crate::format::journal::{FrameReader, LogHeader, LogKind, Record};
use crate::format::{FormatError, GRANULE_BYTES, Ino, LayerId, LayoutDelta};
pub use crate::io::host::boot_id;

#[derive(Default)]
struct Replayed {
    frames: Vec<Vec<Record>>,
    end: LogEnd,
    /// What the last frame says if the layer was left in order.
    lengths: Option<HashMap<Ino, u64>>,
}

/// Reads one log; a missing file counts as empty, and so does a volatile log of another boot than
/// `boot_id`: nothing in it was ever synced, so the power may have left any part of it.
fn read_log(
    data: &DataFiles,
    layer: LayerId,
    name: &str,
    kind: LogKind,
    boot_id: [u8; 16],
) -> Result<Replayed, LayerError> {
    let nothing = Replayed::default();
    let path = data.layer_dir(layer).join(name);
    let bytes = match data.storage.read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(nothing),
        Err(e) => return Err(LayerError::opening(layer, "reading a log", &path)(e)),
    };
    if is_unfinished(&bytes) {
        // The power went before the first sync of this file: nothing in it was ever promised.
        return Ok(nothing);
    }
    let damaged = |source| LayerError::Damaged { layer, path: path.clone(), source };
    let header = LogHeader::decode(&bytes).map_err(damaged)?;
    if header.kind != kind || header.layer != layer {
        return Err(damaged(FormatError::Corrupt {
            what: "log header of another file",
            offset: 0,
        }));
    }
    if kind == LogKind::Volatile && header.boot_id != boot_id {
        return Ok(nothing);
    }
    let body = bytes.get(LogHeader::BYTES..).unwrap_or_default();
    let mut reader = FrameReader::new(body, 1);
    let (mut frames, mut sequence, mut valid) = (Vec::new(), 1, LogHeader::BYTES as u64);
    let mut lengths = None;
    for frame in reader.by_ref() {
        let frame = frame.map_err(damaged)?;
        lengths = frame.lengths_at_close();
        sequence = frame.sequence + 1;
        valid = frame.end + LogHeader::BYTES as u64;
        frames.push(frame.records);
    }
    Ok(Replayed { frames, end: LogEnd { bytes: valid, sequence }, lengths })
}

/// A log that was created but whose header never reached the disk.
fn is_unfinished(bytes: &[u8]) -> bool {
    bytes.len() < LogHeader::BYTES || bytes.iter().take(LogHeader::BYTES).all(|b| *b == 0)
}

/// Whether a layer's logs hold any frame that counts on this boot, without replaying them.
pub fn has_content(
    data: &DataFiles,
    layer: LayerId,
    boot_id: [u8; 16],
) -> Result<bool, LayerError> {
    let journal = read_log(data, layer, "journal", LogKind::Journal, boot_id)?;
    if !journal.frames.is_empty() {
        return Ok(true);
    }
    let volatile = read_log(data, layer, "volatile", LogKind::Volatile, boot_id)?;
    Ok(!volatile.frames.is_empty())
}

/// Brings a layer back as the last reply left it (same boot) or as the last sync left it.
///
/// Writes nothing. What only the volatile log knows counts as unsynced, so that the next sync
/// makes it durable before it says so.
pub fn replay(
    data: &Arc<DataFiles>,
    (layer, depth): (LayerId, u32),
    boot_id: [u8; 16],
    first_use: FirstUse,
) -> Result<OpenLayer, LayerError> {
    let journal = read_log(data, layer, "journal", LogKind::Journal, boot_id)?;
    let volatile = read_log(data, layer, "volatile", LogKind::Volatile, boot_id)?;
    let ends = (journal.end, volatile.end);
    let mut open = OpenLayer::resume((layer, depth), data.clone(), boot_id, ends, first_use);
    for record in journal.frames.iter().flatten() {
        open.apply(record, 0);
    }
    restore_unsynced(&open, volatile.frames);
    // With a volatile log the layer was taken up again after it was left.
    let taken_up = data.storage.exists(&data.layer_dir(layer).join("volatile"));
    let taken_up = taken_up.map_err(LayerError::host(layer, "looking for the volatile log"))?;
    if let Some(lengths) = journal.lengths.filter(|_| !taken_up) {
        open.left = Some(Left { ticket: open.log.last_ticket(), lengths });
    }
    let mut expected = HashMap::new();
    for record in journal.frames.iter().flatten() {
        match record {
            Record::Lost { ino, bytes } => drop(expected.insert(*ino, *bytes)),
            Record::Forget(ino) => drop(expected.remove(ino)),
            _ => {}
        }
    }
    if let Some(left) = &open.left {
        expected.extend(&left.lengths);
    }
    for file in open.all_files() {
        settle_size(&open, &file, expected.get(&file.ino).copied())?;
    }
    Ok(open)
}

/// Applies the volatile log's frames and queues what they say for the journal.
fn restore_unsynced(open: &OpenLayer, frames: Vec<Vec<Record>>) {
    for frame in frames {
        let mut safe = Vec::with_capacity(frame.len());
        for record in frame {
            match record {
                // A file that was created here is private from its first frame on.
                Record::Layout(delta) if !delta.private || open.file(delta.ino).is_some() => {
                    open.apply(&Record::Layout(LayoutDelta::unchanged(delta.ino)), 0);
                    if let Some(file) = open.file(delta.ino) {
                        file.apply(&delta);
                    }
                }
                other => safe.push(other),
            }
        }
        if safe.is_empty() {
            continue;
        }
        let ticket = open.log.append_synced(&safe);
        for record in &safe {
            open.apply(record, ticket);
            if let Record::Forget(ino) = record {
                // The journal may hold the file's older records.
                open.doom(*ino, 0);
            }
        }
    }
    for file in open.all_files() {
        // Writes to owned granules leave no record: after an unclean end any data file may be
        // dirty, and hold bytes of writes that were never answered.
        file.dirty.store(true, Ordering::Release);
        file.strays.store(true, Ordering::Release);
    }
}

/// Takes the size from the data file, and drops ownership that the data file no longer backs:
/// of a file that was cut, and whose record was lost with the power. What lower layers hold past
/// the new end is left to [`super::write::Target::settle`], which knows them.
///
/// In a layer that was left in order nothing was lost: another length than `expected` is damage.
fn settle_size(open: &OpenLayer, file: &OpenFile, expected: Option<u64>) -> Result<(), LayerError> {
    let found = open.data_length(file.ino)?;
    let len = found.unwrap_or(0);
    if let Some(left) = expected.filter(|left| *left != len) {
        let path = open.data.path(open.id, file.ino);
        let what = format!(
            "{} has {len} bytes; it had {left} when the branch was unmounted",
            path.display()
        );
        file.set_damage(what, left);
        return Ok(());
    }
    let mut own = file.ownership.write();
    let granules = own.present.count();
    if found.is_none() && !own.private && granules > 0 {
        drop(own);
        // The data came before the record, and stays until another one says that it may go.
        let path = open.data.path(open.id, file.ino);
        let what = format!("{} is missing; {granules} pages of it were written", path.display());
        let size = open.inode(file.ino).map_or(0, |record| record.size);
        file.set_damage(what, size.max(granules * GRANULE_BYTES));
        return Ok(());
    }
    own.size = len;
    if !own.private {
        own.present.cut(granules_spanned(len));
    }
    Ok(())
}

/// The file that holds a layer's index once it is finalized.
pub fn index_path(data: &DataFiles, layer: LayerId) -> PathBuf {
    data.layer_dir(layer).join("index")
}
