//! Postgres on branches with the real program, the real kernel and a real server.
//!
//! Needs root, /dev/fuse and Debian's Postgres 15; says so and passes where they are missing.
#![allow(clippy::unwrap_used)]

mod postgres_support;

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres_support::{BIN, Said, Scene, initdb_in, postgres_uid};

const PATIENCE: Duration = Duration::from_secs(60);

#[track_caller]
fn wait_for(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_alive(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None).is_ok()
}

fn psql_at(url: &str, sql: &str) -> Said {
    let psql = format!("{BIN}/psql");
    Said::of(&Command::new(psql).args(["-XqAt", url, "-c", sql]).output().unwrap())
}

#[test]
fn mount_a_day_with_a_branch() {
    let Some(scene) = Scene::with_cluster("") else { return };
    let started = scene.run(&["start", "main"]);
    assert!(started.err.contains("Started main on port "), "{}", started.err);
    let url = started.ok();
    assert!(url.starts_with("postgresql://postgres@127.0.0.1:"), "only the URL: {url}");
    assert_eq!(psql_at(&url, "SELECT 40 + 2").ok(), "42");

    let again = scene.run(&["start", "main"]);
    assert!(again.err.contains("Postgres runs on main already, on port "), "{}", again.err);
    assert_eq!(again.ok(), url);

    assert_eq!(scene.run(&["url", "main"]).ok(), url);
    let jdbc = scene.run(&["url", "main", "--format", "jdbc", "--database", "app"]).ok();
    assert!(
        jdbc.starts_with("jdbc:postgresql://127.0.0.1:") && jdbc.contains("/app?user=postgres")
    );
    assert!(scene.run(&["url", "main", "--format", "env"]).ok().contains("PGHOST=127.0.0.1\n"));
    let socket = scene.run(&["url", "main", "--socket"]).ok();
    assert_eq!(psql_at(&socket, "SELECT 1").ok(), "1");
    let eval = format!(
        "eval \"$({} env main)\"; {BIN}/psql -XqAtc 'SELECT 7'",
        env!("CARGO_BIN_EXE_cowfs")
    );
    let evaled = scene.command(&["--version"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", &eval]).envs(evaled.get_envs().filter_map(|(k, v)| Some((k, v?))));
    assert_eq!(Said::of(&shell.output().unwrap()).ok(), "7");

    let script =
        "test \"$COWFS_BRANCH\" = main && psql -XqAtc 'SELECT 3' \"$DATABASE_URL\"; exit 5";
    let ran = scene.run(&["run", "main", "--", "sh", "-c", script]);
    assert_eq!((ran.code, ran.out.trim()), (5, "3"), "{}", ran.err);
    let missing = scene.run(&["run", "main", "--", "no-such-program"]);
    assert!(missing.fails(127).contains("cannot run no-such-program"));

    let log = scene.run(&["logs", "main", "-n", "50"]).ok();
    assert!(log.contains("ready to accept connections"), "{log}");
    let restarted = scene.run(&["restart", "main"]);
    assert_eq!(restarted.ok(), url, "clients have the URL");

    assert_eq!(scene.run(&["stop", "main"]).ok(), "Stopped main and unmounted it");
    assert_eq!(scene.run(&["stop", "main"]).ok(), "No Postgres runs on main");
    assert_eq!(scene.mounts(), [""; 0]);
    assert_eq!(fs::read_dir(scene.path("r")).unwrap().count(), 0, "the runtime directory is empty");
    assert_eq!(scene.run(&["start", "main"]).ok(), url, "the same port as before");
}

/// What a production cluster may be configured to do to others.
const ACTIVE: &str = "
listen_addresses = '*'
wal_level = logical
archive_mode = on
archive_command = 'false'
synchronous_standby_names = 'standby_one'
synchronous_commit = local
logging_collector = on
external_pid_file = '/nonexistent/x.pid'
data_directory = '/nonexistent/parent'
shared_preload_libraries = 'auto_explain, pg_cron'
primary_conninfo = 'host=production password=secret'
";

#[test]
fn mount_a_fork_is_harmless_and_the_files_stay() {
    let Some(scene) = Scene::with_cluster(ACTIVE) else { return };
    let started = scene.run(&["start", "main", "--keep", "slots"]);
    for note in
        ["archive_mode is off (--keep archive", "shared_preload_libraries is 'auto_explain'"]
    {
        assert!(started.err.contains(note), "{}", started.err);
    }
    started.ok();
    scene.sql("main", "SELECT pg_create_physical_replication_slot('standby_one', true)");
    scene.sql("main", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");

    let forked = scene.run(&["fork", "main", "child"]);
    assert!(forked.err.contains("replication slots are gone: standby_one"), "{}", forked.err);
    let mut steps = forked.err.lines().last().unwrap().split(": ");
    assert!(steps.next().unwrap().starts_with("Forked main as child in "), "{}", forked.err);
    let names: Vec<_> =
        steps.next().unwrap().split(", ").map(|s| s.rsplit_once(' ').unwrap().0).collect();
    assert_eq!(names, ["branch", "mount", "start", "first query"]);
    forked.ok();
    for (name, value) in [
        ("listen_addresses", "127.0.0.1"),
        ("archive_mode", "off"),
        ("synchronous_standby_names", ""),
        ("max_logical_replication_workers", "0"),
        ("logging_collector", "off"),
        ("external_pid_file", ""),
        ("primary_conninfo", ""),
        ("shared_preload_libraries", "auto_explain"),
        ("cluster_name", "child"),
        ("recovery_init_sync_method", "fsync"),
    ] {
        assert_eq!(scene.setting("child", name), value, "{name}");
    }
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(scene.sql("main", slots), "1");
    assert_eq!(scene.sql("child", slots), "0");

    scene.sql("child", "DELETE FROM t; SELECT pg_create_physical_replication_slot('own')");
    assert_eq!(scene.sql("main", "SELECT count(*) FROM t"), "1000");
    let config = |branch| fs::read(scene.mount_point(branch).join("postgresql.conf")).unwrap();
    assert_eq!(config("child"), fs::read(scene.path("cluster/postgresql.conf")).unwrap());
    let shown = scene.run(&["branch", "show", "child"]).ok();
    assert!(shown.contains("archive_mode = 'off'  (--keep archive)"), "{shown}");
    assert!(shown.contains("slots of the parent removed: standby_one"), "{shown}");
    scene.run(&["restart", "child"]).ok();
    assert_eq!(scene.sql("child", slots), "1", "a slot of the branch's own stays");
    assert_eq!(scene.sql("child", "SELECT count(*) FROM t"), "0");

    let kept =
        scene.run(&["fork", "main", "kept", "--keep", "archive,slots", "-c", "work_mem=77MB"]);
    kept.ok();
    assert_eq!(scene.setting("kept", "archive_mode"), "on");
    assert_eq!(scene.setting("kept", "work_mem"), "77MB");
    assert_eq!(scene.sql("kept", slots), "1");
    assert_eq!(scene.setting("kept", "listen_addresses"), "127.0.0.1");
    scene.run(&["restart", "kept"]).ok();
    assert_eq!(scene.setting("kept", "archive_mode"), "on", "a restart keeps what was asked for");
}

#[test]
fn mount_the_original_archives_on() {
    let Some(scene) = Scene::empty() else { return };
    scene.run(&["branch", "create", "main", "--empty"]).ok();
    let dir = scene.path("m");
    fs::create_dir(&dir).unwrap();
    scene.run(&["mount", "main", dir.to_str().unwrap()]).ok();
    std::os::unix::fs::chown(&dir, Some(postgres_uid()), None).unwrap();
    initdb_in(&dir, "archive_mode = on\narchive_command = 'true'");
    scene.run(&["start", "main"]).ok();
    assert_eq!(scene.setting("main", "archive_mode"), "on");
    assert_eq!(scene.setting("main", "listen_addresses"), "127.0.0.1");
    scene.run(&["stop", "main"]).ok();
    assert_eq!(scene.mounts().len(), 1, "what the user has mounted stays mounted");
    scene.run(&["start", "main", "--harmless"]).ok();
    assert_eq!(scene.setting("main", "archive_mode"), "off");
    scene.run(&["fork", "main", "child"]).ok();
    assert_eq!(scene.setting("child", "archive_mode"), "off");
}

#[test]
fn mount_a_fork_of_a_standby_is_promoted() {
    let standby = "primary_conninfo = 'host=/nonexistent'\nprimary_slot_name = 'x'\n";
    let Some(scene) = Scene::empty() else { return };
    let cluster = scene.initdb("cluster", standby);
    fs::write(cluster.join("standby.signal"), "").unwrap();
    std::os::unix::fs::chown(cluster.join("standby.signal"), Some(postgres_uid()), None).unwrap();
    scene.run(&["import", cluster.to_str().unwrap(), "--as", "main"]).ok();
    scene.run(&["start", "main", "--keep", "recovery"]).ok();
    assert_eq!(scene.sql("main", "SELECT pg_is_in_recovery()"), "t");
    assert_eq!(scene.setting("main", "primary_slot_name"), "x");
    let forked = scene.run(&["fork", "main", "child"]);
    assert!(forked.err.contains("promoted to a server of its own"), "{}", forked.err);
    forked.ok();
    assert_eq!(scene.setting("child", "primary_conninfo"), "");
    scene.sql("child", "CREATE TABLE writable ()");
    assert_eq!(scene.sql("main", "SELECT pg_is_in_recovery()"), "t");
    scene.run(&["restart", "child"]).ok();
    assert_eq!(scene.sql("child", "SELECT pg_is_in_recovery()"), "f");
}

#[test]
fn mount_whatever_is_killed_starts_again() {
    let Some(scene) = Scene::with_cluster("") else { return };
    let url = scene.run(&["start", "main"]).ok();
    scene.sql("main", "CREATE TABLE t AS SELECT 1 AS n");

    // The postmaster alone; what it leaves names a process that lives and is none of ours.
    let killed = scene.postmaster("main");
    let dir = scene.mount_point("main");
    kill(Pid::from_raw(killed), Signal::SIGKILL).unwrap();
    wait_for("its end", || !is_alive(killed));
    assert_eq!(scene.show("main")["postgres"], serde_json::Value::Null);
    let pid_file = fs::read_to_string(dir.join("postmaster.pid")).unwrap();
    let recycled = pid_file.replacen(&killed.to_string(), &std::process::id().to_string(), 1);
    fs::write(dir.join("postmaster.pid"), recycled).unwrap();
    let started = scene.run(&["start", "main"]);
    assert!(started.err.contains("its postmaster.pid is removed"), "{}", started.err);
    assert_eq!(started.ok(), url);
    assert_eq!(scene.sql("main", "SELECT n FROM t"), "1");

    // Everything: the postmaster, and the process that serves the mount.
    let server = scene.show("main")["mounted"]["pid"].as_i64().unwrap();
    let postmaster = scene.postmaster("main");
    for pid in [i32::try_from(server).unwrap(), postmaster] {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    wait_for("their end", || !is_alive(postmaster));
    assert_eq!(scene.run(&["start", "main"]).ok(), url);
    assert_eq!(scene.sql("main", "SELECT n FROM t"), "1");
    assert_eq!(scene.run(&["stop", "main"]).ok(), "Stopped main and unmounted it");
    assert_eq!(scene.mounts(), [""; 0]);
}

/// The postmaster lives on, on a dead mount, and answers from its buffers.
#[test]
fn mount_a_server_that_lost_its_storage_is_replaced() {
    let Some(scene) = Scene::with_cluster("") else { return };
    let url = scene.run(&["start", "main"]).ok();
    scene.sql("main", "CREATE TABLE t AS SELECT 1 AS n");
    for remounted_before in [false, true] {
        let lost = scene.postmaster("main");
        let dir = scene.mount_point("main");
        let server = scene.show("main")["mounted"]["pid"].as_i64().unwrap();
        kill(Pid::from_raw(i32::try_from(server).unwrap()), Signal::SIGKILL).unwrap();
        wait_for("its end", || !is_alive(i32::try_from(server).unwrap()));
        if remounted_before {
            scene.run(&["mount", "main", dir.to_str().unwrap()]).ok();
        }
        let started = scene.run(&["start", "main"]);
        // It may have ended by itself before.
        let said = started.err.contains("had lost its storage");
        assert!(said || started.err.contains("Started main"), "{}", started.err);
        assert_eq!(started.ok(), url);
        wait_for("the end of what lost its storage", || !is_alive(lost));
        assert_ne!(scene.postmaster("main"), lost);
        assert_eq!(scene.sql("main", "INSERT INTO t VALUES (2) RETURNING n"), "2");
    }
}

#[test]
fn mount_starts_at_once_make_one_server() {
    let Some(scene) = Scene::with_cluster("") else { return };
    let starts: Vec<_> = (0..4)
        .map(|_| {
            let mut command = scene.command(&["start", "main"]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let said: Vec<Said> =
        starts.into_iter().map(|start| Said::of(&start.wait_with_output().unwrap())).collect();
    let new = said.iter().filter(|said| said.err.contains("Started main")).count();
    let errors: Vec<&str> = said.iter().map(|said| said.err.as_str()).collect();
    assert_eq!(new, 1, "{errors:?}");
    let mut urls: Vec<String> = said.into_iter().map(Said::ok).collect();
    urls.dedup();
    assert_eq!(urls.len(), 1, "{urls:?}");
    assert_eq!(psql_at(&urls[0], "SELECT 1").ok(), "1");
}

#[test]
fn mount_a_running_branch_is_not_taken_away() {
    let Some(scene) = Scene::with_cluster("") else { return };
    scene.run(&["start", "main"]).ok();
    let unmounted = scene.run(&["unmount", "main"]).fails(1);
    assert!(
        unmounted.contains("postgres") && unmounted.contains("`cowfs stop BRANCH`"),
        "{unmounted}"
    );
    let deleted = scene.run(&["branch", "delete", "main"]).fails(1);
    assert!(deleted.contains("Error: Postgres runs on branch main (process "), "{deleted}");
    assert!(deleted.contains("Hint: `cowfs stop main` first"), "{deleted}");
    let pid = scene.postmaster("main");
    scene.run(&["branch", "delete", "--force", "main"]).ok();
    wait_for("its end", || !is_alive(pid));
    assert_eq!((scene.mounts().len(), scene.branches().len()), (0, 0));
    let left: Vec<_> = fs::read_dir(scene.path("store/run")).unwrap().flatten().collect();
    assert!(
        left.iter().all(|entry| !entry.file_name().to_string_lossy().contains(".pg.")),
        "{left:?}"
    );

    // A server that was left on a detached mount is found by its process.
    scene.run(&["branch", "create", "b", "--empty"]).ok();
    let none = scene.run(&["url", "b"]).fails(1);
    assert!(none.contains("no Postgres runs on branch b\nHint: `cowfs start b`"), "{none}");
}

#[test]
fn mount_a_detached_branch_is_stopped_all_the_same() {
    let Some(scene) = Scene::with_cluster("") else { return };
    scene.run(&["start", "main"]).ok();
    let pid = scene.postmaster("main");
    scene.run(&["unmount", "--lazy", "main"]).ok();
    assert!(is_alive(pid));
    assert!(scene.run(&["stop", "main"]).ok().starts_with("Stopped main"));
    wait_for("its end", || !is_alive(pid));
}

#[test]
fn mount_tries_leave_nothing() {
    let Some(scene) = Scene::with_cluster("") else { return };
    scene.run(&["start", "main"]).ok();
    scene.sql("main", "CREATE TABLE t AS SELECT 1 AS n");
    let sql = "psql -XqAt -v ON_ERROR_STOP=1 -c 'DROP TABLE t' -c 'SELECT 8'";
    let good = scene.run(&["try", "main", "--", "sh", "-c", sql]);
    assert!(good.err.contains("Deleted try-"), "{}", good.err);
    assert_eq!(good.ok(), "8");
    assert_eq!(scene.sql("main", "SELECT n FROM t"), "1");
    let bad = scene.run(&["try", "main", "--checkpoint", "--", "sh", "-c", "exit 42"]);
    assert!(bad.fails(42).contains("ended with exit status: 42"));
    assert_eq!(scene.branches(), ["main"]);
    assert_eq!(scene.mounts().len(), 1);

    let kept = scene.run(&["try", "main", "--keep-on-failure", "--", "false"]).fails(1);
    let name = scene.branches().into_iter().find(|name| name.starts_with("try-")).unwrap();
    assert!(kept.contains(&format!("Kept {name}: `cowfs psql {name}`")), "{kept}");
    assert_eq!(scene.sql(&name, "SELECT n FROM t"), "1");
    scene.run(&["branch", "delete", "--force", &name]).ok();

    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let flag = scene.path(&format!("flag-{code}"));
        let script = format!("echo $$ > {}; exec sleep 1000", flag.display());
        let mut command = scene.command(&["try", "main", "--", "sh", "-c", &script]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = || fs::read_to_string(&flag).ok()?.trim().parse::<i32>().ok();
        wait_for("the command", || pid().is_some());
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let said = Said::of(&child.wait_with_output().unwrap());
        assert_eq!(said.code, code, "{}", said.err);
        assert!(!is_alive(pid().unwrap()), "the command ended too");
        assert_eq!((scene.branches().len(), scene.mounts().len()), (1, 1), "{}", said.err);
    }
}

/// How long the checkpoint before a fork took; 0: there was none.
fn checkpoint_us(scene: &Scene, args: &[&str]) -> u64 {
    let said = scene.run(&[args, &["--json"]].concat()).ok();
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    said["checkpoint_us"].as_u64().unwrap()
}

#[test]
fn mount_a_parent_with_much_wal_writes_a_checkpoint_before_its_fork() {
    let Some(scene) = Scene::with_cluster("autovacuum = off") else { return };
    scene.run(&["start", "main"]).ok();
    assert_eq!(checkpoint_us(&scene, &["fork", "main", "quiet"]), 0, "there is little WAL");
    let fill = "CREATE TABLE pad AS SELECT repeat('x', 1000) FROM generate_series(1, 45000)";
    scene.sql("main", fill);
    assert_eq!(checkpoint_us(&scene, &["fork", "main", "plain", "--no-checkpoint"]), 0);
    assert!(checkpoint_us(&scene, &["fork", "main", "asked"]) > 0);
    assert_eq!(checkpoint_us(&scene, &["fork", "main", "again"]), 0, "that of before is enough");
    assert!(checkpoint_us(&scene, &["fork", "main", "always", "--checkpoint"]) > 0);
    for branch in ["plain", "asked", "again", "always"] {
        assert_eq!(scene.sql(branch, "SELECT count(*) FROM pad"), "45000", "{branch}");
    }
    scene.run(&["fork", "main", "x", "--checkpoint", "--no-checkpoint"]).fails(2);

    // Whoever may not ask for one gets the fork all the same.
    scene.sql("main", "CREATE ROLE bob LOGIN");
    scene.run(&["stop", "main"]).ok();
    scene.run(&["start", "main", "--user", "bob"]).ok();
    let psql = ["psql", "main", "--", "-U", "postgres", "-XqAt", "-c"];
    for sql in ["DROP TABLE pad", fill] {
        scene.run(&[&psql[..], &[sql]].concat()).ok();
    }
    assert_eq!(checkpoint_us(&scene, &["fork", "main", "bobs"]), 0);
}

#[test]
fn mount_misuse_is_told() {
    let Some(scene) = Scene::with_cluster("") else { return };
    let unknown = scene.run(&["start", "nope"]).fails(1);
    assert!(unknown.contains("nope") && unknown.contains("Hint: `cowfs branch list`"), "{unknown}");
    for (args, code, message) in [
        (&["-c", "port=1"][..], 2, "port cannot be set with -c\nHint: use --port"),
        (&["-c", "nonsense"], 2, "is not name=value"),
        (&["--keep", "archives"], 2, "none of listen, archive,"),
        (&["--pg-bin", "/etc"], 1, "there is no postgres in /etc"),
        (&["--config-file", "/none"], 1, "there is no configuration file /none"),
    ] {
        let said = scene.run(&[&["start", "main"], args].concat()).fails(code);
        assert!(said.contains(message), "{said}");
        assert_eq!(scene.mounts(), [""; 0], "{args:?} leaves nothing mounted");
    }

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let said = scene.run(&["start", "main", "--port", &port]).fails(1);
    assert!(said.contains(&format!("port {port} on 127.0.0.1 is in use")), "{said}");
    assert!(said.contains("Hint: leave --port away"), "{said}");

    let said = scene.run(&["start", "main", "-c", "shared_buffers=lots"]).fails(1);
    assert!(said.contains("Postgres did not start (exit status: 1)"), "{said}");
    assert!(said.contains("invalid value for parameter \"shared_buffers\""), "{said}");
    for (setting, hint) in [
        ("shared_preload_libraries=nosuchlib", "Hint: this machine lacks that library: install it"),
        ("shared_buffers=4TB", "Hint: the cluster is configured for more memory than there is"),
    ] {
        let said = scene.run(&["start", "main", "-c", setting]).fails(1);
        assert!(said.contains(hint), "{said}");
    }
    let log = scene.run(&["logs", "main", "--path"]).ok();
    assert!(said.contains(&format!("Hint: its whole log is {log}")), "{said}");
    assert_eq!(scene.mounts(), [""; 0]);

    scene.run(&["branch", "create", "empty", "--empty"]).ok();
    let said = scene.run(&["start", "empty"]).fails(1);
    assert!(said.contains("it has no PG_VERSION file\nHint: run initdb on "), "{said}");
    let said = scene.run(&["fork", "main", "empty"]).fails(1);
    assert!(said.contains("exists") && scene.branches().len() == 2, "{said}");
    let said = scene.run(&["fork", "empty", "child"]).fails(1);
    assert!(said.contains("the branch child is there: `cowfs start child` tries again"), "{said}");
    let said = scene.run(&["fork", "main", "x", "--checkpoint"]).fails(1);
    assert!(said.contains("no Postgres runs on branch main"), "{said}");
    for command in ["psql", "url", "env"] {
        scene.run(&[command, "main"]).fails(1);
    }
    let tried = scene.run(&["try", "main", "-c", "shared_buffers=lots", "--", "true"]).fails(1);
    assert!(tried.contains("Hint: --keep-on-failure keeps the child and its log"), "{tried}");
}

#[test]
fn mount_a_data_directory_that_does_not_fit() {
    let Some(scene) = Scene::with_cluster("") else { return };
    let dir = scene.path("m");
    fs::create_dir(&dir).unwrap();
    scene.run(&["mount", "main", dir.to_str().unwrap()]).ok();
    fs::write(dir.join("PG_VERSION"), "99\n").unwrap();
    let said = scene.run(&["start", "main"]).fails(1);
    assert!(said.contains("no Postgres 99 found; looked in /usr/lib/postgresql/99/bin"), "{said}");
    assert!(said.contains("postgresql-99"), "{said}");
    let said = scene.run(&["start", "main", "--pg-bin", BIN]).fails(1);
    assert!(said.contains("is Postgres 15, the data directory is of 99"), "{said}");
    fs::write(dir.join("PG_VERSION"), "15\n").unwrap();

    fs::rename(dir.join("postgresql.conf"), dir.join("moved.conf")).unwrap();
    let said = scene.run(&["start", "main"]).fails(1);
    assert!(said.contains("has no postgresql.conf\nHint: say which to use"), "{said}");
    let moved = dir.join("moved.conf");
    scene.run(&["start", "main", "--config-file", moved.to_str().unwrap()]).ok();
    assert_eq!(scene.setting("main", "config_file"), moved.to_str().unwrap());
    scene.run(&["stop", "main"]).ok();

    std::os::unix::fs::chown(&dir, Some(0), None).unwrap();
    let said = scene.run(&["start", "main"]).fails(1);
    assert!(said.contains("belongs to root, and Postgres never runs as root"), "{said}");
    assert_eq!(scene.mounts().len(), 1, "what the user has mounted stays mounted");
}

/// A directory with the same programs, by other names for the same files.
fn another_bin(scene: &Scene, name: &str) -> PathBuf {
    let dir = scene.path(name);
    fs::create_dir(&dir).unwrap();
    for program in fs::read_dir(BIN).unwrap() {
        let program = program.unwrap();
        std::os::unix::fs::symlink(program.path(), dir.join(program.file_name())).unwrap();
    }
    dir
}

#[test]
fn mount_an_interrupted_fork_ends_the_server_and_says_what_is_there() {
    let Some(scene) = Scene::with_cluster("") else { return };
    scene.run(&["start", "main"]).ok();
    let (bin, flag) = (another_bin(&scene, "slow-bin"), scene.path("begun"));
    let script = format!(
        "#!/bin/sh\ncase $1 in *ersion) exec {BIN}/postgres \"$@\";; esac\n\
         echo $$ > {}\nexec sleep 1000\n",
        flag.display()
    );
    fs::remove_file(bin.join("postgres")).unwrap();
    fs::write(bin.join("postgres"), script).unwrap();
    fs::set_permissions(bin.join("postgres"), Permissions::from_mode(0o755)).unwrap();
    fs::write(&flag, "").unwrap();
    fs::set_permissions(&flag, Permissions::from_mode(0o666)).unwrap();

    let mut command = scene.command(&["fork", "main", "child", "--pg-bin", bin.to_str().unwrap()]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = || fs::read_to_string(&flag).ok()?.trim().parse::<i32>().ok();
    wait_for("the server", || pid().is_some());
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let said = Said::of(&child.wait_with_output().unwrap());
    assert_eq!(said.code, 130, "{}", said.err);
    assert!(said.err.contains("the branch child is there: `cowfs start child`"), "{}", said.err);
    assert!(!is_alive(pid().unwrap()), "the server ended too");
    assert_eq!(scene.mounts().len(), 1, "what was mounted for it is not any more");
    scene.run(&["start", "child"]).ok();
    assert_eq!(scene.sql("child", "SELECT 7"), "7");
}

#[test]
fn mount_a_branch_keeps_where_its_postgres_is() {
    let Some(scene) = Scene::with_cluster("") else { return };
    let bin = another_bin(&scene, "bin-of-main");
    let bin = bin.to_str().unwrap();
    let program_of = |branch: &str| {
        let pid = scene.sql(branch, "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)");
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let first = words.split(|byte| *byte == 0).next().unwrap();
        String::from_utf8_lossy(first).into_owned()
    };
    let said = scene.run(&["branch", "pg-bin", "main", bin]).ok();
    assert_eq!(said, format!("Branch main uses Postgres 15 in {bin}"));
    scene.run(&["start", "main"]).ok();
    assert_eq!(program_of("main"), format!("{bin}/postgres"));
    // Kept over a stop, and by children.
    scene.run(&["stop", "main"]).ok();
    scene.run(&["start", "main"]).ok();
    scene.run(&["fork", "main", "child"]).ok();
    for branch in ["main", "child"] {
        assert_eq!(program_of(branch), format!("{bin}/postgres"), "{branch}");
    }
    assert!(scene.run(&["branch", "show", "child"]).ok().contains(&format!("pg-bin   {bin}")));
    let other = another_bin(&scene, "bin-of-child");
    scene.run(&["stop", "child"]).ok();
    scene.run(&["start", "child", "--pg-bin", other.to_str().unwrap()]).ok();
    assert_eq!(program_of("child"), other.join("postgres").to_str().unwrap());
    scene.run(&["stop", "main"]).ok();
    fs::rename(bin, scene.path("gone")).unwrap();
    let said = scene.run(&["start", "main"]).fails(1);
    assert!(said.contains(&format!("there is no postgres in {bin}")), "{said}");
    assert!(said.contains("`cowfs branch pg-bin main auto`"), "{said}");
    let json = scene.run(&["branch", "pg-bin", "main", "auto", "--json"]).ok();
    assert!(json.contains("\"pg_bin\": null"), "{json}");
    scene.run(&["start", "main"]).ok();
    assert_eq!(program_of("main"), format!("{BIN}/postgres"));
    let said = scene.run(&["branch", "pg-bin", "main", "/etc"]).fails(1);
    assert!(said.contains("there is no postgres in /etc"), "{said}");
}

/// The server of a crashed backend recovers with fsync, although the first start left it out.
#[test]
fn mount_a_crashed_backend_is_recovered_from() {
    let Some(scene) = Scene::with_cluster("") else { return };
    scene.run(&["start", "main"]).ok();
    let log = scene.run(&["logs", "main"]).ok();
    assert!(log.contains("\"recovery_init_sync_method\" changed to \"fsync\""), "{log}");
    scene.sql("main", "CREATE TABLE t AS SELECT 1 AS n");
    let postmaster = scene.postmaster("main");
    let mut session = scene.command(&["psql", "main", "--", "-c", "SELECT pg_sleep(1000)"]);
    let mut session = session.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let backend = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%sleep(1000)' AND pid <> pg_backend_pid()";
    wait_for("the session", || !scene.sql("main", backend).is_empty());
    let pid = scene.sql("main", backend).parse::<i32>().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    session.wait().unwrap();
    let asked = || scene.run(&["psql", "main", "--", "-XqAtc", "SELECT n FROM t"]);
    wait_for("the recovery", || asked().out.trim() == "1");
    assert_eq!(scene.postmaster("main"), postmaster);
    assert_eq!(scene.setting("main", "recovery_init_sync_method"), "fsync");
}

#[test]
fn mount_a_server_is_imported_while_it_runs() {
    let Some(scene) = Scene::with_cluster("") else { return };
    scene.run(&["start", "main"]).ok();
    scene.sql("main", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    scene.sql("main", "ALTER ROLE postgres PASSWORD 'secret'");
    let url = scene.run(&["url", "main"]).ok();
    let secret = url.replacen("postgres@", "postgres:secret@", 1);

    scene.run(&["import", "--from-server", &secret, "--as", "copy"]).ok();
    assert!(!scene.run(&["branch", "show", "copy"]).ok().contains("secret"));
    scene.run(&["start", "copy"]).ok();
    assert_eq!(scene.sql("copy", "SELECT count(*) FROM t"), "1000");
    assert_eq!(scene.sql("copy", "SELECT pg_is_in_recovery()"), "f");

    scene.run(&["import", "--from-server", &secret, "--standby", "--as", "replica"]).ok();
    scene.run(&["start", "replica"]).ok();
    scene.sql("main", "CREATE TABLE later AS SELECT 5 AS n");
    let seen = || scene.run(&["psql", "replica", "--", "-XqAtc", "SELECT n FROM later"]);
    wait_for("replication", || seen().out.trim() == "5");
    scene.run(&["fork", "replica", "own"]).ok();
    scene.sql("own", "UPDATE later SET n = 6");
    assert_eq!(scene.sql("replica", "SELECT n, pg_is_in_recovery() FROM later"), "5|t");

    let said = scene.run(&["import", "--from-server", "host=/nonexistent", "--as", "x"]).fails(1);
    assert!(said.contains("pg_basebackup ended with exit status: 1\nHint: "), "{said}");
    assert!(!scene.branches().contains(&"x".to_owned()), "nothing half-filled stays");
    let wrong = ["import", "--from-server", "postgresql://u:secret@127.0.0.1:1/", "--as", "x"];
    scene.run(&wrong).fails(1);
    assert!(!scene.run(&["log"]).ok().contains("secret"), "nor after it has failed");
    scene.run(&["import", "--from-server", &url, "--adopt", "/x", "--as", "x"]).fails(2);
}
