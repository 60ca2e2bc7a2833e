//! The commands that need no mount, run as people run them: results, messages, exit codes.
//! A second or two.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Cli {
    _dir: tempfile::TempDir,
    store: PathBuf,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Cli {
    fn without_store() -> Cli {
        let dir = tempfile::tempdir().unwrap();
        Cli { store: dir.path().join("store"), _dir: dir }
    }

    fn new() -> Cli {
        let cli = Cli::without_store();
        cli.ok(&["init"]);
        cli
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cowfs"));
        command.env("COWFS_STORE", &self.store).env_remove("COWFS_LOG").args(args);
        command.output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
        text(&out.stdout)
    }

    /// Runs a command that must fail with `code` and a message that contains `message`.
    fn refused(&self, args: &[&str], code: i32, message: &str) {
        let out = self.run(args);
        let stderr = text(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(message), "{args:?} says: {stderr}");
        assert_eq!(text(&out.stdout), "", "{args:?}");
    }

    fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// The open layer of a branch, as `branch show` names it.
    fn head(&self, branch: &str) -> PathBuf {
        let shown = self.json(&["branch", "show", branch, "--json"]);
        self.store.join("layers").join(shown["layers"][0]["id"].as_str().unwrap())
    }

    fn sound(&self) {
        assert!(self.ok(&["check"]).starts_with("sound"));
    }
}

#[test]
fn init_refuses_what_is_not_empty() {
    let cli = Cli::new();
    cli.refused(&["init"], 1, "is a cowfs store already");
    let other = Cli::without_store();
    std::fs::create_dir(&other.store).unwrap();
    std::fs::write(other.store.join("mine"), "x").unwrap();
    other.refused(&["init"], 1, "is not empty");
    assert_eq!(std::fs::read(other.store.join("mine")).unwrap(), b"x");
    std::fs::remove_file(other.store.join("mine")).unwrap();
    other.ok(&["init"]);
    let file = Cli::without_store();
    std::fs::write(&file.store, "x").unwrap();
    file.refused(&["init"], 1, "is not a directory");
}

#[test]
fn the_store_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let cli = Cli::new();
    assert_eq!(std::fs::metadata(&cli.store).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn without_a_store_every_command_says_so() {
    let cli = Cli::without_store();
    for args in [&["branch", "list"][..], &["status"], &["gc"], &["check"], &["mount", "a", "/mnt"]]
    {
        cli.refused(args, 1, "is not a cowfs store");
    }
}

#[test]
fn a_store_of_the_future_or_a_damaged_one_is_refused_by_name() {
    let cli = Cli::new();
    let format = cli.store.join("FORMAT");
    let good = std::fs::read_to_string(&format).unwrap();
    std::fs::write(&format, good.replace("\"version\":1", "\"version\":99")).unwrap();
    cli.refused(&["branch", "list"], 1, "version 99");
    for bad in ["", "{", "null", "{\"magic\":\"other\",\"version\":1}"] {
        std::fs::write(&format, bad).unwrap();
        cli.refused(&["branch", "list"], 3, "FORMAT is damaged");
    }
    std::fs::write(&format, [0xff, 0xfe]).unwrap();
    cli.refused(&["branch", "list"], 3, "FORMAT is damaged");
    std::fs::write(&format, good).unwrap();
    cli.ok(&["branch", "list"]);
    std::fs::write(cli.store.join("catalog.sqlite"), "this is not a database, for sure").unwrap();
    let out = cli.run(&["branch", "list"]);
    assert!(!out.status.success() && text(&out.stderr).contains("catalog.sqlite"));
}

#[test]
fn names_follow_the_rule() {
    let cli = Cli::new();
    let long = "a".repeat(64);
    for bad in ["", "A", "-x", "a..b", "a//b", "a/", ".", "..", "a b", "a\nb", "ä", "/etc", &long]
    {
        let out = cli.run(&["branch", "create", "--empty", "--", bad]);
        assert_eq!(out.status.code(), Some(2), "{bad:?}: {}", text(&out.stderr));
    }
    cli.ok(&["branch", "create", "--empty", "a"]);
    cli.ok(&["branch", "create", "--empty", "team/x_1.2-3"]);
    cli.ok(&["branch", "create", "--empty", &"a".repeat(63)]);
    cli.sound();
}

#[test]
fn create_needs_one_source_that_exists() {
    let cli = Cli::new();
    cli.ok(&["branch", "create", "main", "--empty"]);
    assert_eq!(cli.run(&["branch", "create", "x"]).status.code(), Some(2));
    let both = cli.run(&["branch", "create", "x", "--empty", "--from", "main"]);
    assert_eq!(both.status.code(), Some(2));
    let past = ["branch", "create", "x", "--empty", "--at", "10 minutes ago"];
    cli.refused(&past, 2, "cannot be used with");
    cli.refused(&["branch", "create", "x", "--from", "mian"], 1, "there is no branch mian");
    cli.refused(&["branch", "create", "main", "--empty"], 1, "branch main exists already");
    cli.refused(&["branch", "create", "main", "--from", "main"], 1, "branch main exists already");
    cli.ok(&["branch", "create", "main", "--empty", "--if-not-exists"]);
    cli.ok(&["branch", "create", "x", "--from", "main", "--if-not-exists"]);
    let again = cli.json(&["branch", "create", "x", "--from", "main", "--if-not-exists", "--json"]);
    assert_eq!(again["created"], false);
    cli.sound();
}

#[test]
fn the_log_of_a_branch_that_never_was_is_refused() {
    let cli = Cli::new();
    cli.ok(&["branch", "create", "main", "--empty"]);
    cli.ok(&["branch", "expire", "main", "1d"]);
    let log = cli.ok(&["log", "main"]);
    assert!(log.contains("main: expires 20"), "{log}");
    cli.refused(&["log", "mian"], 1, "there is no branch mian");
    cli.ok(&["branch", "rename", "main", "other"]);
    assert!(!cli.ok(&["log", "main"]).is_empty(), "what it was called then");
}

#[test]
fn a_parent_can_go_and_its_children_keep_their_data() {
    let cli = Cli::new();
    cli.ok(&["branch", "create", "main", "--empty"]);
    cli.ok(&["branch", "create", "child", "--from", "main"]);
    let data = cli.json(&["branch", "show", "child", "--json"])["layers"][1]["id"].clone();
    cli.refused(&["branch", "delete", "nobody"], 1, "there is no branch nobody");
    assert!(cli.ok(&["branch", "delete", "main", "--dry-run"]).contains("child"));
    assert_eq!(cli.json(&["branch", "list", "--json"]).as_array().unwrap().len(), 2);
    assert!(cli.ok(&["branch", "delete", "main", "--purge"]).contains("keeps its data"));
    let freed = cli.json(&["gc", "--json"]);
    assert_eq!(freed["layers"], 1, "the parent's own open layer: {freed}");
    assert!(cli.store.join("layers").join(data.as_str().unwrap()).join("journal").exists());
    cli.sound();
}

#[test]
fn unique_bytes_are_what_gc_frees() {
    let cli = Cli::new();
    let source = cli.store.parent().unwrap().join("tree");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), vec![1; 300_000]).unwrap();
    cli.ok(&["import", source.to_str().unwrap(), "--any", "--as", "main"]);
    let bytes = |branch: &str| {
        let shown = cli.json(&["branch", "show", branch, "--json"]);
        let (unique, shared) = (&shown["unique_bytes"], &shown["shared_bytes"]);
        (unique.as_u64().unwrap(), shared.as_u64().unwrap())
    };
    let (unique, shared) = bytes("main");
    assert!(unique >= 300_000 && shared == 0, "{unique} and {shared}: nobody shares it yet");
    cli.ok(&["branch", "create", "child", "--from", "main"]);
    for branch in ["main", "child"] {
        assert_eq!(bytes(branch), (0, unique), "{branch}: nothing was written since the fork");
    }
    assert!(cli.ok(&["branch", "show", "child"]).contains("unique   0"));
    cli.ok(&["branch", "delete", "main", "--purge"]);
    assert_eq!(cli.json(&["gc", "--json"])["bytes"], 0);
    assert_eq!(bytes("child"), (unique, 0), "the last one that needs it");
    cli.ok(&["branch", "delete", "child", "--purge"]);
    assert_eq!(cli.json(&["gc", "--json"])["bytes"], unique);
}

#[test]
fn json_of_what_changes_branches() {
    let cli = Cli::new();
    cli.ok(&["branch", "create", "main", "--empty"]);
    cli.ok(&["branch", "create", "child", "--from", "main"]);
    let renamed = cli.json(&["branch", "rename", "main", "prod", "--json"]);
    assert_eq!(renamed, serde_json::json!({"branch": "prod", "id": 1, "was": "main"}));
    for dry_run in [true, false] {
        let mut args = vec!["branch", "delete", "prod", "--json"];
        args.extend(dry_run.then_some("--dry-run"));
        let expected = serde_json::json!(
            {"branch": "prod", "id": 1, "dry_run": dry_run, "children": ["child"], "snapshots": [],
             "purged": false});
        assert_eq!(cli.json(&args), expected);
    }
    cli.refused(&["branch", "delete", "prod", "--json"], 1, "there is no branch prod");
}

#[test]
fn rename_keeps_everything_else() {
    let cli = Cli::new();
    cli.ok(&["branch", "create", "a", "--empty"]);
    cli.ok(&["branch", "create", "b", "--from", "a"]);
    cli.refused(&["branch", "rename", "a", "b"], 1, "branch b exists already");
    cli.refused(&["branch", "rename", "x", "y"], 1, "there is no branch x");
    cli.ok(&["branch", "rename", "a", "c"]);
    assert_eq!(cli.json(&["branch", "show", "b", "--json"])["parent"], "c");
}

#[test]
fn gc_takes_what_nothing_reaches_and_nothing_else() {
    let cli = Cli::new();
    cli.ok(&["branch", "create", "main", "--empty"]);
    cli.ok(&["branch", "create", "gone", "--empty"]);
    let layer = cli.head("gone");
    cli.ok(&["branch", "delete", "gone", "--purge"]);
    let stray = cli.store.join("layers/0000000000aa");
    std::fs::create_dir(&stray).unwrap();
    let planned = cli.json(&["gc", "--dry-run", "--json"]);
    assert_eq!((&planned["layers"], &planned["leftovers"]), (&1.into(), &0.into()));
    assert!(layer.exists());
    cli.ok(&["gc"]);
    assert!(!layer.exists() && stray.exists() && cli.head("main").exists());
    cli.ok(&["gc", "--now"]);
    assert!(!stray.exists());
    cli.sound();
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn check_finds_damage_and_names_the_file() {
    let cli = Cli::new();
    cli.ok(&["branch", "create", "main", "--empty"]);
    cli.sound();
    let journal = cli.head("main").join("journal");
    flip(&journal, 3);
    let out = cli.run(&["check"]);
    assert_eq!(out.status.code(), Some(3));
    assert!(text(&out.stdout).contains(journal.to_str().unwrap()), "{}", text(&out.stdout));
    flip(&journal, 3);
    cli.sound();
    std::fs::remove_dir_all(journal.parent().unwrap()).unwrap();
    let out = cli.run(&["check"]);
    assert_eq!(out.status.code(), Some(3));
    assert!(text(&out.stdout).contains("was written to"), "{}", text(&out.stdout));
}

#[test]
fn twenty_forks_at_once_all_succeed() {
    let cli = Cli::new();
    cli.ok(&["branch", "create", "main", "--empty"]);
    std::thread::scope(|scope| {
        for n in 0..20 {
            let cli = &cli;
            scope.spawn(move || cli.ok(&["branch", "create", &format!("f{n}"), "--from", "main"]));
        }
    });
    assert_eq!(cli.json(&["branch", "list", "--json"]).as_array().unwrap().len(), 21);
    cli.sound();
}

#[test]
fn help_completions_and_pages_are_there() {
    let cli = Cli::new();
    assert!(cli.ok(&["--version"]).starts_with("cowfs "));
    for shell in ["bash", "zsh", "fish"] {
        assert!(cli.ok(&["completions", shell]).contains("cowfs"));
    }
    assert!(cli.ok(&["man"]).contains(".TH"));
    let dir = cli.store.parent().unwrap().join("man");
    std::fs::create_dir(&dir).unwrap();
    cli.ok(&["man", "--dir", dir.to_str().unwrap()]);
    assert!(dir.join("cowfs-branch-create.1").exists());
    assert_eq!(cli.run(&["no-such-command"]).status.code(), Some(2));
}

#[test]
fn a_shell_is_offered_names_of_branches_and_snapshots() {
    let cli = Cli::new();
    for name in ["main", "team/dev"] {
        cli.ok(&["branch", "create", name, "--empty"]);
    }
    cli.ok(&["snapshot", "create", "main@first"]);
    let offered = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cowfs"));
        command.env("COWFS_STORE", &cli.store).env("COWFS_COMPLETE", "fish");
        let out = command.args(["--", "cowfs"]).args(words).output().unwrap();
        assert!(out.status.success(), "{words:?}: {}", text(&out.stderr));
        let lines = text(&out.stdout);
        lines.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(offered(&["branch", "show", "ma"]), ["main"]);
    assert_eq!(offered(&["stop", "t"]), ["team/dev"]);
    assert_eq!(offered(&["fork", "main"]), ["main", "main@first"]);
    assert_eq!(offered(&["snapshot", "delete", "m"]), ["main@first"]);
    let commands = offered(&["snap"]);
    assert_eq!(commands, ["snapshot"]);
    // Where there is no store, nothing is offered, and nothing complains.
    assert!(offered(&["--store", "/nonexistent", "branch", "show", "ma"]).is_empty());
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = cli.ok(&["completions", shell]);
        assert!(script.contains("COWFS_COMPLETE"), "{shell}: {script}");
    }
}

/// To open a FIFO is to wait for whoever opens the other end.
#[test]
fn a_fifo_in_the_place_of_a_file_of_the_store_is_not_waited_for() {
    let cli = Cli::new();
    let tree = cli.store.with_file_name("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("file"), "contents").unwrap();
    cli.ok(&["import", "--any", tree.to_str().unwrap(), "--as", "main"]);
    let layers = std::fs::read_dir(cli.store.join("layers")).unwrap().flatten();
    let mut layers = layers.map(|entry| entry.path());
    let sealed = layers.find(|layer| layer.join("index").exists()).unwrap();
    let branch = cli.json(&["branch", "show", "main", "--json"])["id"].clone();
    let lock = cli.store.join(format!("run/{branch}.lock"));
    let sums = sealed.join("sums.tmp");
    let log = cli.store.join(format!("run/{branch}.log"));
    let cases: [(PathBuf, &[&str], i32, &str); 6] = [
        (cli.store.join("FORMAT"), &["check"], 3, "FORMAT is damaged"),
        (cli.store.join("FORMAT"), &["branch", "list"], 3, "FORMAT is damaged"),
        (sums, &["check", "--add-checksums"], 1, "not a regular file"),
        (lock, &["branch", "delete", "main"], 1, "not a regular file"),
        (cli.store.join("run/gc.lock"), &["gc", "--now"], 1, "not a regular file"),
        (log, &["logs", "main", "--mount"], 1, "not a regular file"),
    ];
    for (path, args, code, words) in cases {
        let away = cli.store.with_file_name("away");
        let kept = std::fs::rename(&path, &away).is_ok();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut command = Command::new("timeout");
        command.args(["20", env!("CARGO_BIN_EXE_cowfs")]).args(args);
        let said = command.env("COWFS_STORE", &cli.store).output().unwrap();
        let stderr = text(&said.stderr);
        assert_eq!(said.status.code(), Some(code), "{args:?} over {}: {stderr}", path.display());
        assert!(stderr.contains(words), "{args:?} over {}: {stderr}", path.display());
        std::fs::remove_file(&path).unwrap();
        if kept {
            std::fs::rename(&away, &path).unwrap();
        }
    }
    cli.sound();
    assert!(cli.ok(&["branch", "list"]).contains("main"));
}
