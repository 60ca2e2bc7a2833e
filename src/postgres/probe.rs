//! The facts of a data directory: version, identity, state, and whether a server runs on it.

use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::kill;
use nix::unistd::Pid;
use thiserror::Error;

use super::control_file::{CONTROL_FILE_BYTES, ControlFile, ControlFileError};
use super::read_bounded;

/// `postmaster.pid` has eight short lines.
const PID_FILE_BYTES_MAX: u64 = 8192;

/// What is known of a Postgres data directory without running Postgres.
#[derive(Debug)]
pub struct DataDirectory {
    /// Major version, from `PG_VERSION`.
    pub major: u32,
    /// What `global/pg_control` says, or why it was not believed.
    pub control: Result<ControlFile, ProbeError>,
    /// The process that `postmaster.pid` names, if it is alive.
    pub running_pid: Option<i32>,
    /// Whether `postgresql.conf` lies in the directory (Debian keeps it elsewhere).
    pub has_config: bool,
}

/// Why a directory was not taken for a Postgres data directory.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// It has no `PG_VERSION`.
    #[error("{} is not a Postgres data directory: it has no PG_VERSION file", dir.display())]
    NotADataDirectory {
        /// The directory.
        dir: PathBuf,
    },
    /// `PG_VERSION` does not hold a version number.
    #[error("{} does not hold the version of a Postgres cluster", path.display())]
    BadVersion {
        /// The `PG_VERSION` file.
        path: PathBuf,
    },
    /// A file of it cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Its control file is not believed.
    #[error("cannot use {}", path.display())]
    Control {
        /// The control file.
        path: PathBuf,
        /// What is wrong with it.
        source: ControlFileError,
    },
}

impl DataDirectory {
    /// Looks at `dir`. Only a missing or strange `PG_VERSION`, or one that cannot be read, is an error.
    pub fn probe(dir: &Path) -> Result<DataDirectory, ProbeError> {
        Ok(DataDirectory {
            major: read_major(dir)?,
            control: read_control_file(dir),
            running_pid: running_pid(dir),
            has_config: dir.join("postgresql.conf").exists(),
        })
    }
}

fn read_major(dir: &Path) -> Result<u32, ProbeError> {
    let path = dir.join("PG_VERSION");
    let bytes = match read_bounded(&path, 64) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ProbeError::NotADataDirectory { dir: dir.to_owned() });
        }
        Err(source) => return Err(ProbeError::Read { path, source }),
    };
    // Up to 9.6 the major version had two parts; its first is enough to say that it is too old.
    let text = String::from_utf8_lossy(&bytes);
    match text.trim_end().split('.').next().map(str::parse) {
        Some(Ok(major)) => Ok(major),
        _ => Err(ProbeError::BadVersion { path }),
    }
}

/// Reads and verifies `global/pg_control` below `dir`.
pub fn read_control_file(dir: &Path) -> Result<ControlFile, ProbeError> {
    let path = dir.join("global/pg_control");
    let bytes = match read_bounded(&path, CONTROL_FILE_BYTES as u64) {
        Ok(bytes) => bytes,
        Err(source) => return Err(ProbeError::Read { path, source }),
    };
    ControlFile::parse(&bytes).map_err(|source| ProbeError::Control { path, source })
}

/// The process named by `postmaster.pid` below `dir`, if such a process exists.
///
/// Errs on the side of "running", as Postgres does: a number that was given to another program
/// since counts, and so does a process of another user, which we may not signal. A server in
/// another pid namespace is not seen here; the state in the control file shows that one.
pub fn running_pid(dir: &Path) -> Option<i32> {
    let bytes = read_bounded(&dir.join("postmaster.pid"), PID_FILE_BYTES_MAX).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    // A single-user backend writes its pid as a negative number.
    let pid = text.lines().next()?.trim().parse::<i32>().ok()?.checked_abs()?;
    let ours = pid == Pid::this().as_raw() || pid == Pid::parent().as_raw();
    if pid == 0 || ours {
        return None;
    }
    match kill(Pid::from_raw(pid), None) {
        // Ended, and only not asked by its parent yet how.
        Ok(()) if is_zombie(pid) => None,
        Ok(()) | Err(nix::errno::Errno::EPERM) => Some(pid),
        Err(_) => None,
    }
}

fn is_zombie(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:\tZ"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    #[test]
    fn versions() {
        let dir = tempfile::tempdir().unwrap();
        let version = dir.path().join("PG_VERSION");
        assert!(matches!(read_major(dir.path()), Err(ProbeError::NotADataDirectory { .. })));
        for (text, major) in [("15\n", 15), ("9.6\n", 9), ("18", 18)] {
            fs::write(&version, text).unwrap();
            assert_eq!(read_major(dir.path()).unwrap(), major);
        }
        for text in ["", "fifteen\n", "-1", "15\nx"] {
            fs::write(&version, text).unwrap();
            assert!(matches!(read_major(dir.path()), Err(ProbeError::BadVersion { .. })), "{text}");
        }
        fs::remove_file(&version).unwrap();
        nix::unistd::mkfifo(&version, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(
            matches!(read_major(dir.path()), Err(ProbeError::Read { .. })),
            "a FIFO must not hang us"
        );
    }

    #[test]
    fn liveness() {
        let dir = tempfile::tempdir().unwrap();
        let write = |text: String| fs::write(dir.path().join("postmaster.pid"), text).unwrap();
        assert_eq!(running_pid(dir.path()), None);
        write("\n".into());
        assert_eq!(running_pid(dir.path()), None);
        write("1\n/data\n".into());
        assert_eq!(running_pid(dir.path()), Some(1));
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        write(format!("{}\n", ended.id()));
        while !is_zombie(ended.id().cast_signed()) {}
        assert_eq!(running_pid(dir.path()), None, "its parent has not asked yet");
        ended.wait().unwrap();
        write(format!("{}\n", std::process::id()));
        assert_eq!(running_pid(dir.path()), None, "a recycled pid that is ours");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        write(format!("-{pid}\n"));
        assert_eq!(running_pid(dir.path()), Some(pid), "a single-user backend");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(running_pid(dir.path()), None);
        write(format!("{}\n", i32::MIN));
        assert_eq!(running_pid(dir.path()), None);
    }
}
