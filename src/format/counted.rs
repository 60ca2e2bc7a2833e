//! Numbers with their noun, for messages.

use std::path::Path;

/// A number and its noun: `1 file`, `2 files`, `0 directories`.
///
/// `noun` is the singular of a regular English noun, with whatever stands before it
/// (`data file`).
pub fn counted(count: impl TryInto<u64>, noun: &str) -> String {
    let count = count.try_into().unwrap_or(u64::MAX);
    if count == 1 {
        return format!("1 {noun}");
    }
    let consonant_before_y = |stem: &str| !stem.ends_with(['a', 'e', 'i', 'o', 'u']);
    match noun.strip_suffix('y').filter(|stem| consonant_before_y(stem)) {
        Some(stem) => format!("{count} {stem}ies"),
        None if noun.ends_with(['s', 'x']) || noun.ends_with("ch") => format!("{count} {noun}es"),
        None => format!("{count} {noun}s"),
    }
}

/// The beginning of a path that is too long to be shown, or to be used.
pub fn abbreviated(path: &Path) -> String {
    const CHARACTERS: usize = 120;
    let text = path.to_string_lossy();
    let mut short: String = text.chars().take(CHARACTERS).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn one_and_many() {
        for (count, noun, text) in [
            (1, "directory", "1 directory"),
            (2, "directory", "2 directories"),
            (0, "data file", "0 data files"),
            (3, "index", "3 indexes"),
            (9, "branch", "9 branches"),
            (2, "key", "2 keys"),
            (4, "process", "4 processes"),
        ] {
            assert_eq!(counted(count, noun), text);
        }
    }
}
