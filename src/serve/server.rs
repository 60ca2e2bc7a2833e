//! The process that serves one branch, from taking its lock to letting it go.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use super::bad_end;
use super::control;
use super::detach::{self, DetachError, Manner};
use super::error::ServeError;
use super::handler::{BranchHandler, OwnMount};
use super::listener::ControlServer;
use super::options::{MountOptions, users_may_allow_other};
use super::probe::{self, Answer};
use super::protocol::{Request, Response};
use super::readiness::Ready;
use super::run_file::RunFile;
use super::{bdi, holders, mount_point, mountinfo, process};
use crate::branch::{Branch, OpenMode};
use crate::catalog::{BranchLock, BranchName, BranchRow, CatalogError, FileLock, LockError, Store};
use crate::format::BranchId;
use crate::fs::Fs;
use crate::fuse::{self, MountConfig, Session};

/// A fork, or a server that is just ending, may hold the lock this long.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// How long the process in possession of the lock may take to say where it is mounted.
const OWNER_PATIENCE: Duration = Duration::from_millis(500);
/// How long a mount that is in our way may take to answer.
const PROBE_PATIENCE: Duration = Duration::from_secs(3);
/// How long control requests may run on after the mount has gone.
const CONTROL_PATIENCE: Duration = Duration::from_secs(10);
/// Threads that serve requests of the kernel, if not told otherwise: at least, at most.
const THREADS: (usize, usize) = (4, 16);

/// A branch to be mounted.
#[derive(Clone, Debug)]
pub struct MountRequest {
    /// The branch.
    pub branch: BranchName,
    /// Where; may be relative.
    pub dir: PathBuf,
    /// What `-o` and `--read-only` say.
    pub options: MountOptions,
    /// Threads that serve requests of the kernel; `None` chooses by the number of processors.
    pub threads: Option<usize>,
    /// How long all of it may take until the mount answers.
    pub timeout: Duration,
}

/// What a mount stands on, while it is being made.
struct Mounted {
    fs: Arc<Fs>,
    branch: Arc<Branch>,
    session: Session,
    mount: Arc<OwnMount>,
    control: ControlServer,
    signals: Handle,
    run_dir: PathBuf,
}

/// Mounts the branch, calls `ready` once the mount answers, and serves it until it is unmounted.
///
/// If `ready` fails, nobody waits for the mount any more, and it ends.
pub fn serve(
    store: &Arc<Store>,
    request: &MountRequest,
    ready: &mut dyn FnMut(Ready) -> io::Result<()>,
) -> Result<(), ServeError> {
    process::prepare();
    let row = find(store, &request.branch)?;
    let lock = lock(store, &row)?;
    // A fork that held the lock until now may have moved the head.
    let row = store.catalog.branch_by_id(row.id)?.ok_or(CatalogError::BranchGone { id: row.id })?;
    let mut notices = remove_leftovers(store, &row)?;
    let _ = bad_end::take(&store.run_dir(), row.id);
    let id = row.id;
    let mounted = match mount(store, request, row, lock, &mut notices) {
        Ok(mounted) => mounted,
        Err(error) => {
            let _ = RunFile::remove(&store.run_dir(), id);
            return Err(error);
        }
    };
    let announced = mounted.verify(request).and_then(|()| {
        let answer = Ready {
            pid: std::process::id(),
            mount_point: mounted.mount.entry.mount_point.clone(),
            read_only: request.options.read_only,
            notices,
        };
        ready(answer).map_err(|source| host("reporting that the mount answers", source))
    });
    if announced.is_err()
        && let Err(error) = mounted.mount.take_away(Manner::Lazy)
    {
        tracing::error!(%error, "cannot unmount");
    }
    let ended = mounted.run_to_end();
    if let Err(error) = RunFile::remove(&store.run_dir(), id) {
        tracing::warn!(%error, "cannot remove the run files");
    }
    announced.and(ended)
}

fn find(store: &Store, name: &BranchName) -> Result<BranchRow, ServeError> {
    let missing = || CatalogError::BranchNotFound { name: name.clone() };
    Ok(store.catalog.branch(name)?.ok_or_else(missing)?)
}

/// Takes the branch's lock, or says who serves the branch and where.
fn lock(store: &Store, row: &BranchRow) -> Result<BranchLock, ServeError> {
    let branch = row.name.clone();
    let lock = match store.lock_branch(row.id) {
        Err(LockError::Busy { .. }) => {
            match control::request(store, row.id, &Request::Status, OWNER_PATIENCE) {
                // It is in good hands: waiting is pointless.
                Ok(Response::Status(owner)) if owner.attached => {
                    let (mount_point, pid) = (owner.mount_point, owner.pid);
                    return Err(ServeError::AlreadyServed { branch, mount_point, pid });
                }
                Ok(Response::Status(owner)) => {
                    store.lock_branch_waiting(row.id, OWNER_PATIENCE).map_err(|_| {
                        ServeError::StillUsed { branch: branch.clone(), pid: owner.pid }
                    })?
                }
                _ => store
                    .lock_branch_waiting(row.id, LOCK_PATIENCE)
                    .map_err(|lock| held_by_the_silent(store, row, lock))?,
            }
        }
        other => other.map_err(ServeError::Lock)?,
    };
    Ok(lock)
}

fn held_by_the_silent(store: &Store, row: &BranchRow, lock: LockError) -> ServeError {
    let branch = row.name.clone();
    match (lock, RunFile::read(&store.run_dir(), row.id)) {
        (LockError::Busy { .. }, Some(run)) => {
            ServeError::AlreadyServed { branch, mount_point: run.mount_point, pid: run.pid }
        }
        (lock @ LockError::Busy { .. }, None) => ServeError::InUse { branch, lock },
        (lock, _) => ServeError::Lock(lock),
    }
}

/// Takes away what a killed server of this branch left: its dead mount, run file and socket.
fn remove_leftovers(store: &Store, row: &BranchRow) -> Result<Vec<String>, ServeError> {
    let run_dir = store.run_dir();
    let notices = match RunFile::read(&run_dir, row.id) {
        Some(run) if super::unmount::take_dead_mount(&run.mount_point)? => vec![format!(
            "took away the dead mount of a killed server at {} (process {})",
            run.mount_point.display(),
            run.pid
        )],
        _ => Vec::new(),
    };
    RunFile::remove(&run_dir, row.id).map_err(|source| host("removing old run files", source))?;
    Ok(notices)
}

/// Whether a branch other than `own` is mounted: it has a run file, and its lock is held.
fn is_other_mounted(store: &Store, own: BranchId) -> bool {
    // Where nothing can be learned there may be one.
    let Ok(mounted) = RunFile::branches(&store.run_dir()) else { return true };
    mounted
        .into_iter()
        .filter(|id| *id != own)
        .any(|id| FileLock::is_held(&store.branch_lock_path(id)).unwrap_or(true))
}

/// Where no other branch is mounted nobody else reads what this one has in its own cache.
fn decide_host_cache(store: &Arc<Store>, branch: &Branch, chosen: Option<bool>) {
    let (store, own) = (store.clone(), branch.row.id);
    let others = move || chosen.unwrap_or_else(|| is_other_mounted(&store, own));
    branch.data.host_cache.ask(others);
}

fn mount(
    store: &Arc<Store>,
    request: &MountRequest,
    row: BranchRow,
    lock: BranchLock,
    notices: &mut Vec<String>,
) -> Result<Mounted, ServeError> {
    let ask = |dir: &std::path::Path| probe::probe(dir, PROBE_PATIENCE);
    let prepared = mount_point::prepare(&request.dir, &store.root, &ask)?;
    notices.extend(prepared.notices);
    let config = mount_config(request, &row, prepared.dir, notices);
    // From here on a signal is kept until somebody looks for it.
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(|source| host("catching signals", source))?;
    let mode = if config.read_only { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
    let (id, name) = (row.id, row.name.clone());
    let branch = Branch::open(store.clone(), row, lock, mode)?;
    decide_host_cache(store, &branch, request.options.host_cache);
    let fs = Fs::new(branch.clone(), request.options.of_fs());
    fs.prepare()?;
    let session = fuse::mount(fs.clone(), &config)?;
    let started = own_entry(&config).and_then(|entry| {
        let read_around = match &session.read_around {
            Some(Ok(around)) => Some(around.clone()),
            Some(Err(error)) => {
                notices.extend(not_read_around(request, error));
                None
            }
            None => None,
        };
        let mount = Arc::new(OwnMount { entry, read_around });
        notices.extend(tune(&mount));
        let run = RunFile {
            branch: id,
            mount_point: config.dir.clone(),
            pid: std::process::id(),
            since_ms: now_ms(),
            read_only: config.read_only,
        };
        run.write(&store.run_dir()).map_err(|source| host("writing the run file", source))?;
        let handler = BranchHandler {
            fs: fs.clone(),
            metrics: session.metrics.clone(),
            mount: mount.clone(),
            run,
            io_uring: session.is_by_rings(),
        };
        let control = ControlServer::start(&store.run_dir(), id, Arc::new(handler))?;
        Ok((control, watch(signals, &mount)?, mount))
    });
    match started {
        Ok((control, signals, mount)) => {
            tracing::info!(branch = %name, mount_point = %config.dir.display(), "mounted");
            let run_dir = store.run_dir();
            Ok(Mounted { fs, branch, session, mount, control, signals, run_dir })
        }
        Err(error) => {
            let _ = detach::detach(&config.dir, Manner::Lazy);
            let _ = session.wait();
            branch.close()?;
            Err(error)
        }
    }
}

/// Worth telling if it was asked for; as an ordinary user nobody has it.
fn not_read_around(request: &MountRequest, error: &io::Error) -> Option<String> {
    tracing::info!(%error, "pages around those that are read are not fetched");
    let why = match error.raw_os_error() {
        Some(libc::EPERM) => "it needs CAP_DAC_READ_SEARCH".to_owned(),
        Some(libc::ENOSYS) => "it needs Linux 6.5, or `-o ro` or `-o writethrough`".to_owned(),
        _ => error.to_string(),
    };
    (request.options.read_around == Some(true)).then(|| format!("not reading around: {why}"))
}

fn host(what: &str, source: io::Error) -> ServeError {
    ServeError::Host { what: what.to_owned(), source }
}

fn mount_config(
    request: &MountRequest,
    row: &BranchRow,
    dir: PathBuf,
    notices: &mut Vec<String>,
) -> MountConfig {
    let root = nix::unistd::geteuid().is_root();
    let allow_other = root || request.options.allow_other || users_may_allow_other();
    if !root {
        let alone = if allow_other {
            ""
        } else {
            ", and no other user can use it (that needs user_allow_other in /etc/fuse.conf)"
        };
        notices.push(format!(
            "mounted as an ordinary user: the kernel's limits on write-back and read-ahead stay \
             low{alone}"
        ));
    }
    let rings = request.options.rings && can_use_rings(root, notices);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    MountConfig {
        dir,
        fs_name: format!("cowfs:{}", row.name),
        read_only: request.options.read_only,
        allow_other,
        extra_options: request.options.kernel.clone(),
        threads: request.threads.unwrap_or((2 * processors).clamp(THREADS.0, THREADS.1)),
        rings,
        real_time: request.options.real_time,
        read_around: request.options.read_around,
    }
}

/// Whether the kernel lets requests come by io_uring. As root it is told to: that is a setting of the
/// whole machine, of effect on mounts that ask for it alone.
fn can_use_rings(root: bool, notices: &mut Vec<String>) -> bool {
    let enabled = if root { fuse::ring::enable() } else { Ok(()) };
    let available = fuse::ring::available();
    if !available {
        let why = match enabled {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                "the kernel has no FUSE over io_uring (Linux 6.14)".to_owned()
            }
            Err(error) => format!("it cannot be switched on: {error}"),
            Ok(()) => format!("root has to `echo Y > {}`", fuse::ring::ENABLED),
        };
        notices.push(format!("served through /dev/fuse and not by io_uring: {why}"));
    }
    available
}

/// Our mount in the kernel's list: to recognise it later, and for its device number, which must
/// not be asked of the mount itself.
fn own_entry(config: &MountConfig) -> Result<mountinfo::MountEntry, ServeError> {
    let entries = mountinfo::read().map_err(|source| host("reading the list of mounts", source))?;
    mountinfo::topmost_at(&entries, &config.dir)
        .filter(|entry| entry.is_cowfs())
        .cloned()
        .ok_or_else(|| ServeError::Vanished { mount_point: config.dir.clone() })
}

fn tune(mount: &OwnMount) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    bdi::raise_limits(&mount.entry.device_name())
}

fn now_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}

/// Unmounts on SIGTERM, SIGINT and SIGHUP. A mount in use is detached: its users go on, and the
/// process ends after the last of them. Whoever sends the signal wants the end, not a refusal.
fn watch(mut signals: Signals, mount: &Arc<OwnMount>) -> Result<Handle, ServeError> {
    let handle = signals.handle();
    let mount = mount.clone();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                end_on_signal(signal, &mount);
            }
        })
        .map_err(|source| host("starting a thread", source))?;
    Ok(handle)
}

fn end_on_signal(signal: i32, mount: &OwnMount) {
    tracing::info!(signal, "unmounting");
    match mount.take_away(Manner::IfUnused) {
        Ok(_) => {}
        Err(DetachError::Busy { .. }) => {
            let users = mountinfo::read()
                .map(|entries| holders::find(&entries, &mount.entry).to_string())
                .unwrap_or_default();
            tracing::warn!("still in use by {users}; detached, ends after them");
            if let Err(error) = mount.take_away(Manner::Lazy) {
                tracing::error!(%error, "cannot detach");
            }
        }
        Err(error) => tracing::error!(%error, "cannot unmount"),
    }
}

impl Mounted {
    fn verify(&self, request: &MountRequest) -> Result<(), ServeError> {
        let mount_point = &self.mount.entry.mount_point;
        match probe::probe(mount_point, request.timeout) {
            Answer::Alive => Ok(()),
            // Unmounted again by somebody: that is an end, not a failure to start.
            _ if self.mount.mount_point().is_none() => {
                Err(ServeError::Vanished { mount_point: mount_point.clone() })
            }
            answer => Err(ServeError::NoAnswer { mount_point: mount_point.clone(), answer }),
        }
    }

    /// Serves until the kernel lets the mount go, then makes everything durable.
    fn run_to_end(self) -> Result<(), ServeError> {
        let served = self.session.wait();
        // If serving failed, the mount is still there and would hang everybody who touches it.
        if served.is_err()
            && let Err(error) = self.mount.take_away(Manner::Lazy)
        {
            tracing::error!(%error, "cannot detach");
        }
        self.signals.close();
        if !self.control.stop(CONTROL_PATIENCE) {
            tracing::warn!("a control request still runs; ending without it");
        }
        let finished = self.fs.finish();
        let closed = self.branch.close();
        match (&served, &closed) {
            (Ok(()), Ok(())) => tracing::info!("unmounted, everything is durable"),
            (served, closed) => tracing::error!(?served, ?closed, "ended with an error"),
        }
        let ended = served
            .map_err(ServeError::from)
            .and(finished.map_err(ServeError::from))
            .and(closed.map_err(ServeError::from));
        // While the lock is held: whoever waits for it reads this next.
        if let Err(error) = &ended
            && let Err(error) = bad_end::note(&self.run_dir, self.branch.row.id, &error.to_string())
        {
            tracing::warn!(%error, "cannot leave word of it");
        }
        ended
    }
}
