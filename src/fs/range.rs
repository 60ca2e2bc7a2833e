//! Copies within the branch (copy_file_range).
//!
//! Whole granules that a finalized layer holds are shared: the target borrows them, see
//! [`crate::layer::borrowed`]. All else is copied.

use super::{Fs, FsError};
use crate::format::id::FILE_BYTES_MAX;
use crate::format::{FileKind, GRANULE_BYTES, Granule, Ino, OwnedRun};
use crate::fs::write::AllocateMode;
use crate::io::HostFile;
use crate::layer::read::{Piece, Source};

/// Bytes copied at a time.
const COPY_BYTES: u64 = 1 << 20;

impl Fs {
    /// Copies up to `len` bytes between two files of the branch; returns the bytes copied, fewer
    /// only at the end of the source.
    pub fn copy_range(
        &self,
        (from, from_offset): (Ino, u64),
        (to, to_offset): (Ino, u64),
        len: u64,
    ) -> Result<u64, FsError> {
        self.writable()?;
        let size = self.node(from)?.state.lock().record.size;
        let len = len.min(size.saturating_sub(from_offset));
        let overlap = from == to
            && from_offset < to_offset.saturating_add(len)
            && to_offset < from_offset.saturating_add(len);
        if overlap {
            return Err(FsError::Invalid);
        }
        self.lost.check(from, Some(from_offset..from_offset.saturating_add(len)))?;
        let mut done = 0;
        let view = self.branch.view();
        let readable = self.node(from)?.readable(&view)?;
        // Of the file as it is now: a fork meanwhile may put an empty one in its place.
        let own = readable.own.as_ref().and_then(|file| file.existing_host(&view.data).ok()?);
        for piece in readable.plan(from_offset, len) {
            let to_offset = to_offset + (piece.offset - from_offset);
            let copied = match self.copy_piece(from, (&piece, own.as_deref()), (to, to_offset)) {
                Ok(copied) => copied,
                // What is there counts; whoever asks for the rest is told.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            };
            done += copied;
            if copied < piece.len {
                break;
            }
        }
        Ok(done)
    }

    /// Copies one piece of a file: shares what can be shared of it.
    fn copy_piece(
        &self,
        from: Ino,
        (piece, own): (&Piece, Option<&dyn HostFile>),
        (to, to_offset): (Ino, u64),
    ) -> Result<u64, FsError> {
        let end = piece.offset + piece.len;
        let whole = piece.offset.next_multiple_of(GRANULE_BYTES)..end - end % GRANULE_BYTES;
        let aligned = piece.offset % GRANULE_BYTES == to_offset % GRANULE_BYTES;
        let run = match piece.source {
            Source::Lower(run) => run,
            Source::Own => return self.copy_own(from, (piece, own), (to, to_offset)),
            Source::Zeros => return self.copy_hole(piece.len, (to, to_offset)),
        };
        if !aligned || whole.start >= whole.end {
            return self.copy_bytes(from, (piece.offset, piece.len), (to, to_offset));
        }
        let start = (whole.start / GRANULE_BYTES) as Granule;
        let shared = OwnedRun {
            start: ((to_offset + (whole.start - piece.offset)) / GRANULE_BYTES) as Granule,
            len: ((whole.end - whole.start) / GRANULE_BYTES) as u32,
            source: run.source + (start - run.start),
            ..run
        };
        if !self.borrow(to, shared)? {
            return self.copy_bytes(from, (piece.offset, piece.len), (to, to_offset));
        }
        let (head, tail) = (whole.start - piece.offset, end - whole.end);
        let mut done = self.copy_bytes(from, (piece.offset, head), (to, to_offset))?;
        if done == head {
            done += whole.end - whole.start;
            done += self.copy_bytes(from, (whole.end, tail), (to, to_offset + piece.len - tail))?;
        }
        Ok(done)
    }

    /// Has `to` show `run`, if it is a file that can: one that only this branch has, and a run
    /// that is as durable as it ever gets.
    fn borrow(&self, to: Ino, run: OwnedRun) -> Result<bool, FsError> {
        let node = self.node(to)?;
        let end = u64::from(run.start + run.len) * GRANULE_BYTES;
        // WAL is to be one host file, whose sync is all that a commit waits for.
        let wal = node.is_wal();
        if node.kind != FileKind::Regular || end > FILE_BYTES_MAX || wal {
            return Ok(false);
        }
        let gate = self.branch.enter();
        if gate.in_memory().any(|layer| layer.id == run.layer) {
            return Ok(false);
        }
        let mut shared = false;
        self.change_contents(&gate, &node, false, |target| {
            if target.file.ownership.read().private {
                target.borrow(vec![run], end)?;
                shared = true;
            }
            Ok(())
        })?;
        if shared {
            self.note_write(&node, end);
            self.lost.replaced(to, u64::from(run.start) * GRANULE_BYTES..end);
        }
        Ok(shared)
    }

    /// Copies what the open layer holds; holes of its data file stay holes.
    fn copy_own(
        &self,
        from: Ino,
        (piece, host): (&Piece, Option<&dyn HostFile>),
        (to, to_offset): (Ino, u64),
    ) -> Result<u64, FsError> {
        let end = piece.offset + piece.len;
        let mut at = piece.offset;
        while at < end {
            let target = to_offset + (at - piece.offset);
            // A host that cannot tell has data everywhere.
            let data = host.map_or(Some(at), |host| host.seek_data(at).unwrap_or(Some(at)));
            let data = data.map_or(end, |data| data.clamp(at, end));
            if data > at {
                at += self.copy_hole(data - at, (to, target))?;
                continue;
            }
            let hole = host.and_then(|host| host.seek_hole(at).ok()?);
            let stop = hole.map_or(end, |hole| hole.clamp(at + 1, end));
            let copied = self.copy_bytes(from, (at, stop - at), (to, target))?;
            at += copied;
            if at < stop {
                break;
            }
        }
        Ok(at - piece.offset)
    }

    fn copy_hole(&self, len: u64, (to, to_offset): (Ino, u64)) -> Result<u64, FsError> {
        let node = self.node(to)?;
        let (size, end) = (node.state.lock().record.size, to_offset.saturating_add(len));
        if node.kind != FileKind::Regular {
            return Err(FsError::Invalid);
        } else if end > FILE_BYTES_MAX {
            return Err(FsError::TooBig);
        }
        if to_offset < size {
            let within = len.min(size - to_offset);
            self.allocate(to, to_offset, within, AllocateMode::PunchHole)?;
        }
        let gate = self.branch.enter();
        self.change_contents(&gate, &node, false, |target| target.grow(end))?;
        self.note_write(&node, end);
        self.lost.replaced(to, to_offset..end);
        Ok(len)
    }

    fn copy_bytes(
        &self,
        from: Ino,
        (from_offset, len): (u64, u64),
        (to, to_offset): (Ino, u64),
    ) -> Result<u64, FsError> {
        let (mut done, mut buf) = (0, Vec::new());
        while done < len {
            let step = (len - done).min(COPY_BYTES);
            self.read(from, from_offset + done, step as u32, &mut buf)?;
            if buf.is_empty() {
                break;
            }
            self.write(to, to_offset + done, &buf)?;
            done += buf.len() as u64;
        }
        Ok(done)
    }

    /// Granules of `ino` that the open layer owns; for tests and `status`.
    pub fn owned_granules(&self, ino: Ino) -> u64 {
        let view = self.branch.view();
        view.open.file(ino).map_or(0, |file| {
            let own = file.ownership.read();
            own.owned_bytes().div_ceil(GRANULE_BYTES)
        })
    }
}
