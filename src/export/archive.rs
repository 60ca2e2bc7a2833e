//! An export as a tar archive.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tar::{Builder, EntryType, Header};

use super::{Contents, ExportError, Target};
use crate::format::{FileKind, InodeRecord};

/// An archive that is being written; holes become zeros, extended attributes are left out.
pub struct Archive<W: Write> {
    builder: Builder<W>,
    /// For messages.
    name: String,
}

impl<W: Write> Archive<W> {
    /// Begins one; `name` is what messages call it.
    pub fn begin(out: W, name: &str) -> Archive<W> {
        Archive { builder: Builder::new(out), name: name.to_owned() }
    }

    /// Where it is written to.
    pub fn out(&self) -> &W {
        self.builder.get_ref()
    }

    fn writing(&self, source: io::Error) -> ExportError {
        ExportError::Write { what: "writing to", path: (&self.name).into(), source }
    }

    fn append_empty(&mut self, mut header: Header, path: &Path) -> Result<(), ExportError> {
        header.set_size(0);
        let done = self.builder.append_data(&mut header, named(path), io::empty());
        done.map_err(|error| self.writing(error))
    }
}

/// The root has a name too.
fn named(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

fn header(kind: EntryType, record: &InodeRecord) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(u32::from(record.perm));
    header.set_uid(u64::from(record.uid));
    header.set_gid(u64::from(record.gid));
    header.set_mtime(u64::try_from(record.mtime.secs).unwrap_or(0));
    header
}

impl<W: Write> Target for Archive<W> {
    fn directory(&mut self, path: &Path, record: &InodeRecord) -> Result<(), ExportError> {
        self.append_empty(header(EntryType::Directory, record), path)
    }

    fn file(
        &mut self,
        path: &Path,
        record: &InodeRecord,
        contents: &Contents<'_>,
    ) -> Result<u64, ExportError> {
        let mut header = header(EntryType::Regular, record);
        header.set_size(contents.size);
        let mut reader = contents.reader();
        match self.builder.append_data(&mut header, path, &mut reader) {
            Ok(()) => Ok(0),
            Err(error) => Err(reader.into_failure().unwrap_or_else(|| self.writing(error))),
        }
    }

    fn hard_link(&mut self, path: &Path, first: &Path) -> Result<(), ExportError> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Link);
        header.set_size(0);
        let done = self.builder.append_link(&mut header, path, first);
        done.map_err(|error| self.writing(error))
    }

    fn other(&mut self, path: &Path, record: &InodeRecord) -> Result<(), ExportError> {
        let kind = match record.kind {
            FileKind::Symlink => {
                let mut header = header(EntryType::Symlink, record);
                header.set_size(0);
                let target = Path::new(OsStr::from_bytes(&record.symlink));
                let done = self.builder.append_link(&mut header, path, target);
                return done.map_err(|error| self.writing(error));
            }
            FileKind::Fifo => EntryType::Fifo,
            FileKind::CharDevice => EntryType::Char,
            FileKind::BlockDevice => EntryType::Block,
            FileKind::Regular | FileKind::Directory | FileKind::Socket => return Ok(()),
        };
        let mut header = header(kind, record);
        let device = u64::from(record.rdev);
        let numbers = header
            .set_device_major(nix::sys::stat::major(device) as u32)
            .and_then(|()| header.set_device_minor(nix::sys::stat::minor(device) as u32));
        numbers.map_err(|error| self.writing(error))?;
        self.append_empty(header, path)
    }

    fn finish(&mut self) -> Result<(), ExportError> {
        let done = self.builder.finish().and_then(|()| self.builder.get_mut().flush());
        done.map_err(|error| self.writing(error))
    }
}
