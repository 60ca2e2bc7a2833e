//! Random operations on the engine, in process, against a naive model: with forks, seals,
//! remounts and kills of the serving process. No mount is needed. A few minutes at most; raise
//! `PROPTEST_CASES` for a campaign.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

#[path = "model/tree.rs"]
mod tree;

use std::ops::ControlFlow;
use std::sync::Arc;

use cowfs::branch::fork::Requester;
use cowfs::branch::{self, Branch, OpenMode};
use cowfs::catalog::Store;
use cowfs::format::{FileKind, Ino};
use cowfs::fs::attr::SetAttributes;
use cowfs::fs::names::NewFile;
use cowfs::fs::rename::RenameMode;
use cowfs::fs::write::AllocateMode;
use cowfs::fs::{Caller, Fs, FsError, FsOptions};
use proptest::prelude::*;
use tree::{Content, Tree, name_of, parent_of};

const BRANCHES_MAX: usize = 4;

#[derive(Clone, Debug)]
enum Op {
    Create(String),
    Mkdir(String),
    Symlink(String),
    Write(String, u64, u32, u8),
    Truncate(String, u64),
    Punch(String, u64, u64),
    Zero(String, u64, u64, bool),
    Allocate(String, u64, u64, bool),
    Copy(String, u64, String, u64, u64),
    /// Makes the second file anew, as a copy of the first from that granule on.
    Clone(String, u64, String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String, bool),
    Exchange(String, String),
    Link(String, String),
    Chmod(String, u16),
    Fsync(String),
    Fork,
    Seal,
    Finalize,
    Pack,
    Remount,
    Kill,
    Switch(usize),
}

fn path() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "a",
        "b",
        "c",
        "d",
        "d/a",
        "d/b",
        "d/e",
        "d/e/a",
        "pg_wal",
        "pg_wal/0001",
        "pg_wal/0002",
    ])
    .prop_map(str::to_owned)
}

/// Offsets near the edges of granules, where the mistakes are.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0u64..12).prop_map(|g| g * 4096),
        (0u64..12, 0u64..3).prop_map(|(g, d)| (g * 4096 + d).saturating_sub(1)),
        0u64..50_000,
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => path().prop_map(Op::Create),
        2 => path().prop_map(Op::Mkdir),
        1 => path().prop_map(Op::Symlink),
        12 => (path(), offset(), 1u32..20_000, any::<u8>()).prop_map(|(p, o, l, b)| Op::Write(p, o, l, b)),
        6 => (path(), offset()).prop_map(|(p, s)| Op::Truncate(p, s)),
        3 => (path(), offset(), 1u64..20_000).prop_map(|(p, o, l)| Op::Punch(p, o, l)),
        2 => (path(), offset(), 1u64..20_000, any::<bool>()).prop_map(|(p, o, l, k)| Op::Zero(p, o, l, k)),
        2 => (path(), offset(), 1u64..20_000, any::<bool>()).prop_map(|(p, o, l, k)| Op::Allocate(p, o, l, k)),
        2 => (path(), offset(), path(), offset(), 1u64..20_000).prop_map(|(a, x, b, y, l)| Op::Copy(a, x, b, y, l)),
        2 => (path(), 0u64..12, path(), 0u64..12, 1u64..8).prop_map(|(a, x, b, y, l)| {
            Op::Copy(a, x * 4096, b, y * 4096, l * 4096)
        }),
        2 => (path(), 0u64..3, path()).prop_map(|(a, x, b)| Op::Clone(a, x * 4096, b)),
        2 => path().prop_map(Op::Unlink),
        1 => path().prop_map(Op::Rmdir),
        3 => (path(), path(), any::<bool>()).prop_map(|(a, b, n)| Op::Rename(a, b, n)),
        1 => (path(), path()).prop_map(|(a, b)| Op::Exchange(a, b)),
        2 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        1 => (path(), 0u16..0o1000).prop_map(|(p, m)| Op::Chmod(p, m)),
        2 => path().prop_map(Op::Fsync),
        4 => Just(Op::Fork),
        2 => Just(Op::Seal),
        2 => Just(Op::Finalize),
        1 => Just(Op::Pack),
        2 => Just(Op::Remount),
        2 => Just(Op::Kill),
        4 => (0..BRANCHES_MAX).prop_map(Op::Switch),
    ]
}

/// Two files written here and there, and sealed again and again.
fn deepening() -> impl Strategy<Value = Op> {
    let file = || prop::sample::select(vec!["a", "b"]).prop_map(str::to_owned);
    prop_oneof![
        1 => file().prop_map(Op::Create),
        10 => (file(), offset(), 1u32..9_000, any::<u8>()).prop_map(|(p, o, l, b)| Op::Write(p, o, l, b)),
        1 => (file(), offset()).prop_map(|(p, s)| Op::Truncate(p, s)),
        1 => (file(), offset(), 1u64..9_000).prop_map(|(p, o, l)| Op::Punch(p, o, l)),
        1 => (0u64..12, 0u64..12, 1u64..8).prop_map(|(x, y, l)| {
            Op::Copy("a".to_owned(), x * 4096, "b".to_owned(), y * 4096, l * 4096)
        }),
        1 => (0u64..3).prop_map(|x| Op::Clone("a".to_owned(), x * 4096, "b".to_owned())),
        10 => Just(Op::Seal),
        1 => Just(Op::Fork),
        3 => Just(Op::Finalize),
        3 => Just(Op::Pack),
        2 => Just(Op::Remount),
        1 => Just(Op::Kill),
        1 => (0..BRANCHES_MAX).prop_map(Op::Switch),
    ]
}

struct Mounted {
    name: String,
    fs: Arc<Fs>,
    tree: Tree,
}

struct World {
    _dir: tempfile::TempDir,
    store: Arc<Store>,
    mounted: Vec<Mounted>,
    at: usize,
}

fn by() -> Requester {
    Requester { uid: 0, command: "test".to_owned() }
}

fn serve(store: &Arc<Store>, name: &str) -> Arc<Fs> {
    let row = store.catalog.branch(&name.parse().unwrap()).unwrap().unwrap();
    let lock = store.lock_branch(row.id).unwrap();
    let branch = Branch::open(store.clone(), row, lock, OpenMode::ReadWrite).unwrap();
    let fs = Fs::new(branch, FsOptions::default());
    fs.drop_orphans().unwrap();
    fs
}

fn walk(fs: &Fs, path: &str) -> Result<Ino, FsError> {
    let mut at = Ino::ROOT;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let found = fs.lookup(at, part.as_bytes())?;
        at = found.record.ino;
    }
    Ok(at)
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::init(&dir.path().join("store")).unwrap());
        branch::create::create_empty(&store, "main".parse().unwrap(), &by()).unwrap();
        let fs = serve(&store, "main");
        let mounted = vec![Mounted { name: "main".to_owned(), fs, tree: Tree::new() }];
        World { _dir: dir, store, mounted, at: 0 }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Switch(to) => self.at = to % self.mounted.len(),
            Op::Fork if self.mounted.len() < BRANCHES_MAX => self.fork(),
            Op::Fork => {}
            Op::Remount | Op::Kill => {
                let Mounted { name, fs, tree } = self.mounted.remove(self.at);
                if matches!(op, Op::Remount) {
                    fs.retire_all().unwrap();
                    fs.branch.close().unwrap();
                } else {
                    fs.branch.abandon();
                }
                drop(fs);
                let fs = serve(&self.store, &name);
                self.mounted.insert(self.at, Mounted { name, fs, tree });
            }
            Op::Seal => {
                self.mounted[self.at].fs.branch.seal().unwrap();
            }
            Op::Finalize => self.mounted[self.at].fs.branch.finalize_frozen().unwrap(),
            Op::Pack => {
                let mut unhurried = |_| ControlFlow::Continue(());
                self.mounted[self.at].fs.branch.pack_owed(&mut None, &mut unhurried).unwrap();
            }
            other => {
                let here = &mut self.mounted[self.at];
                here.apply(other);
            }
        }
    }

    fn fork(&mut self) {
        let name = format!("b{}", self.mounted.len());
        let parent = &self.mounted[self.at];
        parent.fs.branch.fork(name.parse().unwrap(), &by()).unwrap();
        let tree = parent.tree.clone();
        let fs = serve(&self.store, &name);
        self.mounted.push(Mounted { name, fs, tree });
    }

    fn check(&self) {
        for here in &self.mounted {
            here.check();
        }
    }
}

fn fill(data: &mut Vec<u8>, offset: u64, len: u64, byte: u8) {
    let end = (offset + len) as usize;
    if data.len() < end {
        data.resize(end, 0);
    }
    data[offset as usize..end].fill(byte);
}

impl Mounted {
    fn make(&mut self, path: &str, kind: FileKind, symlink: &[u8]) {
        let content = match kind {
            FileKind::Directory => Content::Dir,
            FileKind::Symlink => Content::Link(symlink.to_vec()),
            _ => Content::File(Vec::new()),
        };
        let expected = self.tree.make(path, content, 0o640);
        let made = walk(&self.fs, parent_of(path)).and_then(|dir| {
            let new = NewFile { kind, perm: 0o640, rdev: 0, symlink };
            let caller = Caller { uid: 1, gid: 2 };
            self.fs.make(dir, name_of(path).as_bytes(), &new, caller)
        });
        assert_eq!(made.is_ok(), expected, "make {path}: {made:?}");
    }

    /// Runs `change` on a regular file that exists; other paths are left alone.
    fn with_file(&mut self, path: &str, change: impl FnOnce(&Fs, Ino, &mut Vec<u8>)) {
        if let Some(data) = self.tree.file(path) {
            let ino = walk(&self.fs, path).unwrap();
            change(&self.fs, ino, data);
            let mut buf = Vec::new();
            self.fs.read(ino, 0, 1 << 20, &mut buf).unwrap();
            assert!(buf == *data, "{path}: {}", difference(&buf, data));
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Create(path) => self.make(path, FileKind::Regular, b""),
            Op::Mkdir(path) => self.make(path, FileKind::Directory, b""),
            Op::Symlink(path) => self.make(path, FileKind::Symlink, b"../target"),
            Op::Write(path, offset, len, byte) => self.with_file(path, |fs, ino, data| {
                fs.write(ino, *offset, &vec![*byte; *len as usize]).unwrap();
                fill(data, *offset, u64::from(*len), *byte);
            }),
            Op::Truncate(path, size) => self.with_file(path, |fs, ino, data| {
                let set = SetAttributes { size: Some(*size), ..SetAttributes::default() };
                fs.set_attributes(ino, set).unwrap();
                data.resize(*size as usize, 0);
            }),
            Op::Punch(path, offset, len) => self.with_file(path, |fs, ino, data| {
                fs.allocate(ino, *offset, *len, AllocateMode::PunchHole).unwrap();
                zero_within(data, *offset, *len);
            }),
            Op::Zero(path, offset, len, keep) => self.with_file(path, |fs, ino, data| {
                let mode =
                    if *keep { AllocateMode::ZeroKeepSize } else { AllocateMode::ZeroExtend };
                fs.allocate(ino, *offset, *len, mode).unwrap();
                if *keep { zero_within(data, *offset, *len) } else { fill(data, *offset, *len, 0) }
            }),
            Op::Allocate(path, offset, len, keep) => self.with_file(path, |fs, ino, data| {
                let mode = if *keep { AllocateMode::KeepSize } else { AllocateMode::Extend };
                fs.allocate(ino, *offset, *len, mode).unwrap();
                let end = (*offset + *len) as usize;
                if !*keep && data.len() < end {
                    data.resize(end, 0);
                }
            }),
            Op::Copy(from, x, to, y, len) => self.copy(from, *x, to, *y, *len),
            Op::Clone(from, x, to) => {
                if from != to && self.tree.file(from).is_some() {
                    self.apply(&Op::Unlink(to.clone()));
                    self.apply(&Op::Create(to.clone()));
                    self.copy(from, *x, to, 0, 1 << 20);
                }
            }
            Op::Fsync(path) => {
                if let Ok(ino) = walk(&self.fs, path) {
                    let _durable = self.fs.sync(ino).unwrap();
                    let _durable = self.fs.sync_dir().unwrap();
                }
            }
            other => self.apply_name(other),
        }
    }

    fn copy(&mut self, from: &str, x: u64, to: &str, y: u64, len: u64) {
        let (Some(source), true) = (self.tree.file(from).cloned(), self.tree.file(to).is_some())
        else {
            return;
        };
        let (a, b) = (walk(&self.fs, from).unwrap(), walk(&self.fs, to).unwrap());
        if a == b {
            return;
        }
        let copied = self.fs.copy_range((a, x), (b, y), len).unwrap();
        let start = (x as usize).min(source.len());
        let end = ((x + len) as usize).min(source.len()).max(start);
        assert_eq!(copied as usize, end - start);
        if copied > 0 {
            let target = self.tree.file(to).unwrap();
            fill(target, y, copied, 0);
            target[y as usize..(y + copied) as usize].copy_from_slice(&source[start..end]);
        }
    }

    fn apply_name(&mut self, op: &Op) {
        let fs = &self.fs;
        let place = |path: &str| walk(fs, parent_of(path));
        let (expected, result) = match op {
            Op::Unlink(path) => (
                self.tree.unlink(path),
                place(path).and_then(|dir| fs.unlink(dir, name_of(path).as_bytes())),
            ),
            Op::Rmdir(path) => (
                self.tree.rmdir(path),
                place(path).and_then(|dir| fs.rmdir(dir, name_of(path).as_bytes())),
            ),
            Op::Rename(from, to, no_replace) => {
                let mode = if *no_replace { RenameMode::NoReplace } else { RenameMode::Replace };
                let done = place(from).and_then(|a| {
                    let b = place(to)?;
                    fs.rename((a, name_of(from).as_bytes()), (b, name_of(to).as_bytes()), mode)
                });
                (self.tree.rename(from, to, *no_replace), done)
            }
            Op::Exchange(from, to) => {
                let done = place(from).and_then(|a| {
                    let b = place(to)?;
                    let (from, to) = (name_of(from).as_bytes(), name_of(to).as_bytes());
                    fs.rename((a, from), (b, to), RenameMode::Exchange)
                });
                (self.tree.exchange(from, to), done)
            }
            Op::Link(from, to) => {
                let done = walk(fs, from).and_then(|ino| {
                    let dir = place(to)?;
                    fs.link(ino, dir, name_of(to).as_bytes()).map(|_| ())
                });
                (self.tree.link(from, to), done)
            }
            Op::Chmod(path, perm) => {
                let set = SetAttributes { perm: Some(*perm), ..SetAttributes::default() };
                let done = walk(fs, path).and_then(|ino| fs.set_attributes(ino, set).map(|_| ()));
                let at = self.tree.paths.get(path).copied();
                if let Some(at) = at {
                    self.tree.nodes[at].perm = *perm;
                }
                (at.is_some(), done)
            }
            _ => return,
        };
        assert_eq!(result.is_ok(), expected, "{op:?}: {result:?}");
    }

    fn check(&self) {
        for path in self.tree.paths.keys() {
            let ino = walk(&self.fs, path).unwrap_or_else(|e| panic!("{}:{path}: {e}", self.name));
            let shown = self.fs.attributes(ino).unwrap().record;
            let node = self.tree.get(path).unwrap();
            assert_eq!(shown.nlink, self.tree.nlink(path), "{}:{path}: nlink", self.name);
            assert_eq!(shown.perm & 0o777, node.perm & 0o777, "{}:{path}: mode", self.name);
            match &node.content {
                Content::File(data) => {
                    let mut buf = Vec::new();
                    self.fs.read(ino, 0, 1 << 20, &mut buf).unwrap();
                    assert_eq!(shown.size, data.len() as u64, "{}:{path}: size", self.name);
                    assert!(buf == *data, "{}:{path}: {}", self.name, difference(&buf, data));
                }
                Content::Link(target) => assert_eq!(&self.fs.read_link(ino).unwrap(), target),
                Content::Dir => {
                    let mut names: Vec<String> = self
                        .tree
                        .children(path)
                        .iter()
                        .map(|child| name_of(child).to_owned())
                        .collect();
                    names.sort();
                    assert_eq!(listed(&self.fs, ino), names, "{}:{path}", self.name);
                }
            }
        }
    }
}

fn zero_within(data: &mut [u8], offset: u64, len: u64) {
    let (size, start) = (data.len(), offset as usize);
    if start < size {
        data[start..size.min(start + len as usize)].fill(0);
    }
}

fn listed(fs: &Fs, dir: Ino) -> Vec<String> {
    let (mut names, mut cookie) = (Vec::new(), 0);
    loop {
        let lines = fs.list(dir, cookie).unwrap();
        let Some(last) = lines.last() else { break };
        cookie = last.cookie;
        names.extend(lines.into_iter().map(|line| String::from_utf8(line.name).unwrap()));
    }
    names.retain(|name| name != "." && name != "..");
    names.sort();
    names
}

fn difference(found: &[u8], expected: &[u8]) -> String {
    let first = found.iter().zip(expected).position(|(a, b)| a != b);
    format!("lengths {} and {}, first difference at {first:?}", found.len(), expected.len())
}

fn run(ops: &[Op]) {
    let mut world = World::new();
    for op in ops {
        world.apply(op);
    }
    world.check();
    for at in 0..world.mounted.len() {
        world.at = at;
        world.apply(&Op::Remount);
    }
    world.check();
    for here in &world.mounted {
        here.fs.branch.close().unwrap();
    }
    let damage = cowfs::check::check(&world.store, &cowfs::check::Options::default(), &mut |_| ())
        .unwrap()
        .damage;
    assert!(damage.is_empty(), "{damage:?}");
}

/// What the random runs found, each shrunk to its smallest form.
mod found {
    use super::*;

    #[test]
    fn a_file_first_written_after_a_fork_survives_the_next_fork() {
        run(&[Op::Create("d".to_owned()), Op::Fork, Op::Write("d".to_owned(), 0, 1, 1), Op::Fork]);
    }

    #[test]
    fn a_name_cannot_move_into_a_file() {
        let (file, inside) = ("pg_wal".to_owned(), "pg_wal/0001".to_owned());
        run(&[Op::Create(file.clone()), Op::Rename(file, inside, false)]);
    }
}

#[test]
fn an_open_file_without_a_name_keeps_its_contents_over_forks() {
    let mut world = World::new();
    let here = &mut world.mounted[0];
    here.make("a", FileKind::Regular, b"");
    let ino = walk(&here.fs, "a").unwrap();
    here.fs.write(ino, 0, &[7; 9000]).unwrap();
    assert!(here.tree.unlink("a"));
    here.fs.unlink(Ino::ROOT, b"a").unwrap();
    world.apply(&Op::Fork);
    world.apply(&Op::Finalize);
    let here = &world.mounted[0];
    let mut buf = Vec::new();
    here.fs.read(ino, 0, 1 << 20, &mut buf).unwrap();
    assert!(buf == [7; 9000], "{}", difference(&buf, &[7; 9000]));
    here.fs.write(ino, 4090, &[8; 10]).unwrap();
    here.fs.read(ino, 4088, 14, &mut buf).unwrap();
    assert_eq!(buf, [7, 7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 7, 7]);
    world.check();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 4000, ..ProptestConfig::default() })]
    #[test]
    fn the_engine_does_what_the_model_does(ops in prop::collection::vec(op(), 1..80)) {
        run(&ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, max_shrink_iters: 4000, ..ProptestConfig::default() })]
    /// Chains deep enough for merged indexes and packs.
    #[test]
    fn what_is_merged_and_packed_shows_the_same(ops in prop::collection::vec(deepening(), 60..160)) {
        run(&ops);
    }
}
