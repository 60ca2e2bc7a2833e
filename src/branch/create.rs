//! Branches that begin with nothing.

use std::sync::Arc;

use super::BranchError;
use super::fork::{Requester, new_branch, new_layer_id};
use super::open::{Host, data_files, write_root};
use crate::catalog::{BranchName, BranchRow, NewLayer, Store};
use crate::format::journal::Record;
use crate::format::{FileKind, Ino, InodeRecord, Timestamp};
use crate::io::crash::{Point, crash_point};
use crate::layer::open::OpenLayer;

/// Creates a branch with an empty root directory, owned by the caller, mode 0755.
pub fn create_empty(
    store: &Arc<Store>,
    name: BranchName,
    by: &Requester,
) -> Result<BranchRow, BranchError> {
    create_from(store, name, "empty", by)
}

/// Like [`create_empty`], for a branch that is to be filled from `origin`.
pub fn create_from(
    store: &Arc<Store>,
    name: BranchName,
    origin: &str,
    by: &Requester,
) -> Result<BranchRow, BranchError> {
    store.catalog.require_current()?;
    let head = new_layer_id()?;
    let host = Host::real()?;
    let data = data_files(host.storage, store);
    // The layer comes first: a crash leaves a directory that no row names, and gc takes it.
    let layer = OpenLayer::empty((head, 0), data, host.boot_id, Box::new(|| Ok(())));
    write_root(&layer, Record::Inode(Box::new(root_directory(by.uid))))?;
    crash_point(Point::CreateRootWritten);
    layer.leave()?;
    crash_point(Point::CreateLogSettled);
    let new = new_branch(name, origin.to_owned(), by);
    let row = store.catalog.create_branch(&new, NewLayer { id: head, parent: None })?;
    crash_point(Point::CreateCommitted);
    store.catalog.mark_layer_used(head)?;
    crash_point(Point::CreateMarked);
    Ok(row)
}

fn root_directory(uid: u32) -> InodeRecord {
    let since_epoch =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let now =
        Timestamp { secs: since_epoch.as_secs().cast_signed(), nanos: since_epoch.subsec_nanos() };
    InodeRecord {
        ino: Ino::ROOT,
        kind: FileKind::Directory,
        perm: 0o755,
        uid,
        gid: nix::unistd::getegid().as_raw(),
        nlink: 2,
        rdev: 0,
        size: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        parent: Ino::ROOT,
        symlink: Vec::new(),
        xattrs: Vec::new(),
        adopted: None,
    }
}
