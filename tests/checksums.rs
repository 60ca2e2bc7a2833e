//! Checksums of sealed contents: bit rot is found by `check` and never served by a mount.
//!
//! Needs root and /dev/fuse; says so and passes where they are missing.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod mount_support;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use mount_support::Scene;
use serde_json::Value;

const GRANULE: u64 = 4096;

/// The branch `base`, made of three files of 20 granules and a bit, with checksums.
fn sealed(scene: &Scene) {
    let tree = scene.temp.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for (number, name) in ["rotten", "sound", "short"].into_iter().enumerate() {
        let bytes: Vec<u8> = (0..82_000_u32).map(|at| (at / 7 + number as u32) as u8).collect();
        fs::write(tree.join(name), bytes).unwrap();
    }
    scene.run(&["import", tree.to_str().unwrap(), "--any", "--as", "base"]).ok();
    let said = scene.run(&["check", "--add-checksums", "--read-data"]).ok();
    assert!(said.contains("sound"), "{said}");
}

fn checked(scene: &Scene, code: i32) -> Value {
    let said = scene.run(&["check", "--read-data", "--json"]);
    assert_eq!(said.code, code, "{}{}", said.out, said.err);
    serde_json::from_str(&said.out).unwrap()
}

/// The data file whose contents begin as those of `name` do.
fn data_file(scene: &Scene, number: u8) -> PathBuf {
    let begins = [number; 7];
    let mut found = Vec::new();
    walk(&scene.store.join("layers"), &mut |path| {
        if path.components().any(|part| part.as_os_str() == "data")
            && fs::read(path).is_ok_and(|bytes| bytes.starts_with(&begins))
        {
            found.push(path.to_owned());
        }
    });
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn walk(dir: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, visit) } else { visit(&path) }
    }
}

fn sums_file(scene: &Scene) -> PathBuf {
    let mut found = Vec::new();
    walk(&scene.store.join("layers"), &mut |path| {
        if path.ends_with("sums") {
            found.push(path.to_owned());
        }
    });
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Flips a bit at `offset` and leaves size and times as they are.
fn rot(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
    file.set_modified(time).unwrap();
}

fn read_at(path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    File::open(path)?.read_exact_at(&mut bytes, offset).map(|()| bytes)
}

#[track_caller]
fn is_eio<T: std::fmt::Debug>(result: io::Result<T>) {
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EIO));
}

#[test]
fn mount_never_serves_a_rotten_page_and_check_names_it() {
    let scene = scene!();
    sealed(&scene);
    assert!(checked(&scene, 0)["verified_bytes"].as_u64().unwrap() >= 3 * 82_000);
    rot(&data_file(&scene, 0), 3 * GRANULE + 100);

    let report = checked(&scene, 3);
    let damage = report["damage"].as_array().unwrap();
    assert_eq!(damage.len(), 1, "{report}");
    assert_eq!(damage[0]["path"].as_str().unwrap(), data_file(&scene, 0).to_str().unwrap());
    assert!(damage[0]["problem"].as_str().unwrap().contains("offset 12288"), "{report}");
    assert_eq!(damage[0]["branches"][0], "base");
    // Without reading the data there is nothing to see.
    scene.run(&["check"]).ok();

    scene.run(&["mount", "base", scene.dir()]).ok();
    let rotten = scene.dir.join("rotten");
    is_eio(read_at(&rotten, 3 * GRANULE, 4096));
    let good = read_at(&rotten, 8 * GRANULE, 4096).unwrap();
    assert_eq!(good[0], (8 * GRANULE / 7) as u8);
    assert_eq!(fs::read(scene.dir.join("sound")).unwrap().len(), 82_000);
    // A write of a part of it would make the rot look sound.
    let file = File::options().write(true).open(&rotten).unwrap();
    is_eio(file.write_all_at(b"part", 3 * GRANULE + 10).and_then(|()| file.sync_all()));
    drop(file);
    let log = fs::read_to_string(scene.run_file("2.log")).unwrap();
    let line = log.lines().find(|line| line.contains("corrupt contents")).expect(&log);
    assert!(line.contains("offset 12288") && line.contains("/data/"), "{line}");
}

#[test]
fn mount_of_a_fork_reads_its_own_page_in_the_place_of_a_rotten_one() {
    let scene = scene!();
    sealed(&scene);
    rot(&data_file(&scene, 0), 3 * GRANULE);
    scene.run(&["branch", "create", "fork", "--from", "base"]).ok();
    scene.run(&["mount", "fork", scene.dir()]).ok();
    let file = File::options().read(true).write(true).open(scene.dir.join("rotten")).unwrap();
    file.write_all_at(&[7; 4096], 3 * GRANULE).unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert_eq!(read_at(&scene.dir.join("rotten"), 3 * GRANULE, 4096).unwrap(), [7; 4096]);
}

#[test]
fn mount_verifies_the_last_page_of_a_file_that_ends_within_it() {
    let scene = scene!();
    sealed(&scene);
    let data = data_file(&scene, 2);
    scene.run(&["mount", "base", scene.dir()]).ok();
    let tail = read_at(&scene.dir.join("short"), 81_920, 80).unwrap();
    assert_eq!(tail[0], (81_920 / 7 + 2) as u8);
    scene.run(&["unmount", "base"]).ok();
    rot(&data, 81_950);
    scene.run(&["mount", "base", scene.dir()]).ok();
    is_eio(read_at(&scene.dir.join("short"), 81_920, 80));
}

#[test]
fn rotten_checksums_are_not_taken_for_rotten_data_and_can_be_repaired() {
    let scene = scene!();
    sealed(&scene);
    let sums = sums_file(&scene);
    rot(&sums, 70);
    let report = checked(&scene, 3);
    assert_eq!(report["damage"][0]["mend"], "remake-sums", "{report}");
    scene.run(&["mount", "base", scene.dir()]).ok();
    for name in ["rotten", "sound", "short"] {
        assert_eq!(fs::read(scene.dir.join(name)).unwrap().len(), 82_000);
    }
    scene.run(&["unmount", "base"]).ok();
    let said = scene.run(&["check", "--repair"]).ok();
    assert!(said.contains("keeping the checksums") && said.contains("1 mended"), "{said}");
    let said = scene.run(&["check", "--read-data"]).ok();
    assert!(said.contains("sound") && said.contains("0 B have none yet"), "{said}");
}

/// Whatever of the checksum file is damaged (its header, a checksum, a record, two of them): what is
/// known of other contents stays known, to `check`, to the mount, and after a repair.
#[test]
fn mount_does_not_serve_rot_that_sound_checksums_beside_damaged_ones_tell_of() {
    let scene = scene!();
    sealed(&scene);
    let sums = sums_file(&scene);
    let data = data_file(&scene, 0);
    rot(&data, 3 * GRANULE + 100);
    let good = fs::read(&sums).unwrap();
    // Of three files of 21 granules: a checksum of the last file, its record, the header.
    let (checksum, record) = (64 + 4 * 50, good.len() as u64 - 30);
    for places in [vec![checksum], vec![record], vec![20], vec![20, checksum], vec![20, record]] {
        for place in &places {
            rot(&sums, *place);
        }
        let rot_is_told = |report: &Value| {
            let damage = report["damage"].as_array().unwrap();
            let data = damage.iter().find(|found| found["path"] == data.to_str().unwrap());
            let problem = data.unwrap_or_else(|| panic!("{places:?}: {report}"))["problem"].clone();
            assert!(problem.as_str().unwrap().contains("offset 12288"), "{places:?}: {report}");
            damage.len()
        };
        assert_eq!(rot_is_told(&checked(&scene, 3)), 2);
        for repaired in [false, true] {
            if repaired {
                scene.run(&["check", "--read-data", "--repair"]).fails(3);
                assert_eq!(rot_is_told(&checked(&scene, 3)), 1);
            }
            scene.run(&["mount", "base", scene.dir()]).ok();
            is_eio(read_at(&scene.dir.join("rotten"), 3 * GRANULE, 4096));
            for name in ["sound", "short"] {
                assert_eq!(fs::read(scene.dir.join(name)).unwrap().len(), 82_000);
            }
            scene.run(&["unmount", "base"]).ok();
        }
        fs::write(&sums, &good).unwrap();
    }
}

/// Half a copy would pass for one.
#[test]
fn an_export_that_meets_rot_leaves_nothing_and_names_what_finds_all_of_it() {
    let scene = scene!();
    sealed(&scene);
    rot(&data_file(&scene, 2), 20 * GRANULE);
    let out = scene.temp.path().join("out");
    let (new, empty, tar) = (out.join("new"), out.join("empty"), out.join("copy.tar"));
    fs::create_dir_all(&empty).unwrap();
    for to in [
        &[new.to_str().unwrap()][..],
        &[empty.to_str().unwrap()],
        &["--tar", tar.to_str().unwrap()],
    ] {
        let said = scene.run(&[&["export", "base"], to].concat()).fails(3);
        assert!(said.contains("corrupt contents"), "{said}");
        assert!(said.contains("`cowfs check --read-data`"), "{said}");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "only the directory that was there");
        assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
    }
}

/// A disk of its own, in a file, mounted as long as this lives.
struct Disk(std::path::PathBuf);

impl Disk {
    fn mount(image: &Path, dir: &Path) -> Option<Disk> {
        let status = Command::new("mount").args(["-o", "loop"]).args([image, dir]).status();
        status.is_ok_and(|status| status.success()).then(|| Disk(dir.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn checksums_of_an_adopted_base_find_what_its_times_do_not_tell() {
    let scene = scene!();
    let root = scene.temp.path().canonicalize().unwrap();
    let (image, tree) = (root.join("image"), root.join("tree"));
    fs::create_dir(&tree).unwrap();
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).status();
    let disk =
        if made.is_ok_and(|made| made.success()) { Disk::mount(&image, &tree) } else { None };
    let Some(disk) = disk else {
        println!("skipped: needs mkfs.ext4 and loop devices");
        return;
    };
    // Bytes that are nowhere else on that disk.
    let contents: Vec<u8> = (0..50_000u32).map(|n| (n % 251) as u8 ^ 0x5a).collect();
    fs::create_dir(tree.join("data")).unwrap();
    fs::write(tree.join("data/file"), &contents).unwrap();
    let adopted = tree.join("data");
    scene.run(&["import", "--adopt", adopted.to_str().unwrap(), "--any", "--as", "old"]).ok();
    scene.run(&["check", "--add-checksums"]).ok();
    drop(disk);
    let mut bytes = fs::read(&image).unwrap();
    let at = bytes.windows(4096).position(|found| found == &contents[..4096]).unwrap();
    bytes[at + 5000] ^= 1;
    fs::write(&image, bytes).unwrap();
    let _disk = Disk::mount(&image, &tree).unwrap();
    scene.run(&["mount", "old", scene.dir()]).ok();
    is_eio(read_at(&scene.dir.join("file"), 4096, 4096));
    assert_eq!(read_at(&scene.dir.join("file"), 8192, 4096).unwrap(), contents[8192..12_288]);
    assert_eq!(checked(&scene, 3)["damage"].as_array().unwrap().len(), 1);
    scene.run(&["unmount", "old"]).ok();
}

#[test]
fn a_mount_makes_the_checksums_in_the_background() {
    let scene = scene!();
    let tree = scene.temp.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), vec![3; 50_000]).unwrap();
    scene.run(&["import", tree.to_str().unwrap(), "--any", "--as", "base"]).ok();
    scene.run(&["mount", "base", scene.dir()]).ok();
    let patience = mount_support::PATIENCE * 2;
    let begun = std::time::Instant::now();
    while checked(&scene, 0)["unverified_bytes"].as_u64().unwrap() > 0 {
        assert!(begun.elapsed() < patience, "no checksums after {patience:?}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    assert!(checked(&scene, 0)["verified_bytes"].as_u64().unwrap() >= 50_000);
}

/// A scan of a file of which every other stretch was written anew reads the layer below through
/// the stretches that are hidden. Damage there is nobody's; damage beside it is found.
#[test]
fn mount_rot_that_is_hidden_harms_nobody_and_rot_beside_it_is_found() {
    let scene = scene!();
    sealed(&scene);
    let base = data_file(&scene, 0);
    let mut wanted: Vec<u8> = fs::read(scene.temp.path().join("tree/rotten")).unwrap();
    let child = scene.temp.path().join("child");
    fs::create_dir(&child).unwrap();
    scene.run(&["branch", "create", "child", "--from", "base"]).ok();
    let child_dir = child.to_str().unwrap();
    scene.run(&["mount", "child", child_dir]).ok();
    let written = File::options().write(true).open(child.join("rotten")).unwrap();
    for granule in [2, 3, 7, 12] {
        let at = (granule * GRANULE) as usize;
        wanted[at..at + 4096].fill(0xaa);
        written.write_all_at(&[0xaa; 4096], at as u64).unwrap();
    }
    written.sync_all().unwrap();
    drop(written);
    // A layer in between, so that there are two below with pieces in turn.
    scene.run(&["branch", "create", "grandchild", "--from", "child"]).ok();
    scene.run(&["unmount", "child"]).ok();
    scene.run(&["mount", "grandchild", child_dir]).ok();
    let written = File::options().write(true).open(child.join("rotten")).unwrap();
    for granule in [5, 12, 14] {
        let at = (granule * GRANULE) as usize;
        wanted[at..at + 4096].fill(0xbb);
        written.write_all_at(&[0xbb; 4096], at as u64).unwrap();
    }
    written.sync_all().unwrap();
    drop(written);
    let again = |scene: &Scene| {
        scene.run(&["unmount", "grandchild"]).ok();
        scene.run(&["mount", "grandchild", child_dir]).ok();
    };
    again(&scene);
    assert!(fs::read(child.join("rotten")).unwrap() == wanted);
    for hidden in [3, 5, 12] {
        rot(&base, hidden * GRANULE + 9);
    }
    again(&scene);
    assert!(fs::read(child.join("rotten")).unwrap() == wanted, "nobody sees those pages");
    rot(&base, 6 * GRANULE + 9);
    again(&scene);
    is_eio(fs::read(child.join("rotten")));
    is_eio(read_at(&child.join("rotten"), 6 * GRANULE, 4096));
    assert!(read_at(&child.join("rotten"), 7 * GRANULE, 8192).unwrap()[..4096] == [0xaa; 4096]);
    scene.run(&["unmount", "grandchild"]).ok();
}
