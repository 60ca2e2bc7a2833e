//! Starting a server on a data directory and waiting until it takes connections.
//!
//! # The first sync
//!
//! After a crash, and every fork of a running server is one, Postgres fsyncs each file of the data
//! directory before it replays WAL: what an earlier server wrote and did not sync must not get
//! lost once the replay takes it as done. That takes two requests and more per file. On a branch
//! that was mounted for this start nobody has written anything, so one request to its serving
//! process makes everything durable at once. Then, and only then, the server is told to use
//! `syncfs`, which on a FUSE mount does nothing.
//!
//! 1. The caller makes the branch durable ([`Launch::durable`] says so).
//! 2. The configuration file of ours says `syncfs` when the server starts.
//! 3. As soon as `postmaster.pid` is there, it says `fsync`, and the server gets SIGHUP. The
//!    postmaster looks at signals only after it has started the first recovery, so this one takes
//!    `syncfs`, and every later one (after the crash of a backend) takes `fsync`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::control_file::DbState;
use super::locate::Binaries;
use super::owner::Owner;
use super::postmaster::{self, Status};
use super::process::ProcessId;
use super::settings::Setting;
use super::{PostgresError, probe};
use crate::io::sys;

/// How often the state of a starting server is looked at: a cached read of a small file.
const POLL: Duration = Duration::from_millis(2);
/// The same of one that replays WAL, which may take long.
const PROMOTE_POLL: Duration = Duration::from_millis(5);
/// A log larger than this is put aside at the next start.
const LOG_BYTES_MAX: u64 = 8 << 20;
/// How much of the end of the log goes into a message.
const LAST_WORDS_BYTES_MAX: u64 = 2000;
const LAST_WORDS_LINES_MAX: usize = 8;
/// How long a server that is not wanted any more has to end.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// The first version with `recovery_init_sync_method`.
const SYNC_METHOD_SINCE: u32 = 14;

/// All that a start needs, except the port.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The programs.
    pub binaries: &'a Binaries,
    /// The data directory.
    pub data_dir: &'a Path,
    /// The user's configuration file.
    pub config_file: &'a Path,
    /// Where a configuration file of ours may be put, which includes the user's.
    pub own_config_file: &'a Path,
    /// Whom to run it as.
    pub owner: &'a Owner,
    /// What differs from the configuration.
    pub settings: &'a [Setting],
    /// Whether everything in the data directory is durable and nobody writes to it.
    pub durable: bool,
    /// Where the server's log goes.
    pub log: &'a Path,
}

/// A server that was started and may not be ready yet.
#[derive(Debug)]
pub struct Launched {
    /// Its postmaster.
    pub process: ProcessId,
    child: Child,
    log: PathBuf,
    log_begin: u64,
    settle: Option<Settle>,
}

/// What is to be done once the server has read its configuration.
#[derive(Debug)]
struct Settle {
    file: PathBuf,
    text: String,
}

/// How long a promotion is waited for.
pub struct PromoteWait<'a> {
    /// Until then.
    pub timeout: Duration,
    /// Where the server says what happens.
    pub log: &'a Path,
    /// Whether nobody wants it any more.
    pub interrupted: &'a dyn Fn() -> bool,
}

/// How waiting for a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// It takes connections, or is a standby that never will.
    Ready(Status),
    /// It has ended.
    Ended,
    /// The time is over.
    TimedOut,
    /// Nobody wants it any more.
    Interrupted,
}

/// Waits until the server `process` on `data_dir` takes connections.
pub fn wait_until_ready(
    data_dir: &Path,
    process: &ProcessId,
    deadline: Instant,
    interrupted: &dyn Fn() -> bool,
) -> Waited {
    loop {
        match postmaster::status_of(data_dir, process.pid) {
            Some(status @ (Status::Ready | Status::Standby)) => return Waited::Ready(status),
            _ if !process.is_alive() => return Waited::Ended,
            _ if interrupted() => return Waited::Interrupted,
            _ if Instant::now() >= deadline => return Waited::TimedOut,
            _ => std::thread::sleep(POLL),
        }
    }
}

impl Launch<'_> {
    /// Starts the server on `port`; see [`Launched::wait`].
    pub fn spawn(&self, port: u16) -> Result<Launched, PostgresError> {
        let failed = |what: &str| {
            let what = format!("{what} Postgres");
            move |source| PostgresError::Host { what, source }
        };
        let log = open_log(self.log).map_err(failed("opening the log of"))?;
        let log_begin = log.metadata().map_or(0, |meta| meta.len());
        let settle = self.write_config().map_err(failed("writing the configuration of"))?;
        let mut command = self.command(port, settle.is_some());
        let stderr = log.try_clone().map_err(failed("opening the log of"))?;
        command.stdin(Stdio::null()).stdout(Stdio::from(log)).stderr(Stdio::from(stderr));
        let child = command.spawn().map_err(failed("starting"))?;
        let pid = child.id().cast_signed();
        let process = ProcessId::of(pid).unwrap_or_else(|| ProcessId::ended(pid));
        Ok(Launched { process, child, log: self.log.to_owned(), log_begin, settle })
    }

    fn command(&self, port: u16, own_config: bool) -> Command {
        let mut command = Command::new(self.binaries.program("postgres"));
        let config_file = if own_config { self.own_config_file } else { self.config_file };
        command.arg("-D").arg(self.data_dir);
        command.arg("-c").arg(format!("config_file={}", config_file.display()));
        command.arg("-c").arg(format!("port={port}"));
        if !own_config && self.binaries.major >= SYNC_METHOD_SINCE {
            // On any FUSE mount syncfs syncs nothing.
            command.args(["-c", "recovery_init_sync_method=fsync"]);
        }
        for setting in self.settings {
            command.arg("-c").arg(format!("{}={}", setting.name, setting.value));
        }
        // Whoever starts a branch may have variables set for another server.
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_server_variable(name)) {
            command.env_remove(name);
        }
        command.current_dir("/");
        sys::prepare_process(&mut command, self.owner.credentials.clone(), true);
        command
    }

    /// Writes a configuration file of ours if the first sync can be left out; says what it must
    /// become once it was read.
    fn write_config(&self) -> io::Result<Option<Settle>> {
        if !self.durable || self.binaries.major < SYNC_METHOD_SINCE {
            return Ok(None);
        }
        let include = self.config_file.display().to_string().replace('\'', "''");
        let text = |method: &str| {
            format!(
                "# Made by `cowfs start`; the settings are in the file below.\n\
                 include '{include}'\nrecovery_init_sync_method = {method}\n"
            )
        };
        write_readable(self.own_config_file, &text("syncfs"))?;
        Ok(Some(Settle { file: self.own_config_file.to_owned(), text: text("fsync") }))
    }
}

fn is_server_variable(name: &std::ffi::OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("PG") || name == "NOTIFY_SOCKET"
}

/// Replaces the file at once, readable for the server's user.
fn write_readable(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    std::fs::rename(&new, path)
}

impl Launched {
    /// Waits until the server takes connections, or stops it if `interrupted`.
    pub fn wait(
        &mut self,
        data_dir: &Path,
        timeout: Duration,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Status, PostgresError> {
        let deadline = Instant::now() + timeout;
        self.settle(data_dir, deadline, interrupted);
        match wait_until_ready(data_dir, &self.process, deadline, interrupted) {
            Waited::Ready(status) => Ok(status),
            Waited::Ended => {
                let status = self.child.wait();
                let status = status.map_or_else(|e| e.to_string(), |status| status.to_string());
                let last_words = last_words(&self.log, self.log_begin);
                Err(PostgresError::DidNotStart { status, last_words, log: self.log.clone() })
            }
            Waited::TimedOut => Err(PostgresError::StillStarting {
                pid: self.process.pid,
                timeout,
                last_words: last_words(&self.log, self.log_begin),
                log: self.log.clone(),
            }),
            Waited::Interrupted => {
                self.end();
                Err(PostgresError::Interrupted)
            }
        }
    }

    /// Stops the server, whatever state it is in.
    pub fn end(&mut self) {
        end(&self.process);
        let _ = self.child.wait();
    }

    /// From now on a crash of a backend is recovered with fsync; see the head of this file.
    fn settle(&mut self, data_dir: &Path, deadline: Instant, interrupted: &dyn Fn() -> bool) {
        let Some(settle) = self.settle.take() else { return };
        while postmaster::status_of(data_dir, self.process.pid).is_none() {
            if !self.process.is_alive() || Instant::now() >= deadline || interrupted() {
                return;
            }
            std::thread::sleep(POLL);
        }
        let told = write_readable(&settle.file, &settle.text)
            .and_then(|()| self.process.signal(Signal::SIGHUP));
        if let Err(error) = told {
            tracing::warn!(%error, "cannot set recovery_init_sync_method back to fsync");
        }
    }
}

/// Has a server in recovery become one of its own, and waits until it is. One that is no standby
/// does so by itself at the end of its recovery; `log` is where it says why it did not.
pub fn promote(
    data_dir: &Path,
    process: &ProcessId,
    owner: &Owner,
    is_standby: bool,
    wait: &PromoteWait<'_>,
) -> Result<(), PostgresError> {
    let deadline = Instant::now() + wait.timeout;
    let failed = |source| PostgresError::Host { what: "promoting the branch".to_owned(), source };
    if is_standby {
        owner.act(|| postmaster::promote(data_dir, process))?.map_err(failed)?;
    }
    loop {
        let state = probe::read_control_file(data_dir).map(|control| control.state);
        if matches!(state, Ok(DbState::InProduction)) {
            return Ok(());
        }
        if !process.is_alive() {
            return Err(PostgresError::DidNotStart {
                status: "it has ended in recovery".to_owned(),
                last_words: last_words(wait.log, 0),
                log: wait.log.to_owned(),
            });
        }
        if (wait.interrupted)() {
            end(process);
            return Err(PostgresError::Interrupted);
        }
        if Instant::now() >= deadline {
            return Err(PostgresError::StillStarting {
                pid: process.pid,
                timeout: wait.timeout,
                last_words: last_words(wait.log, 0),
                log: wait.log.to_owned(),
            });
        }
        std::thread::sleep(PROMOTE_POLL);
    }
}

/// Stops a server, whatever state it is in.
fn end(process: &ProcessId) {
    let _ = postmaster::stop(process, postmaster::StopMode::Immediate, END_PATIENCE);
    let _ = process.signal(Signal::SIGKILL);
}

fn open_log(path: &Path) -> io::Result<File> {
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
        std::fs::rename(path, path.with_extension("log.old"))?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// The last lines of the log since `begin`.
fn last_words(log: &Path, begin: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(begin.max(length.saturating_sub(LAST_WORDS_BYTES_MAX))))?;
        let mut bytes = Vec::new();
        file.take(LAST_WORDS_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(LAST_WORDS_LINES_MAX)..].join("\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Scene {
        temp: tempfile::TempDir,
        binaries: Binaries,
        owner: Owner,
    }

    /// A stand-in for postgres that runs `script`, with the data directory as `$D`.
    fn scene(script: &str) -> Scene {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("postgres");
        std::fs::write(&path, format!("#!/bin/sh\nD=$2; cd $D\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(temp.path().join("user's.conf"), "").unwrap();
        let binaries = Binaries { dir: temp.path().to_owned(), major: 15 };
        let owner = Owner { uid: 0, gid: 0, name: "me".to_owned(), credentials: None };
        Scene { temp, binaries, owner }
    }

    impl Scene {
        fn spawn(&self, durable: bool) -> Launched {
            let dir = self.temp.path();
            let launch = Launch {
                binaries: &self.binaries,
                data_dir: dir,
                config_file: &dir.join("user's.conf"),
                own_config_file: &dir.join("own.conf"),
                owner: &self.owner,
                settings: &[],
                durable,
                log: &dir.join("1.pg.log"),
            };
            launch.spawn(5).unwrap()
        }

        fn wait(&self, launched: &mut Launched, ms: u64) -> Result<Status, PostgresError> {
            launched.wait(self.temp.path(), Duration::from_millis(ms), &|| false)
        }
    }

    const PID_FILE: &str = "printf \"%s\\n\" $$ $D 1 5 /s 127.0.0.1 1 ";

    #[test]
    fn a_server_that_ends_leaves_its_last_words() {
        let scene = scene("echo FATAL: no such thing >&2; exit 3");
        std::fs::write(scene.temp.path().join("1.pg.log"), "of another day\n").unwrap();
        let mut launched = scene.spawn(false);
        let error = scene.wait(&mut launched, 5000).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("exit status: 3") && text.ends_with("FATAL: no such thing"),
            "{text}"
        );
        assert!(!text.contains("another day"), "{text}");
    }

    #[test]
    fn recovery_syncs_again_after_the_first_time() {
        let script = format!(
            "trap 'cp own.conf seen.conf; {PID_FILE} ready >postmaster.pid' HUP\n\
             cp own.conf first.conf; {PID_FILE} starting >postmaster.pid; while :; do sleep 0.01; done"
        );
        let scene = scene(&script);
        let mut launched = scene.spawn(true);
        let status = scene.wait(&mut launched, 10_000);
        launched.end();
        assert_eq!(status.unwrap(), Status::Ready);
        let read = |name: &str| std::fs::read_to_string(scene.temp.path().join(name)).unwrap();
        assert!(read("first.conf").contains("user''s.conf'\nrecovery_init_sync_method = syncfs\n"));
        assert!(read("seen.conf").contains("user''s.conf'\nrecovery_init_sync_method = fsync\n"));
    }

    #[test]
    fn without_durability_nothing_is_left_out() {
        let scene = scene(&format!("{PID_FILE} ready >postmaster.pid; exec sleep 60"));
        let mut launched = scene.spawn(false);
        let status = scene.wait(&mut launched, 10_000);
        launched.end();
        assert_eq!(status.unwrap(), Status::Ready);
        assert!(!scene.temp.path().join("own.conf").exists());
    }

    #[test]
    fn a_promotion_that_is_not_wanted_any_more_ends_the_server() {
        let scene = scene("exec sleep 60");
        let mut launched = scene.spawn(false);
        let log = scene.temp.path().join("1.pg.log");
        let promote = |ms, interrupted: &dyn Fn() -> bool| {
            let wait = PromoteWait { timeout: Duration::from_millis(ms), log: &log, interrupted };
            promote(scene.temp.path(), &launched.process, &scene.owner, false, &wait).unwrap_err()
        };
        let late = promote(20, &|| false);
        assert!(matches!(late, PostgresError::StillStarting { .. }), "{late}");
        assert!(launched.process.is_alive(), "a server that replays WAL goes on");
        let error = promote(60_000, &|| true);
        assert!(matches!(error, PostgresError::Interrupted), "{error}");
        launched.child.wait().unwrap();
        assert!(!launched.process.is_alive());
    }

    #[test]
    fn waiting_ends() {
        let scene = scene("exec sleep 60");
        let mut launched = scene.spawn(false);
        let late = scene.wait(&mut launched, 20).unwrap_err();
        assert!(matches!(late, PostgresError::StillStarting { .. }), "{late}");
        assert!(launched.process.is_alive(), "a server that replays WAL goes on");
        let dir = scene.temp.path();
        let error = launched.wait(dir, Duration::from_secs(60), &|| true).unwrap_err();
        assert!(matches!(error, PostgresError::Interrupted), "{error}");
        assert!(!launched.process.is_alive());
    }
}
