//! A fork's first mount removes what the parent's server left behind, also when it is cut short. In
//! process, with writes to the host that fail in the midst of it; `scripts/crash-points` kills there.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

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

/// What a server leaves, and two files that only look like it.
const SERVERS: [(&str, FileKind); 4] = [
    ("postmaster.pid", FileKind::Regular),
    ("postmaster.opts", FileKind::Regular),
    (".s.PGSQL.5432", FileKind::Socket),
    (".s.PGSQL.5432.lock", FileKind::Regular),
];
const OTHERS: [&str; 2] = ["notes.lock", ".s.PGSQL.5433.lock"];

fn by() -> Requester {
    Requester { uid: 0, command: "test".to_owned() }
}

fn serve(store: &Arc<Store>, storage: &FaultStorage, name: &str) -> Arc<Fs> {
    let row = store.catalog.require_branch(&name.parse().unwrap()).unwrap();
    let lock = store.lock_branch(row.id).unwrap();
    let host = Host { storage: Arc::new(storage.clone()), boot_id: [7; 16], background: false };
    let branch = Branch::open_on(&host, store.clone(), row, lock, OpenMode::ReadWrite).unwrap();
    Fs::new(branch, FsOptions::default())
}

fn make(fs: &Fs, name: &str, kind: FileKind) {
    let new = NewFile { kind, perm: 0o600, rdev: 0, symlink: b"" };
    fs.make(Ino::ROOT, name.as_bytes(), &new, Caller { uid: 0, gid: 0 }).unwrap();
}

#[test]
fn hygiene_that_was_cut_short_is_finished_by_the_next_mount() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::init(&dir.path().join("store")).unwrap());
    let storage = FaultStorage::new(Arc::new(HostStorage));
    create_empty(&store, "main".parse().unwrap(), &by()).unwrap();
    let main = serve(&store, &storage, "main");
    for (name, kind) in SERVERS {
        make(&main, name, kind);
    }
    for name in OTHERS {
        make(&main, name, FileKind::Regular);
    }
    // A socket that was there once does not make this name a lock file of a server.
    make(&main, ".s.PGSQL.5433", FileKind::Socket);
    main.branch.seal().unwrap();
    main.unlink(Ino::ROOT, b".s.PGSQL.5433").unwrap();
    let mut cut_short = 0;
    for after in 0..8 {
        let child = format!("child-{after}");
        main.branch.fork(child.parse().unwrap(), &by()).unwrap();
        let fs = serve(&store, &storage, &child);
        let failure = Failure::Errno(libc::EIO);
        storage.inject(Some(Fault { call: Call::Write, failure, after, for_ever: true }));
        cut_short += usize::from(fs.apply_fork_hygiene().is_err());
        storage.inject(None);
        fs.branch.abandon();
        drop(fs);
        let fs = serve(&store, &storage, &child);
        fs.apply_fork_hygiene().unwrap();
        let there = |name: &str| fs.lookup(Ino::ROOT, name.as_bytes()).is_ok();
        for (name, _) in SERVERS {
            assert!(
                !there(name),
                "{name} is there although the hygiene was finished (after {after})"
            );
        }
        assert!(OTHERS.iter().all(|name| there(name)), "after {after}");
    }
    assert!(cut_short >= 4, "only {cut_short} of 8 were cut short");
}
