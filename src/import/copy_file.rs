//! Copies the contents of one file: shares extents where the host can, else copies data, not holes.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::io::sys;

/// Bytes asked of one `copy_file_range`: a pause of the progress bar, and of an interruption.
const RANGE_BYTES: u64 = 64 << 20;
/// Bytes per read and write where the kernel cannot copy.
const BUFFER_BYTES: usize = 1 << 20;

/// What the host turned out not to support; shared by all workers, so that it is asked once.
#[derive(Debug, Default)]
pub(super) struct Abilities {
    no_clone: AtomicBool,
    no_copy_range: AtomicBool,
}

/// How a file was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copied {
    /// The host shares the extents: no bytes moved.
    Shared,
    /// So many bytes of data were copied; the rest are holes.
    Data(u64),
}

/// What stops the copying of a file.
#[derive(Debug)]
pub(super) enum CopyError {
    /// Reading failed.
    Read(io::Error),
    /// Writing (or copying within the kernel) failed.
    Write(io::Error),
    /// The source ends before its size.
    Shrank,
    /// Somebody asked to give up.
    Interrupted,
}

/// One copy in progress.
pub(super) struct FileCopy<'a> {
    pub(super) source: &'a File,
    pub(super) target: &'a File,
    /// Bytes of the source as planned.
    pub(super) size: u64,
    pub(super) abilities: &'a Abilities,
    pub(super) cancel: &'a AtomicBool,
    /// Told of bytes that are done.
    pub(super) advanced: &'a dyn Fn(u64),
}

impl FileCopy<'_> {
    /// Copies all of it; the target is empty before and has the planned size after.
    pub(super) fn run(&self) -> Result<Copied, CopyError> {
        if self.clone_extents() {
            // A source that changed its size is noticed by the caller, who looks at it again.
            self.target.set_len(self.size).map_err(CopyError::Write)?;
            (self.advanced)(self.size);
            return Ok(Copied::Shared);
        }
        self.target.set_len(self.size).map_err(CopyError::Write)?;
        let (mut at, mut copied) = (0, 0);
        while at < self.size {
            let (start, end) = self.next_data(at)?;
            (self.advanced)(start - at);
            self.copy_range(start, end)?;
            copied += end - start;
            at = end;
        }
        Ok(Copied::Data(copied))
    }

    fn clone_extents(&self) -> bool {
        if self.abilities.no_clone.load(Ordering::Relaxed) {
            return false;
        }
        match sys::clone_file(self.source.as_fd(), self.target.as_fd()) {
            Ok(()) => true,
            Err(error) => {
                // Other errors concern this file (a swap file, alignment): it is copied.
                let never = [libc::EOPNOTSUPP, libc::ENOTTY, libc::ENOSYS, libc::EXDEV];
                if error.raw_os_error().is_some_and(|code| never.contains(&code)) {
                    self.abilities.no_clone.store(true, Ordering::Relaxed);
                }
                false
            }
        }
    }

    /// The next range of data at or after `at`, clipped to the size; empty at the end of the file.
    fn next_data(&self, at: u64) -> Result<(u64, u64), CopyError> {
        let seek = |from, whence| match sys::seek(self.source.as_fd(), from, whence) {
            Ok(found) => Ok(found),
            // No notion of holes there: all of it counts as data.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                Ok(Some(if whence == libc::SEEK_DATA { from } else { self.size }))
            }
            Err(e) => Err(CopyError::Read(e)),
        };
        let Some(start) = seek(at, libc::SEEK_DATA)?.filter(|start| *start < self.size) else {
            return Ok((self.size, self.size));
        };
        let end = seek(start, libc::SEEK_HOLE)?.unwrap_or(self.size).clamp(start, self.size);
        // A file that is being cut off under our hands could answer start == end.
        if end == start { Err(CopyError::Shrank) } else { Ok((start, end)) }
    }

    fn copy_range(&self, start: u64, end: u64) -> Result<(), CopyError> {
        let mut at = start;
        while at < end {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(CopyError::Interrupted);
            }
            let done = self.copy_some(at, (end - at).min(RANGE_BYTES))?;
            (self.advanced)(done);
            at += done;
        }
        Ok(())
    }

    fn copy_some(&self, at: u64, len: u64) -> Result<u64, CopyError> {
        if !self.abilities.no_copy_range.load(Ordering::Relaxed) {
            match sys::copy_range(self.source.as_fd(), at, self.target.as_fd(), at, len) {
                Ok(0) => {}
                Ok(done) => return Ok(done),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(0),
                Err(e) => match e.raw_os_error() {
                    Some(libc::EXDEV | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS) => {
                        self.abilities.no_copy_range.store(true, Ordering::Relaxed);
                    }
                    // A failed read inside the kernel looks the same; the plain way tells which.
                    Some(libc::EIO) => {}
                    _ => return Err(CopyError::Write(e)),
                },
            }
        }
        self.copy_by_buffer(at, len)
    }

    fn copy_by_buffer(&self, at: u64, len: u64) -> Result<u64, CopyError> {
        let len = usize::try_from(len).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
        let mut buffer = vec![0; len];
        let count = match self.source.read_at(&mut buffer, at) {
            Ok(0) => return Err(CopyError::Shrank),
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(0),
            Err(e) => return Err(CopyError::Read(e)),
        };
        self.target.write_all_at(&buffer[..count], at).map_err(CopyError::Write)?;
        Ok(count as u64)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::AtomicU64;

    fn copy(
        source: &File,
        size: u64,
        abilities: &Abilities,
    ) -> (Result<Copied, CopyError>, File, u64) {
        let (target, done) = (tempfile::tempfile().unwrap(), AtomicU64::new(0));
        let result = FileCopy {
            source,
            target: &target,
            size,
            abilities,
            cancel: &AtomicBool::new(false),
            advanced: &|bytes| {
                done.fetch_add(bytes, Ordering::Relaxed);
            },
        }
        .run();
        (result, target, done.into_inner())
    }

    /// 8 MiB with data at 1 MiB and in the last 3 bytes.
    fn sparse() -> (File, u64) {
        let file = tempfile::tempfile().unwrap();
        let size = (8 << 20) + 3;
        file.set_len(size).unwrap();
        file.write_all_at(&[7; 5000], 1 << 20).unwrap();
        file.write_all_at(b"end", size - 3).unwrap();
        (file, size)
    }

    #[test]
    fn contents_and_holes_survive_either_way() {
        for plain in [false, true] {
            let (source, size) = sparse();
            let abilities = Abilities::default();
            abilities.no_clone.store(plain, Ordering::Relaxed);
            abilities.no_copy_range.store(plain, Ordering::Relaxed);
            let (result, target, done) = copy(&source, size, &abilities);
            let mut expected = vec![0; size as usize];
            source.read_exact_at(&mut expected, 0).unwrap();
            let mut found = vec![0; size as usize];
            target.read_exact_at(&mut found, 0).unwrap();
            assert!(expected == found);
            assert_eq!(done, size, "progress counts every byte once");
            let allocated = target.metadata().unwrap().blocks() * 512;
            assert!(allocated < 1 << 20, "holes were filled: {allocated} bytes, {result:?}");
        }
    }

    #[test]
    fn a_source_that_shrank_is_noticed() {
        let (source, size) = sparse();
        source.set_len((1 << 20) + 10).unwrap();
        let abilities = Abilities::default();
        abilities.no_clone.store(true, Ordering::Relaxed);
        abilities.no_copy_range.store(true, Ordering::Relaxed);
        // The hole up to the planned size is no data; the caller compares sizes for that case.
        let (result, target, _) = copy(&source, size, &abilities);
        assert_eq!(result.unwrap(), Copied::Data(10));
        assert_eq!(target.metadata().unwrap().len(), size);
    }

    #[test]
    fn giving_up_is_immediate() {
        let (source, size) = sparse();
        let target = tempfile::tempfile().unwrap();
        let abilities = Abilities::default();
        abilities.no_clone.store(true, Ordering::Relaxed);
        let copy = FileCopy {
            source: &source,
            target: &target,
            size,
            abilities: &abilities,
            cancel: &AtomicBool::new(true),
            advanced: &|_| {},
        };
        assert!(matches!(copy.run(), Err(CopyError::Interrupted)));
    }
}
