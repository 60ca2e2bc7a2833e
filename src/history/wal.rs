//! The WAL that a state has, and bringing WAL of later states into a copy of an earlier one.

use std::collections::BTreeMap;

use super::HistoryError;
use super::files::{Files, failed, find};
use crate::format::{FileKind, Ino};
use crate::fs::names::NewFile;
use crate::fs::{Caller, Fs, FsError};
use crate::postgres::control_file::{CONTROL_FILE_BYTES, ControlFile};
use crate::postgres::wal::{
    HEADER_BYTES, Lsn, PAGE_BYTES, Segment, end_in_page, may_be_segment_bytes, page_place,
};

/// The file that asks Postgres for a recovery up to a target.
const RECOVERY_SIGNAL: &str = "recovery.signal";
const STANDBY_SIGNAL: &str = "standby.signal";
/// The directory that WAL is restored from; goes once it was.
pub const RESTORED_DIR: &str = "cowfs_wal";
/// `restore_command` for it: Postgres runs it in the data directory.
pub const RESTORE_COMMAND: &str = "cp cowfs_wal/%f %p";
const WAL_DIR: &str = "pg_wal";
/// Bytes copied at a time.
const BUFFER_BYTES: u64 = 1 << 20;

/// What WAL a state has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wal {
    /// The timeline it is on.
    pub timeline: u32,
    /// Where a recovery of it begins.
    pub redo: Lsn,
    /// No WAL of it lies at or past this.
    pub end: Lsn,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// The segments of the timeline, by number, and the files that hold them. Postgres recycles a
    /// segment that it does not need any more by giving it a name to come: until that is
    /// written, it holds the old one.
    pub segments: BTreeMap<u64, String>,
}

impl Wal {
    /// Looks at a state.
    pub fn of(files: &dyn Files) -> Result<Wal, HistoryError> {
        let mut bytes = vec![0; CONTROL_FILE_BYTES];
        let len = files.read("global/pg_control", 0, &mut bytes)?;
        let control = ControlFile::parse(&bytes[..len]);
        let control = control.map_err(|source| HistoryError::Control { source })?;
        let (timeline, redo) = (control.timeline, control.redo);
        let missing = || HistoryError::NoWal { timeline, redo };
        let all = files.list(WAL_DIR)?;
        let size = all.iter().find(|(name, size)| {
            may_be_segment_bytes(*size) && Segment::parse(name, *size).is_some()
        });
        let segment_bytes = size.ok_or_else(missing)?.1;
        let mut segments = BTreeMap::new();
        let mut last = None;
        for (name, size) in all {
            let named = Segment::parse(&name, segment_bytes);
            let Some(named) = named.filter(|s| s.timeline == timeline && size == segment_bytes)
            else {
                continue;
            };
            let Some((of, place)) = place(files, &name, 0)? else { continue };
            let holds = place.0 / segment_bytes;
            if holds == named.number {
                last = last.max(Some(holds));
                segments.insert(holds, name);
            } else if of == timeline {
                // Recycled, and not written to since: it is a whole earlier one.
                segments.entry(holds).or_insert(name);
            }
        }
        let last = last.ok_or_else(missing)?;
        if !segments.contains_key(&(redo.0 / segment_bytes)) {
            return Err(missing());
        }
        let end = end(files, Segment { timeline, number: last }, segment_bytes)?;
        Ok(Wal { timeline, redo, end, segment_bytes, segments })
    }

    /// The segments that a recovery of this state to the end of a later one reads besides what this
    /// one has: from the one it ends in.
    pub fn needed(&self, to: &Wal) -> std::ops::RangeInclusive<u64> {
        (self.end.0 - 1) / self.segment_bytes..=(to.end.0 - 1) / self.segment_bytes
    }

    /// Whether both are parts of one history that WAL tells: the same timeline, in segments of the
    /// same size, the other one later.
    pub fn leads_to(&self, to: &Wal) -> bool {
        self.timeline == to.timeline && self.segment_bytes == to.segment_bytes && self.end <= to.end
    }
}

/// Where a page of a file of WAL says that it belongs.
fn place(files: &dyn Files, name: &str, page: u64) -> Result<Option<(u32, Lsn)>, HistoryError> {
    let mut header = [0; HEADER_BYTES];
    let read = files.read(&format!("{WAL_DIR}/{name}"), page * PAGE_BYTES, &mut header)?;
    Ok(if read == HEADER_BYTES { page_place(&header) } else { None })
}

/// Where the WAL ends in its last segment.
fn end(files: &dyn Files, last: Segment, segment_bytes: u64) -> Result<Lsn, HistoryError> {
    let before = (pages_written(files, last, segment_bytes)? - 1) * PAGE_BYTES;
    let path = format!("{WAL_DIR}/{}", last.name(segment_bytes));
    let mut page = vec![0; PAGE_BYTES as usize];
    let len = files.read(&path, before, &mut page)?;
    Ok(Lsn(last.number * segment_bytes + before + end_in_page(&page[..len])))
}

/// How many pages at the beginning of a segment are written; at least one is.
fn pages_written(
    files: &dyn Files,
    segment: Segment,
    segment_bytes: u64,
) -> Result<u64, HistoryError> {
    let name = segment.name(segment_bytes);
    // They are written in order: the first ones are, the others are not.
    let (mut written, mut not) = (1, segment_bytes / PAGE_BYTES);
    while written < not {
        let middle = written.midpoint(not);
        let address = Lsn(segment.number * segment_bytes + middle * PAGE_BYTES);
        if place(files, &name, middle)?.is_some_and(|(_, place)| place == address) {
            written = middle + 1;
        } else {
            not = middle;
        }
    }
    Ok(written)
}

/// Gives a copy of an earlier state the WAL up to the end of a later one, and asks for a recovery
/// that restores it with [`RESTORE_COMMAND`].
///
/// `later` are the states after it, in order, with what WAL they have: a segment is taken of the
/// last that has it, as it has the most of it. It goes to a directory of its own: Postgres takes a
/// copy for consistent once it has replayed all that is in `pg_wal`, and stops at no target before,
/// so there must be no more there than the state had (`InitWalRecovery` in `xlogrecovery.c`).
///
/// Returns how many bytes were copied.
pub fn bring_wal(copy: &Fs, from: &Wal, later: &[(&Fs, &Wal)]) -> Result<u64, HistoryError> {
    let Some((_, to)) = later.last() else { return Ok(0) };
    make_dir(copy, RESTORED_DIR).map_err(failed("making", RESTORED_DIR))?;
    let mut bytes = 0;
    for number in from.needed(to) {
        let mut sources = later.iter().rev();
        let source = sources.find_map(|(fs, wal)| Some((*fs, wal.segments.get(&number)?.as_str())));
        let name = Segment { timeline: from.timeline, number }.name(from.segment_bytes);
        bytes += put(copy, RESTORED_DIR, &name, source)?;
    }
    // A standby would wait for more WAL at the end of what there is.
    match copy.unlink(Ino::ROOT, STANDBY_SIGNAL.as_bytes()) {
        Ok(()) | Err(FsError::NotFound) => {}
        Err(error) => return Err(failed("removing", STANDBY_SIGNAL)(error)),
    }
    put(copy, "", RECOVERY_SIGNAL, None)?;
    let synced = copy.sync_everything().map_err(failed("syncing", RESTORED_DIR));
    synced.map(|_durable| bytes)
}

/// Makes a directory in the root, as the root's owner.
fn make_dir(copy: &Fs, name: &str) -> Result<(), FsError> {
    let owner = copy.attributes(Ino::ROOT)?.record;
    let new = NewFile { kind: FileKind::Directory, perm: 0o700, rdev: 0, symlink: b"" };
    let caller = Caller { uid: owner.uid, gid: owner.gid };
    let made = copy.make(Ino::ROOT, name.as_bytes(), &new, caller)?;
    copy.forget(made.record.ino, 1);
    Ok(())
}

/// Makes a file, with the bytes of a file of WAL in another state, as the owner of its directory.
fn put(copy: &Fs, dir: &str, name: &str, source: Option<(&Fs, &str)>) -> Result<u64, HistoryError> {
    let path = if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
    let make = || {
        let parent = find(copy, dir)?;
        let owner = copy.attributes(parent)?.record;
        match copy.unlink(parent, name.as_bytes()) {
            Ok(()) | Err(FsError::NotFound) => {}
            Err(error) => return Err(error),
        }
        let new = NewFile { kind: FileKind::Regular, perm: 0o600, rdev: 0, symlink: b"" };
        let caller = Caller { uid: owner.uid, gid: owner.gid };
        Ok(copy.make(parent, name.as_bytes(), &new, caller)?.record.ino)
    };
    let ino = make().map_err(failed("making", &path))?;
    let mut at = 0;
    if let Some((source, holds)) = source {
        let mut buf = vec![0; BUFFER_BYTES as usize];
        loop {
            let len = Files::read(source, &format!("{WAL_DIR}/{holds}"), at, &mut buf)?;
            if len == 0 {
                break;
            }
            copy.write(ino, at, &buf[..len]).map_err(failed("writing", &path))?;
            at += len as u64;
        }
    }
    copy.forget(ino, 1);
    Ok(at)
}
