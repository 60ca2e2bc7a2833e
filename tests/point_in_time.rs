//! Branches as of a moment between two snapshots, with a real server. Needs root, /dev/fuse and
//! Debian's Postgres 15; says so and passes where they are missing. About half a minute.
#![allow(clippy::unwrap_used)]

mod postgres_support;

use std::time::Duration;

use postgres_support::Scene;
use serde_json::Value;

/// The time by the server's clock, which stamps commits.
fn now(scene: &Scene) -> String {
    let text = "to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')";
    let now = scene.sql("main", &format!("SELECT {text}"));
    // Times are told to the millisecond.
    std::thread::sleep(Duration::from_millis(20));
    now
}

fn lsn(scene: &Scene) -> String {
    scene.sql("main", "SELECT pg_current_wal_insert_lsn()")
}

fn insert(scene: &Scene, n: u32) {
    std::thread::sleep(Duration::from_millis(20));
    scene.sql("main", &format!("INSERT INTO t VALUES ({n})"));
}

/// The rows of a branch, which is started for it.
fn rows(scene: &Scene, branch: &str) -> String {
    scene.run(&["start", branch]).ok();
    let rows = scene.sql(branch, "SELECT string_agg(n::text, ' ' ORDER BY n) FROM t");
    scene.sql(branch, "INSERT INTO t VALUES (-1)");
    scene.run(&["stop", branch]).ok();
    rows
}

fn create_at(scene: &Scene, branch: &str, moment: &str) -> String {
    let created = scene.run(&["branch", "create", branch, "--from", "main", "--at", moment]);
    assert!(created.ok().starts_with(&format!("Created branch {branch} from main as of ")));
    rows(scene, branch)
}

#[test]
fn mount_any_moment_between_two_snapshots_can_be_reached() {
    let Some(scene) = Scene::with_cluster("") else { return };
    scene.run(&["start", "main"]).ok();
    scene.sql("main", "CREATE TABLE t (n int)");
    insert(&scene, 1);
    let before_all = now(&scene);
    scene.run(&["snapshot", "create", "main@first"]).ok();
    let (early, early_lsn) = (now(&scene), lsn(&scene));
    insert(&scene, 2);
    // On into further segments, some of which are recycled.
    for _ in 0..3 {
        scene.sql("main", "CREATE TABLE IF NOT EXISTS pad AS SELECT repeat('x', 500) FROM generate_series(1, 20000)");
        scene.sql("main", "DROP TABLE pad");
        scene.sql("main", "SELECT pg_switch_wal()");
    }
    let (middle, middle_lsn) = (now(&scene), lsn(&scene));
    insert(&scene, 3);
    scene.sql("main", "CHECKPOINT");
    scene.run(&["snapshot", "create", "main@second"]).ok();
    let late = now(&scene);
    insert(&scene, 4);
    let last = now(&scene);

    assert_eq!(create_at(&scene, "at-early", &early), "1");
    assert_eq!(create_at(&scene, "at-early-lsn", &early_lsn), "1");
    assert_eq!(create_at(&scene, "at-middle", &middle), "1 2");
    assert_eq!(create_at(&scene, "at-middle-lsn", &middle_lsn), "1 2");
    assert_eq!(create_at(&scene, "at-late", &late), "1 2 3");
    assert_eq!(create_at(&scene, "at-last", &last), "1 2 3 4", "nothing was committed since");
    // A branch that began so is one like any other.
    scene.run(&["fork", "at-middle", "of-middle"]).ok();
    assert_eq!(scene.sql("of-middle", "SELECT count(*) FROM t"), "3");
    // Of the parent nothing was changed, and nothing is left over.
    assert_eq!(scene.sql("main", "SELECT count(*) FROM t"), "4");
    let shown: Value = scene.show("main");
    assert_eq!(shown["snapshots"].as_array().unwrap().len(), 2, "{shown}");
    let reachable = shown["reachable"].as_array().unwrap();
    assert_eq!(reachable.len(), 1, "{shown}");
    let shown = scene.show("at-middle");
    assert_eq!((&shown["expires"], &shown["parent"]), (&Value::Null, &"main".into()), "{shown}");

    for (moment, code, said) in [
        (before_all.as_str(), 1, "cannot be reached"),
        ("2000-01-01T00:00:00Z", 1, "what can be reached: "),
        ("2100-01-01T00:00:00Z", 2, "lies in the future"),
        ("0/1", 1, "cannot be reached"),
        ("F/0", 1, "cannot be reached"),
        ("yesterday", 2, "is not a moment such as"),
    ] {
        let args = ["branch", "create", "no", "--from", "main", "--at", moment];
        let error = scene.run(&args).fails(code);
        assert!(error.contains(said), "{moment}: {error}");
    }
    let twice = ["branch", "create", "at-late", "--from", "main", "--at", &late];
    assert!(scene.run(&twice).fails(1).contains("exists"));
    let of_snapshot = ["branch", "create", "no", "--from", "main@first", "--at", &late];
    assert!(scene.run(&of_snapshot).fails(2).contains("is what it is"));
    assert!(!scene.branches().contains(&"no".to_owned()));
}

#[test]
fn mount_a_cluster_that_would_lag_as_a_standby_is_replayed_at_once() {
    let Some(scene) = Scene::with_cluster("recovery_min_apply_delay = '1h'") else { return };
    scene.run(&["start", "main"]).ok();
    scene.sql("main", "CREATE TABLE t (n int)");
    scene.run(&["snapshot", "create", "main@first"]).ok();
    insert(&scene, 1);
    let then = now(&scene);
    insert(&scene, 2);
    let args = ["branch", "create", "x", "--from", "main", "--at", &then, "--timeout", "60s"];
    scene.run(&args).ok();
    assert_eq!(rows(&scene, "x"), "1");
}

#[test]
fn mount_a_moment_of_a_standby_is_a_database_of_its_own() {
    let Some(scene) = Scene::with_cluster("") else { return };
    scene.run(&["start", "main"]).ok();
    scene.sql("main", "CREATE TABLE t (n int)");
    let url = scene.run(&["url", "main"]).ok();
    scene.run(&["import", "--from-server", &url, "--standby", "--as", "replica"]).ok();
    scene.run(&["start", "replica"]).ok();
    let caught_up = |rows: &str| {
        for _ in 0..200 {
            if scene.sql("replica", "SELECT count(*) FROM t") == rows {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the replica does not follow");
    };
    insert(&scene, 1);
    caught_up("1");
    // A standby is consistent as of its last restartpoint's end and what it has replayed since.
    scene.run(&["snapshot", "create", "replica@first"]).ok();
    let moment = now(&scene);
    insert(&scene, 2);
    caught_up("2");
    let args = ["branch", "create", "then", "--from", "replica", "--at", &moment];
    scene.run(&args).ok();
    assert_eq!(rows(&scene, "then"), "1");
    insert(&scene, 3);
    caught_up("3");
}

#[test]
fn mount_wal_that_is_gone_and_a_restore_end_what_can_be_reached() {
    let Some(scene) = Scene::with_cluster("max_wal_size = '32MB'\nmin_wal_size = '32MB'\n") else {
        return;
    };
    scene.run(&["start", "main"]).ok();
    scene.sql("main", "CREATE TABLE t (n int)");
    let none = scene.run(&["branch", "create", "no", "--from", "main", "--at", "1s ago"]).fails(1);
    assert!(none.contains("cowfs snapshot schedule main"), "{none}");
    scene.run(&["snapshot", "create", "main@first"]).ok();
    insert(&scene, 1);
    let lost = now(&scene);
    for _ in 0..8 {
        scene.sql(
            "main",
            "CREATE TABLE pad AS SELECT repeat('x', 500) FROM generate_series(1, 20000)",
        );
        scene.sql("main", "DROP TABLE pad");
        scene.sql("main", "SELECT pg_switch_wal()");
        scene.sql("main", "CHECKPOINT");
    }
    let gone = scene.run(&["branch", "create", "no", "--from", "main", "--at", &lost]).fails(1);
    assert!(gone.contains("cannot be reached"), "{gone}");
    assert_eq!(scene.show("main")["reachable"], Value::Array(Vec::new()));
    scene.run(&["snapshot", "create", "main@second"]).ok();
    let (found, found_lsn) = (now(&scene), lsn(&scene));
    insert(&scene, 2);
    scene.run(&["stop", "main"]).ok();
    assert_eq!(
        scene.show("main")["reachable"].as_array().unwrap().len(),
        1,
        "also of one that is not mounted"
    );
    assert_eq!(create_at(&scene, "found", &found), "1");

    // The branch goes another way from its second snapshot; what was there after it is not told any more.
    scene.run(&["branch", "restore", "main", "second"]).ok();
    scene.run(&["start", "main"]).ok();
    let error = scene.run(&["branch", "create", "no", "--from", "main", "--at", &found]).fails(1);
    assert!(error.contains("cannot be reached"), "{error}");
    insert(&scene, 30);
    let after = now(&scene);
    insert(&scene, 31);
    assert_eq!(create_at(&scene, "after", &after), "1 30");
    assert_eq!(
        create_at(&scene, "again", &found_lsn),
        "1",
        "a position is one of the WAL that is there"
    );
}
