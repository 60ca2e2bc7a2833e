//! Packs: copies that nothing but speed depends on. A damaged one may go.

use std::io;
use std::path::Path;

use super::Report;
use super::contents::Reader;
use super::layer::is_regular;
use super::mend::Mend;
use crate::catalog::{LayerRow, Store};
use crate::format::sums::{SumExtent, Sums, granule_sum};
use crate::format::{FormatError, GRANULE_BYTES};
use crate::io::host::read_plain;

/// Checks the pack of a layer, if it has one; with `read_data` every copy against its checksum.
/// Without checksums it is none (yet).
pub(super) fn check_pack(
    store: &Store,
    row: &LayerRow,
    read_data: bool,
    progress: &mut dyn FnMut(u64),
    report: &mut Report,
) {
    let dir = store.layer_dir(row.id.pack());
    let path = dir.join("sums");
    let bytes = match read_plain(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => {
            // What the host does not let us read may be sound.
            let other = [io::ErrorKind::InvalidData, io::ErrorKind::NotADirectory];
            let mend = other.contains(&error.kind()).then_some(Mend::RemovePack);
            let finding = report.finding(dir, format!("sums: {error}"), mend);
            report.damage.push(finding);
            return;
        }
    };
    let extents = match extents(bytes.clone(), row) {
        Ok(extents) => extents,
        Err(error) => return report.mendable(dir, format!("sums: {error}"), Mend::RemovePack),
    };
    let mut reader = Reader::default();
    for (extent, sums) in extents {
        let problem = check_extent(&dir, extent, &sums, read_data.then_some(&mut reader), report);
        // A pack is put in the place of another as a whole: then this is not the one that was looked at.
        let replaced = || !read_plain(&path).is_ok_and(|now| now == bytes);
        if let Some(problem) = problem.filter(|_| !replaced()) {
            let problem = format!("{}: {problem}", extent.file.data_path().display());
            return report.mendable(dir, problem, Mend::RemovePack);
        }
        if read_data {
            progress(u64::from(extent.len) * GRANULE_BYTES);
        }
    }
}

type Extents = Vec<(SumExtent, Vec<u32>)>;

fn extents(bytes: Vec<u8>, row: &LayerRow) -> Result<Extents, FormatError> {
    let sums = Sums::open(Box::new(bytes))?;
    if sums.layer() != row.id.pack() {
        return Err(FormatError::Corrupt { what: "checksums of another pack", offset: 16 });
    }
    sums.extents().collect()
}

/// What is wrong with the copies of an extent, if something is.
fn check_extent(
    dir: &Path,
    extent: SumExtent,
    sums: &[u32],
    reader: Option<&mut Reader>,
    report: &mut Report,
) -> Option<String> {
    let path = dir.join(extent.file.data_path());
    let needed = (u64::from(extent.start) + u64::from(extent.len)) * GRANULE_BYTES;
    match std::fs::symlink_metadata(&path) {
        Ok(meta) if !is_regular(&meta) => return Some("it is no regular file".to_owned()),
        Ok(meta) if meta.len() < needed => {
            return Some(format!("it has {} bytes, and {needed} were written to it", meta.len()));
        }
        Ok(_) => {}
        Err(error) => return Some(error.to_string()),
    }
    let bytes = match reader?.extent(&path, extent) {
        Ok(bytes) => bytes,
        Err(error) => return Some(format!("cannot be read: {error}")),
    };
    let granules = bytes.chunks_exact(GRANULE_BYTES as usize).zip(sums);
    for (granule, (content, sum)) in (u64::from(extent.start)..).zip(granules) {
        if granule_sum(content) != *sum {
            let at = granule * GRANULE_BYTES;
            return Some(format!("corrupt contents at offset {at} (checksum mismatch)"));
        }
        report.verified_bytes += GRANULE_BYTES;
    }
    None
}
