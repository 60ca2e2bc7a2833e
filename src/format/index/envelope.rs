//! Header and footer of an index, and where its sections lie.

use super::{IndexMeta, Section};
use crate::format::bytes::{Append, Reader, split_crc};
use crate::format::error::FormatError;
use crate::format::id::{Ino, LayerId};

const MAGIC: [u8; 8] = *b"cowfsidx";
const FOOTER_MAGIC: [u8; 8] = *b"cowfsend";
const VERSION: u32 = 2;

/// Bytes of the header.
pub(super) const HEADER_BYTES: usize = 64;
/// Bytes of the footer.
pub(super) const FOOTER_BYTES: usize = 88;
/// Bytes that one checksum covers.
pub(super) const BLOCK_BYTES: u64 = 64 * 1024;
/// Number of sections.
pub(super) const SECTIONS: usize = Section::ALL.len();

const HEADER_RESERVED_BYTES: usize = 20;
const CRC_BYTES: u64 = 4;

/// The header:
///
/// | at | field | type |
/// | --- | --- | --- |
/// | 0 | magic `cowfsidx` | 8 bytes |
/// | 8 | version, 1 | u32 |
/// | 12 | lowest depth | u32 |
/// | 16 | depth | u32 |
/// | 20 | zeros | u32 |
/// | 24 | layer | u64 |
/// | 32 | next inode | u64 |
/// | 40 | zeros | 20 bytes |
/// | 60 | CRC32C of bytes 0..60 | u32 |
pub(super) fn encode_header(meta: &IndexMeta) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES);
    out.put(&MAGIC);
    out.put_u32(VERSION);
    out.put_u32(meta.lowest_depth);
    out.put_u32(meta.depth);
    out.put_u32(0);
    out.put_u64(meta.layer.0);
    out.put_u64(meta.next_ino.0);
    out.put(&[0; HEADER_RESERVED_BYTES]);
    out.put_u32(crc32c::crc32c(&out));
    debug_assert_eq!(out.len(), HEADER_BYTES);
    out
}

/// Reads the header at the start of `bytes`.
pub(super) fn decode_header(bytes: &[u8]) -> Result<IndexMeta, FormatError> {
    let header = Reader::new(bytes, 0, "index header").take(HEADER_BYTES)?;
    let mut reader = Reader::new(header, 0, "index header");
    if reader.array()? != MAGIC {
        return Err(FormatError::BadMagic { what: "index" });
    }
    // Before the checksum: another version may keep its checksum elsewhere.
    let version = reader.u32()?;
    if version != VERSION {
        let (found, supported) = (version, VERSION);
        return Err(FormatError::UnknownVersion { what: "index", found, supported });
    }
    if split_crc(header).is_none_or(|(covered, crc)| crc32c::crc32c(covered) != crc) {
        return Err(FormatError::Checksum { section: "index header", offset: 0 });
    }
    let (lowest_depth, depth) = (reader.u32()?, reader.u32()?);
    reader.u32()?;
    let (layer, next_ino) = (LayerId(reader.u64()?), Ino(reader.u64()?));
    if lowest_depth > depth {
        return Err(reader.corrupt("depths"));
    }
    Ok(IndexMeta { layer, lowest_depth, depth, next_ino })
}

/// The footer:
///
/// | at | field | type |
/// | --- | --- | --- |
/// | 0 | magic `cowfsend` | 8 bytes |
/// | 8 | layer, as in the header | u64 |
/// | 16 | bytes of the whole index | u64 |
/// | 24 | bytes of each section | 6 × u64 |
/// | 72 | number of blocks, that is of checksums | u64 |
/// | 80 | CRC32C of the checksum table | u32 |
/// | 84 | CRC32C of bytes 0..84 | u32 |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Footer {
    pub(super) layer: LayerId,
    pub(super) index_bytes: u64,
    pub(super) section_bytes: [u64; SECTIONS],
    pub(super) block_count: u64,
    pub(super) table_crc: u32,
}

impl Footer {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FOOTER_BYTES);
        out.put(&FOOTER_MAGIC);
        out.put_u64(self.layer.0);
        out.put_u64(self.index_bytes);
        for bytes in self.section_bytes {
            out.put_u64(bytes);
        }
        out.put_u64(self.block_count);
        out.put_u32(self.table_crc);
        out.put_u32(crc32c::crc32c(&out));
        debug_assert_eq!(out.len(), FOOTER_BYTES);
        out
    }

    /// Reads the footer at the end of `bytes`, the whole index.
    pub(super) fn decode(bytes: &[u8]) -> Result<Footer, FormatError> {
        let Some((before, footer)) = bytes.split_last_chunk::<FOOTER_BYTES>() else {
            let found = bytes.len() as u64;
            let wanted = FOOTER_BYTES as u64;
            return Err(FormatError::Truncated { what: "index footer", offset: 0, wanted, found });
        };
        let offset = before.len() as u64;
        let mut reader = Reader::new(footer, offset, "index footer");
        if reader.array()? != FOOTER_MAGIC {
            return Err(FormatError::BadMagic { what: "index footer at the end of the file" });
        }
        if split_crc(footer).is_none_or(|(covered, crc)| crc32c::crc32c(covered) != crc) {
            return Err(FormatError::Checksum { section: "index footer", offset });
        }
        let (layer, index_bytes) = (LayerId(reader.u64()?), reader.u64()?);
        let mut section_bytes = [0; SECTIONS];
        for bytes in &mut section_bytes {
            *bytes = reader.u64()?;
        }
        let (block_count, table_crc) = (reader.u64()?, reader.u32()?);
        if index_bytes != bytes.len() as u64 {
            return Err(reader.corrupt("length in the index footer"));
        }
        Ok(Footer { layer, index_bytes, section_bytes, block_count, table_crc })
    }
}

/// Where a section lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Span {
    /// Offset in the file.
    pub(super) offset: u64,
    /// Length in bytes.
    pub(super) bytes: u64,
    /// Number of blocks in the sections before it.
    pub(super) block_first: u64,
}

/// Where all sections lie and, after them, the checksum table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Spans {
    sections: [Span; SECTIONS],
    /// Offset of the checksum table in the file.
    pub(super) table_offset: u64,
}

impl Spans {
    pub(super) fn get(&self, section: Section) -> Span {
        let [inodes, dirents, runs, sockets, names, extras] = self.sections;
        match section {
            Section::Inodes => inodes,
            Section::Dirents => dirents,
            Section::Runs => runs,
            Section::Sockets => sockets,
            Section::Names => names,
            Section::Extras => extras,
        }
    }

    /// Lays the sections out as `footer` says; checks that everything adds up to the index.
    pub(super) fn from_footer(footer: &Footer) -> Result<Spans, FormatError> {
        let corrupt =
            |what| FormatError::Corrupt { what, offset: footer.index_bytes - FOOTER_BYTES as u64 };
        let mut offset = HEADER_BYTES as u64;
        let mut block_first = 0;
        let mut sections = [Span::default(); SECTIONS];
        let parts = sections.iter_mut().zip(footer.section_bytes).zip(Section::ALL);
        for ((span, bytes), section) in parts {
            if bytes % section.width() != 0 {
                return Err(corrupt("section length in the index footer"));
            }
            *span = Span { offset, bytes, block_first };
            offset = offset
                .checked_add(bytes)
                .filter(|end| *end <= footer.index_bytes)
                .ok_or_else(|| corrupt("section length in the index footer"))?;
            block_first += bytes.div_ceil(BLOCK_BYTES);
        }
        // Neither product nor sum can overflow: there is a block for every 64 KiB of the file at most
        // and one for each section.
        let end = offset + block_first * CRC_BYTES + FOOTER_BYTES as u64;
        if block_first != footer.block_count || end != footer.index_bytes {
            return Err(corrupt("number of blocks in the index footer"));
        }
        Ok(Spans { sections, table_offset: offset })
    }
}
