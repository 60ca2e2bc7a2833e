//! `cowfs init`: a new store.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use super::{failure, output};
use crate::catalog::Store;
use crate::io::sys;
use crate::serve::Failure;

/// Arguments of `cowfs init`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  cowfs --store /srv/cowfs init")]
pub(super) struct InitArgs {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Report {
    store: String,
    filesystem: String,
    reflink: bool,
    free_bytes: u64,
}

pub(super) fn run(args: &InitArgs, dir: &Path) -> Result<u8, Failure> {
    let store = Store::init(dir).map_err(|error| failure::of_store(&error))?;
    let host = nix::sys::statvfs::statvfs(&store.root)
        .map_err(|error| Failure::caused("store", &error))?;
    let report = Report {
        store: store.root.display().to_string(),
        filesystem: filesystem(&store.root),
        reflink: reflinks(&store.root),
        free_bytes: host.blocks_available() * host.fragment_size(),
    };
    if args.json {
        output::print_json(&report)?;
        return Ok(0);
    }
    let consequence = if report.reflink {
        "has reflinks: an import from the same filesystem copies nothing"
    } else {
        "has no reflinks: an import copies its source once; forks never copy"
    };
    output::print(&format!(
        "Made store {} on {}, which {consequence}. {} free.\n",
        report.store,
        report.filesystem,
        output::bytes(report.free_bytes)
    ));
    if let Some(doubt) = doubt(&report.filesystem) {
        eprintln!("Note: {doubt}");
    }
    Ok(0)
}

/// What speaks against a store on that filesystem.
fn doubt(filesystem: &str) -> Option<&'static str> {
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
fn filesystem(dir: &Path) -> String {
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
fn reflinks(dir: &Path) -> bool {
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
