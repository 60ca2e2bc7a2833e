//! Promises of docs/SEMANTICS.md that only a mount can show, and that no other suite does.
//!
//! Needs root and /dev/fuse; says so and passes where they are missing.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod mount_support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use mount_support::{PATIENCE, Scene};
use nix::sys::signal::{Signal, kill};

/// The names in a directory as often as they come; `meanwhile` runs after every so many of them.
fn list(dir: &Path, every: usize, mut meanwhile: impl FnMut(usize)) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for (at, entry) in fs::read_dir(dir).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        *seen.entry(name).or_insert(0) += 1;
        if at % every == 0 {
            meanwhile(at / every);
        }
    }
    seen
}

#[test]
fn mount_a_listing_neither_skips_nor_repeats_while_the_directory_changes() {
    let scene = scene!();
    scene.mount();
    let dir = scene.dir.join("many");
    fs::create_dir(&dir).unwrap();
    let stays: BTreeSet<String> = (0..6000).map(|n| format!("stays-{n:05}")).collect();
    for name in &stays {
        File::create(dir.join(name)).unwrap();
    }
    for n in 0..2000 {
        File::create(dir.join(format!("goes-{n:05}"))).unwrap();
    }
    // Half of it inherited, and in a layer that is just being finalized.
    scene.run(&["branch", "create", "child", "--from", "main"]).ok();
    let seen = list(&dir, 50, |step| {
        for n in (step * 20..step * 20 + 20).filter(|n| *n < 2000) {
            fs::remove_file(dir.join(format!("goes-{n:05}"))).unwrap();
            File::create(dir.join(format!("comes-{n:05}"))).unwrap();
            if n < 1000 {
                fs::rename(dir.join(format!("comes-{n:05}")), dir.join(format!("moved-{n:05}")))
                    .unwrap();
            }
        }
    });
    for name in &stays {
        assert_eq!(seen.get(name), Some(&1), "{name} was there all along");
    }
    let twice: Vec<_> = seen.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    // Emptied while it is listed, as rm -r does.
    list(&dir, 1, |_| {});
    for entry in fs::read_dir(&dir).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    fs::remove_dir(&dir).unwrap();
}

/// Seeks to where a listing was, as telldir and seekdir do for NFS servers and old programs.
#[test]
fn mount_a_position_in_a_directory_stays_valid() {
    let scene = scene!();
    scene.mount();
    for n in 0..3000 {
        File::create(scene.dir.join(format!("file-{n:04}"))).unwrap();
    }
    // Two listings of the same directory, begun together, one much slower, with changes between.
    let mut slow = fs::read_dir(&scene.dir).unwrap();
    let first: Vec<String> = slow
        .by_ref()
        .take(100)
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for n in (0..3000).step_by(3) {
        let name = format!("file-{n:04}");
        if !first.contains(&name) {
            fs::remove_file(scene.dir.join(name)).unwrap();
        }
    }
    let rest: BTreeSet<String> =
        slow.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    for n in (0..3000).filter(|n| n % 3 != 0) {
        let name = format!("file-{n:04}");
        assert!(first.contains(&name) != rest.contains(&name), "{name}");
    }
}

/// Kills whoever takes part in a fork, at any moment of it: there is no child then, or all of it.
/// Like `cp`: the kernel asks the filesystem to copy.
fn copy(from: &Path, to: &Path) -> u64 {
    std::io::copy(&mut File::open(from).unwrap(), &mut File::create(to).unwrap()).unwrap()
}

/// Bytes on the disk of all files below `dir`.
fn disk_usage(dir: &Path) -> u64 {
    let meta = dir.symlink_metadata().unwrap();
    let below = |dir| fs::read_dir(dir).unwrap().map(|entry| disk_usage(&entry.unwrap().path()));
    meta.blocks() * 512 + if meta.is_dir() { below(dir).sum() } else { 0 }
}

fn same(a: &Path, b: &Path) -> bool {
    fs::read(a).unwrap() == fs::read(b).unwrap()
}

#[test]
fn mount_copying_a_file_of_the_base_takes_no_space() {
    let scene = scene!();
    let tree = scene.temp.path().canonicalize().unwrap().join("tree");
    fs::create_dir(&tree).unwrap();
    let big: Vec<u8> =
        (0..64u32 << 18).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    fs::write(tree.join("big"), &big[..big.len() - 1000]).unwrap();
    File::create(tree.join("sparse")).unwrap().set_len(1 << 40).unwrap();
    scene.run(&["import", "--any", tree.to_str().unwrap(), "--as", "base"]).ok();
    scene.run(&["branch", "create", "b", "--from", "base"]).ok();
    let mount = || scene.run(&["mount", "b", scene.dir()]).ok();
    mount();
    let at = |name: &str| scene.dir.join(name);
    let taken = || disk_usage(&scene.store.join("layers"));
    let before = taken();
    assert_eq!(copy(&at("big"), &at("copy")), big.len() as u64 - 1000);
    assert_eq!(copy(&at("sparse"), &at("holes")), 1 << 40);
    assert_eq!(copy(&at("holes"), &at("holes-too")), 1 << 40);
    // The part of the last granule is copied; the checksums of the base are made meanwhile.
    assert!(taken() - before <= 1 << 20, "{} bytes taken", taken() - before);
    assert!(same(&at("big"), &at("copy")));
    // A copy of a copy shares as well; and what is written parts from it, on either side.
    File::open(at("copy")).unwrap().sync_all().unwrap();
    let file = fs::OpenOptions::new().write(true).open(at("copy")).unwrap();
    file.write_all_at(b"mine", 5_000_000).unwrap();
    file.sync_all().unwrap();
    let mut expected = big[..big.len() - 1000].to_vec();
    expected[5_000_000..5_000_004].copy_from_slice(b"mine");
    drop(file);
    assert!(taken() - before <= 1 << 20, "{} bytes taken", taken() - before);
    let whole = |dir: &Path| {
        assert!(fs::read(dir.join("copy")).unwrap() == expected);
        assert!(fs::read(dir.join("big")).unwrap() == big[..big.len() - 1000]);
        assert_eq!(dir.join("holes").metadata().unwrap().len(), 1 << 40);
    };
    whole(&scene.dir);
    scene.run(&["branch", "create", "child", "--from", "b"]).ok();
    fs::remove_file(at("big")).unwrap();
    fs::write(at("big"), &big[..big.len() - 1000]).unwrap();
    kill(
        nix::unistd::Pid::from_raw(
            i32::try_from(scene.status("b")["pid"].as_i64().unwrap()).unwrap(),
        ),
        Signal::SIGKILL,
    )
    .unwrap();
    let deadline = Instant::now() + PATIENCE;
    while scene.status("b")["state"] != "dead" {
        assert!(Instant::now() < deadline);
    }
    mount();
    whole(&scene.dir);
    scene.run(&["unmount", "b"]).ok();
    scene.run(&["branch", "delete", "base", "--purge"]).ok();
    scene.run(&["gc"]).ok();
    scene.run(&["mount", "child", scene.dir()]).ok();
    whole(&scene.dir);
    scene.run(&["unmount", "child"]).ok();
    assert!(scene.run(&["check", "--read-data"]).ok().starts_with("sound"));
}

#[test]
fn mount_what_is_borrowed_from_a_file_that_is_gone_is_damage() {
    let scene = scene!();
    let tree = scene.temp.path().canonicalize().unwrap().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("a"), vec![7; 40_960]).unwrap();
    let out = scene.run(&["import", "--any", tree.to_str().unwrap(), "--as", "b", "--json"]).ok();
    scene.run(&["mount", "b", scene.dir()]).ok();
    copy(&scene.dir.join("a"), &scene.dir.join("copy"));
    scene.run(&["branch", "create", "child", "--from", "b"]).ok();
    scene.run(&["unmount", "b"]).ok();
    assert!(scene.run(&["check"]).ok().starts_with("sound"), "{out}");
    let base = fs::read_dir(scene.store.join("layers")).unwrap().map(|entry| entry.unwrap().path());
    let sized = |dir: &std::path::PathBuf| disk_usage(&dir.join("data")) >= 40_960;
    let base = base.into_iter().find(|dir| dir.join("data").exists() && sized(dir)).unwrap();
    fs::remove_dir_all(base.join("data")).unwrap();
    let said = scene.run(&["check"]);
    assert_eq!(said.code, 3, "{}", said.err);
    assert!(said.out.contains("borrows from"), "{}", said.out);
}

#[test]
fn mount_a_fork_that_is_cut_short_has_happened_or_not() {
    let scene = scene!();
    let other = scene.temp.path().join("other");
    fs::create_dir(&other).unwrap();
    let (mut there, mut absent) = (0, 0);
    scene.mount();
    for round in 0..24_u64 {
        let child = format!("c{round}");
        let contents = vec![round as u8 + 1; 50_000];
        let file = File::create(scene.dir.join("file")).unwrap();
        file.write_all_at(&contents, 0).unwrap();
        file.sync_all().unwrap();
        drop(file);
        let server = scene.server();
        let mut command = scene.command(&["branch", "create", &child, "--from", "main"]);
        let mut forking = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(700 * round));
        // By turns the process that serves the parent, and the command.
        let said_so = if round % 2 == 0 {
            kill(server, Signal::SIGKILL).unwrap();
            forking.wait().unwrap().success()
        } else {
            forking.kill().unwrap();
            forking.wait().unwrap().success()
        };
        let deadline = Instant::now() + PATIENCE;
        while round % 2 == 0 && scene.status("main")["state"] != "dead" {
            assert!(Instant::now() < deadline);
        }
        if round % 2 == 0 {
            scene.mount();
        }
        assert_eq!(fs::read(scene.dir.join("file")).unwrap(), contents, "round {round}: parent");
        let shown = scene.run(&["branch", "show", &child]).code;
        if shown == 0 {
            there += 1;
            scene.run(&["mount", &child, other.to_str().unwrap()]).ok();
            assert_eq!(fs::read(other.join("file")).unwrap(), contents, "round {round}: child");
            scene.run(&["unmount", &child]).ok();
        } else {
            absent += 1;
            assert!(!said_so, "round {round}: the command said that there is a child");
        }
        let verdict = scene.run(&["check"]).ok();
        assert!(verdict.starts_with("sound"), "round {round}: {verdict}");
    }
    println!("{there} forks had happened, {absent} had not");
    assert!(there > 0 && absent > 0, "{there} had happened, {absent} had not: no moment was hit");
}
