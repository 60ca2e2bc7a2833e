//! `cowfs import` as people run it: messages, exit codes, JSON, and signals in the middle of it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cowfs::catalog::{FileLock, LayerState, Store};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

struct Place {
    dir: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::init(&dir.path().join("store")).unwrap();
        Place { dir, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cowfs"));
        command.env("COWFS_STORE", &self.store.root).current_dir(self.dir.path());
        command.arg("import").args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs an import that must fail, with that exit code and these words on stderr.
    fn refuses(&self, args: &[&str], code: i32, words: &[&str]) {
        let output = self.run(args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(output.stdout.is_empty(), "{args:?} wrote to stdout");
        for word in words {
            assert!(text.contains(word), "{args:?}: no {word:?} in: {text}");
        }
    }
}

#[test]
fn refusals_have_their_exit_code_and_say_why() {
    let place = Place::new();
    fs::create_dir(place.path("tree")).unwrap();
    fs::write(place.path("tree/file"), "x").unwrap();
    fs::create_dir(place.path("empty")).unwrap();
    place.refuses(&[], 2, &["--as"]);
    place.refuses(&["tree"], 2, &["--as"]);
    place.refuses(&["--as", "b"], 2, &["PGDATA"]);
    place.refuses(&["tree", "--adopt", "tree", "--as", "b"], 2, &["--adopt"]);
    place.refuses(&["tree", "--as", "b", "--jobs", "0"], 2, &["--jobs"]);
    for name in ["Upper", "..", "a//b", "a/", "", "-x", &"n".repeat(64)] {
        let with_equals = format!("--as={name}");
        place.refuses(&["tree", &with_equals], 2, &["--as"]);
    }
    place.refuses(&["tree", "--as", "b"], 1, &["tree", "PG_VERSION", "--any"]);
    place.refuses(&["missing", "--as", "b", "--any"], 1, &["missing", "No such file"]);
    place.refuses(&["empty", "--as", "b", "--any"], 1, &["is empty"]);
    place.refuses(&["tree/file", "--as", "b", "--any"], 1, &["not a directory"]);
    place.refuses(&[".", "--as", "b", "--any"], 1, &["overlap"]);
    place.refuses(&["store/layers", "--as", "b", "--any"], 1, &["overlap"]);
    assert!(place.store.catalog.all_layers().unwrap().is_empty());
    assert!(place.run(&["tree", "--as", "b", "--any"]).status.success());
    place.refuses(&["tree", "--as", "b", "--any"], 1, &["branch b exists already"]);
}

#[test]
fn a_postmaster_pid_of_a_living_process_is_named() {
    let place = Place::new();
    fs::create_dir_all(place.path("data/global")).unwrap();
    fs::write(place.path("data/PG_VERSION"), "15\n").unwrap();
    fs::write(place.path("data/postmaster.pid"), "1\n").unwrap();
    for extra in ["--allow-crashed", "--any"] {
        place.refuses(
            &["data", "--as", "b", extra],
            1,
            &["running", "process 1", "postmaster.pid"],
        );
    }
    fs::remove_file(place.path("data/postmaster.pid")).unwrap();
    place.refuses(&["data", "--as", "b"], 1, &["pg_control"]);
}

#[test]
fn what_cannot_be_read_is_named() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root, to become somebody who may not read");
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("tree")).unwrap();
    fs::write(place.path("tree/file"), "x").unwrap();
    let chmod = |path: &Path, mode| {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    // The binary as user nobody, with a store of its own and a file it may not read.
    chmod(place.dir.path(), 0o755);
    chmod(&place.path("tree"), 0o755);
    chmod(&place.path("tree/file"), 0o600);
    let binary = place.path("cowfs");
    fs::copy(env!("CARGO_BIN_EXE_cowfs"), &binary).unwrap();
    let chown = Command::new("chown").args(["-R", "nobody"]).arg(&place.store.root).status();
    assert!(chown.unwrap().success());
    let output = Command::new("setpriv")
        .args(["--reuid", "nobody", "--clear-groups"])
        .arg(&binary)
        .env("COWFS_STORE", &place.store.root)
        .args(["import", "--any", "--as", "b"])
        .arg(place.path("tree"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("tree/file") && text.contains("ermission denied"), "{text}");
    assert!(place.store.catalog.all_layers().unwrap().is_empty());
}

#[test]
fn json_and_text_on_stdout() {
    let place = Place::new();
    fs::create_dir(place.path("tree")).unwrap();
    fs::write(place.path("tree/file"), "contents").unwrap();
    std::os::unix::fs::symlink("/etc", place.path("tree/out")).unwrap();
    let output = place.run(&["tree", "--as", "a", "--any", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["branch"], "a");
    assert_eq!(json["counts"]["files"], 1);
    assert_eq!(json["counts"]["bytes"], 8);
    assert_eq!(json["notes"][0]["kind"], "outside_link_kept");
    assert!(output.stderr.is_empty(), "progress without a terminal");
    let output = place.run(&["--adopt", "tree", "--as", "b", "--any"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("as branch b: 1 file, 1 directory"), "{text}");
    assert!(text.contains("warning: out leads out of the branch, to /etc"), "{text}");
    assert!(text.contains("nobody may change it"), "{text}");
}

/// Starts an import of much data and waits until its layer is there.
fn started(place: &Place) -> Option<Child> {
    fs::create_dir(place.path("big")).unwrap();
    for number in 0..8 {
        let file = fs::File::create(place.path(&format!("big/{number}"))).unwrap();
        for mib in 0..64 {
            file.write_all_at(&vec![number + 1; 1 << 20], mib << 20).unwrap();
        }
    }
    let mut child = place
        .command(&["big", "--as", "big", "--any", "--jobs", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        let layers = place.store.catalog.all_layers().unwrap();
        if layers.iter().any(|layer| layer.state == LayerState::Importing) {
            return Some(child);
        }
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.wait().unwrap();
    eprintln!("SKIPPED: this host copies too fast to be interrupted");
    None
}

#[test]
fn sigint_cleans_up() {
    let place = Place::new();
    let Some(child) = started(&place) else { return };
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        eprintln!("SKIPPED: the import was finished before the signal");
        return;
    }
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("interrupted"));
    assert!(place.store.catalog.all_layers().unwrap().is_empty());
    assert!(place.store.catalog.branches().unwrap().is_empty());
    for dir in ["layers", "run"] {
        assert_eq!(fs::read_dir(place.store.root.join(dir)).unwrap().count(), 0, "{dir}");
    }
}

#[test]
fn sigkill_leaves_what_gc_recognises() {
    let place = Place::new();
    let Some(mut child) = started(&place) else { return };
    let layer = place.store.catalog.all_layers().unwrap().remove(0);
    let lock = place.store.import_lock_path(layer.id);
    assert!(FileLock::is_held(&lock).unwrap(), "gc would take the layer from under the import");
    child.kill().unwrap();
    let status = child.wait().unwrap();
    if status.signal().is_none() {
        eprintln!("SKIPPED: the import was finished before the signal");
        return;
    }
    assert!(!FileLock::is_held(&lock).unwrap());
    let layers = place.store.catalog.all_layers().unwrap();
    assert_eq!(layers.len(), 1);
    assert_eq!(layers[0].state, LayerState::Importing);
    assert!(place.store.catalog.branches().unwrap().is_empty(), "half an import is visible");
    // The name is free, and the next attempt does not trip over the leftovers, which gc takes.
    assert!(place.run(&["big", "--as", "big", "--any"]).status.success());
    let mut gc = Command::new(env!("CARGO_BIN_EXE_cowfs"));
    assert!(gc.env("COWFS_STORE", &place.store.root).arg("gc").status().unwrap().success());
    assert!(place.store.catalog.layer(layer.id).unwrap().is_none());
    assert!(!place.store.layer_dir(layer.id).exists());
    assert_eq!(place.store.catalog.all_layers().unwrap().len(), 2);
}
