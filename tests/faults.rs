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
use cowfs::io::fault::{Call, Failure, Fault, FaultStorage};
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
    try_open(host, store, name).unwrap()
}

fn try_open(host: &Host, store: &Arc<Store>, name: &str) -> Result<Arc<Fs>, String> {
    let row = store.catalog.branch(&name.parse().unwrap()).unwrap().unwrap();
    let lock = store.lock_branch(row.id).unwrap();
    let branch = Branch::open_on(host, store.clone(), row, lock, OpenMode::ReadWrite)
        .map_err(|error| error.to_string())?;
    let fs = Fs::new(branch, FsOptions::default());
    if let Err(error) = fs.drop_orphans() {
        // As the serving process does, which ends then.
        fs.branch.abandon();
        return Err(error.to_string());
    }
    Ok(fs)
}

fn host(storage: Arc<dyn Storage>, boot: u8) -> Host {
    Host { storage, boot_id: [boot; 16], background: false }
}

fn contents(fs: &Fs, name: &str) -> Option<Vec<u8>> {
    match read(fs, name) {
        Ok(found) => Some(found),
        Err(FsError::NotFound) => None,
        Err(error) => panic!("{name}: {error}"),
    }
}

fn read(fs: &Fs, name: &str) -> Result<Vec<u8>, FsError> {
    let ino = fs.lookup(Ino::ROOT, name.as_bytes())?.record.ino;
    let mut buf = Vec::new();
    fs.read(ino, 0, 1 << 20, &mut buf)?;
    Ok(buf)
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

    /// Whatever fails, nothing else is served than what is there.
    fn read(&mut self, name: &'static str) {
        match read(&self.fs, name) {
            Ok(found) => {
                let served = fits(Some(&found), &self.killed[name]);
                served.unwrap_or_else(|why| panic!("{name} is served wrong: {why}"));
            }
            Err(error) => self.errors.push(format!("reading {name}: {error}")),
        }
    }

    /// Into `to`, which is new.
    fn copy(&mut self, from: &'static str, to: &'static str) {
        self.create(to);
        let inos = self.ino(from).and_then(|from| Ok((from, self.ino(to)?)));
        let copied = inos.and_then(|(from, to)| self.fs.copy_range((from, 0), (to, 0), 1 << 20));
        // Less than asked for is an answer, too.
        let most = copied.as_ref().map_or(usize::MAX, |len| *len as usize);
        let may = self.killed[from].iter().flatten();
        let may: Versions = may.map(|old| Some(old[..most.min(old.len())].to_vec())).collect();
        self.cut.get_mut(to).unwrap().extend(may.iter().cloned());
        let killed = self.killed.get_mut(to).unwrap();
        match copied {
            Ok(_) => *killed = may,
            Err(error) => {
                killed.extend(may);
                self.errors.push(format!("copying {from}: {error}"));
            }
        }
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
        self.read("a");
        self.copy("a", "d");
        self.punch("a", 4000, 5000);
        let finalized = self.fs.branch.finalize_frozen();
        self.upkeep("finalize", finalized);
        self.read("a");
        self.copy("c", "e");
        self.fsync("e");
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

/// What a story leaves behind.
struct Left {
    store: Arc<Store>,
    /// The boot that comes after.
    boot: u8,
    allowed: BTreeMap<&'static str, Versions>,
    child: Vec<u8>,
    struck: bool,
    errors: Vec<String>,
}

/// Tells the story with `fault`; returns whether the fault happened and which errors came of it.
fn run(dir: &Path, fault: Option<Fault>, ending: Ending) -> (bool, Vec<String>) {
    let left = tell(dir, fault, ending);
    left.is_allowed(&format!("{fault:?}, {ending:?}"));
    (left.struck, left.errors)
}

fn tell(dir: &Path, fault: Option<Fault>, ending: Ending) -> Left {
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
    let (boot, allowed) = match ending {
        Ending::Killed => (1, killed),
        Ending::PowerCut => {
            // Everything that can be lost is.
            lossy.cut(&mut |_| 0).unwrap();
            (2, cut)
        }
    };
    Left { store, boot, allowed, child: at_fork, struck, errors }
}

impl Left {
    /// The branch on a sound host shows what it may, the child what it had, and the store is sound.
    fn is_allowed(&self, what: &str) {
        let host = host(Arc::new(HostStorage), self.boot);
        let fs = open(&host, &self.store, "main");
        for (name, versions) in &self.allowed {
            if let Err(why) = fits(contents(&fs, name).as_ref(), versions) {
                panic!("{what}: {name} {why}; errors: {:#?}", self.errors);
            }
        }
        let child = open(&host, &self.store, "child");
        assert!(contents(&child, "a").as_ref() == Some(&self.child), "{what}: the child changed");
        for fs in [fs, child] {
            fs.branch.close().unwrap();
        }
        let options = cowfs::check::Options::default();
        let damage = cowfs::check::check(&self.store, &options, &mut |_| ()).unwrap().damage;
        assert!(damage.is_empty(), "{what}: {damage:?}");
    }

    /// Serves `main` once more with `fault`, to be killed: opening may fail, what is read may not
    /// be wrong. Returns whether the fault happened.
    fn recover_with(&self, fault: Fault) -> bool {
        let faults = FaultStorage::new(Arc::new(HostStorage));
        faults.inject(Some(fault));
        if let Ok(fs) = try_open(&host(Arc::new(faults.clone()), self.boot), &self.store, "main") {
            for (name, versions) in &self.allowed {
                if let Ok(found) = read(&fs, name)
                    && let Err(why) = fits(Some(&found), versions)
                {
                    panic!("{fault:?} while it is recovered: {name} is served wrong: {why}");
                }
            }
            fs.branch.abandon();
        }
        faults.struck()
    }

    /// Left in order, served again, changed with nothing synced, and killed.
    fn is_taken_up_again(&mut self) {
        let host = host(Arc::new(HostStorage), self.boot);
        open(&host, &self.store, "main").branch.close().unwrap();
        let fs = open(&host, &self.store, "main");
        let ino = fs.lookup(Ino::ROOT, b"a").unwrap().record.ino;
        fs.write(ino, 50_000, &[b'G'; 100]).unwrap();
        let now = contents(&fs, "a");
        self.allowed.insert("a", vec![now]);
        fs.branch.abandon();
    }
}

/// Fails the first, the second, .. such call until the story has no more of them.
fn each(call: Call, errnos: &[i32]) {
    let failures: Vec<Failure> = errnos.iter().copied().map(Failure::Errno).collect();
    each_way(call, &failures);
}

fn each_way(call: Call, failures: &[Failure]) {
    for failure in failures {
        for for_ever in [false, true] {
            for ending in [Ending::Killed, Ending::PowerCut] {
                let mut after = 0;
                loop {
                    let dir = tempfile::tempdir().unwrap();
                    let fault = Fault { call, failure: *failure, after, for_ever };
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

#[test]
fn writing_and_reading_stop_halfway() {
    let then = Failure::ShortThen;
    each_way(Call::Write, &[Failure::Short, then(libc::ENOSPC), then(libc::EIO)]);
    each_way(Call::Read, &[Failure::Short, then(libc::EIO)]);
}

#[test]
fn looking_at_a_file_fails() {
    each(Call::Metadata, &[libc::EIO]);
}

#[test]
fn looking_for_holes_fails() {
    each(Call::Seek, &[libc::EIO]);
}

/// What recovery does not see it must not take for absent: the logs, an index, a data file.
#[test]
fn each_call_of_a_recovery_fails() {
    let calls = [
        (Call::Open, libc::EMFILE),
        (Call::Read, libc::EIO),
        (Call::Write, libc::ENOSPC),
        (Call::SetLen, libc::EIO),
        (Call::SyncData, libc::EIO),
        (Call::SyncDir, libc::EIO),
        (Call::Allocate, libc::ENOSPC),
        (Call::Remove, libc::EIO),
        (Call::Metadata, libc::EIO),
        (Call::List, libc::EIO),
    ];
    let mut met = BTreeMap::new();
    let endings = [(Ending::Killed, false), (Ending::Killed, true), (Ending::PowerCut, false)];
    for ((call, errno), (ending, again)) in
        calls.into_iter().flat_map(|call| endings.map(|ending| (call, ending)))
    {
        // Once: what the rest of the recovery makes of it is what matters.
        for after in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let mut left = tell(dir.path(), None, ending);
            if again {
                left.is_taken_up_again();
            }
            let failure = Failure::Errno(errno);
            let fault = Fault { call, failure, after, for_ever: false };
            let struck = left.recover_with(fault);
            left.is_allowed(&format!("{fault:?} in recovery, {ending:?}, again: {again}"));
            if !struck {
                break;
            }
            *met.entry(format!("{call:?}")).or_insert(0) += 1;
        }
    }
    for call in ["Open", "Read", "Write", "SyncDir", "Metadata", "List"] {
        assert!(met.contains_key(call), "no {call} in any recovery: {met:?}");
    }
}
