//! An open (or frozen) layer brought back from its journal and volatile log.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::LayerError;
use super::data_files::DataFiles;
use super::log::{FirstUse, LogEnd};
use super::open::OpenLayer;
use crate::format::id::granules_spanned;
use crate::format::journal::{FrameReader, LogHeader, LogKind, Record};
use crate::format::{FormatError, Ino, LayerId, LayoutDelta};

struct Replayed {
    frames: Vec<Vec<Record>>,
    end: LogEnd,
    boot_id: [u8; 16],
}

/// Reads one log; a missing file counts as empty.
fn read_log(
    data: &DataFiles,
    layer: LayerId,
    name: &str,
    kind: LogKind,
) -> Result<Replayed, LayerError> {
    let nothing = Replayed { frames: Vec::new(), end: LogEnd::default(), boot_id: [0; 16] };
    let path = data.layer_dir(layer).join(name);
    let bytes = match data.storage.read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(nothing),
        Err(e) => return Err(LayerError::host(layer, "reading a log")(e)),
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
    let body = bytes.get(LogHeader::BYTES..).unwrap_or_default();
    let mut reader = FrameReader::new(body, 1);
    let (mut frames, mut sequence, mut valid) = (Vec::new(), 1, LogHeader::BYTES as u64);
    for frame in reader.by_ref() {
        let frame = frame.map_err(damaged)?;
        sequence = frame.sequence + 1;
        valid = frame.end + LogHeader::BYTES as u64;
        frames.push(frame.records);
    }
    Ok(Replayed { frames, end: LogEnd { bytes: valid, sequence }, boot_id: header.boot_id })
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
    let journal = read_log(data, layer, "journal", LogKind::Journal)?;
    if !journal.frames.is_empty() {
        return Ok(true);
    }
    let volatile = read_log(data, layer, "volatile", LogKind::Volatile)?;
    Ok(volatile.boot_id == boot_id && !volatile.frames.is_empty())
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
    let journal = read_log(data, layer, "journal", LogKind::Journal)?;
    let mut volatile = read_log(data, layer, "volatile", LogKind::Volatile)?;
    if volatile.boot_id != boot_id {
        // Another boot wrote it: what it says of unsynced data may be a lie now.
        volatile = Replayed { frames: Vec::new(), end: LogEnd::default(), boot_id };
    }
    let ends = (journal.end, volatile.end);
    let open = OpenLayer::resume((layer, depth), data.clone(), boot_id, ends, first_use);
    for record in journal.frames.iter().flatten() {
        open.apply(record, 0);
    }
    restore_unsynced(&open, volatile.frames);
    for file in open.all_files() {
        settle_size(&open, data, file.ino)?;
    }
    Ok(open)
}

/// Applies the volatile log's frames and queues what they say for the journal.
fn restore_unsynced(open: &OpenLayer, frames: Vec<Vec<Record>>) {
    let mut unsynced: HashSet<Ino> = HashSet::new();
    for frame in frames {
        let mut safe = Vec::with_capacity(frame.len());
        for record in frame {
            match record {
                // A file that was created here is private from its first frame on.
                Record::Layout(delta) if !delta.private || open.file(delta.ino).is_some() => {
                    unsynced.insert(delta.ino);
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
            if let Record::Layout(delta) = record {
                unsynced.insert(delta.ino);
            }
            open.apply(record, ticket);
        }
    }
    // Writes to owned granules leave no record: after an unclean end any data file may be dirty.
    let _ = unsynced;
    for file in open.all_files() {
        file.dirty.store(true, Ordering::Release);
    }
}

/// Takes the size from the data file, and drops ownership that the data file no longer backs:
/// a cut or punched file whose journal record was lost with the power.
fn settle_size(open: &OpenLayer, data: &DataFiles, ino: Ino) -> Result<(), LayerError> {
    let Some(file) = open.file(ino) else { return Ok(()) };
    let len = match data.storage.metadata(&data.path(open.id, ino)) {
        Ok(meta) => meta.len,
        Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
        Err(e) => return Err(LayerError::host(open.id, "reading the size of a data file")(e)),
    };
    let end = granules_spanned(len);
    let mut own = file.ownership.write();
    own.size = len;
    if !own.private {
        own.present.cut(end);
        own.floor = own.floor.min(end);
    }
    Ok(())
}

/// This boot's id, which tells a volatile log of this boot from one of an earlier.
pub fn boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id"))?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16)
        .map(u128::to_be_bytes)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// The file that holds a layer's index once it is finalized.
pub fn index_path(data: &DataFiles, layer: LayerId) -> PathBuf {
    data.layer_dir(layer).join("index")
}
