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

/// ECMA-48: the cursor to the first column of the first line, and nothing below it.
pub(super) const CLEAR_SCREEN: &str = "\x1b[H\x1b[J";

/// `value` as JSON.
pub(super) fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    match serde_json::to_string_pretty(value) {
        Ok(text) => Ok(text + "\n"),
        Err(error) => Err(Failure::caused("json", &error).exit(255)),
    }
}

/// Prints `value` as JSON.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    print(&json(value)?);
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

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(super::time(1_700_000_000_123), "2023-11-14T22:13:20Z");
        assert_eq!(super::time_ms(1_700_000_000_023), "2023-11-14T22:13:20.023Z");
    }
}
