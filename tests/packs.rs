//! Packs, in process: what is copied together reads as before, and whatever becomes of the copies, so does
//! everything. No mount is needed.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowfs::branch::fork::Requester;
use cowfs::branch::open::Host;
use cowfs::branch::{self, Branch, OpenMode};
use cowfs::catalog::Store;
use cowfs::check::{self, Options, Report};
use cowfs::diff::{Exactness, diff};
use cowfs::format::{FileKind, Ino};
use cowfs::fs::names::NewFile;
use cowfs::fs::{Caller, Fs, FsOptions};
use cowfs::io::Storage;
use cowfs::io::fault::{Call, Failure, Fault, FaultStorage};
use cowfs::io::host::HostStorage;

const GRANULE: usize = 4096;
/// Layers that one merged index covers.
const FANOUT: u8 = 8;
/// Granules of a file below all of them.
const GRANULES: usize = 200;

fn by() -> Requester {
    Requester { uid: 0, command: "test".to_owned() }
}

fn unhurried(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A branch whose files were written in so many layers that a merged index covers them.
struct Scene {
    _dir: tempfile::TempDir,
    store: Arc<Store>,
    /// Contents of the files `0`, `1`, ..
    files: Vec<Vec<u8>>,
}

fn open_on(storage: Arc<dyn Storage>, store: &Arc<Store>, name: &str) -> Arc<Fs> {
    let row = store.catalog.branch(&name.parse().unwrap()).unwrap().unwrap();
    let lock = store.lock_branch(row.id).unwrap();
    let host = Host { storage, boot_id: [1; 16], background: false };
    let branch = Branch::open_on(&host, store.clone(), row, lock, OpenMode::ReadWrite).unwrap();
    Fs::new(branch, FsOptions::default())
}

#[expect(clippy::needless_pass_by_value, reason = "the lock of the branch goes with it")]
fn end(fs: Arc<Fs>) {
    fs.retire_all().unwrap();
    fs.branch.close().unwrap();
}

fn ino(fs: &Fs, file: usize) -> Ino {
    fs.lookup(Ino::ROOT, file.to_string().as_bytes()).unwrap().record.ino
}

fn contents(fs: &Fs, file: usize) -> Vec<u8> {
    let mut buf = Vec::new();
    fs.read(ino(fs, file), 0, 1 << 20, &mut buf).unwrap();
    buf
}

fn create(fs: &Fs, file: usize) -> Ino {
    let new = NewFile { kind: FileKind::Regular, perm: 0o640, rdev: 0, symlink: b"" };
    let name = file.to_string();
    fs.make(Ino::ROOT, name.as_bytes(), &new, Caller { uid: 1, gid: 2 }).unwrap().record.ino
}

fn rot(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

impl Scene {
    /// Each of the eight layers has four scattered granules of file 0 (one of them written again by the
    /// next), and one of file 1, which is 5,000 bytes long.
    fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::init(&dir.path().join("store")).unwrap());
        branch::create::create_empty(&store, "main".parse().unwrap(), &by()).unwrap();
        let mut files = vec![Vec::new(), vec![9; 5000]];
        for granule in 0..GRANULES {
            files[0].extend([granule as u8; GRANULE]);
        }
        let mut scene = Scene { _dir: dir, store, files };
        let fs = scene.open();
        for file in 0..scene.files.len() {
            fs.write(create(&fs, file), 0, &scene.files[file]).unwrap();
        }
        fs.branch.seal().unwrap();
        for layer in 1..=FANOUT {
            for place in 0..4 {
                let granule = usize::from(layer) * 4 + place * 40;
                scene.write(&fs, 0, granule * GRANULE, 2 * GRANULE, layer);
            }
            scene.write(&fs, 1, usize::from(layer % 2) * GRANULE, 800, layer);
            fs.branch.seal().unwrap();
        }
        fs.branch.finalize_frozen().unwrap();
        assert_eq!(fs.branch.compaction_stats().waiting_packs, 1);
        end(fs);
        scene
    }

    fn write(&mut self, fs: &Fs, file: usize, offset: usize, len: usize, byte: u8) {
        fs.write(ino(fs, file), offset as u64, &vec![byte; len]).unwrap();
        self.files[file][offset..offset + len].fill(byte);
    }

    fn open(&self) -> Arc<Fs> {
        open_on(Arc::new(HostStorage), &self.store, "main")
    }

    /// Has the packs made, and gives how many bytes were copied.
    fn pack(&self) -> u64 {
        let fs = self.open();
        fs.branch.pack_owed(&mut None, &mut unhurried).unwrap();
        let stats = fs.branch.compaction_stats();
        assert_eq!(stats.waiting_packs, 0);
        end(fs);
        stats.packed_bytes
    }

    #[track_caller]
    fn reads_right(&self, fs: &Fs) {
        for (file, wanted) in self.files.iter().enumerate() {
            assert!(contents(fs, file) == *wanted, "file {file} reads otherwise");
        }
    }

    /// The directories of layers, the pack among their contents or not.
    fn layers(&self, packed: bool) -> Vec<PathBuf> {
        let dirs = fs::read_dir(self.store.layers_dir()).unwrap().map(|dir| dir.unwrap().path());
        dirs.filter(|dir| dir.join("pack/sums").exists() == packed).collect()
    }

    fn pack_dir(&self) -> PathBuf {
        let mut layers = self.layers(true);
        assert_eq!(layers.len(), 1, "{layers:?}");
        layers.remove(0).join("pack")
    }

    /// The copies of file 0.
    fn copies(&self) -> PathBuf {
        let ino = self.with_fs(|fs| ino(fs, 0));
        self.pack_dir().join(ino.data_path())
    }

    fn with_fs<T>(&self, act: impl FnOnce(&Fs) -> T) -> T {
        let fs = self.open();
        let done = act(&fs);
        end(fs);
        done
    }

    /// Reads all contents; mends what is damaged, if `repair`.
    fn check(&self, repair: bool) -> Report {
        let options = Options { read_data: true, ..Options::default() };
        let report = check::check(&self.store, &options, &mut |_| ()).unwrap();
        if repair {
            for finding in &report.damage {
                assert!(check::mend::mend(finding).unwrap(), "{finding:?}");
            }
        }
        report
    }
}

#[test]
fn scattered_granules_are_copied_together_and_read_from_there() {
    let scene = Scene::new();
    // Of each layer 4 times 2 granules of file 0, of file 1 the two that are shown.
    let bytes = scene.pack();
    assert_eq!(bytes, (u64::from(FANOUT) * 8 + 2) * GRANULE as u64);
    assert_eq!(scene.pack(), 0, "made once");
    let report = scene.check(false);
    assert!(report.damage.is_empty() && report.leftovers.is_empty(), "{report:?}");
    assert!(report.strangers.is_empty() && report.verified_bytes >= bytes, "{report:?}");
    // That they are read from there shows when there is nothing else.
    let ino = scene.with_fs(|fs| ino(fs, 0));
    let base = scene.layers(false).into_iter().max_by_key(|dir| {
        fs::metadata(dir.join(ino.data_path())).map_or(0, |meta| {
            use std::os::unix::fs::MetadataExt;
            meta.blocks()
        })
    });
    for dir in scene.layers(false).into_iter().filter(|dir| Some(dir) != base.as_ref()) {
        let _ = fs::remove_file(dir.join(ino.data_path()));
    }
    scene.with_fs(|fs| scene.reads_right(fs));
}

/// What is done to the directory of a pack and to the copies of one file in it.
type Harm = fn(&Path, &Path);

const HARMS: [(&str, Harm); 15] = [
    ("a wrong bit", |_, copies| rot(copies, 4 * GRANULE as u64 + 17)),
    ("cut short", |_, copies| cut(copies, 9000)),
    ("removed", |_, copies| fs::remove_file(copies).unwrap()),
    ("a directory in its place", |_, copies| {
        fs::remove_file(copies).unwrap();
        fs::create_dir(copies).unwrap();
    }),
    ("a FIFO in its place", |_, copies| {
        fs::remove_file(copies).unwrap();
        nix::unistd::mkfifo(copies, nix::sys::stat::Mode::S_IRWXU).unwrap();
    }),
    ("the layer's own data in their place", |pack, _| {
        fs::remove_dir_all(pack.join("data")).unwrap();
        symlink("../data", pack.join("data")).unwrap();
        rot(&pack.join("sums"), 70);
    }),
    ("the layer in its place", |pack, _| {
        fs::remove_dir_all(pack).unwrap();
        symlink(".", pack).unwrap();
    }),
    ("a wrong checksum", |pack, _| rot(&pack.join("sums"), 70)),
    ("a wrong header", |pack, _| rot(&pack.join("sums"), 20)),
    ("checksums cut short", |pack, _| cut(&pack.join("sums"), 100)),
    ("no checksums", |pack, _| cut(&pack.join("sums"), 0)),
    ("a directory in the place of the checksums", |pack, _| {
        fs::remove_file(pack.join("sums")).unwrap();
        fs::create_dir(pack.join("sums")).unwrap();
    }),
    ("checksums removed", |pack, _| fs::remove_file(pack.join("sums")).unwrap()),
    ("all removed", |pack, _| fs::remove_dir_all(pack).unwrap()),
    ("a file in its place", |pack, _| {
        fs::remove_dir_all(pack).unwrap();
        fs::write(pack, "something").unwrap();
    }),
];

/// In place, also while it is in use.
fn cut(path: &Path, len: u64) {
    File::options().write(true).open(path).unwrap().set_len(len).unwrap();
}

/// Nothing depends on the copies: whatever becomes of them, while they are in use or before, contents
/// are right, and the background, or a repair and the background, make them anew.
#[test]
fn damaged_copies_are_noticed_and_done_without() {
    for (what, harm) in HARMS {
        for (in_use, repair) in [(true, false), (false, false), (false, true)] {
            println!("{what}, in use: {in_use}, with a repair: {repair}");
            let scene = Scene::new();
            scene.pack();
            let (pack, copies) = (scene.pack_dir(), scene.copies());
            if in_use {
                let fs = scene.open();
                harm(&pack, &copies);
                scene.reads_right(&fs);
                scene.reads_right(&fs);
                // What was met is known, and made anew while the branch is served.
                let known = fs.branch.compaction_stats();
                assert_eq!(known.bad_packs, known.waiting_packs);
                fs.branch.pack_owed(&mut None, &mut unhurried).unwrap();
                let known = fs.branch.compaction_stats();
                assert_eq!((known.bad_packs, known.waiting_packs), (0, 0));
                scene.reads_right(&fs);
                end(fs);
            } else {
                harm(&pack, &copies);
            }
            scene.with_fs(|fs| scene.reads_right(fs));
            if repair {
                let damaged = !scene.check(true).damage.is_empty();
                let harmless = ["the layer in its place", "checksums removed", "all removed"];
                assert_eq!(damaged, !harmless.contains(&what));
                scene.with_fs(|fs| scene.reads_right(fs));
            }
            // Damage that no read has met is met by one, if not by the mount.
            scene.with_fs(|fs| {
                scene.reads_right(fs);
                fs.branch.pack_owed(&mut None, &mut unhurried).unwrap();
                assert_eq!(fs.branch.compaction_stats().waiting_packs, 0);
                scene.reads_right(fs);
            });
            if what == "checksums removed" && in_use {
                continue;
            }
            let report = scene.check(false);
            assert!(report.damage.is_empty() && report.leftovers.is_empty(), "{report:?}");
            assert!(report.strangers.is_empty(), "{report:?}");
            assert!(scene.copies().is_file());
        }
    }
}

/// Tables and temporary files that come and go within the layers are not copied.
#[test]
fn a_file_that_was_removed_again_is_not_packed() {
    let mut scene = Scene::new();
    let fs = scene.open();
    let dead = create(&fs, 9);
    for layer in 1..=FANOUT {
        if layer < FANOUT {
            fs.write(dead, u64::from(layer) * 20 * GRANULE as u64, &[layer; GRANULE]).unwrap();
        } else {
            fs.unlink(Ino::ROOT, b"9").unwrap();
        }
        scene.write(&fs, 1, usize::from(layer % 2) * GRANULE, 700, layer);
        fs.branch.seal().unwrap();
    }
    fs.branch.finalize_frozen().unwrap();
    fs.branch.pack_owed(&mut None, &mut unhurried).unwrap();
    // Two packs, of the eight layers below, and of file 1 above.
    let wanted = (u64::from(FANOUT) * 8 + 2) + 2;
    assert_eq!(fs.branch.compaction_stats().packed_bytes, wanted * GRANULE as u64);
    scene.reads_right(&fs);
    end(fs);
}

/// Rot that is there already is not given a checksum of its own; the rest is copied.
#[test]
fn rot_is_not_copied() {
    let scene = Scene::new();
    branch::checksums::add_checksums(&scene.store, None, &mut unhurried).unwrap();
    let ino = scene.with_fs(|fs| ino(fs, 0));
    let owner = scene.layers(false).into_iter().find(|dir| {
        let bytes = fs::read(dir.join(ino.data_path())).unwrap_or_default();
        bytes.get(12 * GRANULE..).is_some_and(|rest| rest.starts_with(&[3; GRANULE]))
    });
    rot(&owner.unwrap().join(ino.data_path()), 12 * GRANULE as u64 + 5);
    scene.pack();
    assert!(!scene.pack_dir().join(ino.data_path()).exists());
    scene.with_fs(|fs| {
        assert!(contents(fs, 1) == scene.files[1]);
        let mut buf = Vec::new();
        fs.read(ino, 12 * GRANULE as u64, 10, &mut buf).unwrap_err();
    });
}

/// A copy within the branch shares what the layers own, never a copy of it, which may go.
#[test]
fn what_copy_file_range_shares_does_not_rest_on_a_pack() {
    let mut scene = Scene::new();
    scene.pack();
    let fs = scene.open();
    let clone = create(&fs, 2);
    let len = scene.files[0].len() as u64;
    assert_eq!(fs.copy_range((ino(&fs, 0), 0), (clone, 0), len).unwrap(), len);
    scene.files.push(scene.files[0].clone());
    assert_eq!(fs.owned_granules(clone), 0, "all of it is shared");
    fs.branch.seal().unwrap();
    fs.branch.finalize_frozen().unwrap();
    end(fs);
    fs::remove_dir_all(scene.pack_dir()).unwrap();
    scene.with_fs(|fs| scene.reads_right(fs));
    assert!(scene.check(false).damage.is_empty());
}

/// Two states differ by what was written, not by what was copied.
#[test]
fn packing_makes_no_difference() {
    let scene = Scene::new();
    let child = "child".parse().unwrap();
    scene.with_fs(|fs| drop(fs.branch.fork(child, &by()).unwrap()));
    let before = open_on(Arc::new(HostStorage), &scene.store, "child");
    scene.pack();
    let after = scene.open();
    let found = diff((&before, "child"), (&after, "main"), Exactness::Owners).unwrap();
    assert_eq!(found, []);
    end(before);
    end(after);
}

/// A pack that is held, as in a pause, holds nobody: fsync in another process may have to finalize, for
/// which it waits for `finalize.lock`.
#[test]
fn whoever_is_at_a_pack_holds_no_lock_that_others_wait_for() {
    let scene = Scene::new();
    let fs = scene.open();
    let mut seen = 0;
    let mut pace = |_| {
        for dir in fs::read_dir(scene.store.layers_dir()).unwrap() {
            let lock = File::options().write(true).open(dir.unwrap().path().join("finalize.lock"));
            if let Ok(file) = lock {
                file.try_lock().unwrap();
                seen += 1;
            }
        }
        ControlFlow::Continue(())
    };
    fs.branch.pack_owed(&mut None, &mut pace).unwrap();
    assert!(seen > 0);
    // Somebody else is at it: that is not waited for.
    let dir = scene.layers(true).remove(0);
    fs::remove_dir_all(dir.join("pack")).unwrap();
    end(fs);
    let fs = scene.open();
    let theirs = File::options().write(true).open(dir.join("pack.lock")).unwrap();
    theirs.lock().unwrap();
    fs.branch.pack_owed(&mut None, &mut unhurried).unwrap();
    assert_eq!(fs.branch.compaction_stats().waiting_packs, 1);
    theirs.unlock().unwrap();
    fs.branch.pack_owed(&mut None, &mut unhurried).unwrap();
    assert_eq!(fs.branch.compaction_stats().waiting_packs, 0);
    end(fs);
}

/// Stopped or killed after each file, on a disk that fails at each call in turn: nothing is lost, and the
/// next attempt ends with the same pack.
#[test]
fn half_a_pack_is_none_and_is_made_anew() {
    let scene = Scene::new();
    for stop_after in 0..8 {
        let fs = scene.open();
        let mut calls = 0;
        let mut pace = |_| {
            calls += 1;
            if calls > stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        fs.branch.pack_owed(&mut None, &mut pace).unwrap();
        assert_eq!(fs.branch.compaction_stats().waiting_packs, 1, "stopped after {stop_after}");
        scene.reads_right(&fs);
        end(fs);
    }
    let calls = [
        Call::Open,
        Call::Read,
        Call::Write,
        Call::SyncData,
        Call::SyncDir,
        Call::Rename,
        Call::Remove,
        Call::Metadata,
        Call::List,
    ];
    let (mut failed, mut with_room) = (0, 0);
    for call in calls {
        for for_ever in [false, true] {
            for after in 0.. {
                let faults = FaultStorage::new(Arc::new(HostStorage));
                let fs = open_on(Arc::new(faults.clone()), &scene.store, "main");
                let failure = Failure::Errno(libc::ENOSPC);
                faults.inject(Some(Fault { call, failure, after, for_ever }));
                let outcome = fs.branch.pack_owed(&mut None, &mut unhurried);
                let struck = faults.struck();
                faults.inject(None);
                scene.reads_right(&fs);
                end(fs);
                scene.with_fs(|fs| scene.reads_right(fs));
                failed += usize::from(outcome.is_err());
                if call == Call::Write && outcome.is_err() {
                    // It has given back what it took of a full disk.
                    let left =
                        scene.layers(false).into_iter().filter(|dir| dir.join("pack.tmp").exists());
                    assert_eq!(left.count(), 0);
                    with_room += 1;
                }
                assert!(scene.check(false).damage.is_empty());
                for dir in scene.layers(true) {
                    fs::remove_dir_all(dir.join("pack")).unwrap();
                }
                if !struck {
                    break;
                }
            }
        }
    }
    assert!(failed > 20 && with_room > 2, "{failed} {with_room}");
    assert!(scene.pack() > 0);
    assert!(scene.check(false).damage.is_empty());
}
