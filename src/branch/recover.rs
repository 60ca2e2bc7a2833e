//! What opening a branch puts right after a crash, before anybody can look.

use std::io;
use std::path::{Path, PathBuf};

use super::BranchError;
use super::open::is_there;
use super::view::View;
use crate::format::Ino;
use crate::io::crash::{Point, crash_point};
use crate::layer::data_files::DataFiles;
use crate::layer::open::OpenLayer;
use crate::layer::open_file::Ownership;
use crate::layer::write::Target;

/// Puts right what an unclean end left in the layers that are still logs.
///
/// The oldest first: what a layer shows rests on those below it. Returns the files of the open
/// layer that the caller has to sync: what is seen after a crash must not change with the next.
pub(super) fn recover(view: &View) -> Result<Vec<Ino>, BranchError> {
    let mut unsynced = Vec::new();
    let layers: Vec<_> = view.in_memory().cloned().collect();
    for (position, layer) in layers.iter().enumerate().rev() {
        if ended_orderly(layer)? {
            continue;
        }
        let settled = settle_sizes(view, position, layer)?;
        if position == 0 {
            unsynced = settled;
            remove_leftovers(layer, &view.data)?;
        }
    }
    Ok(unsynced)
}

/// An orderly end leaves the journal and removes the volatile log. Neither of the two is no proof:
/// the host may have kept a data file and lost the log that was made just before.
fn ended_orderly(layer: &OpenLayer) -> Result<bool, BranchError> {
    let there = |name| is_there(&layer.data, &path_in(layer, name));
    Ok(there("journal")? && !there("volatile")?)
}

fn path_in(layer: &OpenLayer, name: &str) -> PathBuf {
    layer.data.layer_dir(layer.id).join(name)
}

/// Hides for good what lower layers hold past the end of files that were cut; see
/// [`Target::settle`]. Returns the files that were changed.
fn settle_sizes(view: &View, position: usize, layer: &OpenLayer) -> Result<Vec<Ino>, BranchError> {
    let mut changed = Vec::new();
    for file in layer.all_files() {
        let whole = |own: &Ownership| own.private && own.borrowed.is_empty();
        if whole(&file.ownership.read()) {
            continue;
        }
        let below = view.inode_below(file.ino, position + 1)?.map_or(0, |record| record.size);
        let lower = view.owners_below(file.ino, position + 1)?;
        if (Target { layer, file: &file, lower: &lower }).settle(below)? {
            changed.push(file.ino);
        }
    }
    Ok(changed)
}

/// Removes data files of the open layer that no record mentions: files that were created but not
/// synced before the power went, or unlinked just before the end.
///
/// At once, and durably: a file that is written to again, or a new one of that inode number, must
/// not begin with old bytes. Only those that the journal on disk still leads to wait for it.
fn remove_leftovers(open: &OpenLayer, data: &DataFiles) -> Result<(), BranchError> {
    let host = |path: &Path| {
        let path = path.to_owned();
        move |source| BranchError::Host { what: "clearing leftovers in", path, source }
    };
    let top = path_in(open, "data");
    let groups = match data.storage.list(&top) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(host(&top))?,
    };
    for group in groups {
        let group = top.join(group);
        let mut removed = false;
        for name in data.storage.list(&group).map_err(host(&group))? {
            let ino = name.to_str().and_then(|name| u64::from_str_radix(name, 16).ok());
            if let Some(ino) = ino.map(Ino)
                && open.file(ino).is_none()
                && !open.is_doomed(ino)
            {
                data.destroy(open.id, ino).map_err(host(&group))?;
                removed = true;
                crash_point(Point::LeftoverRemoved);
            }
        }
        if removed {
            // The next power cut must not bring them back: no record of such a number has become
            // durable, so it will be given to a new file.
            data.storage.sync_dir(&group).map_err(host(&group))?;
            crash_point(Point::LeftoversSynced);
        }
    }
    Ok(())
}
