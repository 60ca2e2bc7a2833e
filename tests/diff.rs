//! `cowfs diff` on real mounts and with a real server. Needs root, /dev/fuse and (for the last ones)
//! Debian's Postgres 15; says so and passes where they are missing. About ten seconds.
#![allow(clippy::unwrap_used)]

mod mount_support;
mod postgres_support;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use mount_support::Scene;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres_support::Scene as PostgresScene;
use serde_json::Value;

fn mount(scene: &Scene, branch: &str) -> std::path::PathBuf {
    let dir = scene.temp.path().join(format!("at-{branch}"));
    fs::create_dir_all(&dir).unwrap();
    scene.run(&["mount", branch, dir.to_str().unwrap()]).ok();
    dir
}

fn pages(byte: u8, count: usize) -> Vec<u8> {
    vec![byte; count * 8192]
}

fn overwrite(path: &Path, page: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, page * 8192).unwrap();
}

/// `LETTER path` of each line but the sum.
fn lines(text: &str) -> Vec<String> {
    let count = text.lines().count() - 1;
    let words = |line: &str| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    text.lines().take(count).map(words).collect()
}

#[test]
fn mount_a_diff_names_what_was_written() {
    let Some(scene) = Scene::new() else { return };
    let main = mount(&scene, "main");
    for name in ["same", "over", "longer", "shorter", "gone", "moved", "rewritten", "perm"] {
        fs::write(main.join(name), pages(1, 8)).unwrap();
    }
    symlink("a", main.join("link")).unwrap();
    scene.run(&["branch", "create", "kid", "--from", "main"]).ok();
    assert_eq!(scene.run(&["diff", "kid"]).ok(), "Nothing differs\n");
    let kid = mount(&scene, "kid");
    overwrite(&kid.join("over"), 3, &pages(2, 2));
    overwrite(&kid.join("longer"), 8, &pages(2, 1));
    File::options().write(true).open(kid.join("shorter")).unwrap().set_len(5000).unwrap();
    fs::remove_file(kid.join("gone")).unwrap();
    fs::rename(kid.join("moved"), kid.join("new-name")).unwrap();
    overwrite(&kid.join("rewritten"), 1, &pages(1, 1));
    fs::set_permissions(kid.join("perm"), Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(kid.join("link")).unwrap();
    symlink("b", kid.join("link")).unwrap();
    fs::create_dir(kid.join("dir")).unwrap();
    fs::write(kid.join("dir/added"), "x").unwrap();
    // Both give the next number to a new file of their own.
    fs::write(main.join("later"), pages(7, 1)).unwrap();

    let said = scene.run(&["diff", "kid"]).ok();
    let changed = "A dir/, A dir/added, D gone, P link, M longer, R moved, M over, P perm, \
                   M rewritten, M shorter";
    assert_eq!(lines(&said).join(", "), changed, "{said}");
    assert!(said.ends_with("7 files changed, 1 added, 1 deleted; 32.88 KiB written\n"), "{said}");
    let exact = scene.run(&["diff", "kid", "--exact"]).ok();
    assert!(!exact.contains("rewritten") && exact.contains("M  over"), "{exact}");
    let two = scene.run(&["diff", "main", "kid"]).ok();
    assert_eq!(lines(&two).join(", "), changed.replace("P link", "D later, P link"), "{two}");
    let numbers = scene.run(&["diff", "kid", "--pages"]).ok();
    for line in ["M  over: 2 pages: 3-4\n", "M  longer: 1 page: 8\n", "M  shorter: 8 pages: 0-7\n"]
    {
        assert!(numbers.contains(line), "{line}: {numbers}");
    }
    assert!(!numbers.contains("perm") && !numbers.contains("same"), "{numbers}");
    let stat = scene.run(&["diff", "kid", "--stat"]).ok();
    assert!(stat.contains(" over") && stat.contains('~') && stat.contains('-'), "{stat}");
    let json: Value = serde_json::from_str(&scene.run(&["diff", "kid", "--json"]).ok()).unwrap();
    let over = json.as_array().unwrap().iter().find(|one| one["path"] == "over").unwrap();
    assert_eq!((&over["change"], &over["written_bytes"]), (&"modified".into(), &16384.into()));

    // What somebody did before is still the last that can be taken back.
    scene.run(&["branch", "create", "doomed", "--empty"]).ok();
    scene.run(&["branch", "delete", "doomed"]).ok();
    scene.run(&["diff", "main", "kid"]).ok();
    let undo = scene.run(&["undo", "--dry-run"]).ok();
    assert!(undo.contains("doomed"), "{undo}");

    // Nothing of it stays, and nothing of it was written to the branches.
    let listed = scene.run(&["branch", "list"]).ok();
    assert!(!listed.contains("diff-"), "{listed}");
    assert_eq!(scene.run(&["snapshot", "list"]).ok().matches("diff").count(), 0);
    assert_eq!(fs::read(kid.join("same")).unwrap(), pages(1, 8));
    scene.run(&["check", "--read-data"]).ok();
}

#[test]
fn mount_a_diff_of_snapshots_and_its_misuse() {
    let Some(scene) = Scene::new() else { return };
    let main = mount(&scene, "main");
    fs::write(main.join("f"), pages(1, 4)).unwrap();
    scene.run(&["snapshot", "create", "main@one"]).ok();
    overwrite(&main.join("f"), 2, &pages(2, 1));
    scene.run(&["snapshot", "create", "main@two"]).ok();
    fs::remove_file(main.join("f")).unwrap();
    let said = scene.run(&["diff", "main@one", "main@two", "--pages"]).ok();
    assert_eq!(said, "M  f: 1 page: 2\n");
    let back = scene.run(&["diff", "main@two", "main@one", "--pages"]).ok();
    assert_eq!(back, said, "the same pages, the other way round");
    let now = scene.run(&["diff", "main@one", "main"]).ok();
    assert!(now.starts_with("D  f "), "{now}");

    let alone = scene.run(&["diff", "main"]).fails(2);
    assert!(alone.contains("began empty") && alone.contains("Hint: name two"), "{alone}");
    let missing = scene.run(&["diff", "main@one", "nobody"]).fails(1);
    assert!(missing.contains("nobody"), "{missing}");
    scene.run(&["diff", "main", "main", "--pages", "--stat"]).fails(2);
    let no_cluster = scene.run(&["diff", "main@one", "main@two", "--schema"]).fails(1);
    assert!(no_cluster.contains("Postgres") || no_cluster.contains("PG_VERSION"), "{no_cluster}");
    assert_eq!(scene.run(&["branch", "list"]).ok().lines().count(), 2);
}

#[test]
fn mount_a_diff_by_table_and_of_the_schema() {
    let Some(scene) = PostgresScene::with_cluster("") else { return };
    scene.run(&["start", "main"]).ok();
    let sql = |branch: &str, text: &str| {
        scene.run(&["psql", branch, "--", "-v", "ON_ERROR_STOP=1", "-qc", text]).ok();
    };
    sql("main", "CREATE TABLE kept AS SELECT g AS id FROM generate_series(1, 20000) g");
    sql("main", "CREATE INDEX kept_id ON kept (id)");
    sql("main", "CREATE TABLE dropped AS SELECT * FROM kept");
    sql("main", "CREATE TABLE cut AS SELECT * FROM kept");
    scene.run(&["fork", "main", "kid", "--checkpoint"]).ok();
    sql("kid", "UPDATE kept SET id = -id WHERE id = 7");
    sql("kid", "DROP TABLE dropped");
    sql("kid", "TRUNCATE cut");
    sql("kid", "CREATE VIEW \"a view\" AS SELECT 1 AS one");
    sql("kid", "CREATE DATABASE other");
    sql("kid", "CHECKPOINT");
    for stopped in [false, true] {
        if stopped {
            scene.run(&["stop", "kid"]).ok();
            scene.run(&["stop", "main"]).ok();
        }
        let said = scene.run(&["diff", "kid", "--tables"]).ok();
        for (change, name) in [
            ("modified", "postgres.public.kept "),
            ("modified", "postgres.public.kept_id "),
            ("deleted", "postgres.public.dropped "),
            ("rewritten", "postgres.public.cut "),
        ] {
            let line = said.lines().find(|line| line.contains(name));
            assert!(line.is_some_and(|line| line.starts_with(change)), "{change} {name}: {said}");
        }
        assert!(said.contains("of the system: "), "{said}");
        let schema = scene.run(&["diff", "main", "kid", "--schema"]).ok();
        assert!(schema.contains("\n-CREATE TABLE public.dropped (\n"), "{schema}");
        assert!(schema.contains("\n+CREATE VIEW public.\"a view\" AS\n"), "{schema}");
        assert!(schema.contains("+++ kid/other\n") && !schema.contains("restrict "), "{schema}");
        assert!(!schema.contains("TABLE public.kept"), "{schema}");
    }
    // Interrupted anywhere, it leaves nothing behind.
    for delay_ms in [5, 20, 50, 100, 200, 400] {
        let mut child =
            scene.command(&["diff", "kid", "--schema"]).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT);
        child.wait().unwrap();
        assert_eq!(scene.branches(), ["kid", "main"], "after {delay_ms} ms");
    }
    let same = scene.run(&["diff", "main", "main", "--schema"]).ok();
    assert_eq!(same, "The schemas are the same");
    assert_eq!(scene.run(&["branch", "list"]).ok().lines().count(), 3);
}
