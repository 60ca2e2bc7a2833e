//! The fuzz targets for a few seconds each, on the stable compiler: seeds of a real store, mutated at
//! random. `scripts/fuzz` runs the same with libFuzzer, coverage and a sanitizer, for hours.
//!
//! `COWFS_FUZZ_SECONDS` for each target (default 2); the seed is printed, `COWFS_FUZZ_SEED` repeats it.
#![allow(clippy::unwrap_used)]

#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    dead_code
)]
#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cowfs::branch::{Branch, OpenMode};
use cowfs::catalog::Store;
use cowfs::format::{FileKind, Ino};
use cowfs::fs::names::NewFile;
use cowfs::fs::{Caller, Fs, FsOptions};

/// No input is longer.
const INPUT_BYTES_MAX: usize = 16 << 10;

/// xorshift64*: enough to choose mutations.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.next() % end as u64) as usize }
    }
}

/// Numbers at the edges of what fields hold.
const EDGES: [u64; 10] =
    [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, i64::MAX as u64, u64::MAX];

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds.get(random.below(seeds.len())).cloned().unwrap_or_default();
    for _ in 0..random.below(6) {
        let at = random.below(bytes.len());
        let len = random.below(64).min(bytes.len() - at);
        match random.below(8) {
            0 | 1 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            2 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            3 => {
                let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&edge[..width]);
            }
            4 => drop(bytes.drain(at..at + len)),
            5 => {
                let copy = bytes[at..at + len].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            6 => bytes.truncate(at),
            _ => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(name: &str, seeds: Vec<Vec<u8>>, target: fn(&[u8])) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = setting("COWFS_FUZZ_SEED").unwrap_or(now.as_nanos() as u64) | 1;
    let mut random = Random(seed);
    let mut seeds = seeds;
    seeds.push(Vec::new());
    let (begin, mut runs) = (Instant::now(), 0_u64);
    let length = Duration::from_secs(setting("COWFS_FUZZ_SECONDS").unwrap_or(2));
    for seed in &seeds {
        target(seed);
    }
    while begin.elapsed() < length {
        let input = mutate(&mut random, &seeds);
        if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
            let kept = std::env::temp_dir().join(format!("cowfs-fuzz-{name}-{seed}"));
            fs::write(&kept, &input).unwrap();
            panic!("{name}: input {runs} of seed {seed} fails; it is in {}", kept.display());
        }
        runs += 1;
    }
    println!("{name}: {runs} runs, seed {seed}");
    assert!(runs > 100, "{name}: only {runs} runs");
}

/// A store with an import, and a branch whose logs are long.
fn store() -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    let (root, tree) = (temp.path().join("store"), temp.path().join("tree"));
    fs::create_dir_all(tree.join("base/1")).unwrap();
    fs::write(tree.join("base/1/1259"), vec![b'x'; 20_000]).unwrap();
    fs::write(tree.join("PG_VERSION"), "15\n").unwrap();
    std::os::unix::fs::symlink("base/1", tree.join("link")).unwrap();
    let cowfs = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cowfs"));
        let done = command.args(args).env("COWFS_STORE", &root).output().unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    };
    cowfs(&["init"]);
    cowfs(&["import", "--any", tree.to_str().unwrap(), "--as", "old"]);
    cowfs(&["check", "--add-checksums"]);
    let store = Arc::new(Store::open(&root).unwrap());
    let row = store.catalog.require_branch(&"old".parse().unwrap()).unwrap();
    let lock = store.lock_branch(row.id).unwrap();
    let branch = Branch::open(store, row, lock, OpenMode::ReadWrite).unwrap();
    let fs = Fs::new(branch.clone(), FsOptions::default());
    for number in 0..20_u64 {
        let new = NewFile { kind: FileKind::Regular, perm: 0o600, rdev: 0, symlink: b"" };
        let name = format!("new-{number}");
        let made = fs.make(Ino::ROOT, name.as_bytes(), &new, Caller { uid: 0, gid: 0 }).unwrap();
        fs.write(made.record.ino, number * 4096, &vec![7; 5_000]).unwrap();
        if number % 3 == 0 {
            fs.unlink(Ino::ROOT, name.as_bytes()).unwrap();
        }
    }
    let _durable = fs.sync_everything().unwrap();
    // As a process that was killed leaves them: with their logs.
    branch.abandon();
    temp
}

fn files_named(dir: &Path, names: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files_named(&path, names, found);
        } else if names.iter().any(|name| path.file_name().is_some_and(|file| file == *name)) {
            found.push(path);
        }
    }
}

/// The contents of the files of these names in a real store; there is at least one.
fn seeds(names: &[&str]) -> Vec<Vec<u8>> {
    let store = store();
    let mut found = Vec::new();
    files_named(&store.path().join("store"), names, &mut found);
    let contents: Vec<Vec<u8>> = found.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(contents.iter().any(|bytes| !bytes.is_empty()), "the store has no {names:?}");
    contents
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

const MESSAGES: [&str; 6] = [
    r#"{"request":"fork","name":"team/x_1.2","uid":null,"command":"c"}"#,
    r#"{"request":"snapshot","name":"s1","expires_ms":5,"uid":0,"command":"c"}"#,
    r#"{"request":"quota","bytes":1073741824}"#,
    r#"{"response":"forked","child":2,"gate_us":1,"commit_us":2,"total_us":3}"#,
    r#"{"error":{"kind":"k","message":"m","hint":null,"exit_code":1}}"#,
    r#"{"branch":1,"mount_point":[47,255],"pid":1,"since_ms":0,"read_only":false}"#,
];

#[test]
fn logs() {
    run("journal", seeds(&["journal", "volatile"]), fuzz::journal::run);
}

#[test]
fn replays() {
    run("replay", seeds(&["journal", "volatile"]), fuzz::replay::run);
}

#[test]
fn indexes() {
    run("index", seeds(&["index"]), fuzz::index::run);
}

#[test]
fn checksums_of_layers() {
    run("sums", seeds(&["sums"]), fuzz::sums::run);
}

#[test]
fn formats_of_stores() {
    run("store_format", seeds(&["FORMAT"]), fuzz::store_format::run);
}

#[test]
fn owner_maps() {
    run("owner_map", vec![(0..=255).collect()], fuzz::owner_map::run);
}

#[test]
fn control_messages() {
    run("control_message", texts(&MESSAGES), fuzz::control_message::run);
}

#[test]
fn control_sockets() {
    let framed =
        |message: &&str| [&(message.len() as u32).to_le_bytes(), message.as_bytes()].concat();
    run("control_socket", MESSAGES.iter().map(framed).collect(), fuzz::control_socket::run);
}

#[test]
fn control_files_of_postgres() {
    let file = |version: u32| {
        let head =
            [&7_u64.to_le_bytes()[..], &version.to_le_bytes(), &[1, 2, 3, 4], &6_u32.to_le_bytes()];
        let mut bytes = head.concat();
        bytes.resize(512, 0);
        bytes
    };
    run("control_file", [1201, 1300, 1800].map(file).into(), fuzz::control_file::run);
}

#[test]
fn data_directories() {
    let text = "15\n4711\n/data\n17\n5433\n/run/s\nport = 1\ninclude 'x'\n";
    run("data_directory", texts(&[text]), fuzz::data_directory::run);
}

#[test]
fn lists_of_mounts() {
    run("mountinfo", vec![fs::read("/proc/self/mountinfo").unwrap()], fuzz::mountinfo::run);
}
