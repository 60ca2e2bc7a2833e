//! The session that the README shows is what the commands print. Needs root, /dev/fuse and Debian's
//! Postgres 15; says so and passes where they are missing. `COWFS_README_UPDATE=1` writes the README
//! anew. About five seconds.
#![allow(clippy::unwrap_used)]

mod postgres_support;

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use postgres_support::Scene;

const BEGIN: &str = "```console\n";
const END: &str = "```\n";
/// Where the cluster of the README lies.
const SHOWN: &str = "/var/lib/postgresql/15/main";

/// The text without what differs from run to run: numbers, units, and the widths of columns.
fn normal(text: &str) -> Vec<String> {
    let line = |line: &str| {
        let mut normal = String::new();
        for word in line.split_whitespace() {
            let mut last_was_number = false;
            if ["B", "KiB", "MiB", "GiB"].contains(&word.trim_end_matches([',', ';', ')'])) {
                continue;
            }
            for c in word.chars() {
                let number = c.is_ascii_digit() || (last_was_number && c == '.');
                if !number {
                    normal.push(c);
                } else if !last_was_number {
                    normal.push('#');
                }
                last_was_number = number;
            }
            normal.push(' ');
        }
        normal
    };
    text.lines().map(line).collect()
}

fn run(scene: &Scene, line: &str, cluster: &Path) -> String {
    let with_environment = scene.command(&[]);
    let mut command = Command::new("sh");
    for (name, value) in with_environment.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let dir = Path::new(env!("CARGO_BIN_EXE_cowfs")).parent().unwrap();
    command.env("PATH", format!("{}:{}", dir.display(), std::env::var("PATH").unwrap()));
    let line = line.replace(SHOWN, cluster.to_str().unwrap());
    let out = command.arg("-c").arg(format!("{line} 2>&1")).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{line}: {text}");
    text.replace(cluster.to_str().unwrap(), SHOWN)
}

#[test]
fn mount_the_session_of_the_readme_is_what_the_commands_print() {
    let Some(scene) = Scene::empty() else { return };
    let cluster = scene.initdb("cluster", "");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let begin = readme.find(BEGIN).unwrap() + BEGIN.len();
    let end = begin + readme[begin..].find(END).unwrap();
    let shown = &readme[begin..end];
    let mut printed = String::new();
    for line in shown.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            let text = run(&scene, command, &cluster);
            write!(printed, "{line}\n{text}").unwrap();
        }
    }
    if std::env::var_os("COWFS_README_UPDATE").is_some() {
        fs::write(&path, format!("{}{printed}{}", &readme[..begin], &readme[end..])).unwrap();
        return;
    }
    assert_eq!(normal(shown), normal(&printed), "COWFS_README_UPDATE=1 writes it anew:\n{printed}");
}
