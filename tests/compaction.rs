//! The background of a mounted branch, watched, paused and resumed.
//!
//! Needs root and /dev/fuse; says so and passes where they are missing.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod mount_support;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mount_support::{PATIENCE, Scene};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

/// Forks after which a merged index is owed: `FANOUT` layers above the first.
const ENOUGH: usize = 9;

fn compaction(scene: &Scene, branch: &str) -> Value {
    scene.status(branch)["server"]["compaction"].clone()
}

fn pause_or_resume(scene: &Scene, what: &str) -> Value {
    serde_json::from_str(&scene.run(&["compaction", what, "main", "--json"]).ok()).unwrap()
}

#[track_caller]
fn wait_until(scene: &Scene, branch: &str, what: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE + PATIENCE;
    loop {
        let found = compaction(scene, branch);
        if what(&found) {
            return found;
        }
        assert!(Instant::now() < deadline, "{found}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn nothing_waits(found: &Value) -> bool {
    found["waiting_layers"] == 0 && found["waiting_merges"] == 0 && found["at_work"] == json!([])
}

/// Has the background look around, and waits until no pack is owed.
fn packs_are_made(scene: &Scene) -> Value {
    pause_or_resume(scene, "resume");
    wait_until(scene, "main", |found| found["waiting_packs"] == 0 && found["at_work"] == json!([]))
}

/// Forks again and again; before each, a page of one file is rewritten and synced.
fn forks(scene: &Scene, count: usize) {
    for number in 0..count {
        let mut file =
            File::options().append(true).create(true).open(scene.dir.join("file")).unwrap();
        writeln!(file, "{number}").unwrap();
        file.sync_all().unwrap();
        let child = format!("child-{number}");
        scene.run(&["branch", "create", &child, "--from", "main"]).ok();
    }
}

fn wanted(count: usize) -> String {
    (0..count).fold(String::new(), |text, number| format!("{text}{number}\n"))
}

/// The files of that name in the directories of layers.
fn in_layers(scene: &Scene, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![scene.store.join("layers")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.ends_with(name) {
                found.push(path);
            }
        }
    }
    found
}

fn mount_child(scene: &Scene, name: &str) -> PathBuf {
    let dir = scene.temp.path().canonicalize().unwrap().join(format!("m-{name}"));
    fs::create_dir(&dir).unwrap();
    scene.run(&["mount", name, dir.to_str().unwrap()]).ok();
    dir
}

fn file_in(dir: &Path) -> String {
    fs::read_to_string(dir.join("file")).unwrap()
}

#[test]
fn mount_a_pause_holds_everything_and_resume_makes_up_for_it() {
    let scene = scene!();
    scene.mount();
    assert_eq!(compaction(&scene, "main")["paused"], false);
    let said = scene.run(&["compaction", "pause", "main"]).ok();
    assert_eq!(said, "The compaction of main is paused\n");
    forks(&scene, ENOUGH);
    // Longer than the background looks around by itself.
    std::thread::sleep(Duration::from_millis(1500));
    let found = compaction(&scene, "main");
    assert_eq!((&found["paused"], &found["waiting_layers"]), (&true.into(), &ENOUGH.into()));
    assert_eq!((&found["finalized_layers"], &found["at_work"]), (&0.into(), &json!([])));
    assert_eq!(in_layers(&scene, "index"), [] as [&Path; 0]);
    assert_eq!(file_in(&scene.dir), wanted(ENOUGH));
    let details = scene.run(&["status", "main"]).ok();
    assert!(
        details.contains("Compaction     paused; 9 layers, 0 merges and 0 packs waiting"),
        "{details}"
    );
    let metrics = scene.run(&["metrics"]).ok();
    assert!(metrics.contains("cowfs_compaction_paused{branch=\"main\"} 1\n"), "{metrics}");
    assert!(metrics.contains("cowfs_frozen_layers{branch=\"main\"} 9\n"), "{metrics}");

    let again = pause_or_resume(&scene, "pause");
    assert_eq!((&again["changed"], &again["still"]), (&false.into(), &true.into()));
    let resumed = pause_or_resume(&scene, "resume");
    assert_eq!((&resumed["branch"], &resumed["changed"]), (&"main".into(), &true.into()));
    let found = wait_until(&scene, "main", nothing_waits);
    assert_eq!(found["finalized_layers"], ENOUGH);
    assert_eq!((&found["merged_indexes"], &found["failures"]), (&1.into(), &0.into()));
    assert_eq!(in_layers(&scene, "merged").len(), 1);
    packs_are_made(&scene);
    let metrics = scene.run(&["metrics"]).ok();
    let counted = "cowfs_compaction_finalized_layers_total{branch=\"main\"} 9\n";
    assert!(metrics.contains(counted), "{metrics}");
    assert_eq!(
        scene.run(&["compaction", "resume", "main"]).ok(),
        "The compaction of main was not paused\n"
    );
    assert_eq!(file_in(&scene.dir), wanted(ENOUGH));
    scene.run(&["unmount", "main"]).ok();
    scene.run(&["check"]).ok();
}

#[test]
fn mount_what_was_synced_during_a_pause_survives_a_kill() {
    let scene = scene!();
    scene.mount();
    pause_or_resume(&scene, "pause");
    forks(&scene, ENOUGH);
    // A child's process has its own background, and takes the logs away below the parent.
    let child = mount_child(&scene, "child-4");
    wait_until(&scene, "child-4", nothing_waits);
    assert_eq!(file_in(&child), wanted(5));
    assert!(!in_layers(&scene, "index").is_empty());
    assert_eq!(compaction(&scene, "main")["waiting_layers"], ENOUGH);
    let mut file = File::options().append(true).open(scene.dir.join("file")).unwrap();
    writeln!(file, "last").unwrap();
    file.sync_all().unwrap();
    drop(file);
    kill(scene.server(), Signal::SIGKILL).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while scene.status("main")["state"] != "dead" {
        assert!(Instant::now() < deadline, "{}", scene.status("main"));
    }
    scene.run(&["unmount", "child-4"]).ok();
    scene.run(&["check"]).ok();
    // The pause died with the process.
    scene.mount();
    let found = wait_until(&scene, "main", nothing_waits);
    assert_eq!(found["paused"], false);
    assert_eq!(file_in(&scene.dir), wanted(ENOUGH) + "last\n");
    scene.run(&["unmount", "main"]).ok();
    scene.run(&["check", "--read-data"]).ok();
}

#[test]
fn mount_an_fsync_finalizes_for_itself_what_another_process_froze() {
    let scene = scene!();
    scene.mount();
    pause_or_resume(&scene, "pause");
    forks(&scene, 1);
    let child = mount_child(&scene, "child-0");
    // Whether its background was there first or not: an fsync of the child stands on the layer.
    scene.run(&["compaction", "pause", "child-0"]).ok();
    File::open(child.join("file")).unwrap().sync_all().unwrap();
    assert_eq!(compaction(&scene, "child-0")["waiting_layers"], 0);
    assert_eq!(compaction(&scene, "child-0")["paused"], true);
    assert_eq!(in_layers(&scene, "index").len(), 1);
    assert_eq!(compaction(&scene, "main")["waiting_layers"], 1);
}

#[test]
fn mount_an_unmount_ends_a_pause_and_leaves_nothing_waiting() {
    let scene = scene!();
    scene.mount();
    pause_or_resume(&scene, "pause");
    forks(&scene, ENOUGH);
    scene.run(&["unmount", "main"]).ok();
    assert_eq!(in_layers(&scene, "index").len(), ENOUGH);
    scene.mount();
    let found = compaction(&scene, "main");
    assert_eq!((&found["paused"], &found["waiting_layers"]), (&false.into(), &0.into()));
    assert_eq!(file_in(&scene.dir), wanted(ENOUGH));
}

/// Pages that were written here and there, a few before each fork, are copied together, and the next
/// mount reads them from there.
#[test]
fn mount_scattered_pages_of_many_layers_are_packed() {
    const PAGE: usize = 8192;
    let scene = scene!();
    scene.mount();
    let path = scene.dir.join("table");
    let mut wanted = vec![0x11; 64 * PAGE];
    fs::write(&path, &wanted).unwrap();
    for number in 0..ENOUGH {
        let file = File::options().write(true).open(&path).unwrap();
        let at = (number * 5 + 1) * PAGE;
        wanted[at..at + PAGE].fill(number as u8);
        file.write_all_at(&wanted[at..at + PAGE], at as u64).unwrap();
        file.sync_all().unwrap();
        scene.run(&["branch", "create", &format!("child-{number}"), "--from", "main"]).ok();
    }
    wait_until(&scene, "main", nothing_waits);
    let found = packs_are_made(&scene);
    // The first layer is not merged with the eight above it.
    assert_eq!(found["packed_bytes"], (ENOUGH - 1) * PAGE);
    let details = scene.run(&["status", "main"]).ok();
    assert!(details.contains("1 index merged, 64.0 KiB packed"), "{details}");
    let metrics = scene.run(&["metrics"]).ok();
    let counted = "cowfs_compaction_packed_bytes_total{branch=\"main\"} 65536\n";
    assert!(metrics.contains(counted), "{metrics}");
    let packs = in_layers(&scene, "pack/sums");
    assert_eq!(packs.len(), 1);
    scene.run(&["unmount", "main"]).ok();

    let dumped = scene.run(&["dump", packs[0].to_str().unwrap()]).ok();
    assert!(dumped.contains("/pack"), "{dumped}");
    let said = scene.run(&["check", "--read-data"]).ok();
    assert!(said.contains("sound"), "{said}");
    for branch in ["main", "child-8"] {
        scene.run(&["mount", branch, scene.dir.to_str().unwrap()]).ok();
        assert!(fs::read(&path).unwrap() == wanted);
        let log = scene.run(&["logs", branch, "--mount"]).ok();
        assert!(!log.contains("copies in packs"), "{log}");
        scene.run(&["unmount", branch]).ok();
    }
}

/// A merge was made only when its newest layer was finalized: one that a kill prevented was never
/// made up for, and lookups visited one index per layer for good.
#[test]
fn mount_a_merge_that_a_kill_prevented_is_made_up_for() {
    let scene = scene!();
    scene.mount();
    forks(&scene, ENOUGH);
    wait_until(&scene, "main", nothing_waits);
    scene.run(&["unmount", "main"]).ok();
    let merged = in_layers(&scene, "merged");
    assert_eq!(merged.len(), 1);
    let bytes = fs::read(&merged[0]).unwrap();
    // As a kill between the two leaves it.
    fs::remove_file(&merged[0]).unwrap();
    scene.mount();
    let found = wait_until(&scene, "main", |found| found["merged_indexes"] == 1);
    assert_eq!((&found["waiting_merges"], &found["finalized_layers"]), (&0.into(), &0.into()));
    assert_eq!(fs::read(&merged[0]).unwrap(), bytes);
    assert_eq!(file_in(&scene.dir), wanted(ENOUGH));
}

#[test]
fn mount_checksums_hold_still_in_the_midst_of_a_layer() {
    let scene = scene!();
    let tree = scene.temp.path().join("tree");
    fs::create_dir(&tree).unwrap();
    // Two seconds at the pace of the background, at least.
    let size = 128 << 20;
    fs::write(tree.join("big"), vec![5; size]).unwrap();
    scene.run(&["import", tree.to_str().unwrap(), "--any", "--as", "base"]).ok();
    scene.run(&["mount", "base", scene.dir()]).ok();
    assert_eq!(compaction(&scene, "base")["checksum_bytes_to_go"], Value::Null);
    let found = wait_until(&scene, "base", |found| found["at_work"] != json!([]));
    assert_eq!(found["at_work"][0]["work"], "checksums");
    let paused = scene.run(&["compaction", "pause", "base", "--json"]).ok();
    let paused: Value = serde_json::from_str(&paused).unwrap();
    assert_eq!(
        (&paused["still"], &paused["compaction"]["at_work"][0]["held"]),
        (&true.into(), &true.into())
    );
    let to_go = paused["compaction"]["checksum_bytes_to_go"].as_u64().unwrap();
    let done = paused["compaction"]["checksummed_bytes"].as_u64().unwrap();
    assert!(to_go > 0 && done > 0 && to_go + done >= size as u64, "{paused}");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(compaction(&scene, "base")["checksummed_bytes"], done);
    assert_eq!(in_layers(&scene, "sums"), [] as [&Path; 0]);
    assert!(scene.run(&["status", "base"]).ok().contains("(held)"));
    scene.run(&["compaction", "resume", "base"]).ok();
    let found = wait_until(&scene, "base", |found| {
        found["checksum_bytes_to_go"] == 0 && nothing_waits(found)
    });
    assert!(found["checksummed_bytes"].as_u64().unwrap() >= size as u64, "{found}");
    assert_eq!(in_layers(&scene, "sums").len(), 1);
    // And an unmount does not wait for a pause to end.
    scene.run(&["compaction", "pause", "base"]).ok();
    scene.run(&["unmount", "base"]).ok();
    let said = scene.run(&["check", "--read-data"]).ok();
    assert!(said.contains("sound"), "{said}");
}

#[test]
fn mount_pausing_what_cannot_be_paused_is_refused() {
    let scene = scene!();
    for what in ["pause", "resume"] {
        let error = scene.run(&["compaction", what, "main"]).fails(1);
        assert!(
            error.contains("branch main is not mounted: nothing works in its background")
                && error.contains("Hint: `cowfs status`"),
            "{error}"
        );
        let error = scene.run(&["compaction", what, "nosuch"]).fails(1);
        assert!(error.contains("nosuch") && error.contains("Hint: `cowfs branch list`"), "{error}");
        scene.run(&["compaction", what]).fails(2);
    }
    scene.run(&["compaction"]).fails(2);
    scene.run(&["compaction", "stop", "main"]).fails(2);
    scene.run(&["mount", "main", scene.dir(), "--read-only"]).ok();
    for what in ["pause", "resume"] {
        let error = scene.run(&["compaction", what, "main"]).fails(1);
        assert!(error.contains("mounted read-only"), "{error}");
    }
    assert_eq!(compaction(&scene, "main")["paused"], false);
}
