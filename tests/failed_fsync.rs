//! An fsync that failed stays failed until the branch is served anew, in process. No mount is needed.
//! `faults.rs` has every call of a longer story fail in turn; here it is about what comes after.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use cowfs::branch::create::create_empty;
use cowfs::branch::fork::Requester;
use cowfs::branch::open::Host;
use cowfs::branch::{Branch, OpenMode};
use cowfs::catalog::Store;
use cowfs::format::{FileKind, Ino};
use cowfs::fs::names::NewFile;
use cowfs::fs::{Caller, Fs, FsError, FsOptions};
use cowfs::fuse::errno::errno_of;
use cowfs::io::fault::{Call, Failure, Fault, FaultStorage};
use cowfs::io::host::HostStorage;

struct Place {
    _dir: tempfile::TempDir,
    store: Arc<Store>,
    storage: FaultStorage,
}

fn by() -> Requester {
    Requester { uid: 0, command: "test".to_owned() }
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::init(&dir.path().join("store")).unwrap());
        create_empty(&store, "main".parse().unwrap(), &by()).unwrap();
        Place { _dir: dir, store, storage: FaultStorage::new(Arc::new(HostStorage)) }
    }

    fn serve(&self, name: &str) -> Arc<Fs> {
        let row = self.store.catalog.require_branch(&name.parse().unwrap()).unwrap();
        let lock = self.store.lock_branch(row.id).unwrap();
        let host =
            Host { storage: Arc::new(self.storage.clone()), boot_id: [7; 16], background: false };
        let mode = OpenMode::ReadWrite;
        let branch = Branch::open_on(&host, self.store.clone(), row, lock, mode).unwrap();
        Fs::new(branch, FsOptions::default())
    }

    /// As SIGKILL and a mount would.
    fn kill_and_serve(&self, fs: Arc<Fs>) -> Arc<Fs> {
        self.storage.inject(None);
        fs.branch.abandon();
        drop(fs);
        self.serve("main")
    }

    fn fail(&self, call: Call, errno: i32, after: u64, for_ever: bool) {
        self.storage.inject(Some(Fault { call, failure: Failure::Errno(errno), after, for_ever }));
    }
}

fn make(fs: &Fs, name: &str) -> Result<Ino, FsError> {
    let new = NewFile { kind: FileKind::Regular, perm: 0o600, rdev: 0, symlink: b"" };
    let made = fs.make(Ino::ROOT, name.as_bytes(), &new, Caller { uid: 0, gid: 0 })?;
    Ok(made.record.ino)
}

fn read(fs: &Fs, name: &str) -> Result<Vec<u8>, FsError> {
    let ino = fs.lookup(Ino::ROOT, name.as_bytes())?.record.ino;
    let mut buf = Vec::new();
    fs.read(ino, 0, 1 << 20, &mut buf)?;
    Ok(buf)
}

#[track_caller]
fn is_eio<T>(result: Result<T, FsError>, what: &str) {
    let Err(error) = result else { panic!("{what} succeeded") };
    assert_eq!(errno_of(&error).code(), libc::EIO, "{what}: {error}");
}

/// What `status` tells of it: files, and whether the journal is.
fn latched(fs: &Fs) -> (usize, bool) {
    let stats = fs.branch.stats();
    (stats.latched_files, stats.journal_latched)
}

#[test]
fn a_failed_fsync_stays_failed_until_a_remount() {
    let place = Place::new();
    let fs = place.serve("main");
    let (bad, good) = (make(&fs, "bad").unwrap(), make(&fs, "good").unwrap());
    for ino in [bad, good] {
        fs.write(ino, 0, &[1; 9000]).unwrap();
        let _durable = fs.sync(ino).unwrap();
        fs.write(ino, 4000, &[2; 9000]).unwrap();
    }
    // The host fails once. Linux drops the dirty pages then, so that the next fsync would succeed.
    place.fail(Call::SyncData, libc::EIO, 0, false);
    is_eio(fs.sync(bad), "the first fsync");
    assert!(place.storage.struck());
    is_eio(fs.sync(bad), "the second fsync, with nothing written since");
    fs.write(bad, 0, &[3; 100]).unwrap();
    is_eio(fs.sync(bad), "an fsync of what was written later");
    is_eio(fs.sync_everything(), "a sync of everything");
    assert_eq!(latched(&fs), (1, false));
    // Other files are not concerned.
    let _durable = fs.sync(good).unwrap();
    // A fork freezes the layer with the bad file in it; the parent must not forget.
    fs.branch.fork("child".parse().unwrap(), &by()).unwrap();
    is_eio(fs.sync(bad), "an fsync after a fork");
    fs.write(bad, 0, &[4; 100]).unwrap();
    is_eio(fs.sync(bad), "an fsync of what was written after the fork");
    assert_ne!(latched(&fs).0, 0);
    let fs = place.kill_and_serve(fs);
    assert_eq!(latched(&fs), (0, false));
    let ino = fs.lookup(Ino::ROOT, b"bad").unwrap().record.ino;
    fs.write(ino, 0, &[5; 100]).unwrap();
    let _durable = fs.sync(ino).unwrap();
    assert_eq!(read(&fs, "bad").unwrap()[..101], [&[5; 100][..], &[1]].concat());
}

#[test]
fn a_failed_sync_of_the_journal_fails_every_later_one() {
    let place = Place::new();
    let fs = place.serve("main");
    let first = make(&fs, "first").unwrap();
    let _durable = fs.sync(first).unwrap();
    let second = make(&fs, "second").unwrap();
    // Names only: the one thing to be synced is the journal.
    place.fail(Call::SyncData, libc::EIO, 0, false);
    is_eio(fs.sync_dir(), "the fsync of a directory");
    is_eio(fs.sync_dir(), "the second");
    is_eio(fs.sync(second), "the fsync of a new file");
    assert!(latched(&fs).1);
    let fs = place.kill_and_serve(fs);
    let _durable = fs.sync_dir().unwrap();
    assert_eq!(read(&fs, "second").unwrap(), b"");
}

/// What is left to tidy up when everything is durable is for the next mount, and no loss.
#[test]
fn an_end_without_room_to_tidy_up_is_durable() {
    for call in [Call::Rename, Call::Remove] {
        let place = Place::new();
        let fs = place.serve("main");
        let ino = make(&fs, "a").unwrap();
        fs.write(ino, 0, &[b'1'; 9000]).unwrap();
        // What was the open layer until now has no index yet.
        fs.branch.fork("child".parse().unwrap(), &by()).unwrap();
        fs.write(ino, 4096, &[b'2'; 100]).unwrap();
        place.fail(call, libc::ENOSPC, 0, true);
        fs.branch.close().unwrap_or_else(|error| panic!("{call:?}: {error}"));
        assert!(place.storage.struck(), "{call:?}");
        place.storage.inject(None);
        drop(fs);

        let mut wanted = vec![b'1'; 9000];
        wanted[4096..4196].fill(b'2');
        let fs = place.serve("main");
        assert_eq!(read(&fs, "a").unwrap(), wanted, "{call:?}");
        fs.branch.close().unwrap();
        drop(fs);
        assert_eq!(read(&place.serve("child"), "a").unwrap(), vec![b'1'; 9000], "{call:?}");
    }
}

/// But what could not be synced is one.
#[test]
fn an_end_that_cannot_sync_says_so() {
    let place = Place::new();
    let fs = place.serve("main");
    let ino = make(&fs, "a").unwrap();
    fs.write(ino, 0, &[b'1'; 9000]).unwrap();
    place.fail(Call::SyncData, libc::EIO, 0, false);
    fs.branch.close().unwrap_err();
}
