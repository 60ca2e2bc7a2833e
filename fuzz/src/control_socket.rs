//! The control socket, both ends: any bytes to a server, any bytes to a client.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use cowfs::format::BranchId;
use cowfs::serve::control::{request_in, socket_name};
use cowfs::serve::listener::{ControlServer, Handler};
use cowfs::serve::protocol::MESSAGE_BYTES_MAX;
use cowfs::serve::{Failure, Request, Response};

const SERVED: BranchId = BranchId(1);
const FAKE: BranchId = BranchId(2);
const PATIENCE: Duration = Duration::from_secs(10);

struct Echo;

impl Handler for Echo {
    fn handle(&self, _uid: u32, request: Request) -> Result<Response, Failure> {
        Err(Failure::new("echo", format!("{request:?}")))
    }
}

struct Scene {
    dir: tempfile::TempDir,
    _server: ControlServer,
    fake: UnixListener,
}

static SCENE: LazyLock<Scene> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let server = ControlServer::start(dir.path(), SERVED, Arc::new(Echo)).expect("a server");
    let fake = UnixListener::bind(dir.path().join(socket_name(FAKE))).expect("a socket");
    Scene { dir, _server: server, fake }
});

/// One input.
pub fn run(data: &[u8]) {
    let dir = SCENE.dir.path();
    ask(dir, data);
    answer(dir, data);
}

/// Whatever is sent, the answer is one whole message of the protocol.
fn ask(dir: &Path, data: &[u8]) {
    let mut stream = UnixStream::connect(dir.join(socket_name(SERVED))).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // It may answer, and close, before it has read all.
    let _ = stream.write_all(data).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut reply = Vec::new();
    // A reset of what it did not read may take the answer with it.
    if stream.read_to_end(&mut reply).is_err() || reply.is_empty() {
        return;
    }
    let (length, message) = reply.split_first_chunk::<4>().expect("a length");
    assert_eq!(u32::from_le_bytes(*length) as usize, message.len());
    assert!(message.len() <= MESSAGE_BYTES_MAX + 4);
    let value: serde_json::Value = serde_json::from_slice(message).expect("JSON");
    assert!(value.get("error").is_some(), "{value}");
}

/// Whatever a server answers, the client ends with a response or an error.
fn answer(dir: &Path, data: &[u8]) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = SCENE.fake.accept().expect("the client");
            let _ = stream.write_all(data);
        });
        let _ = request_in(dir, FAKE, &Request::Ping, PATIENCE);
    });
}
