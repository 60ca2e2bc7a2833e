//! What goes on its way to the disk before somebody waits for it, in process. No mount is needed. Takes 1 s.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cowfs::branch::create::create_empty;
use cowfs::branch::fork::Requester;
use cowfs::branch::open::Host;
use cowfs::branch::{Branch, OpenMode};
use cowfs::catalog::Store;
use cowfs::format::{FileKind, Ino};
use cowfs::fs::names::NewFile;
use cowfs::fs::{Caller, Fs, FsOptions};
use cowfs::io::fault::{Call, Failure, Fault, FaultStorage};
use cowfs::io::host::HostStorage;

/// What is between two syncs of a series, at most.
const PAUSE_MAX: Duration = Duration::from_millis(250);
const NONE: [u64; 0] = [];

/// Has `story` happen so quickly that no pause of it is longer than those of a series, on however busy a machine.
fn quickly(story: impl Fn()) {
    for _ in 0..50 {
        let start = Instant::now();
        // What it finds on the way counts only then.
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&story));
        if start.elapsed() < PAUSE_MAX {
            return found.unwrap_or_else(|why| std::panic::resume_unwind(why));
        }
    }
    panic!("this machine is too busy to tell");
}

struct Place {
    _dir: tempfile::TempDir,
    storage: FaultStorage,
    fs: Arc<Fs>,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::init(&dir.path().join("store")).unwrap());
        let by = Requester { uid: 0, command: "test".to_owned() };
        create_empty(&store, "main".parse().unwrap(), &by).unwrap();
        let row = store.catalog.require_branch(&"main".parse().unwrap()).unwrap();
        let lock = store.lock_branch(row.id).unwrap();
        let storage = FaultStorage::new(Arc::new(HostStorage));
        let host = Host { storage: Arc::new(storage.clone()), boot_id: [7; 16], background: false };
        let branch = Branch::open_on(&host, store.clone(), row, lock, OpenMode::ReadWrite).unwrap();
        Place { _dir: dir, storage, fs: Fs::new(branch, FsOptions::default()) }
    }

    fn make(&self, dir: Ino, name: &str, kind: FileKind) -> Ino {
        let new = NewFile { kind, perm: 0o700, rdev: 0, symlink: b"" };
        let by = Caller { uid: 0, gid: 0 };
        self.fs.make(dir, name.as_bytes(), &new, by).unwrap().record.ino
    }

    /// A file with a few pages that are not synced.
    fn written(&self, dir: Ino, name: &str) -> Ino {
        let ino = self.make(dir, name, FileKind::Regular);
        self.fs.write(ino, 0, &[1; 12_000]).unwrap();
        ino
    }

    fn sync(&self, ino: Ino) {
        let _durable = self.fs.sync(ino).unwrap();
    }

    /// Of which files something was written out since the last call.
    fn written_out(&self) -> Vec<u64> {
        let mut found = self.storage.take_write_outs();
        found.sort_unstable();
        found
    }

    /// The inodes of the host that hold these files.
    fn host(&self, files: &[Ino]) -> Vec<u64> {
        let view = self.fs.branch.view();
        let path = |ino: &Ino| view.data.path(view.open.id, *ino);
        let mut found: Vec<u64> =
            files.iter().map(|ino| path(ino).metadata().unwrap().ino()).collect();
        found.sort_unstable();
        found
    }
}

#[test]
fn the_second_sync_of_a_series_has_all_that_waits_go_on_its_way() {
    quickly(|| {
        let place = Place::new();
        let files: Vec<Ino> = (0..8).map(|n| place.written(Ino::ROOT, &format!("f{n}"))).collect();
        assert_eq!(place.written_out(), NONE, "too little for a batch");
        place.sync(files[0]);
        assert_eq!(place.written_out(), NONE, "one file may be all");
        place.sync(files[1]);
        assert_eq!(place.written_out(), place.host(&files[1..]));
        for ino in &files[2..] {
            place.sync(*ino);
        }
        assert_eq!(place.written_out(), NONE, "each once");
        // And again, for what is written again.
        place.fs.write(files[0], 8192, &[2; 100]).unwrap();
        place.fs.write(files[1], 8192, &[2; 100]).unwrap();
        place.sync(files[1]);
        assert_eq!(place.written_out(), place.host(&files[..2]));
    });
}

/// A sync waits for what goes on its way before it.
#[test]
fn what_is_too_much_for_one_sync_goes_with_the_next() {
    quickly(|| {
        let place = Place::new();
        let contents = vec![1; 200 << 10];
        let mut files = Vec::new();
        for n in 0..100 {
            let ino = place.make(Ino::ROOT, &format!("f{n}"), FileKind::Regular);
            place.fs.write(ino, 0, &contents).unwrap();
            files.push(ino);
        }
        place.sync(files[0]);
        place.sync(files[1]);
        let first = place.written_out().len();
        assert!((80..=85).contains(&first), "16 MiB are 82 files, not {first}");
        place.sync(files[2]);
        assert_eq!(place.written_out().len(), 99 - first);
    });
}

#[test]
fn a_file_of_the_parent_is_written_out_with_a_series_as_any() {
    quickly(|| {
        let place = Place::new();
        let files: Vec<Ino> = (0..8).map(|n| place.written(Ino::ROOT, &format!("f{n}"))).collect();
        let by = Requester { uid: 0, command: "test".to_owned() };
        place.fs.branch.fork("child".parse().unwrap(), &by).unwrap();
        for ino in &files {
            place.fs.write(*ino, 8192, &[2; 100]).unwrap();
        }
        place.written_out();
        place.sync(files[0]);
        place.sync(files[1]);
        assert_eq!(place.written_out(), place.host(&files[1..]));
        for ino in &files[2..] {
            place.sync(*ino);
        }
        // They own something here now, and are clean; so many were synced since that they are not in turns.
        place.fs.write(files[7], 8192, &[3; 100]).unwrap();
        place.sync(files[0]);
        place.sync(files[1]);
        assert_eq!(place.written_out(), NONE, "a sync of what is clean says nothing");
    });
}

#[test]
fn syncs_of_one_file_and_single_syncs_leave_the_others_alone() {
    let place = Place::new();
    let (log, other) = (place.written(Ino::ROOT, "log"), place.written(Ino::ROOT, "other"));
    let _waiting = place.written(Ino::ROOT, "waiting");
    for _ in 0..3 {
        place.sync(log);
        place.fs.write(log, 0, &[3; 100]).unwrap();
    }
    std::thread::sleep(PAUSE_MAX + Duration::from_millis(20));
    place.sync(other);
    assert_eq!(place.written_out(), NONE);
}

/// The WAL is on its way with its commit, and what queries spill mostly never is.
#[test]
fn wal_and_what_queries_spill_do_not_go_with_a_series() {
    quickly(|| {
        let place = Place::new();
        let wal = place.make(Ino::ROOT, "pg_wal", FileKind::Directory);
        let base = place.make(Ino::ROOT, "base", FileKind::Directory);
        let spill = place.make(base, "pgsql_tmp", FileKind::Directory);
        let segment = place.written(wal, "000000010000000000000001");
        let _spilt = place.written(spill, "pgsql_tmp1.0");
        let _gone = place.written(Ino::ROOT, "gone");
        place.fs.unlink(Ino::ROOT, b"gone").unwrap();
        let (one, two) = (place.written(Ino::ROOT, "one"), place.written(Ino::ROOT, "two"));
        let three = place.written(Ino::ROOT, "three");
        place.sync(one);
        // A commit in between neither continues the series nor ends it.
        place.sync(segment);
        assert_eq!(place.written_out(), NONE);
        place.fs.write(segment, 0, &vec![4; 200 << 10]).unwrap();
        place.sync(two);
        assert_eq!(place.written_out(), place.host(&[two, three]));
        // Nor does the series take from the WAL what is due soon.
        place.fs.write(segment, 200 << 10, &vec![4; 60 << 10]).unwrap();
        assert_eq!(place.written_out(), place.host(&[segment]));
    });
}

/// Pages for which the host finds no place may be gone, and an fsync would find nothing to write.
#[test]
fn what_could_not_be_written_out_fails_the_fsync() {
    let place = Place::new();
    let (bad, good) = (place.written(Ino::ROOT, "bad"), place.written(Ino::ROOT, "good"));
    place.sync(good);
    let failure = Failure::Errno(libc::EIO);
    let call = Call::WriteOut;
    place.storage.inject(Some(Fault { call, failure, after: 0, for_ever: false }));
    place.fs.write(bad, 0, &vec![2; 300 << 10]).unwrap();
    assert!(place.storage.struck());
    for _ in 0..2 {
        let failed = place.fs.sync(bad).map(|_| ());
        assert!(failed.is_err(), "{failed:?}");
    }
    place.fs.write(good, 0, &[2; 100]).unwrap();
    place.sync(good);
    assert_eq!(place.fs.branch.stats().latched_files, 1);
}
