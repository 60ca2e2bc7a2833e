//! Taking a mount away: `umount2(2)` as root, `fusermount3 -u` as an ordinary user.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};

/// How long a mount may be in use and still count as unused.
///
/// Whoever looks through `/proc` (ps, lsof, a monitor, our own search for users) holds, for the
/// moment of looking, what the process that it looks at holds; and a process that has just been
/// killed lets go only once it gets to run.
const BUSY_PATIENCE: Duration = Duration::from_millis(300);

/// A mount could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// Somebody uses it.
    #[error("{} is in use", .mount_point.display())]
    Busy {
        /// Where it is mounted.
        mount_point: PathBuf,
    },
    /// It is not there (any more).
    #[error("nothing is mounted at {}", .mount_point.display())]
    NotMounted {
        /// Where it was looked for.
        mount_point: PathBuf,
    },
    /// The kernel refused.
    #[error("cannot unmount {}: {source}", .mount_point.display())]
    Kernel {
        /// Where it is mounted.
        mount_point: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The helper for ordinary users is missing or could not be run.
    #[error("cannot unmount {}: cannot run fusermount3: {source}", .mount_point.display())]
    NoHelper {
        /// Where it is mounted.
        mount_point: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The helper for ordinary users refused.
    #[error("cannot unmount {}: {said}", .mount_point.display())]
    Helper {
        /// Where it is mounted.
        mount_point: PathBuf,
        /// Its words.
        said: String,
    },
}

/// How to take a mount away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Only if nobody uses it.
    IfUnused,
    /// Out of the name space at once; whoever uses it goes on until done.
    Lazy,
}

/// Takes away the topmost mount at `mount_point`, which must be absolute and free of links.
///
/// Returns only after the kernel has written back what was dirty (not with [`Manner::Lazy`]).
pub fn detach(mount_point: &Path, manner: Manner) -> Result<(), DetachError> {
    let deadline = Instant::now() + BUSY_PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        match detach_now(mount_point, manner) {
            Err(DetachError::Busy { .. }) if Instant::now() < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(BUSY_PATIENCE / 6);
            }
            other => return other,
        }
    }
}

fn detach_now(mount_point: &Path, manner: Manner) -> Result<(), DetachError> {
    let mount_point = mount_point.to_path_buf();
    let mut flags = MntFlags::UMOUNT_NOFOLLOW;
    if manner == Manner::Lazy {
        flags |= MntFlags::MNT_DETACH;
    }
    match umount2(&mount_point, flags) {
        Ok(()) => Ok(()),
        Err(nix::Error::EPERM) => by_helper(mount_point, manner),
        Err(nix::Error::EBUSY) => Err(DetachError::Busy { mount_point }),
        Err(nix::Error::EINVAL | nix::Error::ENOENT) => {
            Err(DetachError::NotMounted { mount_point })
        }
        Err(errno) => Err(DetachError::Kernel { mount_point, source: errno.into() }),
    }
}

/// Whether ordinary users can mount and unmount here.
pub fn helper_is_installed() -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|dir| dir.join("fusermount3").exists())
}

fn by_helper(mount_point: PathBuf, manner: Manner) -> Result<(), DetachError> {
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if manner == Manner::Lazy {
        command.arg("-z");
    }
    // Its words are compared below.
    command.arg("--").arg(&mount_point).env("LC_ALL", "C").stdin(Stdio::null());
    let output = match command.output() {
        Ok(output) => output,
        Err(source) => return Err(DetachError::NoHelper { mount_point, source }),
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(if said.contains("busy") {
        DetachError::Busy { mount_point }
    } else if said.contains("not found in") || said.contains("Invalid argument") {
        DetachError::NotMounted { mount_point }
    } else {
        DetachError::Helper { mount_point, said }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_plain_directory_is_not_mounted() {
        let dir = tempfile::tempdir().unwrap();
        for manner in [Manner::IfUnused, Manner::Lazy] {
            let error = detach(dir.path(), manner).unwrap_err();
            let expected = matches!(
                error,
                DetachError::NotMounted { .. }
                    | DetachError::NoHelper { .. }
                    | DetachError::Helper { .. }
            );
            assert!(expected, "{error}");
        }
    }
}
