//! A process of this boot, told apart from a later one with the same pid.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(2);

/// A process: its pid alone could have been given to another since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid.
    pub pid: i32,
    /// When it began, in clock ticks since the machine was booted.
    pub start_ticks: u64,
    /// The boot that it belongs to.
    pub boot: String,
}

impl ProcessId {
    /// The process that has `pid` now; `None` if there is none, or only its remains.
    pub fn of(pid: i32) -> Option<ProcessId> {
        let start_ticks = start_ticks(pid)?;
        Some(ProcessId { pid, start_ticks, boot: boot_id() })
    }

    /// The process that had `pid` and has ended already.
    pub fn ended(pid: i32) -> ProcessId {
        // Nothing but the first process of a boot begins at its tick 0.
        ProcessId { pid, start_ticks: 0, boot: boot_id() }
    }

    /// Whether it still runs. A zombie does not.
    pub fn is_alive(&self) -> bool {
        start_ticks(self.pid) == Some(self.start_ticks) && boot_id() == self.boot
    }

    /// Whether it works in another directory than `dir`, or in one whose filesystem is gone. A
    /// postmaster works in its data directory: it runs on a mount that was replaced, then.
    ///
    /// False where that cannot be told.
    pub fn has_lost(&self, dir: &Path) -> bool {
        let (Ok(own), Ok(wanted)) =
            (std::fs::metadata(format!("/proc/{}/cwd", self.pid)), std::fs::metadata(dir))
        else {
            let gone = std::fs::metadata(format!("/proc/{}/cwd", self.pid)).err();
            return gone.and_then(|error| error.raw_os_error()) == Some(libc::ENOTCONN);
        };
        (own.dev(), own.ino()) != (wanted.dev(), wanted.ino())
    }

    /// Sends it a signal; one that has ended is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits up to `patience` for its end; returns whether it has ended.
    pub fn wait_for_end(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }
}

fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

fn start_ticks(pid: i32) -> Option<u64> {
    let bytes = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&String::from_utf8_lossy(&bytes))
}

/// Field 22 of `pid (command) state …`; `None` for a zombie or a dead process. The command may
/// hold spaces and brackets.
fn parse_stat(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Processes whose working directory is `dir`, as far as they may be looked into.
///
/// A postmaster and all its children stay in their data directory.
pub fn working_in(dir: &Path) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid| works_in(pid, dir) == Some(true) && start_ticks(pid).is_some())
        .collect()
}

/// Whether the working directory of `pid` is `dir`; `None` if it may not be looked into.
pub fn works_in(pid: i32, dir: &Path) -> Option<bool> {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    let here = identity(dir).ok()?;
    match identity(Path::new(&format!("/proc/{pid}/cwd"))) {
        Ok(there) => Some(there == here),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
        Err(_) => Some(false),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_ends_and_its_number_is_not_mistaken() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let process = ProcessId::of(pid).unwrap();
        assert!(process.is_alive() && !process.wait_for_end(Duration::from_millis(5)));
        let other = ProcessId { start_ticks: process.start_ticks + 1, ..process.clone() };
        assert!(!other.is_alive());
        other.signal(Signal::SIGKILL).unwrap();
        let other_boot = ProcessId { boot: "before".to_owned(), ..process.clone() };
        assert!(!other_boot.is_alive());
        assert!(process.is_alive(), "a signal for another process must not reach it");
        process.signal(Signal::SIGKILL).unwrap();
        assert!(process.wait_for_end(Duration::from_secs(5)), "a zombie counts as ended");
        child.wait().unwrap();
        process.signal(Signal::SIGKILL).unwrap();
        assert_eq!(ProcessId::of(pid), None);
        assert!(!ProcessId::ended(std::process::id().cast_signed()).is_alive());
    }

    #[test]
    fn commands_with_brackets() {
        let line = |state| {
            format!("7 (a) b) {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20")
        };
        assert_eq!(parse_stat(&line("S")), Some(4242));
        assert_eq!(parse_stat(&line("Z")), None);
        assert_eq!(parse_stat("7 (a"), None);
    }

    #[test]
    fn working_directories() {
        let dir = tempfile::tempdir().unwrap();
        let mut child =
            std::process::Command::new("sleep").arg("60").current_dir(dir.path()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert_eq!(working_in(dir.path()), [pid]);
        assert_eq!(works_in(pid, Path::new("/proc")), Some(false));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(working_in(dir.path()), [0; 0]);
    }
}
