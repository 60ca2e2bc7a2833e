//! Reading and appending little-endian integers.

use super::error::FormatError;

/// Reads fields one after the other and knows where it is, for error messages.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    offset: u64,
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`, which lie at `offset` of a file and are (part of) a `what`.
    pub(super) fn new(bytes: &'a [u8], offset: u64, what: &'static str) -> Reader<'a> {
        Reader { bytes, offset, what }
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let Some((taken, rest)) = self.bytes.split_at_checked(len) else {
            return Err(self.truncated(len));
        };
        self.bytes = rest;
        self.offset += len as u64;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let Some((taken, rest)) = self.bytes.split_first_chunk::<N>() else {
            return Err(self.truncated(N));
        };
        self.bytes = rest;
        self.offset += N as u64;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, FormatError> {
        self.array::<1>().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, FormatError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, FormatError> {
        self.array().map(i64::from_le_bytes)
    }

    /// A `u32` count of things that take at least `bytes_each`: never more than can follow, so that
    /// a damaged count cannot make us allocate.
    pub(super) fn count(&mut self, bytes_each: usize) -> Result<usize, FormatError> {
        let count = self.u32()? as usize;
        if count > self.bytes.len() / bytes_each {
            return Err(self.truncated(count.saturating_mul(bytes_each)));
        }
        Ok(count)
    }

    /// Fails unless everything was read.
    pub(super) fn finish(&self) -> Result<(), FormatError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(self.corrupt("length (bytes left over)")) }
    }

    pub(super) fn corrupt(&self, what: &'static str) -> FormatError {
        FormatError::Corrupt { what, offset: self.offset }
    }

    fn truncated(&self, wanted: usize) -> FormatError {
        FormatError::Truncated {
            what: self.what,
            offset: self.offset,
            wanted: wanted as u64,
            found: self.bytes.len() as u64,
        }
    }
}

/// Appends fields to a buffer.
pub(super) trait Append {
    fn put(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }
    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }
    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }
    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }
    fn put_i64(&mut self, value: i64) {
        self.put(&value.to_le_bytes());
    }
}

impl Append for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// The CRC32C that ends `block`, and the bytes that it covers; `None` if `block` is too short.
pub(super) fn split_crc(block: &[u8]) -> Option<(&[u8], u32)> {
    let (covered, crc) = block.split_last_chunk::<4>()?;
    Some((covered, u32::from_le_bytes(*crc)))
}
