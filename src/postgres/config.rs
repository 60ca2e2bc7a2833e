//! Settings of a stopped cluster, read from its configuration files as far as we need them.

use std::path::Path;

use super::read_bounded;

/// Configuration files are read up to this many bytes.
const CONFIG_BYTES_MAX: u64 = 4 << 20;

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
