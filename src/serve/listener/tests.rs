#![allow(clippy::unwrap_used)]
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;

use super::*;
use crate::serve::control::{ControlError, request_in};

const B: BranchId = BranchId(7);
const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(5);

/// Answers pings; forks take as long as their name says, in milliseconds.
struct Echo;

impl Handler for Echo {
    fn handle(&self, uid: u32, request: Request) -> Result<Response, Failure> {
        match request {
            Request::Ping => Ok(Response::Pong { pid: uid, version: "1".into() }),
            Request::Sync => {
                Ok(Response::Pong { pid: 0, version: "x".repeat(protocol::MESSAGE_BYTES_MAX / 2) })
            }
            Request::Fork { name, .. } => {
                std::thread::sleep(Duration::from_millis(name.parse().unwrap()));
                Ok(Response::Synced)
            }
            _ => Err(Failure::new("unsupported", "no").hint("ask for something else")),
        }
    }
}

fn start(dir: &Path) -> ControlServer {
    ControlServer::with_patience(dir, B, Arc::new(Echo), SHORT).unwrap()
}

fn ping(dir: &Path) -> Result<Response, ControlError> {
    request_in(dir, B, &Request::Ping, LONG)
}

fn raw(dir: &Path) -> UnixStream {
    let stream = UnixStream::connect(dir.join("7.sock")).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// What the server sends until it closes.
fn answer(mut stream: UnixStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(bytes.get(4..).unwrap_or_default()).into_owned()
}

#[test]
fn answers_and_failures() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(ping(dir.path()), Err(ControlError::NotServed)));
    let server = start(dir.path());
    let uid = nix::unistd::geteuid().as_raw();
    assert!(matches!(ping(dir.path()), Ok(Response::Pong { pid, .. }) if pid == uid));
    let error = request_in(dir.path(), B, &Request::Seal, LONG).unwrap_err();
    let ControlError::Failed(failure) = error else { panic!("{error}") };
    assert_eq!(failure.hint.as_deref(), Some("ask for something else"));
    assert!(server.stop(LONG));
    assert!(matches!(ping(dir.path()), Err(ControlError::NotServed)));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn long_paths() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(200)).join("e".repeat(200));
    std::fs::create_dir_all(&deep).unwrap();
    let _server = start(&deep);
    assert!(ping(&deep).is_ok());
}

#[test]
fn stale_things_in_the_sockets_place() {
    let dir = tempfile::tempdir().unwrap();
    let precious = dir.path().join("precious");
    std::fs::write(&precious, "data").unwrap();
    let place = dir.path().join("7.sock");
    for round in 0..3 {
        match round {
            0 => symlink(&precious, &place).unwrap(),
            1 => std::fs::write(&place, "old").unwrap(),
            // A socket that nobody listens to any more.
            _ => drop(UnixListener::bind(&place).unwrap()),
        }
        match (round, ping(dir.path())) {
            (0 | 1, Err(ControlError::Refused { .. })) | (2, Err(ControlError::NotServed)) => {}
            (_, other) => panic!("round {round}: {other:?}"),
        }
        let server = start(dir.path());
        assert!(ping(dir.path()).is_ok());
        assert!(server.stop(LONG));
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "data");
    }
    std::fs::create_dir(&place).unwrap();
    let error = ControlServer::start(dir.path(), B, Arc::new(Echo)).err().unwrap();
    assert!(error.to_string().contains("7.sock"), "{error}");
}

#[test]
fn the_socket_is_for_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let _server = start(dir.path());
    let mode = std::fs::metadata(dir.path().join("7.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn garbage_gets_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let _server = start(dir.path());
    let attacks: [&[u8]; 5] = [
        &[0xff; 64],
        &[0, 0, 0, 0],
        &[0xff, 0xff, 0xff, 0x7f, 1],
        b"\x02\0\0\0{}",
        b"\x16\0\0\0{\"request\":\"explode\"}  ",
    ];
    for attack in attacks {
        let mut stream = raw(dir.path());
        stream.write_all(attack).unwrap();
        let text = answer(stream);
        assert!(text.contains("bad_request"), "{attack:?} -> {text}");
    }
    assert!(ping(dir.path()).is_ok());
}

#[test]
fn half_requests_end_and_block_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let halves: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = raw(dir.path());
            stream.write_all(&[40, 0, 0, 0, b'{']).unwrap();
            stream
        })
        .collect();
    let start = Instant::now();
    assert!(ping(dir.path()).is_ok());
    assert!(start.elapsed() < SHORT, "waited behind others");
    for stream in halves {
        assert!(answer(stream).contains("timed out"));
    }
    assert!(server.stop(LONG));
}

#[test]
fn a_client_that_never_reads() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let clients: Vec<_> = (0..10)
        .map(|_| {
            let stream = raw(dir.path());
            protocol::send(&stream, &Request::Sync, Instant::now() + LONG).unwrap();
            stream
        })
        .collect();
    assert!(ping(dir.path()).is_ok());
    assert!(server.stop(LONG), "a client holds the server up");
    drop(clients);
}

#[test]
fn too_many_connections() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let clients: Vec<_> = (0..200).map(|_| raw(dir.path())).collect();
    let error = ping(dir.path()).unwrap_err();
    let ControlError::Failed(failure) = error else { panic!("{error}") };
    assert_eq!(failure.kind, "too_many_connections");
    let answers: Vec<_> = clients.into_iter().map(answer).collect();
    let busy = answers.iter().filter(|text| text.contains("too_many_connections")).count();
    assert_eq!(busy, 200 - CONNECTIONS_MAX);
    // The idle ones ran out of time: there is room again.
    assert!(ping(dir.path()).is_ok());
    assert!(server.stop(LONG));
}

#[test]
fn stop_lets_a_running_request_finish() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let path = dir.path().to_owned();
    let client = std::thread::spawn(move || {
        let slow = Request::Fork { name: "200".into(), uid: None, command: String::new() };
        request_in(&path, B, &slow, LONG)
    });
    while *server.shared.active.lock() == 0 {
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(20));
    assert!(server.stop(LONG));
    assert!(matches!(client.join().unwrap(), Ok(Response::Synced)));
}

#[test]
fn a_slow_answer_times_out_at_the_client() {
    let dir = tempfile::tempdir().unwrap();
    let _server = start(dir.path());
    let slow = Request::Fork { name: "400".into(), uid: None, command: String::new() };
    let begin = Instant::now();
    let error = request_in(dir.path(), B, &slow, Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, ControlError::TimedOut { .. }), "{error}");
    assert!(begin.elapsed() < Duration::from_millis(300));
}

#[test]
fn a_server_that_never_accepts() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("7.sock")).unwrap();
    // Its queue is full: connect(2) itself would wait for ever.
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let _queued = UnixStream::connect(dir.path().join("7.sock")).unwrap();
    for _ in 0..2 {
        let begin = Instant::now();
        let error = request_in(dir.path(), B, &Request::Ping, Duration::from_millis(50));
        assert!(matches!(error, Err(ControlError::TimedOut { .. })), "{error:?}");
        assert!(begin.elapsed() < Duration::from_secs(2));
    }
}

#[test]
fn another_user_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let _server = start(dir.path());
    // Permissions as wide as they can be: the credentials of the peer decide.
    for path in [dir.path().to_owned(), dir.path().join("7.sock")] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
                  s.settimeout(5)\nprint(s.recv(4096))";
    let output = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(dir.path().join("7.sock"))
        .gid(65534)
        .uid(65534)
        .output();
    let Ok(output) = output else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("permission"), "{text} {}", String::from_utf8_lossy(&output.stderr));
}
