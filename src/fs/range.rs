//! Copies within the branch (copy_file_range).

use super::{Fs, FsError};
use crate::format::{GRANULE_BYTES, Granule, Ino};

/// Bytes copied at a time.
const COPY_BYTES: u64 = 1 << 20;

impl Fs {
    /// Copies up to `len` bytes between two files of the branch; returns the bytes copied, fewer
    /// only at the end of the source.
    pub fn copy_range(
        &self,
        (from, from_offset): (Ino, u64),
        (to, to_offset): (Ino, u64),
        len: u64,
    ) -> Result<u64, FsError> {
        self.writable()?;
        let size = self.node(from)?.state.lock().record.size;
        let len = len.min(size.saturating_sub(from_offset));
        let overlap = from == to
            && from_offset < to_offset.saturating_add(len)
            && to_offset < from_offset.saturating_add(len);
        if overlap {
            return Err(FsError::Invalid);
        }
        let (mut done, mut buf) = (0, Vec::new());
        while done < len {
            let step = (len - done).min(COPY_BYTES);
            self.read(from, from_offset + done, step as u32, &mut buf)?;
            if buf.is_empty() {
                break;
            }
            self.write(to, to_offset + done, &buf)?;
            done += buf.len() as u64;
        }
        Ok(done)
    }

    /// Granules of `ino` that the open layer owns; for tests and `status`.
    pub fn owned_granules(&self, ino: Ino) -> u64 {
        let view = self.branch.view();
        view.open.file(ino).map_or(0, |file| {
            let own = file.ownership.read();
            if own.private {
                u64::from((own.size.div_ceil(GRANULE_BYTES)) as Granule)
            } else {
                own.present.count()
            }
        })
    }
}
