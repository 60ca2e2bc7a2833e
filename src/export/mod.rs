//! Export: a branch becomes an ordinary directory tree, or a tar archive, that needs no cowfs.
//!
//! The tree is read through [`Fs`], without a mount; what it is written to is a [`Target`].

mod archive;
mod contents;
mod directory;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

pub use archive::Archive;
pub use contents::Contents;
pub use directory::Directory;

use crate::format::{FileKind, Ino, InodeRecord, abbreviated};
use crate::fs::{Fs, FsError};

/// An export failed; what it has written so far stays where it is.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The directory is not empty, or the file exists.
    #[error("{} is there already, and not empty", path.display())]
    InTheWay {
        /// The path.
        path: PathBuf,
    },
    /// The branch could not be read.
    #[error("reading {} of the branch", path.display())]
    Read {
        /// The path within the branch.
        path: PathBuf,
        /// Why.
        source: FsError,
    },
    /// The copy could not be written.
    #[error("{what} {}", path.display())]
    Write {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The host knows no paths of that length.
    #[error("{} has {} bytes, more than a path of the host can have", abbreviated(path), path.as_os_str().len())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// Somebody asked to give up.
    #[error("interrupted")]
    Interrupted,
}

/// What was exported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Exported {
    /// Regular files; hard links count once.
    pub files: u64,
    /// Directories, with the root.
    pub directories: u64,
    /// Symbolic links, pipes and devices.
    pub others: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Bytes of them that share their blocks with the store.
    pub shared_bytes: u64,
}

/// Where an export goes. Paths are relative; that of the root is empty.
pub trait Target {
    /// A directory, before anything in it.
    fn directory(&mut self, path: &Path, record: &InodeRecord) -> Result<(), ExportError>;
    /// A regular file; returns how many of its bytes share their blocks with the store.
    fn file(
        &mut self,
        path: &Path,
        record: &InodeRecord,
        contents: &Contents<'_>,
    ) -> Result<u64, ExportError>;
    /// One more name of a file that was exported before.
    fn hard_link(&mut self, path: &Path, first: &Path) -> Result<(), ExportError>;
    /// A symbolic link (with its target in the record), a pipe or a device.
    fn other(&mut self, path: &Path, record: &InodeRecord) -> Result<(), ExportError>;
    /// Everything is there: makes it durable.
    fn finish(&mut self) -> Result<(), ExportError>;
    /// Something failed: removes what was written. Half a copy is worth nothing, and in the way.
    fn give_up(&mut self) {}
}

/// Whoever wants to know how an export gets on, and may end it.
pub struct Watch<'a> {
    /// Set to give up.
    pub cancel: &'a AtomicBool,
    /// Told of bytes of contents that are done.
    pub advanced: &'a dyn Fn(u64),
}

impl Watch<'_> {
    fn go_on(&self) -> Result<(), ExportError> {
        if self.cancel.load(Ordering::Relaxed) { Err(ExportError::Interrupted) } else { Ok(()) }
    }
}

/// Writes the whole tree of `fs` to `target`. Nobody may change it meanwhile. Sockets are left out:
/// they are nothing without the process that listens.
pub fn export(
    fs: &Fs,
    target: &mut dyn Target,
    watch: &Watch<'_>,
) -> Result<Exported, ExportError> {
    let mut walk = Walk { fs, target, watch, done: Exported::default(), linked: HashMap::new() };
    let mut pending = vec![(Ino::ROOT, PathBuf::new())];
    while let Some((dir, path)) = pending.pop() {
        pending.extend(walk.directory(dir, &path)?);
    }
    walk.target.finish()?;
    Ok(walk.done)
}

struct Walk<'a> {
    fs: &'a Fs,
    target: &'a mut dyn Target,
    watch: &'a Watch<'a>,
    done: Exported,
    /// The first name of each file that has several.
    linked: HashMap<Ino, PathBuf>,
}

fn reading(path: &Path) -> impl FnOnce(FsError) -> ExportError + use<> {
    let path = path.to_owned();
    move |source| ExportError::Read { path, source }
}

impl Walk<'_> {
    /// Exports a directory with all in it but other directories, which are returned.
    fn directory(&mut self, dir: Ino, path: &Path) -> Result<Vec<(Ino, PathBuf)>, ExportError> {
        let record = self.record(dir, path)?;
        self.target.directory(path, &record)?;
        self.done.directories += 1;
        let mut inner = Vec::new();
        for line in self.fs.entries(dir).map_err(reading(path))? {
            let path = path.join(OsStr::from_bytes(&line.name));
            if line.kind == FileKind::Directory {
                inner.push((line.ino, path));
            } else {
                self.entry(line.ino, path)?;
            }
        }
        Ok(inner)
    }

    fn entry(&mut self, ino: Ino, path: PathBuf) -> Result<(), ExportError> {
        self.watch.go_on()?;
        let record = self.record(ino, &path)?;
        match record.kind {
            FileKind::Socket | FileKind::Directory => return Ok(()),
            FileKind::Regular => {}
            _ => {
                self.done.others += 1;
                return self.target.other(&path, &record);
            }
        }
        if let Some(first) = self.linked.get(&ino) {
            return self.target.hard_link(&path, first);
        }
        let contents = Contents::of(self.fs, &record, &path, self.watch)?;
        self.done.shared_bytes += self.target.file(&path, &record, &contents)?;
        self.done.files += 1;
        self.done.bytes += record.size;
        if record.nlink > 1 {
            self.linked.insert(ino, path);
        }
        Ok(())
    }

    fn record(&self, ino: Ino, path: &Path) -> Result<InodeRecord, ExportError> {
        Ok(self.fs.attributes(ino).map_err(reading(path))?.record)
    }
}
