//! Checksummed blocks: written in a stream, verified at first use.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use super::envelope::{BLOCK_BYTES, FOOTER_BYTES, Footer, SECTIONS, Spans, decode_header};
use super::{IndexBytes, IndexMeta, Section};
use crate::format::error::FormatError;

/// Writes sections block by block and remembers the checksums.
pub(super) struct BlockWriter<W> {
    out: W,
    block: Vec<u8>,
    crcs: Vec<u8>,
    /// Bytes of the current section.
    section_bytes: u64,
    /// Bytes of the whole index so far.
    pub(super) written: u64,
}

impl<W: Write> BlockWriter<W> {
    pub(super) fn new(out: W) -> BlockWriter<W> {
        let block = Vec::with_capacity(BLOCK_BYTES as usize);
        BlockWriter { out, block, crcs: Vec::new(), section_bytes: 0, written: 0 }
    }

    /// Writes bytes that belong to no section (header, footer).
    pub(super) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Appends to the current section.
    pub(super) fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.section_bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = BLOCK_BYTES as usize - self.block.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() == BLOCK_BYTES as usize {
                self.end_block()?;
            }
        }
        Ok(())
    }

    /// Ends the current section; returns its bytes.
    pub(super) fn end_section(&mut self) -> io::Result<u64> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        Ok(std::mem::take(&mut self.section_bytes))
    }

    /// Writes the checksum table and the footer; returns the bytes of the whole index.
    pub(super) fn finish(
        mut self,
        meta: &IndexMeta,
        section_bytes: [u64; SECTIONS],
    ) -> io::Result<u64> {
        let table = std::mem::take(&mut self.crcs);
        self.raw(&table)?;
        let footer = Footer {
            layer: meta.layer,
            index_bytes: self.written + FOOTER_BYTES as u64,
            section_bytes,
            block_count: (table.len() / size_of::<u32>()) as u64,
            table_crc: crc32c::crc32c(&table),
        };
        self.raw(&footer.encode())?;
        self.out.flush()?;
        Ok(self.written)
    }

    fn end_block(&mut self) -> io::Result<()> {
        self.crcs.extend_from_slice(&crc32c::crc32c(&self.block).to_le_bytes());
        self.written += self.block.len() as u64;
        self.out.write_all(&self.block)?;
        self.block.clear();
        Ok(())
    }
}

/// The bytes of an index, handed out only after their checksum was verified.
pub(super) struct Blocks {
    bytes: IndexBytes,
    spans: Spans,
    /// One bit per block that is known to be good. The bytes never change, so nothing orders these
    /// bits against anything: at worst two threads verify the same block.
    verified: Box<[AtomicU64]>,
}

impl Blocks {
    /// Reads header, footer and checksum table.
    pub(super) fn open(bytes: IndexBytes) -> Result<(IndexMeta, Blocks), FormatError> {
        let all: &[u8] = &bytes;
        let meta = decode_header(all)?;
        let footer = Footer::decode(all)?;
        if footer.layer != meta.layer {
            let offset = footer.index_bytes - FOOTER_BYTES as u64;
            return Err(FormatError::Corrupt { what: "layer in the index footer", offset });
        }
        let spans = Spans::from_footer(&footer)?;
        let table = all
            .get(spans.table_offset as usize..all.len() - FOOTER_BYTES)
            .filter(|table| crc32c::crc32c(table) == footer.table_crc);
        if table.is_none() {
            let offset = spans.table_offset;
            return Err(FormatError::Checksum { section: "index checksum table", offset });
        }
        let words = footer.block_count.div_ceil(64) as usize;
        let verified = (0..words).map(|_| AtomicU64::new(0)).collect();
        Ok((meta, Blocks { bytes, spans, verified }))
    }

    /// Bytes of the whole index.
    pub(super) fn index_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Number of records in a section (bytes, for sections of variable records).
    pub(super) fn count(&self, section: Section) -> u64 {
        self.spans.get(section).bytes / section.width()
    }

    /// Offset in the file of byte `at` of a section.
    pub(super) fn file_offset(&self, section: Section, at: u64) -> u64 {
        self.spans.get(section).offset.saturating_add(at)
    }

    /// `len` verified bytes at `at` of a section.
    pub(super) fn get(&self, section: Section, at: u64, len: u64) -> Result<&[u8], FormatError> {
        let span = self.spans.get(section);
        let end = at.checked_add(len).filter(|end| *end <= span.bytes);
        let Some(end) = end else {
            return Err(FormatError::Truncated {
                what: section.name(),
                offset: self.file_offset(section, at),
                wanted: len,
                found: span.bytes.saturating_sub(at),
            });
        };
        if len == 0 {
            return Ok(&[]);
        }
        for block in at / BLOCK_BYTES..=(end - 1) / BLOCK_BYTES {
            self.ensure(section, block)?;
        }
        let all: &[u8] = &self.bytes;
        // Open checked that the section lies within the bytes.
        all.get((span.offset + at) as usize..(span.offset + end) as usize)
            .ok_or(FormatError::Corrupt { what: section.name(), offset: span.offset })
    }

    /// Verifies every block.
    pub(super) fn verify(&self) -> Result<(), FormatError> {
        for section in Section::ALL {
            for block in 0..self.spans.get(section).bytes.div_ceil(BLOCK_BYTES) {
                self.check(section, block)?;
            }
        }
        Ok(())
    }

    /// Verifies a block unless that was done before.
    fn ensure(&self, section: Section, block: u64) -> Result<(), FormatError> {
        let number = self.spans.get(section).block_first + block;
        let bit = 1 << (number % 64);
        let word = self.verified.get((number / 64) as usize);
        if word.is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0) {
            return Ok(());
        }
        self.check(section, block)?;
        if let Some(word) = word {
            word.fetch_or(bit, Ordering::Relaxed);
        }
        Ok(())
    }

    fn check(&self, section: Section, block: u64) -> Result<(), FormatError> {
        let span = self.spans.get(section);
        let at = block * BLOCK_BYTES;
        let start = span.offset + at;
        let end = start + BLOCK_BYTES.min(span.bytes.saturating_sub(at));
        let crc_at = (self.spans.table_offset + (span.block_first + block) * 4) as usize;
        let all: &[u8] = &self.bytes;
        let wanted = all.get(crc_at..).and_then(|table| table.first_chunk::<4>());
        let found = all.get(start as usize..end as usize).map(crc32c::crc32c);
        if wanted.is_some() && found == wanted.map(|crc| u32::from_le_bytes(*crc)) {
            Ok(())
        } else {
            Err(FormatError::Checksum { section: section.name(), offset: start })
        }
    }
}
