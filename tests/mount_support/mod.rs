//! What the tests share that mount: a store with a branch, commands on it, and cleaning up.
// Each suite is a program of its own and uses a part of this.
#![allow(dead_code, unused_macros)]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long a test waits for what must happen soon.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A store with the branch `main` and a directory to mount it on. Cleans up after itself, also
/// when a test fails.
pub struct Scene {
    pub temp: tempfile::TempDir,
    pub store: PathBuf,
    pub dir: PathBuf,
}

/// What a command said.
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self.out + &self.err
    }

    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        self.err
    }
}

pub fn said(output: &Output) -> Said {
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Whether mounting can be tested here; says why if not.
pub fn possible() -> bool {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root");
        return false;
    }
    if fs::File::open("/dev/fuse").is_err() {
        println!("skipped: /dev/fuse is missing");
        return false;
    }
    true
}

/// The program under test: that of this build, or `COWFS_BIN`.
pub fn program() -> PathBuf {
    std::env::var_os("COWFS_BIN").map_or(env!("CARGO_BIN_EXE_cowfs").into(), PathBuf::from)
}

impl Scene {
    pub fn new() -> Option<Scene> {
        Scene::below("store")
    }

    pub fn below(store: &str) -> Option<Scene> {
        if !possible() {
            return None;
        }
        Some(Scene::within(tempfile::tempdir().unwrap(), store))
    }

    /// With the store on a disk of its own, of that many bytes.
    pub fn on_a_disk_of(bytes: u64) -> Option<Scene> {
        if !possible() {
            return None;
        }
        let temp = tempfile::tempdir().unwrap();
        let small = temp.path().join("small");
        fs::create_dir(&small).unwrap();
        let (none, flags) = (Some("none"), nix::mount::MsFlags::empty());
        let size = format!("size={bytes}");
        nix::mount::mount(none, &small, Some("tmpfs"), flags, Some(size.as_str())).unwrap();
        Some(Scene::within(temp, "small/store"))
    }

    /// With the store on an XFS of its own, which shares blocks (reflink), below `xfs`.
    pub fn on_xfs() -> Option<Scene> {
        if !possible() {
            return None;
        }
        let temp = tempfile::tempdir().unwrap();
        let (image, dir) = (temp.path().join("xfs.img"), temp.path().join("xfs"));
        fs::create_dir(&dir).unwrap();
        // The least that mkfs.xfs takes is 300 MB.
        fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
        let Ok(made) = Command::new("mkfs.xfs").arg("-q").arg(&image).output() else {
            println!("skipped: needs mkfs.xfs (package xfsprogs)");
            return None;
        };
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mounted = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&dir).output();
        let mounted = mounted.unwrap();
        assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
        Some(Scene::within(temp, "xfs/store"))
    }

    pub fn within(temp: tempfile::TempDir, store: &str) -> Scene {
        let root = temp.path().canonicalize().unwrap();
        let scene = Scene { store: root.join(store), dir: root.join("dir"), temp };
        fs::create_dir_all(scene.store.parent().unwrap()).unwrap();
        fs::create_dir(&scene.dir).unwrap();
        scene.run(&["init"]).ok();
        scene.run(&["branch", "create", "main", "--empty"]).ok();
        scene
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(args).env("COWFS_STORE", &self.store).env_remove("COWFS_LOG");
        command
    }

    pub fn run(&self, args: &[&str]) -> Said {
        said(&self.command(args).stdin(Stdio::null()).output().unwrap())
    }

    pub fn dir(&self) -> &str {
        self.dir.to_str().unwrap()
    }

    pub fn mount(&self) -> String {
        self.run(&["mount", "main", self.dir()]).ok()
    }

    pub fn status(&self, branch: &str) -> Value {
        serde_json::from_str(&self.run(&["status", branch, "--json"]).ok()).unwrap()
    }

    pub fn server(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.status("main")["pid"].as_i64().unwrap()).unwrap())
    }

    pub fn mounts(&self) -> Vec<String> {
        mounts_below(self.temp.path())
    }

    pub fn run_file(&self, name: &str) -> PathBuf {
        self.store.join("run").join(name)
    }

    #[track_caller]
    pub fn wait_until_unserved(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.status("main")["state"] != "not_mounted" {
            assert!(Instant::now() < deadline, "{}", self.status("main"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

pub fn mounts_below(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|mount_point| mount_point.starts_with(dir))
        .map(str::to_owned)
        .collect()
}

/// Processes of ours that serve something below `dir`.
pub fn servers_below(dir: &Path) -> Vec<Pid> {
    let dir = dir.to_str().unwrap();
    let ours = |pid: &i32| {
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("--ready-on-stdout") && line.contains(dir)
    };
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(ours)
        .map(Pid::from_raw)
        .collect()
}

impl Drop for Scene {
    fn drop(&mut self) {
        let root = self.temp.path().canonicalize().unwrap();
        for pid in servers_below(&root) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        for mount_point in mounts_below(&root).iter().rev() {
            let _ = nix::mount::umount2(mount_point.as_str(), nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// A child that does not outlive the test.
pub struct Guard(pub Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A shell that has run `script` and waits; it holds what the script opened.
pub fn shell(script: &str, dir: &Path) -> Guard {
    let mut child = Command::new("sh")
        .args(["-c", &format!("{script}; echo ready; read line")])
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    Guard(child)
}

macro_rules! scene {
    () => {
        match Scene::new() {
            Some(scene) => scene,
            None => return,
        }
    };
}
