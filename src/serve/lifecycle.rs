//! Starting a serving process in the background, and being one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::error::ServeError;
use super::mount_point;
use super::options::{MountOptions, OPTIONS_VARIABLE};
use super::probe;
use super::readiness::{self, Heard, Message, Ready};
use super::run_file::RunFile;
use super::server::{self, MountRequest};
use super::unmount;
use crate::catalog::{CatalogError, Store};
use crate::format::BranchId;
use crate::io::host::{open_plain, open_plain_with};

/// The hidden option that makes `cowfs mount --foreground` report on its standard output.
pub const READY_OPTION: &str = "--ready-on-stdout";

/// A log larger than this is put aside when the next server starts.
const LOG_BYTES_MAX: u64 = 1 << 20;
/// Last words of a server that are repeated in an error message.
const LAST_WORDS_BYTES_MAX: u64 = 2000;
/// How long a server that was not ready in time has to end by itself.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// Starts a process that serves the branch, and returns once its mount answers.
pub fn start(store: &Store, request: &MountRequest) -> Result<Ready, ServeError> {
    let deadline = Instant::now() + request.timeout;
    let row = store
        .catalog
        .branch(&request.branch)?
        .ok_or_else(|| CatalogError::BranchNotFound { name: request.branch.clone() })?;
    let (path, log) = open_log(&store.run_dir(), row.id)
        .map_err(|source| host("opening the log of the serving process", source))?;
    let log_begin = log.metadata().map_or(0, |metadata| metadata.len());
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|errno| host("making a pipe", errno.into()))?;
    let mut child = command(store, request, log, writer)?
        .spawn()
        .map_err(|source| host("starting the serving process", source))?;
    match readiness::hear(reader, deadline) {
        Ok(Heard::Message(Message::Ready(ready))) => Ok(ready),
        Ok(Heard::Message(Message::Failed(failure))) => {
            let _ = child.wait();
            Err(failure.into())
        }
        Ok(Heard::Nothing) => {
            let status = end(child, END_PATIENCE);
            let how = last_words(&path, log_begin, status);
            take_leftovers(store, row.id, &request.dir);
            Err(ServeError::ServerEnded { how, log: path })
        }
        Ok(Heard::TimedOut) => {
            let _ = end(child, Duration::ZERO);
            take_leftovers(store, row.id, &request.dir);
            Err(ServeError::StartTimedOut { timeout: request.timeout, log: path })
        }
        Err(source) => {
            let _ = end(child, Duration::ZERO);
            Err(host("waiting for the serving process", source))
        }
    }
}

fn host(what: &str, source: io::Error) -> ServeError {
    ServeError::Host { what: what.to_owned(), source }
}

/// The log of the processes that serve a branch in the background.
pub fn log_path(run_dir: &Path, branch: BranchId) -> PathBuf {
    run_dir.join(format!("{branch}.log"))
}

fn open_log(run_dir: &Path, branch: BranchId) -> io::Result<(PathBuf, File)> {
    let path = log_path(run_dir, branch);
    if std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        std::fs::rename(&path, run_dir.join(format!("{branch}.log.old")))?;
    }
    let log = open_plain_with(OpenOptions::new().append(true).create(true).mode(0o600), &path)?;
    Ok((path, log))
}

/// The command line of the serving process; the order of the options is that of [`MountRequest`].
fn command(
    store: &Store,
    request: &MountRequest,
    log: File,
    ready: OwnedFd,
) -> Result<Command, ServeError> {
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|source| host("finding the current directory", source))
    };
    let mut command = Command::new(probe::own_program());
    command
        .env("COWFS_STORE", absolute(&store.root)?)
        // Resolved already: once more they would win over what -o took back.
        .env_remove(OPTIONS_VARIABLE)
        .args(["mount", "--foreground", READY_OPTION])
        .arg(format!("--timeout={}ms", request.timeout.as_millis()));
    if let Some(threads) = request.threads {
        command.arg(format!("--threads={threads}"));
    }
    for option in option_list(&request.options) {
        command.args(["-o", &option]);
    }
    command.arg("--").arg(request.branch.to_string()).arg(absolute(&request.dir)?);
    // What the log is for. Somebody who asked for other things gets them.
    if std::env::var_os("COWFS_LOG").is_none() {
        command.env("COWFS_LOG", "info,fuser=error");
    }
    command.env("NO_COLOR", "1");
    command.stdin(Stdio::null()).stdout(Stdio::from(ready)).stderr(Stdio::from(log));
    // Keeps no directory busy.
    command.current_dir("/");
    Ok(command)
}

fn option_list(options: &MountOptions) -> Vec<String> {
    let flags = [
        (options.read_only, "ro"),
        (options.xattr, "xattr"),
        (options.write_through, "writethrough"),
        (options.rings, "uring"),
        (options.host_cache == Some(true), "hostcache"),
        (options.host_cache == Some(false), "nohostcache"),
        (options.read_around == Some(true), "readaround"),
        (options.read_around == Some(false), "noreadaround"),
        (options.real_time, "realtime"),
        (options.allow_other, "allow_other"),
    ];
    let set = flags.iter().filter(|(on, _)| *on).map(|(_, name)| (*name).to_owned());
    set.chain(options.kernel.iter().cloned()).collect()
}

/// Waits up to `patience` for the child, then ends it: asks, and a moment later kills.
fn end(mut child: Child, patience: Duration) -> Option<ExitStatus> {
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = done.send(child.wait());
    });
    let mut status = ended.recv_timeout(patience);
    for signal in [nix::sys::signal::Signal::SIGTERM, nix::sys::signal::Signal::SIGKILL] {
        if status.is_err() {
            let _ = nix::sys::signal::kill(pid, signal);
            status = ended.recv_timeout(END_PATIENCE);
        }
    }
    status.ok()?.ok()
}

fn last_words(log: &Path, begin: u64, status: Option<ExitStatus>) -> String {
    let status = status.map_or_else(|| "it does not end".to_owned(), |status| status.to_string());
    let words = open_plain(log).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(begin.max(length.saturating_sub(LAST_WORDS_BYTES_MAX))))?;
        let mut bytes = Vec::new();
        file.take(LAST_WORDS_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    });
    match words {
        Ok(words) if !words.is_empty() => format!("{status}; it wrote: {words}"),
        _ => status,
    }
}

/// Takes away what a server that was killed while it started left behind.
fn take_leftovers(store: &Store, branch: BranchId, dir: &Path) {
    if let Ok(dir) = mount_point::resolve(dir)
        && let Err(error) = unmount::take_dead_mount(&dir)
    {
        tracing::warn!(%error, "cannot take away the dead mount");
    }
    if let Ok(_lock) = store.lock_branch_waiting(branch, END_PATIENCE) {
        let _ = RunFile::remove(&store.run_dir(), branch);
    }
}

/// Serves the branch in this process, which a [`start`] in another process has begun.
///
/// The standard output becomes the log; what it was hears when the mount answers, or why not.
pub fn serve_in_background(
    store: impl FnOnce() -> Result<Arc<Store>, ServeError>,
    request: &MountRequest,
) -> Result<(), ServeError> {
    let pipe = take_stdout().map_err(|source| host("setting up the output", source))?;
    // Out of reach of the terminal's signals. Fails only for the leader of a process group,
    // which a child of `start` is not.
    let _ = nix::unistd::setsid();
    let mut announced = false;
    let outcome = store().and_then(|store| {
        server::serve(&store, request, &mut |ready| {
            announced = true;
            readiness::announce(&pipe, &Message::Ready(ready))
        })
    });
    if let (Err(error), false) = (&outcome, announced) {
        let _ = readiness::announce(&pipe, &Message::Failed(error.to_failure()));
    }
    outcome
}

fn take_stdout() -> io::Result<OwnedFd> {
    let pipe = io::stdout().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdout(io::stderr().as_fd())?;
    Ok(pipe)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn logs_are_put_aside_and_links_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, log) = open_log(dir.path(), BranchId(5)).unwrap();
        log.set_len(LOG_BYTES_MAX + 1).unwrap();
        let (_, log) = open_log(dir.path(), BranchId(5)).unwrap();
        assert_eq!(log.metadata().unwrap().len(), 0);
        assert!(dir.path().join("5.log.old").exists());
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        assert!(open_log(dir.path(), BranchId(5)).is_err());
    }

    #[test]
    fn last_words_are_those_since_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "old news\nboom\n").unwrap();
        assert!(last_words(&log, 9, None).ends_with("it wrote: boom"));
        std::fs::write(&log, "x".repeat(10_000)).unwrap();
        assert!(last_words(&log, 0, None).len() < 2100);
        assert_eq!(last_words(&dir.path().join("none"), 0, None), "it does not end");
    }

    #[test]
    fn a_child_is_ended() {
        let sleeper = |script: &str| Command::new("sh").args(["-c", script]).spawn().unwrap();
        assert_eq!(end(sleeper("exit 3"), END_PATIENCE).unwrap().code(), Some(3));
        let begin = Instant::now();
        assert_eq!(end(sleeper("exec sleep 60"), Duration::ZERO).unwrap().code(), None);
        assert!(begin.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn options_go_to_the_child_as_they_came() {
        let options =
            MountOptions::parse(&["ro,xattr,writethrough,uring,realtime,noexec,allow_other"])
                .unwrap();
        let list = option_list(&options);
        assert_eq!(MountOptions::parse(&list).unwrap(), options);
    }
}
