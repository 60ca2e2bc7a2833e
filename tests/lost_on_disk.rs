//! A disk that takes a write back after it was accepted: the host's memory has bytes that the disk
//! does not have.
//!
//! The store lies on an ext4 in a sparse file on a tmpfs that is too small for it. Needs root,
//! /dev/fuse, mkfs.ext4 and a loop device; says so and passes where they are missing. Takes 3 s.
#![allow(clippy::unwrap_used)]

mod mount_support;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use mount_support::{Scene, possible};
use nix::mount::{MsFlags, mount};

const MIB: usize = 1 << 20;

fn ran(command: &mut Command) -> bool {
    match command.output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            println!("skipped: {command:?}: {}", String::from_utf8_lossy(&output.stderr));
            false
        }
        Err(error) => {
            println!("skipped: {command:?}: {error}");
            false
        }
    }
}

/// A store on such a disk; `disk` is the tmpfs.
fn scene() -> Option<(Scene, PathBuf)> {
    if !possible() {
        return None;
    }
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().canonicalize().unwrap();
    let (disk, host) = (root.join("disk"), root.join("host"));
    fs::create_dir(&disk).unwrap();
    fs::create_dir(&host).unwrap();
    let (none, flags) = (Some("none"), MsFlags::empty());
    mount(none, &disk, Some("tmpfs"), flags, Some("size=48m")).unwrap();
    let image = disk.join("image");
    File::create(&image).unwrap().set_len(300 << 20).unwrap();
    let made = ran(Command::new("mkfs.ext4")
        .args(["-q", "-O", "^has_journal", "-m", "0"])
        .arg(&image))
        && ran(Command::new("mount").args(["-o", "loop,errors=continue"]).arg(&image).arg(&host));
    if !made {
        let _ = nix::mount::umount(&disk);
        return None;
    }
    Some((Scene::within(temp, "host/store"), disk))
}

/// The granules of the file that hold what was written.
fn right(file: &Path) -> Vec<bool> {
    let bytes = fs::read(file).unwrap();
    bytes.chunks(4096).map(|granule| granule.iter().all(|byte| *byte == 7)).collect()
}

#[test]
fn mount_what_a_failed_sync_left_in_memory_only_is_not_taken_for_contents() {
    let Some((scene, disk)) = scene() else { return };
    scene.mount();
    let mut file = File::create(scene.dir.join("file")).unwrap();
    let written = file.write_all(&vec![7; 80 * MIB]);
    let synced = file.sync_all();
    assert!(written.is_err() || synced.is_err(), "80 MiB fit on 48");
    drop(file);
    // Not everything is on the disk, and that is no success.
    let said = scene.run(&["unmount", "main"]);
    assert!(
        said.err.contains("not everything that was written to branch main is on the disk"),
        "{}",
        said.err
    );
    assert_eq!(said.code, 1);

    // The disk works again.
    mount(Some("none"), &disk, Some("tmpfs"), MsFlags::MS_REMOUNT, Some("size=400m")).unwrap();
    scene.mount();
    let first = right(&scene.dir.join("file"));
    scene.run(&["unmount", "main"]).ok();
    // What the disk has: the filesystem below is mounted anew.
    let host = scene.store.parent().unwrap().to_owned();
    let device = Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(&host).output().unwrap();
    let device = String::from_utf8(device.stdout).unwrap().trim().to_owned();
    assert!(Command::new("umount").arg(&host).status().unwrap().success());
    // A loop device that mount made goes with its mount.
    let image = disk.join("image");
    let again = if Path::new(&device).exists() && loop_is_bound(&device) {
        Command::new("mount").arg(&device).arg(&host).status()
    } else {
        Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&host).status()
    };
    assert!(again.unwrap().success());
    scene.mount();
    let second = right(&scene.dir.join("file"));
    assert_eq!(first.len(), second.len());
    let lost = first.iter().zip(&second).filter(|(first, second)| **first && !**second).count();
    assert_eq!(lost, 0, "of {} granules that were read after the failure", first.len());
    scene.run(&["unmount", "main"]).ok();
}

fn loop_is_bound(device: &str) -> bool {
    let name = device.trim_start_matches("/dev/");
    Path::new("/sys/block").join(name).join("loop/backing_file").exists()
}
