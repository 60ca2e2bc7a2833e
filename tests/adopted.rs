//! An adopted directory that somebody changes behind our back, seen through a mount.
//!
//! Needs root and /dev/fuse; says so and passes where they are missing.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod mount_support;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use mount_support::Scene;

/// Adopts a directory with some files as the branch `old` and mounts it.
fn adopted(scene: &Scene) -> PathBuf {
    let tree = scene.temp.path().canonicalize().unwrap().join("tree");
    fs::create_dir_all(tree.join("base")).unwrap();
    for name in TAMPERED.iter().chain(["base/kept"].iter()) {
        fs::write(tree.join(name), vec![b'x'; 20_000]).unwrap();
    }
    scene.run(&["import", "--adopt", tree.to_str().unwrap(), "--any", "--as", "old"]).ok();
    scene.run(&["mount", "old", scene.dir()]).ok();
    tree
}

/// Changes each file but `kept` in another way.
fn tamper(tree: &std::path::Path) {
    let mut grown = OpenOptions::new().append(true).open(tree.join("base/grown")).unwrap();
    grown.write_all(b"more").unwrap();
    // The same size, other bytes: only the time tells.
    let touched = OpenOptions::new().write(true).open(tree.join("base/touched")).unwrap();
    touched.write_all_at(b"y", 7).unwrap();
    touched.set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
    // The same size and modification time, other bytes: rsync --inplace --times does that.
    let quiet = OpenOptions::new().write(true).open(tree.join("base/quiet")).unwrap();
    let time = quiet.metadata().unwrap().modified().unwrap();
    quiet.write_all_at(b"y", 7).unwrap();
    quiet.set_modified(time).unwrap();
    // The same bytes and times, but another file.
    let was = tree.join("base/replaced");
    let time = was.metadata().unwrap().modified().unwrap();
    fs::copy(&was, tree.join("base/new")).unwrap();
    File::options().write(true).open(tree.join("base/new")).unwrap().set_modified(time).unwrap();
    fs::rename(tree.join("base/new"), &was).unwrap();
    fs::remove_file(tree.join("base/gone")).unwrap();
}

const TAMPERED: [&str; 5] =
    ["base/grown", "base/touched", "base/quiet", "base/replaced", "base/gone"];

#[track_caller]
fn is_eio(result: io::Result<Vec<u8>>, name: &str) {
    let error = result.expect_err(name);
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}: {error}");
}

#[test]
fn mount_says_eio_for_a_changed_file_and_names_it() {
    let scene = scene!();
    let tree = adopted(&scene);
    assert_eq!(fs::read(scene.dir.join("base/kept")).unwrap(), vec![b'x'; 20_000]);
    assert!(scene.run(&["check"]).ok().starts_with("sound"));
    tamper(&tree);
    for name in TAMPERED {
        is_eio(fs::read(scene.dir.join(name)), name);
    }
    // Nor may a page be made of old bytes and new ones.
    let file = OpenOptions::new().write(true).open(scene.dir.join("base/touched")).unwrap();
    let written = file.write_all_at(b"z", 5000).and_then(|()| file.sync_all());
    is_eio(written.map(|()| Vec::new()), "writing to base/touched");
    drop(file);
    let log = fs::read_to_string(scene.run_file("2.log")).unwrap();
    for name in TAMPERED {
        let path = tree.join(name);
        let line = log.lines().find(|line| line.contains(path.to_str().unwrap()));
        let line = line.unwrap_or_else(|| panic!("the log does not name {name}:\n{log}"));
        assert!(line.contains("ERROR") && line.contains("changed"), "{line}");
    }
    // The rest of the branch goes on.
    assert_eq!(fs::read(scene.dir.join("base/kept")).unwrap(), vec![b'x'; 20_000]);
    fs::write(scene.dir.join("base/kept"), "mine").unwrap();
    assert_eq!(fs::read(tree.join("base/kept")).unwrap(), vec![b'x'; 20_000]);

    let checked = scene.run(&["check"]);
    assert_eq!(checked.code, 3, "{}", checked.err);
    for name in TAMPERED {
        assert!(checked.out.contains(tree.join(name).to_str().unwrap()), "{}", checked.out);
    }
    assert!(!checked.out.contains("base/kept"), "{}", checked.out);
    assert!(checked.out.contains("DAMAGED: 5 findings"), "{}", checked.out);
}

#[test]
fn mount_of_a_fork_says_the_same() {
    let scene = scene!();
    let tree = adopted(&scene);
    // Cached pages of the parent are not the child's.
    assert_eq!(fs::read(scene.dir.join("base/grown")).unwrap().len(), 20_000);
    tamper(&tree);
    scene.run(&["branch", "create", "child", "--from", "old"]).ok();
    scene.run(&["unmount", "old"]).ok();
    scene.run(&["mount", "child", scene.dir()]).ok();
    for name in TAMPERED {
        is_eio(fs::read(scene.dir.join(name)), name);
    }
    assert_eq!(fs::read(scene.dir.join("base/kept")).unwrap(), vec![b'x'; 20_000]);
}
