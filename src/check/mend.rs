//! What can be mended without a risk for data: files that are derived from others, and files that
//! nothing leads to.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Finding;
use crate::format::index::Index;
use crate::io::host::{HostStorage, open_plain, try_lock};
use crate::io::{Storage, sys};

/// A way to mend a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mend {
    /// The checksums of a layer: those that are damaged are made again from its contents.
    RemakeSums,
    /// A merged index: the layers' own indexes say the same.
    RemoveMerged,
    /// A pack: what it has copies of is in the layers.
    RemovePack,
    /// A file that was being written when its writer stopped.
    RemoveTemporary,
    /// A data file of a sealed layer that no record leads to.
    RemoveDataFile,
    /// The number of commits beside the catalog: noted again with the next one.
    RemoveNote,
}

impl Mend {
    /// What it does, as the end of a sentence.
    pub fn effect(self) -> &'static str {
        match self {
            Mend::RemakeSums => {
                "keeping the checksums that can be relied on, and making the others again from the \
                 contents as they are now"
            }
            Mend::RemoveMerged => "removing it; the indexes of the single layers say the same",
            Mend::RemovePack => {
                "removing it; what it has copies of is read from the layers, and copied again"
            }
            Mend::RemoveTemporary => "removing it; nothing refers to it",
            Mend::RemoveDataFile => "removing it; its layer is sealed and no record leads to it",
            Mend::RemoveNote => "removing it; the next commit notes it anew",
        }
    }
}

/// Mends a finding, but for checksums, which only the engine makes; `Ok(false)` if it has to stay for now, because somebody may be using it.
pub fn mend(finding: &Finding) -> io::Result<bool> {
    let path = &finding.path;
    match finding.mend {
        None | Some(Mend::RemakeSums) => return Ok(false),
        Some(Mend::RemoveNote) => {}
        Some(Mend::RemovePack) => {
            HostStorage.remove_tree(path)?;
            return Ok(true);
        }
        // Without the layer's own index the merged one may be the last to know.
        Some(Mend::RemoveMerged | Mend::RemoveDataFile) if !own_index_is_sound(path) => {
            return Ok(false);
        }
        Some(Mend::RemoveMerged | Mend::RemoveDataFile) => {}
        Some(Mend::RemoveTemporary) => {
            let lock = match path.file_name().and_then(|name| name.to_str()) {
                Some("sums.tmp") => path.clone(),
                Some("pack.tmp") => path.with_file_name("pack.lock"),
                _ => path.with_file_name("finalize.lock"),
            };
            let Some(lock) = try_lock(&lock)? else { return Ok(false) };
            // Who had the lock until now may have put the file in its place, and another one may be at the next.
            let is_lock = path.ends_with("sums.tmp");
            if is_lock && path.symlink_metadata()?.ino() != lock.metadata()?.ino() {
                return Ok(false);
            }
            HostStorage.remove_tree(path)?;
            return Ok(true);
        }
    }
    std::fs::remove_file(path)?;
    Ok(true)
}

/// Whether the index of the layer that `path` belongs to can be relied on.
fn own_index_is_sound(path: &Path) -> bool {
    // A data file lies two directories deeper than a merged index.
    let index = path.ancestors().skip(1).take(3).map(|dir| dir.join("index")).find(|p| p.exists());
    let map =
        index.and_then(|path| open_plain(&path).ok()).and_then(|f| sys::map_immutable(&f).ok());
    let opened = map.and_then(|map| Index::open(Box::new(map)).ok());
    opened.is_some_and(|index| index.verify().is_ok())
}
