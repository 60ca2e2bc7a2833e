//! Whether what a mount reads stays in the host's page cache as well.
//!
//! Needs root, /dev/fuse, `fincore` and `dd`, Linux 6.16 and a filesystem that can read without
//! keeping; says so and passes where they are missing. Takes 8 s.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod mount_support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mount_support::Scene;

const PAGE: usize = 8192;
const PAGES: usize = 1000;
/// Every so manieth page is read: nothing that looks like reading in order.
const STRIDE: usize = 25;
/// Longer than a serving process relies on what it knows of the other mounts.
const A_LOOK: Duration = Duration::from_millis(2200);

/// Whether reads can do without the host's cache here.
fn possible(store: &Path) -> bool {
    let kernel = nix::sys::utsname::uname().unwrap();
    let release = kernel.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let kind = Command::new("stat").args(["-f", "-c", "%T"]).arg(store).output().unwrap();
    let kind = String::from_utf8_lossy(&kind.stdout).trim().to_owned();
    if version < (6, 16) || !["ext2/ext3", "xfs", "btrfs"].contains(&kind.as_str()) {
        println!("skipped: Linux {release} on {kind} keeps what it reads");
        return false;
    }
    if Command::new("fincore").arg("--version").output().is_err() {
        println!("skipped: needs fincore (package util-linux-extra)");
        return false;
    }
    true
}

fn largest_below(dir: &Path) -> PathBuf {
    let (mut dirs, mut files) = (vec![dir.to_owned()], Vec::new());
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap().flatten() {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                dirs.push(entry.path());
            } else {
                files.push((meta.len(), entry.path()));
            }
        }
    }
    files.into_iter().max().unwrap().1
}

fn resident_bytes(file: &Path) -> u64 {
    let mut fincore = Command::new("fincore");
    let out = fincore.args(["--bytes", "--noheadings", "--output", "RES"]).arg(file).output();
    String::from_utf8(out.unwrap().stdout).unwrap().trim().parse().unwrap()
}

/// Empties the host's cache of one file.
fn drop_cache(file: &Path) {
    for _ in 0..50 {
        let mut dd = Command::new("dd");
        dd.arg(format!("of={}", file.display()));
        dd.args(["oflag=nocache", "conv=notrunc,fdatasync", "count=0", "status=none"]);
        assert!(dd.status().unwrap().success());
        if resident_bytes(file) == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{} bytes of {} stay", resident_bytes(file), file.display());
}

/// Reads pages that nobody has read yet, of the file as the mount shows it.
fn read_some(file: &Path, first: usize) -> u64 {
    let file = File::open(file).unwrap();
    let mut page = vec![0; PAGE];
    let mut read = 0;
    for number in (first..PAGES).step_by(STRIDE) {
        file.read_exact_at(&mut page, (number * PAGE) as u64).unwrap();
        assert!(page.iter().all(|byte| *byte == number as u8), "page {number}");
        read += PAGE as u64;
    }
    read
}

#[test]
fn mount_the_host_keeps_what_is_read_only_for_others() {
    let scene = scene!();
    if !possible(&scene.store) {
        return;
    }
    scene.mount();
    let contents: Vec<u8> = (0..PAGES).flat_map(|number| [number as u8; PAGE]).collect();
    let mut file = File::create(scene.dir.join("file")).unwrap();
    std::io::Write::write_all(&mut file, &contents).unwrap();
    file.sync_all().unwrap();
    drop(file);
    scene.run(&["branch", "create", "child", "--from", "main"]).ok();
    scene.run(&["unmount", "main"]).ok();
    scene.run(&["check", "--add-checksums"]).ok();
    let dir = scene.temp.path().canonicalize().unwrap().join("child");
    fs::create_dir(&dir).unwrap();
    // What is read is to be what was asked for.
    scene.run(&["mount", "child", dir.to_str().unwrap(), "-o", "noreadaround"]).ok();
    let (shown, stored) = (dir.join("file"), largest_below(&scene.store.join("layers")));

    drop_cache(&stored);
    let read = read_some(&shown, 1);
    let alone = resident_bytes(&stored);
    assert!(alone < read / 4, "alone, {alone} of {read} bytes are kept twice");

    scene.mount();
    std::thread::sleep(A_LOOK);
    drop_cache(&stored);
    // The first one learns of the other mount.
    read_some(&shown, PAGES - 1);
    let read = read_some(&shown, 5);
    let shared = resident_bytes(&stored);
    assert!(shared >= read, "beside another mount only {shared} of {read} bytes are kept");

    scene.run(&["unmount", "main"]).ok();
    std::thread::sleep(A_LOOK);
    drop_cache(&stored);
    let read = read_some(&shown, 9);
    let alone = resident_bytes(&stored);
    assert!(alone < read / 4, "alone again, {alone} of {read} bytes are kept twice");

    scene.run(&["unmount", "child"]).ok();
    scene.run(&["mount", "child", dir.to_str().unwrap(), "-o", "hostcache,noreadaround"]).ok();
    drop_cache(&stored);
    let read = read_some(&shown, 13);
    let kept = resident_bytes(&stored);
    assert!(kept >= read, "with -o hostcache only {kept} of {read} bytes are kept");
    scene.run(&["unmount", "child"]).ok();
    scene.run(&["check", "--read-data"]).ok();
}
