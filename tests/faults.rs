//! A fixed story of operations on the engine, in process, in which one call to the host fails:
//! each call in turn, once or from then on, with each errno that matters. Whatever was answered
//! with success must be there after the server is killed, whatever was synced after a power cut,
//! and a fork that was made before goes on untouched. No mount is needed.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

use std::collections::BTreeMap;
use std::path::Path;
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
use cowfs::io::Storage;
use cowfs::io::fault::{Call, Fault, FaultStorage};
use cowfs::io::host::HostStorage;
use cowfs::io::lossy::LossyStorage;

/// The states that a file may be in: the one last answered for comes first.
type Versions = Vec<Option<Vec<u8>>>;

struct Story {
    fs: Arc<Fs>,
    faults: FaultStorage,
    /// What may be there once the server was killed: one state, or more after a failed operation.
    killed: BTreeMap<&'static str, Versions>,
    /// What may be there after a power cut.
    cut: BTreeMap<&'static str, Versions>,
    errors: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Ending {
    Killed,
    PowerCut,
}

fn by() -> Requester {
    Requester { uid: 0, command: "test".to_owned() }
}

fn open(host: &Host, store: &Arc<Store>, name: &str) -> Arc<Fs> {
    let row = store.catalog.branch(&name.parse().unwrap()).unwrap().unwrap();
    let lock = store.lock_branch(row.id).unwrap();
    let branch = Branch::open_on(host, store.clone(), row, lock, OpenMode::ReadWrite).unwrap();
    let fs = Fs::new(branch, FsOptions::default());
    fs.drop_orphans().unwrap();
    fs
}

fn host(storage: Arc<dyn Storage>, boot: u8) -> Host {
    Host { storage, boot_id: [boot; 16], background: false }
}

fn contents(fs: &Fs, name: &str) -> Option<Vec<u8>> {
    let ino = fs.lookup(Ino::ROOT, name.as_bytes()).ok()?.record.ino;
    let mut buf = Vec::new();
    fs.read(ino, 0, 1 << 20, &mut buf).unwrap();
    Some(buf)
}

fn written(old: &[u8], offset: usize, len: usize, byte: u8) -> Vec<u8> {
    let mut new = old.to_vec();
    new.resize(new.len().max(offset + len), 0);
    new[offset..offset + len].fill(byte);
    new
}

impl Story {
    fn now(&self, name: &str) -> Vec<u8> {
        self.killed[name][0].clone().unwrap_or_default()
    }

    fn ino(&self, name: &str) -> Result<Ino, FsError> {
        Ok(self.fs.lookup(Ino::ROOT, name.as_bytes())?.record.ino)
    }

    /// Notes how an operation went that makes `change` of what is there.
    fn done(
        &mut self,
        name: &'static str,
        outcome: Result<(), FsError>,
        change: impl Fn(Option<&Vec<u8>>) -> Option<Vec<u8>>,
    ) {
        let killed = self.killed.entry(name).or_insert_with(|| vec![None]);
        let changed: Versions = killed.iter().map(|old| change(old.as_ref())).collect();
        self.cut.entry(name).or_insert_with(|| vec![None]).extend(changed.iter().cloned());
        match outcome {
            Ok(()) => *killed = changed,
            Err(error) => {
                self.errors.push(format!("{name}: {error}"));
                killed.extend(changed);
            }
        }
    }

    fn create(&mut self, name: &'static str) {
        let new = NewFile { kind: FileKind::Regular, perm: 0o640, rdev: 0, symlink: b"" };
        let made = self.fs.make(Ino::ROOT, name.as_bytes(), &new, Caller { uid: 1, gid: 2 });
        self.done(name, made.map(drop), |_| Some(Vec::new()));
    }

    fn write(&mut self, name: &'static str, offset: usize, len: usize, byte: u8) {
        let outcome = self
            .ino(name)
            .and_then(|ino| self.fs.write(ino, offset as u64, &vec![byte; len]).map(drop));
        self.done(name, outcome, |old| old.map(|old| written(old, offset, len, byte)));
    }

    fn truncate(&mut self, name: &'static str, size: usize) {
        let set = SetAttributes { size: Some(size as u64), ..SetAttributes::default() };
        let outcome = self.ino(name).and_then(|ino| self.fs.set_attributes(ino, set).map(drop));
        self.done(name, outcome, |old| {
            let mut new = old?.clone();
            new.resize(size, 0);
            Some(new)
        });
    }

    fn punch(&mut self, name: &'static str, offset: usize, len: usize) {
        let outcome = self.ino(name).and_then(|ino| {
            self.fs.allocate(ino, offset as u64, len as u64, AllocateMode::PunchHole)
        });
        self.done(name, outcome, |old| {
            let mut new = old?.clone();
            let end = new.len().min(offset + len);
            new[offset.min(end)..end].fill(0);
            Some(new)
        });
    }

    fn fsync(&mut self, name: &'static str) {
        match self.ino(name).and_then(|ino| self.fs.sync(ino)) {
            // What failed operations before may have left is synced with the rest.
            Ok(_durable) => {
                let synced = self.killed[name].clone();
                self.cut.insert(name, synced);
            }
            Err(error) => self.errors.push(format!("fsync {name}: {error}")),
        }
    }

    fn rename(&mut self, from: &'static str, to: &'static str) {
        let moved = self.killed[from].clone();
        let names = ((Ino::ROOT, from.as_bytes()), (Ino::ROOT, to.as_bytes()));
        let outcome = self.fs.rename(names.0, names.1, RenameMode::Replace);
        let done = outcome.is_ok();
        self.done(to, outcome, |_| None);
        let target = self.killed.get_mut(to).unwrap();
        if done {
            target.clone_from(&moved);
        } else {
            target.extend(moved.iter().cloned());
        }
        // The name may be durable and the contents not.
        let unsynced = self.cut[from].clone();
        self.cut.get_mut(to).unwrap().extend(unsynced);
        let gone = self.killed.get_mut(from).unwrap();
        if done {
            *gone = vec![None];
        } else {
            gone.push(None);
        }
        self.cut.get_mut(from).unwrap().push(None);
    }

    fn unlink(&mut self, name: &'static str) {
        let outcome = self.fs.unlink(Ino::ROOT, name.as_bytes());
        self.done(name, outcome, |_| None);
    }

    fn upkeep(&mut self, what: &str, outcome: Result<(), branch::BranchError>) {
        if let Err(error) = outcome {
            self.errors.push(format!("{what}: {error}"));
        }
    }

    fn tell(&mut self) {
        self.write("a", 5000, 3000, b'B');
        self.truncate("a", 6000);
        self.write("a", 20_000, 10_000, b'C');
        self.fsync("a");
        self.create("b");
        self.write("b", 0, 9000, b'D');
        self.fsync("b");
        self.rename("b", "c");
        let synced = self.fs.branch.sync_names().map(drop);
        self.upkeep("names", synced);
        let sealed = self.fs.branch.seal().map(drop);
        self.upkeep("seal", sealed);
        self.punch("a", 4000, 5000);
        let finalized = self.fs.branch.finalize_frozen();
        self.upkeep("finalize", finalized);
        self.write("a", 100, 50, b'E');
        self.fsync("a");
        self.unlink("c");
        let synced = self.fs.branch.sync_names().map(drop);
        self.upkeep("names", synced);
        let reaped = self.fs.branch.view().open.reap().map(drop).map_err(Into::into);
        self.upkeep("reap", reaped);
        self.write("a", 40_000, 100, b'F');
        let synced = self.fs.branch.sync_all().map(drop);
        self.upkeep("sync", synced);
    }
}

/// Whether each byte, and the size, are those of some version; a failed write may be half there.
fn fits(found: Option<&Vec<u8>>, versions: &Versions) -> Result<(), String> {
    let Some(found) = found else {
        let may_be_absent = versions.iter().any(Option::is_none);
        return if may_be_absent { Ok(()) } else { Err("is gone".to_owned()) };
    };
    let known: Vec<&Vec<u8>> = versions.iter().flatten().collect();
    if !(known.iter().map(|v| v.len()).min() <= Some(found.len())
        && known.iter().map(|v| v.len()).max() >= Some(found.len()))
    {
        return Err(format!("size {}", found.len()));
    }
    for (at, byte) in found.iter().enumerate() {
        if !known.iter().any(|v| v.get(at).copied().unwrap_or(0) == *byte) {
            return Err(format!("byte {at} is {byte}, answered for: {:?}", known[0].get(at)));
        }
    }
    Ok(())
}

/// Tells the story with `fault`; returns whether the fault happened and which errors came of it.
fn run(dir: &Path, fault: Option<Fault>, ending: Ending) -> (bool, Vec<String>) {
    let store = Arc::new(Store::init(&dir.join("store")).unwrap());
    branch::create::create_empty(&store, "main".parse().unwrap(), &by()).unwrap();
    let lossy = LossyStorage::new(Arc::new(HostStorage), dir.join("graves"));
    let faults = FaultStorage::new(Arc::new(lossy.clone()));
    let fs = open(&host(Arc::new(faults.clone()), 1), &store, "main");
    let (killed, cut) = (BTreeMap::new(), BTreeMap::new());
    let mut story = Story { fs, faults, killed, cut, errors: Vec::new() };
    story.create("a");
    story.write("a", 0, 20_000, b'A');
    story.fsync("a");
    let at_fork = story.now("a");
    story.fs.branch.fork("child".parse().unwrap(), &by()).unwrap();
    assert_eq!(story.errors, Vec::<String>::new());

    story.faults.inject(fault);
    story.tell();
    let struck = story.faults.struck();
    let Story { fs, errors, killed, cut, .. } = story;
    fs.branch.abandon();
    drop(fs);
    let boot = match ending {
        Ending::Killed => 1,
        Ending::PowerCut => {
            // Everything that can be lost is.
            lossy.cut(&mut |_| 0).unwrap();
            2
        }
    };
    let host = host(Arc::new(HostStorage), boot);
    let allowed = if ending == Ending::Killed { &killed } else { &cut };
    let fs = open(&host, &store, "main");
    for (name, versions) in allowed {
        let found = contents(&fs, name);
        if let Err(why) = fits(found.as_ref(), versions) {
            panic!("{fault:?}, {ending:?}: {name} {why}; errors: {errors:#?}");
        }
    }
    let child = open(&host, &store, "child");
    assert!(contents(&child, "a") == Some(at_fork), "{fault:?}, {ending:?}: the child changed");
    for fs in [fs, child] {
        fs.branch.close().unwrap();
    }
    let damage =
        cowfs::check::check(&store, &cowfs::check::Options::default(), &mut |_| ()).unwrap().damage;
    assert!(damage.is_empty(), "{fault:?}, {ending:?}: {damage:?}");
    (struck, errors)
}

/// Fails the first, the second, .. such call until the story has no more of them.
fn each(call: Call, errnos: &[i32]) {
    for errno in errnos {
        for for_ever in [false, true] {
            for ending in [Ending::Killed, Ending::PowerCut] {
                let mut after = 0;
                loop {
                    let dir = tempfile::tempdir().unwrap();
                    let fault = Fault { call, errno: *errno, after, for_ever };
                    let (struck, _errors) = run(dir.path(), Some(fault), ending);
                    if !struck {
                        break;
                    }
                    after += 1;
                }
                assert!(after > 0, "{call:?}: the story has no such call");
            }
        }
    }
}

#[test]
fn without_a_fault_nothing_fails() {
    for ending in [Ending::Killed, Ending::PowerCut] {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(run(dir.path(), None, ending), (false, Vec::new()));
    }
}

#[test]
fn opening_fails() {
    each(Call::Open, &[libc::EIO, libc::EMFILE, libc::ENOSPC]);
}

#[test]
fn reading_fails() {
    each(Call::Read, &[libc::EIO]);
}

#[test]
fn writing_fails() {
    each(Call::Write, &[libc::EIO, libc::ENOSPC, libc::EDQUOT]);
}

#[test]
fn changing_a_length_fails() {
    each(Call::SetLen, &[libc::EIO, libc::ENOSPC]);
}

#[test]
fn syncing_data_fails() {
    each(Call::SyncData, &[libc::EIO, libc::ENOSPC]);
}

#[test]
fn syncing_a_directory_fails() {
    each(Call::SyncDir, &[libc::EIO]);
}

#[test]
fn allocating_fails() {
    each(Call::Allocate, &[libc::EIO, libc::ENOSPC]);
}

#[test]
fn renaming_fails() {
    each(Call::Rename, &[libc::EIO, libc::ENOSPC]);
}

#[test]
fn removing_fails() {
    each(Call::Remove, &[libc::EIO]);
}
