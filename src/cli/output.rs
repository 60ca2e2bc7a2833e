//! What several commands print in the same way.

use std::fmt::Write as _;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
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

/// A path as one line of text: control characters (a name may hold line ends, and sequences that a
/// terminal obeys) and what is no UTF-8 are shown as escapes.
pub(super) fn path(path: &Path) -> String {
    let mut shown = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        shown.push_str(&plain(chunk.valid(), char::is_control));
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(shown, "\\x{byte:02x}");
        }
    }
    shown
}

/// A message of several lines without anything that a terminal would obey.
pub(super) fn message(text: &str) -> String {
    plain(text, |c| c.is_control() && c != '\n')
}

fn plain(text: &str, hidden: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if hidden(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// `value` as JSON.
pub(super) fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    ended(serde_json::to_string_pretty(value))
}

/// `value` as JSON: on one line if it is one of many, so that a reader knows where each ends.
pub(super) fn json_of_many(value: &impl serde::Serialize, many: bool) -> Result<String, Failure> {
    if many { ended(serde_json::to_string(value)) } else { json(value) }
}

fn ended(text: serde_json::Result<String>) -> Result<String, Failure> {
    match text {
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
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    #[test]
    fn a_path_is_one_line_that_no_terminal_obeys() {
        let shown = |bytes: &[u8]| super::path(Path::new(OsStr::from_bytes(bytes)));
        assert_eq!(shown("/a/ü b".as_bytes()), "/a/ü b");
        assert_eq!(shown(b"\x1b[31mx\nsound; all is well"), "\\u{1b}[31mx\\nsound; all is well");
        assert_eq!(shown(b"a\x80\xffb\xc2\x9b"), "a\\x80\\xffb\\u{9b}");
        assert_eq!(super::message("two\nlines\x07"), "two\nlines\\u{7}");
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(super::time(1_700_000_000_123), "2023-11-14T22:13:20Z");
        assert_eq!(super::time_ms(1_700_000_000_023), "2023-11-14T22:13:20.023Z");
    }
}
