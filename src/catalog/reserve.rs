//! Space that is kept back, so that room can be made in a store that has none.
//!
//! Deleting a branch and freeing its layers write to the catalog, and on a full filesystem that
//! fails like every other write. They give up the reserve first, and gc makes it again.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};

use crate::io::crash::{Point, crash_point};
use crate::io::host::open_plain_with;

/// Bytes kept back: enough for the catalog's shared memory and some dozen transactions.
const BYTES: u64 = 4 << 20;
/// A store with less free space than this is full.
const FULL_BELOW: i64 = 1 << 20;

fn file_of(store: &Path) -> PathBuf {
    store.join("reserve")
}

/// Makes the reserve of the store in `store`, unless it is there. A store without one is sound.
pub fn make(store: &Path) {
    let path = file_of(store);
    let make = || -> io::Result<()> {
        let file =
            open_plain_with(File::options().create(true).truncate(false).write(true), &path)?;
        crash_point(Point::ReserveCreated);
        fallocate(&file, FallocateFlags::empty(), 0, BYTES.cast_signed())?;
        crash_point(Point::ReserveMade);
        Ok(())
    };
    if !path.exists()
        && let Err(error) = make()
    {
        tracing::debug!(%error, "no reserve of space");
        // A part of it would be no use.
        let _ = std::fs::remove_file(&path);
    }
}

/// Frees the reserve if the filesystem is full; returns whether that made room.
pub fn give_up(store: &Path) -> bool {
    let made_room = is_full(store) && std::fs::remove_file(file_of(store)).is_ok();
    if made_room {
        crash_point(Point::ReserveGivenUp);
    }
    made_room
}

/// Whether the store's filesystem refuses a file of [`FULL_BELOW`] bytes to us.
///
/// It is tried, as the figures of statvfs(2) do not tell: ext4 counts up to 16 MiB as free that
/// it keeps for its own metadata, and a quota is not in them at all.
fn is_full(store: &Path) -> bool {
    let refused = File::options()
        .write(true)
        .custom_flags(OFlag::O_TMPFILE.bits())
        .open(store)
        .and_then(|probe| Ok(fallocate(&probe, FallocateFlags::empty(), 0, FULL_BELOW)?));
    let error = refused.err().and_then(|error| error.raw_os_error()).map(Errno::from_raw);
    matches!(error, Some(Errno::ENOSPC | Errno::EDQUOT))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_reserve_takes_space_and_stays_while_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path());
        make(dir.path());
        let kept = std::fs::metadata(file_of(dir.path())).unwrap();
        assert_eq!(kept.len(), BYTES);
        assert!(kept.blocks() * 512 >= BYTES, "{} blocks", kept.blocks());
        assert!(!give_up(dir.path()));
        assert!(file_of(dir.path()).exists());
    }
}
