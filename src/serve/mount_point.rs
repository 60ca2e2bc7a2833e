//! The directory that a branch is to be mounted on: is it fit, and is it free?

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::detach::{self, DetachError, Manner};
use super::mountinfo::{self, MountEntry};
use super::probe::Answer;

/// Dead mounts taken off one directory before we believe that something puts them there.
const DEAD_MOUNTS_MAX: usize = 16;

/// A directory cannot be mounted on.
#[derive(Debug, thiserror::Error)]
pub enum MountPointError {
    /// There is no such directory.
    #[error("directory {} does not exist", .dir.display())]
    Missing {
        /// As given.
        dir: PathBuf,
    },
    /// It is something else.
    #[error("{} is not a directory", .dir.display())]
    NotADirectory {
        /// As given.
        dir: PathBuf,
    },
    /// It cannot be looked at.
    #[error("cannot use {}: {source}", .dir.display())]
    Unusable {
        /// As given.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An ordinary user may mount only where it may write.
    #[error("you may not write to {}, so you may not mount there", .dir.display())]
    NotWritable {
        /// The directory.
        dir: PathBuf,
    },
    /// The mount would cover files of the store, or lie among them.
    #[error("{} and the store {} must not lie inside each other", .dir.display(), .store.display())]
    OverlapsStore {
        /// The directory.
        dir: PathBuf,
        /// The store.
        store: PathBuf,
    },
    /// A branch is mounted there.
    #[error("a branch is already mounted at {} ({})", .dir.display(), .source_name.display())]
    Taken {
        /// The directory.
        dir: PathBuf,
        /// What `mount` shows as the source.
        source_name: OsString,
    },
    /// A mount is there whose server neither answers nor is gone.
    #[error("the mount at {} does not answer", .dir.display())]
    Silent {
        /// The directory.
        dir: PathBuf,
    },
    /// A dead mount of another filesystem type is there.
    #[error("a dead mount of type {fs_type} is at {}", .dir.display())]
    ForeignDead {
        /// The directory.
        dir: PathBuf,
        /// Its type.
        fs_type: String,
    },
    /// A dead mount of ours could not be taken away.
    #[error("the dead mount of a killed server cannot be taken away: {0}")]
    DeadStays(#[from] DetachError),
}

impl MountPointError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { dir } => Some(format!("mkdir -p {}", dir.display())),
            Self::Taken { dir, .. } => Some(format!("cowfs unmount {}", dir.display())),
            Self::Silent { dir } => Some(format!("cowfs unmount --lazy {}", dir.display())),
            Self::ForeignDead { dir, .. } => Some(format!("umount {}", dir.display())),
            Self::OverlapsStore { .. } => Some("choose a directory elsewhere".to_owned()),
            _ => None,
        }
    }
}

/// A directory that can be mounted on.
#[derive(Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Absolute and free of links.
    pub dir: PathBuf,
    /// What the user should know.
    pub notices: Vec<String>,
}

/// Checks `dir` and takes dead mounts of killed servers off it.
///
/// `ask` asks a mount whether it answers, without risk to the caller.
pub fn prepare(
    dir: &Path,
    store_root: &Path,
    ask: &dyn Fn(&Path) -> Answer,
) -> Result<Prepared, MountPointError> {
    let dir = resolve(dir)?;
    let mut notices = Vec::new();
    for _ in 0..DEAD_MOUNTS_MAX {
        let Some(mount) = mount_at(&dir)? else { break };
        if !clear(&dir, &mount, ask)? {
            break;
        }
        notices.push(format!(
            "took away the dead mount of a killed server at {} ({})",
            dir.display(),
            mount.source.display()
        ));
    }
    check_directory(&dir)?;
    check_overlap(&dir, store_root)?;
    if !is_empty(&dir) {
        notices.push(format!(
            "{} is not empty: its contents are hidden while the branch is mounted",
            dir.display()
        ));
    }
    Ok(Prepared { dir, notices })
}

/// Makes a path absolute and free of links, also if a dead mount is at its end.
pub fn resolve(dir: &Path) -> Result<PathBuf, MountPointError> {
    let failed = |source: io::Error| match source.raw_os_error() {
        Some(libc::ENOENT) => MountPointError::Missing { dir: dir.to_owned() },
        Some(libc::ENOTDIR) => MountPointError::NotADirectory { dir: dir.to_owned() },
        _ => MountPointError::Unusable { dir: dir.to_owned(), source },
    };
    match dir.canonicalize() {
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => {
            let absolute = std::path::absolute(dir).map_err(failed)?;
            match (absolute.parent(), absolute.file_name()) {
                (Some(parent), Some(name)) => Ok(parent.canonicalize().map_err(failed)?.join(name)),
                _ => Ok(absolute),
            }
        }
        other => other.map_err(failed),
    }
}

fn mount_at(dir: &Path) -> Result<Option<MountEntry>, MountPointError> {
    let entries = mountinfo::read()
        .map_err(|source| MountPointError::Unusable { dir: dir.to_owned(), source })?;
    Ok(mountinfo::topmost_at(&entries, dir).cloned())
}

/// Whether `mount` was a dead one of ours and is gone now; other mounts stay if they are fit.
fn clear(
    dir: &Path,
    mount: &MountEntry,
    ask: &dyn Fn(&Path) -> Answer,
) -> Result<bool, MountPointError> {
    if !mount.fs_type.starts_with("fuse") {
        return Ok(false);
    }
    let dir = dir.to_owned();
    match (ask(&dir), mount.is_cowfs()) {
        (Answer::Dead, true) => {
            detach::detach(&dir, Manner::Lazy)?;
            Ok(true)
        }
        (Answer::Dead, false) => {
            Err(MountPointError::ForeignDead { dir, fs_type: mount.fs_type.clone() })
        }
        (Answer::Silent, _) => Err(MountPointError::Silent { dir }),
        (_, true) => Err(MountPointError::Taken { dir, source_name: mount.source.clone() }),
        (_, false) => Ok(false),
    }
}

fn check_directory(dir: &Path) -> Result<(), MountPointError> {
    let owned = dir.to_owned();
    let metadata = match std::fs::metadata(dir) {
        Ok(metadata) => metadata,
        Err(source) => return Err(MountPointError::Unusable { dir: owned, source }),
    };
    if !metadata.is_dir() {
        return Err(MountPointError::NotADirectory { dir: owned });
    }
    let user = nix::unistd::geteuid();
    if user.is_root() {
        return Ok(());
    }
    // The rule of fusermount3: may write, and owns it if it is sticky (as /tmp is).
    let sticky = metadata.mode() & libc::S_ISVTX != 0;
    let writable = nix::unistd::access(dir, nix::unistd::AccessFlags::W_OK).is_ok();
    if !writable || (sticky && metadata.uid() != user.as_raw()) {
        return Err(MountPointError::NotWritable { dir: owned });
    }
    Ok(())
}

fn check_overlap(dir: &Path, store_root: &Path) -> Result<(), MountPointError> {
    let store = match store_root.canonicalize() {
        Ok(store) => store,
        Err(source) => {
            return Err(MountPointError::Unusable { dir: store_root.to_owned(), source });
        }
    };
    if dir.starts_with(&store) || store.starts_with(dir) {
        return Err(MountPointError::OverlapsStore { dir: dir.to_owned(), store });
    }
    Ok(())
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::symlink;

    fn unasked(_: &Path) -> Answer {
        panic!("nothing is mounted there")
    }

    fn error(dir: &Path, store: &Path) -> MountPointError {
        prepare(dir, store, &unasked).unwrap_err()
    }

    #[test]
    fn fit_directories() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let (store, dir) = (root.join("store"), root.join("dir"));
        std::fs::create_dir(&store).unwrap();
        std::fs::create_dir(&dir).unwrap();
        symlink(&dir, root.join("link")).unwrap();
        let expected = Prepared { dir: dir.clone(), notices: Vec::new() };
        assert_eq!(prepare(&root.join("link"), &store, &unasked).unwrap(), expected);
        assert_eq!(prepare(&root.join("store/../dir/."), &store, &unasked).unwrap(), expected);
        std::fs::write(dir.join("file"), "").unwrap();
        let notices = prepare(&dir, &store, &unasked).unwrap().notices;
        assert!(notices[0].contains("is not empty"), "{notices:?}");
    }

    #[test]
    fn unfit_directories() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let store = root.join("store");
        std::fs::create_dir_all(store.join("run")).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        symlink(store.join("run"), root.join("sly")).unwrap();
        symlink("loop", root.join("loop")).unwrap();

        let missing = error(&root.join("none"), &store);
        assert!(matches!(missing, MountPointError::Missing { .. }));
        assert_eq!(missing.hint().unwrap(), format!("mkdir -p {}/none", root.display()));
        assert!(matches!(error(&root.join("file"), &store), MountPointError::NotADirectory { .. }));
        assert!(matches!(
            error(&root.join("file/x"), &store),
            MountPointError::NotADirectory { .. }
        ));
        assert!(matches!(error(&root.join("loop"), &store), MountPointError::Unusable { .. }));
        for overlapping in [&store, &store.join("run"), &root.join("sly"), &root] {
            let error = error(overlapping, &store);
            assert!(matches!(error, MountPointError::OverlapsStore { .. }), "{error}");
        }
    }

    #[test]
    fn a_name_that_only_starts_alike_is_no_overlap() {
        let temp = tempfile::tempdir().unwrap();
        let (store, dir) = (temp.path().join("store"), temp.path().join("store2"));
        std::fs::create_dir(&store).unwrap();
        std::fs::create_dir(&dir).unwrap();
        assert!(prepare(&dir, &store, &unasked).is_ok());
    }

    #[test]
    fn other_mounts_decide() {
        let mount = |fs_type: &str| MountEntry {
            id: 1,
            parent: 0,
            device: (0, 40),
            mount_point: "/m".into(),
            fs_type: fs_type.into(),
            source: "cowfs:main".into(),
        };
        let dir = Path::new("/nonexistent");
        let outcome = |fs_type, answer| clear(dir, &mount(fs_type), &move |_| answer);
        assert!(!clear(dir, &mount("ext4"), &unasked).unwrap());
        assert!(!outcome("fuse.sshfs", Answer::Alive).unwrap());
        assert!(matches!(
            outcome("fuse.sshfs", Answer::Dead),
            Err(MountPointError::ForeignDead { .. })
        ));
        assert!(matches!(outcome("fuse.cowfs", Answer::Alive), Err(MountPointError::Taken { .. })));
        assert!(matches!(
            outcome("fuse.cowfs", Answer::Error(13)),
            Err(MountPointError::Taken { .. })
        ));
        assert!(matches!(
            outcome("fuse.cowfs", Answer::Silent),
            Err(MountPointError::Silent { .. })
        ));
        // Dead and ours: it goes on to detach, which finds nothing there.
        assert!(matches!(outcome("fuse.cowfs", Answer::Dead), Err(MountPointError::DeadStays(_))));
    }
}
