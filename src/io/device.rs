//! What the host's disks take at a time.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// Where a device does not tell: the kernel's own read-ahead, unless somebody sets it otherwise.
const DEFAULT_BYTES: u64 = 128 << 10;

/// Bytes that one `posix_fadvise(POSIX_FADV_WILLNEED)` has the host fetch of a file on device `dev`
/// (`st_dev`), at most. What is beyond in the same call is left out, without a word: Linux cuts it to the
/// larger of the disk's read-ahead and its largest request (`force_page_cache_ra` in mm/readahead.c).
pub fn hint_bytes_max(dev: u64) -> u64 {
    static KNOWN: Mutex<Option<HashMap<u64, u64>>> = Mutex::new(None);
    let mut known = KNOWN.lock();
    *known.get_or_insert_default().entry(dev).or_insert_with(|| {
        let (major, minor) = (nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
        look(&PathBuf::from(format!("/sys/dev/block/{major}:{minor}")))
    })
}

/// What the device, or the disk that it is a partition of, says in sysfs.
fn look(device: &Path) -> u64 {
    let read = |queue: &Path, name| {
        let text = std::fs::read_to_string(queue.join(name)).ok()?;
        text.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let queues = [device.join("queue"), device.join("../queue")];
    let values = queues
        .iter()
        .find_map(|queue| Some((read(queue, "read_ahead_kb")?, read(queue, "max_sectors_kb")?)));
    let bytes = values.map_or(DEFAULT_BYTES, |(ahead, request)| ahead.max(request));
    // Whole pages, and some: hints are given step by step.
    (bytes & !0xffff).max(DEFAULT_BYTES / 2)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_larger_of_read_ahead_and_request_counts() {
        let temp = tempfile::tempdir().unwrap();
        let disk = temp.path().join("disk");
        let partition = disk.join("part");
        std::fs::create_dir_all(disk.join("queue")).unwrap();
        std::fs::create_dir_all(&partition).unwrap();
        assert_eq!(look(&disk), DEFAULT_BYTES);
        let set = |name, value| std::fs::write(disk.join("queue").join(name), value).unwrap();
        set("read_ahead_kb", "128\n");
        set("max_sectors_kb", "1280\n");
        assert_eq!((look(&disk), look(&partition)), (1280 << 10, 1280 << 10));
        set("read_ahead_kb", "8192\n");
        assert_eq!(look(&partition), 8 << 20);
        for (ahead, request) in [("0", "4"), ("x", "128"), ("", "")] {
            set("read_ahead_kb", ahead);
            set("max_sectors_kb", request);
            assert!((64 << 10..=128 << 10).contains(&look(&disk)));
        }
        // A device that there is none of.
        assert_eq!(hint_bytes_max(u64::MAX), DEFAULT_BYTES);
    }
}
