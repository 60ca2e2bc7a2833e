//! What the filesystem below a store is, and can do.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use crate::io::sys;

/// What speaks against a store on that filesystem.
pub(super) fn doubt(filesystem: &str) -> Option<&'static str> {
    Some(match filesystem {
        "tmpfs" => "what lies on tmpfs does not survive a reboot; fsync means nothing there",
        "FUSE" => "whether fsync means anything there is up to the program that serves it",
        "NFS" => {
            "network filesystems are not supported: cowfs relies on the promises of a local one"
        }
        _ => return None,
    })
}

/// The name of the filesystem that `dir` lies on.
pub(super) fn name(dir: &Path) -> String {
    use nix::sys::statfs as fs;
    let Ok(found) = fs::statfs(dir) else { return "an unknown filesystem".to_owned() };
    let known = [
        (fs::EXT4_SUPER_MAGIC, "ext4"),
        (fs::XFS_SUPER_MAGIC, "XFS"),
        (fs::BTRFS_SUPER_MAGIC, "btrfs"),
        (fs::TMPFS_MAGIC, "tmpfs"),
        (fs::OVERLAYFS_SUPER_MAGIC, "overlayfs"),
        (fs::NFS_SUPER_MAGIC, "NFS"),
        (fs::FUSE_SUPER_MAGIC, "FUSE"),
    ];
    let name = known.iter().find(|(magic, _)| *magic == found.filesystem_type());
    name.map_or_else(
        || format!("filesystem {:#x}", found.filesystem_type().0),
        |(_, name)| (*name).to_owned(),
    )
}

/// Whether files in `dir` can share blocks, found out with two small files.
pub(super) fn reflinks(dir: &Path) -> bool {
    let (a, b) = (dir.join("probe-a.tmp"), dir.join("probe-b.tmp"));
    let probe = || -> std::io::Result<()> {
        std::fs::write(&a, [1; 8192])?;
        let target = File::create(&b)?;
        sys::clone_file(File::open(&a)?.as_fd(), target.as_fd())
    };
    let works = probe().is_ok();
    for path in [a, b] {
        // Left behind, it takes 8 KiB and harms nothing.
        let _ = std::fs::remove_file(path);
    }
    works
}
