//! Settings of a stopped cluster, read from its configuration files as far as we need them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::read_bounded;

/// Configuration files are read up to this many bytes.
const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// As deep as Postgres follows `include`.
const INCLUDE_DEPTH_MAX: u32 = 10;
/// Files that are read for one configuration: one that includes itself twice would be read 2^10 times.
const FILES_MAX: u32 = 1000;

/// The files that hold settings, in the order in which Postgres applies them.
const CONFIG_FILES: [&str; 2] = ["postgresql.conf", "postgresql.auto.conf"];

/// The value that `name` has after both configuration files of the data directory at `dir`.
///
/// `include` directives are not followed and command-line options are not known, so `None` does
/// not mean that the server runs with the default. Unreadable files count as empty.
pub fn setting(dir: &Path, name: &str) -> Option<String> {
    CONFIG_FILES
        .iter()
        .filter_map(|file| {
            let bytes = read_bounded(&dir.join(file), CONFIG_BYTES_MAX).ok()?;
            last_value(&String::from_utf8_lossy(&bytes), name)
        })
        .next_back()
}

/// Whether the cluster at `dir` asks for `recovery_init_sync_method = syncfs`.
///
/// Unsafe on any FUSE mount: the kernel answers `syncfs(2)` there without telling the filesystem,
/// so crash recovery would believe data durable that is not.
pub fn uses_syncfs(dir: &Path) -> bool {
    setting(dir, "recovery_init_sync_method")
        .is_some_and(|value| value.eq_ignore_ascii_case("syncfs"))
}

/// What a configuration file and all that it includes say: the last value of each setting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    values: HashMap<String, String>,
}

impl Configuration {
    /// Reads `file` as Postgres would. Unreadable files count as empty.
    pub fn read(file: &Path) -> Configuration {
        let mut configuration = Configuration::default();
        configuration.add(file, 0, &mut 0);
        configuration
    }

    /// What the server on the data directory `dir` would find in `file` and in its automatic file.
    pub fn of_server(file: &Path, dir: &Path) -> Configuration {
        let mut configuration = Configuration::read(file);
        configuration.add(&dir.join("postgresql.auto.conf"), 0, &mut 0);
        configuration
    }

    /// The value of `name` (in lower case), unquoted.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    fn add(&mut self, file: &Path, depth: u32, files: &mut u32) {
        *files += 1;
        if *files > FILES_MAX {
            return;
        }
        let Ok(bytes) = read_bounded(file, CONFIG_BYTES_MAX) else { return };
        for line in String::from_utf8_lossy(&bytes).lines() {
            let Some((name, value)) = split_line(line) else { continue };
            let below = || file.parent().unwrap_or(Path::new("/")).join(&value);
            match name.as_str() {
                "include" | "include_if_exists" if depth < INCLUDE_DEPTH_MAX => {
                    self.add(&below(), depth + 1, files);
                }
                "include_dir" if depth < INCLUDE_DEPTH_MAX => {
                    for path in files_of(&below()) {
                        self.add(&path, depth + 1, files);
                    }
                }
                _ => {
                    self.values.insert(name, value);
                }
            }
        }
    }
}

/// The files that `include_dir` takes, in its order.
fn files_of(dir: &Path) -> Vec<PathBuf> {
    let wanted = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".conf") && !name.starts_with('.')
    };
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(wanted).collect();
    files.sort();
    files
}

/// The name, in lower case, and the value of a line that makes a setting.
fn split_line(line: &str) -> Option<(String, String)> {
    let line = line.trim_start();
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$');
    let name = &line[..line.find(|c| !is_name(c)).unwrap_or(line.len())];
    let value = value_in_line(line, name)?;
    (!name.is_empty()).then(|| (name.to_ascii_lowercase(), value))
}

/// The last value that `text` gives to `name`, unquoted.
fn last_value(text: &str, name: &str) -> Option<String> {
    text.lines().filter_map(|line| value_in_line(line, name)).next_back()
}

/// The value in a line `name = value`, `name value` or `name = 'it''s'`, with an optional comment.
fn value_in_line(line: &str, name: &str) -> Option<String> {
    let line = line.trim_start();
    let head = line.get(..name.len())?;
    let rest = &line[name.len()..];
    if !head.eq_ignore_ascii_case(name) || !rest.starts_with([' ', '\t', '=']) {
        return None;
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    if let Some(quoted) = rest.strip_prefix('\'') {
        return Some(unquote(quoted));
    }
    let end = rest.find(|c: char| c == '#' || c.is_whitespace()).unwrap_or(rest.len());
    (end > 0).then(|| rest[..end].to_owned())
}

/// The text up to the closing quote; `''` and `\'` stand for a quote.
fn unquote(quoted: &str) -> String {
    let mut value = String::new();
    let mut rest = quoted.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\'' if rest.peek() == Some(&'\'') => value.extend(rest.next()),
            '\'' => break,
            '\\' => value.extend(rest.next()),
            c => value.push(c),
        }
    }
    value
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_forms_of_a_setting() {
        for line in [
            "recovery_init_sync_method = syncfs",
            "  recovery_init_sync_method=syncfs# why",
            "RECOVERY_INIT_SYNC_METHOD\t'syncfs'\t# x",
            "recovery_init_sync_method syncfs",
        ] {
            assert_eq!(
                last_value(line, "recovery_init_sync_method").as_deref(),
                Some("syncfs"),
                "{line}"
            );
        }
        for line in
            ["#recovery_init_sync_method = syncfs", "recovery_init_sync_method2 = syncfs", "r", ""]
        {
            assert_eq!(last_value(line, "recovery_init_sync_method"), None, "{line}");
        }
        assert_eq!(last_value("a = 'it''s'", "a").as_deref(), Some("it's"));
        assert_eq!(last_value("a = 1\na = 2", "a").as_deref(), Some("2"));
    }

    #[test]
    fn included_files_are_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        std::fs::create_dir(dir.path().join("conf.d")).unwrap();
        write("conf.d/20.conf", "a = 'twenty'\n");
        write("conf.d/10.conf", "a = ten\nb = ten\n");
        write("conf.d/.30.conf", "a = hidden\n");
        write("conf.d/40.txt", "a = other\n");
        write("more.conf", "C = 'it''s'\n");
        write(
            "main.conf",
            "b = first\ninclude_dir = 'conf.d'\ninclude_if_exists 'none'\ninclude 'more.conf'\n",
        );
        let said = Configuration::read(&dir.path().join("main.conf"));
        let values = ["a", "b", "c", "d"].map(|name| said.get(name));
        assert_eq!(values, [Some("twenty"), Some("ten"), Some("it's"), None]);
        write("circle.conf", "a = 1\ninclude 'circle.conf'\n");
        assert_eq!(Configuration::read(&dir.path().join("circle.conf")).get("a"), Some("1"));
        write("postgresql.auto.conf", "a = 'last'\n");
        let said = Configuration::of_server(&dir.path().join("main.conf"), dir.path());
        assert_eq!(said.get("a"), Some("last"));
    }

    #[test]
    fn a_file_that_includes_itself_often_ends() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("main.conf");
        std::fs::write(&file, "a = 1\n".to_owned() + &"include 'main.conf'\n".repeat(50)).unwrap();
        let begin = std::time::Instant::now();
        assert_eq!(Configuration::read(&file).get("a"), Some("1"));
        assert!(begin.elapsed().as_secs() < 10, "{:?}", begin.elapsed());
    }

    #[test]
    fn the_automatic_file_wins() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!uses_syncfs(dir.path()));
        std::fs::write(dir.path().join("postgresql.conf"), "recovery_init_sync_method = syncfs\n")
            .unwrap();
        assert!(uses_syncfs(dir.path()));
        std::fs::write(
            dir.path().join("postgresql.auto.conf"),
            "recovery_init_sync_method = 'fsync'\n",
        )
        .unwrap();
        assert!(!uses_syncfs(dir.path()));
    }
}
