//! Whether the mounted tree is the one on the host.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{Whence, lseek};

use super::act::{flush, paths_below};

/// Panics with `who` and the path at the first difference.
pub fn trees(who: &str, mount: &Path, host: &Path, cold: bool) {
    let names = |root: &Path| -> Vec<String> {
        let below = |path: std::path::PathBuf| {
            path.strip_prefix(root).unwrap().to_str().unwrap().to_owned()
        };
        paths_below(root).into_iter().map(below).collect()
    };
    let expected = names(host);
    assert_eq!(names(mount), expected, "{who}: names");
    // btrfs does not count the directories in a directory.
    let counts_dirs = host.symlink_metadata().unwrap().nlink() >= 2;
    for name in expected {
        let (shown, wanted) = (mount.join(&name), host.join(&name));
        let who = format!("{who}:{name}");
        let (a, b) = (shown.symlink_metadata().unwrap(), wanted.symlink_metadata().unwrap());
        assert_eq!(format!("{:o}", a.mode()), format!("{:o}", b.mode()), "{who}: mode");
        if !name.is_empty() {
            assert_eq!((a.uid(), a.gid()), (b.uid(), b.gid()), "{who}: owner");
        }
        if counts_dirs || !b.is_dir() {
            assert_eq!(a.nlink(), b.nlink(), "{who}: nlink");
        }
        let kind = b.file_type();
        if kind.is_symlink() {
            assert_eq!(a.len(), b.len(), "{who}: size");
            assert_eq!(fs::read_link(shown).unwrap(), fs::read_link(wanted).unwrap(), "{who}");
        } else if kind.is_file() {
            let (shown, wanted) = (File::open(shown).unwrap(), File::open(wanted).unwrap());
            files(&who, &shown, &wanted, cold);
        } else {
            assert!(kind.is_dir() || kind.is_fifo() || kind.is_socket(), "{who}: {kind:?}");
        }
    }
}

/// Compares size and contents, and what is told about holes.
pub fn files(who: &str, shown: &File, wanted: &File, cold: bool) {
    if cold {
        flush(shown);
        posix_fadvise(shown, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    }
    let len = shown.metadata().unwrap().len();
    assert_eq!(len, wanted.metadata().unwrap().len(), "{who}: size");
    let (mut a, mut b) = (vec![0; len as usize + 1], vec![0; len as usize + 1]);
    let (n, m) = (read(shown, &mut a, 0), read(wanted, &mut b, 0));
    assert_eq!((n as u64, m as u64), (len, len), "{who}: bytes read");
    if let Some(at) = a.iter().zip(&b).position(|(a, b)| a != b) {
        panic!("{who}: byte {at} of {len} is {}, not {}", a[at], b[at]);
    }
    holes(who, shown, &a[..n]);
}

/// Data and holes alternate, end at the end of the file, and no hole hides a byte.
fn holes(who: &str, file: &File, contents: &[u8]) {
    let len = contents.len() as i64;
    let mut at = 0;
    while at < len {
        let data = match lseek(file, at, Whence::SeekData) {
            Ok(data) => data,
            Err(Errno::ENXIO) => len,
            Err(error) => panic!("{who}: SEEK_DATA from {at}: {error}"),
        };
        assert!(at <= data && data <= len, "{who}: SEEK_DATA from {at} says {data} of {len}");
        let hidden = contents[at as usize..data as usize].iter().position(|byte| *byte != 0);
        assert_eq!(hidden, None, "{who}: there is data in the hole at {at}..{data}");
        if data == len {
            break;
        }
        at = lseek(file, data, Whence::SeekHole).unwrap();
        assert!(data < at && at <= len, "{who}: SEEK_HOLE from {data} says {at} of {len}");
    }
    assert_eq!(lseek(file, len, Whence::SeekData), Err(Errno::ENXIO), "{who}");
    assert_eq!(lseek(file, len, Whence::SeekHole), Err(Errno::ENXIO), "{who}");
}

/// Compares a range, read through descriptors that may have been open for long.
pub fn range(who: &str, shown: &File, wanted: &File, offset: u64, len: u64) {
    let (mut a, mut b) = (vec![0; len as usize], vec![0; len as usize]);
    let (n, m) = (read(shown, &mut a, offset), read(wanted, &mut b, offset));
    assert!(a[..n] == b[..m], "{who}: {len} bytes at {offset}");
}

fn read(file: &File, buf: &mut [u8], offset: u64) -> usize {
    let mut at = 0;
    while at < buf.len() {
        match file.read_at(&mut buf[at..], offset + at as u64).unwrap() {
            0 => break,
            n => at += n,
        }
    }
    at
}

/// The last lines of a log, for the message of a failure.
pub fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
