//! Commands that work on a store without serving it (import, fork, snapshot, delete, undo, gc,
//! checksums, export, check --repair), with each of their calls to the host failing in turn: those
//! of the catalog (`SQLite`), of the copies, of the locks. `faults.rs` does the same for what is
//! served.
//!
//! A library in front of the C library fails the calls (`scripts/crash/shims/fail_call.c`): the
//! catalog and the import do not go through the `Storage` of the engine. Whatever a command says,
//! it must have happened completely or not at all, the store must be sound, every branch that was
//! there must be there to the byte, and the same command must work once the cause is gone.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use cowfs::catalog::Store;
use cowfs::check::Options;

/// Names and contents of a tree.
type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// What fails: a call as the library names it, and with what.
#[derive(Clone, Copy, Debug)]
struct Fault {
    call: &'static str,
    with: &'static str,
    after: u32,
    for_ever: bool,
}

/// What a command does to the store, and how to tell that it has.
#[derive(Clone, Copy)]
struct Act {
    args: &'static [&'static str],
    happened: fn(&Place) -> bool,
    /// Whether it writes to the store at all.
    writes: bool,
}

const EIO: &str = "5";
const EMFILE: &str = "24";
const ENOSPC: &str = "28";
const ENOLCK: &str = "37";
const EDQUOT: &str = "122";

/// The library, compiled once; `None` (with a word) where that cannot be.
fn library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<(tempfile::TempDir, PathBuf)>> = OnceLock::new();
    let made = LIBRARY.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("fail_call.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/crash/shims/fail_call.c");
        let mut cc = Command::new("cc");
        cc.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl");
        let Ok(output) = cc.output() else {
            println!("skipped: needs a C compiler");
            return None;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some((dir, library))
    });
    made.as_ref().map(|(_, library)| library.as_path())
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "60", env!("CARGO_BIN_EXE_cowfs")]).args(args);
        command.env("COWFS_STORE", self.path("store")).env_remove("COWFS_LOG");
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn does(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A store with two imports that are left, one that gc is to free, a fork and a snapshot.
    fn new() -> Place {
        let place = Place { dir: scratch() };
        for (tree, seed) in [("main.tree", 1), ("new.tree", 2), ("gone.tree", 3)] {
            let tree = place.path(tree);
            fs::create_dir_all(tree.join("base/1")).unwrap();
            fs::write(tree.join("base/1/16384"), pattern(seed, 20_000)).unwrap();
            fs::write(tree.join("base/1/16385"), pattern(seed + 10, 100)).unwrap();
            fs::write(tree.join("empty"), "").unwrap();
        }
        place.does(&["init"]);
        place.does(&["import", "--any", "main.tree", "--as", "main"]);
        place.does(&["import", "--any", "gone.tree", "--as", "gone"]);
        place.does(&["check", "--add-checksums"]);
        place.does(&["branch", "create", "child", "--from", "main"]);
        place.does(&["snapshot", "create", "main@kept"]);
        place.does(&["branch", "delete", "gone"]);
        place
    }

    /// Another place just like this one.
    fn copy(&self) -> Place {
        let place = Place { dir: scratch() };
        let mut cp = Command::new("cp");
        cp.args(["-a", "--reflink=never"]).arg(self.dir.path().join(".")).arg(place.dir.path());
        assert!(cp.status().unwrap().success());
        place
    }

    fn fails(&self, act: Act, fault: Fault) -> Output {
        self.fails_at(&self.path(""), act.args, fault)
    }

    /// With calls that fail for what lies below `place`, or for that file.
    fn fails_at(&self, place: &Path, args: &[&str], fault: Fault) -> Output {
        let library = library().unwrap();
        let mut command = self.command(args);
        command.env("LD_PRELOAD", library).env("COWFS_FAIL", fault.call);
        command.env("COWFS_FAIL_ERRNO", fault.with);
        command.env("COWFS_FAIL_AFTER", fault.after.to_string());
        command.env("COWFS_FAIL_BELOW", place);
        command.env("COWFS_FAIL_STRUCK", self.struck());
        if fault.for_ever {
            command.env("COWFS_FAIL_EVER", "1");
        }
        command.output().unwrap()
    }

    /// Lies elsewhere, so that nothing of what is looked at changes.
    fn struck(&self) -> PathBuf {
        self.dir.path().with_extension("struck")
    }

    fn has(&self, branch: &str) -> bool {
        self.store().catalog.branch(&branch.parse().unwrap()).unwrap().is_some()
    }

    fn store(&self) -> Store {
        Store::open(&self.path("store")).unwrap()
    }

    /// What `cowfs check --read-data` says, or that it is sound.
    fn is_sound(&self) -> Result<(), String> {
        let options = Options { branch: None, read_data: true };
        let store = std::sync::Arc::new(self.store());
        let report = cowfs::check::check(&store, &options, &mut |_| ()).unwrap();
        if report.damage.is_empty() { Ok(()) } else { Err(format!("{:?}", report.damage)) }
    }

    fn exported(&self, what: &str) -> Tree {
        let into = tempfile::tempdir_in(self.dir.path()).unwrap();
        let dir = into.path().join("out");
        self.does(&["export", what, dir.to_str().unwrap()]);
        tree(&dir)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.struck());
    }
}

/// In memory where there is such a place: thousands of stores live for a moment.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7) as u8 ^ seed).collect()
}

fn tree(dir: &Path) -> Tree {
    let (mut found, mut dirs) = (Tree::new(), vec![dir.to_owned()]);
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(&next).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_owned();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

/// Everything that must hold after `act`, whatever became of it.
fn judge(place: &Place, act: Act, output: &Output) -> Result<(), String> {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    if output.status.signal().is_some() || !matches!(code, Some(0..=4)) {
        return Err(format!("ended with {}: {errors}", output.status));
    }
    if errors.contains("panicked") {
        return Err(format!("panicked: {errors}"));
    }
    let told = String::from_utf8_lossy(&output.stdout);
    let told = code == Some(3) && told.contains("DAMAGED");
    if code != Some(0) && !told && !errors.lines().any(|line| line.starts_with("Error: ")) {
        return Err(format!("failed without a word: {errors}"));
    }
    if code == Some(0) && !(act.happened)(place) {
        return Err(format!("said that it was done and it is not: {errors}"));
    }
    place.is_sound().map_err(|damage| format!("damage after '{errors}': {damage}"))?;
    // The others stand on the same layer, whose contents were held against their checksums.
    if place.exported("main@kept") != tree(&place.path("main.tree")) {
        return Err(format!("the snapshot is not what it was: {errors}"));
    }
    if place.has("new") && place.exported("new") != tree(&place.path("new.tree")) {
        return Err(format!("half an import is there: {errors}"));
    }
    Ok(())
}

/// Once the cause is gone the same can be done, and what was left is freed.
fn goes_on(place: &Place, act: Act) -> Result<(), String> {
    let again = place.command(act.args).output().unwrap();
    if !(act.happened)(place) {
        let errors = String::from_utf8_lossy(&again.stderr);
        return Err(format!("cannot be done any more: {errors}"));
    }
    // A process that another test has just begun holds what we had open, for a moment.
    for _ in 0..5 {
        place.does(&["gc", "--now"]);
        if is_swept(place) {
            break;
        }
    }
    place.is_sound().map_err(|damage| format!("damage after gc: {damage}"))?;
    if !is_swept(place) {
        return Err("gc leaves something".to_owned());
    }
    Ok(())
}

/// Whether there is nothing for gc to free.
fn is_swept(place: &Place) -> bool {
    place.does(&["gc", "--now", "--dry-run"]).contains("0 layers and 0 leftovers")
}

/// Fails the first, the second, .. such call until the command has no more of them; says how many
/// there were.
fn each(
    template: &Place,
    act: Act,
    call: &'static str,
    with: &'static str,
    for_ever: bool,
    wrong: &mut Vec<String>,
) -> u32 {
    let mut after = 0;
    loop {
        let place = template.copy();
        let fault = Fault { call, with, after, for_ever };
        let output = place.fails(act, fault);
        let Ok(struck) = fs::read_to_string(place.struck()) else { return after };
        let whole = || judge(&place, act, &output).and_then(|()| goes_on(&place, act));
        let judged = catch_unwind(AssertUnwindSafe(whole));
        if let Err(why) = judged.unwrap_or_else(|_| Err("a command failed, see above".to_owned())) {
            let first = struck.lines().next().unwrap_or_default();
            wrong.push(format!("{:?} with {fault:?} of {first}: {why}", act.args));
        }
        after += 1;
    }
}

const KINDS: [(&str, &[(&str, bool)]); 15] = [
    ("open", &[(EMFILE, false), (EIO, true)]),
    ("read", &[(EIO, true)]),
    ("write", &[(EDQUOT, false), (ENOSPC, true), ("short", false)]),
    ("sync", &[(EIO, false), (ENOSPC, true)]),
    ("length", &[(EIO, true)]),
    ("allocate", &[(ENOSPC, true)]),
    ("rename", &[(EIO, false)]),
    ("link", &[(EIO, false)]),
    ("remove", &[(EIO, true)]),
    ("mkdir", &[(ENOSPC, true)]),
    ("stat", &[(EIO, true)]),
    ("list", &[(EIO, true)]),
    ("seek", &[(EIO, true)]),
    ("attributes", &[(EIO, true)]),
    ("lock", &[(ENOLCK, true)]),
];

fn all_calls_of(act: Act) {
    if library().is_none() {
        return;
    }
    let template = Place::new();
    let (mut wrong, mut calls) = (Vec::new(), BTreeMap::new());
    for (call, ways) in KINDS {
        for (with, for_ever) in ways {
            // What was begun elsewhere cannot be taken away where no directory can be opened.
            if call == "open" && *for_ever && !act.writes {
                continue;
            }
            let met = each(&template, act, call, with, *for_ever, &mut wrong);
            calls.insert(call, met);
        }
    }
    println!("{:?}: {calls:?}", act.args);
    for call in if act.writes { &["open", "read", "write", "sync"][..] } else { &["open", "read"] }
    {
        assert!(calls[call] > 0, "no {call} was seen: {calls:?}");
    }
    assert!(wrong.is_empty(), "{} of {calls:?}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn each_call_of_an_import_fails() {
    let happened = |place: &Place| place.has("new");
    let args = &["import", "--any", "new.tree", "--as", "new"];
    all_calls_of(Act { args, happened, writes: true });
}

#[test]
fn each_call_of_a_fork_fails() {
    let happened = |place: &Place| place.has("other");
    let args = &["branch", "create", "other", "--from", "main"];
    all_calls_of(Act { args, happened, writes: true });
}

#[test]
fn each_call_of_a_snapshot_fails() {
    let happened = |place: &Place| place.does(&["snapshot", "list"]).contains("another");
    let args = &["snapshot", "create", "main@another"];
    all_calls_of(Act { args, happened, writes: true });
}

#[test]
fn each_call_of_a_delete_fails() {
    let happened = |place: &Place| !place.has("child");
    let args = &["branch", "delete", "child"];
    all_calls_of(Act { args, happened, writes: true });
}

#[test]
fn each_call_of_an_undo_fails() {
    let happened = |place: &Place| place.has("gone");
    all_calls_of(Act { args: &["undo"], happened, writes: true });
}

#[test]
fn each_call_of_gc_fails() {
    all_calls_of(Act { args: &["gc", "--now"], happened: is_swept, writes: true });
}

#[test]
fn each_call_of_a_repair_fails() {
    let happened = |place: &Place| place.is_sound().is_ok();
    all_calls_of(Act { args: &["check", "--read-data", "--repair"], happened, writes: false });
}

#[test]
fn each_call_of_an_export_fails() {
    let happened = |place: &Place| {
        let out = place.path("out");
        out.exists() && tree(&out) == tree(&place.path("main.tree"))
    };
    all_calls_of(Act { args: &["export", "main", "out"], happened, writes: false });
}

/// Nothing but the checksums tells of rot: those that the host does not give out just now must not
/// be made again from the contents, neither sound ones nor those beside damaged ones, which are
/// opened once to see the damage and once more to mend it.
#[test]
fn a_repair_leaves_checksums_that_cannot_be_read() {
    if library().is_none() {
        return;
    }
    for (damaged, opened_at_least) in [(false, 1), (true, 2)] {
        let template = Place::new();
        let sums = rot(&template, damaged);
        for for_ever in [false, true] {
            let mut after = 0;
            loop {
                let place = template.copy();
                let sums = place.path("").join(&sums);
                let fault = Fault { call: "open", with: EIO, after, for_ever };
                let said = place.fails_at(&sums, &["check", "--repair"], fault);
                if !place.struck().exists() {
                    break;
                }
                let errors = String::from_utf8_lossy(&said.stderr);
                // Only whoever reads the contents sees the rot: damaged checksums may be mended.
                assert!(matches!(said.status.code(), Some(0 | 3)), "{fault:?}: {errors}");
                let damage = place.is_sound().expect_err("the rot is taken for contents");
                assert!(damage.contains("corrupt contents"), "{fault:?}: {damage}; {errors}");
                after += 1;
            }
            assert!(after >= opened_at_least, "opened only {after} times");
        }
    }
}

/// Turns a bit of the contents of a sealed layer, and on request one of the checksums of another of
/// its files. Gives the checksum file, relative to the place.
fn rot(place: &Place, sums_too: bool) -> PathBuf {
    place.does(&["gc", "--now"]);
    let layers = fs::read_dir(place.path("store/layers")).unwrap().flatten();
    let mut sealed = layers.map(|entry| entry.path()).filter(|layer| layer.join("sums").exists());
    let layer = sealed.next().unwrap();
    let data: Vec<_> = tree(&layer.join("data")).into_iter().collect();
    let large = data.iter().position(|(_, bytes)| bytes.len() > 10_000).unwrap();
    let (rotten, mut bytes) = data[large].clone();
    bytes[5000] ^= 1;
    fs::write(layer.join("data").join(rotten), &bytes).unwrap();
    let sums = layer.join("sums");
    if sums_too {
        // Four bytes per granule after 64 of header, in the order of the files: the small file has
        // one, before or behind those of the large one.
        let small = data.iter().position(|(_, bytes)| bytes.len() == 100).unwrap();
        let before = if small < large { 0 } else { bytes.len().div_ceil(4096) };
        let mut summed = fs::read(&sums).unwrap();
        summed[64 + 4 * before] ^= 1;
        fs::write(&sums, summed).unwrap();
    }
    sums.strip_prefix(place.path("")).unwrap().to_owned()
}
