//! Who may do what: the store and its files, the control socket, trees from strangers, what a mount lets
//! through. Attacks on parts are beside the code; here they go against the real program.
//!
//! Needs root and /dev/fuse; says so and passes otherwise.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod mount_support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mount_support::{PATIENCE, Said, Scene, program, said};
use nix::sys::stat::Mode;

const NOBODY: u32 = 65534;

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Runs a program as the user `nobody`; `None`, with a word, where that is not possible.
fn as_nobody(program: &Path, args: &[&str]) -> Option<Said> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program).args(args);
    let Ok(output) = command.stdin(Stdio::null()).output() else {
        println!("skipped: needs setpriv");
        return None;
    };
    Some(said(&output))
}

/// The scene's directories, but not its store, opened to everybody.
fn open_to_all(scene: &Scene) -> PathBuf {
    let root = scene.temp.path().canonicalize().unwrap();
    chmod(&root, 0o755);
    root
}

fn make_tree(scene: &Scene) -> PathBuf {
    let tree = scene.temp.path().canonicalize().unwrap().join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("sub/file"), vec![b'x'; 10_000]).unwrap();
    tree
}

#[test]
fn everything_that_is_made_in_a_store_is_private() {
    let scene = scene!();
    scene.mount();
    fs::write(scene.dir.join("file"), "x").unwrap();
    scene.run(&["branch", "create", "child", "--from", "main"]).ok();
    scene.run(&["unmount", "main"]).ok();
    assert_eq!(fs::metadata(&scene.store).unwrap().mode() & 0o7777, 0o700);
    let mut pending = vec![scene.store.clone()];
    while let Some(dir) = pending.pop() {
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o022, 0, "{}", dir.display());
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            assert_eq!(meta.mode() & 0o022, 0, "{} may be written to", path.display());
            assert_eq!(meta.uid(), 0);
            if meta.is_dir() {
                pending.push(path);
            }
        }
    }
    // Not even the names in it are anybody's business.
    open_to_all(&scene);
    let Some(said) = as_nobody(Path::new("/bin/ls"), &[scene.store.to_str().unwrap()]) else {
        return;
    };
    assert_ne!(said.code, 0, "{}", said.out);
}

#[test]
fn a_store_of_another_user_is_refused() {
    let scene = scene!();
    let precious = scene.temp.path().join("precious");
    fs::write(&precious, "data").unwrap();
    let commands: [&[&str]; 6] = [
        &["branch", "list"],
        &["branch", "create", "x", "--from", "main"],
        &["mount", "main", scene.dir()],
        &["status"],
        &["gc"],
        &["check"],
    ];
    // What its owner could have prepared for root to write through.
    symlink(&precious, scene.run_file("1.log")).unwrap();
    std::os::unix::fs::chown(&scene.store, Some(NOBODY), Some(NOBODY)).unwrap();
    for command in commands {
        let error = scene.run(command).fails(1);
        assert!(error.contains("belongs to user 65534, and this is user 0"), "{error}");
        assert!(error.contains("Hint: run it as that user"), "{error}");
    }
    std::os::unix::fs::chown(&scene.store, Some(0), Some(0)).unwrap();
    for mode in [0o777, 0o770, 0o702] {
        chmod(&scene.store, mode);
        for command in commands {
            let error = scene.run(command).fails(1);
            assert!(error.contains("may be written to by others"), "{error}");
            assert!(error.contains("Hint: chmod 700"), "{error}");
        }
    }
    chmod(&scene.store, 0o700);
    fs::remove_file(scene.run_file("1.log")).unwrap();
    scene.run(&["check"]).ok();
    assert_eq!(fs::read_to_string(&precious).unwrap(), "data");
    // A new store in a directory of somebody else.
    let foreign = scene.temp.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    std::os::unix::fs::chown(&foreign, Some(NOBODY), None).unwrap();
    let error = scene.run(&["--store", foreign.to_str().unwrap(), "init"]).fails(1);
    assert!(error.contains("belongs to user 65534"), "{error}");
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 0);
}

#[test]
fn links_in_the_place_of_run_files_are_not_followed() {
    let scene = scene!();
    let precious = scene.temp.path().join("precious");
    let names = [
        "1.lock",
        "1.sock",
        "1.json",
        "1.json.new",
        "1.log",
        "1.log.old",
        "1.pg.lock",
        "1.pg.json",
        "1.pg.json.new",
        "1.pg.log",
    ];
    for name in names {
        fs::write(&precious, "data").unwrap();
        chmod(&precious, 0o640);
        let place = scene.run_file(name);
        let _ = fs::remove_file(&place);
        symlink(&precious, &place).unwrap();
        let mounted = scene.run(&["mount", "main", scene.dir()]);
        if mounted.code == 0 {
            scene.run(&["status", "main"]).ok();
            scene
                .run(&[
                    "branch",
                    "create",
                    &format!("c{}", name.len()),
                    "--from",
                    "main",
                    "--if-not-exists",
                ])
                .ok();
            scene.run(&["unmount", "main"]).ok();
        } else {
            assert!(
                mounted.err.contains("Error: ") && mounted.code == 1,
                "{name}: {}",
                mounted.err
            );
        }
        for args in [&["stop", "main"][..], &["logs", "main"], &["gc"]] {
            assert_ne!(scene.run(args).code, 255, "{name}: {args:?}");
        }
        let meta = fs::symlink_metadata(&precious).unwrap();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "data", "{name}");
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o640, 0), "{name}");
        let _ = fs::remove_file(&place);
    }
    // A link to nothing must not make a file there.
    let nothing = scene.temp.path().join("nothing");
    for name in names {
        let _ = fs::remove_file(scene.run_file(name));
        symlink(&nothing, scene.run_file(name)).unwrap();
    }
    let _ = scene.run(&["mount", "main", scene.dir()]);
    assert!(!nothing.exists());
}

#[test]
fn a_thousand_connections_harm_nobody() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let scene = scene!();
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most.min(4096), most).unwrap();
    scene.mount();
    let socket = scene.run_file("1.sock");
    let mut crowd = Vec::new();
    for number in 0..1000_u32 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        // Some say nothing, some half a request, some announce a giant, some never read their answer.
        let _ = match number % 4 {
            0 => Ok(()),
            1 => stream.write_all(&[40, 0, 0, 0, b'{']),
            2 => stream.write_all(&u32::MAX.to_le_bytes()),
            _ => stream.write_all(b"\x14\0\0\0{\"request\":\"status\"}"),
        };
        crowd.push(stream);
    }
    let begin = Instant::now();
    fs::write(scene.dir.join("file"), "the filesystem goes on").unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    drop(crowd);
    let deadline = Instant::now() + PATIENCE;
    while scene.status("main")["state"] != "mounted" {
        assert!(Instant::now() < deadline, "{}", scene.status("main"));
    }
    let pid = scene.server();
    let descriptors = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    while descriptors() > 100 {
        assert!(Instant::now() < deadline, "{} descriptors stay open", descriptors());
        std::thread::sleep(Duration::from_millis(20));
    }
    scene.run(&["branch", "create", "child", "--from", "main"]).ok();
    assert_eq!(fs::read_to_string(scene.dir.join("file")).unwrap(), "the filesystem goes on");
}

/// Connects, sends what its arguments say, and prints the answer.
const CLIENT: &str = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.settimeout(5)\n\
    s.connect(sys.argv[1])\nm=sys.argv[2].encode()\n\
    s.sendall(len(m).to_bytes(4,'little')+m)\nprint(s.recv(65536))";

#[test]
fn the_control_socket_is_for_its_owner_and_root() {
    let scene = scene!();
    open_to_all(&scene);
    scene.mount();
    fs::write(scene.dir.join("file"), "x").unwrap();
    let socket = scene.run_file("1.sock");
    let python = Path::new("/usr/bin/python3");
    if !python.exists() {
        println!("skipped: needs python3");
        return;
    }
    let ask = |request: &str| as_nobody(python, &["-c", CLIENT, socket.to_str().unwrap(), request]);
    let Some(said) = ask(r#"{"request":"ping"}"#) else { return };
    assert!(said.err.contains("PermissionError"), "the store is closed: {}{}", said.out, said.err);
    // With every door open the credentials of the peer still decide.
    for path in [&scene.store, &scene.store.join("run"), &socket] {
        chmod(path, 0o777);
    }
    for request in [
        r#"{"request":"ping"}"#,
        r#"{"request":"status"}"#,
        r#"{"request":"unmount","lazy":true}"#,
        r#"{"request":"fork","name":"stolen","uid":0,"command":""}"#,
        r#"{"request":"seal"}"#,
        r#"{"request":"sync"}"#,
    ] {
        let said = ask(request).unwrap();
        let refused = said.out.contains("only root and the user who mounted the branch");
        // What is refused before it was read may come back as a reset.
        assert!(
            refused || said.err.contains("ConnectionResetError") || said.err.contains("BrokenPipe"),
            "{request}: {}{}",
            said.out,
            said.err
        );
    }
    for path in [&scene.store.join("run"), &scene.store] {
        chmod(path, 0o700);
    }
    assert_eq!(scene.status("main")["state"], "mounted");
    assert!(!scene.run(&["branch", "list"]).ok().contains("stolen"));
    assert_eq!(fs::read_to_string(scene.dir.join("file")).unwrap(), "x");
}

#[test]
fn a_branch_is_served_once_whatever_its_store_is_called() {
    let scene = scene!();
    scene.mount();
    let root = scene.temp.path().canonicalize().unwrap();
    let (link, other) = (root.join("link"), root.join("other"));
    symlink(&scene.store, &link).unwrap();
    fs::create_dir(&other).unwrap();
    let dotted = root.join("other/../store");
    for store in [link, dotted] {
        let mut command = scene.command(&["mount", "main", other.to_str().unwrap()]);
        let error = said(&command.env("COWFS_STORE", store).output().unwrap()).fails(1);
        assert!(error.contains("already mounted at"), "{error}");
    }
    // Nor when somebody cleans up in run/.
    fs::remove_file(scene.run_file("1.lock")).unwrap();
    for _ in 0..2 {
        scene.run(&["mount", "main", other.to_str().unwrap()]).fails(1);
        scene.run(&["branch", "delete", "main"]).fails(1);
    }
    assert_eq!(scene.mounts().len(), 1);
    scene.run(&["unmount", "main"]).ok();
    scene.mount();
}

#[test]
fn mounts_are_nosuid_and_nodev() {
    let scene = scene!();
    open_to_all(&scene);
    let tree = make_tree(&scene);
    let id = ["/usr/bin/id", "/bin/id"].into_iter().map(Path::new).find(|id| id.exists()).unwrap();
    fs::copy(id, tree.join("id")).unwrap();
    chmod(&tree.join("id"), 0o4755);
    let node = |path: &Path| {
        let kind = nix::sys::stat::SFlag::S_IFCHR;
        let made = nix::sys::stat::mknod(path, kind, Mode::from_bits_truncate(0o666), 0x0103);
        if made.is_ok() {
            chmod(path, 0o666);
        }
        made.is_ok()
    };
    let nodes = node(&tree.join("null"));
    scene.run(&["import", tree.to_str().unwrap(), "--any", "--as", "old"]).ok();
    scene.run(&["mount", "old", scene.dir()]).ok();
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mountinfo.lines().find(|line| line.contains(scene.dir())).unwrap();
    assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
    let copied = scene.dir.join("id");
    // The bits are there, as they were imported, and give nothing.
    assert_eq!(fs::metadata(&copied).unwrap().mode() & 0o7777, 0o4755);
    let Some(said) = as_nobody(&copied, &["-u"]) else { return };
    assert_eq!(said.ok().trim(), "65534");
    if nodes {
        let opened = fs::File::open(scene.dir.join("null"));
        assert_eq!(opened.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }
}

/// Contents and times of all that a store holds; `run/` and what SQLite shares between processes aside.
fn snapshot(store: &Path) -> BTreeMap<PathBuf, (Vec<u8>, i64, i64, u32, u64)> {
    let (mut found, mut pending) = (BTreeMap::new(), vec![store.to_owned()]);
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let mut bytes = Vec::new();
        if meta.is_dir() {
            if path.ends_with("run") {
                continue;
            }
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.ends_with("catalog.sqlite-shm") {
            continue;
        } else {
            bytes = fs::read(&path).unwrap();
        }
        let state = (bytes, meta.mtime(), meta.mtime_nsec(), meta.mode(), meta.ino());
        found.insert(path, state);
    }
    found
}

#[test]
fn a_read_only_mount_writes_nothing() {
    let scene = scene!();
    let tree = make_tree(&scene);
    scene.run(&["import", tree.to_str().unwrap(), "--any", "--as", "old"]).ok();
    scene.run(&["mount", "old", scene.dir()]).ok();
    fs::write(scene.dir.join("sub/file"), "changed").unwrap();
    scene.run(&["branch", "create", "child", "--from", "old"]).ok();
    fs::write(scene.dir.join("new"), vec![b'y'; 50_000]).unwrap();
    fs::write(scene.dir.join("removed"), "x").unwrap();
    fs::remove_file(scene.dir.join("removed")).unwrap();
    // Killed, so that there is something to recover, which it must leave alone.
    let mut pid = None;
    for orderly in [false, true] {
        if orderly {
            scene.run(&["mount", "old", scene.dir()]).ok();
            scene.run(&["unmount", "old"]).ok();
        } else {
            let server = scene.status("old")["pid"].as_i64().unwrap();
            pid = Some(nix::unistd::Pid::from_raw(i32::try_from(server).unwrap()));
            nix::sys::signal::kill(pid.unwrap(), nix::sys::signal::Signal::SIGKILL).unwrap();
            let deadline = Instant::now() + PATIENCE;
            while Path::new(&format!("/proc/{}", pid.unwrap())).exists() {
                assert!(Instant::now() < deadline);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let before = snapshot(&scene.store);
        scene.run(&["mount", "old", scene.dir(), "--read-only"]).ok();
        assert_eq!(fs::read_to_string(scene.dir.join("sub/file")).unwrap(), "changed");
        assert_eq!(fs::read(scene.dir.join("new")).unwrap(), vec![b'y'; 50_000]);
        assert!(fs::write(scene.dir.join("new"), "x").is_err());
        assert!(fs::remove_file(scene.dir.join("new")).is_err());
        scene.run(&["status", "old"]).ok();
        // Longer than a round of the background.
        std::thread::sleep(Duration::from_millis(1500));
        scene.run(&["unmount", "old"]).ok();
        let after = snapshot(&scene.store);
        let names = |s: &BTreeMap<PathBuf, _>| s.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&before), names(&after), "orderly: {orderly}");
        for (path, state) in &before {
            assert!(after[path] == *state, "{} was changed; orderly: {orderly}", path.display());
        }
    }
    assert!(pid.is_some());
}

#[test]
fn an_adopted_base_cannot_lead_elsewhere() {
    let scene = scene!();
    let tree = make_tree(&scene);
    for name in ["fifo", "link", "kept"] {
        fs::write(tree.join(name), vec![b'a'; 5000]).unwrap();
    }
    scene.run(&["import", "--adopt", tree.to_str().unwrap(), "--any", "--as", "old"]).ok();
    scene.run(&["mount", "old", scene.dir()]).ok();
    // The same file, with all that identifies it, but on another path: no link is followed to it.
    let away = scene.temp.path().join("away");
    fs::rename(tree.join("sub"), &away).unwrap();
    symlink(&away, tree.join("sub")).unwrap();
    fs::rename(tree.join("link"), away.join("link")).unwrap();
    symlink(away.join("link"), tree.join("link")).unwrap();
    // A FIFO would keep the server waiting for a writer.
    fs::remove_file(tree.join("fifo")).unwrap();
    nix::unistd::mkfifo(&tree.join("fifo"), Mode::S_IRWXU).unwrap();
    for name in ["sub/file", "link", "fifo"] {
        let (sender, receiver) = std::sync::mpsc::channel();
        let path = scene.dir.join(name);
        std::thread::spawn(move || sender.send(fs::read(path)));
        let answer = receiver.recv_timeout(Duration::from_secs(10)).expect("the server hangs");
        assert_eq!(answer.unwrap_err().raw_os_error(), Some(libc::EIO), "{name}");
    }
    assert_eq!(fs::read(scene.dir.join("kept")).unwrap(), vec![b'a'; 5000]);
    let log = fs::read_to_string(scene.run_file("2.log")).unwrap();
    assert!(log.contains("a symbolic link took its place"), "{log}");
    assert!(log.contains("it is no regular file"), "{log}");
}

#[test]
fn an_imported_tree_can_be_hostile() {
    let scene = scene!();
    let tree = make_tree(&scene);
    let outside = scene.temp.path().join("outside");
    fs::write(&outside, "secret").unwrap();
    symlink("../outside", tree.join("up")).unwrap();
    symlink(&outside, tree.join("absolute")).unwrap();
    for name in [&b"line\nbreak"[..], b"-rf", b"\xff\xfe", b"\x1b[31mred", b"..."] {
        fs::write(tree.join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
    }
    fs::write(tree.join("n".repeat(255)), "long").unwrap();
    nix::unistd::mkfifo(&tree.join("fifo"), Mode::S_IRWXU).unwrap();
    drop(std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap());
    // As large as a host file can be here, and empty: takes neither time nor room.
    let bomb = fs::File::create(tree.join("bomb")).unwrap();
    let size = [16_u64 << 40, 8 << 40, 1 << 40].into_iter().map(|size| size - 4096);
    let size = size.into_iter().find(|size| bomb.set_len(*size).is_ok()).unwrap();
    let mut deep = tree.join("deep");
    for _ in 0..15 {
        deep = deep.join("d".repeat(200));
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "deep").unwrap();
    let begin = Instant::now();
    scene.run(&["import", tree.to_str().unwrap(), "--any", "--as", "old"]).ok();
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    assert!(!scene.run(&["branch", "show", "old"]).ok().contains("TiB used"));
    scene.run(&["mount", "old", scene.dir()]).ok();
    // Links are kept as they are, and lead from the mount, not from where they were.
    assert_eq!(fs::read_link(scene.dir.join("up")).unwrap(), Path::new("../outside"));
    assert_eq!(fs::metadata(scene.dir.join("bomb")).unwrap().len(), size);
    for name in [&b"line\nbreak"[..], b"-rf", b"\xff\xfe", b"\x1b[31mred", b"..."] {
        let path = scene.dir.join(std::ffi::OsStr::from_bytes(name));
        assert_eq!(fs::read(path).unwrap(), name);
    }
    assert!(!scene.dir.join("socket").exists());
    let file = scene.dir.join(deep.strip_prefix(&tree).unwrap()).join("file");
    assert_eq!(fs::read_to_string(file).unwrap(), "deep");
    let mut first = [1; 4096];
    fs::File::open(scene.dir.join("bomb")).unwrap().read_exact(&mut first).unwrap();
    assert_eq!(first, [0; 4096]);
    scene.run(&["unmount", "old"]).ok();
    assert!(scene.run(&["check"]).ok().starts_with("sound"));
    assert!(program().exists() && fs::read_to_string(&outside).unwrap() == "secret");
}

#[test]
fn nothing_is_mounted_inside_of_a_store_or_over_it() {
    let scene = scene!();
    let root = scene.temp.path().canonicalize().unwrap();
    let sly = root.join("sly");
    symlink(scene.store.join("run"), &sly).unwrap();
    for dir in [&scene.store, &scene.store.join("run"), &scene.store.join("layers"), &sly, &root] {
        let error = scene.run(&["mount", "main", dir.to_str().unwrap()]).fails(1);
        assert!(error.contains("must not lie inside each other"), "{error}");
    }
    assert!(scene.mounts().is_empty());
}
