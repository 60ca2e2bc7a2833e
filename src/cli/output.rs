//! What several commands print in the same way.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::serve::Failure;

/// Whether something could not be printed.
static LOST: AtomicBool = AtomicBool::new(false);

/// Prints `text` on stdout; a reader that has seen enough is no failure, anything else is one of
/// the command (see [`lost`]).
pub(super) fn print(text: &str) {
    try_print(text);
}

/// Like [`print()`]; returns whether it was printed.
pub(super) fn try_print(text: &str) -> bool {
    let mut out = std::io::stdout();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if let Err(error) = &printed
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        eprintln!("Error: cannot write to the standard output: {error}");
        LOST.store(true, Ordering::Relaxed);
    }
    printed.is_ok()
}

/// Whether something that was to be printed is lost: what the command did, it did, but it must not
/// end as if it had said so.
pub(super) fn lost() -> bool {
    LOST.load(Ordering::Relaxed)
}

/// Prints `value` as JSON.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::caused("json", &error).exit(255))?;
    print(&(text + "\n"));
    Ok(())
}

/// A number of bytes for people.
pub(super) fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A time for people and machines: RFC 3339 in UTC, to the second.
pub(super) fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| ms.to_string(), |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// The same to the millisecond.
pub(super) fn time_ms(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| ms.to_string(), |time| time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string())
}

/// Bytes that the files below `dir` take on the disk; what cannot be read counts as nothing.
pub(super) fn disk_usage(dir: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = std::fs::symlink_metadata(dir) else { return 0 };
    let own = meta.blocks() * 512;
    if !meta.is_dir() {
        return own;
    }
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    own + entries.map(|entry| disk_usage(&entry.path())).sum::<u64>()
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(super::time(1_700_000_000_123), "2023-11-14T22:13:20Z");
        assert_eq!(super::time_ms(1_700_000_000_023), "2023-11-14T22:13:20.023Z");
    }
}
