//! The rules of this source tree that the compiler does not know: who may import whom, where `unsafe`
//! may stand, how long files and functions may be, which words may not appear.
//!
//! The lists of exceptions are a ratchet: an entry may shrink or vanish, and the test says when it must.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Lines a file may have without its tests.
const FILE_LINES_MAX: usize = 600;
/// Lines a function may have, from its `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;

/// Files over the limit: (path, lines now). Only ever lowered or removed.
const LONG_FILES: &[(&str, usize)] = &[];
/// Functions over the limit: (`path::name`, lines now). Only ever lowered or removed.
const LONG_FUNCTIONS: &[(&str, usize)] = &[];

/// The only file that may say `unsafe`.
const UNSAFE_FILE: &str = "src/io/sys.rs";

/// Names of files and folders that say nothing about what is in them.
const VAGUE_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "manager", "misc"];

/// One source file: as it is, and with everything that is not code blanked out.
struct Source {
    path: String,
    /// The code with comments and the contents of literals replaced by spaces, lines kept.
    code: String,
    /// The same without `#[cfg(test)]` modules.
    code_untested: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(dir: &Path, out: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, out);
        } else {
            out.push(path);
        }
    }
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().into_owned()
}

fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    files_below(&root().join("src"), &mut paths);
    paths.retain(|path| path.extension().is_some_and(|e| e == "rs"));
    paths.sort();
    let read = |path: &PathBuf| (relative(path), mask(&fs::read_to_string(path).unwrap()));
    let files: Vec<(String, String)> = paths.iter().map(read).collect();
    let only_tests: Vec<String> =
        files.iter().flat_map(|(path, code)| test_module_files(path, code)).collect();
    let source = |(path, code): (String, String)| {
        let in_tests = only_tests.contains(&path) || path.contains("/tests/");
        let code_untested = if in_tests { String::new() } else { without_tests(&code) };
        Source { path, code, code_untested }
    };
    files.into_iter().map(source).collect()
}

/// The files of modules that `code` declares for tests only: `#[cfg(test)] mod name;`.
fn test_module_files(path: &str, code: &str) -> Vec<String> {
    let (dir, file) = path.rsplit_once('/').unwrap();
    let here = match file {
        "mod.rs" | "lib.rs" | "main.rs" => dir.to_owned(),
        _ => path.trim_end_matches(".rs").to_owned(),
    };
    let after = |at: usize| code[at + "#[cfg(test)]".len()..].split_once(';');
    code.match_indices("#[cfg(test)]")
        .filter_map(|(at, _)| after(at)?.0.split_once("mod "))
        .filter(|(_, name)| name.bytes().all(is_word))
        .map(|(_, name)| format!("{here}/{name}.rs"))
        .collect()
}

/// Replaces comments and the contents of string and character literals by spaces.
fn mask(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = skip_end(bytes, at);
        if end > at {
            for byte in &mut out[at..end] {
                if *byte != b'\n' {
                    *byte = b' ';
                }
            }
            at = end;
        } else {
            at += 1;
        }
    }
    String::from_utf8(out).unwrap()
}

/// Where the comment or literal that begins at `at` ends; `at` itself if none begins there.
fn skip_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    if rest.starts_with(b"//") {
        return at + rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
    }
    if rest.starts_with(b"/*") {
        return block_comment_end(bytes, at);
    }
    let in_word = at > 0 && is_word(bytes[at - 1]);
    match rest[0] {
        b'"' => string_end(bytes, at + 1),
        b'r' if !in_word || bytes[at - 1] == b'b' || bytes[at - 1] == b'c' => raw_end(bytes, at),
        b'\'' => char_end(bytes, at),
        _ => at,
    }
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn raw_end(bytes: &[u8], at: usize) -> usize {
    let hashes = bytes[at + 1..].iter().take_while(|&&b| b == b'#').count();
    if bytes.get(at + 1 + hashes) != Some(&b'"') {
        return at;
    }
    let closing: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let body = at + 2 + hashes;
    bytes[body..]
        .windows(closing.len())
        .position(|w| w == closing)
        .map_or(bytes.len(), |found| body + found + closing.len())
}

/// A character literal, not a lifetime: `'x'` or `'\...'`.
fn char_end(bytes: &[u8], at: usize) -> usize {
    if bytes.get(at + 1) == Some(&b'\\') {
        let from = at + 3;
        return bytes
            .get(from..)
            .and_then(|rest| rest.iter().position(|&b| b == b'\''))
            .map_or(bytes.len(), |found| from + found + 1);
    }
    // At most four bytes of one UTF-8 character stand between the quotes.
    for length in 1..=4 {
        if bytes.get(at + 1 + length) == Some(&b'\'') {
            let inside = &bytes[at + 1..=at + length];
            if std::str::from_utf8(inside).is_ok_and(|s| s.chars().count() == 1) {
                return at + length + 2;
            }
        }
    }
    at
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Where each occurrence of `word`, as a whole word, begins.
fn words(code: &str, word: &str) -> Vec<usize> {
    let bytes = code.as_bytes();
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(|&at| at == 0 || !is_word(bytes[at - 1]))
        .filter(|&at| bytes.get(at + word.len()).is_none_or(|&b| !is_word(b)))
        .collect()
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// The end of the block whose opening brace is the first at or after `at`.
fn block_end(code: &str, at: usize) -> Option<usize> {
    let open = at + code[at..].find('{')?;
    let mut depth = 0_usize;
    for (offset, byte) in code.as_bytes()[open..].iter().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(open + offset + 1);
        }
    }
    None
}

/// Cuts out what follows `#[cfg(test)]`: a module, a function, an import.
fn without_tests(code: &str) -> String {
    let mut out = String::new();
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..at]);
        let brace = rest[at..].find('{').map_or(usize::MAX, |o| at + o);
        let semicolon = rest[at..].find(';').map_or(usize::MAX, |o| at + o);
        let end = if semicolon < brace {
            semicolon + 1
        } else {
            block_end(rest, at).unwrap_or(rest.len())
        };
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// (name, first line, lines) of each function with a body.
fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    for at in words(code, "fn") {
        let name: String = code[at + 2..]
            .trim_start()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        if name.is_empty() {
            continue; // the type `fn(..)`
        }
        let mut depth = 0_i32;
        let body = bytes[at..].iter().position(|&byte| {
            match byte {
                b'(' | b'[' => depth += 1,
                b')' | b']' => depth -= 1,
                _ => {}
            }
            depth == 0 && matches!(byte, b'{' | b';')
        });
        let Some(body) = body.map(|offset| at + offset) else { continue };
        if bytes[body] == b'{'
            && let Some(end) = block_end(code, body)
        {
            found.push((name, line_of(code, at), code[at..end].matches('\n').count() + 1));
        }
    }
    found
}

/// The folders of docs/ARCHITECTURE.md, highest first.
fn folders() -> Vec<String> {
    let text = fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let table = text.split("\n## ").find(|section| section.starts_with("Folders")).unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    rows.map(|name| name.trim_end_matches('/').trim_end_matches(".rs").to_owned()).collect()
}

/// Top-level modules that `code` names through `crate::` or `cowfs::`.
fn imports(code: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for prefix in ["crate", "cowfs"] {
        for at in words(code, prefix) {
            let Some(rest) = code[at + prefix.len()..].strip_prefix("::") else { continue };
            let line = line_of(code, at);
            found.extend(first_segments(rest).into_iter().map(|name| (name, line)));
        }
    }
    found
}

/// `a::b` names `a`; `{a::x, b::{c, d}}` names `a` and `b`.
fn first_segments(path: &str) -> Vec<String> {
    let word =
        |s: &str| s.trim_start().chars().take_while(|c| is_word(*c as u8)).collect::<String>();
    if !path.starts_with('{') {
        return vec![word(path)];
    }
    let Some(end) = block_end(path, 0) else { return Vec::new() };
    let (mut depth, mut names, mut start) = (0, Vec::new(), 1);
    for (at, byte) in path[..end].bytes().enumerate().skip(1) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth > 0 => depth -= 1,
            b',' | b'}' if depth == 0 => {
                names.push(word(&path[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn a_folder_imports_only_from_folders_below_it() {
    let order = folders();
    assert!(
        order.len() >= 10,
        "the table of folders in docs/ARCHITECTURE.md was not understood: {order:?}"
    );
    let rank = |name: &str| order.iter().position(|folder| folder == name);
    let mut wrong = Vec::new();
    for source in sources() {
        let inner = source.path.trim_start_matches("src/");
        let here = inner.split('/').next().unwrap().trim_end_matches(".rs");
        if here == "lib" {
            continue; // it only declares the folders
        }
        let Some(here_rank) = rank(here) else {
            wrong.push(format!(
                "{}: '{here}' is not in the table of docs/ARCHITECTURE.md",
                source.path
            ));
            continue;
        };
        for (name, line) in imports(&source.code_untested) {
            match rank(&name) {
                Some(there) if there < here_rank => {
                    wrong.push(format!("{}:{line}: {here}/ must not use {name}/", source.path));
                }
                _ => {}
            }
        }
    }
    assert_none("imports against the direction of docs/ARCHITECTURE.md", &wrong);
}

#[test]
fn the_library_declares_exactly_the_folders_of_the_map() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let order = folders();
    let code = mask(&lib);
    let declared: Vec<String> =
        words(&code, "mod").iter().map(|at| first_segments(&code[at + 3..]).concat()).collect();
    let unknown: Vec<String> = declared.into_iter().filter(|name| !order.contains(name)).collect();
    assert_none("folders that docs/ARCHITECTURE.md does not name", &unknown);
}

#[test]
fn unsafe_stands_in_one_file_only() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.path != UNSAFE_FILE) {
        for at in words(&source.code, "unsafe") {
            wrong.push(format!("{}:{}", source.path, line_of(&source.code, at)));
        }
    }
    assert_none(&format!("`unsafe` outside {UNSAFE_FILE}"), &wrong);
}

#[test]
fn files_are_short() {
    let mut wrong = Vec::new();
    for source in sources() {
        let lines = source.code_untested.lines().filter(|line| !line.trim().is_empty()).count();
        check_ratchet(&source.path, lines, FILE_LINES_MAX, LONG_FILES, &mut wrong);
    }
    assert_stale_free(
        LONG_FILES,
        &sources().iter().map(|s| s.path.clone()).collect::<Vec<_>>(),
        &mut wrong,
    );
    assert_none("length of files without tests, comments and empty lines", &wrong);
}

#[test]
fn functions_are_short() {
    let (mut wrong, mut names) = (Vec::new(), Vec::new());
    for source in sources() {
        for (name, _, lines) in functions(&source.code_untested) {
            let name = format!("{}::{name}", source.path);
            check_ratchet(&name, lines, FUNCTION_LINES_MAX, LONG_FUNCTIONS, &mut wrong);
            names.push(name);
        }
    }
    assert_stale_free(LONG_FUNCTIONS, &names, &mut wrong);
    assert_none("length of functions", &wrong);
}

fn check_ratchet(
    name: &str,
    lines: usize,
    max: usize,
    known: &[(&str, usize)],
    wrong: &mut Vec<String>,
) {
    match known.iter().find(|(known_name, _)| *known_name == name) {
        Some((_, allowed)) if lines > *allowed => {
            wrong.push(format!("{name}: grew from {allowed} to {lines}"));
        }
        Some((_, allowed)) if lines < *allowed => {
            wrong.push(format!(
                "{name}: is down to {lines}; lower its entry ({allowed}) or remove it"
            ));
        }
        None if lines > max => wrong.push(format!("{name}: {lines} lines, at most {max}")),
        _ => {}
    }
}

fn assert_stale_free(known: &[(&str, usize)], names: &[String], wrong: &mut Vec<String>) {
    for (name, _) in known {
        if !names.iter().any(|n| n == name) {
            wrong.push(format!("{name}: is gone; remove its entry"));
        }
    }
}

#[test]
fn names_say_what_is_inside() {
    let mut wrong = Vec::new();
    for source in sources() {
        for part in source.path.trim_end_matches(".rs").split('/') {
            if VAGUE_NAMES.contains(&part) {
                wrong.push(format!("{}: '{part}' says nothing", source.path));
            }
        }
    }
    assert_none("vague names", &wrong);
}

#[test]
fn no_leftovers() {
    // Written in two halves so that this file does not find itself.
    let in_code = ["todo!", "unimplemented!", "dbg!"];
    let in_text =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];
    let mut wrong = Vec::new();
    for source in sources() {
        for word in in_code {
            for (at, _) in source.code.match_indices(word) {
                wrong.push(format!("{}:{}: {word}", source.path, line_of(&source.code, at)));
            }
        }
        let text = fs::read_to_string(root().join(&source.path)).unwrap();
        for word in in_text {
            for at in words(&text, word) {
                wrong.push(format!("{}:{}: {word}", source.path, line_of(&text, at)));
            }
        }
    }
    assert_none("unfinished work", &wrong);
}

#[test]
fn nothing_depends_on_one_machine() {
    // Absolute homes and work directories of whoever wrote it do not exist elsewhere.
    let places = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    let mut paths = Vec::new();
    for dir in ["src", "tests", "benches", "scripts", "docs", ".ci"] {
        files_below(&root().join(dir), &mut paths);
    }
    for file in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Cargo.toml", "deny.toml"] {
        paths.push(root().join(file));
    }
    let mut wrong = Vec::new();
    for path in paths {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            if let Some(place) = places.iter().find(|place| line.contains(**place)) {
                wrong.push(format!("{}:{}: {place}", relative(&path), number + 1));
            }
        }
    }
    assert_none("paths of one machine", &wrong);
}

#[test]
fn the_masking_of_this_test_is_right() {
    let code = mask(
        "let a = \"unsafe \\\" {\"; // unsafe\nlet b = r#\"{\"#; let c = '{'; fn f<'a>(x: &'a u8) { /* } */ g() }",
    );
    assert!(words(&code, "unsafe").is_empty());
    assert_eq!(code.matches('{').count(), 1);
    assert_eq!(functions(&code), vec![("f".to_owned(), 2, 1)]);
    assert_eq!(first_segments("{fs::Fs, io::{self, Storage}, branch}"), ["fs", "io", "branch"]);
    assert_eq!(without_tests("a #[cfg(test)] mod tests { x { } } b"), "a  b");
    assert_eq!(test_module_files("src/a/mod.rs", "#[cfg(test)]\nmod x;"), ["src/a/x.rs"]);
    assert_eq!(test_module_files("src/a/b.rs", "#[cfg(test)] mod t { mod x; }"), [""; 0]);
}
