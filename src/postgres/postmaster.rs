//! The server that runs on a data directory, found by its `postmaster.pid` and by `/proc`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::process::{self, ProcessId};
use super::{PostgresError, read_bounded};

/// `postmaster.pid` has eight short lines.
const PID_FILE_BYTES_MAX: u64 = 8192;
/// How long children of a killed postmaster have to notice that it is gone.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(5);

/// What the last line of `postmaster.pid` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// On its way up, or replaying WAL.
    Starting,
    /// On its way down.
    Stopping,
    /// Takes connections.
    Ready,
    /// A standby that takes no connections.
    Standby,
}

/// A live server on a data directory.
#[derive(Clone, Debug)]
pub struct Running {
    /// Its postmaster.
    pub process: ProcessId,
    /// Its port.
    pub port: u16,
    /// Its first socket directory, if it has one.
    pub socket_dir: Option<PathBuf>,
    /// Its first address, empty if it listens on sockets only.
    pub address: String,
    /// Whether it takes connections.
    pub status: Status,
}

/// The lines of `postmaster.pid`, as far as they are written yet.
#[derive(Debug, PartialEq, Eq)]
struct PidFile {
    pid: i32,
    port: u16,
    socket_dir: Option<PathBuf>,
    address: String,
    status: Status,
}

fn pid_file(dir: &Path) -> PathBuf {
    dir.join("postmaster.pid")
}

// Lines: pid, data directory, start time, port, first socket directory, first address, shared
// memory key, status. A single-user backend writes its pid as a negative number.
fn parse(text: &str) -> Option<PidFile> {
    let mut lines = text.lines();
    let pid = lines.next()?.trim().parse::<i32>().ok()?.checked_abs()?;
    let mut lines = lines.skip(2).map(str::trim);
    let port = lines.next().and_then(|line| line.parse().ok()).unwrap_or(0);
    let socket_dir = lines.next().filter(|line| !line.is_empty()).map(PathBuf::from);
    let address = lines.next().unwrap_or_default().to_owned();
    let status = match lines.nth(1) {
        Some("ready") => Status::Ready,
        Some("standby") => Status::Standby,
        Some("stopping") => Status::Stopping,
        _ => Status::Starting,
    };
    (pid > 0).then_some(PidFile { pid, port, socket_dir, address, status })
}

fn read(dir: &Path) -> Option<PidFile> {
    let bytes = read_bounded(&pid_file(dir), PID_FILE_BYTES_MAX).ok()?;
    parse(&String::from_utf8_lossy(&bytes))
}

/// The server on the data directory `dir`; `None` if none runs there.
///
/// A number in `postmaster.pid` that belongs to another program by now does not count: a
/// postmaster works in its data directory.
pub fn running_in(dir: &Path) -> Option<Running> {
    let found = read(dir)?;
    let process = ProcessId::of(found.pid)?;
    let ours = process::works_in(found.pid, dir).unwrap_or_else(|| is_postgres(found.pid));
    let PidFile { port, socket_dir, address, status, .. } = found;
    ours.then_some(Running { process, port, socket_dir, address, status })
}

/// For a process of another user, which may not be looked into further.
fn is_postgres(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .is_ok_and(|name| matches!(name.trim_end(), "postgres" | "postmaster"))
}

/// The status of the server `pid` on `dir`; `None` as long as the file is not its own.
pub fn status_of(dir: &Path, pid: i32) -> Option<Status> {
    read(dir).filter(|found| found.pid == pid).map(|found| found.status)
}

/// Takes away the `postmaster.pid` of a postmaster that was killed; returns whether there was one.
/// Postgres does so itself unless the pid was given to another process. Children that outlived
/// their postmaster are waited for a moment: they still write to the data directory.
pub fn take_stale_pid_file(dir: &Path) -> Result<bool, PostgresError> {
    if read(dir).is_none() || running_in(dir).is_some() {
        return Ok(false);
    }
    let deadline = std::time::Instant::now() + ORPHAN_PATIENCE;
    loop {
        let orphans = process::working_in(dir);
        let servers: Vec<i32> = orphans.into_iter().filter(|&pid| is_postgres(pid)).collect();
        if servers.is_empty() {
            break;
        }
        if std::time::Instant::now() >= deadline {
            return Err(PostgresError::Orphans { dir: dir.to_owned(), pids: servers });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    match std::fs::remove_file(pid_file(dir)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(PostgresError::Host {
            what: format!("removing {}", pid_file(dir).display()),
            source,
        }),
        _ => Ok(true),
    }
}

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Wait until all clients have gone.
    Smart,
    /// End all sessions, write a checkpoint.
    Fast,
    /// Drop everything; the next start recovers.
    Immediate,
}

impl std::str::FromStr for StopMode {
    type Err = String;

    fn from_str(text: &str) -> Result<StopMode, String> {
        match text {
            "smart" => Ok(StopMode::Smart),
            "fast" => Ok(StopMode::Fast),
            "immediate" => Ok(StopMode::Immediate),
            other => Err(format!("{other:?} is not smart, fast or immediate")),
        }
    }
}

/// Stops the server whose postmaster is `process`; waits up to `timeout` for its end.
pub fn stop(process: &ProcessId, mode: StopMode, timeout: Duration) -> Result<(), PostgresError> {
    let signal = match mode {
        StopMode::Smart => Signal::SIGTERM,
        StopMode::Fast => Signal::SIGINT,
        StopMode::Immediate => Signal::SIGQUIT,
    };
    process.signal(signal).map_err(|source| PostgresError::Host {
        what: format!("stopping Postgres (process {})", process.pid),
        source,
    })?;
    if process.wait_for_end(timeout) {
        Ok(())
    } else {
        Err(PostgresError::StopTimedOut { pid: process.pid, timeout })
    }
}

/// Has the standby on `dir` become a server of its own: it replays what WAL it has and takes a new
/// timeline. Called as the owner of `dir`.
pub fn promote(dir: &Path, process: &ProcessId) -> io::Result<()> {
    // What pg_ctl does. The server removes the file.
    std::fs::write(dir.join("promote"), "")?;
    process.signal(Signal::SIGUSR1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const READY: &str = "4711\n/data\n1700000000\n5433\n/run/s\n127.0.0.1\n  123  456\nready   \n";

    #[test]
    fn pid_files_in_every_stage() {
        let ready = parse(READY).unwrap();
        assert_eq!((ready.pid, ready.port, ready.status), (4711, 5433, Status::Ready));
        assert_eq!(ready.socket_dir, Some("/run/s".into()));
        assert_eq!(ready.address, "127.0.0.1");
        let early = parse("4711\n/data\n1700000000\n5433\n\n\n").unwrap();
        assert_eq!((early.socket_dir, early.status), (None, Status::Starting));
        assert_eq!(parse("-12\n").unwrap().pid, 12);
        for (word, status) in [("standby ", Status::Standby), ("stopping", Status::Stopping)] {
            assert_eq!(parse(&READY.replace("ready   ", word)).unwrap().status, status);
        }
        for text in ["", "\n", "x", "0", "-2147483648"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_recycled_pid_is_stale() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!take_stale_pid_file(dir.path()).unwrap());
        // The test itself is alive and is no server on that directory.
        let text = READY.replace("4711", &std::process::id().to_string());
        std::fs::write(dir.path().join("postmaster.pid"), &text).unwrap();
        assert!(running_in(dir.path()).is_none());
        assert!(take_stale_pid_file(dir.path()).unwrap());
        assert!(!dir.path().join("postmaster.pid").exists());
    }

    #[test]
    fn a_live_server_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut child =
            std::process::Command::new("sleep").arg("60").current_dir(dir.path()).spawn().unwrap();
        let text = READY.replace("4711", &child.id().to_string());
        std::fs::write(dir.path().join("postmaster.pid"), &text).unwrap();
        let running = running_in(dir.path()).unwrap();
        assert_eq!((running.port, running.status), (5433, Status::Ready));
        assert!(!take_stale_pid_file(dir.path()).unwrap());
        let error = stop(&running.process, StopMode::Smart, Duration::from_secs(5));
        child.wait().unwrap();
        error.unwrap();
        assert!(running_in(dir.path()).is_none());
    }
}
