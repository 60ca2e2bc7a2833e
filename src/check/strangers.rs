//! What lies among the layers: directories that the catalog does not know, and files that are not
//! cowfs's.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::Report;
use crate::catalog::{CatalogError, Store};
use crate::format::{Ino, LayerId};

/// What a layer's directory may hold, apart from `data` and `pack`.
const FILES: [&str; 11] = [
    "journal",
    "volatile",
    "index",
    "merged",
    "sums",
    "index.tmp",
    "merged.tmp",
    "sums.tmp",
    "finalize.lock",
    "pack.lock",
    "pack.tmp",
];

/// What its pack may hold, apart from `data`.
const PACK_FILES: [&str; 1] = ["sums"];

/// The name of a directory that `gc` is about to remove ends so.
const DOOMED: &str = ".gone";

fn entries(dir: &Path) -> impl Iterator<Item = (OsString, PathBuf)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| (entry.file_name(), entry.path()))
}

fn layer_of(name: &str) -> Option<LayerId> {
    let id = u64::from_str_radix(name, 16).ok().map(LayerId)?;
    (id.dir_name() == name).then_some(id)
}

/// Looks through `layers/` for what should not be there.
pub(super) fn check_layers_dir(store: &Store, report: &mut Report) -> Result<(), CatalogError> {
    for (name, path) in entries(&store.layers_dir()) {
        let name = name.to_str().unwrap_or_default();
        if name.strip_suffix(DOOMED).and_then(layer_of).is_some() {
            continue;
        }
        match layer_of(name).filter(|_| path.is_dir() && !path.is_symlink()) {
            None => report.stranger(path),
            // After the directory was seen: a row that appears in between is found.
            Some(id) if store.catalog.layer(id)?.is_some() => check_inside(&path, &FILES, report),
            // Looked at last: a layer's row is removed after its contents.
            Some(_) if Store::holds_contents(&path) => report.damaged(
                path,
                "a layer with contents that the catalog does not know: the catalog is older than \
                 the store, or belongs to another one",
            ),
            Some(_) => {}
        }
    }
    Ok(())
}

fn check_inside(dir: &Path, files: &[&str], report: &mut Report) {
    for (name, path) in entries(dir) {
        let is_dir = path.is_dir() && !path.is_symlink();
        if name == "data" && is_dir {
            check_data_dir(&path, report);
        } else if name == "pack" && is_dir && !dir.ends_with("pack") {
            check_inside(&path, &PACK_FILES, report);
        } else if !name.to_str().is_some_and(|name| files.contains(&name)) {
            report.stranger(path);
        }
    }
}

fn check_data_dir(data: &Path, report: &mut Report) {
    for (_, group) in entries(data) {
        if group.is_symlink() || !group.is_dir() {
            report.stranger(group);
            continue;
        }
        for (name, path) in entries(&group) {
            let ino = name.to_str().and_then(|name| u64::from_str_radix(name, 16).ok()).map(Ino);
            // The name of a data file leads back to where it lies.
            if !ino.is_some_and(|ino| path.ends_with(ino.data_path())) {
                report.stranger(path);
            }
        }
    }
}
