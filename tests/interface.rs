//! The command line as people read it: help texts and the synopsis of every manual page.
//!
//! A change of the interface shows up as a change of `tests/snapshots`, to be reviewed. After a
//! change that is meant: `INSTA_UPDATE=always cargo test --test interface`, and commit the result.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::process::Command;

/// A width that depends on no terminal.
const COLUMNS: &str = "100";

fn cowfs(args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cowfs"));
    let output = command.args(args).env_remove("COWFS_STORE").env("COLUMNS", COLUMNS).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that a help text lists.
fn commands_in(help: &str) -> Vec<&str> {
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return Vec::new() };
    let lines = list.lines().take_while(|line| !line.is_empty());
    // A description goes on in lines that are indented further.
    let begins = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    begins
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect()
}

#[test]
fn every_help_text_is_as_reviewed() {
    let mut text = String::new();
    let mut stack: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = 0;
    while let Some(command) = stack.pop() {
        let mut args: Vec<&str> = command.iter().map(String::as_str).collect();
        args.push("--help");
        let help = cowfs(&args);
        for name in commands_in(&help).into_iter().rev() {
            stack.push([command.clone(), vec![name.to_owned()]].concat());
        }
        let title = [&["cowfs".to_owned()][..], &command].concat().join(" ");
        writeln!(text, "===== {title}\n{help}").unwrap();
        seen += 1;
    }
    assert!(seen > 12, "only {seen} commands were found");
    insta::assert_snapshot!("help", text);
}

/// The reference in `docs/CLI.md` is made of the help texts. `INSTA_UPDATE=always` writes it anew.
#[test]
fn the_reference_is_what_the_commands_say() {
    let mut text = String::from(
        "# Commands\n\nWhat `cowfs help` says, command by command. Made by tests/interface.rs: do not edit.\n",
    );
    let mut stack: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(command) = stack.pop() {
        let mut args: Vec<&str> = command.iter().map(String::as_str).collect();
        args.push("--help");
        let help = cowfs(&args);
        for name in commands_in(&help).into_iter().rev() {
            stack.push([command.clone(), vec![name.to_owned()]].concat());
        }
        let title = [&["cowfs".to_owned()][..], &command].concat().join(" ");
        let level = "#".repeat(2 + command.len().saturating_sub(1));
        // Options that every command has stand at the top only.
        let help = if command.is_empty() { help } else { without_globals(&help) };
        writeln!(text, "\n{level} {title}\n\n```text\n{}\n```", help.trim_end()).unwrap();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/CLI.md");
    if std::env::var_os("INSTA_UPDATE").is_some_and(|update| update == "always") {
        std::fs::write(path, &text).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == text,
        "docs/CLI.md is not what the commands say: INSTA_UPDATE=always writes it"
    );
}

/// A help text without the options that every command has.
fn without_globals(help: &str) -> String {
    let mut within = false;
    let mut kept: Vec<&str> = Vec::new();
    for line in help.lines() {
        within |= line.trim_start().starts_with("--store <DIR>");
        if !within {
            kept.push(line);
        }
        within &= !line.ends_with("Print version");
    }
    kept.join("\n").replace("\nOptions:\n\n", "\n")
}

/// Commands whose output is not data of ours, or is nothing but a sentence; the reason of each.
const WITHOUT_JSON: [(&str, &str); 11] = [
    ("completions", "a script for a shell"),
    ("daemon", "runs until it is ended"),
    ("logs", "the log as it was written"),
    ("man", "manual pages"),
    ("metrics", "the form of Prometheus"),
    ("mount", "changes; `status --json` reads"),
    ("psql", "the output of psql"),
    ("run", "the output of the command"),
    ("stop", "changes; `status --json` reads"),
    ("try", "the output of the command"),
    ("unmount", "changes; `status --json` reads"),
];

#[test]
fn every_command_that_reads_has_json() {
    let mut stack: Vec<String> =
        commands_in(&cowfs(&["--help"])).iter().map(|c| (*c).into()).collect();
    let (mut with, mut without) = (Vec::new(), Vec::new());
    while let Some(command) = stack.pop() {
        let words: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = cowfs(&words);
        let below = commands_in(&help);
        if below.is_empty() {
            let list = if help.contains("  --json") { &mut with } else { &mut without };
            list.push(command);
        } else {
            stack.extend(below.iter().map(|name| format!("{command} {name}")));
        }
    }
    without.sort();
    assert_eq!(without, WITHOUT_JSON.map(|(command, _)| command));
    assert!(with.len() > 12 && with.contains(&"env".to_owned()), "{with:?}");
}

#[test]
fn every_synopsis_is_as_reviewed() {
    let dir = tempfile::tempdir().unwrap();
    cowfs(&["man", "--dir", dir.path().to_str().unwrap()]);
    let mut pages: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    pages.sort();
    let mut text = String::new();
    for page in pages {
        let source = std::fs::read_to_string(&page).unwrap();
        let synopsis = source.split(".SH ").find(|part| part.starts_with("SYNOPSIS")).unwrap();
        let name = page.file_name().unwrap().to_str().unwrap();
        writeln!(text, "===== {name}\n{}", synopsis.trim_end()).unwrap();
    }
    insta::assert_snapshot!("synopsis", text);
}
