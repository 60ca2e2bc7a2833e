//! Fields of requests and answers as they lie in memory: `<linux/fuse.h>`, protocol 7.42.
//!
//! Numbers are in the byte order of the machine. Each offset is that of a member of the structure
//! named beside it.

use crate::format::Timestamp;
use crate::fs::attr::Attributes;

/// What is left of a request's bytes. Reading past the end gives zeros: the kernel sends whole
/// structures, older ones shorter than newer.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn u32(&self, at: usize) -> u32 {
        let bytes = self.0.get(at..at + 4).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u32::from_ne_bytes)
    }

    pub(super) fn u64(&self, at: usize) -> u64 {
        let bytes = self.0.get(at..at + 8).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u64::from_ne_bytes)
    }
}

/// `struct fuse_in_header`.
#[derive(Clone, Copy, Debug)]
pub(super) struct InHeader {
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl InHeader {
    pub(super) fn of(bytes: &[u8]) -> InHeader {
        let fields = Fields(bytes);
        InHeader {
            opcode: fields.u32(4),
            unique: fields.u64(8),
            node: fields.u64(16),
            uid: fields.u32(24),
            gid: fields.u32(28),
        }
    }
}

/// Length of `struct fuse_out_header`: length, error, unique.
pub(super) const OUT_HEADER_BYTES: usize = 16;

/// Writes fields one after the other into a buffer; what does not fit is left out, and told by
/// [`Writer::len`] all the same.
pub(super) struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn new(out: &'a mut [u8]) -> Writer<'a> {
        Writer { out, at: 0 }
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let end = self.at + bytes.len();
        if let Some(room) = self.out.get_mut(self.at..end) {
            room.copy_from_slice(bytes);
        }
        self.at = end;
        self
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub(super) fn len(&self) -> usize {
        self.at
    }

    /// `struct fuse_attr`.
    pub(super) fn attributes(&mut self, attributes: &Attributes) -> &mut Self {
        const BLOCK_BYTES: u32 = 4096;
        let record = &attributes.record;
        let secs = |time: Timestamp| time.secs.cast_unsigned();
        let mode = super::super::convert::mode_bits(record.kind) | u32::from(record.perm);
        self.u64(record.ino.0).u64(record.size).u64(attributes.blocks);
        self.u64(secs(record.atime)).u64(secs(record.mtime)).u64(secs(record.ctime));
        self.u32(record.atime.nanos).u32(record.mtime.nanos).u32(record.ctime.nanos);
        self.u32(mode).u32(record.nlink).u32(record.uid).u32(record.gid).u32(record.rdev);
        self.u32(BLOCK_BYTES).u32(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut buf = [0; 20];
        let mut writer = Writer::new(&mut buf);
        writer.u64(7 << 40).u32(9).bytes(b"abcd");
        assert_eq!(writer.len(), 16);
        let fields = Fields(&buf);
        assert_eq!((fields.u64(0), fields.u32(8)), (7 << 40, 9));
        assert_eq!((fields.u32(18), fields.u64(13)), (0, 0));
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let mut buf = [0; 6];
        let mut writer = Writer::new(&mut buf);
        writer.u32(1).u32(2);
        assert_eq!(writer.len(), 8);
        assert_eq!(buf, [1, 0, 0, 0, 0, 0]);
    }
}
