//! The kernel's list of mounts, `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount of the caller's mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Id of the mount, as `mnt_id` of `/proc/<pid>/fdinfo/<fd>`.
    pub id: u64,
    /// Id of the mount that this one lies in (or on).
    pub parent: u64,
    /// Major and minor number: `st_dev` of the files in it, and its folder in `/sys/class/bdi`.
    pub device: (u32, u32),
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// For example `ext4` or `fuse.cowfs`.
    pub fs_type: String,
    /// For example `/dev/sda1`.
    pub source: OsString,
}

impl MountEntry {
    /// Whether it is a branch of a cowfs store.
    pub fn is_cowfs(&self) -> bool {
        self.fs_type == "fuse.cowfs"
    }

    /// `major:minor` in decimal, as in sysfs.
    pub fn device_name(&self) -> String {
        format!("{}:{}", self.device.0, self.device.1)
    }
}

/// All mounts that the calling process sees.
pub fn read() -> io::Result<Vec<MountEntry>> {
    read_of("self")
}

/// All mounts that the process `pid` (or `self`) sees.
pub fn read_of(pid: &str) -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read(format!("/proc/{pid}/mountinfo"))?))
}

/// The mount that a path lookup of exactly `mount_point` ends in, if something is mounted there.
pub fn topmost_at<'a>(entries: &'a [MountEntry], mount_point: &Path) -> Option<&'a MountEntry> {
    let here = || entries.iter().filter(|entry| entry.mount_point == mount_point);
    // Mounts stacked on one directory are each other's parents; the top one is nobody's.
    here().find(|entry| !here().any(|other| other.parent == entry.id && other.id != entry.id))
}

/// Mounts that lie inside `outer`, the deepest first.
pub fn nested_in<'a>(entries: &'a [MountEntry], outer: &MountEntry) -> Vec<&'a MountEntry> {
    let mut inside: Vec<&MountEntry> =
        entries.iter().filter(|entry| entry.parent == outer.id && entry.id != outer.id).collect();
    inside.sort_by_key(|entry| std::cmp::Reverse(entry.mount_point.as_os_str().len()));
    inside
}

/// Parses the contents of a mountinfo file; lines of a form that proc(5) does not know are left out.
pub fn parse(bytes: &[u8]) -> Vec<MountEntry> {
    bytes.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

// 36 35 98:0 /root /mount\040point rw,noatime master:1 propagate_from:2 - fstype source options
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = std::str::from_utf8(fields.next()?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let _root = fields.next()?;
    let mount_point = PathBuf::from(unescape(fields.next()?));
    let _options = fields.next()?;
    // Zero or more optional fields end with a single hyphen.
    fields.find(|field| *field == b"-")?;
    let fs_type = String::from_utf8(unescape(fields.next()?).into_vec()).ok()?;
    let source = unescape(fields.next()?);
    Some(MountEntry { id, parent, device, mount_point, fs_type, source })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Space, tab, newline, `#` and backslash come as a backslash and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = if byte == b'\\' { octal(tail) } else { None };
        let (value, after) = escaped.unwrap_or((byte, tail));
        out.push(value);
        rest = after;
    }
    OsString::from_vec(out)
}

fn octal(digits: &[u8]) -> Option<(u8, &[u8])> {
    let (head, rest) = digits.split_at_checked(3)?;
    let value = head.iter().try_fold(0_u16, |value, digit| {
        (b'0'..=b'7').contains(digit).then(|| value * 8 + u16::from(digit - b'0'))
    })?;
    Some((u8::try_from(value).ok()?, rest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SAMPLE: &[u8] = b"\
22 1 254:0 / / rw,relatime - ext4 /dev/root rw\n\
31 22 0:27 / /sys rw,nosuid shared:7 master:1 - sysfs sysfs rw\n\
40 22 0:44 / /mnt/a\\040b\\134c rw,nosuid,nodev - fuse.cowfs cowfs:main rw,user_id=0\n\
41 40 0:45 / /mnt/a\\040b\\134c rw - fuse.cowfs cowfs:child rw\n\
42 41 0:46 / /mnt/a\\040b\\134c/sub rw - tmpfs none rw\n\
garbage\n\
43 22 0:47 / /x rw no separator\n";

    #[test]
    fn fields_and_escapes() {
        let entries = parse(SAMPLE);
        assert_eq!(entries.iter().map(|e| e.id).collect::<Vec<_>>(), [22, 31, 40, 41, 42]);
        assert_eq!(entries[1].fs_type, "sysfs");
        assert_eq!(entries[2].mount_point, Path::new("/mnt/a b\\c"));
        assert_eq!(entries[2].device_name(), "0:44");
        assert_eq!(entries[2].source, "cowfs:main");
        assert!(entries[2].is_cowfs() && !entries[0].is_cowfs());
    }

    #[test]
    fn stacked_mounts() {
        let entries = parse(SAMPLE);
        let top = topmost_at(&entries, Path::new("/mnt/a b\\c")).unwrap();
        assert_eq!(top.id, 41);
        assert_eq!(nested_in(&entries, top).iter().map(|e| e.id).collect::<Vec<_>>(), [42]);
        assert_eq!(topmost_at(&entries, Path::new("/mnt")), None);
        assert_eq!(topmost_at(&entries, Path::new("/")).unwrap().id, 22);
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescape(b"a\\b"), "a\\b");
        assert_eq!(unescape(b"a\\01"), "a\\01");
        assert_eq!(unescape(b"a\\098"), "a\\098");
        assert_eq!(unescape(b"a\\777"), "a\\777");
        assert_eq!(unescape(b"\\011\\012\\043"), "\t\n#");
    }

    #[test]
    fn the_kernels_own_list() {
        let entries = read().unwrap();
        assert!(topmost_at(&entries, Path::new("/proc")).is_some_and(|e| e.fs_type == "proc"));
    }
}
