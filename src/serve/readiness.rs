//! How a new serving process tells the command that started it that the mount answers.
//!
//! The new process gets the writing end of a pipe as its standard output and writes one line of
//! JSON. If the pipe ends without one, the process has ended.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::protocol::Failure;

/// Longest line in bytes; a longer one is not ours.
const LINE_BYTES_MAX: usize = 1 << 20;

/// A mount that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The serving process.
    pub pid: u32,
    /// Where the branch is mounted.
    #[serde(with = "super::run_file::path_bytes")]
    pub mount_point: PathBuf,
    /// Whether it is mounted read-only.
    pub read_only: bool,
    /// What the user should know.
    pub notices: Vec<String>,
}

/// The line on the pipe.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The mount answers.
    Ready(Ready),
    /// It will not.
    Failed(Failure),
}

/// What came through the pipe.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// The message.
    Message(Message),
    /// The pipe ended without a proper message.
    Nothing,
    /// The deadline passed.
    TimedOut,
}

/// Writes the message; fails with `BrokenPipe` if nobody waits for it any more.
pub fn announce(pipe: &OwnedFd, message: &Message) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    std::fs::File::from(pipe.try_clone()?).write_all(&line)
}

/// Waits for the message until `deadline`.
pub fn hear(pipe: OwnedFd, deadline: Instant) -> io::Result<Heard> {
    let mut line = Vec::new();
    let mut pipe = std::fs::File::from(pipe);
    let mut buffer = [0; 4096];
    while !line.contains(&b'\n') && line.len() <= LINE_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that the last millisecond is not spent spinning.
        let wait = PollTimeout::try_from(left.as_millis() + u128::from(!left.is_zero()))
            .unwrap_or(PollTimeout::MAX);
        let mut waiting = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waiting, wait) {
            Ok(0) if left.is_zero() => return Ok(Heard::TimedOut),
            Ok(0) | Err(nix::Error::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => line.extend_from_slice(&buffer[..count]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(serde_json::from_slice(&line).map_or(Heard::Nothing, Heard::Message))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(100)
    }

    fn pipe() -> (OwnedFd, OwnedFd) {
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap()
    }

    #[test]
    fn messages_arrive() {
        let ready = Ready {
            pid: 1,
            mount_point: "/m".into(),
            read_only: true,
            notices: vec!["long ".repeat(10_000)],
        };
        for message in
            [Message::Ready(ready), Message::Failed(Failure::new("k", "m").hint("h").exit(4))]
        {
            let (reader, writer) = pipe();
            let heard =
                std::thread::spawn(move || hear(reader, Instant::now() + Duration::from_secs(5)));
            announce(&writer, &message).unwrap();
            assert_eq!(heard.join().unwrap().unwrap(), Heard::Message(message));
        }
    }

    #[test]
    fn silence_and_death() {
        let (reader, writer) = pipe();
        let begin = Instant::now();
        assert_eq!(hear(reader.try_clone().unwrap(), soon()).unwrap(), Heard::TimedOut);
        assert!(begin.elapsed() >= Duration::from_millis(100));
        std::fs::File::from(writer).write_all(b"{\"ready\"").unwrap();
        assert_eq!(hear(reader, soon()).unwrap(), Heard::Nothing);
    }

    #[test]
    fn nobody_waits_any_more() {
        let (reader, writer) = pipe();
        drop(reader);
        let message = Message::Failed(Failure::new("k", "m"));
        let error = announce(&writer, &message).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
