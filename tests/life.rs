//! The life of a branch on real mounts and with a real server: snapshots, reset, restore, undo,
//! expiry, protection.
//!
//! Needs root, /dev/fuse and (for the last ones) Debian's Postgres 15; says so and passes where
//! they are missing. About half a minute.
#![allow(clippy::unwrap_used)]

mod mount_support;
mod postgres_support;

use std::fs;
use std::path::{Path, PathBuf};

use mount_support::Scene;
use postgres_support::Scene as PostgresScene;
use serde_json::Value;

fn program(name: &str) -> String {
    format!("{}/{name}", postgres_support::BIN)
}

fn json(scene: &Scene, args: &[&str]) -> Value {
    let mut args = args.to_vec();
    args.push("--json");
    let said = scene.run(&args);
    assert_eq!(said.code, 0, "{args:?}: {}", said.err);
    serde_json::from_str(&said.out).unwrap()
}

/// Mounts `branch` at a directory of its own.
fn at(scene: &Scene, branch: &str) -> PathBuf {
    let dir = scene.temp.path().join(format!("at-{branch}"));
    fs::create_dir_all(&dir).unwrap();
    scene.run(&["mount", branch, dir.to_str().unwrap()]).ok();
    dir
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap()
}

#[test]
fn mount_a_snapshot_of_a_served_branch_is_what_it_was() {
    let Some(scene) = Scene::new() else { return };
    let main = at(&scene, "main");
    let mut made = Vec::new();
    for round in 0..4 {
        fs::write(main.join("f"), format!("state {round}")).unwrap();
        fs::write(main.join(format!("only-{round}")), "x").unwrap();
        if round > 0 {
            fs::remove_file(main.join(format!("only-{}", round - 1))).unwrap();
        }
        let said = json(&scene, &["snapshot", "create", &format!("main@s{round}")]);
        assert_eq!(
            (&said["branch"], &said["snapshot"]),
            (&"main".into(), &format!("s{round}").into())
        );
        made.push(round);
    }
    let unnamed = json(&scene, &["snapshot", "create", "main"]);
    assert!(unnamed["snapshot"].as_str().unwrap().starts_with("at-2"), "{unnamed}");
    scene.run(&["snapshot", "create", "main@s0"]).fails(1);
    for round in made {
        let name = format!("b{round}");
        let from = format!("main@s{round}");
        let said = scene.run(&["branch", "create", &name, "--from", &from]).ok();
        assert!(said.starts_with(&format!("Created branch {name} from {from} in ")), "{said}");
        let dir = at(&scene, &name);
        assert_eq!(read(&dir, "f"), format!("state {round}"));
        let mut names: Vec<String> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["f".to_owned(), format!("only-{round}")]);
        fs::write(dir.join("f"), "its own").unwrap();
    }
    assert_eq!(read(&main, "f"), "state 3");
    let listed = json(&scene, &["snapshot", "list", "main"]);
    assert_eq!(listed.as_array().unwrap().len(), 5);
    scene.run(&["snapshot", "delete", "main@s1"]).ok();
    let gone = scene.run(&["branch", "create", "x", "--from", "main@s1"]).fails(1);
    assert!(gone.contains("there is no snapshot main@s1") && gone.contains("Hint: "), "{gone}");
    scene.run(&["gc", "--now"]).ok();
    scene.run(&["check", "--read-data"]).ok();
}

#[test]
fn mount_a_restored_branch_is_what_it_was_and_undo_brings_the_rest_back() {
    let Some(scene) = Scene::new() else { return };
    let main = at(&scene, "main");
    fs::write(main.join("f"), "good").unwrap();
    scene.run(&["snapshot", "create", "main@good"]).ok();
    fs::write(main.join("f"), "spoilt").unwrap();
    let busy = scene.run(&["branch", "restore", "main", "good"]).fails(1);
    assert!(busy.contains("mounted") && busy.contains("cowfs unmount main"), "{busy}");
    scene.run(&["unmount", "main"]).ok();
    let none = scene.run(&["branch", "restore", "main", "god"]).fails(1);
    assert!(none.contains("there is no snapshot main@god"), "{none}");
    let said = json(&scene, &["branch", "restore", "main", "good"]);
    let operation = said["operation"].to_string();
    assert_eq!(read(&at(&scene, "main"), "f"), "good");
    let busy = scene.run(&["undo", &operation]).fails(1);
    assert!(busy.contains("branch main is mounted"), "{busy}");
    scene.run(&["unmount", "main"]).ok();
    scene.run(&["gc"]).ok();
    let undone = scene.run(&["undo", &operation]).ok();
    assert!(undone.starts_with(&format!("Took back operation {operation} ")), "{undone}");
    assert_eq!(read(&at(&scene, "main"), "f"), "spoilt");
    scene.run(&["unmount", "main"]).ok();
    scene.run(&["undo"]).ok();
    assert_eq!(read(&at(&scene, "main"), "f"), "good", "an undo is taken back");
    scene.run(&["unmount", "main"]).ok();
    scene.run(&["gc", "--now"]).ok();
    let late = scene.run(&["undo"]).fails(1);
    assert!(late.contains("gc has taken what was kept"), "{late}");
    scene.run(&["check", "--read-data"]).ok();
}

#[test]
fn mount_a_reset_branch_is_like_its_parent_and_keeps_its_children() {
    let Some(scene) = Scene::new() else { return };
    let main = at(&scene, "main");
    fs::write(main.join("f"), "old").unwrap();
    scene.run(&["branch", "create", "dev", "--from", "main"]).ok();
    let dev = at(&scene, "dev");
    fs::write(dev.join("mine"), "dev").unwrap();
    scene.run(&["branch", "create", "sub", "--from", "dev"]).ok();
    scene.run(&["unmount", "dev"]).ok();
    // The parent is served and has changed since.
    fs::write(main.join("f"), "new").unwrap();
    scene.run(&["branch", "reset", "dev", "--preserve-as", "dev-old"]).ok();
    let dev = at(&scene, "dev");
    assert_eq!(read(&dev, "f"), "new");
    assert!(!dev.join("mine").exists());
    let old = at(&scene, "dev-old");
    assert_eq!((read(&old, "f"), read(&old, "mine")), ("old".to_owned(), "dev".to_owned()));
    let sub = at(&scene, "sub");
    assert_eq!((read(&sub, "f"), read(&sub, "mine")), ("old".to_owned(), "dev".to_owned()));
    let shown = json(&scene, &["branch", "show", "sub"]);
    assert_eq!(shown["parent"], "dev");
    assert_eq!(json(&scene, &["snapshot", "list"]), Value::Array(Vec::new()), "none is left over");
    for (args, wanted) in [
        (&["branch", "reset", "main"][..], "branch main has no parent"),
        (&["branch", "reset", "dev", "--to", "dev"], "is what it is already"),
        (&["branch", "reset", "dev", "--to", "nobody"], "there is no branch nobody"),
        (&["branch", "reset", "dev", "--preserve-as", "sub"], "branch sub exists already"),
        (&["branch", "reset", "dev"], "branch dev is mounted"),
    ] {
        let said = scene.run(args);
        assert!(said.err.contains(wanted), "{args:?}: {}", said.err);
    }
    scene.run(&["check", "--read-data"]).ok();
}

#[test]
fn mount_what_has_expired_goes_with_the_next_gc() {
    let Some(scene) = Scene::new() else { return };
    let main = at(&scene, "main");
    fs::write(main.join("f"), "x").unwrap();
    scene.run(&["snapshot", "create", "main@short", "--ttl", "1s"]).ok();
    scene.run(&["snapshot", "create", "main@long", "--ttl", "1d"]).ok();
    for name in ["idle", "used", "safe", "later"] {
        let ttl = if name == "later" { "1h" } else { "1s" };
        scene.run(&["branch", "create", name, "--from", "main", "--ttl", ttl]).ok();
    }
    at(&scene, "used");
    scene.run(&["branch", "protect", "safe"]).ok();
    let refused = scene.run(&["branch", "delete", "safe", "--force"]).fails(1);
    assert!(refused.contains("branch safe is protected"), "{refused}");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let would = json(&scene, &["gc", "--dry-run"]);
    let report = json(&scene, &["gc"]);
    for report in [&would, &report] {
        assert_eq!(report["expired_branches"], serde_json::json!(["idle"]), "{report}");
        assert_eq!(report["expired_snapshots"], 1, "{report}");
    }
    assert_eq!(report["expired_branches_kept"], serde_json::json!(["safe", "used"]));
    let names = |said: &Value, key: &str| {
        said.as_array().unwrap().iter().map(|row| row[key].as_str().unwrap().to_owned()).collect()
    };
    let branches: Vec<String> = names(&json(&scene, &["branch", "list"]), "name");
    assert_eq!(branches, ["later", "main", "safe", "used"]);
    let snapshots: Vec<String> = names(&json(&scene, &["snapshot", "list"]), "snapshot");
    assert_eq!(snapshots, ["long"]);
    scene.run(&["undo", "--branch", "idle"]).ok();
    scene.run(&["branch", "expire", "idle", "never"]).ok();
    assert_eq!(json(&scene, &["gc"])["expired_branches"], serde_json::json!([]));
    let log = json(&scene, &["log", "idle"]);
    assert!(log.as_array().unwrap().len() >= 4, "{log}");
}

#[test]
fn mount_postgres_is_restarted_over_a_reset_and_a_restore() {
    let Some(scene) = PostgresScene::with_cluster("") else { return };
    scene.run(&["start", "main"]).ok();
    scene.sql("main", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    scene.run(&["fork", "main", "dev"]).ok();
    let url = scene.run(&["url", "dev"]).ok();
    scene.run(&["snapshot", "create", "dev@before"]).ok();
    scene.sql("dev", "DROP TABLE t");
    let refused = scene.run(&["branch", "restore", "dev", "before"]).fails(1);
    assert!(refused.contains("Postgres runs on branch dev") && refused.contains("--restart"));
    let said = scene.run(&["branch", "restore", "dev", "before", "--restart"]);
    assert_eq!(said.ok(), url, "clients have the URL");
    assert_eq!(scene.sql("dev", "SELECT count(*) FROM t"), "1000");
    scene.sql("main", "INSERT INTO t VALUES (0)");
    scene.run(&["branch", "reset", "dev", "--restart"]).ok();
    assert_eq!(scene.sql("dev", "SELECT count(*) FROM t"), "1001");
    assert_eq!(scene.setting("dev", "cluster_name"), "dev");
    // A server straight on a snapshot.
    scene.run(&["fork", "dev@before", "again"]).ok();
    assert_eq!(scene.sql("again", "SELECT count(*) FROM t"), "1000");
    let out = scene.run(&["try", "dev@before", "--", "psql", "-XqAtc", "SELECT count(*) FROM t"]);
    assert_eq!(out.ok(), "1000");
    let refused = scene.run(&["fork", "dev@before", "y", "--checkpoint"]).fails(2);
    assert!(refused.contains("--checkpoint"), "{refused}");
}

#[test]
fn mount_an_export_is_the_tree_and_needs_no_store() {
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
    let Some(scene) = Scene::new() else { return };
    let main = at(&scene, "main");
    fs::create_dir_all(main.join("a/b")).unwrap();
    fs::write(main.join("a/f"), vec![7_u8; 70_001]).unwrap();
    fs::hard_link(main.join("a/f"), main.join("a/b/same")).unwrap();
    std::os::unix::fs::symlink("../a/f", main.join("a/link")).unwrap();
    nix::unistd::mkfifo(&main.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let sparse = fs::File::create(main.join("sparse")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    sparse.write_all_at(b"far", 40 << 20).unwrap();
    scene.run(&["snapshot", "create", "main@s"]).ok();
    // Some pages of it over those of the snapshot.
    fs::File::options()
        .write(true)
        .open(main.join("a/f"))
        .unwrap()
        .write_all_at(b"new", 8192)
        .unwrap();
    fs::set_permissions(main.join("a"), fs::Permissions::from_mode(0o2750)).unwrap();
    fs::set_permissions(main.join("a/f"), fs::Permissions::from_mode(0o4640)).unwrap();
    nix::unistd::chown(&main.join("a/f"), Some(1234.into()), Some(4321.into())).unwrap();
    fs::set_permissions(main.join("a/f"), fs::Permissions::from_mode(0o4640)).unwrap();
    let out = scene.temp.path().join("out");
    let said = json(&scene, &["export", "main", out.to_str().unwrap()]);
    assert_eq!(
        (&said["files"], &said["directories"], &said["others"]),
        (&2.into(), &3.into(), &2.into())
    );
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let (was, is) = (main.join(&path), out.join(&path));
        let (a, b) = (was.symlink_metadata().unwrap(), is.symlink_metadata().unwrap());
        assert_eq!(
            (a.mode(), a.uid(), a.gid()),
            (b.mode(), b.uid(), b.gid()),
            "{}",
            path.display()
        );
        // The kernel tells of the time of a write when it has written it back.
        let apart = a.modified().unwrap().max(b.modified().unwrap());
        let apart = apart.duration_since(a.modified().unwrap().min(b.modified().unwrap()));
        assert!(apart.unwrap() < std::time::Duration::from_secs(1), "{}", path.display());
        if a.is_file() {
            assert!(fs::read(&was).unwrap() == fs::read(&is).unwrap(), "{}", path.display());
            assert_eq!(a.nlink(), b.nlink());
        } else if a.is_dir() {
            for entry in fs::read_dir(&was).unwrap() {
                pending.push(path.join(entry.unwrap().file_name()));
            }
            assert_eq!(fs::read_dir(&was).unwrap().count(), fs::read_dir(&is).unwrap().count());
        } else if a.is_symlink() {
            assert_eq!(fs::read_link(&was).unwrap(), fs::read_link(&is).unwrap());
        }
    }
    assert_eq!(
        out.join("a/f").metadata().unwrap().ino(),
        out.join("a/b/same").metadata().unwrap().ino()
    );
    assert!(out.join("sparse").metadata().unwrap().blocks() < 1000, "holes stay holes");
    // As a tar, and of the snapshot.
    let tar = scene.temp.path().join("s.tar");
    scene.run(&["export", "main@s", "--tar", tar.to_str().unwrap()]).ok();
    let unpacked = scene.temp.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let status =
        std::process::Command::new("tar").arg("xpf").arg(&tar).arg("-C").arg(&unpacked).status();
    assert!(status.unwrap().success());
    assert_eq!(fs::read(unpacked.join("a/b/same")).unwrap(), vec![7; 70_001]);
    assert_eq!(fs::read_link(unpacked.join("a/link")).unwrap(), Path::new("../a/f"));
    for (args, code, wanted) in [
        (&["export", "main", out.to_str().unwrap()][..], 1, "is there already, and not empty"),
        (&["export", "main", "--tar", tar.to_str().unwrap()], 1, "is there already"),
        (&["export", "main@none", "/nowhere/x"], 1, "/nowhere/x"),
        (
            &["export", "nobody", scene.temp.path().join("n").to_str().unwrap()],
            1,
            "no branch nobody",
        ),
        (&["export", "main", "--tar", "-", "--json"], 2, "standard output"),
        (&["export", "main"], 2, "required"),
    ] {
        let error = scene.run(args).fails(code);
        assert!(error.contains(wanted), "{args:?}: {error}");
    }
    let branches = json(&scene, &["branch", "list"]);
    assert_eq!(branches.as_array().unwrap().len(), 1, "nothing is left over: {branches}");
    assert_eq!(json(&scene, &["snapshot", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn mount_an_export_takes_no_space_where_the_host_shares_blocks() {
    use std::os::unix::fs::FileExt;
    let Some(scene) = Scene::on_xfs() else { return };
    let main = at(&scene, "main");
    fs::write(main.join("big"), vec![7; 48 << 20]).unwrap();
    scene.run(&["snapshot", "create", "main@s"]).ok();
    // Of two layers, and with an end that fills no block.
    let big = fs::File::options().write(true).open(main.join("big")).unwrap();
    big.write_all_at(&vec![8; 1 << 20], 4 << 20).unwrap();
    big.write_all_at(b"end", 48 << 20).unwrap();
    big.sync_all().unwrap();
    let xfs = scene.temp.path().join("xfs");
    let free = || {
        let stat = nix::sys::statvfs::statvfs(&xfs).unwrap();
        stat.blocks_free() * stat.fragment_size()
    };
    let before = free();
    let said = json(&scene, &["export", "main", xfs.join("out").to_str().unwrap()]);
    assert!(said["shared_bytes"].as_u64().unwrap() >= 48 << 20, "{said}");
    let took = before.saturating_sub(free());
    assert!(took < 8 << 20, "{took} bytes for a copy that shares its blocks");
    assert!(fs::read(xfs.join("out/big")).unwrap() == fs::read(main.join("big")).unwrap());
    // Writing to the one leaves the other as it was.
    fs::write(xfs.join("out/big"), "mine").unwrap();
    assert_eq!(fs::metadata(main.join("big")).unwrap().len(), (48 << 20) + 3);
    drop(big);
    scene.run(&["check", "--read-data"]).ok();
}

#[test]
fn mount_an_export_of_a_running_postgres_starts_without_cowfs() {
    let Some(scene) = PostgresScene::with_cluster("") else { return };
    scene.run(&["start", "main"]).ok();
    scene.sql("main", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    for (name, clean) in [("crashed", false), ("clean", true)] {
        let dir = scene.path(name);
        let mut args = vec!["export", "main", dir.to_str().unwrap()];
        args.extend(clean.then_some("--clean"));
        scene.run(&args).ok();
        let control =
            postgres_support::as_postgres(&program("pg_controldata"), &[dir.to_str().unwrap()]);
        let state =
            control.lines().find(|line| line.starts_with("Database cluster state")).unwrap();
        assert_eq!(state.contains("shut down"), clean, "{name}: {state}");
        let socket = scene.path(&format!("{name}.sock"));
        fs::create_dir(&socket).unwrap();
        std::os::unix::fs::chown(&socket, Some(postgres_support::postgres_uid()), None).unwrap();
        let options =
            format!("-c listen_addresses= -c unix_socket_directories={}", socket.display());
        let dir = dir.to_str().unwrap();
        let log = format!("{}/log", socket.display());
        postgres_support::as_postgres(
            &program("pg_ctl"),
            &["-w", "-D", dir, "-l", &log, "-o", &options, "start"],
        );
        let host = socket.to_str().unwrap();
        let rows = postgres_support::as_postgres(
            &program("psql"),
            &["-h", host, "-XqAtc", "SELECT count(*) FROM t"],
        );
        postgres_support::as_postgres(&program("pg_ctl"), &["-w", "-D", dir, "-m", "fast", "stop"]);
        assert_eq!(rows.trim(), "1000", "{name}");
    }
    assert_eq!(scene.branches(), ["main"]);
}

#[test]
fn mount_what_deleting_frees_is_what_gc_frees() {
    let Some(scene) = Scene::new() else { return };
    let main = at(&scene, "main");
    fs::write(main.join("f"), vec![1; 1 << 20]).unwrap();
    scene.run(&["snapshot", "create", "main@s"]).ok();
    fs::write(main.join("f"), vec![2; 1 << 20]).unwrap();
    scene.run(&["branch", "create", "dev", "--from", "main"]).ok();
    let dev = at(&scene, "dev");
    fs::write(dev.join("g"), vec![3; 3 << 20]).unwrap();
    for branch in ["dev", "main"] {
        scene.run(&["unmount", branch]).ok();
    }
    let of = |name: &str, key: &str| {
        let report = json(&scene, &["du"]);
        let all = report["usage"].as_array().unwrap().clone();
        let found = all.iter().find(|usage| usage["name"] == name);
        found.unwrap_or_else(|| panic!("{name} in {report}"))[key].as_u64().unwrap()
    };
    assert!(of("main@s", "reclaimable_bytes") < 1 << 20, "dev stands on it, too");
    let frees = of("dev", "reclaimable_bytes");
    assert!((3 << 20..4 << 20).contains(&frees), "{frees}");
    scene.run(&["branch", "delete", "dev"]).ok();
    assert!(scene.run(&["du"]).ok().contains("dev (deleted)"));
    assert_eq!(json(&scene, &["gc"])["bytes"], 0);
    assert_eq!(json(&scene, &["gc", "--now"])["bytes"], frees);
}

#[test]
fn mount_a_branch_at_its_quota_is_full_and_no_other_is() {
    use std::os::unix::fs::FileExt;
    let Some(scene) = Scene::new() else { return };
    let main = at(&scene, "main");
    fs::write(main.join("shared"), vec![1; 3 << 20]).unwrap();
    scene.run(&["branch", "create", "kid", "--from", "main"]).ok();
    // What it shares does not count. A mounted branch is told, an unmounted one will know.
    scene.run(&["branch", "quota", "kid", "8M"]).ok();
    let dir = scene.temp.path().join("at-kid");
    fs::create_dir(&dir).unwrap();
    scene.run(&["mount", "kid", dir.to_str().unwrap(), "-o", "writethrough"]).ok();
    let file = fs::File::create(dir.join("own")).unwrap();
    let full = |error: std::io::Error| error.raw_os_error() == Some(nix::libc::ENOSPC);
    let (block, mut written) = (vec![7; 64 << 10], 0);
    let error = loop {
        match file.write_all_at(&block, written) {
            Ok(()) => written += 64 << 10,
            Err(error) => break error,
        }
    };
    assert!(full(error) && (4 << 20..=8 << 20).contains(&written), "{written}");
    file.sync_all().unwrap();
    assert!(full(fs::write(dir.join("more"), vec![1; 100_000]).unwrap_err()));
    // What is there can be written over, and what goes makes room.
    file.write_all_at(&[8; 4096], 0).unwrap();
    let left = nix::sys::statvfs::statvfs(&dir).unwrap();
    assert!(left.blocks() * left.fragment_size() == 8 << 20 && left.blocks_free() < 64);
    fs::write(main.join("other"), vec![2; 16 << 20]).unwrap();
    assert_eq!(fs::read(dir.join("shared")).unwrap(), vec![1; 3 << 20]);
    scene.run(&["branch", "quota", "kid", "16M"]).ok();
    fs::write(dir.join("more"), vec![1; 2 << 20]).unwrap();
    scene.run(&["branch", "quota", "kid", "9M"]).ok();
    file.set_len(1 << 20).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    fs::write(dir.join("again"), vec![1; 1 << 20]).unwrap();
    // A fork of it counts from nothing, and has no quota of its own.
    scene.run(&["branch", "create", "grandchild", "--from", "kid"]).ok();
    fs::write(at(&scene, "grandchild").join("big"), vec![3; 12 << 20]).unwrap();
    let shown = json(&scene, &["branch", "show", "kid"]);
    assert_eq!(shown["quota_bytes"], 9 << 20);
    let listed = scene.run(&["branch", "list"]).ok();
    assert!(listed.contains("quota 9.00 MiB"), "{listed}");
    for wrong in ["0", "10X", "-1"] {
        scene.run(&["branch", "quota", "kid", wrong]).fails(2);
    }
    scene.run(&["branch", "quota", "kid", "none"]).ok();
    fs::write(dir.join("free"), vec![1; 16 << 20]).unwrap();
    drop(file);
    scene.run(&["check", "--read-data"]).ok();
}

#[test]
fn mount_the_daemon_takes_snapshots_and_reaps() {
    let Some(scene) = Scene::new() else { return };
    let main = at(&scene, "main");
    fs::write(main.join("f"), "x").unwrap();
    scene.run(&["snapshot", "schedule", "main", "--every", "1s", "--keep", "2s"]).ok();
    let shown = json(&scene, &["snapshot", "schedule", "main"]);
    assert_eq!((&shown["every_seconds"], &shown["keep_seconds"]), (&1.into(), &2.into()));
    scene.run(&["branch", "create", "brief", "--from", "main", "--ttl", "1s"]).ok();
    let count = || json(&scene, &["snapshot", "list", "main"]).as_array().unwrap().len();
    let mut child = scene.command(&["daemon", "--reap", "--grace", "1s", "--every", "100ms"]);
    let mut daemon = mount_support::Guard(child.spawn().unwrap());
    let deadline = std::time::Instant::now() + mount_support::PATIENCE;
    // Some come, and not all that came are still there.
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 5 {
        assert!(std::time::Instant::now() < deadline, "{seen:?}");
        for row in json(&scene, &["snapshot", "list", "main"]).as_array().unwrap() {
            seen.insert(row["snapshot"].as_str().unwrap().to_owned());
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(count() < 5, "those that have expired are gone");
    let busy = scene.run(&["daemon", "--once"]).fails(1);
    assert!(busy.contains("another daemon"), "{busy}");
    let branches = json(&scene, &["branch", "list"]);
    assert_eq!(branches.as_array().unwrap().len(), 1, "{branches}");
    let log = json(&scene, &["log"]);
    let purged = log.as_array().unwrap().iter().any(|row| row["detail"] == "purged brief");
    assert!(purged, "{log}");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(daemon.0.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(daemon.0.wait().unwrap().success());
    scene.run(&["snapshot", "schedule", "main", "--off"]).ok();
    let before = count();
    scene.run(&["daemon", "--once"]).ok();
    assert!(count() <= before);
    scene.run(&["check"]).ok();
}

#[test]
fn the_doctor_says_what_is_missing_and_how_to_mend_it() {
    let Some(scene) = Scene::new() else { return };
    let all = json(&scene, &["doctor"]);
    let of = |all: &Value, what: &str| {
        let found = all.as_array().unwrap().iter().find(|finding| finding["what"] == what).cloned();
        found.unwrap_or_else(|| panic!("{what} in {all}"))
    };
    for what in ["fuse device", "kernel", "user", "open files", "store", "filesystem", "mounts"] {
        assert_eq!(of(&all, what)["verdict"], "ok", "{what}: {all}");
    }
    scene.mount();
    nix::sys::signal::kill(scene.server(), nix::sys::signal::Signal::SIGKILL).unwrap();
    let deadline = std::time::Instant::now() + mount_support::PATIENCE;
    while scene.status("main")["state"] != "dead" {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let said = scene.run(&["doctor"]).ok();
    assert!(said.contains("dead: main") && said.contains("-> `cowfs unmount BRANCH`"), "{said}");
    scene.run(&["unmount", "main"]).ok();
    fs::write(scene.store.join("FORMAT"), "nonsense").unwrap();
    let broken = scene.run(&["doctor"]);
    assert!(broken.code == 1 && broken.out.contains("MISSING"), "{}", broken.out);
    let elsewhere = scene.command(&["doctor"]).env("COWFS_STORE", "/nonexistent/store").output();
    let elsewhere = mount_support::said(&elsewhere.unwrap()).ok();
    assert!(elsewhere.contains("`cowfs init` makes one"), "{elsewhere}");
}

#[test]
fn mount_by_the_helper_of_mount() {
    let Some(scene) = Scene::new() else { return };
    let helper = scene.temp.path().join("mount.fuse.cowfs");
    std::os::unix::fs::symlink(mount_support::program(), &helper).unwrap();
    let options =
        format!("rw,nofail,x-systemd.after=network.target,store={}", scene.store.display());
    let mut command = std::process::Command::new(&helper);
    command.args(["main", scene.dir(), "-n", "-t", "fuse.cowfs", "-o", &options]);
    let output = command.env_remove("COWFS_STORE").stdin(std::process::Stdio::null()).output();
    mount_support::said(&output.unwrap()).ok();
    fs::write(scene.dir.join("f"), "x").unwrap();
    assert_eq!(scene.status("main")["state"], "mounted");
    scene.run(&["unmount", "main"]).ok();
}
