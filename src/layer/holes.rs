//! Holes of files that an index is written for: it need not claim what the host does not hold.
//!
//! Without this a file of a terabyte of nothing would be a terabyte to make checksums of.

use super::open::OpenLayer;
use super::open_file::OpenFile;
use crate::format::{GRANULE_BYTES, Granule, OwnedRun};
use crate::io::HostFile;

/// `runs` of a private file of `layer` without the holes of its data file, which was synced.
pub fn without_holes(layer: &OpenLayer, file: &OpenFile, runs: Vec<OwnedRun>) -> Vec<OwnedRun> {
    let Ok(Some(host)) = file.existing_host(&layer.data) else { return runs };
    let mut left = Vec::with_capacity(runs.len());
    for run in runs {
        let own = (run.layer, run.file) == (layer.id, file.ino);
        match own.then(|| data_runs(&*host, run)) {
            Some(Ok(parts)) => left.extend(parts),
            // Somebody else's; or a filesystem that cannot tell, where all of it counts as data.
            _ => left.push(run),
        }
    }
    left
}

/// The parts of a same-offset run in which the data file has data, in whole granules.
///
/// # Errors
/// A filesystem that cannot tell data from holes.
pub fn data_runs(host: &dyn HostFile, run: OwnedRun) -> std::io::Result<Vec<OwnedRun>> {
    let end = run.start + run.len;
    let end_byte = u64::from(end) * GRANULE_BYTES;
    let mut parts: Vec<OwnedRun> = Vec::new();
    let mut at = u64::from(run.start) * GRANULE_BYTES;
    while at < end_byte {
        let Some(data) = host.seek_data(at)?.filter(|data| *data < end_byte) else { break };
        let hole = host.seek_hole(data)?.unwrap_or(end_byte).clamp(data + 1, end_byte);
        let first = (data / GRANULE_BYTES) as Granule;
        let past = (hole.div_ceil(GRANULE_BYTES) as Granule).min(end);
        match parts.last_mut() {
            // Extents of a host with smaller blocks may meet within a granule.
            Some(last) if last.start + last.len >= first => last.len = past - last.start,
            _ => parts.push(OwnedRun { start: first, len: past - first, source: first, ..run }),
        }
        at = hole;
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::format::{Ino, LayerId};
    use crate::io::host::HostStorage;
    use crate::io::{Access, Storage, write_all_at};

    #[test]
    fn only_data_is_claimed() {
        let dir = tempfile::tempdir().unwrap();
        let host = HostStorage.open(&dir.path().join("f"), Access::Create).unwrap();
        host.set_len(1 << 40).unwrap();
        write_all_at(&*host, &[1; 10], 5 << 20).unwrap();
        write_all_at(&*host, &[1; 5000], (1 << 40) - 5000).unwrap();
        host.sync_data().unwrap();
        let whole = OwnedRun { start: 0, len: 1 << 28, layer: LayerId(1), file: Ino(2), source: 0 };
        let parts = data_runs(&*host, whole).unwrap();
        assert!(parts.iter().all(|part| part.start == part.source), "{parts:?}");
        let has = |granule: Granule| {
            parts.iter().any(|part| (part.start..part.start + part.len).contains(&granule))
        };
        assert!(has(5 << 8) && has((1 << 28) - 1) && has((1 << 28) - 2), "{parts:?}");
        // A filesystem may have larger blocks.
        assert!(parts.iter().map(|part| part.len).sum::<u32>() < 1 << 10, "{parts:?}");
        // Only the part that was asked for.
        let part = OwnedRun { start: 5 << 8, source: 5 << 8, len: 1, ..whole };
        assert_eq!(data_runs(&*host, part).unwrap(), [part]);
        let none = OwnedRun { start: 6 << 10, source: 6 << 10, len: 9, ..whole };
        assert_eq!(data_runs(&*host, none).unwrap(), []);
    }
}
