//! Frames: records that become effective together.

use std::collections::HashMap;

use super::record::Record;
use crate::format::bytes::{Append, Reader};
use crate::format::error::FormatError;
use crate::format::id::Ino;

/// The most payload bytes that a frame can have: 1 GiB, far above what one change needs.
pub const FRAME_BYTES_MAX: usize = 1 << 30;

const HEAD_BYTES: usize = 16;
const PAYLOAD_BYTES_MIN: usize = 4;
const RECORD_BYTES_MIN: usize = 9;
/// No log holds that many frames: a larger jump of the sequence is chance, not a frame.
const SEQUENCE_JUMP_MAX: u64 = 1 << 40;

/// Records that were written together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Its sequence number.
    pub sequence: u64,
    /// What it says.
    pub records: Vec<Record>,
    /// Where it begins, in bytes from the end of the log's header.
    pub offset: u64,
    /// Where it ends and the next one begins, counted likewise.
    pub end: u64,
}

impl Frame {
    /// If the layer was left in order with this as the last frame of its journal: its files, and how
    /// many bytes the data file of each had.
    pub fn lengths_at_close(&self) -> Option<HashMap<Ino, u64>> {
        let Some(Record::Closed { files }) = self.records.last() else { return None };
        let lengths = self.records.iter().filter_map(|record| match record {
            Record::Length { ino, bytes } => Some((*ino, *bytes)),
            _ => None,
        });
        let lengths: HashMap<Ino, u64> = lengths.collect();
        (lengths.len() as u64 == *files).then_some(lengths)
    }
}

/// How a log ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tail {
    /// With a whole frame.
    Clean,
    /// With a frame that was being written when the machine or the process stopped.
    ///
    /// Cut the log to `LogHeader::BYTES + offset` bytes before appending to it.
    Torn {
        /// Where the last whole frame ends, in bytes from the end of the log's header.
        offset: u64,
        /// Bytes from there to the end of the log.
        bytes: u64,
    },
}

/// Appends a frame with `records` to `out`.
///
/// # Panics
/// If the payload exceeds [`FRAME_BYTES_MAX`] or a record breaks its own rules (a name that is not
/// valid, granule ranges out of order): such a frame could not be read back.
pub fn encode_frame(sequence: u64, records: &[Record], out: &mut Vec<u8>) {
    let start = out.len();
    out.put(&[0; 8]); // length and checksum, filled in below
    out.put_u64(sequence);
    out.put_u32(u32::try_from(records.len()).expect("fewer records than bytes in a frame"));
    for record in records {
        record.encode(out);
    }
    let (_, frame) = out.split_at_mut(start);
    let (head, checked) = frame.split_at_mut(8);
    let payload_bytes = checked.len() - size_of::<u64>();
    assert!(payload_bytes <= FRAME_BYTES_MAX, "a frame of {payload_bytes} bytes");
    let (length, crc) = head.split_at_mut(4);
    length.copy_from_slice(&(payload_bytes as u32).to_le_bytes());
    crc.copy_from_slice(&crc32c::crc32c(checked).to_le_bytes());
}

/// Reads the frames of a log one after the other, up to its end or the first error.
pub struct FrameReader<'a> {
    bytes: &'a [u8],
    at: usize,
    sequence_min: u64,
    done: bool,
    tail: Tail,
}

/// A frame whose checksum is right.
struct Intact<'a> {
    sequence: u64,
    payload: &'a [u8],
}

impl<'a> FrameReader<'a> {
    /// Reads `bytes`, the log without its header; the first frame's sequence is at least
    /// `first_sequence`.
    pub fn new(bytes: &'a [u8], first_sequence: u64) -> FrameReader<'a> {
        FrameReader { bytes, at: 0, sequence_min: first_sequence, done: false, tail: Tail::Clean }
    }

    /// How the log ends; meaningful once the iterator returned `None` without an error.
    pub fn tail(&self) -> Tail {
        self.tail
    }

    /// The bytes of all whole frames read so far.
    pub fn bytes_read(&self) -> u64 {
        self.at as u64
    }

    /// The sequence that the next frame appended to the log should have.
    pub fn next_sequence(&self) -> u64 {
        self.sequence_min
    }

    fn intact_at(&self, at: usize) -> Option<Intact<'a>> {
        let (length, rest) = self.bytes.get(at..)?.split_first_chunk::<4>()?;
        let payload_bytes = u32::from_le_bytes(*length) as usize;
        if !(PAYLOAD_BYTES_MIN..=FRAME_BYTES_MAX).contains(&payload_bytes) {
            return None;
        }
        let (crc, rest) = rest.split_first_chunk::<4>()?;
        let checked = rest.get(..size_of::<u64>() + payload_bytes)?;
        let (sequence, payload) = checked.split_first_chunk::<8>()?;
        (crc32c::crc32c(checked) == u32::from_le_bytes(*crc))
            .then_some(Intact { sequence: u64::from_le_bytes(*sequence), payload })
    }

    /// Decides whether the bad frame at the current offset is a torn tail or damage.
    fn bad_frame(&mut self) -> Option<Result<Frame, FormatError>> {
        self.done = true;
        for at in self.at + 1..self.bytes.len().saturating_sub(HEAD_BYTES) {
            // Look at the sequence before checksumming: nearly every offset fails here.
            let Some(sequence) = self.bytes.get(at + 8..).and_then(|b| b.first_chunk::<8>()) else {
                break;
            };
            let jump = u64::from_le_bytes(*sequence).checked_sub(self.sequence_min);
            if jump.is_none_or(|jump| jump > SEQUENCE_JUMP_MAX) {
                continue;
            }
            if let Some(intact) = self.intact_at(at) {
                return Some(Err(FormatError::DamagedFrame {
                    offset: self.at as u64,
                    intact_offset: at as u64,
                    sequence: intact.sequence,
                }));
            }
        }
        let offset = self.at as u64;
        self.tail = Tail::Torn { offset, bytes: self.bytes.len() as u64 - offset };
        None
    }

    fn decode(&self, intact: &Intact<'a>) -> Result<Frame, FormatError> {
        let offset = self.at as u64;
        // The highest number is never written: nothing could follow it.
        if intact.sequence < self.sequence_min || intact.sequence == u64::MAX {
            return Err(FormatError::Corrupt { what: "sequence (it must rise)", offset });
        }
        let payload_offset = offset + HEAD_BYTES as u64;
        let mut reader = Reader::new(intact.payload, payload_offset, "frame");
        let count = reader.count(RECORD_BYTES_MIN)?;
        let mut records = Vec::with_capacity(count);
        for _ in 0..count {
            records.push(Record::decode(&mut reader)?);
        }
        reader.finish()?;
        let end = payload_offset + intact.payload.len() as u64;
        Ok(Frame { sequence: intact.sequence, records, offset, end })
    }
}

impl Iterator for FrameReader<'_> {
    type Item = Result<Frame, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done || self.at == self.bytes.len() {
            return None;
        }
        let Some(intact) = self.intact_at(self.at) else {
            return self.bad_frame();
        };
        let frame = self.decode(&intact);
        match &frame {
            Ok(frame) => {
                self.at = frame.end as usize;
                self.sequence_min = frame.sequence + 1;
            }
            Err(_) => self.done = true,
        }
        Some(frame)
    }
}
