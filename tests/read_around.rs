//! Pages around those that are read here and there, on a real mount.
//!
//! Needs root (what it tests opens files by number) and /dev/fuse; says so and passes where they are
//! missing. Takes 5 s.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod mount_support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mount_support::Scene;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

const PAGE: u64 = 8192;
const REGION_PAGES: u64 = 32;
const REGIONS: u64 = 24;

fn contents(page: u64) -> Vec<u8> {
    (0..PAGE).map(|at| (page * 7 + at / 512) as u8).collect()
}

/// A branch `child` with a file of `REGIONS` regions below it, mounted with `options`; nothing of the file is
/// in the mount's cache. `None` where reading around is not possible.
fn child(scene: &Scene, options: &str) -> Option<PathBuf> {
    scene.mount();
    let all: Vec<u8> = (0..REGIONS * REGION_PAGES).flat_map(contents).collect();
    fs::write(scene.dir.join("file"), all).unwrap();
    scene.run(&["branch", "create", "child", "--from", "main"]).ok();
    scene.run(&["unmount", "main"]).ok();
    scene.run(&["mount", "child", scene.dir(), "-o", options]).ok();
    if options == "readaround" && fetched(scene).is_none() {
        println!("skipped: needs CAP_DAC_READ_SEARCH and Linux 6.5");
        return None;
    }
    Some(scene.dir.join("file"))
}

/// Opened so that the kernel does not read ahead by itself.
fn open(path: &Path) -> File {
    let file = File::options().read(true).write(true).open(path).unwrap();
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).unwrap();
    file
}

fn assert_page(file: &File, page: u64) {
    let mut found = vec![0; PAGE as usize];
    file.read_exact_at(&mut found, page * PAGE).unwrap();
    assert!(found == contents(page), "page {page}");
}

fn requests(scene: &Scene, kind: &str) -> u64 {
    let status = scene.status("child");
    let requests = status["server"]["requests"].as_array().unwrap();
    let found = requests.iter().find(|request| request["kind"] == kind);
    found.map_or(0, |found| found["count"].as_u64().unwrap())
}

fn reads(scene: &Scene) -> u64 {
    requests(scene, "read")
}

fn fetched(scene: &Scene) -> Option<u64> {
    scene.status("child")["server"]["read_around"]["regions"].as_u64()
}

fn wait_until_fetched(scene: &Scene, regions: u64) {
    let end = Instant::now() + Duration::from_secs(20);
    while fetched(scene).unwrap() < regions {
        assert!(Instant::now() < end, "{:?} of {regions} regions fetched", fetched(scene));
        std::thread::sleep(Duration::from_millis(20));
    }
    // Asked for is not answered yet: until no more requests come.
    let mut seen = reads(scene);
    loop {
        std::thread::sleep(Duration::from_millis(100));
        match reads(scene) {
            now if now == seen => return,
            now => seen = now,
        }
    }
}

#[test]
fn mount_a_region_of_which_four_pages_were_read_is_fetched() {
    let scene = scene!();
    let Some(path) = child(&scene, "readaround") else { return };
    let file = open(&path);
    let first = 5 * REGION_PAGES;
    for page in [3, 30, 17] {
        assert_page(&file, first + page);
    }
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!((fetched(&scene), reads(&scene)), (Some(0), 3));
    assert_page(&file, first + 9);
    wait_until_fetched(&scene, 1);
    let before = reads(&scene);
    assert!(before <= 4 + 5, "{before} requests: what lies between the four pages is at most five");
    for page in first..first + REGION_PAGES {
        assert_page(&file, page);
    }
    assert_eq!(reads(&scene), before, "all of the region was there");
    assert_page(&file, first - 1);
    assert_page(&file, first + REGION_PAGES);
    assert_eq!(reads(&scene), before + 2, "and nothing else");
}

#[test]
fn mount_what_is_not_written_back_yet_is_left_alone() {
    let scene = scene!();
    let Some(path) = child(&scene, "readaround") else { return };
    let file = open(&path);
    let ours = |page: u64| vec![(page % 251) as u8 ^ 0xff; PAGE as usize];
    let is_ours = |page: &u64| page % REGION_PAGES % 3 == 1;
    for region in 0..REGIONS {
        let pages = region * REGION_PAGES..(region + 1) * REGION_PAGES;
        for page in pages.clone().filter(is_ours) {
            file.write_all_at(&ours(page), page * PAGE).unwrap();
        }
        for page in pages.filter(|page| !is_ours(page)).step_by(5) {
            assert_page(&file, page);
        }
        wait_until_fetched(&scene, region + 1);
    }
    let assert_all = |file: &File| {
        for page in 0..REGIONS * REGION_PAGES {
            let mut found = vec![0; PAGE as usize];
            file.read_exact_at(&mut found, page * PAGE).unwrap();
            let wanted = if is_ours(&page) { ours(page) } else { contents(page) };
            assert!(found == wanted, "page {page}");
        }
    };
    assert_all(&file);
    file.sync_all().unwrap();
    drop(file);
    scene.run(&["unmount", "child"]).ok();
    scene.run(&["mount", "child", scene.dir(), "-o", "noreadaround"]).ok();
    assert_all(&open(&path));
}

/// Closing a file would write back what others have changed in it.
#[test]
fn mount_it_does_not_write_back_what_others_write() {
    let scene = scene!();
    let Some(path) = child(&scene, "readaround") else { return };
    let file = open(&path);
    let before = requests(&scene, "write");
    for region in 1..REGIONS {
        file.write_all_at(&contents(region % REGION_PAGES), region % REGION_PAGES * PAGE).unwrap();
        for page in [1, 8, 22, 31] {
            assert_page(&file, region * REGION_PAGES + page);
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    // The process that asks closes its copies of our files, which does write back, and at once.
    let written = requests(&scene, "write") - before;
    assert!(written <= 1, "{written} writes that nobody has asked for");
    wait_until_fetched(&scene, REGIONS - 1);
    // With the last of those who write goes what keeps the mount busy.
    drop(file);
    std::thread::sleep(Duration::from_millis(300));
    nix::mount::umount(&scene.dir).unwrap();
    scene.wait_until_unserved();
}

/// A process that ends closes its files, and closing one waits until its pages are written back: by that very
/// process, if the file lies on its own mount. A killed server hung for ever, and with it whoever used
/// the mount.
#[test]
fn mount_a_server_that_is_killed_with_a_file_open_ends() {
    let scene = scene!();
    let Some(path) = child(&scene, "readaround") else { return };
    let pid = scene.status("child")["pid"].as_i64().unwrap();
    let file = open(&path);
    for region in 1..4 {
        // From here on no process is started: that would write the page back.
        file.write_all_at(&contents(0), 0).unwrap();
        for page in [1, 8, 22, 31] {
            assert_page(&file, region * REGION_PAGES + page);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let end = Instant::now() + mount_support::PATIENCE;
    while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z")) {
        assert!(Instant::now() < end, "process {pid} survives SIGKILL");
        std::thread::sleep(Duration::from_millis(20));
    }
    file.sync_all().unwrap_err();
    drop(file);
    scene.run(&["mount", "child", scene.dir()]).ok();
    assert_page(&open(&path), 0);
}

/// close(2) says that what was written has no room to the first who closes the file.
#[test]
fn mount_it_does_not_hear_the_errors_of_others() {
    if !mount_support::possible() {
        return;
    }
    let Some(scene) = Scene::on_a_disk_of(64 << 20) else { return };
    let Some(path) = child(&scene, "readaround") else { return };
    let file = open(&path);
    let some = vec![7; 1 << 20];
    for mib in 0..80 {
        // The write itself may be what says it.
        if file.write_all_at(&some, (8 + mib) << 20).is_err() {
            break;
        }
    }
    for region in 0..REGIONS {
        for page in [1, 8, 22, 31] {
            assert_page(&file, region * REGION_PAGES + page);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let closed = nix::unistd::close(file);
    assert_eq!(closed, Err(nix::errno::Errno::ENOSPC));
}

#[test]
fn mount_reads_past_the_page_cache_are_left_alone() {
    use std::os::unix::fs::OpenOptionsExt;
    let scene = scene!();
    let Some(path) = child(&scene, "readaround") else { return };
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    let mut aligned = memmap2::MmapMut::map_anon(PAGE as usize).unwrap();
    for page in 0..REGION_PAGES {
        file.read_exact_at(&mut aligned, page * PAGE).unwrap();
        assert!(aligned[..] == contents(page), "page {page}");
    }
    assert_eq!((fetched(&scene), reads(&scene)), (Some(0), REGION_PAGES));
}

#[test]
fn mount_without_it_each_page_is_a_request() {
    let scene = scene!();
    let file = open(&child(&scene, "noreadaround").unwrap());
    for page in 0..REGION_PAGES {
        assert_page(&file, page);
    }
    assert_eq!((fetched(&scene), reads(&scene)), (None, REGION_PAGES));
}

#[test]
fn mount_it_keeps_no_mount_busy_and_no_deleted_file() {
    let scene = scene!();
    let Some(path) = child(&scene, "readaround") else { return };
    for round in 0..5 {
        let file = open(&path);
        if round == 4 {
            fs::remove_file(&path).unwrap();
        }
        for page in (0..REGIONS * REGION_PAGES).step_by(7) {
            assert_page(&file, page);
        }
        drop(file);
        scene.run(&["unmount", "child"]).ok();
        scene.run(&["mount", "child", scene.dir(), "-o", "readaround"]).ok();
    }
    assert!(!path.exists());
    scene.run(&["unmount", "child"]).ok();
    scene.run(&["check", "--read-data"]).ok();
}
