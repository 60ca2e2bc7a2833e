//! An export into a directory of the host.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;

use super::{Contents, ExportError, Target};
use crate::format::{FileKind, InodeRecord, Timestamp};
use crate::io::sys;

/// A directory that is being filled.
pub struct Directory {
    root: PathBuf,
    /// The root itself was made for this.
    made: bool,
    /// Directories get their mode and times at the end: filling them changes the times, and may
    /// need more permissions.
    directories: Vec<(PathBuf, InodeRecord)>,
    can_share: bool,
}

impl Directory {
    /// Begins with `root`, which must be missing or empty.
    pub fn begin(root: &Path) -> Result<Directory, ExportError> {
        let mut made = false;
        match fs::read_dir(root).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Ok(false) => return Err(ExportError::InTheWay { path: root.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Nobody else looks in before it has the mode of the branch's root.
                let new = fs::DirBuilder::new().mode(0o700).create(root);
                new.map_err(writing("making", root))?;
                made = true;
            }
            Err(error) => return Err(writing("reading", root)(error)),
        }
        Ok(Directory { root: root.to_owned(), made, directories: Vec::new(), can_share: true })
    }
}

fn writing(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ExportError + use<> {
    let path = path.to_owned();
    move |source| match source.raw_os_error() {
        Some(libc::ENAMETOOLONG) => ExportError::PathTooLong { path },
        _ => ExportError::Write { what, path, source },
    }
}

/// Gives the file at `path` owner, mode and times of the record, and its extended attributes.
fn dress(path: &Path, record: &InodeRecord) -> Result<(), ExportError> {
    let found = path.symlink_metadata().map_err(writing("looking at", path))?;
    if (found.uid(), found.gid()) != (record.uid, record.gid) {
        let owned = lchown(path, Some(record.uid), Some(record.gid));
        owned.map_err(writing("giving its owner to", path))?;
    }
    if record.kind != FileKind::Symlink {
        // After the owner: a change of owner takes set-uid bits away.
        let mode = Permissions::from_mode(u32::from(record.perm));
        fs::set_permissions(path, mode).map_err(writing("giving its mode to", path))?;
        for (name, value) in &record.xattrs {
            sys::set_xattr(path, name, value).map_err(writing("giving attributes to", path))?;
        }
    }
    let spec = |time: Timestamp| TimeSpec::new(time.secs, i64::from(time.nanos));
    let flags = UtimensatFlags::NoFollowSymlink;
    utimensat(AT_FDCWD, path, &spec(record.atime), &spec(record.mtime), flags)
        .map_err(|errno| writing("giving its times to", path)(errno.into()))
}

impl Target for Directory {
    fn directory(&mut self, path: &Path, record: &InodeRecord) -> Result<(), ExportError> {
        let there = self.root.join(path);
        if !path.as_os_str().is_empty() {
            let made = fs::DirBuilder::new().mode(0o700).create(&there);
            made.map_err(writing("making", &there))?;
        }
        self.directories.push((there, record.clone()));
        Ok(())
    }

    fn file(
        &mut self,
        path: &Path,
        record: &InodeRecord,
        contents: &Contents<'_>,
    ) -> Result<u64, ExportError> {
        let there = self.root.join(path);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&there);
        let file = file.map_err(writing("creating", &there))?;
        let shared = contents.write_to(&file, &mut self.can_share)?;
        drop(file);
        dress(&there, record)?;
        Ok(shared)
    }

    fn hard_link(&mut self, path: &Path, first: &Path) -> Result<(), ExportError> {
        let there = self.root.join(path);
        fs::hard_link(self.root.join(first), &there).map_err(writing("linking", &there))
    }

    fn other(&mut self, path: &Path, record: &InodeRecord) -> Result<(), ExportError> {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let there = self.root.join(path);
        let kind = match record.kind {
            FileKind::Symlink => {
                let target = OsStr::from_bytes(&record.symlink);
                std::os::unix::fs::symlink(target, &there).map_err(writing("linking", &there))?;
                return dress(&there, record);
            }
            FileKind::Fifo => SFlag::S_IFIFO,
            FileKind::CharDevice => SFlag::S_IFCHR,
            FileKind::BlockDevice => SFlag::S_IFBLK,
            FileKind::Regular | FileKind::Directory | FileKind::Socket => return Ok(()),
        };
        mknod(&there, kind, Mode::S_IRUSR | Mode::S_IWUSR, u64::from(record.rdev))
            .map_err(|errno| writing("making", &there)(errno.into()))?;
        dress(&there, record)
    }

    fn finish(&mut self) -> Result<(), ExportError> {
        // From the inside out: giving a directory its mode may close it.
        for (path, record) in self.directories.drain(..).rev() {
            dress(&path, &record)?;
        }
        let root = File::open(&self.root).map_err(writing("opening", &self.root))?;
        let synced = nix::unistd::syncfs(&root);
        synced.map_err(|errno| writing("syncing", &self.root)(errno.into()))?;
        // The directory itself is an entry of another one.
        let above =
            self.root.canonicalize().ok().and_then(|root| root.parent().map(Path::to_owned));
        let above = above.unwrap_or_else(|| PathBuf::from("/"));
        let above_synced = File::open(&above).and_then(|dir| dir.sync_all());
        above_synced.map_err(writing("syncing", &above))
    }

    fn give_up(&mut self) {
        let remove = || -> io::Result<()> {
            if self.made {
                return fs::remove_dir_all(&self.root);
            }
            for entry in fs::read_dir(&self.root)? {
                let entry = entry?;
                let path = entry.path();
                let is_dir = entry.file_type()?.is_dir();
                if is_dir { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
            }
            Ok(())
        };
        if let Err(error) = remove() {
            tracing::warn!(%error, path = %self.root.display(), "half a copy stays");
        }
    }
}
