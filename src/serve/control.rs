//! Asking the process that serves a branch: the client's side of the control socket.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::sys::time::TimeVal;

use super::protocol::{self, Failure, Reply, Request, Response, WireError};
use crate::catalog::Store;
use crate::format::BranchId;

/// A request got no answer, or the answer was a failure.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No process listens: the branch is not served (or its server starts or ends just now).
    #[error("no process serves the branch")]
    NotServed,
    /// The socket is there and may not be used, or is something else.
    #[error("the control socket {} cannot be used: {reason}", .path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// The serving process did not answer in time.
    #[error("the serving process did not answer within {} ms", .timeout.as_millis())]
    TimedOut {
        /// How long it had.
        timeout: Duration,
    },
    /// It answered with a failure.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// It answered with something that is no reply, or not at all.
    #[error("the serving process gave no proper answer: {source}")]
    Garbled {
        /// In which way.
        source: WireError,
    },
    /// The host refused something.
    #[error("cannot talk to the serving process through {}: {source}", .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Name of a branch's control socket in the store's `run` directory.
pub fn socket_name(branch: BranchId) -> String {
    format!("{branch}.sock")
}

/// Sends `request` to the process that serves `branch` and waits up to `timeout` for its answer.
pub fn request(
    store: &Store,
    branch: BranchId,
    request: &Request,
    timeout: Duration,
) -> Result<Response, ControlError> {
    request_in(&store.run_dir(), branch, request, timeout)
}

/// Like [`request()`], for the `run` directory of a store.
pub fn request_in(
    run_dir: &Path,
    branch: BranchId,
    request: &Request,
    timeout: Duration,
) -> Result<Response, ControlError> {
    let deadline = Instant::now() + timeout;
    let stream = connect_to(run_dir, branch, timeout)?;
    let sent = protocol::send(&stream, request, deadline);
    // A server that is busy answers and closes without having read: the answer counts.
    let reply = match (protocol::receive(&stream, deadline), sent) {
        (Ok(reply), _) => reply,
        (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(broken(error, timeout)),
    };
    match reply {
        Reply::Ok(response) => Ok(response),
        Reply::Error(failure) => Err(ControlError::Failed(failure)),
    }
}

fn broken(error: WireError, timeout: Duration) -> ControlError {
    match error {
        WireError::TimedOut => ControlError::TimedOut { timeout },
        // Killed between our connect and its answer, or it closed the socket on its way out.
        WireError::Ended { got: 0 } => ControlError::NotServed,
        WireError::Io(e)
            if matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) =>
        {
            ControlError::NotServed
        }
        source => ControlError::Garbled { source },
    }
}

/// Connects through a descriptor of the socket's inode: the path may be longer than the 107 bytes
/// of a socket address, and what was checked is what is connected to.
fn connect_to(
    run_dir: &Path,
    branch: BranchId,
    timeout: Duration,
) -> Result<UnixStream, ControlError> {
    let path = run_dir.join(socket_name(branch));
    let failed = |e: nix::Error| ControlError::Io { path: path.clone(), source: e.into() };
    let refused = |reason| ControlError::Refused { path: path.clone(), reason };
    let inode = match open_socket_inode(run_dir, &socket_name(branch)) {
        Ok(Some(inode)) => inode,
        Ok(None) => return Err(refused("it is not a socket")),
        Err(nix::Error::ENOENT) => return Err(ControlError::NotServed),
        Err(nix::Error::EACCES) => return Err(refused("permission denied")),
        Err(e) => return Err(failed(e)),
    };
    let client = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(failed)?;
    // Also bounds connect(2), which waits while the queue of a stopped server is full.
    let micros = i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX).max(1);
    let limit = TimeVal::new(micros / 1_000_000, micros % 1_000_000);
    setsockopt(&client, nix::sys::socket::sockopt::SendTimeout, &limit).map_err(failed)?;
    let address = format!("/proc/self/fd/{}", inode.as_raw_fd());
    let address = UnixAddr::new(address.as_str()).map_err(failed)?;
    match connect(client.as_raw_fd(), &address) {
        Ok(()) => Ok(UnixStream::from(client)),
        Err(nix::Error::ECONNREFUSED) => Err(ControlError::NotServed),
        Err(nix::Error::EACCES | nix::Error::EPERM) => Err(refused("permission denied")),
        Err(nix::Error::EAGAIN) => Err(ControlError::TimedOut { timeout }),
        Err(e) => Err(failed(e)),
    }
}

fn open_socket_inode(run_dir: &Path, name: &str) -> nix::Result<Option<OwnedFd>> {
    let path_only = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let dir = nix::fcntl::open(run_dir, path_only | OFlag::O_DIRECTORY, Mode::empty())?;
    let inode = openat(&dir, name, path_only | OFlag::O_NOFOLLOW, Mode::empty())?;
    let stat = fstatat(&inode, "", AtFlags::AT_EMPTY_PATH)?;
    let is_socket = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFSOCK.bits();
    Ok(is_socket.then_some(inode))
}
