//! A store with a Postgres cluster in it, and the command to work on it. Cleans up after itself,
//! also when a test fails.
// Each suite is a program of its own and uses a part of this.
#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Where Debian has the binaries of Postgres 15.
pub const BIN: &str = "/usr/lib/postgresql/15/bin";

/// What a command said.
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn of(output: &Output) -> Said {
        Said {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The standard output of a command that must have succeeded, trimmed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self.out.trim().to_owned()
    }

    /// The standard error of a command that must have failed.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        self.err
    }
}

/// Whether a server can run on a mount here; says why if not.
fn possible() -> bool {
    let missing = if !nix::unistd::geteuid().is_root() {
        "root"
    } else if fs::File::open("/dev/fuse").is_err() {
        "/dev/fuse"
    } else if !Path::new(BIN).join("initdb").exists() {
        "Debian's PostgreSQL 15"
    } else {
        return true;
    };
    eprintln!("SKIPPED: needs {missing}");
    false
}

/// Runs a program as the user postgres.
#[track_caller]
pub fn as_postgres(program: &str, args: &[&str]) -> String {
    let done = Command::new("runuser")
        .args(["-u", "postgres", "--", program])
        .args(args)
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    Said::of(&done).ok()
}

/// A store of its own, with a runtime directory of its own.
pub struct Scene {
    temp: tempfile::TempDir,
}

impl Scene {
    /// An empty store.
    pub fn empty() -> Option<Scene> {
        if !possible() {
            return None;
        }
        let temp = tempfile::tempdir().unwrap();
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let scene = Scene { temp };
        scene.run(&["init"]).ok();
        Some(scene)
    }

    /// A store whose branch `main` is the copy of a new cluster with `config` added.
    pub fn with_cluster(config: &str) -> Option<Scene> {
        let scene = Scene::empty()?;
        let cluster = scene.initdb("cluster", config);
        scene.run(&["import", cluster.to_str().unwrap(), "--as", "main"]).ok();
        Some(scene)
    }

    /// A new, stopped cluster in a directory of its own.
    pub fn initdb(&self, name: &str, config: &str) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir(&dir).unwrap();
        std::os::unix::fs::chown(&dir, Some(postgres_uid()), None).unwrap();
        initdb_in(&dir, config);
        dir
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cowfs"));
        command
            .args(args)
            .env("COWFS_STORE", self.path("store"))
            .env("COWFS_RUNTIME_DIR", self.path("r"))
            .env("LC_ALL", "C")
            .env_remove("COWFS_LOG")
            .stdin(Stdio::null());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PG")) {
            command.env_remove(name);
        }
        command
    }

    pub fn run(&self, args: &[&str]) -> Said {
        Said::of(&self.command(args).output().unwrap())
    }

    /// What a query gives on a branch, through its socket.
    #[track_caller]
    pub fn sql(&self, branch: &str, sql: &str) -> String {
        self.run(&["psql", branch, "--", "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", sql]).ok()
    }

    /// The value of a setting on a branch.
    #[track_caller]
    pub fn setting(&self, branch: &str, name: &str) -> String {
        self.sql(branch, &format!("SHOW {name}"))
    }

    #[track_caller]
    pub fn show(&self, branch: &str) -> Value {
        serde_json::from_str(&self.run(&["branch", "show", branch, "--json"]).ok()).unwrap()
    }

    /// The postmaster of a branch.
    #[track_caller]
    pub fn postmaster(&self, branch: &str) -> i32 {
        i32::try_from(self.show(branch)["postgres"]["pid"].as_i64().unwrap()).unwrap()
    }

    /// Where a branch is mounted.
    #[track_caller]
    pub fn mount_point(&self, branch: &str) -> PathBuf {
        PathBuf::from(self.show(branch)["mounted"]["mount_point"].as_str().unwrap())
    }

    pub fn branches(&self) -> Vec<String> {
        let said = self.run(&["branch", "list", "--json"]);
        let listed: Value = serde_json::from_str(&said.out).unwrap_or_default();
        let names = listed.as_array().cloned().unwrap_or_default();
        names.iter().filter_map(|branch| Some(branch["name"].as_str()?.to_owned())).collect()
    }

    pub fn mounts(&self) -> Vec<String> {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let below = self.temp.path().to_str().unwrap();
        let points = text.lines().filter_map(|line| line.split(' ').nth(4));
        points.filter(|point| point.starts_with(below)).map(str::to_owned).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for branch in self.branches() {
            let said = self.run(&["branch", "delete", "--force", &branch]);
            if said.code != 0 {
                eprintln!("cleaning up: {}", said.err);
            }
        }
        for mount in self.mounts() {
            let _ = Command::new("umount").args(["-l", &mount]).output();
        }
    }
}

/// A new cluster in `dir`, which the user postgres can write to.
pub fn initdb_in(dir: &Path, config: &str) {
    let dir_text = dir.to_str().unwrap();
    let options = ["-D", dir_text, "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"];
    as_postgres(&format!("{BIN}/initdb"), &options);
    let path = dir.join("postgresql.conf");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}\n{config}\n")).unwrap();
}

pub fn postgres_uid() -> u32 {
    nix::unistd::User::from_name("postgres").unwrap().unwrap().uid.as_raw()
}
