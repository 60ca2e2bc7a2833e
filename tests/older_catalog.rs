//! A catalog that is older than the layers, end to end: an old copy that was put back, a log that was
//! removed, one wrong bit in the log (`SQLite` drops all after it). Nothing is changed on its word.
//!
//! Needs root and /dev/fuse; says so and passes otherwise.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod mount_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use mount_support::Scene;

const LOG: &str = "catalog.sqlite-wal";
const COMMITS: &str = "catalog.commits";

/// The regular files below `dir` with their bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.is_file() {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

/// Branch `main` with files `old` and `new`, between which it was forked, a fork and a snapshot; not
/// mounted. The catalog is that of the end; `before` is what it was before the fork.
struct Aged {
    scene: Scene,
    before: BTreeMap<PathBuf, Vec<u8>>,
    now: BTreeMap<PathBuf, Vec<u8>>,
}

impl Aged {
    fn new() -> Option<Aged> {
        let scene = Scene::new()?;
        scene.run(&["mount", "main", scene.dir()]).ok();
        fs::write(scene.dir.join("old"), vec![1; 300_000]).unwrap();
        scene.run(&["unmount", "main"]).ok();
        // All commits into the database: the log then holds what comes.
        scene.run(&["gc", "-q"]).ok();
        let before = catalog(&scene);
        scene.run(&["mount", "main", scene.dir()]).ok();
        fs::write(scene.dir.join("changed"), "x").unwrap();
        scene.run(&["branch", "create", "child", "--from", "main"]).ok();
        fs::write(scene.dir.join("new"), vec![2; 200_000]).unwrap();
        scene.run(&["snapshot", "create", "main@s"]).ok();
        fs::write(scene.dir.join("newest"), vec![3; 100_000]).unwrap();
        scene.run(&["unmount", "main"]).ok();
        assert!(scene.run(&["check"]).ok().starts_with("sound"));
        let now = catalog(&scene);
        Some(Aged { scene, before, now })
    }

    /// Looks while the catalog is as `files` say, and puts it back.
    fn with_catalog(&self, files: &BTreeMap<PathBuf, Vec<u8>>, look: impl FnOnce()) {
        put(&self.scene, files);
        look();
        put(&self.scene, &self.now);
        assert!(self.scene.run(&["check"]).ok().starts_with("sound"));
    }

    /// All layers are as they were, and nobody made anything of what the older catalog says.
    fn is_left_alone(&self, what: &str) {
        let layers = self.scene.store.join("layers");
        let before = files(&layers);
        let refused = |args: &[&str]| {
            let said = self.scene.run(args);
            assert_eq!(said.code, 3, "{what}: {args:?}: {}{}", said.out, said.err);
            said.out + &said.err
        };
        let said = refused(&["check"]);
        assert!(said.contains("is older than the store"), "{what}: {said}");
        for args in [
            &["mount", "main", self.scene.dir()][..],
            &["branch", "create", "another", "--from", "main"],
            &["branch", "create", "empty", "--empty"],
            &["branch", "delete", "main", "--force"],
            &["snapshot", "create", "main@t"],
            &["gc"],
            &["gc", "--now"],
            &["check", "--repair"],
        ] {
            let said = refused(args);
            assert!(said.contains("older"), "{what}: {args:?}: {said}");
        }
        assert!(files(&layers) == before, "{what}: a layer was changed");
    }
}

fn catalog(scene: &Scene) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = files(&scene.store);
    found.retain(|path, _| {
        let name = path.file_name().unwrap().to_str().unwrap();
        path.parent() == Some(&scene.store)
            && name.starts_with("catalog.")
            && !name.ends_with("-shm")
    });
    found
}

fn put(scene: &Scene, files: &BTreeMap<PathBuf, Vec<u8>>) {
    for path in catalog(scene).into_keys() {
        fs::remove_file(path).unwrap();
    }
    let _ = fs::remove_file(scene.store.join("catalog.sqlite-shm"));
    for (path, bytes) in files {
        fs::write(path, bytes).unwrap();
    }
}

#[test]
fn mount_gc_and_all_others_refuse_an_older_catalog() {
    let Some(aged) = Aged::new() else { return };
    let commits = aged.scene.store.join(COMMITS);
    let mut put_back = aged.before.clone();
    put_back.insert(commits.clone(), aged.now[&commits].clone());
    aged.with_catalog(&put_back, || {
        aged.is_left_alone("an old copy");
        // What it knows of can be read.
        aged.scene.run(&["mount", "main", "--read-only", aged.scene.dir()]).ok();
        assert_eq!(fs::read(aged.scene.dir.join("old")).unwrap(), vec![1; 300_000]);
        aged.scene.run(&["unmount", "main"]).ok();
        aged.is_left_alone("an old copy that was looked at");
    });
    let mut without_log = aged.now.clone();
    without_log.remove(&aged.scene.store.join(LOG)).unwrap();
    aged.with_catalog(&without_log, || aged.is_left_alone("a log that was removed"));
}

/// One bit: of the log's header, of a frame's header, of a page; of the first commit and the last.
#[test]
fn mount_after_any_wrong_bit_in_the_catalogs_log_loses_nothing() {
    let Some(aged) = Aged::new() else { return };
    let log = aged.scene.store.join(LOG);
    let good = &aged.now[&log];
    let used = good.iter().rposition(|byte| *byte != 0).unwrap();
    let frames: Vec<usize> = (32..used).step_by(24 + 4096).collect();
    assert!(frames.len() > 10, "{} frames", frames.len());
    let offsets = [0, 5, 10, 17, 25, 31].into_iter().chain(
        frames.iter().enumerate().map(|(number, frame)| frame + [9, 17, 24 + 7, 3000][number % 4]),
    );
    for at in offsets.filter(|at| *at < used) {
        let mut bad = aged.now.clone();
        bad.get_mut(&log).unwrap()[at] ^= 1 << (at % 8);
        aged.with_catalog(&bad, || aged.is_left_alone(&format!("bit of byte {at} of the log")));
    }
}

/// Without the note of how many commits were made, the layers themselves tell.
#[test]
fn mount_and_gc_spare_what_an_older_catalog_does_not_know() {
    let Some(aged) = Aged::new() else { return };
    let mut put_back = aged.before.clone();
    put_back.remove(&aged.scene.store.join(COMMITS)).unwrap();
    aged.with_catalog(&put_back, || {
        let layers = aged.scene.store.join("layers");
        let before = files(&layers);
        let said = aged.scene.run(&["check"]);
        assert_eq!(said.code, 3, "{}", said.out);
        assert!(said.out.contains("older than the layer"), "{}", said.out);
        assert!(said.out.contains("that the catalog does not know"), "{}", said.out);
        let said = aged.scene.run(&["mount", "main", aged.scene.dir()]).fails(3);
        assert!(said.contains("the catalog is older than the layer"), "{said}");
        aged.scene.run(&["mount", "main", "--read-only", aged.scene.dir()]).ok();
        assert_eq!(fs::read(aged.scene.dir.join("changed")).unwrap(), b"x");
        aged.scene.run(&["unmount", "main"]).ok();
        for args in [&["gc", "--now", "--json"][..], &["gc", "--json"]] {
            let said = aged.scene.run(args).ok();
            let said: serde_json::Value = serde_json::from_str(&said).unwrap();
            assert_eq!((&said["leftovers"], &said["unknown_layers"]), (&0.into(), &2.into()));
        }
        assert!(files(&layers) == before, "a layer was changed");
    });
}

#[test]
fn check_tells_of_a_damaged_note_and_mends_it() {
    let Some(aged) = Aged::new() else { return };
    let commits = aged.scene.store.join(COMMITS);
    fs::write(&commits, "what is this").unwrap();
    let said = aged.scene.run(&["check"]);
    assert_eq!(said.code, 3, "{}", said.out);
    assert!(said.out.contains("catalog.commits: it does not say"), "{}", said.out);
    // Everything goes on meanwhile.
    aged.scene.run(&["mount", "main", aged.scene.dir()]).ok();
    aged.scene.run(&["branch", "create", "another", "--from", "main"]).ok();
    aged.scene.run(&["unmount", "main"]).ok();
    assert!(aged.scene.run(&["check", "--repair"]).ok().contains("1 mended"));
    assert!(aged.scene.run(&["check"]).ok().starts_with("sound"));
    aged.scene.run(&["branch", "create", "one-more", "--from", "main"]).ok();
    assert_eq!(fs::read(&commits).unwrap().len(), 20);
}
