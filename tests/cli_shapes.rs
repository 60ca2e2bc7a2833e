//! What commands say, in one shape everywhere: JSON, usage lines, hints, counted nouns.
//! No mount is needed; a second or two.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cowfs::postgres::instance::{Files, Instance, Wishes};
use cowfs::postgres::process::ProcessId;
use cowfs::serve::run_file::RunFile;
use serde_json::Value;

struct Place {
    dir: tempfile::TempDir,
    store: PathBuf,
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn said(output: &Output) -> Said {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { store: dir.path().join("store"), dir };
        place.ok(&["init"]);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cowfs"));
        command.env("COWFS_STORE", &self.store).env_remove("COWFS_LOG");
        command.current_dir(self.dir.path()).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Said {
        said(&self.command(args).output().unwrap())
    }

    fn ok(&self, args: &[&str]) -> String {
        let said = self.run(args);
        assert_eq!(said.code, Some(0), "{args:?}: {}", said.err);
        said.out
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// A branch with one file in its base.
    fn import(&self, name: &str) -> Value {
        let tree = self.path(&format!("tree-{name}"));
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("file"), vec![7; 100_000]).unwrap();
        self.json(&["import", tree.to_str().unwrap(), "--any", "--as", name, "--json"])
    }

    fn run_dir(&self) -> PathBuf {
        self.store.join("run")
    }

    /// What a serving process leaves that was killed at once.
    fn dead_mount(&self, id: u64) {
        let run = RunFile {
            branch: cowfs::format::BranchId(id),
            mount_point: self.path("mnt"),
            pid: 1 << 22,
            since_ms: 1_700_000_000_000,
            read_only: false,
        };
        run.write(&self.run_dir()).unwrap();
    }
}

/// Every key and value of a JSON document, the inner ones too.
fn walk(value: &Value, visit: &mut dyn FnMut(&str, &Value)) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                visit(key, inner);
                walk(inner, visit);
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| walk(inner, visit)),
        _ => {}
    }
}

fn is_time(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.parse::<jiff::Timestamp>().is_ok())
}

#[test]
fn names_layers_and_times_have_one_shape_in_all_json() {
    let place = Place::new();
    let imported = place.import("main");
    assert_eq!(imported["branch"], "main");
    let mut shown = vec![imported];
    place.dead_mount(1);
    for args in [
        &["branch", "create", "child", "--from", "main"][..],
        &["branch", "create", "child", "--empty", "--if-not-exists"],
        &["branch", "rename", "child", "other"],
        &["branch", "list"],
        &["branch", "show", "main"],
        &["status"],
        &["status", "main"],
        &["check"],
        &["gc", "--dry-run"],
        &["branch", "delete", "other", "--dry-run"],
    ] {
        shown.push(place.json(&[args, &["--json"]].concat()));
    }
    let (mut branches, mut times, mut layers) = (0, 0, 0);
    for value in &shown {
        walk(value, &mut |key, value| {
            let internal = ["hygiene_pending", "head", "created_ms", "since_ms"];
            assert!(!internal.contains(&key), "{key}: {value}");
            match key {
                "branch" | "name" => {
                    assert!(value.is_string(), "{key}: {value}");
                    branches += 1;
                }
                "created" if value.is_boolean() => {}
                "created" | "since" => {
                    assert!(is_time(value), "{key}: {value}");
                    times += 1;
                }
                "layers" if value.is_array() => {
                    for layer in value.as_array().unwrap() {
                        let id = layer["id"].as_str().unwrap();
                        assert!(id.len() == 12 && u64::from_str_radix(id, 16).is_ok(), "{id}");
                        layers += 1;
                    }
                }
                _ => {}
            }
        });
    }
    assert!(branches >= 9 && times >= 5 && layers >= 2, "{branches} {times} {layers}: {shown:?}");
    for line in place.ok(&["dump", "main", "--json"]).lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        if let Some(mtime) = record.get("mtime") {
            assert!(is_time(mtime), "{record}");
        }
    }
}

#[test]
fn status_tells_open_and_sealed_bytes_and_the_state_of_its_json() {
    let place = Place::new();
    place.import("main");
    place.ok(&["branch", "create", "child", "--from", "main"]);
    place.dead_mount(1);
    let status = place.json(&["status", "main", "--json"]);
    assert_eq!((&status["state"], &status["open_bytes"]), (&"dead".into(), &Value::Null));
    assert_eq!(status["since"], "2023-11-14T22:13:20Z");
    assert_eq!(status["sealed_layers"], 1);
    assert!(status["sealed_bytes"].as_u64().unwrap() >= 100_000, "{status}");
    let table = place.ok(&["status"]);
    assert!(
        table.contains("SEALED LAYERS") && table.contains("dead: server was killed"),
        "{table}"
    );
    assert!(table.contains("KiB in 1"), "{table}");
}

#[test]
fn a_store_from_the_environment_shows_in_no_usage_line() {
    let place = Place::new();
    for args in [&["branch", "create"][..], &["import", "x"], &["mount"], &["branch", "show"]] {
        let said = place.run(args);
        assert_eq!(said.code, Some(2), "{args:?}");
        assert!(said.err.contains("Usage:") && !said.err.contains("--store"), "{}", said.err);
    }
}

#[test]
fn an_empty_cowfs_store_is_as_good_as_none() {
    let place = Place::new();
    let home = place.path("home");
    let ask = |command: &mut Command| {
        let command = command.env("HOME", &home).env_remove("XDG_DATA_HOME");
        said(&command.output().unwrap())
    };
    let empty = ask(place.command(&["branch", "list"]).env("COWFS_STORE", ""));
    let unset = ask(place.command(&["branch", "list"]).env_remove("COWFS_STORE"));
    assert_eq!((empty.code, &empty.out, &empty.err), (unset.code, &unset.out, &unset.err));
    assert!(!empty.err.starts_with("Error:  is"), "{}", empty.err);
    // And the option is stronger than the variable.
    let other = place.path("other");
    let args = ["--store", other.to_str().unwrap(), "branch", "list"];
    assert!(place.run(&args).err.contains("other is not a cowfs store"));
}

#[test]
fn an_import_without_a_source_names_all_three() {
    let said = Place::new().run(&["import", "--as", "xx"]);
    assert_eq!(said.code, Some(2));
    for way in ["PGDATA", "--adopt", "--from-server"] {
        assert!(said.err.contains(way), "no {way} in: {}", said.err);
    }
}

#[test]
fn a_branch_that_exists_otherwise_is_said_to_be_so() {
    let place = Place::new();
    place.ok(&["branch", "create", "p", "--empty"]);
    place.ok(&["branch", "create", "q", "--empty"]);
    place.ok(&["branch", "create", "x", "--from", "q"]);
    let again = |source: &[&str]| {
        let args = [&["branch", "create", "x", "--if-not-exists"][..], source].concat();
        let said = place.run(&args);
        assert_eq!(said.code, Some(0), "{}", said.err);
        let json = place.json(&[&args[..], &["--json"]].concat());
        assert_eq!((&json["created"], &json["parent"]), (&false.into(), &"q".into()));
        (said.err, json["differs"].clone())
    };
    assert_eq!(again(&["--from", "q"]), (String::new(), Value::Null));
    for (source, text) in [
        (&["--from", "p"][..], "it is a fork of q, not of p"),
        (&["--empty"], "it is a fork of q, not one that began empty"),
    ] {
        let (err, differs) = again(source);
        assert_eq!(err, format!("Note: branch x exists already; {text}\n"));
        assert_eq!(differs, text);
    }
}

#[test]
fn manual_pages_that_cannot_be_written_name_the_directory() {
    let place = Place::new();
    let said = place.run(&["man", "--dir", "missing/dir"]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("missing/dir") && said.err.contains("Hint: "), "{}", said.err);
}

#[test]
fn somebody_elses_store_is_refused_with_a_hint() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root, to become somebody else");
        return;
    }
    let place = Place::new();
    let open = |path: &Path| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
    };
    open(place.dir.path());
    let binary = place.path("cowfs");
    std::fs::copy(env!("CARGO_BIN_EXE_cowfs"), &binary).unwrap();
    open(&binary);
    let output = Command::new("setpriv")
        .args(["--reuid", "nobody", "--clear-groups"])
        .arg(&binary)
        .env("COWFS_STORE", &place.store)
        .args(["branch", "list"])
        .output();
    let said = said(&output.unwrap());
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("ermission denied"), "{}", said.err);
    assert!(
        said.err.contains("Hint: run it as the user who made the store (user 0)"),
        "{}",
        said.err
    );
}

#[test]
fn mount_options_are_the_same_in_help_and_refusal() {
    let place = Place::new();
    place.ok(&["branch", "create", "main", "--empty"]);
    let said = place.run(&["mount", "main", "mnt", "-o", "turbo"]);
    assert_eq!(said.code, Some(2), "{}", said.err);
    let (_, known) = said.err.split_once("Hint: known are ").unwrap();
    let help = place.ok(&["mount", "--help"]);
    let (_, help) = help.split_once("Mount options:").unwrap();
    for option in known.trim().split(", ") {
        assert!(help.contains(option), "{option} is not in {help}");
    }
    for option in ["xattr", "writethrough", "realtime", "ro", "allow_other", "nosuid"] {
        assert!(known.contains(option), "{option} is not in {known}");
    }
}

#[test]
fn a_quiet_gc_says_nothing() {
    let place = Place::new();
    place.ok(&["branch", "create", "main", "--empty"]);
    place.ok(&["branch", "delete", "main", "--purge"]);
    let said = place.run(&["gc", "-q"]);
    assert_eq!((said.code, said.out, said.err), (Some(0), String::new(), String::new()));
}

#[test]
fn one_of_a_thing_is_said_in_the_singular() {
    let place = Place::new();
    std::fs::create_dir(place.path("tree")).unwrap();
    std::fs::write(place.path("tree/file"), "x").unwrap();
    let text = place.ok(&["import", "tree", "--any", "--as", "main"]);
    assert!(text.contains("1 file, 1 directory, "), "{text}");
    let text = place.ok(&["check"]);
    assert!(text.contains("1 branch, 2 layers, 1 data file, 1 name checked"), "{text}");
}

#[test]
fn the_log_of_the_serving_process_can_be_read() {
    let place = Place::new();
    place.ok(&["branch", "create", "main", "--empty"]);
    let said = place.run(&["logs", "main", "--mount"]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("no log of a mount") && said.err.contains("Hint: "), "{}", said.err);
    let log = place.run_dir().join("1.log");
    std::fs::write(&log, "one\ntwo\n").unwrap();
    assert_eq!(place.ok(&["logs", "main", "--mount", "-n", "1"]), "two\n");
    assert_eq!(place.ok(&["logs", "main", "--mount", "--path"]), format!("{}\n", log.display()));
    assert_ne!(place.run(&["logs", "main"]).code, Some(0), "that of Postgres is another");
    // It goes with the branch.
    place.ok(&["branch", "delete", "main", "--purge"]);
    place.ok(&["gc"]);
    assert!(!log.exists());
}

#[test]
fn a_postgres_that_outlives_its_mount_is_shown() {
    let place = Place::new();
    place.ok(&["branch", "create", "main", "--empty"]);
    place.dead_mount(1);
    let show = || place.ok(&["branch", "show", "main"]);
    assert!(show().contains("in use   no; the serving process was killed"), "{}", show());
    // Any living process will do.
    let pid = std::process::id().cast_signed();
    let instance = Instance {
        process: ProcessId::of(pid).unwrap(),
        port: 5433,
        socket_dir: place.path("s"),
        data_dir: place.path("mnt"),
        bin_dir: "/nowhere".into(),
        user: "postgres".to_owned(),
        database: "postgres".to_owned(),
        since_ms: 1_700_000_000_000,
        mounted_here: true,
        settings: Vec::new(),
        removed_slots: Vec::new(),
        wishes: Wishes::default(),
    };
    Files::new(place.run_dir(), 1).write(&instance).unwrap();
    let words = format!("the serving process was killed; Postgres (process {pid}) still runs");
    assert!(show().contains(&words), "{}", show());
    let json = place.json(&["branch", "show", "main", "--json"]);
    assert_eq!((&json["in_use"], &json["state"]), (&true.into(), &"dead".into()));
    assert_eq!((&json["mounted"], &json["postgres"]["pid"]), (&Value::Null, &pid.into()));
    let listed = place.json(&["branch", "list", "--json"]);
    assert_eq!(listed[0]["in_use"], true);
}
