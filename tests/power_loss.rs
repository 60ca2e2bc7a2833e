//! Random operations on the engine, in process, with power cuts: whatever was synced must be
//! there afterwards, whatever was not may be old or new but never anything else, and what was seen
//! after a cut does not change with the next. No mount is needed. Under a minute; raise
//! `PROPTEST_CASES` for a campaign.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

#[path = "model/tree.rs"]
#[allow(dead_code)]
mod tree;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cowfs::branch::fork::Requester;
use cowfs::branch::open::Host;
use cowfs::branch::{self, Branch, OpenMode};
use cowfs::catalog::Store;
use cowfs::format::{FileKind, Ino};
use cowfs::fs::attr::SetAttributes;
use cowfs::fs::names::NewFile;
use cowfs::fs::rename::RenameMode;
use cowfs::fs::write::AllocateMode;
use cowfs::fs::{Caller, Fs, FsError, FsOptions};
use cowfs::io::host::HostStorage;
use cowfs::io::lossy::LossyStorage;
use proptest::prelude::*;
use tree::{Content, Tree, name_of, parent_of};

const BRANCHES_MAX: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    Create(String),
    Mkdir(String),
    Write(String, u64, u32, u8),
    Truncate(String, u64),
    Punch(String, u64, u64),
    Extend(String, u64, u64),
    Copy(String, u64, String, u64, u64),
    Unlink(String),
    Rename(String, String),
    Link(String, String),
    Chmod(String, u16),
    Fsync(String),
    FsyncAll,
    Fork,
    Seal,
    Finalize,
    Names,
    Remount,
    Kill,
    Cut(u64),
    Switch(usize),
}

fn path() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "d", "d/a", "d/b", "pg_wal", "pg_wal/01"])
        .prop_map(str::to_owned)
}

/// Offsets near the edges of granules, where the mistakes are.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![(0u64..8).prop_map(|g| g * 4096), 0u64..33_000]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => path().prop_map(Op::Create),
        2 => path().prop_map(Op::Mkdir),
        10 => (path(), offset(), 1u32..20_000, 1u8..=255).prop_map(|(p, o, l, b)| Op::Write(p, o, l, b)),
        5 => (path(), offset()).prop_map(|(p, s)| Op::Truncate(p, s)),
        2 => (path(), offset(), 1u64..20_000).prop_map(|(p, o, l)| Op::Punch(p, o, l)),
        2 => (path(), offset(), 1u64..20_000).prop_map(|(p, o, l)| Op::Extend(p, o, l)),
        4 => (path(), 0u64..8, path(), 0u64..8, 1u64..30_000).prop_map(|(a, x, b, y, l)| {
            Op::Copy(a, x * 4096, b, y * 4096, l)
        }),
        2 => path().prop_map(Op::Unlink),
        3 => (path(), path()).prop_map(|(a, b)| Op::Rename(a, b)),
        1 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        1 => (path(), 0u16..0o1000).prop_map(|(p, m)| Op::Chmod(p, m)),
        5 => path().prop_map(Op::Fsync),
        1 => Just(Op::FsyncAll),
        4 => Just(Op::Fork),
        1 => Just(Op::Seal),
        2 => Just(Op::Finalize),
        2 => Just(Op::Names),
        1 => Just(Op::Remount),
        1 => Just(Op::Kill),
        4 => any::<u64>().prop_map(Op::Cut),
        3 => (0..BRANCHES_MAX).prop_map(Op::Switch),
    ]
}

type Names = BTreeMap<String, usize>;

/// Names and permissions at one moment.
#[derive(Clone, Debug, PartialEq)]
struct Version {
    names: Names,
    perms: BTreeMap<usize, u16>,
}

/// What the branch shows now, and what it may show after a power cut.
#[derive(Clone)]
struct Model {
    tree: Tree,
    /// Every state of the names since the last that is durable for sure, which comes first.
    versions: Vec<Version>,
    /// Every content of a file since the last that is durable for sure, which comes first.
    history: HashMap<usize, Vec<Vec<u8>>>,
    /// The version that an inode's last record came with.
    changed_at: HashMap<usize, usize>,
    /// Versions dropped from the front of `versions`.
    dropped: usize,
}

struct Mounted {
    name: String,
    fs: Arc<Fs>,
    model: Model,
}

struct World {
    _dir: tempfile::TempDir,
    graves: std::path::PathBuf,
    store: Arc<Store>,
    host: Host,
    lossy: LossyStorage,
    boots: u8,
    mounted: Vec<Mounted>,
    at: usize,
}

fn by() -> Requester {
    Requester { uid: 0, command: "test".to_owned() }
}

fn walk(fs: &Fs, path: &str) -> Result<Ino, FsError> {
    let mut at = Ino::ROOT;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        at = fs.lookup(at, part.as_bytes())?.record.ino;
    }
    Ok(at)
}

fn contents(fs: &Fs, ino: Ino) -> Vec<u8> {
    let mut buf = Vec::new();
    fs.read(ino, 0, 1 << 20, &mut buf).unwrap();
    buf
}

fn list(fs: &Fs, dir: Ino) -> Vec<String> {
    let (mut names, mut cookie) = (Vec::new(), 0);
    loop {
        let lines = fs.list(dir, cookie).unwrap();
        let Some(last) = lines.last() else { break };
        cookie = last.cookie;
        names.extend(lines.into_iter().map(|line| String::from_utf8(line.name).unwrap()));
    }
    names.retain(|name| name != "." && name != "..");
    names
}

impl Model {
    fn new() -> Model {
        let mut model = Model {
            tree: Tree::new(),
            versions: Vec::new(),
            history: HashMap::new(),
            changed_at: HashMap::new(),
            dropped: 0,
        };
        model.versions.push(model.version());
        model
    }

    fn version(&self) -> Version {
        let perms = self.tree.paths.values().map(|at| (*at, self.tree.nodes[*at].perm)).collect();
        Version { names: self.tree.paths.clone(), perms }
    }

    /// Notes a change of names or attributes that concerned `nodes`.
    fn changed(&mut self, nodes: &[usize]) {
        let version = self.version();
        // A rename of a name to itself, say, changes nothing and leaves no record.
        if self.versions.last() == Some(&version) {
            return;
        }
        self.versions.push(version);
        for node in nodes {
            self.changed_at.insert(*node, self.dropped + self.versions.len() - 1);
        }
    }

    fn wrote(&mut self, node: usize) {
        if let Content::File(data) = &self.tree.nodes[node].content {
            self.history.entry(node).or_insert_with(|| vec![Vec::new()]).push(data.clone());
        }
    }

    fn synced(&mut self, node: usize) {
        if let Content::File(data) = &self.tree.nodes[node].content {
            self.history.insert(node, vec![data.clone()]);
        }
        let version = self.changed_at.get(&node).copied().unwrap_or(0);
        self.names_durable_to(version);
    }

    fn names_durable_to(&mut self, version: usize) {
        let gone = version.saturating_sub(self.dropped);
        self.versions.drain(..gone);
        self.dropped += gone;
    }

    fn all_names_durable(&mut self) {
        self.names_durable_to(self.dropped + self.versions.len() - 1);
    }

    fn all_synced(&mut self) {
        let nodes: Vec<usize> = self.tree.paths.values().copied().collect();
        for node in nodes {
            self.synced(node);
        }
        self.all_names_durable();
    }
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::init(&dir.path().join("store")).unwrap());
        branch::create::create_empty(&store, "main".parse().unwrap(), &by()).unwrap();
        let graves = dir.path().join("graves");
        let (host, lossy) = boot(&graves, 0);
        let mut world =
            World { _dir: dir, graves, store, host, lossy, boots: 0, mounted: Vec::new(), at: 0 };
        let fs = world.serve("main");
        world.mounted.push(Mounted { name: "main".to_owned(), fs, model: Model::new() });
        world
    }

    fn serve(&self, name: &str) -> Arc<Fs> {
        let row = self.store.catalog.branch(&name.parse().unwrap()).unwrap().unwrap();
        let lock = self.store.lock_branch(row.id).unwrap();
        let mode = OpenMode::ReadWrite;
        let branch = Branch::open_on(&self.host, self.store.clone(), row, lock, mode).unwrap();
        let fs = Fs::new(branch, FsOptions::default());
        fs.drop_orphans().unwrap();
        fs
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Switch(to) => self.at = to % self.mounted.len(),
            Op::Fork if self.mounted.len() < BRANCHES_MAX => self.fork(),
            Op::Fork => {}
            Op::Remount | Op::Kill => {
                let Mounted { name, fs, mut model } = self.mounted.remove(self.at);
                if matches!(op, Op::Remount) {
                    fs.retire_all().unwrap();
                    fs.branch.close().unwrap();
                    model.all_synced();
                } else {
                    fs.branch.abandon();
                }
                drop(fs);
                let fs = self.serve(&name);
                self.mounted.insert(self.at, Mounted { name, fs, model });
            }
            Op::Cut(seed) => self.cut(*seed),
            other => self.mounted[self.at].apply(other),
        }
    }

    fn fork(&mut self) {
        let name = format!("b{}", self.mounted.len());
        let parent = &self.mounted[self.at];
        parent.fs.branch.fork(name.parse().unwrap(), &by()).unwrap();
        let model = parent.model.clone();
        let fs = self.serve(&name);
        self.mounted.push(Mounted { name, fs, model });
    }

    fn cut(&mut self, seed: u64) {
        let mut state = seed | 1;
        let mut dice = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 16) as usize % below
        };
        let mut models = Vec::new();
        for Mounted { name, fs, model } in self.mounted.drain(..) {
            fs.branch.abandon();
            models.push((name, model));
        }
        self.lossy.cut(&mut dice).unwrap();
        self.boots += 1;
        (self.host, self.lossy) = boot(&self.graves, self.boots);
        for (name, mut model) in models {
            let fs = self.serve(&name);
            model.recovered(&fs, &name);
            self.mounted.push(Mounted { name, fs, model });
        }
    }

    fn check(&self) {
        for here in &self.mounted {
            for (path, node) in &here.model.tree.paths {
                let ino = walk(&here.fs, path).unwrap();
                if let Content::File(data) = &here.model.tree.nodes[*node].content {
                    assert!(contents(&here.fs, ino) == *data, "{}:{path}", here.name);
                }
            }
        }
    }
}

fn boot(graves: &std::path::Path, boots: u8) -> (Host, LossyStorage) {
    let graves = graves.join(boots.to_string());
    let lossy = LossyStorage::new(Arc::new(HostStorage), graves);
    let storage = Arc::new(lossy.clone());
    (Host { storage, boot_id: [boots; 16], background: false }, lossy)
}

impl Model {
    /// Finds the state that a power cut left among those allowed, and takes it for the present.
    fn recovered(&mut self, fs: &Fs, branch: &str) {
        let mut seen = BTreeMap::new();
        observe(fs, "", Ino::ROOT, &mut seen);
        let (first, last) = (&self.versions[0], &self.versions[self.versions.len() - 1]);
        let mut why = format!("names {seen:?} were never so; between {first:?} and {last:?}");
        // Several versions may look alike by their names; their files tell them apart.
        let found = self.versions.iter().rev().find(|version| {
            self.shows(version, fs, &seen)
                && self.contents_fit(version, fs, &seen).map_err(|error| why = error).is_ok()
        });
        let Some(version) = found.cloned() else { panic!("{branch}: {why}") };
        self.tree.paths = version.names.clone();
        for (node, perm) in &version.perms {
            self.tree.nodes[*node].perm = *perm;
        }
        for (path, node) in &version.names {
            let Content::File(_) = &self.tree.nodes[*node].content else { continue };
            let data = contents(fs, seen[path]);
            self.history.insert(*node, vec![data.clone()]);
            self.tree.nodes[*node].content = Content::File(data);
        }
        self.versions = vec![version];
        self.changed_at.clear();
        self.dropped = 0;
    }

    fn contents_fit(
        &self,
        version: &Version,
        fs: &Fs,
        seen: &BTreeMap<String, Ino>,
    ) -> Result<(), String> {
        for (path, node) in &version.names {
            let Content::File(_) = &self.tree.nodes[*node].content else { continue };
            let data = contents(fs, seen[path]);
            let shown = fs.attributes(seen[path]).unwrap().record.size;
            if shown != data.len() as u64 {
                return Err(format!("{path}: size {shown}, but {} bytes to read", data.len()));
            }
            let never = vec![Vec::new()];
            let history = self.history.get(node).unwrap_or(&never);
            check_history(&data, history).map_err(|error| format!("{path}: {error}"))?;
        }
        Ok(())
    }

    /// Whether the observed tree is the one of `version`, with hard links and permissions.
    fn shows(&self, version: &Version, fs: &Fs, seen: &BTreeMap<String, Ino>) -> bool {
        let mut inos: HashMap<usize, Ino> = HashMap::new();
        // A name that leads to a new file again must not pass for one that still leads to the old.
        let mut nodes: HashMap<Ino, usize> = HashMap::new();
        version.names.keys().eq(seen.keys())
            && version.names.iter().all(|(path, node)| {
                let ino = seen[path];
                if *nodes.entry(ino).or_insert(*node) != *node {
                    return false;
                }
                let record = fs.attributes(ino).unwrap().record;
                let dir = self.tree.nodes[*node].content == Content::Dir;
                *inos.entry(*node).or_insert(ino) == ino
                    && (record.kind == FileKind::Directory) == dir
                    && (path.is_empty() || record.perm & 0o777 == version.perms[node] & 0o777)
            })
    }
}

fn observe(fs: &Fs, path: &str, ino: Ino, seen: &mut BTreeMap<String, Ino>) {
    seen.insert(path.to_owned(), ino);
    if fs.attributes(ino).unwrap().record.kind != FileKind::Directory {
        return;
    }
    for name in list(fs, ino) {
        let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
        let child = fs.lookup(ino, name.as_bytes()).unwrap().record.ino;
        observe(fs, &below, child, seen);
    }
}

/// Each byte must be what some state since the last sync had there; with one state, all of it.
fn check_history(data: &[u8], history: &[Vec<u8>]) -> Result<(), String> {
    let least = history.iter().map(Vec::len).min().unwrap();
    let most = history.iter().map(Vec::len).max().unwrap();
    if !(least..=most).contains(&data.len()) {
        return Err(format!("size {} not in {least}..={most}", data.len()));
    }
    for (at, byte) in data.iter().enumerate() {
        if !history.iter().any(|old| old.get(at).copied().unwrap_or(0) == *byte) {
            return Err(format!(
                "byte {at} is {byte}, the synced state has {:?}",
                history[0].get(at)
            ));
        }
    }
    Ok(())
}

fn fill(data: &mut Vec<u8>, offset: u64, len: u64, byte: u8) {
    let end = (offset + len) as usize;
    if data.len() < end {
        data.resize(end, 0);
    }
    data[offset as usize..end].fill(byte);
}

impl Mounted {
    /// Changes a regular file that exists; other paths are left alone.
    fn with_file(&mut self, path: &str, change: impl FnOnce(&Fs, Ino, &mut Vec<u8>)) {
        let Some(node) = self.model.tree.paths.get(path).copied() else { return };
        let Content::File(data) = &mut self.model.tree.nodes[node].content else { return };
        let ino = walk(&self.fs, path).unwrap();
        change(&self.fs, ino, data);
        let found = contents(&self.fs, ino);
        let first = found.iter().zip(data.iter()).position(|(a, b)| a != b);
        let sizes = (found.len(), data.len());
        assert!(found == *data, "{}:{path}: live, sizes {sizes:?}, at {first:?}", self.name);
        self.model.wrote(node);
    }

    fn make(&mut self, path: &str, kind: FileKind) {
        let content = match kind {
            FileKind::Directory => Content::Dir,
            _ => Content::File(Vec::new()),
        };
        let expected = self.model.tree.make(path, content, 0o640);
        let made = walk(&self.fs, parent_of(path)).and_then(|dir| {
            let new = NewFile { kind, perm: 0o640, rdev: 0, symlink: b"" };
            self.fs.make(dir, name_of(path).as_bytes(), &new, Caller { uid: 1, gid: 2 })
        });
        assert_eq!(made.is_ok(), expected, "make {path}: {made:?}");
        if expected {
            let nodes = self.touched(path);
            self.model.changed(&nodes);
        }
    }

    /// The node at `path` and its directory: what a change of that name writes records of.
    fn touched(&self, path: &str) -> Vec<usize> {
        let at = |path: &str| self.model.tree.paths.get(path).copied();
        at(path).into_iter().chain(at(parent_of(path))).collect()
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Create(path) => self.make(path, FileKind::Regular),
            Op::Mkdir(path) => self.make(path, FileKind::Directory),
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
                let end = data.len().min((*offset + *len) as usize);
                if let Some(range) = data.get_mut(*offset as usize..end) {
                    range.fill(0);
                }
            }),
            Op::Extend(path, offset, len) => self.with_file(path, |fs, ino, data| {
                fs.allocate(ino, *offset, *len, AllocateMode::Extend).unwrap();
                data.resize(data.len().max((*offset + *len) as usize), 0);
            }),
            Op::Copy(from, x, to, y, len) => {
                let Some(source) = self.model.tree.file(from).cloned() else { return };
                let Ok(a) = walk(&self.fs, from) else { return };
                let (start, end) = (*x as usize, ((x + len) as usize).min(source.len()));
                self.with_file(to, |fs, ino, data| {
                    if a != ino && start < end {
                        fs.copy_range((a, *x), (ino, *y), *len).unwrap();
                        fill(data, *y, (end - start) as u64, 0);
                        let y = *y as usize;
                        data[y..y + end - start].copy_from_slice(&source[start..end]);
                    }
                });
            }
            Op::Fsync(path) => {
                let Some(node) = self.model.tree.paths.get(path).copied() else { return };
                let ino = walk(&self.fs, path).unwrap();
                let _durable = self.fs.sync(ino).unwrap();
                self.model.synced(node);
            }
            Op::FsyncAll => {
                let _durable = self.fs.sync_everything().unwrap();
                self.model.all_synced();
            }
            Op::Names => {
                let _durable = self.fs.branch.sync_names().unwrap();
                let _durable = self.fs.branch.view().open.reap().unwrap();
                self.model.all_names_durable();
            }
            Op::Seal => {
                self.fs.branch.seal().unwrap();
            }
            Op::Finalize => self.fs.branch.finalize_frozen().unwrap(),
            other => self.apply_name(other),
        }
    }

    fn apply_name(&mut self, op: &Op) {
        let fs = self.fs.clone();
        let place = |path: &str| walk(&fs, parent_of(path));
        let tree = &mut self.model.tree;
        let (paths, expected, result): (Vec<&String>, _, _) = match op {
            Op::Unlink(path) => (
                vec![path],
                tree.unlink(path),
                place(path).and_then(|dir| fs.unlink(dir, name_of(path).as_bytes())),
            ),
            Op::Rename(from, to) => {
                let done = place(from).and_then(|a| {
                    let names = (name_of(from).as_bytes(), name_of(to).as_bytes());
                    fs.rename((a, names.0), (place(to)?, names.1), RenameMode::Replace)
                });
                (vec![from, to], tree.rename(from, to, false), done)
            }
            Op::Link(from, to) => {
                let done = walk(&fs, from)
                    .and_then(|ino| fs.link(ino, place(to)?, name_of(to).as_bytes()).map(|_| ()));
                (vec![to], tree.link(from, to), done)
            }
            Op::Chmod(path, perm) => {
                let set = SetAttributes { perm: Some(*perm), ..SetAttributes::default() };
                let done = walk(&fs, path).and_then(|ino| fs.set_attributes(ino, set).map(|_| ()));
                let node = tree.paths.get(path).copied();
                if let Some(node) = node {
                    tree.nodes[node].perm = *perm;
                }
                (vec![path], node.is_some(), done)
            }
            _ => return,
        };
        assert_eq!(result.is_ok(), expected, "{op:?}: {result:?}");
        if expected {
            let nodes: Vec<usize> = match op {
                Op::Chmod(path, _) => {
                    self.model.tree.paths.get(path).copied().into_iter().collect()
                }
                _ => paths.iter().flat_map(|path| self.touched(path)).collect(),
            };
            self.model.changed(&nodes);
        }
    }
}

fn run(ops: &[Op]) {
    let mut world = World::new();
    for op in ops {
        world.apply(op);
    }
    world.cut(0);
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

    fn a() -> String {
        "a".to_owned()
    }

    fn d() -> String {
        "d".to_owned()
    }

    /// The record of the inode was durable with its new size, the cut of its data was not.
    #[test]
    fn a_size_that_outlived_its_cut_uncovers_nothing() {
        run(&[
            Op::Create(a()),
            Op::Write(a(), 0, 8193, 1),
            Op::Fork,
            Op::Finalize,
            Op::Truncate(a(), 0),
            Op::Mkdir(d()),
            Op::Fsync(d()),
            Op::Cut(0),
            Op::Truncate(a(), 4096),
        ]);
    }

    /// The data file of a file that was never synced outlived the first power cut, and its removal
    /// did not outlive the second: the next file of that inode number had old bytes.
    #[test]
    fn a_leftover_that_was_removed_stays_removed() {
        run(&[
            Op::Create(a()),
            Op::Write(a(), 0, 16385, 1),
            Op::Cut(4_254_865_390_045_375_576),
            Op::Create(d()),
            Op::Fsync(d()),
        ]);
    }

    /// Both are empty, so that only the inode numbers tell which of them the name leads to.
    #[test]
    fn a_name_that_a_new_file_took_over_leads_to_the_old_one_again() {
        run(&[
            Op::Create(a()),
            Op::Link(a(), d()),
            Op::Names,
            Op::Unlink(a()),
            Op::Create(a()),
            Op::Cut(0),
            Op::Write(d(), 0, 1, 1),
            Op::FsyncAll,
        ]);
    }

    #[test]
    fn a_file_renamed_over_after_a_remount_is_old_or_new() {
        run(&[
            Op::Create(a()),
            Op::Write(a(), 0, 1, 1),
            Op::Remount,
            Op::Create(d()),
            Op::Rename(d(), a()),
        ]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 4000, ..ProptestConfig::default() })]
    #[test]
    fn what_was_synced_survives_power_cuts(ops in prop::collection::vec(op(), 1..60)) {
        run(&ops);
    }
}
