//! What differs, by file.

use std::fmt::Write;

use super::super::output;
use crate::diff::{self, BLOCK_BYTES, Change, Difference};
use crate::format::counted;
use crate::serve::Failure;

/// Columns of the longest bar.
const BAR_COLUMNS: u64 = 40;

#[derive(serde::Serialize)]
struct Line {
    path: String,
    change: Change,
    directory: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    old_bytes: Option<u64>,
    new_bytes: Option<u64>,
    /// Bytes of the second state that the first has not.
    written_bytes: u64,
    /// First and last number of blocks of 8 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pages: Option<Vec<(u64, u64)>>,
}

pub(super) fn print_json(found: &[Difference], with_pages: bool) -> Result<(), Failure> {
    let line = |one: &Difference| Line {
        path: one.path.to_string_lossy().into_owned(),
        change: one.change,
        directory: one.directory,
        from: one.from.as_ref().map(|path| path.to_string_lossy().into_owned()),
        old_bytes: one.old_size,
        new_bytes: one.new_size,
        written_bytes: one.written_bytes(),
        pages: with_pages.then(|| diff::blocks(&one.granules)),
    };
    output::print_json(&found.iter().map(line).collect::<Vec<_>>())
}

fn letter(change: Change) -> char {
    match change {
        Change::Added => 'A',
        Change::Deleted => 'D',
        Change::Renamed => 'R',
        Change::Modified => 'M',
        Change::Attributes => 'P',
    }
}

/// The path, with its former one.
fn named(one: &Difference) -> String {
    let path = output::path(&one.path);
    match &one.from {
        Some(from) => format!("{} -> {path}", output::path(from)),
        None if one.directory => format!("{path}/"),
        None => path,
    }
}

/// One line per file, and a sum.
pub(super) fn lines(found: &[Difference]) -> String {
    let width = width(found);
    let mut text = String::new();
    for one in found {
        let size = |size: Option<u64>| output::bytes(size.unwrap_or(0));
        let what = match one.change {
            _ if one.directory || one.old_size.or(one.new_size).is_none() => String::new(),
            Change::Added => size(one.new_size),
            Change::Deleted => size(one.old_size),
            Change::Attributes => String::new(),
            Change::Modified | Change::Renamed => {
                let sizes = if one.old_size == one.new_size {
                    size(one.new_size)
                } else {
                    format!("{}, was {}", size(one.new_size), size(one.old_size))
                };
                format!("{} of {sizes}", output::bytes(one.written_bytes()))
            }
        };
        let line = format!("{}  {:<width$}  {what}", letter(one.change), named(one));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text + &sum(found)
}

/// One line per file with a bar: `~` for what was written over, `+` and `-` for what the file grew
/// or shrank by.
pub(super) fn stat(found: &[Difference]) -> String {
    let width = width(found);
    let amounts = |one: &Difference| {
        let (old, new) = (one.old_size.unwrap_or(0), one.new_size.unwrap_or(0));
        let over = diff::bytes_of(&one.granules, old.min(new));
        (over, new.saturating_sub(old), old.saturating_sub(new))
    };
    let total = |(over, more, less): (u64, u64, u64)| over + more + less;
    let most = found.iter().map(|one| total(amounts(one))).max().unwrap_or(0).max(1);
    let mut text = String::new();
    for one in found.iter().filter(|one| !one.directory) {
        let (over, more, less) = amounts(one);
        let bar = |sign: &str, bytes: u64| {
            let columns = u128::from(bytes) * u128::from(BAR_COLUMNS);
            sign.repeat(columns.div_ceil(u128::from(most)) as usize)
        };
        let bars = bar("~", over) + &bar("+", more) + &bar("-", less);
        let bytes = output::bytes(total((over, more, less)));
        let line = format!(" {:<width$} | {bytes:>11} {bars}", named(one));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text + &sum(found)
}

/// The numbers of the pages that differ, file by file.
pub(super) fn pages(found: &[Difference]) -> String {
    let mut text = String::new();
    for one in found.iter().filter(|one| !one.granules.is_empty()) {
        let blocks = diff::blocks(&one.granules);
        let count: u64 = blocks.iter().map(|(first, last)| last - first + 1).sum();
        let range = |(first, last): &(u64, u64)| match last - first {
            0 => first.to_string(),
            _ => format!("{first}-{last}"),
        };
        let ranges: Vec<String> = blocks.iter().map(range).collect();
        let (letter, name) = (letter(one.change), named(one));
        let _ =
            writeln!(text, "{letter}  {name}: {}: {}", counted(count, "page"), ranges.join(" "));
    }
    if text.is_empty() { format!("No page of {BLOCK_BYTES} bytes differs\n") } else { text }
}

fn width(found: &[Difference]) -> usize {
    found.iter().map(|one| named(one).len()).max().unwrap_or(0)
}

fn sum(found: &[Difference]) -> String {
    if found.is_empty() {
        return "Nothing differs\n".to_owned();
    }
    let count = |change| found.iter().filter(|one| !one.directory && one.change == change).count();
    let written: u64 = found.iter().map(Difference::written_bytes).sum();
    let changed = count(Change::Modified) + count(Change::Renamed) + count(Change::Attributes);
    format!(
        "{} changed, {} added, {} deleted; {} written\n",
        counted(changed as u64, "file"),
        count(Change::Added),
        count(Change::Deleted),
        output::bytes(written)
    )
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::format::GranuleRange;

    fn one(path: &str, change: Change, old: Option<u64>, new: Option<u64>) -> Difference {
        let granules = match change {
            Change::Modified => vec![GranuleRange { start: 2, end: 4 }],
            Change::Added | Change::Deleted => vec![GranuleRange { start: 0, end: 4 }],
            _ => Vec::new(),
        };
        let from = (change == Change::Renamed).then(|| PathBuf::from("old"));
        let directory = path == "dir";
        Difference {
            path: path.into(),
            change,
            directory,
            from,
            old_size: old,
            new_size: new,
            granules,
        }
    }

    fn sample() -> Vec<Difference> {
        vec![
            one("base/5/1", Change::Modified, Some(16384), Some(16384)),
            one("base/5/2", Change::Added, None, Some(16384)),
            one("dir", Change::Added, None, None),
            one("new", Change::Renamed, Some(8192), Some(8192)),
            one("pg_wal/1", Change::Deleted, Some(16384), None),
        ]
    }

    #[test]
    fn each_view() {
        assert_eq!(
            lines(&sample()),
            "M  base/5/1    8.00 KiB of 16.00 KiB\n\
             A  base/5/2    16.00 KiB\n\
             A  dir/\n\
             R  old -> new  0 B of 8.00 KiB\n\
             D  pg_wal/1    16.00 KiB\n\
             2 files changed, 1 added, 1 deleted; 24.00 KiB written\n"
        );
        let stat = stat(&sample());
        assert!(stat.contains("base/5/1   |    8.00 KiB ~~~~~~~~~~~~~~~~~~~~\n"), "{stat}");
        assert!(stat.contains(&format!("base/5/2   |   16.00 KiB {}\n", "+".repeat(40))), "{stat}");
        let pages = pages(&sample());
        assert!(
            pages.starts_with("M  base/5/1: 1 page: 1\nA  base/5/2: 2 pages: 0-1\n"),
            "{pages}"
        );
        assert_eq!(lines(&[]), "Nothing differs\n");
    }
}
