//! The kernel's write-back settings of a new mount.

use std::io;
use std::path::Path;

/// Where the settings are.
const BDI_DIR: &str = "/sys/class/bdi";

/// What a FUSE mount starts with is 1 % of the dirty limit, strictly kept (bulk writes collapse to
/// KB/s), and 128 KiB of read-ahead. A request carries 1 MiB: read-ahead of several is what keeps
/// more than one in flight.
const SETTINGS: [(&str, &str, &str); 3] = [
    ("strict_limit", "0", "bulk writes may be throttled"),
    ("max_ratio", "100", "bulk writes may be throttled"),
    ("read_ahead_kb", "4096", "sequential reads are slower"),
];

/// Raises the limits of the mount with the device number `device` (`major:minor`).
///
/// Returns a notice that names what is lost if some of it fails; only root may do it.
pub fn raise_limits(device: &str) -> Option<String> {
    raise_in(&Path::new(BDI_DIR).join(device))
}

fn raise_in(dir: &Path) -> Option<String> {
    let mut lost: Vec<&str> = Vec::new();
    let mut first_error = None;
    for (name, value, loss) in SETTINGS {
        if let Err(error) = set(&dir.join(name), value) {
            if !lost.contains(&loss) {
                lost.push(loss);
            }
            first_error.get_or_insert_with(|| format!("{name}: {error}"));
        }
    }
    let error = first_error?;
    Some(format!("cannot set {}/{error}; {}", dir.display(), lost.join(" and ")))
}

fn set(path: &Path, value: &str) -> io::Result<()> {
    // Never creates: a kernel before 6.2 has no strict_limit.
    let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
    io::Write::write_all(&mut file, value.as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_notice_for_all_failures() {
        let dir = tempfile::tempdir().unwrap();
        for (name, _, _) in SETTINGS {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        assert_eq!(raise_in(dir.path()), None);
        assert_eq!(std::fs::read_to_string(dir.path().join("max_ratio")).unwrap(), "100");
        std::fs::remove_file(dir.path().join("strict_limit")).unwrap();
        let notice = raise_in(dir.path()).unwrap();
        assert!(notice.contains("strict_limit: No such file"), "{notice}");
        assert!(notice.ends_with("; bulk writes may be throttled"), "{notice}");
        let notice = raise_in(&dir.path().join("gone")).unwrap();
        assert!(notice.ends_with("throttled and sequential reads are slower"), "{notice}");
    }
}
