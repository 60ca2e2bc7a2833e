//! The first bytes of a log.

use crate::format::bytes::{Append, Reader, split_crc};
use crate::format::error::FormatError;
use crate::format::id::LayerId;

const MAGIC: [u8; 8] = *b"cowfslog";
const VERSION: u32 = 3;

/// Which of a layer's two logs it is. The discriminants are the on-disk values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum LogKind {
    /// Durable records: never claims data that is not on the disk.
    Journal = 1,
    /// Every record, synced or not: believed only on the boot that wrote it.
    Volatile = 2,
}

/// The header of a log, 64 bytes.
///
/// | at | field | type |
/// | --- | --- | --- |
/// | 0 | magic `cowfslog` | 8 bytes |
/// | 8 | version, 3 | u32 |
/// | 12 | kind: 1 journal, 2 volatile | u32 |
/// | 16 | layer | u64 |
/// | 24 | boot id | 16 bytes |
/// | 40 | zeros | 20 bytes |
/// | 60 | CRC32C of bytes 0..60 | u32 |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogHeader {
    /// Journal or volatile log.
    pub kind: LogKind,
    /// The layer that the log belongs to: a log in the wrong directory is noticed.
    pub layer: LayerId,
    /// The kernel's boot id at creation; zeros for a journal.
    pub boot_id: [u8; 16],
}

impl LogHeader {
    /// Bytes of a header; the first frame follows at this offset.
    pub const BYTES: usize = 64;

    const RESERVED_BYTES: usize = 20;

    /// The header's bytes.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = Vec::with_capacity(Self::BYTES);
        out.put(&MAGIC);
        out.put_u32(VERSION);
        out.put_u32(self.kind as u32);
        out.put_u64(self.layer.0);
        out.put(&self.boot_id);
        out.put(&[0; Self::RESERVED_BYTES]);
        out.put_u32(crc32c::crc32c(&out));
        let mut header = [0; Self::BYTES];
        header.copy_from_slice(&out);
        header
    }

    /// Reads the header at the start of `bytes`; what follows it is ignored.
    pub fn decode(bytes: &[u8]) -> Result<LogHeader, FormatError> {
        let header = Reader::new(bytes, 0, "log header").take(Self::BYTES)?;
        let mut reader = Reader::new(header, 0, "log header");
        if reader.array()? != MAGIC {
            return Err(FormatError::BadMagic { what: "log" });
        }
        // Before the checksum: another version may keep its checksum elsewhere.
        let version = reader.u32()?;
        if version != VERSION {
            let (found, supported) = (version, VERSION);
            return Err(FormatError::UnknownVersion { what: "log", found, supported });
        }
        if split_crc(header).is_none_or(|(covered, crc)| crc32c::crc32c(covered) != crc) {
            return Err(FormatError::Checksum { section: "log header", offset: 0 });
        }
        let kind = match reader.u32()? {
            1 => LogKind::Journal,
            2 => LogKind::Volatile,
            _ => return Err(reader.corrupt("log kind")),
        };
        Ok(LogHeader { kind, layer: LayerId(reader.u64()?), boot_id: reader.array()? })
    }
}
