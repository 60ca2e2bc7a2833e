//! Mounting, and the threads that serve a mount.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use fuser::{Config, MountOption, SessionACL};

use super::adapter::Adapter;
use super::calls::Calls;
use super::metrics::Metrics;
use super::read_around::ReadAround;
use super::ring::{self, Rings};
use crate::fs::Fs;
use crate::io::sys::RealTime;

/// Why a mount failed.
#[derive(Debug, thiserror::Error)]
pub enum FuseError {
    /// The kernel or fusermount3 refused.
    #[error("mounting on {dir}: {source}", dir = dir.display())]
    Mount {
        /// The mount point.
        dir: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// The session ended with an error.
    #[error("serving {dir}: {source}", dir = dir.display())]
    Session {
        /// The mount point.
        dir: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// The mount point.
    pub dir: PathBuf,
    /// Shown as the source in the mount table.
    pub fs_name: String,
    /// Mount read-only.
    pub read_only: bool,
    /// Let other users in (as the permissions of the files say).
    pub allow_other: bool,
    /// Further mount options, as after `-o`.
    pub extra_options: Vec<String>,
    /// Threads that answer requests.
    pub threads: usize,
    /// Take requests by io_uring where the kernel allows it, instead of from /dev/fuse.
    pub rings: bool,
    /// Let them run before ordinary threads, where that is permitted.
    pub real_time: bool,
    /// Fetch what lies around pages that are read: always, never, or while memory is to spare.
    pub read_around: Option<bool>,
}

/// A mounted filesystem with its threads.
pub struct Session {
    dir: PathBuf,
    thread: JoinHandle<io::Result<()>>,
    rings: Option<Rings>,
    /// Counts and latencies of requests.
    pub metrics: Arc<Metrics>,
    /// What fetches the pages around those that are read, or why nothing does, if that is wanted.
    pub read_around: Option<io::Result<Arc<ReadAround>>>,
}

fn option(text: &str) -> MountOption {
    match text {
        "dev" => MountOption::Dev,
        "nodev" => MountOption::NoDev,
        "suid" => MountOption::Suid,
        "nosuid" => MountOption::NoSuid,
        "exec" => MountOption::Exec,
        "noexec" => MountOption::NoExec,
        "dirsync" => MountOption::DirSync,
        "sync" => MountOption::Sync,
        "ro" => MountOption::RO,
        "rw" => MountOption::RW,
        other => MountOption::CUSTOM(other.to_owned()),
    }
}

fn options(config: &MountConfig, threads: usize) -> Config {
    let mut mount_options = vec![
        MountOption::FSName(config.fs_name.clone()),
        // Not MountOption::Subtype: fuser gives that to fusermount3 only, never to the kernel.
        MountOption::CUSTOM("subtype=cowfs".to_owned()),
        // The kernel checks permissions, as on any local filesystem.
        MountOption::DefaultPermissions,
        // Reading must not write.
        MountOption::NoAtime,
    ];
    let given = |name: &str| config.extra_options.iter().any(|option| option == name);
    if !given("dev") {
        mount_options.push(MountOption::NoDev);
    }
    if !given("suid") {
        mount_options.push(MountOption::NoSuid);
    }
    if config.read_only {
        mount_options.push(MountOption::RO);
    }
    for text in &config.extra_options {
        let parsed = option(text);
        if !mount_options.contains(&parsed) {
            mount_options.push(parsed);
        }
    }
    let mut out = Config::default();
    out.mount_options = mount_options;
    out.acl = if config.allow_other { SessionACL::All } else { SessionACL::Owner };
    out.n_threads = Some(threads);
    out.clone_fd = true;
    out
}

/// Mounts `fs` and begins to serve it.
pub fn mount(fs: Arc<Fs>, config: &MountConfig) -> Result<Session, FuseError> {
    let calls = Arc::new(Calls { fs, metrics: Arc::default(), read_around: OnceLock::new() });
    let mut session = mount_by_any(&calls, config)?;
    if config.read_around != Some(false) {
        let always = config.read_around == Some(true);
        let write_back = !config.read_only && !calls.fs.options.write_through;
        let around = ReadAround::start(config.dir.clone(), always, write_back);
        session.read_around =
            Some(around.map(|around| calls.read_around.get_or_init(|| Arc::new(around)).clone()));
    }
    Ok(session)
}

fn mount_by_any(calls: &Arc<Calls>, config: &MountConfig) -> Result<Session, FuseError> {
    if config.rings && ring::available() {
        match mount_by(calls, config, true) {
            Ok(session) => return Ok(session),
            // Whatever else is wrong will be said again.
            Err(error) => tracing::warn!(%error, "not served by io_uring"),
        }
    }
    mount_by(calls, config, false)
}

fn mount_by(
    calls: &Arc<Calls>,
    config: &MountConfig,
    by_rings: bool,
) -> Result<Session, FuseError> {
    let metrics = calls.metrics.clone();
    // With rings only FORGET and INTERRUPT come this way.
    let threads = if by_rings { 1 } else { config.threads.max(1) };
    let adapter = Adapter::new(calls.clone(), threads, by_rings);
    let failed = |source| FuseError::Mount { dir: config.dir.clone(), source };
    let options = options(config, threads);
    let session = fuser::Session::new(adapter, &config.dir, &options).map_err(failed)?;
    let start = || Rings::start(session.as_fd(), calls.clone());
    let rings = by_rings.then(start).transpose().map_err(failed)?;
    let background = spawn(session, config.real_time).map_err(failed)?;
    // When fuser drops its handle of a mount it unmounts once more: it takes an ended session for a
    // mounted one (0.18). That would hit whatever is mounted at the directory by then, also what
    // was there before us. So the handle is never dropped; it costs one descriptor until the end.
    let background = Box::leak(Box::new(background));
    let placeholder = std::thread::Builder::new().spawn(|| Ok(())).map_err(failed)?;
    let thread = std::mem::replace(&mut background.guard, placeholder);
    Ok(Session { dir: config.dir.clone(), thread, rings, metrics, read_around: None })
}

/// Starts the threads that serve; those that they start run as they do.
///
/// Beside much other work real-time threads answer sooner. On a machine with processors to spare
/// they answer later: the kernel wakes them up on another processor than the one that asks
/// (docs/PERFORMANCE.md has both). So they are not the default.
fn spawn(
    session: fuser::Session<Adapter>,
    real_time: bool,
) -> io::Result<fuser::BackgroundSession> {
    let asked = real_time.then(RealTime::begin);
    if let Some(Err(error)) = &asked {
        tracing::debug!(%error, "requests are served by ordinary threads");
    }
    session.spawn()
}

impl Session {
    /// Whether requests come by io_uring.
    pub fn is_by_rings(&self) -> bool {
        self.rings.is_some()
    }

    /// Waits until the filesystem is unmounted, by whomever.
    pub fn wait(self) -> Result<(), FuseError> {
        let dir = self.dir;
        let ended = self.thread.join();
        if let Some(rings) = self.rings {
            rings.wait();
        }
        match ended {
            Ok(Ok(())) => Ok(()),
            // The kernel's way to say "unmounted".
            Ok(Err(source)) if source.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            Ok(Err(source)) => Err(FuseError::Session { dir, source }),
            Err(_) => {
                let source = io::Error::other("a serving thread panicked");
                Err(FuseError::Session { dir, source })
            }
        }
    }
}
