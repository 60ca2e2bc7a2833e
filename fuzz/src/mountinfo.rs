//! The kernel's list of mounts: sources and mount points in it are anybody's choice.

use std::os::unix::ffi::OsStrExt;

use cowfs::serve::mountinfo::{nested_in, parse, topmost_at};

/// One input.
pub fn run(data: &[u8]) {
    let entries = parse(data);
    for entry in &entries {
        let _ = (entry.is_cowfs(), entry.device_name(), nested_in(&entries, entry));
        let top = topmost_at(&entries, &entry.mount_point);
        assert!(top.is_none_or(|top| top.mount_point == entry.mount_point));
        // No raw separator is left over inside of a field.
        assert!(entry.mount_point.as_os_str().as_bytes().len() <= data.len());
    }
    assert!(entries.len() <= data.split(|byte| *byte == b'\n').count());
}
