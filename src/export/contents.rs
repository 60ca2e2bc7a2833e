//! The bytes of one file of a branch: shared with the store where the host can, else read, with
//! their checksums held against them.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{ExportError, Watch};
use crate::format::{GRANULE_BYTES, InodeRecord};
use crate::fs::{Fs, FsError};
use crate::layer::data_files::DataFiles;
use crate::layer::read::{Readable, Source};

/// Bytes per read and write.
const BUFFER_BYTES: usize = 1 << 20;

/// The contents of one file.
pub struct Contents<'a> {
    data: &'a DataFiles,
    readable: Readable,
    /// Bytes.
    pub size: u64,
    path: PathBuf,
    watch: &'a Watch<'a>,
}

impl<'a> Contents<'a> {
    pub(super) fn of(
        fs: &'a Fs,
        record: &InodeRecord,
        path: &Path,
        watch: &'a Watch<'a>,
    ) -> Result<Contents<'a>, ExportError> {
        let read =
            || -> Result<Readable, FsError> { fs.node(record.ino)?.readable(&fs.branch.view()) };
        let readable =
            read().map_err(|source| ExportError::Read { path: path.to_owned(), source })?;
        let (data, size, path) = (&*fs.branch.data, record.size, path.to_owned());
        Ok(Contents { data, readable, size, path, watch })
    }

    fn reading(&self, source: impl Into<FsError>) -> ExportError {
        ExportError::Read { path: self.path.clone(), source: source.into() }
    }

    /// Writes all of it to an empty file; what no layer owns becomes a hole. `can_share` is whether
    /// the host may be asked to share blocks, and is cleared once it turns out that it cannot.
    ///
    /// Returns how many bytes share their blocks with the store.
    pub fn write_to(&self, file: &File, can_share: &mut bool) -> Result<u64, ExportError> {
        let writing = |source| ExportError::Write {
            what: "writing the copy of",
            path: self.path.clone(),
            source,
        };
        file.set_len(self.size).map_err(writing)?;
        let mut shared = 0;
        for piece in self.readable.plan(0, self.size) {
            match piece.source {
                Source::Zeros => {}
                Source::Lower(run) if *can_share => {
                    let skip = piece.offset - u64::from(run.start) * GRANULE_BYTES;
                    let from = u64::from(run.source) * GRANULE_BYTES + skip;
                    // Only whole blocks can be shared.
                    let (at, len) = (piece.offset, piece.len / GRANULE_BYTES * GRANULE_BYTES);
                    let mut done = 0;
                    match self.data.share_run(run, from, file.as_fd(), at, len) {
                        Ok(true) => done = len,
                        Ok(false) => *can_share = false,
                        // Reading it says what is wrong, if anything is.
                        Err(_) => {}
                    }
                    (self.watch.advanced)(done);
                    shared += done;
                    self.copy(file, at + done, piece.len - done)?;
                }
                Source::Lower(_) | Source::Own => self.copy(file, piece.offset, piece.len)?,
            }
        }
        Ok(shared)
    }

    fn copy(&self, file: &File, offset: u64, len: u64) -> Result<(), ExportError> {
        let mut buf = vec![0; BUFFER_BYTES.min(len as usize)];
        let (mut at, end) = (offset, offset + len);
        while at < end {
            self.watch.go_on()?;
            let part = (end - at).min(BUFFER_BYTES as u64) as usize;
            let part = &mut buf[..part];
            self.readable.read(self.data, part, at).map_err(|error| self.reading(error))?;
            file.write_all_at(part, at).map_err(|source| ExportError::Write {
                what: "writing the copy of",
                path: self.path.clone(),
                source,
            })?;
            at += part.len() as u64;
            (self.watch.advanced)(part.len() as u64);
        }
        Ok(())
    }

    /// A reader of all of it, holes as zeros.
    pub fn reader(&self) -> Reader<'_> {
        Reader { contents: self, at: 0, failed: None }
    }
}

/// Reads the contents of a file in order.
pub struct Reader<'a> {
    contents: &'a Contents<'a>,
    at: u64,
    failed: Option<ExportError>,
}

impl Reader<'_> {
    /// The failure behind the `io::Error` that a read gave, if it was one of the branch.
    pub fn into_failure(self) -> Option<ExportError> {
        self.failed
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.contents.size - self.at;
        let len = left.min(buf.len() as u64) as usize;
        let outcome = self.contents.watch.go_on().and_then(|()| {
            let (readable, data) = (&self.contents.readable, self.contents.data);
            readable
                .read(data, &mut buf[..len], self.at)
                .map_err(|error| self.contents.reading(error))
        });
        if let Err(error) = outcome {
            let said = io::Error::other(error.to_string());
            self.failed = Some(error);
            return Err(said);
        }
        self.at += len as u64;
        (self.contents.watch.advanced)(len as u64);
        Ok(len)
    }
}
