//! The serving process' side of the control socket.
//!
//! One thread accepts, one short-lived thread per connection reads a request, runs it and answers.
//! Connections are few, have deadlines, and share nothing with the threads that serve the kernel:
//! whatever a client does, the filesystem and the other clients go on.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, OFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, getsockopt, shutdown, sockopt};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use parking_lot::{Condvar, Mutex};

use super::control::socket_name;
use super::protocol::{self, Failure, Reply, Request, Response, WireError};
use crate::format::BranchId;

/// Connections served at a time; more are told to come back.
pub const CONNECTIONS_MAX: usize = 64;

/// How long a client may take to send its request, and again to read the answer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(5);

/// Pause of the accepting thread when the process is out of descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Stack of a connection's thread in bytes: JSON of a bounded depth, a fork, the catalog.
const STACK_BYTES: usize = 512 << 10;

/// Carries requests out.
pub trait Handler: Send + Sync + 'static {
    /// Runs `request` for a peer with the user id `uid`, on the thread of its connection.
    fn handle(&self, uid: u32, request: Request) -> Result<Response, Failure>;
}

/// The control socket could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the control socket {}: {source}", .path.display())]
pub struct ListenError {
    /// The socket.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// An open control socket; closed by [`ControlServer::stop`].
pub struct ControlServer {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    listener: UnixListener,
    handler: Arc<dyn Handler>,
    run_dir: OwnedFd,
    name: String,
    stopping: AtomicBool,
    active: Mutex<usize>,
    idle: Condvar,
    patience: Duration,
}

impl ControlServer {
    /// Opens the socket of `branch` in `run_dir` and starts answering with `handler`.
    ///
    /// The caller holds the branch's lock: whatever lies in the socket's place is left over.
    pub fn start(
        run_dir: &Path,
        branch: BranchId,
        handler: Arc<dyn Handler>,
    ) -> Result<ControlServer, ListenError> {
        Self::with_patience(run_dir, branch, handler, CLIENT_PATIENCE)
    }

    fn with_patience(
        run_dir: &Path,
        branch: BranchId,
        handler: Arc<dyn Handler>,
        patience: Duration,
    ) -> Result<ControlServer, ListenError> {
        let name = socket_name(branch);
        let failed = |source| ListenError { path: run_dir.join(&name), source };
        let (dir, listener) = bind(run_dir, &name).map_err(failed)?;
        let shared = Arc::new(Shared {
            listener,
            handler,
            run_dir: dir,
            name: name.clone(),
            stopping: AtomicBool::new(false),
            active: Mutex::new(0),
            idle: Condvar::new(),
            patience,
        });
        let acceptor = std::thread::Builder::new()
            .name("control".to_owned())
            .stack_size(STACK_BYTES)
            .spawn({
                let shared = shared.clone();
                move || shared.accept()
            })
            .map_err(failed)?;
        Ok(ControlServer { shared, acceptor: Some(acceptor) })
    }

    /// Removes the socket, takes no more connections, and lets requests that run finish.
    ///
    /// Returns whether all of them did within `patience`.
    pub fn stop(mut self, patience: Duration) -> bool {
        self.close();
        let deadline = Instant::now() + patience;
        let mut active = self.shared.active.lock();
        while *active > 0 {
            if self.shared.idle.wait_until(&mut active, deadline).timed_out() {
                return *active == 0;
            }
        }
        true
    }

    fn close(&mut self) {
        let Some(acceptor) = self.acceptor.take() else { return };
        self.shared.stopping.store(true, Ordering::SeqCst);
        let name = self.shared.name.as_str();
        if let Err(error) = unlinkat(&self.shared.run_dir, name, UnlinkatFlags::NoRemoveDir) {
            tracing::warn!(%error, "cannot remove the control socket");
        }
        // Wakes accept(2), which then fails.
        let _ = shutdown(self.shared.listener.as_raw_fd(), Shutdown::Both);
        let _ = acceptor.join();
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.close();
    }
}

/// Binds `name` in `run_dir` through a descriptor of the directory: a socket address holds 107
/// bytes, the path of a store may be longer.
fn bind(run_dir: &Path, name: &str) -> io::Result<(OwnedFd, UnixListener)> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let dir = nix::fcntl::open(run_dir, flags, Mode::empty())?;
    // Removes a link itself, never what it points to.
    match unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(nix::Error::ENOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let address = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    let listener = UnixListener::bind(&address)?;
    let owner_only = Mode::S_IRUSR | Mode::S_IWUSR;
    fchmodat(AT_FDCWD, address.as_str(), owner_only, FchmodatFlags::FollowSymlink)?;
    Ok((dir, listener))
}

impl Shared {
    fn accept(self: Arc<Self>) {
        let owner = nix::unistd::geteuid().as_raw();
        loop {
            let accepted = self.listener.accept();
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(e) if matches!(e.raw_os_error(), Some(libc::ECONNABORTED | libc::EINTR)) => {
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a control connection");
                    std::thread::sleep(EXHAUSTED_PAUSE);
                    continue;
                }
            };
            match peer_uid(&stream) {
                Ok(uid) if uid == 0 || uid == owner => self.serve(stream, uid),
                Ok(uid) => {
                    tracing::warn!(uid, "refused a control connection");
                    let text = "only root and the user who mounted the branch may do that";
                    refuse(&stream, Failure::new("permission", text));
                }
                Err(error) => tracing::warn!(%error, "cannot tell who connects"),
            }
        }
    }

    fn serve(self: &Arc<Self>, stream: UnixStream, uid: u32) {
        let Some(slot) = Slot::take(self) else {
            refuse(&stream, busy());
            return;
        };
        let spawned = std::thread::Builder::new()
            .name("control-client".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let slot = slot;
                slot.0.converse(&stream, uid);
            });
        if let Err(error) = spawned {
            // The closure is gone, with the connection and the slot.
            tracing::warn!(%error, "cannot start a thread for a control connection");
        }
    }

    fn converse(&self, stream: &UnixStream, uid: u32) {
        let reply = match protocol::receive(stream, Instant::now() + self.patience) {
            // A client that has given up meanwhile was told that nothing happened.
            Ok(request) if hung_up(stream) => {
                tracing::info!(uid, ?request, "dropped a control request: its client is gone");
                return;
            }
            Ok(request) => {
                tracing::debug!(uid, ?request, "control request");
                match self.handler.handle(uid, request) {
                    Ok(response) => Reply::Ok(response),
                    Err(failure) => Reply::Error(failure),
                }
            }
            // Nobody is there to read an answer.
            Err(WireError::Ended { .. } | WireError::Io(_)) => return,
            Err(error) => Reply::Error(Failure::caused("bad_request", &error)),
        };
        if let Err(error) = protocol::send(stream, &reply, Instant::now() + self.patience) {
            tracing::debug!(%error, "a control client did not take its answer");
        }
    }
}

/// One of the [`CONNECTIONS_MAX`] places, given back when dropped.
struct Slot(Arc<Shared>);

impl Slot {
    fn take(shared: &Arc<Shared>) -> Option<Slot> {
        let mut active = shared.active.lock();
        if *active >= CONNECTIONS_MAX {
            return None;
        }
        *active += 1;
        Some(Slot(shared.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *self.0.active.lock() -= 1;
        self.0.idle.notify_all();
    }
}

fn busy() -> Failure {
    Failure::new("too_many_connections", format!("{CONNECTIONS_MAX} connections are open already"))
        .hint("try again in a moment")
}

/// Answers on the accepting thread: the socket is new, so its buffer takes the few bytes at once.
fn refuse(stream: &UnixStream, failure: Failure) {
    let _ = stream.set_nonblocking(true);
    let _ = protocol::send(stream, &Reply::Error(failure), Instant::now() + EXHAUSTED_PAUSE);
}

/// Whether the peer has closed the connection (not only its sending side).
fn hung_up(stream: &UnixStream) -> bool {
    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let ready = poll(&mut polled, PollTimeout::ZERO);
    ready.is_ok_and(|count| count > 0)
        && polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

fn peer_uid(stream: &UnixStream) -> io::Result<u32> {
    Ok(getsockopt(&stream.as_fd(), sockopt::PeerCredentials)?.uid())
}

#[cfg(test)]
mod tests;
