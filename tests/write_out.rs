//! What goes on its way to the disk before somebody waits for it, in process. No mount is needed. Takes 1 s.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use cowfs::branch::create::create_empty;
use cowfs::branch::fork::Requester;
use cowfs::branch::open::Host;
use cowfs::branch::{Branch, OpenMode};
use cowfs::catalog::Store;
use cowfs::format::{FileKind, Ino};
use cowfs::fs::names::NewFile;
use cowfs::fs::{Caller, Fs, FsOptions};
use cowfs::io::fault::FaultStorage;
use cowfs::io::host::HostStorage;

/// Longer than what is between two syncs of a series.
const A_PAUSE: Duration = Duration::from_millis(100);
const NONE: [u64; 0] = [];

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
        self.fs.write(ino, 0, &[1; 20_000]).unwrap();
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
    let place = Place::new();
    let files: Vec<Ino> = (0..6).map(|n| place.written(Ino::ROOT, &format!("f{n}"))).collect();
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
    place.fs.write(files[3], 8192, &[2; 100]).unwrap();
    place.fs.write(files[4], 8192, &[2; 100]).unwrap();
    place.sync(files[4]);
    assert_eq!(place.written_out(), place.host(&files[3..5]));
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
    std::thread::sleep(A_PAUSE);
    place.sync(other);
    assert_eq!(place.written_out(), NONE);
    // A sync of what is clean says nothing.
    std::thread::sleep(A_PAUSE);
    place.sync(other);
    place.sync(log);
    assert_eq!(place.written_out(), NONE);
}

/// The WAL is on its way with its commit, and what queries spill mostly never is.
#[test]
fn wal_and_what_queries_spill_do_not_go_with_a_series() {
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
    place.fs.write(segment, 0, &[4; 100]).unwrap();
    place.sync(two);
    assert_eq!(place.written_out(), place.host(&[two, three]));
}
