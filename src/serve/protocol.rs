//! What a command and the serving process say to each other, and how it is framed.
//!
//! One request and one reply per connection. Each is a length (u32, little-endian, 1 to
//! [`MESSAGE_BYTES_MAX`]) and that many bytes of JSON. Every transfer has a deadline for the whole
//! message, so a peer that sends or reads a byte now and then cannot hold the other side up.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::branch::close::BranchStats;
use crate::branch::compaction::CompactionStats;
use crate::branch::fork::Times;
use crate::catalog::SnapshotName;
use crate::format::BranchId;
use crate::fuse::{ReadAroundStats, RequestStats};

/// Largest message in bytes, without its length.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// What a command may ask of the process that serves a branch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Is anybody there?
    Ping,
    /// What is served where, and how it is doing.
    Status,
    /// Fork the branch at once.
    Fork {
        /// Name of the child; checked by the server.
        name: String,
        /// Who is recorded as its creator; only root may name somebody else.
        uid: Option<u32>,
        /// The command line, for the operation log.
        command: String,
    },
    /// Keep the branch's state of this moment as a snapshot.
    Snapshot {
        /// Its name.
        name: SnapshotName,
        /// When it may go, in milliseconds since 1970; never, if none.
        expires_ms: Option<i64>,
        /// Who is recorded as its creator; only root may name somebody else.
        uid: Option<u32>,
        /// The command line, for the operation log.
        command: String,
    },
    /// Limit what the branch takes on the disk, in bytes; no limit, if none.
    Quota {
        /// Bytes.
        bytes: Option<u64>,
    },
    /// Pause finalizing, merging and checksums, or have them go on.
    Compaction {
        /// Pause, or resume.
        pause: bool,
    },
    /// Make everything durable.
    Sync,
    /// Unmount, and end the process once the last user is gone.
    Unmount {
        /// Detach the mount even if it is in use.
        lazy: bool,
    },
    /// Seal the open layer.
    Seal,
}

/// What the serving process answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Ping`].
    Pong {
        /// The serving process.
        pid: u32,
        /// Its version.
        version: String,
    },
    /// To [`Request::Status`].
    Status(Box<ServerStatus>),
    /// To [`Request::Fork`].
    Forked {
        /// Id of the child.
        child: BranchId,
        /// Microseconds that changing requests of the parent were held up.
        gate_us: u64,
        /// Microseconds of the catalog's durable commit.
        commit_us: u64,
        /// Microseconds in all.
        total_us: u64,
    },
    /// To [`Request::Snapshot`].
    Snapshotted {
        /// How long it took.
        times: Times,
    },
    /// To [`Request::Quota`].
    Limited,
    /// To [`Request::Compaction`].
    Compaction {
        /// False if it was so already.
        changed: bool,
        /// False if something is still being finished.
        still: bool,
        /// How it is now.
        stats: CompactionStats,
    },
    /// To [`Request::Sync`].
    Synced,
    /// To [`Request::Unmount`].
    Unmounted {
        /// The mount was in use and is detached: the process goes on until the last user is gone.
        in_use: bool,
    },
    /// To [`Request::Seal`].
    Sealed {
        /// False if the open layer was empty.
        sealed: bool,
    },
}

/// What a serving process tells of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerStatus {
    /// The process.
    pub pid: u32,
    /// Version of the program it runs.
    pub version: String,
    /// Where the branch is mounted.
    #[serde(with = "super::run_file::path_bytes")]
    pub mount_point: PathBuf,
    /// Milliseconds since 1970.
    pub since_ms: i64,
    /// Whether it is mounted read-only.
    pub read_only: bool,
    /// False once it is detached, and served only for those who still use it.
    pub attached: bool,
    /// Whether requests come by io_uring, and not from /dev/fuse.
    #[serde(default)]
    pub io_uring: bool,
    /// Whether the host's page cache keeps what is read of sealed layers.
    #[serde(default)]
    pub host_cache: bool,
    /// What was fetched around pages that were read here and there; none where that is switched off or
    /// not possible.
    #[serde(default)]
    pub read_around: Option<ReadAroundStats>,
    /// Layers and sizes.
    pub branch: BranchStats,
    /// What the background does; all zeros from a server that does not tell.
    #[serde(default)]
    pub compaction: CompactionStats,
    /// Requests and latencies, by kind of request.
    pub requests: Vec<RequestStats>,
    /// Resident memory of the process in bytes.
    pub resident_bytes: u64,
}

/// A failure that travels between processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For programs, for example `busy`.
    pub kind: String,
    /// For people.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Exit code of a command that ends with it.
    pub exit_code: u8,
}

impl Failure {
    /// A failure of the given kind, with exit code 1 and no hint.
    pub fn new(kind: &str, message: impl Into<String>) -> Failure {
        Failure { kind: kind.to_owned(), message: message.into(), hint: None, exit_code: 1 }
    }

    /// A failure of the given kind whose message is `error` with all its causes.
    pub fn caused(kind: &str, error: &dyn std::error::Error) -> Failure {
        Failure::new(kind, with_causes(error))
    }

    /// The same failure with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// The same failure with another exit code.
    #[must_use]
    pub fn exit(mut self, exit_code: u8) -> Failure {
        self.exit_code = exit_code;
        self
    }
}

/// An error and its causes in one line, each said once.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut last = text.clone();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some repeat what is above them with a number in front.
        if !text.ends_with(&more) && !more.ends_with(&last) {
            text.push_str(": ");
            text.push_str(&more);
        }
        last = more;
        cause = error.source();
    }
    text
}

/// The reply on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    Ok(Response),
    Error(Failure),
}

/// A message could not be transferred.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The deadline passed.
    #[error("timed out")]
    TimedOut,
    /// The peer closed the connection, `got` bytes into the message.
    #[error("the connection ended after {got} bytes of a message")]
    Ended {
        /// Bytes of the message (or its length) that had come.
        got: usize,
    },
    /// The length is 0 or above the maximum.
    #[error("a message of {bytes} bytes, allowed are 1 to {MESSAGE_BYTES_MAX}")]
    Length {
        /// The length announced, or of the message to be sent.
        bytes: usize,
    },
    /// The bytes are not the JSON that they should be.
    #[error("not understood: {source}")]
    Json {
        /// Where and why.
        source: serde_json::Error,
    },
    /// The socket failed.
    #[error(transparent)]
    Io(io::Error),
}

/// Sends one message; all of it before `deadline`.
pub(super) fn send(
    stream: &UnixStream,
    message: &impl Serialize,
    deadline: Instant,
) -> Result<(), WireError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(|source| WireError::Json { source })?;
    let bytes = frame.len() - 4;
    if bytes > MESSAGE_BYTES_MAX {
        return Err(WireError::Length { bytes });
    }
    frame[..4].copy_from_slice(&(bytes as u32).to_le_bytes());
    let mut rest = frame.as_slice();
    while !rest.is_empty() {
        stream.set_write_timeout(Some(remaining(deadline)?)).map_err(WireError::Io)?;
        match (&*stream).write(rest) {
            Ok(0) => return Err(WireError::Ended { got: 0 }),
            Ok(count) => rest = &rest[count..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(())
}

/// Receives one message; all of it before `deadline`.
pub(super) fn receive<T: DeserializeOwned>(
    stream: &UnixStream,
    deadline: Instant,
) -> Result<T, WireError> {
    let mut length = [0; 4];
    fill(stream, &mut length, deadline)?;
    let bytes = u32::from_le_bytes(length) as usize;
    if bytes == 0 || bytes > MESSAGE_BYTES_MAX {
        return Err(WireError::Length { bytes });
    }
    let mut message = vec![0; bytes];
    fill(stream, &mut message, deadline)?;
    serde_json::from_slice(&message).map_err(|source| WireError::Json { source })
}

fn fill(stream: &UnixStream, buffer: &mut [u8], deadline: Instant) -> Result<(), WireError> {
    let mut got = 0;
    while got < buffer.len() {
        stream.set_read_timeout(Some(remaining(deadline)?)).map_err(WireError::Io)?;
        match (&*stream).read(&mut buffer[got..]) {
            Ok(0) => return Err(WireError::Ended { got }),
            Ok(count) => got += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(())
}

fn remaining(deadline: Instant) -> Result<Duration, WireError> {
    let left = deadline.saturating_duration_since(Instant::now());
    // A timeout of 0 would mean none.
    if left < Duration::from_micros(1) { Err(WireError::TimedOut) } else { Ok(left) }
}

fn failed(error: io::Error) -> WireError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => WireError::TimedOut,
        _ => WireError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(50)
    }

    #[test]
    fn requests_cross_the_wire() {
        let (a, b) = UnixStream::pair().unwrap();
        for request in [
            Request::Ping,
            Request::Unmount { lazy: true },
            Request::Fork { name: "x".into(), uid: None, command: "c".into() },
        ] {
            send(&a, &request, soon()).unwrap();
            assert_eq!(receive::<Request>(&b, soon()).unwrap(), request);
        }
    }

    #[test]
    fn the_form_on_the_wire_is_stable() {
        let text = serde_json::to_string(&Request::Unmount { lazy: true }).unwrap();
        assert_eq!(text, r#"{"request":"unmount","lazy":true}"#);
        let text = serde_json::to_string(&Reply::Ok(Response::Synced)).unwrap();
        assert_eq!(text, r#"{"ok":{"response":"synced"}}"#);
    }

    #[test]
    fn bad_frames() {
        let (a, b) = UnixStream::pair().unwrap();
        for bytes in [0_u32, MESSAGE_BYTES_MAX as u32 + 1, u32::MAX] {
            (&a).write_all(&bytes.to_le_bytes()).unwrap();
            let error = receive::<Request>(&b, soon()).unwrap_err();
            assert!(matches!(error, WireError::Length { bytes: found } if found == bytes as usize));
        }
        (&a).write_all(&[3, 0, 0, 0, b'{', b'}', b'x']).unwrap();
        assert!(matches!(receive::<Request>(&b, soon()), Err(WireError::Json { .. })));
        let nested = vec![b'['; 100_000];
        send_raw(&a, &nested);
        assert!(matches!(receive::<Request>(&b, soon()), Err(WireError::Json { .. })));
        (&a).write_all(&[9, 0]).unwrap();
        assert!(matches!(receive::<Request>(&b, soon()), Err(WireError::TimedOut)));
        drop(a);
        assert!(matches!(receive::<Request>(&b, soon()), Err(WireError::Ended { got: 0 })));
    }

    fn send_raw(stream: &UnixStream, bytes: &[u8]) {
        (&*stream).write_all(&(bytes.len() as u32).to_le_bytes()).unwrap();
        (&*stream).write_all(bytes).unwrap();
    }

    #[test]
    fn a_trickle_does_not_extend_the_deadline() {
        let (a, b) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            for _ in 0..40 {
                if (&a).write_all(&[1]).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let start = Instant::now();
        assert!(matches!(
            receive::<Request>(&b, soon()),
            Err(WireError::TimedOut | WireError::Length { .. })
        ));
        assert!(start.elapsed() < Duration::from_millis(300));
        drop(b);
        writer.join().unwrap();
    }

    #[test]
    fn a_peer_that_does_not_read() {
        let (a, _b) = UnixStream::pair().unwrap();
        let big = "x".repeat(MESSAGE_BYTES_MAX - 2);
        assert!(matches!(send(&a, &big, soon()), Err(WireError::TimedOut)));
        let bigger = "x".repeat(MESSAGE_BYTES_MAX);
        assert!(matches!(send(&a, &bigger, soon()), Err(WireError::Length { .. })));
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Error {
        text: &'static str,
        source: Option<Box<Error>>,
    }

    #[test]
    fn causes_are_said_once() {
        let inner = io::Error::other("disk on fire");
        let outer = WireError::Io(inner);
        assert_eq!(with_causes(&outer), "disk on fire");
        let error = |text, source: Option<Error>| Error { text, source: source.map(Box::new) };
        let chain = error("code 8: is read-only", Some(error("at last", None)));
        let chain = error("saving", Some(error("is read-only", Some(chain))));
        assert_eq!(with_causes(&chain), "saving: is read-only: at last");
    }
}
