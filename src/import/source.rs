//! Access to a source tree that never follows a symbolic link.
//!
//! The tree may be in hostile hands while it is read: a directory that the walk saw can be a link
//! to `/etc` a moment later. So every open is relative to a descriptor of the tree's root, and the
//! kernel is told to resolve no links; what was opened is compared with what the walk saw.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;

use crate::format::Timestamp;

/// The root of a directory tree to be read.
#[derive(Debug)]
pub struct SourceTree {
    path: PathBuf,
    root: OwnedFd,
}

/// What makes a file the same file as before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Device.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

impl Identity {
    /// The identity of the file with this metadata.
    pub fn of(metadata: &Metadata) -> Identity {
        Identity { dev: metadata.dev(), ino: metadata.ino() }
    }
}

impl SourceTree {
    /// Opens the directory at `path`, which must be absolute and free of symbolic links.
    pub fn open(path: &Path) -> io::Result<SourceTree> {
        let host_root = File::open("/")?;
        let relative = path.strip_prefix("/").unwrap_or(path);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let root = open_beneath(&host_root, relative.as_os_str().as_bytes(), flags)?;
        Ok(SourceTree { path: path.to_owned(), root })
    }

    /// Where the tree lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path on the host of `relative`, for messages.
    pub fn full_path(&self, relative: &[u8]) -> PathBuf {
        if relative.is_empty() { self.path.clone() } else { self.path.join(as_path(relative)) }
    }

    /// Opens `relative` (empty for the root itself) without following any symbolic link.
    pub fn open_at(&self, relative: &[u8], flags: OFlag) -> io::Result<OwnedFd> {
        open_beneath(&self.root, relative, flags)
    }
}

/// The bytes of a path as a path.
pub fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// `dir/name`, or `name` when `dir` is empty.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    if !dir.is_empty() {
        path.extend_from_slice(dir);
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// The modification time as stored.
pub fn modified(metadata: &Metadata) -> Timestamp {
    Timestamp { secs: metadata.mtime(), nanos: metadata.mtime_nsec() as u32 }
}

/// The change time as stored.
pub fn changed(metadata: &Metadata) -> Timestamp {
    Timestamp { secs: metadata.ctime(), nanos: metadata.ctime_nsec() as u32 }
}

/// Opens one component below `dir`; a symbolic link is an error (or itself, with `O_PATH`).
pub fn open_entry(dir: impl AsFd, name: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(dir, OsStr::from_bytes(name), flags, Mode::empty())
}

/// Opens a file for reading its contents, without leaving a trace in its access time if allowed.
///
/// `O_NONBLOCK` because the file may have become a FIFO since the walk.
pub fn open_for_copy(dir: impl AsFd, name: &[u8]) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    match open_entry(dir.as_fd(), name, flags | OFlag::O_NOATIME) {
        // Only the owner and root may leave the access time alone.
        Err(Errno::EPERM) => open_entry(dir, name, flags),
        other => other,
    }
}

fn open_beneath(root: impl AsFd, relative: &[u8], flags: OFlag) -> io::Result<OwnedFd> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    if relative.is_empty() {
        return Ok(openat(root, ".", flags, Mode::empty())?);
    }
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags).resolve(resolve);
    match openat2(root.as_fd(), OsStr::from_bytes(relative), how) {
        // Before Linux 5.6, in some sandboxes, or a path longer than PATH_MAX: step by step.
        Err(Errno::ENOSYS | Errno::EPERM | Errno::ENAMETOOLONG) => {
            open_by_steps(root, relative, flags)
        }
        other => Ok(other?),
    }
}

fn open_by_steps(root: impl AsFd, relative: &[u8], flags: OFlag) -> io::Result<OwnedFd> {
    let step = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let mut components: Vec<&[u8]> = relative.split(|byte| *byte == b'/').collect();
    let last = components.pop().unwrap_or(b".");
    let mut dir = open_entry(root, b".", step)?;
    for component in components {
        dir = open_entry(dir, component, step)?;
    }
    Ok(open_entry(dir, last, flags)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::symlink;

    fn tree() -> (tempfile::TempDir, SourceTree) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/file"), "x").unwrap();
        symlink("/etc", dir.path().join("a/out")).unwrap();
        symlink("b", dir.path().join("a/in")).unwrap();
        let tree = SourceTree::open(&dir.path().canonicalize().unwrap()).unwrap();
        (dir, tree)
    }

    #[test]
    fn no_link_is_followed_either_way() {
        let (_dir, tree) = tree();
        let read = OFlag::O_RDONLY;
        for steps in [false, true] {
            let open = |path: &[u8]| {
                if steps {
                    open_by_steps(&tree.root, path, read)
                } else {
                    open_beneath(&tree.root, path, read)
                }
            };
            assert!(open(b"a/b/file").is_ok());
            for path in [&b"a/out/passwd"[..], b"a/in/file", b"a/out", b"a/in"] {
                let error = open(path).unwrap_err();
                assert!(
                    matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR)),
                    "{path:?}: {error}"
                );
            }
        }
    }

    #[test]
    fn deep_paths_open() {
        let (dir, tree) = tree();
        let name = "d".repeat(200);
        let mut fd = tree.open_at(b"", OFlag::O_RDONLY).unwrap();
        let mut path = Vec::new();
        for _ in 0..30 {
            nix::sys::stat::mkdirat(&fd, name.as_str(), Mode::S_IRWXU).unwrap();
            fd = open_entry(&fd, name.as_bytes(), OFlag::O_RDONLY).unwrap();
            path = join(&path, name.as_bytes());
        }
        assert!(path.len() > 4096);
        let again = tree.open_at(&path, OFlag::O_RDONLY).unwrap();
        let identity = |fd: OwnedFd| Identity::of(&File::from(fd).metadata().unwrap());
        assert_eq!(identity(again), identity(fd));
        drop(dir);
    }
}
