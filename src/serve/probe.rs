//! Does a mount answer? Asked through a helper process.
//!
//! A process that serves a mount must never touch it: the request would wait for the process that
//! waits for it. And whoever touches a mount whose server hangs cannot even be killed until that
//! server ends. So a short-lived child does it, and is left to itself if it does not come back.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// The hidden option that makes `cowfs mount` do nothing but [`probe_here`].
pub const PROBE_OPTION: &str = "--probe";

/// Exit code of a helper that got an error without a number.
const UNKNOWN_ERROR: u8 = 255;

/// What a mount says to statfs(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It answers.
    Alive,
    /// Its server is gone ("Transport endpoint is not connected").
    Dead,
    /// It answers with another error, for example EACCES for a user it does not let in.
    Error(i32),
    /// It did not answer in time.
    Silent,
}

/// Asks the mount at `dir` in a helper process, for up to `patience`.
pub fn probe(dir: &Path, patience: Duration) -> Answer {
    let mut command = Command::new(own_program());
    command
        .arg("mount")
        .arg(PROBE_OPTION)
        .arg("--")
        .arg("probe")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    run(command, patience)
}

fn run(mut command: Command, patience: Duration) -> Answer {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Answer::Error(error.raw_os_error().unwrap_or(libc::EAGAIN)),
    };
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    let (done, ended) = mpsc::channel();
    // Reaps the child whenever it ends; one that never does keeps this thread, not the caller.
    let waiter = std::thread::Builder::new().name("probe".to_owned()).spawn(move || {
        let _ = done.send(child.wait());
    });
    if waiter.is_err() {
        return Answer::Error(libc::EAGAIN);
    }
    match ended.recv_timeout(patience) {
        Ok(Ok(status)) => match status.code() {
            Some(0) => Answer::Alive,
            Some(libc::ENOTCONN) => Answer::Dead,
            Some(errno) => Answer::Error(errno),
            None => Answer::Silent,
        },
        Ok(Err(error)) => Answer::Error(error.raw_os_error().unwrap_or(libc::ECHILD)),
        Err(_) => {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            Answer::Silent
        }
    }
}

/// The helper's part: touches the mount and returns the exit code that tells how it went.
pub fn probe_here(dir: &Path) -> u8 {
    // The attributes of the root may come from the kernel's cache, statfs never does; together
    // they also notice a directory that this user may not enter.
    let outcome = nix::sys::statvfs::statvfs(dir).map(drop);
    match outcome.and_then(|()| nix::sys::stat::stat(dir).map(drop)) {
        Ok(()) => 0,
        Err(errno) => u8::try_from(errno as i32).unwrap_or(UNKNOWN_ERROR),
    }
}

/// This program, also if its file was replaced or removed since it started.
pub(super) fn own_program() -> std::path::PathBuf {
    std::env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| "/proc/self/exe".into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Instant;

    fn shell(script: &str, patience_ms: u64) -> Answer {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command, Duration::from_millis(patience_ms))
    }

    #[test]
    fn exit_codes_become_answers() {
        assert_eq!(shell("exit 0", 5000), Answer::Alive);
        assert_eq!(shell("exit 107", 5000), Answer::Dead);
        assert_eq!(shell("exit 13", 5000), Answer::Error(13));
        let missing = run(Command::new("/nonexistent/program"), Duration::from_secs(1));
        assert_eq!(missing, Answer::Error(libc::ENOENT));
    }

    #[test]
    fn a_helper_that_hangs_is_left() {
        let begin = Instant::now();
        assert_eq!(shell("exec sleep 60", 50), Answer::Silent);
        assert!(begin.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn what_the_helper_reports() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(probe_here(dir.path()), 0);
        assert_eq!(i32::from(probe_here(&dir.path().join("none"))), libc::ENOENT);
    }
}
